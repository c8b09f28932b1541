/*
 * Making images: header, refcount table, refcount blocks and an empty L1 table, one after the other.
 *
 * The header is written last, behind a flush, so a half-made file is no qcow2 image.
 */
#include "block/drivers/qcow2/qcow2.h"
#include "block/graph/port.h"

#define DEFAULT_CLUSTER 65536
#define REFCOUNT_ORDER  4

/* Where everything goes, in clusters; the header is cluster 0. */
typedef struct Layout {
    unsigned cluster_bits;
    uint64_t size; /* of the disk, whole sectors: others would cut a part of one off */
    uint64_t l1_entries;
    uint64_t rt_clusters, blocks, l1_clusters, total;
} Layout;

static bool make_layout(const CreateOptions *o, Layout *l, GError **error)
{
    uint64_t cluster = o->cluster_size ? o->cluster_size : DEFAULT_CLUSTER, per_block, cover;

    if (!is_pow2(cluster) || cluster < 512 || cluster > 2 << 20)
        return error_set(error, "Cluster size must be a power of two between %d and %dk", 1 << Q2_MIN_CLUSTER_BITS,
                         1 << (Q2_MAX_CLUSTER_BITS - 10));
    if (o->version && o->version != 2 && o->version != 3)
        return error_set(error, "Unsupported qcow2 version %d", o->version);
    l->cluster_bits = ilog2(cluster);
    cover = cluster / 8 * cluster;
    if (o->size > (uint64_t)INT64_MAX - cluster)
        return error_set(error, "The image size is too large for file format 'qcow2'");
    l->size = align_up(o->size, 512);
    l->l1_entries = div_round_up(l->size, cover);
    if (l->l1_entries > Q2_MAX_L1_BYTES / 8)
        return error_set(error,
                         "The image size is too large for file format 'qcow2' (try using a larger cluster size)");
    l->l1_clusters = div_round_up(l->l1_entries * 8, cluster);
    per_block = cluster * 8 >> REFCOUNT_ORDER;
    l->blocks = l->rt_clusters = 1;
    for (;;) {
        l->total = 1 + l->rt_clusters + l->blocks + l->l1_clusters;
        uint64_t blocks = div_round_up(l->total, per_block), rt = div_round_up(blocks * 8, cluster);
        if (blocks <= l->blocks && rt <= l->rt_clusters)
            return true;
        l->blocks = blocks;
        l->rt_clusters = rt;
    }
}

static void feature_name(uint8_t **at, uint8_t type, uint8_t bit, const char *name)
{
    uint8_t *p = *at;

    p[0] = type;
    p[1] = bit;
    memcpy(p + 2, name, strlen(name)); /* 46 bytes, the rest is zero */
    *at += 48;
}

static uint8_t *extension(uint8_t *at, uint32_t type, const void *data, size_t len)
{
    store_be32(at, type);
    store_be32(at + 4, (uint32_t)len);
    if (len)
        memcpy(at + 8, data, len);
    return at + 8 + align_up(len, 8);
}

