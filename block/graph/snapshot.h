/*
 * Internal snapshots: those that an image keeps within itself.
 *
 * A node that keeps none itself, and has its data from one child alone (raw, a filter), passes on to that child.
 */
#pragma once
#include "block/graph/driver.h"

/* The node at or below @node that keeps its snapshots; NULL: none does. */
Node *node_snapshot_host(Node *node);
/* What it keeps, NULL when that is nothing. Caller frees. */
SnapshotInfoList *node_list_snapshots(Node *node);
/* The snapshot with that id and name, of which one may be NULL; NULL: there is none. Caller frees. */
SnapshotInfo *node_find_snapshot(Node *node, const char *id, const char *name);

/* Each happens, durably, or does not. @node is drained. */
bool node_co_snapshot_create(Node *node, const SnapshotNew *what, GError **error);
bool node_co_snapshot_delete(Node *node, const char *id, const char *name, GError **error);
/* The disk shows what it showed then, and has the size that it had: the dirty bitmaps of @node, and of all above that
 * show its data, say that everything has changed. Drains by itself. Refused where parents do not share writing, or
 * resizing if the sizes differ. */
bool node_co_snapshot_apply(Node *node, const char *id, const char *name, GError **error);
