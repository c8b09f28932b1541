/*
 * Actions that freeze a node: an overlay takes its place in all its parents.
 *
 * blockdev-snapshot-sync's overlay is opened on top of the node at once. That changes nothing for the node's users: an
 * overlay that nobody uses takes no permissions. What is left to prepare is to move the parents.
 */
#include "block/graph/filename.h"
#include "block/graph/image.h"
#include "block/graph/io.h"
#include "block/graph/reopen.h"
#include "block/graph/txn.h"
#include "daemon/transaction.h"
#include <glib/gstdio.h>

typedef struct SnapshotAction {
    Action common;
    Node *node;       /* is frozen; referenced */
    Node *overlay;    /* referenced */
    bool sized;       /* the overlay was made with the node's size */
    char *new_file;   /* what was not there before this action made it: removed when the action fails */
    bool attached;    /* the overlay had no backing edge before co_prepare */
    GPtrArray *moved; /* of Child *: the edges that led to the node, and lead to the overlay since co_prepare */
    bool done;
} SnapshotAction;

static SnapshotAction *snapshot_of(Action *action)
{
    return (SnapshotAction *)action;
}

/* ---- checks: when the action opens, and again when everything is at rest ---------------------------------------- */

static bool check_node(const SnapshotAction *a, Node *node, GError **error)
{
    if (!job_list_check_node(a->common.txn->daemon->jobs, node, error))
        return false;
    for (GList *l = node->parents.head; l; l = l->next) {
        const Child *child = l->data;
        if (child->parent && child->parent != a->overlay && (child->role & ROLE_COW))
            return error_set(error, "Node '%s' is busy: node is used as backing hd of '%s'", node->name,
                             child->parent->name);
    }
    return true;
}

static bool check_overlay(const SnapshotAction *a, GError **error)
{
    Node *overlay = a->overlay;

    if (!job_list_check_node(a->common.txn->daemon->jobs, overlay, error))
        return false;
    if (overlay->cum_perm & PERM_CONSISTENT_READ)
        return error_set(error, "The overlay is already in use");
    if (overlay->drv->is_filter)
        return error_set(error, "Filters cannot be used as overlays");
    if (overlay->backing && overlay->backing->node != a->node)
        return error_set(error, "The overlay already has a backing image");
    if (!overlay->drv->supports_backing)
        return error_set(error, "The overlay does not support backing images");
    if (node_reaches(a->node, overlay))
        return error_set(error, "Making '%s' a backing child of '%s' would create a cycle", a->node->name,
                         overlay->name);
    if (a->node->height + 1 >= GRAPH_LEVELS_MAX)
        return error_set(error, "Node '%s' has too many levels below it (the limit is %d)", a->node->name,
                         GRAPH_LEVELS_MAX);
    if (a->sized && overlay->size != a->node->size)
        return error_set(error, "Node '%s' was resized while its overlay was being made", a->node->name);
    return true;
}

/* Takes @node as what is to be frozen, or refuses. */
static bool snapshot_co_take_node(SnapshotAction *a, Node *node, GError **error)
{
    int ret;

    if (!node || !check_node(a, node, error))
        return false;
    a->node = node_ref(node);
    transaction_rest(a->common.txn, node);
    /* The bulk of it now, so that little is left when clients have to wait. */
    ret = node_co_flush(node);
    return ret == 0 || error_set_errno(error, -ret, "Could not flush node '%s'", node->name);
}

/* The overlay is there. */
static bool snapshot_take_overlay(SnapshotAction *a, GError **error)
{
    if (!check_overlay(a, error))
        return false;
    transaction_rest(a->common.txn, a->overlay);
    g_hash_table_insert(a->common.txn->above, a->node, a->overlay);
    return true;
}

/* ---- prepare, abort, commit, clean ------------------------------------------------------------------------------ */

static bool snapshot_co_change(SnapshotAction *a, GError **error)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(a->node->graph);
    g_autoptr(GPtrArray) before = g_ptr_array_new();

    for (GList *l = a->overlay->parents.head; l; l = l->next)
        g_ptr_array_add(before, l->data);
    a->attached = !a->overlay->backing;
    if (a->attached)
        graph_txn_attach(txn, a->overlay, "backing", a->node, ROLE_COW);
    if (!graph_txn_replace_node(txn, a->node, a->overlay, NULL, error) || !graph_txn_co_commit(txn, error))
        return false;
    a->overlay->height = MAX(a->overlay->height, a->node->height + 1);
    node_refresh_limits(a->overlay);
    a->moved = g_ptr_array_new();
    for (GList *l = a->overlay->parents.head; l; l = l->next)
        if (!g_ptr_array_find(before, l->data, NULL))
            g_ptr_array_add(a->moved, l->data);
    return true;
}

static bool snapshot_co_prepare(SnapshotAction *a, Node *node, GError **error)
{
    if (!node || !check_node(a, node, error))
        return false;
    if (node != a->node)
        return error_set(error, "Node '%s' took the place of '%s' while its overlay was being prepared", node->name,
                         a->node->name);
    a->done = check_overlay(a, error) && snapshot_co_change(a, error);
    return a->done;
}

