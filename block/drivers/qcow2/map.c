/*
 * From guest offsets to the image: L1, L2, entries.
 *
 * Guarantees: a lookup's result is true at the moment when it returns; who uses host clusters of it after a yield has
 * entered a data section before. A new L2 table (empty, or a copy where a snapshot shares the old one) is written whole
 * before the L1 entry changes in memory, so that commit.c needs no order between L1 and L2.
 *
 * The way of a request to allocated clusters: one L1 load, one hash lookup, a scan over adjoining entries; no lock, no
 * yield, no allocation.
 */
#include "block/drivers/qcow2/event.h"

static bool l1_alloc(Qcow2 *q, GError **error)
{
    q->l1 = g_try_new0(uint64_t, (size_t)q->l1_size + 1);
    q->l1_dirty = g_try_new0(uint64_t, q->l1_size / 4096 + 1);
    if (!q->l1 || !q->l1_dirty)
        return error_set(error, "Could not allocate memory for the L1 table");
    return true;
}

bool q2_l1_co_load(Qcow2 *q, GError **error)
{
    size_t bytes = (size_t)q->header.l1_size * 8;
    g_autofree uint8_t *raw = g_try_malloc(bytes + 1);
    int ret;

    q->l1_size = q->header.l1_size;
    if (!raw)
        return error_set(error, "Could not allocate memory for the L1 table");
    if (!l1_alloc(q, error))
        return false;
    if (!bytes)
        return true;
    ret = child_co_pread(q->node->file, q->header.l1_offset, bytes, raw, 0);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read L1 table");
    for (uint32_t i = 0; i < q->l1_size; i++)
        q->l1[i] = load_be64(raw + (size_t)i * 8);
    return true;
}

void q2_l1_set(Qcow2 *q, uint64_t index, uint64_t entry)
{
    uint64_t *word = &q->l1_dirty[index / 4096], bit = UINT64_C(1) << (index / 64 % 64);

    q->l1[index] = entry;
    q->l1_n_dirty += !(*word & bit);
    *word |= bit;
}

/* Position of guest cluster @gc: in the L1 table, of its slice within the L2 table, within the slice. */
static inline uint64_t l1_index(const Qcow2 *q, uint64_t gc)
{
    return gc >> q->l2_bits;
}

static inline uint64_t slice_offset(const Qcow2 *q, uint64_t gc)
{
    return align_down(gc & ((UINT64_C(1) << q->l2_bits) - 1), UINT64_C(1) << q->slice_bits) * q->l2_entry_bytes;
}

static int l2_co_bad(Qcow2 *q, uint64_t index, uint64_t offset)
{
    return q2_co_corrupt(q, -1, -1,
                         "L2 table offset 0x%" G_GINT64_MODIFIER "x unaligned (L1 index: 0x%" G_GINT64_MODIFIER "x)",
                         offset, index);
}

int q2_co_entry_bad(Qcow2 *q, uint64_t gc, uint64_t entry)
{
    uint64_t table = q->l1[l1_index(q, gc)] & Q2_OFFSET_MASK;
    unsigned i = (unsigned)(gc & ((UINT64_C(1) << q->l2_bits) - 1));

    if (q2_has_data_file(q) && (entry & Q2_COMPRESSED))
        return q2_co_corrupt(q, -1, -1,
                             "Compressed cluster entry found in image with external data file (L2 offset: "
                             "0x%" G_GINT64_MODIFIER "x, L2 index: 0x%x)",
                             table, i);
    if (q2_has_data_file(q) && q2_data_entry_is_bad(q, gc, entry))
        return q2_co_corrupt(q, -1, -1,
                             "External data file host cluster offset 0x%" G_GINT64_MODIFIER
                             "x does not match guest cluster offset: 0x%" G_GINT64_MODIFIER "x, L2 index: 0x%x)",
                             entry & Q2_OFFSET_MASK, gc << q->cluster_bits, i);
    if (q->header.version < 3 && (entry & Q2_ZERO))
        return q2_co_corrupt(q, -1, -1,
                             "Zero cluster entry found in pre-v3 image (L2 offset: 0x%" G_GINT64_MODIFIER
                             "x, L2 index: 0x%x)",
                             table, i);
    if (is_aligned(entry & Q2_OFFSET_MASK, q->cluster_size)) /* then the bitmap is at fault */
        return q2_co_corrupt(
            q, -1, -1, "Invalid cluster entry found  (L2 offset: 0x%" G_GINT64_MODIFIER "x, L2 index: 0x%x)", table, i);
    return q2_co_corrupt(q, -1, -1,
                         "Data cluster offset 0x%" G_GINT64_MODIFIER "x unaligned (L2 offset: 0x%" G_GINT64_MODIFIER
                         "x, L2 index: 0x%x)",
                         entry & Q2_OFFSET_MASK, table, i);
}

