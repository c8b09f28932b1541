/*
 * The copy engine: passes over the bitmap, and what is asked of it from outside.
 */
#include "block/jobs/copy-int.h"
#include "block/graph/drain.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"

#define CHUNK_DEFAULT   (512 * 1024) /* bytes: long enough to be efficient, short enough to stay in the cache */
#define BUFFERS_DEFAULT (8 * 1024 * 1024)
#define OPS_DEFAULT     16
#define OPS_MAX         256
#define STRETCH_MAX     (UINT64_C(1) << 30) /* of zeroes handled at a time: a client's write to it has to wait */
#define ZERO_STREAK_MAX 64

static uint64_t cow_unit(const Copy *c)
{
    return u64_max(c->granule, c->opt.cow_cluster);
}

static void settle_limits(Copy *c)
{
    CopyOptions *o = &c->opt;
    uint64_t unit = u64_max(u64_max(c->granule, o->cow_cluster), o->compress_cluster);

    if (!o->buffers)
        o->buffers = BUFFERS_DEFAULT;
    if (!o->chunk)
        o->chunk = o->compress_cluster ? unit : u64_max(unit, CHUNK_DEFAULT);
    o->chunk = u64_max(align_down(u64_min(o->chunk, u64_max(o->buffers, unit)), unit), unit);
    c->buffer_size = copy_buffer_size(o);
    if (!o->max_ops)
        o->max_ops = OPS_DEFAULT;
    o->max_ops = (unsigned)u64_min(o->max_ops, u64_max(o->buffers / c->buffer_size, 1));
    o->max_ops = MIN(o->max_ops, OPS_MAX);
}

Copy *copy_new(Job *job, const CopyOptions *options, GError **error)
{
    Copy *c = g_new0(Copy, 1);

    c->job = job;
    c->opt = *options;
    /* Zeroes that are there only for want of a backing file are none, once that has come. */
    if (options->target && node_skip_filters(options->target->node)->backing_expected)
        c->opt.skip_zeroes = false;
    c->granule = hbitmap_granularity(options->todo);
    if (c->opt.cow_cluster <= c->granule)
        c->opt.cow_cluster = 0;
    if (c->opt.cow_cluster) {
        c->cow_done = hbitmap_new(options->size, ilog2(c->opt.cow_cluster));
        if (!c->cow_done) {
            error_set(error, "No memory for a bitmap of %" G_GUINT64_FORMAT " bytes in clusters of %" G_GUINT64_FORMAT,
                      options->size, c->opt.cow_cluster);
            copy_free(c);
            return NULL;
        }
    }
    settle_limits(c);
    c->ops = g_new0(CopyOp, c->opt.max_ops);
    for (unsigned i = 0; i < c->opt.max_ops; i++) {
        c->ops[i].copy = c;
        c->ops[i].next = c->free_ops;
        c->free_ops = &c->ops[i];
    }
    return c;
}

void copy_free(Copy *c)
{
    if (!c)
        return;
    g_assert(!c->in_flight && !c->lock.holds);
    hbitmap_free(c->cow_done);
    g_free(c->ops);
    g_free(c);
}

/* Dirty bytes as progress counts them. */
static uint64_t todo_bytes(const Copy *c)
{
    uint64_t count = (uint64_t)hbitmap_count(c->opt.todo), tail = c->opt.size & (c->granule - 1);

    if (!c->opt.whole_granules && tail && hbitmap_get(c->opt.todo, c->opt.size - 1))
        count -= c->granule - tail;
    return count;
}

uint64_t copy_counted(const Copy *c, uint64_t offset, uint64_t bytes)
{
    if (c->opt.whole_granules && offset + bytes == c->opt.size)
        return align_up(bytes, c->granule);
    return bytes;
}

uint64_t copy_remaining(const Copy *c)
{
    return todo_bytes(c) + c->in_flight_bytes;
}

void copy_update_progress(Copy *c)
{
    job_progress_set_remaining(c->job, (int64_t)copy_remaining(c));
}

void copy_align(const Copy *c, uint64_t *offset, uint64_t *bytes)
{
    uint64_t unit = cow_unit(c), end = align_up(*offset + *bytes, unit);

    *offset = align_down(*offset, unit);
    *bytes = u64_min(end, c->opt.size) - *offset;
}

/* ---- passes ----------------------------------------------------------------------------------------------------- */

/* The range [@offset, @offset + @bytes), enlarged to whole clusters of the target where some of them are new. */
static void widen_to_clusters(const Copy *c, uint64_t *offset, uint64_t *bytes)
{
    uint64_t end;

    if (!c->cow_done || hbitmap_next_zero(c->cow_done, *offset, *bytes) < 0)
        return;
    end = align_up(*offset + *bytes, c->opt.cow_cluster);
    *offset = align_down(*offset, c->opt.cow_cluster);
    *bytes = u64_min(end, c->opt.size) - *offset;
}

