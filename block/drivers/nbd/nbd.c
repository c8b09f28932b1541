/*
 * nbd: an export of another NBD server as a node. See docs/drivers/nbd.md.
 */
#include "block/drivers/nbd/nbd.h"
#include "block/util/bytes.h"
#include "block/util/error.h"
#include <errno.h>

/* Bytes of one read or write where the server does not say: what every server takes. */
#define TRANSFER_MAX (UINT32_C(32) << 20)
/* Bytes of one zeroing or trim: no data comes with it. */
#define NO_DATA_MAX (UINT32_C(1) << 30)

static bool nbd_set_up(Node *node, NbdState *s, const BlockdevOptionsNbd *o, GError **error)
{
    s->node = node;
    s->server = qapi_clone_SocketAddress(o->server);
    s->export = g_strdup(o->export);
    s->context = g_strdup(o->x_dirty_bitmap ? o->x_dirty_bitmap : LIBNBD_CONTEXT_BASE_ALLOCATION);
    s->is_allocation = !o->x_dirty_bitmap;
    s->reconnect_ns = o->has_reconnect_delay ? (int64_t)o->reconnect_delay * 1000000000 : 0;
    s->open_ns = o->has_open_timeout ? (int64_t)o->open_timeout * 1000000000 : 0;
    if (o->tls_creds)
        return error_set(error, "Parameter 'tls-creds' is not supported: there is no TLS in the NBD client yet");
    if (o->tls_hostname)
        return error_set(error, "Parameter 'tls-hostname' is not supported: there is no TLS in the NBD client yet");
    if (o->export && strlen(o->export) > 4096)
        return error_set(error, "export name too long to send to server: %zu bytes, the limit is 4096",
                         strlen(o->export));
    if (o->x_dirty_bitmap && strlen(o->x_dirty_bitmap) > 4096)
        return error_set(error, "x-dirty-bitmap value too long to send to server");
    return nbdc_address(s, error);
}

static void nbd_release(NbdState *s)
{
    qapi_free_SocketAddress(s->server);
    g_free(s->addr_name);
    g_free(s->export);
    g_free(s->context);
}

static bool nbd_check_facts(Node *node, NbdState *s, GError **error)
{
    if (s->facts.read_only && !node->flags.read_only) {
        if (!node->flags.auto_read_only)
            return error_set(error, "request on write denied without write permission");
        node->flags.read_only = true;
    }
    if (!s->is_allocation && !s->facts.has_context)
        return error_set(error, "requested x-dirty-bitmap '%s' not found", s->context);
    if (s->facts.max_block && s->facts.max_block < u64_max(s->facts.min_block, 512))
        return error_set(error, "server's maximum block size of %u bytes is below its minimum", s->facts.max_block);
    return true;
}

static bool nbd_co_set_read_only(Node *node, bool read_only, GError **error)
{
    NbdState *s = node->state;

    return read_only || !s->facts.read_only || error_set(error, "request on write denied without write permission");
}

static bool nbd_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsNbd *o = &options->u.nbd;
    NbdState *s = node->state;

    if (!nbdc_library_co_load(error) || !nbd_set_up(node, s, o, error)) {
        nbd_release(s);
        return false;
    }
    if (!nbdc_co_connect(s, error) || !nbd_check_facts(node, s, error)) {
        nbdc_co_disconnect(s);
        nbd_release(s);
        return false;
    }
    node->exact_filename = nbdc_filename(o->server, o->export);
    node->supported_write_flags = s->facts.can_fua ? REQ_FUA : 0;
    node->supported_zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK | (s->facts.can_fua ? REQ_FUA : 0);
    nbdc_start_pump(s);
    return true;
}

static void nbd_co_close(Node *node)
{
    NbdState *s = node->state;

    nbdc_co_disconnect(s);
    nbd_release(s);
}

static int64_t nbd_co_getlength(Node *node)
{
    return (int64_t)((NbdState *)node->state)->facts.size;
}

static void nbd_refresh_limits(Node *node)
{
    const NbdFacts *f = &((NbdState *)node->state)->facts;
    uint32_t align = f->min_block ? f->min_block : is_aligned(f->size, 512) ? 512 : 1;
    uint32_t max = f->max_block ? MIN(f->max_block, TRANSFER_MAX) : TRANSFER_MAX;

    node->limits.request_alignment = align;
    node->limits.max_transfer = align_down(max, align);
    node->limits.max_write_zeroes = node->limits.max_discard =
        align_down(f->max_block ? f->max_block : NO_DATA_MAX, align);
}

static bool nbd_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                            GError **error)
{
    if (prealloc != PREALLOC_MODE_OFF)
        return error_set(error, "Unsupported preallocation mode '%s'", qapi_PreallocMode_str(prealloc));
    if (exact && size != node->size)
        return error_set(error, "Cannot resize NBD nodes");
    if (size > node->size)
        return error_set(error, "Cannot grow NBD nodes");
    return true;
}

static void nbd_get_info(Node *node, NodeInfo *info)
{
    info->allocated_size = UINT64_MAX;
}

static const char *const schemes_nbd[] = {"nbd", "nbd+tcp", "nbd+unix", NULL};

const Driver driver_nbd = {
    .name = "nbd",
    .state_size = sizeof(NbdState),
    .is_protocol = true,
    .co_open = nbd_co_open,
    .co_close = nbd_co_close,
    .give_up = nbdc_give_up,
    .co_set_read_only = nbd_co_set_read_only,
    .co_getlength = nbd_co_getlength,
    .refresh_limits = nbd_refresh_limits,
    .co_preadv = nbdc_co_preadv,
    .co_pwritev = nbdc_co_pwritev,
    .co_pwrite_zeroes = nbdc_co_pwrite_zeroes,
    .co_pdiscard = nbdc_co_pdiscard,
    .co_flush_to_disk = nbdc_co_flush_to_disk,
    .co_block_status = nbdc_co_block_status,
    .co_truncate = nbd_co_truncate,
    .schemes = schemes_nbd,
    .parse_filename = nbdc_parse_filename,
    .get_info = nbd_get_info,
};
