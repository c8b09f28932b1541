/*
 * What the files of the NBD server share: server, export, client, request.
 *
 * The way of a request: the client's reader coroutine receives as much as there is and parses it (nbd-client.c); each
 * request runs in a coroutine of its own (nbd-transmit.c, nbd-read.c, nbd-status.c) and leaves its answer in the
 * client's queue; when the turn ends, or a good load has gathered, all answers leave in one sendmsg, but for those that
 * are pages in a pipe (nbd-reply.c). Requests, their buffers and the receive buffers come from pools, and an idle
 * client holds none.
 *
 * All fields belong to the loop's thread.
 */
#pragma once
#include "block/aio/socket.h"
#include "block/export/export-int.h"
#include "block/export/nbd-handshake.h"
#include "block/export/nbd-proto.h"
#include "block/graph/status.h"

typedef struct NbdServer NbdServer;
typedef struct NbdExport NbdExport;
typedef struct NbdClient NbdClient;
typedef struct NbdReq NbdReq;
typedef struct NbdInBuf NbdInBuf;

/* One client's requests that are not answered yet: their number, and the bytes of their buffers. */
#define NBD_MAX_REQUESTS     128
#define NBD_CACHE_STEP       (1u << 20) /* how much of a NBD_CMD_CACHE is read at a time */
#define NBD_MAX_CLIENT_BYTES (16u << 20)
/* All clients' together: above it, each client gets one request at a time. */
#define NBD_MAX_SERVER_BYTES (512u << 20)

struct NbdServer {
    ExportList *list;
    Loop *loop;
    SocketListener *listener;
    bool starting, stopping;  /* of no use to clients and commands yet, or any more */
    uint32_t max_connections; /* 0: no limit */
    GQueue clients;           /* of NbdClient * */
    CoQueue client_gone;
    GPtrArray *exports; /* of NbdExportInfo *, each in its NbdExport; those that clients can choose */
    size_t bytes;       /* of requests' buffers */
    NbdReq *free_reqs;
    unsigned n_free_reqs;
    NbdInBuf *free_in_bufs;
    unsigned n_free_in_bufs;
    Timer idle_timer; /* takes receive buffers from clients that fell silent */
    unsigned in_bufs; /* clients that hold one */
};

struct NbdExport {
    Export base;
    NbdServer *server;
    NbdExportInfo info;
    bool listed;            /* in server->exports */
    GPtrArray *bitmaps;     /* of Bitmap *, each counted in its busy */
    unsigned first_bitmap;  /* the context id of bitmaps[0] */
    unsigned depth_context; /* the context id of qemu:allocation-depth, 0: not offered */
};

/* A receive buffer. The structure lies at the beginning of its own memory. */
struct NbdInBuf {
    NbdInBuf *next;    /* in the pool */
    unsigned refs;     /* the client's, and one for each write whose data still stands here */
    size_t start, end; /* received and not yet parsed: offsets into data */
    uint8_t data[];
};
#define NBD_IN_BUF_SIZE (256u * 1024)
#define NBD_IN_BUF_DATA (NBD_IN_BUF_SIZE - sizeof(NbdInBuf))

struct NbdClient {
    NbdServer *server;
    Loop *loop;
    int fd;
    NbdExport *exp; /* a reference of it is held; NULL while negotiating */
    bool structured;
    bool takes_pages;  /* the socket is local and non-blocking, so that pipes can be spliced into it */
    uint64_t contexts; /* bits: selected metadata contexts */
    bool closing;      /* the connection is of no use any more */
    Coroutine *reader;

    /* receiving */
    NbdInBuf *in;     /* NULL while idle */
    bool in_wait;     /* the reader waits in recv with nothing in the buffer */
    bool in_active;   /* something came since the idle timer looked */
    CoQueue slots;    /* the reader, when too much is in flight; at the end, until nothing is */
    unsigned n_reqs;  /* not yet answered */
    unsigned depth;   /* the most of them in the last second */
    size_t req_bytes; /* of their buffers */

    /* answering */
    NbdReq *out_head, *out_tail;
    size_t out_bytes; /* queued */
    size_t out_sent;  /* of the first one, sent already */
    size_t burst;     /* sent in this turn */
    unsigned n_pipes; /* of answers in the queue */
    TurnEnd turn_end;
    bool sending; /* a coroutine waits for room in the socket, or for the next turn */
};

