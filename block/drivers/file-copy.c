/*
 * Copies from file to file by the kernel: copy_file_range(2), long ones on worker threads.
 *
 * On file systems that share extents (xfs, btrfs) this costs next to nothing; elsewhere the kernel copies once, from
 * page cache to page cache, where a read and a write copy twice. Several requests keep several processors busy, and the
 * loop is free meanwhile.
 */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include <errno.h>
#include <unistd.h>

int file_co_copy_from(Node *node, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset, ReqFlags flags)
{
    FileState *s = node->state, *from = source->state;
    int ret;

    /* Devices and O_DIRECT: their users asked for another way than through the page cache. */
    if (source->drv->co_copy_from != file_co_copy_from || s->no_copy || s->device || from->device || s->direct ||
        from->direct || node == source)
        return -ENOTSUP;
    ret =
        aio_co_copy_range(from->fd, (int64_t)source_offset, s->fd, (int64_t)offset, (size_t)bytes, flags & REQ_THRIFTY);
    if (ret == -ENODATA)
        return -ENOTSUP; /* what is left reads as zeroes, which is not ours to write */
    if (ret == -EXDEV || ret == -EINVAL || ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -EPERM || ret == -EBADF) {
        s->no_copy = true; /* not between these two, most likely not for others either */
        ret = -ENOTSUP;
    }
    return ret;
}
