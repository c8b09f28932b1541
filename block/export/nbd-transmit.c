/*
 * Requests of the transmission phase, each in a coroutine of its own: checked, done, answered.
 */
#include "block/aio/io.h"
#include "block/export/nbd-int.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include <errno.h>

/* Reads of at least this much are looked at for holes, which then are not sent; for less, asking costs more. */
#define SPARSE_MIN (64u * 1024)
/* A hole shorter than this is sent as data: a chunk costs more than it saves. */
#define HOLE_MIN (4u * 1024)
/* Chunks of one answer; the last one takes the rest as data. */
#define SPARSE_CHUNKS 32

/* The errors that the protocol knows. */
static uint32_t nbd_error_of(int ret)
{
    switch (-ret) {
    case EPERM:
    case EROFS:
    case EACCES:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_ENOSPC;
    case EOVERFLOW:
        return NBD_EOVERFLOW;
    case ENOTSUP:
        return NBD_ENOTSUP;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

static Port *req_port(const NbdReq *req)
{
    return req->client->exp->base.port;
}

static ReqFlags write_flags(const NbdReq *req)
{
    return req->flags & NBD_CMD_FLAG_FUA ? REQ_FUA : 0;
}

/* ---- reads ------------------------------------------------------------------------------------------------------ */

/* One chunk of a sparse answer. */
typedef struct Chunk {
    uint64_t offset;
    uint32_t len;
    bool hole;
    uint8_t head[NBD_CHUNK_SIZE + 12];
} Chunk;

/* What is needed for an answer in chunks: lies in req->extra. */
typedef struct Sparse {
    int n;
    Chunk chunks[SPARSE_CHUNKS];
    struct iovec iov[2 * SPARSE_CHUNKS];
} Sparse;

static void sparse_add(Sparse *s, uint64_t offset, uint32_t len, bool hole)
{
    Chunk *last = s->n ? &s->chunks[s->n - 1] : NULL;

    hole = hole && (len >= HOLE_MIN || (last && last->hole));
    if (last && last->hole == hole)
        last->len += len;
    else
        s->chunks[s->n++] = (Chunk){.offset = offset, .len = len, .hole = hole};
}

/* Finds out what of the range is data. The last chunk is data when there are too many. */
static int sparse_co_map(NbdReq *req, Sparse *s)
{
    uint64_t offset = req->offset, end = req->offset + req->len;

    while (offset < end) {
        BlockStatus status = {.flags = STATUS_DATA, .bytes = end - offset};
        int ret;

        if (s->n < SPARSE_CHUNKS - 1) {
            ret = nbd_co_status_above(req, true, offset, end - offset, &status, NULL);
            if (ret < 0)
                return ret;
        }
        sparse_add(s, offset, (uint32_t)status.bytes, status.flags & STATUS_ZERO);
        offset += status.bytes;
    }
    return 0;
}

static void sparse_reply(NbdReq *req, Sparse *s)
{
    int n = 0;

    req->out_bytes = 0;
    for (int i = 0; i < s->n; i++) {
        Chunk *c = &s->chunks[i];
        uint16_t flags = i == s->n - 1 ? NBD_REPLY_FLAG_DONE : 0;
        size_t len;

        if (c->hole) {
            len = nbd_put_chunk(c->head, req, flags, NBD_REPLY_OFFSET_HOLE, 12);
            store_be64(c->head + len, c->offset);
            store_be32(c->head + len + 8, c->len);
            len += 12;
        } else {
            len = nbd_put_chunk(c->head, req, flags, NBD_REPLY_OFFSET_DATA, 8 + c->len);
            store_be64(c->head + len, c->offset);
            len += 8;
        }
        s->iov[n++] = (struct iovec){.iov_base = c->head, .iov_len = len};
        req->out_bytes += len;
        if (!c->hole) {
            s->iov[n++] = (struct iovec){.iov_base = (char *)req->buf + (c->offset - req->offset), .iov_len = c->len};
            req->out_bytes += c->len;
        }
    }
    req->iov = s->iov;
    req->niov = n;
    nbd_reply_iov(req);
}

/* A read that leaves holes out. */
static void request_co_read_sparse(NbdReq *req)
{
    Sparse *s;
    int ret;

    if (!nbd_req_alloc_extra(req, sizeof(*s))) {
        nbd_reply_error(req, NBD_ENOMEM);
        return;
    }
    s = req->extra;
    s->n = 0;
    ret = sparse_co_map(req, s);
    if (ret == 0 && !(s->n == 1 && s->chunks[0].hole) && !nbd_req_alloc(req, req->len))
        ret = -ENOMEM;
    for (int i = 0; i < s->n && ret == 0; i++) {
        const Chunk *c = &s->chunks[i];

        if (!c->hole)
            ret = port_co_pread(req_port(req), c->offset, c->len, (char *)req->buf + (c->offset - req->offset), 0);
    }
    if (ret < 0)
        nbd_reply_error(req, nbd_error_of(ret));
    else
        sparse_reply(req, s);
}

static void request_co_read(NbdReq *req)
{
    int ret;

    if (!req->len) {
        nbd_reply_done(req);
        return;
    }
    if (req->len >= SPARSE_MIN && req->client->structured && !(req->flags & NBD_CMD_FLAG_DF)) {
        request_co_read_sparse(req);
        return;
    }
    if (!nbd_req_alloc(req, req->len)) {
        nbd_reply_error(req, NBD_ENOMEM);
        return;
    }
    ret = port_co_pread(req_port(req), req->offset, req->len, req->buf,
                        req->client->structured ? REQ_MAY_SKIP_ZEROES : 0);
    if (G_UNLIKELY(ret < 0))
        nbd_reply_error(req, nbd_error_of(ret));
    else if (ret == READ_ZEROES)
        nbd_reply_hole(req);
    else
        nbd_reply_data(req);
}

/* ---- the others: 0 or -errno ------------------------------------------------------------------------------------ */

static int request_co_write(NbdReq *req)
{
    int ret = port_co_pwrite(req_port(req), req->offset, req->len, req->data, write_flags(req));

    nbd_req_release_data(req);
    return ret;
}

static int request_co_write_zeroes(NbdReq *req)
{
    ReqFlags flags = write_flags(req);

    if (!(req->flags & NBD_CMD_FLAG_NO_HOLE))
        flags |= REQ_MAY_UNMAP;
    if (req->flags & NBD_CMD_FLAG_FAST_ZERO)
        flags |= REQ_NO_FALLBACK;
    return port_co_pwrite_zeroes(req_port(req), req->offset, req->len, flags);
}

static int request_co_trim(NbdReq *req)
{
    int ret = port_co_pdiscard(req_port(req), req->offset, req->len);

    if (ret == 0 && write_flags(req))
        ret = port_co_flush(req_port(req));
    return ret;
}

/* Reading brings it into whatever caches there are below. */
static int request_co_cache(NbdReq *req)
{
    uint64_t offset = req->offset, end = req->offset + req->len;
    int ret = 0;

    if (!nbd_req_alloc(req, MIN(MAX(req->len, 1), NBD_CACHE_STEP)))
        return -ENOMEM;
    while (offset < end && ret == 0) {
        uint64_t n = u64_min(end - offset, NBD_CACHE_STEP);

        ret = port_co_pread(req_port(req), offset, n, req->buf, 0);
        offset += n;
    }
    return ret;
}

/* The flags that a request may carry. */
static uint16_t flags_allowed(const NbdReq *req)
{
    switch (req->type) {
    case NBD_CMD_READ:
        /* FUA means nothing here, but the specification has clients free to send it with any command. */
        return NBD_CMD_FLAG_FUA | (req->client->structured ? NBD_CMD_FLAG_DF : 0);
    case NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
    default:
        return NBD_CMD_FLAG_FUA;
    }
}

/* The protocol's verdict on a request before it is tried; 0: in order. */
static uint32_t request_check(const NbdReq *req)
{
    const Export *exp = &req->client->exp->base;
    bool write = req->type == NBD_CMD_WRITE || req->type == NBD_CMD_TRIM || req->type == NBD_CMD_WRITE_ZEROES;
    uint64_t size;

    if (G_UNLIKELY(req->flags & ~flags_allowed(req)))
        return NBD_EINVAL;
    if (G_UNLIKELY(write && !exp->writable))
        return NBD_EPERM;
    if (req->type == NBD_CMD_FLUSH)
        return req->offset || req->len ? NBD_EINVAL : 0;
    if (G_UNLIKELY(req->type == NBD_CMD_READ && req->len > NBD_MAX_PAYLOAD))
        return NBD_EINVAL;
    size = port_size(exp->port);
    if (G_UNLIKELY(req->offset > size || req->len > size - req->offset))
        return req->type == NBD_CMD_WRITE || req->type == NBD_CMD_WRITE_ZEROES ? NBD_ENOSPC : NBD_EINVAL;
    return 0;
}

static int request_co_run(NbdReq *req)
{
    switch (req->type) {
    case NBD_CMD_WRITE:
        return request_co_write(req);
    case NBD_CMD_FLUSH:
        return port_co_flush(req_port(req));
    case NBD_CMD_TRIM:
        return request_co_trim(req);
    case NBD_CMD_CACHE:
        return request_co_cache(req);
    case NBD_CMD_WRITE_ZEROES:
        return request_co_write_zeroes(req);
    default:
        return -EINVAL;
    }
}

void nbd_request_co_entry(void *opaque)
{
    NbdReq *req = opaque;
    uint32_t error = request_check(req);
    int ret;

    if (G_UNLIKELY(error)) {
        nbd_req_release_data(req);
        nbd_reply_error(req, error);
        return;
    }
    if (req->type == NBD_CMD_READ) {
        request_co_read(req);
        return;
    }
    if (req->type == NBD_CMD_BLOCK_STATUS) {
        ret = nbd_co_block_status(req);
        if (ret < 0)
            nbd_reply_error(req, nbd_error_of(ret));
        return;
    }
    ret = request_co_run(req);
    if (G_UNLIKELY(ret < 0))
        nbd_reply_error(req, nbd_error_of(ret));
    else
        nbd_reply_done(req);
}
