/*
 * Coroutines: where everything that may wait runs (LAW 2), named with `_co_` where it may yield (LAW 3).
 *
 * A coroutine belongs to one loop and runs on that loop's thread only. Stacks come from a bounded pool with guard
 * pages; starting one in steady state allocates nothing.
 */
#pragma once
#include "block/aio/loop.h"

typedef struct Coroutine Coroutine;
typedef void CoroutineEntry(void *opaque);

/*
 * Creates a coroutine and runs it at once, until it first yields or returns; then the caller goes on. May be called
 * from a coroutine or outside. The coroutine frees itself when @entry returns, so keep the pointer only while you
 * know that it has not. Entry functions carry `_co_` in their names (`foo_co_entry`) since they may yield.
 */
Coroutine *coroutine_start(Loop *loop, CoroutineEntry *entry, void *opaque);

/*
 * May one more be started on behalf of a client? A loop has room for some 16,000 at a time. Whoever starts one for each
 * request of a peer asks first and makes the peer wait when it is false (there are far tighter limits a connection).
 * coroutine_start() itself never refuses, for what the process needs to go on; it aborts only when memory is out.
 */
bool coroutine_available(const Loop *loop);

/* How many coroutines of @loop have been started and have not ended. */
unsigned coroutine_count(const Loop *loop);

/* The running coroutine; asserts that there is one. */
Coroutine *coroutine_self(void);

/* Is a coroutine running on this thread? */
bool coroutine_active(void);

Loop *coroutine_loop(const Coroutine *co);

/* The loop has more to do than what the running coroutine is about: until that ends, its long reads and writes of files
 * in memory, which would be made at once, are left to other threads (io.c). */
void coroutine_share_work(void);

/*
 * Puts a coroutine that is in aio_co_yield() on its loop's ready queue; it resumes later in this turn. Waking one that
 * is already on the queue is harmless. Never wake a coroutine that waits in any other `_co_` function: those have
 * wakers of their own. Loop's thread only.
 */
void coroutine_wake(Coroutine *co);

/* Gives the thread back until coroutine_wake(). */
void aio_co_yield(void);

/* Lets everything else that is ready run first, then goes on in this or the next turn. */
void aio_co_reschedule(void);

/* Sleeps until @deadline (absolute, ns, of @clock). Returns 0, or -ECANCELED after aio_cancel(). */
int aio_co_sleep_until(LoopClock clock, int64_t deadline);

/*
 * Locks between coroutines of one loop. Fair: first come, first served. Zero-initialised memory is an unlocked lock
 * and an empty queue. Unlocking and waking do not yield.
 */
typedef struct CoQueue {
    Coroutine *head, *tail;
} CoQueue;

typedef struct CoMutex {
    Coroutine *holder; /* for asserts, NULL when free */
    CoQueue waiters;
} CoMutex;

void comutex_co_lock(CoMutex *mutex);
void comutex_unlock(CoMutex *mutex);

typedef struct CoRwlock {
    int readers;       /* those that hold it shared */
    Coroutine *writer; /* the one that holds it alone */
    CoQueue waiters;   /* readers and writers in order of arrival: no writer starves */
} CoRwlock;

void corwlock_co_rdlock(CoRwlock *lock);
void corwlock_co_wrlock(CoRwlock *lock);
void corwlock_unlock(CoRwlock *lock);

/* Waits at the end of @queue until woken. @mutex (may be NULL) is released meanwhile and held again on return. */
void coqueue_co_wait(CoQueue *queue, CoMutex *mutex);
/* Wakes the first waiter; false when there was none. */
bool coqueue_wake_one(CoQueue *queue);
void coqueue_wake_all(CoQueue *queue);
static inline bool coqueue_empty(const CoQueue *queue)
{
    return queue->head == NULL;
}
