/*
 * The process: what the command handlers of daemon/ work on.
 */
#pragma once
#include "block/graph/node.h"

typedef struct QmpContext QmpContext;
typedef struct JobList JobList;       /* block/jobs/job.h */
typedef struct ExportList ExportList; /* block/export/export.h */

typedef struct Daemon {
    Loop *loop;
    Graph *graph;
    JobList *jobs;
    ExportList *exports;
    bool quitting; /* quit or SIGTERM: no new work */
} Daemon;

/* The daemon that a command came to. */
Daemon *qmp_daemon(QmpContext *ctx);
