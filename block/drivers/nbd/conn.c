/*
 * The connection: made with a deadline, kept going by the pump, made anew when it is lost.
 */
#include "block/drivers/nbd/nbd.h"
#include "block/aio/io.h"
#include "block/util/error.h"
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#define SECOND_NS INT64_C(1000000000)

/* Pauses between attempts to connect again. */
#define RETRY_FIRST_NS (SECOND_NS / 10)
#define RETRY_MAX_NS   (4 * SECOND_NS)

/* Turns of the state machine for one poll. */
enum { STEPS_MAX = 64 };
/* More replies than a socket's buffer holds: they may be read yet from one that was shut down. */
enum { GOODBYE_STEPS_MAX = 1 << 20 };

/* ---- deadlines -------------------------------------------------------------------------------------------------- */

/* Cancels what a coroutine waits for from some time on, again and again until deadline_end(): what it waits for when
 * the time comes may be something that cannot be cancelled (name resolution). */
typedef struct Deadline {
    Timer timer;
    Coroutine *co;
    bool expired;
} Deadline;

static void deadline_fire(void *opaque)
{
    Deadline *d = opaque;

    d->expired = true;
    aio_cancel(d->co);
    timer_arm(&d->timer, loop_now(d->timer.loop, LOOP_CLOCK_REAL) + SECOND_NS / 10);
}

static void deadline_begin(Deadline *d, Loop *loop, int64_t at)
{
    *d = (Deadline){.co = coroutine_self()};
    timer_init(&d->timer, loop, LOOP_CLOCK_REAL, deadline_fire, d);
    timer_arm(&d->timer, at);
}

static void deadline_end(Deadline *d)
{
    timer_cancel(&d->timer);
}

/* ---- one step of libnbd's state machine ------------------------------------------------------------------------- */

static bool alive(struct nbd_handle *h)
{
    return !libnbd.aio_is_dead(h) && !libnbd.aio_is_closed(h);
}

