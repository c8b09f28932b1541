/*
 * Reference counts: the numbers in a block, the blocks, the table of blocks.
 *
 * Guarantees: a new block describes itself (it is the first cluster of the range that it covers), so making one needs
 * no other block. It becomes known to the image through the refcount table in the next commit, after its content. A
 * refcount table that is too small is replaced by a larger one behind everything that the old one could describe:
 * blocks and table are written, barrier, header, barrier, then the old table is freed.
 */
#include "block/drivers/qcow2/event.h"

uint64_t q2_refcount_get(const uint8_t *block, unsigned order, uint64_t i)
{
    switch (order) {
    case 3:
        return block[i];
    case 4:
        return load_be16(block + i * 2);
    case 5:
        return load_be32(block + i * 4);
    case 6:
        return load_be64(block + i * 8);
    default: { /* 1, 2 or 4 bits, from the lowest bit of a byte on */
        unsigned bits = 1u << order, per_byte = 8u >> order;
        return block[i / per_byte] >> (i % per_byte * bits) & ((1u << bits) - 1);
    }
    }
}

void q2_refcount_set(uint8_t *block, unsigned order, uint64_t i, uint64_t value)
{
    switch (order) {
    case 3:
        block[i] = (uint8_t)value;
        break;
    case 4:
        store_be16(block + i * 2, (uint16_t)value);
        break;
    case 5:
        store_be32(block + i * 4, (uint32_t)value);
        break;
    case 6:
        store_be64(block + i * 8, value);
        break;
    default: {
        unsigned bits = 1u << order, per_byte = 8u >> order, shift = (unsigned)(i % per_byte) * bits;
        unsigned mask = ((1u << bits) - 1) << shift;
        block[i / per_byte] = (uint8_t)((block[i / per_byte] & ~mask) | (value << shift & mask));
    }
    }
}

bool q2_refcount_co_init(Qcow2 *q, GError **error)
{
    uint64_t bytes = (uint64_t)q->header.rt_clusters << q->cluster_bits;
    g_autofree uint8_t *raw = g_try_malloc(bytes);
    int ret;

    q->rt_size = (uint32_t)(bytes / 8);
    q->rt = g_try_new0(uint64_t, q->rt_size);
    q->rt_dirty = g_try_new0(uint64_t, q->rt_size / 4096 + 1);
    q->rb_full = g_try_malloc0(q->rt_size);
    if (!raw || !q->rt || !q->rt_dirty || !q->rb_full)
        return error_set(error, "Could not allocate memory for the refcount table");
    q2_co_event(q, BLKDEBUG_EVENT_REFTABLE_LOAD);
    ret = child_co_pread(q->node->file, q->header.rt_offset, bytes, raw, 0);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read the refcount table");
    for (uint32_t i = 0; i < q->rt_size; i++)
        q->rt[i] = load_be64(raw + (size_t)i * 8) & ~UINT64_C(511);
    return true;
}

void q2_refcount_free(Qcow2 *q)
{
    g_clear_pointer(&q->rt, g_free);
    g_clear_pointer(&q->rt_dirty, g_free);
    g_clear_pointer(&q->rb_full, g_free);
}

static void rt_set(Qcow2 *q, uint64_t index, uint64_t offset)
{
    uint64_t *word = &q->rt_dirty[index / 4096], bit = UINT64_C(1) << (index / 64 % 64);

    q->rt[index] = offset;
    q->rt_n_dirty += !(*word & bit);
    *word |= bit;
}

/*
 * Finishes a new block: the clusters [@first, @end) of its range are in use. It is written at once, for if there is no
 * space for it, the request that wants it has to fail and not every commit from then on.
 */
