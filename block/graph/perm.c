/*
 * Permissions: who may do what to a node, computed top-down over the part of the graph that a change touches.
 *
 * Every node sums up what its parents take (OR) and share (AND), refuses pairs of parents that contradict one another,
 * asks its driver, and then says what it needs of its children itself. Nodes are visited in topological order, so each
 * is computed once, after all its parents. All is recorded in a PermUndo until commit.
 */
#include "block/graph/graph-int.h"

typedef struct EdgeUndo {
    Child *child;
    unsigned perm, shared;
} EdgeUndo;

typedef struct NodeUndo {
    Node *node;
    unsigned perm, shared;
} NodeUndo;

struct PermUndo {
    GArray *edges; /* EdgeUndo, in order of change */
    GArray *nodes; /* NodeUndo: those whose driver agreed to new values */
};

char *perm_names(unsigned perm)
{
    static const char *const names[] = {"consistent read", "write", "write unchanged", "resize"};
    GString *s = g_string_new(NULL);

    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        if (perm & (1u << i))
            g_string_append_printf(s, "%s%s", s->len ? ", " : "", names[i]);
    return g_string_free(s, FALSE);
}

static char *parent_name(Child *child)
{
    if (child->parent)
        return g_strdup_printf("node '%s'", child->parent->name);
    if (child->ops->describe)
        return child->ops->describe(child);
    return g_strdup_printf("an unnamed %s", child->ops->what ? child->ops->what : "user");
}

static void perm_default_cow(unsigned perm, unsigned shared, unsigned *ret_perm, unsigned *ret_shared)
{
    /* Backing files are only read. Whoever can live with changing data above can live with it below. */
    *ret_perm = perm & PERM_CONSISTENT_READ;
    *ret_shared = PERM_CONSISTENT_READ | PERM_WRITE_UNCHANGED;
    if (shared & PERM_WRITE)
        *ret_shared |= PERM_WRITE | PERM_RESIZE;
}

void perm_default(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared, unsigned *ret_perm,
                  unsigned *ret_shared)
{
    if (role & ROLE_FILTERED) {
        *ret_perm = perm;
        *ret_shared = shared;
        return;
    }
    if (role & ROLE_COW) {
        perm_default_cow(perm, shared, ret_perm, ret_shared);
        return;
    }
    *ret_perm = perm;
    *ret_shared = shared;
    if (role & ROLE_METADATA) {
        /* Metadata must stand still under the driver, and the driver may write it without any client writing. */
        *ret_perm |= PERM_CONSISTENT_READ;
        if (node_writable(node) && !node->flags.force_share)
            *ret_perm |= PERM_WRITE | PERM_RESIZE;
    }
    if (*ret_perm & PERM_WRITE_UNCHANGED)
        *ret_perm |= PERM_WRITE; /* what is the same above may be written anew below */
    if (*ret_perm & PERM_WRITE)
        *ret_perm |= PERM_RESIZE; /* allocation appends */
    /* Nobody else changes metadata under the driver; data, where the parents allow it. The size matters to both. */
    *ret_shared &= ~(role & ROLE_METADATA ? PERM_WRITE | PERM_RESIZE : PERM_RESIZE);
    *ret_shared |= PERM_WRITE_UNCHANGED;
    if (node->flags.force_share)
        *ret_shared = PERM_ALL;
}

static void sort_visit(Graph *graph, Node *node, GPtrArray *order)
{
    if (node->visited == graph->visit)
        return;
    node->visited = graph->visit;
    for (guint i = 0; i < node->children->len; i++)
        sort_visit(graph, ((Child *)g_ptr_array_index(node->children, i))->node, order);
    g_ptr_array_add(order, node); /* after all its children: reversed, that is parents first */
}

static void edge_set(PermUndo *undo, Child *child, unsigned perm, unsigned shared)
{
    if (child->perm == perm && child->shared == shared)
        return;
    g_array_append_vals(undo->edges, &(EdgeUndo){child, child->perm, child->shared}, 1);
    child->perm = perm;
    child->shared = shared;
}

static bool refuse_conflict(Node *node, Child *taker, Child *other, GError **error)
{
    g_autofree char *perms = perm_names(taker->perm & ~other->shared);
    g_autofree char *a = parent_name(taker);
    g_autofree char *b = parent_name(other);

    return error_set(error,
                     "Permission conflict on node '%s': permissions '%s' are both required by %s (uses node '%s' as "
                     "'%s' child) and unshared by %s (uses node '%s' as '%s' child).",
                     node->name, perms, a, node->name, taker->name, b, node->name, other->name);
}

