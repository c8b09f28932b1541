/*
 * The header: parsing it without trust, and changing single fields of it.
 *
 * Every field is checked against the format's and our own limits before anything is derived from it. A header is never
 * rewritten as a whole: what changes is patched in place, 4 to 12 bytes within the first sector, which a disk writes
 * whole or not at all. So extensions and fields that we do not know stay as they are.
 */
#include "block/drivers/qcow2/qcow2.h"

static bool bad_field(GError **error, const char *field, uint64_t value, const char *limit)
{
    return error_set(error, "Invalid qcow2 header: %s is %" G_GUINT64_FORMAT " (0x%" G_GINT64_MODIFIER "x), %s", field,
                     value, value, limit);
}

static bool parse_fixed(Q2Header *h, const uint8_t *buf, size_t len, GError **error)
{
    if (len < 8 || load_be32(buf) != Q2_MAGIC)
        return error_set(error, "Image is not in qcow2 format");
    h->version = load_be32(buf + 4);
    if (h->version != 2 && h->version != 3)
        return error_set(error, "Unsupported qcow2 version %" G_GUINT32_FORMAT, h->version);
    if (len < (h->version == 2 ? Q2_V2_HEADER : Q2_V3_HEADER))
        return error_set(error, "qcow2 header too short: the image ends after %zu bytes", len);
    h->cluster_bits = load_be32(buf + 20);
    if (h->cluster_bits < Q2_MIN_CLUSTER_BITS || h->cluster_bits > Q2_MAX_CLUSTER_BITS)
        return error_set(error, "Unsupported cluster size: 2^%" G_GUINT32_FORMAT " (must be from 2^%d to 2^%d)",
                         h->cluster_bits, Q2_MIN_CLUSTER_BITS, Q2_MAX_CLUSTER_BITS);
    h->size = load_be64(buf + Q2_H_SIZE);
    h->crypt_method = load_be32(buf + 32);
    h->l1_size = load_be32(buf + Q2_H_L1_SIZE);
    h->l1_offset = load_be64(buf + Q2_H_L1_SIZE + 4);
    h->rt_offset = load_be64(buf + Q2_H_RT_OFFSET);
    h->rt_clusters = load_be32(buf + Q2_H_RT_OFFSET + 8);
    h->nb_snapshots = load_be32(buf + 60);
    h->snapshots_offset = load_be64(buf + 64);
    h->refcount_order = 4;
    h->header_length = Q2_V2_HEADER;
    if (h->version == 2)
        return true;
    h->incompat = load_be64(buf + Q2_H_INCOMPAT);
    h->compat = load_be64(buf + 80);
    h->autoclear = load_be64(buf + Q2_H_AUTOCLEAR);
    h->refcount_order = load_be32(buf + 96);
    h->header_length = load_be32(buf + 100);
    if (h->header_length < Q2_V3_HEADER)
        return error_set(error, "qcow2 header too short: header_length is %" G_GUINT32_FORMAT ", at least %d is needed",
                         h->header_length, Q2_V3_HEADER);
    if (h->header_length > UINT32_C(1) << h->cluster_bits)
        return error_set(error, "qcow2 header exceeds cluster size: header_length is %" G_GUINT32_FORMAT,
                         h->header_length);
    if (h->header_length > len)
        return error_set(error, "qcow2 header too short: the image ends after %zu bytes", len);
    if (h->header_length > Q2_V3_HEADER)
        h->compression_type = buf[104];
    return true;
}

/* Tables lie at cluster boundaries within what offsets can express. */
static bool check_table(const Q2Header *h, const char *field, uint64_t offset, uint64_t bytes, GError **error)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;

    if (!is_aligned(offset, cluster))
        return bad_field(error, field, offset, "not a multiple of the cluster size");
    if (offset > Q2_MAX_HOST - bytes)
        return bad_field(error, field, offset, "beyond the limit of 2^56");
    return true;
}

