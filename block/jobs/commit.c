/*
 * The commit job between images of which none is a device's own.
 *
 * Nobody writes to the images between top and base, so what they hold above the base is marked once and copied in
 * passes. At the end the base reads as the top does; then headers and edges of all overlays of the top lead to the
 * base.
 *
 * While the base is written to, what is read from it alone makes no sense to anybody but the chain above. A backing
 * edge refuses writers for that reason. The filter "commit_top", above the top, lets writing pass: it takes nothing and
 * shares everything, so the edges of the chain below it share writing as well.
 */
#include "block/jobs/commit.h"
#include "block/graph/drain.h"
#include "block/graph/reopen.h"
#include "block/graph/txn.h"
#include "block/jobs/chain.h"
#include "block/jobs/copy.h"
#include "block/jobs/mirror.h"
#include "block/util/bytes.h"
#include "block/util/order.h"
#include <inttypes.h>

#define CLUSTER_MIN (64 * 1024) /* bytes: the unit in which is kept what is to be copied */

typedef struct CommitJob {
    Job common;
    BlockdevOnError on_error;
    char *backing_file; /* for the overlays' headers; NULL: the base's own name */

    /* in the graph from start to co_clean */
    Node *top, *base;        /* kept by Job.nodes */
    Node *filter;            /* referenced */
    bool inserted;           /* the filter is above the top */
    bool frozen;             /* the chain from filter to base is */
    bool base_was_read_only; /* and is to be so again */
    Port *source_port, *target_port;
    HBitmap *todo;
    Copy *copy;
} CommitJob;

static CommitJob *commit_of(Job *job)
{
    return (CommitJob *)job;
}

static void filter_child_perm(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared,
                              unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = 0;
    *ret_shared = PERM_ALL;
}

static const Driver commit_filter = {
    .name = "commit_top",
    .is_filter = true,
    .internal = true,
    .child_perm = filter_child_perm,
};

/* ---- at work ----------------------------------------------------------------------------------------------------- */

static bool commit_co_grow(CommitJob *c, GError **error)
{
    uint64_t old = c->base->size, size = c->top->size;

    if (old >= size)
        return true;
    if (!port_co_truncate(c->target_port, size, false, PREALLOC_MODE_OFF, 0, error))
        return false;
    /* What came up from further below with that is not what the top shows there. */
    hbitmap_set(c->todo, old, size - old);
    return true;
}

static int commit_co_run(Job *job, GError **error)
{
    CommitJob *c = commit_of(job);
    int ret;

    job_progress_set_remaining(job, (int64_t)c->top->size);
    if (!commit_co_grow(c, error))
        return -EIO;
    ret = copy_co_mark_allocated(job, c->todo, c->top, c->base, c->top->size, false);
    job_progress_done(job, (int64_t)(c->top->size - copy_remaining(c->copy)));
    while (ret == 0 && !job_is_cancelled(job) && copy_remaining(c->copy))
        ret = copy_co_pass(c->copy);
    return ret < 0 || order_left_out("commit-job-end") ? ret : job_co_flush(job, c->base, c->on_error);
}

static void commit_co_settle(Job *job)
{
    copy_co_settle(commit_of(job)->copy);
}

static bool commit_drained_poll(Job *job)
{
    const Copy *copy = commit_of(job)->copy;

    return copy && copy->in_flight;
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */

static void commit_unfreeze(CommitJob *c)
{
    if (c->frozen)
        node_unfreeze_chain(c->filter, c->base);
    c->frozen = false;
}

/* Collects, referenced, the nodes that have @node as their backing file, whatever filters stand between. */
static void find_overlays(Node *node, GPtrArray *overlays)
{
    for (GList *l = node->parents.head; l; l = l->next) {
        const Child *child = l->data;
        if (child->parent && (child->role & ROLE_COW))
            g_ptr_array_add(overlays, node_ref(child->parent));
        else if (child->parent && node_filtered_child(child->parent) == child)
            find_overlays(child->parent, overlays);
    }
}

/* All overlays' headers name the base, or all name the top. */
static bool commit_co_write_headers(CommitJob *c, GPtrArray *overlays, GError **error)
{
    for (guint i = 0; i < overlays->len; i++) {
        if (chain_co_write_backing(overlays->pdata[i], c->base, c->backing_file, error))
            continue;
        while (i-- > 0)
            chain_co_write_backing(overlays->pdata[i], c->top, NULL, NULL);
        return false;
    }
    return true;
}

static bool commit_co_switch(CommitJob *c, GError **error)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(c->common.graph);

    if (!graph_txn_replace_node(txn, c->filter, c->base, NULL, error))
        return false;
    graph_txn_detach(txn, c->filter->file);
    if (!graph_txn_co_commit(txn, error))
        return false;
    c->inserted = false;
    return true;
}

