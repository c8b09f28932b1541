/*
 * The graph as QMP shows it: query-named-block-nodes, query-block, query-blockstats, x-debug-query-block-graph.
 */
#include "block/graph/query.h"
#include "block/graph/filename.h"
#include "block/graph/graph-int.h"
#include "block/graph/snapshot.h"

static NodeInfo node_info(Node *node)
{
    NodeInfo info = {.allocated_size = UINT64_MAX};
    bool allocated_unknown;

    if (node->drv->get_info)
        node->drv->get_info(node, &info);
    allocated_unknown = info.allocated_size == UINT64_MAX;
    /* A format's size on disk is that of its files. */
    for (guint i = 0; allocated_unknown && !node->drv->is_protocol && i < node->children->len; i++) {
        Child *child = g_ptr_array_index(node->children, i);
        uint64_t size = child->role & ROLE_COW ? UINT64_MAX : node_info(child->node).allocated_size;
        if (size != UINT64_MAX)
            info.allocated_size = (info.allocated_size == UINT64_MAX ? 0 : info.allocated_size) + size;
    }
    return info;
}

/* Rates in bursts are shown where there are any. */
#define SHOW_LIMIT(field, limit)                                                                                       \
    do {                                                                                                               \
        info->field = l->limit;                                                                                        \
        info->has_##field##_max = info->has_##field##_max_length = l->limit##_max != 0;                                \
        info->field##_max = l->limit##_max;                                                                            \
        info->field##_max_length = l->limit##_max_length;                                                              \
    } while (0)

static void show_limits(const ThrottleMember *member, BlockDeviceInfo *info)
{
    g_autoptr(ThrottleLimits) l = member->group ? throttle_group_get(member->group) : NULL;

    if (!l)
        return;
    SHOW_LIMIT(bps, bps_total);
    SHOW_LIMIT(bps_rd, bps_read);
    SHOW_LIMIT(bps_wr, bps_write);
    SHOW_LIMIT(iops, iops_total);
    SHOW_LIMIT(iops_rd, iops_read);
    SHOW_LIMIT(iops_wr, iops_write);
    info->has_iops_size = l->iops_size != 0;
    info->iops_size = l->iops_size;
    info->group = g_strdup(throttle_group_id(member->group));
}

static ImageInfo *image_info(Node *node, bool with_backing)
{
    ImageInfo *image = g_new0(ImageInfo, 1);
    NodeInfo info = node_info(node);

    image->filename = node_filename(node);
    image->format = g_strdup(node->drv->name);
    image->virtual_size = (int64_t)node->size;
    image->has_dirty_flag = true;
    image->dirty_flag = info.is_dirty;
    image->has_encrypted = image->encrypted = info.encrypted;
    image->has_actual_size = info.allocated_size != UINT64_MAX;
    image->actual_size = image->has_actual_size ? (int64_t)info.allocated_size : 0;
    image->has_cluster_size = info.cluster_size != 0;
    image->cluster_size = info.cluster_size;
    if (info.backing_filename) {
        image->backing_filename = g_strdup(info.backing_filename);
        image->full_backing_filename = filename_resolve(node, info.backing_filename, NULL);
        image->backing_filename_format = g_strdup(info.backing_format);
    }
    if (node->drv->get_specific_info)
        image->format_specific = node->drv->get_specific_info(node);
    image->snapshots = node_list_snapshots(node);
    if (with_backing && node_backing(node))
        image->backing_image = image_info(node_backing(node), true);
    return image;
}

static int64_t backing_depth(Node *node)
{
    int64_t depth = 0;

    while ((node = node_backing(node)))
        depth++;
    return depth;
}

static BlockDeviceInfo *device_info(Node *node, bool flat)
{
    BlockDeviceInfo *info = g_new0(BlockDeviceInfo, 1);
    Node *backing = node_backing(node);

    info->file = node_filename(node);
    info->node_name = g_strdup(node->name);
    info->ro = !node_writable(node);
    info->drv = g_strdup(node->drv->name);
    info->backing_file = backing ? node_filename(backing) : NULL;
    info->backing_file_depth = flat ? 0 : backing_depth(node);
    info->detect_zeroes = node->flags.detect_zeroes;
    info->cache = g_new0(BlockdevCacheInfo, 1);
    info->cache->writeback = true;
    info->cache->direct = node->flags.cache_direct;
    info->cache->no_flush = node->flags.cache_no_flush;
    info->dirty_bitmaps = bitmap_query(node);
    info->image = image_info(node, !flat);
    info->encrypted = info->image->encrypted;
    return info;
}

