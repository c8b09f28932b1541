/*
 * Commands about dirty bitmaps.
 */
#include "block/graph/bitmap.h"
#include "block/graph/driver.h"
#include "daemon/daemon.h"
#include "qapi/commands.h"

static Graph *graph_of(QmpContext *ctx)
{
    return qmp_daemon(ctx)->graph;
}

bool qmp_co_block_dirty_bitmap_add(QmpContext *ctx, const BlockDirtyBitmapAdd *arg, GError **error)
{
    g_autoptr(GError) local = NULL;
    Node *node = graph_lookup(graph_of(ctx), arg->node, &local);
    Bitmap *bitmap;

    if (!bitmap_name_ok(arg->name, error))
        return false;
    if (!node)
        return error_set(error, "%s", local->message);
    node = node_skip_implicit(node);
    if (arg->has_granularity && !arg->granularity)
        return error_set(error, "Granularity must be power of 2 and at least 512");
    if (arg->persistent)
        return error_set(error, "Can't store persistent bitmaps to %s: driver '%s' does not store bitmaps", arg->node,
                         node->drv->name);
    bitmap = bitmap_new(node, arg->has_granularity ? arg->granularity : 0, arg->name, error);
    if (!bitmap)
        return false;
    bitmap->enabled = !arg->disabled;
    return true;
}

bool qmp_co_block_dirty_bitmap_remove(QmpContext *ctx, const BlockDirtyBitmap *arg, GError **error)
{
    Bitmap *bitmap = bitmap_lookup(graph_of(ctx), arg->node, arg->name, NULL, error);

    /* An inconsistent one is good for nothing but this. */
    if (!bitmap || !bitmap_check(bitmap, BITMAP_REFUSE_BUSY | BITMAP_REFUSE_RO, error))
        return false;
    bitmap_free(bitmap);
    return true;
}

bool qmp_co_block_dirty_bitmap_clear(QmpContext *ctx, const BlockDirtyBitmap *arg, GError **error)
{
    Bitmap *bitmap = bitmap_lookup(graph_of(ctx), arg->node, arg->name, NULL, error);

    if (!bitmap || !bitmap_check(bitmap, BITMAP_REFUSE_ALL, error))
        return false;
    hbitmap_reset_all(bitmap->bits);
    return true;
}

static bool bitmap_set_enabled(QmpContext *ctx, const BlockDirtyBitmap *arg, bool enabled, GError **error)
{
    Bitmap *bitmap = bitmap_lookup(graph_of(ctx), arg->node, arg->name, NULL, error);

    if (!bitmap || !bitmap_check(bitmap, BITMAP_REFUSE_ALL, error))
        return false;
    bitmap->enabled = enabled;
    return true;
}

bool qmp_co_block_dirty_bitmap_enable(QmpContext *ctx, const BlockDirtyBitmap *arg, GError **error)
{
    return bitmap_set_enabled(ctx, arg, true, error);
}

bool qmp_co_block_dirty_bitmap_disable(QmpContext *ctx, const BlockDirtyBitmap *arg, GError **error)
{
    return bitmap_set_enabled(ctx, arg, false, error);
}

/* One of the sources: by its name alone on @node, or with its own node. */
static Bitmap *merge_source(Graph *graph, const char *node, const BlockDirtyBitmapOrStr *source, GError **error)
{
    Bitmap *bitmap;

    if (source->kind == BLOCK_DIRTY_BITMAP_OR_STR_LOCAL)
        bitmap = bitmap_lookup(graph, node, source->u.local, NULL, error);
    else
        bitmap = bitmap_lookup(graph, source->u.external->node, source->u.external->name, NULL, error);
    return bitmap && bitmap_check(bitmap, BITMAP_REFUSE_BUSY | BITMAP_REFUSE_INCONSISTENT, error) ? bitmap : NULL;
}

bool qmp_co_block_dirty_bitmap_merge(QmpContext *ctx, const BlockDirtyBitmapMerge *arg, GError **error)
{
    Graph *graph = graph_of(ctx);
    g_autoptr(HBitmap) merged = NULL;
    Bitmap *target = bitmap_lookup(graph, arg->node, arg->target, NULL, error);
    HBitmap *old;

    if (!target || !bitmap_check(target, BITMAP_REFUSE_ALL, error))
        return false;
    /* Into a copy first: all of them or none. */
    merged = hbitmap_clone(target->bits);
    if (!merged)
        return error_set(error, "No memory to merge into bitmap '%s'", arg->target);
    for (size_t i = 0; i < arg->bitmaps->len; i++) {
        Bitmap *source = merge_source(graph, arg->node, arg->bitmaps->items[i], error);
        if (!source)
            return false;
        if (!hbitmap_merge(merged, source->bits))
            return error_set(error,
                             "Bitmaps are of different sizes (destination size is %" G_GUINT64_FORMAT
                             " and source size is %" G_GUINT64_FORMAT ") and can't be merged",
                             hbitmap_size(merged), hbitmap_size(source->bits));
    }
    old = target->bits;
    target->bits = g_steal_pointer(&merged);
    hbitmap_free(old);
    return true;
}
