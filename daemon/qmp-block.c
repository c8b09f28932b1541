/*
 * QMP: the block graph. blockdev-add and -del, and the queries.
 */
#include "block/graph/query.h"
#include "block/jobs/job.h"
#include "daemon/daemon.h"
#include "qapi/commands.h"

bool qmp_co_blockdev_add(QmpContext *ctx, const BlockdevOptions *arg, GError **error)
{
    Node *node;

    if (!arg->node_name)
        return error_set(error, "'node-name' must be specified for the root node");
    node = node_co_open(qmp_daemon(ctx)->graph, arg, NULL, error);
    if (!node)
        return false;
    node->monitor_owned = true;
    return true;
}

/* Has it a parent outside the graph: a device, an export, a job? */
static bool has_user(const Node *node)
{
    for (GList *l = node->parents.head; l; l = l->next)
        if (!((Child *)l->data)->parent)
            return true;
    return false;
}

bool qmp_co_blockdev_del(QmpContext *ctx, const BlockdevDelArgs *arg, GError **error)
{
    Node *node = graph_find_node(qmp_daemon(ctx)->graph, arg->node_name);

    if (!node)
        return error_set(error, "Failed to find node with node-name='%s'", arg->node_name);
    if (has_user(node))
        return error_set(error, "Node %s is in use", node->name);
    if (!job_list_check_node(qmp_daemon(ctx)->jobs, node, error))
        return false;
    if (!node->monitor_owned)
        return error_set(error, "Node %s is not owned by the monitor", node->name);
    if (!g_queue_is_empty(&node->parents) || node->refs > 1)
        return error_set(error, "Block device %s is in use", node->name);
    node->monitor_owned = false;
    node_co_unref(node);
    return true;
}

bool qmp_co_query_named_block_nodes(QmpContext *ctx, const QueryNamedBlockNodesArgs *arg, BlockDeviceInfoList **ret,
                                    GError **error)
{
    *ret = graph_co_query_named_nodes(qmp_daemon(ctx)->graph, arg->has_flat && arg->flat, error);
    return *ret != NULL;
}

bool qmp_co_query_block(QmpContext *ctx, BlockInfoList **ret, GError **error)
{
    *ret = graph_co_query_block(qmp_daemon(ctx)->graph, error);
    return *ret != NULL;
}

bool qmp_co_query_blockstats(QmpContext *ctx, const QueryBlockstatsArgs *arg, BlockStatsList **ret, GError **error)
{
    *ret = graph_query_blockstats(qmp_daemon(ctx)->graph, arg->has_query_nodes && arg->query_nodes);
    return true;
}

bool qmp_co_x_debug_query_block_graph(QmpContext *ctx, XDbgBlockGraph **ret, GError **error)
{
    *ret = graph_query_debug(qmp_daemon(ctx)->graph);
    return true;
}
