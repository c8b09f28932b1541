/*
 * Human monitor: info block, info block-jobs, block_resize, commit.
 */
#include "block/graph/snapshot.h"
#include "daemon/hmp.h"
#include "daemon/resize.h"
#include "block/graph/query.h"
#include "block/jobs/job.h"
#include "block/util/error.h"
#include "block/util/sizestr.h"
#include <inttypes.h>
#include <string.h>

/* ---- info block ------------------------------------------------------------------------------------------------- */

static void print_limits(GString *out, const BlockDeviceInfo *i)
{
    if (!(i->bps || i->bps_rd || i->bps_wr || i->iops || i->iops_rd || i->iops_wr))
        return;
    g_string_append_printf(
        out,
        "    I/O throttling:   bps=%" PRId64 " bps_rd=%" PRId64 " bps_wr=%" PRId64 " bps_max=%" PRId64
        " bps_rd_max=%" PRId64 " bps_wr_max=%" PRId64 " iops=%" PRId64 " iops_rd=%" PRId64 " iops_wr=%" PRId64
        " iops_max=%" PRId64 " iops_rd_max=%" PRId64 " iops_wr_max=%" PRId64 " iops_size=%" PRId64 " group=%s\n",
        i->bps, i->bps_rd, i->bps_wr, i->bps_max, i->bps_rd_max, i->bps_wr_max, i->iops, i->iops_rd, i->iops_wr,
        i->iops_max, i->iops_rd_max, i->iops_wr_max, i->iops_size, i->group ? i->group : "");
}

/* What follows the name of a device or node. */
static void print_medium(GString *out, const BlockDeviceInfo *i)
{
    g_string_append_printf(out, ": %s (%s%s%s)\n", i->file, i->drv, i->ro ? ", read-only" : "",
                           i->encrypted ? ", encrypted" : "");
}

static void print_details(GString *out, const BlockDeviceInfo *i)
{
    g_string_append_printf(out, "    Cache mode:       %s%s%s\n", i->cache->writeback ? "writeback" : "writethrough",
                           i->cache->direct ? ", direct" : "", i->cache->no_flush ? ", ignore flushes" : "");
    if (i->backing_file) {
        g_string_append_printf(out, "    Backing file:     %s (chain depth: %" PRId64 ")\n", i->backing_file,
                               i->backing_file_depth);
    }
    if (i->detect_zeroes != BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF) {
        g_string_append_printf(out, "    Detect zeroes:    %s\n",
                               qapi_BlockdevDetectZeroesOptions_str(i->detect_zeroes));
    }
    print_limits(out, i);
}

static void print_device(GString *out, const BlockInfo *info)
{
    g_string_append(out, info->device);
    if (info->inserted && info->inserted->node_name)
        g_string_append_printf(out, " (%s)", info->inserted->node_name);
    if (info->inserted)
        print_medium(out, info->inserted);
    else
        g_string_append(out, ": [not inserted]\n");
    if (info->qdev)
        g_string_append_printf(out, "    Attached to:      %s\n", info->qdev);
    if (info->has_io_status && info->io_status != BLOCK_DEVICE_IO_STATUS_OK)
        g_string_append_printf(out, "    I/O status:       %s\n", qapi_BlockDeviceIoStatus_str(info->io_status));
    if (info->removable) {
        g_string_append_printf(out, "    Removable device: %slocked, tray %s\n", info->locked ? "" : "not ",
                               info->tray_open ? "open" : "closed");
    }
    if (info->inserted)
        print_details(out, info->inserted);
}

static void hmp_co_info_nodes(Hmp *hmp, const char *wanted)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockDeviceInfoList) list = graph_co_query_named_nodes(hmp->daemon->graph, true, &error);

    if (!list) {
        hmp_error(hmp, error);
        return;
    }
    for (size_t i = 0; i < list->len; i++) {
        const BlockDeviceInfo *node = list->items[i];
        if (wanted && strcmp(wanted, node->node_name) != 0)
            continue;
        g_string_append_printf(hmp->out, "%s%s", hmp->out->len ? "\n" : "", node->node_name);
        print_medium(hmp->out, node);
        print_details(hmp->out, node);
    }
}

