/*
 * Space: zeroes without writing them, discard, size and preallocation.
 *
 * Each way is tried until the file system says that it does not know it; then it is not tried again. -EINVAL is no such
 * answer (some file systems give it for odd offsets): it makes this one request fall back and no more.
 */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include "block/util/bytes.h"
#include "block/util/error.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bytes written at a time by preallocation "full". */
#define FILL_MAX (UINT64_C(2) << 20)

/* fallocate(2); -ENOTSUP where it cannot, and *@cannot becomes true where it never will. */
static int alloc_co_range(FileState *s, int mode, uint64_t offset, uint64_t bytes, bool *cannot)
{
    int ret;

    if (*cannot)
        return -ENOTSUP;
    ret = aio_co_fallocate(s->fd, mode, (int64_t)offset, (int64_t)bytes);
    if (ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENODEV || ret == -ENOTTY) {
        *cannot = true;
        return -ENOTSUP;
    }
    return ret == -EINVAL ? -ENOTSUP : ret;
}

static int punch_co_range(FileState *s, uint64_t offset, uint64_t bytes)
{
    return alloc_co_range(s, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes, &s->no_punch);
}

/* The size of a regular file, in bytes. */
static uint64_t present_size(const FileState *s)
{
    struct stat st;
    return fstat(s->fd, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* Makes sure that the file reaches to @end, and only ever grows it: ftruncate() could cut off what somebody else has
 * appended meanwhile. The last byte before @end is one of ours, and to be zero. */
static int grow_co_to(FileState *s, uint64_t end)
{
    int ret;

    if (present_size(s) >= end)
        return 0;
    ret = alloc_co_range(s, 0, end - 1, 1, &s->no_fallocate);
    if (ret == -ENOTSUP && !s->direct) {
        struct iovec iov = {.iov_base = (char[]){0}, .iov_len = 1};
        ssize_t n = aio_co_pwritev(s->fd, &iov, 1, (int64_t)end - 1, 0);
        ret = n < 0 ? (int)n : n == 1 ? 0 : -ENOSPC;
    }
    return ret;
}

/*
 * With O_DIRECT, file systems let writes that lengthen a file wait for each other, those inside it not. So one request
 * makes the file longer for all that wait, before any of them writes.
 */
void file_co_make_room(FileState *s, uint64_t end)
{
    if (!s->direct || s->device || s->no_fallocate || present_size(s) >= end)
        return;
    s->grow_to = u64_max(s->grow_to, end);
    comutex_co_lock(&s->grow_lock);
    end = s->grow_to;
    s->grow_to = 0;
    if (end)
        grow_co_to(s, end);
    comutex_unlock(&s->grow_lock);
}

static int zero_co_device(FileState *s, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    if (!is_aligned(offset | bytes, s->block_size))
        return -ENOTSUP;
    if (flags & REQ_MAY_UNMAP) {
        int ret = punch_co_range(s, offset, bytes);
        if (ret != -ENOTSUP)
            return ret;
    }
    /* The kernel writes zeroes itself where the device has no command for it: not fast. */
    if (flags & REQ_NO_FALLBACK)
        return -ENOTSUP;
    return alloc_co_range(s, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, bytes, &s->no_zero_range);
}

static int zero_co_file(FileState *s, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    int ret;

    if (flags & REQ_MAY_UNMAP) {
        ret = punch_co_range(s, offset, bytes);
        if (ret == 0)
            return grow_co_to(s, offset + bytes);
        if (ret != -ENOTSUP)
            return ret;
    }
    ret = alloc_co_range(s, FALLOC_FL_ZERO_RANGE, offset, bytes, &s->no_zero_range);
    if (ret != -ENOTSUP)
        return ret;
    /* tmpfs knows no ZERO_RANGE, but past the end and in a hole, allocating makes zeroes as well. It clears memory,
     * which is no faster than writing: not what REQ_NO_FALLBACK asks for. */
    if (flags & REQ_NO_FALLBACK)
        return -ENOTSUP;
    if (offset < present_size(s)) {
        ret = punch_co_range(s, offset, bytes);
        if (ret < 0)
            return ret;
    }
    ret = alloc_co_range(s, 0, offset, bytes, &s->no_fallocate);
    return ret == -ENOTSUP ? grow_co_to(s, offset + bytes) : ret;
}

int file_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    FileState *s = node->state;
    int ret;

    file_map_forget(s);
    ret = s->device ? zero_co_device(s, offset, bytes, flags) : zero_co_file(s, offset, bytes, flags);
    file_map_forget(s);
    return ret;
}

/* ---- discard ---------------------------------------------------------------------------------------------------- */

typedef struct DiscardJob {
    int fd;
    uint64_t range[2]; /* offset, bytes */
} DiscardJob;

static int discard_device(void *opaque)
{
    DiscardJob *job = opaque;
    return ioctl(job->fd, BLKDISCARD, job->range) < 0 ? -errno : 0;
}

int file_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    FileState *s = node->state;
    int ret;

    if (s->device) {
        /* Whole blocks inside the range: a discard may always do less. */
        uint64_t start = align_up(offset, s->block_size), end = align_down(offset + bytes, s->block_size);
        DiscardJob job = {.fd = s->fd, .range = {start, end - start}};
        if (s->no_discard || start >= end)
            return -ENOTSUP;
        ret = aio_co_worker(discard_device, &job);
        s->no_discard = ret == -EOPNOTSUPP;
        return ret;
    }
    file_map_forget(s);
    ret = punch_co_range(s, offset, bytes);
    file_map_forget(s);
    return ret;
}

