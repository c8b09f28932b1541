/*
 * Repairs: an image with snapshots and bitmaps is damaged at random, and the power goes while it is repaired.
 *
 * Whatever is cut off, the guest's disk and all snapshots hold what they held in the damaged image, as far as that
 * could be read; bitmaps that were not hit by the damage are there. As long as the dirty bit does not keep writers away
 * the image is no worse for them than it was: no count is too low that was not. What a repair reported to be done is
 * done. A second repair of everything ends with nothing left to be found, neither by this checker nor by qemu-img.
 *
 * In some runs the repair is the second one: the first failed, or was cut off as well.
 *
 * qed images have one disk, no counts, and leaks in the middle that stay; they are also repaired by opening them.
 */
#include "tests/fault/replay/damage.h"
#include "tests/fault/replay/run.h"
#include "block/drivers/qcow2/qcow2.h"
#include "block/drivers/qed/qed.h"
#include "block/graph/bitmap.h"
#include "block/graph/check.h"
#include "block/graph/graph-int.h"
#include "block/graph/snapshot.h"
#include "block/util/bytes.h"
#include "qapi/rt/json.h"
#include <inttypes.h>
#include <stdio.h>

#define BITMAP "bits"

/* What a disk reads as. */
typedef struct Content {
    uint8_t *data;
    uint64_t size;
    bool *known; /* for each cluster: could it be read? */
} Content;

/* The image before the repair, and how the repair went; of the present run. */
static struct {
    Content disk;
    GArray *snapshots; /* of Content */
    bool opens;
    uint8_t *bits; /* of the bitmap, a byte for each; NULL: there is none, or it will be given up */
    uint64_t incompat, clusters;
    GHashTable *low; /* numbers of the clusters whose counts are too low */
    unsigned fix;
    uint64_t done; /* moment */
    CheckResult result;
} was;

static bool is_qed(const Run *run)
{
    return strcmp(run->w->format, "qed") == 0;
}

/* ---- content ---------------------------------------------------------------------------------------------------- */

static void content_clear(void *opaque)
{
    Content *c = opaque;

    g_clear_pointer(&c->data, g_free);
    g_clear_pointer(&c->known, g_free);
}

/* The image on "file"; NULL: it does not open. */
static Node *open_co_image(Run *run, ViewMode mode, GError **error)
{
    g_autofree char *json = run_view_json(run, &g_array_index(run->views, View, 0), "image", mode);
    g_autoptr(Tree) tree = json_parse(json, -1, NULL);
    g_autoptr(BlockdevOptions) options = qapi_decode_BlockdevOptions(tree, NULL);

    return node_co_open(run->daemon->graph, options, NULL, error);
}

static void content_co_read(Run *run, Node *node, Content *c)
{
    Port *port = port_co_new(run->daemon->graph, node, PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL, NULL);
    uint64_t cluster = run->w->cluster;

    c->size = port_size(port);
    c->data = g_malloc0(c->size + 1);
    c->known = g_new0(bool, c->size / cluster + 1);
    for (uint64_t at = 0; at < c->size; at += cluster)
        c->known[at / cluster] = port_co_pread(port, at, u64_min(cluster, c->size - at), c->data + at, 0) == 0;
    port_co_free(port);
}

/* Snapshot @i (UINT32_MAX: the disk itself) as a reader finds it: the header is made to say that it is all there is,
 * for that long. False and *@ret_why: it does not open, or is not there. */
static bool content_co_load(Run *run, uint32_t i, Content *c, char **ret_why)
{
    const Disk *disk = disk_get("file");
    uint8_t header[80];
    g_autoptr(GError) error = NULL;
    uint64_t entry = i == UINT32_MAX ? 0 : snapshot_entry_at(disk, i);
    Node *node;

    if (i != UINT32_MAX && !entry) {
        *ret_why = g_strdup_printf("snapshot %" PRIu32 " is gone", i);
        return false;
    }
    memcpy(header, disk->data, sizeof(header));
    if (entry) {
        memcpy(disk->data + Q2_H_L1_SIZE, disk->data + entry + 8, 4);
        memcpy(disk->data + Q2_H_L1_SIZE + 4, disk->data + entry, 8);
        store_be32(disk->data + 60, 0);
    }
    node = open_co_image(run, VIEW_READ, &error);
    if (node)
        content_co_read(run, node, c);
    else
        *ret_why = g_strdup_printf("the image does not open: %s", error->message);
    node_co_unref(node);
    memcpy(disk->data, header, sizeof(header));
    return node != NULL;
}

