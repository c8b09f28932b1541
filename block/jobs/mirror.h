/*
 * The mirror job: copies an image, keeps the copy up to date, and switches over to it on request.
 */
#pragma once
#include "block/jobs/job.h"

/*
 * drive-mirror and blockdev-mirror. Each returns a job for job_start() (or job_co_discard()), with everything of the
 * graph in place, or NULL with QEMU's words and nothing changed but for a target image that was created.
 */
Job *mirror_co_new_drive(JobList *list, const DriveMirror *arg, GError **error);

/* blockdev-mirror's arguments, as the daemon got them. */
typedef struct MirrorArgs {
    const char *job_id, *device, *target, *replaces, *filter_node_name; /* NULL: not given; device and target are */
    MirrorSyncMode sync;
    int64_t speed;        /* bytes per second, 0: unlimited */
    bool has_granularity; /* else by the target's clusters */
    uint64_t granularity; /* bytes */
    int64_t buf_size;     /* bytes, 0: the program chooses */
    BlockdevOnError on_source_error, on_target_error;
    MirrorCopyMode copy_mode;
    bool auto_finalize, auto_dismiss;
} MirrorArgs;
Job *mirror_co_new_blockdev(JobList *list, const MirrorArgs *arg, GError **error);
