/*
 * Taking and giving back host clusters.
 *
 * Guarantees: a cluster that is handed out had refcount 0 in memory, which it only has when no durable table and no
 * request in flight refers to it any more (free.c). Its new refcount is in the cache and reaches the image before the
 * first L2 entry that uses the cluster (commit.c). A cluster that holds metadata is never handed out.
 *
 * Search is first fit from a hint below which nothing is free; blocks known to be full are skipped without being read.
 * Long runs, for tables, are first looked for where the file has blocks; else each would make the file longer.
 */
#include "block/drivers/qcow2/event.h"

bool q2_file_holds(const Qcow2 *q, uint64_t end)
{
    const Node *node = q->node->file->node;

    if (G_LIKELY(end <= node->size))
        return true;
    while (node && !node->drv->may_grow)
        node = node->drv->is_filter && node->file ? node->file->node : NULL;
    return node != NULL;
}

typedef struct Search {
    uint64_t want;
    bool exact;
    uint64_t start, len; /* the run as found so far */
    uint64_t first_free; /* the first free cluster seen, UINT64_MAX: none */
} Search;

/* Scans one block from cluster @ci on. True when the run is complete. *@ret_any: there was a free cluster. */
static bool scan_block(Qcow2 *q, const uint8_t *block, uint64_t ci, Search *s, bool *ret_any)
{
    uint64_t mask = (UINT64_C(1) << q->rb_bits) - 1, end = (ci | mask) + 1;

    *ret_any = false;
    for (; ci < end; ci++) {
        if (q2_refcount_get(block, q->header.refcount_order, ci & mask) != 0) {
            if (s->len && !s->exact)
                return true;
            s->len = 0;
            continue;
        }
        *ret_any = true;
        if (s->len++ == 0)
            s->start = ci;
        if (s->first_free == UINT64_MAX)
            s->first_free = ci;
        if (s->len == s->want)
            return true;
    }
    return false;
}

static int alloc_co_search(Qcow2 *q, Search *s)
{
    uint64_t ci = q->free_hint;

    for (unsigned steps = 1;; steps++) {
        uint64_t index = ci >> q->rb_bits, next = (index + 1) << q->rb_bits;
        CacheTable *block;
        bool any;
        int ret;

        if (steps % 256 == 0) /* a crafted table could make this take long */
            aio_co_reschedule();

        if (index < q->rt_size && q->rb_full[index]) {
            if (s->len && !s->exact)
                return 0;
            s->len = 0;
            ci = next;
            continue;
        }
        ret = q2_refcount_co_block(q, ci, &block);
        if (ret < 0)
            return s->len && !s->exact ? 0 : ret;
        if (scan_block(q, block->data, ci, s, &any))
            return 0;
        /* What lies below the hint is not free either, unless it has moved meanwhile. */
        if (!any && (q->free_hint >= ci || ci == index << q->rb_bits))
            q->rb_full[index] = 1;
        ci = next;
    }
}

/* Looks for @s->want clusters in a row, more than lie between two refcount blocks that describe themselves, where
 * blocks are already: what an earlier run of that kind has left behind. @s->len is less when there is no such run. */
static int alloc_co_search_known(Qcow2 *q, Search *s)
{
    uint64_t ci = q->free_hint, index;

    for (unsigned steps = 1; (index = ci >> q->rb_bits) < q->rt_size; steps++, ci = (index + 1) << q->rb_bits) {
        CacheTable *block = NULL;
        bool any;
        int ret = 0;

        if (steps % 256 == 0)
            aio_co_reschedule();
        if (q->rt[index] && !q->rb_full[index])
            ret = q2_refcount_co_find(q, ci, &block);
        if (ret < 0)
            return ret;
        if (!block)
            s->len = 0;
        else if (scan_block(q, block->data, ci, s, &any))
            return 0;
    }
    s->len = 0;
    return 0;
}

/* Sets the refcount of @n free clusters to 1. */
static int alloc_co_take(Qcow2 *q, uint64_t start, uint64_t n)
{
    uint64_t mask = (UINT64_C(1) << q->rb_bits) - 1, done = 0;

    while (done < n) {
        uint64_t ci = start + done, end = u64_min((ci | mask) + 1, start + n);
        CacheTable *block;
        uint8_t *data = NULL;
        int ret = q2_refcount_co_block(q, ci, &block);
        if (ret == 0 && !(data = table_cache_modify(&q->rb, block)))
            ret = -ENOMEM;
        if (ret < 0) {
            if (done)
                q2_co_unref(q, start << q->cluster_bits, done << q->cluster_bits, Q2_FREE_NEVER);
            return ret;
        }
        for (; ci < end; ci++)
            q2_refcount_set(data, q->header.refcount_order, ci & mask, 1);
        done = end - start;
    }
    return 0;
}

