/*
 * Internal snapshots: whatever is cut off, those that were taken and not deleted are there, and hold what they held;
 * one that is being applied has been applied as a whole or not at all.
 *
 * In every fourth run a request fails, most often in the middle of such a change.
 */
#include "tests/fault/replay/run.h"
#include "block/graph/graph-int.h"
#include "block/graph/snapshot.h"
#include "qapi/rt/json.h"
#include <inttypes.h>

/* Those that this process took, in the present run. */
typedef struct Taken {
    char name[16];
    uint64_t taken_from, taken, deleted_from, deleted; /* moments; 0: not deleted */
    uint64_t *content;
    bool *unsure; /* sectors that a request failed to change before */
    uint64_t sectors;
} Taken;

/* A snapshot was applied. */
typedef struct Applied {
    guint which;
    uint64_t from, done; /* moments */
} Applied;

static GArray *all, *applied;

static void taken_clear(void *opaque)
{
    Taken *t = opaque;

    g_free(t->content);
    g_free(t->unsure);
}

static bool is_listed(const SnapshotInfoList *list, const char *name)
{
    for (size_t i = 0; list && i < list->len; i++)
        if (strcmp(list->items[i]->name, name) == 0)
            return true;
    return false;
}

/* Which of the snapshots the image has; one of them at random is to be looked into. */
static const Taken *pick_listed(Node *node, uint64_t when, char **ret_why)
{
    SnapshotInfoList *list = node->drv->list_snapshots(node);
    const Taken *picked = NULL;
    unsigned n = 0;

    for (guint i = 0; i < all->len; i++) {
        const Taken *t = &g_array_index(all, Taken, i);
        bool listed = is_listed(list, t->name);
        if ((!listed && t->taken <= when && (!t->deleted_from || t->deleted_from > when)) ||
            (listed && (t->taken_from > when || (t->deleted && t->deleted <= when))))
            *ret_why = g_strdup_printf("snapshot '%s' is %s", t->name, listed ? "there" : "not there");
        if (listed && rnd(++n) == 0)
            picked = t;
    }
    qapi_free_SnapshotInfoList(list);
    return picked;
}

/* Turns the disk back to it and compares. */
static bool compare_co_content(Run *run, Node *node, const Taken *t, char **ret_why)
{
    g_autoptr(GError) error = NULL;
    g_autofree uint64_t *data = g_malloc(t->sectors * SECTOR);
    Port *port;
    int ret;

    if (!node_co_snapshot_apply(node, NULL, t->name, &error)) {
        *ret_why = g_strdup_printf("snapshot '%s' cannot be applied: %s", t->name, error->message);
        return false;
    }
    port = port_co_new(run->daemon->graph, node, PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL, &error);
    ret = port_co_pread(port, 0, t->sectors * SECTOR, data, 0);
    port_co_free(port);
    for (uint64_t s = 0; ret == 0 && s < t->sectors; s++)
        if (data[s * SECTOR / 8] != t->content[s] && !t->unsure[s]) {
            *ret_why = g_strdup_printf("sector %" PRIu64 " of snapshot '%s' has 0x%" PRIx64 ", not 0x%" PRIx64, s,
                                       t->name, data[s * SECTOR / 8], t->content[s]);
            return false;
        }
    return ret == 0;
}

/* In the middle of applying a snapshot the disk holds all of it, or what it held before. */
static bool applied_whole(Run *run, const uint8_t *guest, uint64_t size, uint64_t when, char **ret_why)
{
    for (guint i = 0; i < applied->len; i++) {
        const Applied *a = &g_array_index(applied, Applied, i);
        const Taken *t = &g_array_index(all, Taken, a->which);
        bool whole = true, before;
        if (when < a->from || when >= a->done)
            continue;
        for (uint64_t s = 0; s < t->sectors && whole; s++)
            whole = t->unsure[s] || memcmp(guest + s * SECTOR, &t->content[s], 8) == 0;
        model_at(run->model, a->from - 1);
        before = whole || model_allows(run->model, guest, size, ret_why);
        model_at(run->model, when);
        if (!before)
            return false;
    }
    return true;
}

static bool snapshots_co_check(Run *run, const uint8_t *guest, uint64_t size, uint64_t when, char **ret_why)
{
    g_autofree char *json = run_view_json(run, &g_array_index(run->views, View, 0), "snapshots", VIEW_WRITE);
    g_autoptr(Tree) tree = json_parse(json, -1, NULL);
    g_autoptr(BlockdevOptions) options = qapi_decode_BlockdevOptions(tree, NULL);
    g_autoptr(GError) error = NULL;
    Node *node = node_co_open(run->daemon->graph, options, NULL, &error);
    const Taken *t;

    if (!applied_whole(run, guest, size, when, ret_why)) {
        node_co_unref(node);
        return false;
    }
    if (!node) {
        *ret_why = g_strdup(error->message);
        return false;
    }
    t = pick_listed(node, when, ret_why);
    if (!*ret_why && t && rnd(3) == 0)
        compare_co_content(run, node, t, ret_why);
    node_co_unref(node);
    return !*ret_why;
}

