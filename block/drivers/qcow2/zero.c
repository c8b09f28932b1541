/*
 * Writing zeroes and discarding: entries change, no data moves.
 *
 * Guarantees: entries change in one go within a slice, when no claim lies on them; what they referred to is freed
 * behind the commit that writes them (free.c). What reads as zeroes after one of these requests does so because the
 * entry says so, or because there is nothing below and never will be: an image that names a backing file and was opened
 * without it may get it later. A version 2 image, which has no zero entries, declines where that is not so.
 *
 * With discard-no-unref, a cluster that is ours keeps its place when it is discarded, too, and reads as zeroes; its
 * space is given back by zeroing it, at once.
 *
 * With extended L2 entries all this goes subcluster by subcluster, and the host cluster is given back when the last of
 * its subclusters with data is let go of; without unmapping it stays. Of a compressed cluster only all can be zeroed.
 */
#include "block/drivers/qcow2/qcow2.h"

typedef enum Fate { FATE_KEEP, FATE_PLAIN_ZERO, FATE_ZERO_ALLOC, FATE_NOTHING, FATE_CANNOT } Fate;
typedef enum Why { WHY_ZERO, WHY_ZERO_UNMAP, WHY_DISCARD, WHY_DROP } Why;

/* Does a cluster of ours stay where it is, to be written again? */
static bool keeps_place(const Qcow2 *q, Why why)
{
    return why == WHY_ZERO || (q->discard_no_unref && why != WHY_DROP);
}

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
    if (keeps_place(q, why) && kind == Q2_ZERO_ALLOC)
        return FATE_KEEP;
    if (keeps_place(q, why) && kind == Q2_NORMAL && (entry & Q2_COPIED))
        return FATE_ZERO_ALLOC;
    return FATE_PLAIN_ZERO;
}

/* The new values of an ordinary entry. 0 or -ENOTSUP. */
static int change_cluster(const Qcow2 *q, uint64_t gc, Why why, uint64_t *entry)
{
    switch (fate_of(q, *entry, gc, why)) {
    case FATE_CANNOT:
        return -ENOTSUP;
    case FATE_ZERO_ALLOC:
        *entry |= Q2_ZERO;
        break;
    case FATE_PLAIN_ZERO:
        *entry = Q2_ZERO;
        break;
    case FATE_NOTHING:
        *entry = 0;
        break;
    default:
        break;
    }
    return 0;
}

/* The new values of an extended one, of which the subclusters @mask are meant. @others: somebody fills other
 * subclusters of the cluster. */
static int change_subs(const Qcow2 *q, uint64_t gc, Why why, uint32_t mask, bool others, uint64_t *entry,
                       uint64_t *bitmap)
{
    Q2Kind kind = q2_entry_kind(q, *entry);
    bool below = backing_may_show(q->node, gc << q->cluster_bits), all = mask == UINT32_MAX;
    uint32_t data = (uint32_t)*bitmap, zero = (uint32_t)(*bitmap >> 32);

    if (why == WHY_DROP) {
        *entry = *bitmap = 0;
        return 0;
    }
    if (kind == Q2_PACKED) {
        if (!all)
            return why == WHY_DISCARD ? 0 : -ENOTSUP;
        *entry = 0;
        *bitmap = (uint64_t)mask << 32;
        return 0;
    }
    /* Without something below, only what shows data has to change. */
    zero |= below ? mask : mask & data;
    if (kind == Q2_NORMAL && !(data & ~mask) && (all || (data && !others)) &&
        !(keeps_place(q, why) && (*entry & Q2_COPIED)))
        *entry = 0; /* nothing is left in the cluster */
    *bitmap = (uint64_t)zero << 32 | (data & ~mask);
    return 0;
}

/* The new values of the entry of guest cluster @gc, of which [@start, @end) is meant, in subclusters of the guest. */
static int change_entry(const Qcow2 *q, uint64_t gc, uint64_t start, uint64_t end, Why why, uint64_t *entry,
                        uint64_t *bitmap)
{
    uint32_t mask;

    if (q->subs == 1)
        return change_cluster(q, gc, why, entry);
    mask = q2_sub_mask(q, gc, start << q->sub_bits, end << q->sub_bits);
    return change_subs(q, gc, why, mask, claim_find(q->claims, gc * q->subs, q->subs) != NULL, entry, bitmap);
}

