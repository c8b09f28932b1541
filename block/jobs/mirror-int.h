/*
 * What mirror.c, mirror-start.c and mirror-filter.c share.
 */
#pragma once
#include "block/graph/bitmap.h"
#include "block/jobs/common.h"
#include "block/jobs/copy.h"
#include "block/jobs/mirror.h"

typedef struct MirrorJob {
    Job common;
    MirrorSyncMode sync; /* top has a backing file */
    bool unmap, active;  /* active: clients' writes go to both (write-blocking) */
    uint64_t granularity, buf_size;
    BlockdevOnError on_source_error, on_target_error;
    char *replaces;    /* node to be replaced; NULL: the source */
    Node *new_backing; /* referenced: becomes the target's backing file on completion; NULL: leave it alone */
    bool commit;       /* the target is below the source, and gets what is above it */
    bool target_was_read_only, frozen; /* commit: and is to be so again; the chain between is frozen */
    bool backing_later; /* what the target has behind it is not to be relied on: clusters are copied whole */

    /* in the graph from start to co_clean */
    Node *source, *target; /* kept by Job.nodes */
    Node *filter;          /* referenced */
    bool inserted;         /* the filter is above the source */
    Port *source_port;     /* on the filter */
    Port *target_port;
    Bitmap *dirty; /* of the source: differs from the target. Survives nowhere */
    Copy *copy;    /* NULL until co_run made it */

    /* while running */
    bool idle; /* sleeps until something is dirty */
    bool should_complete;
    bool stopped;  /* copies no more: the filter only passes through */
    bool drained;  /* the source is: nothing may change between the last copy and the switch */
    bool bypassed; /* active: somebody wrote to the source, but not through the filter; it stays so */
} MirrorJob;

typedef struct MirrorFilter {
    MirrorJob *job;
} MirrorFilter;

/* The filter above the source: "mirror_top". The active one copies writes as they pass. */
extern const Driver mirror_filter_passive, mirror_filter_active;
/* A passive one that lets the chain below it be written to. */
extern const Driver mirror_filter_commit;

/* The second calls itself a commit. */
extern const JobDriver mirror_job_driver, mirror_commit_job_driver;

/* Lets the dirty bitmap wake the job. */
void mirror_watch(MirrorJob *m);
