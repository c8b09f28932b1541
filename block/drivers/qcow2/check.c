/*
 * The checker: what refers to which cluster, held against the refcounts, and repair.
 *
 * A pass goes from the header through all tables (active ones, snapshots', bitmaps'), counts the references to every
 * cluster of the file and compares. It writes nothing. A repair is a row of steps with a new pass before each that
 * relies on counts; a power cut anywhere leaves an image that can be repaired again, in which guests find what they
 * found. 1, 2 with 3, and 4 with 5 are durable before what follows, and so are new tables before anything leads to
 * them:
 *
 *   1. version 3, repairing everything: the dirty bit, so that nobody writes before the repair is complete
 *   2. a snapshot table that lacks fields, anew beside the old one (check-snapshots.c); bitmaps that cannot be read are
 *      given up, as a program gives them up that writes without knowing them
 *   3. tables that share their place with something, copied (check-own.c), and entries that lead to nothing, in place
 *      (check-fix.c): from here on all references are to what exists
 *   4. counts, raised and lowered in place (check-refs.c); where blocks are missing, share their clusters with
 * something else or cannot be read, all of them anew beside the old ones (check-rebuild.c)
 *   5. flags of ownership, by the counts, in place. Counts and flags may become durable in any order: a flag that is
 *      set too early belongs to a cluster with one owner, whatever its count says, and one that is gone too early
 *      costs a copy
 *   6. the dirty and the corrupt bit come off, if the last pass finds nothing
 *
 * Counts go down only where a whole pass found no reference; data is never written. Repairing leaks alone is 4, only
 * downwards, and the flags that this makes possible.
 */
#include "block/drivers/qcow2/check.h"

void check_say(Check *c, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list args;

    if (c->silent || !c->options->message)
        return;
    va_start(args, fmt);
    text = g_strdup_vprintf(fmt, args);
    va_end(args);
    c->options->message(c->options->opaque, text);
}

void check_progress(const Check *c, const char *what, uint64_t done, uint64_t total)
{
    if (c->options->progress)
        c->options->progress(c->options->opaque, what, done, total);
}

int check_co_read(Check *c, uint64_t offset, uint64_t bytes, void *buf)
{
    int ret = child_co_pread(c->file, offset, bytes, buf, 0);

    if (ret < 0) {
        c->r.check_errors++;
        check_say(c, "ERROR could not read %" G_GUINT64_FORMAT " bytes at 0x%" G_GINT64_MODIFIER "x: %s", bytes, offset,
                  g_strerror(-ret));
    }
    return ret;
}

bool check_exceeds(const Check *c, uint64_t offset, uint64_t bytes)
{
    return offset + bytes >= c->file->node->size + c->q.cluster_size; /* the last cluster of the file may be cut off */
}

int check_count(Check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t first = offset >> c->q.cluster_bits, last = (offset + bytes - 1) >> c->q.cluster_bits;
    int ret = 0;

    if (!bytes)
        return 0;
    if (check_exceeds(c, offset, bytes)) {
        for (uint64_t ci = u64_max(first, c->clusters); ci <= last && ci < c->room && ret == 0; ci++)
            ret = counts_add(&c->wild, ci);
        c->r.corruptions++;
        check_say(c,
                  "ERROR counting reference for region exceeding the end of the file by one cluster or more: offset "
                  "0x%" G_GINT64_MODIFIER "x size 0x%" G_GINT64_MODIFIER "x",
                  offset, bytes);
        return ret;
    }
    for (uint64_t ci = first; ci <= last && ret == 0; ci++)
        ret = counts_add(&c->refs, ci);
    c->clusters = u64_max(c->clusters, last + 1);
    return ret;
}

uint64_t check_place_behind(const Check *c, uint64_t bytes)
{
    uint64_t first = div_round_up(c->file->node->size, c->q.cluster_size), n = div_round_up(bytes, c->q.cluster_size);

    for (uint64_t ci = first; ci < first + n; ci++)
        if (counts_get(&c->wild, ci))
            first = ci + 1;
    return first << c->q.cluster_bits;
}

/* ---- a pass ------------------------------------------------------------------------------------------------------ */