static int new_block_co_store(Qcow2 *q, CacheTable *table, uint64_t first, uint64_t end)
{
    uint64_t offset = table->offset;
    void *copy = aio_buf_get(q->node->loop, q->cluster_size);
    int ret = -ENOMEM;

    for (uint64_t i = first; i < end; i++)
        q2_refcount_set(table->data, q->header.refcount_order, i, 1);
    if (copy && q2_meta_reserve(q, 1)) {
        q2_meta_add(q, Q2_META_REFBLOCK, offset, q->cluster_size);
        memcpy(copy, table->data, q->cluster_size);
        ret = child_co_pwrite(q->node->file, offset, q->cluster_size, copy, 0);
        if (ret < 0)
            q2_meta_remove(q, offset, q->cluster_size);
    }
    if (ret < 0)
        table_cache_forget(&q->rb, offset, q->cluster_size);
    aio_buf_put(q->node->loop, copy, q->cluster_size);
    return ret;
}

/* A block for the range @index, in the first cluster of that range. */
static int refcount_co_new_block(Qcow2 *q, uint64_t index)
{
    uint64_t offset = index << (q->rb_bits + q->cluster_bits);
    CacheTable *table;
    int ret;

    if (offset > Q2_MAX_HOST - q->cluster_size)
        return -EFBIG;
    if (!q2_file_holds(q, offset + q->cluster_size))
        return -ENOSPC;
    if (offset == 0 || q2_meta_hit(q, offset, q->cluster_size))
        return q2_co_corrupt(
            q, (int64_t)offset, (int64_t)q->cluster_size,
            "There is no refcount block for clusters in use (refcount table index: %" G_GUINT64_FORMAT ")", index);
    q2_co_event(q, BLKDEBUG_EVENT_REFBLOCK_ALLOC);
    q2_co_event(q, BLKDEBUG_EVENT_REFBLOCK_ALLOC_WRITE);
    ret = table_cache_co_new(&q->rb, offset, &table);
    if (ret < 0)
        return ret;
    ret = new_block_co_store(q, table, 0, 1);
    if (ret < 0)
        return ret;
    q->fresh_above = u64_max(q->fresh_above, offset + q->cluster_size);
    rt_set(q, index, offset);
    return 0;
}

/* Memory of a table that is being replaced. */
typedef struct NewTable {
    uint64_t *rt, *rt_dirty;
    uint8_t *rb_full;
    uint32_t size;            /* entries */
    uint64_t start, clusters; /* where blocks and table lie: host offset, how many */
    uint64_t blocks;          /* how many of them are refcount blocks */
} NewTable;

static void new_table_free(NewTable *t)
{
    g_free(t->rt);
    g_free(t->rt_dirty);
    g_free(t->rb_full);
}

/* Sizes: room for @want entries and half as many again, and blocks that cover themselves and the table. */
static int new_table_plan(const Qcow2 *q, uint64_t want, NewTable *t)
{
    uint64_t per_cluster = q->cluster_size / 8, per_block = UINT64_C(1) << q->rb_bits, max = Q2_MAX_RT_BYTES / 8;
    uint64_t first = q->rt_size, table_clusters;

    t->start = first << (q->rb_bits + q->cluster_bits);
    if (t->start > Q2_MAX_HOST - (UINT64_C(1) << 30))
        return -EFBIG;
    t->blocks = 1;
    for (;;) {
        uint64_t entries = u64_max(want, first + t->blocks);
        entries = u64_max(entries, u64_min(max, entries + entries / 2));
        if (entries > max)
            return -EFBIG;
        table_clusters = div_round_up(entries, per_cluster);
        t->clusters = t->blocks + table_clusters;
        if (t->clusters <= t->blocks * per_block)
            break;
        t->blocks = div_round_up(t->clusters, per_block);
    }
    t->size = (uint32_t)(table_clusters * per_cluster);
    t->rt = g_try_new0(uint64_t, t->size);
    t->rt_dirty = g_try_new0(uint64_t, t->size / 4096 + 1);
    t->rb_full = g_try_malloc0(t->size);
    return t->rt && t->rt_dirty && t->rb_full ? 0 : -ENOMEM;
}

