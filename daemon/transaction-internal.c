/*
 * The action that takes an internal snapshot: written while the node is at rest, deleted again when another action
 * fails.
 */
#include "block/graph/io.h"
#include "block/graph/snapshot.h"
#include "daemon/transaction.h"

typedef struct InternalAction {
    Action common;
    Node *node; /* referenced */
} InternalAction;

/* When the action opens, and again when the node is at rest. */
static bool internal_check(const InternalAction *a, GError **error)
{
    const BlockdevSnapshotInternal *arg = a->common.arg;
    g_autoptr(SnapshotInfo) there = NULL;

    if (!job_list_check_node(a->common.txn->daemon->jobs, a->node, error))
        return false;
    if (!node_writable(a->node))
        return error_set(error, "Device '%s' is read only", arg->device);
    if (!node_snapshot_host(a->node))
        return error_set(error, "Block format '%s' used by device '%s' does not support internal snapshots",
                         a->node->drv->name, arg->device);
    if (!*arg->name)
        return error_set(error, "Name is empty");
    there = node_find_snapshot(a->node, NULL, arg->name);
    return !there || error_set(error, "Snapshot with name '%s' already exists on device '%s'", arg->name, arg->device);
}

static bool internal_co_open(Action *action, GError **error)
{
    InternalAction *a = (InternalAction *)action;
    const BlockdevSnapshotInternal *arg = action->arg;
    Node *node = transaction_find(action->txn, arg->device, arg->device, error);
    int ret;

    if (!node)
        return false;
    a->node = node_ref(node);
    if (!internal_check(a, error))
        return false;
    transaction_rest(action->txn, node);
    /* The bulk of it now, so that little is left when clients have to wait. */
    ret = node_co_flush(node);
    return ret == 0 || error_set_errno(error, -ret, "Could not flush node '%s'", node->name);
}

static bool internal_co_write(Action *action, GError **error)
{
    InternalAction *a = (InternalAction *)action;
    const BlockdevSnapshotInternal *arg = action->arg;
    const SnapshotNew what = {.name = arg->name, .date_ns = g_get_real_time() * 1000};

    return internal_check(a, error) && node_co_snapshot_create(a->node, &what, error);
}

static void internal_co_unwrite(Action *action)
{
    InternalAction *a = (InternalAction *)action;
    const BlockdevSnapshotInternal *arg = action->arg;
    g_autoptr(GError) error = NULL;

    if (!node_co_snapshot_delete(a->node, NULL, arg->name, &error))
        g_printerr("storage-daemon: a transaction failed, and the snapshot '%s' that it had taken of '%s' stays: %s\n",
                   arg->name, arg->device, error->message);
}

static void internal_co_clean(Action *action)
{
    node_co_unref(((InternalAction *)action)->node);
}

const ActionKind action_snapshot_internal = {
    .size = sizeof(InternalAction),
    .co_open = internal_co_open,
    .co_write = internal_co_write,
    .co_unwrite = internal_co_unwrite,
    .co_clean = internal_co_clean,
};