/* Gives the space back of clusters that keep their place, or whose place is always the same. Claimed: nobody may write
 * new data there before it is gone. */
static void kept_co_give_back(Qcow2 *q, uint64_t u, uint64_t n)
{
    uint64_t offset = u << q->sub_bits, end = u64_min((u + n) << q->sub_bits, q->header.size);
    uint64_t first = div_round_up(u, q->subs), after = (u + n) / q->subs;
    Claim claim;

    claim_begin(&q->claims, &claim, u, n);
    if (q2_has_data_file(q)) {
        if (after > first)
            q2_co_data_drop(q, first, after - first);
        offset = end;
    }
    while (offset < end && q2_may_give_back(q)) {
        Extent map;
        if (q2_co_map(q, offset, end - offset, &map) < 0)
            break;
        /* By zeroes: until the entries are durable, those show what stands there that called it data. */
        if (map.kind == Q2_ZERO_ALLOC && (map.entry & Q2_COPIED))
            q2_co_data_zero(q, offset, map.host, map.bytes, REQ_MAY_UNMAP | REQ_NO_FALLBACK);
        offset += map.bytes;
    }
    claim_end(&q->claims, &claim);
}

/* Changes the entries of up to @n subclusters of the guest from @u on within one slice. */
static int zero_co_slice(Qcow2 *q, uint64_t u, uint64_t n, Why why, uint64_t *done)
{
    uint64_t gc = u / q->subs, end, clusters, entry, bitmap;
    Claim *other;
    bool changed = false;
    CacheTable *table;
    uint8_t *data;
    unsigned i;
    int ret;

    do {
        ret = q2_co_l2_for_write(q, gc, &table, &i);
        if (ret < 0)
            return ret;
        n = u64_min(n, (gc + (1u << q->slice_bits) - i) * q->subs - u);
        other = claim_find(q->claims, u, n);
        if (other)
            coqueue_co_wait(&other->waiters, NULL);
    } while (other);

    end = u + n;
    clusters = (end - 1) / q->subs - gc + 1;
    for (uint64_t k = 0; k < clusters; k++) {
        entry = q2_l2_entry(q, table->data, i + k);
        bitmap = q2_l2_bitmap(q, table->data, i + k);
        if (G_UNLIKELY(q2_entry_is_bad(q, entry, bitmap)))
            return q2_co_entry_bad(q, gc + k, entry);
        ret = change_entry(q, gc + k, u, end, why, &entry, &bitmap);
        if (ret < 0)
            return ret;
    }
    data = table_cache_modify(&q->l2, table);
    if (!data)
        return -ENOMEM;
    for (uint64_t k = 0; k < clusters; k++) {
        uint64_t old = entry = q2_l2_entry(q, data, i + k), old_bitmap = bitmap = q2_l2_bitmap(q, data, i + k);
        change_entry(q, gc + k, u, end, why, &entry, &bitmap);
        changed |= entry != old || bitmap != old_bitmap;
        if (entry != old && !(entry & q->place_mask))
            q2_free_entry_later(q, old, Q2_FREE_REQUEST);
        q2_l2_set(q, data, i + k, entry, bitmap);
    }
    if (changed && (why == WHY_DISCARD || why == WHY_ZERO_UNMAP) && (q2_has_data_file(q) || q->discard_no_unref))
        kept_co_give_back(q, u, n);
    *done = n;
    return 0;
}

