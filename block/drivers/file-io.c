/*
 * Reads, writes and flushes of files: one system call through the loop each, and what to do when that is not enough.
 */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include "block/graph/io.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include <errno.h>
#include <limits.h>

/* Elements of an IoVec that one system call of the slow path takes. */
enum { SLICE_MAX = 32 };
/*
 * Reads all of it. Where the file ends the rest is zeroes: the graph's idea of the size may be rounded up to the
 * alignment, and somebody else may have cut the file. A short read that leaves O_DIRECT unaligned is the end, too.
 */
static int read_co_all(FileState *s, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    uint64_t done = 0;

    while (done < bytes) {
        struct iovec iov[SLICE_MAX];
        size_t part;
        int n = iov_slice_some(iov, SLICE_MAX, vec->iov, vec->n, vec_offset + done, bytes - done, &part);
        ssize_t ret = aio_co_preadv(s->fd, iov, n, (int64_t)(offset + done), 0);
        if (ret < 0)
            return (int)ret;
        done += (uint64_t)ret;
        if (ret == 0 || ((uint64_t)ret < part && !is_aligned(done, s->align))) {
            iov_memset(vec->iov, vec->n, vec_offset + done, 0, bytes - done);
            break;
        }
    }
    return 0;
}

static int write_co_all(FileState *s, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, int rwf)
{
    uint64_t done = 0;

    while (done < bytes) {
        struct iovec iov[SLICE_MAX];
        size_t part;
        int n = iov_slice_some(iov, SLICE_MAX, vec->iov, vec->n, vec_offset + done, bytes - done, &part);
        ssize_t ret = aio_co_pwritev(s->fd, iov, n, (int64_t)(offset + done), rwf);
        if (ret < 0)
            return (int)ret;
        if (ret == 0)
            return -ENOSPC; /* a device that ends here */
        done += (uint64_t)ret;
    }
    return 0;
}

int file_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    FileState *s = node->state;

    if (G_LIKELY(vec_offset == 0 && vec->size == bytes && vec->n <= IOV_MAX)) {
        ssize_t ret = aio_co_preadv(s->fd, vec->iov, vec->n, (int64_t)offset, 0);
        if (G_LIKELY((uint64_t)ret == bytes))
            return 0;
        if (ret < 0)
            return (int)ret;
        /* A short read is seldom: the loop below finds out why. */
    }
    return read_co_all(s, offset, bytes, vec, vec_offset);
}

int file_co_read_pages(Node *node, uint64_t offset, uint64_t bytes, AioPipe *pipe)
{
    FileState *s = node->state;

    return node->pages ? aio_co_splice(pipe, s->fd, (int64_t)offset, bytes) : -ENOTSUP;
}

static int write_co_vec(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, int rwf)
{
    FileState *s = node->state;

    if (G_LIKELY(vec_offset == 0 && vec->size == bytes && vec->n <= IOV_MAX)) {
        ssize_t ret = aio_co_pwritev(s->fd, vec->iov, vec->n, (int64_t)offset, rwf);
        if (G_LIKELY((uint64_t)ret == bytes))
            return 0;
        if (ret < 0)
            return (int)ret;
        return write_co_all(s, offset + (uint64_t)ret, bytes - (uint64_t)ret, vec, (size_t)ret, rwf);
    }
    return write_co_all(s, offset, bytes, vec, vec_offset, rwf);
}

/*
 * FUA is RWF_DSYNC: the kernel makes this range durable and no other. When that fails, either the write did (no harm
 * is done to what was written before) or the sync, which may have used up the only report that earlier data was lost:
 * then the node has failed for good (LAW 9). The same write without RWF_DSYNC tells which it was.
 */
static int write_co_durably(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    FileState *s = node->state;
    int ret;

    if (!s->no_dsync) {
        ret = write_co_vec(node, offset, bytes, vec, vec_offset, RWF_DSYNC);
        if (ret == 0)
            return 0;
        if (ret != -EOPNOTSUPP) {
            if (ret != -ENOMEM && write_co_vec(node, offset, bytes, vec, vec_offset, 0) == 0)
                node->failed = true;
            return ret;
        }
        s->no_dsync = true;
    }
    ret = write_co_vec(node, offset, bytes, vec, vec_offset, 0);
    return ret < 0 ? ret : file_co_flush_to_disk(node);
}

int file_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    if (G_UNLIKELY(offset + bytes > node->size))
        file_co_make_room(node->state, offset + bytes);
    if (G_UNLIKELY(flags & REQ_FUA) && !node->flags.cache_no_flush)
        return write_co_durably(node, offset, bytes, vec, vec_offset);
    return write_co_vec(node, offset, bytes, vec, vec_offset, 0);
}

int file_co_flush_to_disk(Node *node)
{
    FileState *s = node->state;
    int ret = aio_co_fsync(s->fd, true);

    /* The kernel reports lost data once and then forgets it: asking again would only look like success. */
    if (ret < 0)
        node->failed = true;
    return ret;
}
