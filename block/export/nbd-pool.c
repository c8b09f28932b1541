/*
 * Requests and receive buffers (LAW 6).
 */
#include "block/aio/io.h"
#include "block/export/nbd-int.h"

/* Requests and receive buffers kept for reuse by a server. */
#define KEEP_REQS    512
#define KEEP_IN_BUFS 64

NbdReq *nbd_req_new(NbdClient *client)
{
    NbdServer *server = client->server;
    NbdReq *req = server->free_reqs;

    if (req) {
        server->free_reqs = req->next;
        server->n_free_reqs--;
    } else {
        req = g_new(NbdReq, 1);
    }
    req->next = NULL;
    req->client = client;
    req->charge = 0;
    req->data = NULL;
    req->in = NULL;
    req->buf = NULL;
    req->extra = NULL;
    req->pipe = NULL;
    client->n_reqs++;
    return req;
}

void nbd_req_free(NbdReq *req)
{
    NbdClient *client = req->client;
    NbdServer *server = client->server;

    if (req->in)
        nbd_in_buf_unref(server, req->in);
    aio_buf_put(client->loop, req->buf, req->buf_size);
    aio_buf_put(client->loop, req->extra, req->extra_size);
    if (req->pipe)
        client->n_pipes--;
    aio_pipe_put(client->loop, req->pipe);
    client->req_bytes -= req->charge;
    server->bytes -= req->charge;
    client->n_reqs--;
    if (server->n_free_reqs < KEEP_REQS) {
        req->next = server->free_reqs;
        server->free_reqs = req;
        server->n_free_reqs++;
    } else {
        g_free(req);
    }
    coqueue_wake_one(&client->slots);
}

bool nbd_req_alloc(NbdReq *req, size_t size)
{
    g_assert(!req->buf);
    req->buf = aio_buf_get(req->client->loop, size);
    req->buf_size = size;
    return req->buf != NULL;
}

bool nbd_req_alloc_extra(NbdReq *req, size_t size)
{
    g_assert(!req->extra);
    req->extra = aio_buf_get(req->client->loop, size);
    req->extra_size = size;
    return req->extra != NULL;
}

void nbd_req_release_data(NbdReq *req)
{
    if (req->in) {
        nbd_in_buf_unref(req->client->server, req->in);
        req->in = NULL;
    }
    aio_buf_put(req->client->loop, req->buf, req->buf_size);
    req->buf = NULL;
    req->data = NULL;
}

/* Not from the loop's pool, whose large buffers lie in huge pages: most clients use little of theirs. */
NbdInBuf *nbd_in_buf_new(NbdClient *client)
{
    NbdServer *server = client->server;
    NbdInBuf *in = server->free_in_bufs;

    if (in) {
        server->free_in_bufs = in->next;
        server->n_free_in_bufs--;
    } else {
        in = g_try_malloc(NBD_IN_BUF_SIZE);
    }
    if (in) {
        in->refs = 1;
        in->start = in->end = 0;
    }
    return in;
}

void nbd_in_buf_unref(NbdServer *server, NbdInBuf *in)
{
    if (--in->refs > 0)
        return;
    if (server->n_free_in_bufs < KEEP_IN_BUFS) {
        in->next = server->free_in_bufs;
        server->free_in_bufs = in;
        server->n_free_in_bufs++;
    } else {
        g_free(in);
    }
}

void nbd_pool_free(NbdServer *server)
{
    while (server->free_reqs) {
        NbdReq *req = server->free_reqs;

        server->free_reqs = req->next;
        g_free(req);
    }
    server->n_free_reqs = 0;
    while (server->free_in_bufs) {
        NbdInBuf *in = server->free_in_bufs;

        server->free_in_bufs = in->next;
        g_free(in);
    }
    server->n_free_in_bufs = 0;
}
