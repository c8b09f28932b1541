/*
 * The mirror job at work and at its end.
 *
 * It marks what is to be copied in a dirty bitmap of the source and runs passes of the copy engine until nothing is
 * left; then it is ready, and sleeps until a client writes. To end it drains the source, so that nothing can change any
 * more, copies the rest, and keeps the source drained until its finalisation has put the target in the source's place.
 *
 * A client that never stops writing could keep the bitmap from ever becoming clean. So once a few passes were made and
 * what remains is small, it is copied in a drained section: the client waits for some milliseconds.
 */
#include "block/graph/drain.h"
#include "block/graph/reopen.h"
#include "block/graph/txn.h"
#include "block/jobs/mirror-int.h"
#include "block/util/bytes.h"
#include "block/util/order.h"

#define PATIENCE   3                           /* passes before a small rest is copied in a drained section */
#define SMALL_REST (UINT64_C(8) * 1024 * 1024) /* bytes */
/* A ready mirror lets clients' writes gather that long: who writes a block ten times has it copied once. */
#define GATHER_NS (INT64_C(10) * 1000 * 1000)

static MirrorJob *mirror_of(Job *job)
{
    return (MirrorJob *)job;
}

/* Has the source a writer besides the filter? Clients that come later may ask for the source by its name. */
static bool mirror_has_bypass(const MirrorJob *m)
{
    for (GList *l = m->source->parents.head; l; l = l->next) {
        const Child *child = l->data;
        if (child->parent != m->filter && (child->perm & PERM_WRITE))
            return true;
    }
    return false;
}

/* Bits were set by a client's write. */
static void mirror_dirtied(void *opaque)
{
    MirrorJob *m = opaque;

    if (m->active && !m->bypassed)
        m->bypassed = mirror_has_bypass(m);
    /* The active filter, which holds the lock, looks itself once it knows whether the target has got the write too. */
    if (m->idle && !(m->active && m->copy->lock.holds))
        job_kick(&m->common);
}

static bool mirror_make_copy(MirrorJob *m, GError **error)
{
    CopyOptions options = {
        .source = m->source_port->child,
        .target = m->target_port->child,
        .status_of = m->source,
        .todo = m->dirty->bits,
        .size = m->source->size,
        .buffers = m->buf_size ? align_up(m->buf_size, m->granularity) : 0,
        .cow_cluster = m->backing_later ? job_fill_size(m->target) : 0,
        .skip_zeroes = m->sync == MIRROR_SYNC_MODE_FULL,
        .unmap = m->unmap,
        .on_source_error = m->on_source_error,
        .on_target_error = m->on_target_error,
    };

    m->copy = copy_new(&m->common, &options, error);
    return m->copy != NULL;
}

/* Marks what there is to copy at first. 0 or -errno. */
static int mirror_co_mark(MirrorJob *m)
{
    if (m->sync == MIRROR_SYNC_MODE_FULL)
        bitmap_set(m->dirty, 0, m->source->size);
    if (m->sync == MIRROR_SYNC_MODE_TOP)
        return copy_co_mark_allocated(&m->common, m->dirty->bits, m->source,
                                      m->commit ? m->target : node_backing(m->source), m->source->size, false);
    return 0;
}

static void mirror_co_drain(MirrorJob *m)
{
    m->drained = job_co_drained_begin(&m->common, m->source);
}

static void mirror_undrain(MirrorJob *m)
{
    if (!m->drained)
        return;
    m->drained = false;
    job_drained_end(&m->common, m->source);
}

/* Flushes the target. An error that is not to be reported means: try again later. 1: flushed, 0: not, or -errno. */
static int mirror_co_flush(MirrorJob *m)
{
    int ret = order_left_out("mirror-end") ? 0 : child_co_flush(m->target_port->child);

    if (ret == 0)
        return 1;
    if (job_error_action(&m->common, m->on_target_error, false, -ret) == BLOCK_ERROR_ACTION_REPORT)
        return ret;
    mirror_undrain(m);
    job_co_sleep(&m->common, JOB_ERROR_REST_NS);
    return 0;
}

/*
 * Copies in passes until source and target are the same, flushed; with @drain they stay so, else they do as long as
 * nobody writes. False when the job is to end: cancelled, or *@ret is the error.
 */
