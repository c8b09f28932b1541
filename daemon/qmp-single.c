/*
 * QMP: the commands that are transactions of one action.
 */
#include "daemon/transaction.h"
#include "qapi/commands.h"

#define SINGLE(name, Args, TYPE)                                                                                       \
    bool qmp_co_##name(QmpContext *ctx, const Args *arg, GError **error)                                               \
    {                                                                                                                  \
        return transaction_co_single(ctx, TRANSACTION_ACTION_KIND_##TYPE, arg, error);                                 \
    }

SINGLE(block_dirty_bitmap_add, BlockDirtyBitmapAdd, BLOCK_DIRTY_BITMAP_ADD)
SINGLE(block_dirty_bitmap_remove, BlockDirtyBitmap, BLOCK_DIRTY_BITMAP_REMOVE)
SINGLE(block_dirty_bitmap_clear, BlockDirtyBitmap, BLOCK_DIRTY_BITMAP_CLEAR)
SINGLE(block_dirty_bitmap_enable, BlockDirtyBitmap, BLOCK_DIRTY_BITMAP_ENABLE)
SINGLE(block_dirty_bitmap_disable, BlockDirtyBitmap, BLOCK_DIRTY_BITMAP_DISABLE)
SINGLE(block_dirty_bitmap_merge, BlockDirtyBitmapMerge, BLOCK_DIRTY_BITMAP_MERGE)
SINGLE(blockdev_backup, BlockdevBackup, BLOCKDEV_BACKUP)
SINGLE(blockdev_snapshot, BlockdevSnapshot, BLOCKDEV_SNAPSHOT)
SINGLE(blockdev_snapshot_internal_sync, BlockdevSnapshotInternal, BLOCKDEV_SNAPSHOT_INTERNAL_SYNC)
SINGLE(blockdev_snapshot_sync, BlockdevSnapshotSync, BLOCKDEV_SNAPSHOT_SYNC)
SINGLE(drive_backup, DriveBackup, DRIVE_BACKUP)
