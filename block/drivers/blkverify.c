/*
 * blkverify: a filter over a node that is right ("raw") which does everything to another one as well ("test") and
 * compares what both read. At the first difference the process ends, with the evidence in place. See
 * docs/drivers/blkverify.md.
 *
 * A read that meets a write on its way to the second of the two would see a difference that is none. So whatever
 * differs is read again with writes held up.
 */
#include "block/aio/io.h"
#include "block/graph/filename.h"
#include "block/graph/io.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

#define TRANSFER_MAX (1024 * 1024) /* bytes: a read needs a buffer */

/* Loop's thread. */
typedef struct Blkverify {
    Child *test;
    CoRwlock still; /* held for reading by writes, for writing by who needs both nodes to stand still */
} Blkverify;

/* ---- life ------------------------------------------------------------------------------------------------------- */

static bool blkverify_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsBlkverify *o = &options->u.blkverify;
    Blkverify *s = node->state;

    if (!node_co_open_child(node, "raw", o->raw, ROLE_FILTER, error))
        return false;
    s->test = node_co_open_child(node, "test", o->test, ROLE_DATA, error);
    node->supported_write_flags = REQ_WRITE_UNCHANGED;
    node->supported_zero_flags = REQ_WRITE_UNCHANGED | REQ_MAY_UNMAP;
    return s->test != NULL;
}

static int64_t blkverify_co_getlength(Node *node)
{
    return (int64_t)((Blkverify *)node->state)->test->node->size;
}

/* Also the moment at which the name can have changed. */
static void blkverify_refresh_limits(Node *node)
{
    const Blkverify *s = node->state;
    g_autofree char *raw = node_filename(node->file->node), *test = s->test ? node_filename(s->test->node) : NULL;

    node->limits.max_transfer = TRANSFER_MAX;
    g_clear_pointer(&node->exact_filename, g_free);
    if (test && !g_str_has_prefix(raw, "json:") && !g_str_has_prefix(test, "json:"))
        node->exact_filename = g_strdup_printf("blkverify:%s:%s", raw, test);
}

static bool blkverify_can_replace(Node *node, const Node *to_replace)
{
    /* If the two came to differ, nobody would live to see it. */
    return node_can_replace(node->file->node, to_replace) ||
           node_can_replace(((Blkverify *)node->state)->test->node, to_replace);
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

static void G_GNUC_NORETURN verify_failed(const char *what, uint64_t offset, uint64_t bytes, const char *how)
{
    g_printerr("blkverify: %s offset=%" PRIu64 " bytes=%" PRIu64 " %s\n", what, offset, bytes, how);
    _exit(1); /* nothing is flushed or closed */
}

/* Both have been asked to do the same: what came of it. */
static int both_results(const char *what, uint64_t offset, uint64_t bytes, int test, int raw)
{
    g_autofree char *how = NULL;

    if (test == raw)
        return raw;
    how = g_strdup_printf("return value mismatch %d != %d", test, raw);
    verify_failed(what, offset, bytes, how);
}

/* How many bytes at the beginning of @vec, from @vec_offset on, are those of @buf. */
static uint64_t same_bytes(const IoVec *vec, size_t vec_offset, const uint8_t *buf, uint64_t bytes)
{
    uint64_t done = 0;

    for (int i = 0; i < vec->n && done < bytes; i++) {
        const uint8_t *data = (const uint8_t *)vec->iov[i].iov_base + vec_offset;
        size_t len = vec->iov[i].iov_len;
        if (vec_offset >= len) {
            vec_offset -= len;
            continue;
        }
        len = u64_min(len - vec_offset, bytes - done);
        vec_offset = 0;
        if (memcmp(data, buf + done, len)) {
            while (*data == buf[done]) {
                data++;
                done++;
            }
            break;
        }
        done += len;
    }
    return done;
}

/* Reads from both, the test into @vec, the other into @buf. *@ret_same: how many bytes agree. */
static int read_co_both(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, uint8_t *buf,
                        uint64_t *ret_same)
{
    const Blkverify *s = node->state;
    int test = child_co_preadv(s->test, offset, bytes, vec, vec_offset, 0);
    int ret = both_results("read", offset, bytes, test, child_co_pread(node->file, offset, bytes, buf, 0));

    *ret_same = ret == 0 ? same_bytes(vec, vec_offset, buf, bytes) : 0;
    return ret;
}

static int blkverify_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                               ReqFlags flags)
{
    Blkverify *s = node->state;
    uint8_t *buf = aio_buf_get(node->loop, bytes);
    uint64_t same;
    int ret;

    if (!buf)
        return -ENOMEM;
    ret = read_co_both(node, offset, bytes, vec, vec_offset, buf, &same);
    if (ret == 0 && same < bytes) {
        corwlock_co_wrlock(&s->still);
        ret = read_co_both(node, offset, bytes, vec, vec_offset, buf, &same);
        corwlock_unlock(&s->still);
        if (ret == 0 && same < bytes) {
            g_autofree char *how = g_strdup_printf("contents mismatch at offset %" PRIu64, offset + same);
            verify_failed("read", offset, bytes, how);
        }
    }
    aio_buf_put(node->loop, buf, bytes);
    return ret;
}

