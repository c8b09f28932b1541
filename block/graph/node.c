/*
 * Nodes: names, references, walks.
 */
#include "block/graph/filename.h"
#include "block/graph/graph-int.h"

Graph *graph_new(Loop *loop)
{
    Graph *graph = g_new0(Graph, 1);

    graph->loop = loop;
    graph->by_name = g_hash_table_new(g_str_hash, g_str_equal);
    graph->secrets = secret_store_new();
    return graph;
}

void graph_free(Graph *graph)
{
    if (!graph)
        return;
    g_assert(g_queue_is_empty(&graph->nodes) && g_queue_is_empty(&graph->devices));
    g_hash_table_destroy(graph->by_name);
    secret_store_free(graph->secrets);
    g_free(graph);
}

Loop *graph_loop(Graph *graph)
{
    return graph->loop;
}

SecretStore *graph_secrets(Graph *graph)
{
    return graph->secrets;
}

Node *graph_find_node(Graph *graph, const char *name)
{
    Node *node = g_hash_table_lookup(graph->by_name, name);

    return node && !node->partial ? node : NULL;
}

Node *graph_lookup(Graph *graph, const char *name, GError **error)
{
    Device *device = device_find(graph, name);
    Node *node;

    if (device) {
        if (!port_node(device->port))
            error_set(error, "Device '%s' has no medium", name);
        return port_node(device->port);
    }
    node = graph_find_node(graph, name);
    if (!node)
        error_set(error, "Cannot find device='%s' nor node-name='%s'", name, name);
    return node;
}

void graph_foreach_node(Graph *graph, void (*fn)(Node *node, void *opaque), void *opaque)
{
    for (GList *l = graph->nodes.head; l; l = l->next)
        if (!((Node *)l->data)->partial)
            fn(l->data, opaque);
}

/* QEMU's rule for ids: a letter, then letters, digits, '-', '.', '_'. */
static bool name_well_formed(const char *name)
{
    if (!g_ascii_isalpha(name[0]))
        return false;
    for (const char *c = name + 1; *c; c++)
        if (!g_ascii_isalnum(*c) && !strchr("-._", *c))
            return false;
    return true;
}

/* A node-name that may be taken now; at most 31 bytes, as in QEMU. */
static bool name_usable(Graph *graph, const char *name, GError **error)
{
    if (!name_well_formed(name))
        return error_set(error, "Invalid node-name: '%s'", name);
    if (strlen(name) > 31)
        return error_set(error, "Node name too long: '%s' has %zu bytes, the limit is 31", name, strlen(name));
    if (device_find(graph, name))
        return error_set(error, "node-name=%s is conflicting with a device id", name);
    if (g_hash_table_contains(graph->by_name, name))
        return error_set(error, "Duplicate nodes with node-name='%s'", name);
    return true;
}

Node *node_alloc(Graph *graph, const Driver *drv, const char *name, const NodeFlags *flags, GError **error)
{
    Node *node;

    if (name && !name_usable(graph, name, error))
        return NULL;
    node = g_new0(Node, 1);
    node->name = name ? g_strdup(name) : g_strdup_printf("#block%03" G_GUINT64_FORMAT, graph->next_auto++);
    node->drv = drv;
    node->state = g_malloc0(drv->state_size);
    node->graph = graph;
    node->loop = graph->loop;
    node->flags = *flags;
    node->limits.request_alignment = 1;
    node->limits.min_mem_align = 1;
    node->children = g_ptr_array_new();
    node->refs = 1;
    node->cum_shared = PERM_ALL;
    g_hash_table_insert(graph->by_name, node->name, node);
    g_queue_push_tail(&graph->nodes, node);
    return node;
}

void node_free(Node *node)
{
    Graph *graph = node->graph;

    g_assert(g_queue_is_empty(&node->parents) && node->children->len == 0 && node->in_flight == 0);
    while (!g_queue_is_empty(&node->bitmaps))
        bitmap_free(g_queue_peek_head(&node->bitmaps));
    if (g_hash_table_lookup(graph->by_name, node->name) == node)
        g_hash_table_remove(graph->by_name, node->name);
    g_queue_remove(&graph->nodes, node);
    g_ptr_array_free(node->children, TRUE);
    qapi_free_BlockdevOptions(node->options);
    tree_unref(node->backing_extra);
    g_free(node->exact_filename);
    g_free(node->state);
    g_free(node->name);
    g_free(node);
}

Node *node_ref(Node *node)
{
    node->refs++;
    return node;
}

void node_drop_ref(Node *node)
{
    g_assert(node->refs > 1);
    node->refs--;
}

/*
 * The last reference is gone: nobody can reach the node by name from here on, so that what yields below (flushing,
 * closing) meets no new parent. A flush that fails has nobody left to tell but the log.
 */
static void node_co_close(Node *node)
{
    g_autoptr(GraphTxn) txn = NULL;
    int ret;

    g_assert(g_queue_is_empty(&node->parents));
    g_hash_table_remove(node->graph->by_name, node->name);
    node->partial = true;
    if (node->in_flight)
        node_co_drained_begin(node);
    ret = node_co_flush(node);
    if (ret < 0)
        g_printerr("storage-daemon: flushing node '%s' before closing it: %s\n", node->name, g_strerror(-ret));
    if (node->drv->co_close)
        node->drv->co_close(node);

    txn = graph_txn_new(node->graph);
    while (node->children->len)
        graph_txn_detach(txn, g_ptr_array_index(node->children, node->children->len - 1));
    if (!graph_txn_co_commit(txn, NULL))
        g_assert_not_reached(); /* giving permissions back cannot be refused */
    node_free(node);
}

void node_co_unref(Node *node)
{
    if (!node)
        return;
    g_assert(node->refs > 0);
    if (node->refs > 1) {
        node->refs--;
        return;
    }
    /* Keeps the last reference while it closes; node_free() does not look at it. */
    node_co_close(node);
}

Node *node_new_internal(Graph *graph, const Driver *drv, const char *name, const NodeFlags *flags, uint64_t size,
                        GError **error)
{
    Node *node = node_alloc(graph, drv, name, flags, error);

    if (!node)
        return NULL;
    node->implicit = !name;
    node->size = size;
    return node;
}

Child *node_filtered_child(Node *node)
{
    return node->file && (node->file->role & ROLE_FILTERED) && node->drv->is_filter ? node->file : NULL;
}

Node *node_skip_filters(Node *node)
{
    while (node && node_filtered_child(node))
        node = node_filtered_child(node)->node;
    return node;
}

Node *node_skip_implicit(Node *node)
{
    while (node && node->implicit && node_filtered_child(node))
        node = node_filtered_child(node)->node;
    return node;
}

Node *node_backing(Node *node)
{
    node = node_skip_filters(node);
    return node && node->backing ? node_skip_filters(node->backing->node) : NULL;
}

bool node_chain_contains(Node *top, Node *base)
{
    while (top && top != base) {
        Child *below = node_filtered_child(top);
        top = below ? below->node : top->backing ? top->backing->node : NULL;
    }
    return top == base && base;
}

bool node_can_replace(Node *node, const Node *to_replace)
{
    if (node == to_replace)
        return true;
    if (node->drv->can_replace)
        return node->drv->can_replace(node, to_replace);
    return node_filtered_child(node) && node_can_replace(node->file->node, to_replace);
}

bool node_reaches(Node *node, Node *descendant)
{
    if (node == descendant)
        return true;
    for (guint i = 0; i < node->children->len; i++)
        if (node_reaches(((Child *)g_ptr_array_index(node->children, i))->node, descendant))
            return true;
    return false;
}
