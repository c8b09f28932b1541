/*
 * What the driver tells the node under it of what it is about to do, for blkdebug (block/graph/debug.h).
 *
 * An event may hold the request up, so it stands only where the driver may yield: right before I/O, and outside data
 * sections, for whoever waits there would keep every commit waiting.
 */
#pragma once
#include "block/drivers/qcow2/qcow2.h"
#include "block/graph/debug.h"

static inline void q2_co_event(Qcow2 *q, BlkdebugEvent event)
{
    node_co_debug_event(q->node->file->node, event);
}

/*
 * An event about a mapping that is to be used: afterwards @map, which begins at guest @offset, is what the tables say
 * now. 0; 1: it is another one than before, look again; -errno.
 */
static inline int q2_co_map_event(Qcow2 *q, BlkdebugEvent event, uint64_t offset, Q2Map *map)
{
    Q2Map now;
    int ret;

    if (G_LIKELY(!q->node->file->node->drv->debug))
        return 0;
    q2_co_event(q, event);
    ret = q2_co_map(q, offset, map->bytes, &now);
    if (ret < 0)
        return ret;
    if (now.kind != map->kind || now.entry != map->entry || now.bytes != map->bytes)
        return 1;
    return 0;
}
