/*
 * The job that changes options of an image in use: Driver.co_amend.
 */
#pragma once
#include "block/jobs/job.h"

/* For job_start(); NULL with @error. @options are copied. */
Job *amend_new(JobList *list, const char *id, Node *node, const BlockdevAmendOptions *options, bool force,
               GError **error);
