/*
 * The mirror job's start: arguments, target, filter.
 */
#include "block/graph/drain.h"
#include "block/graph/reopen.h"
#include "block/graph/txn.h"
#include "block/jobs/chain.h"
#include "block/jobs/mirror-int.h"
#include "block/util/bytes.h"

#define GRANULARITY_MIN 512
#define GRANULARITY_MAX (UINT64_C(64) * 1024 * 1024)

/* What the two commands come down to. */
typedef struct MirrorStart {
    BlockdevMirror arg; /* strings borrowed; .device and .target are found already */
    Node *source, *target;
    bool unmap;
    bool backing_later;
    Node *new_backing;
    bool commit; /* the target is below the source */
} MirrorStart;

static Node *find_to_replace(Node *source, const char *name, GError **error)
{
    Node *node = graph_find_node(source->graph, name);

    if (!node) {
        error_set(error, "Failed to find node with node-name='%s'", name);
        return NULL;
    }
    if (!node_can_replace(source, node)) {
        error_set(
            error,
            "Cannot replace '%s' by a node mirrored from '%s', because it cannot be guaranteed that doing so would "
            "not lead to an abrupt change of visible data",
            name, source->name);
        return NULL;
    }
    if (node->size != source->size) {
        error_set(error, "cannot replace image with a mirror image of different size");
        return NULL;
    }
    return node;
}

static bool check_start(JobList *list, const MirrorStart *s, GError **error)
{
    const BlockdevMirror *a = &s->arg;

    if (a->granularity && (a->granularity < GRANULARITY_MIN || a->granularity > GRANULARITY_MAX))
        return error_set(error, "Parameter 'granularity' expects a value in range [512B, 64MB]");
    if (a->granularity && !is_pow2(a->granularity))
        return error_set(error, "Parameter 'granularity' expects a power of 2");
    if (!job_list_check_node(list, s->source, error) || !job_list_check_node(list, s->target, error))
        return false;
    if (a->replaces && !find_to_replace(s->source, a->replaces, error))
        return false;
    if (a->sync == MIRROR_SYNC_MODE_INCREMENTAL || a->sync == MIRROR_SYNC_MODE_BITMAP)
        return error_set(error, "Sync mode '%s' not supported", qapi_MirrorSyncMode_str(a->sync));
    if (a->buf_size < 0)
        return error_set(error, "Invalid parameter 'buf-size'");
    if (s->source == s->target)
        return error_set(error, "Can't mirror node into itself");
    return true;
}

static void fill_in(MirrorJob *m, const MirrorStart *s)
{
    const BlockdevMirror *a = &s->arg;

    m->sync = a->sync;
    if (m->sync == MIRROR_SYNC_MODE_TOP && !node_backing(s->source))
        m->sync = MIRROR_SYNC_MODE_FULL;
    m->unmap = s->unmap;
    m->active = a->copy_mode == MIRROR_COPY_MODE_WRITE_BLOCKING;
    m->granularity = a->granularity ? a->granularity : bitmap_default_granularity(s->target);
    m->buf_size = (uint64_t)a->buf_size;
    m->on_source_error = a->on_source_error;
    m->on_target_error = a->on_target_error;
    m->replaces = g_strdup(a->replaces);
    m->new_backing = s->new_backing ? node_ref(s->new_backing) : NULL;
    m->backing_later = s->backing_later;
    m->commit = s->commit;
    m->source = s->source;
    m->target = s->target;
}

/* The port for the copies. A commit's target is still read by the chain above it, which must stay as it is. */
static bool mirror_co_open_target(MirrorJob *m, GError **error)
{
    bool grow = m->commit && m->target->size < m->source->size;

    m->target_port = job_co_open_port(&m->common, m->target, PERM_WRITE | (grow ? PERM_RESIZE : 0),
                                      PERM_WRITE_UNCHANGED | (m->commit ? PERM_CONSISTENT_READ : 0), error);
    if (!m->target_port)
        return false;
    m->frozen = m->commit && node_freeze_chain(m->source, m->target, error);
    return m->frozen || !m->commit;
}

/* Filter, bitmap and ports. On failure the job's discarding takes back what was done. */
static bool mirror_co_attach(MirrorJob *m, int64_t speed, GError **error)
{
    Job *job = &m->common;

    ((MirrorFilter *)m->filter->state)->job = m;
    job_add_node(job, m->filter);
    if (m->commit)
        chain_add_nodes(job, m->source, m->target);
    else
        job_add_node(job, m->source);
    job_add_node(job, m->target);
    m->target_was_read_only = m->commit && !node_writable(m->target);
    if (m->target_was_read_only && !node_co_set_read_only(m->target, false, error))
        return false;
    node_co_drained_begin(m->source);
    m->dirty = bitmap_new(m->source, m->granularity, NULL, error);
    if (m->dirty) {
        mirror_watch(m);
        m->inserted = job_co_insert_filter(m->filter, m->source, "backing", m->target, error);
    }
    node_drained_end(m->source);
    if (!m->inserted)
        return false;
    m->source_port = job_co_open_port(job, m->filter, PERM_CONSISTENT_READ, PERM_ALL & ~PERM_RESIZE, error);
    if (!m->source_port)
        return false;
    return mirror_co_open_target(m, error) && job_set_speed(job, speed, error);
}