static bool mirror_co_converge(MirrorJob *m, bool drain, int *ret)
{
    unsigned passes = 0;

    for (;;) {
        *ret = copy_co_pass(m->copy);
        if (*ret < 0 || job_is_cancelled(&m->common))
            return false;
        passes++;
        if (bitmap_count(m->dirty) == 0 && (m->drained || !drain)) {
            /* While it is flushed something may be written, which "ready" allows for and "drained" excludes. */
            int flushed = mirror_co_flush(m);
            *ret = MIN(flushed, 0);
            if (flushed)
                return flushed > 0 && !job_is_cancelled(&m->common);
        } else if (m->common.user_paused || m->copy->failed_lately) {
            mirror_undrain(m); /* an error that stops or delays the job must not stop the client with it */
        } else if (!m->drained && bitmap_count(m->dirty) <= SMALL_REST && (drain || passes >= PATIENCE)) {
            mirror_co_drain(m);
        }
    }
}

/* Ready: copies what clients write, until the job is to end. 0 or -errno. */
static int mirror_co_follow(MirrorJob *m)
{
    Job *job = &m->common;
    int ret = 0;

    while (ret == 0 && !m->should_complete && !job->cancelled) {
        m->idle = true;
        while (!bitmap_count(m->dirty) && !m->should_complete && !job->cancelled && !m->copy->ret)
            job_co_wait(job);
        m->idle = false;
        if (!m->should_complete && !job->cancelled)
            job_co_sleep(job, GATHER_NS);
        job_co_pause_point(job);
        ret = copy_co_pass(m->copy);
    }
    return ret;
}

static int mirror_co_loop(MirrorJob *m)
{
    Job *job = &m->common;
    int ret;

    if (!mirror_co_converge(m, false, &ret))
        return ret;
    copy_update_progress(m->copy);
    job_set_ready(job);
    mirror_undrain(m);
    job_co_pause_point(job);
    ret = mirror_co_follow(m);
    if (ret < 0 || job_is_cancelled(job))
        return ret;
    mirror_co_converge(m, true, &ret); /* and the source stays drained */
    copy_update_progress(m->copy);
    return ret;
}

/* A base that is shorter becomes as long as what is committed to it; a longer one stays so. */
static bool mirror_co_grow(MirrorJob *m, GError **error)
{
    uint64_t old = m->target->size, size = m->source->size;

    if (old >= size)
        return true;
    if (!port_co_truncate(m->target_port, size, false, PREALLOC_MODE_OFF, 0, error))
        return false;
    bitmap_set(m->dirty, old, size - old);
    return true;
}

static int mirror_co_run(Job *job, GError **error)
{
    MirrorJob *m = mirror_of(job);
    int ret;

    if (m->commit && !mirror_co_grow(m, error))
        return -EIO;
    if (m->source->size != m->target->size && !m->commit) {
        error_set(error, "Source and target image have different sizes");
        return -EINVAL;
    }
    if (!mirror_make_copy(m, error))
        return -ENOMEM;
    ret = mirror_co_mark(m);
    copy_update_progress(m->copy);
    if (ret == 0 && !job_is_cancelled(job))
        ret = mirror_co_loop(m);
    m->stopped = true;
    if (ret < 0 || job_is_cancelled(job))
        mirror_undrain(m);
    return ret;
}

static void mirror_co_settle(Job *job)
{
    if (mirror_of(job)->copy)
        copy_co_settle(mirror_of(job)->copy);
}

static bool mirror_drained_poll(Job *job)
{
    const Copy *copy = mirror_of(job)->copy;

    return copy && copy->in_flight;
}

static bool mirror_complete(Job *job, GError **error)
{
    MirrorJob *m = mirror_of(job);

    if (m->replaces && !graph_find_node(job->graph, m->replaces))
        return error_set(error, "Node name '%s' not found", m->replaces);
    m->should_complete = true;
    return true;
}

static bool mirror_must_force(Job *job, bool force)
{
    return force || !job_is_ready(job);
}

/* ---- the end ---------------------------------------------------------------------------------------------------- */

static void mirror_unfreeze(MirrorJob *m)
{
    if (m->frozen)
        node_unfreeze_chain(m->source, m->target);
    m->frozen = false;
}

