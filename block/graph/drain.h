/*
 * Drained sections: no request is in flight in a node and no parent sends new ones.
 *
 * begin: everyone above the node (devices, exports, jobs: ParentOps.drained_begin) stops sending; then it waits until
 * the requests at the node and above it have completed. Sections nest. Work below the node (its children) is quiet
 * too, as far as the node's own requests caused it.
 */
#pragma once
#include "block/graph/node.h"

void node_co_drained_begin(Node *node);
void node_drained_end(Node *node);

/* Tells whoever waits in a drain to look again; a ParentOps owner calls it when its drained_poll turns false. */
void graph_drain_kick(Graph *graph);
