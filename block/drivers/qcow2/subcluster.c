/*
 * Extended L2 entries: what the bitmap beside an entry says of the subclusters of its cluster.
 *
 * Each cluster has 32 subclusters; bit i of the bitmap: subcluster i holds data; bit 32 + i: it reads as zeroes; none:
 * what lies below shows. The entry's offset may be there with no bit set: a place for data that nobody has written yet.
 * Images without extended entries are treated as if each cluster had one subcluster, of which the entry itself says
 * all.
 *
 * Guarantees: a bit for data is set in memory when the data has been written, and reaches the image with its slice,
 * behind a barrier (commit.c). Whoever fills subclusters claims them; whoever gives the cluster another place, or takes
 * it away, waits until nobody claims any of them. Bits change between two yields, so neighbours do not lose theirs.
 */
#include "block/drivers/qcow2/qcow2.h"

bool q2_entry_is_bad(const Qcow2 *q, uint64_t entry, uint64_t bitmap)
{
    Q2Kind kind = q2_entry_kind(q, entry);

    if (kind == Q2_PACKED)
        return false;
    return !is_aligned(entry & Q2_OFFSET_MASK, q->cluster_size) || (bitmap >> 32 & bitmap) ||
           (kind == Q2_UNALLOCATED && (uint32_t)bitmap) || (q->header.version < 3 && (entry & Q2_ZERO));
}

bool q2_entry_is_ours(const Qcow2 *q, uint64_t entry)
{
    Q2Kind kind = q2_entry_kind(q, entry);

    return (entry & Q2_COPIED) && (kind == Q2_NORMAL || kind == Q2_ZERO_ALLOC);
}

Q2Kind q2_sub_kind(const Qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub)
{
    Q2Kind kind = q2_entry_kind(q, entry);

    if (q->subs == 1 || kind == Q2_PACKED)
        return kind;
    if (bitmap >> (32 + sub) & 1)
        return kind == Q2_NORMAL ? Q2_ZERO_ALLOC : Q2_ZERO_PLAIN;
    return bitmap >> sub & 1 ? Q2_NORMAL : Q2_UNALLOCATED;
}

/* How many bits of @bits from bit @first on are as that one is. */
static unsigned equal_bits(uint32_t bits, unsigned first)
{
    uint32_t others = (bits >> first & 1 ? ~bits : bits) >> first;

    return others ? (unsigned)__builtin_ctz(others) : 32 - first;
}

unsigned q2_sub_alike(const Qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub)
{
    if (q->subs == 1 || (entry & Q2_COMPRESSED))
        return q->subs - sub;
    return MIN(equal_bits((uint32_t)bitmap, sub), equal_bits((uint32_t)(bitmap >> 32), sub));
}

unsigned q2_sub_unused(const Qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub)
{
    if (q->subs == 1)
        return q2_entry_kind(q, entry) != Q2_NORMAL;
    return bitmap >> sub & 1 ? 0 : equal_bits((uint32_t)bitmap, sub);
}

uint32_t q2_sub_mask(const Qcow2 *q, uint64_t gc, uint64_t start, uint64_t end)
{
    uint64_t from = gc << q->cluster_bits, first, after;

    first = start > from ? (start - from) >> q->sub_bits : 0;
    after = u64_min(end - from, q->cluster_size) >> q->sub_bits;
    return (uint32_t)((UINT64_C(1) << after) - (UINT64_C(1) << first));
}

void q2_sub_kept(const Qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned *ret_first, unsigned *ret_after)
{
    uint32_t data = (uint32_t)bitmap;

    if (entry & Q2_COMPRESSED || q->subs == 1) {
        *ret_first = 0;
        *ret_after = q->subs;
    } else {
        *ret_first = data ? (unsigned)__builtin_ctz(data) : q->subs;
        *ret_after = data ? 32 - (unsigned)__builtin_clz(data) : 0;
    }
}
