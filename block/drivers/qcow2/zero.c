/*
 * Writing zeroes and discarding: entries change, no data moves.
 *
 * Guarantees: entries change in one go within a slice, when no claim lies on them; what they referred to is freed
 * behind the commit that writes them (free.c). What reads as zeroes after one of these requests does so because the
 * entry says so, or because there is nothing below and never will be: an image that names a backing file and was opened
 * without it may get it later. A version 2 image, which has no zero entries, declines where that is not so.
 */
#include "block/drivers/qcow2/qcow2.h"

typedef enum Fate { FATE_KEEP, FATE_PLAIN_ZERO, FATE_ZERO_ALLOC, FATE_NOTHING, FATE_CANNOT } Fate;
typedef enum Why { WHY_ZERO, WHY_ZERO_UNMAP, WHY_DISCARD, WHY_DROP } Why;

static Fate fate_of(const Qcow2 *q, uint64_t entry, uint64_t gc, Why why)
{
    Q2Kind kind = q2_entry_kind(q, entry);
    bool below = backing_may_show(q->node, gc << q->cluster_bits);

    if (why == WHY_DROP)
        return entry ? FATE_NOTHING : FATE_KEEP;
    if (kind == Q2_ZERO_PLAIN || (kind == Q2_UNALLOCATED && !below))
        return FATE_KEEP;
    if (q->header.version < 3) {
        if (below || why == WHY_ZERO)
            return why == WHY_DISCARD ? FATE_KEEP : FATE_CANNOT;
        return FATE_NOTHING;
    }
    if (why == WHY_ZERO && kind == Q2_ZERO_ALLOC)
        return FATE_KEEP;
    if (why == WHY_ZERO && kind == Q2_NORMAL && (entry & Q2_COPIED))
        return FATE_ZERO_ALLOC;
    return FATE_PLAIN_ZERO;
}

/* Changes the entries of up to @n guest clusters from @gc on within one slice. */
static int zero_co_slice(Qcow2 *q, uint64_t gc, uint64_t n, Why why, uint64_t *done)
{
    Claim *other;
    CacheTable *table;
    uint8_t *data;
    unsigned i;
    int ret;

    do {
        ret = q2_co_l2_for_write(q, gc, &table, &i);
        if (ret < 0)
            return ret;
        n = u64_min(n, (1u << q->slice_bits) - i);
        other = claim_find(q->claims, gc, n);
        if (other)
            coqueue_co_wait(&other->waiters, NULL);
    } while (other);

    for (uint64_t k = 0; k < n; k++)
        if (fate_of(q, q2_l2_entry(q, table->data, i + k), gc + k, why) == FATE_CANNOT)
            return -ENOTSUP;
    data = table_cache_modify(&q->l2, table);
    if (!data)
        return -ENOMEM;
    for (uint64_t k = 0; k < n; k++) {
        uint64_t entry = q2_l2_entry(q, data, i + k);
        switch (fate_of(q, entry, gc + k, why)) {
        case FATE_ZERO_ALLOC:
            q2_l2_set(q, data, i + k, entry | Q2_ZERO, 0);
            break;
        case FATE_PLAIN_ZERO:
            q2_free_entry_later(q, entry, Q2_FREE_REQUEST);
            q2_l2_set(q, data, i + k, Q2_ZERO, 0);
            break;
        case FATE_NOTHING:
            q2_free_entry_later(q, entry, Q2_FREE_REQUEST);
            q2_l2_set(q, data, i + k, 0, 0);
            break;
        default:
            break;
        }
    }
    *done = n;
    return 0;
}

/* Whole clusters. What needs no change is passed over without making L2 tables for it. */
static int zero_co_clusters(Qcow2 *q, uint64_t gc, uint64_t n, Why why)
{
    int ret = 0;

    while (n && ret == 0) {
        uint64_t done;
        Extent map;
        ret = q2_co_map(q, gc << q->cluster_bits, n << q->cluster_bits, &map);
        if (ret < 0)
            break;
        done = map.bytes >> q->cluster_bits;
        if (map.kind == Q2_UNALLOCATED && !claim_find(q->claims, gc, done) &&
            (why == WHY_DROP || !backing_may_show(q->node, gc << q->cluster_bits))) {
            /* reads as zeroes already, with nothing to let go of */
        } else {
            ret = zero_co_slice(q, gc, n, why, &done);
            q2_free_co_throttle(q);
        }
        gc += done;
        n -= done;
    }
    return ret;
}

int q2_co_drop(Qcow2 *q, uint64_t gc, uint64_t n)
{
    return zero_co_clusters(q, gc, n, WHY_DROP);
}

/* Does part of one cluster read as zeroes because of its entry? Then nothing has to be done. */
static int zero_co_partial(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    while (bytes) {
        Extent map;
        int ret = q2_co_map(q, offset, bytes, &map);
        if (ret < 0)
            return ret;
        if (claim_find(q->claims, offset >> q->cluster_bits,
                       ((offset + map.bytes - 1) >> q->cluster_bits) + 1 - (offset >> q->cluster_bits)))
            return -ENOTSUP;
        if (map.kind != Q2_ZERO_PLAIN && map.kind != Q2_ZERO_ALLOC &&
            !(map.kind == Q2_UNALLOCATED && !backing_may_show(q->node, offset)))
            return -ENOTSUP;
        offset += map.bytes;
        bytes -= map.bytes;
    }
    return 0;
}

/* The whole clusters of a range; the disk's end counts as the end of its last cluster. */
static bool whole_clusters(const Qcow2 *q, uint64_t offset, uint64_t bytes, uint64_t *ret_first, uint64_t *ret_n)
{
    uint64_t end = offset + bytes;

    if (end == q->header.size)
        end = align_up(end, q->cluster_size);
    offset = align_up(offset, q->cluster_size);
    end = align_down(end, q->cluster_size);
    *ret_first = offset >> q->cluster_bits;
    *ret_n = end > offset ? (end - offset) >> q->cluster_bits : 0;
    return *ret_n > 0;
}

int q2_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    Qcow2 *q = q2_of(node);
    uint64_t first, n;
    int ret = 0;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    if (!whole_clusters(q, offset, bytes, &first, &n) || first << q->cluster_bits != offset ||
        (offset + bytes != q->header.size && q2_in_cluster(q, bytes)))
        return zero_co_partial(q, offset, bytes); /* the graph writes it out where that does not help */
    if (!q->wrote)
        ret = q2_co_before_first_write(q);
    return ret == 0 ? zero_co_clusters(q, first, n, flags & REQ_MAY_UNMAP ? WHY_ZERO_UNMAP : WHY_ZERO) : ret;
}

int q2_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    Qcow2 *q = q2_of(node);
    uint64_t first, n;
    int ret = 0;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    if (!whole_clusters(q, offset, bytes, &first, &n))
        return -ENOTSUP;
    if (!q->wrote)
        ret = q2_co_before_first_write(q);
    return ret == 0 ? zero_co_clusters(q, first, n, WHY_DISCARD) : ret;
}
