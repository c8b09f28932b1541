/*
 * Debugging: events on the way of a request, and breakpoints at them.
 *
 * The request pipeline and the format drivers tell a node what is about to happen to it ("read_aio", "l2_load": QMP's
 * BlkdebugEvent). blkdebug listens, injects errors and holds requests up; no other driver does, and then an event costs
 * one test. An event concerns the node that is told and none below it: a format tells its file child, the pipeline the
 * node that a request arrives at.
 *
 * Breakpoints are set by name from outside (qemu-io's break, resume, remove_break, wait_break) on any node above a
 * blkdebug node: the walk goes down the primary children. Loop's thread.
 */
#pragma once
#include "block/graph/driver.h"

/* What a driver that listens provides; all of them. */
struct DriverDebug {
    /* Something happens to @node; yields while the request is held up at a breakpoint. */
    void (*co_event)(Node *node, BlkdebugEvent event);
    /* As the functions below, on a node of the driver. */
    int (*set_break)(Node *node, const char *event, const char *tag);
    int (*remove_break)(Node *node, const char *tag);
    int (*resume)(Node *node, const char *tag);
    bool (*suspended)(Node *node, const char *tag);
};

static inline void node_co_debug_event(Node *node, BlkdebugEvent event)
{
    if (G_UNLIKELY(node->drv->debug != NULL))
        node->drv->debug->co_event(node, event);
}

/* The same for a child that may be missing. */
static inline void child_co_debug_event(Child *child, BlkdebugEvent event)
{
    if (child)
        node_co_debug_event(child->node, event);
}

/*
 * The next request that meets @event (a BlkdebugEvent's name) at the blkdebug node at or below @node stops there under
 * the name @tag; a breakpoint works once. 0; -ENOTSUP: no blkdebug node; -ENOENT: no such event.
 */
int node_debug_break(Node *node, const char *event, const char *tag);
/* Forgets the breakpoints called @tag and lets all requests go on that they stopped. 0, -ENOTSUP, -ENOENT: none. */
int node_debug_remove_break(Node *node, const char *tag);
/* Lets one request go on that stopped at @tag. 0, -ENOTSUP, -ENOENT: there is none. */
int node_debug_resume(Node *node, const char *tag);
/* Is a request held up at @tag? */
bool node_debug_suspended(Node *node, const char *tag);
