/*
 * QMP sessions. The protocol's text: QEMU's qmp-spec; error texts as QEMU 7.2 words them.
 */
#include "daemon/session.h"
#include "block/aio/io.h"
#include "block/util/error.h"
#include "qapi/commands.h"
#include "qapi/rt/json.h"
#include "qapi/rt/tree.h"
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    READ_SIZE = 16 << 10,
    OUT_PAUSE = 1 << 20,   /* more output than this waits: no further command until it has left */
    EVENTS_MAX = 4 << 20,  /* bytes of events that pile up while the client does not read: then it is cut off */
    END_PATIENCE_MS = 1000 /* at the end, for a client that does not take its last replies */
};

/* All fields: the loop's thread. */
struct Session {
    QmpContext ctx;
    int in_fd, out_fd;
    bool is_socket;
    bool pretty;
    bool negotiated;
    bool ending; /* no further command; what waits in .out still leaves */
    bool broken; /* the client is gone: nothing leaves any more */
    SessionEnded *ended;
    void *opaque;
    GList link; /* in daemon->sessions */

    Coroutine *reader; /* owns the session */
    bool reading;      /* the reader waits for input: may be cancelled */
    bool busy;         /* it carries out a command */
    JsonStream *stream;
    char buffer[READ_SIZE];

    GString *out;      /* waits to be sent */
    GString *sending;  /* the writer is at it */
    size_t events;     /* bytes of events in .out since it was last empty */
    Coroutine *writer; /* NULL: not running */
    TurnEnd send_out;
    CoQueue on_sent;
    Timer patience;
};

Daemon *qmp_daemon(QmpContext *ctx)
{
    return ctx->daemon;
}

/* ---- output ----------------------------------------------------------------------------------------------------- */

static void session_break(Session *s)
{
    s->broken = true;
    s->ending = true;
    g_string_truncate(s->out, 0);
    s->events = 0;
    if (s->reading)
        aio_cancel(s->reader);
    if (s->writer)
        aio_cancel(s->writer);
    coqueue_wake_all(&s->on_sent);
}

static ssize_t session_co_write(Session *s, const char *data, size_t size)
{
    struct iovec iov = {.iov_base = (char *)data, .iov_len = size};
    if (s->is_socket) {
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        return aio_co_sendmsg(s->out_fd, &msg, MSG_NOSIGNAL);
    }
    return aio_co_pwritev(s->out_fd, &iov, 1, -1, 0);
}

static void writer_co_entry(void *opaque)
{
    Session *s = opaque;
    s->writer = coroutine_self();
    while (s->out->len && !s->broken) {
        GString *batch = s->out;
        s->out = s->sending;
        s->sending = batch;
        s->events = 0;
        size_t sent = 0;
        while (sent < batch->len && !s->broken) {
            ssize_t n = session_co_write(s, batch->str + sent, batch->len - sent);
            if (n == -EINTR || n == -EAGAIN)
                continue;
            if (n <= 0) {
                session_break(s);
                break;
            }
            sent += (size_t)n;
        }
        g_string_truncate(batch, 0);
        if (batch->allocated_len > OUT_PAUSE) {
            /* One giant reply should not stay allocated as long as the session lives. */
            g_string_free(batch, TRUE);
            s->sending = g_string_new(NULL);
        }
        coqueue_wake_all(&s->on_sent);
    }
    s->writer = NULL;
    coqueue_wake_all(&s->on_sent);
    loop_expect(s->ctx.daemon->loop);
}

static void send_out(void *opaque)
{
    Session *s = opaque;
    if (!s->writer && s->out->len && !s->broken)
        coroutine_start(s->ctx.daemon->loop, writer_co_entry, s);
}

/* Queues one message; takes @message. */
static void session_send(Session *s, Tree *message)
{
    if (!s->broken) {
        json_print(message, s->pretty, s->out);
        g_string_append(s->out, "\r\n");
        loop_at_turn_end(s->ctx.daemon->loop, &s->send_out);
    }
    tree_unref(message);
}

void session_event(const char *name, Tree *data, void *opaque)
{
    Daemon *d = opaque;
    g_autoptr(Tree) owned = data;
    int64_t now = g_get_real_time();
    g_autoptr(Tree) message = tree_object();
    Tree *stamp = tree_object();
    tree_set(stamp, "seconds", tree_int(now / G_USEC_PER_SEC));
    tree_set(stamp, "microseconds", tree_int(now % G_USEC_PER_SEC));
    tree_set(message, "timestamp", stamp);
    tree_set_string(message, "event", name);
    if (data)
        tree_set(message, "data", tree_ref(data));
    for (GList *l = d->sessions.head; l; l = l->next) {
        Session *s = l->data;
        if (!s->negotiated || s->broken)
            continue;
        size_t before = s->out->len;
        session_send(s, tree_ref(message));
        s->events += s->out->len - before;
        if (s->events > EVENTS_MAX) {
            g_printerr("storage-daemon: warning: a QMP client does not read its events: disconnected\n");
            session_break(s);
        }
    }
}

