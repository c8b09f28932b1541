/*
 * The table of internal snapshots: reading, showing and laying it out.
 *
 * Guarantees: a snapshot table in the image is never changed. Another one is written beside it, and the header switches
 * to it (shadow.c). The table is read once, when the image is opened; nothing in it is believed: its size, the number
 * of snapshots and the lengths in each entry are held against the format's limits and the end of the file. Extra data
 * that we do not know is kept and written back. Entries are written with extra data that version 3 demands in either
 * version.
 *
 * The clusters of a snapshot are safe because they have more than one reference or are none of the active tables', so
 * nothing changes them in place; the tables' places are entered into the set of metadata.
 */
#include "block/drivers/qcow2/snapshot.h"

#define ENTRY_FIXED 40 /* bytes of an entry before its variable part */
#define EXTRA_OURS  24 /* large VM state size, disk size, icount */
#define EXTRA_MAX   1024
#define WINDOW      65536

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* The table as it is being read: @buf holds [@at, @at + @len) of the image. */
typedef struct Reader {
    Qcow2 *q;
    uint64_t start, next; /* of the table, and what was taken last ended at, bytes in the image */
    uint64_t at;
    size_t len;
    uint8_t *buf; /* room for ENTRY_MAX */
} Reader;

#define ENTRY_MAX (ENTRY_FIXED + EXTRA_MAX + 2 * 65535 + 8)

/* The next @size bytes, valid until the next call. What lies behind the file's end reads as zeroes. */
static const uint8_t *reader_co_peek(Reader *r, size_t size, GError **error)
{
    uint64_t limit = r->start + Q2_MAX_SNAPSHOT_BYTES;
    int ret;

    if (r->next + size > limit) {
        error_set(error, "Snapshot table too large: the limit is %d bytes", Q2_MAX_SNAPSHOT_BYTES);
        return NULL;
    }
    if (!r->len || r->next < r->at || r->next + size > r->at + r->len) {
        size_t want = MAX(size, MIN(WINDOW, limit - r->next));
        r->len = 0;
        ret = child_co_pread(r->q->node->file, r->next, want, r->buf, 0);
        if (ret < 0) {
            error_set_errno(error, -ret, "Could not read the snapshot table");
            return NULL;
        }
        r->at = r->next;
        r->len = want;
    }
    return r->buf + (r->next - r->at);
}

/* What the extra data says, as far as there is some. */
static bool take_extra(const Qcow2 *q, Q2Snapshot *s, const uint8_t *extra, uint32_t len)
{
    s->size = q->header.size;
    s->icount = UINT64_MAX;
    if (len >= 8 && load_be64(extra))
        s->vm_state_size = load_be64(extra);
    if (len >= 16)
        s->size = align_down(load_be64(extra + 8), 512);
    if (len >= EXTRA_OURS)
        s->icount = load_be64(extra + 16);
    if (len > EXTRA_OURS) {
        s->unknown_len = len - EXTRA_OURS;
        s->unknown = g_try_malloc(s->unknown_len);
        if (!s->unknown)
            return false;
        memcpy(s->unknown, extra + EXTRA_OURS, s->unknown_len);
    }
    return true;
}

static bool entry_co_read(Reader *r, uint32_t i, Q2Snapshot *s, GError **error)
{
    const uint8_t *raw = reader_co_peek(r, ENTRY_FIXED, error);
    uint32_t extra;
    size_t id_len, name_len, size;

    if (!raw)
        return false;
    s->l1_offset = load_be64(raw);
    s->l1_size = load_be32(raw + 8);
    id_len = load_be16(raw + 12);
    name_len = load_be16(raw + 14);
    s->date_sec = load_be32(raw + 16);
    s->date_nsec = load_be32(raw + 20);
    s->vm_clock_nsec = load_be64(raw + 24);
    s->vm_state_size = load_be32(raw + 32);
    extra = load_be32(raw + 36);
    if (extra > EXTRA_MAX)
        return error_set(error,
                         "Invalid snapshot table: snapshot %" G_GUINT32_FORMAT " has %" G_GUINT32_FORMAT
                         " bytes of extra data, the limit is %d",
                         i, extra, EXTRA_MAX);
    size = ENTRY_FIXED + extra + id_len + name_len;
    raw = reader_co_peek(r, size, error);
    if (!raw)
        return false;
    s->id = g_strndup((const char *)raw + ENTRY_FIXED + extra, id_len);
    s->name = g_strndup((const char *)raw + ENTRY_FIXED + extra + id_len, name_len);
    if (!take_extra(r->q, s, raw + ENTRY_FIXED, extra))
        return error_set(error, "Could not allocate memory for the snapshot table");
    r->next += align_up(size, 8);
    return true;
}

