/*
 * QMP: internal snapshots, but for taking them, which is an action of transactions.
 */
#include "block/graph/drain.h"
#include "block/graph/snapshot.h"
#include "block/util/error.h"
#include "daemon/transaction.h"
#include "qapi/commands.h"

/* The node, free for a change, and what it has by that id and name. Caller frees. */
static SnapshotInfo *find_snapshot(Daemon *d, const char *device, const char *id, const char *name, Node **ret_node,
                                   GError **error)
{
    Node *node = graph_lookup(d->graph, device, error);
    SnapshotInfo *info;

    if (!node || !job_list_check_node(d->jobs, node, error))
        return NULL;
    if (!id && !name) {
        error_set(error, "Name or id must be provided");
        return NULL;
    }
    if (!node_snapshot_host(node)) {
        error_set(error, "Block format '%s' used by device '%s' does not support internal snapshots", node->drv->name,
                  device);
        return NULL;
    }
    info = node_find_snapshot(node, id, name);
    if (!info)
        error_set(error, "Snapshot with id '%s' and name '%s' does not exist on device '%s'", id ? id : "null",
                  name ? name : "null", device);
    *ret_node = node;
    return info;
}

bool qmp_co_blockdev_snapshot_delete_internal_sync(QmpContext *ctx, const BlockdevSnapshotDeleteInternalSyncArgs *arg,
                                                   SnapshotInfo **ret, GError **error)
{
    Node *node;
    g_autoptr(SnapshotInfo) info = find_snapshot(qmp_daemon(ctx), arg->device, arg->id, arg->name, &node, error);
    bool ok;

    if (!info)
        return false;
    node_ref(node);
    node_co_drained_begin(node);
    ok = node_co_snapshot_delete(node, arg->id, arg->name, error);
    node_drained_end(node);
    node_co_unref(node);
    if (ok)
        *ret = g_steal_pointer(&info);
    return ok;
}

/* Overlays rely on what is below them, whatever their users share. */
static bool check_no_overlay(Node *node, GError **error)
{
    for (; node; node = node->drv->list_snapshots || !node->file ? NULL : node->file->node)
        for (GList *l = node->parents.head; l; l = l->next) {
            const Child *child = l->data;
            if (child->parent && (child->role & ROLE_COW))
                return error_set(error, "Node '%s' is busy: node is used as backing hd of '%s'", node->name,
                                 child->parent->name);
        }
    return true;
}

bool qmp_co_blockdev_snapshot_apply_internal_sync(QmpContext *ctx, const BlockdevSnapshotApplyInternalSyncArgs *arg,
                                                  GError **error)
{
    Node *node;
    g_autoptr(SnapshotInfo) info = find_snapshot(qmp_daemon(ctx), arg->device, arg->id, arg->name, &node, error);

    return info && check_no_overlay(node, error) && node_co_snapshot_apply(node, arg->id, arg->name, error);
}
