/*
 * The backup job's start: arguments, bitmap, target, filter.
 */
#include "block/graph/drain.h"
#include "block/graph/txn.h"
#include "block/jobs/backup-int.h"
#include "block/util/bytes.h"
#include <inttypes.h>

#define CLUSTER_MIN (64 * 1024) /* bytes: what is copied at once is at least this long */

/* Arguments of both commands, and what was found for them. */
typedef struct BackupStart {
    const BackupCommon *arg;
    Node *source, *target;
    MirrorSyncMode sync;
    Bitmap *bitmap; /* NULL: none */
    BitmapSyncMode bitmap_mode;
    uint64_t cluster; /* bytes */
} BackupStart;

static bool find_bitmap(BackupStart *s, GError **error)
{
    const BackupCommon *a = s->arg;

    s->bitmap = bitmap_find(s->source, a->bitmap);
    if (!s->bitmap)
        return error_set(error, "Bitmap '%s' could not be found", a->bitmap);
    if (!a->has_bitmap_mode && s->sync != MIRROR_SYNC_MODE_INCREMENTAL)
        return error_set(error, "Bitmap sync mode must be given when providing a bitmap");
    /* A bitmap that is left as it is may be read-only. */
    if (!bitmap_check(s->bitmap,
                      BITMAP_REFUSE_BUSY | BITMAP_REFUSE_INCONSISTENT |
                          (s->bitmap_mode == BITMAP_SYNC_MODE_NEVER ? 0 : BITMAP_REFUSE_RO),
                      error))
        return false;
    if (s->sync == MIRROR_SYNC_MODE_NONE)
        return error_set(error, "sync mode '%s' does not produce meaningful bitmap outputs",
                         qapi_MirrorSyncMode_str(s->sync));
    if (s->bitmap_mode == BITMAP_SYNC_MODE_NEVER &&
        (s->sync == MIRROR_SYNC_MODE_FULL || s->sync == MIRROR_SYNC_MODE_TOP))
        return error_set(error, "Bitmap sync mode '%s' has no meaningful effect when combined with sync mode '%s'",
                         qapi_BitmapSyncMode_str(s->bitmap_mode), qapi_MirrorSyncMode_str(s->sync));
    return true;
}

static bool check_bitmap(BackupStart *s, GError **error)
{
    const BackupCommon *a = s->arg;
    bool needed = s->sync == MIRROR_SYNC_MODE_BITMAP || s->sync == MIRROR_SYNC_MODE_INCREMENTAL;

    if (needed && !a->bitmap)
        return error_set(error, "must provide a valid bitmap name for '%s' sync mode",
                         qapi_MirrorSyncMode_str(s->sync));
    s->bitmap_mode = a->has_bitmap_mode ? a->bitmap_mode : BITMAP_SYNC_MODE_ON_SUCCESS;
    if (s->sync == MIRROR_SYNC_MODE_INCREMENTAL && s->bitmap_mode != BITMAP_SYNC_MODE_ON_SUCCESS)
        return error_set(error, "Bitmap sync mode must be '%s' when using sync mode '%s'",
                         qapi_BitmapSyncMode_str(BITMAP_SYNC_MODE_ON_SUCCESS), qapi_MirrorSyncMode_str(s->sync));
    if (a->bitmap)
        return find_bitmap(s, error);
    if (a->has_bitmap_mode)
        return error_set(error, "Cannot specify bitmap sync mode without a bitmap");
    return true;
}

static bool check_perf(const BackupStart *s, GError **error)
{
    const BackupPerf *perf = s->arg->x_perf;

    if (!perf)
        return true;
    if (perf->has_max_workers && (perf->max_workers < 1 || perf->max_workers > INT32_MAX))
        return error_set(error, "max-workers must be between 1 and %d", INT32_MAX);
    if (perf->has_max_chunk && perf->max_chunk < 0)
        return error_set(error, "max-chunk must be zero (which means no limit) or positive");
    if (perf->has_max_chunk && perf->max_chunk && (uint64_t)perf->max_chunk < s->cluster)
        return error_set(error, "Required max-chunk (%" PRId64 ") is less than backup cluster size (%" PRIu64 ")",
                         perf->max_chunk, s->cluster);
    return true;
}