static int commit_co_prepare(Job *job, GError **error)
{
    CommitJob *c = commit_of(job);
    GPtrArray *overlays = g_ptr_array_new();
    bool ok;

    /* The job has nothing to do any more; its ports would be in the way of an overlay that does not share writing. */
    ok = port_co_set_perm(c->source_port, 0, PERM_ALL, error) && port_co_set_perm(c->target_port, 0, PERM_ALL, error);
    commit_unfreeze(c);
    node_co_drained_begin(c->filter);
    find_overlays(c->filter, overlays);
    ok = ok && commit_co_write_headers(c, overlays, error);
    if (ok && !commit_co_switch(c, error)) {
        for (guint i = 0; i < overlays->len; i++)
            chain_co_write_backing(overlays->pdata[i], c->top, NULL, NULL);
        ok = false;
    }
    node_drained_end(c->filter);
    for (guint i = 0; i < overlays->len; i++)
        node_co_unref(overlays->pdata[i]);
    g_ptr_array_unref(overlays);
    return ok ? 0 : -EIO;
}

static void commit_co_clean(Job *job)
{
    CommitJob *c = commit_of(job);

    commit_unfreeze(c);
    port_co_free(c->source_port);
    port_co_free(c->target_port);
    c->source_port = c->target_port = NULL;
    if (c->inserted) {
        node_co_drained_begin(c->top);
        job_co_remove_filter(c->filter);
        node_drained_end(c->top);
        c->inserted = false;
    }
    copy_free(c->copy);
    c->copy = NULL;
    hbitmap_free(c->todo);
    c->todo = NULL;
    if (c->base_was_read_only)
        node_co_set_read_only(c->base, true, NULL);
    node_co_unref(c->filter);
    c->filter = NULL;
}

static void commit_free(Job *job)
{
    g_free(commit_of(job)->backing_file);
}

static const JobDriver commit_job_driver = {
    .type = JOB_TYPE_COMMIT,
    .size = sizeof(CommitJob),
    .is_block = true,
    .co_run = commit_co_run,
    .co_settle = commit_co_settle,
    .drained_poll = commit_drained_poll,
    .co_prepare = commit_co_prepare,
    .co_clean = commit_co_clean,
    .free = commit_free,
};

/* ---- the start --------------------------------------------------------------------------------------------------- */

static bool make_copy(CommitJob *c, GError **error)
{
    uint64_t cluster = u64_max(CLUSTER_MIN, job_cluster_size(c->base));
    CopyOptions options = {
        .source = c->source_port->child,
        .target = c->target_port->child,
        .status_of = c->top,
        .size = c->top->size,
        .unmap = true,
        .on_source_error = c->on_error,
        .on_target_error = c->on_error,
    };

    options.todo = c->todo = hbitmap_new(c->top->size, ilog2(cluster));
    if (!c->todo)
        return error_set(error, "No memory for a bitmap of %" PRIu64 " bytes in clusters of %" PRIu64, c->top->size,
                         cluster);
    c->copy = copy_new(&c->common, &options, error);
    return c->copy != NULL;
}

/* Filter and ports. On failure the job's discarding takes back what was done. */
static bool commit_co_attach(CommitJob *c, int64_t speed, GError **error)
{
    Job *job = &c->common;
    unsigned grow = c->base->size < c->top->size ? PERM_RESIZE : 0;

    job_add_node(job, c->filter);
    chain_add_nodes(job, c->top, c->base);
    job_add_node(job, c->base);
    c->base_was_read_only = !node_writable(c->base);
    if (!node_co_set_read_only(c->base, false, error))
        return false;
    node_co_drained_begin(c->top);
    c->inserted = job_co_insert_filter(c->filter, c->top, "backing", NULL, error);
    node_drained_end(c->top);
    if (!c->inserted)
        return false;
    c->source_port = job_co_open_port(job, c->top, PERM_CONSISTENT_READ, PERM_ALL, error);
    if (!c->source_port)
        return false;
    c->target_port =
        job_co_open_port(job, c->base, PERM_WRITE | grow, PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED, error);
    if (!c->target_port || !make_copy(c, error))
        return false;
    c->frozen = node_freeze_chain(c->filter, c->base, error);
    return c->frozen && job_set_speed(job, speed, error);
}

