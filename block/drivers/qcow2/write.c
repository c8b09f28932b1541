/*
 * Guest writes.
 *
 * Guarantees: a write to clusters that are ours alone goes there and changes no metadata. Any other write gets new
 * clusters: refcounts (alloc.c), then data and its surroundings (format/cow.c), then the L2 entries in memory, which
 * commit.c writes out later behind a barrier. What the entries referred to before is freed after that (free.c). A write
 * that fails half way gives its clusters back and leaves the entries alone.
 *
 * Claims: while a write fills new clusters, the guest range is claimed, and whoever else would change the same entries
 * waits. Requests to other clusters, and to clusters that have theirs, do not even look.
 */
#include "block/drivers/qcow2/event.h"

/* Can the cluster of this entry be used again for what is written: it is ours, but shows zeroes? */
static bool is_reusable(const Qcow2 *q, uint64_t entry)
{
    return q2_entry_kind(q, entry) == Q2_ZERO_ALLOC && (entry & Q2_COPIED) &&
           is_aligned(entry & Q2_OFFSET_MASK, q->cluster_size);
}

static bool is_in_place(const Qcow2 *q, uint64_t entry)
{
    return q2_entry_kind(q, entry) == Q2_NORMAL && (entry & Q2_COPIED);
}

/* An entry that q2_co_map() would report as damage. */
static bool is_bad(const Qcow2 *q, uint64_t entry)
{
    return !(entry & Q2_COMPRESSED) && !is_aligned(entry & Q2_OFFSET_MASK, q->cluster_size);
}

/* How many of the @max entries of @slice from @i on can be written as one run that needs L2 changes; 0: the first needs
 * none. */
static uint64_t new_run(Qcow2 *q, const uint8_t *slice, unsigned i, uint64_t first, uint64_t max, bool *ret_reuse)
{
    uint64_t entry = q2_l2_entry(q, slice, i), n = 1;
    bool reuse = is_reusable(q, entry);

    if (is_in_place(q, entry) || is_bad(q, entry))
        return 0;
    max = claim_room(q->claims, first, max);
    for (; n < max; n++) {
        uint64_t next = q2_l2_entry(q, slice, i + n);
        if (is_bad(q, next))
            break;
        if (reuse ? next != entry + (n << q->cluster_bits) : is_in_place(q, next) || is_reusable(q, next))
            break;
    }
    *ret_reuse = reuse;
    return n;
}

/* Is the old content of the cluster at guest @offset known to be zero? */
static int cow_co_is_zero(void *opaque, uint64_t offset, bool *ret)
{
    Qcow2 *q = opaque;
    Extent map;
    int r = q2_co_map(q, offset, 1, &map);

    if (r == 0)
        *ret = map.kind == Q2_ZERO_PLAIN || map.kind == Q2_ZERO_ALLOC ||
               (map.kind == Q2_UNALLOCATED && !backing_at(q->node, offset));
    return r;
}

static int cow_co_read(void *opaque, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    return q2_co_read(opaque, offset, bytes, vec, vec_offset);
}

static int cow_co_store(void *opaque, uint64_t offset, uint64_t host, uint64_t bytes, const IoVec *vec,
                        size_t vec_offset)
{
    return q2_co_data_write(opaque, offset, host, bytes, vec, vec_offset);
}

static int cow_co_zero(void *opaque, uint64_t offset, uint64_t host, uint64_t bytes)
{
    return q2_co_data_zero(opaque, offset, host, bytes, 0);
}

static const CowOps cow_ops = {
    .co_is_zero = cow_co_is_zero, .co_read = cow_co_read, .co_write = cow_co_store, .co_zero = cow_co_zero};