static bool content_is(const Run *run, const Content *want, const Content *got, const char *what, char **ret_why)
{
    uint64_t cluster = run->w->cluster;

    if (want->size != got->size) {
        *ret_why = g_strdup_printf("%s has %" PRIu64 " bytes, not %" PRIu64, what, got->size, want->size);
        return false;
    }
    for (uint64_t at = 0; at < want->size; at += cluster) {
        bool known = got->known[at / cluster];
        if (!want->known[at / cluster] ||
            (known && memcmp(want->data + at, got->data + at, u64_min(cluster, want->size - at)) == 0))
            continue;
        *ret_why = g_strdup_printf("cluster %" PRIu64 " of %s %s", at / cluster, what,
                                   known ? "holds something else" : "cannot be read any more");
        return false;
    }
    return true;
}

static bool contents_co_hold(Run *run, const char *when, char **ret_why)
{
    for (uint32_t i = 0; i <= was.snapshots->len; i++) {
        const Content *want = i ? &g_array_index(was.snapshots, Content, i - 1) : &was.disk;
        g_autofree char *what = i ? g_strdup_printf("snapshot %" PRIu32 ", %s", i - 1, when)
                                  : g_strdup_printf("the guest's disk, %s,", when);
        Content got = {0};
        bool ok = content_co_load(run, i - 1, &got, ret_why) && content_is(run, want, &got, what, ret_why);
        content_clear(&got);
        if (!ok)
            return false;
    }
    return true;
}

/* ---- the checker ------------------------------------------------------------------------------------------------ */

/* Takes the clusters out of messages whose counts are said to be too low, or cannot be read. */
static void note_low(void *opaque, const char *text)
{
    uint64_t first, last, count, refs;

    if (sscanf(text, "ERROR cluster %" SCNu64 " refcount=%" SCNu64 " reference=%" SCNu64, &first, &count, &refs) == 3)
        last = first;
    else if (sscanf(text, "ERROR clusters %" SCNu64 " to %" SCNu64 " refcount=", &first, &last) != 2 &&
             sscanf(text, "ERROR the refcounts of clusters %" SCNu64 " to %" SCNu64 " cannot", &first, &last) != 2)
        return;
    for (uint64_t ci = first; ci <= last; ci++)
        g_hash_table_add(opaque, GSIZE_TO_POINTER(ci));
}

/* @low: where to note the clusters whose counts are too low, or NULL. False: it did not come to an end. */
static bool image_co_checks(Run *run, unsigned fix, ViewMode mode, GHashTable *low, CheckResult *r, char **ret_why)
{
    const CheckOptions options = {.fix = fix, .message = low ? note_low : NULL, .opaque = low};
    g_autoptr(GError) error = NULL;
    Port *port = run_co_disk(run, "file", mode);
    bool ok = driver_find(run->w->format)->co_check(port->child, &options, r, &error);

    if (mode == VIEW_LOGGED) /* closing flushes as well, but fails in silence */
        was.done = blklogwrites_moment();
    port_co_free(port);
    if (!ok)
        *ret_why = g_strdup_printf("the checker fails: %s", error->message);
    return ok;
}

/* The bits of the header, as qcow2 has them. */
static uint64_t incompat_now(void)
{
    const uint8_t *header = disk_get("file")->data;

    if (load_be32(header) != Q2_MAGIC)
        return load_le64(header + QED_H_FEATURES) & QED_F_NEED_CHECK ? Q2_INCOMPAT_DIRTY : 0;
    return load_be32(header + 4) < 3 ? 0 : load_be64(header + Q2_H_INCOMPAT);
}

/* ---- judging ---------------------------------------------------------------------------------------------------- */

static bool found_less(const CheckResult *r, uint64_t corruptions, uint64_t leaks, const char *what, char **ret_why)
{
    if (r->corruptions <= corruptions && r->leaks <= leaks && (!r->check_errors || was.result.check_errors))
        return true;
    *ret_why = g_strdup_printf("%s: %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors", what,
                               r->corruptions, r->leaks, r->check_errors);
    return false;
}

/* Nothing is worse than at the beginning for somebody who writes to it. */
static bool counts_no_worse(const GHashTable *low, char **ret_why)
{
    bool version2 = load_be32(disk_get("file")->data + 4) < 3; /* has no bit that would keep writers from new tables */
    GHashTableIter iter;
    gpointer key;

    g_hash_table_iter_init(&iter, (GHashTable *)low);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        uint64_t ci = GPOINTER_TO_SIZE(key);
        if (g_hash_table_contains(was.low, key) || (version2 && ci >= was.clusters))
            continue;
        *ret_why = g_strdup_printf("cluster %" PRIu64 " has too low a count, and nothing keeps writers away", ci);
        return false;
    }
    return true;
}

