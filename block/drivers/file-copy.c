/*
 * Copies from file to file by the kernel: copy_file_range(2), on worker threads.
 *
 * On file systems that share extents (xfs, btrfs) this costs next to nothing; elsewhere the kernel copies once, from
 * page cache to page cache, where a read and a write copy twice. Several requests keep several processors busy, and the
 * loop is free meanwhile.
 */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include <errno.h>
#include <unistd.h>

typedef struct CopyJob {
    int in, out;
    off_t from, to;
    size_t bytes;
} CopyJob;

static int copy_worker(void *opaque)
{
    CopyJob *job = opaque;

    while (job->bytes) {
        ssize_t n = copy_file_range(job->in, &job->from, job->out, &job->to, job->bytes, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ENOTSUP; /* the source ends here: what is left reads as zeroes, which is not ours to write */
        job->bytes -= (size_t)n;
    }
    return 0;
}

int file_co_copy_from(Node *node, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset)
{
    FileState *s = node->state, *from = source->state;
    CopyJob job;
    int ret;

    /* Devices and O_DIRECT: their users asked for another way than through the page cache. */
    if (source->drv->co_copy_from != file_co_copy_from || s->no_copy || s->device || from->device || s->direct ||
        from->direct || node == source)
        return -ENOTSUP;
    job = (CopyJob){
        .in = from->fd, .out = s->fd, .from = (off_t)source_offset, .to = (off_t)offset, .bytes = (size_t)bytes};
    ret = aio_co_worker(copy_worker, &job);
    if (ret == -EXDEV || ret == -EINVAL || ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -EPERM || ret == -EBADF) {
        s->no_copy = true; /* not between these two, most likely not for others either */
        ret = -ENOTSUP;
    }
    return ret;
}
