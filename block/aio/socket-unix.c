/*
 * Unix sockets: names, and whose they are.
 *
 * A unix socket leaves its file behind when its process is killed, and a second bind(2) then fails for ever. To tell a
 * left-over from a socket in use, connect to it: only a listener answers. What is left over is removed; what answers
 * is left alone, and the kernel tells who listens there (SO_PEERCRED: the process that called listen(2)).
 */
#include "block/aio/socket.h"
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Connections that wait to be accepted. */
#define BACKLOG 256

enum {
    HOLDER_PATIENCE_MS = 2000, /* for the sockets of a process that has ended to do so, too */
    ASK_AGAIN_MS = 10,
};

bool socket_unix_name(const SocketAddr *addr, struct sockaddr_un *ret, unsigned *ret_len, GError **error)
{
    size_t len = strlen(addr->path);
    size_t room = sizeof(ret->sun_path) - 1;

    *ret = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (!len && !addr->abstract)
        return error_set(error, "UNIX socket path is empty");
    if (len > room)
        return error_set(error, "UNIX socket path '%s' is too long: it must be at most %zu bytes", addr->path, room);
    memcpy(ret->sun_path + addr->abstract, addr->path, len);
    if (addr->abstract)
        *ret_len = addr->padded ? sizeof(*ret) : offsetof(struct sockaddr_un, sun_path) + 1 + len;
    else
        *ret_len = offsetof(struct sockaddr_un, sun_path) + len + 1;
    return true;
}

/* Who is at the other end of unix socket @fd: "PID 123 (name)", or "another process". Caller frees. */
static char *peer_str(int fd)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);
    g_autofree char *path = NULL, *comm = NULL;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0 || cred.pid <= 0)
        return g_strdup("another process");
    path = g_strdup_printf("/proc/%d/comm", (int)cred.pid);
    if (!g_file_get_contents(path, &comm, NULL, NULL)) {
        /* It left its socket to a child, as daemons do. */
        return g_strdup_printf("a process started by PID %d", (int)cred.pid);
    }
    return g_strdup_printf("PID %d (%s)", (int)cred.pid, g_strchomp(comm));
}

/* Did the process that listens at the other end of @fd end without leaving its socket to anybody that we can see? */
static bool holder_is_gone(int fd)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0 && cred.pid > 0 && kill(cred.pid, 0) < 0 &&
           errno == ESRCH;
}

/*
 * Asks whether somebody listens at @name: 0 or an errno of connect(2). *@ret_holder says who; the caller's.
 *
 * The sockets of a killed process that used an io_uring answer for some moments longer, until the kernel has taken its
 * ring down. So a listener whose process is gone is asked again for a while, before it counts as inherited by a child.
 */
static int unix_co_ask(const struct sockaddr_un *name, unsigned len, char **ret_holder)
{
    Loop *loop = coroutine_loop(coroutine_self());
    int64_t patience = loop_now(loop, LOOP_CLOCK_REAL) + HOLDER_PATIENCE_MS * INT64_C(1000000);

    for (;;) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        int errnum = fd < 0 || connect(fd, (const struct sockaddr *)name, len) < 0 ? errno : 0;
        int64_t now = loop_now(loop, LOOP_CLOCK_REAL);
        bool again = !errnum && now < patience && holder_is_gone(fd);

        if (!errnum && !again)
            *ret_holder = peer_str(fd);
        if (fd >= 0)
            close(fd);
        if (!again || aio_co_sleep_until(LOOP_CLOCK_REAL, now + ASK_AGAIN_MS * INT64_C(1000000)) < 0)
            return errnum;
    }
}

/* Something stands at the path. True when it was a left-over and is gone now. */
static bool unix_co_take_over(const SocketAddr *addr, const struct sockaddr_un *name, unsigned len, GError **error)
{
    g_autofree char *holder = NULL;
    struct stat st;
    int errnum;

    if (addr->abstract)
        return error_set(error, "Failed to bind abstract UNIX socket '%s': it is in use", addr->path);
    if (lstat(addr->path, &st) == 0 && !S_ISSOCK(st.st_mode))
        return error_set(error, "Failed to bind UNIX socket '%s': a file that is no socket is there", addr->path);
    errnum = unix_co_ask(name, len, &holder);
    if (!errnum || errnum == EAGAIN) {
        return error_set(error, "Failed to bind UNIX socket '%s': it is in use by %s", addr->path,
                         holder ? holder : "another process, which is busy");
    }
    if (errnum != ECONNREFUSED && errnum != ENOENT) {
        return error_set_errno(error, errnum, "Failed to bind UNIX socket '%s': a socket is there, and asking it fails",
                               addr->path);
    }
    if (unlink(addr->path) < 0 && errno != ENOENT)
        return error_set_errno(error, errno, "Failed to remove the stale UNIX socket '%s'", addr->path);
    return true;
}

int socket_unix_co_listen(const SocketAddr *addr, GError **error)
{
    struct sockaddr_un name;
    unsigned len;
    int fd;

    if (!socket_unix_name(addr, &name, &len, error))
        return -1;
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        error_set_errno(error, errno, "Failed to create a UNIX socket");
        return -1;
    }
    if (bind(fd, (struct sockaddr *)&name, len) < 0) {
        if (errno != EADDRINUSE) {
            error_set_errno(error, errno, "Failed to bind UNIX socket '%s'", addr->path);
            goto fail;
        }
        if (!unix_co_take_over(addr, &name, len, error))
            goto fail;
        if (bind(fd, (struct sockaddr *)&name, len) < 0) {
            error_set_errno(error, errno, "Failed to bind UNIX socket '%s'", addr->path);
            goto fail;
        }
    }
    if (listen(fd, BACKLOG) < 0) {
        error_set_errno(error, errno, "Failed to listen on UNIX socket '%s'", addr->path);
        goto fail;
    }
    return fd;
fail:
    close(fd);
    return -1;
}
