/*
 * Bitmaps as the image has them: the directory, its entries, the tables. Reading without trust, and putting them into
 * the image's form; nothing is written here.
 *
 * A header extension (valid while its autoclear bit is set) names the directory. Each entry of it names a table, whose
 * entries lead to clusters of bits, or say that all bits of such a cluster are clear or set. What the image says is
 * checked before anything is derived from it, and refused with field, value and limit; of many bitmaps together, what
 * they would cost is limited as well.
 */
#include "block/drivers/qcow2/bitmaps.h"

#define ENTRY_FIXED     24
#define TYPE_DIRTY      1
#define FLAGS_KNOWN     (Q2_BITMAP_IN_USE | Q2_BITMAP_AUTO)
#define MAX_TABLE       0x8000000 /* entries */
#define MAX_ALL_ENTRIES (UINT64_C(1) << 24)

static void stored_free(void *opaque)
{
    Q2Bitmap *b = opaque;

    g_free(b->name);
    g_free(b->table);
    g_free(b);
}

GPtrArray *q2_bitmap_list_new(void)
{
    return g_ptr_array_new_with_free_func(stored_free);
}

uint64_t q2_bitmap_clusters(const Qcow2 *q, uint64_t size, uint64_t granularity)
{
    uint64_t bits = div_round_up(size, granularity);

    return u64_max(div_round_up(bits, q->cluster_size * 8), 1);
}

bool q2_bitmap_check_size(const Qcow2 *q, uint64_t size, uint64_t granularity, GError **error)
{
    if (q2_bitmap_clusters(q, size, granularity) << q->cluster_bits > MAX(Q2_MAX_BITMAP_BYTES, q->cluster_size))
        return error_set(error, "Too much space will be occupied by the bitmap. Use larger granularity");
    return true;
}

static bool bad(GError **error, guint i, const char *field, uint64_t value, const char *limit)
{
    return error_set(
        error, "Invalid bitmap directory: %s of bitmap %u is %" G_GUINT64_FORMAT " (0x%" G_GINT64_MODIFIER "x), %s",
        field, i, value, value, limit);
}

/* The name at @text becomes @b's. */
static bool take_name(Q2Bitmap *b, guint i, const uint8_t *text, unsigned len, GError **error)
{
    if (len == 0 || len > Q2_MAX_BITMAP_NAME)
        return bad(error, i, "name_size", len, "from 1 to 1023 are allowed");
    if (!g_utf8_validate_len((const char *)text, len, NULL))
        return error_set(error, "Invalid bitmap directory: the name of bitmap %u is not UTF-8", i);
    b->name = g_strndup((const char *)text, len);
    return true;
}

static bool check_entry(const Qcow2 *q, const Q2Bitmap *b, guint i, GError **error)
{
    uint64_t bytes = (uint64_t)b->table_size * 8;

    if (b->flags & ~FLAGS_KNOWN)
        return bad(error, i, "flags", b->flags, "bits above 1 are not supported");
    if (b->granularity_bits < Q2_BITMAP_MIN_BITS || b->granularity_bits > Q2_BITMAP_MAX_BITS)
        return bad(error, i, "granularity_bits", b->granularity_bits, "from 9 to 31 are allowed");
    if (b->table_size == 0 || b->table_size > MAX_TABLE)
        return bad(error, i, "bitmap_table_size", b->table_size, "from 1 to 134217728 are allowed");
    if ((uint64_t)b->table_size << q->cluster_bits > MAX(Q2_MAX_BITMAP_BYTES, q->cluster_size))
        return bad(error, i, "bitmap_table_size", b->table_size, "more than 512 MiB of bits");
    if (!b->table_offset || !is_aligned(b->table_offset, q->cluster_size))
        return bad(error, i, "bitmap_table_offset", b->table_offset, "not a multiple of the cluster size");
    if (b->table_offset > Q2_MAX_HOST || b->table_offset + bytes > q->node->file->node->size)
        return bad(error, i, "bitmap_table_offset", b->table_offset, "behind the end of the image");
    return true;
}

/* Parses the entry at @raw, @left bytes before the directory's end. Its length, or 0 with @error. */
static uint64_t parse_entry(const Qcow2 *q, Q2Bitmap *b, guint i, const uint8_t *raw, uint64_t left, GError **error)
{
    uint32_t extra, name_size;
    uint64_t length;

    if (left < ENTRY_FIXED) {
        error_set(error, "Invalid bitmap directory: it ends within bitmap %u", i);
        return 0;
    }
    b->table_offset = load_be64(raw);
    b->table_size = load_be32(raw + 8);
    b->flags = load_be32(raw + 12);
    b->granularity_bits = raw[17];
    name_size = load_be16(raw + 18);
    extra = load_be32(raw + 20);
    length = align_up((uint64_t)ENTRY_FIXED + extra + name_size, 8);
    if (raw[16] != TYPE_DIRTY)
        bad(error, i, "type", raw[16], "only 1, a dirty bitmap, is known");
    else if (extra)
        bad(error, i, "extra_data_size", extra, "bitmap extra data is not supported");
    else if (length > left)
        error_set(error, "Invalid bitmap directory: it ends within bitmap %u", i);
    else if (take_name(b, i, raw + ENTRY_FIXED, name_size, error) && check_entry(q, b, i, error))
        return length;
    return 0;
}

