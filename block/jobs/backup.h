/*
 * The backup job: copies an image as it is at the moment the job starts, while clients go on writing.
 */
#pragma once
#include "block/jobs/job.h"

/*
 * drive-backup and blockdev-backup. Each returns a job for backup_co_start() (or job_co_discard()) with everything of
 * the graph in place, or NULL with QEMU's words and nothing changed but for a target image that was created. The copy
 * shows the source as it was when this was called. @txn may be NULL.
 */
Job *backup_co_new_drive(JobList *list, JobTxn *txn, const DriveBackup *arg, GError **error);
Job *backup_co_new_blockdev(JobList *list, JobTxn *txn, const BlockdevBackup *arg, GError **error);

/* Starts it, inside a drained section of the source: clients see it paused for a moment, as with QEMU. */
void backup_co_start(Job *job);
