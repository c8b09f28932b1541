/*
 * What persistent bitmaps occupy: their directory, a table for each, and the data that the tables name.
 *
 * Where one makes no sense nobody can say what belongs to them, so there is no verdict on leaks; a repair of everything
 * gives them up. They are no guest data, and inventing bits would be worse than having none.
 */
#include "block/drivers/qcow2/check.h"

#define DIR_FIXED       24 /* bytes of a directory entry before its variable part */
#define FLAGS_KNOWN     3  /* in use, auto */
#define TYPE_DIRTY      1
#define NAME_MAX_BYTES  1023
#define GRANULARITY_MIN 9
#define GRANULARITY_MAX 31
#define TABLE_MAX       (8 << 20) /* entries */

/* An entry of the directory. */
typedef struct Entry {
    uint64_t table;
    uint32_t table_size, flags;
    uint8_t type, granularity_bits;
    uint16_t name_size;
    uint32_t extra;
} Entry;

static int bitmaps_bad(Check *c, const char *why)
{
    c->r.check_errors++;
    c->bitmaps_broken = true;
    check_say(c, "ERROR bitmaps: %s", why);
    return 0;
}

/* One bitmap's table of @n entries at @offset. */
static int table_co_count(Check *c, uint64_t offset, uint64_t n)
{
    g_autofree uint8_t *table = NULL;
    int ret = check_count(c, offset, n * 8);

    if (ret < 0)
        return ret;
    table = g_try_malloc(n * 8 + 1);
    if (!table)
        return -ENOMEM;
    ret = check_co_read(c, offset, n * 8, table);
    c->bitmaps_broken |= check_exceeds(c, offset, n * 8);
    for (uint64_t i = 0; i < n && ret == 0; i++) {
        uint64_t entry = load_be64(table + i * 8), data = entry & Q2_OFFSET_MASK;
        if ((entry & Q2_BITMAP_RESERVED) || !is_aligned(data, c->q.cluster_size) || (data && (entry & 1)))
            return bitmaps_bad(c, "an entry of a bitmap's table makes no sense");
        if (data)
            c->bitmaps_broken |= check_exceeds(c, data, c->q.cluster_size);
        if (data)
            ret = check_count(c, data, c->q.cluster_size);
    }
    return ret;
}

static Entry entry_load(const uint8_t *raw)
{
    return (Entry){
        .table = load_be64(raw),
        .table_size = load_be32(raw + 8),
        .flags = load_be32(raw + 12),
        .type = raw[16],
        .granularity_bits = raw[17],
        .name_size = load_be16(raw + 18),
        .extra = load_be32(raw + 20),
    };
}

/* What is wrong with an entry; NULL: nothing. */
static const char *entry_wrong(const Check *c, const Entry *e)
{
    uint64_t bits, need;

    if (e->extra)
        return "one has extra data, which nobody knows";
    if (e->flags & ~(uint32_t)FLAGS_KNOWN)
        return "one has unknown flags";
    if (e->type != TYPE_DIRTY)
        return "one is of an unknown type";
    if (!e->name_size || e->name_size > NAME_MAX_BYTES)
        return "one has no name, or one that is too long";
    if (e->granularity_bits < GRANULARITY_MIN || e->granularity_bits > GRANULARITY_MAX)
        return "one has a granularity that is out of range";
    if (!e->table || !is_aligned(e->table, c->q.cluster_size) || e->table > Q2_MAX_HOST || !e->table_size ||
        e->table_size > TABLE_MAX)
        return "one has its table where none can be";
    bits = div_round_up(c->q.header.size, UINT64_C(1) << e->granularity_bits);
    need = div_round_up(div_round_up(bits, 8), c->q.cluster_size);
    /* One in use may be of another size: it is not relied on. */
    return !(e->flags & 1) && e->table_size != need ? "one has a table that is not as large as the disk asks" : NULL;
}

static int entries_co_count(Check *c, const uint8_t *dir, uint64_t size)
{
    g_autoptr(GHashTable) names =
        g_hash_table_new_full(g_bytes_hash, g_bytes_equal, (GDestroyNotify)g_bytes_unref, NULL);
    uint64_t at = 0;

    for (uint32_t i = 0; i < c->q.header.bitmaps.n; i++) {
        const char *wrong;
        uint64_t length;
        Entry e;
        int ret;
        if (size - at < DIR_FIXED)
            return bitmaps_bad(c, "the directory ends before the last one");
        e = entry_load(dir + at);
        length = align_up(DIR_FIXED + (uint64_t)e.extra + e.name_size, 8);
        if (length > size - at)
            return bitmaps_bad(c, "an entry is longer than the directory");
        wrong = entry_wrong(c, &e);
        if (!wrong && !g_hash_table_add(names, g_bytes_new(dir + at + DIR_FIXED, e.name_size)))
            wrong = "two have the same name";
        if (wrong)
            return bitmaps_bad(c, wrong);
        ret = table_co_count(c, e.table, e.table_size);
        if (ret < 0 || c->r.check_errors)
            return ret;
        at += length;
    }
    return at == size ? 0 : bitmaps_bad(c, "the directory has more than they need");
}

int check_co_bitmaps(Check *c)
{
    const Q2Bitmaps *b = &c->q.header.bitmaps;
    g_autofree uint8_t *dir = NULL;
    int ret;

    if (!b->n)
        return 0;
    ret = check_count(c, b->directory_offset, b->directory_size);
    if (ret < 0)
        return ret;
    dir = g_try_malloc(b->directory_size + 1);
    if (!dir)
        return -ENOMEM;
    ret = check_co_read(c, b->directory_offset, b->directory_size, dir);
    return ret == 0 ? entries_co_count(c, dir, b->directory_size) : ret;
}
