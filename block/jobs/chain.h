/*
 * What commit and stream have in common: finding their part of a backing chain, and telling an image's header that the
 * chain changed.
 */
#pragma once
#include "block/jobs/common.h"

/* The image in @top's chain (@top included) that the file name @name means: its name, or what its overlay's header
 * calls it. Borrowed; NULL when there is none. */
Node *chain_find_file(Node *top, const char *name);
/* A node by name alone: NULL with "Cannot find device='' nor node-name='x'". Borrowed. */
Node *chain_find_node(Graph *graph, const char *name, GError **error);
/* The lowest image below @top, or @top itself. Borrowed. */
Node *chain_lowest(Node *top);

/* No node from @top down to @base (NULL: all) is used by a job; @base itself is looked at with @with_base. */
bool chain_check_free(JobList *list, Node *top, Node *base, bool with_base, GError **error);
/* Nobody reads a node below @top, down to @base, through another overlay: he would read other data when @base is
 * written to. */
bool chain_check_readers(Node *top, Node *base, GError **error);
/* The job relies on the nodes from @top down to @base (NULL: to the end), without @base. */
void chain_add_nodes(Job *job, Node *top, Node *base);

/*
 * Writes into @overlay's header that @base (NULL: nothing) is below it, by the name @name or, where that is NULL, by
 * @base's own. An overlay that is open read-only is made writable for the moment. @overlay is drained.
 */
bool chain_co_write_backing(Node *overlay, Node *base, const char *name, GError **error);
