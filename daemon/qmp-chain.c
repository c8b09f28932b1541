/*
 * QMP: jobs that shorten backing chains.
 */
#include "block/jobs/commit.h"
#include "block/jobs/stream.h"
#include "daemon/daemon.h"
#include "qapi/commands.h"

bool qmp_co_block_commit(QmpContext *ctx, const BlockCommit *arg, GError **error)
{
    Job *job = commit_co_new(qmp_daemon(ctx)->jobs, arg, error);

    if (job)
        job_start(job);
    return job != NULL;
}

bool qmp_co_block_stream(QmpContext *ctx, const BlockStream *arg, GError **error)
{
    Job *job = stream_co_new(qmp_daemon(ctx)->jobs, arg, error);

    if (job)
        job_start(job);
    return job != NULL;
}
