/*
 * Events on their way to the sessions. Those that a broken disk can raise by the thousand go out once a second at most,
 * each node for itself: the first at once, of those that follow within the second only the last.
 */
#pragma once
#include "daemon/daemon.h"
#include "qapi/rt/tree.h"

/* The event sink of the daemon @opaque; takes @data. */
void event_rate_sink(const char *name, Tree *data, void *opaque);

/* The end: what is held back goes out now. No more is held back. */
void event_rate_flush(Daemon *daemon);
