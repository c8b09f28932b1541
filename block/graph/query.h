/*
 * The graph as QMP shows it. All results are the caller's.
 */
#pragma once
#include "block/graph/node.h"

BlockInfoList *graph_co_query_block(Graph *graph, GError **error);
BlockDeviceInfoList *graph_co_query_named_nodes(Graph *graph, bool flat, GError **error);
BlockStatsList *graph_query_blockstats(Graph *graph, bool query_nodes);
XDbgBlockGraph *graph_query_debug(Graph *graph);
