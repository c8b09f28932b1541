/*
 * Jobs: the registry, their making and end, and the verbs of clients.
 */
#include "block/graph/drain.h"
#include "block/jobs/job-int.h"

JobList *job_list_new(Loop *loop, Graph *graph)
{
    JobList *list = g_new0(JobList, 1);

    list->loop = loop;
    list->graph = graph;
    g_queue_init(&list->jobs);
    return list;
}

void job_list_free(JobList *list)
{
    if (!list)
        return;
    g_assert(g_queue_is_empty(&list->jobs));
    g_free(list);
}

static Job *find(JobList *list, const char *id)
{
    for (GList *l = list->jobs.head; l; l = l->next) {
        Job *job = l->data;
        if (strcmp(job->id, id) == 0)
            return job;
    }
    return NULL;
}

Job *job_find(JobList *list, const char *id, GError **error)
{
    Job *job = find(list, id);

    if (!job)
        error_set(error, "Job not found");
    return job;
}

Job *job_find_block(JobList *list, const char *id, GError **error)
{
    Job *job = find(list, id);

    if (job && job->drv->is_block)
        return job;
    error_set_class(error, SD_ERROR_DEVICE_NOT_ACTIVE, "Block job '%s' not found", id);
    return NULL;
}

bool job_list_check_node(JobList *list, Node *node, GError **error)
{
    for (GList *l = list->jobs.head; l; l = l->next) {
        Job *job = l->data;
        if (g_ptr_array_find(job->nodes, node, NULL))
            /* Queries do not show a filter that the job has put there: its name tells nobody anything. */
            return error_set(error, "Node '%s' is busy: block device is in use by block job: %s",
                             node_skip_implicit(node)->name, qapi_JobType_str(job->drv->type));
    }
    return true;
}

/* ---- making ----------------------------------------------------------------------------------------------------- */

static bool id_wellformed(const char *id)
{
    if (!g_ascii_isalpha(*id))
        return false;
    for (const char *p = id; *p; p++)
        if (!g_ascii_isalnum(*p) && !strchr("-._", *p))
            return false;
    return true;
}

Job *job_new(JobList *list, const JobDriver *drv, const char *id, JobTxn *txn, bool auto_finalize, bool auto_dismiss,
             GError **error)
{
    Job *job;

    if (!id || !id_wellformed(id)) {
        error_set(error, "Invalid job ID '%s'", id ? id : "");
        return NULL;
    }
    if (find(list, id)) {
        error_set(error, "Job ID '%s' already in use", id);
        return NULL;
    }
    job = g_malloc0(drv->size);
    job->drv = drv;
    job->list = list;
    job->graph = list->graph;
    job->loop = list->loop;
    job->id = g_strdup(id);
    job->refs = 1;
    job->auto_finalize = auto_finalize;
    job->auto_dismiss = auto_dismiss;
    job->nodes = g_ptr_array_new();
    job_init_sleep(job);
    job->txn = NULL;
    if (txn) {
        job_txn_add(txn, job);
    } else {
        txn = job_txn_new();
        job_txn_add(txn, job);
        job_txn_unref(txn);
    }
    g_queue_push_head(&list->jobs, job);
    job_set_status(job, JOB_STATUS_CREATED);
    return job;
}

void job_ref(Job *job)
{
    job->refs++;
}

void job_unref(Job *job)
{
    if (--job->refs > 0)
        return;
    g_assert(job->nodes->len == 0 && !job->txn);
    if (job->drv->free)
        job->drv->free(job);
    g_ptr_array_unref(job->nodes);
    g_free(job->error);
    g_free(job->id);
    g_free(job);
}

void job_add_node(Job *job, Node *node)
{
    g_ptr_array_add(job->nodes, node_ref(node));
}

void job_co_drop_nodes(Job *job)
{
    while (job->nodes->len)
        node_co_unref(g_ptr_array_steal_index(job->nodes, job->nodes->len - 1));
}

/* Takes it out of the registry: whoever waits for its end goes on. */
static void job_remove(Job *job)
{
    job_set_status(job, JOB_STATUS_NULL);
    g_queue_remove(&job->list->jobs, job);
    coqueue_wake_all(&job->changed);
    job_unref(job);
}

void job_conclude(Job *job)
{
    job_set_status(job, JOB_STATUS_CONCLUDED);
    if (job->auto_dismiss || !job->started)
        job_remove(job);
    else
        coqueue_wake_all(&job->changed);
}

/* Gives back what the constructor took. */
static void job_co_undo(Job *job)
{
    g_assert(!job->started);
    if (job->drv->co_abort)
        job->drv->co_abort(job);
    if (job->drv->co_clean)
        job->drv->co_clean(job);
    job_co_drop_nodes(job);
    job_txn_del(job);
}

void job_co_discard(Job *job)
{
    job_co_undo(job);
    job_remove(job);
}

void job_co_abandon(Job *job)
{
    job_set_status(job, JOB_STATUS_ABORTING);
    job_co_undo(job);
    job_conclude(job);
}

/* ---- verbs ------------------------------------------------------------------------------------------------------ */

bool job_user_paused(const Job *job)
{
    return job->user_paused;
}

