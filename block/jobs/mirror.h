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
Job *mirror_co_new_blockdev(JobList *list, const BlockdevMirror *arg, GError **error);

/* block-commit of a device's own image @source into @base, which is below it. Of @arg job_id, filter_node_name, speed,
 * on_*_error and auto_* count. The job says that it is a commit. */
Job *mirror_co_new_commit(JobList *list, const BlockdevMirror *arg, Node *source, Node *base, GError **error);
