/*
 * Changing many reference counts, flags and tables at one moment.
 *
 * Taking, deleting and applying a snapshot change the reference counts of all the clusters that it shares, and with
 * them the flags (COPIED) in the active tables that say whether a count is one. No order of writes would keep the two
 * in step. So nothing is changed in place: a new picture of the image is drawn in free clusters, and one write of 48
 * bytes of the header, from the disk's size to the place of the snapshot table, all in one sector, shows it:
 *
 *   1. all that is dirty is committed and all frees are applied: image and memory are the same;
 *   2. clusters for a copy of every refcount block and of the refcount table are taken, with counts that are made
 *      durable: after a crash from here to 5 they, and at worst nothing else, are leaks;
 *   3. the refcount blocks are copied. From now on memory knows the copies only: every count that changes, and every
 *      cluster that is taken, changes them. Clusters that the old picture shows keep a count of one at least, so none
 * of them is taken: what loses its last reference is put on a list;
 *   4. new tables are written into new clusters; counts, refcount table and tables are made durable;
 *   5. the header's write, and a barrier: the disk shows the old picture before it and the new one behind it;
 *   6. what only the old picture needed is freed: leaks after a crash.
 *
 * When something fails before 5, memory goes back to the old refcount blocks. The cost is that of the metadata: 1/32768
 * of the clusters in use for the counts, and the L2 tables with flags that change, which would be written in any case.
 */
#include "block/drivers/qcow2/snapshot.h"

/* ---- begin ------------------------------------------------------------------------------------------------------ */

static uint64_t count_blocks(const Qcow2 *q)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < q->rt_size; i++)
        n += q->rt[i] != 0;
    return n;
}

/* Room in the refcount table for blocks of as many clusters as will be taken: it cannot grow in the shadow. */
static int shadow_co_reserve(Qcow2 *q, uint64_t clusters)
{
    uint64_t per_block = UINT64_C(1) << q->rb_bits, top, want;
    int ret = 0;

    comutex_co_lock(&q->alloc_lock);
    for (top = q->rt_size; top > 0 && !q->rt[top - 1];)
        top--;
    clusters += 2 * (count_blocks(q) + q->header.rt_clusters);
    want = top + 2 * (clusters / (per_block - 1) + 4);
    if (want > q->rt_size)
        ret = q2_refcount_co_grow(q, want);
    comutex_unlock(&q->alloc_lock);
    return ret;
}

/* Step 2. Taking the clusters may make new refcount blocks, which have to be copied, too. */
static int shadow_co_take_region(Q2Shadow *s)
{
    Qcow2 *q = s->q;
    uint64_t per_block = UINT64_C(1) << q->rb_bits, need, want;

    for (;;) {
        need = count_blocks(q) + q->header.rt_clusters;
        want = need + need / (per_block - 1) + 3;
        int ret = q2_co_alloc(q, want, true, &s->region);
        if (ret < 0)
            return ret;
        s->blocks = count_blocks(q);
        need = s->blocks + q->header.rt_clusters;
        if (need <= want)
            break;
        ret = q2_co_unref(q, s->region.offset, want << q->cluster_bits, Q2_FREE_OTHER);
        s->region.n = 0;
        if (ret < 0)
            return ret;
    }
    s->region.n = need;
    return q2_co_unref(q, s->region.offset + (need << q->cluster_bits), (want - need) << q->cluster_bits,
                       Q2_FREE_OTHER);
}

