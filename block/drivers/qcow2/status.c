/*
 * Block status: what the tables say, as far as they say the same.
 */
#include "block/drivers/qcow2/qcow2.h"

unsigned q2_status(int kind)
{
    switch (kind) {
    case Q2_NORMAL:
        return STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID;
    case Q2_PACKED:
        return STATUS_DATA | STATUS_ALLOCATED;
    case Q2_ZERO_PLAIN:
    case Q2_ZERO_ALLOC:
        return STATUS_ZERO | STATUS_ALLOCATED;
    default:
        return 0;
    }
}

int q2_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    Qcow2 *q = q2_of(node);
    int r = G_UNLIKELY(q->corrupt) ? -EIO : extents_co_status(node, &q2_extent_ops, offset, bytes, ret);

    if (r == 0 && (ret->flags & STATUS_OFFSET_VALID)) {
        ret->file = q->data->node;
        ret->flags |= STATUS_RECURSE; /* what was preallocated, or lies in a raw data file, may be zero all the same */
    }
    if (r == 0 && q->crypt) { /* what stands there is not what is read */
        ret->flags &= ~(unsigned)(STATUS_OFFSET_VALID | STATUS_RECURSE);
        ret->file = NULL;
    }
    return r;
}
