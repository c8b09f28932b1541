#include "daemon/chardev.h"
#include "daemon/session.h"
#include "block/aio/io.h"
#include "block/aio/socket.h"
#include "block/util/error.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

enum { MAX_SESSIONS = 256 }; /* at one chardev; more clients wait in the kernel's queue */

/* All fields: the loop's thread. */
typedef struct Chardev {
    Daemon *daemon;
    char *id;
    ChardevOptions *options;
    bool has_monitor, pretty;
    bool closing;

    /* connections; for stdio the "connection" is fd 0 */
    GArray *pending; /* of int: accepted, not yet served */
    unsigned sessions;
    SocketListener *listener;
    CoQueue first; /* wait=on waits for a connection here */

    /* server=off */
    Coroutine *connector; /* keeps the connection up; NULL: there is none */
    bool connecting;      /* the connector may be cancelled */
    CoQueue disconnected; /* the connector waits here for the session to end */

    struct termios *terminal; /* as it was before signal=off, NULL: unchanged */
} Chardev;

/* ---- options ---------------------------------------------------------------------------------------------------- */

static bool check_socket(const ChardevOptionsSocket *s, GError **error)
{
    int ways = (s->path != NULL) + (s->host || s->port) + (s->fd != NULL);
    if (ways != 1)
        return error_set(error, "a socket has exactly one of 'path', 'host' with 'port', and 'fd'");
    if (s->host && !s->port)
        return error_set(error, "Parameter 'port' is missing");
    if (s->has_wait && !s->server)
        return error_set(error, "Parameter 'wait' works with server=on only");
    if (s->has_reconnect && (s->server || s->fd))
        return error_set(error, "Parameter 'reconnect' works with server=off and without fd only");
    if (s->has_ipv4 && s->has_ipv6 && !s->ipv4 && !s->ipv6)
        return error_set(error, "Parameter 'ipv4' and 'ipv6' cannot both be off");
    if (s->fd) {
        char *end;
        errno = 0;
        long fd = strtol(s->fd, &end, 10);
        if (errno || *end || end == s->fd || fd < 0 || fd > INT_MAX)
            return error_set(error, "Parameter 'fd' expects the number of a descriptor, not '%s'", s->fd);
    }
    return true;
}

void *chardev_decode(Tree *tree, QapiSource source, GError **error)
{
    ChardevOptions *options = qapi_decode(&qapi_type_ChardevOptions, source, tree, error);
    if (options && options->backend == CHARDEV_BACKEND_KIND_SOCKET && !check_socket(&options->u.socket, error))
        g_clear_pointer(&options, qapi_free_ChardevOptions);
    return options;
}

void chardev_free_options(void *options)
{
    qapi_free_ChardevOptions(options);
}

static SocketAddr socket_addr(const ChardevOptionsSocket *s)
{
    SocketAddr addr = {.kind = SOCKET_INET};
    if (s->path) {
        addr.kind = SOCKET_UNIX;
        addr.path = s->path;
        addr.abstract = s->has_abstract && s->abstract;
        addr.padded = s->has_tight && !s->tight;
    } else if (s->fd) {
        addr.kind = SOCKET_FD;
        addr.fd = (int)strtol(s->fd, NULL, 10);
    } else {
        addr.host = s->host;
        addr.port = s->port;
        /* One family "on" alone means: that one only, as for InetSocketAddress. */
        addr.no_ipv4 = (s->has_ipv4 && !s->ipv4) || (s->has_ipv6 && s->ipv6 && !s->has_ipv4);
        addr.no_ipv6 = (s->has_ipv6 && !s->ipv6) || (s->has_ipv4 && s->ipv4 && !s->has_ipv6);
    }
    return addr;
}

/* ---- connections become sessions -------------------------------------------------------------------------------- */

static void session_ended(void *opaque)
{
    Chardev *c = opaque;
    c->sessions--;
    if (c->listener)
        socket_listener_pause(c->listener, false);
    coqueue_wake_all(&c->disconnected);
}

