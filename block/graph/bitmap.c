/*
 * Dirty bitmaps of nodes: their life, freezing for a backup, and what queries show.
 *
 * The bits themselves are an HBitmap. A frozen bitmap stands still while its successor, which only it knows, records in
 * its place; the job that froze it decides at its end whether the successor replaces it or is merged into it.
 * Everything here belongs to the node's loop thread, and nothing yields, so a bitmap changes between two requests,
 * never in one.
 */
#include "block/graph/bitmap.h"
#include "block/graph/device.h"
#include "block/graph/driver.h"
#include "block/graph/graph-int.h"
#include "block/util/bytes.h"
#include <inttypes.h>

#define BITMAP_NAME_MAX        1023
#define BITMAP_GRANULARITY_MAX (UINT64_C(1) << 31)

uint64_t bitmap_default_granularity(Node *node)
{
    Node *image = node_skip_filters(node);
    NodeInfo info = {0};

    if (image->drv->get_info)
        image->drv->get_info(image, &info);
    if (!info.cluster_size)
        return 64 * 1024;
    return u64_min(u64_max(info.cluster_size, 4096), 64 * 1024);
}

bool bitmap_name_ok(const char *name, GError **error)
{
    if (!*name)
        return error_set(error, "Bitmap name cannot be empty");
    if (strlen(name) > BITMAP_NAME_MAX)
        return error_set(error, "Bitmap name too long: %s", name);
    return true;
}

static Bitmap *bitmap_make(Node *node, uint64_t size, uint64_t granularity, const char *name, GError **error)
{
    HBitmap *bits = hbitmap_new(size, ilog2(granularity));
    Bitmap *bitmap;

    if (!bits) {
        error_set(error, "No memory for a bitmap of node '%s' with granularity %" PRIu64, node->name, granularity);
        return NULL;
    }
    bitmap = g_new0(Bitmap, 1);
    bitmap->node = node;
    bitmap->name = g_strdup(name);
    bitmap->bits = bits;
    bitmap->granularity = granularity;
    g_queue_push_tail(&node->bitmaps, bitmap);
    return bitmap;
}

Bitmap *bitmap_new(Node *node, uint64_t granularity, const char *name, GError **error)
{
    Bitmap *bitmap;

    if (!granularity)
        granularity = bitmap_default_granularity(node);
    if (!is_pow2(granularity) || granularity < 512 || granularity > BITMAP_GRANULARITY_MAX) {
        error_set(error, "Granularity must be power of 2 and at least 512");
        return NULL;
    }
    if (name && !bitmap_name_ok(name, error))
        return NULL;
    if (name && bitmap_find(node, name)) {
        error_set(error, "Bitmap already exists: %s", name);
        return NULL;
    }
    bitmap = bitmap_make(node, node->size, granularity, name, error);
    if (bitmap)
        bitmap->enabled = true;
    return bitmap;
}

Bitmap *bitmap_new_stored(Node *node, uint64_t size, unsigned granularity_bits, const char *name, bool inconsistent,
                          GError **error)
{
    Bitmap *bitmap = bitmap_make(node, inconsistent ? 0 : size, UINT64_C(1) << granularity_bits, name, error);

    if (!bitmap)
        return NULL;
    bitmap->persistent = true;
    bitmap->inconsistent = inconsistent;
    return bitmap;
}

static void successor_free(Bitmap *bitmap)
{
    if (!bitmap->successor)
        return;
    hbitmap_free(bitmap->successor->bits);
    g_free(bitmap->successor);
    bitmap->successor = NULL;
}

void bitmap_free(Bitmap *bitmap)
{
    if (!bitmap)
        return;
    g_queue_remove(&bitmap->node->bitmaps, bitmap);
    successor_free(bitmap);
    hbitmap_free(bitmap->bits);
    g_free(bitmap->name);
    g_free(bitmap);
}

Bitmap *bitmap_find(Node *node, const char *name)
{
    for (GList *l = node->bitmaps.head; l; l = l->next) {
        Bitmap *bitmap = l->data;
        if (g_strcmp0(bitmap->name, name) == 0)
            return bitmap;
    }
    return NULL;
}

Bitmap *bitmap_lookup(Graph *graph, const char *node_name, const char *name, Node **ret_node, GError **error)
{
    Node *node = graph_lookup(graph, node_name, NULL);
    Bitmap *bitmap;

    if (!node) {
        error_set(error, "Node '%s' not found", node_name);
        return NULL;
    }
    /* A device that a job put its filter into still has its bitmaps where they were. */
    node = node_skip_implicit(node);
    bitmap = bitmap_find(node, name);
    if (!bitmap) {
        error_set(error, "Dirty bitmap '%s' not found", name);
        return NULL;
    }
    if (ret_node)
        *ret_node = node;
    return bitmap;
}

