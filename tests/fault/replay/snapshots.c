/*
 * Internal snapshots: whatever is cut off, those that were taken and not deleted are there, and hold what they held.
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
    uint64_t sectors;
} Taken;

static GArray *all;

static void taken_clear(void *opaque)
{
    g_free(((Taken *)opaque)->content);
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
        if (data[s * SECTOR / 8] != t->content[s]) {
            *ret_why = g_strdup_printf("sector %" PRIu64 " of snapshot '%s' has 0x%" PRIx64 ", not 0x%" PRIx64, s,
                                       t->name, data[s * SECTOR / 8], t->content[s]);
            return false;
        }
    return ret == 0;
}

static bool snapshots_co_check(Run *run, const uint8_t *guest, uint64_t size, uint64_t when, char **ret_why)
{
    g_autofree char *json = run_view_json(run, &g_array_index(run->views, View, 0), "snapshots", VIEW_WRITE);
    g_autoptr(JsonNode) tree = json_parse(json, -1, NULL);
    g_autoptr(BlockdevOptions) options = qapi_decode_BlockdevOptions(tree, NULL);
    g_autoptr(GError) error = NULL;
    Node *node = node_co_open(run->daemon->graph, options, NULL, &error);
    const Taken *t;

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

static void take_co_one(Run *run, int i)
{
    Taken t = {.taken_from = blklogwrites_moment(), .sectors = run->sectors, .content = run_snapshot(run)};

    g_snprintf(t.name, sizeof(t.name), "s%d", i);
    run_co_cmd(run, "{'execute':'blockdev-snapshot-internal-sync','arguments':{'device':'q','name':'%s'}}", t.name);
    t.taken = blklogwrites_moment();
    g_array_append_val(all, t);
}

static void delete_or_apply_co_one(Run *run, bool apply)
{
    Taken *t = &g_array_index(all, Taken, rnd(all->len));
    uint64_t from = blklogwrites_moment();

    if (t->deleted)
        return;
    if (apply) {
        run_co_cmd(run, "{'execute':'blockdev-snapshot-apply-internal-sync','arguments':{'device':'q','name':'%s'}}",
                   t->name);
        guest_reverted(run, t->content, from);
        return;
    }
    t->deleted_from = from;
    run_co_cmd(run, "{'execute':'blockdev-snapshot-delete-internal-sync','arguments':{'device':'q','name':'%s'}}",
               t->name);
    t->deleted = blklogwrites_moment();
}

void snapshots_co_body(Run *run)
{
    g_clear_pointer(&all, g_array_unref);
    all = g_array_new(FALSE, FALSE, sizeof(Taken));
    g_array_set_clear_func(all, taken_clear);
    g_array_index(run->views, View, 0).co_check = snapshots_co_check;
    if (!run_co_open(run, NULL))
        return;
    for (int i = 0; i < 6; i++) {
        guest_co_run(run, run->w->ops);
        take_co_one(run, i);
        guest_co_run(run, run->w->ops / 2);
        if (i > 1)
            delete_or_apply_co_one(run, rnd(2));
    }
    guest_co_run(run, run->w->ops);
    run_co_close(run);
}