/* Puts the target where @to_replace is, and the filter out of the way, in one go. */
static bool mirror_co_switch(MirrorJob *m, Node *to_replace, GError **error)
{
    Graph *graph = m->common.graph;
    g_autoptr(GraphTxn) txn = graph_txn_new(graph);

    graph_txn_set_perm(txn, m->source_port->child, 0, PERM_ALL);
    graph_txn_set_perm(txn, m->target_port->child, 0, PERM_ALL);
    if (!graph_txn_replace_node(txn, to_replace, m->target, NULL, error))
        return false;
    if (m->new_backing) {
        if (m->target->backing)
            graph_txn_replace(txn, m->target->backing, m->new_backing);
        else
            graph_txn_attach(txn, m->target, "backing", m->new_backing, ROLE_COW);
    }
    if (!graph_txn_replace_node(txn, m->filter, m->filter->file->node, NULL, error))
        return false;
    graph_txn_detach(txn, m->filter->file);
    if (!graph_txn_co_commit(txn, error))
        return false;
    m->inserted = false;
    m->target_was_read_only = false;
    return true;
}

static int mirror_co_prepare(Job *job, GError **ret_error)
{
    MirrorJob *m = mirror_of(job);
    Node *to_replace = m->source;
    g_autoptr(GError) error = NULL;
    bool ok = true;

    if (!m->should_complete)
        return 0;
    if (m->replaces) {
        to_replace = graph_find_node(job->graph, m->replaces);
        ok = to_replace && node_can_replace(m->source, to_replace);
        if (!ok)
            error_set(&error,
                      "Can no longer replace '%s' by '%s', because it can no longer be guaranteed that doing so would "
                      "not lead to an abrupt change of visible data",
                      m->replaces, m->target->name);
    }
    if (ok) {
        mirror_unfreeze(m);
        node_ref(to_replace);
        node_co_drained_begin(to_replace);
        node_co_drained_begin(m->target);
        ok = mirror_co_switch(m, to_replace, &error);
        node_drained_end(m->target);
        node_drained_end(to_replace);
        node_co_unref(to_replace);
    }
    if (ok)
        return 0;
    g_printerr("storage-daemon: %s\n", error->message);
    return -EPERM;
}

static void mirror_co_clean(Job *job)
{
    MirrorJob *m = mirror_of(job);

    m->stopped = true;
    mirror_unfreeze(m);
    if (m->inserted) {
        node_co_drained_begin(m->source);
        job_co_remove_filter(m->filter);
        node_drained_end(m->source);
        m->inserted = false;
    }
    mirror_undrain(m);
    port_co_free(m->source_port);
    port_co_free(m->target_port);
    m->source_port = m->target_port = NULL;
    copy_free(m->copy);
    m->copy = NULL;
    bitmap_free(m->dirty);
    m->dirty = NULL;
    if (m->target_was_read_only)
        node_co_set_read_only(m->target, true, NULL);
    if (m->filter)
        ((MirrorFilter *)m->filter->state)->job = NULL;
    node_co_unref(m->filter);
    node_co_unref(m->new_backing);
    m->filter = m->new_backing = NULL;
}

static void mirror_free(Job *job)
{
    g_free(mirror_of(job)->replaces);
}

/* clang-format off */
#define MIRROR_DRIVER                    \
    .size = sizeof(MirrorJob),           \
    .is_block = true,                    \
    .co_run = mirror_co_run,             \
    .co_settle = mirror_co_settle,       \
    .complete = mirror_complete,         \
    .must_force = mirror_must_force,     \
    .drained_poll = mirror_drained_poll, \
    .co_prepare = mirror_co_prepare,     \
    .co_clean = mirror_co_clean,         \
    .free = mirror_free
/* clang-format on */

const JobDriver mirror_job_driver = {.type = JOB_TYPE_MIRROR, MIRROR_DRIVER};
const JobDriver mirror_commit_job_driver = {.type = JOB_TYPE_COMMIT, MIRROR_DRIVER};

void mirror_watch(MirrorJob *m)
{
    m->dirty->dirtied = mirror_dirtied;
    m->dirty->opaque = m;
}