/* Makes the new blocks in the cache; @t->rt gets their offsets. */
static int new_table_co_blocks(Qcow2 *q, NewTable *t)
{
    for (uint64_t b = 0; b < t->blocks; b++) {
        uint64_t first = b << q->rb_bits, offset = t->start + (b << q->cluster_bits);
        CacheTable *table;
        int ret = table_cache_co_new(&q->rb, offset, &table);
        if (ret < 0)
            return ret;
        for (uint64_t i = first; i < t->clusters && i < first + (UINT64_C(1) << q->rb_bits); i++)
            q2_refcount_set(table->data, q->header.refcount_order, i - first, 1);
        t->rt[q->rt_size + b] = offset;
    }
    return 0;
}

/* Writes blocks, table and header, each durable before the next. */
static int new_table_co_write(Qcow2 *q, NewTable *t)
{
    uint64_t offset = t->start + (t->blocks << q->cluster_bits), bytes = (uint64_t)t->size * 8;
    g_autofree uint8_t *raw = g_try_malloc(bytes);
    uint8_t old[12], field[12];
    int ret;

    if (!raw)
        return -ENOMEM;
    while (q->rb.n_commit)
        coqueue_co_wait(&q->rb.loaders, NULL);
    /* All blocks, since the table to be written names those that no commit has written yet as well. */
    memcpy(t->rt, q->rt, (size_t)q->rt_size * 8);
    for (uint32_t i = 0; i < t->size; i++)
        store_be64(raw + (size_t)i * 8, t->rt[i]);
    table_cache_freeze(&q->rb);
    q2_co_event(q, BLKDEBUG_EVENT_REFBLOCK_ALLOC_WRITE_BLOCKS);
    ret = table_cache_co_write_frozen(&q->rb);
    q2_co_event(q, BLKDEBUG_EVENT_REFBLOCK_ALLOC_WRITE_TABLE);
    if (ret == 0)
        ret = child_co_pwrite(q->node->file, offset, bytes, raw, 0);
    if (ret == 0)
        ret = q2_co_barrier(q, "refcount-table");
    if (ret < 0)
        return ret;
    q2_co_event(q, BLKDEBUG_EVENT_REFBLOCK_ALLOC_SWITCH_TABLE);
    store_be64(old, q->header.rt_offset);
    store_be32(old + 8, q->header.rt_clusters);
    store_be64(field, offset);
    store_be32(field + 8, (uint32_t)(bytes >> q->cluster_bits));
    return q2_co_header_switch(q, Q2_H_RT_OFFSET, old, field, sizeof(field), "refcount-table-header");
}

int q2_refcount_co_grow(Qcow2 *q, uint64_t want)
{
    uint64_t old_offset = q->header.rt_offset, old_bytes = (uint64_t)q->header.rt_clusters << q->cluster_bits;
    NewTable t = {0};
    int ret;

    if (q->in_shadow) /* which has seen to it that there is room */
        return -EFBIG;
    q2_co_event(q, BLKDEBUG_EVENT_REFTABLE_GROW);
    ret = new_table_plan(q, want, &t);

    if (ret == 0 && !q2_file_holds(q, t.start + (t.clusters << q->cluster_bits)))
        ret = -ENOSPC;
    if (ret == 0 && !q2_meta_reserve(q, t.clusters))
        ret = -ENOMEM;
    if (ret == 0)
        ret = q2_co_meta_check(q, 0, t.start, t.clusters << q->cluster_bits);
    if (ret == 0) {
        q2_meta_add(q, Q2_META_REFBLOCK, t.start, t.blocks << q->cluster_bits);
        q2_meta_add(q, Q2_META_REFTABLE, t.start + (t.blocks << q->cluster_bits),
                    (t.clusters - t.blocks) << q->cluster_bits);
        q->fresh_above = u64_max(q->fresh_above, t.start + (t.clusters << q->cluster_bits));
        ret = new_table_co_blocks(q, &t);
        if (ret == 0)
            ret = new_table_co_write(q, &t);
        if (ret < 0 && !q->unsure) {
            table_cache_forget(&q->rb, t.start, t.blocks << q->cluster_bits);
            q2_meta_remove(q, t.start, t.clusters << q->cluster_bits);
        }
    }
    if (ret < 0) {
        new_table_free(&t);
        return ret;
    }
    memcpy(t.rb_full, q->rb_full, q->rt_size);
    q2_refcount_free(q);
    q->rt = t.rt;
    q->rt_dirty = t.rt_dirty;
    q->rb_full = t.rb_full;
    q->rt_size = t.size;
    q->rt_n_dirty = 0;
    q->header.rt_offset = t.start + (t.blocks << q->cluster_bits);
    q->header.rt_clusters = (uint32_t)((uint64_t)t.size * 8 >> q->cluster_bits);
    q2_meta_remove(q, old_offset, old_bytes);
    return q2_co_unref(q, old_offset, old_bytes, Q2_FREE_OTHER);
}