/* Subclusters of the guest. What needs no change is passed over without making L2 tables for it. */
static int zero_co_subs(Qcow2 *q, uint64_t u, uint64_t n, Why why)
{
    int ret = 0;

    while (n && ret == 0) {
        uint64_t done;
        Extent map;
        ret = q2_co_map(q, u << q->sub_bits, n << q->sub_bits, &map);
        if (ret < 0)
            break;
        done = map.bytes >> q->sub_bits;
        if (map.kind == Q2_UNALLOCATED && q2_entry_kind(q, map.entry) == Q2_UNALLOCATED &&
            !claim_find(q->claims, u, done) && (why == WHY_DROP || !backing_may_show(q->node, u << q->sub_bits))) {
            /* reads as zeroes already, with nothing to let go of */
        } else {
            ret = zero_co_slice(q, u, n, why, &done);
            if (q2_free_co_reclaim(q, ret))
                ret = zero_co_slice(q, u, n, why, &done);
            q2_free_co_throttle(q);
        }
        u += done;
        n -= done;
    }
    return ret;
}

int q2_co_drop(Qcow2 *q, uint64_t gc, uint64_t n)
{
    return zero_co_subs(q, gc * q->subs, n * q->subs, WHY_DROP);
}

int q2_co_zero(Qcow2 *q, uint64_t gc, uint64_t n)
{
    return zero_co_subs(q, gc * q->subs, n * q->subs, WHY_ZERO_UNMAP);
}

/* Does part of one subcluster read as zeroes because of its entry? Then nothing has to be done. */
static int zero_co_partial(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    while (bytes) {
        Extent map;
        int ret = q2_co_map(q, offset, bytes, &map);
        if (ret < 0)
            return ret;
        if (claim_find(q->claims, offset >> q->sub_bits,
                       ((offset + map.bytes - 1) >> q->sub_bits) + 1 - (offset >> q->sub_bits)))
            return -ENOTSUP;
        if (map.kind != Q2_ZERO_PLAIN && map.kind != Q2_ZERO_ALLOC &&
            !(map.kind == Q2_UNALLOCATED && !backing_may_show(q->node, offset)))
            return -ENOTSUP;
        offset += map.bytes;
        bytes -= map.bytes;
    }
    return 0;
}

/* The whole subclusters of a range; the disk's end counts as the end of its last cluster. */
static bool whole_subs(const Qcow2 *q, uint64_t offset, uint64_t bytes, uint64_t *ret_first, uint64_t *ret_n)
{
    uint64_t end = offset + bytes, size = UINT64_C(1) << q->sub_bits;

    if (end == q->header.size)
        end = align_up(end, q->cluster_size);
    offset = align_up(offset, size);
    end = align_down(end, size);
    *ret_first = offset >> q->sub_bits;
    *ret_n = end > offset ? (end - offset) >> q->sub_bits : 0;
    return *ret_n > 0;
}

int q2_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    Qcow2 *q = q2_of(node);
    uint64_t first, n;
    int ret = 0;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    if (q2_is_raw(q)) {
        ret = q->wrote ? 0 : q2_co_before_first_write(q);
        return ret == 0 ? q2_co_raw_zero(q, offset, bytes, flags) : ret;
    }
    if (!whole_subs(q, offset, bytes, &first, &n) || first << q->sub_bits != offset ||
        (offset + bytes != q->header.size && !is_aligned(bytes, UINT64_C(1) << q->sub_bits)))
        return zero_co_partial(q, offset, bytes); /* the graph writes it out where that does not help */
    if (!q->wrote)
        ret = q2_co_before_first_write(q);
    return ret == 0 ? zero_co_subs(q, first, n, flags & REQ_MAY_UNMAP ? WHY_ZERO_UNMAP : WHY_ZERO) : ret;
}

int q2_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    Qcow2 *q = q2_of(node);
    uint64_t first, n;
    int ret = 0;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    if (!whole_subs(q, offset, bytes, &first, &n))
        return -ENOTSUP;
    if (!q->wrote)
        ret = q2_co_before_first_write(q);
    if (ret == 0 && q2_is_raw(q)) {
        offset = first << q->sub_bits;
        return q2_co_raw_discard(q, offset, u64_min(n << q->sub_bits, q->header.size - offset));
    }
    return ret == 0 ? zero_co_subs(q, first, n, WHY_DISCARD) : ret;
}
