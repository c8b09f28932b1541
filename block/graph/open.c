/*
 * Opening: from options to a tree of nodes.
 *
 * Options say what a node is; what they leave open comes from defaults, which for a child depend on its parent and its
 * role. A driver's co_open opens its children through here, so trees open themselves from the top down, and a failure
 * anywhere takes back what was opened below it.
 */
#include "block/graph/filename.h"
#include "block/graph/graph-int.h"

/* Options over defaults. @options are complete, so a member that is there was meant. */
static NodeFlags flags_resolve(const BlockdevOptions *options, const NodeFlags *defaults)
{
    NodeFlags f = defaults ? *defaults : (NodeFlags){0};

    if (options->has_read_only)
        f.read_only = options->read_only;
    if (options->has_auto_read_only)
        f.auto_read_only = options->auto_read_only;
    if (options->has_force_share)
        f.force_share = options->force_share;
    if (options->has_discard)
        f.discard_unmap = options->discard == BLOCKDEV_DISCARD_OPTIONS_UNMAP;
    if (options->has_detect_zeroes)
        f.detect_zeroes = options->detect_zeroes;
    if (options->cache && options->cache->has_direct)
        f.cache_direct = options->cache->direct;
    if (options->cache && options->cache->has_no_flush)
        f.cache_no_flush = options->cache->no_flush;
    return f;
}

/* Flags of a child whose options say nothing: what it inherits from @parent for @role. */
static NodeFlags child_defaults(const Node *parent, ChildRole role)
{
    NodeFlags f = parent->flags;

    f.level = parent->flags.level + 1;
    f.detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF; /* a property of the node that was told to */
    if (role & ROLE_COW) {
        /* Backing files are only read, whatever happens above. */
        f.read_only = true;
        f.auto_read_only = false;
        f.discard_unmap = false;
    } else if (!(role & ROLE_FILTERED)) {
        /* Formats decide themselves what they discard in their files. */
        f.discard_unmap = true;
    }
    return f;
}

static bool flags_check(const NodeFlags *f, GError **error)
{
    if (f->force_share && !f->read_only)
        return error_set(error, "force-share=on can only be used with read-only images");
    if (f->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP && !f->discard_unmap)
        return error_set(error,
                         "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap");
    return true;
}

/* Takes a half-open node down again: its children, then itself. */
static void node_co_discard(Node *node)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(node->graph);

    while (node->children->len)
        graph_txn_detach(txn, g_ptr_array_index(node->children, node->children->len - 1));
    if (!graph_txn_co_commit(txn, NULL))
        g_assert_not_reached();
    node_free(node);
}

/* A format's error tells what is wrong; this puts in front of it which file it is about, where that is not said yet. */
static void name_image(const Node *node, GError **error)
{
    g_autofree char *filename = node->drv->is_format && node->file ? node_filename(node->file->node) : NULL;

    if (filename && error && *error && !strstr((*error)->message, filename))
        g_prefix_error(error, "Could not open '%s': ", filename);
}

/* What follows the driver's co_open and may still fail. */
static bool node_co_settle(Node *node, GError **error)
{
    int ret;

    node_refresh_limits(node);
    ret = node_co_refresh_size(node);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not refresh total sector count");
    return node_co_refresh_perms(node, error);
}

static Node *node_co_open_full(Graph *graph, const BlockdevOptions *options, const NodeFlags *defaults,
                               Tree *backing_extra, GError **error)
{
    const char *name = qapi_BlockdevDriver_str(options->driver);
    const Driver *drv = driver_find(name);
    NodeFlags flags = flags_resolve(options, defaults);
    Node *node;

    if (!drv || drv->internal) {
        error_set(error, "Unknown driver '%s'", name);
        return NULL;
    }
    if (flags.level >= GRAPH_LEVELS_MAX) {
        error_set(error, "Too many levels of nodes in one tree (the limit is %d): does an image name itself?",
                  GRAPH_LEVELS_MAX);
        return NULL;
    }
    if (!flags_check(&flags, error))
        return NULL;
    node = node_alloc(graph, drv, options->node_name, &flags, error);
    if (!node)
        return NULL;
    node->partial = true;
    node->options = qapi_clone_BlockdevOptions(options);
    node->backing_extra = backing_extra ? tree_ref(backing_extra) : NULL;
    if (drv->co_open && !drv->co_open(node, node->options, error)) {
        name_image(node, error);
        node_co_discard(node);
        return NULL;
    }
    if (!node_co_settle(node, error)) {
        if (drv->co_close)
            drv->co_close(node);
        node_co_discard(node);
        return NULL;
    }
    node->partial = false;
    return node;
}

