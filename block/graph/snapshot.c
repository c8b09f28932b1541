/*
 * Internal snapshots: finding who keeps them, and what the graph has to do when a disk changes as a whole.
 */
#include "block/graph/snapshot.h"
#include "block/graph/graph-int.h"
#include "block/graph/port.h"

/* The one child that @node has its data from. NULL: there are several or none. */
static Node *only_source(const Node *node)
{
    for (guint i = 0; i < node->children->len; i++) {
        const Child *child = g_ptr_array_index(node->children, i);
        if (child != node->file)
            return NULL;
    }
    return node->file ? node->file->node : NULL;
}

Node *node_snapshot_host(Node *node)
{
    while (node && !node->drv->list_snapshots)
        node = only_source(node);
    return node;
}

SnapshotInfoList *node_list_snapshots(Node *node)
{
    Node *host = node_snapshot_host(node);
    SnapshotInfoList *list = host ? host->drv->list_snapshots(host) : NULL;

    if (!list || list->len)
        return list;
    qapi_free_SnapshotInfoList(list);
    return NULL;
}

SnapshotInfo *node_find_snapshot(Node *node, const char *id, const char *name)
{
    SnapshotInfoList *list = node_list_snapshots(node);
    SnapshotInfo *found = NULL;

    for (size_t i = 0; list && i < list->len && !found; i++) {
        const SnapshotInfo *s = list->items[i];
        if ((!id || !strcmp(s->id, id)) && (!name || !strcmp(s->name, name)))
            found = g_steal_pointer(&list->items[i]);
    }
    qapi_free_SnapshotInfoList(list);
    return found;
}

static Node *host_for_change(Node *node, GError **error)
{
    Node *host = node_snapshot_host(node);

    if (!host)
        error_set(error, "Block format '%s' used by device '%s' does not support internal snapshots", node->drv->name,
                  node->name);
    else if (!node_writable(host))
        error_set(error, "Device '%s' is read only", node->name);
    else
        return host;
    return NULL;
}

bool node_co_snapshot_create(Node *node, const SnapshotNew *what, GError **error)
{
    Node *host = host_for_change(node, error);
    bool ok;

    if (!host)
        return false;
    node_in_flight_inc(host);
    ok = host->drv->co_snapshot_create(host, what, error);
    node_in_flight_dec(host);
    return ok;
}

bool node_co_snapshot_delete(Node *node, const char *id, const char *name, GError **error)
{
    Node *host = host_for_change(node, error);
    bool ok;

    if (!host)
        return false;
    node_in_flight_inc(host);
    ok = host->drv->co_snapshot_delete(host, id, name, error);
    node_in_flight_dec(host);
    return ok;
}

/* @node and all nodes above it, from the bottom up, each once and referenced. */
static GPtrArray *all_above(Node *node)
{
    GPtrArray *nodes = g_ptr_array_new();

    g_ptr_array_add(nodes, node_ref(node));
    for (guint i = 0; i < nodes->len; i++) {
        const Node *n = g_ptr_array_index(nodes, i);
        for (GList *l = n->parents.head; l; l = l->next) {
            const Child *child = l->data;
            if (child->parent && !g_ptr_array_find(nodes, child->parent, NULL))
                g_ptr_array_add(nodes, node_ref(child->parent));
        }
    }
    return nodes;
}

/* The data of @host, and so of all that stand above it, are other ones now, and there may be more or less of them. */
static int data_co_changed(Node *host)
{
    g_autoptr(GPtrArray) nodes = all_above(host);
    int ret = 0;

    for (guint i = 0; i < nodes->len; i++) {
        Node *node = g_ptr_array_index(nodes, i);
        int r = node_co_refresh_size(node);
        ret = ret < 0 ? ret : r;
        node->write_gen++;
        node_mark_dirty(node, 0, node->size);
    }
    while (nodes->len)
        node_co_unref(g_ptr_array_steal_index(nodes, nodes->len - 1));
    return ret;
}

static char *apply_describe(Port *port)
{
    (void)port;
    return g_strdup("the applying of a snapshot");
}

static const PortOps apply_ops = {.what = "snapshot", .describe = apply_describe};

bool node_co_snapshot_apply(Node *node, const char *id, const char *name, GError **error)
{
    Node *host = host_for_change(node, error);
    uint64_t size;
    bool ok;
    int ret = 0;

    if (!host || !host->drv->snapshot_size(host, id, name, &size, error))
        return false;
    /* What others may refuse: that the data change under them, and that there are more or less of them. */
    unsigned perm = PERM_WRITE | (size == host->size ? 0 : PERM_RESIZE);
    Port *port = port_co_new(node->graph, node, perm, PERM_ALL, &apply_ops, NULL, error);
    if (!port)
        return false;
    node_ref(host);
    node_co_drained_begin(host);
    node_in_flight_inc(host);
    ok = host->drv->co_snapshot_apply(host, id, name, size, error);
    if (ok)
        ret = data_co_changed(host);
    node_in_flight_dec(host);
    node_drained_end(host);
    node_co_unref(host);
    port_co_free(port);
    if (ok && ret < 0)
        return error_set_errno(error, -ret, "Could not finish applying a snapshot to node '%s'", node->name);
    return ok;
}
