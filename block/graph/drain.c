/*
 * Drained sections.
 *
 * Quiet spreads upwards: a node with quiesced > 0 has told each parent once (Child.quiesced_parent), a parent node is
 * quiesced in turn, so in the end every device, export and job above it has stopped sending. What is then still in
 * flight at the node or above it completes; each completion that empties a quiesced node kicks the waiters.
 */
#include "block/graph/graph-int.h"

static void node_quiesce(Node *node)
{
    if (node->quiesced++ > 0)
        return;
    for (GList *l = node->parents.head; l; l = l->next)
        child_quiesce(l->data);
    if (node->drv->drained_begin)
        node->drv->drained_begin(node);
}

static void node_unquiesce(Node *node)
{
    g_assert(node->quiesced > 0);
    if (--node->quiesced > 0)
        return;
    /* A parent that goes on may not change the graph, so the list stands still. */
    for (GList *l = node->parents.head; l; l = l->next)
        child_unquiesce(l->data);
}

void child_quiesce(Child *child)
{
    g_assert(!child->quiesced_parent);
    child->quiesced_parent = true;
    if (child->parent)
        node_quiesce(child->parent);
    else if (child->ops->drained_begin)
        child->ops->drained_begin(child);
}

void child_unquiesce(Child *child)
{
    g_assert(child->quiesced_parent);
    child->quiesced_parent = false;
    if (child->parent)
        node_unquiesce(child->parent);
    else if (child->ops->drained_end)
        child->ops->drained_end(child);
}

static bool node_busy(Node *node)
{
    if (node->in_flight)
        return true;
    for (GList *l = node->parents.head; l; l = l->next) {
        Child *child = l->data;
        if (child->parent ? node_busy(child->parent) : child->ops->drained_poll && child->ops->drained_poll(child))
            return true;
    }
    return false;
}

void node_co_drained_begin(Node *node)
{
    node_quiesce(node);
    while (node_busy(node))
        coqueue_co_wait(&node->graph->drain_waiters, NULL);
}

void node_drained_end(Node *node)
{
    node_unquiesce(node);
    graph_drain_kick(node->graph); /* for node_co_enter() */
}

void node_co_enter(Node *node)
{
    while (node->quiesced)
        coqueue_co_wait(&node->graph->drain_waiters, NULL);
    node_in_flight_inc(node);
}

void graph_drain_kick(Graph *graph)
{
    coqueue_wake_all(&graph->drain_waiters);
}
