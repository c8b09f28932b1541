/*
 * System calls from coroutines: each queues one SQE (or a worker-thread item) and yields until its completion.
 *
 * Each returns the result, >= 0, or -errno. Short reads and writes are passed on as they are; callers loop. Memory
 * named by the arguments must stay valid until the call returns. A call that aio_cancel() hits returns -ECANCELED.
 */
#pragma once
#include "block/aio/coroutine.h"
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

/* @offset and lengths in bytes; @offset -1: the file position (pipes, terminals). @rw_flags: RWF_* of preadv2(2). */
ssize_t aio_co_preadv(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags);
ssize_t aio_co_pwritev(int fd, const struct iovec *iov, int niov, int64_t offset, int rw_flags);
int aio_co_fsync(int fd, bool datasync);
int aio_co_fallocate(int fd, int mode, int64_t offset, int64_t length);
/* Copies @bytes from file to file, by copy_file_range(2) or a buffer, on a worker thread: 0, or -errno after some
 * of it may have been. @thrifty: waits asleep where that takes a little longer. -ENODATA: @in ends before. Not
 * cancellable. */
int aio_co_copy_range(int in, int64_t from, int out, int64_t to, size_t bytes, bool thrifty);

/* Sockets. @fd may be blocking or not. */
ssize_t aio_co_recv(int fd, void *buf, size_t size, int flags);
ssize_t aio_co_recvmsg(int fd, struct msghdr *msg, int flags);
ssize_t aio_co_sendmsg(int fd, const struct msghdr *msg, int flags);
int aio_co_accept(int fd); /* a new fd, close-on-exec */
int aio_co_connect(int fd, const struct sockaddr *addr, socklen_t len);
int aio_co_poll(int fd, short events); /* revents of poll(2) */

/*
 * Cancels what @co waits for in one of the calls above or in aio_co_sleep_until(); that call then returns -ECANCELED,
 * or its result where it had already completed. Nothing happens when it waits elsewhere. Loop's thread.
 */
void aio_cancel(Coroutine *co);

/*
 * Runs @fn(@opaque) on a worker thread and returns what it returned. For what has no SQE (open of a slow path,
 * truncate, ioctl, getaddrinfo) and for long computation (compression). @fn touches nothing of the block graph.
 * Workers are started on demand, at most 8, and leave after some idle seconds. Not cancellable.
 */
typedef int WorkerFn(void *opaque);
int aio_co_worker(WorkerFn *fn, void *opaque);

/*
 * Pipes that carry data from a file in memory to a socket, as references to the file's pages: nothing is copied, and
 * what is written to the file meanwhile is what the receiver sees. See docs/performance.md for who may live with that.
 */
typedef struct AioPipe AioPipe;
#define AIO_PIPE_MAX ((size_t)512 * 1024)     /* bytes that are sure to find room, heads apart */
AioPipe *aio_pipe_get(Loop *loop);            /* empty; NULL: there is none to be had now */
void aio_pipe_put(Loop *loop, AioPipe *pipe); /* and what is still in it; takes NULL */
size_t aio_pipe_bytes(const AioPipe *pipe);
/* Appends a copy of @buf. 0 or -errno; after an error the pipe is of no more use. */
int aio_pipe_write(AioPipe *pipe, const void *buf, size_t size);
/* Appends @bytes of @fd at @offset. 0 or -errno, after which the pipe is of no more use. -ENOTSUP: not a file in
 * memory, or too much; -ENODATA: the file ends before. */
int aio_co_splice(AioPipe *pipe, int fd, int64_t offset, size_t bytes);
/* Sends what the socket takes: its bytes, or -errno. @fd is non-blocking, and the process ignores SIGPIPE. */
ssize_t aio_pipe_send(AioPipe *pipe, int fd);

/*
 * Bounce buffers (LAW 6): page-aligned, from per-loop pools of power-of-two classes, 4 KiB to 4 MiB, that keep a
 * bounded amount for reuse. NULL when memory is short or @size is above 2 GiB; sizes in bytes, the same for get and
 * put.
 */
void *aio_buf_get(Loop *loop, size_t size) G_GNUC_WARN_UNUSED_RESULT;
void aio_buf_put(Loop *loop, void *buf, size_t size); /* takes NULL */