struct NbdReq {
    NbdReq *next; /* in the pool or the queue of answers */
    NbdClient *client;
    uint64_t cookie, offset;
    uint32_t len;
    uint16_t type, flags;
    bool crowded;  /* when it began others were under way or had come */
    size_t charge; /* counted in req_bytes */

    uint8_t *data; /* what is written: in @in, or in @buf; what was read: @buf */
    NbdInBuf *in;
    void *buf;
    size_t buf_size;
    void *extra; /* more chunks, extents: see iov */
    size_t extra_size;

    /* the answer: iov, or what is in the pipe */
    AioPipe *pipe;
    struct iovec *iov;
    int niov;
    size_t out_bytes;
    struct iovec small_iov[2];
    uint8_t head[40];
};

/* nbd-export.c */
static inline NbdExport *nbd_export_of_info(const NbdExportInfo *info)
{
    return (NbdExport *)((char *)info - G_STRUCT_OFFSET(NbdExport, info));
}

/* nbd-client.c: begins to serve @fd, which becomes the client's. */
void nbd_client_start(NbdServer *server, int fd);
/* Makes the connection useless; the client's coroutines notice, end and free it. */
void nbd_client_close(NbdClient *client);
void nbd_server_idle_tick(void *opaque);

/* nbd-server.c */
bool nbd_server_running(const ExportList *list);
/* The last word of a client. */
void nbd_server_client_gone(NbdServer *server, NbdClient *client);

/* nbd-pool.c */
NbdReq *nbd_req_new(NbdClient *client);
void nbd_req_free(NbdReq *req);
/* The request's buffer, false when memory is short. */
bool nbd_req_alloc(NbdReq *req, size_t size);
bool nbd_req_alloc_extra(NbdReq *req, size_t size);
/* What was to be written has been: its place in the receive buffer or its own buffer is free again. */
void nbd_req_release_data(NbdReq *req);
NbdInBuf *nbd_in_buf_new(NbdClient *client); /* NULL when memory is short */
void nbd_in_buf_unref(NbdServer *server, NbdInBuf *in);
void nbd_pool_free(NbdServer *server);

/* nbd-transmit.c: runs a request, its data received, to its answer. */
void nbd_request_co_entry(void *opaque);
uint32_t nbd_error_of(int ret); /* of -errno, among those that the protocol knows */
static inline Port *nbd_req_port(const NbdReq *req)
{
    return req->client->exp->base.port;
}

/* nbd-read.c: NBD_CMD_READ to its answer. */
void nbd_co_read(NbdReq *req);

/* nbd-status.c: extents of [req->offset, req->len) into an answer. 0 or -errno. */
int nbd_co_block_status(NbdReq *req);
/* node_co_block_status_above() of the exported node down to the bottom; ret->bytes is never 0. */
int nbd_co_status_above(NbdReq *req, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret, int *ret_depth);

/* nbd-reply.c. Each queues the answer of @req; it leaves with the next load and @req is freed then. */
void nbd_reply_error(NbdReq *req, uint32_t nbd_error);
void nbd_reply_done(NbdReq *req);                /* without data */
void nbd_reply_data(NbdReq *req);                /* req->len bytes at req->buf */
void nbd_reply_hole(NbdReq *req);                /* all of a read is zeroes; only to clients with structured answers */
void nbd_reply_iov(NbdReq *req);                 /* req->iov, niov and out_bytes say */
void nbd_reply_pipe(NbdReq *req, AioPipe *pipe); /* what is in the pipe, which becomes the request's */
/* Writes a chunk's header at @p; returns NBD_CHUNK_SIZE. */
size_t nbd_put_chunk(void *p, const NbdReq *req, uint16_t flags, uint16_t type, uint32_t len);
/* The same for what precedes @len bytes of data from @offset on, or stands for a hole; returns what was written. */
size_t nbd_put_data(uint8_t *p, const NbdReq *req, uint16_t flags, uint64_t offset, uint32_t len);
size_t nbd_put_hole(uint8_t *p, const NbdReq *req, uint16_t flags, uint64_t offset, uint32_t len);
size_t nbd_put_simple(uint8_t *p, const NbdReq *req, uint32_t nbd_error);
void nbd_reply_turn_end(void *opaque);
