#include "block/aio/internal.h"
#include <sys/mman.h>
#include <unistd.h>
#ifdef CONTEXT_ASAN
#include <sanitizer/asan_interface.h>
#endif

#ifdef __has_include
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#define WITH_VALGRIND 1
#endif
#endif

/*
 * Opening a tree of nodes and walking a request down it recurse, a level of the graph each time; the graph bounds the
 * levels (GRAPH_LEVELS_MAX), and this has room for that many. Pages that nothing touched cost nothing.
 */
#ifdef CONTEXT_ASAN
#define STACK_SIZE (4 * 1024 * 1024) /* red zones around every variable want room */
#else
#define STACK_SIZE (1024 * 1024)
#endif
/*
 * As many as stay pooled. A page or three of each are in use by then, the rest has never been touched; enough for a
 * dozen busy NBD connections to go up and down without asking the kernel for memory.
 */
#define POOL_MAX 1024
/*
 * What clients may bring into being. The kernel allows 65530 mappings a process by default, and a stack with its guard
 * takes two of them where it cannot install a guard inside of a mapping.
 */
#define LIVE_MAX 16384

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static __thread Coroutine *current;

static size_t guard_size(void)
{
    /* More than one page, so that a frame with an array of some KiB cannot step over it unnoticed. */
    static size_t size;
    if (!size)
        size = MAX(16384, (size_t)sysconf(_SC_PAGESIZE));
    return size;
}

static void *stack_map(void)
{
    size_t guard = guard_size();
    void *stack = mmap(NULL, guard + STACK_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED)
        return NULL;
#ifdef CONTEXT_ASAN
    /* Frames of a stack that was here before, and that never returned, may have left their red zones. */
    ASAN_UNPOISON_MEMORY_REGION(stack, guard + STACK_SIZE);
#endif
    /* Linux 6.13 can guard pages without splitting the mapping; before that it takes a mapping of its own. */
    if (madvise(stack, guard, MADV_GUARD_INSTALL) < 0 && mprotect(stack, guard, PROT_NONE) < 0) {
        munmap(stack, guard + STACK_SIZE);
        return NULL;
    }
    return stack;
}

/* Runs one entry after the other: a pooled coroutine needs no new first frame. */
static G_GNUC_NORETURN void co_main(void)
{
    Coroutine *self = current;
    context_entered(&self->context, self->caller ? &self->caller->context : &self->loop->context);
    for (;;) {
        self->entry(self->opaque);
        co_suspend(self, CO_ENDED);
    }
}

static Coroutine *co_new(Loop *loop)
{
    void *stack = stack_map();
    if (!stack)
        g_error("coroutine_start: no memory for a stack: %s", g_strerror(errno));
    /* The coroutine itself lies at the upper end of its stack: one mapping, and the same pages are warm. */
    char *low = (char *)stack + guard_size();
    size_t room = STACK_SIZE - ((sizeof(Coroutine) + 63) & ~(size_t)63);
    Coroutine *co = (Coroutine *)(low + room);
    *co = (Coroutine){.loop = loop, .stack = stack};
    context_init(&co->context, low, room, co_main);
#ifdef WITH_VALGRIND
    co->valgrind_id = VALGRIND_STACK_REGISTER(low, low + room);
#endif
    return co;
}

static void co_free(Coroutine *co)
{
#ifdef WITH_VALGRIND
    VALGRIND_STACK_DEREGISTER(co->valgrind_id);
#endif
    context_destroy(&co->context);
#ifdef CONTEXT_ASAN
    /* Who gets this place next does not expect red zones of our variables there. */
    ASAN_UNPOISON_MEMORY_REGION(co->stack, guard_size() + STACK_SIZE);
#endif
    munmap(co->stack, guard_size() + STACK_SIZE);
}

static void co_recycle(Coroutine *co)
{
    Loop *loop = co->loop;
    loop->live--;
    if (loop->pooled < POOL_MAX) {
        co->next = loop->pool;
        loop->pool = co;
        loop->pooled++;
    } else {
        co_free(co);
    }
}

void co_pool_free(Loop *loop)
{
    while (loop->pool) {
        Coroutine *co = loop->pool;
        loop->pool = co->next;
        co_free(co);
    }
    loop->pooled = 0;
}

void co_resume(Coroutine *co)
{
    Coroutine *caller = current;
    co->caller = caller;
    co->wait = CO_RUNNING;
    current = co;
    context_switch(caller ? &caller->context : &co->loop->context, &co->context);
    if (co->wait == CO_ENDED)
        co_recycle(co);
}

void co_suspend(Coroutine *self, CoWait why)
{
    self->wait = why;
    current = self->caller;
    context_switch(&self->context, current ? &current->context : &self->loop->context);
}

void co_make_ready(Coroutine *co)
{
    co->wait = CO_READY;
    coqueue_push(&co->loop->ready, co);
}

Coroutine *coroutine_start(Loop *loop, CoroutineEntry *entry, void *opaque)
{
    Coroutine *co = loop->pool;
    if (co) {
        loop->pool = co->next;
        loop->pooled--;
    } else {
        co = co_new(loop);
    }
    loop->live++;
    co->next = NULL;
    co->cancelled = false;
    co->shares = false;
    co->gate_fd = -1;
    co->entry = entry;
    co->opaque = opaque;
    co_resume(co);
    return co;
}

bool coroutine_available(const Loop *loop)
{
    return loop->live < LIVE_MAX;
}

void coroutine_share_work(void)
{
    Coroutine *self = coroutine_self();

    self->shares = self->loop->processors > 1;
}

unsigned coroutine_count(const Loop *loop)
{
    return loop->live;
}

Coroutine *coroutine_self(void)
{
    g_assert(current);
    return current;
}

bool coroutine_active(void)
{
    return current != NULL;
}

Loop *coroutine_loop(const Coroutine *co)
{
    return co->loop;
}

void coroutine_wake(Coroutine *co)
{
    if (co->wait == CO_READY)
        return;
    g_assert(co->wait == CO_YIELDED);
    co_make_ready(co);
}

void aio_co_yield(void)
{
    co_suspend(coroutine_self(), CO_YIELDED);
}

void aio_co_reschedule(void)
{
    Coroutine *self = coroutine_self();
    /* The next turn, not this one: what only waits for the end of a turn or for I/O counts as ready, too. */
    coqueue_push(&self->loop->ready_next, self);
    co_suspend(self, CO_READY);
}

static void sleep_over(void *opaque)
{
    Coroutine *co = opaque;
    co->result = 0;
    co->timer = NULL;
    co_resume(co);
}

int aio_co_sleep_until(LoopClock clock, int64_t deadline)
{
    Coroutine *self = coroutine_self();
    Timer timer;
    timer_init(&timer, self->loop, clock, sleep_over, self);
    timer_arm(&timer, deadline);
    self->timer = &timer;
    co_suspend(self, CO_SLEEP);
    return self->result;
}