/* ---- size ------------------------------------------------------------------------------------------------------- */

typedef struct ResizeJob {
    int fd;
    uint64_t size;
} ResizeJob;

static int resize(void *opaque)
{
    ResizeJob *job = opaque;
    return ftruncate(job->fd, (off_t)job->size) < 0 ? -errno : 0;
}

static int resize_co_fd(int fd, uint64_t size)
{
    ResizeJob job = {.fd = fd, .size = size};
    return aio_co_worker(resize, &job);
}

static int fill_co_range(int fd, uint64_t offset, uint64_t end)
{
    Loop *loop = coroutine_loop(coroutine_self());
    size_t size = u64_min(end - offset, FILL_MAX);
    void *buf = aio_buf_get(loop, size);
    ssize_t ret = 0;

    if (!buf)
        return -ENOMEM;
    memset(buf, 0, size);
    while (offset < end && ret >= 0) {
        struct iovec iov = {.iov_base = buf, .iov_len = u64_min(end - offset, size)};
        ret = aio_co_pwritev(fd, &iov, 1, (int64_t)offset, 0);
        if (ret == 0)
            ret = -ENOSPC;
        else if (ret > 0)
            offset += (uint64_t)ret;
    }
    aio_buf_put(loop, buf, size);
    return ret < 0 ? (int)ret : aio_co_fsync(fd, true);
}

int file_co_resize(int fd, uint64_t old, uint64_t size, PreallocMode prealloc, const char **ret_what)
{
    int ret;

    *ret_what = "Failed to resize file";
    if (size <= old || prealloc == PREALLOC_MODE_OFF)
        return resize_co_fd(fd, size);
    if (prealloc == PREALLOC_MODE_FALLOC) {
        *ret_what = "Could not preallocate data for the new file";
        ret = aio_co_fallocate(fd, 0, (int64_t)old, (int64_t)(size - old));
        if (ret != -EOPNOTSUPP)
            goto out;
    }
    *ret_what = "Could not write zeros for preallocation";
    ret = fill_co_range(fd, old, size);
out:
    if (ret < 0)
        resize_co_fd(fd, old); /* as it was, as far as possible; the first error is the one to report */
    return ret;
}

static bool truncate_co_device(Node *node, uint64_t size, bool exact, PreallocMode prealloc, GError **error)
{
    if (prealloc != PREALLOC_MODE_OFF)
        return error_set(error, "Preallocation mode '%s' unsupported for block device '%s'",
                         qapi_PreallocMode_str(prealloc), node->exact_filename);
    if (exact && size != node->size)
        return error_set(error, "Cannot resize device files");
    if (size > node->size)
        return error_set(error, "Cannot grow device files");
    return true;
}

bool file_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error)
{
    FileState *s = node->state;
    const char *what;
    uint64_t old;
    int ret;

    if (s->device)
        return truncate_co_device(node, size, exact, prealloc, error);
    if (prealloc == PREALLOC_MODE_METADATA)
        return error_set(error, "Unsupported preallocation mode '%s'", qapi_PreallocMode_str(prealloc));
    old = present_size(s);
    if (size < old && prealloc != PREALLOC_MODE_OFF)
        return error_set(error, "Preallocation can't be used for shrinking files");
    if (size > INT64_MAX)
        return error_set(error, "Failed to resize file: %" G_GUINT64_FORMAT " bytes are too many", size);
    file_map_forget(s);
    ret = file_co_resize(s->fd, old, size, prealloc, &what);
    file_map_forget(s);
    return ret < 0 ? error_set_errno(error, -ret, "%s", what) : true;
}
