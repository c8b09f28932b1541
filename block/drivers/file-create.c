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

typedef struct CreateJob {
    const char *path;
    int fd;
    bool is_new;
    struct stat st;
} CreateJob;

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
        ret = file_co_resize(s->fd, 0, options->size, PREALLOC_MODE_OFF, &what);
    return ret < 0 ? error_set_errno(error, -ret, "Could not create '%s': %s", job->path, what) : true;
}

bool file_co_create(Graph *graph, const char *filename, Port *file, const CreateOptions *options, GError **error)
{
    CreateJob job = {.path = g_str_has_prefix(filename, "file:") ? filename + strlen("file:") : filename, .fd = -1};
    FileState s = {.pending_fd = -1, .locking = file_lock_supported()};
    int ret;
    bool ok;

    if (options->backing_file)
        return error_set(error, "Backing file not supported for file format 'file'");
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
