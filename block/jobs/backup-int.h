/*
 * What backup.c, backup-start.c and backup-filter.c share.
 */
#pragma once
#include "block/graph/bitmap.h"
#include "block/jobs/backup.h"
#include "block/jobs/common.h"
#include "block/jobs/copy.h"

typedef struct BackupJob {
    Job common;
    MirrorSyncMode sync;
    BlockdevOnError on_target_error;
    Bitmap *bitmap; /* frozen until the end; NULL: none */
    BitmapSyncMode bitmap_mode;

    /* in the graph from start to co_clean */
    Node *source, *target; /* kept by Job.nodes */
    Node *filter;          /* referenced */
    bool inserted;         /* the filter is above the source */
    Port *port;            /* on the filter, without permissions: tells the job of drained sections */
    HBitmap *todo;         /* clusters not copied yet */
    Copy *copy;
    bool stopped; /* the filter only passes through */
} BackupJob;

typedef struct BackupFilter {
    BackupJob *job;
} BackupFilter;

/* "copy-before-write": the source below as "file", the target as "target". */
extern const Driver backup_filter;

extern const JobDriver backup_job_driver;
