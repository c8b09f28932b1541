/*
 * Named devices.
 */
#include "block/graph/graph-int.h"

static char *device_describe(Port *port)
{
    const Device *device = port->owner;

    return g_strdup_printf("block device '%s'", *device->id || !device->qdev ? device->id : device->qdev);
}

static const PortOps device_port_ops = {.what = "block device", .describe = device_describe};

Device *device_find(Graph *graph, const char *id)
{
    for (GList *l = *id ? graph->devices.head : NULL; l; l = l->next)
        if (!strcmp(((Device *)l->data)->id, id))
            return l->data;
    return NULL;
}

void graph_foreach_device(Graph *graph, void (*fn)(Device *device, void *opaque), void *opaque)
{
    for (GList *l = graph->devices.head; l; l = l->next)
        fn(l->data, opaque);
}

Device *device_co_new(Graph *graph, const char *id, Node *node, bool read_only, bool removable, GError **error)
{
    Device *device;

    if (id && device_find(graph, id)) {
        error_set(error, "Duplicate device id '%s'", id);
        return NULL;
    }
    if (id && g_hash_table_contains(graph->by_name, id)) {
        error_set(error, "Device id '%s' is the name of a node already", id);
        return NULL;
    }
    device = g_new0(Device, 1);
    device->id = g_strdup(id ? id : "");
    device->read_only = read_only;
    device->removable = removable;
    /* A device takes no permission of its own: its clients do, through exports and jobs. */
    device->port = port_co_new(graph, node, 0, PERM_ALL, &device_port_ops, device, error);
    if (!device->port) {
        g_free(device->id);
        g_free(device);
        return NULL;
    }
    device->port->count_stats = true;
    device->port->throttle = &device->throttle;
    g_queue_push_tail(&graph->devices, device);
    return device;
}

void device_co_free(Device *device)
{
    if (!device)
        return;
    g_queue_remove(&device->port->graph->devices, device);
    throttle_leave(&device->throttle);
    port_co_free(device->port);
    g_free(device->id);
    g_free(device->qdev);
    g_free(device);
}
