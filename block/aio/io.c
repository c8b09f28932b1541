/*
 * The calls of io.h: one SQE each, filled in here, submitted at the end of the turn or when gate.c lets it.
 */
#include "block/aio/io.h"
#include "block/aio/internal.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>

/*
 * Files that are memory: tmpfs and ramfs (memfd too).
 *
 * They know no non-blocking reads and writes, so io_uring hands each to a kernel thread: measured (Linux 6.18, 4 KiB at
 * random, 64 in a batch), 1.2 us with two processors at work, against 0.8 us on one for a plain pread or pwrite. Since
 * such a call is a copy in memory that waits for no device (swapping apart), it is made right here, on the loop's
 * thread, without a yield. That holds for larger ones, too: copying a file in pieces of 64 KiB to 1 MiB took 12 % to 20
 * % longer by way of the kernel's threads, since a buffer that is read and written at once is still in the processor's
 * cache. A budget for each turn keeps the loop alive while some coroutine copies gigabytes, and what would take a good
 * part of a millisecond by itself goes to the kernel's threads after all.
 *
 * It is different where the loop has more to do meanwhile: to copy between buffers and sockets for an NBD client that
 * has several requests under way. Those coroutines say so (coroutine_share_work()), and from SHARE_MIN on their reads
 * and writes go to the kernel's threads. Measured (NBD, 16 in flight, requests a second, ours and the client on two
 * processors): 10,000 to 18,700 writes of 256 KiB, 41,000 to 58,000 of 64 KiB; of 32 KiB 88,000 to 105,000, but there
 * the way there and back is a fifth of the work where there is one processor only.
 *
 * Everything else goes through io_uring. Where the page cache has it, a read completes within the submission (ext4:
 * 0.57 us in a batch, 0.62 us as a system call of its own); what would block, and buffered writes, which may wait for
 * allocation or write-back, are done by the kernel's threads.
 */
#define INLINE_MAX      (1024 * 1024)
#define COPY_INLINE_MAX (64 * 1024)
#define SHARE_MIN       (64 * 1024)
/* Of a worker's buffer for copies between memory files: it has to stay in the processor's cache. */
#define COPY_BUFFER (512 * 1024)
#define COPY_LAST   (32 * 1024) /* of it, written while the next thread wakes */
/*
 * Such copies at a time: as many as there are processors, at least two, so that one reads while the other writes, and
 * no more than this, which would keep short work from the worker threads. Measured on two processors (medians of 13, by
 * turns): a mirror between qcow2 images takes 0.27 s with two of them and 0.29 with four, who spin for the file's lock.
 */
#define COPIES_MAX 4
/* What one call takes from the budget at least. */
#define INLINE_COST 4096

/* A descriptor may be closed and its number used anew, so what is known about it expires. */
#define KIND_TTL     INT64_C(1000000000)
#define KIND_FDS_MAX 65536

static bool file_is_memory(int fd)
{
    struct statfs st;
    return fstatfs(fd, &st) == 0 && (st.f_type == TMPFS_MAGIC || st.f_type == RAMFS_MAGIC);
}

/* NULL: nothing is known. An answer that is out of date costs a detour or, for at most the time to live, a wait on the
 * loop's thread. */
static FileKind *file_kind(Loop *loop, int fd)
{
    if (G_UNLIKELY(fd < 0))
        return NULL;
    if (G_UNLIKELY(fd >= loop->n_kinds)) {
        if (fd >= KIND_FDS_MAX)
            return NULL;
        int n = MIN(KIND_FDS_MAX, MAX(2 * loop->n_kinds, fd + 64));
        loop->kinds = g_renew(FileKind, loop->kinds, n);
        memset(loop->kinds + loop->n_kinds, 0, (size_t)(n - loop->n_kinds) * sizeof(FileKind));
        loop->n_kinds = n;
    }
    FileKind *kind = &loop->kinds[fd];
    if (G_UNLIKELY(loop->now[LOOP_CLOCK_REAL] >= kind->expires)) {
        int flags = fcntl(fd, F_GETFL);
        kind->memory = file_is_memory(fd);
        kind->direct = !kind->memory && flags >= 0 && flags & O_DIRECT;
        kind->expires = loop->now[LOOP_CLOCK_REAL] + KIND_TTL;
    }
    return kind;
}