/* ---- commands --------------------------------------------------------------------------------------------------- */

static const char *error_class(const GError *error)
{
    if (error->domain == SD_ERROR) {
        switch (error->code) {
        case SD_ERROR_COMMAND_NOT_FOUND:
            return "CommandNotFound";
        case SD_ERROR_DEVICE_NOT_ACTIVE:
            return "DeviceNotActive";
        case SD_ERROR_DEVICE_NOT_FOUND:
            return "DeviceNotFound";
        }
    }
    return "GenericError";
}

/* Takes @result, or sends @error where there is none. */
static void session_reply(Session *s, Tree *id, Tree *result, const GError *error)
{
    Tree *reply = tree_object();
    if (result) {
        tree_set(reply, "return", result);
    } else {
        Tree *e = tree_object();
        tree_set_string(e, "class", error_class(error));
        tree_set_string(e, "desc", error->message);
        tree_set(reply, "error", e);
    }
    if (id)
        tree_set(reply, "id", tree_ref(id));
    session_send(s, reply);
}

static const QapiCommand *find_command(Session *s, const char *name, GError **error)
{
    const QapiCommand *command = qapi_find_command(qapi_commands, qapi_n_commands, name);
    if (!s->negotiated && !(command && command->preconfig)) {
        error_set_class(error, SD_ERROR_COMMAND_NOT_FOUND,
                        "Expecting capabilities negotiation with 'qmp_capabilities'");
        return NULL;
    }
    if (!command)
        error_set_class(error, SD_ERROR_COMMAND_NOT_FOUND, "The command %s has not been found", name);
    return command;
}

/* Takes a request apart. What is set on success is borrowed from @request. */
static const QapiCommand *parse_request(Session *s, const Tree *request, Tree **ret_arguments, GError **error)
{
    const char *key, *name = NULL;
    for (guint i = 0; i < tree_size(request); i++) {
        Tree *value = tree_member(request, i, &key);
        if (strcmp(key, "execute") == 0) {
            name = tree_as_string(value);
            if (!name) {
                error_set(error, "QMP input member 'execute' must be a string");
                return NULL;
            }
        } else if (strcmp(key, "arguments") == 0) {
            if (!tree_is_object(value)) {
                error_set(error, "QMP input member 'arguments' must be an object");
                return NULL;
            }
            *ret_arguments = value;
        } else if (strcmp(key, "id") != 0) {
            error_set(error, "QMP input member '%s' is unexpected", key);
            return NULL;
        }
    }
    if (!name) {
        error_set(error, "QMP input lacks member 'execute'");
        return NULL;
    }
    return find_command(s, name, error);
}

static void session_co_carry_out(Session *s, Tree *request)
{
    g_autoptr(GError) error = NULL;
    Tree *arguments = NULL, *result = NULL, *id = NULL;
    if (!tree_is_object(request)) {
        error_set(&error, "QMP input must be a JSON object");
    } else {
        id = tree_get(request, "id");
        const QapiCommand *command = parse_request(s, request, &arguments, &error);
        if (command) {
            Daemon *d = s->ctx.daemon;
            d->commands++;
            s->busy = true;
            if (!qapi_co_dispatch(command, &s->ctx, arguments, &result, &error))
                result = NULL;
            s->busy = false;
            d->commands--;
            coqueue_wake_all(&d->idle);
        }
    }
    session_reply(s, id, result, error);
}

/* Passwords come in one kind of request only. What else of it is in memory is freed by now, and was wiped there. */
static void session_forget_secret(Session *s, Tree *request)
{
    const char *name = tree_is_object(request) ? tree_get_string(request, "execute") : NULL;

    if (g_strcmp0(name, "object-add") != 0)
        return;
    tree_wipe(request);
    json_stream_wipe(s->stream);
    explicit_bzero(s->buffer, sizeof(s->buffer));
}