/* Step 3, the copies. */
static int shadow_co_copy_blocks(Q2Shadow *s)
{
    Qcow2 *q = s->q;
    uint64_t to = s->region.offset;
    void *buf = aio_buf_get(q->node->loop, q->cluster_size);
    int ret = buf ? q2_co_meta_check(q, 0, to, s->region.n << q->cluster_bits) : -ENOMEM;

    for (uint32_t i = 0; i < q->rt_size && ret == 0; i++) {
        if (!q->rt[i])
            continue;
        if (!is_aligned(q->rt[i], q->cluster_size) || q->rt[i] >= Q2_MAX_HOST) {
            ret = q2_co_corrupt(q, -1, -1, "Refblock offset 0x%" G_GINT64_MODIFIER "x unaligned (reftable index: 0x%x)",
                                q->rt[i], i);
            break;
        }
        ret = child_co_pread(q->node->file, q->rt[i], q->cluster_size, buf, 0);
        if (ret == 0)
            ret = child_co_pwrite(q->node->file, to, q->cluster_size, buf, 0);
        to += q->cluster_size;
    }
    aio_buf_put(q->node->loop, buf, q->cluster_size);
    return ret;
}

/* Step 3: from now on the copies are the refcount blocks. */
static int shadow_enter(Q2Shadow *s)
{
    Qcow2 *q = s->q;
    uint64_t to = s->region.offset;

    if (!q2_meta_reserve(q, s->blocks))
        return -ENOMEM;
    s->old_rt = g_try_malloc_n(q->rt_size, sizeof(uint64_t));
    if (!s->old_rt)
        return -ENOMEM;
    memcpy(s->old_rt, q->rt, (size_t)q->rt_size * 8);
    s->old_hint = q->free_hint;
    table_cache_forget(&q->rb, to, s->blocks << q->cluster_bits);
    q2_meta_add(q, Q2_META_REFBLOCK, to, s->blocks << q->cluster_bits);
    for (uint32_t i = 0; i < q->rt_size; i++) {
        if (!q->rt[i])
            continue;
        q->rt[i] = to;
        to += q->cluster_size;
    }
    q->packed_next = 0; /* what is behind the last compressed data stays with the old picture */
    q->in_shadow = true;
    return 0;
}

int q2_shadow_co_begin(Q2Shadow *s, Qcow2 *q, uint64_t clusters)
{
    int ret;

    *s = (Q2Shadow){.q = q, .locked = true, .drops = g_array_new(FALSE, FALSE, sizeof(Q2Free))};
    comutex_co_lock(&q->l1_lock);
    comutex_co_lock(&q->commit_lock);
    ret = q->corrupt ? -EIO : 0;
    if (ret == 0 && q2_free_pending(q)) /* that space may be needed */
        ret = q2_co_settle_locked(q);
    if (ret == 0)
        ret = shadow_co_reserve(q, clusters);
    if (ret == 0)
        ret = shadow_co_take_region(s);
    if (ret == 0)
        ret = q2_co_settle_locked(q);
    if (ret == 0)
        ret = shadow_co_copy_blocks(s);
    return ret == 0 ? shadow_enter(s) : ret;
}

/* ---- reference counts ------------------------------------------------------------------------------------------- */

static int count_co_get(Qcow2 *q, uint64_t ci, CacheTable **ret_block, uint64_t *ret_count)
{
    int ret = q2_refcount_co_find(q, ci, ret_block);

    if (ret < 0)
        return ret;
    *ret_count = *ret_block ? q2_refcount_get((*ret_block)->data, q->header.refcount_order,
                                              ci & ((UINT64_C(1) << q->rb_bits) - 1))
                            : 0;
    if (*ret_count == 0)
        return q2_co_corrupt(q, (int64_t)(ci << q->cluster_bits), (int64_t)q->cluster_size,
                             "Cluster at offset 0x%" G_GINT64_MODIFIER "x is in use but has refcount 0",
                             ci << q->cluster_bits);
    return 0;
}

static int count_set(Qcow2 *q, uint64_t ci, CacheTable *block, uint64_t count)
{
    uint8_t *data = table_cache_modify(&q->rb, block);

    if (!data)
        return -ENOMEM;
    q2_refcount_set(data, q->header.refcount_order, ci & ((UINT64_C(1) << q->rb_bits) - 1), count);
    return 0;
}

