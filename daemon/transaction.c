/*
 * The course of transactions.
 */
#include "daemon/transaction.h"
#include "block/graph/device.h"
#include "block/graph/drain.h"
#include "qapi/commands.h"

static bool abort_co_open(Action *action, GError **error)
{
    return error_set(error, "Transaction aborted using Abort action");
}

static const ActionKind action_abort = {.size = sizeof(Action), .grouped = true, .co_open = abort_co_open};

/* By type: the kind, and where its arguments are in a TransactionAction. */
typedef struct ActionEntry {
    const ActionKind *kind;
    size_t data;
} ActionEntry;

#define ENTRY(type, branch, kind_)                                                                                     \
    [TRANSACTION_ACTION_KIND_##type] = {.kind = &(kind_), .data = offsetof(TransactionAction, u.branch.data)}
static const ActionEntry action_table[TRANSACTION_ACTION_KIND__MAX] = {
    ENTRY(ABORT, abort, action_abort),
    ENTRY(BLOCK_DIRTY_BITMAP_ADD, block_dirty_bitmap_add, action_bitmap_add),
    ENTRY(BLOCK_DIRTY_BITMAP_REMOVE, block_dirty_bitmap_remove, action_bitmap_remove),
    ENTRY(BLOCK_DIRTY_BITMAP_CLEAR, block_dirty_bitmap_clear, action_bitmap_clear),
    ENTRY(BLOCK_DIRTY_BITMAP_ENABLE, block_dirty_bitmap_enable, action_bitmap_enable),
    ENTRY(BLOCK_DIRTY_BITMAP_DISABLE, block_dirty_bitmap_disable, action_bitmap_disable),
    ENTRY(BLOCK_DIRTY_BITMAP_MERGE, block_dirty_bitmap_merge, action_bitmap_merge),
    ENTRY(BLOCKDEV_BACKUP, blockdev_backup, action_blockdev_backup),
    ENTRY(BLOCKDEV_SNAPSHOT, blockdev_snapshot, action_snapshot),
    ENTRY(BLOCKDEV_SNAPSHOT_INTERNAL_SYNC, blockdev_snapshot_internal_sync, action_snapshot_internal),
    ENTRY(BLOCKDEV_SNAPSHOT_SYNC, blockdev_snapshot_sync, action_snapshot_sync),
    ENTRY(DRIVE_BACKUP, drive_backup, action_drive_backup),
};

static Transaction *transaction_new(Daemon *daemon)
{
    Transaction *t = g_new0(Transaction, 1);

    t->daemon = daemon;
    t->actions = g_ptr_array_new_with_free_func(g_free);
    t->quiet = g_ptr_array_new();
    t->above = g_hash_table_new(NULL, NULL);
    return t;
}

static void transaction_free(Transaction *t)
{
    g_assert(t->quiet->len == 0);
    job_txn_unref(t->jobs);
    g_ptr_array_unref(t->actions);
    g_ptr_array_unref(t->quiet);
    g_hash_table_destroy(t->above);
    g_free(t);
}

static void transaction_add(Transaction *t, TransactionActionKind type, const void *arg)
{
    const ActionKind *kind = action_table[type].kind;
    Action *action = g_malloc0(kind->size);

    action->kind = kind;
    action->txn = t;
    action->type = type;
    action->arg = arg;
    g_ptr_array_add(t->actions, action);
}

/* ---- for the actions -------------------------------------------------------------------------------------------- */

Node *transaction_find(Transaction *t, const char *device, const char *node_name, GError **error)
{
    Device *found = device ? device_find(t->daemon->graph, device) : NULL;
    Node *node = node_name ? graph_find_node(t->daemon->graph, node_name) : NULL, *above;

    if (found) {
        node = port_node(found->port);
        if (!node)
            error_set(error, "Device '%s' has no medium", device);
        while (t->opening && node && (above = g_hash_table_lookup(t->above, node)))
            node = above;
        return node;
    }
    if (!node)
        error_set(error, "Cannot find device='%s' nor node-name='%s'", device ? device : "",
                  node_name ? node_name : "");
    return node;
}

void transaction_rest(Transaction *t, Node *node)
{
    g_assert(t->opening);
    g_ptr_array_add(t->quiet, node_ref(node));
}

bool transaction_adds_bitmap(const Action *action, const char *name)
{
    for (guint i = 0; g_ptr_array_index(action->txn->actions, i) != action; i++) {
        const Action *before = g_ptr_array_index(action->txn->actions, i);
        if (before->type == TRANSACTION_ACTION_KIND_BLOCK_DIRTY_BITMAP_ADD &&
            !strcmp(((const BlockDirtyBitmapAdd *)before->arg)->name, name))
            return true;
    }
    return false;
}

/* ---- the course ------------------------------------------------------------------------------------------------- */

/* The first *@n actions have begun to open when it returns. */
static bool transaction_co_open(Transaction *t, guint *n, GError **error)
{
    bool ok = true;

    t->opening = true;
    for (*n = 0; ok && *n < t->actions->len; ++*n) {
        Action *action = g_ptr_array_index(t->actions, *n);
        if (t->jobs && !action->kind->grouped) {
            error_set(error, "Action '%s' does not support Transaction property completion-mode = grouped",
                      qapi_TransactionActionKind_str(action->type));
            break;
        }
        ok = !action->kind->co_open || action->kind->co_open(action, error);
    }
    t->opening = false;
    return ok && *n == t->actions->len;
}

static void transaction_co_drain(Transaction *t)
{
    for (guint i = 0; i < t->quiet->len; i++)
        node_co_drained_begin(g_ptr_array_index(t->quiet, i));
}

static void transaction_undrain(Transaction *t)
{
    for (guint i = 0; i < t->quiet->len; i++)
        node_drained_end(g_ptr_array_index(t->quiet, i));
}

/* Undoes the first @n, the last one first. */
static void transaction_co_unwrite(Transaction *t, guint n)
{
    while (n-- > 0) {
        Action *action = g_ptr_array_index(t->actions, n);
        if (action->kind->co_unwrite)
            action->kind->co_unwrite(action);
    }
}

static bool transaction_co_write(Transaction *t, GError **error)
{
    for (guint i = 0; i < t->actions->len; i++) {
        Action *action = g_ptr_array_index(t->actions, i);
        if (!action->kind->co_write || action->kind->co_write(action, error))
            continue;
        transaction_co_unwrite(t, i);
        return false;
    }
    return true;
}

/* All are prepared and committed, or none is. */
static bool transaction_co_act_locked(Transaction *t, GError **error)
{
    for (guint i = 0; i < t->actions->len; i++) {
        Action *action = g_ptr_array_index(t->actions, i);
        if (!action->kind->co_prepare || action->kind->co_prepare(action, error))
            continue;
        while (i-- > 0) {
            action = g_ptr_array_index(t->actions, i);
            if (action->kind->co_abort)
                action->kind->co_abort(action);
        }
        return false;
    }
    for (guint i = 0; i < t->actions->len; i++) {
        Action *action = g_ptr_array_index(t->actions, i);
        if (action->kind->co_commit)
            action->kind->co_commit(action);
    }
    return true;
}

/* One transaction after the other. Undoing may have to wait, and what one has prepared nobody else may take away. */
static bool transaction_co_act(Transaction *t, GError **error)
{
    bool ok;

    comutex_co_lock(&t->daemon->acting);
    ok = transaction_co_act_locked(t, error);
    comutex_unlock(&t->daemon->acting);
    return ok;
}

static void transaction_co_clean(Transaction *t, guint opened)
{
    while (opened-- > 0) {
        Action *action = g_ptr_array_index(t->actions, opened);
        if (action->kind->co_clean)
            action->kind->co_clean(action);
    }
    while (t->quiet->len)
        node_co_unref(g_ptr_array_steal_index(t->quiet, t->quiet->len - 1));
}

static bool transaction_co_run(Transaction *t, GError **error)
{
    guint opened;
    bool ok = transaction_co_open(t, &opened, error);

    if (ok) {
        transaction_co_drain(t);
        ok = transaction_co_write(t, error);
        if (ok) {
            ok = transaction_co_act(t, error);
            if (!ok)
                transaction_co_unwrite(t, t->actions->len);
        }
        transaction_undrain(t);
    }
    transaction_co_clean(t, opened);
    return ok;
}

bool transaction_co_single(QmpContext *ctx, TransactionActionKind type, const void *arg, GError **error)
{
    Transaction *t = transaction_new(qmp_daemon(ctx));
    bool ok;

    transaction_add(t, type, arg);
    ok = transaction_co_run(t, error);
    transaction_free(t);
    return ok;
}

bool qmp_co_transaction(QmpContext *ctx, const TransactionArgs *arg, GError **error)
{
    Transaction *t = transaction_new(qmp_daemon(ctx));
    bool ok;

    if (arg->properties && arg->properties->completion_mode == ACTION_COMPLETION_MODE_GROUPED)
        t->jobs = job_txn_new();
    for (size_t i = 0; i < arg->actions->len; i++) {
        const TransactionAction *action = arg->actions->items[i];
        const char *data = (const char *)action + action_table[action->type].data;
        transaction_add(t, action->type, *(void *const *)data);
    }
    ok = transaction_co_run(t, error);
    transaction_free(t);
    return ok;
}