static int blkverify_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                                ReqFlags flags)
{
    Blkverify *s = node->state;
    int test, raw;

    corwlock_co_rdlock(&s->still);
    test = child_co_pwritev(s->test, offset, bytes, vec, vec_offset, flags);
    raw = child_co_pwritev(node->file, offset, bytes, vec, vec_offset, flags);
    corwlock_unlock(&s->still);
    return both_results("write", offset, bytes, test, raw);
}

static int blkverify_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    Blkverify *s = node->state;
    int test, raw;

    corwlock_co_rdlock(&s->still);
    test = child_co_pwrite_zeroes(s->test, offset, bytes, flags);
    raw = child_co_pwrite_zeroes(node->file, offset, bytes, flags);
    corwlock_unlock(&s->still);
    return both_results("write zeroes", offset, bytes, test, raw);
}

/* What a discarded range reads as is up to each node. */
static int blkverify_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    return -ENOTSUP;
}

static int blkverify_co_pwritev_compressed(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec,
                                           size_t vec_offset)
{
    return -ENOTSUP;
}

/* To be verified it must be read. */
static int blkverify_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    *ret = (BlockStatus){.flags = STATUS_ALLOCATED | STATUS_DATA, .bytes = bytes};
    return 0;
}

static bool blkverify_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                                  GError **error)
{
    return error_set(error, "Image format driver 'blkverify' does not support resize");
}

/* ---- names ------------------------------------------------------------------------------------------------------ */

/* The format of a file, by its first bytes; NULL: not a file that can be read, so nothing to guess from. */
static const char *probe_file(const char *filename)
{
    uint8_t head[PROBE_SIZE] = {0};
    int fd = open(filename, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd >= 0 ? pread(fd, head, sizeof(head), 0) : -1;

    if (fd >= 0)
        close(fd);
    return n < 0 ? NULL : driver_probe(head, (size_t)n)->name;
}

static BlockdevRef *definition(BlockdevOptions *options)
{
    BlockdevRef *ref = g_new0(BlockdevRef, 1);

    ref->kind = BLOCKDEV_REF_DEFINITION;
    ref->u.definition = options;
    return ref;
}

static BlockdevOptions *blkverify_parse_filename(const char *filename, GError **error)
{
    const char *names = filename + strlen("blkverify:"), *colon = strchr(names, ':');
    g_autofree char *raw_name = colon ? g_strndup(names, (gsize)(colon - names)) : NULL;
    g_autoptr(BlockdevOptions) raw = NULL;
    g_autoptr(Tree) extra = NULL;
    BlockdevOptions *test, *options;
    const char *format;

    if (!colon) {
        error_set(error, "blkverify requires raw copy and original image path");
        return NULL;
    }
    raw = filename_protocol_options(raw_name, NULL, error);
    if (!raw)
        return NULL;
    format = probe_file(colon + 1);
    test = filename_options(colon + 1, format ? format : "raw", NULL, &extra, error);
    if (!test)
        return NULL;
    options = g_new0(BlockdevOptions, 1);
    options->driver = BLOCKDEV_DRIVER_BLKVERIFY;
    options->u.blkverify.raw = definition(g_steal_pointer(&raw));
    options->u.blkverify.test = definition(test);
    return options;
}

static const char *const blkverify_schemes[] = {"blkverify", NULL};

const Driver driver_blkverify = {
    .name = "blkverify",
    .state_size = sizeof(Blkverify),
    .is_filter = true,
    .co_open = blkverify_co_open,
    .co_getlength = blkverify_co_getlength,
    .refresh_limits = blkverify_refresh_limits,
    .can_replace = blkverify_can_replace,
    .co_preadv = blkverify_co_preadv,
    .co_pwritev = blkverify_co_pwritev,
    .co_pwritev_compressed = blkverify_co_pwritev_compressed,
    .co_pwrite_zeroes = blkverify_co_pwrite_zeroes,
    .co_pdiscard = blkverify_co_pdiscard,
    .co_block_status = blkverify_co_block_status,
    .co_truncate = blkverify_co_truncate,
    .schemes = blkverify_schemes,
    .parse_filename = blkverify_parse_filename,
};
