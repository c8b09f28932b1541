/*
 * What the files of block/graph/ share among themselves. Loop's thread.
 */
#pragma once
#include "block/graph/bitmap.h"
#include "block/graph/device.h"
#include "block/graph/drain.h"
#include "block/graph/image.h"
#include "block/graph/io.h"
#include "block/graph/txn.h"

struct Graph {
    Loop *loop;
    GHashTable *by_name;     /* char * (the node's) → Node * */
    GQueue nodes;            /* of Node *, in order of creation */
    GQueue devices;          /* of Device * */
    uint64_t next_auto;      /* number of the next "#blockNNN" */
    CoQueue drain_waiters;   /* whoever waits for quiet */
    unsigned visit;          /* the present walk's mark, see Node.visited */
    ImageWatch *image_watch; /* image.h; NULL: nobody */
    void *image_watch_opaque;
    bool refuse_names;      /* no file is opened because an image names it */
    GQueue throttle_groups; /* of ThrottleGroup *, each with references of its own */
    SecretStore *secrets;   /* by which options name passwords and keys */
    bool unthrottled;       /* no request waits for its turn any more */
};

/* A request that others may have to wait for. Lives on its coroutine's stack. */
typedef struct TrackedRequest {
    Node *node;
    uint64_t offset, bytes;
    uint64_t ticket; /* order of arrival: a request only ever waits for earlier ones, so no circle of waits arises */
    bool serialising;
    struct TrackedRequest *next, **pprev;
} TrackedRequest;

void tracked_begin(TrackedRequest *req, Node *node, uint64_t offset, uint64_t bytes);
void tracked_end(TrackedRequest *req);
/* From now on @req covers its range rounded to @align and waits for, and holds up, overlapping requests. */
void tracked_co_serialise(TrackedRequest *req, uint64_t align);
/* Waits for earlier serialising requests that overlap. */
void tracked_co_wait(TrackedRequest *req);

/* For what is no request of a parent: waits while the node is drained, then counts as in flight. */
void node_co_enter(Node *node);
static inline void node_in_flight_inc(Node *node)
{
    node->in_flight++;
}

static inline void node_in_flight_dec(Node *node)
{
    if (--node->in_flight == 0 && node->quiesced)
        graph_drain_kick(node->graph);
}

/* node.c: registers a fresh node under @name (NULL: an automatic one). False on a bad or taken name. */
Node *node_alloc(Graph *graph, const Driver *drv, const char *name, const NodeFlags *flags, GError **error);
/* Takes a node whose children are gone out of the registry and frees it. */
void node_free(Node *node);
/* Drops a reference that is not the last. */
void node_drop_ref(Node *node);

/* drain.c: one edge gained or lost a quiesced node. */
void child_quiesce(Child *child);
void child_unquiesce(Child *child);

/* perm.c: recomputes permissions from @start (array of Node *) downwards. Every change goes into @undo so that
 * perm_abort() restores it; perm_commit() hands the new ones to the drivers. */
typedef struct PermUndo PermUndo;
PermUndo *perm_prepare(Graph *graph, GPtrArray *start, GError **error);
void perm_commit(PermUndo *undo);

/* io-flush.c: takes the size over and tells the parents. */
void node_set_size(Node *node, uint64_t size);
/* io-zero.c: the write path's own use of zeroes; inside a tracked request. */
int node_co_write_zeroes_tracked(Node *node, TrackedRequest *req, uint64_t offset, uint64_t bytes, ReqFlags flags);
/* io.c: a read of any alignment. */
int node_co_read(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
/* io-cor.c: the same, and what the node has not allocated is written to it. @req is fresh. */
int node_co_read_copying(Node *node, TrackedRequest *req, uint64_t offset, uint64_t bytes, const IoVec *vec,
                         size_t vec_offset);
/* io.c: a write of any alignment inside a tracked request: read-modify-write of the edges. */
int node_co_write_padded(Node *node, TrackedRequest *req, uint64_t offset, uint64_t bytes, const IoVec *vec,
                         size_t vec_offset, ReqFlags flags);
/* What every kind of write does when it is over: generation, size, bitmaps, FUA by flush. */
int node_co_write_done(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags, int ret);
