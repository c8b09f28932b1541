#include "daemon/harness.h"
#include "block/graph/device.h"
#include "block/graph/image.h"
#include "block/util/error.h"
#include "qapi/commands.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- the clock -------------------------------------------------------------------------------------------------- */

bool harness_co_manual_rate_clock(Daemon *daemon, void *value, GError **error)
{
    loop_rate_clock_manual(daemon->loop);
    return true;
}

bool qmp_co_x_rate_clock_step(QmpContext *ctx, const XRateClockStepArgs *arg, int64_t *ret, GError **error)
{
    Loop *loop = qmp_daemon(ctx)->loop;

    if (arg->ns < 0 || arg->ns > INT64_MAX / 2 - loop_now(loop, LOOP_CLOCK_RATE))
        return error_set(error, "Parameter 'ns' expects a number of nanoseconds that is not negative");
    loop_rate_clock_manual(loop);
    int64_t target = loop_now(loop, LOOP_CLOCK_RATE) + arg->ns, next;
    /* Whatever is due on the way happens at its time, and may arm the next. */
    while ((next = loop_rate_clock_next(loop)) <= target) {
        int64_t now = loop_now(loop, LOOP_CLOCK_RATE);
        loop_rate_clock_step(loop, MAX(next - now, 0));
        aio_co_sleep_until(LOOP_CLOCK_RATE, next);
    }
    *ret = loop_rate_clock_step(loop, MAX(target - loop_now(loop, LOOP_CLOCK_RATE), 0));
    return true;
}

/* ---- guest devices ---------------------------------------------------------------------------------------------- */

bool harness_co_device(Daemon *daemon, void *value, GError **error)
{
    const GuestDeviceOptions *o = value;
    Device *device = device_find(daemon->graph, o->drive);

    if (device && device->qdev)
        return error_set(error, "Drive '%s' is already in use by another device", o->drive);
    if (!device) {
        /* A node: it gets a device without a name. */
        Node *node = graph_find_node(daemon->graph, o->drive);
        if (!node)
            return error_set(error, "Property 'drive' can't find value '%s'", o->drive);
        device = device_co_new(daemon->graph, NULL, node, node->flags.read_only, false, error);
    }
    if (device)
        device->qdev = g_strdup(o->qdev);
    return device != NULL;
}

/* ---- images ----------------------------------------------------------------------------------------------------- */

static void print_created(const char *filename, const char *format, const CreateOptions *o, void *opaque)
{
    bool qcow2 = strcmp(format, "qcow2") == 0, qed = strcmp(format, "qed") == 0;
    uint64_t cluster_size = o->cluster_size ? o->cluster_size : 65536;

    printf("Formatting '%s', fmt=%s", filename, format);
    if (qcow2)
        printf(" cluster_size=%" PRIu64 " extended_l2=off compression_type=zlib", cluster_size);
    printf(" size=%" PRIu64, o->size);
    if (o->backing_file)
        printf(" backing_file=%s", o->backing_file);
    if (o->backing_format)
        printf(" backing_fmt=%s", o->backing_format);
    if (qcow2)
        printf(" lazy_refcounts=off refcount_bits=16");
    else if (qed)
        printf(" cluster_size=%" PRIu64, cluster_size);
    printf("\n");
    fflush(stdout);
}

bool harness_co_announce_images(Daemon *daemon, void *value, GError **error)
{
    graph_watch_images(daemon->graph, print_created, NULL);
    return true;
}
