/*
 * One QMP session: a client that sends commands and gets replies and events.
 *
 * Each session has a coroutine that reads, carries out commands one after the other and so delays no other session.
 * What it sends is collected over a turn of the loop and leaves in one piece. Memory is bounded: input by the JSON
 * stream's limits, output by not reading on while replies wait; a client that lets events pile up is cut off.
 */
#pragma once
#include "daemon/daemon.h"
#include "qapi/rt/command.h"

typedef struct Session Session;

struct QmpContext {
    Daemon *daemon;
    Session *session; /* NULL: start-up, doing what an option says */
};

/* Called, outside of coroutines or in one, when the session is over and its descriptors are closed. */
typedef void SessionEnded(void *opaque);

/*
 * Begins to serve @in_fd and @out_fd (the same for sockets), which become the session's; standard streams stay open.
 * @ended may be NULL.
 */
void session_start(Daemon *daemon, int in_fd, int out_fd, bool pretty, SessionEnded *ended, void *opaque);

/* The event sink of the daemon @opaque: sends an event to every negotiated session. */
void session_event(const char *name, Tree *data, void *opaque);

/* The client has negotiated: from now on it may give any command and gets events. False when it had before. */
bool session_negotiate(Session *session);

/* Interrupts what commands in progress wait for, where it can be; they then fail or go on. */
void sessions_cancel_commands(Daemon *daemon);

/* Ends all sessions: what is in their output still leaves, as far as the clients take it soon. */
void sessions_end(Daemon *daemon);