/* alloc_lock held. */
static int alloc_co_locked(Qcow2 *q, uint64_t want, bool exact, Q2Run *run)
{
    Search s = {.want = want, .exact = exact, .first_free = UINT64_MAX};
    uint64_t offset, bytes;
    bool region = false;
    unsigned kind;
    int ret;

    if (G_UNLIKELY(q->corrupt || q->unsure))
        return -EIO;
    q->freed_low = UINT64_MAX;
    if (exact && want > UINT64_C(1) << (q->rb_bits - 1)) {
        ret = alloc_co_search_known(q, &s);
        if (ret == 0 && !s.len) {
            s.len = want;
            ret = q2_refcount_co_region(q, want, &s.start);
            region = true;
        }
    } else {
        ret = alloc_co_search(q, &s);
    }
    if (ret < 0)
        return ret;
    offset = s.start << q->cluster_bits;
    while (s.len > 1 && !exact && !q2_file_holds(q, offset + (s.len << q->cluster_bits)))
        s.len--;
    bytes = s.len << q->cluster_bits;
    if (!q2_file_holds(q, offset + bytes))
        return -ENOSPC;
    kind = q2_meta_find(q, offset, bytes);
    if (G_UNLIKELY(kind || offset == 0))
        return q2_co_corrupt(q, (int64_t)offset, (int64_t)bytes,
                             "Preventing invalid allocation of %s at offset 0x%" G_GINT64_MODIFIER "x",
                             kind ? q2_meta_name(kind) : "the header", offset);
    ret = alloc_co_take(q, s.start, s.len);
    if (ret < 0)
        return ret;
    if (!region) /* and what was freed meanwhile may lie where the search had been */
        q->free_hint = u64_min(s.first_free == s.start ? s.start + s.len : s.first_free, q->freed_low);
    *run = (Q2Run){.offset = offset, .n = s.len, .fresh = offset >= q->fresh_above};
    q->fresh_above = u64_max(q->fresh_above, offset + bytes);
    return 0;
}

int q2_co_alloc(Qcow2 *q, uint64_t want, bool exact, Q2Run *run)
{
    int ret;

    q2_co_event(q, BLKDEBUG_EVENT_CLUSTER_ALLOC);
    comutex_co_lock(&q->alloc_lock);
    ret = alloc_co_locked(q, want, exact, run);
    comutex_unlock(&q->alloc_lock);
    return ret;
}

/* Adds a reference to the cluster at packed_next, which is @offset. -ERANGE when its refcount is as large as it can
 * get; when it has been freed while we looked, and may be anybody's by now, as well. */
static int alloc_co_share(Qcow2 *q, uint64_t offset)
{
    uint64_t ci = offset >> q->cluster_bits, index = ci & ((UINT64_C(1) << q->rb_bits) - 1);
    unsigned order = q->header.refcount_order;
    uint64_t max = UINT64_MAX >> (64 - (1u << order)), count;
    CacheTable *block;
    uint8_t *data;
    int ret = q2_refcount_co_find(q, ci, &block);

    if (ret < 0)
        return ret;
    count = block && q->packed_next == offset ? q2_refcount_get(block->data, order, index) : 0;
    if (count == 0 || count == max)
        return -ERANGE;
    data = table_cache_modify(&q->rb, block);
    if (!data)
        return -ENOMEM;
    q2_refcount_set(data, order, index, count + 1);
    return 0;
}

/* packed_lock held. */
static int alloc_co_bytes_locked(Qcow2 *q, uint64_t bytes, uint64_t *ret_offset)
{
    uint64_t left = q->packed_next ? q->cluster_size - q2_in_cluster(q, q->packed_next) : 0;
    uint64_t at = q->packed_next;
    Q2Run run;
    int ret;

    if (at && left >= bytes) {
        ret = alloc_co_share(q, at);
        if (ret == 0) {
            *ret_offset = at;
            return 0;
        }
        if (ret != -ERANGE)
            return ret;
    }
    ret = q2_co_alloc(q, 1, true, &run);
    if (ret < 0)
        return ret;
    *ret_offset = run.offset;
    if (at && left < bytes && at == q->packed_next && at + left == run.offset && alloc_co_share(q, at) == 0)
        *ret_offset = at; /* from the end of the last cluster into the new one */
    return 0;
}