static bool check_sizes(const Q2Header *h, GError **error)
{
    uint64_t cluster = UINT64_C(1) << h->cluster_bits;
    unsigned l1_cover =
        h->cluster_bits - ilog2(q2_header_l2_entry_bytes(h)) + h->cluster_bits; /* log2 of the bytes of one L1 entry */

    if (h->refcount_order > 6)
        return error_set(error,
                         "Reference count entry width too large: refcount_order is %" G_GUINT32_FORMAT
                         ", may not exceed 6 (64 bits)",
                         h->refcount_order);
    if (h->incompat & Q2_INCOMPAT_EXTL2 && cluster / Q2_SUBCLUSTERS < UINT64_C(1) << Q2_MIN_SUB_BITS)
        return error_set(error, "Unsupported subcluster size: %" G_GUINT64_FORMAT, cluster / Q2_SUBCLUSTERS);
    if (h->size > (uint64_t)INT64_MAX - cluster)
        return bad_field(error, "size", h->size, "too large");
    if (h->l1_size > Q2_MAX_L1_BYTES / 8)
        return error_set(error, "Active L1 table too large: l1_size is %" G_GUINT32_FORMAT ", the limit is %d entries",
                         h->l1_size, Q2_MAX_L1_BYTES / 8);
    if (h->size && ((h->size - 1) >> l1_cover) + 1 > h->l1_size)
        return error_set(error,
                         "L1 table is too small: l1_size is %" G_GUINT32_FORMAT ", size %" G_GUINT64_FORMAT
                         " needs %" G_GUINT64_FORMAT " entries",
                         h->l1_size, h->size, ((h->size - 1) >> l1_cover) + 1);
    if (!check_table(h, "l1_table_offset", h->l1_offset, (uint64_t)h->l1_size * 8, error))
        return false;
    if (h->rt_clusters > (uint32_t)MAX(Q2_MAX_RT_BYTES >> h->cluster_bits, 1))
        return error_set(error,
                         "Reference count table too large: refcount_table_clusters is %" G_GUINT32_FORMAT
                         ", the limit is %d bytes",
                         h->rt_clusters, Q2_MAX_RT_BYTES);
    if (!check_table(h, "refcount_table_offset", h->rt_offset, (uint64_t)h->rt_clusters << h->cluster_bits, error))
        return false;
    return true;
}

bool q2_header_check_tables(const Q2Header *h, GError **error)
{
    if (h->l1_size && !h->l1_offset)
        return bad_field(error, "l1_table_offset", 0, "which is the header's place");
    if (h->rt_clusters == 0)
        return error_set(error, "Image does not contain a reference count table");
    if (!h->rt_offset)
        return bad_field(error, "refcount_table_offset", 0, "which is the header's place");
    if (h->nb_snapshots > Q2_MAX_SNAPSHOTS)
        return error_set(error, "Snapshot table too large: nb_snapshots is %" G_GUINT32_FORMAT ", the limit is %d",
                         h->nb_snapshots, Q2_MAX_SNAPSHOTS);
    return check_table(h, "snapshots_offset", h->snapshots_offset, h->nb_snapshots ? Q2_MAX_SNAPSHOT_BYTES : 0, error);
}

/* Names as the image has them, made fit to be shown. */
static char *printable(const uint8_t *text, size_t len)
{
    g_autofree char *copy = g_strndup((const char *)text, len);

    return g_utf8_make_valid(copy, -1);
}

/* Which unknown incompatible bits there are, by the names that the image's own table gives them. */
static bool refuse_features(const Q2Header *h, uint64_t bits, const uint8_t *table, size_t table_len, GError **error)
{
    g_autoptr(GString) names = g_string_new(NULL);

    for (unsigned bit = 0; bit < 64; bit++) {
        g_autofree char *name = NULL;
        if (!(bits >> bit & 1))
            continue;
        for (size_t at = 0; at + 48 <= table_len && !name; at += 48)
            if (table[at] == 0 && table[at + 1] == bit)
                name = printable(table + at + 2, 46);
        if (!name)
            name = g_strdup_printf("Unknown incompatible feature: %" G_GINT64_MODIFIER "x", UINT64_C(1) << bit);
        g_string_append_printf(names, "%s%s", names->len ? ", " : "", name);
    }
    return error_set(error, "Unsupported qcow2 feature(s): %s", names->str);
}

