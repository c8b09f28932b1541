/*
 * The backup job at work and at its end.
 *
 * What is to be copied stands in a bitmap of its own, in clusters of the target. The job runs passes of the copy engine
 * until it is clean; the filter above the source copies what clients are about to overwrite. Either way a cluster is
 * copied once, as it was at the start.
 */
#include "block/graph/drain.h"
#include "block/jobs/backup-int.h"
#include "block/util/order.h"

static BackupJob *backup_of(Job *job)
{
    return (BackupJob *)job;
}

/* Nothing to do but to wait for the end: the filter does the work. */
static int backup_co_only_filter(BackupJob *b)
{
    while (!job_is_cancelled(&b->common))
        job_co_wait(&b->common);
    return 0;
}

static int backup_co_run(Job *job, GError **error)
{
    BackupJob *b = backup_of(job);
    int ret = 0;

    copy_update_progress(b->copy);
    if (b->sync == MIRROR_SYNC_MODE_NONE)
        return backup_co_only_filter(b);
    if (b->sync == MIRROR_SYNC_MODE_TOP) {
        ret = copy_co_mark_allocated(job, b->todo, b->source, node_backing(b->source), b->source->size, true);
        copy_update_progress(b->copy);
    }
    while (ret == 0 && !job_is_cancelled(job) && copy_remaining(b->copy))
        ret = copy_co_pass(b->copy);
    if (ret == 0 && !order_left_out("backup-end"))
        ret = job_co_flush(job, b->target, b->on_target_error);
    return ret;
}

static void backup_co_settle(Job *job)
{
    copy_co_settle(backup_of(job)->copy);
}

static bool backup_drained_poll(Job *job)
{
    const Copy *copy = backup_of(job)->copy;

    return copy && copy->in_flight;
}

/* ---- the end ---------------------------------------------------------------------------------------------------- */

/* What becomes of the bitmap that said what to copy. */
static void backup_thaw(BackupJob *b, bool success)
{
    Bitmap *bitmap = b->bitmap;

    if (!bitmap)
        return;
    b->bitmap = NULL;
    if (b->bitmap_mode == BITMAP_SYNC_MODE_NEVER || (!success && b->bitmap_mode != BITMAP_SYNC_MODE_ALWAYS)) {
        bitmap_thaw_merge(bitmap);
        return;
    }
    bitmap_thaw_replace(bitmap);
    if (!success) {
        bool same_size = hbitmap_merge(bitmap->bits, b->todo);
        g_assert(same_size);
    }
}

static void backup_co_commit(Job *job)
{
    backup_thaw(backup_of(job), true);
}

static void backup_co_abort(Job *job)
{
    backup_thaw(backup_of(job), false);
}

static void backup_co_clean(Job *job)
{
    BackupJob *b = backup_of(job);

    b->stopped = true;
    if (b->inserted) {
        node_co_drained_begin(b->source);
        job_co_remove_filter(b->filter);
        node_drained_end(b->source);
        b->inserted = false;
    }
    port_co_free(b->port);
    b->port = NULL;
    copy_free(b->copy);
    b->copy = NULL;
    hbitmap_free(b->todo);
    b->todo = NULL;
    if (b->filter)
        ((BackupFilter *)b->filter->state)->job = NULL;
    node_co_unref(b->filter);
    b->filter = NULL;
}

const JobDriver backup_job_driver = {
    .type = JOB_TYPE_BACKUP,
    .size = sizeof(BackupJob),
    .is_block = true,
    .co_run = backup_co_run,
    .co_settle = backup_co_settle,
    .drained_poll = backup_drained_poll,
    .co_commit = backup_co_commit,
    .co_abort = backup_co_abort,
    .co_clean = backup_co_clean,
};

void backup_co_start(Job *job)
{
    Node *source = node_ref(backup_of(job)->source);

    node_co_drained_begin(source);
    job_start(job);
    node_drained_end(source);
    node_co_unref(source);
}
