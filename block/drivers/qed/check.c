/*
 * Repair of an image that was not closed: what a crash can leave behind is made good, everything else is refused.
 *
 * A map of the file has a bit for each cluster. Every reference sets its own, so one that is set already is used twice.
 */
#include "block/drivers/qed/qed.h"

#define CHUNK_BYTES  (64 * 1024)
#define CLUSTERS_MAX (UINT64_C(1) << 31) /* a map of 256 MiB */

typedef struct Check {
    Qed *q;
    uint64_t *used;    /* a bit for each cluster of the file */
    uint64_t last_end; /* behind the last cluster in use */
    uint64_t removed;  /* entries */
    uint8_t *l1_chunk, *l2_chunk;
} Check;

/* Enters clusters as used; false when one already was, whose offset is *@ret_twice. */
static bool use_clusters(Check *c, uint64_t offset, uint64_t bytes, uint64_t *ret_twice)
{
    unsigned bits = c->q->cluster_bits;

    for (uint64_t i = offset >> bits; i < (offset + bytes) >> bits; i++) {
        uint64_t bit = UINT64_C(1) << (i % 64);
        if (c->used[i / 64] & bit) {
            *ret_twice = i << bits;
            return false;
        }
        c->used[i / 64] |= bit;
    }
    c->last_end = u64_max(c->last_end, offset + bytes);
    return true;
}

static bool refuse_twice(uint64_t offset, GError **error)
{
    return error_set(error,
                     "Image is corrupt: the cluster at 0x%" G_GINT64_MODIFIER
                     "x is in use twice; cannot be opened read/write",
                     offset);
}

/* Takes an entry to @bytes bytes into account. *@ret_keep: it may stay. */
static bool check_entry(Check *c, uint64_t entry, uint64_t bytes, bool *ret_keep, GError **error)
{
    uint64_t twice;

    *ret_keep = qed_place_ok(c->q, entry, bytes);
    if (!*ret_keep)
        c->removed++;
    else if (!use_clusters(c, entry, bytes, &twice))
        return refuse_twice(twice, error);
    return true;
}

static bool chunk_co_read(Check *c, uint64_t offset, uint8_t *chunk, uint64_t bytes, GError **error)
{
    int ret = child_co_pread(c->q->node->file, offset, bytes, chunk, 0);

    return ret == 0 || error_set_errno(error, -ret, "Could not read tables for checking the image");
}

static bool chunk_co_write(Check *c, uint64_t offset, const uint8_t *chunk, uint64_t bytes, GError **error)
{
    int ret = child_co_pwrite(c->q->node->file, offset, bytes, chunk, 0);

    return ret == 0 || error_set_errno(error, -ret, "Could not repair the image's tables");
}

static bool check_co_l2(Check *c, uint64_t table, GError **error)
{
    uint64_t table_bytes = c->q->table_bytes;

    for (uint64_t at = 0; at < table_bytes; at += CHUNK_BYTES) {
        uint64_t bytes = u64_min(CHUNK_BYTES, table_bytes - at);
        bool changed = false, keep;
        if (!chunk_co_read(c, table + at, c->l2_chunk, bytes, error))
            return false;
        for (uint64_t i = 0; i < bytes; i += 8) {
            uint64_t entry = load_le64(c->l2_chunk + i);
            if (entry <= QED_ENTRY_ZERO)
                continue;
            if (!check_entry(c, entry, c->q->header.cluster_size, &keep, error))
                return false;
            if (!keep) {
                store_le64(c->l2_chunk + i, QED_ENTRY_NONE);
                changed = true;
            }
        }
        if (changed && !chunk_co_write(c, table + at, c->l2_chunk, bytes, error))
            return false;
    }
    return true;
}

static bool check_co_l1(Check *c, GError **error)
{
    Qed *q = c->q;

    for (uint64_t at = 0; at < q->table_bytes; at += CHUNK_BYTES) {
        uint64_t bytes = u64_min(CHUNK_BYTES, q->table_bytes - at);
        bool changed = false, keep;
        if (!chunk_co_read(c, q->header.l1_offset + at, c->l1_chunk, bytes, error))
            return false;
        for (uint64_t i = 0; i < bytes; i += 8) {
            uint64_t entry = load_le64(c->l1_chunk + i);
            if (!entry)
                continue;
            if (!check_entry(c, entry, q->table_bytes, &keep, error) || (keep && !check_co_l2(c, entry, error)))
                return false;
            if (!keep) {
                store_le64(c->l1_chunk + i, 0);
                changed = true;
            }
        }
        if (changed && !chunk_co_write(c, q->header.l1_offset + at, c->l1_chunk, bytes, error))
            return false;
    }
    return true;
}

/* The file ends behind the last cluster in use, where it can be made to. */
static bool check_co_file_end(Check *c, GError **error)
{
    Child *file = c->q->node->file;

    if (c->last_end == file->node->size)
        return true;
    if (!child_co_truncate(file, c->last_end, true, PREALLOC_MODE_OFF, 0,
                           c->last_end > file->node->size ? error : NULL) &&
        c->last_end > file->node->size)
        return false;
    return true;
}

static bool check_co_run(Check *c, GError **error)
{
    Qed *q = c->q;
    uint64_t twice;
    int ret;

    if (!use_clusters(c, 0, q->header.header_bytes, &twice) ||
        !use_clusters(c, q->header.l1_offset, q->table_bytes, &twice))
        return refuse_twice(twice, error);
    if (!check_co_l1(c, error))
        return false;
    ret = order_left_out("qed-repair-entries") ? 0 : child_co_flush(q->node->file);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not repair the image's tables");
    if (!check_co_file_end(c, error))
        return false;
    ret = qed_co_set_features(q, q->header.features & ~QED_F_NEED_CHECK);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not write the header of the repaired image");
    if (c->removed)
        g_printerr("storage-daemon: qed image of node '%s' was not closed and has been repaired: %" G_GUINT64_FORMAT
                   " table entries led to nothing\n",
                   q->node->name, c->removed);
    return true;
}

bool qed_co_repair(Qed *q, GError **error)
{
    uint64_t clusters = div_round_up(q->node->file->node->size, q->header.cluster_size);
    Loop *loop = q->node->loop;
    Check c = {.q = q};
    bool ok;

    if (clusters > CLUSTERS_MAX)
        return error_set(error,
                         "Image needs a check, for which it is too large: its file has %" G_GUINT64_FORMAT
                         " clusters, the limit is %" G_GUINT64_FORMAT,
                         clusters, CLUSTERS_MAX);
    c.used = g_try_new0(uint64_t, clusters / 64 + 1);
    c.l1_chunk = aio_buf_get(loop, CHUNK_BYTES);
    c.l2_chunk = aio_buf_get(loop, CHUNK_BYTES);
    ok = c.used && c.l1_chunk && c.l2_chunk ? check_co_run(&c, error)
                                            : error_set(error, "Could not allocate memory for checking the image");
    g_free(c.used);
    aio_buf_put(loop, c.l1_chunk, CHUNK_BYTES);
    aio_buf_put(loop, c.l2_chunk, CHUNK_BYTES);
    return ok;
}