/* The first cluster into @buf, which has room for it and is zero. */
static bool make_header(const CreateOptions *o, const Layout *l, uint8_t *buf, GError **error)
{
    unsigned version = o->version ? (unsigned)o->version : 3;
    size_t length = version == 2 ? Q2_V2_HEADER : Q2_OUR_HEADER, cluster = (size_t)1 << l->cluster_bits;
    size_t name_len = o->backing_file ? strlen(o->backing_file) : 0;
    size_t format_len = o->backing_file && o->backing_format ? strlen(o->backing_format) : 0;
    uint8_t names[7 * 48] = {0}, *end = names, *at = buf + length;

    feature_name(&end, 0, 0, "dirty bit");
    feature_name(&end, 0, 1, "corrupt bit");
    feature_name(&end, 0, 2, "external data file");
    feature_name(&end, 0, 3, "compression type");
    feature_name(&end, 0, 4, "extended L2 entries");
    feature_name(&end, 1, 0, "lazy refcounts");
    feature_name(&end, 2, 0, "bitmaps");
    if (format_len > 15)
        return error_set(error, "Backing format name '%s' is too long, the limit is 15 bytes", o->backing_format);
    if (name_len > Q2_MAX_BACKING)
        return error_set(error, "Backing file name too long: it has %zu bytes, the limit is %d", name_len,
                         Q2_MAX_BACKING);
    if (length + 8 + align_up(format_len, 8) + 8 + name_len > cluster)
        return error_set(error,
                         "Backing file name too long: it has %zu bytes and does not fit into a header cluster "
                         "of %zu",
                         name_len, cluster);
    if (format_len)
        at = extension(at, Q2_EXT_BACKING_FORMAT, o->backing_format, format_len);
    /* The table of names is a help for others' error messages; small clusters have no room for it. */
    if (version > 2 && (size_t)(at - buf) + 8 + sizeof(names) + 8 + name_len <= cluster)
        at = extension(at, Q2_EXT_FEATURES, names, sizeof(names));
    at = extension(at, 0, NULL, 0);
    if (name_len) {
        memcpy(at, o->backing_file, name_len);
        store_be64(buf + 8, (uint64_t)(at - buf));
        store_be32(buf + 16, (uint32_t)name_len);
    }
    store_be32(buf, Q2_MAGIC);
    store_be32(buf + 4, version);
    store_be32(buf + 20, l->cluster_bits);
    store_be64(buf + Q2_H_SIZE, l->size);
    store_be32(buf + Q2_H_L1_SIZE, (uint32_t)l->l1_entries);
    store_be64(buf + Q2_H_L1_SIZE + 4, (1 + l->rt_clusters + l->blocks) << l->cluster_bits);
    store_be64(buf + Q2_H_RT_OFFSET, UINT64_C(1) << l->cluster_bits);
    store_be32(buf + Q2_H_RT_OFFSET + 8, (uint32_t)l->rt_clusters);
    if (version > 2) {
        store_be32(buf + 96, REFCOUNT_ORDER);
        store_be32(buf + 100, (uint32_t)length);
    }
    return true;
}

/* Refcount table and blocks: @total clusters are in use, once each. */
static int create_co_refcounts(Port *file, const Layout *l)
{
    uint64_t bytes = (l->rt_clusters + l->blocks) << l->cluster_bits, first = 1 + l->rt_clusters;
    g_autofree uint8_t *buf = g_try_malloc0(bytes);

    if (!buf)
        return -ENOMEM;
    for (uint64_t b = 0; b < l->blocks; b++)
        store_be64(buf + b * 8, (first + b) << l->cluster_bits);
    for (uint64_t i = 0; i < l->total; i++)
        q2_refcount_set(buf + (l->rt_clusters << l->cluster_bits), REFCOUNT_ORDER, i, 1);
    return port_co_pwrite(file, UINT64_C(1) << l->cluster_bits, bytes, buf, 0);
}

bool q2_co_create(Graph *graph, const char *filename, Port *file, const CreateOptions *o, GError **error)
{
    Layout l = {0};
    g_autofree uint8_t *header = NULL;
    int ret;

    if (!make_layout(o, &l, error))
        return false;
    header = g_try_malloc0((size_t)1 << l.cluster_bits);
    if (!header)
        return error_set(error, "Could not allocate memory for the qcow2 header");
    if (!make_header(o, &l, header, error))
        return false;
    /* The L1 table lies at the end and is zero, as what a file grows by is. */
    if (!port_co_truncate(file, l.total << l.cluster_bits, false, PREALLOC_MODE_OFF, 0, error))
        return false;
    ret = create_co_refcounts(file, &l);
    if (ret == 0)
        ret = port_co_pwrite_zeroes(file, (l.total - l.l1_clusters) << l.cluster_bits, l.l1_clusters << l.cluster_bits,
                                    0);
    if (ret == 0)
        ret = port_co_flush(file);
    if (ret == 0)
        ret = port_co_pwrite(file, 0, UINT64_C(1) << l.cluster_bits, header, 0);
    if (ret == 0)
        ret = port_co_flush(file);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not write qcow2 image '%s'", filename);
    return true;
}