/* Carries out what is complete in the input; keeps away from more while a lot of output waits. */
static void session_co_process(Session *s)
{
    while (!s->ending && !s->ctx.daemon->quitting) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Tree) request = NULL;
        switch (json_stream_next(s->stream, &request, &error)) {
        case JSON_STREAM_NEED_MORE:
            return;
        case JSON_STREAM_ERROR:
            session_reply(s, NULL, NULL, error);
            break;
        case JSON_STREAM_MESSAGE:
            session_co_carry_out(s, request);
            session_forget_secret(s, request);
            break;
        }
        while (s->out->len > OUT_PAUSE && !s->broken)
            coqueue_co_wait(&s->on_sent, NULL);
    }
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static ssize_t session_co_read(Session *s)
{
    if (s->is_socket)
        return aio_co_recv(s->in_fd, s->buffer, sizeof(s->buffer), 0);
    int revents = aio_co_poll(s->in_fd, POLLIN);
    if (revents < 0)
        return revents;
    ssize_t n = read(s->in_fd, s->buffer, sizeof(s->buffer));
    return n < 0 ? -errno : n;
}

static void session_co_greet(Session *s)
{
    VersionInfo *version = NULL;
    if (!qmp_co_query_version(&s->ctx, &version, NULL))
        return;
    Tree *message = tree_object(), *inner = tree_object();
    tree_set(inner, "version", qapi_encode_VersionInfo(version));
    tree_set(inner, "capabilities", tree_list());
    tree_set(message, "QMP", inner);
    qapi_free_VersionInfo(version);
    session_send(s, message);
}

static void out_of_patience(void *opaque)
{
    session_break(opaque);
}

/* Lets the output leave, then frees everything. */
static void session_co_finish(Session *s)
{
    Daemon *d = s->ctx.daemon;
    timer_arm(&s->patience, loop_now(d->loop, LOOP_CLOCK_REAL) + END_PATIENCE_MS * INT64_C(1000000));
    while (s->writer || (s->out->len && !s->broken))
        coqueue_co_wait(&s->on_sent, NULL);
    timer_cancel(&s->patience);
    loop_turn_end_cancel(d->loop, &s->send_out);
    g_queue_unlink(&d->sessions, &s->link);
    if (s->is_socket)
        close(s->in_fd);
    if (s->ended)
        s->ended(s->opaque);
    json_stream_free(s->stream);
    g_string_free(s->out, TRUE);
    g_string_free(s->sending, TRUE);
    coqueue_wake_all(&d->idle);
    g_free(s);
}

static void session_co_entry(void *opaque)
{
    Session *s = opaque;
    Daemon *d = s->ctx.daemon;
    s->reader = coroutine_self();
    session_co_greet(s);
    while (!s->ending && !d->quitting) {
        s->reading = true;
        ssize_t n = session_co_read(s);
        s->reading = false;
        if (n == -EINTR || n == -EAGAIN)
            continue;
        if (n <= 0) {
            s->ending = true;
            break;
        }
        json_stream_feed(s->stream, s->buffer, (size_t)n);
        session_co_process(s);
    }
    /* While the process ends, events still go out, until sessions_end(). */
    while (!s->ending)
        coqueue_co_wait(&s->on_sent, NULL);
    session_co_finish(s);
}

void session_start(Daemon *daemon, int in_fd, int out_fd, bool pretty, SessionEnded *ended, void *opaque)
{
    Session *s = g_new0(Session, 1);
    s->ctx = (QmpContext){.daemon = daemon, .session = s};
    s->in_fd = in_fd;
    s->out_fd = out_fd;
    s->is_socket = in_fd == out_fd;
    s->pretty = pretty;
    s->ended = ended;
    s->opaque = opaque;
    s->stream = json_stream_new();
    s->out = g_string_new(NULL);
    s->sending = g_string_new(NULL);
    s->send_out = (TurnEnd){.fn = send_out, .opaque = s};
    timer_init(&s->patience, daemon->loop, LOOP_CLOCK_REAL, out_of_patience, s);
    s->link.data = s;
    g_queue_push_tail_link(&daemon->sessions, &s->link);
    coroutine_start(daemon->loop, session_co_entry, s);
}

bool session_negotiate(Session *s)
{
    bool first = !s->negotiated;
    s->negotiated = true;
    return first;
}

void sessions_cancel_commands(Daemon *daemon)
{
    for (GList *l = daemon->sessions.head; l; l = l->next) {
        Session *s = l->data;
        if (s->busy)
            aio_cancel(s->reader);
    }
}

void sessions_end(Daemon *daemon)
{
    for (GList *l = daemon->sessions.head; l; l = l->next) {
        Session *s = l->data;
        s->ending = true;
        if (s->reading)
            aio_cancel(s->reader);
        coqueue_wake_all(&s->on_sent);
    }
}
