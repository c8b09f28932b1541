/*
 * Graph transactions: a list of edge changes, each of which knows how to undo itself.
 */
#include "block/graph/graph-int.h"

typedef enum ChangeKind { CHANGE_ATTACH, CHANGE_REPLACE, CHANGE_DETACH, CHANGE_PERM } ChangeKind;

typedef struct Change {
    ChangeKind kind;
    Child *child;
    Node *old;    /* REPLACE, DETACH: where the edge led; holds the edge's reference until commit */
    Node *parent; /* whose edge it was */
    guint index;  /* DETACH: its place in the parent's list */
    unsigned old_perm, old_shared;
    bool by_header; /* REPLACE: it was */
} Change;

struct GraphTxn {
    Graph *graph;
    GArray *changes; /* Change, in order */
};

GraphTxn *graph_txn_new(Graph *graph)
{
    GraphTxn *txn = g_new0(GraphTxn, 1);

    txn->graph = graph;
    txn->changes = g_array_new(FALSE, TRUE, sizeof(Change));
    return txn;
}

/* Enters the edge into its node's list of parents; a drained node quiets its new parent. */
static void edge_link(Child *child, Node *node)
{
    child->node = node;
    if (!node)
        return;
    child->link.data = child;
    g_queue_push_tail_link(&node->parents, &child->link);
    child->listed = true;
    if (node->quiesced && !child->quiesced_parent)
        child_quiesce(child);
}

/* Takes it out of the list; the parent stays quiet until edge_settle(). */
static void edge_unlink(Child *child)
{
    if (!child->listed)
        return;
    g_queue_unlink(&child->node->parents, &child->link);
    child->listed = false;
}

static void edge_settle(Child *child)
{
    if (child->quiesced_parent && !(child->listed && child->node->quiesced))
        child_unquiesce(child);
}

static void parent_add(Child *child, Node *parent, gint index)
{
    g_ptr_array_insert(parent->children, index, child);
    if (child->role & ROLE_PRIMARY)
        parent->file = child;
    if (child->role & ROLE_COW)
        parent->backing = child;
}

static void parent_remove(Child *child, Node *parent)
{
    g_ptr_array_remove(parent->children, child);
    if (parent->file == child)
        parent->file = NULL;
    if (parent->backing == child)
        parent->backing = NULL;
}

static void child_free(Child *child)
{
    g_free(child->name);
    g_free(child);
}

static Child *child_attach(GraphTxn *txn, const char *name, Node *node)
{
    Child *child = g_new0(Child, 1);

    child->name = g_strdup(name);
    child->want_shared = child->shared = PERM_ALL;
    g_array_append_vals(txn->changes, &(Change){.kind = CHANGE_ATTACH, .child = child}, 1);
    if (node)
        node_ref(node);
    return child;
}

Child *graph_txn_attach(GraphTxn *txn, Node *parent, const char *name, Node *node, ChildRole role)
{
    Child *child = child_attach(txn, name, node);

    child->parent = parent;
    child->role = role;
    parent_add(child, parent, -1);
    edge_link(child, node);
    return child;
}

Child *graph_txn_attach_outside(GraphTxn *txn, const char *name, Node *node, unsigned perm, unsigned shared,
                                const ParentOps *ops, void *opaque)
{
    Child *child = child_attach(txn, name, node);

    child->ops = ops;
    child->opaque = opaque;
    child->role = ROLE_IMAGE;
    child->want_perm = perm;
    child->want_shared = shared;
    edge_link(child, node);
    return child;
}

void graph_txn_replace(GraphTxn *txn, Child *child, Node *node)
{
    if (node == child->node)
        return;
    g_assert(node || !child->parent);
    g_array_append_vals(
        txn->changes,
        &(Change){.kind = CHANGE_REPLACE, .child = child, .old = child->node, .by_header = child->by_header}, 1);
    edge_unlink(child);
    child->by_header = false;
    if (node)
        node_ref(node);
    edge_link(child, node);
}

void graph_txn_detach(GraphTxn *txn, Child *child)
{
    Change change = {.kind = CHANGE_DETACH, .child = child, .old = child->node, .parent = child->parent};

    if (child->parent) {
        gboolean found = g_ptr_array_find(child->parent->children, child, &change.index);
        g_assert(found);
        parent_remove(child, child->parent);
    }
    g_array_append_val(txn->changes, change);
    edge_unlink(child);
}

bool graph_txn_replace_node(GraphTxn *txn, Node *from, Node *to, const Node *except, GError **error)
{
    g_autoptr(GPtrArray) edges = g_ptr_array_new();

    for (GList *l = from->parents.head; l; l = l->next) {
        Child *child = l->data;
        if (child->parent && (child->parent == except || node_reaches(to, child->parent)))
            continue;
        if (child->frozen)
            return error_set(error, "Cannot change '%s' link from '%s' to '%s'", child->name,
                             child->parent ? child->parent->name : "(user)", to->name);
        g_ptr_array_add(edges, child);
    }
    for (guint i = 0; i < edges->len; i++)
        graph_txn_replace(txn, g_ptr_array_index(edges, i), to);
    return true;
}

