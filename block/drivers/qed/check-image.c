/*
 * The checker for `storage-daemon --check`: a walk through all tables of an image that nobody has open.
 *
 * A map has a bit for each cluster of the file; a reference to one that is set is one too many, and what stays clear is
 * leaked. A repair removes entries that lead to nothing, makes that durable, then cuts leaked clusters off the file's
 * end, then takes the flag off that asks for a check. Two entries that share a cluster stay: nobody can tell whose it
 * is. After a power cut in between the repair begins anew.
 */
#include "block/drivers/qed/qed.h"
#include "block/graph/check.h"

#define CLUSTERS_MAX (UINT64_C(1) << 31) /* a map of 256 MiB */

typedef struct Check {
    Child *file;
    QedHeader header;
    const CheckOptions *options;
    CheckResult r;
    uint64_t table_bytes, clusters; /* of a table; of the file */
    uint64_t *used;
    uint64_t last_end; /* behind the last cluster in use, bytes */
    unsigned fix;
} Check;

static void G_GNUC_PRINTF(2, 3) say(const Check *c, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    if (!c->options->message)
        return;
    va_start(args, fmt);
    text = g_strdup_vprintf(fmt, args);
    va_end(args);
    c->options->message(c->options->opaque, text);
}

/* Enters clusters as used; false when one of them already was. */
static bool use(Check *c, uint64_t offset, uint64_t bytes)
{
    bool once = true;

    for (uint64_t i = offset / c->header.cluster_size; i < (offset + bytes) / c->header.cluster_size; i++) {
        uint64_t bit = UINT64_C(1) << (i % 64);
        if (c->used[i / 64] & bit) {
            once = false;
            c->r.corruptions++;
            say(c, "ERROR cluster %" G_GUINT64_FORMAT " is in use twice", i);
        }
        c->used[i / 64] |= bit;
    }
    c->last_end = u64_max(c->last_end, offset + bytes);
    return once;
}

/* Can an entry lead to @bytes at @offset? If not it is told, or goes with a repair: *@entry is 0 then. */
static bool entry_ok(Check *c, uint64_t *entry, uint64_t bytes, const char *table)
{
    uint64_t end = align_up(c->file->node->size, c->header.cluster_size);

    if (is_aligned(*entry, c->header.cluster_size) && *entry >= c->header.header_bytes && *entry <= end &&
        bytes <= end - *entry)
        return true;
    if (c->fix & CHECK_FIX_ERRORS) {
        *entry = 0;
        c->r.corruptions_fixed++;
        return false;
    }
    c->r.corruptions++;
    say(c, "ERROR %s entry leads to 0x%" G_GINT64_MODIFIER "x, where nothing can be", table, *entry);
    return false;
}

static int table_co_read(Check *c, uint64_t offset, uint8_t *table)
{
    int ret = child_co_pread(c->file, offset, c->table_bytes, table, 0);

    c->r.check_errors += ret < 0;
    return ret;
}

static int check_co_l2(Check *c, uint64_t offset, uint8_t *table)
{
    uint64_t last = 0;
    bool changed = false;
    int ret = table_co_read(c, offset, table);

    for (uint64_t i = 0; i < c->table_bytes && ret == 0; i += 8) {
        uint64_t entry = load_le64(table + i), old = entry;
        if (entry <= QED_ENTRY_ZERO)
            continue;
        c->r.allocated_clusters++;
        c->r.fragmented_clusters += last && last + c->header.cluster_size != entry;
        last = entry;
        if (entry_ok(c, &entry, c->header.cluster_size, "L2"))
            use(c, entry, c->header.cluster_size);
        if (entry != old) {
            store_le64(table + i, entry);
            changed = true;
        }
    }
    if (ret == 0 && changed)
        ret = child_co_pwrite(c->file, offset, c->table_bytes, table, 0);
    return ret;
}