static const Driver *filter_driver(const MirrorStart *s)
{
    if (s->commit)
        return &mirror_filter_commit;
    return s->arg.copy_mode == MIRROR_COPY_MODE_WRITE_BLOCKING ? &mirror_filter_active : &mirror_filter_passive;
}

static Job *mirror_co_new(JobList *list, const MirrorStart *s, GError **error)
{
    const BlockdevMirror *a = &s->arg;
    const char *id = a->job_id ? a->job_id : job_default_id(list->graph, s->source);
    MirrorJob *m;
    Node *filter;

    if (!check_start(list, s, error))
        return NULL;
    filter = node_new_internal(list->graph, filter_driver(s), a->filter_node_name, &s->source->flags, s->source->size,
                               error);
    if (!filter)
        return NULL;
    filter->supported_write_flags = REQ_WRITE_UNCHANGED;
    filter->supported_zero_flags = REQ_WRITE_UNCHANGED | REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    m = (MirrorJob *)job_new(list, s->commit ? &mirror_commit_job_driver : &mirror_job_driver, id, NULL,
                             a->auto_finalize, a->auto_dismiss, error);
    if (!m) {
        node_co_unref(filter);
        return NULL;
    }
    m->filter = filter;
    fill_in(m, s);
    if (mirror_co_attach(m, a->speed, error))
        return &m->common;
    job_co_discard(&m->common);
    return NULL;
}

Job *mirror_co_new_blockdev(JobList *list, const BlockdevMirror *arg, GError **error)
{
    MirrorStart s = {.arg = *arg, .unmap = true};

    s.source = job_find_root(list->graph, arg->device, error);
    if (!s.source)
        return NULL;
    s.target = job_find_target(list->graph, arg->target, error);
    if (!s.target)
        return NULL;
    return mirror_co_new(list, &s, error);
}

Job *mirror_co_new_commit(JobList *list, const BlockdevMirror *arg, Node *source, Node *base, GError **error)
{
    MirrorStart s = {.arg = *arg, .source = source, .target = base, .unmap = true, .commit = true};

    s.arg.sync = MIRROR_SYNC_MODE_TOP;
    return mirror_co_new(list, &s, error);
}

/* ---- drive-mirror ----------------------------------------------------------------------------------------------- */

static BlockdevMirror drive_args(const DriveMirror *d)
{
    return (BlockdevMirror){
        .job_id = d->job_id,
        .device = d->device,
        .replaces = d->replaces,
        .sync = d->sync,
        .speed = d->speed,
        .granularity = d->granularity,
        .buf_size = d->buf_size,
        .on_source_error = d->on_source_error,
        .on_target_error = d->on_target_error,
        .copy_mode = d->copy_mode,
        .auto_finalize = d->auto_finalize,
        .auto_dismiss = d->auto_dismiss,
    };
}

/* What the new image is to have behind it, once it has taken the source's place. */
static Node *future_backing(const MirrorStart *s)
{
    if (s->arg.sync == MIRROR_SYNC_MODE_NONE)
        return s->source;
    return s->arg.sync == MIRROR_SYNC_MODE_TOP ? node_backing(s->source) : NULL;
}

/* Everything that can be refused is, before a file is made. */
static bool check_drive(JobList *list, const MirrorStart *s, const DriveMirror *d, GError **error)
{
    if (s->arg.sync == MIRROR_SYNC_MODE_INCREMENTAL || s->arg.sync == MIRROR_SYNC_MODE_BITMAP)
        return error_set(error, "Sync mode '%s' not supported", qapi_MirrorSyncMode_str(s->arg.sync));
    if (!job_list_check_node(list, s->source, error))
        return false;
    if (d->replaces && !d->node_name)
        return error_set(error, "a node-name must be provided when replacing a named node of the graph");
    return !d->replaces || find_to_replace(s->source, d->replaces, error);
}

Job *mirror_co_new_drive(JobList *list, const DriveMirror *d, GError **error)
{
    MirrorStart s = {.arg = drive_args(d), .unmap = d->unmap};
    bool create = d->mode == NEW_IMAGE_MODE_ABSOLUTE_PATHS;
    TargetOptions t = {
        .filename = d->target, .format = d->format, .node_name = d->node_name, .create = create, .open_backing = 'h'};
    Job *job;

    s.source = job_find_root(list->graph, d->device, error);
    if (!s.source || !check_drive(list, &s, d, error))
        return NULL;
    if (create) {
        t.backing = s.new_backing = future_backing(&s);
        if (s.new_backing)
            node_ref(s.new_backing); /* making the target yields: somebody may take the source's chain apart */
        s.backing_later = t.backing != NULL;
        t.open_backing = '0';
    }
    node_ref(s.source);
    s.target = job_co_open_target(s.source, &t, error);
    /* An image that exists would fill up clusters from its own backing file; what the source shows goes there. */
    s.backing_later |= s.target && !create && node_backing(s.target);
    job = s.target ? mirror_co_new(list, &s, error) : NULL;
    node_co_unref(s.target); /* the job has its own reference */
    node_co_unref(s.new_backing);
    node_co_unref(s.source);
    return job;
}
