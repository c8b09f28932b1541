/*
 * raw: the bytes of a file as they are, or a range of them (offset, size). See docs/drivers/raw.md.
 *
 * A disk without a range is by far the most common one: every request goes straight on to the child.
 */
#include "block/aio/io.h"
#include "block/graph/debug.h"
#include "block/graph/io.h"
#include "block/graph/port.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include "block/util/error.h"
#include "block/util/iovec.h"
#include <errno.h>
#include <inttypes.h>

/* How much of a file's head format probing looks at. */
enum { PROBE_SIZE = 512 };

/* Loop's thread; set by open, constant afterwards but for a truncated size. */
typedef struct RawState {
    uint64_t offset; /* bytes */
    uint64_t size;   /* bytes, when has_size */
    bool has_size;
} RawState;

/* ---- life ------------------------------------------------------------------------------------------------------- */

static bool raw_check_range(const RawState *s, uint64_t containing, GError **error)
{
    if (s->offset > containing)
        return error_set(error, "Offset (%" PRIu64 ") cannot be greater than size of the containing file (%" PRIu64 ")",
                         s->offset, containing);
    if (s->has_size && s->size > containing - s->offset)
        return error_set(error,
                         "The sum of offset (%" PRIu64 ") and size (%" PRIu64 ") has to be smaller or equal to the "
                         "actual size of the containing file (%" PRIu64 ")",
                         s->offset, s->size, containing);
    return true;
}

static bool raw_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsRaw *o = &options->u.raw;
    RawState *s = node->state;
    bool range = o->has_size || (o->has_offset && o->offset);

    if (o->has_offset && o->offset < 0)
        return error_set(error, "Parameter 'offset' expects a non-negative number, not %" PRId64, o->offset);
    if (o->has_size && o->size < 0)
        return error_set(error, "Parameter 'size' expects a non-negative number, not %" PRId64, o->size);
    if (o->has_size && o->size % 512)
        return error_set(error, "Specified size is not multiple of 512");
    if (!node_co_open_child(node, "file", o->file,
                            range ? ROLE_DATA | ROLE_PRIMARY : ROLE_DATA | ROLE_FILTERED | ROLE_PRIMARY, error))
        return false;
    s->offset = o->has_offset ? (uint64_t)o->offset : 0;
    s->has_size = o->has_size;
    s->size = o->has_size ? (uint64_t)o->size : 0;
    if (!raw_check_range(s, node->file->node->size, error))
        return false;
    if (!node_writable(node->file->node) && node->flags.auto_read_only)
        node->flags.read_only = true;
    node_pass_flags(node);
    return true;
}

static int64_t raw_co_getlength(Node *node)
{
    RawState *s = node->state;
    uint64_t containing = node->file->node->size;

    if (containing < s->offset)
        return 0;
    containing -= s->offset;
    return (int64_t)(s->has_size ? u64_min(s->size, containing) : containing);
}

/* Permissions pass through. Of a file that holds a range of ours the size must not change under us. */
static void raw_child_perm(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared,
                           unsigned *ret_perm, unsigned *ret_shared)
{
    const RawState *s = node->state;

    *ret_perm = perm;
    *ret_shared = s->offset || s->has_size ? shared & ~PERM_RESIZE : shared;
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

static int raw_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                         ReqFlags flags)
{
    child_co_debug_event(node->file, BLKDEBUG_EVENT_READ_AIO);
    return child_co_preadv(node->file, offset + ((RawState *)node->state)->offset, bytes, vec, vec_offset, flags);
}

static int raw_co_read_pages(Node *node, uint64_t offset, uint64_t bytes, AioPipe *pipe)
{
    child_co_debug_event(node->file, BLKDEBUG_EVENT_READ_AIO);
    return child_co_read_pages(node->file, offset + ((RawState *)node->state)->offset, bytes, pipe);
}

/*
 * The format of this image was guessed. If block 0 came to look like, say, a qcow2 header, the next guess would open it
 * as one, and its backing file name would make us read any file on the host for whoever wrote it. So no write may make
 * it look so. @vec NULL: zeroes are to be written.
 */
static int raw_co_guard(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    uint8_t block[PROBE_SIZE];
    uint64_t n = u64_min(bytes, PROBE_SIZE - offset);
    const Driver *would_be;
    int ret;

    if (n < PROBE_SIZE) {
        ret = child_co_pread(node->file, ((RawState *)node->state)->offset, PROBE_SIZE, block, 0);
        if (ret < 0)
            return ret;
    }
    if (vec)
        iov_to_buf(vec->iov, vec->n, vec_offset, block + offset, n);
    else
        memset(block + offset, 0, n);
    would_be = driver_probe(block, sizeof(block));
    return would_be && would_be != node->drv ? -EPERM : 0;
}

