/*
 * The header: parsing it without trust, and changing single fields of it.
 *
 * Every field is checked before anything is derived from it. What changes is patched in place, within the first sector,
 * which a disk writes whole or not at all; fields and features that we do not know stay as they are.
 */
#include "block/drivers/qed/qed.h"

static bool bad_field(GError **error, const char *field, uint64_t value, const char *why)
{
    return error_set(error, "Invalid qed header: %s is %" G_GUINT64_FORMAT " (0x%" G_GINT64_MODIFIER "x), %s", field,
                     value, value, why);
}

uint64_t qed_max_size(uint32_t cluster_size, uint32_t table_size)
{
    unsigned cluster = ilog2(cluster_size), entries = cluster + ilog2(table_size) - 3, bits = 2 * entries + cluster;

    return bits >= 63 ? align_down(INT64_MAX, 512) : UINT64_C(1) << bits;
}

static bool check_geometry(const QedHeader *h, uint64_t file_size, GError **error)
{
    uint64_t table = (uint64_t)h->table_size * h->cluster_size;

    if (!h->header_bytes)
        return bad_field(error, "header_size", 0, "at least 1 is needed");
    if (h->header_bytes > file_size)
        return bad_field(error, "header_size", h->header_bytes / h->cluster_size, "behind the end of the image");
    if (!is_aligned(h->l1_offset, h->cluster_size))
        return bad_field(error, "l1_table_offset", h->l1_offset, "not a multiple of the cluster size");
    if (h->l1_offset < h->header_bytes)
        return bad_field(error, "l1_table_offset", h->l1_offset, "within the header");
    if (h->l1_offset > file_size || table > file_size - h->l1_offset)
        return bad_field(error, "l1_table_offset", h->l1_offset, "the table ends behind the end of the image");
    if (!is_aligned(h->image_size, 512))
        return bad_field(error, "image_size", h->image_size, "not a multiple of 512");
    if (h->image_size > qed_max_size(h->cluster_size, h->table_size))
        return bad_field(error, "image_size", h->image_size, "more than the tables can describe");
    return true;
}

static bool check_backing(const QedHeader *h, GError **error)
{
    if (!(h->features & QED_F_BACKING_FILE))
        return true;
    if (h->backing_offset < QED_HEADER_BYTES)
        return bad_field(error, "backing_filename_offset", h->backing_offset, "within the header's fields");
    if (h->backing_size > QED_MAX_BACKING)
        return bad_field(error, "backing_filename_size", h->backing_size, "the limit is 1023");
    if ((uint64_t)h->backing_offset + h->backing_size > h->header_bytes)
        return bad_field(error, "backing_filename_offset", h->backing_offset, "the name ends behind the header");
    return true;
}

bool qed_header_parse(QedHeader *h, const uint8_t *buf, size_t len, uint64_t file_size, GError **error)
{
    if (len < QED_HEADER_BYTES || load_le32(buf) != QED_MAGIC)
        return error_set(error, "Image not in QED format");
    *h = (QedHeader){
        .cluster_size = load_le32(buf + QED_H_CLUSTER_SIZE),
        .table_size = load_le32(buf + QED_H_TABLE_SIZE),
        .features = load_le64(buf + QED_H_FEATURES),
        .compat = load_le64(buf + QED_H_FEATURES + 8),
        .autoclear = load_le64(buf + QED_H_FEATURES + 16),
        .l1_offset = load_le64(buf + QED_H_L1_OFFSET),
        .image_size = load_le64(buf + QED_H_IMAGE_SIZE),
        .backing_offset = load_le32(buf + QED_H_BACKING_OFFSET),
        .backing_size = load_le32(buf + QED_H_BACKING_SIZE),
    };
    if (h->features & ~QED_F_KNOWN)
        return error_set(error, "Unsupported QED features: %" G_GINT64_MODIFIER "x", h->features & ~QED_F_KNOWN);
    if (!is_pow2(h->cluster_size) || h->cluster_size < QED_MIN_CLUSTER || h->cluster_size > QED_MAX_CLUSTER)
        return bad_field(error, "cluster_size", h->cluster_size, "must be a power of two from 4096 to 67108864");
    if (!is_pow2(h->table_size) || h->table_size > QED_MAX_TABLE)
        return bad_field(error, "table_size", h->table_size, "must be 1, 2, 4, 8 or 16");
    h->header_bytes = (uint64_t)load_le32(buf + QED_H_HEADER_SIZE) * h->cluster_size;
    return check_geometry(h, file_size, error) && check_backing(h, error);
}

void qed_header_store(const QedHeader *h, uint8_t buf[QED_HEADER_BYTES])
{
    store_le32(buf, QED_MAGIC);
    store_le32(buf + QED_H_CLUSTER_SIZE, h->cluster_size);
    store_le32(buf + QED_H_TABLE_SIZE, h->table_size);
    store_le32(buf + QED_H_HEADER_SIZE, (uint32_t)(h->header_bytes / h->cluster_size));
    store_le64(buf + QED_H_FEATURES, h->features);
    store_le64(buf + QED_H_FEATURES + 8, h->compat);
    store_le64(buf + QED_H_FEATURES + 16, h->autoclear);
    store_le64(buf + QED_H_L1_OFFSET, h->l1_offset);
    store_le64(buf + QED_H_IMAGE_SIZE, h->image_size);
    store_le32(buf + QED_H_BACKING_OFFSET, h->backing_offset);
    store_le32(buf + QED_H_BACKING_SIZE, h->backing_size);
}

int qed_co_set_features(Qed *q, uint64_t features)
{
    uint8_t fields[24];
    int ret;

    store_le64(fields, features);
    store_le64(fields + 8, q->header.compat);
    store_le64(fields + 16, 0);
    ret = child_co_pwrite(q->node->file, QED_H_FEATURES, sizeof(fields), fields, 0);
    if (ret == 0 && !order_left_out("qed-features"))
        ret = child_co_flush(q->node->file);
    if (ret == 0) {
        q->header.features = features;
        q->header.autoclear = 0;
    }
    return ret;
}

int qed_co_before_write(Qed *q, bool allocating)
{
    uint64_t flag = allocating ? QED_F_NEED_CHECK : 0;
    int ret = 0;

    if (G_LIKELY((q->header.features & flag) == flag && !q->header.autoclear))
        return 0;
    comutex_co_lock(&q->header_lock);
    if ((q->header.features & flag) != flag || q->header.autoclear)
        ret = qed_co_set_features(q, q->header.features | flag);
    comutex_unlock(&q->header_lock);
    return ret;
}
