/*
 * Ports: the graph's front doors.
 */
#include "block/graph/graph-int.h"

static char *port_describe(Child *child)
{
    Port *port = child->opaque;

    if (port->ops && port->ops->describe)
        return port->ops->describe(port);
    return g_strdup_printf("an unnamed %s", port->ops && port->ops->what ? port->ops->what : "block device");
}

static void port_drained_begin(Child *child)
{
    Port *port = child->opaque;

    port->quiesced++;
    if (port->throttle)
        throttle_release(port->throttle);
    if (port->ops && port->ops->drained_begin)
        port->ops->drained_begin(port);
}

static void port_drained_end(Child *child)
{
    Port *port = child->opaque;

    port->quiesced--;
    if (port->ops && port->ops->drained_end)
        port->ops->drained_end(port);
    if (!port->quiesced)
        coqueue_wake_all(&port->waiting);
}

static bool port_drained_poll(Child *child)
{
    Port *port = child->opaque;

    return port->in_flight || (port->ops && port->ops->drained_poll && port->ops->drained_poll(port));
}

static void port_node_changed(Child *child)
{
    Port *port = child->opaque;

    port->stats = child->node ? &node_skip_implicit(child->node)->stats : NULL;
    if (port->ops && port->ops->node_changed)
        port->ops->node_changed(port);
}

static void port_resized(Child *child)
{
    Port *port = child->opaque;

    if (port->ops && port->ops->resized)
        port->ops->resized(port);
}

static const ParentOps port_parent_ops = {
    .what = "block device",
    .describe = port_describe,
    .drained_begin = port_drained_begin,
    .drained_end = port_drained_end,
    .drained_poll = port_drained_poll,
    .node_changed = port_node_changed,
    .resized = port_resized,
};

Port *port_co_new(Graph *graph, Node *node, unsigned perm, unsigned shared, const PortOps *ops, void *owner,
                  GError **error)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(graph);
    Port *port = g_new0(Port, 1);

    port->ops = ops;
    port->owner = owner;
    port->graph = graph;
    port->queue_while_drained = true;
    port->writable = perm & (PERM_WRITE | PERM_WRITE_UNCHANGED);
    port->child = graph_txn_attach_outside(txn, "root", node, perm, shared, &port_parent_ops, port);
    if (!graph_txn_co_commit(txn, error)) {
        g_free(port);
        return NULL;
    }
    return port;
}

void port_co_free(Port *port)
{
    g_autoptr(GraphTxn) txn = NULL;

    if (!port)
        return;
    /* Requests that wait for the end of a drained section are the owner's; it does not free a port under them. */
    while (port->in_flight)
        coqueue_co_wait(&port->graph->drain_waiters, NULL);
    txn = graph_txn_new(port->graph);
    graph_txn_detach(txn, port->child);
    if (!graph_txn_co_commit(txn, NULL))
        g_assert_not_reached();
    g_free(port);
}

bool port_co_set_perm(Port *port, unsigned perm, unsigned shared, GError **error)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(port->graph);

    graph_txn_set_perm(txn, port->child, perm, shared);
    if (!graph_txn_co_commit(txn, error))
        return false;
    port->writable = perm & (PERM_WRITE | PERM_WRITE_UNCHANGED);
    return true;
}

bool port_co_set_node(Port *port, Node *node, GError **error)
{
    g_autoptr(GraphTxn) txn = NULL;
    Node *old = port_node(port);
    bool ok;

    if (old)
        node_co_drained_begin(node_ref(old));
    txn = graph_txn_new(port->graph);
    graph_txn_replace(txn, port->child, node);
    ok = graph_txn_co_commit(txn, error);
    if (old) {
        node_drained_end(old);
        node_co_unref(old);
    }
    return ok;
}

uint64_t port_size(const Port *port)
{
    return port->child->node ? port->child->node->size : 0;
}

/* Lets a request in: waits while drained, checks the range. Balanced by port_leave() when it returned 0. */
static int port_co_enter(Port *port, uint64_t offset, uint64_t bytes, bool write)
{
    while (G_UNLIKELY(port->quiesced) && port->queue_while_drained)
        coqueue_co_wait(&port->waiting, NULL);
    if (G_UNLIKELY(!port->child->node))
        return -ENOMEDIUM;
    if (G_UNLIKELY(write && !port->writable))
        return -EPERM;
    if (G_UNLIKELY(offset > port_size(port) || bytes > port_size(port) - offset))
        return -EIO;
    port->in_flight++;
    return 0;
}

static void port_let_out(Port *port)
{
    if (--port->in_flight == 0 && port->graph->drain_waiters.head)
        graph_drain_kick(port->graph);
}