/* The slice for guest cluster @gc; NULL where there is no L2 table. */
static int slice_co_get(Qcow2 *q, uint64_t gc, CacheTable **ret)
{
    uint64_t index = l1_index(q, gc), offset;
    int r;

    *ret = NULL;
    do {
        if (G_UNLIKELY(index >= q->l1_size))
            return 0;
        offset = q->l1[index] & Q2_OFFSET_MASK;
        if (!offset)
            return 0;
        if (G_UNLIKELY(!is_aligned(offset, q->cluster_size)))
            return l2_co_bad(q, index, offset);
        r = table_cache_co_get(&q->l2, offset + slice_offset(q, gc), ret);
        /* Another table may have taken its place while we waited, and the old one's cluster may be something else. */
    } while (G_UNLIKELY((q->l1[index] & Q2_OFFSET_MASK) != offset));
    return r;
}

/* How many entries from @table[@i] on continue the first: same kind, and adjoining in the image. */
static unsigned run_length(const Qcow2 *q, const uint8_t *data, unsigned i, unsigned max, Q2Kind kind, uint64_t first)
{
    bool hosted = kind == Q2_NORMAL || kind == Q2_ZERO_ALLOC;
    unsigned n = 1;

    if (kind == Q2_PACKED)
        return 1;
    for (; n < max; n++) {
        uint64_t entry = q2_l2_entry(q, data, i + n);
        if (hosted ? entry != first + ((uint64_t)n << q->cluster_bits)
                   : q2_entry_kind(q, entry) != kind || ((entry ^ first) & Q2_ZERO))
            break;
    }
    return n;
}

/* The rest of q2_co_map() for extended entries, from @slice[@i] on: alike are subclusters of one kind, within a cluster
 * and across clusters. */
static int map_co_subs(Qcow2 *q, const uint8_t *slice, unsigned i, uint64_t offset, uint64_t bytes, Extent *ret)
{
    uint64_t in = q2_in_cluster(q, offset), entry = q2_l2_entry(q, slice, i), bitmap = q2_l2_bitmap(q, slice, i);
    uint64_t first = entry, end = in + bytes, done; /* from the first cluster's start */
    bool hosted = q2_entry_kind(q, entry) == Q2_NORMAL;
    unsigned sub = q2_sub_index(q, offset), n;
    Q2Kind kind;

    if (G_UNLIKELY(q2_entry_is_bad(q, entry, bitmap)))
        return q2_co_entry_bad(q, offset >> q->cluster_bits, entry);
    kind = q2_sub_kind(q, entry, bitmap, sub);
    n = q2_sub_alike(q, entry, bitmap, sub);
    done = align_down(in, UINT64_C(1) << q->sub_bits) + ((uint64_t)n << q->sub_bits);
    for (unsigned k = 1; done < end && done == (uint64_t)k << q->cluster_bits && kind != Q2_PACKED; k++) {
        if (i + k == 1u << q->slice_bits)
            break;
        entry = q2_l2_entry(q, slice, i + k);
        bitmap = q2_l2_bitmap(q, slice, i + k);
        if (hosted ? entry != first + ((uint64_t)k << q->cluster_bits) : q2_entry_kind(q, entry) != Q2_UNALLOCATED)
            break;
        if (q2_entry_is_bad(q, entry, bitmap) || q2_sub_kind(q, entry, bitmap, 0) != kind)
            break;
        done += (uint64_t)q2_sub_alike(q, entry, bitmap, 0) << q->sub_bits;
    }
    *ret = (Extent){.kind = kind, .bytes = u64_min(bytes, done - in), .entry = first};
    if (kind == Q2_NORMAL || kind == Q2_ZERO_ALLOC)
        ret->host = (first & Q2_OFFSET_MASK) + in;
    ret->in_place = kind == Q2_NORMAL && (first & Q2_COPIED);
    return 0;
}

int q2_co_map(Qcow2 *q, uint64_t offset, uint64_t bytes, Extent *ret)
{
    uint64_t gc = offset >> q->cluster_bits, in = q2_in_cluster(q, offset), entry;
    unsigned i = q2_slice_index(q, gc), max = (1u << q->slice_bits) - i;
    CacheTable *table;
    int r = slice_co_get(q, gc, &table);

    if (G_UNLIKELY(r < 0))
        return r;
    if (!table) {
        /* Nothing as far as this L2 table would reach. */
        uint64_t reach = ((l1_index(q, gc) + 1) << (q->l2_bits + q->cluster_bits)) - offset;
        *ret = (Extent){.kind = Q2_UNALLOCATED, .bytes = u64_min(bytes, reach)};
        return 0;
    }
    entry = q2_l2_entry(q, table->data, i);
    if (G_UNLIKELY((entry & (Q2_ZERO | Q2_COMPRESSED)) == Q2_ZERO && q->header.version < 3))
        return q2_co_entry_bad(q, gc, entry);
    if (G_UNLIKELY(q2_has_data_file(q)) && q2_data_entry_is_bad(q, gc, entry))
        return q2_co_entry_bad(q, gc, entry);
    if (G_UNLIKELY(q->subs > 1))
        return map_co_subs(q, table->data, i, offset, bytes, ret);
    *ret = (Extent){.kind = q2_entry_kind(q, entry)};
    if (ret->kind == Q2_NORMAL || ret->kind == Q2_ZERO_ALLOC) {
        uint64_t host = entry & Q2_OFFSET_MASK;
        if (G_UNLIKELY(!is_aligned(host, q->cluster_size)))
            return q2_co_entry_bad(q, gc, entry);
        ret->in_place = ret->kind == Q2_NORMAL && (entry & Q2_COPIED);
        ret->host = host + in;
    }
    ret->entry = entry;
    if (in + bytes > q->cluster_size)
        max = (unsigned)u64_min(max, (in + bytes + q->cluster_size - 1) >> q->cluster_bits);
    else
        max = 1;
    ret->bytes =
        u64_min(bytes, ((uint64_t)run_length(q, table->data, i, max, ret->kind, entry) << q->cluster_bits) - in);
    return 0;
}