/* Bytes of a request that goes at the job's speed: a slow job takes small steps. */
static uint64_t paced_chunk(const Copy *c)
{
    uint64_t unit = u64_max(cow_unit(c), c->opt.compress_cluster);

    if (!c->job->speed || c->opt.compress_cluster)
        return c->opt.chunk;
    return u64_max(unit, u64_min(c->opt.chunk, align_down((uint64_t)c->job->speed / 10, unit)));
}

static bool known_data(const Copy *c, uint64_t offset)
{
    return offset >= c->data_start && offset < c->data_end;
}

/*
 * What starts at the dirty @offset: zeroes for *@bytes (whole granules, maybe less than asked for), or data. 1, 0 or
 * -errno.
 */
static int copy_co_is_zero(Copy *c, uint64_t offset, uint64_t *bytes)
{
    BlockStatus status;
    uint64_t n = u64_min(*bytes, STRETCH_MAX), len;
    int ret;

    if (c->opt.copy_on_read) {
        *bytes = n;
        return 0;
    }
    if (known_data(c, offset)) {
        *bytes = u64_min(n, c->data_end - offset);
        return 0;
    }
    ret = node_co_block_status_above(c->opt.status_of, NULL, true, offset, n, &status, NULL);
    if (ret < 0)
        return ret;
    len = u64_min(status.bytes, n);
    if (status.flags & STATUS_ZERO) {
        if (offset + len < c->opt.size)
            len = align_down(offset + len, cow_unit(c)) - offset;
        if ((int64_t)len > 0 && is_aligned(offset, cow_unit(c))) {
            *bytes = len;
            return 1;
        }
        len = c->granule; /* it begins with zeroes and goes on otherwise: one granule of data */
    }
    len = u64_min(align_up(u64_max(len, 1), c->granule), c->opt.size - offset);
    c->data_start = offset;
    c->data_end = offset + len;
    *bytes = u64_min(*bytes, len);
    return 0;
}

/*
 * The bits of [@offset, @offset + @bytes) are clear and the range is locked. It was found to be zeroes a moment ago,
 * maybe before a write that the bits no longer tell of: so ask again. Marks what is not zeroes and returns how much is.
 */
static uint64_t copy_co_confirm_zero(Copy *c, uint64_t offset, uint64_t bytes)
{
    uint64_t done = 0;

    while (done < bytes) {
        BlockStatus status;
        int ret = node_co_block_status_above(c->opt.status_of, NULL, true, offset + done, bytes - done, &status, NULL);
        if (ret < 0 || !(status.flags & STATUS_ZERO) || !status.bytes)
            break;
        done += u64_min(status.bytes, bytes - done);
    }
    if (done < bytes) {
        done = align_down(done, c->granule);
        hbitmap_set(c->opt.todo, offset + done, bytes - done);
        c->data_start = c->data_end = 0;
    }
    return done;
}

/*
 * Whoever ran since the range was found may have copied parts of it, and then changed them: to copy these again would
 * spoil a copy that is to show the source as it was. So cuts the range to its first dirty stretch; false: there is
 * none. Where clusters have to be copied whole the copy follows the source, and may have it all again.
 */
static bool still_dirty(const Copy *c, uint64_t *offset, uint64_t *bytes)
{
    if (c->cow_done)
        return hbitmap_next_dirty(c->opt.todo, *offset, *bytes) >= 0;
    return hbitmap_next_dirty_area(c->opt.todo, *offset, *offset + *bytes, *bytes, offset, bytes);
}

/* Finds, locks and starts the next piece of the pass at or after *@cursor. 0 when there is none, else 1 or -errno. */
static int copy_co_next(Copy *c, uint64_t *cursor, uint64_t *ret_paced)
{
    uint64_t offset, bytes;
    CopyOp *op;
    int zero;

    *ret_paced = 0;
    if (!hbitmap_next_dirty_area(c->opt.todo, *cursor, c->opt.size, STRETCH_MAX, &offset, &bytes))
        return 0;
    zero = copy_co_is_zero(c, offset, &bytes);
    if (zero < 0)
        return zero;
    if (!zero) {
        bytes = u64_min(bytes, paced_chunk(c));
        widen_to_clusters(c, &offset, &bytes);
    }
    rangelock_co_wait(&c->lock, offset, offset + bytes);
    *cursor = offset + bytes;
    if (!still_dirty(c, &offset, &bytes))
        return 1;
    *cursor = offset + bytes;
    op = copy_op_take(c, offset, bytes);
    if (zero) {
        uint64_t confirmed = copy_co_confirm_zero(c, offset, bytes);
        if (confirmed < bytes) {
            copy_op_shorten(op, confirmed);
            *cursor = offset + confirmed;
        }
        copy_op_start(op, true);
    } else {
        *ret_paced = bytes;
        copy_op_start(op, false);
    }
    return 1;
}

