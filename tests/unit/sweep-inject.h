/*
 * Faults where completions arrive: the calls of block/aio that touch files, and the system calls that worker threads
 * make for the file driver, are wrapped by the linker (see the Makefile's rule for daemon-sweep). Each goes to the real
 * one, one turn of the loop later, as it would with a disk; the chosen one fails, or does only part of its work.
 *
 * The N-th call since inject_arm() is chosen, and with @sticky all of its kind that follow.
 */
#pragma once
#include "block/aio/io.h"
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

typedef enum Io { IO_READ, IO_WRITE, IO_FLUSH, IO_ALLOC, IO_TRUNCATE, IO_COPY, IO__MAX } Io;
typedef enum FaultKind { FAULT_EIO, FAULT_ENOSPC, FAULT_SHORT, FAULT__MAX } FaultKind;

static const char *const io_names[] = {"read", "write", "flush", "fallocate", "ftruncate", "copy_file_range"};
static const char *const fault_names[] = {"EIO", "ENOSPC", "short"};
/* Which faults a call can have. */
static const bool io_faults[IO__MAX][FAULT__MAX] = {
    [IO_READ] = {true, false, true},  [IO_WRITE] = {true, true, true},     [IO_FLUSH] = {true, true, false},
    [IO_ALLOC] = {true, true, false}, [IO_TRUNCATE] = {true, true, false}, [IO_COPY] = {true, true, true},
};

enum { IOS_MAX = 4096 };

static struct {
    GMutex lock; /* the calls of worker threads come here, too */
    bool armed;
    unsigned n;           /* calls since arming */
    uint8_t ios[IOS_MAX]; /* what they were */
    FaultKind kind;
    unsigned chosen; /* UINT_MAX: none */
    bool sticky;
    Io io;             /* of the chosen one, once it happened */
    unsigned happened; /* faults */
    bool flush_failed;
} inject;

static void inject_arm(unsigned chosen, FaultKind kind, bool sticky)
{
    g_mutex_lock(&inject.lock);
    inject.armed = true;
    inject.n = inject.happened = 0;
    inject.flush_failed = false;
    inject.chosen = chosen;
    inject.kind = kind;
    inject.sticky = sticky;
    g_mutex_unlock(&inject.lock);
}

static void inject_off(void)
{
    g_mutex_lock(&inject.lock);
    inject.armed = false;
    g_mutex_unlock(&inject.lock);
}

/* Is this call to fail? */
static bool inject_hit(Io io)
{
    bool hit = false;

    g_mutex_lock(&inject.lock);
    if (inject.armed) {
        unsigned n = inject.n++;
        if (n < IOS_MAX)
            inject.ios[n] = (uint8_t)io;
        hit = n == inject.chosen || (inject.sticky && inject.happened && io == inject.io);
        hit = hit && io_faults[io][inject.kind];
        if (hit) {
            inject.io = io;
            inject.happened++;
            inject.flush_failed |= io == IO_FLUSH;
        }
    }
    g_mutex_unlock(&inject.lock);
    return hit;
}

static int inject_errno(void)
{
    return inject.kind == FAULT_ENOSPC ? ENOSPC : EIO;
}

/* The beginning of @iov: part of it, not always whole sectors, but something. */
static int shorten(struct iovec *part, const struct iovec *iov, int niov)
{
    static unsigned turn;
    size_t total = 0, left;
    int n = 0;

    for (int i = 0; i < niov; i++)
        total += iov[i].iov_len;
    left = total / 2;
    left = total < 2 ? total : turn++ & 1 && left >= 512 ? left - left % 512 : MAX(left, 1);
    for (; n < niov && left; n++) {
        part[n] = iov[n];
        part[n].iov_len = MIN(left, iov[n].iov_len);
        left -= part[n].iov_len;
    }
    return n;
}

ssize_t __real_aio_co_preadv(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags);
ssize_t __wrap_aio_co_preadv(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags);
ssize_t __wrap_aio_co_preadv(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags)
{
    struct iovec part[64];
    bool hit = inject_hit(IO_READ);

    aio_co_reschedule();
    if (!hit || niov > 64)
        return __real_aio_co_preadv(fd, iov, niov, offset, rw_flags);
    if (inject.kind != FAULT_SHORT)
        return -inject_errno();
    return __real_aio_co_preadv(fd, part, shorten(part, iov, niov), offset, rw_flags);
}

ssize_t __real_aio_co_pwritev(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags);
ssize_t __wrap_aio_co_pwritev(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags);
ssize_t __wrap_aio_co_pwritev(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags)
{
    static unsigned turn;
    struct iovec part[64];
    bool hit = inject_hit(IO_WRITE);
    ssize_t ret;

    aio_co_reschedule();
    if (!hit || niov > 64)
        return __real_aio_co_pwritev(fd, iov, niov, offset, rw_flags);
    if (inject.kind == FAULT_SHORT)
        return __real_aio_co_pwritev(fd, part, shorten(part, iov, niov), offset, rw_flags);
    if (inject.kind == FAULT_EIO && turn++ & 1) { /* some of it may be there */
        struct iovec one = {.iov_base = iov->iov_base, .iov_len = iov->iov_len / 2 / 512 * 512};
        ret = one.iov_len ? __real_aio_co_pwritev(fd, &one, 1, offset, rw_flags) : 0;
        g_assert(ret == (ssize_t)one.iov_len);
    }
    return -inject_errno();
}

int __real_aio_co_fsync(int fd, bool datasync);
int __wrap_aio_co_fsync(int fd, bool datasync);
int __wrap_aio_co_fsync(int fd, bool datasync)
{
    bool hit = inject_hit(IO_FLUSH);

    aio_co_reschedule();
    return hit ? -inject_errno() : __real_aio_co_fsync(fd, datasync);
}

int __real_aio_co_fallocate(int fd, int mode, int64_t offset, int64_t length);
int __wrap_aio_co_fallocate(int fd, int mode, int64_t offset, int64_t length);
int __wrap_aio_co_fallocate(int fd, int mode, int64_t offset, int64_t length)
{
    bool hit = inject_hit(IO_ALLOC);

    aio_co_reschedule();
    return hit ? -inject_errno() : __real_aio_co_fallocate(fd, mode, offset, length);
}

int __real_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size)
{
    if (!inject_hit(IO_TRUNCATE))
        return __real_ftruncate64(fd, size);
    errno = inject_errno();
    return -1;
}

ssize_t __real_copy_file_range(int in, off_t *from, int out, off_t *to, size_t bytes, unsigned flags);
ssize_t __wrap_copy_file_range(int in, off_t *from, int out, off_t *to, size_t bytes, unsigned flags);
ssize_t __wrap_copy_file_range(int in, off_t *from, int out, off_t *to, size_t bytes, unsigned flags)
{
    if (!inject_hit(IO_COPY))
        return __real_copy_file_range(in, from, out, to, bytes, flags);
    if (inject.kind == FAULT_SHORT)
        return __real_copy_file_range(in, from, out, to, MAX(bytes / 2, 1), flags);
    errno = inject_errno();
    return -1;
}
