/*
 * Addresses of sockets, and connecting to them.
 */
#include "block/aio/socket.h"
#include "block/aio/io.h"
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

char *socket_addr_str(const SocketAddr *addr)
{
    const char *host = addr->host ? addr->host : "";

    switch (addr->kind) {
    case SOCKET_UNIX:
        return g_strdup_printf("unix:%s%s", addr->abstract ? "@" : "", addr->path);
    case SOCKET_INET:
        return g_strdup_printf(strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, addr->port);
    case SOCKET_FD:
        return g_strdup_printf("fd:%d", addr->fd);
    }
    g_assert_not_reached();
}

/* getaddrinfo(3) takes any number, negative ones too, and keeps its low 16 bits. */
static bool port_valid(const char *port)
{
    guint64 number;

    if (!g_ascii_isalnum(*port))
        return false;
    return strspn(port, "0123456789") < strlen(port) || g_ascii_string_to_unsigned(port, 10, 0, 65535, &number, NULL);
}

typedef struct Resolve {
    const char *host, *port;
    struct addrinfo hints;
    struct addrinfo *result;
} Resolve;

static int resolve_worker(void *opaque)
{
    Resolve *r = opaque;
    return getaddrinfo(r->host, r->port, &r->hints, &r->result);
}

struct addrinfo *socket_co_resolve(const SocketAddr *addr, bool passive, GError **error)
{
    Resolve r = {
        .host = addr->host && *addr->host ? addr->host : NULL,
        .port = addr->port,
        .hints =
            {
                .ai_socktype = SOCK_STREAM,
                .ai_family = addr->no_ipv6   ? AF_INET
                             : addr->no_ipv4 ? AF_INET6
                                             : AF_UNSPEC,
                .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | (passive ? AI_PASSIVE : 0),
            },
    };
    int ret;

    if (addr->no_ipv4 && addr->no_ipv6) {
        error_set(error, "Cannot disable IPv4 and IPv6 at same time");
        return NULL;
    }
    if (!addr->port || !*addr->port) {
        error_set(error, "Address '%s' has no port", r.host ? r.host : "");
        return NULL;
    }
    if (!port_valid(addr->port)) {
        error_set(error, "Invalid port '%s': neither a number up to 65535 nor the name of a service", addr->port);
        return NULL;
    }
    ret = resolve_worker(&r); /* numbers are understood without asking anybody */
    if (ret == EAI_NONAME && !addr->numeric) {
        r.hints.ai_flags &= ~(AI_NUMERICHOST | AI_NUMERICSERV);
        ret = aio_co_worker(resolve_worker, &r);
    }
    if (ret) {
        g_autofree char *name = socket_addr_str(addr);
        error_set(error, "address resolution failed for %s: %s", name, gai_strerror(ret));
        return NULL;
    }
    return r.result;
}

static int connect_co_one(int family, const struct sockaddr *name, socklen_t len)
{
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int ret;

    if (fd < 0)
        return -errno;
    ret = aio_co_connect(fd, name, len);
    if (ret < 0) {
        close(fd);
        return ret;
    }
    return fd;
}

static int connect_co_inet(const SocketAddr *addr, GError **error)
{
    struct addrinfo *list = socket_co_resolve(addr, false, error);
    int fd = -EADDRNOTAVAIL;
    int on = 1;

    if (!list)
        return -1;
    for (struct addrinfo *ai = list; ai && fd < 0 && fd != -ECANCELED; ai = ai->ai_next)
        fd = connect_co_one(ai->ai_family, ai->ai_addr, ai->ai_addrlen);
    freeaddrinfo(list);
    if (fd >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
        if (addr->keep_alive)
            setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    }
    return fd;
}

int socket_co_connect(const SocketAddr *addr, GError **error)
{
    g_autofree char *what = socket_addr_str(addr);
    g_autoptr(GError) local = NULL;
    struct sockaddr_un name;
    unsigned len;
    int fd = -1;

    switch (addr->kind) {
    case SOCKET_FD:
        return addr->fd;
    case SOCKET_UNIX:
        if (!socket_unix_name(addr, &name, &len, error))
            return -1;
        fd = connect_co_one(AF_UNIX, (struct sockaddr *)&name, len);
        break;
    case SOCKET_INET:
        fd = connect_co_inet(addr, &local);
        if (local) {
            g_propagate_error(error, g_steal_pointer(&local));
            return -1;
        }
        break;
    }
    if (fd < 0) {
        error_set_errno(error, -fd, "Failed to connect to '%s'", what);
        return -1;
    }
    return fd;
}
