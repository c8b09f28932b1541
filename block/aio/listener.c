/*
 * Listening sockets: bind, accept, clean up.
 */
#include "block/aio/io.h"
#include "block/aio/socket.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A name stands for that many addresses at most. */
#define MAX_FDS 16
#define BACKLOG 256
/* How long to wait after a failed accept (out of descriptors, mostly) before trying again. */
#define RETRY_NS INT64_C(100000000)

typedef struct Acceptor {
    SocketListener *listener;
    Coroutine *co;
    int fd;
} Acceptor;

/* All fields: the loop's thread. */
struct SocketListener {
    Loop *loop;
    SocketAccepted *accepted;
    void *opaque;
    Acceptor acceptors[MAX_FDS];
    int n;
    int running; /* acceptors whose coroutine has not ended */
    bool closing, paused;
    CoQueue resumed; /* acceptors wait here while paused */
    CoQueue ended;   /* close waits here */
    char *path;      /* the unix socket's file, NULL: none */
    dev_t dev;       /* its identity, so as not to remove somebody else's */
    ino_t ino;
    unsigned port;
};

static void acceptor_co_entry(void *opaque)
{
    Acceptor *a = opaque;
    SocketListener *l = a->listener;
    int on = 1;

    a->co = coroutine_self();
    while (!l->closing) {
        int fd;

        if (l->paused) {
            coqueue_co_wait(&l->resumed, NULL);
            continue;
        }
        fd = aio_co_accept(a->fd);
        if (fd >= 0) {
            if (l->port) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
                /* A peer that vanished without a word is found out in the end. */
                setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
            }
            l->accepted(fd, l->opaque);
        } else if (fd == -EINVAL || fd == -EBADF || fd == -ENOTSOCK || fd == -EOPNOTSUPP) {
            break; /* no listening socket: an error that waiting does not mend */
        } else if (fd != -ECANCELED && fd != -ECONNABORTED && fd != -EINTR && fd != -EAGAIN) {
            aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(l->loop, LOOP_CLOCK_REAL) + RETRY_NS);
        }
    }
    a->co = NULL;
    l->running--;
    coqueue_wake_all(&l->ended);
}

