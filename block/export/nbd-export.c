/*
 * Exports of type nbd: a name in the server's list, and what clients are told about it.
 */
#include "block/export/nbd-int.h"
#include "block/graph/bitmap.h"
#include "block/util/bytes.h"
#include <string.h>

#define PREFERRED_BLOCK 4096u

static NbdExport *nbd_export(Export *exp)
{
    return (NbdExport *)exp; /* base is its first member */
}

static bool name_taken(const NbdServer *server, const char *name)
{
    for (guint i = 0; i < server->exports->len; i++) {
        const NbdExportInfo *info = g_ptr_array_index(server->exports, i);

        if (!strcmp(info->name, name))
            return true;
    }
    return false;
}

/* A bitmap given by name alone belongs to the node or to one below it in its backing chain. */
static Bitmap *find_bitmap(Node *node, const char *name)
{
    while (node) {
        Bitmap *bitmap = bitmap_find(node, name);
        Child *below = node_filtered_child(node);

        if (bitmap)
            return bitmap;
        below = below ? below : node->backing;
        node = below ? below->node : NULL;
    }
    return NULL;
}

static bool add_bitmap(NbdExport *exp, const BlockDirtyBitmapOrStr *ref, GError **error)
{
    Bitmap *bitmap;

    if (ref->kind == BLOCK_DIRTY_BITMAP_OR_STR_EXTERNAL) {
        const BlockDirtyBitmap *where = ref->u.external;

        bitmap = bitmap_lookup(exp->base.list->graph, where->node, where->name, NULL, error);
        if (!bitmap)
            return false;
    } else {
        bitmap = find_bitmap(port_node(exp->base.port), ref->u.local);
        if (!bitmap)
            return error_set(error, "Bitmap '%s' is not found", ref->u.local);
    }
    if (!bitmap_check(bitmap, BITMAP_REFUSE_BUSY | BITMAP_REFUSE_INCONSISTENT, error))
        return false;
    if (!exp->base.writable && node_writable(bitmap->node) && bitmap->enabled)
        return error_set(error, "Enabled bitmap '%s' incompatible with readonly export", bitmap->name);
    if (exp->info.contexts->len == NBD_MAX_CONTEXTS)
        return error_set(error, "An NBD export has at most %d bitmaps", NBD_MAX_CONTEXTS - (int)exp->first_bitmap);
    /* A job may give the export another node; the bitmap lives as long as its own. */
    node_ref(bitmap->node);
    bitmap->busy++;
    g_ptr_array_add(exp->bitmaps, bitmap);
    g_ptr_array_add(exp->info.contexts, g_strdup_printf("qemu:dirty-bitmap:%s", bitmap->name));
    return true;
}

static bool add_contexts(NbdExport *exp, const BlockExportOptionsNbd *options, GError **error)
{
    exp->info.contexts = g_ptr_array_new_with_free_func(g_free);
    exp->bitmaps = g_ptr_array_new();
    g_ptr_array_add(exp->info.contexts, g_strdup("base:allocation"));
    if (options->allocation_depth) {
        exp->depth_context = exp->info.contexts->len;
        g_ptr_array_add(exp->info.contexts, g_strdup("qemu:allocation-depth"));
    }
    exp->first_bitmap = exp->info.contexts->len;
    for (size_t i = 0; options->bitmaps && i < options->bitmaps->len; i++)
        if (!add_bitmap(exp, options->bitmaps->items[i], error))
            return false;
    return true;
}

static void export_co_free_parts(NbdExport *exp)
{
    for (guint i = 0; exp->bitmaps && i < exp->bitmaps->len; i++) {
        Bitmap *bitmap = g_ptr_array_index(exp->bitmaps, i);
        bitmap->busy--;
        node_co_unref(bitmap->node);
    }
    g_clear_pointer(&exp->bitmaps, g_ptr_array_unref);
    g_clear_pointer(&exp->info.contexts, g_ptr_array_unref);
    g_clear_pointer(&exp->info.name, g_free);
    g_clear_pointer(&exp->info.description, g_free);
}

static void nbd_export_resized(Export *base)
{
    NbdExport *exp = nbd_export(base);
    const Node *node = port_node(base->port);

    exp->info.size = port_size(base->port);
    exp->info.min_block = node ? node->limits.request_alignment : 1;
    exp->info.pref_block = MAX(PREFERRED_BLOCK, exp->info.min_block);
}

static uint16_t transmission_flags(const NbdExport *exp)
{
    uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE;

    if (exp->base.writable)
        flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    else
        flags |= NBD_FLAG_READ_ONLY;
    /* All connections share one cache, so a flush on one covers the writes of all. */
    if (exp->server->max_connections != 1)
        flags |= NBD_FLAG_CAN_MULTI_CONN;
    return flags;
}

static bool nbd_export_co_create(Export *base, const BlockExportOptions *options, GError **error)
{
    static uint64_t serial;
    NbdExport *exp = nbd_export(base);
    const BlockExportOptionsNbd *nbd = &options->u.nbd;
    const char *name = nbd->name ? nbd->name : options->node_name;

    if (!nbd_server_running(base->list))
        return error_set(error, "NBD server not running");
    exp->server = base->list->nbd;
    if (strlen(name) > NBD_MAX_STRING)
        return error_set(error, "export name '%s' too long", name);
    if (nbd->description && strlen(nbd->description) > NBD_MAX_STRING)
        return error_set(error, "description '%s' too long", nbd->description);
    if (name_taken(exp->server, name))
        return error_set(error, "NBD server already has export named '%s'", name);
    exp->info.serial = ++serial;
    exp->info.name = g_strdup(name);
    exp->info.description = g_strdup(nbd->description);
    exp->info.flags = transmission_flags(exp);
    if (!add_contexts(exp, nbd, error)) {
        export_co_free_parts(exp);
        return false;
    }
    nbd_export_resized(base);
    g_ptr_array_add(exp->server->exports, &exp->info);
    return true;
}

static void nbd_export_request_shutdown(Export *base)
{
    NbdExport *exp = nbd_export(base);

    g_ptr_array_remove(exp->server->exports, &exp->info);
    for (GList *l = exp->server->clients.head; l; l = l->next) {
        NbdClient *client = l->data;

        if (client->exp == exp)
            nbd_client_close(client);
    }
}

static void nbd_export_co_delete(Export *base)
{
    export_co_free_parts(nbd_export(base));
}

const ExportType export_type_nbd = {
    .type = BLOCK_EXPORT_TYPE_NBD,
    .size = sizeof(NbdExport),
    .co_create = nbd_export_co_create,
    .request_shutdown = nbd_export_request_shutdown,
    .resized = nbd_export_resized,
    .co_delete = nbd_export_co_delete,
};
