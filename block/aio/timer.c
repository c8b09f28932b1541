/*
 * Timers: a binary heap for each clock. Equal deadlines fire in the order in which they were armed, so that a run on a
 * manual clock can be told beforehand.
 */
#include "block/aio/internal.h"
#include <time.h>

static bool earlier(const Timer *a, const Timer *b)
{
    return a->deadline < b->deadline || (a->deadline == b->deadline && a->order < b->order);
}

static void put(TimerHeap *heap, guint slot, Timer *timer)
{
    heap->slots[slot] = timer;
    timer->slot = slot;
}

static void sift_up(TimerHeap *heap, guint slot, Timer *timer)
{
    while (slot > 0) {
        guint parent = (slot - 1) / 2;
        if (!earlier(timer, heap->slots[parent]))
            break;
        put(heap, slot, heap->slots[parent]);
        slot = parent;
    }
    put(heap, slot, timer);
}

static void sift_down(TimerHeap *heap, guint slot, Timer *timer)
{
    for (;;) {
        guint child = 2 * slot + 1;
        if (child >= heap->used)
            break;
        if (child + 1 < heap->used && earlier(heap->slots[child + 1], heap->slots[child]))
            child++;
        if (!earlier(heap->slots[child], timer))
            break;
        put(heap, slot, heap->slots[child]);
        slot = child;
    }
    put(heap, slot, timer);
}

void timer_init(Timer *timer, Loop *loop, LoopClock clock, TimerFn *fire, void *opaque)
{
    *timer = (Timer){.loop = loop, .clock = clock, .fire = fire, .opaque = opaque, .deadline = INT64_MAX};
}

void timer_cancel(Timer *timer)
{
    if (!timer_armed(timer))
        return;
    TimerHeap *heap = &timer->loop->timers[timer->clock];
    g_assert(timer->slot < heap->used && heap->slots[timer->slot] == timer);
    Timer *last = heap->slots[--heap->used];
    timer->deadline = INT64_MAX;
    if (last == timer)
        return;
    /* The last one takes the free place, then finds its own: it may belong further up or further down. */
    sift_up(heap, timer->slot, last);
    sift_down(heap, last->slot, last);
}

void timer_arm(Timer *timer, int64_t deadline)
{
    TimerHeap *heap = &timer->loop->timers[timer->clock];
    timer_cancel(timer);
    if (heap->used == heap->room) {
        heap->room = heap->room ? heap->room * 2 : 64;
        heap->slots = g_renew(Timer *, heap->slots, heap->room);
    }
    /* INT64_MAX says "not armed": the end of time is one earlier. */
    timer->deadline = MIN(deadline, INT64_MAX - 1);
    timer->order = timer->loop->timer_order++;
    sift_up(heap, heap->used++, timer);
}

void timers_fire(Loop *loop)
{
    /* A timer that arms itself for a time already past waits for the next turn, or the turn would never end. */
    uint64_t until = loop->timer_order;
    for (int clock = 0; clock < LOOP_CLOCK__MAX; clock++) {
        TimerHeap *heap = &loop->timers[clock];
        while (heap->used && heap->slots[0]->deadline <= loop->now[clock] && heap->slots[0]->order < until) {
            Timer *timer = heap->slots[0];
            timer_cancel(timer);
            timer->fire(timer->opaque);
        }
    }
}

int64_t clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

int64_t timers_wait_ns(Loop *loop)
{
    int64_t wait = -1;
    int64_t now = 0;
    for (int clock = 0; clock < LOOP_CLOCK__MAX; clock++) {
        if (!loop->timers[clock].used)
            continue;
        int64_t deadline = loop->timers[clock].slots[0]->deadline;
        if (clock == LOOP_CLOCK_RATE && loop->rate_manual) {
            if (deadline <= loop->now[clock])
                return 0;
            continue;
        }
        if (!now)
            now = clock_ns();
        int64_t left = deadline <= now ? 0 : deadline - now;
        wait = wait < 0 ? left : MIN(wait, left);
    }
    return wait;
}

void timers_update(Loop *loop)
{
    loop->now[LOOP_CLOCK_REAL] = clock_ns();
    if (!loop->rate_manual)
        loop->now[LOOP_CLOCK_RATE] = loop->now[LOOP_CLOCK_REAL];
}

int64_t loop_now(Loop *loop, LoopClock clock)
{
    return loop->now[clock];
}

void loop_rate_clock_manual(Loop *loop)
{
    loop->rate_manual = true;
}

int64_t loop_rate_clock_step(Loop *loop, int64_t ns)
{
    g_assert(loop->rate_manual && ns >= 0);
    loop->now[LOOP_CLOCK_RATE] += ns;
    return loop->now[LOOP_CLOCK_RATE];
}

int64_t loop_rate_clock_next(Loop *loop)
{
    const TimerHeap *heap = &loop->timers[LOOP_CLOCK_RATE];

    return heap->used ? heap->slots[0]->deadline : INT64_MAX;
}

void timers_free(Loop *loop)
{
    for (int clock = 0; clock < LOOP_CLOCK__MAX; clock++)
        g_free(loop->timers[clock].slots);
}
