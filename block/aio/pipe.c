/*
 * Pipes that carry pages of memory files to sockets: splice(2), at both ends without a copy.
 *
 * A pipe is in use from the first byte that goes in until the last one has left. One that is given back with something
 * in it is closed; an empty one is kept. They are few, and nobody waits for one: whoever gets none copies.
 */
#include "block/aio/internal.h"
#include "block/aio/io.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* In use and kept, of a loop: two file descriptors and some kilobytes of the kernel's memory each. */
#define PIPES_MAX 16
/* Room for AIO_PIPE_MAX in pages of 4 KiB, for heads between them and for what lies across pages. */
#define PIPE_SIZE (2 * AIO_PIPE_MAX)

/* Loop's thread. */
struct AioPipe {
    struct AioPipe *next; /* kept ones */
    int in, out;
    size_t bytes; /* in it */
};

static void pipe_free(Loop *loop, AioPipe *pipe)
{
    close(pipe->in);
    close(pipe->out);
    g_free(pipe);
    loop->n_pipes--;
}

AioPipe *aio_pipe_get(Loop *loop)
{
    AioPipe *pipe = loop->pipes;
    int fd[2];

    if (G_LIKELY(pipe)) {
        loop->pipes = pipe->next;
        return pipe;
    }
    if (loop->n_pipes >= PIPES_MAX || pipe2(fd, O_CLOEXEC | O_NONBLOCK) < 0)
        return NULL;
    pipe = g_new(AioPipe, 1);
    *pipe = (AioPipe){.in = fd[1], .out = fd[0]};
    loop->n_pipes++;
    /* A user who is nobody special may have so much in pipes and no more. */
    if (fcntl(pipe->in, F_SETPIPE_SZ, PIPE_SIZE) < 0) {
        pipe_free(loop, pipe);
        return NULL;
    }
    return pipe;
}

void aio_pipe_put(Loop *loop, AioPipe *pipe)
{
    if (!pipe)
        return;
    if (pipe->bytes) {
        pipe_free(loop, pipe);
        return;
    }
    pipe->next = loop->pipes;
    loop->pipes = pipe;
}

size_t aio_pipe_bytes(const AioPipe *pipe)
{
    return pipe->bytes;
}

int aio_pipe_write(AioPipe *pipe, const void *buf, size_t size)
{
    ssize_t n = write(pipe->in, buf, size);

    if (n < 0)
        return -errno;
    pipe->bytes += (size_t)n;
    return (size_t)n == size ? 0 : -ENOSPC;
}

int aio_co_splice(AioPipe *pipe, int fd, int64_t offset, size_t bytes)
{
    loff_t from = offset;

    if (bytes > AIO_PIPE_MAX || !io_inline_co_admit(coroutine_self()->loop, fd, offset, bytes))
        return -ENOTSUP;
    while (bytes) {
        ssize_t n = splice(fd, &from, pipe->in, NULL, bytes, SPLICE_F_NONBLOCK);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -ENODATA;
        pipe->bytes += (size_t)n;
        bytes -= (size_t)n;
    }
    return 0;
}

ssize_t aio_pipe_send(AioPipe *pipe, int fd)
{
    ssize_t n = splice(pipe->out, NULL, fd, NULL, pipe->bytes, SPLICE_F_NONBLOCK);

    if (n < 0)
        return -errno;
    pipe->bytes -= (size_t)n;
    return n;
}

void pipes_free(Loop *loop)
{
    while (loop->pipes) {
        AioPipe *pipe = loop->pipes;

        loop->pipes = pipe->next;
        pipe_free(loop, pipe);
    }
}