bool bitmap_readonly(const Bitmap *bitmap)
{
    return bitmap->persistent && !node_writable(bitmap->node);
}

bool bitmap_check(const Bitmap *bitmap, unsigned refuse, GError **error)
{
    const char *name = bitmap->name ? bitmap->name : "";

    if ((refuse & BITMAP_REFUSE_BUSY) && bitmap->busy)
        return error_set(error, "Bitmap '%s' is currently in use by another operation and cannot be used", name);
    if ((refuse & BITMAP_REFUSE_RO) && bitmap_readonly(bitmap))
        return error_set(error, "Bitmap '%s' is readonly and cannot be modified", name);
    if ((refuse & BITMAP_REFUSE_INCONSISTENT) && bitmap->inconsistent)
        return error_set(error, "Bitmap '%s' is inconsistent and cannot be used; block-dirty-bitmap-remove deletes it",
                         name);
    return true;
}

/* ---- stored bitmaps --------------------------------------------------------------------------------------------- */

bool bitmap_can_store(Node *node, const char *name, uint64_t granularity, GError **error)
{
    if (!node->drv->can_store_bitmap)
        return error_set(error, "Can't store persistent bitmaps to %s: driver '%s' does not store bitmaps", node->name,
                         node->drv->name);
    if (!node_writable(node))
        return error_set(error, "Can't make bitmap '%s' persistent in '%s': the node is read-only", name, node->name);
    if (!node->drv->can_store_bitmap(node, name, granularity, error)) {
        g_prefix_error(error, "Can't make bitmap '%s' persistent in '%s': ", name, node->name);
        return false;
    }
    return true;
}

bool bitmap_co_check_room(Node *node, GError **error)
{
    bool ok = true;

    if (!node->drv->co_bitmaps_fit)
        return true;
    node_ref(node);
    node_co_enter(node);
    if (node_writable(node))
        ok = node->drv->co_bitmaps_fit(node, error);
    node_in_flight_dec(node);
    if (!ok)
        g_prefix_error(error, "Can't store persistent bitmaps in '%s': ", node->name);
    node_co_unref(node);
    return ok;
}

bool bitmap_co_touch(Bitmap *bitmap, GError **error)
{
    Node *node = bitmap->node;
    int ret;

    if (!bitmap->persistent || !node_writable(node))
        return true;
    node_ref(node);
    node_co_enter(node);
    ret = node_writable(node) ? node->drv->co_touch_bitmaps(node) : 0;
    node->write_gen++;
    node_in_flight_dec(node);
    if (ret < 0)
        error_set_errno(error, -ret, "Could not mark the bitmaps of node '%s' as in use", node->name);
    node_co_unref(node);
    return ret == 0;
}

bool bitmap_co_forget(Bitmap *bitmap, GError **error)
{
    g_autofree char *name = g_strdup(bitmap->name);
    Node *node = bitmap->node;
    bool ok;

    if (!bitmap->persistent)
        return true;
    bitmap->unsaved = true;
    node_ref(node);
    node_co_enter(node);
    ok = node_writable(node) ? node->drv->co_remove_bitmap(node, name, error)
                             : error_set(error, "Bitmap '%s' is readonly and cannot be modified", name);
    node->write_gen++;
    node_in_flight_dec(node);
    node_co_unref(node);
    return ok;
}

HBitmap *bitmap_all_bits(const Bitmap *bitmap)
{
    HBitmap *bits = hbitmap_clone(bitmap->bits);
    bool same_size = !bits || !bitmap->successor || hbitmap_merge(bits, bitmap->successor->bits);

    g_assert(same_size);
    return bits;
}

/* ---- freezing --------------------------------------------------------------------------------------------------- */

bool bitmap_recording(const Bitmap *bitmap)
{
    return bitmap->successor ? bitmap->successor->enabled : bitmap->enabled;
}

bool bitmap_freeze(Bitmap *bitmap, GError **error)
{
    Bitmap *successor;
    HBitmap *bits;

    if (!bitmap_check(bitmap, BITMAP_REFUSE_BUSY, error))
        return false;
    g_assert(!bitmap->successor);
    bits = hbitmap_new(hbitmap_size(bitmap->bits), hbitmap_granularity_bits(bitmap->bits));
    if (!bits)
        return error_set(error, "No memory for a successor of bitmap '%s'", bitmap->name ? bitmap->name : "");
    successor = g_new0(Bitmap, 1);
    successor->node = bitmap->node;
    successor->bits = bits;
    successor->granularity = bitmap->granularity;
    successor->enabled = bitmap->enabled;
    bitmap->successor = successor;
    bitmap->busy++;
    return true;
}

