/*
 * Actions on dirty bitmaps. A bitmap changes between two requests, never in one, so no node needs to rest for them: a
 * write in flight is recorded when it completes.
 *
 * Other actions may have to wait while they are undone, so clients' writes may come in between prepare and abort. What
 * was not recorded in the meantime is reported as changed afterwards: too much, never too little.
 */
#include "block/graph/bitmap.h"
#include "block/graph/driver.h"
#include "daemon/transaction.h"

typedef struct BitmapAction {
    Action common;
    Bitmap *bitmap;
    Node *node;        /* whose bitmap it is, from co_prepare on; referenced */
    uint64_t gen;      /* its write_gen then */
    HBitmap *old_bits; /* clear, merge: what it held before */
    bool was_enabled;  /* enable, disable */
    gint place;        /* remove: where it stood among its node's bitmaps */
} BitmapAction;

static Graph *graph_of(const BitmapAction *a)
{
    return a->common.txn->daemon->graph;
}

/* Refuses early, before other actions make files, what will be refused later. A bitmap that is going to be changed, and
 * that an image holds, is marked there as in use first. */
static bool bitmap_co_expect(Action *action, const char *node, const char *name, GError **error)
{
    bool comes = transaction_adds_bitmap(action, name);
    Bitmap *bitmap = bitmap_lookup(action->txn->daemon->graph, node, name, NULL, comes ? NULL : error);

    return bitmap ? bitmap_co_touch(bitmap, error) : comes;
}

/* The end of co_prepare: the bitmap stays where it is until all is done, whatever becomes of its node. */
static bool bitmap_hold(BitmapAction *a)
{
    a->node = node_ref(a->bitmap->node);
    a->gen = a->node->write_gen;
    return true;
}

static bool bitmap_missed_writes(const BitmapAction *a)
{
    return a->node->write_gen != a->gen;
}

static void bitmap_co_clean(Action *action)
{
    node_co_unref(((BitmapAction *)action)->node);
}

static bool existing_co_open(Action *action, GError **error)
{
    const BlockDirtyBitmap *arg = action->arg;

    return bitmap_co_expect(action, arg->node, arg->name, error);
}

/* ---- add -------------------------------------------------------------------------------------------------------- */

static bool add_co_open(Action *action, GError **error)
{
    const BlockDirtyBitmapAdd *arg = action->arg;
    Node *node = bitmap_name_ok(arg->name, error) ? transaction_find(action->txn, arg->node, arg->node, error) : NULL;

    return node && (!arg->persistent || bitmap_co_check_room(node_skip_implicit(node), error));
}

static bool add_co_prepare(Action *action, GError **error)
{
    BitmapAction *a = (BitmapAction *)action;
    const BlockDirtyBitmapAdd *arg = action->arg;
    Node *node = transaction_find(action->txn, arg->node, arg->node, error);

    if (!node)
        return false;
    node = node_skip_implicit(node);
    if (arg->has_granularity && !arg->granularity)
        return error_set(error, "Granularity must be power of 2 and at least 512");
    a->bitmap = bitmap_new(node, arg->has_granularity ? arg->granularity : 0, arg->name, error);
    if (!a->bitmap)
        return false;
    if (arg->persistent && !bitmap_can_store(node, arg->name, a->bitmap->granularity, error)) {
        bitmap_free(g_steal_pointer(&a->bitmap));
        return false;
    }
    a->bitmap->persistent = a->bitmap->unsaved = arg->persistent;
    a->bitmap->enabled = !arg->disabled;
    return bitmap_hold(a);
}

static void add_co_abort(Action *action)
{
    Bitmap *bitmap = ((BitmapAction *)action)->bitmap;

    if (!bitmap->busy) /* else a client found it meanwhile, and exports it */
        bitmap_free(bitmap);
}

const ActionKind action_bitmap_add = {
    .size = sizeof(BitmapAction),
    .co_open = add_co_open,
    .co_prepare = add_co_prepare,
    .co_abort = add_co_abort,
    .co_clean = bitmap_co_clean,
};

/* ---- remove: out of the image and out of sight first, freed at commit ------------------------------------------- */

