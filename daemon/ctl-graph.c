/*
 * storage-ctl graph: who stands on whom, from x-debug-query-block-graph.
 */
#include "daemon/ctl.h"
#include "block/util/sizestr.h"
#include "qapi/rt/tree.h"
#include <stdio.h>
#include <string.h>

typedef struct Picture {
    XDbgBlockGraph *graph;
    BlockDeviceInfoList *nodes;
    GHashTable *drawn; /* ids of vertices whose children have been drawn */
    bool unicode;
} Picture;

static const XDbgBlockGraphNode *vertex(const Picture *p, uint64_t id)
{
    for (size_t i = 0; i < p->graph->nodes->len; i++)
        if (p->graph->nodes->items[i]->id == id)
            return p->graph->nodes->items[i];
    return NULL;
}

/* "disk (qcow2, 64 GiB)" */
static char *label(const Picture *p, const XDbgBlockGraphNode *v)
{
    if (v->type != X_DBG_BLOCK_GRAPH_NODE_TYPE_BLOCK_DRIVER) {
        /* The name says what it is: "block device 'x'". */
        return g_strdup(v->name);
    }
    for (size_t i = 0; i < p->nodes->len; i++) {
        const BlockDeviceInfo *n = p->nodes->items[i];
        if (n->node_name && strcmp(n->node_name, v->name) == 0) {
            g_autofree char *size = size_to_str((uint64_t)n->image->virtual_size);
            return g_strdup_printf("%s (%s, %s%s)", v->name, n->drv, size, n->ro ? ", read-only" : "");
        }
    }
    return g_strdup_printf("%s (node)", v->name);
}

static void draw_below(Picture *p, uint64_t id, const char *indent)
{
    if (!g_hash_table_add(p->drawn, GSIZE_TO_POINTER(id)))
        return;
    size_t left = 0;
    for (size_t i = 0; i < p->graph->edges->len; i++)
        left += p->graph->edges->items[i]->parent == id;
    for (size_t i = 0; i < p->graph->edges->len; i++) {
        const XDbgBlockGraphEdge *e = p->graph->edges->items[i];
        const XDbgBlockGraphNode *child = e->parent == id ? vertex(p, e->child) : NULL;
        if (!child)
            continue;
        bool last = --left == 0;
        bool again = g_hash_table_contains(p->drawn, GSIZE_TO_POINTER(child->id));
        g_autofree char *text = label(p, child);
        const char *branch = p->unicode ? (last ? "└─ " : "├─ ") : (last ? "`- " : "|- ");
        const char *trunk = last ? "   " : p->unicode ? "│  " : "|  ";
        printf("%s%s%s: %s%s\n", indent, branch, e->name, text, again ? ", see above" : "");
        g_autofree char *deeper = g_strconcat(indent, trunk, NULL);
        draw_below(p, child->id, deeper);
    }
}

static bool has_parent(const Picture *p, uint64_t id)
{
    for (size_t i = 0; i < p->graph->edges->len; i++)
        if (p->graph->edges->items[i]->child == id)
            return true;
    return false;
}

static void draw_tree(Picture *p)
{
    for (size_t i = 0; i < p->graph->nodes->len; i++) {
        const XDbgBlockGraphNode *v = p->graph->nodes->items[i];
        if (!has_parent(p, v->id)) {
            g_autofree char *text = label(p, v);
            printf("%s\n", text);
            draw_below(p, v->id, "");
        }
    }
    if (!p->graph->nodes->len)
        printf("no nodes\n");
}

static char *quoted(const char *text)
{
    g_autofree char *escaped = g_strescape(text, "");
    return g_strdup_printf("\"%s\"", escaped);
}

static void draw_dot(const Picture *p)
{
    printf("digraph block {\n    rankdir=TB;\n    node [fontname=\"sans\"];\n");
    for (size_t i = 0; i < p->graph->nodes->len; i++) {
        const XDbgBlockGraphNode *v = p->graph->nodes->items[i];
        g_autofree char *text = label(p, v), *name = quoted(text);
        printf("    n%" G_GUINT64_FORMAT " [label=%s, shape=%s];\n", v->id, name,
               v->type == X_DBG_BLOCK_GRAPH_NODE_TYPE_BLOCK_DRIVER ? "box"
               : v->type == X_DBG_BLOCK_GRAPH_NODE_TYPE_BLOCK_JOB  ? "hexagon"
                                                                   : "ellipse");
    }
    for (size_t i = 0; i < p->graph->edges->len; i++) {
        const XDbgBlockGraphEdge *e = p->graph->edges->items[i];
        g_autofree char *name = quoted(e->name);
        printf("    n%" G_GUINT64_FORMAT " -> n%" G_GUINT64_FORMAT " [label=%s];\n", e->parent, e->child, name);
    }
    printf("}\n");
}

int ctl_graph(Ctl *ctl, int argc, char **argv)
{
    GError *error = NULL;
    bool dot = argc == 1 && strcmp(argv[0], "--dot") == 0;
    if (argc == 1 && !dot) {
        g_printerr("storage-ctl: 'graph' takes --dot or nothing, not '%s'\n", argv[0]);
        return 2;
    }
    g_autoptr(Tree) reply = ctl_call(ctl, "x-debug-query-block-graph", NULL, &error);
    g_autoptr(XDbgBlockGraph) graph = reply ? qapi_decode_XDbgBlockGraph(reply, &error) : NULL;
    g_autoptr(Tree) nodes_reply = graph ? ctl_call(ctl, "query-named-block-nodes", NULL, &error) : NULL;
    g_autoptr(BlockDeviceInfoList) nodes = nodes_reply ? qapi_decode_BlockDeviceInfoList(nodes_reply, &error) : NULL;
    if (!nodes)
        return ctl_fail(error);
    Picture p = {.graph = graph, .nodes = nodes, .unicode = ctl_unicode()};
    p.drawn = g_hash_table_new(NULL, NULL);
    if (dot)
        draw_dot(&p);
    else
        draw_tree(&p);
    g_hash_table_destroy(p.drawn);
    return 0;
}
