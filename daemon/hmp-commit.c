/*
 * Human monitor: commit. What the image of a device holds is written into its backing file, at once and with the device
 * standing still. The image keeps its clusters, which say the same as the backing file now.
 */
#include "daemon/hmp.h"
#include "block/aio/io.h"
#include "block/graph/device.h"
#include "block/graph/drain.h"
#include "block/graph/reopen.h"
#include "block/graph/status.h"
#include "block/jobs/job.h"
#include "block/util/error.h"
#include <string.h>

enum { PIECE = 1 << 20 };

/* Both ports work on while everybody else waits. */
static const PortOps commit_ops = {.what = "commit"};

static Port *commit_co_port(Daemon *d, Node *node, unsigned perm, GError **error)
{
    Port *port = port_co_new(d->graph, node, perm, PERM_ALL, &commit_ops, NULL, error);
    if (port)
        port->queue_while_drained = false;
    return port;
}

/* One stretch that the image decides. */
static int commit_co_piece(Port *from, Port *to, const BlockStatus *status, uint64_t offset, uint64_t bytes,
                           void *buffer)
{
    if (status->flags & STATUS_ZERO)
        return port_co_pwrite_zeroes(to, offset, bytes, REQ_MAY_UNMAP);
    int ret = port_co_pread(from, offset, bytes, buffer, 0);
    return ret < 0 ? ret : port_co_pwrite(to, offset, bytes, buffer, 0);
}

static int commit_co_data(Port *from, Port *to, void *buffer)
{
    Node *node = port_node(from);
    BlockStatus status;

    for (uint64_t offset = 0; offset < node->size; offset += status.bytes) {
        int ret = node_co_block_status(node, true, offset, MIN(node->size - offset, (uint64_t)PIECE), &status);
        if (ret == 0 && (status.flags & STATUS_ALLOCATED))
            ret = commit_co_piece(from, to, &status, offset, status.bytes, buffer);
        if (ret < 0)
            return ret;
    }
    return port_co_flush(to);
}

/* With @node drained and @backing writable. */
static bool commit_co_ports(Daemon *d, Node *node, Node *backing, GError **error)
{
    Port *from = commit_co_port(d, node, PERM_CONSISTENT_READ, error);
    Port *to = from ? commit_co_port(d, backing, PERM_WRITE | PERM_RESIZE, error) : NULL;
    void *buffer = to ? aio_buf_get(d->loop, PIECE) : NULL;
    bool ok = buffer != NULL;

    if (to && !buffer)
        error_set(error, "Cannot allocate memory for the copy");
    if (ok && backing->size < node->size)
        ok = port_co_truncate(to, node->size, false, PREALLOC_MODE_OFF, 0, error);
    if (ok) {
        int ret = commit_co_data(from, to, buffer);
        ok = ret == 0 || error_set_errno(error, -ret, "'commit' error for '%s'", node->name);
    }
    if (buffer)
        aio_buf_put(d->loop, buffer, PIECE);
    port_co_free(to);
    port_co_free(from);
    return ok;
}

static bool commit_co_node(Daemon *d, Node *node, Node *backing, GError **error)
{
    bool was_read_only = backing->flags.read_only;

    if (!job_list_check_node(d->jobs, node, error) || !job_list_check_node(d->jobs, backing, error) ||
        !node_co_set_read_only(backing, false, error))
        return false;
    node_co_drained_begin(node);
    bool ok = commit_co_ports(d, node, backing, error);
    node_drained_end(node);
    if (was_read_only && !node_co_set_read_only(backing, true, ok ? error : NULL))
        ok = false;
    return ok;
}

static bool commit_co_device(Daemon *d, const char *name, GError **error)
{
    Node *node = graph_lookup(d->graph, name, error);
    Node *top = node ? node_skip_filters(node) : NULL, *backing = top ? node_backing(top) : NULL;

    if (!backing)
        return !top ? false : error_set(error, "Device '%s' has no backing file", name);
    node_ref(top);
    node_ref(backing);
    bool ok = commit_co_node(d, top, backing, error);
    node_co_unref(backing);
    node_co_unref(top);
    return ok;
}

static void collect_device(Device *device, void *opaque)
{
    Node *node = port_node(device->port);

    if (node && node_backing(node_skip_filters(node)))
        g_ptr_array_add(opaque, g_strdup(device->id));
}

void hmp_co_commit(Hmp *hmp, char **args)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);

    if (strcmp(args[0], "all") == 0)
        graph_foreach_device(hmp->daemon->graph, collect_device, names);
    else
        g_ptr_array_add(names, g_strdup(args[0]));
    for (guint i = 0; i < names->len; i++) {
        g_autoptr(GError) error = NULL;
        if (!commit_co_device(hmp->daemon, names->pdata[i], &error))
            hmp_error(hmp, error);
    }
}
