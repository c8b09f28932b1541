/*
 * Internal snapshots, as far as they stand in the way: where their tables are, so that nothing overwrites them. Their
 * clusters are safe because they have more than one reference, so the active tables may not change them in place.
 */
#include "block/drivers/qcow2/qcow2.h"

#define ENTRY_FIXED 40 /* bytes of an entry before its variable part */
#define EXTRA_MAX   1024

typedef struct Entry {
    uint64_t l1_offset;
    uint32_t l1_size; /* entries */
    uint64_t length;  /* of the entry itself, bytes */
} Entry;

static bool entry_co_read(Qcow2 *q, uint64_t at, uint32_t i, Entry *entry, GError **error)
{
    uint8_t raw[ENTRY_FIXED];
    uint32_t extra;
    int ret = child_co_pread(q->node->file, at, sizeof(raw), raw, 0);

    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read the snapshot table");
    entry->l1_offset = load_be64(raw);
    entry->l1_size = load_be32(raw + 8);
    extra = load_be32(raw + 36);
    if (extra > EXTRA_MAX)
        return error_set(error,
                         "Invalid snapshot table: snapshot %" G_GUINT32_FORMAT " has %" G_GUINT32_FORMAT
                         " bytes of extra data, the limit is %d",
                         i, extra, EXTRA_MAX);
    if (entry->l1_size > Q2_MAX_L1_BYTES / 8)
        return error_set(error,
                         "Invalid snapshot table: the L1 table of snapshot %" G_GUINT32_FORMAT " has %" G_GUINT32_FORMAT
                         " entries, the limit is %d",
                         i, entry->l1_size, Q2_MAX_L1_BYTES / 8);
    if (!is_aligned(entry->l1_offset, q->cluster_size) || entry->l1_offset > Q2_MAX_HOST - Q2_MAX_L1_BYTES)
        return error_set(error,
                         "Invalid snapshot table: the L1 table of snapshot %" G_GUINT32_FORMAT
                         " lies at 0x%" G_GINT64_MODIFIER "x, not a multiple of the cluster size",
                         i, entry->l1_offset);
    entry->length = align_up(ENTRY_FIXED + extra + load_be16(raw + 12) + load_be16(raw + 14), 8);
    return true;
}

/* The L2 tables of a snapshot's L1 table. */
static bool inactive_co_l2(Qcow2 *q, const Entry *entry, GError **error)
{
    size_t bytes = (size_t)entry->l1_size * 8;
    g_autofree uint8_t *raw = g_try_malloc(bytes + 1);
    int ret;

    if (!raw || !q2_meta_reserve(q, entry->l1_size))
        return error_set(error, "Could not allocate memory for a snapshot's L1 table");
    ret = child_co_pread(q->node->file, entry->l1_offset, bytes, raw, 0);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read a snapshot's L1 table");
    for (uint32_t i = 0; i < entry->l1_size; i++)
        q2_meta_add_table(q, Q2_META_INACTIVE_L2, load_be64(raw + (size_t)i * 8) & Q2_OFFSET_MASK);
    return true;
}

bool q2_snapshots_co_load(Qcow2 *q, GError **error)
{
    uint64_t start = q->header.snapshots_offset, at = start;

    for (uint32_t i = 0; i < q->header.nb_snapshots; i++) {
        Entry entry = {0};
        if (!entry_co_read(q, at, i, &entry, error))
            return false;
        at += entry.length;
        if (at - start > Q2_MAX_SNAPSHOT_BYTES)
            return error_set(error, "Snapshot table too large: the limit is %d bytes", Q2_MAX_SNAPSHOT_BYTES);
        if (!q2_meta_reserve(q, ((uint64_t)entry.l1_size * 8 >> q->cluster_bits) + 2))
            return error_set(error, "Could not allocate the table of qcow2 metadata");
        q2_meta_add(q, Q2_META_INACTIVE_L1, entry.l1_offset, (uint64_t)entry.l1_size * 8);
        if ((q->overlap_mask >> Q2_META_INACTIVE_L2 & 1) && !inactive_co_l2(q, &entry, error))
            return false;
    }
    if (at > start) {
        if (!q2_meta_reserve(q, ((at - start) >> q->cluster_bits) + 2))
            return error_set(error, "Could not allocate the table of qcow2 metadata");
        q2_meta_add(q, Q2_META_SNAPSHOTS, start, at - start);
    }
    return true;
}
