/*
 * What export.c and the kinds of exports share.
 */
#pragma once
#include "block/export/export.h"

struct NbdServer;

struct ExportList {
    Loop *loop;
    Graph *graph;
    GQueue exports;        /* of Export *, newest first */
    CoQueue gone;          /* woken when an export has gone or has been made */
    struct NbdServer *nbd; /* NULL: not running */
};
