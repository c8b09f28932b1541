/*
 * Graph transactions (LAW 4): edges change, permissions are computed over the result, drivers are asked, and then all
 * of it stays or none.
 *
 *     g_autoptr(GraphTxn) txn = graph_txn_new(graph);
 *     graph_txn_replace_node(txn, old, new);
 *     return graph_txn_co_commit(txn, error);
 *
 * A change takes effect in the edges at once, undoable until commit. graph_txn_co_commit() recomputes permissions of
 * every node touched and everything below, in topological order, and asks drivers' check_perm; on refusal it undoes
 * everything in reverse order and returns false. Freeing without commit undoes as well. Between the first change and
 * commit nothing may yield. The nodes that lose or gain edges must be drained, unless they have never had a request.
 */
#pragma once
#include "block/graph/node.h"

typedef struct GraphTxn GraphTxn;

GraphTxn *graph_txn_new(Graph *graph);
/* Undoes what was not committed. Takes NULL. */
void graph_txn_free(GraphTxn *txn);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(GraphTxn, graph_txn_free)

/* A new edge from @parent to @node (takes a reference of its own to @node). */
Child *graph_txn_attach(GraphTxn *txn, Node *parent, const char *name, Node *node, ChildRole role);
/* A new edge from outside the graph; @node may be NULL (an empty device). */
Child *graph_txn_attach_outside(GraphTxn *txn, const char *name, Node *node, unsigned perm, unsigned shared,
                                const ParentOps *ops, void *opaque);
/* @child leads to @node from now on (NULL: to nothing; outside parents only). */
void graph_txn_replace(GraphTxn *txn, Child *child, Node *node);
/* Removes the edge; @child is freed at commit. */
void graph_txn_detach(GraphTxn *txn, Child *child);
/* Every edge that leads to @from leads to @to, except edges that come from @to or from nodes below @to (they would make
 * a loop), and those that come from @except (may be NULL). False with @error when a frozen edge is in the way. */
bool graph_txn_replace_node(GraphTxn *txn, Node *from, Node *to, const Node *except, GError **error);
/* An outside parent wants other permissions. */
void graph_txn_set_perm(GraphTxn *txn, Child *child, unsigned perm, unsigned shared);

/* Commits, or undoes and explains. The transaction is spent either way; still free it. */
bool graph_txn_co_commit(GraphTxn *txn, GError **error);

/* Recomputes the permissions below @node without changing edges (a driver's needs changed). */
bool node_co_refresh_perms(Node *node, GError **error);

/* The default child_perm of filters, image formats and backing children. */
void perm_default(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared, unsigned *ret_perm,
                  unsigned *ret_shared);

/* Jobs rely on the chain from @top down to @base (exclusive): its filter and backing edges become frozen. False with
 * "Cannot …" when one is frozen already. Unfreezing takes the same arguments. */
bool node_freeze_chain(Node *top, Node *base, GError **error);
void node_unfreeze_chain(Node *top, Node *base);
