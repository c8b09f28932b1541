/*
 * Tables: from guest offsets to the image, and back into the image in order.
 *
 * Guarantees: an entry goes from "nothing" or "zeroes" to a cluster, or from "nothing" to "zeroes", and an L1 entry
 * from nothing to a table; never back. So what a lookup found stays true, and only who fills new clusters has to keep
 * others off their entries (claims).
 *
 * L1 and L2 tables are cached alike, in slices of 4096 bytes. The way of a request to allocated clusters: two hash
 * lookups, a scan over adjoining entries; no lock, no yield, no allocation.
 */
#include "block/drivers/qed/qed.h"

#define SLICE_BYTES   4096
#define SLICE_ENTRIES (SLICE_BYTES / 8)
#define CACHE_MAX     4096 /* slices: 16 MiB, which is 128 GiB of disk in clusters of 64 KiB */
#define CACHE_MIN     64

/* ---- what is in an image may be anything --------------------------------------------------------------------------
 */

bool qed_place_ok(const Qed *q, uint64_t offset, uint64_t bytes)
{
    uint64_t file_end = align_up(q->node->file->node->size, q->header.cluster_size);

    return is_aligned(offset, q->header.cluster_size) && offset >= q->header.header_bytes && offset <= file_end &&
           bytes <= file_end - offset &&
           (offset + bytes <= q->header.l1_offset || offset >= q->header.l1_offset + q->table_bytes);
}

/* Says once that the image is damaged. Returns -EIO. */
static int bad_entry(Qed *q, const char *table, uint64_t index, uint64_t entry)
{
    if (!q->reported)
        g_printerr("storage-daemon: qed image of node '%s' is damaged: %s entry %" G_GUINT64_FORMAT
                   " is 0x%" G_GINT64_MODIFIER "x; what lies there fails from now on, without further messages\n",
                   q->node->name, table, index, entry);
    q->reported = true;
    return -EIO;
}

/* ---- the cache --------------------------------------------------------------------------------------------------- */

static bool is_l1(const Qed *q, uint64_t offset)
{
    return offset - q->header.l1_offset < q->table_bytes;
}

static int tables_co_before_read(TableCache *cache, uint64_t offset)
{
    if (!is_l1(cache->node->state, offset))
        child_co_debug_event(cache->node->file, BLKDEBUG_EVENT_L2_LOAD);
    return 0;
}

static int tables_co_before_write(TableCache *cache, uint64_t offset, uint64_t bytes)
{
    bool l1 = is_l1(cache->node->state, offset);

    child_co_debug_event(cache->node->file, l1 ? BLKDEBUG_EVENT_L1_UPDATE : BLKDEBUG_EVENT_L2_UPDATE);
    return 0;
}

static int tables_co_make_room(TableCache *cache)
{
    return qed_co_commit(cache->node->state);
}

static const TableCacheOps tables_ops = {
    .co_before_read = tables_co_before_read,
    .co_before_write = tables_co_before_write,
    .co_make_room = tables_co_make_room,
};

bool qed_tables_init(Qed *q, uint64_t slices, GError **error)
{
    /* What the disk needs, and as much again for the L1 table at most. */
    uint64_t need = 2 * div_round_up(q->header.image_size >> q->cluster_bits, SLICE_ENTRIES);

    if (!slices)
        slices = CLAMP(need, CACHE_MIN, CACHE_MAX);
    table_cache_free(&q->tables);
    return table_cache_init(&q->tables, &tables_ops, q->node, SLICE_BYTES, slices, error);
}

/* ---- lookup ------------------------------------------------------------------------------------------------------ */

/* The slice with entry @index of the table at @table, and the entry's place in it. */
static int slice_co_get(Qed *q, uint64_t table, uint64_t index, CacheTable **ret, unsigned *ret_index)
{
    *ret_index = (unsigned)(index % SLICE_ENTRIES);
    return table_cache_co_get(&q->tables, table + (index - *ret_index) * 8, ret);
}

/* Where the L2 table for guest cluster @gc is; *@ret 0: there is none. */
static int l2_co_find(Qed *q, uint64_t gc, uint64_t *ret)
{
    uint64_t index = gc >> q->table_bits;
    CacheTable *slice;
    unsigned i;
    int r = slice_co_get(q, q->header.l1_offset, index, &slice, &i);

    if (r < 0)
        return r;
    *ret = load_le64(slice->data + i * 8);
    if (G_UNLIKELY(*ret && !qed_place_ok(q, *ret, q->table_bytes)))
        return bad_entry(q, "L1", index, *ret);
    return 0;
}

static uint64_t l2_index(const Qed *q, uint64_t gc)
{
    return gc & ((UINT64_C(1) << q->table_bits) - 1);
}

static QedKind kind_of(uint64_t entry)
{
    return entry == QED_ENTRY_NONE ? QED_UNALLOCATED : entry == QED_ENTRY_ZERO ? QED_ZERO : QED_DATA;
}

