/*
 * Making images.
 *
 * Guarantees: the header is written last, behind a flush of everything else, so a half-made file is no qcow2 image, and
 * one that is has all that its header promises. What a file held before does not show: it is emptied where it can be;
 * where not (a device), the clusters of the disk that get their place now are zeroed.
 *
 * Preallocation: metadata gives every cluster of the disk its place; falloc and full reserve and write what those
 * clusters take, in the data file where there is one.
 */
#include "block/drivers/qcow2/create.h"
#include "block/crypto/wipe.h"
#include "block/format/crypt.h"

#define DEFAULT_CLUSTER 65536

static bool check_version(const CreateOptions *o, unsigned version, GError **error)
{
    const char *what = o->lazy_refcounts                            ? "Lazy refcounts only supported"
                       : o->extended_l2                             ? "Extended L2 entries are only supported"
                       : o->data_file                               ? "External data files are only supported"
                       : o->zstd                                    ? "Non-zlib compression type is only supported"
                       : o->refcount_bits && o->refcount_bits != 16 ? "Different refcount widths than 16 bits require"
                                                                    : NULL;
    bool width = what && g_str_has_prefix(what, "Different");

    if (version >= 3 || !what)
        return true;
    return error_set(error, "%s %scompatibility level 1.1 %sabove (use version=v3 or greater)", what,
                     width ? "" : "with ", width ? "or " : "and ");
}

static bool check_options(const CreateOptions *o, GError **error)
{
    unsigned version = o->version ? (unsigned)o->version : 3;
    uint64_t cluster = o->cluster_size ? o->cluster_size : DEFAULT_CLUSTER;

    if (o->exact && !is_aligned(o->size, 512))
        return error_set(error, "Image size must be a multiple of 512 bytes");
    if (!is_pow2(cluster) || cluster < 1 << Q2_MIN_CLUSTER_BITS || cluster > 1 << Q2_MAX_CLUSTER_BITS)
        return error_set(error, "Cluster size must be a power of two between %d and %dk", 1 << Q2_MIN_CLUSTER_BITS,
                         1 << (Q2_MAX_CLUSTER_BITS - 10));
    if (version != 2 && version != 3)
        return error_set(error, "Unsupported qcow2 version %u", version);
    if (o->refcount_bits && (!is_pow2((uint64_t)o->refcount_bits) || o->refcount_bits > 64))
        return error_set(error, "Refcount width must be a power of two and may not exceed 64 bits");
    if (!check_version(o, version, error))
        return false;
    if (o->extended_l2 && cluster < Q2_SUBCLUSTERS << Q2_MIN_SUB_BITS)
        return error_set(error, "Extended L2 entries are only supported with cluster sizes of at least %u bytes",
                         Q2_SUBCLUSTERS << Q2_MIN_SUB_BITS);
    if (o->backing_format && !o->backing_file)
        return error_set(error, "Backing format cannot be used without backing file");
    if (o->backing_file && o->preallocation != PREALLOC_MODE_OFF && !o->extended_l2)
        return error_set(error,
                         "Backing file and preallocation can only be used at the same time if extended_l2 is on");
    if (o->data_file_raw && !o->data_file)
        return error_set(error, "data-file-raw requires data-file");
    if (o->data_file_raw && o->backing_file)
        return error_set(error, "Backing file and data-file-raw cannot be used at the same time");
    return true;
}

/* Whatever can go wrong about encryption before anything is written. */
static bool check_encryption(Port *file, const CreateOptions *o, GError **error)
{
    const QCryptoBlockCreateOptions *e = o->encrypt;
    const char *secret;
    char *password;
    uint64_t bytes;

    if (!e)
        return true;
    secret = e->format == Q_CRYPTO_BLOCK_FORMAT_LUKS ? e->u.luks.key_secret : e->u.qcow.key_secret;
    if (!secret)
        return error_set(error, "Parameter 'encrypt.key-secret' is required for cipher");
    if (o->data_file_raw)
        return error_set(error, "Encryption and data-file-raw cannot be used at the same time");
    if (o->preallocation != PREALLOC_MODE_OFF && o->version == 2)
        return error_set(error, "Encryption and preallocation can only be used at the same time with compatibility "
                                "level 1.1 and above (use version=v3 or greater)");
    password = secret_password(graph_secrets(file->graph), secret, error);
    if (!password)
        return false;
    wipe_free_string(password);
    return e->format != Q_CRYPTO_BLOCK_FORMAT_LUKS || luks_create_bytes(&e->u.luks, &bytes, error);
}

/* Refcount blocks count themselves, so their number is found step by step. */
static bool count_blocks(Q2Layout *l, GError **error)
{
    uint64_t per_block = l->cluster * 8 >> l->refcount_order;

    l->blocks = l->rt_clusters = 1;
    for (;;) {
        uint64_t blocks, rt;
        l->total = q2_layout_data(l) + l->data;
        blocks = div_round_up(l->total, per_block);
        rt = div_round_up(blocks * 8, l->cluster);
        if (l->total > Q2_MAX_HOST >> l->cluster_bits || rt > (uint64_t)MAX(Q2_MAX_RT_BYTES >> l->cluster_bits, 1))
            return error_set(error, "The image size is too large for file format 'qcow2' (try using a larger cluster "
                                    "size): its refcount table would exceed the limit");
        if (blocks <= l->blocks && rt <= l->rt_clusters)
            return true;
        l->blocks = blocks;
        l->rt_clusters = rt;
    }
}

