/*
 * What the driver tells the node under it of what it is about to do, for blkdebug (block/graph/debug.h).
 *
 * An event may hold the request up, so it stands only where the driver may yield: right before I/O. A mapping that has
 * been looked up stays usable meanwhile because its data section has begun.
 */
#pragma once
#include "block/drivers/qcow2/qcow2.h"
#include "block/graph/debug.h"

static inline void q2_co_event(Qcow2 *q, BlkdebugEvent event)
{
    node_co_debug_event(q->node->file->node, event);
}
