/*
 * null-co and null-aio: a disk that forgets. Writes vanish, reads cost nothing; for measuring what lies above.
 *
 * This file is also the template for a new driver: state, open, callbacks, and one `const Driver` that the list picks
 * up. The two names differ in nothing here (QEMU's differ in how they complete).
 */
#include "block/graph/driver.h"
#include "block/util/iovec.h"
#include <inttypes.h>

#define NULL_SIZE_DEFAULT (UINT64_C(1) << 30)

/* Loop's thread; set by open, constant afterwards. */
typedef struct NullState {
    uint64_t size;      /* bytes */
    int64_t latency_ns; /* of every request */
    bool read_zeroes;
} NullState;

static bool null_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    bool aio = options->driver == BLOCKDEV_DRIVER_NULL_AIO;
    const BlockdevOptionsNull *o = aio ? &options->u.null_aio : &options->u.null_co;
    NullState *s = node->state;

    if (o->has_size && o->size < 0)
        return error_set(error, "Parameter 'size' expects a non-negative number below 2^63, not %" PRId64, o->size);
    if (o->has_latency_ns && o->latency_ns > INT64_MAX)
        return error_set(error, "latency-ns is invalid: %" PRIu64 " is above %" PRId64, o->latency_ns, INT64_MAX);
    s->size = o->has_size ? (uint64_t)o->size : NULL_SIZE_DEFAULT;
    s->latency_ns = o->has_latency_ns ? (int64_t)o->latency_ns : 0;
    s->read_zeroes = o->has_read_zeroes && o->read_zeroes;
    if (!o->has_size && !o->has_read_zeroes)
        node->exact_filename = g_strdup_printf("%s://", node->drv->name);
    node->supported_write_flags = REQ_FUA;
    node->supported_zero_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    return true;
}

static int64_t null_co_getlength(Node *node)
{
    return (int64_t)((NullState *)node->state)->size;
}

static int null_co_wait(Node *node)
{
    const NullState *s = node->state;
    int64_t now;

    if (!s->latency_ns)
        return 0;
    now = loop_now(node->loop, LOOP_CLOCK_REAL);
    return aio_co_sleep_until(LOOP_CLOCK_REAL, s->latency_ns > INT64_MAX - now ? INT64_MAX - 1 : now + s->latency_ns);
}

static int null_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    bool skip = (flags & REQ_MAY_SKIP_ZEROES) && ((NullState *)node->state)->read_zeroes;
    int ret;

    if (!skip && ((NullState *)node->state)->read_zeroes)
        iov_memset(vec->iov, vec->n, vec_offset, 0, bytes);
    ret = null_co_wait(node);
    return skip && ret == 0 ? READ_ZEROES : ret;
}

static int null_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                           ReqFlags flags)
{
    return null_co_wait(node);
}

static int null_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    return null_co_wait(node);
}

static int null_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    return null_co_wait(node);
}

static int null_co_flush_to_disk(Node *node)
{
    return null_co_wait(node);
}

static int null_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    ret->flags = STATUS_ALLOCATED | STATUS_OFFSET_VALID;
    ret->flags |= ((NullState *)node->state)->read_zeroes ? STATUS_ZERO : STATUS_DATA;
    ret->bytes = bytes;
    ret->map = offset;
    ret->file = node;
    return 0;
}

static void null_get_info(Node *node, NodeInfo *info)
{
    info->allocated_size = 0;
    info->zero_init = ((NullState *)node->state)->read_zeroes;
}

static BlockdevOptions *null_parse(BlockdevDriver driver, const char *filename, GError **error)
{
    const char *name = qapi_BlockdevDriver_str(driver);
    BlockdevOptions *options;

    /* There is nothing to say in such a name but the driver's own. */
    if (!g_str_has_prefix(filename, name) || strcmp(filename + strlen(name), "://")) {
        error_set(error, "The only allowed filename for this driver is '%s://', not '%s'", name, filename);
        return NULL;
    }
    options = g_new0(BlockdevOptions, 1);
    options->driver = driver;
    return options;
}

static BlockdevOptions *null_parse_co(const char *filename, GError **error)
{
    return null_parse(BLOCKDEV_DRIVER_NULL_CO, filename, error);
}

static BlockdevOptions *null_parse_aio(const char *filename, GError **error)
{
    return null_parse(BLOCKDEV_DRIVER_NULL_AIO, filename, error);
}

static const char *const schemes_co[] = {"null-co", NULL};
static const char *const schemes_aio[] = {"null-aio", NULL};

const Driver driver_null_co = {
    .name = "null-co",
    .state_size = sizeof(NullState),
    .is_protocol = true,
    .co_open = null_co_open,
    .co_getlength = null_co_getlength,
    .co_preadv = null_co_preadv,
    .co_pwritev = null_co_pwritev,
    .co_pwrite_zeroes = null_co_pwrite_zeroes,
    .co_pdiscard = null_co_pdiscard,
    .co_flush_to_disk = null_co_flush_to_disk,
    .co_block_status = null_co_block_status,
    .get_info = null_get_info,
    .schemes = schemes_co,
    .parse_filename = null_parse_co,
};

const Driver driver_null_aio = {
    .name = "null-aio",
    .state_size = sizeof(NullState),
    .is_protocol = true,
    .co_open = null_co_open,
    .co_getlength = null_co_getlength,
    .co_preadv = null_co_preadv,
    .co_pwritev = null_co_pwritev,
    .co_pwrite_zeroes = null_co_pwrite_zeroes,
    .co_pdiscard = null_co_pdiscard,
    .co_flush_to_disk = null_co_flush_to_disk,
    .co_block_status = null_co_block_status,
    .get_info = null_get_info,
    .schemes = schemes_aio,
    .parse_filename = null_parse_aio,
};
