/*
 * Commands about jobs: starting them, verbs, queries.
 */
#include "block/jobs/create.h"
#include "block/jobs/job.h"
#include "block/jobs/mirror.h"
#include "daemon/daemon.h"
#include "qapi/commands.h"

static JobList *jobs_of(QmpContext *ctx)
{
    return qmp_daemon(ctx)->jobs;
}

/* The job's coroutine, just woken, goes first: clients know its change of state to be told before the reply. */
static bool job_co_reacts(bool ok)
{
    if (ok)
        aio_co_reschedule();
    return ok;
}

/* ---- job-* ------------------------------------------------------------------------------------------------------ */

bool qmp_co_job_pause(QmpContext *ctx, const JobPauseArgs *arg, GError **error)
{
    Job *job = job_find(jobs_of(ctx), arg->id, error);

    return job_co_reacts(job && job_user_pause(job, error));
}

bool qmp_co_job_resume(QmpContext *ctx, const JobResumeArgs *arg, GError **error)
{
    Job *job = job_find(jobs_of(ctx), arg->id, error);

    return job_co_reacts(job && job_user_resume(job, error));
}

bool qmp_co_job_cancel(QmpContext *ctx, const JobCancelArgs *arg, GError **error)
{
    Job *job = job_find(jobs_of(ctx), arg->id, error);

    return job && job_co_user_cancel(job, true, error);
}

bool qmp_co_job_complete(QmpContext *ctx, const JobCompleteArgs *arg, GError **error)
{
    Job *job = job_find(jobs_of(ctx), arg->id, error);

    return job && job_complete(job, error);
}

bool qmp_co_job_dismiss(QmpContext *ctx, const JobDismissArgs *arg, GError **error)
{
    Job *job = job_find(jobs_of(ctx), arg->id, error);

    return job && job_dismiss(job, error);
}

bool qmp_co_job_finalize(QmpContext *ctx, const JobFinalizeArgs *arg, GError **error)
{
    Job *job = job_find(jobs_of(ctx), arg->id, error);

    return job && job_co_finalize(job, error);
}

bool qmp_co_query_jobs(QmpContext *ctx, JobInfoList **ret, GError **error)
{
    *ret = job_list_query(jobs_of(ctx));
    return true;
}

/* ---- block-job-* ------------------------------------------------------------------------------------------------ */

bool qmp_co_query_block_jobs(QmpContext *ctx, BlockJobInfoList **ret, GError **error)
{
    *ret = job_list_query_block(jobs_of(ctx));
    return true;
}

bool qmp_co_block_job_set_speed(QmpContext *ctx, const BlockJobSetSpeedArgs *arg, GError **error)
{
    Job *job = job_find_block(jobs_of(ctx), arg->device, error);

    return job && job_set_speed(job, arg->speed, error);
}

bool qmp_co_block_job_cancel(QmpContext *ctx, const BlockJobCancelArgs *arg, GError **error)
{
    Job *job = job_find_block(jobs_of(ctx), arg->device, error);

    if (!job)
        return false;
    if (job_user_paused(job) && !arg->force)
        return error_set(error, "The block job for device '%s' is currently paused", arg->device);
    return job_co_user_cancel(job, arg->force, error);
}

bool qmp_co_block_job_pause(QmpContext *ctx, const BlockJobPauseArgs *arg, GError **error)
{
    Job *job = job_find_block(jobs_of(ctx), arg->device, error);

    return job_co_reacts(job && job_user_pause(job, error));
}

bool qmp_co_block_job_resume(QmpContext *ctx, const BlockJobResumeArgs *arg, GError **error)
{
    Job *job = job_find_block(jobs_of(ctx), arg->device, error);

    return job_co_reacts(job && job_user_resume(job, error));
}

bool qmp_co_block_job_complete(QmpContext *ctx, const BlockJobCompleteArgs *arg, GError **error)
{
    Job *job = job_find_block(jobs_of(ctx), arg->device, error);

    return job && job_complete(job, error);
}

bool qmp_co_block_job_dismiss(QmpContext *ctx, const BlockJobDismissArgs *arg, GError **error)
{
    Job *job = job_find_block(jobs_of(ctx), arg->id, error);

    return job && job_dismiss(job, error);
}

bool qmp_co_block_job_finalize(QmpContext *ctx, const BlockJobFinalizeArgs *arg, GError **error)
{
    Job *job = job_find_block(jobs_of(ctx), arg->id, error);

    return job && job_co_finalize(job, error);
}

/* ---- starting --------------------------------------------------------------------------------------------------- */

bool qmp_co_drive_mirror(QmpContext *ctx, const DriveMirror *arg, GError **error)
{
    Job *job = mirror_co_new_drive(jobs_of(ctx), arg, error);

    if (job)
        job_start(job);
    return job != NULL;
}

bool qmp_co_blockdev_mirror(QmpContext *ctx, const BlockdevMirror *arg, GError **error)
{
    Job *job = mirror_co_new_blockdev(jobs_of(ctx), arg, error);

    if (job)
        job_start(job);
    return job != NULL;
}

/* ---- blockdev-create -------------------------------------------------------------------------------------------- */

bool qmp_co_blockdev_create(QmpContext *ctx, const BlockdevCreateArgs *arg, GError **error)
{
    Job *job = create_job_new(jobs_of(ctx), arg->job_id, arg->options, error);

    if (job)
        job_start(job);
    return job != NULL;
}