/* An inconsistent one is good for nothing but this. */
enum { REMOVE_REFUSE = BITMAP_REFUSE_BUSY | BITMAP_REFUSE_RO };

/* The bitmap that the action is about, in none of the states @refuse. */
static bool find_bitmap(BitmapAction *a, unsigned refuse, GError **error)
{
    const BlockDirtyBitmap *arg = a->common.arg;

    a->bitmap = bitmap_lookup(graph_of(a), arg->node, arg->name, NULL, error);
    return a->bitmap && bitmap_check(a->bitmap, refuse, error);
}

/* From the image now, as long as that may take; if the action is undone, the bitmap is stored again later. */
static bool remove_co_open(Action *action, GError **error)
{
    BitmapAction *a = (BitmapAction *)action;
    bool comes = transaction_adds_bitmap(action, ((const BlockDirtyBitmap *)action->arg)->name);

    return find_bitmap(a, REMOVE_REFUSE, comes ? NULL : error) ? bitmap_co_forget(a->bitmap, error) : comes;
}

static bool remove_co_prepare(Action *action, GError **error)
{
    BitmapAction *a = (BitmapAction *)action;
    GQueue *bitmaps;

    if (!find_bitmap(a, REMOVE_REFUSE, error))
        return false;
    bitmaps = &a->bitmap->node->bitmaps;
    a->place = g_queue_index(bitmaps, a->bitmap);
    g_queue_remove(bitmaps, a->bitmap);
    return bitmap_hold(a);
}

static void remove_co_commit(Action *action)
{
    bitmap_free(((BitmapAction *)action)->bitmap);
}

static void remove_co_abort(Action *action)
{
    BitmapAction *a = (BitmapAction *)action;

    g_queue_push_nth(&a->node->bitmaps, a->bitmap, a->place);
    if (bitmap_missed_writes(a) && bitmap_recording(a->bitmap))
        bitmap_set(a->bitmap, 0, a->node->size);
}

const ActionKind action_bitmap_remove = {
    .size = sizeof(BitmapAction),
    .co_open = remove_co_open,
    .co_prepare = remove_co_prepare,
    .co_commit = remove_co_commit,
    .co_abort = remove_co_abort,
    .co_clean = bitmap_co_clean,
};

/* ---- clear and merge: other bits, the old ones kept until commit ------------------------------------------------ */

/* Takes @bits. */
static bool exchange_bits(BitmapAction *a, HBitmap *bits)
{
    a->old_bits = a->bitmap->bits;
    a->bitmap->bits = bits;
    return bitmap_hold(a);
}

static bool clear_co_prepare(Action *action, GError **error)
{
    BitmapAction *a = (BitmapAction *)action;
    HBitmap *bits;

    if (!find_bitmap(a, BITMAP_REFUSE_ALL, error))
        return false;
    bits = hbitmap_new(hbitmap_size(a->bitmap->bits), hbitmap_granularity_bits(a->bitmap->bits));
    if (!bits)
        return error_set(error, "No memory to clear bitmap '%s'", a->bitmap->name);
    return exchange_bits(a, bits);
}

static void bits_co_commit(Action *action)
{
    hbitmap_free(((BitmapAction *)action)->old_bits);
}

static void bits_co_abort(Action *action)
{
    BitmapAction *a = (BitmapAction *)action;

    if (bitmap_missed_writes(a)) {
        bool same_size =
            hbitmap_truncate(a->old_bits, hbitmap_size(a->bitmap->bits)) && hbitmap_merge(a->old_bits, a->bitmap->bits);
        if (!same_size)
            hbitmap_set(a->old_bits, 0, hbitmap_size(a->old_bits));
    }
    hbitmap_free(a->bitmap->bits);
    a->bitmap->bits = a->old_bits;
}

const ActionKind action_bitmap_clear = {
    .size = sizeof(BitmapAction),
    .co_open = existing_co_open,
    .co_prepare = clear_co_prepare,
    .co_commit = bits_co_commit,
    .co_abort = bits_co_abort,
    .co_clean = bitmap_co_clean,
};

