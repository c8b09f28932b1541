/*
 * What jobs tell clients: the events, in QEMU's fields.
 */
#include "block/jobs/job-int.h"
#include "qapi/events.h"

void job_event_status(const Job *job)
{
    qapi_emit_job_status_change(&(JobStatusChangeEvent){.id = job->id, .status = job->status});
}

void job_event_ready(const Job *job)
{
    if (!job->drv->is_block)
        return;
    qapi_emit_block_job_ready(&(BlockJobReadyEvent){
        .type = job->drv->type,
        .device = job->id,
        .len = job->progress_total,
        .offset = job->progress,
        .speed = job->speed,
    });
}

void job_event_pending(const Job *job)
{
    if (!job->drv->is_block)
        return;
    qapi_emit_block_job_pending(&(BlockJobPendingEvent){.type = job->drv->type, .id = job->id});
}

void job_event_end(const Job *job)
{
    if (!job->drv->is_block)
        return;
    if (job_is_cancelled(job)) {
        qapi_emit_block_job_cancelled(&(BlockJobCancelledEvent){
            .type = job->drv->type,
            .device = job->id,
            .len = job->progress_total,
            .offset = job->progress,
            .speed = job->speed,
        });
        return;
    }
    qapi_emit_block_job_completed(&(BlockJobCompletedEvent){
        .type = job->drv->type,
        .device = job->id,
        .len = job->progress_total,
        .offset = job->progress,
        .speed = job->speed,
        .error = job->ret < 0 ? job->error : NULL,
    });
}

void job_event_error(const Job *job, bool is_read, BlockErrorAction action)
{
    qapi_emit_block_job_error(&(BlockJobErrorEvent){
        .device = job->id,
        .operation = is_read ? IO_OPERATION_TYPE_READ : IO_OPERATION_TYPE_WRITE,
        .action = action,
    });
}