bool q2_snapshots_co_load(Qcow2 *q, GError **error)
{
    g_autofree uint8_t *buf = NULL;
    Reader r = {.q = q, .start = q->header.snapshots_offset, .next = q->header.snapshots_offset};

    if (!q->header.nb_snapshots)
        return true;
    buf = r.buf = g_try_malloc(ENTRY_MAX);
    q->snapshots = g_try_new0(Q2Snapshot, q->header.nb_snapshots);
    if (!buf || !q->snapshots)
        return error_set(error, "Could not allocate memory for the snapshot table");
    for (uint32_t i = 0; i < q->header.nb_snapshots; i++) {
        Q2Snapshot *s = &q->snapshots[q->n_snapshots++];
        if (!entry_co_read(&r, i, s, error))
            return false;
        /* The table must be where it says it is; a sparse file would let it be read for ever. */
        if (r.next > align_up(q->node->file->node->size, q->cluster_size))
            return error_set(error,
                             "Image is truncated: snapshot %" G_GUINT32_FORMAT
                             " of the snapshot table is at 0x%" G_GINT64_MODIFIER
                             "x, the file ends at 0x%" G_GINT64_MODIFIER "x",
                             i, r.next, q->node->file->node->size);
    }
    q->snapshots_bytes = r.next - r.start;
    return true;
}

void q2_snapshot_clear(Q2Snapshot *s)
{
    g_free(s->id);
    g_free(s->name);
    g_free(s->unknown);
}

void q2_snapshots_free(Qcow2 *q)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++)
        q2_snapshot_clear(&q->snapshots[i]);
    g_clear_pointer(&q->snapshots, g_free);
    q->n_snapshots = 0;
}

/* ---- the set of metadata ---------------------------------------------------------------------------------------- */

bool q2_snapshot_check_l1(const Qcow2 *q, const Q2Snapshot *s, GError **error)
{
    if (s->l1_size > Q2_MAX_L1_BYTES / 8)
        return error_set(error,
                         "Invalid snapshot table: the L1 table of snapshot '%s' has %" G_GUINT32_FORMAT
                         " entries, the limit is %d",
                         s->id, s->l1_size, Q2_MAX_L1_BYTES / 8);
    if (!is_aligned(s->l1_offset, q->cluster_size) || s->l1_offset > Q2_MAX_HOST - Q2_MAX_L1_BYTES)
        return error_set(error,
                         "Invalid snapshot table: the L1 table of snapshot '%s' lies at 0x%" G_GINT64_MODIFIER
                         "x, not a multiple of the cluster size",
                         s->id, s->l1_offset);
    return true;
}

bool q2_snapshot_co_l1(Qcow2 *q, const Q2Snapshot *s, uint64_t **ret_l1, GError **error)
{
    size_t bytes = (size_t)s->l1_size * 8;
    uint64_t *l1;
    int ret;

    if (!q2_snapshot_check_l1(q, s, error))
        return false;
    l1 = g_try_malloc(bytes + 1);
    if (!l1)
        return error_set(error, "Could not allocate memory for a snapshot's L1 table");
    ret = bytes ? child_co_pread(q->node->file, s->l1_offset, bytes, l1, 0) : 0;
    if (ret < 0) {
        g_free(l1);
        return error_set_errno(error, -ret, "Could not read a snapshot's L1 table");
    }
    for (uint32_t i = 0; i < s->l1_size; i++)
        l1[i] = load_be64(&l1[i]);
    *ret_l1 = l1;
    return true;
}

/* The L2 tables of a snapshot's L1 table. */
static bool inactive_co_l2(Qcow2 *q, const Q2Snapshot *s, GError **error)
{
    g_autofree uint64_t *l1 = NULL;

    if (!q2_meta_reserve(q, s->l1_size))
        return error_set(error, "Could not allocate the table of qcow2 metadata");
    if (!q2_snapshot_co_l1(q, s, &l1, error))
        return false;
    for (uint32_t i = 0; i < s->l1_size; i++)
        q2_meta_add_table(q, Q2_META_INACTIVE_L2, l1[i] & Q2_OFFSET_MASK);
    return true;
}

