/*
 * Making image files. A file that exists is emptied, once its locks say that nobody uses it.
 */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include "block/util/error.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_EXTENT_HINT (1 << 20)

typedef struct CreateJob {
    const char *path;
    const CreateOptions *options;
    int fd;
    bool is_new;
    struct stat st;
} CreateJob;

/* Hints to the file system, which may not know them: that is said where they were asked for. */
static void give_hints(const CreateJob *job)
{
    const CreateOptions *o = job->options;
    int64_t hint = o->has_extent_size_hint ? o->extent_size_hint : DEFAULT_EXTENT_HINT;
    struct fsxattr attr;
    int flags;

    if (o->nocow) {
        bool ok = ioctl(job->fd, FS_IOC_GETFLAGS, &flags) == 0;
        flags = ok ? flags | FS_NOCOW_FL : 0;
        if (!ok || ioctl(job->fd, FS_IOC_SETFLAGS, &flags) < 0)
            g_printerr("storage-daemon: warning: '%s' is made without nocow: %s\n", job->path, g_strerror(errno));
    }
    if (hint == 0)
        return;
    if (ioctl(job->fd, FS_IOC_FSGETXATTR, &attr) == 0) {
        attr.fsx_xflags |= FS_XFLAG_EXTSIZE;
        attr.fsx_extsize = (uint32_t)hint;
        if (ioctl(job->fd, FS_IOC_FSSETXATTR, &attr) == 0)
            return;
    }
    if (o->has_extent_size_hint)
        g_printerr("storage-daemon: warning: '%s' is made without the extent size hint: %s\n", job->path,
                   g_strerror(errno));
}

static int create_worker(void *opaque)
{
    CreateJob *job = opaque;
    int flags = O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

    job->is_new = true;
    job->fd = open(job->path, flags | O_CREAT | O_EXCL, 0644);
    if (job->fd < 0 && errno == EEXIST) {
        job->is_new = false;
        job->fd = open(job->path, flags);
    }
    if (job->fd < 0 || fstat(job->fd, &job->st) < 0)
        return -errno;
    if (job->is_new)
        give_hints(job);
    return 0;
}

/* A device is there already, as large as it is; whoever opens it next takes its locks. */
static bool create_on_device(const CreateJob *job, const CreateOptions *options, GError **error)
{
    uint64_t size;

    if (ioctl(job->fd, BLKGETSIZE64, &size) < 0)
        return error_set_errno(error, errno, "Could not get the size of device '%s'", job->path);
    if (options->size > size)
        return error_set(error,
                         "The device '%s' is too small: %" G_GUINT64_FORMAT " bytes, %" G_GUINT64_FORMAT " are needed",
                         job->path, size, options->size);
    return true;
}

static bool create_co_contents(FileState *s, const CreateJob *job, const CreateOptions *options, GError **error)
{
    /* Who is created anew must not be in use by anybody: neither read, since it is emptied, nor resized meanwhile. */
    unsigned perm = PERM_WRITE | PERM_RESIZE, shared = PERM_ALL & ~PERM_RESIZE;
    const char *what = "Failed to resize file";
    int ret;

    if (S_ISBLK(job->st.st_mode))
        return create_on_device(job, options, error);
    if (!S_ISREG(job->st.st_mode))
        return error_set(error, "Could not create '%s': it is not a regular file", job->path);
    if (options->size > INT64_MAX)
        return error_set(error, "Could not create '%s': %" G_GUINT64_FORMAT " bytes are too many", job->path,
                         options->size);
    if (!file_lock_prepare(s, job->path, perm, shared, error))
        return false;
    ret = job->st.st_size ? file_co_resize(s->fd, (uint64_t)job->st.st_size, 0, PREALLOC_MODE_OFF, &what) : 0;
    if (ret == 0 && options->size)
        ret = file_co_resize(s->fd, 0, options->size, options->preallocation, &what);
    return ret < 0 ? error_set_errno(error, -ret, "Could not create '%s': %s", job->path, what) : true;
}

bool file_co_create(Graph *graph, const char *filename, Port *file, const CreateOptions *options, GError **error)
{
    CreateJob job = {.path = g_str_has_prefix(filename, "file:") ? filename + strlen("file:") : filename,
                     .options = options,
                     .fd = -1};
    FileState s = {.pending_fd = -1, .locking = file_lock_supported()};
    int ret;
    bool ok;

    if (options->backing_file)
        return error_set(error, "Backing file not supported for file format 'file'");
    if (options->preallocation == PREALLOC_MODE_METADATA)
        return error_set(error, "Unsupported preallocation mode: metadata");
    if (options->has_extent_size_hint && (uint64_t)options->extent_size_hint > UINT32_MAX)
        return error_set(error, "Extent size hint is too large");
    ret = aio_co_worker(create_worker, &job);
    if (ret < 0) {
        if (job.fd >= 0)
            close(job.fd);
        return error_set_errno(error, -ret, "Could not create '%s'", job.path);
    }
    s.fd = job.fd;
    ok = create_co_contents(&s, &job, options, error);
    if (!ok && job.is_new)
        unlink(job.path);
    close(job.fd); /* and with it the locks */
    return ok;
}