Node *node_co_open(Graph *graph, const BlockdevOptions *options, const NodeFlags *defaults, GError **error)
{
    return node_co_open_full(graph, options, defaults, NULL, error);
}

static Child *child_co_attach(Node *parent, const char *name, Node *node, ChildRole role, GError **error)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(parent->graph);
    Child *child = graph_txn_attach(txn, parent, name, node, role);
    bool ok = node->height + 1 < GRAPH_LEVELS_MAX
                  ? graph_txn_co_commit(txn, error)
                  : error_set(error, "Node '%s' has too many levels below it (the limit is %d)", node->name,
                              GRAPH_LEVELS_MAX);

    if (ok)
        parent->height = MAX(parent->height, node->height + 1);
    else
        graph_txn_free(g_steal_pointer(&txn)); /* its edge goes before our reference does */

    node_co_unref(node); /* the edge holds its own reference, or nobody does */
    return ok ? child : NULL;
}

Child *node_co_open_child(Node *parent, const char *name, const BlockdevRef *ref, ChildRole role, GError **error)
{
    NodeFlags defaults = child_defaults(parent, role);
    Child *child;
    Node *node;

    if (ref->kind == BLOCKDEV_REF_REFERENCE) {
        node = graph_find_node(parent->graph, ref->u.reference);
        if (!node) {
            error_set(error, "Cannot find device='%s' nor node-name='%s'", ref->u.reference, ref->u.reference);
            return NULL;
        }
        node_ref(node);
    } else {
        node = node_co_open(parent->graph, ref->u.definition, &defaults, error);
        if (!node)
            return NULL;
    }
    child = child_co_attach(parent, name, node, role, error);
    if (child && !strcmp(name, "file")) {
        /* Queries list nodes in order of creation, and in QEMU a node comes after its file. */
        g_queue_remove(&parent->graph->nodes, parent);
        g_queue_push_tail(&parent->graph->nodes, parent);
    }
    return child;
}

/*
 * Which format a file has, by its first bytes, as QEMU probes. The file is opened without permissions for that: no lock
 * is taken, nothing is written.
 */
static const Driver *node_co_probe(Graph *graph, const BlockdevOptions *protocol, GError **error)
{
    NodeFlags flags = {.read_only = true};
    g_autofree uint8_t *buf = g_malloc0(PROBE_SIZE);
    g_autoptr(BlockdevOptions) options = qapi_clone_BlockdevOptions(protocol);
    const Driver *found = NULL;
    Port *port = NULL;
    Node *node;

    g_clear_pointer(&options->node_name, g_free);
    options->has_read_only = false;
    node = node_co_open(graph, options, &flags, error);
    if (node)
        port = port_co_new(graph, node, PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL, error);
    if (port) {
        size_t size = MIN(node->size, PROBE_SIZE);
        int ret = port_co_pread(port, 0, size, buf, 0);
        if (ret < 0)
            error_set_errno(error, -ret, "Could not read image for determining its format");
        else
            found = driver_probe(buf, size);
    }
    port_co_free(port);
    node_co_unref(node);
    return found;
}

static void warn_probed_raw(const char *filename)
{
    g_printerr(
        "storage-daemon: warning: Image format was not specified for '%s' and probing guessed raw. Detecting the "
        "format is dangerous for raw images: writes to block 0 that would look like another format will be "
        "refused. Name the format 'raw' to lift that restriction.\n",
        filename);
}

