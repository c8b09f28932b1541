/*
 * The snapshot table, read without trust, and written anew where entries lack what version 3 wants of them, or where
 * the table goes on behind its largest size: of what cannot be found there nothing is left.
 *
 * A new table goes behind the end of the file and is durable before the header names it, which is durable with the
 * other repaired entries; the counts of its clusters and those of the old one are the following pass's business. Until
 * then the image is marked dirty, so nobody writes to it without that pass.
 */
#include "block/drivers/qcow2/check.h"

#define ENTRY_FIXED 40
#define EXTRA_MIN   16 /* bytes that version 3 requires */
#define EXTRA_MAX   1024

/* An entry of the table: where its parts are. */
typedef struct Entry {
    uint8_t fixed[ENTRY_FIXED];
    uint32_t extra;
    uint64_t length; /* padded */
} Entry;

static int entry_co_read(Check *c, uint64_t at, Entry *e)
{
    int ret = check_co_read(c, at, ENTRY_FIXED, e->fixed);

    e->extra = load_be32(e->fixed + 36);
    e->length = align_up(ENTRY_FIXED + (uint64_t)e->extra + load_be16(e->fixed + 12) + load_be16(e->fixed + 14), 8);
    return ret;
}

static int table_bad(Check *c, const char *why)
{
    c->r.check_errors++;
    check_say(c, "ERROR snapshot table: %s", why);
    return -EINVAL;
}

int check_co_read_snapshots(Check *c)
{
    const Q2Header *h = &c->q.header;
    uint64_t at = h->snapshots_offset,
             excess = h->nb_snapshots > Q2_MAX_SNAPSHOTS ? h->nb_snapshots - Q2_MAX_SNAPSHOTS : 0;
    uint32_t n = h->nb_snapshots - (uint32_t)excess;

    g_clear_pointer(&c->snapshots, g_free);
    c->n_snapshots = 0;
    c->snapshots_bytes = 0;
    c->snapshots_incomplete = false;
    if (!is_aligned(at, c->q.cluster_size) || at > Q2_MAX_HOST)
        return table_bad(c, "its offset is no multiple of the cluster size, or out of range");
    if (excess && !(c->fix & CHECK_FIX_ERRORS))
        return table_bad(c, "it has more than 65536 entries");
    if (!n && !excess)
        return 0;
    c->snapshots = g_try_new0(CheckSnapshot, n);
    if (!c->snapshots)
        return -ENOMEM;
    for (uint32_t i = 0; i < n; i++) {
        Entry e;
        int ret = entry_co_read(c, at, &e);
        if (ret < 0)
            return ret;
        if (e.extra > EXTRA_MAX && !(c->fix & CHECK_FIX_ERRORS))
            return table_bad(c, "an entry has more than 1024 bytes of extra data");
        if (e.extra > EXTRA_MAX || (h->version >= 3 && e.extra < EXTRA_MIN)) {
            c->r.corruptions++;
            c->snapshots_incomplete = true;
            check_say(c, "ERROR snapshot table entry %" G_GUINT32_FORMAT " %s", i,
                      e.extra > EXTRA_MAX ? "has too much extra data" : "is incomplete");
        }
        if (at + e.length - h->snapshots_offset > Q2_MAX_SNAPSHOT_BYTES) {
            if (!(c->fix & CHECK_FIX_ERRORS))
                return table_bad(c, "it has more than 64 MiB");
            excess += n - i; /* nobody can say where the next one begins */
            break;
        }
        c->snapshots[i] = (CheckSnapshot){.l1_offset = load_be64(e.fixed), .l1_size = load_be32(e.fixed + 8)};
        c->n_snapshots = i + 1;
        at += e.length;
    }
    c->snapshots_bytes = at - h->snapshots_offset;
    if (excess) {
        c->r.corruptions += excess;
        c->snapshots_incomplete = true;
        check_say(c, "ERROR snapshot table has %" G_GUINT64_FORMAT " entries too many", excess);
    }
    return 0;
}

/* Appends the entry at @at, completed, to @out. */
static int entry_co_complete(Check *c, uint64_t at, const Entry *e, GByteArray *out)
{
    uint32_t had = MIN(e->extra, EXTRA_MAX), extra = MAX(had, c->q.header.version >= 3 ? EXTRA_MIN : 0);
    uint64_t names = load_be16(e->fixed + 12) + (uint64_t)load_be16(e->fixed + 14);
    g_autofree uint8_t *new = g_malloc0(ENTRY_FIXED + EXTRA_MAX + 2 * 65536);
    int ret = check_co_read(c, at, ENTRY_FIXED + had, new);

    if (ret == 0)
        ret = check_co_read(c, at + ENTRY_FIXED + e->extra, names, new + ENTRY_FIXED + extra);
    if (ret < 0)
        return ret;
    store_be32(new + 36, extra);
    /* Bytes 0 to 7: the size of the VM state, as in the fixed part; 8 to 15: the disk's. */
    if (e->extra < 8 && extra >= EXTRA_MIN)
        store_be64(new + ENTRY_FIXED, load_be32(e->fixed + 32));
    if (e->extra < EXTRA_MIN && extra >= EXTRA_MIN)
        store_be64(new + ENTRY_FIXED + 8, c->q.header.size);
    g_byte_array_append(out, new, (guint)align_up(ENTRY_FIXED + extra + names, 8));
    return 0;
}

int check_co_rewrite_snapshots(Check *c)
{
    uint64_t at = c->q.header.snapshots_offset, to;
    g_autoptr(GByteArray) table = g_byte_array_new();
    uint8_t field[12];
    int ret = 0;

    for (uint32_t i = 0; i < c->n_snapshots && ret == 0; i++) {
        Entry e;
        ret = entry_co_read(c, at, &e);
        if (ret == 0)
            ret = entry_co_complete(c, at, &e, table);
        at += e.length;
        if (table->len > Q2_MAX_SNAPSHOT_BYTES)
            ret = -EFBIG;
    }
    if (ret < 0)
        return ret;
    g_byte_array_set_size(table, (guint)align_up(table->len, 512));
    to = check_place_behind(c, table->len);
    ret = child_co_pwrite(c->file, to, table->len, table->data, 0);
    if (ret == 0)
        ret = check_co_barrier(c, "repair-snapshots");
    if (!c->n_snapshots)
        to = 0;
    store_be32(field, c->n_snapshots);
    store_be64(field + 4, to);
    if (ret == 0)
        ret = child_co_pwrite(c->file, 60, sizeof(field), field, 0);
    if (ret == 0) {
        c->q.header.nb_snapshots = c->n_snapshots;
        c->q.header.snapshots_offset = to;
    }
    return ret;
}
