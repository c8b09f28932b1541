/*
 * Claims: a list of the few that there are at a time.
 */
#include "block/format/claim.h"
#include "block/util/bytes.h"

Claim *claim_find(Claim *list, uint64_t first, uint64_t n)
{
    for (Claim *c = list; c; c = c->next)
        if (first < c->first + c->n && c->first < first + n)
            return c;
    return NULL;
}

uint64_t claim_room(Claim *list, uint64_t first, uint64_t max)
{
    for (Claim *c = list; c; c = c->next)
        if (c->first > first)
            max = u64_min(max, c->first - first);
    return max;
}

void claim_begin(Claim **list, Claim *claim, uint64_t first, uint64_t n)
{
    *claim = (Claim){.first = first, .n = n, .next = *list};
    if (*list)
        (*list)->prev = claim;
    *list = claim;
}

void claim_end(Claim **list, Claim *claim)
{
    if (claim->next)
        claim->next->prev = claim->prev;
    if (claim->prev)
        claim->prev->next = claim->next;
    else
        *list = claim->next;
    coqueue_wake_all(&claim->waiters);
}

void claim_co_wait(Claim **list, Claim *claim, uint64_t first, uint64_t n)
{
    Claim *other;

    while ((other = claim_find(*list, first, n)))
        coqueue_co_wait(&other->waiters, NULL);
    claim_begin(list, claim, first, n);
}