static bool judge_co_counts(Run *run, uint64_t when, char **ret_why)
{
    g_autoptr(GHashTable) low = g_hash_table_new(NULL, NULL);
    uint64_t both = Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT, bits = incompat_now() & both;
    bool all = was.fix & CHECK_FIX_ERRORS && !was.result.corruptions && !was.result.check_errors;
    CheckResult r = {0};

    if (bits & Q2_INCOMPAT_DIRTY && when < was.done) /* that keeps them away */
        return true;
    if (!image_co_checks(run, 0, VIEW_READ, low, &r, ret_why))
        return false;
    if (when >= was.done && all && bits) {
        *ret_why = g_strdup_printf("bits 0x%" PRIx64 " are there after the repair", bits);
        return false;
    }
    if (when >= was.done)
        return found_less(&r, was.result.corruptions, was.result.leaks, "after a repair that reported less", ret_why);
    if (bits != (was.incompat & both))
        return found_less(&r, 0, is_qed(run) ? UINT64_MAX : 0, "the bits are gone, but there are", ret_why);
    return counts_no_worse(low, ret_why);
}

/* The bitmap as the image has it, a byte for each bit. NULL: it is not there, or not consistent. Caller frees. */
static uint8_t *bits_co_read(Run *run)
{
    Node *node = open_co_image(run, VIEW_READ, NULL);
    const Bitmap *bitmap = node ? bitmap_find(node, BITMAP) : NULL;
    uint8_t *bits = NULL;

    if (bitmap && !bitmap->inconsistent) {
        bits = g_new(uint8_t, run->sectors);
        for (uint64_t s = 0; s < run->sectors; s++)
            bits[s] = hbitmap_get(bitmap->bits, s * SECTOR);
    }
    node_co_unref(node);
    return bits;
}

static bool judge_co_bitmap(Run *run, char **ret_why)
{
    g_autofree uint8_t *bits = was.bits ? bits_co_read(run) : NULL;

    if (was.bits && (!bits || memcmp(bits, was.bits, run->sectors) != 0))
        *ret_why = g_strdup(bits ? "the bitmap is another one" : "the bitmap is gone");
    return !*ret_why;
}

/* It is written to, and a snapshot comes back. Nothing but leaks may come of it: counts behind the end of the file are
 * no finding before the file has grown. What is on the disk stays as it was. */
static bool use_co_image(Run *run, char **ret_why)
{
    Disk *disk = disk_get("file");
    g_autofree uint8_t *before = g_memdup2(disk->data, disk->size);
    uint64_t size = disk->size;
    uint32_t i = (uint32_t)rnd(was.snapshots->len);
    g_autofree char *name = g_strdup_printf("s%" PRIu32, i);
    g_autoptr(GError) error = NULL;
    Node *node = open_co_image(run, VIEW_WRITE, &error);
    Content got = {0};
    CheckResult r = {0};
    bool ok = node && node_co_snapshot_apply(node, NULL, name, &error);

    if (ok)
        content_co_read(run, node, &got);
    else
        *ret_why = g_strdup(error->message);
    node_co_unref(node);
    ok = ok && content_is(run, &g_array_index(was.snapshots, Content, i), &got, "the snapshot", ret_why) &&
         image_co_checks(run, 0, VIEW_READ, NULL, &r, ret_why) && found_less(&r, 0, UINT64_MAX, "after use", ret_why);
    content_clear(&got);
    disk_load(disk, before, size);
    return ok;
}

static bool repair_co_check(Run *run, const uint8_t *data, uint64_t size, uint64_t when, char **ret_why)
{
    CheckResult r = {0};

    if (was.opens && !contents_co_hold(run, "after the cut", ret_why))
        return false;
    if (is_qed(run) && rnd(2)) /* which repairs it as well */
        node_co_unref(open_co_image(run, VIEW_WRITE, NULL));
    if (!judge_co_counts(run, when, ret_why) ||
        !image_co_checks(run, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS, VIEW_WRITE, NULL, &r, ret_why))
        return false;
    if (r.corruptions || (r.leaks && !is_qed(run)) || r.check_errors ||
        incompat_now() & (Q2_INCOMPAT_DIRTY | Q2_INCOMPAT_CORRUPT)) {
        *ret_why = g_strdup_printf("a second repair leaves %" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64
                                   " errors, bits 0x%" PRIx64,
                                   r.corruptions, r.leaks, r.check_errors, incompat_now());
        return false;
    }
    return contents_co_hold(run, "after a second repair", ret_why) && judge_co_bitmap(run, ret_why) &&
           (is_qed(run) || rnd(4) || use_co_image(run, ret_why));
}

/* ---- the workload ----------------------------------------------------------------------------------------------- */

/* The image as it is now is the beginning. */
static void begin_here(Run *run)
{
    Tracked *t = &run->tracked[0];

    g_free(t->start);
    t->start = g_memdup2(t->disk->data, t->disk->size);
    t->start_size = t->disk->size;
    disk_resize(disk_get("file.log"), 0);
    g_array_set_size(run->guest, 0);
}

