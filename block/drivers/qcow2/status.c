/*
 * Block status: what the tables say, as far as they say the same. Host data counts as the same while it adjoins.
 */
#include "block/drivers/qcow2/qcow2.h"

#define STEPS_MAX 65536 /* lookups in one answer */

static unsigned flags_of(Q2Kind kind)
{
    switch (kind) {
    case Q2_NORMAL:
        return STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID;
    case Q2_PACKED:
        return STATUS_DATA | STATUS_ALLOCATED | STATUS_COMPRESSED;
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
    Extent map;
    int r;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    r = q2_co_map(q, offset, bytes, &map);
    if (r < 0)
        return r;
    *ret = (BlockStatus){.flags = flags_of(map.kind), .bytes = map.bytes};
    if (map.kind == Q2_NORMAL) {
        ret->map = map.host;
        ret->file = node->file->node;
    }
    for (unsigned step = 0; ret->bytes < bytes && step < STEPS_MAX; step++) {
        r = q2_co_map(q, offset + ret->bytes, bytes - ret->bytes, &map);
        if (r < 0 || flags_of(map.kind) != ret->flags)
            break; /* an error will come up when its place is asked for */
        if (map.kind == Q2_NORMAL && map.host != ret->map + ret->bytes)
            break;
        ret->bytes += map.bytes;
    }
    return 0;
}