void graph_txn_set_perm(GraphTxn *txn, Child *child, unsigned perm, unsigned shared)
{
    g_assert(!child->parent);
    g_array_append_vals(
        txn->changes,
        &(Change){.kind = CHANGE_PERM, .child = child, .old_perm = child->want_perm, .old_shared = child->want_shared},
        1);
    child->want_perm = perm;
    child->want_shared = shared;
}

static void change_undo(Change *c)
{
    Child *child = c->child;

    switch (c->kind) {
    case CHANGE_ATTACH:
        edge_unlink(child);
        edge_settle(child);
        if (child->parent)
            parent_remove(child, child->parent);
        if (child->node)
            node_drop_ref(child->node);
        child_free(child);
        break;
    case CHANGE_REPLACE: {
        Node *node = child->node;
        edge_unlink(child);
        edge_link(child, c->old);
        edge_settle(child);
        child->by_header = c->by_header;
        if (node)
            node_drop_ref(node);
        break;
    }
    case CHANGE_DETACH:
        if (c->parent)
            parent_add(child, c->parent, (gint)c->index);
        edge_link(child, c->old);
        break;
    case CHANGE_PERM:
        child->want_perm = c->old_perm;
        child->want_shared = c->old_shared;
        break;
    }
}

static void txn_undo(GraphTxn *txn)
{
    for (guint i = txn->changes->len; i-- > 0;)
        change_undo(&g_array_index(txn->changes, Change, i));
    g_array_set_size(txn->changes, 0);
}

void graph_txn_free(GraphTxn *txn)
{
    if (!txn)
        return;
    txn_undo(txn);
    g_array_free(txn->changes, TRUE);
    g_free(txn);
}

/* The nodes whose permissions the changes may alter: both ends of every edge. */
static GPtrArray *txn_touched(GraphTxn *txn)
{
    GPtrArray *nodes = g_ptr_array_new();

    for (guint i = 0; i < txn->changes->len; i++) {
        Change *c = &g_array_index(txn->changes, Change, i);
        if (c->child->parent && c->kind != CHANGE_DETACH)
            g_ptr_array_add(nodes, c->child->parent);
        if (c->child->node)
            g_ptr_array_add(nodes, c->child->node);
        if (c->old)
            g_ptr_array_add(nodes, c->old);
    }
    return nodes;
}

bool graph_txn_co_commit(GraphTxn *txn, GError **error)
{
    g_autoptr(GPtrArray) touched = txn_touched(txn);
    g_autoptr(GPtrArray) dropped = g_ptr_array_new();
    PermUndo *undo = perm_prepare(txn->graph, touched, error);

    if (!undo) {
        txn_undo(txn);
        return false;
    }
    perm_commit(undo);
    for (guint i = 0; i < txn->changes->len; i++) {
        Change *c = &g_array_index(txn->changes, Change, i);
        edge_settle(c->child);
        if ((c->kind == CHANGE_REPLACE || c->kind == CHANGE_ATTACH) && c->child->ops && c->child->ops->node_changed)
            c->child->ops->node_changed(c->child);
        if (c->old)
            g_ptr_array_add(dropped, c->old);
    }
    /* Limits flow upwards: whoever got another child looks again. */
    for (guint i = 0; i < txn->changes->len; i++) {
        Change *c = &g_array_index(txn->changes, Change, i);
        if (c->kind == CHANGE_REPLACE && c->child->parent)
            node_refresh_limits(c->child->parent);
        if (c->kind == CHANGE_DETACH)
            child_free(c->child);
    }
    g_array_set_size(txn->changes, 0);
    /* Only now may anything yield: what nobody uses any more closes. */
    for (guint i = 0; i < dropped->len; i++)
        node_co_unref(g_ptr_array_index(dropped, i));
    return true;
}

/* The edge that continues the chain below @node. */
static Child *chain_edge(Node *node)
{
    Child *filtered = node_filtered_child(node);

    return filtered ? filtered : node->backing;
}

bool node_freeze_chain(Node *top, Node *base, GError **error)
{
    for (Node *n = top; n && n != base; n = chain_edge(n) ? chain_edge(n)->node : NULL)
        if (chain_edge(n) && chain_edge(n)->frozen)
            return error_set(error, "Cannot freeze '%s' link to '%s': another job uses it", chain_edge(n)->name,
                             chain_edge(n)->node->name);
    for (Node *n = top; n && n != base; n = chain_edge(n) ? chain_edge(n)->node : NULL)
        if (chain_edge(n))
            chain_edge(n)->frozen = true;
    return true;
}

void node_unfreeze_chain(Node *top, Node *base)
{
    for (Node *n = top; n && n != base; n = chain_edge(n) ? chain_edge(n)->node : NULL)
        if (chain_edge(n))
            chain_edge(n)->frozen = false;
}