static int shadow_co_ref(Q2Shadow *s, uint64_t offset, uint64_t bytes)
{
    Qcow2 *q = s->q;
    uint64_t ci = offset >> q->cluster_bits, end = (offset + bytes + q->cluster_size - 1) >> q->cluster_bits;
    uint64_t max = UINT64_MAX >> (64 - (1u << q->header.refcount_order)), count;
    int ret = 0;

    for (; ci < end && ret == 0; ci++) {
        CacheTable *block;
        ret = count_co_get(q, ci, &block, &count);
        if (ret == 0)
            ret = count == max ? -ERANGE : count_set(q, ci, block, count + 1);
    }
    return ret;
}

int q2_shadow_co_drop(Q2Shadow *s, uint64_t offset, uint64_t bytes, unsigned kind)
{
    Qcow2 *q = s->q;
    uint64_t ci = offset >> q->cluster_bits, end = (offset + bytes + q->cluster_size - 1) >> q->cluster_bits;
    uint64_t count;
    int ret = 0;

    for (; ci < end && ret == 0; ci++) {
        CacheTable *block;
        ret = count_co_get(q, ci, &block, &count);
        if (ret == 0 && count > 1) {
            ret = count_set(q, ci, block, count - 1);
        } else if (ret == 0) { /* the last: the old picture still shows it */
            Q2Free item = {.offset = ci << q->cluster_bits, .bytes = q->cluster_size, .kind = kind};
            Q2Free *last = s->drops->len ? &g_array_index(s->drops, Q2Free, s->drops->len - 1) : NULL;
            if (last && last->kind == kind && last->offset + last->bytes == item.offset)
                last->bytes += item.bytes;
            else
                g_array_append_val(s->drops, item);
        }
    }
    return ret;
}

/* Reads the L2 table that an L1 entry names, whatever cache may hold of it: it is the same. */
static int l2_co_read(Qcow2 *q, uint64_t entry, uint32_t index, void *buf)
{
    uint64_t offset = entry & Q2_OFFSET_MASK;

    if (!is_aligned(offset, q->cluster_size))
        return q2_co_corrupt(
            q, -1, -1, "L2 table offset 0x%" G_GINT64_MODIFIER "x unaligned (L1 index: 0x%" G_GINT64_MODIFIER "x)",
            offset, (uint64_t)index);
    return child_co_pread(q->node->file, offset, q->cluster_size, buf, 0);
}

/* Where the host clusters of an entry are; false: it has none. */
static bool entry_range(const Qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    if (entry & Q2_COMPRESSED) {
        q2_packed_range(q, entry, ret_offset, ret_bytes);
        return true;
    }
    *ret_offset = entry & Q2_OFFSET_MASK;
    *ret_bytes = q->cluster_size;
    return *ret_offset != 0;
}

/* One reference more, or with @drop one less, for all that the L1 table leads to. */
static int tables_co_change(Q2Shadow *s, const uint64_t *l1, uint32_t n, bool drop, unsigned kind)
{
    Qcow2 *q = s->q;
    uint64_t entries = UINT64_C(1) << q->l2_bits, offset, bytes;
    uint8_t *buf = aio_buf_get(q->node->loop, q->cluster_size);
    int ret = buf ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < n && ret == 0; i++) {
        if (!(l1[i] & Q2_OFFSET_MASK))
            continue;
        ret = l2_co_read(q, l1[i], i, buf);
        for (uint64_t k = 0; k < entries && ret == 0; k++)
            if (entry_range(q, q2_l2_entry(q, buf, k), &offset, &bytes))
                ret = drop ? q2_shadow_co_drop(s, offset, bytes, kind) : shadow_co_ref(s, offset, bytes);
        offset = l1[i] & Q2_OFFSET_MASK;
        if (ret == 0)
            ret =
                drop ? q2_shadow_co_drop(s, offset, q->cluster_size, kind) : shadow_co_ref(s, offset, q->cluster_size);
    }
    aio_buf_put(q->node->loop, buf, q->cluster_size);
    return ret;
}