static int check_co_l1(Check *c, uint8_t *l1, uint8_t *l2)
{
    bool changed = false;
    int ret = table_co_read(c, c->header.l1_offset, l1);

    for (uint64_t i = 0; i < c->table_bytes && ret == 0; i += 8) {
        uint64_t entry = load_le64(l1 + i), old = entry;
        if (!entry)
            continue;
        if (entry_ok(c, &entry, c->table_bytes, "L1") && use(c, entry, c->table_bytes))
            ret = check_co_l2(c, entry, l2);
        if (entry != old) {
            store_le64(l1 + i, entry);
            changed = true;
        }
        if (c->options->progress)
            c->options->progress(c->options->opaque, "Checking", i * c->table_bytes / 8 * c->header.cluster_size,
                                 c->table_bytes * c->table_bytes / 64 * c->header.cluster_size);
    }
    if (ret == 0 && changed)
        ret = child_co_pwrite(c->file, c->header.l1_offset, c->table_bytes, l1, 0);
    return ret;
}

static void count_leaks(Check *c)
{
    uint64_t whole = c->file->node->size / c->header.cluster_size;

    for (uint64_t i = c->header.header_bytes / c->header.cluster_size; i < whole; i++)
        c->r.leaks += !(c->used[i / 64] >> (i % 64) & 1);
    if (c->r.leaks)
        say(c, "Leaked clusters: %" G_GUINT64_FORMAT, c->r.leaks);
}

/* Behind the walk: what is at the end of the file and not in use, and the flag. */
static int check_co_finish(Check *c)
{
    uint64_t size = c->file->node->size, end = c->last_end;
    uint64_t tail = size > end ? size / c->header.cluster_size - end / c->header.cluster_size : 0;
    uint8_t field[8];
    int ret;

    if (!c->fix || c->r.corruptions || c->r.check_errors)
        return 0;
    ret = order_left_out("qed-check-entries") ? 0 : child_co_flush(c->file);
    if (ret == 0 && size > end && child_co_truncate(c->file, c->last_end, true, PREALLOC_MODE_OFF, 0, NULL)) {
        c->r.leaks -= tail;
        c->r.leaks_fixed += tail;
    }
    store_le64(field, c->header.features & ~QED_F_NEED_CHECK);
    if (ret == 0 && c->header.features & QED_F_NEED_CHECK)
        ret = child_co_pwrite(c->file, QED_H_FEATURES, sizeof(field), field, 0);
    return ret == 0 && !order_left_out("qed-check-ends") ? child_co_flush(c->file) : ret;
}

static int check_co_run(Check *c)
{
    Loop *loop = c->file->node->loop;
    uint8_t *l1 = aio_buf_get(loop, c->table_bytes), *l2 = aio_buf_get(loop, c->table_bytes);
    int ret = -ENOMEM;

    c->used = g_try_new0(uint64_t, c->clusters / 64 + 1);
    if (c->used && l1 && l2) {
        use(c, 0, c->header.header_bytes);
        use(c, c->header.l1_offset, c->table_bytes);
        ret = check_co_l1(c, l1, l2);
    }
    if (ret == 0) {
        count_leaks(c);
        ret = check_co_finish(c);
    }
    g_free(c->used);
    aio_buf_put(loop, l1, c->table_bytes);
    aio_buf_put(loop, l2, c->table_bytes);
    return ret;
}

bool qed_co_check(Child *file, const CheckOptions *options, CheckResult *result, GError **error)
{
    Check c = {.file = file, .options = options, .fix = options->fix, .r = *result};
    uint64_t size = file->node->size;
    uint8_t buf[QED_HEADER_BYTES];
    int ret = child_co_pread(file, 0, sizeof(buf), buf, 0);

    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read qed header");
    if (!qed_header_parse(&c.header, buf, u64_min(size, sizeof(buf)), size, error))
        return false;
    c.table_bytes = (uint64_t)c.header.table_size * c.header.cluster_size;
    c.clusters = div_round_up(size, c.header.cluster_size);
    c.r.total_clusters = div_round_up(c.header.image_size, c.header.cluster_size);
    if (c.clusters > CLUSTERS_MAX)
        return error_set(error, "The file has %" G_GUINT64_FORMAT " clusters, the limit is %" G_GUINT64_FORMAT,
                         c.clusters, CLUSTERS_MAX);
    ret = check_co_run(&c);
    *result = c.r;
    return ret == 0 || error_set_errno(error, -ret, "Check failed");
}
