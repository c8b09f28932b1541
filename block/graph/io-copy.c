/*
 * Writes whose data another node holds: the host copies from file to file, no byte passes through our memory.
 *
 * It is a write like any other to the node that receives: permission, tracking, bitmaps. The source is a leaf that
 * block status pointed at (STATUS_OFFSET_VALID). Whether anybody can do it is for the drivers to say; the caller falls
 * back to reading and writing.
 */
#include "block/graph/graph-int.h"

static int driver_co_copy_from(Node *node, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset,
                               ReqFlags flags)
{
    if (node->drv->co_copy_from)
        return node->drv->co_copy_from(node, offset, bytes, source, source_offset, flags);
    if (node_filtered_child(node) && !node->drv->co_pwritev)
        return child_co_copy_from(node->file, offset, bytes, source, source_offset, flags);
    return -ENOTSUP;
}

int child_co_copy_from(Child *child, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset,
                       ReqFlags flags)
{
    Node *node = child->node;
    TrackedRequest req;
    int ret;

    g_assert(child->perm & PERM_WRITE);
    if (!bytes)
        return 0;
    if (source_offset + bytes > source->size ||
        (offset + bytes > node->size && !((child->perm & PERM_RESIZE) && node_may_grow(node))))
        return -EAGAIN;
    if (node->flags.detect_zeroes != BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF ||
        ((offset | bytes) & (node->limits.request_alignment - 1)))
        return -ENOTSUP;
    node_in_flight_inc(node);
    node_in_flight_inc(source);
    tracked_begin(&req, node, offset, bytes);
    tracked_co_wait(&req);
    ret = driver_co_copy_from(node, offset, bytes, source, source_offset, flags);
    /* Part of it may have been written before it turned out not to work. */
    ret = node_co_write_done(node, offset, bytes, 0, ret);
    tracked_end(&req);
    node_in_flight_dec(source);
    node_in_flight_dec(node);
    return ret;
}
