/*
 * What the files of block/aio share. Nothing above this storey includes it: liburing is this room's business.
 */
#pragma once
#include "block/aio/context.h"
#include "block/aio/coroutine.h"
#include "block/aio/loop.h"
#include <liburing.h>
#include <pthread.h>

/* What a coroutine waits for: who may resume it. */
typedef enum CoWait {
    CO_RUNNING, /* or has started somebody who runs */
    CO_READY,   /* on a ready queue */
    CO_YIELDED, /* coroutine_wake() */
    CO_LOCK,    /* on a CoQueue */
    CO_SLEEP,   /* its timer */
    CO_IO,      /* the completion of its SQE */
    CO_GATE,    /* a place at the disk, see gate.c */
    CO_WORKER,  /* its work item */
    CO_ENDED,   /* entry returned; in the pool or about to be freed */
} CoWait;

/* All fields: the loop's thread, which is the only one to touch a coroutine. */
struct Coroutine {
    Context context;
    Loop *loop;
    Coroutine *caller; /* whom it gives the thread back to; NULL: the thread's own stack */
    Coroutine *next;   /* link in the one queue it is on: ready, a CoQueue, the pool */
    CoWait wait;
    bool cancelled;                 /* aio_cancel() hit the present CO_IO */
    bool shares;                    /* coroutine_share_work() */
    bool exclusive;                 /* CO_LOCK on a CoRwlock: wants to write */
    int result;                     /* of what it waited for */
    int gate_fd;                    /* CO_IO, CO_GATE: of the file whose gate it has passed or waits at; -1: none */
    const struct io_uring_sqe *sqe; /* CO_GATE: what it is going to submit */
    Timer *timer;                   /* CO_SLEEP: its timer, for aio_cancel() */
    CoroutineEntry *entry;
    void *opaque;
    void *stack; /* the mapping, with the guard at its start */
    unsigned valgrind_id;
};

/* Requests at a disk, see gate.c. A loop's thread. */
typedef struct Gate {
    CoQueue waiting; /* CO_GATE */
    unsigned n_waiting;
    unsigned in_flight;           /* submitted and not yet completed */
    unsigned asked;               /* the most of both, lately */
    unsigned size;                /* of the present bunch: what was in flight when its first came back, */
    unsigned left;                /* and how many have not */
    unsigned bunches;             /* in which all came together, less others; up to BUNCHES_MAX */
    int64_t first, last, silence; /* ns: when its first and last came, and since when none had */
    unsigned held;                /* bunches since requests are held back */
    unsigned in_vain;             /* bunches that are not to be counted yet, since that was of no use */
    unsigned again;               /* how many that were after the last trial; 0: it was of use */
    int64_t pace;                 /* ns for each request of the bunch before the present one, up to this one */
    int64_t pace_open, pace_held; /* the same, lately, without and with some held back */
} Gate;

/* What is known about a file descriptor, see io.c. */
typedef struct FileKind {
    int64_t expires; /* ns of LOOP_CLOCK_REAL */
    bool memory;
    bool direct; /* O_DIRECT */
    Gate gate;
} FileKind;

typedef struct TimerHeap {
    Timer **slots; /* binary heap by (deadline, order) */
    guint used, room;
} TimerHeap;

/* Bytes of memory-backed I/O done on the loop's thread in one turn, see io.c: well under a millisecond. */
#define INLINE_BUDGET (2 * 1024 * 1024)

typedef struct Workers Workers;
typedef struct BufPool BufPool;

/* All fields: the loop's thread, but for the atomics. */
struct Loop {
    struct io_uring ring;
    Context context; /* the thread's own stack */
    pthread_t thread;
    int64_t now[LOOP_CLOCK__MAX];
    bool rate_manual;

    bool pressing;      /* a disk waits for what is queued */
    CoQueue ready;      /* woken: run in this turn */
    CoQueue ready_next; /* rescheduled: run in the next turn */
    TurnEnd *turn_end_head, *turn_end_tail;
    TurnEnd *turn_end_last; /* while they run: the last of this turn */

