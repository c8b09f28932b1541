/*
 * The copy engine: one piece, from locking to what becomes of its bits.
 */
#include "block/aio/io.h"
#include "block/graph/drain.h"
#include "block/graph/status.h"
#include "block/jobs/copy-int.h"
#include "block/util/bytes.h"

#define BUFFER_MAX (1024 * 1024)      /* bytes read at a time, however long the piece is */
#define ZERO_PIECE (64 * 1024 * 1024) /* bytes zeroed at a time: between them the job can be cancelled */
#define GAP_MIN    (32 * 1024)        /* bytes of zeroes amid data that are worth to be left out */

uint64_t copy_buffer_size(const CopyOptions *o)
{
    if (o->compress_cluster)
        return o->compress_cluster;
    return u64_min(o->chunk, BUFFER_MAX);
}

CopyOp *copy_op_take(Copy *c, uint64_t offset, uint64_t bytes)
{
    CopyOp *op = c->free_ops;

    c->free_ops = op->next;
    op->offset = offset;
    op->bytes = bytes;
    rangelock_take(&c->lock, &op->hold, offset, offset + bytes);
    hbitmap_reset(c->opt.todo, offset, bytes);
    c->in_flight++;
    c->in_flight_bytes += copy_counted(c, offset, bytes);
    return op;
}

void copy_op_shorten(CopyOp *op, uint64_t bytes)
{
    Copy *c = op->copy;

    c->in_flight_bytes -= copy_counted(c, op->offset, op->bytes);
    op->bytes = bytes;
    c->in_flight_bytes += bytes;
    rangelock_release(&op->hold);
    rangelock_take(&c->lock, &op->hold, op->offset, op->offset + bytes);
}

/* Clusters of the target in this range hold all their data from now on. */
static void mark_clusters(Copy *c, uint64_t offset, uint64_t bytes)
{
    uint64_t first = align_up(offset, c->opt.cow_cluster), end = offset + bytes;

    if (end < c->opt.size)
        end = align_down(end, c->opt.cow_cluster);
    if (first < end)
        hbitmap_set(c->cow_done, first, end - first);
}

/* ---- moving bytes ----------------------------------------------------------------------------------------------- */

static int copy_co_zero_piece(Copy *c, uint64_t offset, uint64_t bytes)
{
    return child_co_pwrite_zeroes(c->opt.target, offset, bytes, c->opt.unmap ? REQ_MAY_UNMAP : 0);
}

/* Zeroes what does not read as zeroes in the target yet. */
static int copy_co_zero_missing(Copy *c, uint64_t offset, uint64_t bytes)
{
    while (bytes) {
        BlockStatus status;
        uint64_t n;
        int ret = node_co_block_status_above(c->opt.target->node, NULL, true, offset, bytes, &status, NULL);
        if (ret < 0 || !status.bytes)
            return copy_co_zero_piece(c, offset, bytes);
        n = u64_min(status.bytes, bytes);
        if (!(status.flags & STATUS_ZERO)) {
            ret = copy_co_zero_piece(c, offset, n);
            if (ret < 0)
                return ret;
        }
        offset += n;
        bytes -= n;
    }
    return 0;
}

static int copy_co_zeroes(Copy *c, uint64_t offset, uint64_t bytes)
{
    while (bytes && !job_is_cancelled(c->job)) {
        uint64_t n = c->opt.skip_zeroes ? bytes : u64_min(bytes, ZERO_PIECE);
        int ret = c->opt.skip_zeroes ? copy_co_zero_missing(c, offset, n) : copy_co_zero_piece(c, offset, n);
        if (ret < 0)
            return ret;
        offset += n;
        bytes -= n;
    }
    return bytes ? -ECANCELED : 0;
}

/*
 * Lets the host copy from file to file what stands raw in a file on the source's side. Stops at the first range where
 * that does not work, for whatever reason: reading and writing will tell whose fault it was.
 */
static void copy_co_offload(Copy *c, uint64_t *offset, uint64_t *bytes)
{
    while (*bytes && !c->no_offload) {
        BlockStatus status;
        uint64_t n;
        int ret = node_co_block_status_above(c->opt.status_of, NULL, false, *offset, *bytes, &status, NULL);
        if (ret < 0 || !status.bytes || !(status.flags & STATUS_OFFSET_VALID) || !(status.flags & STATUS_DATA))
            return;
        n = u64_min(status.bytes, *bytes);
        ret = child_co_copy_from(c->opt.target, *offset, n, status.file, status.map, c->opt.thrifty ? REQ_THRIFTY : 0);
        if (ret < 0) {
            c->no_offload = ret == -ENOTSUP;
            return;
        }
        *offset += n;
        *bytes -= n;
    }
}

