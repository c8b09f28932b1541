/*
 * NBD_CMD_BLOCK_STATUS: one chunk of extents for each metadata context that the client selected.
 */
#include "block/export/nbd-int.h"
#include "block/graph/bitmap.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include <errno.h>

/* All chunks of an answer together; what does not fit the client asks for again. */
#define ANSWER_BYTES (64u * 1024)
#define EXTENT_SIZE  8
#define HEAD_SIZE    (NBD_CHUNK_SIZE + 4)

/* One chunk in the making. */
typedef struct Extents {
    uint8_t *p; /* the first extent: u32 length, u32 flags */
    unsigned n, max;
    uint32_t last_flags;
} Extents;

/* False: it is full, and the piece is not in it. */
static bool extents_add(Extents *e, uint32_t bytes, uint32_t flags)
{
    if (e->n && e->last_flags == flags) {
        uint8_t *last = e->p + (e->n - 1) * EXTENT_SIZE;

        store_be32(last, load_be32(last) + bytes); /* within the request's length, which is 32 bits wide */
        return true;
    }
    if (e->n == e->max)
        return false;
    store_be32(e->p + e->n * EXTENT_SIZE, bytes);
    store_be32(e->p + e->n * EXTENT_SIZE + 4, flags);
    e->last_flags = flags;
    e->n++;
    return true;
}

int nbd_co_status_above(NbdReq *req, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret, int *ret_depth)
{
    int r = port_co_block_status(req->client->exp->base.port, want_zero, offset, bytes, ret, ret_depth);

    if (r == 0 && !ret->bytes)
        return -EIO; /* the image shrank meanwhile */
    return r;
}

static int collect_co_status(NbdReq *req, bool depth, Extents *e)
{
    uint64_t offset = req->offset, end = req->offset + req->len;

    while (offset < end) {
        BlockStatus status;
        uint32_t flags;
        int levels;
        int ret = nbd_co_status_above(req, !depth, offset, end - offset, &status, &levels);

        if (ret < 0)
            return ret;
        if (depth) {
            flags = status.flags & STATUS_ALLOCATED ? (uint32_t)levels + 1 : NBD_DEPTH_NONE;
        } else {
            flags =
                (status.flags & STATUS_DATA ? 0 : NBD_STATE_HOLE) | (status.flags & STATUS_ZERO ? NBD_STATE_ZERO : 0);
        }
        if (!extents_add(e, (uint32_t)status.bytes, flags))
            break;
        offset += status.bytes;
    }
    return 0;
}

static void collect_bitmap(const NbdReq *req, const Bitmap *bitmap, Extents *e)
{
    uint64_t offset = req->offset, end = req->offset + req->len;

    while (offset < end) {
        bool dirty;
        int64_t bytes = hbitmap_status(bitmap->bits, (int64_t)offset, (int64_t)(end - offset), &dirty);

        if (bytes <= 0) {
            bytes = (int64_t)(end - offset); /* past the bitmap's end: nothing is known to be dirty there */
            dirty = false;
        }
        if (!extents_add(e, (uint32_t)bytes, dirty ? NBD_STATE_DIRTY : 0))
            break;
        offset += (uint64_t)bytes;
    }
}

static int collect_co_context(NbdReq *req, unsigned context, Extents *e)
{
    NbdExport *exp = req->client->exp;

    if (context == 0)
        return collect_co_status(req, false, e);
    if (context == exp->depth_context)
        return collect_co_status(req, true, e);
    collect_bitmap(req, g_ptr_array_index(exp->bitmaps, context - exp->first_bitmap), e);
    return 0;
}

int nbd_co_block_status(NbdReq *req)
{
    const NbdClient *client = req->client;
    unsigned left = (unsigned)__builtin_popcountll(client->contexts);
    unsigned max;
    uint8_t *p;

    if (!left || !req->len)
        return -EINVAL;
    max = req->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : (ANSWER_BYTES / left - HEAD_SIZE) / EXTENT_SIZE;
    if (!nbd_req_alloc(req, left * (HEAD_SIZE + max * EXTENT_SIZE)))
        return -ENOMEM;
    p = req->buf;
    for (unsigned i = 0; i < NBD_MAX_CONTEXTS; i++) {
        Extents e = {.p = p + HEAD_SIZE, .max = max};
        int ret;

        if (!(client->contexts & (UINT64_C(1) << i)))
            continue;
        ret = collect_co_context(req, i, &e);
        if (ret < 0)
            return ret;
        left--;
        nbd_put_chunk(p, req, left ? 0 : NBD_REPLY_FLAG_DONE, NBD_REPLY_BLOCK_STATUS, 4 + e.n * EXTENT_SIZE);
        store_be32(p + NBD_CHUNK_SIZE, i);
        p += HEAD_SIZE + e.n * EXTENT_SIZE;
    }
    req->out_bytes = (size_t)(p - (uint8_t *)req->buf);
    req->small_iov[0] = (struct iovec){.iov_base = req->buf, .iov_len = req->out_bytes};
    req->iov = req->small_iov;
    req->niov = 1;
    nbd_reply_iov(req);
    return 0;
}