static void snapshot_co_abort(Action *action)
{
    SnapshotAction *a = snapshot_of(action);
    g_autoptr(GraphTxn) txn = graph_txn_new(a->node->graph);
    bool ok;

    for (guint i = 0; i < a->moved->len; i++)
        graph_txn_replace(txn, g_ptr_array_index(a->moved, i), a->node);
    if (a->attached)
        graph_txn_detach(txn, a->overlay->backing);
    ok = graph_txn_co_commit(txn, NULL);
    g_assert(ok); /* it was so a moment ago */
    a->done = false;
}

static void snapshot_co_commit(Action *action)
{
    Node *overlay = snapshot_of(action)->overlay;

    /* Nobody used the node but who added it: the overlay stays for the same reason. */
    if (g_queue_is_empty(&overlay->parents) && !overlay->monitor_owned) {
        overlay->monitor_owned = true;
        node_ref(overlay);
    }
}

static void snapshot_co_clean(Action *action)
{
    SnapshotAction *a = snapshot_of(action);

    /* Nobody writes to it any more as a rule; where somebody does, it stays as it is. */
    if (a->done)
        node_co_set_read_only(a->node, true, NULL);
    node_co_unref(a->overlay);
    node_co_unref(a->node);
    if (!a->done && a->new_file)
        g_unlink(a->new_file);
    g_free(a->new_file);
    if (a->moved)
        g_ptr_array_unref(a->moved);
}

/* ---- blockdev-snapshot ------------------------------------------------------------------------------------------ */

static bool existing_co_open(Action *action, GError **error)
{
    SnapshotAction *a = snapshot_of(action);
    const BlockdevSnapshot *arg = action->arg;
    Node *node = transaction_find(action->txn, arg->node, arg->node, error), *overlay;

    if (!snapshot_co_take_node(a, node, error))
        return false;
    overlay = transaction_find(action->txn, arg->overlay, arg->overlay, error);
    if (!overlay)
        return false;
    a->overlay = node_ref(overlay);
    return snapshot_take_overlay(a, error);
}

static bool existing_co_prepare(Action *action, GError **error)
{
    const BlockdevSnapshot *arg = action->arg;

    return snapshot_co_prepare(snapshot_of(action), transaction_find(action->txn, arg->node, arg->node, error), error);
}

const ActionKind action_snapshot = {
    .size = sizeof(SnapshotAction),
    .co_open = existing_co_open,
    .co_prepare = existing_co_prepare,
    .co_commit = snapshot_co_commit,
    .co_abort = snapshot_co_abort,
    .co_clean = snapshot_co_clean,
};

/* ---- blockdev-snapshot-sync ------------------------------------------------------------------------------------- */

static bool sync_co_create(SnapshotAction *a, const BlockdevSnapshotSync *arg, GError **error)
{
    g_autofree char *backing = filename_as_backing(a->node, arg->snapshot_file);
    CreateOptions options = {
        .size = a->node->size,
        .backing_file = backing,
        .backing_format = node_skip_filters(a->node)->drv->name,
    };
    bool is_new = image_is_new(arg->snapshot_file);

    if (!strcmp(backing, arg->snapshot_file))
        return error_set(error, "Error: Trying to create an image with the same filename as the backing file");
    if (!image_co_create(a->node->graph, arg->snapshot_file, arg->format, &options, error))
        return false;
    a->sized = true;
    a->new_file = is_new ? g_strdup(arg->snapshot_file) : NULL;
    return true;
}

/* Opens it as the node is open, on top of the node whatever its header says. */
static bool sync_co_open_overlay(SnapshotAction *a, const BlockdevSnapshotSync *arg, GError **error)
{
    const Driver *drv = driver_find(arg->format);
    NodeFlags flags = a->node->flags;
    g_autoptr(Tree) extra = tree_object();

    flags.level = 0;
    flags.force_share = false;
    flags.detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
    if (arg->snapshot_node_name)
        tree_set_string(extra, "node-name", arg->snapshot_node_name);
    if (drv && drv->supports_backing)
        tree_set_string(extra, "backing", a->node->name);
    a->overlay = node_co_open_filename(a->node->graph, arg->snapshot_file, arg->format, extra, &flags, error);
    return a->overlay != NULL;
}

static bool sync_co_open(Action *action, GError **error)
{
    SnapshotAction *a = snapshot_of(action);
    const BlockdevSnapshotSync *arg = action->arg;
    Graph *graph = action->txn->daemon->graph;

    if (!snapshot_co_take_node(a, transaction_find(action->txn, arg->device, arg->node_name, error), error))
        return false;
    if (arg->node_name && !arg->snapshot_node_name)
        return error_set(error, "New overlay node-name missing");
    if (arg->snapshot_node_name && graph_lookup(graph, arg->snapshot_node_name, NULL))
        return error_set(error, "New overlay node-name already in use");
    if (arg->mode == NEW_IMAGE_MODE_ABSOLUTE_PATHS && !sync_co_create(a, arg, error))
        return false;
    return sync_co_open_overlay(a, arg, error) && snapshot_take_overlay(a, error);
}

static bool sync_co_prepare(Action *action, GError **error)
{
    const BlockdevSnapshotSync *arg = action->arg;

    return snapshot_co_prepare(snapshot_of(action), transaction_find(action->txn, arg->device, arg->node_name, error),
                               error);
}

const ActionKind action_snapshot_sync = {
    .size = sizeof(SnapshotAction),
    .co_open = sync_co_open,
    .co_prepare = sync_co_prepare,
    .co_commit = snapshot_co_commit,
    .co_abort = snapshot_co_abort,
    .co_clean = snapshot_co_clean,
};