int q2_refcount_co_region(Qcow2 *q, uint64_t want, uint64_t *ret_ci)
{
    uint64_t per_block = UINT64_C(1) << q->rb_bits, index = q->rt_size, blocks = 1, start;
    int ret = 0;

    while (index > 0 && !q->rt[index - 1])
        index--;
    while (blocks * per_block < blocks + want)
        blocks++;
    if (index + blocks > q->rt_size) {
        ret = q2_refcount_co_grow(q, index + blocks + 1); /* which takes the place behind the old one's reach */
        for (index = q->rt_size; ret == 0 && index > 0 && !q->rt[index - 1];)
            index--;
        if (ret == 0 && index + blocks > q->rt_size)
            ret = q2_refcount_co_grow(q, index + 2 * blocks);
        for (index = q->rt_size; ret == 0 && index > 0 && !q->rt[index - 1];)
            index--;
        if (ret == 0 && index + blocks > q->rt_size)
            ret = -EFBIG;
    }
    start = index << q->rb_bits;
    if (ret == 0 && !q2_file_holds(q, (start + blocks) << q->cluster_bits))
        ret = -ENOSPC;
    for (uint64_t b = 0; b < blocks && ret == 0; b++) {
        uint64_t offset = (start + b) << q->cluster_bits;
        CacheTable *table;
        if (offset > Q2_MAX_HOST - q->cluster_size || q2_meta_hit(q, offset, q->cluster_size))
            return -EFBIG;
        ret = table_cache_co_new(&q->rb, offset, &table);
        /* All blocks lie together at the start of the first one's range, and the following ones' if they are many. */
        if (ret == 0)
            ret = new_block_co_store(q, table, 0,
                                     b * per_block < blocks ? u64_min(blocks - b * per_block, per_block) : 0);
        if (ret < 0)
            break;
        rt_set(q, index + b, offset);
    }
    q->fresh_above = u64_max(q->fresh_above, (start + blocks) << q->cluster_bits);
    *ret_ci = start + blocks;
    return ret;
}

int q2_refcount_co_find(Qcow2 *q, uint64_t ci, CacheTable **ret)
{
    uint64_t index = ci >> q->rb_bits;

    *ret = NULL;
    if (index >= q->rt_size || !q->rt[index])
        return 0;
    if (!is_aligned(q->rt[index], q->cluster_size) || q->rt[index] >= Q2_MAX_HOST)
        return q2_co_corrupt(q, -1, -1,
                             "Refblock offset 0x%" G_GINT64_MODIFIER
                             "x unaligned (reftable index: 0x%" G_GINT64_MODIFIER "x)",
                             q->rt[index], index);
    return table_cache_co_get(&q->rb, q->rt[index], ret);
}

int q2_refcount_co_block(Qcow2 *q, uint64_t ci, CacheTable **ret)
{
    uint64_t index = ci >> q->rb_bits;
    int r = 0;

    if (index >= q->rt_size)
        r = q2_refcount_co_grow(q, index + 1);
    if (r == 0 && !q->rt[index])
        r = refcount_co_new_block(q, index);
    return r == 0 ? q2_refcount_co_find(q, ci, ret) : r;
}
