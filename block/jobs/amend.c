/*
 * Changing options of an image in use. The driver does it in one go; a job only because it may take seconds.
 */
#include "block/jobs/amend.h"
#include "block/jobs/job-int.h"
#include <errno.h>

typedef struct AmendJob {
    Job job;
    Node *node; /* guarded by the job */
    BlockdevAmendOptions *options;
    bool force;
} AmendJob;

static int amend_co_run(Job *job, GError **error)
{
    AmendJob *a = (AmendJob *)job;

    job_progress_set_remaining(job, 1);
    if (!node_writable(a->node)) {
        error_set(error, "Node '%s' is read-only", a->node->name);
        return -EPERM;
    }
    if (!a->node->drv->co_amend(a->node, a->options, a->force, error))
        return -EIO;
    job_progress_done(job, 1);
    return 0;
}

static void amend_free(Job *job)
{
    qapi_free_BlockdevAmendOptions(((AmendJob *)job)->options);
}

static const JobDriver amend_driver = {
    .type = JOB_TYPE_AMEND,
    .size = sizeof(AmendJob),
    .co_run = amend_co_run,
    .free = amend_free,
};

Job *amend_new(JobList *list, const char *id, Node *node, const BlockdevAmendOptions *options, bool force,
               GError **error)
{
    AmendJob *a;

    if (strcmp(node->drv->name, qapi_BlockdevDriver_str(options->driver)) != 0) {
        error_set(error, "x-blockdev-amend doesn't support changing the block driver");
        return NULL;
    }
    if (!node->drv->co_amend) {
        error_set(error, "Driver does not support x-blockdev-amend");
        return NULL;
    }
    a = (AmendJob *)job_new(list, &amend_driver, id, NULL, true, false, error);
    if (!a)
        return NULL;
    a->node = node;
    a->options = qapi_clone_BlockdevAmendOptions(options);
    a->force = force;
    job_add_node(&a->job, node);
    return &a->job;
}
