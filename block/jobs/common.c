/*
 * Mirror and backup: the common parts of their start and end.
 */
#include "qapi/rt/tree.h"
#include "block/jobs/common.h"
#include "block/graph/device.h"
#include "block/graph/image.h"
#include "block/graph/txn.h"
#include "qapi/rt/json.h"
#include <glib/gstdio.h>

Node *job_find_target(Graph *graph, const char *name, GError **error)
{
    g_autoptr(GError) local = NULL;
    Node *node = graph_lookup(graph, name, &local);

    if (!node)
        error_set(error, "%s", local->message); /* these commands have no class of their own for it */
    return node;
}

static bool is_root(Node *node)
{
    for (GList *l = node->parents.head; l; l = l->next)
        if (((Child *)l->data)->parent)
            return false;
    return true;
}

bool job_check_root(Node *node, GError **error)
{
    return is_root(node) || error_set(error, "Need a root block node");
}

Node *job_find_root(Graph *graph, const char *device, GError **error)
{
    Node *node = job_find_target(graph, device, error);

    return node && job_check_root(node, error) ? node : NULL;
}

typedef struct IdSearch {
    Node *node;
    const char *id;
} IdSearch;

static void match_device(Device *device, void *opaque)
{
    IdSearch *search = opaque;

    if (port_node(device->port) == search->node && *device->id)
        search->id = device->id;
}

const char *job_default_id(Graph *graph, Node *node)
{
    IdSearch search = {.node = node};

    graph_foreach_device(graph, match_device, &search);
    return search.id;
}

int job_co_flush(Job *job, Node *node, BlockdevOnError policy)
{
    for (;;) {
        int ret = node_co_flush(node);
        if (ret == 0 || job_is_cancelled(job))
            return 0;
        if (job_error_action(job, policy, false, -ret) == BLOCK_ERROR_ACTION_REPORT)
            return ret;
        job_co_sleep(job, JOB_ERROR_REST_NS);
    }
}

static NodeInfo image_info(Node *node)
{
    NodeInfo info = {0};

    node = node_skip_filters(node);
    if (node->drv->get_info)
        node->drv->get_info(node, &info);
    return info;
}

uint64_t job_cluster_size(Node *node)
{
    return image_info(node).cluster_size;
}

uint64_t job_fill_size(Node *node)
{
    NodeInfo info = image_info(node);

    return info.fill_size ? info.fill_size : info.cluster_size;
}

/* ---- targets by file name --------------------------------------------------------------------------------------- */

static bool job_co_create_target(Node *source, const TargetOptions *t, const char *format, GError **error)
{
    g_autofree char *backing = t->backing ? node_filename(t->backing) : NULL;
    CreateOptions options = {
        .size = source->size,
        .backing_file = backing,
        .backing_format = t->backing ? node_skip_filters(t->backing)->drv->name : NULL,
    };

    return image_co_create(source->graph, t->filename, format, &options, error);
}

/* What the name of the target leaves open. */
static Tree *target_extra(const TargetOptions *t, const char *format)
{
    Tree *extra = tree_object();
    const Driver *drv = format ? driver_find(format) : NULL;

    if (t->node_name)
        tree_set_string(extra, "node-name", t->node_name);
    if (drv && drv->supports_backing && t->open_backing == '0')
        tree_set(extra, "backing", tree_null());
    if (drv && drv->supports_backing && t->open_backing == 'n')
        tree_set_string(extra, "backing", t->backing->name);
    return extra;
}

Node *job_co_open_target(Node *source, TargetOptions *t, GError **error)
{
    bool is_new = t->create && image_is_new(t->filename);
    Node *target;
    const char *format = t->format;
    NodeFlags flags = source->flags;
    g_autoptr(Tree) extra = NULL;

    if (!format && t->create)
        format = node_skip_filters(source)->drv->name;
    if (t->create && !job_co_create_target(source, t, format, error))
        return NULL;
    /* As the source is open, but writable and without what is between the source and its users. */
    flags.level = 0;
    flags.read_only = flags.auto_read_only = flags.force_share = false;
    flags.detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF;
    extra = target_extra(t, format);
    target = node_co_open_filename(source->graph, t->filename, format, extra, &flags, error);
    t->made_new = is_new && target;
    if (is_new && !target)
        g_unlink(t->filename);
    return target;
}

/* ---- filters ---------------------------------------------------------------------------------------------------- */

bool job_co_insert_filter(Node *filter, Node *source, const char *name, Node *except, GError **error)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(source->graph);

    graph_txn_attach(txn, filter, name, source, ROLE_FILTER);
    if (!graph_txn_replace_node(txn, source, filter, except, error) || !graph_txn_co_commit(txn, error))
        return false;
    node_refresh_limits(filter);
    return true;
}

void job_co_remove_filter(Node *filter)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(filter->graph);
    bool ok = graph_txn_replace_node(txn, filter, filter->file->node, NULL, NULL);

    g_assert(ok);
    while (filter->children->len)
        graph_txn_detach(txn, g_ptr_array_index(filter->children, filter->children->len - 1));
    ok = graph_txn_co_commit(txn, NULL);
    g_assert(ok);
}
