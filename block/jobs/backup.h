/*
 * The backup job: copies an image as it is at the moment the job starts, while clients go on writing.
 */
#pragma once
#include "block/jobs/job.h"

/*
 * For drive-backup: makes the target image of @source where @arg asks for that, and opens it. This may take long;
 * nothing that is in use changes. @bitmap_comes: the bitmap is made only later, so do not look for it. One reference,
 * the caller's, and in *@ret_new whether the file was not there before; NULL with QEMU's words.
 */
Node *backup_co_open_target(JobList *list, Node *source, const DriveBackup *arg, bool bitmap_comes, bool *ret_new,
                            GError **error);

/*
 * drive-backup and blockdev-backup, with the nodes that their arguments name. Each returns a job for backup_co_start()
 * (or job_co_discard()) with everything of the graph in place, or NULL with QEMU's words and nothing changed. The copy
 * shows the source as it was when this was called. They do not yield while @source is drained. @txn may be NULL.
 */
Job *backup_co_new_drive(JobList *list, JobTxn *txn, const DriveBackup *arg, Node *source, Node *target,
                         GError **error);
Job *backup_co_new_blockdev(JobList *list, JobTxn *txn, const BlockdevBackup *arg, Node *source, Node *target,
                            GError **error);

/* Starts it, inside a drained section of the source: clients see it paused for a moment, as with QEMU. */
void backup_co_start(Job *job);