/* One of the sources: by its name alone on the target's node, or with its own node. */
static Bitmap *merge_source(Graph *graph, const char *node, const BlockDirtyBitmapOrStr *source, GError **error)
{
    Bitmap *bitmap;

    if (source->kind == BLOCK_DIRTY_BITMAP_OR_STR_LOCAL)
        bitmap = bitmap_lookup(graph, node, source->u.local, NULL, error);
    else
        bitmap = bitmap_lookup(graph, source->u.external->node, source->u.external->name, NULL, error);
    return bitmap && bitmap_check(bitmap, BITMAP_REFUSE_BUSY | BITMAP_REFUSE_INCONSISTENT, error) ? bitmap : NULL;
}

static bool merge_co_open(Action *action, GError **error)
{
    const BlockDirtyBitmapMerge *arg = action->arg;

    return bitmap_co_expect(action, arg->node, arg->target, error);
}

static bool merge_co_prepare(Action *action, GError **error)
{
    BitmapAction *a = (BitmapAction *)action;
    const BlockDirtyBitmapMerge *arg = action->arg;
    g_autoptr(HBitmap) merged = NULL;

    a->bitmap = bitmap_lookup(graph_of(a), arg->node, arg->target, NULL, error);
    if (!a->bitmap || !bitmap_check(a->bitmap, BITMAP_REFUSE_ALL, error))
        return false;
    merged = hbitmap_clone(a->bitmap->bits);
    if (!merged)
        return error_set(error, "No memory to merge into bitmap '%s'", arg->target);
    for (size_t i = 0; i < arg->bitmaps->len; i++) {
        Bitmap *source = merge_source(graph_of(a), arg->node, arg->bitmaps->items[i], error);
        if (!source)
            return false;
        if (!hbitmap_merge(merged, source->bits))
            return error_set(error,
                             "Bitmaps are of different sizes (destination size is %" G_GUINT64_FORMAT
                             " and source size is %" G_GUINT64_FORMAT ") and can't be merged",
                             hbitmap_size(merged), hbitmap_size(source->bits));
    }
    return exchange_bits(a, g_steal_pointer(&merged));
}

const ActionKind action_bitmap_merge = {
    .size = sizeof(BitmapAction),
    .co_open = merge_co_open,
    .co_prepare = merge_co_prepare,
    .co_commit = bits_co_commit,
    .co_abort = bits_co_abort,
    .co_clean = bitmap_co_clean,
};

/* ---- enable and disable ----------------------------------------------------------------------------------------- */

static bool set_enabled(BitmapAction *a, bool enabled, GError **error)
{
    /* Of one whose image is read-only this changes nothing but what is to be stored later. */
    if (!find_bitmap(a, BITMAP_REFUSE_BUSY | BITMAP_REFUSE_INCONSISTENT, error))
        return false;
    a->was_enabled = a->bitmap->enabled;
    a->bitmap->enabled = enabled;
    a->bitmap->unsaved = a->bitmap->persistent;
    return bitmap_hold(a);
}

static bool enable_co_prepare(Action *action, GError **error)
{
    return set_enabled((BitmapAction *)action, true, error);
}

static bool disable_co_prepare(Action *action, GError **error)
{
    return set_enabled((BitmapAction *)action, false, error);
}

static void enabled_co_abort(Action *action)
{
    BitmapAction *a = (BitmapAction *)action;

    if (a->was_enabled && !a->bitmap->enabled && bitmap_missed_writes(a))
        bitmap_set(a->bitmap, 0, a->node->size);
    a->bitmap->enabled = a->was_enabled;
}

const ActionKind action_bitmap_enable = {
    .size = sizeof(BitmapAction),
    .co_open = existing_co_open,
    .co_prepare = enable_co_prepare,
    .co_abort = enabled_co_abort,
    .co_clean = bitmap_co_clean,
};

const ActionKind action_bitmap_disable = {
    .size = sizeof(BitmapAction),
    .co_open = existing_co_open,
    .co_prepare = disable_co_prepare,
    .co_abort = enabled_co_abort,
    .co_clean = bitmap_co_clean,
};
