/*
 * Making images by name: the protocol makes an empty file, the format lays itself out on it.
 */
#include "block/graph/image.h"
#include "block/graph/graph-int.h"
#include "block/graph/port.h"
#include <glib/gstdio.h>

static bool options_supported(const Driver *format, const CreateOptions *options, GError **error)
{
    if (!format->co_create)
        return error_set(error, "Format driver '%s' does not support image creation", format->name);
    if (options->backing_file && !format->supports_backing)
        return error_set(error, "Backing file not supported for file format '%s'", format->name);
    return true;
}

static bool image_co_layout(Graph *graph, const Driver *format, const char *filename, const CreateOptions *options,
                            GError **error)
{
    NodeFlags flags = {.discard_unmap = true};
    Node *node = NULL;
    Port *port = NULL;
    bool ok = false;

    node = node_co_open_protocol(graph, filename, &flags, error);
    if (node)
        /* The permissions are the lock: nothing of a file in use is touched before they are granted. */
        port = port_co_new(graph, node, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
                           PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED, NULL, NULL, error);
    if (port)
        /* Emptied where that is possible: a device or an export keeps its size. */
        ok = port_co_truncate(port, 0, false, PREALLOC_MODE_OFF, 0, error) &&
             format->co_create(graph, filename, port, options, error);
    if (ok) {
        int ret = port_co_flush(port);
        if (ret < 0)
            ok = error_set_errno(error, -ret, "Could not flush the new image");
    }
    port_co_free(port);
    node_co_unref(node);
    return ok;
}

void graph_watch_images(Graph *graph, ImageWatch *fn, void *opaque)
{
    graph->image_watch = fn;
    graph->image_watch_opaque = opaque;
}

bool image_is_new(const char *filename)
{
    return !driver_for_scheme(filename) && !g_str_has_prefix(filename, "json:") && g_access(filename, F_OK) != 0;
}

bool image_co_create(Graph *graph, const char *filename, const char *format, const CreateOptions *options,
                     GError **error)
{
    const Driver *drv = driver_find(format), *protocol = driver_for_scheme(filename);
    bool is_new = image_is_new(filename);

    if (!drv || !drv->is_format)
        return error_set(error, "Unknown file format '%s'", format);
    if (!options_supported(drv, options, error))
        return false;
    if (graph->image_watch)
        graph->image_watch(filename, format, options, graph->image_watch_opaque);
    protocol = protocol ? protocol : driver_find("file");
    if (protocol->co_create) {
        CreateOptions empty = {.size = 0};
        if (!protocol->co_create(graph, filename, NULL, &empty, error))
            goto fail;
    }
    if (image_co_layout(graph, drv, filename, options, error))
        return true;
    if (is_new)
        g_unlink(filename);
fail:
    if (error && !strstr((*error)->message, filename))
        g_prefix_error(error, "%s: ", filename);
    return false;
}
