/*
 * Transactions: actions that take effect at one moment, all of them or none.
 *
 * An action goes through these steps, each for all actions before the next:
 *
 * - co_open finds what it works on, and makes and opens images: whatever may take long. Nothing that others use
 *   changes yet. It names the nodes that must come to rest.
 * - Those nodes are drained: one point in time for all of them.
 * - co_write does what takes I/O on the nodes at rest, one action after another. It may take long, and others may
 *   change the world meanwhile; what it does can be undone.
 * - co_prepare does it, in a way that can be undone. From the first co_prepare to the last co_commit nothing yields, so
 *   nobody ever sees half a transaction; and no other transaction comes in between.
 * - co_commit makes it final; or, in reverse order and only for those that were prepared, co_abort undoes it.
 *   Neither can fail; an abort may have to wait, while clients' requests go on. Then co_unwrite, the same way, undoes
 *   co_write; it may wait, too.
 * - The nodes go on. co_clean gives back what co_open got, in reverse order; it may take long again.
 *
 * A single command is a transaction of one. All fields: the loop's thread.
 */
#pragma once
#include "daemon/daemon.h"
#include "block/jobs/job.h"

typedef struct Transaction Transaction;
typedef struct Action Action;

/* One kind of action. The callbacks are optional. */
typedef struct ActionKind {
    size_t size;  /* of the action's own struct, whose first member is an Action */
    bool grouped; /* has a meaning with completion-mode grouped */
    /* When it fails it leaves what it got in the action, for co_clean. */
    bool (*co_open)(Action *action, GError **error);
    /* When they fail they have undone themselves. */
    bool (*co_write)(Action *action, GError **error);
    void (*co_unwrite)(Action *action);
    bool (*co_prepare)(Action *action, GError **error);
    void (*co_commit)(Action *action);
    void (*co_abort)(Action *action);
    void (*co_clean)(Action *action);
} ActionKind;

struct Action {
    const ActionKind *kind;
    Transaction *txn;
    TransactionActionKind type;
    const void *arg; /* the command's arguments, borrowed */
};

struct Transaction {
    Daemon *daemon;
    JobTxn *jobs;       /* of all jobs, grouped; NULL: each has its own */
    GPtrArray *actions; /* of Action * */
    GPtrArray *quiet;   /* of Node *, referenced: to be drained, and drained between the opens and the cleans */
    GHashTable *above;  /* while opening: Node * → the overlay that will stand in its place */
    bool opening;
};

/*
 * The node of device @device or, where there is no such device, the node @node_name; either may be NULL. While actions
 * open, devices lead to the overlays that earlier actions will have put there. Borrowed; NULL with QEMU's words.
 */
Node *transaction_find(Transaction *txn, const char *device, const char *node_name, GError **error);
/* For co_open: @node will be at rest. */
void transaction_rest(Transaction *txn, Node *node);

/* Does an action before @action add a bitmap @name (of whatever node)? Then it need not be there yet in co_open. */
bool transaction_adds_bitmap(const Action *action, const char *name);

/* A transaction of one action with @arg. */
bool transaction_co_single(QmpContext *ctx, TransactionActionKind type, const void *arg, GError **error);

/* The kinds, each family in its file. */
extern const ActionKind action_bitmap_add, action_bitmap_remove, action_bitmap_clear, action_bitmap_enable,
    action_bitmap_disable, action_bitmap_merge;
extern const ActionKind action_blockdev_backup, action_drive_backup;
extern const ActionKind action_snapshot, action_snapshot_sync, action_snapshot_internal;