static bool fd_is_memory(Loop *loop, int fd)
{
    const FileKind *kind = file_kind(loop, fd);
    return kind && kind->memory;
}

bool io_inline_co_admit(Loop *loop, int fd, int64_t offset, size_t bytes)
{
    if (offset < 0 || bytes > INLINE_MAX || !fd_is_memory(loop, fd))
        return false;
    while (loop->inline_budget <= 0)
        aio_co_reschedule();
    loop->inline_budget -= MAX(bytes, INLINE_COST);
    return true;
}

static size_t iov_bytes(const struct iovec *iov, int niov)
{
    size_t bytes = 0;
    for (int i = 0; i < niov; i++)
        bytes += iov[i].iov_len;
    return bytes;
}

/* Is a read or write of so much to be made here and now? */
static bool here_co_admit(const Coroutine *self, int fd, int64_t offset, size_t bytes)
{
    return !(self->shares && bytes >= SHARE_MIN) && io_inline_co_admit(self->loop, fd, offset, bytes);
}

/* Yields until @sqe, which is filled in, has completed; its result. */
static int sqe_co_wait(Coroutine *self, struct io_uring_sqe *sqe)
{
    io_uring_sqe_set_data(sqe, self);
    self->cancelled = false;
    co_suspend(self, CO_IO);
    return self->result;
}

/* The same for a read or write of a file, which may have to wait for its place at the disk. */
typedef void PrepareRw(struct io_uring_sqe *sqe, int fd, const struct iovec *iov, int niov, int64_t offset,
                       int rw_flags);

static int rw_co_wait(Coroutine *self, PrepareRw *prepare, int fd, const struct iovec *iov, int niov, int64_t offset,
                      int rw_flags)
{
    FileKind *kind = file_kind(self->loop, fd);
    struct io_uring_sqe held = {0};
    if (!kind || !kind->direct) {
        struct io_uring_sqe *sqe = loop_sqe(self->loop);
        prepare(sqe, fd, iov, niov, offset, rw_flags);
        return sqe_co_wait(self, sqe);
    }
    self->gate_fd = fd;
    if (gate_enter(&kind->gate, self->loop)) {
        struct io_uring_sqe *sqe = loop_sqe(self->loop);
        prepare(sqe, fd, iov, niov, offset, rw_flags);
        return sqe_co_wait(self, sqe);
    }
    prepare(&held, fd, iov, niov, offset, rw_flags);
    io_uring_sqe_set_data(&held, self);
    gate_co_wait(&kind->gate, self, &held);
    return self->result;
}

static int poll_co_wait(Coroutine *self, int fd, short events)
{
    struct io_uring_sqe *sqe = loop_sqe(self->loop);
    io_uring_prep_poll_add(sqe, fd, (unsigned short)events);
    return sqe_co_wait(self, sqe);
}

/*
 * Looks at a result: true when the call is to be made once more. EINTR is what a cancelled system call of a kernel
 * thread returns; without aio_cancel() it is nobody's business. EAGAIN comes back for some files in non-blocking mode
 * (those in blocking mode are polled by io_uring itself): wait for @events, unless the caller asked not to (@nowait).
 */
static bool io_co_again(Coroutine *self, int *result, int fd, short events, bool nowait)
{
    if (G_LIKELY(*result >= 0))
        return false;
    if (*result == -EINTR) {
        if (self->cancelled)
            *result = -ECANCELED;
        return !self->cancelled;
    }
    if (*result == -EAGAIN && events && !nowait) {
        int revents = poll_co_wait(self, fd, events);
        if (revents >= 0)
            return true;
        *result = revents;
        return revents == -EINTR && !self->cancelled;
    }
    return false;
}

