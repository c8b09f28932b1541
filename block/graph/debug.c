/*
 * Breakpoints: finding the node that handles them.
 */
#include "block/graph/debug.h"
#include <errno.h>

static Node *debug_node(Node *node)
{
    while (node && !node->drv->debug)
        node = node->file ? node->file->node : NULL;
    return node;
}

int node_debug_break(Node *node, const char *event, const char *tag)
{
    node = debug_node(node);
    return node ? node->drv->debug->set_break(node, event, tag) : -ENOTSUP;
}

int node_debug_remove_break(Node *node, const char *tag)
{
    node = debug_node(node);
    return node ? node->drv->debug->remove_break(node, tag) : -ENOTSUP;
}

int node_debug_resume(Node *node, const char *tag)
{
    node = debug_node(node);
    return node ? node->drv->debug->resume(node, tag) : -ENOTSUP;
}

bool node_debug_suspended(Node *node, const char *tag)
{
    node = debug_node(node);
    return node && node->drv->debug->suspended(node, tag);
}