static bool can_compress(Node *target)
{
    return node_skip_filters(target)->drv->co_pwritev_compressed != NULL;
}

static bool check_start(JobList *list, BackupStart *s, GError **error)
{
    const BackupCommon *a = s->arg;

    if (s->source == s->target)
        return error_set(error, "Source and target cannot be the same");
    if (!job_list_check_node(list, s->source, error) || !job_list_check_node(list, s->target, error))
        return false;
    if (a->compress && !can_compress(s->target))
        return error_set(error, "Compression is not supported for this drive %s",
                         job_default_id(list->graph, s->target) ?: "");
    if (s->source->size != s->target->size)
        return error_set(error, "Source and target image have different sizes");
    s->cluster = u64_max(CLUSTER_MIN, a->compress ? job_cluster_size(s->target) : job_fill_size(s->target));
    return check_perf(s, error);
}

static bool make_todo(BackupJob *b, const BackupStart *s, GError **error)
{
    b->todo = hbitmap_new(s->source->size, ilog2(s->cluster));
    if (!b->todo)
        return error_set(error, "No memory for a bitmap of %" PRIu64 " bytes in clusters of %" PRIu64, s->source->size,
                         s->cluster);
    if (s->sync == MIRROR_SYNC_MODE_BITMAP || s->sync == MIRROR_SYNC_MODE_INCREMENTAL) {
        if (!hbitmap_merge(b->todo, s->bitmap->bits))
            return error_set(error, "Bitmap '%s' has not the size of node '%s'", s->bitmap->name, s->source->name);
    } else {
        hbitmap_set(b->todo, 0, s->source->size);
    }
    return true;
}

static bool make_copy(BackupJob *b, const BackupStart *s, Child *target, GError **error)
{
    const BackupCommon *a = s->arg;
    const BackupPerf *perf = a->x_perf;
    CopyOptions options = {
        .source = b->filter->file,
        .target = target,
        .status_of = s->source,
        .todo = b->todo,
        .size = s->source->size,
        .chunk = perf && perf->has_max_chunk ? (uint64_t)perf->max_chunk : 0,
        .max_ops = perf && perf->has_max_workers ? (unsigned)perf->max_workers : 0,
        .compress_cluster = a->compress ? s->cluster : 0,
        .skip_zeroes = s->sync == MIRROR_SYNC_MODE_FULL,
        .unmap = true,
        .thrifty = true,
        .whole_granules = true,
        .on_source_error = a->on_source_error,
        .on_target_error = a->on_target_error,
    };

    b->copy = copy_new(&b->common, &options, error);
    return b->copy != NULL;
}

/* The filter above the source, with both its children, in one transaction; from then on it guards the old data. */
static bool backup_co_insert(BackupJob *b, const BackupStart *s, GError **error)
{
    Graph *graph = b->common.graph;
    g_autoptr(GraphTxn) txn = graph_txn_new(graph);
    Child *target;

    graph_txn_attach(txn, b->filter, "file", s->source, ROLE_FILTER);
    target = graph_txn_attach(txn, b->filter, "target", s->target, ROLE_DATA);
    if (!graph_txn_replace_node(txn, s->source, b->filter, s->target, error))
        return false;
    if (!make_copy(b, s, target, error))
        return false;
    if (!graph_txn_co_commit(txn, error)) {
        g_prefix_error(error, "Could not create node: ");
        return false;
    }
    b->inserted = true;
    node_refresh_limits(b->filter);
    return true;
}

static bool backup_co_attach(BackupJob *b, const BackupStart *s, GError **error)
{
    Job *job = &b->common;
    bool ok;

    ((BackupFilter *)b->filter->state)->job = b;
    job_add_node(job, b->filter);
    job_add_node(job, s->source);
    job_add_node(job, s->target);
    node_co_drained_begin(s->source);
    ok = make_todo(b, s, error) && (!s->bitmap || bitmap_freeze(s->bitmap, error));
    if (ok)
        b->bitmap = s->bitmap;
    ok = ok && backup_co_insert(b, s, error);
    node_drained_end(s->source);
    if (!ok)
        return false;
    b->port = job_co_open_port(job, b->filter, 0, PERM_ALL, error);
    return b->port && job_set_speed(job, s->arg->speed, error);
}

