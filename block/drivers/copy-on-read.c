/*
 * copy-on-read: a filter that leaves what was read from a backing file in the node below. The work is the request
 * pipeline's (block/graph/io-cor.c); this asks for it. See docs/drivers/copy-on-read.md.
 */
#include "block/graph/io.h"
#include "block/graph/status.h"
#include "block/graph/txn.h"
#include "block/util/bytes.h"
#include <errno.h>

/* Loop's thread; constant after open. */
typedef struct CorState {
    Node *bottom; /* a reference; data from below it is not copied. NULL: all data is */
} CorState;

static bool cor_find_bottom(Node *node, const char *name, GError **error)
{
    CorState *s = node->state;
    Node *bottom = graph_find_node(node->graph, name);

    if (!bottom)
        return error_set(error, "Bottom node '%s' not found", name);
    if (node_filtered_child(bottom))
        return error_set(error, "Bottom node '%s' is a filter", name);
    if (!node_chain_contains(node->file->node, bottom))
        return error_set(error, "Bottom node '%s' is not in the backing chain of '%s'", name, node->file->node->name);
    if (!node_freeze_chain(node, bottom, error))
        return false;
    s->bottom = node_ref(bottom);
    return true;
}

static bool cor_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsCor *o = &options->u.copy_on_read;

    if (!node_co_open_child(node, "file", o->file, ROLE_FILTER, error))
        return false;
    node_pass_flags(node);
    return !o->bottom || cor_find_bottom(node, o->bottom, error);
}

static void cor_co_close(Node *node)
{
    Node *bottom = ((CorState *)node->state)->bottom;

    if (bottom)
        node_unfreeze_chain(node, bottom);
    node_co_unref(bottom);
}

static void cor_child_perm(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared,
                           unsigned *ret_perm, unsigned *ret_shared)
{
    perm_default(node, child, role, perm, shared, ret_perm, ret_shared);
    *ret_perm |= PERM_WRITE_UNCHANGED;
    *ret_shared |= PERM_WRITE_UNCHANGED;
}

/* How much of the range is alike: to be copied (@ret_copy) or just read. */
static int cor_co_next(Node *node, uint64_t offset, uint64_t bytes, uint64_t *ret_bytes, bool *ret_copy)
{
    Node *bottom = ((CorState *)node->state)->bottom, *file = node->file->node, *below = node_backing(file);
    BlockStatus status;
    int ret;

    *ret_bytes = bytes;
    *ret_copy = true;
    if (!bottom)
        return 0;
    ret = node_co_block_status(file, false, offset, bytes, &status);
    if (ret < 0)
        return ret;
    *ret_copy = false;
    if (!status.bytes)
        return 0;
    *ret_bytes = status.bytes;
    if (status.flags & STATUS_ALLOCATED || !below || node_skip_filters(file) == bottom)
        return 0;
    ret = node_co_is_allocated_above(below, bottom, true, offset, status.bytes, ret_bytes);
    *ret_copy = ret > 0;
    return ret < 0 ? ret : 0;
}

static int cor_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                         ReqFlags flags)
{
    flags &= ~REQ_MAY_SKIP_ZEROES; /* it speaks for a whole request */
    while (bytes) {
        uint64_t n;
        bool copy;
        int ret = cor_co_next(node, offset, bytes, &n, &copy);

        if (ret == 0) {
            n = u64_min(n ? n : bytes, bytes);
            ret = child_co_preadv(node->file, offset, n, vec, vec_offset, flags | (copy ? REQ_COPY_ON_READ : 0));
        }
        if (ret < 0)
            return ret;
        offset += n;
        vec_offset += n;
        bytes -= n;
    }
    return 0;
}

const Driver driver_copy_on_read = {
    .name = "copy-on-read",
    .state_size = sizeof(CorState),
    .is_filter = true,
    .co_open = cor_co_open,
    .co_close = cor_co_close,
    .child_perm = cor_child_perm,
    .co_preadv = cor_co_preadv,
};