int q2_shadow_co_ref_tables(Q2Shadow *s, const uint64_t *l1, uint32_t n)
{
    return tables_co_change(s, l1, n, false, 0);
}

int q2_shadow_co_drop_tables(Q2Shadow *s, const uint64_t *l1, uint32_t n, unsigned kind)
{
    return tables_co_change(s, l1, n, true, kind);
}

/* ---- flags ------------------------------------------------------------------------------------------------------ */

/* Sets the flags in @l2 right. *@ret_changed: some were not. */
static int l2_co_fix(Qcow2 *q, uint8_t *l2, bool *ret_changed)
{
    *ret_changed = false;
    for (uint64_t k = 0, entries = UINT64_C(1) << q->l2_bits; k < entries; k++) {
        uint64_t entry = q2_l2_entry(q, l2, k), offset = entry & Q2_OFFSET_MASK, count, want;
        CacheTable *block;
        int ret;
        if ((entry & Q2_COMPRESSED) || !offset)
            continue;
        ret = count_co_get(q, offset >> q->cluster_bits, &block, &count);
        if (ret < 0)
            return ret;
        want = count == 1 ? entry | Q2_COPIED : entry & ~Q2_COPIED;
        if (want == entry)
            continue;
        q2_l2_set(q, l2, k, want, q2_l2_bitmap(q, l2, k));
        *ret_changed = true;
    }
    return 0;
}

int q2_shadow_co_store(Q2Shadow *s, const void *data, uint64_t bytes, uint64_t *ret_offset)
{
    Qcow2 *q = s->q;
    uint64_t clusters = div_round_up(bytes, q->cluster_size);
    Q2Run run;
    int ret;

    *ret_offset = 0;
    if (!bytes)
        return 0;
    ret = q2_co_alloc(q, clusters, true, &run);
    if (ret == 0)
        ret = q2_co_meta_check(q, 0, run.offset, clusters << q->cluster_bits);
    if (ret == 0)
        ret = child_co_pwrite(q->node->file, run.offset, bytes, data, 0);
    *ret_offset = run.offset;
    return ret;
}

/* Puts a copy of the L2 table of @entry, with the content @buf, in its place. */
static int l2_co_replace(Q2Shadow *s, uint64_t *entry, const void *buf, unsigned sharers)
{
    Qcow2 *q = s->q;
    uint64_t old = *entry & Q2_OFFSET_MASK, offset;
    int ret = q2_shadow_co_store(s, buf, q->cluster_size, &offset);

    for (unsigned i = 1; i < sharers && ret == 0; i++)
        ret = shadow_co_ref(s, offset, q->cluster_size);
    for (unsigned i = 0; i < sharers && ret == 0; i++)
        ret = q2_shadow_co_drop(s, old, q->cluster_size, Q2_FREE_OTHER);
    *entry = offset;
    return ret;
}

int q2_shadow_co_fix_flags(Q2Shadow *s, uint64_t *l1, uint32_t n, unsigned sharers)
{
    Qcow2 *q = s->q;
    uint8_t *buf = aio_buf_get(q->node->loop, q->cluster_size);
    int ret = buf ? 0 : -ENOMEM;

    for (uint32_t i = 0; i < n && ret == 0; i++) {
        bool changed;
        if (!(l1[i] & Q2_OFFSET_MASK))
            continue;
        ret = l2_co_read(q, l1[i], i, buf);
        if (ret == 0)
            ret = l2_co_fix(q, buf, &changed);
        if (ret == 0 && changed)
            ret = l2_co_replace(s, &l1[i], buf, sharers);
    }
    for (uint32_t i = 0; i < n && ret == 0; i++) {
        uint64_t offset = l1[i] & Q2_OFFSET_MASK, count;
        CacheTable *block;
        if (!offset)
            continue;
        ret = count_co_get(q, offset >> q->cluster_bits, &block, &count);
        l1[i] = offset | (count == 1 ? Q2_COPIED : 0);
    }
    aio_buf_put(q->node->loop, buf, q->cluster_size);
    return ret;
}