static Job *backup_co_new(JobList *list, JobTxn *txn, BackupStart *s, GError **error)
{
    const BackupCommon *a = s->arg;
    const char *id = a->job_id ? a->job_id : job_default_id(list->graph, s->source);
    BackupJob *b;
    Node *filter;

    if (!check_start(list, s, error))
        return NULL;
    filter =
        node_new_internal(list->graph, &backup_filter, a->filter_node_name, &s->source->flags, s->source->size, error);
    if (!filter) {
        g_prefix_error(error, "Could not create node: ");
        return NULL;
    }
    filter->supported_write_flags = REQ_WRITE_UNCHANGED;
    filter->supported_zero_flags = REQ_WRITE_UNCHANGED | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    b = (BackupJob *)job_new(list, &backup_job_driver, id, txn, a->auto_finalize, a->auto_dismiss, error);
    if (!b) {
        node_co_unref(filter);
        return NULL;
    }
    b->filter = filter;
    b->sync = s->sync;
    b->bitmap_mode = s->bitmap_mode;
    b->on_target_error = a->on_target_error;
    b->source = s->source;
    b->target = s->target;
    if (backup_co_attach(b, s, error))
        return &b->common;
    job_co_discard(&b->common);
    return NULL;
}

Job *backup_co_new_blockdev(JobList *list, JobTxn *txn, const BlockdevBackup *arg, Node *source, Node *target,
                            GError **error)
{
    BackupStart s = {.arg = (const BackupCommon *)arg, .sync = arg->sync, .source = source, .target = target};

    return check_bitmap(&s, error) ? backup_co_new(list, txn, &s, error) : NULL;
}

/* The node that a new target names as its backing file; NULL: none. Settles the mode: there may be no layer below. */
static Node *target_backing(BackupStart *s)
{
    Node *backing = NULL;

    if (s->sync == MIRROR_SYNC_MODE_NONE)
        return s->source;
    if (s->sync == MIRROR_SYNC_MODE_TOP) {
        backing = node_backing(s->source);
        if (!backing)
            s->sync = MIRROR_SYNC_MODE_FULL;
    }
    return backing;
}

/* What @arg asks of the target's image. Settles the mode. */
static TargetOptions target_options(BackupStart *s, const DriveBackup *arg)
{
    TargetOptions t = {.filename = arg->target,
                       .format = arg->format,
                       .create = arg->mode == NEW_IMAGE_MODE_ABSOLUTE_PATHS,
                       .open_backing = s->sync == MIRROR_SYNC_MODE_NONE ? 'n' : 'h'};

    t.backing = target_backing(s);
    return t;
}

Node *backup_co_open_target(JobList *list, Node *source, const DriveBackup *arg, bool bitmap_comes, bool *ret_new,
                            GError **error)
{
    BackupStart s = {.arg = (const BackupCommon *)arg, .sync = arg->sync, .source = source};
    TargetOptions t = target_options(&s, arg);
    Node *target;

    /* All that can be refused is, before a file is made. */
    if (!job_check_root(source, error) || (!bitmap_comes && !check_bitmap(&s, error)) ||
        !job_list_check_node(list, source, error))
        return NULL;
    node_ref(source);
    target = job_co_open_target(source, &t, error);
    node_co_unref(source);
    *ret_new = t.made_new;
    return target;
}

Job *backup_co_new_drive(JobList *list, JobTxn *txn, const DriveBackup *arg, Node *source, Node *target, GError **error)
{
    BackupStart s = {.arg = (const BackupCommon *)arg, .sync = arg->sync, .source = source, .target = target};

    if (!check_bitmap(&s, error))
        return NULL;
    target_backing(&s);
    return backup_co_new(list, txn, &s, error);
}