static void serve_pending(Chardev *c)
{
    while (c->daemon->serving && c->has_monitor && c->pending->len) {
        int fd = g_array_index(c->pending, int, 0);
        g_array_remove_index(c->pending, 0);
        c->sessions++;
        bool is_stdio = c->options->backend == CHARDEV_BACKEND_KIND_STDIO;
        session_start(c->daemon, fd, is_stdio ? STDOUT_FILENO : fd, c->pretty, session_ended, c);
    }
}

static void connected(int fd, void *opaque)
{
    Chardev *c = opaque;
    if (c->closing) {
        close(fd);
        return;
    }
    g_array_append_val(c->pending, fd);
    coqueue_wake_all(&c->first);
    serve_pending(c);
    if (c->listener && c->sessions + c->pending->len >= MAX_SESSIONS)
        socket_listener_pause(c->listener, true);
}

/* ---- kinds ------------------------------------------------------------------------------------------------------ */

static bool listen_co_start(Chardev *c, const ChardevOptionsSocket *s, const SocketAddr *addr, GError **error)
{
    c->listener = socket_co_listen(c->daemon->loop, addr, connected, c, error);
    if (!c->listener)
        return false;
    if (!s->has_wait || s->wait) {
        g_autofree char *where = socket_addr_str(addr);
        g_printerr("storage-daemon: info: waiting for a client at %s\n", where);
        while (!c->pending->len && !c->daemon->quitting)
            coqueue_co_wait(&c->first, NULL);
    }
    return true;
}

/* Keeps a connection up: when there is none, tries after every so many seconds. */
static void connector_co_entry(void *opaque)
{
    Chardev *c = opaque;
    const ChardevOptionsSocket *s = &c->options->u.socket;
    c->connector = coroutine_self();
    while (!c->closing) {
        if (c->sessions || c->pending->len) {
            coqueue_co_wait(&c->disconnected, NULL);
            continue;
        }
        c->connecting = true;
        int64_t due = loop_now(c->daemon->loop, LOOP_CLOCK_REAL) + (int64_t)s->reconnect * INT64_C(1000000000);
        SocketAddr addr = socket_addr(s);
        int fd = aio_co_sleep_until(LOOP_CLOCK_REAL, due) == 0 && !c->closing ? socket_co_connect(&addr, NULL) : -1;
        c->connecting = false;
        if (fd >= 0)
            connected(fd, c);
    }
    c->connector = NULL;
    coqueue_wake_all(&c->first);
}

static bool connect_co_start(Chardev *c, const ChardevOptionsSocket *s, const SocketAddr *addr, GError **error)
{
    GError *cause = NULL;
    int fd = socket_co_connect(addr, &cause);
    if (fd >= 0) {
        connected(fd, c);
    } else if (!s->has_reconnect || !s->reconnect) {
        g_propagate_error(error, cause);
        return false;
    } else {
        g_printerr("storage-daemon: warning: %s; trying again every %u s\n", cause->message, s->reconnect);
        g_error_free(cause);
    }
    if (s->has_reconnect && s->reconnect)
        coroutine_start(c->daemon->loop, connector_co_entry, c);
    return true;
}

