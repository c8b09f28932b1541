/*
 * Block status: one layer, and down the backing chain.
 */
#include "block/graph/status.h"
#include "block/graph/graph-int.h"
#include "block/util/bytes.h"

/*
 * Asks the node that a driver pointed at. Where the driver knows that data is there, the answer only refines it: a hole
 * in the file is a zero. Where it leaves the question open (raw), the answer is the file's.
 */
static int block_status_co_recurse(bool want_zero, BlockStatus *ret)
{
    bool open = !(ret->flags & STATUS_DATA);
    BlockStatus below;
    int r;

    r = node_co_block_status(ret->file, want_zero, ret->map, ret->bytes, &below);
    if (r < 0)
        return open ? r : 0;
    if (below.bytes == 0) /* past the end of the file */
        below = (BlockStatus){.flags = STATUS_ZERO, .bytes = ret->bytes};
    ret->bytes = u64_min(ret->bytes, below.bytes);
    if (open)
        ret->flags |= below.flags & STATUS_DATA;
    else if (!(below.flags & STATUS_DATA))
        ret->flags &= ~STATUS_DATA;
    ret->flags |= below.flags & STATUS_ZERO;
    return 0;
}

/* Does it matter to this filter who reads past it (a throttle, an error injector)? */
static bool wants_reads(const Node *node)
{
    return node->drv->is_filter && node->drv->co_preadv;
}

static int node_co_ask_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    int r = 0;

    *ret = (BlockStatus){.flags = STATUS_DATA | STATUS_ALLOCATED, .bytes = bytes};
    if (node->drv->co_block_status)
        r = node->drv->co_block_status(node, want_zero, offset, bytes, ret);
    else if (node_filtered_child(node))
        r = node_co_block_status(node->file->node, want_zero, offset, bytes, ret);
    if (r < 0)
        return r;
    g_assert(ret->bytes > 0);
    ret->bytes = u64_min(ret->bytes, bytes);
    if ((ret->flags & STATUS_RECURSE) && ret->file && !(ret->flags & STATUS_ZERO) &&
        (want_zero || !(ret->flags & STATUS_DATA)))
        r = block_status_co_recurse(want_zero, ret);
    ret->flags &= ~(STATUS_RECURSE | STATUS_EOF);
    if (wants_reads(node))
        ret->flags &= ~STATUS_OFFSET_VALID;
    return r;
}

int node_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    int r;

    if (offset >= node->size || !bytes) {
        *ret = (BlockStatus){.flags = offset >= node->size ? STATUS_EOF : 0};
        return 0;
    }
    bytes = u64_min(bytes, node->size - offset);
    node_in_flight_inc(node);
    r = node_co_ask_status(node, want_zero, offset, bytes, ret);
    node_in_flight_dec(node);
    if (r == 0 && offset + ret->bytes == node->size)
        ret->flags |= STATUS_EOF;
    return r;
}

/* Through filters that have nothing to say about status themselves. *@around: one of them wants to see reads. */
static Node *skip_silent(Node *node, bool *around)
{
    while (node && node_filtered_child(node) && !node->drv->co_block_status) {
        *around |= wants_reads(node);
        node = node->file->node;
    }
    return node;
}

/* The backing layer of the layer that @node is or filters. */
static Node *next_layer(Node *node, bool *around)
{
    Child *backing = node_skip_filters(node)->backing;

    return backing ? skip_silent(backing->node, around) : NULL;
}

static int node_co_status_chain(Node *top, Node *base, bool want_zero, uint64_t offset, uint64_t bytes,
                                BlockStatus *ret, int *ret_depth)
{
    bool around = false;
    Node *node = skip_silent(top, &around);
    int depth = 0;

    base = base ? node_skip_filters(base) : NULL;
    *ret = (BlockStatus){.bytes = bytes};
    if (offset >= top->size) {
        *ret = (BlockStatus){.flags = STATUS_EOF};
        return 0;
    }
    bytes = u64_min(bytes, top->size - offset);
    for (; node && node_skip_filters(node) != base; node = next_layer(node, &around), depth++) {
        int r = node_co_block_status(node, want_zero, offset, bytes, ret);
        if (r < 0)
            return r;
        if (ret->bytes == 0) {
            /* This layer ends before the range: what is above it reads zeroes, and nothing below shows. */
            *ret = (BlockStatus){.flags = STATUS_ZERO | STATUS_ALLOCATED, .bytes = bytes};
            break;
        }
        if (ret->flags & STATUS_ALLOCATED)
            break;
        bytes = ret->bytes; /* the layers below are asked only about what this one leaves open */
    }
    if (!(ret->flags & STATUS_ALLOCATED)) {
        ret->bytes = bytes;
        if (!node)
            ret->flags |= STATUS_ZERO;
    }
    if (ret_depth)
        *ret_depth = depth;
    ret->flags &= around ? ~(STATUS_EOF | STATUS_OFFSET_VALID) : ~STATUS_EOF;
    if (offset + ret->bytes == top->size)
        ret->flags |= STATUS_EOF;
    return 0;
}

int node_co_block_status_above(Node *top, Node *base, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret,
                               int *ret_depth)
{
    int r;

    /* The chain below stays what it is on the way down: a drained section of @top waits for it. */
    node_in_flight_inc(top);
    r = node_co_status_chain(top, base, want_zero, offset, bytes, ret, ret_depth);
    node_in_flight_dec(top);
    return r;
}

int node_co_is_allocated_above(Node *top, Node *base, bool include_base, uint64_t offset, uint64_t bytes,
                               uint64_t *ret_bytes)
{
    Node *stop = include_base && base ? node_backing(base) : base;
    BlockStatus status;
    int r;

    r = node_co_block_status_above(top, stop, false, offset, bytes, &status, NULL);
    if (r < 0)
        return r;
    *ret_bytes = status.bytes;
    return !!(status.flags & STATUS_ALLOCATED);
}
