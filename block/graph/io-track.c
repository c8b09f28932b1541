/*
 * Tracked requests: who waits for whom when requests overlap.
 *
 * Writes are tracked for as long as they run. A request that reads, changes and writes back (an unaligned write) must
 * not have a write slip in between: it serialises, that is, it waits for every earlier overlapping request and holds up
 * every later one. Tickets order requests by when they arrived or became serialising; waiting only ever goes from a
 * later to an earlier ticket, so requests cannot wait in a circle.
 */
#include "block/graph/graph-int.h"
#include "block/util/bytes.h"

void tracked_begin(TrackedRequest *req, Node *node, uint64_t offset, uint64_t bytes)
{
    *req = (TrackedRequest){
        .node = node, .offset = offset, .bytes = bytes, .ticket = node->next_ticket++, .next = node->tracked};
    if (req->next)
        req->next->pprev = &req->next;
    req->pprev = &node->tracked;
    node->tracked = req;
}

void tracked_end(TrackedRequest *req)
{
    *req->pprev = req->next;
    if (req->next)
        req->next->pprev = req->pprev;
    if (req->serialising)
        req->node->serialising--;
    if (!coqueue_empty(&req->node->overlap_waiters))
        coqueue_wake_all(&req->node->overlap_waiters);
}

static bool must_wait(const TrackedRequest *req)
{
    for (const TrackedRequest *r = req->node->tracked; r; r = r->next)
        if (r->ticket < req->ticket && (r->serialising || req->serialising) && r->offset < req->offset + req->bytes &&
            req->offset < r->offset + r->bytes)
            return true;
    return false;
}

void tracked_co_wait(TrackedRequest *req)
{
    /* Most nodes never see a serialising request: one test then. */
    while (req->node->serialising && must_wait(req))
        coqueue_co_wait(&req->node->overlap_waiters, NULL);
}

void tracked_co_serialise(TrackedRequest *req, uint64_t align)
{
    uint64_t start = align_down(req->offset, align), end = align_up(req->offset + req->bytes, align);

    if (!req->serialising || end - start > req->bytes) {
        /* Writes may be under way that came later and passed it while it asked for less: it queues up behind them, and
         * whoever waits for it looks again. */
        req->ticket = req->node->next_ticket++;
        coqueue_wake_all(&req->node->overlap_waiters);
    }
    req->offset = start;
    req->bytes = end - start;
    if (!req->serialising) {
        req->serialising = true;
        req->node->serialising++;
    }
    tracked_co_wait(req);
}
