/*
 * The stream job.
 *
 * What images below hold, and the top does not, is marked once and then read by copy-on-read (block/graph/io-cor.c),
 * which keeps clients' writes apart by itself: what a client wrote in the meantime is allocated, and not copied any
 * more. At the end nothing of what lies between top and base is needed, and header and backing edge of the top lead to
 * the base.
 */
#include "block/jobs/stream.h"
#include "block/graph/drain.h"
#include "block/graph/reopen.h"
#include "block/graph/txn.h"
#include "block/jobs/chain.h"
#include "block/jobs/copy.h"
#include "block/util/bytes.h"
#include "block/util/order.h"
#include <inttypes.h>

#define CLUSTER_MIN (64 * 1024) /* bytes: the unit in which is kept what is to be copied */

typedef struct StreamJob {
    Job common;
    BlockdevOnError on_error;
    char *backing_file; /* for the top's header; NULL: the base's own name */

    /* in the graph from start to co_clean */
    Node *top;              /* kept by Job.nodes */
    Node *base;             /* stays below; referenced. NULL: nothing does */
    Node *filter;           /* referenced */
    bool inserted;          /* the filter is above the top */
    bool frozen;            /* the chain from the filter to the base is */
    bool top_was_read_only; /* and is to be so again */
    Port *port;             /* on the top */
    HBitmap *todo;
    Copy *copy;
} StreamJob;

static StreamJob *stream_of(Job *job)
{
    return (StreamJob *)job;
}

/* Only there to be seen, and to stand for the job in the graph. */
static const Driver stream_filter = {.name = "stream_top", .is_filter = true, .internal = true};

/* ---- at work ----------------------------------------------------------------------------------------------------- */

/* Marks what is in images below the top and above the base, and not in the top. 0 (also when cancelled) or -errno. */
static int stream_co_mark(StreamJob *s)
{
    uint64_t size = s->top->size, offset = 0;

    while (offset < size) {
        BlockStatus status;
        int ret, depth;
        job_co_pause_point(&s->common);
        if (job_is_cancelled(&s->common))
            return 0;
        ret = node_co_block_status_above(s->top, s->base, false, offset, size - offset, &status, &depth);
        if (ret < 0)
            return ret;
        status.bytes = u64_max(u64_min(status.bytes, size - offset), 1);
        if ((status.flags & STATUS_ALLOCATED) && depth > 0)
            hbitmap_set(s->todo, offset, status.bytes);
        offset += status.bytes;
    }
    return 0;
}

static int stream_co_run(Job *job, GError **error)
{
    StreamJob *s = stream_of(job);
    int ret;

    job_progress_set_remaining(job, (int64_t)s->top->size);
    ret = s->top->backing ? stream_co_mark(s) : 0;
    job_progress_done(job, (int64_t)(s->top->size - copy_remaining(s->copy)));
    while (ret == 0 && !job_is_cancelled(job) && copy_remaining(s->copy))
        ret = copy_co_pass(s->copy);
    return ret < 0 || order_left_out("stream-end") ? ret : job_co_flush(job, s->top, s->on_error);
}

static void stream_co_settle(Job *job)
{
    copy_co_settle(stream_of(job)->copy);
}

static bool stream_drained_poll(Job *job)
{
    const Copy *copy = stream_of(job)->copy;

    return copy && copy->in_flight;
}

/* ---- the end ----------------------------------------------------------------------------------------------------- */

static void stream_unfreeze(StreamJob *s)
{
    if (s->frozen)
        node_unfreeze_chain(s->filter, s->base);
    s->frozen = false;
}

static bool stream_co_switch(StreamJob *s, GError **error)
{
    g_autoptr(GraphTxn) txn = graph_txn_new(s->common.graph);

    if (s->base)
        graph_txn_replace(txn, s->top->backing, s->base);
    else
        graph_txn_detach(txn, s->top->backing);
    return graph_txn_co_commit(txn, error);
}

static int stream_co_prepare(Job *job, GError **error)
{
    StreamJob *s = stream_of(job);
    bool ok;

    if (!s->top->backing)
        return 0;
    stream_unfreeze(s);
    node_co_drained_begin(s->top);
    ok = chain_co_write_backing(s->top, s->base, s->backing_file, error);
    if (ok && !stream_co_switch(s, error)) {
        chain_co_write_backing(s->top, s->top->backing->node, NULL, NULL);
        ok = false;
    }
    node_drained_end(s->top);
    return ok ? 0 : -EIO;
}

static void stream_co_clean(Job *job)
{
    StreamJob *s = stream_of(job);

    stream_unfreeze(s);
    port_co_free(s->port);
    s->port = NULL;
    if (s->inserted) {
        node_co_drained_begin(s->top);
        job_co_remove_filter(s->filter);
        node_drained_end(s->top);
        s->inserted = false;
    }
    copy_free(s->copy);
    s->copy = NULL;
    hbitmap_free(s->todo);
    s->todo = NULL;
    if (s->top_was_read_only)
        node_co_set_read_only(s->top, true, NULL);
    node_co_unref(s->filter);
    node_co_unref(s->base);
    s->filter = s->base = NULL;
}

static void stream_free(Job *job)
{
    g_free(stream_of(job)->backing_file);
}