static bool parse_bitmaps(Q2Header *h, const uint8_t *data, uint32_t len, GError **error)
{
    if (len != 24)
        return error_set(error, "Invalid qcow2 header: the bitmaps extension has %" G_GUINT32_FORMAT " bytes, not 24",
                         len);
    /* Without its autoclear bit it is what somebody left behind who did not know it. */
    if (!(h->autoclear & Q2_AUTOCLEAR_BITMAPS))
        return true;
    h->bitmaps.n = load_be32(data);
    if (load_be32(data + 4))
        return bad_field(error, "the reserved field of the bitmaps extension", load_be32(data + 4), "not zero");
    h->bitmaps.directory_size = load_be64(data + 8);
    h->bitmaps.directory_offset = load_be64(data + 16);
    if (h->bitmaps.n == 0 || h->bitmaps.n > Q2_MAX_BITMAPS)
        return bad_field(error, "nb_bitmaps", h->bitmaps.n, "from 1 to 65535 are allowed");
    if (h->bitmaps.directory_size == 0 || h->bitmaps.directory_size > Q2_MAX_BITMAPS * UINT64_C(1024))
        return bad_field(error, "bitmap_directory_size", h->bitmaps.directory_size, "from 1 to 67107840 are allowed");
    if (!h->bitmaps.directory_offset)
        return bad_field(error, "bitmap_directory_offset", 0, "which is the header's place");
    return check_table(h, "bitmap_directory_offset", h->bitmaps.directory_offset, h->bitmaps.directory_size, error);
}

static bool parse_crypto(Q2Header *h, const uint8_t *data, uint32_t len, GError **error)
{
    if (h->crypt_method != Q2_CRYPT_LUKS)
        return error_set(error, "CRYPTO header extension only expected with LUKS encryption method");
    if (len != 16)
        return error_set(error, "CRYPTO header extension size %" G_GUINT32_FORMAT ", but expected size 16", len);
    h->crypto.offset = load_be64(data);
    h->crypto.bytes = load_be64(data + 8);
    if (!is_aligned(h->crypto.offset, UINT64_C(1) << h->cluster_bits))
        return error_set(error,
                         "Encryption header offset '%" G_GUINT64_FORMAT
                         "' is not a multiple of cluster size '%" G_GUINT64_FORMAT "'",
                         h->crypto.offset, UINT64_C(1) << h->cluster_bits);
    if (h->crypto.bytes < 592 || h->crypto.bytes > Q2_MAX_CRYPTO_BYTES)
        return bad_field(error, "the encryption header's length", h->crypto.bytes, "from 592 to 16777216 are allowed");
    if (!h->crypto.offset || h->crypto.offset > Q2_MAX_HOST - h->crypto.bytes)
        return bad_field(error, "the encryption header's offset", h->crypto.offset, "out of range");
    return true;
}

static bool parse_extensions(Q2Header *h, const uint8_t *buf, size_t end, const uint8_t **features,
                             size_t *features_len, GError **error)
{
    size_t at = h->header_length;

    while (at + 8 <= end) {
        uint32_t type = load_be32(buf + at), len = load_be32(buf + at + 4);
        const uint8_t *data = buf + at + 8;
        at += 8;
        if (len > end - at) /* the end mark's as well */
            return error_set(error,
                             "Header extension too large: type 0x%08x has %" G_GUINT32_FORMAT " bytes, %zu are left",
                             type, len, end - at);
        if (type == 0)
            return true;
        switch (type) {
        case Q2_EXT_BACKING_FORMAT:
            if (len >= 16)
                return error_set(error,
                                 "Invalid qcow2 header: the backing format's name has %" G_GUINT32_FORMAT
                                 " bytes, the limit is 15",
                                 len);
            g_free(h->backing_format);
            h->backing_format = printable(data, len);
            break;
        case Q2_EXT_FEATURES:
            *features = data;
            *features_len = len;
            break;
        case Q2_EXT_CRYPTO:
            if (!parse_crypto(h, data, len, error))
                return false;
            break;
        case Q2_EXT_BITMAPS:
            if (!parse_bitmaps(h, data, len, error))
                return false;
            break;
        case Q2_EXT_DATA_FILE:
            if (h->incompat & Q2_INCOMPAT_DATA_FILE) {
                g_free(h->data_file);
                h->data_file = printable(data, strnlen((const char *)data, len));
            }
            break;
        default: /* unknown ones may be ignored */
            break;
        }
        at += align_up(len, 8);
    }
    return true;
}

