/*
 * Ports: where requests from outside enter the graph. Devices, exports and jobs each hold one or more.
 *
 * A port is an outside edge with manners: while its node is drained, new requests wait in the port (or, for jobs, the
 * owner pauses itself: queue_while_drained false); it checks range and read-only, and counts client traffic in the
 * node's statistics.
 */
#pragma once
#include "block/graph/io.h"
#include "block/graph/throttle.h"

/* PortOps.what of jobs, which queries of the graph tell from other parents. */
#define PORT_WHAT_JOB "block job"

typedef struct PortOps {
    const char *what;
    char *(*describe)(Port *port);     /* caller frees */
    void (*drained_begin)(Port *port); /* all optional */
    void (*drained_end)(Port *port);
    bool (*drained_poll)(Port *port);
    void (*node_changed)(Port *port);
    void (*resized)(Port *port);
} PortOps;

struct Port {
    Child *child; /* the edge; child->node is NULL for an empty device */
    const PortOps *ops;
    void *owner;
    Graph *graph;
    bool queue_while_drained; /* default true */
    bool count_stats;         /* client traffic */
    ThrottleMember *throttle; /* a device's, whose limits hold for the requests; borrowed, NULL: none */
    bool writethrough;        /* what a request changes is durable when it completes; default false */
    bool writable;            /* requests that write are let through (devices and exports: the client's view) */

    /* port.c only */
    unsigned in_flight;
    unsigned quiesced;
    CoQueue waiting;
    IoStats *stats; /* of the first node below that is not implicit */
};

/* Opens a port onto @node (a reference of its own; NULL: empty) with @perm and @shared. NULL with @error when another
 * parent does not share what it needs. */
Port *port_co_new(Graph *graph, Node *node, unsigned perm, unsigned shared, const PortOps *ops, void *owner,
                  GError **error);
/* Waits for its requests, detaches and frees. Takes NULL. */
void port_co_free(Port *port);
static inline Node *port_node(const Port *port)
{
    return port->child->node;
}
bool port_co_set_perm(Port *port, unsigned perm, unsigned shared, GError **error);
/* Moves the port to another node (NULL: none), drained. */
bool port_co_set_node(Port *port, Node *node, GError **error);

/* Bytes; the node's present size, 0 for an empty port. */
uint64_t port_size(const Port *port);

/* Requests: 0 or -errno. -ENOMEDIUM without a node, -EIO out of range, -EPERM when not writable. */
int port_co_preadv(Port *port, uint64_t offset, uint64_t bytes, const IoVec *vec, ReqFlags flags);
int port_co_pwritev(Port *port, uint64_t offset, uint64_t bytes, const IoVec *vec, ReqFlags flags);
int port_co_pread(Port *port, uint64_t offset, uint64_t bytes, void *buf, ReqFlags flags);
/* -ENOTSUP, also where only this range cannot: read instead; after any error @pipe is of no more use. */
int port_co_read_pages(Port *port, uint64_t offset, uint64_t bytes, AioPipe *pipe);
int port_co_pwrite(Port *port, uint64_t offset, uint64_t bytes, const void *buf, ReqFlags flags);
int port_co_pwrite_zeroes(Port *port, uint64_t offset, uint64_t bytes, ReqFlags flags);
int port_co_pdiscard(Port *port, uint64_t offset, uint64_t bytes);
int port_co_flush(Port *port);
/* node_co_block_status_above() of the whole chain; like any request it waits while the port is drained. */
int port_co_block_status(Port *port, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret, int *ret_depth);
bool port_co_truncate(Port *port, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error);