static const JobDriver stream_job_driver = {
    .type = JOB_TYPE_STREAM,
    .size = sizeof(StreamJob),
    .is_block = true,
    .co_run = stream_co_run,
    .co_settle = stream_co_settle,
    .drained_poll = stream_drained_poll,
    .co_prepare = stream_co_prepare,
    .co_clean = stream_co_clean,
    .free = stream_free,
};

/* ---- the start --------------------------------------------------------------------------------------------------- */

static bool make_copy(StreamJob *s, GError **error)
{
    uint64_t cluster = u64_max(CLUSTER_MIN, job_cluster_size(s->top));
    CopyOptions options = {
        .source = s->port->child,
        .status_of = s->top,
        .size = s->top->size,
        .copy_on_read = true,
        .on_source_error = s->on_error,
        .on_target_error = s->on_error,
    };

    options.todo = s->todo = hbitmap_new(s->top->size, ilog2(cluster));
    if (!s->todo)
        return error_set(error, "No memory for a bitmap of %" PRIu64 " bytes in clusters of %" PRIu64, s->top->size,
                         cluster);
    s->copy = copy_new(&s->common, &options, error);
    return s->copy != NULL;
}

/* Filter and port. On failure the job's discarding takes back what was done. */
static bool stream_co_attach(StreamJob *s, int64_t speed, GError **error)
{
    Job *job = &s->common;

    job_add_node(job, s->filter);
    chain_add_nodes(job, s->top, s->base);
    s->top_was_read_only = !node_writable(s->top);
    if (!node_co_set_read_only(s->top, false, error))
        return false;
    node_co_drained_begin(s->top);
    s->inserted = job_co_insert_filter(s->filter, s->top, "file", NULL, error);
    node_drained_end(s->top);
    if (!s->inserted)
        return false;
    s->port =
        job_co_open_port(job, s->top, PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED, PERM_ALL & ~PERM_RESIZE, error);
    if (!s->port || !make_copy(s, error))
        return false;
    s->frozen = node_freeze_chain(s->filter, s->base, error);
    return s->frozen && job_set_speed(job, speed, error);
}

static Job *stream_co_start(JobList *list, const BlockStream *arg, const char *id, Node *top, Node *base,
                            GError **error)
{
    StreamJob *s;
    Node *filter = node_new_internal(list->graph, &stream_filter, arg->filter_node_name, &top->flags, top->size, error);

    if (!filter)
        return NULL;
    s = (StreamJob *)job_new(list, &stream_job_driver, id, NULL, arg->auto_finalize, arg->auto_dismiss, error);
    if (!s) {
        node_co_unref(filter);
        return NULL;
    }
    node_pass_flags(filter);
    s->filter = filter;
    s->top = top;
    s->base = base ? node_ref(base) : NULL;
    s->on_error = arg->on_error;
    s->backing_file = g_strdup(arg->backing_file);
    if (stream_co_attach(s, arg->speed, error))
        return &s->common;
    job_co_discard(&s->common);
    return NULL;
}

static bool refuse_both(const char *a, const char *b, GError **error)
{
    return error_set(error, "'%s' and '%s' cannot be specified at the same time", a, b);
}

/* What is to stay below, in *@base (NULL: nothing). */
static bool find_base(Node *top, const BlockStream *arg, Node **base, GError **error)
{
    *base = NULL;
    if (arg->base && arg->base_node)
        return refuse_both("base", "base-node", error);
    if (arg->base && arg->bottom)
        return refuse_both("base", "bottom", error);
    if (arg->bottom && arg->base_node)
        return refuse_both("bottom", "base-node", error);
    if (arg->base) {
        *base = chain_find_file(top, arg->base);
        return *base || error_set(error, "Can't find '%s' in the backing chain", arg->base);
    }
    if (arg->base_node) {
        *base = chain_find_node(top->graph, arg->base_node, error);
        if (!*base)
            return false;
        if (*base == top || !node_chain_contains(top, *base))
            return error_set(error, "Node '%s' is not a backing image of '%s'", arg->base_node, arg->device);
    }
    if (arg->bottom) {
        Node *bottom = chain_find_node(top->graph, arg->bottom, error);
        if (!bottom)
            return false;
        if (node_filtered_child(bottom))
            return error_set(error, "Node '%s' is a filter, use a non-filter node as 'bottom'", arg->bottom);
        if (!node_chain_contains(top, bottom))
            return error_set(error, "Node '%s' is not in a chain starting from '%s'", arg->bottom, arg->device);
        *base = bottom->backing ? bottom->backing->node : NULL;
    }
    return true;
}

Job *stream_co_new(JobList *list, const BlockStream *arg, GError **error)
{
    Node *device = job_find_target(list->graph, arg->device, error), *top, *base;
    const char *id;

    if (!device)
        return NULL;
    top = node_skip_filters(device);
    if (!find_base(top, arg, &base, error))
        return NULL;
    if (arg->backing_file && !base) {
        error_set(error, "backing file specified, but streaming the entire chain");
        return NULL;
    }
    if (!job_list_check_node(list, device, error) || !chain_check_free(list, top, base, false, error))
        return NULL;
    id = arg->job_id ? arg->job_id : job_default_id(list->graph, device);
    return stream_co_start(list, arg, id, top, base, error);
}
