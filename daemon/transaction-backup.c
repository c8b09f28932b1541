/*
 * Actions that start backups: the filter goes in while all sources are at rest, and the jobs start at commit.
 */
#include "block/jobs/backup.h"
#include "daemon/transaction.h"
#include <glib/gstdio.h>

typedef struct BackupAction {
    Action common;
    Node *source;  /* referenced */
    Node *target;  /* of drive-backup: opened here, referenced */
    bool new_file; /* of drive-backup: the target's file was not there before */
    Job *job;      /* from co_prepare on, unless it is undone */
} BackupAction;

static bool backup_find_source(BackupAction *a, const char *device, GError **error)
{
    Node *node = transaction_find(a->common.txn, device, device, error);

    if (!node)
        return false;
    a->source = node_ref(node);
    transaction_rest(a->common.txn, node);
    return true;
}

/* What @device is now, which must be what it was when the action opened. */
static bool backup_check_source(BackupAction *a, const char *device, GError **error)
{
    Node *node = transaction_find(a->common.txn, device, device, error);

    if (!node || !job_list_check_node(a->common.txn->daemon->jobs, node, error))
        return false;
    return node == a->source ||
           error_set(error, "'%s' became node '%s' while its backup was being prepared", device, node->name);
}

static void backup_co_commit(Action *action)
{
    backup_co_start(((BackupAction *)action)->job);
}

static void backup_co_abort(Action *action)
{
    BackupAction *a = (BackupAction *)action;

    job_co_abandon(g_steal_pointer(&a->job));
}

static void backup_co_clean(Action *action)
{
    BackupAction *a = (BackupAction *)action;

    node_co_unref(a->target); /* the job has its own reference */
    node_co_unref(a->source);
}

/* ---- blockdev-backup -------------------------------------------------------------------------------------------- */

static bool blockdev_co_open(Action *action, GError **error)
{
    const BlockdevBackup *arg = action->arg;

    return backup_find_source((BackupAction *)action, arg->device, error) &&
           transaction_find(action->txn, arg->target, arg->target, error);
}

static bool blockdev_co_prepare(Action *action, GError **error)
{
    BackupAction *a = (BackupAction *)action;
    const BlockdevBackup *arg = action->arg;
    Node *target;

    if (!backup_check_source(a, arg->device, error))
        return false;
    target = transaction_find(action->txn, arg->target, arg->target, error);
    if (target)
        a->job = backup_co_new_blockdev(action->txn->daemon->jobs, action->txn->jobs, arg, a->source, target, error);
    return a->job != NULL;
}

const ActionKind action_blockdev_backup = {
    .size = sizeof(BackupAction),
    .grouped = true,
    .co_open = blockdev_co_open,
    .co_prepare = blockdev_co_prepare,
    .co_commit = backup_co_commit,
    .co_abort = backup_co_abort,
    .co_clean = backup_co_clean,
};

/* ---- drive-backup ----------------------------------------------------------------------------------------------- */

static bool drive_co_open(Action *action, GError **error)
{
    BackupAction *a = (BackupAction *)action;
    const DriveBackup *arg = action->arg;
    bool bitmap_comes = arg->bitmap && transaction_adds_bitmap(action, arg->bitmap);

    if (!backup_find_source(a, arg->device, error))
        return false;
    a->target = backup_co_open_target(action->txn->daemon->jobs, a->source, arg, bitmap_comes, &a->new_file, error);
    return a->target != NULL;
}

static void drive_co_clean(Action *action)
{
    BackupAction *a = (BackupAction *)action;

    backup_co_clean(action);
    if (a->new_file && !a->job)
        g_unlink(((const DriveBackup *)action->arg)->target);
}

static bool drive_co_prepare(Action *action, GError **error)
{
    BackupAction *a = (BackupAction *)action;
    const DriveBackup *arg = action->arg;

    if (!backup_check_source(a, arg->device, error))
        return false;
    a->job = backup_co_new_drive(action->txn->daemon->jobs, action->txn->jobs, arg, a->source, a->target, error);
    return a->job != NULL;
}

const ActionKind action_drive_backup = {
    .size = sizeof(BackupAction),
    .grouped = true,
    .co_open = drive_co_open,
    .co_prepare = drive_co_prepare,
    .co_commit = backup_co_commit,
    .co_abort = backup_co_abort,
    .co_clean = drive_co_clean,
};