/* How many of the @max entries at @data continue the first: same kind, and adjoining in the image. */
static unsigned run_length(const Qed *q, const uint8_t *data, unsigned max, QedKind kind)
{
    uint64_t first = load_le64(data), step = kind == QED_DATA ? q->header.cluster_size : 0;
    unsigned n = 1;

    while (n < max && load_le64(data + (size_t)n * 8) == first + n * step)
        n++;
    return n;
}

int qed_co_map(Qed *q, uint64_t offset, uint64_t bytes, Extent *ret)
{
    uint64_t gc = offset >> q->cluster_bits, in = qed_in_cluster(q, offset), table, entry;
    CacheTable *slice;
    unsigned i, max, n;
    int r = l2_co_find(q, gc, &table);

    if (G_UNLIKELY(r < 0))
        return r;
    if (!table) {
        /* Nothing as far as this L2 table would reach. */
        uint64_t reach = ((UINT64_C(1) << q->table_bits) - l2_index(q, gc)) << q->cluster_bits;
        *ret = (Extent){.kind = QED_UNALLOCATED, .bytes = u64_min(bytes, reach - in)};
        return 0;
    }
    r = slice_co_get(q, table, l2_index(q, gc), &slice, &i);
    if (G_UNLIKELY(r < 0))
        return r;
    entry = load_le64(slice->data + i * 8);
    *ret = (Extent){.kind = kind_of(entry), .entry = entry};
    max = (unsigned)u64_min(SLICE_ENTRIES - i, (in + bytes + q->header.cluster_size - 1) >> q->cluster_bits);
    n = run_length(q, slice->data + i * 8, max, (QedKind)ret->kind);
    if (ret->kind == QED_DATA) {
        if (G_UNLIKELY(!qed_place_ok(q, entry, (uint64_t)n << q->cluster_bits)))
            n = 1; /* the good ones of them one by one */
        if (G_UNLIKELY(!qed_place_ok(q, entry, q->header.cluster_size)))
            return bad_entry(q, "L2", l2_index(q, gc), entry);
        ret->host = entry + in;
        ret->in_place = true;
    }
    ret->bytes = u64_min(bytes, ((uint64_t)n << q->cluster_bits) - in);
    return 0;
}

/* ---- change ------------------------------------------------------------------------------------------------------ */

/* Makes an L2 table and points L1 entry @index to it. l1_lock held. */
static int l2_co_allocate(Qed *q, uint64_t index)
{
    CacheTable *slice;
    uint8_t *data = NULL;
    QedRun run;
    unsigned i;
    int ret = qed_co_before_write(q, true);

    if (ret == 0)
        ret = qed_co_alloc(q, q->header.table_size, true, &run);
    if (ret < 0)
        return ret;
    if (!run.fresh)
        ret = child_co_pwrite_zeroes(q->node->file, run.offset, q->table_bytes, 0);
    if (ret == 0)
        ret = slice_co_get(q, q->header.l1_offset, index, &slice, &i);
    if (ret == 0) {
        data = table_cache_modify(&q->tables, slice);
        ret = data ? 0 : -ENOMEM;
    }
    if (ret == 0)
        store_le64(data + i * 8, run.offset);
    else
        qed_unalloc(q, &run);
    return ret;
}

int qed_co_l2_for_write(Qed *q, uint64_t gc, CacheTable **ret, unsigned *ret_index)
{
    uint64_t table;
    int r = l2_co_find(q, gc, &table);

    if (r == 0 && !table) {
        comutex_co_lock(&q->l1_lock);
        r = l2_co_find(q, gc, &table);
        if (r == 0 && !table)
            r = l2_co_allocate(q, gc >> q->table_bits);
        comutex_unlock(&q->l1_lock);
        if (r == 0)
            r = l2_co_find(q, gc, &table);
    }
    return r < 0 ? r : slice_co_get(q, table, l2_index(q, gc), ret, ret_index);
}

/* ---- into the image ---------------------------------------------------------------------------------------------- */

static int commit_co_locked(Qed *q)
{
    int ret;

    if (!table_cache_is_dirty(&q->tables))
        return 0;
    table_cache_freeze(&q->tables);
    /* Guest data, and the file's size: what the entries are going to show. */
    ret = child_co_flush(q->node->file);
    if (ret == 0)
        ret = table_cache_co_write_frozen(&q->tables);
    else
        table_cache_thaw(&q->tables);
    return ret;
}

int qed_co_commit(Qed *q)
{
    int ret;

    comutex_co_lock(&q->commit_lock);
    ret = commit_co_locked(q);
    comutex_unlock(&q->commit_lock);
    return ret;
}

int qed_co_settle(Qed *q)
{
    int ret = qed_co_commit(q);

    if (ret == 0)
        ret = child_co_flush(q->node->file);
    if (ret == 0)
        ret = qed_co_trim_file(q);
    if (ret == 0 && (q->header.features & QED_F_NEED_CHECK))
        ret = qed_co_set_features(q, q->header.features & ~QED_F_NEED_CHECK);
    return ret;
}
