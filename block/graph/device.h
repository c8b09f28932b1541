/*
 * Named devices: what QEMU's -drive makes. A name, a port and perhaps no medium.
 */
#pragma once
#include "block/graph/port.h"

struct Device {
    char *id;       /* unique among devices and nodes; "" for a guest device that took a node */
    Port *port;     /* port_node() is NULL: no medium */
    bool removable; /* a CD drive */
    bool read_only;
    ThrottleMember throttle; /* block_set_io_throttle's limits, in no group at first */
    char *qdev;              /* the guest device that a test harness says it is attached to (--device), NULL: none */
};

/* @node may be NULL: no medium; @id may be NULL: no name. NULL with @error. */
Device *device_co_new(Graph *graph, const char *id, Node *node, bool read_only, bool removable, GError **error);
void device_co_free(Device *device);
/* By its name; NULL when there is none. */
Device *device_find(Graph *graph, const char *id);
void graph_foreach_device(Graph *graph, void (*fn)(Device *device, void *opaque), void *opaque);
