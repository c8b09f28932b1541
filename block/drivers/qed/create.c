/*
 * Making images: header, backing file name and an empty L1 table.
 *
 * The header is written last, behind a flush, so a half-made file is no qed image.
 */
#include "block/drivers/qed/qed.h"
#include "block/graph/port.h"

#define DEFAULT_CLUSTER 65536
#define DEFAULT_TABLE   4
#define LARGEST_CLUSTER (2 << 20) /* QEMU computes the size of larger ones with such tables as 0 and opens none */

static bool make_header(const CreateOptions *o, QedHeader *h, GError **error)
{
    uint64_t cluster = o->cluster_size ? o->cluster_size : DEFAULT_CLUSTER, max;
    uint64_t table = o->table_size ? (uint64_t)o->table_size : DEFAULT_TABLE;
    size_t name = o->backing_file ? strlen(o->backing_file) : 0;

    if (o->version)
        return error_set(error, "Parameter 'version' is not supported by file format 'qed'");
    if (!is_pow2(cluster) || cluster < QED_MIN_CLUSTER || cluster > LARGEST_CLUSTER)
        return error_set(error, "QED cluster size must be within range [%d, %d] and power of 2", QED_MIN_CLUSTER,
                         LARGEST_CLUSTER);
    if (!is_pow2(table) || table > QED_MAX_TABLE)
        return error_set(error, "QED table size must be within range [1, %d] and power of 2", QED_MAX_TABLE);
    max = qed_max_size((uint32_t)cluster, (uint32_t)table);
    if (o->exact && (!is_aligned(o->size, 512) || o->size > max))
        return error_set(error,
                         "QED image size must be a non-zero multiple of cluster size and less than %" G_GUINT64_FORMAT
                         " bytes",
                         max);
    if (o->size > max)
        return error_set(error,
                         "The image size is too large for file format 'qed': with clusters of %" G_GUINT64_FORMAT
                         " bytes the limit is %" G_GUINT64_FORMAT,
                         cluster, max);
    if (name > QED_MAX_BACKING)
        return error_set(error, "Backing file name too long: it has %zu bytes, the limit is %d", name, QED_MAX_BACKING);
    *h = (QedHeader){
        .cluster_size = (uint32_t)cluster,
        .table_size = (uint32_t)table,
        .header_bytes = cluster,
        .l1_offset = cluster,
        .image_size = align_up(o->size, 512), /* others would cut a part of a sector off */
    };
    if (name) {
        h->features = QED_F_BACKING_FILE;
        if (g_strcmp0(o->backing_format, "raw") == 0)
            h->features |= QED_F_BACKING_FORMAT_NO_PROBE;
        h->backing_offset = QED_HEADER_BYTES;
        h->backing_size = (uint32_t)name;
    }
    return true;
}

static int create_co_write(Port *file, const QedHeader *h, const char *backing_file)
{
    uint8_t buf[QED_HEADER_BYTES + QED_MAX_BACKING];
    int ret;

    qed_header_store(h, buf);
    if (h->backing_size)
        memcpy(buf + QED_HEADER_BYTES, backing_file, h->backing_size);
    ret = port_co_pwrite_zeroes(file, 0, h->l1_offset + (uint64_t)h->table_size * h->cluster_size, REQ_MAY_UNMAP);
    if (ret == 0)
        ret = port_co_flush(file);
    if (ret == 0)
        ret = port_co_pwrite(file, 0, QED_HEADER_BYTES + h->backing_size, buf, 0);
    return ret == 0 ? port_co_flush(file) : ret;
}

bool qed_co_create(Graph *graph, const char *filename, Port *file, const CreateOptions *o, GError **error)
{
    uint64_t size;
    QedHeader h;
    int ret;

    if (!make_header(o, &h, error))
        return false;
    size = h.l1_offset + (uint64_t)h.table_size * h.cluster_size;
    if (!port_co_truncate(file, 0, false, PREALLOC_MODE_OFF, 0, error) ||
        !port_co_truncate(file, size, false, PREALLOC_MODE_OFF, 0, error))
        return false;
    if (port_size(file) != size)
        return error_set(error, "A qed image needs a file that can grow, which '%s' cannot", filename);
    ret = create_co_write(file, &h, o->backing_file);
    return ret == 0 || error_set_errno(error, -ret, "Could not write qed image '%s'", filename);
}