static bool parse_directory(const Qcow2 *q, GPtrArray *list, const uint8_t *raw, uint64_t size, GError **error)
{
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    uint64_t at = 0, entries = 0;

    for (guint i = 0; i < q->header.bitmaps.n; i++) {
        Q2Bitmap *b = g_new0(Q2Bitmap, 1);
        uint64_t length;
        g_ptr_array_add(list, b);
        length = parse_entry(q, b, i, raw + at, size - at, error);
        if (!length)
            return false;
        at += length;
        entries += b->table_size;
        if (entries > MAX_ALL_ENTRIES)
            return bad(error, i, "bitmap_table_size", b->table_size,
                       "more than 16777216 entries in all tables together");
        if (!g_hash_table_add(names, b->name))
            return error_set(error, "Invalid bitmap directory: there are two bitmaps with the name '%s'", b->name);
    }
    if (at != size)
        return error_set(error,
                         "Invalid bitmap directory: its %u bitmaps take %" G_GUINT64_FORMAT
                         " bytes, but bitmap_directory_size is %" G_GUINT64_FORMAT,
                         list->len, at, size);
    return true;
}

GPtrArray *q2_bitmaps_co_read_directory(Qcow2 *q, GError **error)
{
    const Q2Bitmaps *h = &q->header.bitmaps;
    g_autoptr(GPtrArray) list = q2_bitmap_list_new();
    g_autofree uint8_t *raw = NULL;
    int ret;

    if (!h->n)
        return g_steal_pointer(&list);
    if (h->directory_offset + h->directory_size > q->node->file->node->size) {
        error_set(error,
                  "Invalid bitmap directory: bitmap_directory_offset is %" G_GUINT64_FORMAT
                  ", behind the end of the image",
                  h->directory_offset);
        return NULL;
    }
    raw = g_try_malloc(h->directory_size);
    if (!raw) {
        error_set(error, "Could not allocate memory for the bitmap directory");
        return NULL;
    }
    ret = child_co_pread(q->node->file, h->directory_offset, h->directory_size, raw, 0);
    if (ret < 0) {
        error_set_errno(error, -ret, "Could not read the bitmap directory");
        return NULL;
    }
    return parse_directory(q, list, raw, h->directory_size, error) ? g_steal_pointer(&list) : NULL;
}

/* One entry of a table; @i for the error text. */
static bool check_table_entry(const Qcow2 *q, const Q2Bitmap *b, uint32_t i, GError **error)
{
    uint64_t entry = b->table[i], offset = entry & Q2_OFFSET_MASK;
    const char *what = NULL;

    if (entry & ~Q2_OFFSET_MASK & ~(uint64_t)Q2_BITMAP_ALL_ONES)
        what = "reserved bits are set";
    else if (offset && (entry & Q2_BITMAP_ALL_ONES))
        what = "bit 0 is set besides an offset";
    else if (!is_aligned(offset, q->cluster_size))
        what = "not a multiple of the cluster size";
    else if (offset >= q->node->file->node->size)
        what = "behind the end of the image";
    return !what || error_set(error,
                              "Invalid bitmap table of bitmap '%s': entry %" G_GUINT32_FORMAT
                              " is 0x%" G_GINT64_MODIFIER "x, %s",
                              b->name, i, entry, what);
}

bool q2_bitmap_co_read_table(Qcow2 *q, Q2Bitmap *b, GError **error)
{
    int ret;

    g_assert(!b->table);
    b->table = g_try_new(uint64_t, b->table_size);
    if (!b->table)
        return error_set(error, "Could not allocate memory for the table of bitmap '%s'", b->name);
    ret = child_co_pread(q->node->file, b->table_offset, (uint64_t)b->table_size * 8, b->table, 0);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read the table of bitmap '%s'", b->name);
    for (uint32_t i = 0; i < b->table_size; i++) {
        b->table[i] = load_be64(&b->table[i]);
        if (!check_table_entry(q, b, i, error))
            return false;
    }
    return true;
}

uint64_t q2_bitmap_entry_size(const char *name)
{
    return align_up(ENTRY_FIXED + strlen(name), 8);
}

uint8_t *q2_bitmaps_directory(const GPtrArray *list, uint64_t *ret_size)
{
    uint64_t size = 0;
    uint8_t *raw, *at;

    for (guint i = 0; i < list->len; i++)
        size += q2_bitmap_entry_size(((const Q2Bitmap *)g_ptr_array_index(list, i))->name);
    *ret_size = size;
    at = raw = g_try_malloc0(size + 1);
    for (guint i = 0; raw && i < list->len; i++) {
        const Q2Bitmap *b = g_ptr_array_index(list, i);
        store_be64(at, b->table_offset);
        store_be32(at + 8, b->table_size);
        store_be32(at + 12, b->flags);
        at[16] = TYPE_DIRTY;
        at[17] = (uint8_t)b->granularity_bits;
        store_be16(at + 18, (uint16_t)strlen(b->name));
        memcpy(at + ENTRY_FIXED, b->name, strlen(b->name));
        at += q2_bitmap_entry_size(b->name);
    }
    return raw;
}
