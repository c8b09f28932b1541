/*
 * Copy-on-read: a read that also writes what it found further down into the node it asked.
 *
 * The visible data does not change by that, but two things must not come in between: a client's write to the range,
 * which the older data would undo, and another copy. So the request serialises over whole clusters, from before it asks
 * what is allocated until the copy is written.
 */
#include "block/aio/io.h"
#include "block/graph/debug.h"
#include "block/graph/graph-int.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"

#define COPY_MAX (1024 * 1024) /* bytes copied at once, unless a cluster is larger */

/* What the node below all filters fills at a time. */
static uint64_t copy_unit(Node *node)
{
    Node *below = node_skip_filters(node);
    NodeInfo info = {0};

    if (below->drv->get_info)
        below->drv->get_info(below, &info);
    return u64_max(info.fill_size ? info.fill_size : info.cluster_size, node->limits.request_alignment);
}

/* Copies the clusters around (part of) a range that is not allocated, and reads it. *@ret_bytes: how much of it. */
static int copy_co_up(Node *node, TrackedRequest *req, uint64_t unit, uint64_t offset, uint64_t bytes, const IoVec *vec,
                      size_t vec_offset, uint64_t *ret_bytes)
{
    uint64_t start = align_down(offset, unit), end = u64_min(align_up(offset + bytes, unit), node->size);
    struct iovec iov;
    IoVec all;
    void *buf;
    int ret;

    end = u64_min(end, start + u64_max(unit, COPY_MAX));
    *ret_bytes = u64_min(bytes, end - offset);
    buf = aio_buf_get(node->loop, end - start);
    if (!buf)
        return -ENOMEM;
    iovec_one(&all, &iov, buf, end - start);
    ret = node_co_read(node, start, end - start, &all, 0, 0);
    if (ret == 0) {
        node_co_debug_event(node, BLKDEBUG_EVENT_COR_WRITE);
        if (bytes_are_zero(buf, end - start))
            ret = node_co_write_zeroes_tracked(node, req, start, end - start, REQ_WRITE_UNCHANGED);
        else
            ret = node_co_write_padded(node, req, start, end - start, &all, 0, REQ_WRITE_UNCHANGED);
        ret = node_co_write_done(node, start, end - start, REQ_WRITE_UNCHANGED, ret);
    }
    if (ret == 0)
        iov_from_buf(vec->iov, vec->n, vec_offset, (char *)buf + (offset - start), *ret_bytes);
    aio_buf_put(node->loop, buf, end - start);
    return ret;
}

int node_co_read_copying(Node *node, TrackedRequest *req, uint64_t offset, uint64_t bytes, const IoVec *vec,
                         size_t vec_offset)
{
    uint64_t unit = copy_unit(node);

    tracked_co_serialise(req, unit);
    while (bytes) {
        uint64_t n = bytes;
        BlockStatus status;
        int ret = node_co_block_status(node, false, offset, bytes, &status);

        if (ret == 0 && status.bytes && !(status.flags & STATUS_ALLOCATED)) {
            ret = copy_co_up(node, req, unit, offset, u64_min(bytes, status.bytes), vec, vec_offset, &n);
        } else if (ret == 0) {
            n = status.bytes ? u64_min(bytes, status.bytes) : bytes; /* behind the end there is nothing to copy */
            ret = node_co_read(node, offset, n, vec, vec_offset, 0);
        }
        if (ret < 0)
            return ret;
        offset += n;
        vec_offset += n;
        bytes -= n;
    }
    return 0;
}
