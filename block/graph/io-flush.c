/*
 * Flush, size changes, limits.
 *
 * Flush follows LAW 9: it covers every write that completed before it was asked for. Generations tell whether there is
 * anything to do: write_gen counts completed writes, flushed_gen is what the last good flush covered. A flush that
 * failed leaves the node failed for good, for the kernel may have dropped the dirty pages it could not write.
 */
#include "block/graph/debug.h"
#include "block/graph/graph-int.h"
#include "block/util/order.h"

/* @dirty: something was written since the last flush. The driver's caches first, since that writes to the children;
 * then the children; then the disk. */
static int node_co_flush_once(Node *node, bool dirty)
{
    const Driver *drv = node->drv;
    int ret;

    child_co_debug_event(node->file, BLKDEBUG_EVENT_FLUSH_TO_OS);
    ret = drv->co_flush ? drv->co_flush(node) : 0;
    if (ret == 0 && dirty && !node->flags.cache_no_flush)
        child_co_debug_event(node->file, BLKDEBUG_EVENT_FLUSH_TO_DISK);
    if (drv->co_flush_children && ret == 0)
        ret = drv->co_flush_children(node);
    for (guint i = 0;
         !drv->co_flush_children && !order_left_out("flush-children") && i < node->children->len && ret == 0; i++) {
        Child *child = g_ptr_array_index(node->children, i);
        /* Backing files are never written through this node, except by what holds write permission on them. */
        if (!(child->role & ROLE_COW) || (child->perm & PERM_WRITE))
            ret = child_co_flush(child);
    }
    if (ret == 0 && drv->co_flush_to_disk && !node->flags.cache_no_flush)
        ret = drv->co_flush_to_disk(node);
    return ret;
}

int node_co_flush(Node *node)
{
    uint64_t target = node->write_gen;
    int ret = 0;

    if (node->flags.read_only)
        return 0;
    node_in_flight_inc(node);
    while (node->flushing && !node->failed)
        coqueue_co_wait(&node->flush_waiters, NULL);
    if (node->failed) {
        ret = -EIO;
    } else if (node->flushed_gen < target || !node->drv->co_flush_to_disk) {
        /* What completed meanwhile is covered as well; what completes from here on may not be. */
        target = node->write_gen;
        node->flushing = true;
        ret = node_co_flush_once(node, node->flushed_gen < target);
        node->flushing = false;
        if (ret == 0)
            node->flushed_gen = target;
        coqueue_wake_all(&node->flush_waiters);
    }
    node_in_flight_dec(node);
    return ret;
}

int child_co_flush(Child *child)
{
    return node_co_flush(child->node);
}

void node_set_size(Node *node, uint64_t size)
{
    node->size = size;
    for (GList *l = node->parents.head; l; l = l->next) {
        Child *child = l->data;
        if (child->ops && child->ops->resized)
            child->ops->resized(child);
    }
}

int node_co_refresh_size(Node *node)
{
    int64_t size;

    if (node->drv->co_getlength)
        size = node->drv->co_getlength(node);
    else
        size = node->file ? (int64_t)node->file->node->size : (int64_t)node->size;
    if (size < 0)
        return (int)size;
    if ((uint64_t)size == node->size)
        return 0;
    if (!node_resize_bitmaps(node, (uint64_t)size, NULL))
        return -ENOMEM;
    node_set_size(node, (uint64_t)size);
    return 0;
}

void node_refresh_limits(Node *node)
{
    node->limits = (Limits){.request_alignment = 1, .min_mem_align = 1};
    if (node->drv->refresh_limits)
        node->drv->refresh_limits(node);
}

/* What lies between the old end and the end of a longer backing file must not shine through. */
static int node_co_zero_grown(Node *node, TrackedRequest *req, uint64_t old_size)
{
    uint64_t end = node->backing ? MIN(node->size, node->backing->node->size) : 0;
    int ret;

    if (end <= old_size)
        return 0;
    ret = node->drv->grows_zeroed ? 0 : node_co_write_zeroes_tracked(node, req, old_size, end - old_size, 0);
    return node_co_write_done(node, old_size, end - old_size, 0, ret);
}

static bool driver_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                               GError **error)
{
    if (node->drv->co_truncate)
        return node->drv->co_truncate(node, size, exact, prealloc, flags, error);
    if (node_filtered_child(node))
        return child_co_truncate(node->file, size, exact, prealloc, flags, error);
    return error_set(error, "Image format driver '%s' does not support resize", node->drv->name);
}

bool child_co_truncate(Child *child, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error)
{
    Node *node = child->node;
    uint64_t old_size = node->size;
    TrackedRequest req;
    bool ok;
    int ret;

    if (!(child->perm & PERM_RESIZE))
        return error_set(error, "Cannot resize node '%s': its user did not ask for the permission to", node->name);
    if (!node_writable(node))
        return error_set(error, "Image is read-only");
    if (size > (uint64_t)INT64_MAX - 4096)
        return error_set(error, "Size %" G_GUINT64_FORMAT " is too large", size);
    node_in_flight_inc(node);
    tracked_begin(&req, node, MIN(size, old_size), MAX(size, old_size) - MIN(size, old_size));
    tracked_co_serialise(&req, 1);
    ok = driver_co_truncate(node, size, exact, prealloc, flags, error);
    node->write_gen++;
    ret = node_co_refresh_size(node);
    if (ok && ret == 0)
        ret = node_co_zero_grown(node, &req, old_size); /* before anybody can write there */
    tracked_end(&req);
    node_in_flight_dec(node);
    if (ok && ret < 0)
        return error_set_errno(error, -ret, "Could not finish resizing node '%s'", node->name);
    return ok;
}