/* Copies a range from first to last byte. */
static int copy_co_bytes(Copy *c, uint64_t offset, uint64_t bytes, bool *ret_is_read)
{
    uint64_t size = u64_min(bytes, copy_buffer_size(&c->opt));
    ReqFlags flags = c->opt.compress_cluster ? REQ_WRITE_COMPRESSED : 0;
    void *buf;
    int ret;

    if (!c->opt.compress_cluster && !c->opt.copy_on_read)
        copy_co_offload(c, &offset, &bytes);
    if (!bytes)
        return 0;
    buf = aio_buf_get(c->job->loop, size);
    ret = buf ? 0 : -ENOMEM;
    *ret_is_read = true;
    while (bytes && ret == 0) {
        uint64_t n = u64_min(bytes, size);
        ret = child_co_pread(c->opt.source, offset, n, buf, c->opt.copy_on_read ? REQ_COPY_ON_READ : 0);
        *ret_is_read = ret < 0;
        if (ret == 0 && !c->opt.copy_on_read)
            ret = child_co_pwrite(c->opt.target, offset, n, buf, flags);
        offset += n;
        bytes -= n;
    }
    aio_buf_put(c->job->loop, buf, size);
    return ret;
}

/*
 * How many zeroes at the beginning of a range the target has already, too. They have to have a place in the target:
 * what it reads only for want of a backing file, or from one, may change with that.
 */
static uint64_t copy_co_zeroes_there(Copy *c, uint64_t offset, uint64_t bytes)
{
    BlockStatus status;
    int depth;
    int ret = node_co_block_status_above(c->opt.target->node, NULL, true, offset, bytes, &status, &depth);

    if (ret < 0 || !(status.flags & STATUS_ZERO))
        return 0;
    if (!c->opt.skip_zeroes && (depth || !(status.flags & STATUS_OFFSET_VALID)))
        return 0;
    return u64_min(status.bytes, bytes);
}

/* Looks for zeroes in a range that need not be copied: returns how many bytes stand before *@ret_zeroes of them. */
static uint64_t copy_co_find_gap(Copy *c, uint64_t offset, uint64_t bytes, uint64_t *ret_zeroes)
{
    uint64_t at = 0;

    *ret_zeroes = 0;
    while (bytes - at >= GAP_MIN) {
        BlockStatus status;
        uint64_t n;
        int ret = node_co_block_status_above(c->opt.status_of, NULL, true, offset + at, bytes - at, &status, NULL);
        if (ret < 0 || !status.bytes)
            break;
        n = u64_min(status.bytes, bytes - at);
        if ((status.flags & STATUS_ZERO) && n >= GAP_MIN) {
            *ret_zeroes = copy_co_zeroes_there(c, offset + at, n);
            if (*ret_zeroes >= GAP_MIN)
                return at;
        }
        at += n;
    }
    *ret_zeroes = 0;
    return bytes;
}

static int copy_co_data(Copy *c, uint64_t offset, uint64_t bytes, bool *ret_is_read)
{
    bool whole = c->opt.compress_cluster || c->opt.cow_cluster || c->opt.copy_on_read;
    int ret = 0;

    *ret_is_read = false;
    while (bytes && ret == 0) {
        uint64_t zeroes = 0, n = whole ? bytes : copy_co_find_gap(c, offset, bytes, &zeroes);
        if (n)
            ret = copy_co_bytes(c, offset, n, ret_is_read);
        offset += n + zeroes;
        bytes -= n + zeroes;
    }
    return ret;
}

int copy_co_range(Copy *c, uint64_t offset, uint64_t bytes, bool *ret_is_read)
{
    BlockStatus status;
    int ret = node_co_block_status_above(c->opt.status_of, NULL, true, offset, bytes, &status, NULL);

    *ret_is_read = false;
    if (ret == 0 && (status.flags & STATUS_ZERO) && status.bytes >= bytes)
        return copy_co_zeroes(c, offset, bytes);
    return copy_co_data(c, offset, bytes, ret_is_read);
}

/* ---- the life of a piece ---------------------------------------------------------------------------------------- */

static void op_failed(CopyOp *op, bool is_read, int ret)
{
    Copy *c = op->copy;
    BlockErrorAction action;

    hbitmap_set(c->opt.todo, op->offset, op->bytes);
    if (ret == -ECANCELED && job_is_cancelled(c->job))
        return;
    action = job_error_action(c->job, is_read ? c->opt.on_source_error : c->opt.on_target_error, is_read, -ret);
    if (action == BLOCK_ERROR_ACTION_IGNORE)
        c->failed_lately = true;
    if (action == BLOCK_ERROR_ACTION_REPORT && !c->ret)
        c->ret = ret;
}

static void copy_op_co_entry(void *opaque)
{
    CopyOp *op = opaque;
    Copy *c = op->copy;
    Graph *graph = c->job->graph;
    uint64_t counted = copy_counted(c, op->offset, op->bytes);
    bool is_read = false;
    int ret;

    if (op->zero)
        ret = copy_co_zeroes(c, op->offset, op->bytes);
    else
        ret = copy_co_data(c, op->offset, op->bytes, &is_read);
    c->in_flight_bytes -= counted;
    if (ret < 0) {
        op_failed(op, is_read, ret);
    } else {
        job_progress_done(c->job, (int64_t)counted);
        if (c->cow_done && op->bytes)
            mark_clusters(c, op->offset, op->bytes);
    }
    rangelock_release(&op->hold);
    op->next = c->free_ops;
    c->free_ops = op;
    c->in_flight--;
    copy_update_progress(c);
    coqueue_wake_all(&c->op_done);
    if (!c->in_flight)
        graph_drain_kick(graph);
}

void copy_op_start(CopyOp *op, bool zero)
{
    op->zero = zero;
    coroutine_start(op->copy->job->loop, copy_op_co_entry, op);
}