BlockDeviceInfoList *graph_co_query_named_nodes(Graph *graph, bool flat, GError **error)
{
    BlockDeviceInfoList *list = g_new0(BlockDeviceInfoList, 1);

    /* The newest first, as QEMU has it. */
    for (GList *l = graph->nodes.tail; l; l = l->prev)
        if (!((Node *)l->data)->partial)
            QAPI_LIST_ADD(list, device_info(l->data, flat));
    return list;
}

BlockInfoList *graph_co_query_block(Graph *graph, GError **error)
{
    BlockInfoList *list = g_new0(BlockInfoList, 1);

    for (GList *l = graph->devices.head; l; l = l->next) {
        Device *device = l->data;
        BlockInfo *info = g_new0(BlockInfo, 1);
        Node *node = node_skip_implicit(port_node(device->port));

        info->device = g_strdup(device->id);
        info->qdev = g_strdup(device->qdev);
        info->type = g_strdup("unknown");
        info->removable = device->removable;
        info->has_tray_open = device->removable;
        info->has_io_status = true;
        info->inserted = node ? device_info(node, false) : NULL;
        if (info->inserted) {
            show_limits(&device->throttle, info->inserted);
            info->inserted->cache->writeback = !device->port->writethrough;
        }
        QAPI_LIST_ADD(list, info);
    }
    return list;
}

static BlockDeviceStats *io_stats(const Node *node)
{
    BlockDeviceStats *s = g_new0(BlockDeviceStats, 1);
    const IoStats *i = &node->stats;

    s->rd_bytes = (int64_t)i->bytes[STAT_READ];
    s->rd_operations = (int64_t)i->ops[STAT_READ];
    s->rd_total_time_ns = (int64_t)i->time_ns[STAT_READ];
    s->failed_rd_operations = (int64_t)i->failed[STAT_READ];
    s->invalid_rd_operations = (int64_t)i->invalid[STAT_READ];
    /* Written zeroes are writes to whoever reads the image. */
    s->wr_bytes = (int64_t)(i->bytes[STAT_WRITE] + i->bytes[STAT_ZERO]);
    s->wr_operations = (int64_t)(i->ops[STAT_WRITE] + i->ops[STAT_ZERO]);
    s->wr_total_time_ns = (int64_t)(i->time_ns[STAT_WRITE] + i->time_ns[STAT_ZERO]);
    s->failed_wr_operations = (int64_t)(i->failed[STAT_WRITE] + i->failed[STAT_ZERO]);
    s->invalid_wr_operations = (int64_t)(i->invalid[STAT_WRITE] + i->invalid[STAT_ZERO]);
    s->flush_operations = (int64_t)i->ops[STAT_FLUSH];
    s->flush_total_time_ns = (int64_t)i->time_ns[STAT_FLUSH];
    s->failed_flush_operations = (int64_t)i->failed[STAT_FLUSH];
    s->invalid_flush_operations = (int64_t)i->invalid[STAT_FLUSH];
    s->unmap_bytes = (int64_t)i->bytes[STAT_UNMAP];
    s->unmap_operations = (int64_t)i->ops[STAT_UNMAP];
    s->unmap_total_time_ns = (int64_t)i->time_ns[STAT_UNMAP];
    s->failed_unmap_operations = (int64_t)i->failed[STAT_UNMAP];
    s->invalid_unmap_operations = (int64_t)i->invalid[STAT_UNMAP];
    s->wr_highest_offset = (int64_t)i->highest_write;
    s->has_idle_time_ns = i->last_access != 0;
    s->idle_time_ns = s->has_idle_time_ns ? loop_now(node->loop, LOOP_CLOCK_REAL) - i->last_access : 0;
    s->timed_stats = g_new0(BlockDeviceTimedStatsList, 1);
    return s;
}

/* @device: what the user built under a device, without the filters that jobs put in between. Else a node by itself. */
static BlockStats *node_stats(Node *node, bool device)
{
    BlockStats *s = g_new0(BlockStats, 1);

    if (device)
        node = node_skip_implicit(node);
    s->node_name = g_strdup(node->name);
    s->stats = io_stats(node);
    if (node->file)
        s->parent = node_stats(node->file->node, device);
    if (device && node->backing)
        s->backing = node_stats(node->backing->node, device);
    return s;
}

