/*
 * The driver: opening, closing, facts.
 *
 * Opening writes nothing. Nothing outside of the image is opened but what the options or the header name as backing.
 */
#include "block/drivers/qcow2/check.h"
#include "block/graph/txn.h"
#include <stdlib.h>

static bool open_co_header(Qcow2 *q, GError **error)
{
    return q2_header_co_read(&q->header, q->node->file, error) && q2_header_check_tables(&q->header, error) &&
           q2_header_check_use(&q->header, node_writable(q->node), error);
}

void q2_set_geometry(Qcow2 *q)
{
    q->cluster_bits = q->header.cluster_bits;
    q->cluster_size = UINT64_C(1) << q->cluster_bits;
    q->l2_entry_bytes = q2_header_l2_entry_bytes(&q->header);
    q->subs = q->l2_entry_bytes == 8 ? 1 : Q2_SUBCLUSTERS;
    q->sub_bits = q->cluster_bits - ilog2(q->subs);
    q->place_mask = q2_has_data_file(q) ? Q2_OFFSET_MASK | Q2_COPIED : Q2_OFFSET_MASK; /* 0 is a place there, too */
    q->zero_flag = q->header.version >= 3 && q->subs == 1 ? Q2_ZERO : 0;
    q->l2_bits = q->cluster_bits - ilog2(q->l2_entry_bytes);
    q->rb_bits = q->cluster_bits + 3 - q->header.refcount_order;
    q->csize_shift = 62 - (q->cluster_bits - 8);
    q->csize_mask = (UINT64_C(1) << (q->cluster_bits - 8)) - 1;
    q->coffset_mask = (UINT64_C(1) << q->csize_shift) - 1;
}

/* A table that begins behind the end of the image was cut off. */
static bool check_not_truncated(const Qcow2 *q, GError **error)
{
    uint64_t size = q->node->file->node->size;

    if (q->header.rt_offset >= size)
        return error_set(error,
                         "Image is truncated: the refcount table is at 0x%" G_GINT64_MODIFIER
                         "x, the file ends at 0x%" G_GINT64_MODIFIER "x",
                         q->header.rt_offset, size);
    if (q->header.l1_size && q->header.l1_offset >= align_up(size, q->cluster_size) + q->cluster_size)
        return error_set(error,
                         "Image is truncated: the L1 table is at 0x%" G_GINT64_MODIFIER
                         "x, the file ends at 0x%" G_GINT64_MODIFIER "x",
                         q->header.l1_offset, size);
    return true;
}

/* Enters all metadata into the set that protects it; only for writers. */
static bool open_co_meta(Qcow2 *q, GError **error)
{
    const Q2Header *h = &q->header;
    uint64_t n = 16 + h->rt_clusters + ((uint64_t)h->l1_size * 8 >> q->cluster_bits);

    for (uint32_t i = 0; i < q->rt_size; i++)
        n += q->rt[i] != 0;
    for (uint32_t i = 0; i < q->l1_size; i++)
        n += (q->l1[i] & Q2_OFFSET_MASK) != 0;
    n += (h->crypto.bytes >> q->cluster_bits) + 2;
    if (!q2_meta_reserve(q, n))
        return error_set(error, "Could not allocate the table of qcow2 metadata");
    q2_meta_add(q, Q2_META_HEADER, 0, q->cluster_size);
    q2_meta_add(q, Q2_META_REFTABLE, h->rt_offset, (uint64_t)h->rt_clusters << q->cluster_bits);
    q2_meta_add(q, Q2_META_L1, h->l1_offset, (uint64_t)h->l1_size * 8);
    for (uint32_t i = 0; i < q->rt_size; i++)
        q2_meta_add_table(q, Q2_META_REFBLOCK, q->rt[i]);
    q2_meta_add(q, Q2_META_CRYPTO, h->crypto.offset, h->crypto.bytes);
    if (!q2_snapshots_co_meta(q, error) || !q2_bitmaps_meta(q, error))
        return false;
    if (!q2_meta_reserve(q, n))
        return error_set(error, "Could not allocate the table of qcow2 metadata");
    for (uint32_t i = 0; i < q->l1_size; i++)
        q2_meta_add_table(q, Q2_META_L2, q->l1[i] & Q2_OFFSET_MASK);
    return true;
}

