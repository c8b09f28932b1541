/*
 * file and host_device: images that the kernel keeps. See docs/drivers/file.md.
 */
#include "block/drivers/file.h"
#include "block/util/error.h"
#include <errno.h>
#include <limits.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

static int64_t file_co_getlength(Node *node)
{
    FileState *s = node->state;
    struct stat st;
    uint64_t size;

    if (s->device)
        return ioctl(s->fd, BLKGETSIZE64, &size) < 0 ? -errno : (int64_t)size;
    return fstat(s->fd, &st) < 0 ? -errno : (int64_t)st.st_size;
}

static void file_refresh_limits(Node *node)
{
    FileState *s = node->state;

    node->limits.request_alignment = s->align;
    node->limits.min_mem_align = s->mem_align;
    if (s->device)
        node->limits.discard_align = node->limits.write_zeroes_align = s->block_size;
}

/*
 * Permissions become locks. A node that was opened for reading only (because nobody wrote then) and gets a writer now
 * opens its file once more; the old description keeps its locks until the new one has them all.
 */
static bool file_check_perm(Node *node, unsigned perm, unsigned shared, GError **error)
{
    FileState *s = node->state;
    bool writes = perm & (PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE);

    if (node->flags.force_share)
        shared = PERM_ALL;
    if (!file_lock_prepare(s, node->exact_filename, perm, shared, error))
        return false;
    if (!writes || s->writable || s->pending_fd >= 0)
        return true;
    s->pending_fd = file_reopen_writable(s);
    if (s->pending_fd < 0)
        error_set_errno(error, -s->pending_fd, "Could not reopen file '%s' for writing", node->exact_filename);
    else if (s->locking && !file_lock_copy(s->pending_fd, perm, shared, error))
        close(s->pending_fd);
    else
        return true;
    s->pending_fd = -1;
    file_lock_abort(s);
    return false;
}

static void file_set_perm(Node *node, unsigned perm, unsigned shared)
{
    FileState *s = node->state;

    if (node->flags.force_share)
        shared = PERM_ALL;
    if (s->pending_fd >= 0) {
        close(s->fd);
        s->fd = s->pending_fd;
        s->pending_fd = -1;
        s->writable = true;
        s->held_perm = s->locking ? perm : 0;
        s->held_unshared = s->locking ? ~shared & PERM_ALL : 0;
        return;
    }
    file_lock_commit(s, perm, shared);
}

static void file_abort_perm(Node *node)
{
    FileState *s = node->state;

    if (s->pending_fd >= 0)
        close(s->pending_fd);
    s->pending_fd = -1;
    file_lock_abort(s);
}

static void file_get_info(Node *node, NodeInfo *info)
{
    FileState *s = node->state;
    struct stat st;

    info->allocated_size = fstat(s->fd, &st) == 0 ? (uint64_t)st.st_blocks * 512 : UINT64_MAX;
    info->zero_init = !s->device;
}

static const char *const schemes_file[] = {"file", NULL};
static const char *const schemes_device[] = {"host_device", NULL};

static BlockdevOptions *file_parse_filename(const char *filename, GError **error)
{
    BlockdevOptions *options = g_new0(BlockdevOptions, 1);

    options->driver = BLOCKDEV_DRIVER_FILE;
    options->u.file.filename = g_strdup(g_str_has_prefix(filename, "file:") ? filename + strlen("file:") : filename);
    return options;
}

static BlockdevOptions *device_parse_filename(const char *filename, GError **error)
{
    static const char prefix[] = "host_device:";
    BlockdevOptions *options = g_new0(BlockdevOptions, 1);

    options->driver = BLOCKDEV_DRIVER_HOST_DEVICE;
    options->u.host_device.filename =
        g_strdup(g_str_has_prefix(filename, prefix) ? filename + strlen(prefix) : filename);
    return options;
}

const Driver driver_file = {
    .name = "file",
    .state_size = sizeof(FileState),
    .is_protocol = true,
    .may_grow = true,
    .co_open = file_co_open,
    .co_close = file_co_close,
    .co_getlength = file_co_getlength,
    .refresh_limits = file_refresh_limits,
    .check_perm = file_check_perm,
    .set_perm = file_set_perm,
    .abort_perm = file_abort_perm,
    .co_preadv = file_co_preadv,
    .co_read_pages = file_co_read_pages,
    .co_pwritev = file_co_pwritev,
    .co_copy_from = file_co_copy_from,
    .co_pwrite_zeroes = file_co_pwrite_zeroes,
    .co_pdiscard = file_co_pdiscard,
    .co_flush_to_disk = file_co_flush_to_disk,
    .co_block_status = file_co_block_status,
    .co_truncate = file_co_truncate,
    .co_create = file_co_create,
    .schemes = schemes_file,
    .parse_filename = file_parse_filename,
    .get_info = file_get_info,
};

const Driver driver_host_device = {
    .name = "host_device",
    .state_size = sizeof(FileState),
    .is_protocol = true,
    .may_grow = true, /* no, but it may have grown: the kernel knows, and says ENOSPC where it has not */
    .co_open = file_co_open,
    .co_close = file_co_close,
    .co_getlength = file_co_getlength,
    .refresh_limits = file_refresh_limits,
    .check_perm = file_check_perm,
    .set_perm = file_set_perm,
    .abort_perm = file_abort_perm,
    .co_preadv = file_co_preadv,
    .co_pwritev = file_co_pwritev,
    .co_copy_from = file_co_copy_from,
    .co_pwrite_zeroes = file_co_pwrite_zeroes,
    .co_pdiscard = file_co_pdiscard,
    .co_flush_to_disk = file_co_flush_to_disk,
    .co_block_status = file_co_block_status,
    .co_truncate = file_co_truncate,
    .schemes = schemes_device,
    .parse_filename = device_parse_filename,
    .get_info = file_get_info,
};