void q2_packed_range(const Qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    uint64_t offset = entry & q->coffset_mask, sectors = ((entry >> q->csize_shift) & q->csize_mask) + 1;

    *ret_offset = offset;
    *ret_bytes = sectors * 512 - (offset & 511);
}

/* Fills the new L2 table at @offset: zeroes, or a copy of the one at @old. */
static int l2_co_fill(Qcow2 *q, uint64_t offset, uint64_t old)
{
    void *buf;
    int ret;

    ret = q2_co_meta_check(q, 0, offset, q->cluster_size);
    if (ret < 0)
        return ret;
    if (!old) {
        q2_co_event(q, BLKDEBUG_EVENT_L2_ALLOC_WRITE);
        return child_co_pwrite_zeroes(q->node->file, offset, q->cluster_size, 0);
    }
    buf = aio_buf_get(q->node->loop, q->cluster_size);
    if (!buf)
        return -ENOMEM;
    q2_co_event(q, BLKDEBUG_EVENT_L2_ALLOC_COW_READ);
    ret = child_co_pread(q->node->file, old, q->cluster_size, buf, 0);
    q2_co_event(q, BLKDEBUG_EVENT_L2_ALLOC_WRITE);
    if (ret == 0)
        ret = child_co_pwrite(q->node->file, offset, q->cluster_size, buf, 0);
    aio_buf_put(q->node->loop, buf, q->cluster_size);
    return ret;
}

void q2_l2_drop(Qcow2 *q, uint64_t offset)
{
    if (q2_meta_kind(q, offset) == Q2_META_L2) /* and not a snapshot's as well */
        q2_meta_remove(q, offset, q->cluster_size);
    q2_free_later(q, offset, q->cluster_size, Q2_FREE_OTHER);
}

/* Gives L1 entry @index a table of its own. l1_lock held. */
static int l2_co_allocate(Qcow2 *q, uint64_t index)
{
    uint64_t old = q->l1[index] & Q2_OFFSET_MASK;
    Q2Run run;
    int ret;

    if (G_UNLIKELY(!is_aligned(old, q->cluster_size)))
        return l2_co_bad(q, index, old);
    if (!q2_meta_reserve(q, 1))
        return -ENOMEM;
    ret = q2_co_alloc(q, 1, true, &run);
    if (ret < 0)
        return ret;
    ret = l2_co_fill(q, run.offset, old);
    if (ret == 0 && !q2_meta_reserve(q, 1)) /* others may have used the room up */
        ret = -ENOMEM;
    if (ret < 0) {
        q2_co_unref(q, run.offset, q->cluster_size, Q2_FREE_OTHER);
        return ret;
    }
    table_cache_forget(&q->l2, run.offset, q->cluster_size); /* from an earlier life of the cluster */
    if (old)
        q2_l2_drop(q, old);
    q2_meta_add(q, Q2_META_L2, run.offset, q->cluster_size);
    q2_l1_set(q, index, run.offset | Q2_COPIED);
    return 0;
}

/* Is there a table, and may it be changed in place? */
static inline bool l2_is_ours(uint64_t l1_entry)
{
    return (l1_entry & Q2_COPIED) && (l1_entry & Q2_OFFSET_MASK);
}

int q2_co_l2_for_write(Qcow2 *q, uint64_t gc, CacheTable **ret, unsigned *ret_index)
{
    uint64_t index = l1_index(q, gc);
    int r = 0;

    do {
        if (G_UNLIKELY(index >= q->l1_size))
            return -EIO;
        if (G_UNLIKELY(!l2_is_ours(q->l1[index]))) {
            comutex_co_lock(&q->l1_lock);
            if (!l2_is_ours(q->l1[index]))
                r = l2_co_allocate(q, index);
            comutex_unlock(&q->l1_lock);
            if (r < 0)
                return r;
        }
        r = slice_co_get(q, gc, ret);
        if (r < 0)
            return r;
    } while (G_UNLIKELY(!*ret || !l2_is_ours(q->l1[index])));
    *ret_index = q2_slice_index(q, gc);
    return 0;
}
