/*
 * The NBD client: what its files share. libnbd is named in this folder only.
 *
 * One node has one connection at a time. A coroutine of the node's own, the pump, drives it: it polls the socket, lets
 * libnbd read and write, and makes a new connection when one is lost. Requests hand their commands to libnbd, which
 * sends them at once where the socket takes them, and wait; the completion callback, which runs inside the pump, wakes
 * them. Many are in flight at once, and replies come in any order.
 */
#pragma once
#include "block/aio/socket.h"
#include "block/graph/driver.h"
#include "block/drivers/nbd/library.h"

/* What a server said about its export. */
typedef struct NbdFacts {
    uint64_t size; /* bytes */
    bool read_only, can_flush, can_fua, can_trim, can_zero, can_fast_zero, has_context;
    uint32_t min_block, max_block; /* bytes, 0: not said */
} NbdFacts;

/* All fields: the loop's thread. */
typedef struct NbdState {
    Node *node;

    /* options */
    SocketAddress *server; /* owned; addr borrows from it */
    SocketAddr addr;
    char *addr_name; /* for error texts */
    char *export;
    char *context;        /* metadata context that block status asks for */
    bool is_allocation;   /* context is base:allocation */
    int64_t reconnect_ns; /* how long requests wait for a new connection */
    int64_t open_ns;      /* how long opening tries again; 0: once */

    NbdFacts facts;

    /* connection */
    struct nbd_handle *h; /* NULL while there is none */
    Coroutine *pump;      /* NULL before open ends and once it has ended */
    short polling;        /* the events that the pump waits for; 0: it is running or about to */
    bool closing;
    bool gave_up;     /* there was no connection for reconnect_ns: requests fail until there is one */
    bool abandoned;   /* the program ends, and the server is silent: no request goes there any more */
    int64_t progress; /* when the connection last took or brought something */
    Timer give_up;
    unsigned outstanding;     /* commands in libnbd's hands */
    uint64_t completions;     /* commands that came back, ever */
    CoQueue waiting;          /* requests without a connection */
    uint64_t writes, flushed; /* writes completed, ever; how many of them the last good flush covered */
    CoQueue closed;           /* co_close, for the pump to end */
} NbdState;

/* The time that connecting and negotiating may take, where open-timeout does not say otherwise. */
#define NBDC_CONNECT_NS (INT64_C(10) * 1000000000)

/* ---- addr.c ----------------------------------------------------------------------------------------------------- */

/* Fills in s->addr and s->addr_name from s->server; refuses by name what cannot be done. */
bool nbdc_address(NbdState *s, GError **error);
/* How QEMU writes this server and export: caller frees. @export NULL: not given. */
char *nbdc_filename(const SocketAddress *server, const char *export);
BlockdevOptions *nbdc_parse_filename(const char *filename, GError **error);

/* ---- conn.c ----------------------------------------------------------------------------------------------------- */

/* Connects and negotiates, more than once where open-timeout says so. s->facts are filled in. */
bool nbdc_co_connect(NbdState *s, GError **error);
/* From now on the connection is looked after. */
void nbdc_start_pump(NbdState *s);
/* Says goodbye, ends the pump, closes. No request may be in flight. Harmless after a failed nbdc_co_connect(). */
void nbdc_co_disconnect(NbdState *s);
/* The driver's give_up. */
void nbdc_give_up(Node *node, int64_t since);
/* Waits until there is a connection that takes commands: 0, or -EIO when there is none in time. */
int nbdc_co_ready(NbdState *s);
/* A command was issued: if libnbd now waits for something else than the pump polls for, the pump looks again. */
void nbdc_kick(NbdState *s);

/* ---- request.c -------------------------------------------------------------------------------------------------- */

int nbdc_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
int nbdc_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
int nbdc_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags);
int nbdc_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes);
int nbdc_co_flush_to_disk(Node *node);
int nbdc_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret);