static bool stdio_start(Chardev *c, const ChardevOptionsStdio *stdio, GError **error)
{
    for (GList *l = c->daemon->chardevs.head; l; l = l->next) {
        const Chardev *other = l->data;
        if (other != c && other->options->backend == CHARDEV_BACKEND_KIND_STDIO)
            return error_set(error, "standard input and output are taken by chardev '%s' already", other->id);
    }
    if (stdio->has_signal && !stdio->signal && isatty(STDIN_FILENO)) {
        struct termios raw;
        if (tcgetattr(STDIN_FILENO, &raw) < 0)
            return error_set_errno(error, errno, "cannot look at the terminal's settings");
        c->terminal = g_memdup2(&raw, sizeof(raw));
        raw.c_lflag &= ~(tcflag_t)ISIG;
        tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    connected(STDIN_FILENO, c);
    return true;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static Chardev *chardev_find(Daemon *daemon, const char *id)
{
    for (GList *l = daemon->chardevs.head; l; l = l->next) {
        Chardev *c = l->data;
        if (strcmp(c->id, id) == 0)
            return c;
    }
    return NULL;
}

static void chardev_free(Chardev *c)
{
    qapi_free_ChardevOptions(c->options);
    g_array_unref(c->pending);
    g_free(c->terminal);
    g_free(c->id);
    g_free(c);
}

static void chardev_co_close(Chardev *c)
{
    c->closing = true;
    socket_listener_co_close(g_steal_pointer(&c->listener));
    while (c->connector) {
        if (c->connecting)
            aio_cancel(c->connector);
        coqueue_wake_all(&c->disconnected);
        coqueue_co_wait(&c->first, NULL);
    }
    coqueue_wake_all(&c->first);
    if (c->options->backend == CHARDEV_BACKEND_KIND_SOCKET)
        for (guint i = 0; i < c->pending->len; i++)
            close(g_array_index(c->pending, int, i));
    g_array_set_size(c->pending, 0);
    if (c->terminal)
        tcsetattr(STDIN_FILENO, TCSANOW, c->terminal);
}

/* An inherited descriptor must be what it is said to be, or its first use would fail in some odd way. */
static bool check_fd(const ChardevOptionsSocket *s, int fd, GError **error)
{
    int listening = 0;
    socklen_t len = sizeof(listening);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0)
        return error_set_errno(error, errno, "fd %d is not a socket that can be used", fd);
    if (s->server != !!listening) {
        return error_set(error, "fd %d %s, which does not go with server=%s", fd,
                         listening ? "listens" : "does not listen", s->server ? "on" : "off");
    }
    return true;
}

bool chardev_co_new(Daemon *daemon, const ChardevOptions *options, GError **error)
{
    if (chardev_find(daemon, options->id))
        return error_set(error, "Chardev with id '%s' already exists", options->id);
    Chardev *c = g_new0(Chardev, 1);
    c->daemon = daemon;
    c->id = g_strdup(options->id);
    c->options = qapi_clone_ChardevOptions(options);
    c->pending = g_array_new(FALSE, FALSE, sizeof(int));
    /* In the list while it waits, so that the end of the process finds it. */
    g_queue_push_tail(&daemon->chardevs, c);
    bool ok;
    if (options->backend == CHARDEV_BACKEND_KIND_STDIO) {
        ok = stdio_start(c, &options->u.stdio, error);
    } else {
        const ChardevOptionsSocket *socket = &c->options->u.socket;
        SocketAddr addr = socket_addr(socket);
        ok = (!socket->fd || check_fd(socket, addr.fd, error)) &&
             (socket->server ? listen_co_start(c, socket, &addr, error) : connect_co_start(c, socket, &addr, error));
    }
    if (!ok) {
        g_queue_remove(&daemon->chardevs, c);
        chardev_free(c);
    }
    return ok;
}

bool chardev_co_apply(Daemon *daemon, void *options, GError **error)
{
    return chardev_co_new(daemon, options, error);
}

bool monitor_new(Daemon *daemon, const MonitorOptions *options, GError **error)
{
    Chardev *c = chardev_find(daemon, options->chardev);
    if (!c)
        return error_set(error, "chardev \"%s\" not found", options->chardev);
    if (c->has_monitor)
        return error_set(error, "chardev \"%s\" is in use by a monitor already", options->chardev);
    c->has_monitor = true;
    c->pretty = options->pretty;
    serve_pending(c);
    return true;
}

bool monitor_co_apply(Daemon *daemon, void *options, GError **error)
{
    return monitor_new(daemon, options, error);
}

void chardevs_serve(Daemon *daemon)
{
    for (GList *l = daemon->chardevs.head; l; l = l->next)
        serve_pending(l->data);
}

void chardevs_stop_waiting(Daemon *daemon)
{
    for (GList *l = daemon->chardevs.head; l; l = l->next)
        coqueue_wake_all(&((Chardev *)l->data)->first);
}

void chardevs_co_close(Daemon *daemon)
{
    for (GList *l = daemon->chardevs.head; l; l = l->next)
        chardev_co_close(l->data);
}

void chardevs_free(Daemon *daemon)
{
    Chardev *c;
    while ((c = g_queue_pop_head(&daemon->chardevs)))
        chardev_free(c);
}
