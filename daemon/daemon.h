/*
 * The process: what the command handlers of daemon/ work on, how it ends.
 *
 * All fields: the loop's thread.
 */
#pragma once
#include "block/graph/node.h"

typedef struct QmpContext QmpContext;
typedef struct JobList JobList;       /* block/jobs/job.h */
typedef struct ExportList ExportList; /* block/export/export.h */

#define SD_VERSION "0.1.0"

typedef struct Daemon {
    Loop *loop;
    Graph *graph;
    JobList *jobs;
    ExportList *exports;
    GQueue objects; /* of Object *: object.h */
    CoMutex acting; /* for transactions, between their first co_prepare and their last co_commit or co_abort */
    bool quitting;  /* quit or SIGTERM: no new work */

    /* sessions and where they come from: chardev.c, session.c */
    bool serving;      /* start-up is complete: sessions are served; before, they wait */
    GQueue chardevs;   /* of Chardev *, owned */
    GQueue sessions;   /* of Session *, each owned by its own coroutine */
    unsigned commands; /* being carried out, without the quits that wait for the end */
    CoQueue idle;      /* waits for commands or sessions to become fewer */

    /* what qemu-io's commands leave behind: hmp-io*.c */
    unsigned hmp_requests; /* of aio_read and aio_write, under way */
    CoQueue hmp_idle;      /* waits for their end */
    GPtrArray *hmp_tags;   /* of char *: the breakpoints that were ever set */

    GHashTable *held_events; /* event-rate.c: those sent less than a second ago; NULL: none */

    /* the end: daemon.c */
    Coroutine *startup; /* runs until serving, then NULL */
    Coroutine *signals; /* waits for signals; NULL: not running */
    int signal_fd;      /* of main.c, from which they come */
    bool closed;        /* jobs, exports, devices and nodes are gone */
    CoQueue on_closed;  /* quits in progress */
    bool stuck;         /* something did not end in time: loop and graph cannot be freed */
} Daemon;

/* The daemon that a command came to. */
Daemon *qmp_daemon(QmpContext *ctx);

/* Makes an empty one on @loop, which it borrows, and becomes the receiver of all events. */
Daemon *daemon_new(Loop *loop);

/* After loop_run() returned. Takes NULL. */
void daemon_free(Daemon *daemon);

/*
 * Begins the end, once: SHUTDOWN tells clients @cause, start-up and new work stop, exports close, jobs are cancelled,
 * images flushed and closed, sessions told; then loop_stop(). Returns at once; may be called from anywhere on the
 * loop's thread.
 */
void daemon_end(Daemon *daemon, ShutdownCause cause);