bool q2_meta_co_fill(Qcow2 *q, GError **error)
{
    q2_meta_free(q);
    return q2_meta_init(q, error) && open_co_meta(q, error);
}

static void clean_timer_fire(void *opaque)
{
    Qcow2 *q = opaque;

    table_cache_clean(&q->l2);
    table_cache_clean(&q->rb);
    timer_arm(&q->clean_timer, loop_now(q->node->loop, LOOP_CLOCK_REAL) + q->clean_interval);
}

static void release_tables(Qcow2 *q)
{
    table_cache_free(&q->l2);
    table_cache_free(&q->rb);
    q2_refcount_free(q);
    g_clear_pointer(&q->l1, g_free);
    g_clear_pointer(&q->l1_dirty, g_free);
    q2_snapshots_free(q);
}

static void release(Qcow2 *q)
{
    if (q->clean_timer.loop)
        timer_cancel(&q->clean_timer);
    release_tables(q);
    q2_crypt_close(q);
    q2_meta_free(q);
    q2_bitmaps_free(q);
    g_clear_pointer(&q->dropped.items, g_free);
    g_clear_pointer(&q->committing.items, g_free);
    g_clear_pointer(&q->written.items, g_free);
    g_clear_pointer(&q->grace.items, g_free);
    q2_header_free(&q->header);
}

/* An image that was not closed and whose refcounts may be late is repaired before anybody writes to it. */
static bool open_co_repair(Qcow2 *q, GError **error)
{
    const CheckOptions options = {.fix = CHECK_FIX_LEAKS | CHECK_FIX_ERRORS};
    CheckResult result = {0};

    if (!node_writable(q->node) || !(q->header.incompat & Q2_INCOMPAT_DIRTY))
        return true;
    if (!q2_co_check(q->node->file, &options, &result, error)) {
        g_prefix_error(error, "Could not repair dirty image: ");
        return false;
    }
    if (result.corruptions || result.check_errors)
        return error_set(error,
                         "Could not repair dirty image: %" G_GUINT64_FORMAT
                         " errors are left, which storage-daemon --check tells",
                         result.corruptions + result.check_errors);
    g_printerr("storage-daemon: qcow2 image of node '%s' was not closed and has been repaired: %" G_GUINT64_FORMAT
               " leaked clusters, %" G_GUINT64_FORMAT " corruptions\n",
               q->node->name, result.leaks_fixed, result.corruptions_fixed);
    q2_header_free(&q->header);
    return open_co_header(q, error);
}

/* Takes the dirty bit off when nothing is left to be written. */
static int settle_co_clean(Qcow2 *q)
{
    int ret = q2_co_settle(q);

    return ret == 0 ? q2_co_set_dirty(q, false) : ret;
}

/* The file that holds the data, where it is not the image's own. */
static bool open_co_data_file(Qcow2 *q, const BlockdevOptionsQcow2 *o, GError **error)
{
    Child *data;

    if (!q2_has_data_file(q))
        return !(q->header.autoclear & Q2_AUTOCLEAR_RAW) || error_set(error, "data-file-raw requires a data file");
    if (!o->data_file && !q->header.data_file)
        return error_set(error, "'data-file' is required for this image");
    data = o->data_file ? node_co_open_child(q->node, "data-file", o->data_file, ROLE_DATA, error)
                        : node_co_open_data_file(q->node, q->header.data_file, error);
    if (data)
        q->data = data;
    return data != NULL;
}

/* Tables and caches, as the header says. */
static bool open_co_tables(Qcow2 *q, GError **error)
{
    q->fresh_above = align_up(q->node->file->node->size, q->cluster_size);
    return q2_l1_co_load(q, error) && q2_refcount_co_init(q, error) && q2_snapshots_co_load(q, error) &&
           table_cache_init(&q->l2, &q2_l2_ops, q->node, q->l2_slice_size, q->l2_cache_tables, error) &&
           table_cache_init(&q->rb, &q2_refblock_ops, q->node, (uint32_t)q->cluster_size, q->rb_cache_tables, error);
}