Node *node_co_open_filename(Graph *graph, const char *filename, const char *format, Tree *extra,
                            const NodeFlags *defaults, GError **error)
{
    g_autoptr(Tree) backing_extra = NULL;
    g_autoptr(BlockdevOptions) options = NULL;
    const Driver *drv = NULL;
    bool guess = !format && !filename_names_format(filename, extra);
    Node *node;

    if (guess) {
        g_autoptr(BlockdevOptions) protocol = filename_protocol_options(filename, extra, error);
        if (protocol)
            drv = node_co_probe(graph, protocol, error);
        if (!drv)
            return NULL;
        format = drv->name;
    }
    options = filename_options(filename, format, extra, &backing_extra, error);
    if (!options)
        return NULL;
    node = node_co_open_full(graph, options, defaults, backing_extra, error);
    if (node && guess && !strcmp(format, "raw")) {
        node->probed = true;
        if (node_writable(node))
            warn_probed_raw(filename);
    }
    return node;
}

Node *node_co_open_protocol(Graph *graph, const char *filename, const NodeFlags *defaults, GError **error)
{
    g_autoptr(BlockdevOptions) options = filename_protocol_options(filename, NULL, error);

    return options ? node_co_open(graph, options, defaults, error) : NULL;
}

void graph_refuse_image_names(Graph *graph)
{
    graph->refuse_names = true;
}

/* The policy for all names in headers; @option is what the user could say instead. */
static bool may_follow_name(const Node *parent, const char *option, const char *filename, GError **error)
{
    if (!parent->graph->refuse_names)
        return true;
    return error_set(error,
                     "The image of node '%s' names another file, '%s', and no file is opened because an image says so: "
                     "the option '%s' must name it%s",
                     parent->name, filename, option, strcmp(option, "backing") ? "" : " or be null");
}

Child *node_co_open_data_file(Node *parent, const char *filename, GError **error)
{
    NodeFlags defaults = child_defaults(parent, ROLE_DATA);
    Node *node;

    if (!may_follow_name(parent, "data-file", filename, error))
        return NULL;
    node = node_co_open_protocol(parent->graph, filename, &defaults, error);
    if (!node) {
        g_prefix_error(error, "Could not open data file: ");
        return NULL;
    }
    return child_co_attach(parent, "data-file", node, ROLE_DATA, error);
}

#define BACKING_ERROR "Could not open backing file: "

Child *node_co_open_backing(Node *parent, const char *filename, const char *format, GError **error)
{
    NodeFlags defaults = child_defaults(parent, ROLE_COW);
    g_autofree char *full = NULL;
    Child *child;
    Node *node;

    if (!may_follow_name(parent, "backing", filename, error))
        return NULL;
    full = filename_resolve(parent, filename, error);
    if (!full)
        return NULL;
    node = node_co_open_filename(parent->graph, full, format, parent->backing_extra, &defaults, error);
    if (!node) {
        /* Once, however deep in the chain it happened. */
        if (error && !g_str_has_prefix((*error)->message, BACKING_ERROR))
            g_prefix_error(error, BACKING_ERROR);
        return NULL;
    }
    child = child_co_attach(parent, "backing", node, ROLE_COW, error);
    if (child)
        child->by_header = !parent->backing_extra;
    return child;
}

void graph_give_up(Graph *graph, int64_t since)
{
    for (GList *l = graph->nodes.head; l; l = l->next) {
        Node *node = l->data;
        if (node->drv->give_up && !node->partial)
            node->drv->give_up(node, since);
    }
}

void graph_co_close_all(Graph *graph)
{
    while (!g_queue_is_empty(&graph->devices))
        device_co_free(g_queue_peek_tail(&graph->devices));
    for (;;) {
        GList *l = graph->nodes.tail;
        while (l && !(((Node *)l->data)->monitor_owned))
            l = l->prev;
        if (!l)
            break;
        ((Node *)l->data)->monitor_owned = false;
        node_co_unref(l->data);
    }
}