static int raw_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    RawState *s = node->state;

    if (G_UNLIKELY(s->has_size && offset + bytes > s->size))
        return -ENOSPC;
    if (G_UNLIKELY(node->probed && offset < PROBE_SIZE && bytes)) {
        /* What was looked at must be what is written, while the client still may scribble in the buffer: copy it. */
        uint64_t n = u64_min(bytes, PROBE_SIZE - offset);
        uint8_t head[PROBE_SIZE];
        struct iovec iov;
        IoVec one;
        iovec_one(&one, &iov, head, n);
        iov_to_buf(vec->iov, vec->n, vec_offset, head, n);
        int ret = raw_co_guard(node, offset, n, &one, 0);
        child_co_debug_event(node->file, BLKDEBUG_EVENT_WRITE_AIO);
        if (ret == 0)
            ret = child_co_pwritev(node->file, offset + s->offset, n, &one, 0, flags);
        if (ret < 0 || n == bytes)
            return ret;
        offset += n;
        bytes -= n;
        vec_offset += n;
    }
    child_co_debug_event(node->file, BLKDEBUG_EVENT_WRITE_AIO);
    return child_co_pwritev(node->file, offset + s->offset, bytes, vec, vec_offset, flags);
}

static int raw_co_copy_from(Node *node, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset,
                            ReqFlags flags)
{
    RawState *s = node->state;

    /* The guard wants to see the bytes; so does nobody else. */
    if ((node->probed && offset < PROBE_SIZE) || (s->has_size && offset + bytes > s->size))
        return -ENOTSUP;
    return child_co_copy_from(node->file, offset + s->offset, bytes, source, source_offset, flags);
}

static int raw_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    RawState *s = node->state;

    if (G_UNLIKELY(s->has_size && offset + bytes > s->size))
        return -ENOSPC;
    if (G_UNLIKELY(node->probed && offset < PROBE_SIZE && bytes)) {
        int ret = raw_co_guard(node, offset, bytes, NULL, 0);
        if (ret < 0)
            return ret;
    }
    return child_co_pwrite_zeroes(node->file, offset + s->offset, bytes, flags);
}

static int raw_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    RawState *s = node->state;

    /* After a discard the block may read as zeroes. */
    if (G_UNLIKELY(node->probed && offset < PROBE_SIZE && bytes)) {
        int ret = raw_co_guard(node, offset, bytes, NULL, 0);
        if (ret < 0)
            return ret;
    }
    return child_co_pdiscard(node->file, offset + s->offset, bytes);
}

/* What a reader of the child sees, whichever layer below the child decides it. */
static int raw_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    uint64_t start = offset + ((RawState *)node->state)->offset;
    int r = node_co_block_status_above(node->file->node, NULL, want_zero, start, bytes, ret, NULL);

    if (r == 0 && ret->bytes == 0)
        *ret =
            (BlockStatus){.flags = STATUS_ZERO, .bytes = bytes}; /* the child was cut: reads past its end are zeroes */
    ret->flags |= STATUS_ALLOCATED;
    return r;
}

static bool raw_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                            GError **error)
{
    RawState *s = node->state;

    if (s->has_size)
        return error_set(error, "Cannot resize fixed-size raw disks");
    if (size > INT64_MAX - s->offset)
        return error_set(error, "Disk size too large for the chosen offset");
    return child_co_truncate(node->file, size + s->offset, exact, prealloc, flags, error);
}

/* ---- images ----------------------------------------------------------------------------------------------------- */

static int raw_probe(const uint8_t *buf, size_t size)
{
    return 1; /* anything can be raw: the weakest guess */
}

/* On a device or an export an old image may stand: its header must not be taken for ours. */
static bool raw_co_clear_head(Port *file, GError **error)
{
    Node *node = port_node(file);
    NodeInfo info = {0};
    int ret;

    if (node->drv->get_info)
        node->drv->get_info(node, &info);
    if (info.zero_init)
        return true;
    ret = port_co_pwrite_zeroes(file, 0, u64_min(PROBE_SIZE, port_size(file)), 0);
    return ret < 0 ? error_set_errno(error, -ret, "Could not clear the first block of the new image") : true;
}

static bool raw_co_create(Graph *graph, const char *filename, Port *file, const CreateOptions *options, GError **error)
{
    if (options->backing_file)
        return error_set(error, "Backing file not supported for file format 'raw'");
    if (options->cluster_size)
        return error_set(error, "Parameter 'cluster_size' is not supported by file format 'raw'");
    if (!port_co_truncate(file, options->size, false, options->preallocation, 0, error))
        return false;
    return raw_co_clear_head(file, error);
}

static void raw_get_info(Node *node, NodeInfo *info)
{
    const Driver *below = node->file->node->drv;

    if (below->get_info)
        below->get_info(node->file->node, info);
}

const Driver driver_raw = {
    .name = "raw",
    .state_size = sizeof(RawState),
    .is_format = true,
    .may_grow = true,
    .co_open = raw_co_open,
    .co_getlength = raw_co_getlength,
    .child_perm = raw_child_perm,
    .co_preadv = raw_co_preadv,
    .co_read_pages = raw_co_read_pages,
    .co_pwritev = raw_co_pwritev,
    .co_copy_from = raw_co_copy_from,
    .co_pwrite_zeroes = raw_co_pwrite_zeroes,
    .co_pdiscard = raw_co_pdiscard,
    .co_block_status = raw_co_block_status,
    .co_truncate = raw_co_truncate,
    .probe = raw_probe,
    .co_create = raw_co_create,
    .get_info = raw_get_info,
};
