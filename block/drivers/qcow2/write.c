/*
 * Guest writes.
 *
 * Guarantees: a write to clusters that are ours alone goes there and changes no metadata. Any other write gets new
 * clusters: refcounts (alloc.c), then data and its surroundings (format/cow.c), then the L2 entries in memory, which
 * commit.c writes out later behind a barrier. What the entries referred to before is freed after that (free.c). A write
 * that fails half way gives its clusters back and leaves the entries alone. Where the cluster is ours but shows no data
 * (it reads as zeroes, or is a subcluster not written yet), the same happens without a new cluster.
 *
 * Claims: while a write fills new clusters, the guest range is claimed, and whoever else would change the same entries
 * waits. Requests to other clusters, and to clusters that have theirs, do not even look. Filling what has its place
 * claims no more than the subclusters filled, so neighbours in the same cluster do not wait for each other.
 *
 * What is written comes from memory, or the host copies it from another file: only whole subclusters then, and nothing
 * that has to be encrypted.
 */
#include "block/drivers/qcow2/event.h"

/* What is written from some guest offset on: bytes of @vec from @vec_offset on or, where there is none, what @source,
 * a leaf, has from @source_offset on. */
typedef struct Payload {
    const IoVec *vec;
    size_t vec_offset;
    Node *source;
    uint64_t source_offset;
    ReqFlags flags; /* of the copy from @source */
} Payload;

/* What one step of a write fills, and the entries that it changes. */
typedef struct Fill {
    uint64_t first;      /* guest cluster */
    Q2Run run;           /* host clusters, one for each guest cluster from first on */
    uint64_t start, end; /* guest bytes that are filled: whole subclusters in these clusters */
    bool reuse;          /* the clusters are in the entries already */
} Fill;

/* How many of the @max subclusters from @sub of cluster @slice[@i] on, which is ours, can be filled where they are. */
static uint64_t unused_run(const Qcow2 *q, const uint8_t *slice, unsigned i, unsigned sub, uint64_t max)
{
    uint64_t first = q2_l2_entry(q, slice, i), n = 0;

    for (uint64_t k = 0;; k++, sub = 0) {
        uint64_t entry = q2_l2_entry(q, slice, i + k), bitmap = q2_l2_bitmap(q, slice, i + k);
        unsigned part;
        if (entry != first + (k << q->cluster_bits) || q2_entry_is_bad(q, entry, bitmap))
            return n;
        part = q2_sub_unused(q, entry, bitmap, sub);
        n += part;
        if (n >= max || sub + part < q->subs)
            return u64_min(n, max);
    }
}

/* How many of the @max clusters from @slice[@i] on need a new place. */
static uint64_t foreign_run(const Qcow2 *q, const uint8_t *slice, unsigned i, uint64_t max)
{
    uint64_t n = 0;

    for (; n < max; n++) {
        uint64_t entry = q2_l2_entry(q, slice, i + n);
        if (q2_entry_is_ours(q, entry) || q2_entry_is_bad(q, entry, q2_l2_bitmap(q, slice, i + n)))
            break;
    }
    return n;
}