int q2_shadow_co_store_l1(Q2Shadow *s, const uint64_t *l1, uint32_t n, uint64_t *ret_offset)
{
    g_autofree uint64_t *raw = g_try_malloc((size_t)n * 8 + 1);

    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++)
        store_be64(&raw[i], l1[i]);
    return q2_shadow_co_store(s, raw, (uint64_t)n * 8, ret_offset);
}

/* ---- the switch ------------------------------------------------------------------------------------------------- */

/* Step 4, the counts; all else has been written when it was made. */
static int shadow_co_write_counts(Q2Shadow *s)
{
    Qcow2 *q = s->q;
    g_autofree uint64_t *raw = g_try_malloc_n(q->rt_size, sizeof(uint64_t));
    uint64_t offset = s->region.offset + (s->blocks << q->cluster_bits);
    int ret;

    if (!raw)
        return -ENOMEM;
    while (q->rb.n_commit)
        coqueue_co_wait(&q->rb.loaders, NULL);
    table_cache_freeze(&q->rb);
    ret = table_cache_co_write_frozen(&q->rb);
    for (uint32_t i = 0; i < q->rt_size; i++)
        store_be64(&raw[i], q->rt[i]);
    if (ret == 0)
        ret = child_co_pwrite(q->node->file, offset, (uint64_t)q->rt_size * 8, raw, 0);
    return ret == 0 ? q2_co_barrier(q, "shadow-tables") : ret;
}

/* The part of the header that the switch changes. */
static void store_header(uint8_t *field, const Qcow2 *q, const Q2Picture *p, uint64_t rt_offset)
{
    store_be64(field, p->size);
    store_be32(field + 8, q->header.crypt_method);
    store_be32(field + 12, p->l1_size);
    store_be64(field + 16, p->l1_offset);
    store_be64(field + 24, rt_offset);
    store_be32(field + 32, q->header.rt_clusters);
    store_be32(field + 36, p->nb_snapshots);
    store_be64(field + 40, p->snapshots_offset);
}

/* Step 5. */
static int shadow_co_write_header(Q2Shadow *s, const Q2Picture *p)
{
    Qcow2 *q = s->q;
    const Q2Picture before = {.size = q->header.size,
                              .l1_size = q->header.l1_size,
                              .l1_offset = q->header.l1_offset,
                              .nb_snapshots = q->header.nb_snapshots,
                              .snapshots_offset = q->header.snapshots_offset};
    uint8_t old[48], now[48];
    int ret;

    store_header(old, q, &before, q->header.rt_offset);
    store_header(now, q, p, s->region.offset + (s->blocks << q->cluster_bits));
    ret = q2_co_header_switch(q, Q2_H_SIZE, old, now, sizeof(now), "shadow-header");
    if (q->unsure) /* what is the disk's alone in one picture may be a snapshot's in the other: not even data is written
                    */
        q->corrupt = true;
    return ret;
}

/* The new picture is the image's: memory follows. */
static void shadow_leave(Q2Shadow *s, Q2Picture *p, uint64_t *l1_dirty)
{
    Qcow2 *q = s->q;

    q->header.size = p->size;
    q->header.l1_size = q->l1_size = p->l1_size;
    q->header.l1_offset = p->l1_offset;
    q->header.rt_offset = s->region.offset + (s->blocks << q->cluster_bits);
    q->header.nb_snapshots = p->nb_snapshots;
    q->header.snapshots_offset = p->snapshots_offset;
    q->n_snapshots = p->nb_snapshots;
    q->snapshots_bytes = p->snapshots_bytes;
    g_free(q->snapshots);
    q->snapshots = g_steal_pointer(&p->snapshots);
    g_free(q->l1);
    g_free(q->l1_dirty);
    q->l1 = g_steal_pointer(&p->l1);
    q->l1_dirty = l1_dirty;
    q->l1_n_dirty = 0;
    memset(q->rt_dirty, 0, ((size_t)q->rt_size / 4096 + 1) * 8);
    q->rt_n_dirty = 0;
    q->in_shadow = false;
    table_cache_forget_all(&q->l2);
}

