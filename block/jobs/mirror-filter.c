/*
 * The mirror's filter node, "mirror_top".
 *
 * In background mode it is only there to be seen: the job's dirty bitmap tells it of writes. In write-blocking mode it
 * sends each write to the target too, before it completes. Then the granules that are wholly in step stay clean; the
 * rest stays dirty for the job: granules that it has not copied yet and are written in part, or failed.
 *
 * That holds as long as all writes come this way. A client that attaches itself to the source later writes behind the
 * filter's back, maybe to the granule that a write here is about to call in step; only the bitmap knows of it. From
 * then on the filter leaves everything to the job.
 */
#include "block/jobs/mirror-int.h"
#include "block/util/bytes.h"

/* One client's write on its way to both sides. */
typedef struct ActiveWrite {
    MirrorJob *m;
    RangeHold hold;
    uint64_t start, end;         /* granules around it, locked */
    bool head_clean, tail_clean; /* the first and last granule were in step before */
} ActiveWrite;

static bool is_clean(const MirrorJob *m, uint64_t offset)
{
    return !hbitmap_get(m->dirty->bits, offset);
}

static void active_co_begin(ActiveWrite *w, Node *node, uint64_t offset, uint64_t bytes)
{
    MirrorJob *m = w->m = ((MirrorFilter *)node->state)->job;

    w->start = align_down(offset, m->granularity);
    w->end = align_up(offset + bytes, m->granularity);
    rangelock_co_wait(&m->copy->lock, w->start, w->end);
    rangelock_take(&m->copy->lock, &w->hold, w->start, w->end);
    w->head_clean = is_clean(m, offset);
    w->tail_clean = is_clean(m, offset + bytes - 1);
}

/* What of the write may go to the target: a partly written granule only if the rest of it is in step. */
static bool active_range(const ActiveWrite *w, uint64_t *offset, uint64_t *bytes)
{
    const MirrorJob *m = w->m;
    uint64_t unit = u64_max(m->granularity, m->copy->opt.cow_cluster);
    uint64_t start = *offset, end = *offset + *bytes;
    /* In a cluster that the target has not got, what is not written would stay zeroes. */
    bool parts = !m->backing_later;

    if (m->bypassed)
        return false;
    if (!(parts && w->head_clean))
        start = align_up(start, unit);
    if (end < m->source->size && !(parts && w->tail_clean))
        end = align_down(end, unit);
    if (start >= end)
        return false;
    *offset = start;
    *bytes = end - start;
    return true;
}

/* [@offset, @offset + @bytes) has reached both sides: its granules are in step. */
static void active_in_step(ActiveWrite *w, uint64_t offset, uint64_t bytes)
{
    MirrorJob *m = w->m;
    uint64_t start = align_down(offset, m->granularity), end = offset + bytes;

    if (m->bypassed)
        return;
    if (end < m->source->size)
        end = align_up(end, m->granularity);
    bitmap_reset(m->dirty, start, end - start);
    if (m->copy->cow_done)
        hbitmap_set(m->copy->cow_done, offset, bytes);
}

static void active_failed(MirrorJob *m, int ret)
{
    if (job_error_action(&m->common, m->on_target_error, false, -ret) == BLOCK_ERROR_ACTION_REPORT && !m->copy->ret)
        m->copy->ret = ret;
    job_kick(&m->common);
}

static void active_end(ActiveWrite *w)
{
    rangelock_release(&w->hold);
    if (w->m->idle && bitmap_count(w->m->dirty))
        job_kick(&w->m->common);
}

static bool is_active(Node *node)
{
    const MirrorJob *m = ((MirrorFilter *)node->state)->job;

    return m && m->copy && !m->stopped && !m->copy->ret;
}

static int active_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                             ReqFlags flags)
{
    ActiveWrite w;
    uint64_t at = offset, n = bytes;
    int ret;

    if (!is_active(node))
        return child_co_pwritev(node->file, offset, bytes, vec, vec_offset, flags);
    active_co_begin(&w, node, offset, bytes);
    ret = child_co_pwritev(node->file, offset, bytes, vec, vec_offset, flags);
    if (ret == 0 && is_active(node) && active_range(&w, &at, &n)) {
        /* What leaves the source's data alone may change the target's. */
        int target = child_co_pwritev(w.m->target_port->child, at, n, vec, vec_offset + (at - offset),
                                      flags & ~REQ_WRITE_UNCHANGED);
        if (target == 0)
            active_in_step(&w, at, n);
        else
            active_failed(w.m, target);
    }
    active_end(&w);
    return ret;
}

static int active_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    ActiveWrite w;
    uint64_t at = offset, n = bytes;
    int ret;

    if (!is_active(node))
        return child_co_pwrite_zeroes(node->file, offset, bytes, flags);
    active_co_begin(&w, node, offset, bytes);
    ret = child_co_pwrite_zeroes(node->file, offset, bytes, flags);
    if (ret == 0 && is_active(node) && active_range(&w, &at, &n)) {
        ReqFlags target_flags = flags & ~(REQ_NO_FALLBACK | REQ_WRITE_UNCHANGED | (w.m->unmap ? 0 : REQ_MAY_UNMAP));
        int target = child_co_pwrite_zeroes(w.m->target_port->child, at, n, target_flags);
        if (target == 0)
            active_in_step(&w, at, n);
        else
            active_failed(w.m, target);
    }
    active_end(&w);
    return ret;
}

/* What cannot be repeated on the target is left to the job. The lock keeps a write to the same granule from calling it
 * in step meanwhile. */
static int active_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    ActiveWrite w;
    int ret;

    if (!is_active(node))
        return child_co_pdiscard(node->file, offset, bytes);
    active_co_begin(&w, node, offset, bytes);
    ret = child_co_pdiscard(node->file, offset, bytes);
    active_end(&w);
    return ret;
}

static int active_co_pwritev_compressed(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec,
                                        size_t vec_offset)
{
    ActiveWrite w;
    int ret;

    if (!is_active(node))
        return child_co_pwritev(node->file, offset, bytes, vec, vec_offset, REQ_WRITE_COMPRESSED);
    active_co_begin(&w, node, offset, bytes);
    ret = child_co_pwritev(node->file, offset, bytes, vec, vec_offset, REQ_WRITE_COMPRESSED);
    active_end(&w);
    return ret;
}

#define MIRROR_FILTER .name = "mirror_top", .state_size = sizeof(MirrorFilter), .is_filter = true, .internal = true

const Driver mirror_filter_passive = {MIRROR_FILTER};

/* Backing edges below share writing where everything above does; that the job writes to the base shows nowhere above.
 */
static void commit_child_perm(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared,
                              unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = perm;
    *ret_shared = shared | PERM_WRITE | PERM_RESIZE;
}

const Driver mirror_filter_commit = {MIRROR_FILTER, .child_perm = commit_child_perm};

const Driver mirror_filter_active = {
    MIRROR_FILTER,
    .co_pwritev = active_co_pwritev,
    .co_pwrite_zeroes = active_co_pwrite_zeroes,
    .co_pdiscard = active_co_pdiscard,
    .co_pwritev_compressed = active_co_pwritev_compressed,
};