    TimerHeap timers[LOOP_CLOCK__MAX];
    uint64_t timer_order; /* of the next arming: equal deadlines fire in order of arming */

    unsigned processors;   /* that we may use */
    int64_t inline_budget; /* bytes of I/O that may still be done at once in this turn, see io.c */
    FileKind *kinds;       /* indexed by fd, see io.c */
    int n_kinds;
    unsigned copies;   /* of memory files on worker threads, see io.c */
    CoQueue copy_done; /* who waits to begin one */

    bool expecting;   /* loop_expect() in this turn */
    unsigned luck;    /* how well it went lately, up to LUCK_MAX */
    unsigned unlucky; /* turns without a try */

    Coroutine *pool;
    unsigned pooled; /* how many in pool */
    unsigned live;   /* started and not ended */

    int wake_fd; /* eventfd: loop_stop() and workers get the thread out of its wait */
    uint64_t wake_count;
    bool wake_armed;
    bool stop;         /* atomic */
    bool wake_pending; /* atomic: wake_fd has been written to and not yet read */

    Workers *workers;
    unsigned working; /* coroutines that wait for them */
    BufPool *bufs;
    struct AioPipe *pipes; /* those kept */
    unsigned n_pipes;      /* in use, too */
};

/* user_data of completions that no coroutine waits for; coroutines are aligned, so no pointer has these values. */
enum {
    UD_IGNORE = 0,
    UD_WAKE = 1,
};

/* loop.c: never fails; submits what is queued when the queue is full. */
struct io_uring_sqe *loop_sqe(Loop *loop);
/* Submits what is queued. */
void loop_submit(Loop *loop);
/* Gets the loop out of its wait. Any thread, async-signal-safe. */
void loop_wake(Loop *loop);

/* timer.c: CLOCK_MONOTONIC; reads the clocks; fires what is due; the ns until the next one is (0: now), -1 when none is
 * armed. */
int64_t clock_ns(void);
void timers_update(Loop *loop);
void timers_fire(Loop *loop);
int64_t timers_wait_ns(Loop *loop);
void timers_free(Loop *loop);

/* coroutine.c: runs @co, which is switched out, until it yields or ends. From any stack of the loop's thread. */
void co_resume(Coroutine *co);
/* Gives the thread back to whoever resumed @self, for the reason @why. */
void co_suspend(Coroutine *self, CoWait why);
/* Appends to the ready queue; @co is switched out and on no queue. */
void co_make_ready(Coroutine *co);
void co_pool_free(Loop *loop);

static inline void coqueue_push(CoQueue *queue, Coroutine *co)
{
    co->next = NULL;
    if (queue->tail)
        queue->tail->next = co;
    else
        queue->head = co;
    queue->tail = co;
}

static inline Coroutine *coqueue_pop(CoQueue *queue)
{
    Coroutine *co = queue->head;
    if (co) {
        queue->head = co->next;
        if (!queue->head)
            queue->tail = NULL;
        co->next = NULL;
    }
    return co;
}

/* workers.c */
void workers_reap(Loop *loop); /* resumes the coroutines whose work is done */
void workers_free(Loop *loop);

/* io.c: may @bytes bytes of the file be read or written here and now, since it is memory? Waits for the next turn when
 * this one's budget is used up. */
bool io_inline_co_admit(Loop *loop, int fd, int64_t offset, size_t bytes);

/* gate.c: whether a request may be submitted now; if not, fill in @sqe, which has to stay, and wait until it has been
 * and has completed. */
bool gate_enter(Gate *gate, Loop *loop);
void gate_co_wait(Gate *gate, Coroutine *self, const struct io_uring_sqe *sqe);
/* For aio_cancel(): @co waits no longer, and gets -ECANCELED. */
void gate_cancel(Gate *gate, Coroutine *co);
/* One has completed: lets others in. */
void gate_leave(Gate *gate, Loop *loop);

/* bufpool.c */
void bufpool_free(Loop *loop);

/* pipe.c */
void pipes_free(Loop *loop);
