/*
 * The create job: makes an image, or an empty file.
 */
#pragma once
#include "block/jobs/job.h"

/* blockdev-create. Returns a job for job_start() (or job_co_discard()); nothing is opened or made before it runs. NULL
 * with @error. @options is copied. */
Job *create_job_new(JobList *list, const char *id, const BlockdevCreateOptions *options, GError **error);
