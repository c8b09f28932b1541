/*
 * Reads. Short ones are read into a buffer and sent as they are. Long ones are looked at for holes, and what is data is
 * sent from where it lies, if node and connection allow it: the pages of a file in memory go through a pipe into the
 * socket, and only the client copies. It then sees what is written to them until it has read its answer, which is what
 * a read may see while it is under way (graph/io-pages.c).
 *
 * Measured (256 KiB, 16 in flight, raw on tmpfs): 15 to 20 us of our processor time a request, against 64 to 70 with
 * two copies; 14,700 a second against 10,800, though the client takes some 5 us longer, since the pages are not in its
 * processor's cache.
 */
#include "block/aio/io.h"
#include "block/export/nbd-int.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include <errno.h>

/* Reads of at least this much are long; for less, asking for holes costs more. */
/*
 * Of the loop's pipes for answers that wait for one client's socket: who does not read leaves others some. Measured
 * (256 KiB reads, 16 in flight, medians of 7 by turns): 18,800 a second without this limit, 19,000 with 12, 16,900 with
 * 8; in another run 21,000 without and 16,200 with 4.
 */
#define CLIENT_PIPES 12
#define LONG_READ    (64u * 1024)
/* A hole shorter than this is sent as data: a chunk costs more than it saves. */
#define HOLE_MIN (4u * 1024)
/* Chunks of one answer; the last one takes the rest as data. */
#define SPARSE_CHUNKS 32

/* One chunk of an answer. */
typedef struct Chunk {
    uint64_t offset;
    uint32_t len;
    bool hole;
    size_t head_len;
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

/* The chunks' headers, in place of which a client without structured answers gets its one. */
static void put_heads(NbdReq *req, Sparse *s)
{
    for (int i = 0; i < s->n; i++) {
        Chunk *c = &s->chunks[i];
        uint16_t flags = i == s->n - 1 ? NBD_REPLY_FLAG_DONE : 0;

        if (!req->client->structured)
            c->head_len = nbd_put_simple(c->head, req, 0);
        else
            c->head_len = c->hole ? nbd_put_hole(c->head, req, flags, c->offset, c->len)
                                  : nbd_put_data(c->head, req, flags, c->offset, c->len);
    }
}

static void reply_chunks(NbdReq *req, Sparse *s)
{
    int n = 0;

    req->out_bytes = 0;
    for (int i = 0; i < s->n; i++) {
        Chunk *c = &s->chunks[i];

        s->iov[n++] = (struct iovec){.iov_base = c->head, .iov_len = c->head_len};
        req->out_bytes += c->head_len;
        if (!c->hole) {
            s->iov[n++] = (struct iovec){.iov_base = (char *)req->buf + (c->offset - req->offset), .iov_len = c->len};
            req->out_bytes += c->len;
        }
    }
    req->iov = s->iov;
    req->niov = n;
    nbd_reply_iov(req);
}

/* Answers with pages. False: nothing has happened, the data has to be copied. */
static bool read_co_pages(NbdReq *req, const Sparse *s)
{
    Loop *loop = req->client->loop;
    AioPipe *pipe;
    int ret = 0;

    if (!req->client->takes_pages || req->client->n_pipes >= CLIENT_PIPES || req->len > AIO_PIPE_MAX ||
        !node_has_pages(port_node(nbd_req_port(req))))
        return false;
    pipe = aio_pipe_get(loop);
    if (!pipe)
        return false;
    for (int i = 0; i < s->n && ret == 0; i++) {
        const Chunk *c = &s->chunks[i];

        ret = aio_pipe_write(pipe, c->head, c->head_len);
        if (ret == 0 && !c->hole)
            ret = port_co_read_pages(nbd_req_port(req), c->offset, c->len, pipe);
    }
    if (ret < 0) {
        aio_pipe_put(loop, pipe);
        return false;
    }
    nbd_reply_pipe(req, pipe);
    return true;
}

static int read_co_chunks(NbdReq *req, const Sparse *s)
{
    int ret = nbd_req_alloc(req, req->len) ? 0 : -ENOMEM;

    for (int i = 0; i < s->n && ret == 0; i++) {
        const Chunk *c = &s->chunks[i];

        if (!c->hole)
            ret = port_co_pread(nbd_req_port(req), c->offset, c->len, (char *)req->buf + (c->offset - req->offset), 0);
    }
    return ret;
}

static void read_co_long(NbdReq *req)
{
    Sparse *s;
    int ret = 0;
    bool all_hole;

    if (!nbd_req_alloc_extra(req, sizeof(*s))) {
        nbd_reply_error(req, NBD_ENOMEM);
        return;
    }
    s = req->extra;
    s->n = 0;
    if (req->client->structured && !(req->flags & NBD_CMD_FLAG_DF))
        ret = sparse_co_map(req, s);
    else
        sparse_add(s, req->offset, req->len, false);
    if (ret == 0)
        put_heads(req, s);
    all_hole = s->n == 1 && s->chunks[0].hole;
    if (ret == 0 && !all_hole && read_co_pages(req, s))
        return;
    if (ret == 0 && !all_hole)
        ret = read_co_chunks(req, s);
    if (ret < 0)
        nbd_reply_error(req, nbd_error_of(ret));
    else
        reply_chunks(req, s);
}

void nbd_co_read(NbdReq *req)
{
    int ret;

    if (!req->len) {
        nbd_reply_done(req);
        return;
    }
    if (req->len >= LONG_READ) {
        read_co_long(req);
        return;
    }
    if (!nbd_req_alloc(req, req->len)) {
        nbd_reply_error(req, NBD_ENOMEM);
        return;
    }
    ret = port_co_pread(nbd_req_port(req), req->offset, req->len, req->buf,
                        req->client->structured ? REQ_MAY_SKIP_ZEROES : 0);
    if (G_UNLIKELY(ret < 0))
        nbd_reply_error(req, nbd_error_of(ret));
    else if (ret == READ_ZEROES)
        nbd_reply_hole(req);
    else
        nbd_reply_data(req);
}
