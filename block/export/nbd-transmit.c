/*
 * Requests of the transmission phase, each in a coroutine of its own: checked, done, answered.
 */
#include "block/export/nbd-int.h"
#include "block/util/bytes.h"
#include <errno.h>

uint32_t nbd_error_of(int ret)
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

static ReqFlags write_flags(const NbdReq *req)
{
    return req->flags & NBD_CMD_FLAG_FUA ? REQ_FUA : 0;
}

/* ---- all but reads: 0 or -errno ---------------------------------------------------------------------------------- */

static int request_co_write(NbdReq *req)
{
    int ret = port_co_pwrite(nbd_req_port(req), req->offset, req->len, req->data, write_flags(req));

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
    return port_co_pwrite_zeroes(nbd_req_port(req), req->offset, req->len, flags);
}

static int request_co_trim(NbdReq *req)
{
    int ret = port_co_pdiscard(nbd_req_port(req), req->offset, req->len);

    if (ret == 0 && write_flags(req))
        ret = port_co_flush(nbd_req_port(req));
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

        ret = port_co_pread(nbd_req_port(req), offset, n, req->buf, 0);
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
        return port_co_flush(nbd_req_port(req));
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

    if (G_UNLIKELY(req->crowded))
        coroutine_share_work();
    if (G_UNLIKELY(error)) {
        nbd_req_release_data(req);
        nbd_reply_error(req, error);
        return;
    }
    if (req->type == NBD_CMD_READ) {
        nbd_co_read(req);
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
