/*
 * The driver: opening, closing, facts.
 *
 * Opening writes nothing, unless the image says that it was not closed and is opened for writing: then it is repaired.
 */
#include "block/drivers/qed/qed.h"

static bool open_co_header(Qed *q, GError **error)
{
    Child *file = q->node->file;
    uint8_t buf[QED_HEADER_BYTES], name[QED_MAX_BACKING];
    uint64_t size = file->node->size, len = u64_min(size, sizeof(buf));
    int ret = len ? child_co_pread(file, 0, len, buf, 0) : 0;

    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read qed header");
    if (!qed_header_parse(&q->header, buf, len, size, error))
        return false;
    if (!(q->header.features & QED_F_BACKING_FILE) || !q->header.backing_size)
        return true;
    ret = child_co_pread(file, q->header.backing_offset, q->header.backing_size, name, 0);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read the backing file's name");
    q->backing_file = g_strndup((const char *)name, q->header.backing_size);
    return true;
}

static void set_geometry(Qed *q)
{
    q->cluster_bits = ilog2(q->header.cluster_size);
    q->table_bytes = (uint64_t)q->header.table_size * q->header.cluster_size;
    q->table_bits = ilog2(q->table_bytes / 8);
}

static const char *backing_format(const Qed *q)
{
    return q->header.features & QED_F_BACKING_FORMAT_NO_PROBE ? "raw" : NULL;
}

/* For whoever is going to write. */
static bool open_co_writable(Qed *q, GError **error)
{
    if ((q->header.features & QED_F_NEED_CHECK) && !qed_co_repair(q, error))
        return false;
    q->end = q->fresh_above = align_up(q->node->file->node->size, q->header.cluster_size);
    q->grown = false;
    q->n_spare = 0;
    return true;
}

static void release(Qed *q)
{
    table_cache_free(&q->tables);
    g_clear_pointer(&q->backing_file, g_free);
}

static bool qed_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsGenericCOWFormat *o = &options->u.qed;
    Qed *q = qed_of(node);

    q->node = node;
    if (!node_co_open_child(node, "file", o->file, ROLE_IMAGE, error))
        return false;
    if (!open_co_header(q, error))
        return false;
    set_geometry(q);
    if (!qed_tables_init(q, 0, error) ||
        !backing_co_open(node, o->backing, q->backing_file, backing_format(q), error) ||
        (node_writable(node) && !open_co_writable(q, error))) {
        release(q);
        return false;
    }
    node->supported_zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    return true;
}

static void qed_co_close(Node *node)
{
    Qed *q = qed_of(node);

    if (node_writable(node) && qed_co_settle(q) < 0)
        g_printerr("storage-daemon: not all tables of qed node '%s' could be written; what its file lacks are changes "
                   "since the last flush\n",
                   node->name);
    release(q);
}

static bool qed_co_set_read_only(Node *node, bool read_only, GError **error)
{
    Qed *q = qed_of(node);
    int ret;

    /* A repair changes tables that may be in the cache. */
    if (!read_only)
        return open_co_writable(q, error) && qed_tables_init(q, 0, error);
    ret = qed_co_settle(q);
    return ret == 0 || error_set_errno(error, -ret, "Could not write the tables of node '%s'", node->name);
}

static int qed_co_flush(Node *node)
{
    return qed_co_commit(qed_of(node));
}

static int64_t qed_co_getlength(Node *node)
{
    return (int64_t)qed_of(node)->header.image_size;
}

static void qed_refresh_limits(Node *node)
{
    node->limits.write_zeroes_align = qed_of(node)->header.cluster_size;
}

static int qed_probe(const uint8_t *buf, size_t size)
{
    return size >= QED_HEADER_BYTES && load_le32(buf) == QED_MAGIC ? 100 : 0;
}

static void qed_get_info(Node *node, NodeInfo *info)
{
    Qed *q = qed_of(node);

    info->cluster_size = q->header.cluster_size;
    info->is_dirty = q->header.features & QED_F_NEED_CHECK;
    info->zero_init = !node->backing;
    info->backing_filename = q->backing_file;
    info->backing_format = backing_format(q);
}

const Driver driver_qed = {
    .name = "qed",
    .state_size = sizeof(Qed),
    .is_format = true,
    .supports_backing = true,
    .grows_zeroed = true,
    .co_open = qed_co_open,
    .co_close = qed_co_close,
    .co_set_read_only = qed_co_set_read_only,
    .co_getlength = qed_co_getlength,
    .refresh_limits = qed_refresh_limits,
    .co_preadv = qed_co_preadv,
    .co_pwritev = qed_co_pwritev,
    .co_pwrite_zeroes = qed_co_pwrite_zeroes,
    .co_flush = qed_co_flush,
    .co_block_status = qed_co_block_status,
    .co_truncate = qed_co_truncate,
    .probe = qed_probe,
    .co_create = qed_co_create,
    .co_check = qed_co_check,
    .co_change_backing = qed_co_change_backing,
    .get_info = qed_get_info,
};
