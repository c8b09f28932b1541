/*
 * Bitmaps from the image into memory, when it is opened.
 *
 * Opening writes nothing. A bitmap that the image has as in use was not stored by whoever used it last: it may miss
 * writes, so it is shown as inconsistent, has no bits, and is good for nothing but removal. The others are loaded, and
 * record from now on where they say so ("auto"). In a read-only image they cannot change.
 *
 * Where the image is writable, directory, tables and bits are entered into the set of metadata, so that no guest write
 * hits them.
 */
#include "block/drivers/qcow2/bitmaps.h"
#include "block/graph/bitmap.h"

#define MAX_ALL_BYTES (UINT64_C(4) << 30) /* of bits in memory */

static bool meta_add(Qcow2 *q, const Q2Bitmap *b, GError **error)
{
    if (!q2_meta_reserve(q, 2 * (uint64_t)b->table_size + 2))
        return error_set(error, "Could not allocate the table of qcow2 metadata");
    q2_meta_add(q, Q2_META_BITMAPS, b->table_offset, (uint64_t)b->table_size * 8);
    for (uint32_t i = 0; i < b->table_size; i++)
        q2_meta_add_table(q, Q2_META_BITMAPS, b->table[i] & Q2_OFFSET_MASK);
    return true;
}

bool q2_bitmaps_meta(Qcow2 *q, GError **error)
{
    const Q2Bitmaps *h = &q->header.bitmaps;

    if (!h->n)
        return true;
    if (!q2_meta_reserve(q, (h->directory_size >> q->cluster_bits) + 2))
        return error_set(error, "Could not allocate the table of qcow2 metadata");
    q2_meta_add(q, Q2_META_BITMAPS, h->directory_offset, h->directory_size);
    for (guint i = 0; i < q->stored->len; i++)
        if (!meta_add(q, g_ptr_array_index(q->stored, i), error))
            return false;
    return true;
}

/* One cluster of bits, for [@from, @from + @bytes) of the disk. @buf has room for it. */
static int load_co_part(Qcow2 *q, HBitmap *bits, uint64_t entry, uint64_t from, uint64_t bytes, void *buf)
{
    uint64_t offset = entry & Q2_OFFSET_MASK;
    size_t size = hbitmap_serialize_size(bits, from, bytes);
    int ret;

    if (!offset) {
        if (entry & Q2_BITMAP_ALL_ONES)
            hbitmap_set(bits, from, bytes);
        return 0;
    }
    if (offset + size > q->node->file->node->size)
        return -EINVAL;
    ret = child_co_pread(q->node->file, offset, size, buf, 0);
    if (ret == 0)
        hbitmap_deserialize(bits, buf, from, bytes);
    return ret;
}

static bool load_co_bits(Qcow2 *q, const Q2Bitmap *b, HBitmap *bits, GError **error)
{
    uint64_t per_cluster = q->cluster_size * 8 << b->granularity_bits, from = 0;
    void *buf = aio_buf_get(q->node->loop, q->cluster_size);
    int ret = buf ? 0 : -ENOMEM;

    for (uint32_t i = 0; ret == 0 && i < b->table_size && from < q->header.size; i++) {
        ret = load_co_part(q, bits, b->table[i], from, u64_min(per_cluster, q->header.size - from), buf);
        from += per_cluster;
        if (i % 4096 == 4095) /* a crafted table could make this take long */
            aio_co_reschedule();
    }
    aio_buf_put(q->node->loop, buf, q->cluster_size);
    return ret == 0 || error_set_errno(error, -ret, "Could not read bitmap '%s' from the image", b->name);
}

static bool load_co_bitmap(Qcow2 *q, Q2Bitmap *b, uint64_t *all_bytes, GError **error)
{
    bool in_use = b->flags & Q2_BITMAP_IN_USE;
    uint64_t bytes = div_round_up(q->header.size, UINT64_C(8) << b->granularity_bits);
    Bitmap *bitmap;

    if (!q2_bitmap_co_read_table(q, b, error))
        return false;
    /* One in use may stem from before a change of the disk's size. */
    if (!in_use && div_round_up(bytes, q->cluster_size) != b->table_size)
        return error_set(error,
                         "Invalid bitmap directory: bitmap_table_size of bitmap '%s' is %" G_GUINT32_FORMAT
                         ", which does not fit a disk of %" G_GUINT64_FORMAT " bytes",
                         b->name, b->table_size, q->header.size);
    *all_bytes += in_use ? 0 : bytes;
    if (*all_bytes > MAX_ALL_BYTES)
        return error_set(error, "The bitmaps of '%s' would take more than %" G_GUINT64_FORMAT " bytes of memory",
                         q->node->name, MAX_ALL_BYTES);
    bitmap = bitmap_new_stored(q->node, q->header.size, b->granularity_bits, b->name, in_use, error);
    if (!bitmap)
        return false;
    bitmap->enabled = !in_use && (b->flags & Q2_BITMAP_AUTO);
    return in_use || load_co_bits(q, b, bitmap->bits, error);
}