/* Writes the new data, and what belongs around it, into the new clusters of @run, from guest cluster @first on. */
static int fill_co_run(Qcow2 *q, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, uint64_t first,
                       const Q2Run *run)
{
    const CowWrite w = {
        .offset = offset,
        .bytes = bytes,
        .vec = vec,
        .vec_offset = vec_offset,
        .start = first << q->cluster_bits,
        .length = run->n << q->cluster_bits,
        .host = run->offset,
        .disk_size = q->header.size,
        .align = q->data->node->limits.request_alignment,
        .fresh = run->fresh,
    };

    return cow_co_write(q->node, &cow_ops, &w);
}

/* Points the entries from guest cluster @first on to @run. */
static int link_co_run(Qcow2 *q, uint64_t first, const Q2Run *run, bool reuse)
{
    CacheTable *table;
    unsigned i;
    uint8_t *data;
    int ret = q2_co_l2_for_write(q, first, &table, &i);

    if (ret < 0)
        return ret;
    data = table_cache_modify(&q->l2, table);
    if (!data)
        return -ENOMEM;
    for (uint64_t k = 0; k < run->n; k++) {
        if (!reuse)
            q2_free_entry_later(q, q2_l2_entry(q, data, i + k), Q2_FREE_OTHER);
        q2_l2_set(q, data, i + k, (run->offset + (k << q->cluster_bits)) | Q2_COPIED, 0);
    }
    return 0;
}

/* Writes as much of the range as one run of new clusters takes. *@done 0: the world has changed, look again. */
static int write_co_new(void *opaque, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                        uint64_t *done)
{
    Qcow2 *q = opaque;
    uint64_t first = offset >> q->cluster_bits, n, want;
    Claim *other, claim;
    CacheTable *table;
    Q2Run run;
    unsigned i;
    bool reuse = false;
    int ret = q2_co_l2_for_write(q, first, &table, &i);

    *done = 0;
    if (ret < 0)
        return ret;
    if ((other = claim_find(q->claims, first, 1))) {
        coqueue_co_wait(&other->waiters, NULL);
        return 0;
    }
    want = ((offset + bytes - 1) >> q->cluster_bits) - first + 1;
    want = u64_min(want, (1u << q->slice_bits) - i);
    n = new_run(q, table->data, i, first, want, &reuse);
    if (!n)
        return 0;
    run = (Q2Run){.offset = q2_l2_entry(q, table->data, i) & Q2_OFFSET_MASK, .n = n};
    claim_begin(&q->claims, &claim, first, n);
    if (!reuse)
        ret = q2_co_alloc(q, n, false, &run);
    if (ret == 0) {
        bytes = u64_min(bytes, ((first + run.n) << q->cluster_bits) - offset);
        ret = fill_co_run(q, offset, bytes, vec, vec_offset, first, &run);
        if (ret == 0)
            ret = link_co_run(q, first, &run, reuse);
        if (ret < 0 && !reuse)
            q2_co_unref(q, run.offset, run.n << q->cluster_bits, Q2_FREE_NEVER);
    }
    claim_end(&q->claims, &claim);
    *done = bytes;
    return ret;
}

static int write_co_in_place(void *opaque, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset)
{
    Qcow2 *q = opaque;
    unsigned phase = q2_data_enter(q);
    int ret = q2_co_data_write(q, offset, map->host, map->bytes, vec, vec_offset);

    q2_data_leave(q, phase);
    return ret;
}

static int extent_co_map(void *opaque, uint64_t offset, uint64_t bytes, Extent *ret)
{
    return q2_co_map(opaque, offset, bytes, ret);
}

const ExtentOps q2_extent_ops = {
    .co_map = extent_co_map,
    .co_read = q2_co_read_extent,
    .co_write = write_co_in_place,
    .co_write_new = write_co_new,
    .status = q2_status,
};

int q2_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    Qcow2 *q = q2_of(node);
    int ret = 0;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    if (G_UNLIKELY(!q->wrote))
        ret = q2_co_before_first_write(q);
    if (ret == 0)
        ret = extents_co_write(node, &q2_extent_ops, offset, bytes, vec, vec_offset);
    q2_free_co_throttle(q);
    return ret;
}