/* The node, open so far for reading, gets writers: a repair changes what it has in memory. */
static bool reopen_co_repair(Qcow2 *q, GError **error)
{
    if (!(q->header.incompat & Q2_INCOMPAT_DIRTY))
        return true;
    if (!open_co_repair(q, error))
        return false;
    release_tables(q);
    if (open_co_tables(q, error))
        return true;
    q->corrupt = true; /* of the node: without its tables it can answer nothing */
    return false;
}

static bool open_co_image(Qcow2 *q, const BlockdevOptionsQcow2 *o, GError **error)
{
    if (!open_co_header(q, error) || !open_co_repair(q, error))
        return false;
    q2_set_geometry(q);
    if (!check_not_truncated(q, error) || !q2_options_apply(q, o, error) || !open_co_data_file(q, o, error))
        return false;
    if (!q2_meta_init(q, error) || !open_co_tables(q, error))
        return false;
    if (!q2_bitmaps_co_load(q, error) || (node_writable(q->node) && !open_co_meta(q, error)))
        return false;
    if (!q2_crypt_co_open(q, o->encrypt, error))
        return false;
    return backing_co_open(q->node, o->backing, q->header.backing_file, q->header.backing_format, error);
}

static bool q2_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsQcow2 *o = &options->u.qcow2;
    Qcow2 *q = q2_of(node);

    q->node = node;
    q->data = node_co_open_child(node, "file", o->file, ROLE_IMAGE, error);
    if (!q->data)
        return false;
    if (!open_co_image(q, o, error)) {
        release(q);
        return false;
    }
    node->supported_zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    timer_init(&q->clean_timer, node->loop, LOOP_CLOCK_REAL, clean_timer_fire, q);
    if (q->clean_interval)
        timer_arm(&q->clean_timer, loop_now(node->loop, LOOP_CLOCK_REAL) + q->clean_interval);
    return true;
}

static void q2_co_close(Node *node)
{
    Qcow2 *q = q2_of(node);
    g_autoptr(GError) error = NULL;

    if (node_writable(node) && !q->corrupt && !q2_bitmaps_co_store(q, &error))
        g_printerr("storage-daemon: warning: %s; as far as the image holds them they are inconsistent now\n",
                   error->message);

    if (node_writable(node) && !q->corrupt && settle_co_clean(q) < 0)
        g_printerr("storage-daemon: not all metadata of qcow2 node '%s' could be written; what its file lacks are "
                   "changes since the last flush\n",
                   node->name);
    release(q);
}

static bool q2_co_set_read_only(Node *node, bool read_only, GError **error)
{
    Qcow2 *q = q2_of(node);
    int ret;

    if (!read_only) {
        /* Writers need the set; it may stem from an earlier time of writing. */
        if (!q2_header_check_use(&q->header, true, error) || !reopen_co_repair(q, error) || !q2_meta_co_fill(q, error))
            return false;
    } else if (!q->corrupt) {
        if (!q2_bitmaps_co_store(q, error))
            return false;
        ret = settle_co_clean(q);
        if (ret < 0)
            return error_set_errno(error, -ret, "Could not write the metadata of node '%s'", node->name);
    }
    return true;
}

/* Who changes the size writes, too: what the last cluster holds behind the old end. */
static void q2_child_perm(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared,
                          unsigned *ret_perm, unsigned *ret_shared)
{
    perm_default(node, child, role, perm, shared, ret_perm, ret_shared);
    if ((role & ROLE_DATA) && (perm & PERM_RESIZE))
        *ret_perm |= PERM_WRITE;
}

static int q2_co_flush(Node *node)
{
    return q2_co_commit(q2_of(node));
}

static int64_t q2_co_getlength(Node *node)
{
    return (int64_t)q2_of(node)->header.size;
}

static void q2_refresh_limits(Node *node)
{
    if (q2_of(node)->crypt)
        node->limits.request_alignment = MAX(node->limits.request_alignment, CIPHER_SECTOR);
    node->limits.write_zeroes_align = UINT32_C(1) << q2_of(node)->sub_bits;
    node->limits.discard_align = UINT32_C(1) << q2_of(node)->sub_bits;
}

static int q2_probe(const uint8_t *buf, size_t size)
{
    return size >= 8 && load_be32(buf) == Q2_MAGIC && load_be32(buf + 4) >= 2 ? 100 : 0;
}