bool q2_bitmaps_co_load(Qcow2 *q, GError **error)
{
    uint64_t all_bytes = 0;

    q->stored = q2_bitmaps_co_read_directory(q, error);
    if (!q->stored)
        return false;
    for (guint i = 0; i < q->stored->len; i++)
        if (!load_co_bitmap(q, g_ptr_array_index(q->stored, i), &all_bytes, error))
            return false;
    return true;
}

void q2_bitmaps_free(Qcow2 *q)
{
    g_clear_pointer(&q->stored, g_ptr_array_unref);
}

Qcow2BitmapInfoList *q2_bitmaps_info(const Qcow2 *q)
{
    Qcow2BitmapInfoList *list = NULL;

    for (guint i = 0; i < q->stored->len; i++) {
        const Q2Bitmap *b = g_ptr_array_index(q->stored, i);
        Qcow2BitmapInfo *info = g_new0(Qcow2BitmapInfo, 1);
        info->name = g_strdup(b->name);
        info->granularity = UINT32_C(1) << b->granularity_bits;
        info->flags = g_new0(Qcow2BitmapInfoFlagsList, 1);
        if (b->flags & Q2_BITMAP_IN_USE)
            QAPI_LIST_ADD(info->flags, QCOW2_BITMAP_INFO_FLAGS_IN_USE);
        if (b->flags & Q2_BITMAP_AUTO)
            QAPI_LIST_ADD(info->flags, QCOW2_BITMAP_INFO_FLAGS_AUTO);
        if (!list)
            list = g_new0(Qcow2BitmapInfoList, 1);
        QAPI_LIST_ADD(list, info);
    }
    return list;
}

bool q2_bitmaps_allow_size(const Qcow2 *q, uint64_t size, GError **error)
{
    for (GList *l = q->node->bitmaps.head; l; l = l->next) {
        const Bitmap *bitmap = l->data;
        if (!bitmap->persistent)
            continue;
        if (!bitmap_check(bitmap, BITMAP_REFUSE_INCONSISTENT, error))
            return false;
        if (!q2_bitmap_check_size(q, size, bitmap->granularity, error)) {
            g_prefix_error(error, "Bitmap '%s' could not be stored any more: ", bitmap->name);
            return false;
        }
    }
    return true;
}

bool q2_can_store_bitmap(Node *node, const char *name, uint64_t granularity, GError **error)
{
    const Qcow2 *q = q2_of(node);
    uint64_t n = 1, directory = q2_bitmap_entry_size(name);

    if (q->header.version < 3)
        return error_set(error, "Cannot store dirty bitmaps in qcow2 v2 files");
    if (!q->header.size)
        return error_set(error, "Cannot store dirty bitmaps of a disk of 0 bytes");
    if (granularity > UINT64_C(1) << Q2_BITMAP_MAX_BITS)
        return error_set(error, "Granularity exceeds maximum (%" G_GUINT64_FORMAT " bytes)",
                         UINT64_C(1) << Q2_BITMAP_MAX_BITS);
    for (GList *l = node->bitmaps.head; l; l = l->next) {
        const Bitmap *bitmap = l->data;
        if (bitmap->persistent && strcmp(bitmap->name, name)) {
            directory += q2_bitmap_entry_size(bitmap->name);
            n++;
        }
    }
    if (n > Q2_MAX_BITMAPS)
        return error_set(error, "Maximum number of persistent bitmaps is already reached");
    if (directory > Q2_MAX_BITMAP_DIRECTORY)
        return error_set(error, "No space in the bitmap directory");
    return q2_bitmap_check_size(q, q->header.size, granularity, error);
}
