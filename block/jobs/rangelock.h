/*
 * Locks on byte ranges: whoever copies a range keeps clients' writes to it out, and the other way round.
 *
 * A holder embeds a RangeHold, usually on its coroutine's stack, so locking allocates nothing. There are few holders at
 * a time (the requests of one job and the client writes that touch them), so they stand in a plain list. Loop's thread.
 */
#pragma once
#include "block/aio/coroutine.h"

typedef struct RangeHold {
    uint64_t start, end; /* bytes, end exclusive */
    CoQueue waiters;
    struct RangeHold *next, **pprev;
} RangeHold;

typedef struct RangeLock {
    RangeHold *holds;
} RangeLock;

static inline RangeHold *rangelock_overlap(const RangeLock *lock, uint64_t start, uint64_t end)
{
    for (RangeHold *h = lock->holds; h; h = h->next)
        if (h->start < end && start < h->end)
            return h;
    return NULL;
}

/* Takes [@start, @end), which nobody holds any part of (assert). Balanced by rangelock_release(). */
static inline void rangelock_take(RangeLock *lock, RangeHold *hold, uint64_t start, uint64_t end)
{
    g_assert(!rangelock_overlap(lock, start, end));
    *hold = (RangeHold){.start = start, .end = end, .next = lock->holds, .pprev = &lock->holds};
    if (hold->next)
        hold->next->pprev = &hold->next;
    lock->holds = hold;
}

/* Waits until nobody holds any part of [@start, @end). What is free on return may be taken at once. */
static inline void rangelock_co_wait(RangeLock *lock, uint64_t start, uint64_t end)
{
    RangeHold *h;

    while ((h = rangelock_overlap(lock, start, end)))
        coqueue_co_wait(&h->waiters, NULL);
}

static inline void rangelock_release(RangeHold *hold)
{
    *hold->pprev = hold->next;
    if (hold->next)
        hold->next->pprev = hold->pprev;
    coqueue_wake_all(&hold->waiters);
}
