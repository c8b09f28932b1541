/*
 * Answers: built in the request, queued at the client, sent together.
 */
#include "block/aio/io.h"
#include "block/export/nbd-int.h"
#include "block/util/bytes.h"
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

/* A load: what has gathered is sent without waiting for the end of the turn, so that the client has work meanwhile. */
#define LOAD_BYTES (128u * 1024)
/* Elements of one sendmsg. */
#define SEND_IOVS 256

size_t nbd_put_chunk(void *p, const NbdReq *req, uint16_t flags, uint16_t type, uint32_t len)
{
    uint8_t *h = p;

    store_be32(h, NBD_CHUNK_MAGIC);
    store_be16(h + 4, flags);
    store_be16(h + 6, type);
    store_be64(h + 8, req->cookie);
    store_be32(h + 16, len);
    return NBD_CHUNK_SIZE;
}

static size_t put_simple(NbdReq *req, uint32_t nbd_error)
{
    store_be32(req->head, NBD_SIMPLE_MAGIC);
    store_be32(req->head + 4, nbd_error);
    store_be64(req->head + 8, req->cookie);
    return NBD_SIMPLE_REPLY_SIZE;
}

/* Describes the next elements to send; how many. */
static int gather(const NbdClient *client, struct iovec *iov)
{
    size_t skip = client->out_sent;
    int n = 0;

    for (const NbdReq *req = client->out_head; req; req = req->next) {
        for (int i = 0; i < req->niov; i++) {
            if (skip >= req->iov[i].iov_len) {
                skip -= req->iov[i].iov_len;
                continue;
            }
            if (n == SEND_IOVS)
                return n;
            iov[n].iov_base = (char *)req->iov[i].iov_base + skip;
            iov[n].iov_len = req->iov[i].iov_len - skip;
            skip = 0;
            n++;
        }
    }
    return n;
}

/* @bytes have left: frees the requests that are answered. */
static void advance(NbdClient *client, size_t bytes)
{
    client->out_bytes -= bytes;
    bytes += client->out_sent;
    while (client->out_head && bytes >= client->out_head->out_bytes) {
        NbdReq *req = client->out_head;

        bytes -= req->out_bytes;
        client->out_head = req->next;
        if (!client->out_head)
            client->out_tail = NULL;
        nbd_req_free(req);
    }
    client->out_sent = bytes;
}

/* The connection is closing: forgets answers that nobody will read. */
static void drop_answers(NbdClient *client)
{
    advance(client, client->out_bytes); /* as if all had left */
    g_assert(!client->out_head && !client->out_sent);
}

/* The socket is full: waits for room, in a coroutine of its own, until everything has left. */
static void send_co_entry(void *opaque)
{
    NbdClient *client = opaque;
    struct iovec iov[SEND_IOVS];

    while (client->out_head && !client->closing) {
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)gather(client, iov)};
        ssize_t n = aio_co_sendmsg(client->fd, &msg, MSG_NOSIGNAL);

        if (n < 0)
            nbd_client_close(client);
        else
            advance(client, (size_t)n);
    }
    client->sending = false;
    if (client->closing)
        drop_answers(client);
    coqueue_wake_one(&client->slots);
}

/* Sends without waiting; most of the time that is all there is to do. */
static void send_now(NbdClient *client)
{
    struct iovec iov[SEND_IOVS];

    while (client->out_head && !client->sending) {
        struct msghdr msg = {.msg_iov = iov};
        ssize_t n;

        if (client->closing) {
            drop_answers(client);
            return;
        }
        msg.msg_iovlen = (size_t)gather(client, iov);
        n = sendmsg(client->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            advance(client, (size_t)n);
        } else if (errno == EAGAIN) {
            client->sending = true;
            coroutine_start(client->loop, send_co_entry, client);
        } else if (errno != EINTR) {
            nbd_client_close(client);
        }
    }
}

void nbd_reply_turn_end(void *opaque)
{
    send_now(opaque);
}

void nbd_reply_iov(NbdReq *req)
{
    NbdClient *client = req->client;

    if (client->out_tail)
        client->out_tail->next = req;
    else
        client->out_head = req;
    client->out_tail = req;
    client->out_bytes += req->out_bytes;
    if (client->out_bytes >= LOAD_BYTES)
        send_now(client);
    else
        loop_at_turn_end(client->loop, &client->turn_end);
}

static void reply_head(NbdReq *req, size_t len)
{
    req->small_iov[0] = (struct iovec){.iov_base = req->head, .iov_len = len};
    req->iov = req->small_iov;
    req->niov = 1;
    req->out_bytes = len;
    nbd_reply_iov(req);
}

void nbd_reply_error(NbdReq *req, uint32_t nbd_error)
{
    size_t len;

    if (!req->client->structured) {
        reply_head(req, put_simple(req, nbd_error));
        return;
    }
    len = nbd_put_chunk(req->head, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_ERROR, 6);
    store_be32(req->head + len, nbd_error);
    store_be16(req->head + len + 4, 0); /* no text */
    reply_head(req, len + 6);
}

void nbd_reply_done(NbdReq *req)
{
    /* A simple answer will do for all but reads, also where structured ones were negotiated. */
    if (!req->client->structured || (req->type != NBD_CMD_READ && req->type != NBD_CMD_BLOCK_STATUS))
        reply_head(req, put_simple(req, 0));
    else
        reply_head(req, nbd_put_chunk(req->head, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_NONE, 0));
}

void nbd_reply_hole(NbdReq *req)
{
    size_t len = nbd_put_chunk(req->head, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_OFFSET_HOLE, 12);

    store_be64(req->head + len, req->offset);
    store_be32(req->head + len + 8, req->len);
    reply_head(req, len + 12);
}

void nbd_reply_data(NbdReq *req)
{
    size_t len;

    if (req->client->structured) {
        len = nbd_put_chunk(req->head, req, NBD_REPLY_FLAG_DONE, NBD_REPLY_OFFSET_DATA, 8 + req->len);
        store_be64(req->head + len, req->offset);
        len += 8;
    } else {
        len = put_simple(req, 0);
    }
    req->small_iov[0] = (struct iovec){.iov_base = req->head, .iov_len = len};
    req->small_iov[1] = (struct iovec){.iov_base = req->buf, .iov_len = req->len};
    req->iov = req->small_iov;
    req->niov = 2;
    req->out_bytes = len + req->len;
    nbd_reply_iov(req);
}