/* One buffer and no flags is the usual case, and spares the kernel a look at the list. */
static ssize_t pread_now(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags)
{
    const bool plain = niov == 1 && !rw_flags;
    ssize_t ret;
    do {
        ret = plain ? pread(fd, iov->iov_base, iov->iov_len, offset) : preadv2(fd, iov, niov, offset, rw_flags);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret;
}

static ssize_t pwrite_now(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags)
{
    const bool plain = niov == 1 && !rw_flags;
    ssize_t ret;
    do {
        ret = plain ? pwrite(fd, iov->iov_base, iov->iov_len, offset) : pwritev2(fd, iov, niov, offset, rw_flags);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : ret;
}

static void prepare_read(struct io_uring_sqe *sqe, int fd, const struct iovec *iov, int niov, int64_t offset,
                         int rw_flags)
{
    if (niov == 1) {
        io_uring_prep_read(sqe, fd, iov->iov_base, (unsigned)iov->iov_len, (uint64_t)offset);
        sqe->rw_flags = rw_flags;
    } else {
        io_uring_prep_readv2(sqe, fd, iov, (unsigned)niov, (uint64_t)offset, rw_flags);
    }
}

static void prepare_write(struct io_uring_sqe *sqe, int fd, const struct iovec *iov, int niov, int64_t offset,
                          int rw_flags)
{
    if (niov == 1) {
        io_uring_prep_write(sqe, fd, iov->iov_base, (unsigned)iov->iov_len, (uint64_t)offset);
        sqe->rw_flags = rw_flags;
    } else {
        io_uring_prep_writev2(sqe, fd, iov, (unsigned)niov, (uint64_t)offset, rw_flags);
    }
}

ssize_t aio_co_preadv(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags)
{
    Coroutine *self = coroutine_self();
    if (here_co_admit(self, fd, offset, iov_bytes(iov, niov)))
        return pread_now(fd, iov, niov, offset, rw_flags);
    int ret;
    do {
        ret = rw_co_wait(self, prepare_read, fd, iov, niov, offset, rw_flags);
    } while (io_co_again(self, &ret, fd, POLLIN, rw_flags & RWF_NOWAIT));
    return ret;
}

ssize_t aio_co_pwritev(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags)
{
    Coroutine *self = coroutine_self();
    if (here_co_admit(self, fd, offset, iov_bytes(iov, niov)))
        return pwrite_now(fd, iov, niov, offset, rw_flags);
    int ret;
    do {
        ret = rw_co_wait(self, prepare_write, fd, iov, niov, offset, rw_flags);
    } while (io_co_again(self, &ret, fd, POLLOUT, rw_flags & RWF_NOWAIT));
    return ret;
}

int aio_co_fsync(int fd, bool datasync)
{
    Coroutine *self = coroutine_self();
    /* Asked anew each time: what is remembered may be about an earlier file of this number, and a sync that is left out
     * by mistake loses data. */
    if (fd >= 0 && file_is_memory(fd))
        return 0; /* what fsync(2) does there, too */
    int ret;
    do {
        struct io_uring_sqe *sqe = loop_sqe(self->loop);
        io_uring_prep_fsync(sqe, fd, datasync ? IORING_FSYNC_DATASYNC : 0);
        ret = sqe_co_wait(self, sqe);
    } while (io_co_again(self, &ret, fd, 0, false));
    return ret;
}

int aio_co_fallocate(int fd, int mode, int64_t offset, int64_t length)
{
    Coroutine *self = coroutine_self();
    int ret;
    if (length > 0 && length <= INLINE_MAX && io_inline_co_admit(self->loop, fd, offset, (size_t)length)) {
        do {
            ret = fallocate(fd, mode, offset, length) < 0 ? -errno : 0;
        } while (ret == -EINTR);
        return ret;
    }
    do {
        struct io_uring_sqe *sqe = loop_sqe(self->loop);
        io_uring_prep_fallocate(sqe, fd, mode, offset, length);
        ret = sqe_co_wait(self, sqe);
    } while (io_co_again(self, &ret, fd, 0, false));
    return ret;
}

typedef struct CopyRange {
    int in, out;
    off_t from, to;
    size_t bytes;
    bool thrifty;
} CopyRange;

static int copy_range(void *opaque)
{
    CopyRange *c = opaque;
    while (c->bytes) {
        ssize_t n = copy_file_range(c->in, &c->from, c->out, &c->to, c->bytes, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENODATA;
        c->bytes -= (size_t)n;
    }
    return 0;
}

/*
 * Waiting for a file's lock, the kernel spins. So thrifty writers wait for their turn asleep; and each passes it on a
 * little early, so that the next is awake when the lock is free. A backup of 1 GiB takes 0.40 s of processor time
 * instead of 0.45, and as long, within 4 % (medians of 7; without the early end 5 %). A mirror, which has to catch up
 * with its guest, was up to 12 % slower, so it does without.
 */
static ssize_t write_in_turn(int fd, char *buf, size_t bytes, off_t offset)
{
    /* By the file's number: files that share a turn only lose time. */
    static pthread_mutex_t turns[] = {[0 ... 15] = PTHREAD_MUTEX_INITIALIZER};
    pthread_mutex_t *turn = &turns[(unsigned)fd % G_N_ELEMENTS(turns)];
    struct iovec part = {.iov_base = buf, .iov_len = bytes > 2 * COPY_LAST ? bytes - COPY_LAST : bytes};

    pthread_mutex_lock(turn);
    ssize_t n = pwrite_now(fd, &part, 1, offset, 0);
    pthread_mutex_unlock(turn);
    if (n < 0 || (size_t)n < part.iov_len || (size_t)n == bytes)
        return n;
    part = (struct iovec){.iov_base = buf + n, .iov_len = bytes - (size_t)n};
    ssize_t last = pwrite_now(fd, &part, 1, offset + n, 0);
    return last < 0 ? last : n + last;
}

/*
 * The same by way of a buffer. tmpfs lets one writer at a time into a file, and copy_file_range(2) keeps others out
 * while it fetches the source from memory; so two threads copy no faster than one. With a buffer one reads while the
 * other writes: measured on two processors, 1 GiB of a new file by two threads takes 0.24 s (0.48 s of processor time)
 * against 0.31 s (0.62 s), where writing alone takes 0.24 s. Buffers of 128, 256 and 1024 KiB: 2 % to 5 % slower. The
 * buffer is the thread's own, in the cache of its processor: 0.275 s, where 0.318 with buffers from the loop's pool.
 */
static int copy_through(void *opaque)
{
    CopyRange *c = opaque;
    char buf[COPY_BUFFER];
    while (c->bytes) {
        struct iovec part = {.iov_base = buf, .iov_len = MIN(c->bytes, sizeof(buf))};
        ssize_t n = pread_now(c->in, &part, 1, c->from, 0);
        if (n > 0) { /* what is left over is read again */
            part.iov_len = (size_t)n;
            n = c->thrifty ? write_in_turn(c->out, buf, (size_t)n, c->to) : pwrite_now(c->out, &part, 1, c->to, 0);
        }
        if (n <= 0)
            return n < 0 ? (int)n : -ENODATA;
        c->from += n;
        c->to += n;
        c->bytes -= (size_t)n;
    }
    return 0;
}

int aio_co_copy_range(int in, int64_t from, int out, int64_t to, size_t bytes, bool thrifty)
{
    CopyRange c = {.in = in, .from = from, .out = out, .to = to, .bytes = bytes, .thrifty = thrifty};
    Loop *loop = coroutine_self()->loop;
    const bool memory = fd_is_memory(loop, in) && fd_is_memory(loop, out);
    /* A short copy in memory takes less than to wake a worker and to be woken by it. */
    if (memory && bytes <= COPY_INLINE_MAX && io_inline_co_admit(loop, out, to, bytes))
        return copy_range(&c);
    if (!memory)
        return aio_co_worker(copy_range, &c);
    while (loop->copies >= CLAMP(loop->processors, 2, COPIES_MAX))
        coqueue_co_wait(&loop->copy_done, NULL);
    loop->copies++;
    int ret = aio_co_worker(copy_through, &c);
    loop->copies--;
    coqueue_wake_one(&loop->copy_done);
    return ret;
}

/*
 * Sockets go through io_uring without a first try of their own: it makes that try itself during the submission that the
 * turn pays for anyway. Measured on a unix socket with 64 requests of 4 KiB in flight: 363,000 a second, against
 * 333,000 to 345,000 where recv(2), sendmsg(2) or both were tried first.
 */
ssize_t aio_co_recv(int fd, void *buf, size_t size, int flags)
{
    Coroutine *self = coroutine_self();
    int ret;
    do {
        struct io_uring_sqe *sqe = loop_sqe(self->loop);
        io_uring_prep_recv(sqe, fd, buf, size, flags);
        ret = sqe_co_wait(self, sqe);
    } while (io_co_again(self, &ret, fd, POLLIN, flags & MSG_DONTWAIT));
    return ret;
}

ssize_t aio_co_recvmsg(int fd, struct msghdr *msg, int flags)
{
    Coroutine *self = coroutine_self();
    int ret;
    do {
        struct io_uring_sqe *sqe = loop_sqe(self->loop);
        io_uring_prep_recvmsg(sqe, fd, msg, (unsigned)flags);
        ret = sqe_co_wait(self, sqe);
    } while (io_co_again(self, &ret, fd, POLLIN, flags & MSG_DONTWAIT));
    return ret;
}

ssize_t aio_co_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    Coroutine *self = coroutine_self();
    int ret;
    do {
        struct io_uring_sqe *sqe = loop_sqe(self->loop);
        io_uring_prep_sendmsg(sqe, fd, msg, (unsigned)flags | MSG_NOSIGNAL);
        ret = sqe_co_wait(self, sqe);
    } while (io_co_again(self, &ret, fd, POLLOUT, flags & MSG_DONTWAIT));
    return ret;
}

int aio_co_accept(int fd)
{
    Coroutine *self = coroutine_self();
    int ret;
    do {
        struct io_uring_sqe *sqe = loop_sqe(self->loop);
        io_uring_prep_accept(sqe, fd, NULL, NULL, SOCK_CLOEXEC);
        ret = sqe_co_wait(self, sqe);
    } while (io_co_again(self, &ret, fd, POLLIN, false));
    return ret;
}

int aio_co_connect(int fd, const struct sockaddr *addr, socklen_t len)
{
    Coroutine *self = coroutine_self();
    struct io_uring_sqe *sqe = loop_sqe(self->loop);
    io_uring_prep_connect(sqe, fd, addr, len);
    int ret = sqe_co_wait(self, sqe);
    return ret == -EINTR && self->cancelled ? -ECANCELED : ret;
}

int aio_co_poll(int fd, short events)
{
    Coroutine *self = coroutine_self();
    int ret;
    do {
        ret = poll_co_wait(self, fd, events);
    } while (io_co_again(self, &ret, fd, 0, false));
    return ret;
}

void aio_cancel(Coroutine *co)
{
    if (co->wait == CO_IO) {
        /* Queued behind what it cancels, so it cannot miss; and before anything that @co may ask for next. */
        struct io_uring_sqe *sqe = loop_sqe(co->loop);
        io_uring_prep_cancel(sqe, co, 0);
        io_uring_sqe_set_data64(sqe, UD_IGNORE);
        co->cancelled = true;
    } else if (co->wait == CO_GATE) {
        gate_cancel(&co->loop->kinds[co->gate_fd].gate, co);
    } else if (co->wait == CO_SLEEP && co->timer) {
        timer_cancel(co->timer);
        co->timer = NULL;
        co->result = -ECANCELED;
        co_make_ready(co);
    }
}
