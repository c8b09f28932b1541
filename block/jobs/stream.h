/*
 * The stream job: copies what images below hold into an image.
 */
#pragma once
#include "block/jobs/job.h"

/* block-stream. Returns a job for job_start() (or job_co_discard()) with everything of the graph in place, or NULL with
 * QEMU's words and nothing changed. */
Job *stream_co_new(JobList *list, const BlockStream *arg, GError **error);