/* An error of asking for status counts as one of reading. */
static void status_failed(Copy *c, int ret)
{
    BlockErrorAction action = job_error_action(c->job, c->opt.on_source_error, true, -ret);

    if (action == BLOCK_ERROR_ACTION_IGNORE)
        c->failed_lately = true;
    if (action == BLOCK_ERROR_ACTION_REPORT && !c->ret)
        c->ret = ret;
}

/* Lets clients' coroutines run between stretches that cost no I/O of their own. */
static void copy_co_breathe(Copy *c)
{
    if (++c->zero_streak < ZERO_STREAK_MAX)
        return;
    c->zero_streak = 0;
    aio_co_reschedule();
}

int copy_co_pass(Copy *c)
{
    Job *job = c->job;
    uint64_t cursor = 0, paced;

    c->data_start = c->data_end = 0;
    c->failed_lately = false;
    while (!c->ret) {
        int more;
        job_co_pause_point(job);
        if (job_is_cancelled(job))
            break;
        if (!c->free_ops) {
            coqueue_co_wait(&c->op_done, NULL);
            continue;
        }
        more = copy_co_next(c, &cursor, &paced);
        if (more < 0) {
            status_failed(c, more);
            break;
        }
        if (!more)
            break;
        copy_update_progress(c);
        if (paced) {
            int64_t delay = ratelimit_delay(&job->rate, loop_now(job->loop, LOOP_CLOCK_RATE), (int64_t)paced);
            if (delay && !job->own_drain) /* clients wait for the end of the drained section */
                job_co_sleep_rate(job, delay);
        } else {
            copy_co_breathe(c);
        }
    }
    copy_co_settle(c);
    /* The rest is being copied for clients. */
    while (!c->ret && c->in_flight_bytes && hbitmap_empty(c->opt.todo))
        coqueue_co_wait(&c->op_done, NULL);
    copy_update_progress(c);
    if (c->failed_lately && !c->ret)
        job_co_sleep(job, JOB_ERROR_REST_NS);
    return c->ret;
}

void copy_co_settle(Copy *c)
{
    while (c->in_flight)
        coqueue_co_wait(&c->op_done, NULL);
}

int copy_co_before_write(Copy *c, uint64_t offset, uint64_t bytes)
{
    uint64_t at, n, end = offset + bytes;

    while (hbitmap_next_dirty_area(c->opt.todo, offset, end, c->opt.chunk, &at, &n)) {
        uint64_t counted;
        bool is_read;
        int ret;
        counted = copy_counted(c, at, n);
        hbitmap_reset(c->opt.todo, at, n);
        c->in_flight_bytes += counted;
        ret = copy_co_range(c, at, n, &is_read);
        c->in_flight_bytes -= counted;
        if (ret < 0)
            hbitmap_set(c->opt.todo, at, n);
        coqueue_wake_all(&c->op_done);
        if (ret < 0)
            return ret;
        job_progress_done(c->job, (int64_t)counted);
        offset = at + n;
    }
    copy_update_progress(c);
    return 0;
}

int copy_co_mark_allocated(Job *job, HBitmap *todo, Node *top, Node *base, uint64_t size, bool unmark)
{
    uint64_t granule = hbitmap_granularity(todo), offset = 0;

    while (offset < size) {
        uint64_t n, end;
        int allocated;
        job_co_pause_point(job);
        if (job_is_cancelled(job))
            return 0;
        allocated = node_co_is_allocated_above(top, base, false, offset, size - offset, &n);
        if (allocated < 0)
            return allocated;
        end = offset + u64_max(n, 1);
        if (allocated) {
            if (!unmark)
                hbitmap_set(todo, offset, end - offset);
        } else if (unmark && end < size) {
            /* Only granules that are unallocated as a whole: one that was begun belongs to what came before. */
            uint64_t first = align_up(offset, granule), last = align_down(end, granule);
            if (first < last)
                hbitmap_reset(todo, first, last - first);
        } else if (unmark && align_up(offset, granule) < size) {
            hbitmap_reset(todo, align_up(offset, granule), size - align_up(offset, granule));
        }
        offset = end;
    }
    return 0;
}
