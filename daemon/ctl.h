/*
 * storage-ctl: the daemon from a terminal. A plain blocking client; links with nothing above qapi.
 */
#pragma once
#include "qapi/rt/json.h"
#include "qapi/types.h"
#include <stdbool.h>

/* A connection. Single thread. */
typedef struct Ctl {
    int fd;
    JsonStream *stream;
    GQueue events; /* of Tree *, received and not yet looked at */
    int64_t next_id;
} Ctl;

/* Connects to the unix socket @path and negotiates. */
bool ctl_connect(Ctl *ctl, const char *path, GError **error);
void ctl_close(Ctl *ctl);

/* Sends a command with @arguments (an object or NULL, consumed) and waits for its reply: what it returns, the caller's;
 * NULL with @error. */
Tree *ctl_call(Ctl *ctl, const char *command, Tree *arguments, GError **error);

/* The next event, waiting at most @timeout_ms (-1: for ever). False with @error when the connection is lost; true with
 * *@ret NULL when none came. */
bool ctl_event(Ctl *ctl, int timeout_ms, Tree **ret, GError **error);

/* ---- commands: what main() returns; errors are printed as "storage-ctl: …" -------------------------------------- */

typedef int CtlCommandFn(Ctl *ctl, int argc, char **argv);
CtlCommandFn ctl_status, ctl_jobs, ctl_watch, ctl_graph, ctl_qmp, ctl_events;

/* Prints @error, frees it, returns 1. */
int ctl_fail(GError *error);

/* May the terminal show box drawing and block characters? */
bool ctl_unicode(void);

/* Columns of text that are as wide as their widest cell. */
typedef struct CtlTable CtlTable;
CtlTable *ctl_table_new(const char *title, ...) G_GNUC_NULL_TERMINATED;
void ctl_table_row(CtlTable *table, ...) G_GNUC_NULL_TERMINATED;
/* Prints it, or "no TITLE" when there is no row, and frees it. */
void ctl_table_end(CtlTable *table, const char *what);
