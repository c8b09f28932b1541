/*
 * block_set_io_throttle: limits of named devices.
 */
#include "block/graph/device.h"
#include "block/util/error.h"
#include "daemon/daemon.h"
#include "qapi/commands.h"
#include <string.h>

typedef struct FindQdev {
    const char *id;
    Device *found;
} FindQdev;

static void match_qdev(Device *device, void *opaque)
{
    FindQdev *find = opaque;
    const char *slash = device->qdev ? strrchr(device->qdev, '/') : NULL;

    if (device->qdev && (strcmp(device->qdev, find->id) == 0 || (slash && strcmp(slash + 1, find->id) == 0)))
        find->found = device;
}

static Device *find_device(Graph *graph, const BlockIOThrottle *arg, GError **error)
{
    FindQdev find = {.id = arg->id};

    if (!arg->device == !arg->id) {
        error_set(error, "Need exactly one of 'device' and 'id'");
        return NULL;
    }
    if (arg->device)
        find.found = device_find(graph, arg->device);
    else
        graph_foreach_device(graph, match_qdev, &find);
    if (!find.found) {
        error_set_class(error, SD_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", arg->device ? arg->device : arg->id);
        return NULL;
    }
    if (!port_node(find.found->port)) {
        error_set(error, "Device '%s' has no medium", arg->device ? arg->device : arg->id);
        return NULL;
    }
    return find.found;
}

/* What the command leaves out is 0 (lengths 1), not as it was. */
static ThrottleLimits limits_of(const BlockIOThrottle *arg)
{
    ThrottleLimits l = {.has_iops_size = true, .iops_size = arg->has_iops_size ? arg->iops_size : 0};

#define TAKE(limit, field)                                                                                             \
    l.has_##limit = l.has_##limit##_max = l.has_##limit##_max_length = true;                                           \
    l.limit = arg->field;                                                                                              \
    l.limit##_max = arg->has_##field##_max ? arg->field##_max : 0;                                                     \
    l.limit##_max_length = arg->has_##field##_max_length ? arg->field##_max_length : 1;
    TAKE(bps_total, bps)
    TAKE(bps_read, bps_rd)
    TAKE(bps_write, bps_wr)
    TAKE(iops_total, iops)
    TAKE(iops_read, iops_rd)
    TAKE(iops_write, iops_wr)
#undef TAKE
    return l;
}

static bool lifts(const BlockIOThrottle *arg)
{
    return !arg->bps && !arg->bps_rd && !arg->bps_wr && !arg->iops && !arg->iops_rd && !arg->iops_wr;
}

/* The group that is meant: a reference. */
static ThrottleGroup *find_group(Graph *graph, const Device *device, const char *id, GError **error)
{
    ThrottleGroup *group = device->throttle.group;

    if (group && (!id || strcmp(throttle_group_id(group), id) == 0))
        return throttle_group_ref(group);
    id = id ? id : device->id[0] ? device->id : device->qdev;
    group = throttle_group_find(graph, id);
    return group ? throttle_group_ref(group) : throttle_group_new(graph, id, error);
}

bool qmp_co_block_set_io_throttle(QmpContext *ctx, const BlockIOThrottle *arg, GError **error)
{
    Graph *graph = qmp_daemon(ctx)->graph;
    Device *device = find_device(graph, arg, error);
    ThrottleLimits limits = limits_of(arg);

    if (!device)
        return false;
    ThrottleGroup *group = find_group(graph, device, arg->group, error);
    bool ok = group && throttle_group_set(group, &limits, error);
    if (ok && device->throttle.group != group) {
        throttle_leave(&device->throttle);
        throttle_join(&device->throttle, group);
    }
    if (ok && lifts(arg))
        throttle_leave(&device->throttle);
    throttle_group_unref(group);
    return ok;
}
