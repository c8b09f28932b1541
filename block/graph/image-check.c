/*
 * Checking images by name: opens the file, finds the format, and leaves the rest to that format's checker.
 */
#include "block/graph/check.h"
#include "block/graph/port.h"
#include "block/util/bytes.h"

#define PROBE_SIZE 2048

static const Driver *format_co_find(Port *port, const char *format, GError **error)
{
    g_autofree uint8_t *buf = g_malloc0(PROBE_SIZE);
    const Driver *drv;
    int ret;

    if (format) {
        drv = driver_find(format);
        if (!drv || !drv->is_format)
            error_set(error, "Unknown file format '%s'", format);
        return drv && drv->is_format ? drv : NULL;
    }
    ret = port_co_pread(port, 0, u64_min(PROBE_SIZE, port_size(port)), buf, 0);
    if (ret == 0)
        return driver_probe(buf, PROBE_SIZE);
    error_set_errno(error, -ret, "Could not read image for determining its format");
    return NULL;
}

static bool port_co_check(Port *port, const char *format, const CheckOptions *options, CheckResult *result,
                          GError **error)
{
    const Driver *drv = format_co_find(port, format, error);

    if (!drv)
        return false;
    result->format = drv->name;
    if (!drv->co_check) {
        result->unsupported = true;
        return error_set(error, "This image format does not support checks");
    }
    return drv->co_check(port->child, options, result, error);
}

bool image_co_check(Graph *graph, const char *filename, const char *format, const CheckOptions *options,
                    CheckResult *result, GError **error)
{
    NodeFlags flags = {.read_only = !options->fix};
    unsigned perm = PERM_CONSISTENT_READ | (options->fix ? PERM_WRITE | PERM_RESIZE : 0);
    Node *node = node_co_open_protocol(graph, filename, &flags, error);
    Port *port = NULL;
    bool ok = false;

    *result = (CheckResult){0};
    if (node)
        port = port_co_new(graph, node, perm, PERM_CONSISTENT_READ, NULL, NULL, error);
    if (port) {
        port->writable = options->fix != 0;
        ok = port_co_check(port, format, options, result, error);
    }
    port_co_free(port);
    node_co_unref(node);
    return ok;
}