static bool make_layout(const CreateOptions *o, Q2Layout *l, GError **error)
{
    uint64_t cluster = o->cluster_size ? o->cluster_size : DEFAULT_CLUSTER, per_table;

    if (o->size > (uint64_t)INT64_MAX - cluster)
        return error_set(error, "The image size is too large for file format 'qcow2'");
    *l = (Q2Layout){
        .version = o->version ? (unsigned)o->version : 3,
        .cluster_bits = ilog2(cluster),
        .cluster = cluster,
        .refcount_order = o->refcount_bits ? ilog2((uint64_t)o->refcount_bits) : 4,
        .entry_bytes = o->extended_l2 ? 16 : 8,
        .size = align_up(o->size, 512),
        .raw = o->data_file_raw,
        .encrypted = o->encrypt,
        /* QEMU looks up nothing but entries, in a raw data file as well. */
        .prepared = o->preallocation != PREALLOC_MODE_OFF || o->data_file_raw,
    };
    if (o->encrypt && o->encrypt->format == Q_CRYPTO_BLOCK_FORMAT_LUKS &&
        !luks_create_bytes(&o->encrypt->u.luks, &l->crypto_bytes, error))
        return false;
    l->crypto = div_round_up(l->crypto_bytes, cluster);
    per_table = cluster / l->entry_bytes;
    l->disk = div_round_up(l->size, cluster);
    l->l1_entries = div_round_up(l->disk, per_table);
    if (l->l1_entries > Q2_MAX_L1_BYTES / 8)
        return error_set(error,
                         "The image size is too large for file format 'qcow2' (try using a larger cluster size)");
    l->l1_clusters = div_round_up(l->l1_entries * 8, cluster);
    l->l2_tables = l->prepared ? l->l1_entries : 0;
    l->data = l->prepared && !o->data_file ? l->disk : 0;
    return count_blocks(l, error);
}

/* The file gets its size, and the clusters of the disk their space. */
static bool create_co_space(Port *file, const CreateOptions *o, const Q2Layout *l, GError **error)
{
    bool emptied;
    uint64_t data = q2_layout_data(l) << l->cluster_bits, end = l->total << l->cluster_bits;
    PreallocMode mode = o->preallocation == PREALLOC_MODE_METADATA ? PREALLOC_MODE_OFF : o->preallocation;
    int ret = 0;

    if (!port_co_truncate(file, 0, false, PREALLOC_MODE_OFF, 0, error))
        return false;
    emptied = port_size(file) == 0;
    /* From here on it is not what it was, and says so even if the machine dies now. */
    if (!emptied)
        ret = port_co_pwrite_zeroes(file, 0, u64_min(l->cluster, port_size(file)), 0);
    if (ret == 0 && !emptied)
        ret = port_co_flush(file);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not clear the old header");
    if (!port_co_truncate(file, data, false, PREALLOC_MODE_OFF, 0, error))
        return false;
    if (end > data && !port_co_truncate(file, end, false, emptied ? mode : PREALLOC_MODE_OFF, 0, error))
        return false;
    if (port_size(file) < end)
        return error_set(
            error, "The file is too small: a new qcow2 image of this size needs %" G_GUINT64_FORMAT " bytes", end);
    if (end == data || emptied)
        return true;
    ret = port_co_pwrite_zeroes(file, data, end - data, mode == PREALLOC_MODE_OFF ? REQ_MAY_UNMAP : 0);
    return ret == 0 || error_set_errno(error, -ret, "Could not zero the space of the new image");
}

/* The data file is as large as the disk, and empty. */
static bool create_co_data_file(const CreateOptions *o, const Q2Layout *l, GError **error)
{
    PreallocMode mode = o->preallocation == PREALLOC_MODE_METADATA ? PREALLOC_MODE_OFF : o->preallocation;
    bool emptied;
    int ret = 0;

    if (!o->data_file)
        return true;
    if (!port_co_truncate(o->data_file, 0, false, PREALLOC_MODE_OFF, 0, error))
        return false;
    emptied = port_size(o->data_file) == 0;
    if (!port_co_truncate(o->data_file, l->size, false, emptied ? mode : PREALLOC_MODE_OFF, 0, error))
        return false;
    if (port_size(o->data_file) < l->size)
        return error_set(error, "The data file is too small: it has to hold %" G_GUINT64_FORMAT " bytes", l->size);
    if (!emptied && l->prepared)
        ret = port_co_pwrite_zeroes(o->data_file, 0, l->size, mode == PREALLOC_MODE_OFF ? REQ_MAY_UNMAP : 0);
    if (ret == 0)
        ret = port_co_flush(o->data_file);
    return ret == 0 || error_set_errno(error, -ret, "Could not write the data file");
}

bool q2_co_create(Graph *graph, const char *filename, Port *file, const CreateOptions *o, GError **error)
{
    g_autofree uint8_t *header = NULL;
    Q2Layout l;
    int ret;

    if (!check_options(o, error) || !check_encryption(file, o, error) || !make_layout(o, &l, error))
        return false;
    header = g_try_malloc0(l.cluster);
    if (!header)
        return error_set(error, "Could not allocate memory for the qcow2 header");
    if (!q2_create_header(o, &l, header, error) || !create_co_data_file(o, &l, error) ||
        !create_co_space(file, o, &l, error))
        return false;
    if (l.crypto && !crypt_co_create(file, q2_layout_crypto(&l) << l.cluster_bits, &o->encrypt->u.luks, error))
        return false;
    ret = q2_create_co_tables(file, &l);
    if (ret == 0)
        ret = port_co_flush(file);
    if (ret == 0)
        ret = port_co_pwrite(file, 0, l.cluster, header, 0);
    if (ret == 0)
        ret = port_co_flush(file);
    return ret == 0 || error_set_errno(error, -ret, "Could not write qcow2 image '%s'", filename);
}