int q2_co_alloc_bytes(Qcow2 *q, uint64_t bytes, uint64_t *ret_offset)
{
    uint64_t end;
    int ret;

    comutex_co_lock(&q->packed_lock);
    ret = alloc_co_bytes_locked(q, bytes, ret_offset);
    if (ret == 0) {
        end = *ret_offset + bytes;
        q->packed_next = q2_in_cluster(q, end) ? end : 0;
        if (end > q->coffset_mask) {
            q2_co_unref(q, *ret_offset, bytes, Q2_FREE_NEVER);
            ret = -EFBIG;
        }
    }
    comutex_unlock(&q->packed_lock);
    return ret;
}

/* The cluster with index @ci has become free. */
static void freed(Qcow2 *q, uint64_t ci)
{
    q->free_hint = u64_min(q->free_hint, ci);
    q->freed_low = u64_min(q->freed_low, ci);
    q->rb_full[ci >> q->rb_bits] = 0;
    if (q->packed_next >> q->cluster_bits == ci)
        q->packed_next = 0;
}

/* Lowers the counts of the clusters [@ci, @end) of one block. With @only_count nothing is lowered but the length of the
 * run of clusters at @ci that would become free is returned. Metadata may lose a reference (a table that a snapshot
 * shares), but not the last one. */
static int unref_co_part(Qcow2 *q, uint64_t ci, uint64_t end, bool only_count, uint64_t *ret_n)
{
    uint64_t mask = (UINT64_C(1) << q->rb_bits) - 1, first = ci;
    unsigned order = q->header.refcount_order;
    CacheTable *block;
    uint8_t *data;
    int ret = q2_refcount_co_find(q, ci, &block);

    if (ret < 0)
        return ret;
    data = !block ? NULL : only_count ? block->data : table_cache_modify(&q->rb, block);
    if (block && !data)
        return -ENOMEM;
    for (; ci < end; ci++) {
        uint64_t count = block ? q2_refcount_get(data, order, ci & mask) : 0;
        bool meta = count < 2 && q2_meta_hit(q, ci << q->cluster_bits, q->cluster_size);
        if (only_count) {
            if (count != 1 || meta)
                break;
            continue;
        }
        if (meta)
            return q2_co_corrupt(
                q, (int64_t)(ci << q->cluster_bits), (int64_t)q->cluster_size,
                "Preventing a cluster from being freed that holds metadata (offset 0x%" G_GINT64_MODIFIER "x)",
                ci << q->cluster_bits);
        if (count == 0)
            return q2_co_corrupt(q, (int64_t)(ci << q->cluster_bits), (int64_t)q->cluster_size,
                                 "Refcount underflow: cluster at offset 0x%" G_GINT64_MODIFIER
                                 "x is in use but has refcount 0",
                                 ci << q->cluster_bits);
        q2_refcount_set(data, order, ci & mask, count - 1);
        if (count == 1)
            freed(q, ci);
    }
    *ret_n = ci - first;
    return 0;
}

int q2_co_unref(Qcow2 *q, uint64_t offset, uint64_t bytes, unsigned kind)
{
    uint64_t mask = (UINT64_C(1) << q->rb_bits) - 1;
    uint64_t ci = offset >> q->cluster_bits, end = (offset + bytes + q->cluster_size - 1) >> q->cluster_bits;
    int ret = 0;

    q2_co_event(q, BLKDEBUG_EVENT_CLUSTER_FREE);
    while (ci < end) {
        uint64_t stop = u64_min(end, (ci | mask) + 1), n;
        if (q->pass_discard[kind]) {
            /* Before the count drops: nobody can take the clusters while they are being discarded. */
            ret = unref_co_part(q, ci, stop, true, &n);
            if (ret < 0)
                return ret;
            if (n) {
                child_co_pdiscard(q->node->file, ci << q->cluster_bits, n << q->cluster_bits);
                stop = ci + n;
            } else {
                stop = ci + 1;
            }
        }
        ret = unref_co_part(q, ci, stop, false, &n);
        if (ret < 0)
            return ret;
        ci = stop;
    }
    return 0;
}