static bool parse_backing(Q2Header *h, const uint8_t *buf, size_t len, GError **error)
{
    uint64_t offset = load_be64(buf + 8), cluster = UINT64_C(1) << h->cluster_bits;
    uint32_t size = load_be32(buf + 16);

    if (!offset)
        return true;
    if (offset > cluster || (size && offset < h->header_length))
        return bad_field(error, "backing_file_offset", offset, "outside of the first cluster");
    if (size > MIN(Q2_MAX_BACKING, cluster - offset))
        return error_set(error,
                         "Backing file name too long: backing_file_size is %" G_GUINT32_FORMAT
                         ", the limit is %" G_GUINT64_FORMAT,
                         size, MIN(Q2_MAX_BACKING, cluster - offset));
    if (offset + size > len)
        return bad_field(error, "backing_file_offset", offset, "the name lies behind the end of the image");
    if (size)
        h->backing_file = g_strndup((const char *)buf + offset, size);
    return true;
}

bool q2_header_parse(Q2Header *h, const uint8_t *buf, size_t len, GError **error)
{
    const uint64_t known =
        Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT | Q2_INCOMPAT_COMPRESSION | Q2_INCOMPAT_EXTL2 | Q2_INCOMPAT_DATA_FILE;
    const uint8_t *features = NULL;
    size_t features_len = 0, end;
    uint64_t backing;

    *h = (Q2Header){0};
    if (!parse_fixed(h, buf, len, error) || !check_sizes(h, error) || !parse_backing(h, buf, len, error)) {
        q2_header_free(h);
        return false;
    }
    h->size = align_down(h->size, 512); /* nobody shows a part of a sector, but its L1 entry has to be there */
    backing = load_be64(buf + 8);
    end = MIN(len, backing ? backing : UINT64_C(1) << h->cluster_bits);
    if (!parse_extensions(h, buf, end, &features, &features_len, error)) {
        q2_header_free(h);
        return false;
    }
    if (h->crypt_method == Q2_CRYPT_LUKS && !h->crypto.bytes) {
        q2_header_free(h);
        return error_set(error, "Missing CRYPTO header for crypt method %d", Q2_CRYPT_LUKS);
    }
    if (h->incompat & ~known) {
        refuse_features(h, h->incompat & ~known, features, features_len, error);
        q2_header_free(h);
        return false;
    }
    return true;
}

bool q2_header_co_read(Q2Header *h, Child *file, GError **error)
{
    uint8_t start[24];
    uint64_t size = file->node->size, len = Q2_OUR_HEADER;
    g_autofree uint8_t *cluster = NULL;
    int ret = size < sizeof(start) ? 0 : child_co_pread(file, 0, sizeof(start), start, 0);

    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read qcow2 header");
    if (size >= sizeof(start) && load_be32(start) == Q2_MAGIC) {
        uint32_t bits = load_be32(start + 20);
        if (bits >= Q2_MIN_CLUSTER_BITS && bits <= Q2_MAX_CLUSTER_BITS)
            len = UINT64_C(1) << bits;
    }
    len = u64_min(len, size);
    cluster = g_try_malloc0(len + 1);
    if (!cluster)
        return error_set(error, "Could not allocate memory for the qcow2 header");
    ret = len ? child_co_pread(file, 0, len, cluster, 0) : 0;
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read qcow2 header");
    return q2_header_parse(h, cluster, len, error);
}