BlockStatsList *graph_query_blockstats(Graph *graph, bool query_nodes)
{
    BlockStatsList *list = g_new0(BlockStatsList, 1);

    for (GList *l = query_nodes ? graph->nodes.head : NULL; l; l = l->next)
        if (!((Node *)l->data)->partial)
            QAPI_LIST_ADD(list, node_stats(l->data, false));
    for (GList *l = query_nodes ? NULL : graph->devices.head; l; l = l->next) {
        Device *device = l->data;
        Node *node = port_node(device->port);
        BlockStats *s = node ? node_stats(node, true) : g_new0(BlockStats, 1);
        if (!node)
            s->stats = io_stats(&(Node){.loop = graph->loop});
        s->stats->account_invalid = s->stats->account_failed = true;
        s->device = g_strdup(device->id);
        s->qdev = g_strdup(device->qdev);
        QAPI_LIST_ADD(list, s);
    }
    return list;
}

/* ---- x-debug-query-block-graph ---------------------------------------------------------------------------------- */

static BlockPermissionList *perm_list(unsigned perm)
{
    static const BlockPermission kinds[] = {BLOCK_PERMISSION_CONSISTENT_READ, BLOCK_PERMISSION_WRITE,
                                            BLOCK_PERMISSION_WRITE_UNCHANGED, BLOCK_PERMISSION_RESIZE};
    BlockPermissionList *list = g_new0(BlockPermissionList, 1);

    for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (perm & (1u << i))
            QAPI_LIST_ADD(list, kinds[i]);
    return list;
}

/* Numbers for whatever has edges, given out as they are met; 0 is nobody's. */
static uint64_t object_id(GHashTable *ids, const void *object)
{
    guint id = GPOINTER_TO_UINT(g_hash_table_lookup(ids, object));

    if (!id) {
        id = g_hash_table_size(ids) + 1;
        g_hash_table_insert(ids, (void *)object, GUINT_TO_POINTER(id));
    }
    return id;
}

static void add_edge(XDbgBlockGraph *ret, uint64_t parent, uint64_t to, const Child *child)
{
    XDbgBlockGraphEdge *edge = g_new0(XDbgBlockGraphEdge, 1);

    edge->parent = parent;
    edge->child = to;
    edge->name = g_strdup(child->name);
    edge->perm = perm_list(child->perm);
    edge->shared_perm = perm_list(child->shared);
    QAPI_LIST_ADD(ret->edges, edge);
}

static void add_node(XDbgBlockGraph *ret, uint64_t id, XDbgBlockGraphNodeType type, char *name)
{
    XDbgBlockGraphNode *node = g_new0(XDbgBlockGraphNode, 1);

    node->id = id;
    node->type = type;
    node->name = name;
    QAPI_LIST_ADD(ret->nodes, node);
}

/* The parents outside: devices, exports and jobs. One owner with several ports stands there once. */
static void add_outside_parents(XDbgBlockGraph *ret, GHashTable *ids, GHashTable *seen, Node *node)
{
    for (GList *l = node->parents.head; l; l = l->next) {
        Child *child = l->data;
        Port *port = child->parent ? NULL : child->opaque;
        const void *owner;
        bool job;
        if (!port)
            continue;
        owner = port->owner ? port->owner : port;
        job = port->ops && port->ops->what && !strcmp(port->ops->what, PORT_WHAT_JOB);
        if (g_hash_table_add(seen, (void *)owner))
            add_node(ret, object_id(ids, owner),
                     job ? X_DBG_BLOCK_GRAPH_NODE_TYPE_BLOCK_JOB : X_DBG_BLOCK_GRAPH_NODE_TYPE_BLOCK_BACKEND,
                     child->ops->describe(child));
        add_edge(ret, object_id(ids, owner), object_id(ids, node), child);
    }
}

XDbgBlockGraph *graph_query_debug(Graph *graph)
{
    g_autoptr(GHashTable) ids = g_hash_table_new(NULL, NULL), seen = g_hash_table_new(NULL, NULL);
    XDbgBlockGraph *ret = g_new0(XDbgBlockGraph, 1);

    ret->nodes = g_new0(XDbgBlockGraphNodeList, 1);
    ret->edges = g_new0(XDbgBlockGraphEdgeList, 1);
    for (GList *l = graph->nodes.tail; l; l = l->prev) {
        Node *node = l->data;
        if (node->partial)
            continue;
        add_node(ret, object_id(ids, node), X_DBG_BLOCK_GRAPH_NODE_TYPE_BLOCK_DRIVER, g_strdup(node->name));
        add_outside_parents(ret, ids, seen, node);
        for (guint i = 0; i < node->children->len; i++) {
            Child *child = g_ptr_array_index(node->children, i);
            add_edge(ret, object_id(ids, node), object_id(ids, child->node), child);
        }
    }
    return ret;
}