bool q2_snapshots_co_meta(Qcow2 *q, GError **error)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        const Q2Snapshot *s = &q->snapshots[i];
        if (!q2_snapshot_check_l1(q, s, error))
            return false;
        if (!q2_meta_reserve(q, ((uint64_t)s->l1_size * 8 >> q->cluster_bits) + 2))
            return error_set(error, "Could not allocate the table of qcow2 metadata");
        q2_meta_add(q, Q2_META_INACTIVE_L1, s->l1_offset, (uint64_t)s->l1_size * 8);
        if ((q->overlap_mask >> Q2_META_INACTIVE_L2 & 1) && !inactive_co_l2(q, s, error))
            return false;
    }
    if (q->n_snapshots) {
        if (!q2_meta_reserve(q, (q->snapshots_bytes >> q->cluster_bits) + 2))
            return error_set(error, "Could not allocate the table of qcow2 metadata");
        q2_meta_add(q, Q2_META_SNAPSHOTS, q->header.snapshots_offset, q->snapshots_bytes);
    }
    return true;
}

/* ---- looking things up ------------------------------------------------------------------------------------------ */

Q2Snapshot *q2_snapshot_find(const Qcow2 *q, const char *id, const char *name)
{
    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        Q2Snapshot *s = &q->snapshots[i];
        if ((!id || !strcmp(s->id, id)) && (!name || !strcmp(s->name, name)))
            return s;
    }
    return NULL;
}

SnapshotInfo *q2_snapshot_info(const Q2Snapshot *s)
{
    SnapshotInfo *info = g_new0(SnapshotInfo, 1);

    info->id = g_utf8_make_valid(s->id, -1);
    info->name = g_utf8_make_valid(s->name, -1);
    info->vm_state_size = (int64_t)s->vm_state_size;
    info->date_sec = s->date_sec;
    info->date_nsec = s->date_nsec;
    info->vm_clock_sec = (int64_t)(s->vm_clock_nsec / 1000000000);
    info->vm_clock_nsec = (int64_t)(s->vm_clock_nsec % 1000000000);
    info->has_icount = s->icount != UINT64_MAX;
    info->icount = info->has_icount ? (int64_t)s->icount : 0;
    return info;
}

SnapshotInfoList *q2_list_snapshots(Node *node)
{
    Qcow2 *q = q2_of(node);
    SnapshotInfoList *list = g_new0(SnapshotInfoList, 1);

    for (uint32_t i = 0; i < q->n_snapshots; i++)
        QAPI_LIST_ADD(list, q2_snapshot_info(&q->snapshots[i]));
    return list;
}

/* ---- laying out ------------------------------------------------------------------------------------------------- */

static size_t entry_size(const Q2Snapshot *s)
{
    return (size_t)align_up(ENTRY_FIXED + EXTRA_OURS + s->unknown_len + strlen(s->id) + strlen(s->name), 8);
}

static void entry_store(const Q2Snapshot *s, uint8_t *to)
{
    size_t id_len = strlen(s->id), name_len = strlen(s->name);
    uint8_t *p = to + ENTRY_FIXED;

    store_be64(to, s->l1_offset);
    store_be32(to + 8, s->l1_size);
    store_be16(to + 12, (uint16_t)id_len);
    store_be16(to + 14, (uint16_t)name_len);
    store_be32(to + 16, s->date_sec);
    store_be32(to + 20, s->date_nsec);
    store_be64(to + 24, s->vm_clock_nsec);
    store_be32(to + 32, s->vm_state_size > UINT32_MAX ? 0 : (uint32_t)s->vm_state_size);
    store_be32(to + 36, EXTRA_OURS + s->unknown_len);
    store_be64(p, s->vm_state_size);
    store_be64(p + 8, s->size);
    store_be64(p + 16, s->icount);
    p += EXTRA_OURS;
    if (s->unknown_len)
        memcpy(p, s->unknown, s->unknown_len);
    p += s->unknown_len;
    memcpy(p, s->id, id_len);
    memcpy(p + id_len, s->name, name_len);
}

uint8_t *q2_snapshots_store(const Q2Snapshot *list, uint32_t n, size_t *ret_size, GError **error)
{
    uint64_t size = 0;
    uint8_t *raw, *p;

    for (uint32_t i = 0; i < n; i++)
        size += entry_size(&list[i]);
    if (n > Q2_MAX_SNAPSHOTS || size > Q2_MAX_SNAPSHOT_BYTES) {
        error_set(error, "Snapshot table too large: the limits are %d snapshots and %d bytes", Q2_MAX_SNAPSHOTS,
                  Q2_MAX_SNAPSHOT_BYTES);
        return NULL;
    }
    raw = p = g_try_malloc0(size + 1);
    if (!raw) {
        error_set(error, "Could not allocate memory for the snapshot table");
        return NULL;
    }
    for (uint32_t i = 0; i < n; i++) {
        entry_store(&list[i], p);
        p += entry_size(&list[i]);
    }
    *ret_size = (size_t)size;
    return raw;
}