static int snapshots_co_count(Check *c)
{
    for (uint32_t i = 0; i < c->n_snapshots; i++) {
        CheckSnapshot *s = &c->snapshots[i];
        bool aligned = is_aligned(s->l1_offset, c->q.cluster_size);
        int ret;
        if (!aligned || s->l1_size > Q2_MAX_L1_BYTES / 8) {
            c->r.corruptions++;
            check_say(c, "ERROR snapshot %" G_GUINT32_FORMAT ": its L1 table %s", i,
                      aligned ? "is too large" : "is not cluster aligned");
            s->l1_size = 0;
            continue;
        }
        ret = check_count(c, s->l1_offset, (uint64_t)s->l1_size * 8);
        if (ret < 0)
            return ret;
    }
    return check_count(c, c->q.header.snapshots_offset, c->snapshots_bytes);
}

static int pass_co_count(Check *c)
{
    const Q2Header *h = &c->q.header;
    int ret = check_count(c, 0, c->q.cluster_size);

    if (ret == 0)
        ret = check_count(c, h->l1_offset, (uint64_t)h->l1_size * 8);
    if (ret == 0)
        ret = check_count(c, h->crypto.offset, h->crypto.bytes);
    if (ret == 0)
        ret = snapshots_co_count(c);
    if (ret == 0)
        ret = check_co_walk(c, &check_count_visitor, false);
    if (ret == 0)
        ret = check_co_bitmaps(c);
    if (ret == 0 && !c->no_refcounts)
        ret = check_co_refcount_structure(c);
    return ret;
}

static void pass_forget(Check *c)
{
    counts_free(&c->refs);
    counts_free(&c->tables);
    counts_free(&c->wild);
    c->entries_wrong = c->copied_wrong = 0;
    c->rebuild = c->bitmaps_broken = false;
    c->r = (CheckResult){.format = c->r.format, .image_end_offset = c->q.cluster_size};
}

int check_co_pass(Check *c)
{
    uint64_t size = c->file->node->size;
    int ret;

    pass_forget(c);
    c->clusters = div_round_up(size, c->q.cluster_size);
    c->room = c->clusters + c->clusters / 16 + 4096;
    c->r.total_clusters = div_round_up(c->q.header.size, c->q.cluster_size);
    if (!counts_init(&c->refs, c->room) || !counts_init(&c->tables, c->room) || !counts_init(&c->wild, c->room))
        return -ENOMEM;
    ret = check_co_read_snapshots(c);
    if (ret == 0)
        ret = check_co_load_refcount_table(c);
    if (ret == 0)
        ret = pass_co_count(c);
    if (ret == 0 && !c->no_refcounts)
        ret = check_co_compare(c, 0);
    c->entries_wrong += check_l1_shared(c) + check_tables_shared(c);
    return ret;
}

/* ---- repair ------------------------------------------------------------------------------------------------------ */

static int bits_co_set(Check *c, uint64_t incompat, const char *site)
{
    uint8_t field[8];
    int ret;

    if (c->q.header.version < 3 || c->q.header.incompat == incompat)
        return 0;
    store_be64(field, incompat);
    ret = child_co_pwrite(c->file, Q2_H_INCOMPAT, sizeof(field), field, 0);
    if (ret == 0)
        ret = check_co_barrier(c, site);
    if (ret == 0)
        c->q.header.incompat = incompat;
    return ret;
}

/* Without the bit that vouches for them bitmaps are nothing to anybody. */
static int drop_co_bitmaps(Check *c)
{
    uint64_t autoclear = c->q.header.autoclear & ~(uint64_t)Q2_AUTOCLEAR_BITMAPS;
    uint8_t field[8];
    int ret;

    store_be64(field, autoclear);
    ret = child_co_pwrite(c->file, Q2_H_AUTOCLEAR, sizeof(field), field, 0);
    if (ret == 0) {
        c->q.header.autoclear = autoclear;
        c->q.header.bitmaps = (Q2Bitmaps){0};
    }
    return ret;
}

