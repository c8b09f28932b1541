/*
 * x-blockdev-change: children come and go while the parent is in use.
 */
#include "block/graph/drain.h"
#include "block/graph/driver.h"
#include "daemon/daemon.h"
#include "qapi/commands.h"

static bool remove_co_child(Node *parent, const char *name, GError **error)
{
    for (guint i = 0; i < parent->children->len; i++) {
        Child *child = g_ptr_array_index(parent->children, i);
        if (strcmp(child->name, name))
            continue;
        if (!parent->drv->co_remove_child)
            return error_set(error, "The node %s does not support removing a child", parent->name);
        return parent->drv->co_remove_child(parent, child, error);
    }
    return error_set(error, "Node '%s' does not have child '%s'", parent->name, name);
}

static bool add_co_child(Node *parent, const char *name, GError **error)
{
    Node *node = graph_find_node(parent->graph, name);

    if (!node)
        return error_set(error, "Node '%s' not found", name);
    if (!parent->drv->co_add_child)
        return error_set(error, "The node %s does not support adding a child", parent->name);
    if (!g_queue_is_empty(&node->parents))
        return error_set(error, "The node %s already has a parent", name);
    if (node_reaches(node, parent))
        return error_set(error, "Node '%s' cannot be a child of '%s', which is below it", name, parent->name);
    return parent->drv->co_add_child(parent, node, error);
}

bool qmp_co_x_blockdev_change(QmpContext *ctx, const XBlockdevChangeArgs *arg, GError **error)
{
    Node *parent = graph_lookup(qmp_daemon(ctx)->graph, arg->parent, error);
    bool ok;

    if (!parent)
        return false;
    if (!arg->child == !arg->node)
        return error_set(error, arg->child ? "The parameters child and node are in conflict"
                                           : "Either child or node must be specified");
    node_ref(parent);
    /* Whoever is found once it is quiet is still there when the driver changes the graph: nothing waits in between. */
    node_co_drained_begin(parent);
    ok = arg->child ? remove_co_child(parent, arg->child, error) : add_co_child(parent, arg->node, error);
    node_drained_end(parent);
    node_co_unref(parent);
    return ok;
}