/* Is the old content of a part of a cluster known to be zero? */
static int cow_co_is_zero(void *opaque, uint64_t offset, uint64_t bytes, bool *ret)
{
    Qcow2 *q = opaque;
    Extent map;
    int r;

    do {
        r = q2_co_map(q, offset, bytes, &map);
        if (r < 0)
            return r;
        *ret = map.kind == Q2_ZERO_PLAIN || map.kind == Q2_ZERO_ALLOC ||
               (map.kind == Q2_UNALLOCATED && !backing_at(q->node, offset));
        offset += map.bytes;
        bytes -= map.bytes;
    } while (*ret && bytes);
    return 0;
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

/* What [@offset, @offset + @bytes), the part of the write in these clusters, fills: up to subclusters' borders, and
 * with a new place, what has to move there. */
static int fill_co_bounds(Qcow2 *q, uint64_t offset, uint64_t bytes, Fill *f)
{
    uint64_t sub_size = UINT64_C(1) << q->sub_bits;

    f->start = align_down(offset, sub_size);
    f->end = align_up(offset + bytes, sub_size);
    if (f->reuse || q->subs == 1)
        return 0;
    for (unsigned last = 0; last < 2; last++) {
        uint64_t gc = f->first + (last ? f->run.n - 1 : 0), at = gc << q->cluster_bits;
        CacheTable *table;
        unsigned i, first, after;
        int ret = q2_co_l2_for_write(q, gc, &table, &i);
        if (ret < 0)
            return ret;
        q2_sub_kept(q, q2_l2_entry(q, table->data, i), q2_l2_bitmap(q, table->data, i), &first, &after);
        if (after > first) {
            f->start = u64_min(f->start, at + ((uint64_t)first << q->sub_bits));
            f->end = u64_max(f->end, at + ((uint64_t)after << q->sub_bits));
        }
    }
    return 0;
}

/* Writes the new data, and what belongs around it. */
static int fill_co_run(Qcow2 *q, uint64_t offset, uint64_t bytes, const Payload *p, const Fill *f)
{
    /* A data file is no larger than the disk. */
    uint64_t end = q2_has_data_file(q) ? u64_min(f->end, q->header.size) : f->end;
    uint64_t host = f->run.offset + (f->start - (f->first << q->cluster_bits));
    const CowWrite w = {
        .offset = offset,
        .bytes = bytes,
        .vec = p->vec,
        .vec_offset = p->vec_offset,
        .start = f->start,
        .length = end - f->start,
        .host = host,
        .disk_size = q->header.size,
        .align = q->data->node->limits.request_alignment,
        .fresh = f->run.fresh && !q->crypt,
    };

    if (p->vec)
        return cow_co_write(q->node, &cow_ops, &w);
    if (offset != f->start || offset + bytes != end)
        return -EAGAIN;
    return q2_co_data_copy(q, host, bytes, p->source, p->source_offset, p->flags);
}

/* Shows what has been filled in the entries. */
static int link_co_run(Qcow2 *q, const Fill *f)
{
    CacheTable *table;
    unsigned i;
    uint8_t *data;
    int ret = q2_co_l2_for_write(q, f->first, &table, &i);

    if (ret < 0)
        return ret;
    data = table_cache_modify(&q->l2, table);
    if (!data)
        return -ENOMEM;
    for (uint64_t k = 0; k < f->run.n; k++) {
        uint64_t old = q2_l2_entry(q, data, i + k), bitmap = 0;
        if (q->subs > 1) {
            uint64_t mask = q2_sub_mask(q, f->first + k, f->start, f->end);
            if (!(old & Q2_COMPRESSED))
                bitmap = q2_l2_bitmap(q, data, i + k) & ~(mask << 32);
            bitmap |= mask;
        }
        if (!f->reuse)
            q2_free_entry_later(q, old, Q2_FREE_OTHER);
        q2_l2_set(q, data, i + k, (f->run.offset + (k << q->cluster_bits)) | Q2_COPIED, bitmap);
    }
    return 0;
}

/* Decides what the beginning of the range, whose entry is @slice[@i], fills, and claims it. @room: clusters that are
 * left of the slice. False: there is no need, or damage, which another lookup will find. */
static bool fill_plan(Qcow2 *q, uint64_t offset, uint64_t bytes, const uint8_t *slice, unsigned i, Fill *f,
                      Claim *claim)
{
    uint64_t entry = q2_l2_entry(q, slice, i), n;
    uint64_t unit = offset >> q->sub_bits, units = ((offset + bytes - 1) >> q->sub_bits) - unit + 1;
    uint64_t room = (1u << q->slice_bits) - i, clusters = ((offset + bytes - 1) >> q->cluster_bits) - f->first + 1;
    unsigned sub = q2_sub_index(q, offset);

    if (q2_entry_is_bad(q, entry, q2_l2_bitmap(q, slice, i)))
        return false;
    f->reuse = q2_entry_is_ours(q, entry);
    if (f->reuse) {
        units = claim_room(q->claims, unit, u64_min(units, room * q->subs - sub));
        n = unused_run(q, slice, i, sub, units);
        f->run = (Q2Run){.offset = entry & Q2_OFFSET_MASK, .n = (sub + n + q->subs - 1) / q->subs};
        f->end = (unit + n) << q->sub_bits;
    } else {
        unit = f->first * q->subs;
        n = claim_room(q->claims, unit, u64_min(clusters, room) * q->subs) / q->subs;
        f->run.n = foreign_run(q, slice, i, n);
        n = f->run.n * q->subs;
    }
    if (n)
        claim_begin(&q->claims, claim, unit, n);
    return n > 0;
}

/* Writes as much of the range as one run of clusters takes. *@done 0: the world has changed, look again. */
static int payload_co_write_new(Qcow2 *q, uint64_t offset, uint64_t bytes, const Payload *p, uint64_t *done)
{
    Fill f = {.first = offset >> q->cluster_bits};
    Claim *other, claim;
    CacheTable *table;
    unsigned i;
    int ret = q2_co_l2_for_write(q, f.first, &table, &i);

    *done = 0;
    if (ret < 0)
        return ret;
    /* Where the place stays, only the subcluster at the beginning matters. */
    if (q2_entry_is_ours(q, q2_l2_entry(q, table->data, i)))
        other = claim_find(q->claims, offset >> q->sub_bits, 1);
    else
        other = claim_find(q->claims, f.first * q->subs, q->subs);
    if (other) {
        coqueue_co_wait(&other->waiters, NULL);
        return 0;
    }
    if (!fill_plan(q, offset, bytes, table->data, i, &f, &claim))
        return 0;
    if (!f.reuse)
        ret = q2_co_data_alloc(q, f.first, f.run.n, &f.run);
    if (ret == 0) {
        if (!f.reuse)
            f.end = (f.first + f.run.n) << q->cluster_bits;
        bytes = u64_min(bytes, f.end - offset);
        ret = fill_co_bounds(q, offset, bytes, &f);
        if (ret == 0 && order_left_out("write-order"))
            ret = link_co_run(q, &f);
        if (ret == 0)
            ret = fill_co_run(q, offset, bytes, p, &f);
        if (ret == 0 && !order_left_out("write-order"))
            ret = link_co_run(q, &f);
        if (ret < 0 && !f.reuse)
            q2_co_data_unalloc(q, &f.run);
    }
    claim_end(&q->claims, &claim);
    *done = bytes;
    return ret;
}

static int write_co_new(void *opaque, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                        uint64_t *done)
{
    const Payload p = {.vec = vec, .vec_offset = vec_offset};

    return payload_co_write_new(opaque, offset, bytes, &p, done);
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
    if (G_UNLIKELY(q2_free_co_reclaim(q, ret)))
        ret = extents_co_write(node, &q2_extent_ops, offset, bytes, vec, vec_offset);
    q2_free_co_throttle(q);
    return ret;
}

/* As much of a copy as one extent takes. *@done 0: look again. */
static int copy_co_step(Qcow2 *q, uint64_t offset, uint64_t bytes, const Payload *p, uint64_t *done)
{
    Extent map;
    unsigned phase;
    int ret = q2_co_map(q, offset, bytes, &map);

    if (ret < 0)
        return ret;
    if (!map.in_place)
        return payload_co_write_new(q, offset, bytes, p, done);
    phase = q2_data_enter(q);
    ret = q2_co_data_copy(q, map.host, map.bytes, p->source, p->source_offset, p->flags);
    q2_data_leave(q, phase);
    *done = map.bytes;
    return ret;
}

int q2_co_copy_from(Node *node, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset, ReqFlags flags)
{
    Qcow2 *q = q2_of(node);
    int ret = q->crypt ? -ENOTSUP : 0;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    if (ret == 0 && G_UNLIKELY(!q->wrote))
        ret = q2_co_before_first_write(q);
    while (ret == 0 && bytes) {
        const Payload p = {.source = source, .source_offset = source_offset, .flags = flags};
        uint64_t done;
        ret = copy_co_step(q, offset, bytes, &p, &done);
        if (q2_free_co_reclaim(q, ret))
            ret = copy_co_step(q, offset, bytes, &p, &done);
        if (ret < 0)
            break;
        offset += done;
        source_offset += done;
        bytes -= done;
    }
    q2_free_co_throttle(q);
    return ret;
}
