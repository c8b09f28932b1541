/*
 * Opening files. All that may block (a path on a dead NFS server, a trial read) happens on a worker thread.
 */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include "block/util/error.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define BTRFS_MAGIC BTRFS_SUPER_MAGIC
#define XFS_MAGIC   0x58465342

/* What the worker is asked, and what it finds out. */
typedef struct OpenJob {
    const char *filename;
    bool writable, auto_read_only, direct;

    int fd; /* -1 on failure */
    struct stat st;
    bool opened_writable, device_refused, align_ok, slow_seek, memory;
    uint32_t align, mem_align, block_size;
} OpenJob;

/* A FIFO or a tape drive must not make open() wait: O_NONBLOCK, taken back afterwards. */
static int open_path(const char *path, int flags)
{
    int fd;

    do {
        fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    } while (fd < 0 && errno == EINTR);
    if (fd < 0)
        return -errno;
    flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) < 0) {
        int err = errno;
        close(fd);
        return -err;
    }
    return fd;
}

static void look_at_file(OpenJob *job)
{
    struct statfs fs;
    int sector;

    job->align = job->mem_align = 1;
    job->align_ok = !job->direct || file_probe_alignment(job->fd, &job->align, &job->mem_align);
    job->block_size = 512;
    if (S_ISBLK(job->st.st_mode) && ioctl(job->fd, BLKSSZGET, &sector) == 0 && sector > 0)
        job->block_size = (uint32_t)sector;
    job->slow_seek = fstatfs(job->fd, &fs) < 0 ||
                     (fs.f_type != EXT4_SUPER_MAGIC && fs.f_type != (long)XFS_MAGIC && fs.f_type != (long)BTRFS_MAGIC);
    job->memory = job->slow_seek && fs.f_type == TMPFS_MAGIC;
}

/* The kernel opens a device for writing even when it is set to read-only; then each write fails. */
static bool device_refuses_writes(int fd)
{
    int read_only;
    return ioctl(fd, BLKROGET, &read_only) == 0 && read_only;
}

static int open_worker(void *opaque)
{
    OpenJob *job = opaque;
    int direct = job->direct ? O_DIRECT : 0;

    job->opened_writable = job->writable;
    job->fd = open_path(job->filename, direct | (job->writable ? O_RDWR : O_RDONLY));
    if (job->fd >= 0 && job->writable && device_refuses_writes(job->fd)) {
        close(job->fd);
        job->fd = -EACCES;
        job->device_refused = true;
    }
    if (job->writable && job->auto_read_only && (job->fd == -EACCES || job->fd == -EROFS || job->fd == -EPERM)) {
        job->opened_writable = false;
        job->fd = open_path(job->filename, direct | O_RDONLY);
    }
    if (job->fd >= 0 && fstat(job->fd, &job->st) < 0) {
        int err = errno;
        close(job->fd);
        job->fd = -err;
    }
    if (job->fd < 0)
        return job->fd;
    look_at_file(job);
    return 0;
}

static bool check_options(const Node *node, const BlockdevOptionsFile *o, GError **error)
{
    if (!*o->filename)
        return error_set(error, "The '%s' block driver requires a file name", node->drv->name);
    if (o->pr_manager)
        return error_set(error, "Parameter 'pr-manager' is not supported: there is no persistent reservation manager");
    if (o->has_aio && o->aio == BLOCKDEV_AIO_OPTIONS_NATIVE && !node->flags.cache_direct)
        return error_set(error, "aio=native was specified, but it requires cache.direct=on, which was not specified.");
    if (o->has_aio_max_batch && o->aio_max_batch != 0)
        return error_set(error, "Parameter 'aio-max-batch' only takes 0: each turn of the loop submits what there is");
    if (o->has_x_check_cache_dropped && o->x_check_cache_dropped)
        return error_set(error, "Parameter 'x-check-cache-dropped' is not supported: there is no migration");
    return true;
}

/* Is it the kind of file that this driver is for? */
static bool check_kind(const Node *node, const OpenJob *job, const BlockdevOptions *options, GError **error)
{
    bool device = options->driver == BLOCKDEV_DRIVER_HOST_DEVICE;
    mode_t mode = job->st.st_mode;

    if (!device && S_ISDIR(mode))
        return error_set_errno(error, EISDIR, "Could not open '%s'", job->filename);
    if (!device && !S_ISREG(mode))
        return error_set(error, "'file' driver requires '%s' to be a regular file", job->filename);
    if (device && S_ISCHR(mode))
        return error_set(error, "'host_device' driver does not support character devices such as '%s'", job->filename);
    if (device && !S_ISBLK(mode))
        return error_set(error, "'host_device' driver requires '%s' to be either a character or block device",
                         job->filename);
    if (!job->align_ok)
        return error_set(error,
                         "Could not find out what alignment O_DIRECT requests to '%s' need: try cache.direct=off",
                         job->filename);
    return true;
}

static bool set_up_locking(FileState *s, const BlockdevOptionsFile *o, GError **error)
{
    OnOffAuto locking = o->has_locking ? o->locking : ON_OFF_AUTO_AUTO;

    s->locking = locking != ON_OFF_AUTO_OFF && file_lock_supported();
    if (locking == ON_OFF_AUTO_ON && !s->locking)
        return error_set(error, "locking=on needs open file description locks, which this kernel does not have");
    return true;
}

bool file_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsFile *o =
        options->driver == BLOCKDEV_DRIVER_HOST_DEVICE ? &options->u.host_device : &options->u.file;
    FileState *s = node->state;
    OpenJob job = {.filename = o->filename,
                   .writable = !node->flags.read_only,
                   .auto_read_only = node->flags.auto_read_only,
                   .direct = node->flags.cache_direct};
    int ret;

    s->fd = s->pending_fd = -1;
    if (!check_options(node, o, error) || !set_up_locking(s, o, error))
        return false;
    ret = aio_co_worker(open_worker, &job);
    if (ret == -EINVAL && job.direct)
        return error_set(error, "Could not open '%s': filesystem does not support O_DIRECT", o->filename);
    if (ret == -EACCES && job.device_refused)
        return error_set_errno(error, EACCES, "Could not open '%s': The device is not writable", o->filename);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not open '%s'", o->filename);
    if (!check_kind(node, &job, options, error)) {
        close(job.fd);
        return false;
    }
    s->fd = job.fd;
    s->writable = job.opened_writable;
    s->device = S_ISBLK(job.st.st_mode);
    s->direct = job.direct;
    s->align = job.align;
    s->mem_align = job.mem_align;
    s->block_size = job.block_size;
    s->slow_seek = job.slow_seek;
    s->memory = job.memory;
    s->no_seek = s->device;
    if (!job.opened_writable)
        node->flags.read_only = true;
    node->exact_filename = g_strdup(o->filename);
    node->pages = s->memory && !s->direct;
    node->supported_write_flags = REQ_FUA;
    node->supported_zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    return true;
}

static int close_worker(void *opaque)
{
    close(*(int *)opaque); /* on network file systems this may wait for write-back */
    return 0;
}

void file_co_close(Node *node)
{
    FileState *s = node->state;

    if (s->pending_fd >= 0)
        close(s->pending_fd);
    aio_co_worker(close_worker, &s->fd);
    s->fd = s->pending_fd = -1;
}

int file_reopen_writable(const FileState *s)
{
    char path[32];

    /* Not by name: another file may stand there by now. */
    g_snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
    return open_path(path, O_RDWR | (s->direct ? O_DIRECT : 0));
}
