/*
 * The commands of qapi/schema/amend.json.
 */
#include "block/jobs/amend.h"
#include "block/util/error.h"
#include "daemon/daemon.h"
#include "qapi/commands.h"

bool qmp_co_x_blockdev_amend(QmpContext *ctx, const XBlockdevAmendArgs *arg, GError **error)
{
    Daemon *daemon = qmp_daemon(ctx);
    Node *node = graph_find_node(daemon->graph, arg->node_name);
    Job *job;

    if (!node)
        return error_set(error, "Cannot find device='' nor node-name='%s'", arg->node_name);
    job = amend_new(daemon->jobs, arg->job_id, node, arg->options, arg->force, error);
    if (!job)
        return false;
    job_start(job);
    return true;
}