static void q2_get_info(Node *node, NodeInfo *info)
{
    Qcow2 *q = q2_of(node);

    info->cluster_size = (uint32_t)q->cluster_size;
    info->fill_size = UINT32_C(1) << q->sub_bits;
    info->is_dirty = q->header.incompat & Q2_INCOMPAT_DIRTY;
    info->zero_init = !node->backing;
    info->encrypted = q->crypt;
    info->backing_filename = q->header.backing_file;
    info->backing_format = q->header.backing_format;
}

static ImageInfoSpecific *q2_get_specific_info(Node *node)
{
    Qcow2 *q = q2_of(node);
    ImageInfoSpecific *info = g_new0(ImageInfoSpecific, 1);
    ImageInfoSpecificQcow2 *data = g_new0(ImageInfoSpecificQcow2, 1);

    info->type = IMAGE_INFO_SPECIFIC_KIND_QCOW2;
    info->u.qcow2.data = data;
    data->compat = g_strdup(q->header.version == 2 ? "0.10" : "1.1");
    data->refcount_bits = INT64_C(1) << q->header.refcount_order;
    data->compression_type = q->header.compression_type ? QCOW2_COMPRESSION_TYPE_ZSTD : QCOW2_COMPRESSION_TYPE_ZLIB;
    data->bitmaps = q2_bitmaps_info(q);
    data->encrypt = q->crypt ? q2_crypt_info(q) : NULL;
    if (q->header.version >= 3) {
        data->has_lazy_refcounts = data->has_corrupt = data->has_extended_l2 = true;
        data->extended_l2 = q->subs > 1;
        data->lazy_refcounts = q->header.compat & Q2_COMPAT_LAZY_REFCOUNTS;
        data->corrupt = q->header.incompat & Q2_INCOMPAT_CORRUPT;
    }
    data->data_file = g_strdup(q->header.data_file);
    data->has_data_file_raw = q2_has_data_file(q);
    data->data_file_raw = q2_is_raw(q);
    return info;
}

static bool q2_co_amend(Node *node, const BlockdevAmendOptions *options, bool force, GError **error)
{
    Qcow2 *q = q2_of(node);

    if (q->corrupt)
        return error_set(error, "The image is corrupt");
    return !options->u.qcow2.encrypt || q2_crypt_co_amend(q, options->u.qcow2.encrypt, force, error);
}

const Driver driver_qcow2 = {
    .name = "qcow2",
    .state_size = sizeof(Qcow2),
    .is_format = true,
    .supports_backing = true,
    .grows_zeroed = true,
    .co_open = q2_co_open,
    .co_close = q2_co_close,
    .co_set_read_only = q2_co_set_read_only,
    .co_getlength = q2_co_getlength,
    .refresh_limits = q2_refresh_limits,
    .child_perm = q2_child_perm,
    .co_preadv = q2_co_preadv,
    .co_pwritev = q2_co_pwritev,
    .co_copy_from = q2_co_copy_from,
    .co_pwrite_zeroes = q2_co_pwrite_zeroes,
    .co_pdiscard = q2_co_pdiscard,
    .co_pwritev_compressed = q2_co_pwritev_compressed,
    .co_flush = q2_co_flush,
    .co_block_status = q2_co_block_status,
    .co_truncate = q2_co_truncate,
    .co_change_backing = q2_co_change_backing,
    .can_store_bitmap = q2_can_store_bitmap,
    .co_bitmaps_fit = q2_co_bitmaps_fit,
    .co_touch_bitmaps = q2_co_touch_bitmaps,
    .co_remove_bitmap = q2_co_remove_bitmap,
    .co_amend = q2_co_amend,
    .probe = q2_probe,
    .co_create = q2_co_create,
    .co_check = q2_co_check,
    .get_info = q2_get_info,
    .get_specific_info = q2_get_specific_info,
    .list_snapshots = q2_list_snapshots,
    .co_snapshot_create = q2_co_snapshot_create,
    .co_snapshot_delete = q2_co_snapshot_delete,
    .co_snapshot_apply = q2_co_snapshot_apply,
    .snapshot_size = q2_snapshot_size,
};
