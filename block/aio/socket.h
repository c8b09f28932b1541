/*
 * Stream sockets by address: connecting to one, listening on one.
 *
 * An address is a unix path, a host and port, or a descriptor that somebody handed down. Names are resolved on a worker
 * thread (getaddrinfo(3) blocks); numeric addresses are not. Every descriptor made here is close-on-exec.
 */
#pragma once
#include "block/aio/coroutine.h"
#include "block/util/error.h"
#include <sys/types.h>

typedef enum SocketKind { SOCKET_UNIX, SOCKET_INET, SOCKET_FD } SocketKind;

/* Strings are borrowed. What does not belong to the kind is ignored. */
typedef struct SocketAddr {
    SocketKind kind;
    /* unix */
    const char *path;
    bool abstract; /* Linux's namespace without files; @path without its leading NUL */
    bool padded;   /* abstract only: the name fills sun_path with NULs */
    /* inet */
    const char *host;      /* NULL or "": every local address (listening), this machine (connecting) */
    const char *port;      /* number or service name; "0" listens on a free one */
    unsigned port_to;      /* listening: the last of a range of ports to try; 0: just @port */
    bool no_ipv4, no_ipv6; /* leave addresses of this family out; not both */
    bool numeric;          /* refuse names */
    bool keep_alive;       /* connecting: TCP keep-alive probes */
    /* fd */
    int fd; /* an open stream socket; becomes the connection's or listener's, unless that fails */
} SocketAddr;

/* "unix:/run/x.sock", "127.0.0.1:10809", "[::1]:10809", "fd:3": for messages. Caller frees. */
char *socket_addr_str(const SocketAddr *addr);

/* Connects; inet addresses are tried one after the other. The caller's new fd, or -1 with @error (also when
 * aio_cancel() hit it). TCP_NODELAY is set on TCP. */
int socket_co_connect(const SocketAddr *addr, GError **error);

/*
 * A listener: one coroutine per listening descriptor accepts and hands each connection over.
 *
 * A unix socket file that nobody listens on any more (a process was killed) is taken over; one that somebody answers
 * on is refused, naming who holds it. On TCP, all addresses that the host stands for are listened on.
 */
typedef struct SocketListener SocketListener;

/* A new connection @fd, which becomes the callback's; runs in a coroutine of the listener, which it must not hold up.
 */
typedef void SocketAccepted(int fd, void *opaque);

/* Listens and begins to accept at once. NULL with @error; then nothing is left bound. */
SocketListener *socket_co_listen(Loop *loop, const SocketAddr *addr, SocketAccepted *accepted, void *opaque,
                                 GError **error);

/* While paused nothing is accepted: clients wait in the kernel's queue. One connection may still arrive just after. */
void socket_listener_pause(SocketListener *listener, bool pause);

/* Stops, waits for the accepting coroutines, removes its unix socket file (where it still is its own) and frees. Takes
 * NULL. No callback runs any more when it returns. */
void socket_listener_co_close(SocketListener *listener);

/* The TCP port listened on (for port "0"), 0 for other sockets. */
unsigned socket_listener_port(const SocketListener *listener);

/* ---- between socket.c, socket-unix.c and listener.c ------------------------------------------------------------- */

struct addrinfo;
struct sockaddr_un;

/* The addresses @addr (SOCKET_INET) stands for; the caller frees with freeaddrinfo(). NULL with @error. */
struct addrinfo *socket_co_resolve(const SocketAddr *addr, bool passive, GError **error);

/* Fills in @ret and its length; false when the path is empty or too long. */
bool socket_unix_name(const SocketAddr *addr, struct sockaddr_un *ret, unsigned *ret_len, GError **error);

/* A listening unix socket; stale files are taken over. -1 with @error. */
int socket_unix_co_listen(const SocketAddr *addr, GError **error);