static void listener_free(SocketListener *l)
{
    struct stat st;

    for (int i = 0; i < l->n; i++)
        close(l->acceptors[i].fd);
    if (l->path && lstat(l->path, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
        unlink(l->path);
    g_free(l->path);
    g_free(l);
}

static void add_fd(SocketListener *l, int fd)
{
    l->acceptors[l->n++] = (Acceptor){.listener = l, .fd = fd};
}

static bool listen_co_unix(SocketListener *l, const SocketAddr *addr, GError **error)
{
    int fd = socket_unix_co_listen(addr, error);
    struct stat st;

    if (fd < 0)
        return false;
    add_fd(l, fd);
    if (!addr->abstract && lstat(addr->path, &st) == 0) {
        /* Absolute: a daemon may change its directory before it cleans up. */
        l->path = g_canonicalize_filename(addr->path, NULL);
        l->dev = st.st_dev;
        l->ino = st.st_ino;
    }
    return true;
}

static bool listen_fd(SocketListener *l, const SocketAddr *addr, GError **error)
{
    int listening = 0, domain = 0;
    socklen_t len = sizeof(listening);
    struct sockaddr_storage name;

    if (getsockopt(addr->fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0)
        return error_set_errno(error, errno, "File descriptor %d is no socket", addr->fd);
    if (!listening)
        return error_set(error, "File descriptor %d is a socket that does not listen", addr->fd);
    len = sizeof(domain);
    getsockopt(addr->fd, SOL_SOCKET, SO_DOMAIN, &domain, &len);
    if (domain == AF_INET || domain == AF_INET6) {
        len = sizeof(name);
        getsockname(addr->fd, (struct sockaddr *)&name, &len);
        l->port = ntohs(((struct sockaddr_in *)&name)->sin_port); /* at the same place in sockaddr_in6 */
    }
    add_fd(l, addr->fd);
    return true;
}

/* One listening TCP socket on @ai with @port put in (0: as resolved); its fd, or -errno. */
static int listen_one(const struct addrinfo *ai, unsigned port, unsigned *ret_port)
{
    struct sockaddr_storage name;
    socklen_t len = sizeof(name);
    int on = 1, ret;
    int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (ai->ai_family == AF_INET6) {
        /* The IPv4 side of "every address" has a socket of its own. */
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    }
    memcpy(&name, ai->ai_addr, ai->ai_addrlen);
    if (port)
        ((struct sockaddr_in *)&name)->sin_port = htons(port); /* at the same place in sockaddr_in6 */
    ret = bind(fd, (struct sockaddr *)&name, ai->ai_addrlen);
    if (!ret)
        ret = listen(fd, BACKLOG);
    if (!ret)
        ret = getsockname(fd, (struct sockaddr *)&name, &len);
    if (ret < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    *ret_port = ntohs(((struct sockaddr_in *)&name)->sin_port);
    return fd;
}

/* Listens on every address of @list that this machine has; 0 or the first -errno. A port in use is always a failure:
 * clients would reach us over one family and a stranger over the other. */
static int listen_all(SocketListener *l, const struct addrinfo *list, unsigned port)
{
    int first = 0;
    int before = l->n;

    for (const struct addrinfo *ai = list; ai && l->n < MAX_FDS; ai = ai->ai_next) {
        int fd = listen_one(ai, port, &l->port);

        if (fd >= 0) {
            add_fd(l, fd);
            port = l->port;
            continue;
        }
        first = first ? first : fd;
        if (fd == -EADDRINUSE) {
            while (l->n > before)
                close(l->acceptors[--l->n].fd);
            return fd;
        }
    }
    return l->n > before ? 0 : first;
}

static bool listen_co_inet(SocketListener *l, const SocketAddr *addr, GError **error)
{
    g_autofree char *what = socket_addr_str(addr);
    struct addrinfo *list = socket_co_resolve(addr, true, error);
    unsigned port;
    int ret;

    if (!list)
        return false;
    port = ntohs(((struct sockaddr_in *)list->ai_addr)->sin_port);
    ret = listen_all(l, list, port);
    while (ret == -EADDRINUSE && port && port < MIN(addr->port_to, 65535u))
        ret = listen_all(l, list, ++port);
    freeaddrinfo(list);
    if (ret < 0)
        return error_set_errno(error, -ret, "Failed to listen on '%s'", what);
    return true;
}

SocketListener *socket_co_listen(Loop *loop, const SocketAddr *addr, SocketAccepted *accepted, void *opaque,
                                 GError **error)
{
    SocketListener *l = g_new0(SocketListener, 1);
    bool ok = false;

    l->loop = loop;
    l->accepted = accepted;
    l->opaque = opaque;
    switch (addr->kind) {
    case SOCKET_UNIX:
        ok = listen_co_unix(l, addr, error);
        break;
    case SOCKET_INET:
        ok = listen_co_inet(l, addr, error);
        break;
    case SOCKET_FD:
        ok = listen_fd(l, addr, error);
        break;
    }
    if (!ok) {
        listener_free(l);
        return NULL;
    }
    l->running = l->n;
    for (int i = 0; i < l->n; i++)
        coroutine_start(loop, acceptor_co_entry, &l->acceptors[i]);
    return l;
}

static void cancel_all(SocketListener *l)
{
    for (int i = 0; i < l->n; i++)
        if (l->acceptors[i].co)
            aio_cancel(l->acceptors[i].co);
}

void socket_listener_pause(SocketListener *listener, bool pause)
{
    listener->paused = pause;
    if (pause)
        cancel_all(listener);
    else
        coqueue_wake_all(&listener->resumed);
}

void socket_listener_co_close(SocketListener *listener)
{
    if (!listener)
        return;
    listener->closing = true;
    coqueue_wake_all(&listener->resumed);
    cancel_all(listener);
    while (listener->running)
        coqueue_co_wait(&listener->ended, NULL);
    listener_free(listener);
}

unsigned socket_listener_port(const SocketListener *listener)
{
    return listener->port;
}
