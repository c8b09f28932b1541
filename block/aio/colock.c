/*
 * Locks between coroutines of one loop. A lock that is let go while somebody waits is handed over there and then, so
 * that nobody who comes later can take it before the one who waited has run: first come, first served.
 */
#include "block/aio/internal.h"

void coqueue_co_wait(CoQueue *queue, CoMutex *mutex)
{
    Coroutine *self = coroutine_self();
    coqueue_push(queue, self);
    if (mutex)
        comutex_unlock(mutex);
    co_suspend(self, CO_LOCK);
    if (mutex)
        comutex_co_lock(mutex);
}

bool coqueue_wake_one(CoQueue *queue)
{
    Coroutine *co = coqueue_pop(queue);
    if (!co)
        return false;
    co_make_ready(co);
    return true;
}

void coqueue_wake_all(CoQueue *queue)
{
    while (coqueue_wake_one(queue)) {
    }
}

void comutex_co_lock(CoMutex *mutex)
{
    Coroutine *self = coroutine_self();
    g_assert(mutex->holder != self);
    if (!mutex->holder) {
        mutex->holder = self;
        return;
    }
    coqueue_push(&mutex->waiters, self);
    co_suspend(self, CO_LOCK);
    g_assert(mutex->holder == self);
}

void comutex_unlock(CoMutex *mutex)
{
    g_assert(mutex->holder && mutex->holder == coroutine_self());
    mutex->holder = mutex->waiters.head;
    coqueue_wake_one(&mutex->waiters);
}

/* Admits the first in the queue: one writer, or all readers up to the next writer. */
static void corwlock_admit(CoRwlock *lock)
{
    Coroutine *co = lock->waiters.head;
    if (!co || lock->writer)
        return;
    if (co->exclusive) {
        if (lock->readers == 0) {
            lock->writer = co;
            coqueue_wake_one(&lock->waiters);
        }
        return;
    }
    while (lock->waiters.head && !lock->waiters.head->exclusive) {
        lock->readers++;
        coqueue_wake_one(&lock->waiters);
    }
}

static void corwlock_co_queue(CoRwlock *lock, bool exclusive)
{
    Coroutine *self = coroutine_self();
    g_assert(lock->writer != self);
    self->exclusive = exclusive;
    coqueue_push(&lock->waiters, self);
    co_suspend(self, CO_LOCK);
}

void corwlock_co_rdlock(CoRwlock *lock)
{
    if (lock->writer || lock->waiters.head) {
        corwlock_co_queue(lock, false);
        return;
    }
    lock->readers++;
}

void corwlock_co_wrlock(CoRwlock *lock)
{
    if (lock->writer || lock->readers) {
        corwlock_co_queue(lock, true);
        g_assert(lock->writer == coroutine_self());
        return;
    }
    lock->writer = coroutine_self();
}

void corwlock_unlock(CoRwlock *lock)
{
    if (lock->writer) {
        g_assert(lock->writer == coroutine_self());
        lock->writer = NULL;
    } else {
        g_assert(lock->readers > 0);
        lock->readers--;
    }
    corwlock_admit(lock);
}