/* ---- the workload ----------------------------------------------------------------------------------------------- */

static bool only_headers; /* fail */

static void fail_perhaps(const Run *run)
{
    if (!run->faulty || fault.kind || rnd(only_headers ? 2 : 4))
        return;
    fault = (Fault){.kind = (FaultKind)(1 + rnd(FAULT_HEADER))};
    if (only_headers)
        fault.kind = FAULT_HEADER;
    fault.countdown = fault.kind == FAULT_FULL     ? disk_get("file")->size + rnd(64 << 10)
                      : fault.kind == FAULT_HEADER ? 1
                                                   : 1 + rnd(rnd(4) ? 8 : 100);
    fault.sticky = !only_headers && rnd(3) == 0;
}

/* Which sectors did a request fail to change? It may have changed them all the same. */
static bool *unsure_sectors(const Run *run)
{
    bool *unsure = g_new0(bool, run->sectors);

    for (guint i = 0; i < run->guest->len; i++) {
        const Record *r = &g_array_index(run->guest, Record, i);
        for (uint64_t s = 0; r->failed && s < r->bytes / SECTOR; s++)
            unsure[r->offset / SECTOR + s] = true;
    }
    return unsure;
}

static void take_co_one(Run *run, int i)
{
    g_autofree uint8_t *data = g_malloc(run->sectors * SECTOR);
    Taken t = {.sectors = run->sectors};

    if (port_co_pread(run->port, 0, run->sectors * SECTOR, data, 0) < 0)
        return;
    t.content = g_new(uint64_t, run->sectors);
    for (uint64_t s = 0; s < run->sectors; s++)
        memcpy(&t.content[s], data + s * SECTOR, 8);
    t.unsure = unsure_sectors(run);
    t.taken_from = blklogwrites_moment();
    g_snprintf(t.name, sizeof(t.name), "s%d", i);
    fail_perhaps(run);
    if (run_co_cmd(run, "{'execute':'blockdev-snapshot-internal-sync','arguments':{'device':'q','name':'%s'}}", t.name))
        t.taken = blklogwrites_moment();
    else
        t.taken = UINT64_MAX;
    g_array_append_val(all, t);
}

static void delete_or_apply_co_one(Run *run, bool apply)
{
    guint which = (guint)rnd(all->len);
    Taken *t = &g_array_index(all, Taken, which);
    Applied a = {.which = which, .from = blklogwrites_moment()};
    bool ok;

    if (t->deleted_from || t->taken == UINT64_MAX)
        return;
    fail_perhaps(run);
    if (apply) {
        ok = run_co_cmd(
            run, "{'execute':'blockdev-snapshot-apply-internal-sync','arguments':{'device':'q','name':'%s'}}", t->name);
        guest_reverted(run, t->content, a.from, !ok);
        a.done = blklogwrites_moment();
        if (ok)
            g_array_append_val(applied, a);
        return;
    }
    t->deleted_from = a.from;
    ok = run_co_cmd(run, "{'execute':'blockdev-snapshot-delete-internal-sync','arguments':{'device':'q','name':'%s'}}",
                    t->name);
    t->deleted = ok ? blklogwrites_moment() : 0;
}

void snapshots_co_body(Run *run)
{
    g_clear_pointer(&all, g_array_unref);
    all = g_array_new(FALSE, FALSE, sizeof(Taken));
    g_array_set_clear_func(all, taken_clear);
    g_clear_pointer(&applied, g_array_unref);
    applied = g_array_new(FALSE, FALSE, sizeof(Applied));
    g_array_index(run->views, View, 0).co_check = snapshots_co_check;
    for (int i = 0; i < 6; i++) {
        if (!run->port && !run_co_open(run, NULL))
            return;
        guest_co_run(run, run->w->ops);
        take_co_one(run, i);
        guest_co_run(run, run->w->ops / 2);
        if (i > 1 && all->len)
            delete_or_apply_co_one(run, rnd(2));
        if (i == 3 && !fault.happened)
            run_co_close(run);
    }
    guest_co_run(run, run->w->ops);
    run_co_close(run);
}

/* A change is given up at its last step, when the header already names what is new: then it names the old again, and
 * what was new is anybody's. */
void snapshots_header_co_body(Run *run)
{
    run->faulty = only_headers = true;
    snapshots_co_body(run);
    only_headers = false;
}
