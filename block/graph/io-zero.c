/*
 * Writing zeroes and discarding: requests without data, which drivers can do in one stroke where the range fits their
 * granularity. The range is cut there, and what the driver declines is written out as zeroes.
 */
#include "block/graph/debug.h"
#include "block/graph/graph-int.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"

#define ZERO_IOVS 16

/* Where a request of @bytes at @offset should be cut so that the largest part fits @align and @max (0: none). */
static uint64_t cut(uint64_t offset, uint64_t bytes, uint64_t align, uint64_t max)
{
    uint64_t head = offset % align; /* blkdebug's preferred alignments need not be powers of two */

    if (head)
        return u64_min(bytes, align - head);
    if (max)
        bytes = u64_min(bytes, u64_max(max - max % align, align));
    return bytes > align ? bytes - bytes % align : bytes;
}

static int node_co_write_zeroes_out(Node *node, TrackedRequest *req, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    struct iovec iov[ZERO_IOVS];
    IoVec vec = {.iov = iov};

    for (int i = 0; i < ZERO_IOVS; i++)
        iov[i] = (struct iovec){.iov_base = iov_zeroes, .iov_len = IOV_ZEROES};
    vec.n = ZERO_IOVS;
    vec.size = (size_t)ZERO_IOVS * IOV_ZEROES;
    while (bytes) {
        uint64_t n = u64_min(bytes, vec.size);
        int ret = node_co_write_padded(node, req, offset, n, &vec, 0, flags & ~REQ_MAY_UNMAP);
        if (ret < 0)
            return ret;
        offset += n;
        bytes -= n;
    }
    return 0;
}

/* The driver's own way, or the filtered child's: -ENOTSUP when there is none for this range. */
static int driver_co_zero(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    if (node->drv->co_pwrite_zeroes) {
        if ((flags & REQ_NO_FALLBACK) && !(node->supported_zero_flags & REQ_NO_FALLBACK))
            return -ENOTSUP;
        if ((offset | bytes) & (node->limits.request_alignment - 1))
            return -ENOTSUP;
        return node->drv->co_pwrite_zeroes(node, offset, bytes, flags & node->supported_zero_flags);
    }
    if (node_filtered_child(node))
        return child_co_pwrite_zeroes(node->file, offset, bytes, flags & (node->supported_zero_flags | ~REQ_FUA));
    return -ENOTSUP;
}

int node_co_write_zeroes_tracked(Node *node, TrackedRequest *req, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    uint64_t align = u64_max(node->limits.write_zeroes_align, node->limits.request_alignment);

    if (!node->flags.discard_unmap)
        flags &= ~REQ_MAY_UNMAP;
    node_co_debug_event(node, BLKDEBUG_EVENT_PWRITEV_ZERO);
    while (bytes) {
        uint64_t n = cut(offset, bytes, align, node->limits.max_write_zeroes);
        int ret = driver_co_zero(node, offset, n, flags);
        if (ret == -ENOTSUP && !(flags & REQ_NO_FALLBACK))
            ret = node_co_write_zeroes_out(node, req, offset, n, flags);
        if (ret < 0)
            return ret;
        offset += n;
        bytes -= n;
    }
    return 0;
}

int child_co_pwrite_zeroes(Child *child, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    Node *node = child->node;
    TrackedRequest req;
    int ret;

    g_assert(child->perm & (PERM_WRITE | (flags & REQ_WRITE_UNCHANGED ? PERM_WRITE_UNCHANGED : 0)));
    if (!bytes)
        return 0;
    if (offset + bytes > node->size && !((child->perm & PERM_RESIZE) && node_may_grow(node)))
        return -EIO;
    if (node->failed && (flags & REQ_FUA))
        return -EIO;
    node_in_flight_inc(node);
    tracked_begin(&req, node, offset, bytes);
    if ((offset | bytes) & (node->limits.request_alignment - 1))
        tracked_co_serialise(&req, node->limits.request_alignment);
    else
        tracked_co_wait(&req);
    ret = node_co_write_zeroes_tracked(node, &req, offset, bytes, flags);
    node_co_debug_event(node, BLKDEBUG_EVENT_PWRITEV_DONE);
    ret = node_co_write_done(node, offset, bytes, flags & ~(node->supported_zero_flags & REQ_FUA), ret);
    tracked_end(&req);
    node_in_flight_dec(node);
    return ret;
}

static int driver_co_discard(Node *node, uint64_t offset, uint64_t bytes)
{
    if (node->drv->co_pdiscard)
        return node->drv->co_pdiscard(node, offset, bytes);
    if (node_filtered_child(node))
        return child_co_pdiscard(node->file, offset, bytes);
    return -ENOTSUP;
}

int child_co_pdiscard(Child *child, uint64_t offset, uint64_t bytes)
{
    Node *node = child->node;
    uint64_t unit = node->limits.request_alignment, align = u64_max(node->limits.discard_align, unit);
    uint64_t end = align_down(u64_min(offset + bytes, node->size), unit);
    TrackedRequest req;
    int ret = 0;

    g_assert(child->perm & PERM_WRITE);
    /* A hint: whole blocks only, and nothing at all unless the node was opened with discard=unmap. */
    offset = align_up(offset, unit);
    if (!node->flags.discard_unmap || offset >= end)
        return 0;
    bytes = end - offset;
    node_in_flight_inc(node);
    tracked_begin(&req, node, offset, bytes);
    tracked_co_wait(&req);
    for (uint64_t at = offset, left = bytes; left && ret == 0;) {
        uint64_t n = cut(at, left, align, node->limits.max_discard);
        ret = driver_co_discard(node, at, n);
        if (ret == -ENOTSUP)
            ret = 0;
        at += n;
        left -= n;
    }
    ret = node_co_write_done(node, offset, bytes, 0, ret);
    tracked_end(&req);
    node_in_flight_dec(node);
    return ret;
}