/* Counts the request and lets it out; @start in ns, @entered as port_co_enter() said. */
static int port_leave(Port *port, StatKind kind, uint64_t bytes, int64_t start, bool entered, int ret)
{
    IoStats *stats = port->stats;
    int64_t now = loop_now(graph_loop(port->graph), LOOP_CLOCK_REAL);

    if (port->count_stats && stats) {
        stats->last_access = now;
        if (ret >= 0) {
            stats->ops[kind]++;
            stats->bytes[kind] += bytes;
            stats->time_ns[kind] += (uint64_t)(now - start);
        } else if (entered) {
            stats->failed[kind]++;
            stats->time_ns[kind] += (uint64_t)(now - start);
        } else {
            stats->invalid[kind]++;
        }
    }
    if (entered)
        port_let_out(port);
    return ret;
}

/* Waits for the device's turn; a flush costs nothing. */
static void port_co_throttle(Port *port, StatKind kind, uint64_t bytes)
{
    if (port->throttle->group && kind != STAT_FLUSH)
        throttle_co_wait(port->throttle, kind != STAT_READ, bytes, port->quiesced);
}

/* The frame around every request: enter, do it through the edge, count, leave. */
#define PORT_REQUEST(kind, offset, bytes, write, call)                                                                 \
    do {                                                                                                               \
        int64_t start = loop_now(graph_loop(port->graph), LOOP_CLOCK_REAL);                                            \
        int ret = port_co_enter(port, offset, bytes, write);                                                           \
        bool entered = ret == 0;                                                                                       \
        if (entered && G_UNLIKELY(port->throttle))                                                                     \
            port_co_throttle(port, kind, bytes);                                                                       \
        if (entered)                                                                                                   \
            ret = call;                                                                                                \
        return port_leave(port, kind, bytes, start, entered, ret);                                                     \
    } while (0)

int port_co_preadv(Port *port, uint64_t offset, uint64_t bytes, const IoVec *vec, ReqFlags flags)
{
    PORT_REQUEST(STAT_READ, offset, bytes, false, child_co_preadv(port->child, offset, bytes, vec, 0, flags));
}

static ReqFlags write_flags(const Port *port, ReqFlags flags)
{
    return port->writethrough ? flags | REQ_FUA : flags;
}

int port_co_pwritev(Port *port, uint64_t offset, uint64_t bytes, const IoVec *vec, ReqFlags flags)
{
    flags = write_flags(port, flags);
    PORT_REQUEST(STAT_WRITE, offset, bytes, true, child_co_pwritev(port->child, offset, bytes, vec, 0, flags));
}

int port_co_pread(Port *port, uint64_t offset, uint64_t bytes, void *buf, ReqFlags flags)
{
    PORT_REQUEST(STAT_READ, offset, bytes, false, child_co_pread(port->child, offset, bytes, buf, flags));
}

int port_co_read_pages(Port *port, uint64_t offset, uint64_t bytes, AioPipe *pipe)
{
    /* Asked first, so that what turns into a read is not counted twice. */
    if (!port_node(port) || !node_has_pages(port_node(port)))
        return -ENOTSUP;
    PORT_REQUEST(STAT_READ, offset, bytes, false, child_co_read_pages(port->child, offset, bytes, pipe));
}

int port_co_pwrite(Port *port, uint64_t offset, uint64_t bytes, const void *buf, ReqFlags flags)
{
    flags = write_flags(port, flags);
    PORT_REQUEST(STAT_WRITE, offset, bytes, true, child_co_pwrite(port->child, offset, bytes, buf, flags));
}

int port_co_pwrite_zeroes(Port *port, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    flags = write_flags(port, flags);
    PORT_REQUEST(STAT_ZERO, offset, bytes, true, child_co_pwrite_zeroes(port->child, offset, bytes, flags));
}

/* Discards know no FUA. */
static int discard_co_through(Port *port, uint64_t offset, uint64_t bytes)
{
    int ret = child_co_pdiscard(port->child, offset, bytes);

    return ret == 0 && port->writethrough ? child_co_flush(port->child) : ret;
}

int port_co_pdiscard(Port *port, uint64_t offset, uint64_t bytes)
{
    PORT_REQUEST(STAT_UNMAP, offset, bytes, true, discard_co_through(port, offset, bytes));
}

int port_co_flush(Port *port)
{
    PORT_REQUEST(STAT_FLUSH, 0, 0, false, child_co_flush(port->child));
}

int port_co_block_status(Port *port, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret, int *ret_depth)
{
    int r = port_co_enter(port, offset, bytes, false);

    if (r < 0)
        return r;
    r = node_co_block_status_above(port->child->node, NULL, want_zero, offset, bytes, ret, ret_depth);
    port_let_out(port);
    return r;
}

bool port_co_truncate(Port *port, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error)
{
    bool ok;

    while (port->quiesced && port->queue_while_drained)
        coqueue_co_wait(&port->waiting, NULL);
    if (!port->child->node)
        return error_set_errno(error, ENOMEDIUM, "Cannot resize");
    port->in_flight++;
    ok = child_co_truncate(port->child, size, exact, prealloc, flags, error);
    if (--port->in_flight == 0)
        graph_drain_kick(port->graph);
    return ok;
}