void hmp_co_info_block(Hmp *hmp, char **args)
{
    g_autoptr(GError) error = NULL;
    bool nodes = args[0] && strcmp(args[0], "-n") == 0;
    const char *wanted = args[0] ? args[nodes] : NULL;

    if (wanted && (wanted[0] == '-' || (!nodes && args[1]))) {
        g_string_append(hmp->out, "Usage: info block [-n] [DEVICE]\n");
        return;
    }
    if (nodes) {
        hmp_co_info_nodes(hmp, wanted);
        return;
    }
    g_autoptr(BlockInfoList) list = graph_co_query_block(hmp->daemon->graph, &error);
    if (!list) {
        hmp_error(hmp, error);
        return;
    }
    for (size_t i = 0; i < list->len; i++) {
        if (!wanted || strcmp(wanted, list->items[i]->device) == 0) {
            g_string_append(hmp->out, hmp->out->len ? "\n" : "");
            print_device(hmp->out, list->items[i]);
        }
    }
    if (!hmp->out->len && wanted) {
        /* A name that is no device's may be a node's. */
        hmp_co_info_nodes(hmp, wanted);
    }
}

void hmp_co_info_block_jobs(Hmp *hmp, char **args)
{
    g_autoptr(BlockJobInfoList) list = job_list_query_block(hmp->daemon->jobs);

    if (!list->len)
        g_string_append(hmp->out, "No active jobs\n");
    for (size_t i = 0; i < list->len; i++) {
        const BlockJobInfo *job = list->items[i];
        g_string_append_printf(hmp->out,
                               "Type %s, device %s: Completed %" PRId64 " of %" PRId64 " bytes, speed limit %" PRId64
                               " bytes/s\n",
                               qapi_JobType_str(job->type), job->device, job->offset, job->len, job->speed);
    }
}

static void show_snapshots(GString *out, const char *node, const SnapshotInfoList *list)
{
    g_string_append_printf(out, "Internal snapshots of %s:\n%-6s %-24s %10s  %-19s\n", node, "ID", "NAME", "VM SIZE",
                           "DATE");
    for (size_t i = 0; i < list->len; i++) {
        const SnapshotInfo *s = list->items[i];
        g_autofree char *size = g_format_size_full((guint64)s->vm_state_size, G_FORMAT_SIZE_IEC_UNITS);
        g_autoptr(GDateTime) date = g_date_time_new_from_unix_local(s->date_sec);
        g_autofree char *text = date ? g_date_time_format(date, "%Y-%m-%d %H:%M:%S") : g_strdup("");
        g_string_append_printf(out, "%-6s %-24s %10s  %-19s\n", s->id, s->name, size, text);
    }
}

void hmp_co_info_snapshots(Hmp *hmp, char **args)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(BlockDeviceInfoList) nodes = NULL;
    Node *one = args[0] ? graph_lookup(hmp->daemon->graph, args[0], &error) : NULL;
    bool any = false;

    if (!args[0])
        nodes = graph_co_query_named_nodes(hmp->daemon->graph, true, &error);
    if (error) {
        hmp_error(hmp, error);
        return;
    }
    for (size_t i = 0; i < (one ? 1 : nodes->len); i++) {
        const char *name = one ? args[0] : nodes->items[i]->node_name;
        Node *node = one ? one : graph_find_node(hmp->daemon->graph, name);
        /* All nodes: those that keep the snapshots, not those that pass them on. */
        g_autoptr(SnapshotInfoList) list = one || node_snapshot_host(node) == node ? node_list_snapshots(node) : NULL;
        if (!list)
            continue;
        show_snapshots(hmp->out, name, list);
        any = true;
    }
    if (!any)
        g_string_append(hmp->out, "There is no internal snapshot.\n");
}

/* ---- changes ---------------------------------------------------------------------------------------------------- */

void hmp_co_block_resize(Hmp *hmp, char **args)
{
    g_autoptr(GError) error = NULL;
    Daemon *d = hmp->daemon;
    g_autofree char *with_suffix = g_strconcat(args[1], "M", NULL);
    uint64_t size = 0;
    Node *node = graph_lookup(d->graph, args[0], &error);
    bool ok = node != NULL;

    /* A size without a suffix is in MiB, as in QEMU's monitor. */
    if (ok && size_scan(with_suffix, &size) != SIZE_OK)
        ok = size_parse("size", args[1], INT64_MAX, &size, &error);
    if (!ok || !resize_co_node(d, node, (int64_t)MIN(size, (uint64_t)INT64_MAX), &error))
        hmp_error(hmp, error);
}
