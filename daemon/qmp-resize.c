/*
 * QMP: block_resize.
 */
#include "daemon/resize.h"
#include "block/graph/device.h"
#include "block/graph/drain.h"
#include "block/jobs/job.h"
#include "block/util/error.h"
#include "qapi/commands.h"

static const PortOps resize_ops = {.what = "block device"};

bool resize_co_node(Daemon *daemon, Node *node, int64_t size, GError **error)
{
    bool ok = false;

    if (size < 0)
        return error_set(error, "Parameter 'size' expects a >0 size");
    if (!job_list_check_node(daemon->jobs, node, error))
        return false;
    /* The permission is what others may refuse: an export that relies on the size, say. */
    node_ref(node);
    Port *port = port_co_new(daemon->graph, node, PERM_RESIZE, PERM_ALL, &resize_ops, NULL, error);
    if (port)
        ok = port_co_truncate(port, (uint64_t)size, false, PREALLOC_MODE_OFF, 0, error);
    port_co_free(port);
    node_co_unref(node);
    return ok;
}

/* The node that one of the two names tells. */
static Node *find_node(Graph *graph, const BlockResizeArgs *arg, GError **error)
{
    if (!arg->device == !arg->node_name) {
        error_set(error, "Either 'device' or 'node-name' must be set but not both");
        return NULL;
    }
    if (arg->device)
        return graph_lookup(graph, arg->device, error);
    Node *node = graph_find_node(graph, arg->node_name);
    if (!node)
        error_set(error, "Cannot find device='' nor node-name='%s'", arg->node_name);
    return node;
}

bool qmp_co_block_resize(QmpContext *ctx, const BlockResizeArgs *arg, GError **error)
{
    Daemon *d = qmp_daemon(ctx);
    Node *node = find_node(d->graph, arg, error);

    return node && resize_co_node(d, node, arg->size, error);
}
