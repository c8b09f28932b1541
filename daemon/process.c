#include "daemon/process.h"
#include "block/util/error.h"
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* Main thread, before and after the loop runs or from within it. */
static struct {
    int ready_fd; /* to the parent that process_daemonize() left waiting, -1: there is none */
    char *pidfile;
    int pidfile_fd;
} process = {.ready_fd = -1, .pidfile_fd = -1};

/* ---- the background --------------------------------------------------------------------------------------------- */

static G_NORETURN void parent_waits(int fd, pid_t child)
{
    char ready = 0;
    ssize_t n;
    do {
        n = read(fd, &ready, 1);
    } while (n < 0 && errno == EINTR);
    if (n == 1)
        _exit(0);
    /* The child has said on stderr why. */
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    _exit(1);
}

bool process_daemonize(GError **error)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return error_set_errno(error, errno, "cannot make a pipe");
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) {
        int err = errno;
        close(fds[0]);
        close(fds[1]);
        return error_set_errno(error, err, "cannot fork");
    }
    if (pid > 0) {
        close(fds[1]);
        parent_waits(fds[0], pid);
    }
    close(fds[0]);
    process.ready_fd = fds[1];
    setsid();
    umask(S_IWGRP | S_IRWXO);
    return true;
}

/*
 * Standard streams of a process in the background: a terminal that closes must not matter. The working folder stays, so
 * that relative names in the options and in later commands mean the same.
 */
static void streams_to_null(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    for (int i = 0; i <= 2; i++)
        dup2(fd, i);
    if (fd > 2)
        close(fd);
}

/* ---- systemd: sd_notify(3) says what the datagrams are ---------------------------------------------------------- */

static void notify(const char *state)
{
    const char *path = g_getenv("NOTIFY_SOCKET");
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    if (!path || (path[0] != '/' && path[0] != '@') || strlen(path) >= sizeof(addr.sun_path))
        return;
    size_t len = strlen(path);
    memcpy(addr.sun_path, path, len);
    if (path[0] == '@')
        addr.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&addr,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len)) < 0)
        g_printerr("storage-daemon: warning: cannot notify %s: %s\n", path, g_strerror(errno));
    close(fd);
}

void process_ready(void)
{
    if (process.ready_fd >= 0) {
        streams_to_null();
        ssize_t n;
        do {
            n = write(process.ready_fd, "", 1);
        } while (n < 0 && errno == EINTR);
        close(process.ready_fd);
        process.ready_fd = -1;
    }
    g_autofree char *state = g_strdup_printf("READY=1\nMAINPID=%d\n", (int)getpid());
    notify(state);
}

void process_stopping(void)
{
    notify("STOPPING=1\n");
}

/* ---- the pid file ----------------------------------------------------------------------------------------------- */

static struct flock whole_file(void)
{
    return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
}

/* False with @error when another process has @fd locked. */
static bool refuse_held(int fd, const char *path, GError **error)
{
    struct flock lock = whole_file();
    if (fcntl(fd, F_GETLK, &lock) < 0)
        return error_set_errno(error, errno, "cannot look at the lock of '%s'", path);
    if (lock.l_type == F_UNLCK)
        return true;
    return error_set(error, "PID file '%s' is held by process %d", path, (int)lock.l_pid);
}

bool process_pidfile_check(const char *path, GError **error)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? true : error_set_errno(error, errno, "cannot open PID file '%s'", path);
    bool ok = refuse_held(fd, path, error);
    close(fd);
    return ok;
}

/* An open and locked @path: one that is still there under its name, which whoever held it before may have removed. */
static int open_locked(const char *path, GError **error)
{
    for (;;) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
        if (fd < 0) {
            error_set_errno(error, errno, "cannot create PID file '%s'", path);
            return -1;
        }
        struct flock lock = whole_file();
        struct stat ours, named;
        if (fcntl(fd, F_SETLK, &lock) < 0) {
            if (refuse_held(fd, path, error))
                error_set(error, "cannot lock PID file '%s'", path);
            close(fd);
            return -1;
        }
        if (fstat(fd, &ours) == 0 && stat(path, &named) == 0 && ours.st_ino == named.st_ino &&
            ours.st_dev == named.st_dev)
            return fd;
        close(fd);
    }
}

bool process_pidfile_take(const char *path, GError **error)
{
    int fd = open_locked(path, error);
    if (fd < 0)
        return false;
    g_autofree char *text = g_strdup_printf("%d\n", (int)getpid());
    ssize_t len = (ssize_t)strlen(text);
    if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)len, 0) != len) {
        error_set_errno(error, errno, "cannot write PID file '%s'", path);
        unlink(path);
        close(fd);
        return false;
    }
    process.pidfile = g_strdup(path);
    process.pidfile_fd = fd;
    return true;
}

void process_pidfile_remove(void)
{
    if (process.pidfile) {
        unlink(process.pidfile);
        close(process.pidfile_fd);
        g_clear_pointer(&process.pidfile, g_free);
        process.pidfile_fd = -1;
    }
}
