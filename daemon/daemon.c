/*
 * The life of the daemon: from nothing to serving is startup.c; here is the way from serving to nothing.
 */
#include "daemon/daemon.h"
#include "block/graph/throttle.h"
#include "daemon/object.h"
#include "daemon/chardev.h"
#include "daemon/event-rate.h"
#include "daemon/hmp.h"
#include "daemon/process.h"
#include "daemon/session.h"
#include "block/aio/io.h"
#include "block/export/export.h"
#include "block/jobs/job.h"
#include "qapi/events.h"

enum {
    COMMANDS_PATIENCE_MS = 1000, /* for commands that are being carried out, before they are cancelled */
    CANCEL_ROUNDS = 40,          /* how often, CANCEL_AGAIN_MS apart, before we leave without them */
    CANCEL_AGAIN_MS = 100,
    SILENCE_MS = 10000,          /* of a server that requests wait for, before we leave without its answers */
    SESSIONS_PATIENCE_MS = 3000, /* for sessions to send what they have */
};

Daemon *daemon_new(Loop *loop)
{
    Daemon *d = g_new0(Daemon, 1);
    d->loop = loop;
    d->graph = graph_new(loop);
    d->jobs = job_list_new(loop, d->graph);
    d->exports = export_list_new(loop, d->graph);
    d->hmp_tags = g_ptr_array_new_with_free_func(g_free);
    qapi_set_event_sink(event_rate_sink, d);
    return d;
}

void daemon_free(Daemon *d)
{
    if (!d || d->stuck)
        return;
    qapi_set_event_sink(NULL, NULL);
    chardevs_free(d);
    export_list_free(d->exports);
    job_list_free(d->jobs);
    objects_free(d);
    graph_free(d->graph);
    g_ptr_array_free(d->hmp_tags, TRUE);
    g_free(d);
}

static void wake_idle(void *opaque)
{
    coqueue_wake_all(opaque);
}

/* Waits until *@left is 0, at most @ms. False when it took too long. */
static bool daemon_co_wait_for(Daemon *d, const unsigned *left, int ms)
{
    Timer timer;
    timer_init(&timer, d->loop, LOOP_CLOCK_REAL, wake_idle, &d->idle);
    timer_arm(&timer, loop_now(d->loop, LOOP_CLOCK_REAL) + ms * INT64_C(1000000));
    while (*left && timer_armed(&timer))
        coqueue_co_wait(&d->idle, NULL);
    timer_cancel(&timer);
    return *left == 0;
}

/*
 * Waits until the coroutine at @co has ended, which it tells by setting that to NULL and waking d->idle. It may be
 * where nothing can be cancelled and wait for something else later, hence again and again.
 */
static void daemon_co_cancel(Daemon *d, Coroutine *const *co)
{
    Timer timer;
    timer_init(&timer, d->loop, LOOP_CLOCK_REAL, wake_idle, &d->idle);
    while (*co) {
        aio_cancel(*co);
        timer_arm(&timer, loop_now(d->loop, LOOP_CLOCK_REAL) + CANCEL_AGAIN_MS * INT64_C(1000000));
        coqueue_co_wait(&d->idle, NULL);
    }
    timer_cancel(&timer);
}

/* Waits until no command is being carried out; one that hangs, on a silent server perhaps, is cancelled. */
static void daemon_co_end_commands(Daemon *d)
{
    bool done = daemon_co_wait_for(d, &d->commands, COMMANDS_PATIENCE_MS);
    for (int i = 0; !done && i < CANCEL_ROUNDS; i++) {
        sessions_cancel_commands(d);
        done = daemon_co_wait_for(d, &d->commands, CANCEL_AGAIN_MS);
    }
    if (!done) {
        g_printerr("storage-daemon: warning: %u QMP command(s) do not end: leaving without them\n", d->commands);
        d->stuck = true;
    }
}

/* While the program ends: servers that have been silent for SILENCE_MS are given up. */
typedef struct Patience {
    Daemon *daemon;
    Timer timer;
} Patience;

static void patience_check(void *opaque)
{
    Patience *p = opaque;
    int64_t now = loop_now(p->daemon->loop, LOOP_CLOCK_REAL);

    graph_give_up(p->daemon->graph, now - SILENCE_MS * INT64_C(1000000));
    timer_arm(&p->timer, now + CANCEL_AGAIN_MS * INT64_C(1000000));
}

static void patience_begin(Patience *p, Daemon *d)
{
    p->daemon = d;
    timer_init(&p->timer, d->loop, LOOP_CLOCK_REAL, patience_check, p);
    timer_arm(&p->timer, loop_now(d->loop, LOOP_CLOCK_REAL) + SILENCE_MS * INT64_C(1000000));
}

static void end_co_entry(void *opaque)
{
    Daemon *d = opaque;
    Patience patience;

    patience_begin(&patience, d);
    chardevs_stop_waiting(d);
    daemon_co_cancel(d, &d->startup);
    /* From here on nobody new comes in. */
    chardevs_co_close(d);
    /* Requests at breakpoints, or kept back by limits, would hold up all that follows. */
    graph_unthrottle(d->graph);
    hmp_io_release(d);
    /* Jobs and exports first: commands may be waiting for theirs. And jobs before exports: clients' requests wait while
     * a mirror that has yet to be finalized keeps its source drained. */
    job_list_co_cancel_all(d->jobs);
    export_list_co_close_all(d->exports);
    daemon_co_end_commands(d);
    /* What those commands made meanwhile. */
    job_list_co_cancel_all(d->jobs);
    export_list_co_close_all(d->exports);
    hmp_io_release(d);
    hmp_io_co_finish(d);
    graph_co_close_all(d->graph);
    timer_cancel(&patience.timer);
    d->closed = true;
    coqueue_wake_all(&d->on_closed);
    /* Quits in progress reply before the sessions are told. */
    aio_co_reschedule();
    sessions_end(d);
    if (!daemon_co_wait_for(d, &d->sessions.length, SESSIONS_PATIENCE_MS))
        d->stuck = true;
    daemon_co_cancel(d, &d->signals);
    loop_stop(d->loop);
}

void daemon_end(Daemon *d, ShutdownCause cause)
{
    if (d->quitting)
        return;
    d->quitting = true;
    process_stopping();
    /* QEMU's own program has no such event in its storage daemon; who knows QEMU waits for it all the same. */
    event_rate_flush(d);
    qapi_emit_shutdown(&(ShutdownEvent){.guest = false, .reason = cause});
    coroutine_start(d->loop, end_co_entry, d);
}
