/*
 * How many requests a disk is given at a time.
 *
 * Many disks, those of virtual machines above all, work off everything that they have and then tell of all of it at
 * once. So all answers leave together, all new requests come together, and the disk rests meanwhile. Where completions
 * come in such bunches, half of the requests are held back: when a bunch is back, the next one goes to the disk first,
 * a few requests at a time so that it begins at once, and then come the answers.
 *
 * Measured (a virtio disk, O_DIRECT, 4 KiB at random by NBD, two processors; thousands a second, medians of 5 by
 * turns): 64 in flight 152 instead of 102, 32 139 and 99, 16 109 and 81, 8 95 and 68. In an earlier trial (medians of
 * 7), with half of 64 at the disk 177, fio on the file 185; with 24, 40 or 48 at the disk 162 to 172, with as many as
 * happen to have come 144; submitted by 8 or 16 instead of 4, or all together, 169, 157 and 152 where by 4 it was 178.
 *
 * Disks that tell of each request as it is done (unless they are faster than we look), disks for which that is of no
 * use, and clients with few requests, are left alone.
 */
#include "block/aio/internal.h"
#include <errno.h>
#include <limits.h>

#define BUNCH_MIN   4  /* requests: fewer are no sign of anything, and so many the disk is always given */
#define BUNCHES     8  /* in succession that decide */
#define BUNCHES_MAX 16 /* that count, so that this many others are needed to change our mind */
#define SUBMIT_MIN  4  /* requests of the next bunch that are submitted together */
/* Bunches with some held back that are looked at to tell whether that is of use: the first ones are mixed. */
#define TRIAL_FROM 3
#define TRIAL_TO   18
/* Bunches until the next trial: after one that was in vain this many, twice as many after each further one, and at most
 * so many, which is also how long a success counts. */
#define AGAIN_MIN 64
#define AGAIN_MAX 4096

static unsigned gate_limit(const Gate *gate)
{
    return gate->bunches < BUNCHES ? UINT_MAX : MAX(gate->asked / 2, BUNCH_MIN);
}

bool gate_enter(Gate *gate, Loop *loop)
{
    if (!gate->in_flight)
        gate->last = loop->now[LOOP_CLOCK_REAL]; /* it rested: no silence that says anything */
    gate->asked = MAX(gate->asked, gate->in_flight + gate->n_waiting + 1);
    if (gate->n_waiting || gate->in_flight >= gate_limit(gate))
        return false;
    gate->in_flight++;
    return true;
}

void gate_co_wait(Gate *gate, Coroutine *self, const struct io_uring_sqe *sqe)
{
    self->sqe = sqe;
    gate->n_waiting++;
    coqueue_push(&gate->waiting, self);
    co_suspend(self, CO_GATE);
}

/*
 * Does a request take less time now that some are held back? A disk that takes its time however many there are, as
 * storage behind a network does, also answers together what was sent together; it wants to have all of them.
 */
static void judge_use(Gate *gate)
{
    gate->held++;
    if (gate->held <= TRIAL_FROM)
        gate->pace_held = gate->pace;
    gate->pace_held += (gate->pace - gate->pace_held) / 4;
    if (gate->held == TRIAL_TO && gate->pace_held > gate->pace_open / 20 * 19) {
        gate->bunches = 0;
        gate->again = CLAMP(2 * gate->again, AGAIN_MIN, AGAIN_MAX);
        gate->in_vain = gate->again;
    } else if (gate->held == AGAIN_MAX) {
        gate->bunches = 0;
        gate->again = 0;
    }
}

/* Did all of them come back within less time than the disk had been silent before? */
static void judge(Gate *gate)
{
    /* What was asked for long ago counts less and less. */
    gate->asked = MAX(gate->in_flight + gate->n_waiting, gate->asked - (gate->asked + 15) / 16);
    if (gate->size < BUNCH_MIN)
        return;
    if (gate->last - gate->first > gate->silence)
        gate->bunches -= gate->bunches > 0;
    else if (gate->in_vain)
        gate->in_vain--;
    else
        gate->bunches = MIN(gate->bunches + 1, BUNCHES_MAX);
    if (gate->bunches >= BUNCHES) {
        judge_use(gate);
    } else {
        gate->pace_open += (gate->pace - gate->pace_open) / 4;
        gate->held = 0;
    }
}

void gate_leave(Gate *gate, Loop *loop)
{
    const int64_t now = loop->now[LOOP_CLOCK_REAL];
    if (!gate->left) { /* the first of those that are at the disk */
        gate->pace = gate->size ? (now - gate->first) / gate->size : 0;
        gate->left = gate->size = gate->in_flight;
        gate->silence = now - gate->last;
        gate->first = now;
    }
    gate->last = now;
    gate->in_flight--;
    if (--gate->left == 0)
        judge(gate);
    while (gate->n_waiting && gate->in_flight < gate_limit(gate)) {
        Coroutine *co = coqueue_pop(&gate->waiting);
        gate->n_waiting--;
        gate->in_flight++;
        *loop_sqe(loop) = *co->sqe;
        co->wait = CO_IO;
        loop->pressing = true;
        if (io_uring_sq_ready(&loop->ring) >= SUBMIT_MIN)
            loop_submit(loop);
    }
}

void gate_cancel(Gate *gate, Coroutine *co)
{
    CoQueue others = {0};
    Coroutine *waiting;
    while ((waiting = coqueue_pop(&gate->waiting)))
        if (waiting != co)
            coqueue_push(&others, waiting);
    gate->waiting = others;
    gate->n_waiting--;
    co->gate_fd = -1;
    co->result = -ECANCELED;
    co_make_ready(co);
}