/* Step 6. What cannot be freed is a leak. */
static int shadow_co_free_old(Q2Shadow *s, uint64_t old_rt_offset)
{
    Qcow2 *q = s->q;
    int ret = q2_meta_co_fill(q, NULL) ? 0 : -ENOMEM;

    if (ret < 0) {
        q->corrupt = true; /* of the node: without knowing its metadata it can write no more */
        return ret;
    }
    for (uint32_t i = 0; i < q->rt_size && ret == 0; i++) {
        if (!s->old_rt[i])
            continue;
        table_cache_forget(&q->rb, s->old_rt[i], q->cluster_size);
        ret = q2_co_unref(q, s->old_rt[i], q->cluster_size, Q2_FREE_OTHER);
    }
    if (ret == 0)
        ret = q2_co_unref(q, old_rt_offset, (uint64_t)q->header.rt_clusters << q->cluster_bits, Q2_FREE_OTHER);
    for (guint i = 0; i < s->drops->len && ret == 0; i++) {
        const Q2Free *item = &g_array_index(s->drops, Q2Free, i);
        table_cache_forget(&q->rb, item->offset, item->bytes);
        ret = q2_co_unref(q, item->offset, item->bytes, item->kind);
    }
    return ret == 0 ? q2_co_settle_locked(q) : ret;
}

int q2_shadow_co_switch(Q2Shadow *s, Q2Picture *p)
{
    Qcow2 *q = s->q;
    uint64_t old_rt_offset = q->header.rt_offset, *l1_dirty = g_try_new0(uint64_t, p->l1_size / 4096 + 1);
    int ret = l1_dirty ? shadow_co_write_counts(s) : -ENOMEM;

    if (ret == 0)
        ret = shadow_co_write_header(s, p);
    if (ret < 0) {
        g_free(l1_dirty);
        return ret;
    }
    shadow_leave(s, p, l1_dirty);
    ret = shadow_co_free_old(s, old_rt_offset);
    g_clear_pointer(&s->old_rt, g_free);
    s->region.n = 0;
    return q->corrupt ? ret : 0;
}

/* Back to the old picture. */
static void shadow_undo(Q2Shadow *s)
{
    Qcow2 *q = s->q;

    for (uint32_t i = 0; i < q->rt_size; i++) {
        if (q->rt[i] == s->old_rt[i])
            continue;
        table_cache_forget(&q->rb, q->rt[i], q->cluster_size);
        q2_meta_remove(q, q->rt[i], q->cluster_size);
        q->rt[i] = s->old_rt[i];
        q->rb_full[i] = 0;
    }
    memset(q->rt_dirty, 0, ((size_t)q->rt_size / 4096 + 1) * 8);
    q->rt_n_dirty = 0;
    q->free_hint = s->old_hint;
    q->packed_next = 0;
    q->in_shadow = false;
    g_clear_pointer(&s->old_rt, g_free);
}

void q2_shadow_co_end(Q2Shadow *s)
{
    Qcow2 *q = s->q;

    if (!s->locked)
        return;
    if (s->old_rt)
        shadow_undo(s);
    if (s->region.n && !q->corrupt)
        q2_co_unref(q, s->region.offset, s->region.n << q->cluster_bits, Q2_FREE_OTHER);
    g_array_free(s->drops, TRUE);
    comutex_unlock(&q->commit_lock);
    comutex_unlock(&q->l1_lock);
    s->locked = false;
}