static Job *commit_co_new_below(JobList *list, const BlockCommit *arg, const char *id, Node *top, Node *base,
                                GError **error)
{
    CommitJob *c;
    Node *filter = node_new_internal(list->graph, &commit_filter, arg->filter_node_name, &top->flags, top->size, error);

    if (!filter)
        return NULL;
    c = (CommitJob *)job_new(list, &commit_job_driver, id, NULL, arg->auto_finalize, arg->auto_dismiss, error);
    if (!c) {
        node_co_unref(filter);
        return NULL;
    }
    node_pass_flags(filter);
    c->filter = filter;
    c->top = top;
    c->base = base;
    c->on_error = arg->on_error;
    c->backing_file = g_strdup(arg->backing_file);
    if (commit_co_attach(c, arg->speed, error))
        return &c->common;
    job_co_discard(&c->common);
    return NULL;
}

static Node *find_top(Node *device, const BlockCommit *arg, GError **error)
{
    Node *top = device;

    if (arg->top_node && arg->top) {
        error_set(error, "'top-node' and 'top' are mutually exclusive");
        return NULL;
    }
    if (arg->top_node) {
        top = chain_find_node(device->graph, arg->top_node, error);
        if (top && !node_chain_contains(device, top)) {
            error_set(error, "'%s' is not in this backing file chain", arg->top_node);
            return NULL;
        }
    }
    if (arg->top) {
        top = chain_find_file(device, arg->top);
        if (!top)
            error_set(error, "Top image file %s not found", arg->top);
    }
    return top;
}

static Node *find_base(Node *top, const BlockCommit *arg, GError **error)
{
    Node *base;

    if (arg->base_node && arg->base) {
        error_set(error, "'base-node' and 'base' are mutually exclusive");
        return NULL;
    }
    if (arg->base_node) {
        base = chain_find_node(top->graph, arg->base_node, error);
        if (base && !node_chain_contains(top, base)) {
            error_set(error, "'%s' is not in this backing file chain", arg->base_node);
            return NULL;
        }
        return base;
    }
    if (arg->base) {
        base = chain_find_file(top, arg->base);
        if (!base)
            error_set(error, "Can't find '%s' in the backing chain", arg->base);
        return base;
    }
    return chain_lowest(top);
}

/* The device's own image is written to all the time, so this is a mirror. */
static Job *commit_co_new_active(JobList *list, const BlockCommit *arg, const char *id, Node *top, Node *base,
                                 GError **error)
{
    BlockdevMirror args = {
        .job_id = (char *)id, /* both borrowed */
        .filter_node_name = arg->filter_node_name,
        .speed = arg->speed,
        .on_source_error = arg->on_error,
        .on_target_error = arg->on_error,
        .auto_finalize = arg->auto_finalize,
        .auto_dismiss = arg->auto_dismiss,
    };

    if (arg->backing_file) {
        error_set(error, "'backing-file' specified, but 'top' is the active layer");
        return NULL;
    }
    return mirror_co_new_commit(list, &args, top, base, error);
}

Job *commit_co_new(JobList *list, const BlockCommit *arg, GError **error)
{
    Node *device = graph_lookup(list->graph, arg->device, NULL), *top, *base;
    const char *id;

    if (!device) {
        error_set_class(error, SD_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", arg->device);
        return NULL;
    }
    if (!job_check_root(device, error))
        return NULL;
    top = find_top(device, arg, error);
    base = top ? find_base(top, arg, error) : NULL;
    if (!base)
        return NULL;
    top = node_skip_filters(top);
    base = node_skip_filters(base);
    if (top == base) {
        error_set(error, "cannot commit an image into itself");
        return NULL;
    }
    if (!chain_check_free(list, top, base, true, error) || !job_list_check_node(list, device, error) ||
        !chain_check_readers(top, base, error))
        return NULL;
    id = arg->job_id ? arg->job_id : job_default_id(list->graph, device);
    if (top == node_skip_filters(device))
        return commit_co_new_active(list, arg, id, top, base, error);
    return commit_co_new_below(list, arg, id, top, base, error);
}
