/*
 * Claims: who is about to change the table entries of which guest clusters (or, as the format likes, which parts of
 * clusters).
 *
 * Whoever fills new clusters claims their range; whoever else would change the same entries waits. Requests to other
 * clusters do not even look. A list is a `Claim *`, NULL when empty; claims live on their owners' stacks. Loop's
 * thread.
 */
#pragma once
#include "block/aio/coroutine.h"

typedef struct Claim {
    uint64_t first, n; /* guest clusters, or what the format counts in */
    CoQueue waiters;
    struct Claim *prev, *next;
} Claim;

/* Does somebody claim part of the range? NULL: no, and until the next yield nobody does. */
Claim *claim_find(Claim *list, uint64_t first, uint64_t n);
/* How many of the @max clusters from @first on lie before the next claim that begins behind @first. */
uint64_t claim_room(Claim *list, uint64_t first, uint64_t max);
/* Makes @claim; nobody may hold one there. */
void claim_begin(Claim **list, Claim *claim, uint64_t first, uint64_t n);
void claim_end(Claim **list, Claim *claim);
/* Waits for all claims on the range and makes one. */
void claim_co_wait(Claim **list, Claim *claim, uint64_t first, uint64_t n);