static void bitmap_thaw(Bitmap *bitmap)
{
    bitmap->enabled = bitmap->successor->enabled;
    bitmap->unsaved = true;
    successor_free(bitmap);
    g_assert(bitmap->busy > 0);
    bitmap->busy--;
}

void bitmap_thaw_replace(Bitmap *bitmap)
{
    HBitmap *old = bitmap->bits;

    bitmap->bits = bitmap->successor->bits;
    bitmap->successor->bits = old;
    bitmap_thaw(bitmap);
}

void bitmap_thaw_merge(Bitmap *bitmap)
{
    bool same_size = hbitmap_merge(bitmap->bits, bitmap->successor->bits);

    g_assert(same_size);
    bitmap_thaw(bitmap);
}

/* Cuts [@offset, @offset + @bytes) to the bitmap's size. */
static uint64_t cut(const Bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    uint64_t size = hbitmap_size(bitmap->bits);

    if (offset >= size)
        return 0;
    return u64_min(bytes, size - offset);
}

void bitmap_set(Bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    bytes = cut(bitmap, offset, bytes);
    if (bytes)
        hbitmap_set(bitmap->bits, offset, bytes);
}

void bitmap_reset(Bitmap *bitmap, uint64_t offset, uint64_t bytes)
{
    bytes = cut(bitmap, offset, bytes);
    if (bytes)
        hbitmap_reset(bitmap->bits, offset, bytes);
}

uint64_t bitmap_count(const Bitmap *bitmap)
{
    return hbitmap_count(bitmap->bits);
}

void node_mark_dirty(Node *node, uint64_t offset, uint64_t bytes)
{
    for (GList *l = node->bitmaps.head; l; l = l->next) {
        Bitmap *bitmap = l->data;
        Bitmap *recorder = bitmap->successor ? bitmap->successor : bitmap;
        if (!recorder->enabled)
            continue;
        bitmap_set(recorder, offset, bytes);
        if (bitmap->dirtied)
            bitmap->dirtied(bitmap->opaque);
    }
}

bool node_resize_bitmaps(Node *node, uint64_t size, GError **error)
{
    /* Growing can fail half-way. Bits past the node's end do no harm, so what has grown already stays grown. */
    for (GList *l = node->bitmaps.head; l; l = l->next) {
        Bitmap *bitmap = l->data;
        if (bitmap->inconsistent) /* has no bits */
            continue;
        if (!hbitmap_truncate(bitmap->bits, size) ||
            (bitmap->successor && !hbitmap_truncate(bitmap->successor->bits, size)))
            return error_set(error, "No memory to resize bitmap '%s' of node '%s' to %" PRIu64 " bytes",
                             bitmap->name ? bitmap->name : "", node->name, size);
    }
    return true;
}

static DirtyBitmapStatus bitmap_status(const Bitmap *bitmap)
{
    if (bitmap->inconsistent)
        return DIRTY_BITMAP_STATUS_INCONSISTENT;
    if (bitmap->successor)
        return DIRTY_BITMAP_STATUS_FROZEN;
    if (bitmap->busy)
        return DIRTY_BITMAP_STATUS_LOCKED;
    return bitmap->enabled ? DIRTY_BITMAP_STATUS_ACTIVE : DIRTY_BITMAP_STATUS_DISABLED;
}

BlockDirtyInfoList *bitmap_query(Node *node)
{
    BlockDirtyInfoList *list = NULL;

    for (GList *l = node->bitmaps.head; l; l = l->next) {
        const Bitmap *bitmap = l->data;
        BlockDirtyInfo *info;
        if (!bitmap->name)
            continue;
        info = g_new0(BlockDirtyInfo, 1);
        info->name = g_strdup(bitmap->name);
        info->count = (int64_t)bitmap_count(bitmap);
        info->granularity = (uint32_t)bitmap->granularity;
        info->recording = bitmap_recording(bitmap);
        info->busy = bitmap->busy > 0;
        info->has_status = true;
        info->status = bitmap_status(bitmap);
        info->persistent = bitmap->persistent;
        info->has_inconsistent = info->inconsistent = bitmap->inconsistent;
        if (!list)
            list = g_new0(BlockDirtyInfoList, 1);
        QAPI_LIST_ADD(list, info);
    }
    return list;
}
