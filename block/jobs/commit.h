/*
 * The commit job: writes what overlays hold into an image below them.
 */
#pragma once
#include "block/jobs/job.h"

/*
 * block-commit. Returns a job for job_start() (or job_co_discard()) with everything of the graph in place, or NULL with
 * QEMU's words and nothing changed. Where the topmost image is the device's own, the job is a mirror (mirror.h) onto
 * the base, which becomes ready.
 */
Job *commit_co_new(JobList *list, const BlockCommit *arg, GError **error);
