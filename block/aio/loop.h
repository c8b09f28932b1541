/*
 * The event loop: one thread, one io_uring, one io_uring_enter per turn.
 *
 * A turn: reap completions, each resumes its coroutine; run the ready queue (woken coroutines) until it is empty;
 * fire due timers; run the turn-end callbacks (e.g. "send all replies collected in this turn"); submit everything
 * queued and wait, in a single io_uring_enter (another one where loop_expect() says so). LAW 2: depth one, no nested
 * loop.
 *
 * Everything here belongs to the loop's own thread, except loop_stop(), which may also be called from a signal
 * handler or another thread.
 */
#pragma once
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct Loop Loop;

/*
 * NULL and @error when the kernel refuses an io_uring (the text says what to check). The loop belongs to the thread,
 * and to the process, that made it: daemonise first.
 */
Loop *loop_new(GError **error);

/* Destroys an idle loop: no coroutine may exist on it any more. Takes NULL. */
void loop_free(Loop *loop);

/* Turns until loop_stop(). Not from a coroutine. */
void loop_run(Loop *loop);

/* Makes loop_run() return at the end of the present turn. Any thread, async-signal-safe. */
void loop_stop(Loop *loop);

/*
 * Something is likely to come within microseconds: a client's next request after an answer that has just been sent. If
 * there is nothing else to do at the end of this turn, the loop looks out for it for a moment before it sleeps; to be
 * woken costs both sides more than that. Where nothing came in time, again and again, it seldom tries.
 */
void loop_expect(Loop *loop);

/* The clocks of a loop, in ns. */
typedef enum LoopClock {
    LOOP_CLOCK_REAL, /* CLOCK_MONOTONIC */
    LOOP_CLOCK_RATE, /* what rate limits run on: the real one, until loop_rate_clock_manual() */
    LOOP_CLOCK__MAX,
} LoopClock;

/* The time at the start of this turn (cached: free to call), in ns. */
int64_t loop_now(Loop *loop, LoopClock clock);

/* From now on LOOP_CLOCK_RATE stands still but for loop_rate_clock_step(). For test harnesses (clock_step). */
void loop_rate_clock_manual(Loop *loop);

/* Moves a manual rate clock on by @ns and returns its new value; due timers fire in this turn. */
int64_t loop_rate_clock_step(Loop *loop, int64_t ns);

/* When the next timer of the rate clock is due, in ns; INT64_MAX: none is armed. */
int64_t loop_rate_clock_next(Loop *loop);

/*
 * Timers. The owner embeds a Timer and keeps it alive while armed; @fire runs outside coroutines, once per arming.
 */
typedef void TimerFn(void *opaque);
typedef struct Timer {
    Loop *loop;
    LoopClock clock;
    TimerFn *fire;
    void *opaque;
    int64_t deadline; /* ns, INT64_MAX when not armed */
    uint64_t order;   /* of its arming: equal deadlines fire in this order; private to the loop */
    guint slot;       /* position in the loop's heap, private to the loop */
} Timer;

void timer_init(Timer *timer, Loop *loop, LoopClock clock, TimerFn *fire, void *opaque);
/* (Re)arms for the absolute time @deadline in ns of the timer's clock. */
void timer_arm(Timer *timer, int64_t deadline);
/* Disarms; harmless when not armed. */
void timer_cancel(Timer *timer);
static inline bool timer_armed(const Timer *timer)
{
    return timer->deadline != INT64_MAX;
}

/*
 * Turn-end callbacks: run once, at the end of the turn in which loop_at_turn_end() was called, outside coroutines,
 * before submission. The owner embeds a TurnEnd and keeps it alive while queued. Queueing it twice is harmless.
 */
typedef void TurnEndFn(void *opaque);
typedef struct TurnEnd {
    TurnEndFn *fn;
    void *opaque;
    struct TurnEnd *next;
    bool queued;
} TurnEnd;

void loop_at_turn_end(Loop *loop, TurnEnd *te);
/* Takes it out of the queue; harmless when not queued. */
void loop_turn_end_cancel(Loop *loop, TurnEnd *te);