static short wanted_events(struct nbd_handle *h)
{
    unsigned dir = libnbd.aio_get_direction(h);
    return (short)((dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) | (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
}

/*
 * Reads as long as that brings replies: they tend to come in bursts, and each step takes one. Not in the middle of a
 * write that waits for room in the socket: told to read then, libnbd looks for nothing but the next reply, while the
 * server waits for the rest of the write.
 */
static void read_replies(NbdState *s, struct nbd_handle *h)
{
    uint64_t before;
    int steps = 0;

    do {
        before = s->completions;
        libnbd.aio_notify_read(h); /* failure shows in alive() */
    } while (s->completions != before && s->outstanding && ++steps < STEPS_MAX && wanted_events(h) == POLLIN);
}

/* Waits until the socket is ready for what libnbd wants, and lets it go on. -ECANCELED when cancelled. */
static int step_co_wait(NbdState *s, struct nbd_handle *h)
{
    int revents;

    s->polling = wanted_events(h);
    if (!s->polling)
        return -EIO; /* nothing to wait for: it is dead or about to be */
    revents = aio_co_poll(libnbd.aio_get_fd(h), s->polling);
    s->polling = 0;
    if (revents < 0)
        return revents;
    if (revents & POLLOUT && wanted_events(h) & POLLOUT)
        libnbd.aio_notify_write(h);
    if (revents & (POLLIN | POLLHUP | POLLERR) && wanted_events(h) & POLLIN)
        read_replies(s, h);
    else if (revents & (POLLHUP | POLLERR | POLLNVAL) && !(revents & POLLOUT))
        return -EIO; /* it wants to write only, to a socket that is gone */
    return 0;
}

/* ---- connecting ------------------------------------------------------------------------------------------------- */

static bool set_libnbd_error(GError **error, const NbdState *s)
{
    const char *text = libnbd.get_error();

    /* libnbd puts the name of its function before the reason. */
    if (text && g_str_has_prefix(text, "nbd_") && strstr(text, ": "))
        text = strstr(text, ": ") + 2;
    return error_set(error, "Failed to negotiate with NBD server '%s': %s", s->addr_name, text ? text : "closed");
}

static struct nbd_handle *new_handle(NbdState *s, GError **error)
{
    struct nbd_handle *h = libnbd.create();

    if (h && libnbd.set_export_name(h, s->export ? s->export : "") == 0 &&
        libnbd.add_meta_context(h, s->context) == 0 && libnbd.set_tls(h, LIBNBD_TLS_DISABLE) == 0 &&
        libnbd.set_pread_initialize(h, false) == 0)
        return h;
    set_libnbd_error(error, s);
    libnbd.close(h);
    return NULL;
}

static uint32_t block_size(struct nbd_handle *h, int which)
{
    int64_t size = libnbd.get_block_size(h, which);
    return size > 0 ? (uint32_t)MIN(size, G_MAXINT32) : 0;
}

static bool ask_facts(const NbdState *s, struct nbd_handle *h, NbdFacts *f, GError **error)
{
    int64_t size = libnbd.get_size(h);

    if (size < 0)
        return set_libnbd_error(error, s);
    *f = (NbdFacts){
        .size = (uint64_t)size,
        .read_only = libnbd.is_read_only(h) == 1,
        .can_flush = libnbd.can_flush(h) == 1,
        .can_fua = libnbd.can_fua(h) == 1,
        .can_trim = libnbd.can_trim(h) == 1,
        .can_zero = libnbd.can_zero(h) == 1,
        .can_fast_zero = libnbd.can_fast_zero(h) == 1,
        .has_context = libnbd.can_meta_context(h, s->context) == 1,
        .min_block = block_size(h, LIBNBD_SIZE_MINIMUM),
        .max_block = block_size(h, LIBNBD_SIZE_MAXIMUM),
    };
    return true;
}

/* Socket, handshake, facts: a handle that takes commands, or NULL with @error. The deadline cancels the waits. */
static struct nbd_handle *attempt_co_steps(NbdState *s, NbdFacts *facts, GError **error)
{
    int fd = socket_co_connect(&s->addr, error);
    struct nbd_handle *h;
    bool ok;

    if (fd < 0)
        return NULL;
    h = new_handle(s, error);
    if (!h) {
        close(fd);
        return NULL;
    }
    ok = libnbd.aio_connect_socket(h, fd) == 0;
    if (!ok && libnbd.aio_get_fd(h) < 0)
        close(fd);
    while (ok && libnbd.aio_is_connecting(h))
        ok = step_co_wait(s, h) == 0;
    if (!ok || !libnbd.aio_is_ready(h))
        set_libnbd_error(error, s);
    else if (ask_facts(s, h, facts, error))
        return h;
    libnbd.close(h);
    return NULL;
}

static struct nbd_handle *attempt_co_by(NbdState *s, int64_t deadline, NbdFacts *facts, GError **error)
{
    g_autoptr(GError) local = NULL;
    struct nbd_handle *h;
    Deadline d;

    deadline_begin(&d, s->node->loop, deadline);
    h = attempt_co_steps(s, facts, &local);
    deadline_end(&d);
    if (h)
        return h;
    if (d.expired)
        error_set(error, "Timed out connecting to NBD server '%s'", s->addr_name);
    else
        g_propagate_error(error, g_steal_pointer(&local));
    return NULL;
}

/* The server may have been replaced: the node's users count on what it was when they came. */
static bool same_export(const NbdState *s, const NbdFacts *now)
{
    return now->size == s->facts.size && (!now->read_only || s->facts.read_only) &&
           (now->can_fua || !s->facts.can_fua) && (now->has_context || !s->facts.has_context) &&
           (!now->min_block || now->min_block <= s->node->limits.request_alignment);
}

/* ---- the pump --------------------------------------------------------------------------------------------------- */

static void give_up(void *opaque)
{
    NbdState *s = opaque;

    s->gave_up = true;
    coqueue_wake_all(&s->waiting);
}

/* Everything that was under way fails with ENOTCONN, in callbacks, when libnbd sees the end of the connection. */
static void lost_connection(NbdState *s)
{
    struct nbd_handle *h = s->h;

    if (alive(h)) {
        int fd = libnbd.aio_get_fd(h);
        if (fd >= 0)
            shutdown(fd, SHUT_RDWR);
        for (int i = 0; i < GOODBYE_STEPS_MAX && alive(h); i++)
            if (wanted_events(h) & POLLIN)
                libnbd.aio_notify_read(h);
            else
                libnbd.aio_notify_write(h);
    }
    g_assert(s->outstanding == 0);
    libnbd.close(h);
    s->h = NULL;
    s->gave_up = s->reconnect_ns == 0;
    /*
     * What the server had taken and not yet flushed may be gone with it, and a flush over the next connection would
     * say nothing about that (LAW 9). Who asked for reconnect-delay vouches for the server: it keeps what it took.
     */
    if (s->gave_up && s->writes != s->flushed && s->facts.can_flush)
        s->node->failed = true;
    if (!s->gave_up)
        timer_arm(&s->give_up, loop_now(s->node->loop, LOOP_CLOCK_REAL) + s->reconnect_ns);
    coqueue_wake_all(&s->waiting); /* to see what has become of it */
}

static void serve_co_connection(NbdState *s)
{
    while (!s->closing && !s->abandoned && alive(s->h)) {
        int ret = step_co_wait(s, s->h);
        if (ret >= 0)
            s->progress = loop_now(s->node->loop, LOOP_CLOCK_REAL);
        if (ret < 0 && ret != -ECANCELED)
            break;
    }
}

static void connect_co_again(NbdState *s)
{
    int64_t pause = RETRY_FIRST_NS;

    while (!s->closing && !s->abandoned) {
        int64_t now = loop_now(s->node->loop, LOOP_CLOCK_REAL);
        NbdFacts facts;
        struct nbd_handle *h = attempt_co_by(s, now + NBDC_CONNECT_NS, &facts, NULL);
        if (h && !s->closing && !s->abandoned && same_export(s, &facts)) {
            s->h = h;
            s->gave_up = false;
            timer_cancel(&s->give_up);
            coqueue_wake_all(&s->waiting);
            return;
        }
        libnbd.close(h);
        if (!s->closing && !s->abandoned)
            aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(s->node->loop, LOOP_CLOCK_REAL) + pause);
        pause = MIN(2 * pause, RETRY_MAX_NS);
    }
}

static void pump_co_entry(void *opaque)
{
    NbdState *s = opaque;

    while (!s->closing) {
        if (!s->h && s->abandoned)
            break;
        if (!s->h) {
            connect_co_again(s);
            continue;
        }
        serve_co_connection(s);
        if (!s->closing)
            lost_connection(s);
    }
    s->pump = NULL;
    coqueue_wake_all(&s->closed);
}

void nbdc_kick(NbdState *s)
{
    if (G_UNLIKELY(s->polling && s->h && s->polling != wanted_events(s->h))) {
        s->polling = 0;
        aio_cancel(s->pump);
    }
}

int nbdc_co_ready(NbdState *s)
{
    while (!s->h || G_UNLIKELY(!alive(s->h))) {
        if (s->closing || s->abandoned || (!s->h && s->gave_up))
            return -EIO;
        if (s->h)
            nbdc_kick(s); /* the pump has not noticed yet */
        coqueue_co_wait(&s->waiting, NULL);
    }
    return 0;
}

void nbdc_give_up(Node *node, int64_t since)
{
    NbdState *s = node->state;

    if (s->abandoned || s->progress > since || (s->h && !s->outstanding))
        return;
    s->abandoned = true;
    s->reconnect_ns = 0;
    give_up(s);
    if (s->pump)
        aio_cancel(s->pump); /* it sees to the rest */
}

/* ---- open and close --------------------------------------------------------------------------------------------- */

bool nbdc_co_connect(NbdState *s, GError **error)
{
    Loop *loop = s->node->loop;
    int64_t start = loop_now(loop, LOOP_CLOCK_REAL);
    int64_t until = start + (s->open_ns ? s->open_ns : NBDC_CONNECT_NS);
    int64_t pause = RETRY_FIRST_NS;

    timer_init(&s->give_up, loop, LOOP_CLOCK_REAL, give_up, s);
    for (;;) {
        g_autoptr(GError) local = NULL;
        int64_t now;

        s->h = attempt_co_by(s, until, &s->facts, &local);
        if (s->h)
            break;
        now = loop_now(loop, LOOP_CLOCK_REAL);
        if (!s->open_ns || now + pause >= until) {
            g_propagate_error(error, g_steal_pointer(&local));
            return false;
        }
        if (aio_co_sleep_until(LOOP_CLOCK_REAL, now + pause) < 0)
            return error_set(error, "Connecting to NBD server '%s' was cancelled", s->addr_name);
        pause = MIN(2 * pause, RETRY_MAX_NS);
    }
    return true;
}

void nbdc_start_pump(NbdState *s)
{
    s->pump = coroutine_start(s->node->loop, pump_co_entry, s);
}

/* The server is told that we leave. What little there is to send goes out at once, or the server is beyond caring. */
static void say_goodbye(NbdState *s)
{
    if (alive(s->h) && libnbd.aio_is_ready(s->h))
        libnbd.aio_disconnect(s->h, 0);
}

void nbdc_co_disconnect(NbdState *s)
{
    s->closing = true;
    timer_cancel(&s->give_up);
    coqueue_wake_all(&s->waiting);
    while (s->pump) {
        aio_cancel(s->pump);
        coqueue_co_wait(&s->closed, NULL);
    }
    if (s->h)
        say_goodbye(s);
    libnbd.close(s->h);
    s->h = NULL;
}