bool job_user_pause(Job *job, GError **error)
{
    if (!job_check_verb(job, JOB_VERB_PAUSE, error))
        return false;
    if (job->user_paused)
        return error_set(error, "Job is already paused");
    job->user_paused = true;
    job->pause_count++;
    job_kick(job);
    return true;
}

static void end_user_pause(Job *job)
{
    if (!job->user_paused)
        return;
    job->user_paused = false;
    g_assert(job->pause_count > 0);
    job->pause_count--;
}

bool job_user_resume(Job *job, GError **error)
{
    if (!job->user_paused)
        return error_set(error, "Can't resume a job that was not paused");
    if (!job_check_verb(job, JOB_VERB_RESUME, error))
        return false;
    job->io_status = BLOCK_DEVICE_IO_STATUS_OK;
    end_user_pause(job);
    job_kick(job);
    return true;
}

void job_cancel_async(Job *job, bool force)
{
    if (job->drv->must_force)
        force = job->drv->must_force(job, force);
    else
        force = true;
    end_user_pause(job);
    job->cancelled = true;
    job->force_cancel |= force;
    job_kick(job);
}

/* The rest of a cancellation: what has nothing left to run is concluded here. A job that has not been started is still
 * in the hands of whoever makes it: it ends as soon as it is started. */
static void job_co_cancel(Job *job, bool force)
{
    job_ref(job);
    job_cancel_async(job, force);
    if (job->run_over && job->force_cancel && !job_txn_finalizing(job))
        job_co_txn_abort(job);
    job_unref(job);
}

bool job_co_user_cancel(Job *job, bool force, GError **error)
{
    if (!job_check_verb(job, JOB_VERB_CANCEL, error))
        return false;
    job_co_cancel(job, force);
    return true;
}

bool job_complete(Job *job, GError **error)
{
    if (!job_check_verb(job, JOB_VERB_COMPLETE, error))
        return false;
    if (job->cancelled || !job->drv->complete)
        return error_set(error, "The active block job '%s' cannot be completed", job->id);
    if (!job->drv->complete(job, error))
        return false;
    job_kick(job);
    return true;
}

bool job_dismiss(Job *job, GError **error)
{
    if (!job_check_verb(job, JOB_VERB_DISMISS, error))
        return false;
    job_remove(job);
    return true;
}

bool job_set_speed(Job *job, int64_t speed, GError **error)
{
    if (!job_check_verb(job, JOB_VERB_SET_SPEED, error))
        return false;
    if (speed < 0)
        return error_set(error, "Parameter 'speed' expects a non-negative value");
    job->speed = speed;
    ratelimit_set(&job->rate, speed);
    job_kick(job);
    return true;
}

void job_list_co_cancel_all(JobList *list)
{
    Job *job;

    /* All at once, so that they end side by side, and then wait for one after the other. */
    for (GList *l = list->jobs.head; l; l = l->next) {
        job = l->data;
        if (job->started && !job->run_over)
            job_cancel_async(job, true);
    }
    while ((job = g_queue_peek_head(&list->jobs))) {
        if (job->status == JOB_STATUS_CONCLUDED) {
            job_remove(job);
            continue;
        }
        job_ref(job);
        if (!job->force_cancel || (job->run_over && !job_txn_finalizing(job)))
            job_co_cancel(job, true);
        while (job->status != JOB_STATUS_CONCLUDED && job->status != JOB_STATUS_NULL)
            coqueue_co_wait(&job->changed, NULL);
        job_unref(job);
    }
}

/* ---- queries ---------------------------------------------------------------------------------------------------- */

JobInfoList *job_list_query(JobList *list)
{
    JobInfoList *ret = g_new0(JobInfoList, 1);

    ret->items = g_new0(JobInfo *, list->jobs.length);
    for (GList *l = list->jobs.head; l; l = l->next) {
        const Job *job = l->data;
        JobInfo *info = g_new0(JobInfo, 1);
        info->id = g_strdup(job->id);
        info->type = job->drv->type;
        info->status = job->status;
        info->current_progress = job->progress;
        info->total_progress = job->progress_total;
        info->error = g_strdup(job->error);
        ret->items[ret->len++] = info;
    }
    return ret;
}

static BlockJobInfo *block_job_info(const Job *job)
{
    BlockJobInfo *info = g_new0(BlockJobInfo, 1);

    info->type = job->drv->type;
    info->device = g_strdup(job->id);
    info->len = job->progress_total;
    info->offset = job->progress;
    info->busy = job->busy;
    info->paused = job->pause_count > 0;
    info->speed = job->speed;
    info->io_status = job->io_status;
    info->ready = job_is_ready(job);
    info->status = job->status;
    info->auto_finalize = job->auto_finalize;
    info->auto_dismiss = job->auto_dismiss;
    info->error = g_strdup(job->error);
    return info;
}

BlockJobInfoList *job_list_query_block(JobList *list)
{
    BlockJobInfoList *ret = g_new0(BlockJobInfoList, 1);

    ret->items = g_new0(BlockJobInfo *, list->jobs.length);
    for (GList *l = list->jobs.head; l; l = l->next) {
        const Job *job = l->data;
        if (job->drv->is_block)
            ret->items[ret->len++] = block_job_info(job);
    }
    return ret;
}
