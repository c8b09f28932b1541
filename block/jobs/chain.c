/*
 * Backing chains, as commit and stream see them.
 */
#include "block/jobs/chain.h"
#include "block/graph/driver.h"
#include "block/graph/filename.h"
#include "block/graph/reopen.h"

static bool is_called(Node *node, Node *overlay, const char *name)
{
    g_autofree char *own = node_filename(node), *resolved = NULL;
    NodeInfo info = {0};

    if (!strcmp(own, name))
        return true;
    if (!overlay || !overlay->drv->get_info)
        return false;
    overlay->drv->get_info(overlay, &info);
    if (!info.backing_filename || !overlay->backing->by_header)
        return false;
    resolved = filename_resolve(overlay, info.backing_filename, NULL);
    return !strcmp(info.backing_filename, name) || !g_strcmp0(resolved, name);
}

Node *chain_find_file(Node *top, const char *name)
{
    Node *overlay = NULL;

    for (Node *n = node_skip_filters(top); n; overlay = n, n = node_backing(n))
        if (is_called(n, overlay, name))
            return n;
    return NULL;
}

Node *chain_find_node(Graph *graph, const char *name, GError **error)
{
    Node *node = graph_find_node(graph, name);

    if (!node)
        error_set(error, "Cannot find device='' nor node-name='%s'", name);
    return node;
}

Node *chain_lowest(Node *top)
{
    Node *n = node_skip_filters(top);

    while (node_backing(n))
        n = node_backing(n);
    return n;
}

/* The next node down, filters included. */
static Node *next_below(Node *node)
{
    Child *filtered = node_filtered_child(node);

    if (filtered)
        return filtered->node;
    return node->backing ? node->backing->node : NULL;
}

bool chain_check_free(JobList *list, Node *top, Node *base, bool with_base, GError **error)
{
    for (Node *n = top; n && n != base; n = next_below(n))
        if (!job_list_check_node(list, n, error))
            return false;
    return !with_base || job_list_check_node(list, base, error);
}

bool chain_check_readers(Node *top, Node *base, GError **error)
{
    for (Node *above = top; above != base; above = next_below(above)) {
        Node *n = next_below(above);
        for (GList *l = n->parents.head; l; l = l->next) {
            const Child *child = l->data;
            if ((child->role & ROLE_COW) && child->parent != above && (child->perm & PERM_CONSISTENT_READ))
                return error_set(error,
                                 "Node '%s' is in use as backing file of '%s' as well, which would show other data",
                                 n->name, child->parent->name);
        }
    }
    return true;
}

void chain_add_nodes(Job *job, Node *top, Node *base)
{
    for (Node *n = top; n && n != base; n = next_below(n))
        job_add_node(job, n);
}

bool chain_co_write_backing(Node *overlay, Node *base, const char *name, GError **error)
{
    const Driver *drv = overlay->drv;
    bool read_only = !node_writable(overlay), ok;
    g_autofree char *own = base && !name ? filename_for_header(base, overlay) : NULL;

    if (!drv->co_change_backing)
        return error_set(error, "Driver '%s' does not support changing the backing file of node '%s'", drv->name,
                         overlay->name);
    if (read_only && !node_co_set_read_only(overlay, false, error))
        return false;
    ok = drv->co_change_backing(overlay, name ? name : own, base ? node_skip_filters(base)->drv->name : NULL, error);
    if (ok)
        overlay->backing_expected = name || own;
    if (read_only)
        node_co_set_read_only(overlay, true, NULL);
    return ok;
}