/* 2 and 3. */
static int repair_co_entries(Check *c)
{
    bool wrong = c->entries_wrong;
    int ret = 0;

    if (!wrong && !c->snapshots_incomplete && !c->bitmaps_broken)
        return 0;
    if (c->snapshots_incomplete)
        ret = check_co_rewrite_snapshots(c);
    if (ret == 0 && c->bitmaps_broken)
        ret = drop_co_bitmaps(c);
    if (ret == 0 && wrong)
        ret = check_co_own_l1(c);
    if (ret == 0 && wrong)
        ret = check_co_walk(c, &check_entries_visitor, false);
    if (ret == 0)
        ret = check_co_barrier(c, "repair-entries");
    return ret == 0 ? check_co_pass(c) : ret;
}

/* 4. */
static int repair_co_counts(Check *c)
{
    int ret;

    if (!(c->fix & CHECK_FIX_ERRORS) && (c->rebuild || c->bitmaps_broken))
        return 0;
    if (!c->rebuild)
        return check_co_compare(c, c->fix);
    c->no_refcounts = true;
    ret = check_co_pass(c);
    if (ret == 0)
        ret = check_co_rebuild(c);
    c->no_refcounts = false;
    return ret == 0 ? check_co_pass(c) : ret;
}

static int repair_co_steps(Check *c)
{
    bool all = c->fix & CHECK_FIX_ERRORS;
    int ret = 0;

    if (all)
        ret = bits_co_set(c, c->q.header.incompat | Q2_INCOMPAT_DIRTY, "repair-begins");
    if (ret == 0 && all)
        ret = repair_co_entries(c);
    if (ret == 0)
        ret = repair_co_counts(c);
    if (ret == 0 && (all || !c->rebuild))
        ret = check_co_walk(c, &check_copied_visitor, true);
    return ret == 0 ? check_co_barrier(c, "repair-complete") : ret;
}

static uint64_t fewer(uint64_t before, uint64_t after)
{
    return before > after ? before - after : 0;
}

static int check_co_repair(Check *c)
{
    uint64_t bits = c->q.header.incompat, both = Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT;
    CheckResult first = c->r;
    int ret = 0;

    if (first.corruptions || first.leaks || first.check_errors) {
        c->silent = true;
        ret = repair_co_steps(c);
        c->silent = false;
        if (ret == 0)
            ret = check_co_pass(c);
        c->r.corruptions_fixed = fewer(first.corruptions, c->r.corruptions);
        c->r.leaks_fixed = fewer(first.leaks, c->r.leaks);
    }
    if (ret == 0 && !c->r.corruptions && !c->r.check_errors)
        bits &= ~both;
    return ret == 0 ? bits_co_set(c, bits, "repair-ends") : ret;
}

/* ---- from outside ------------------------------------------------------------------------------------------------ */

static bool check_co_open(Check *c, GError **error)
{
    if (!q2_header_co_read(&c->q.header, c->file, error) || !q2_header_check_use(&c->q.header, false, error))
        return false;
    q2_set_geometry(&c->q);
    c->has_data_file = c->q.header.incompat & Q2_INCOMPAT_DATA_FILE;
    if ((c->q.header.autoclear & Q2_AUTOCLEAR_RAW) && !c->has_data_file)
        return error_set(error, "data-file-raw requires a data file");
    if (c->has_data_file && !c->q.header.data_file) /* maybe a bit has fallen over: then all data would seem leaked */
        return error_set(error, "'data-file' is required for this image");
    c->max_refcount = UINT64_MAX >> (64 - (UINT64_C(1) << c->q.header.refcount_order));
    c->n_slots = (unsigned)u64_max(4, u64_min(REF_SLOTS_MAX, (8 << 20) >> c->q.cluster_bits));
    return true;
}

bool q2_co_check(Child *file, const CheckOptions *options, CheckResult *result, GError **error)
{
    Check c = {.file = file, .options = options, .fix = options->fix, .r = *result};
    int ret;

    if (!check_co_open(&c, error)) {
        q2_header_free(&c.q.header);
        return false;
    }
    ret = check_co_pass(&c);
    if (ret == 0 && c.fix)
        ret = check_co_repair(&c);
    *result = c.r;
    pass_forget(&c);
    check_forget_refcounts(&c);
    g_free(c.snapshots);
    q2_header_free(&c.q.header);
    return ret == 0 || error_set_errno(error, -ret, "Check failed");
}