static void live_co_through(Run *run)
{
    if (!run_co_open(run, NULL))
        return;
    guest_co_run(run, run->w->ops);
    for (int i = 0; i < 2 && !is_qed(run); i++) {
        run_co_cmd(run, "{'execute':'blockdev-snapshot-internal-sync','arguments':{'device':'q','name':'s%d'}}", i);
        if (i == 0 && !strstr(run->w->create, "compat=0.10"))
            run_co_cmd(run, "{'execute':'block-dirty-bitmap-add','arguments':{'node':'q','name':'" BITMAP "',"
                            "'persistent':true,'granularity':4096}}");
        guest_co_run(run, run->w->ops / 2);
    }
    run_co_close(run);
}

static void look_co_at_damaged(Run *run)
{
    g_autofree char *why = NULL;

    content_clear(&was.disk);
    if (!was.snapshots) {
        was.snapshots = g_array_new(FALSE, TRUE, sizeof(Content));
        g_array_set_clear_func(was.snapshots, content_clear);
    }
    g_array_set_size(was.snapshots, 0);
    for (uint32_t i = 0; i <= (is_qed(run) ? 0 : load_be32(disk_get("file")->data + 60)); i++) {
        Content c = {0};
        if (!content_co_load(run, i - 1, &c, &why))
            run_fail(run, "the damaged image does not open: %s", why);
        if (i)
            g_array_append_val(was.snapshots, c);
        else
            was.disk = c;
    }
}

/* What a repair begins with. */
static void look_co_at_counts(Run *run)
{
    CheckResult r = {0};
    g_autofree char *why = NULL;
    Node *node = open_co_image(run, VIEW_READ, NULL);

    was.opens = node != NULL;
    node_co_unref(node);
    was.incompat = incompat_now();
    was.clusters = disk_get("file")->size / run->w->cluster;
    g_clear_pointer(&was.low, g_hash_table_destroy);
    was.low = g_hash_table_new(NULL, NULL);
    if (!image_co_checks(run, 0, VIEW_READ, was.low, &r, &why))
        run_fail(run, "%s", why);
    begin_here(run);
}

/* The power goes, and what is left is what the next repair finds. */
static void cut_co_short(Run *run)
{
    States *s;

    run_parse_logs(run);
    s = states_new(run->tracked, run->n_tracked);
    states_enter(s, rnd(states_windows(s)));
    for (uint64_t n = 1 + rnd(20); n && states_next(s, UINT32_MAX); n--) {
    }
    states_free(s);
    g_array_free(run->tracked[0].records, TRUE);
    look_co_at_counts(run);
}

static bool repair_co_by_opening(Run *run, char **ret_why)
{
    g_autoptr(GError) error = NULL;
    Node *node = open_co_image(run, VIEW_LOGGED, &error);

    was.done = blklogwrites_moment();
    was.result = (CheckResult){.leaks = UINT64_MAX};
    if (!node)
        *ret_why = g_strdup(error->message);
    node_co_unref(node);
    return node != NULL;
}

static void repair_co_once(Run *run)
{
    g_autofree char *why = NULL;
    bool ok;

    was.result = (CheckResult){0};
    run->tracked[0].disk->slow = true;
    ok = is_qed(run) && incompat_now() && rnd(2) ? repair_co_by_opening(run, &why)
                                                 : image_co_checks(run, was.fix, VIEW_LOGGED, NULL, &was.result, &why);
    run->tracked[0].disk->slow = false;
    if (!ok && !fault.happened)
        run_fail(run, "%s", why);
}

static void damage_co_it(Run *run)
{
    Disk *disk = run->tracked[0].disk;

    g_free(was.bits);
    was.bits = bits_co_read(run);
    if (is_qed(run))
        damage_qed(disk);
    else
        damage_entries(disk);
    look_co_at_damaged(run);
    if (!is_qed(run) && damage_rest(disk))
        g_clear_pointer(&was.bits, g_free);
    look_co_at_counts(run);
}

void repair_co_body(Run *run)
{
    View *view;

    live_co_through(run);
    run->tracked[0].disk->slow = false;
    damage_co_it(run);
    view = run_view(run, "file", run->w->format, NULL);
    view->co_check = repair_co_check;
    view->clean = run->clean = !is_qed(run);
    was.fix = rnd(4) ? CHECK_FIX_LEAKS | CHECK_FIX_ERRORS : CHECK_FIX_LEAKS;
    if (rnd(4) == 0) {
        fault = (Fault){.kind = rnd(2) ? FAULT_READ : FAULT_FLUSH, .countdown = 1 + rnd(12)};
        repair_co_once(run);
        fault = (Fault){0};
    }
    for (int i = 0; i < 2 && rnd(3) == 0; i++) {
        repair_co_once(run);
        cut_co_short(run);
    }
    repair_co_once(run);
}
