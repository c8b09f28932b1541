/*
 * A job at work: its coroutine, its pauses and sleeps, what drained sections ask of it, errors and progress.
 *
 * Two flags tell where the coroutine is. busy: it runs, or waits for its I/O. waiting: it sleeps or is paused, and
 * job_kick() wakes it. A drained section raises pause_count and kicks; quiet is reached when the job is paused, or was
 * asleep with nothing in flight: it then goes to its pause point without touching the graph.
 *
 * A job that drains its own nodes goes on with its work in that section (own_drain), while everybody else's sections
 * wait until it is over: to them the job is busy. It begins none while somebody else's is in force. So two jobs that
 * drain each other never wait for each other: the one that begins makes the other pause first.
 */
#include "block/graph/drain.h"
#include "block/jobs/job-int.h"

static void sleep_fire(void *opaque)
{
    job_kick(opaque);
}

void job_init_sleep(Job *job)
{
    timer_init(&job->sleep, job->loop, LOOP_CLOCK_REAL, sleep_fire, job);
}

bool job_is_cancelled(const Job *job)
{
    return job->force_cancel;
}

void job_kick(Job *job)
{
    if (!job->waiting)
        return;
    timer_cancel(&job->sleep);
    coroutine_wake(job->co);
}

static void job_co_idle(Job *job)
{
    job->busy = false;
    job->waiting = true;
    graph_drain_kick(job->graph);
    aio_co_yield();
    job->waiting = false;
    job->busy = true;
    timer_cancel(&job->sleep);
}

static bool should_pause(const Job *job)
{
    return job->pause_count > 0 && !job->own_drain && !job_is_cancelled(job);
}

void job_co_pause_point(Job *job)
{
    JobStatus status;

    if (!should_pause(job))
        return;
    if (job->drv->co_settle)
        job->drv->co_settle(job);
    if (!should_pause(job))
        return;
    status = job->status;
    job->paused = true;
    job_set_status(job, status == JOB_STATUS_READY ? JOB_STATUS_STANDBY : JOB_STATUS_PAUSED);
    while (should_pause(job))
        job_co_idle(job);
    job->paused = false;
    job_set_status(job, status);
}

void job_co_wait(Job *job)
{
    if (!job_is_cancelled(job) && !should_pause(job))
        job_co_idle(job);
    job_co_pause_point(job);
}

static void job_co_sleep_on(Job *job, LoopClock clock, int64_t ns)
{
    if (!job_is_cancelled(job) && !should_pause(job)) {
        timer_init(&job->sleep, job->loop, clock, sleep_fire, job);
        timer_arm(&job->sleep, loop_now(job->loop, clock) + ns);
        job_co_idle(job);
    }
    job_co_pause_point(job);
}

void job_co_sleep(Job *job, int64_t ns)
{
    job_co_sleep_on(job, LOOP_CLOCK_REAL, ns);
}

void job_co_sleep_rate(Job *job, int64_t ns)
{
    job_co_sleep_on(job, LOOP_CLOCK_RATE, ns);
}

bool job_co_drained_begin(Job *job, Node *node)
{
    job_co_pause_point(job);
    if (job_is_cancelled(job))
        return false;
    job->own_drain = true;
    node_co_drained_begin(node);
    return true;
}

void job_drained_end(Job *job, Node *node)
{
    job->own_drain = false;
    node_drained_end(node);
}

static void job_co_entry(void *opaque)
{
    Job *job = opaque;
    g_autoptr(GError) error = NULL;
    int ret;

    job->co = coroutine_self();
    job->busy = true;
    job_co_pause_point(job);
    ret = job_is_cancelled(job) ? -ECANCELED : job->drv->co_run(job, &error);
    job->busy = false;
    job->co = NULL;
    job_co_run_over(job, ret, g_steal_pointer(&error));
    job_unref(job);
}

void job_start(Job *job)
{
    g_assert(job->status == JOB_STATUS_CREATED);
    job_ref(job);
    job->started = true;
    job_set_status(job, JOB_STATUS_RUNNING);
    coroutine_start(job->loop, job_co_entry, job);
}

/* ---- states ----------------------------------------------------------------------------------------------------- */

void job_set_status(Job *job, JobStatus status)
{
    g_assert(job_status_may_follow(job->status, status));
    if (job->status == status)
        return;
    job->status = status;
    job_event_status(job);
}

bool job_is_ready(const Job *job)
{
    return job->status == JOB_STATUS_READY || job->status == JOB_STATUS_STANDBY;
}

void job_set_ready(Job *job)
{
    job_set_status(job, JOB_STATUS_READY);
    job_event_ready(job);
}

/* ---- ports ------------------------------------------------------------------------------------------------------ */

static char *job_port_describe(Port *port)
{
    const Job *job = port->owner;

    return g_strdup_printf("block job '%s'", job->id);
}

static void job_port_drained_begin(Port *port)
{
    Job *job = port->owner;

    job->pause_count++;
    job_kick(job);
}

static void job_port_drained_end(Port *port)
{
    Job *job = port->owner;

    g_assert(job->pause_count > 0);
    if (--job->pause_count == 0)
        job_kick(job);
}

static bool job_port_drained_poll(Port *port)
{
    Job *job = port->owner;

    /* Its own section does not wait for itself; once co_run is over, nothing goes on in it any more. */
    if (job->co && job->co != coroutine_self() && (job->busy || job->own_drain))
        return true;
    return job->drv->drained_poll && job->drv->drained_poll(job);
}

static const PortOps job_port_ops = {
    .what = PORT_WHAT_JOB,
    .describe = job_port_describe,
    .drained_begin = job_port_drained_begin,
    .drained_end = job_port_drained_end,
    .drained_poll = job_port_drained_poll,
};

Port *job_co_open_port(Job *job, Node *node, unsigned perm, unsigned shared, GError **error)
{
    Port *port = port_co_new(job->graph, node, perm, shared, &job_port_ops, job, error);

    if (port) {
        port->queue_while_drained = false;
        port->writable = perm & PERM_WRITE;
    }
    return port;
}

/* ---- progress, errors ------------------------------------------------------------------------------------------- */

void job_progress_done(Job *job, int64_t bytes)
{
    job->progress += bytes;
}

void job_progress_set_remaining(Job *job, int64_t bytes)
{
    job->progress_total = job->progress + bytes;
}

static BlockErrorAction error_action(BlockdevOnError policy, int errnum)
{
    switch (policy) {
    case BLOCKDEV_ON_ERROR_IGNORE:
        return BLOCK_ERROR_ACTION_IGNORE;
    case BLOCKDEV_ON_ERROR_STOP:
        return BLOCK_ERROR_ACTION_STOP;
    case BLOCKDEV_ON_ERROR_ENOSPC:
    case BLOCKDEV_ON_ERROR_AUTO:
        return errnum == ENOSPC ? BLOCK_ERROR_ACTION_STOP : BLOCK_ERROR_ACTION_REPORT;
    default:
        return BLOCK_ERROR_ACTION_REPORT;
    }
}

BlockErrorAction job_error_action(Job *job, BlockdevOnError policy, bool is_read, int errnum)
{
    BlockErrorAction action = error_action(policy, errnum);

    job_event_error(job, is_read, action);
    if (action == BLOCK_ERROR_ACTION_STOP) {
        if (!job->user_paused) {
            job->user_paused = true;
            job->pause_count++;
        }
        job->io_status = errnum == ENOSPC ? BLOCK_DEVICE_IO_STATUS_NOSPACE : BLOCK_DEVICE_IO_STATUS_FAILED;
    }
    return action;
}
