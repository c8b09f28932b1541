/*
 * The end of jobs: all jobs of a transaction succeed together or none does.
 *
 * A job whose work is done waits (waiting) until the others' is; then all are pending; finalisation asks each to
 * prepare, and commits each once all agreed. A failure before that aborts them all: those still at work are cancelled
 * first. Each finalisation runs in the coroutine of whoever caused it (the last job to end, or a client's command), and
 * one at a time: JobTxn.finalizing keeps others out, who only leave their cancellation behind as a flag.
 */
#include "block/graph/drain.h"
#include "block/jobs/job-int.h"

struct JobTxn {
    unsigned refs;
    GQueue jobs;     /* of Job *, newest first; each holds a reference to the transaction */
    bool aborting;   /* failed: a coroutine is concluding its jobs */
    bool finalizing; /* a coroutine is preparing and committing */
};

JobTxn *job_txn_new(void)
{
    JobTxn *txn = g_new0(JobTxn, 1);

    txn->refs = 1;
    g_queue_init(&txn->jobs);
    return txn;
}

void job_txn_unref(JobTxn *txn)
{
    if (!txn || --txn->refs > 0)
        return;
    g_assert(g_queue_is_empty(&txn->jobs));
    g_free(txn);
}

void job_txn_add(JobTxn *txn, Job *job)
{
    txn->refs++;
    g_queue_push_head(&txn->jobs, job); /* newest first: the order in which QEMU ends them */
    job->txn = txn;
}

void job_txn_del(Job *job)
{
    JobTxn *txn = job->txn;

    if (!txn)
        return;
    job->txn = NULL;
    g_queue_remove(&txn->jobs, job);
    job_txn_unref(txn);
}

bool job_txn_finalizing(const Job *job)
{
    return !job->txn || job->txn->finalizing || job->txn->aborting;
}

/* A cancelled job fails; a failed one has a text. */
static void settle_result(Job *job)
{
    if (!job->ret && job_is_cancelled(job))
        job->ret = -ECANCELED;
    if (!job->ret)
        return;
    if (!job->error)
        job->error = g_strdup(g_strerror(-job->ret));
    job_set_status(job, JOB_STATUS_ABORTING);
}

static void take_error(Job *job, GError *error)
{
    if (!error)
        return;
    g_free(job->error);
    job->error = g_strdup(error->message);
    g_error_free(error);
}

static void job_co_finalize_single(Job *job)
{
    const JobDriver *drv = job->drv;

    job_ref(job);
    if (!job->ret) {
        if (drv->co_commit)
            drv->co_commit(job);
    } else if (drv->co_abort) {
        drv->co_abort(job);
    }
    if (drv->co_clean)
        drv->co_clean(job);
    job_co_drop_nodes(job);
    if (job->started)
        job_event_end(job);
    job_txn_del(job);
    job_conclude(job);
    job_unref(job);
}

void job_co_txn_abort(Job *job)
{
    JobTxn *txn = job->txn;
    Job *other;

    if (txn->aborting)
        return;
    txn->aborting = true;
    txn->refs++;
    for (GList *l = txn->jobs.head; l; l = l->next) {
        other = l->data;
        if (other != job && !other->ret)
            job_cancel_async(other, true);
    }
    while ((other = g_queue_peek_head(&txn->jobs))) {
        job_ref(other);
        /* One that has not been started yet will be, and then end at once; or it is discarded. */
        while (!other->run_over && other->txn)
            coqueue_co_wait(&other->changed, NULL);
        if (other->txn) {
            settle_result(other);
            job_co_finalize_single(other);
        }
        job_unref(other);
    }
    job_txn_unref(txn);
}

/* Asks every job to prepare; a job that fails makes all fail. */
static Job *job_co_prepare_all(JobTxn *txn)
{
    for (GList *l = txn->jobs.head; l; l = l->next) {
        Job *job = l->data;
        g_autoptr(GError) error = NULL;
        if (!job_is_cancelled(job) && job->drv->co_prepare) {
            job->ret = job->drv->co_prepare(job, &error);
            if (job->ret)
                take_error(job, g_steal_pointer(&error));
        }
        settle_result(job);
        if (job->ret)
            return job;
    }
    /* One may have been cancelled while a later one prepared. */
    for (GList *l = txn->jobs.head; l; l = l->next) {
        Job *job = l->data;
        settle_result(job);
        if (job->ret)
            return job;
    }
    return NULL;
}

static void job_co_finalize_all(JobTxn *txn)
{
    Job *job, *failed;

    txn->refs++;
    txn->finalizing = true;
    failed = job_co_prepare_all(txn);
    if (failed)
        job_co_txn_abort(failed);
    else
        while ((job = g_queue_peek_head(&txn->jobs)))
            job_co_finalize_single(job);
    job_txn_unref(txn);
}

bool job_co_finalize(Job *job, GError **error)
{
    if (!job_check_verb(job, JOB_VERB_FINALIZE, error))
        return false;
    if (job_txn_finalizing(job))
        return error_set(error, "Job '%s' is being finalized already", job->id);
    job_co_finalize_all(job->txn);
    return true;
}

static void job_co_txn_success(Job *job)
{
    JobTxn *txn = job->txn;
    bool all_auto = true;

    job_set_status(job, JOB_STATUS_WAITING);
    for (GList *l = txn->jobs.head; l; l = l->next)
        if (!((Job *)l->data)->run_over)
            return;
    for (GList *l = txn->jobs.head; l; l = l->next) {
        Job *other = l->data;
        job_set_status(other, JOB_STATUS_PENDING);
        if (!other->auto_finalize) {
            job_event_pending(other);
            all_auto = false;
        }
    }
    if (all_auto)
        job_co_finalize_all(txn);
}

void job_co_run_over(Job *job, int ret, GError *error)
{
    job->run_over = true;
    job->ret = ret;
    take_error(job, error);
    settle_result(job);
    coqueue_wake_all(&job->changed);
    graph_drain_kick(job->graph);
    if (job->ret)
        job_co_txn_abort(job);
    else
        job_co_txn_success(job);
}