void q2_header_free(Q2Header *h)
{
    g_clear_pointer(&h->backing_file, g_free);
    g_clear_pointer(&h->backing_format, g_free);
    g_clear_pointer(&h->data_file, g_free);
}

bool q2_header_check_use(const Q2Header *h, bool writable, GError **error)
{
    if (h->crypt_method > Q2_CRYPT_LUKS)
        return error_set(error, "Unsupported encryption method %" G_GUINT32_FORMAT, h->crypt_method);
    if (h->compression_type > 1)
        return error_set(error, "qcow2: unknown compression type: %u", h->compression_type);
    if (!!(h->incompat & Q2_INCOMPAT_COMPRESSION) != (h->compression_type != 0))
        return error_set(error, "qcow2: Compression type incompatible feature bit must%s be set",
                         h->compression_type ? "" : " not");
    if (writable && (h->incompat & Q2_INCOMPAT_CORRUPT))
        return error_set(error, "qcow2: Image is corrupt; cannot be opened read/write");
    return true;
}

int q2_co_header_patch(Qcow2 *q, unsigned offset, const void *bytes, unsigned size)
{
    g_assert(offset + size <= 512);
    return child_co_pwrite(q->node->file, offset, size, bytes, 0);
}

int q2_co_header_switch(Qcow2 *q, unsigned offset, const void *old, const void *now, unsigned size, const char *site)
{
    int ret = q2_co_header_patch(q, offset, now, size), back;

    if (ret == 0)
        ret = q2_co_barrier(q, site);
    if (ret == 0)
        return 0;
    back = q2_co_header_patch(q, offset, old, size);
    if (back == 0)
        back = q2_co_barrier(q, "header-back");
    if (back < 0) {
        q->unsure = true;
        g_printerr("storage-daemon: %s: the header could not be written, and it is not known what it says now: "
                   "nothing more is written to the image until it is opened again\n",
                   q->node->name);
    }
    return ret;
}

/* One at a time: each writes the bits that the other does not mean, too. */
static int incompat_co_change(Qcow2 *q, uint64_t set, uint64_t clear)
{
    uint64_t incompat;
    uint8_t field[8];
    int ret = 0;

    comutex_co_lock(&q->header_lock);
    incompat = (q->header.incompat | set) & ~clear;
    store_be64(field, incompat);
    if (incompat != q->header.incompat)
        ret = q2_co_header_patch(q, Q2_H_INCOMPAT, field, sizeof(field));
    if (ret == 0)
        q->header.incompat = incompat;
    comutex_unlock(&q->header_lock);
    return ret;
}

int q2_co_set_corrupt(Qcow2 *q)
{
    int ret = q->header.version < 3 ? 0 : incompat_co_change(q, Q2_INCOMPAT_CORRUPT, 0);

    return ret == 0 ? q2_co_barrier(q, "incompat") : ret;
}

int q2_co_set_dirty(Qcow2 *q, bool dirty)
{
    if (dirty == !!(q->header.incompat & Q2_INCOMPAT_DIRTY))
        return 0;
    return dirty ? incompat_co_change(q, Q2_INCOMPAT_DIRTY, 0) : incompat_co_change(q, 0, Q2_INCOMPAT_DIRTY);
}

int q2_co_before_first_write(Qcow2 *q)
{
    const uint64_t keep = (q->stored->len ? Q2_AUTOCLEAR_BITMAPS : 0) | (q2_has_data_file(q) ? Q2_AUTOCLEAR_RAW : 0);
    int ret = 0;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    comutex_co_lock(&q->first_write_lock);
    if (!q->wrote && (q->header.autoclear & ~keep)) {
        uint8_t field[8];
        store_be64(field, q->header.autoclear & keep);
        ret = q2_co_header_patch(q, Q2_H_AUTOCLEAR, field, sizeof(field));
        if (ret == 0)
            ret = q2_co_barrier(q, "autoclear");
        if (ret == 0)
            q->header.autoclear &= keep;
    }
    if (!q->wrote && ret == 0)
        ret = q2_bitmaps_co_mark(q);
    q->wrote = ret == 0;
    comutex_unlock(&q->first_write_lock);
    return ret;
}