static bool node_sum(PermUndo *undo, Node *node, unsigned *ret_perm, unsigned *ret_shared, GError **error)
{
    unsigned perm = 0, shared = PERM_ALL;

    for (GList *l = node->parents.head; l; l = l->next) {
        Child *child = l->data;
        if (!child->parent)
            edge_set(undo, child, child->want_perm, child->want_shared);
        perm |= child->perm;
        shared &= child->shared;
    }
    /* Only where the sums clash is there a pair to look for; a parent may well not share what it takes itself. */
    for (GList *l = node->parents.head; l && (perm & ~shared); l = l->next)
        for (GList *m = node->parents.head; m; m = m->next)
            if (l != m && (((Child *)l->data)->perm & ~((Child *)m->data)->shared))
                return refuse_conflict(node, l->data, m->data, error);
    *ret_perm = perm;
    *ret_shared = shared;
    return true;
}

static bool node_prepare(PermUndo *undo, Node *node, GError **error)
{
    unsigned perm = 0, shared = PERM_ALL;

    if (!node_sum(undo, node, &perm, &shared, error))
        return false;
    if ((perm & (PERM_WRITE | PERM_WRITE_UNCHANGED)) && (!node_writable(node) || node->reopening))
        return error_set(error, "Block node is read-only (node '%s')", node->name);
    if (perm != node->cum_perm || shared != node->cum_shared) {
        if (node->drv->check_perm && !node->drv->check_perm(node, perm, shared, error))
            return false;
        g_array_append_vals(undo->nodes, &(NodeUndo){node, node->cum_perm, node->cum_shared}, 1);
        node->cum_perm = perm;
        node->cum_shared = shared;
    }
    for (guint i = 0; i < node->children->len; i++) {
        Child *child = g_ptr_array_index(node->children, i);
        unsigned p, s;
        (node->drv->child_perm ? node->drv->child_perm : perm_default)(node, child, child->role, perm, shared, &p, &s);
        edge_set(undo, child, p, s);
    }
    return true;
}

static void undo_free(PermUndo *undo)
{
    g_array_free(undo->edges, TRUE);
    g_array_free(undo->nodes, TRUE);
    g_free(undo);
}

static void perm_abort(PermUndo *undo)
{
    for (guint i = undo->nodes->len; i-- > 0;) {
        NodeUndo *u = &g_array_index(undo->nodes, NodeUndo, i);
        if (u->node->drv->abort_perm)
            u->node->drv->abort_perm(u->node);
        u->node->cum_perm = u->perm;
        u->node->cum_shared = u->shared;
    }
    for (guint i = undo->edges->len; i-- > 0;) {
        EdgeUndo *u = &g_array_index(undo->edges, EdgeUndo, i);
        u->child->perm = u->perm;
        u->child->shared = u->shared;
    }
    undo_free(undo);
}

PermUndo *perm_prepare(Graph *graph, GPtrArray *start, GError **error)
{
    g_autoptr(GPtrArray) order = g_ptr_array_new();
    PermUndo *undo = g_new0(PermUndo, 1);

    undo->edges = g_array_new(FALSE, FALSE, sizeof(EdgeUndo));
    undo->nodes = g_array_new(FALSE, FALSE, sizeof(NodeUndo));
    graph->visit++;
    for (guint i = 0; i < start->len; i++)
        sort_visit(graph, g_ptr_array_index(start, i), order);
    for (guint i = order->len; i-- > 0;)
        if (!node_prepare(undo, g_ptr_array_index(order, i), error)) {
            perm_abort(undo);
            return NULL;
        }
    return undo;
}

void perm_commit(PermUndo *undo)
{
    for (guint i = 0; i < undo->nodes->len; i++) {
        Node *node = g_array_index(undo->nodes, NodeUndo, i).node;
        if (node->drv->set_perm)
            node->drv->set_perm(node, node->cum_perm, node->cum_shared);
    }
    undo_free(undo);
}

bool node_co_refresh_perms(Node *node, GError **error)
{
    g_autoptr(GPtrArray) start = g_ptr_array_new();
    PermUndo *undo;

    g_ptr_array_add(start, node);
    undo = perm_prepare(node->graph, start, error);
    if (!undo)
        return false;
    perm_commit(undo);
    return true;
}
