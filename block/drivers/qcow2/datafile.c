/*
 * External data files: guest data in a file of its own, each cluster where it is on the disk. The image file holds the
 * tables, which say what of it is there.
 *
 * Guarantees: data is durable in the data file before the L2 entry that shows it is in the image (commit.c flushes the
 * one before it writes the other). Nothing in a data file is allocated, counted or freed: a cluster that lost its data
 * and gets new data gets it in the same place, so space is given back at once or never.
 *
 * A raw data file is the disk by itself, for who does not know the image. There, at any time, what the guest reads as
 * zeroes is zero in the file: zeroes are written to the file and entries stay as they are.
 *
 * Size: grows before the disk does and shrinks after it.
 */
#include "block/drivers/qcow2/qcow2.h"

int q2_co_data_alloc(Qcow2 *q, uint64_t first, uint64_t want, Q2Run *run)
{
    if (!q2_has_data_file(q))
        return q2_co_alloc(q, want, false, run);
    /* What stands there may be left from an earlier life of the disk's clusters. */
    *run = (Q2Run){.offset = first << q->cluster_bits, .n = want, .fresh = false};
    return 0;
}

void q2_co_data_unalloc(Qcow2 *q, const Q2Run *run)
{
    if (!q2_has_data_file(q))
        q2_co_unref(q, run->offset, run->n << q->cluster_bits, Q2_FREE_NEVER);
}

bool q2_may_give_back(const Qcow2 *q)
{
    return q->pass_discard[Q2_FREE_REQUEST] && q->data->node->flags.discard_unmap;
}

void q2_co_data_drop(Qcow2 *q, uint64_t first, uint64_t n)
{
    uint64_t offset = first << q->cluster_bits, bytes = n << q->cluster_bits;

    if (!q2_may_give_back(q) || offset >= q->data->node->size)
        return;
    /* Zeroes rather than a discard: after a crash the old entries may show what stands there. Space that cannot be
     * given back like that is kept. */
    q2_co_data_zero(q, offset, offset, u64_min(bytes, q->data->node->size - offset), REQ_MAY_UNMAP | REQ_NO_FALLBACK);
}

bool q2_data_entry_is_bad(const Qcow2 *q, uint64_t gc, uint64_t entry)
{
    switch (q2_entry_kind(q, entry)) {
    case Q2_NORMAL:
    case Q2_ZERO_ALLOC:
        return (entry & Q2_OFFSET_MASK) != gc << q->cluster_bits;
    case Q2_PACKED:
        return true;
    default:
        return false;
    }
}

/* ---- raw data files ---------------------------------------------------------------------------------------------- */

/* Is the range, which is no data, zero because of that, and stays so? */
static bool is_quietly_zero(Qcow2 *q, const Extent *map, uint64_t offset)
{
    uint64_t first = offset >> q->sub_bits, last = (offset + map->bytes - 1) >> q->sub_bits;

    if (claim_find(q->claims, first, last + 1 - first))
        return false;
    return map->kind == Q2_ZERO_PLAIN || map->kind == Q2_ZERO_ALLOC ||
           (map->kind == Q2_UNALLOCATED && !backing_may_show(q->node, offset));
}

int q2_co_raw_zero(Qcow2 *q, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    while (bytes) {
        Extent map;
        int ret = q2_co_map(q, offset, bytes, &map);
        if (ret == 0 && map.kind == Q2_NORMAL)
            ret = q2_co_data_zero(q, offset, map.host, map.bytes, flags);
        else if (ret == 0 && !is_quietly_zero(q, &map, offset))
            ret = -ENOTSUP; /* the graph writes them out */
        if (ret < 0)
            return ret;
        offset += map.bytes;
        bytes -= map.bytes;
    }
    return 0;
}

int q2_co_raw_discard(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    while (bytes && q2_may_give_back(q)) {
        Extent map;
        int ret = q2_co_map(q, offset, bytes, &map);
        if (ret == 0 && map.kind == Q2_NORMAL)
            ret = q2_co_data_zero(q, offset, map.host, map.bytes, REQ_MAY_UNMAP | REQ_NO_FALLBACK);
        if (ret < 0 && ret != -ENOTSUP)
            return ret;
        offset += map.bytes;
        bytes -= map.bytes;
    }
    return 0;
}

/* ---- size -------------------------------------------------------------------------------------------------------- */

bool q2_co_data_resize(Qcow2 *q, uint64_t old_size, uint64_t size, bool exact, GError **error)
{
    Child *data = q->data;
    uint64_t stale = MIN(data->node->size, size);
    int ret = 0;

    if (!q2_has_data_file(q))
        return true;
    /* A larger file than needed is only in the way of who wants it exact. */
    if (data->node->size < size || (data->node->size > size && (exact || size < old_size)))
        if (!child_co_truncate(data, size, exact && size > old_size, PREALLOC_MODE_OFF, 0, error))
            return false;
    if (q2_is_raw(q) && !q->crypt && stale > old_size)
        ret = q2_co_data_zero(q, old_size, old_size, stale - old_size, REQ_MAY_UNMAP);
    if (ret == 0)
        ret = q2_co_data_flush(q);
    return ret == 0 || error_set_errno(error, -ret, "Could not resize the data file");
}
