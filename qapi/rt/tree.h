/*
 * Trees of options, for rooms that put options together without knowing json-glib: a thin cover over its objects.
 *
 * Every "object" argument must be an object. Nothing yields; loop's thread or any other, one at a time per tree.
 */
#pragma once
#include "qapi/rt/type.h"
#include <stdbool.h>

typedef JsonNode Tree; /* for g_autoptr(Tree) */

/* An empty object; the caller's. */
JsonNode *tree_object(void);
JsonNode *tree_ref(JsonNode *tree);
void tree_unref(JsonNode *tree); /* takes NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Tree, tree_unref)
JsonNode *tree_copy(JsonNode *tree);
/* Overwrites all strings in it, wherever else the tree is referenced: for what held a secret, before its last unref. */
void tree_wipe(JsonNode *tree);

bool tree_is_object(JsonNode *tree); /* false for NULL */
bool tree_is_empty(JsonNode *object);
/* A member, borrowed; NULL: there is none. */
JsonNode *tree_get(JsonNode *object, const char *name);
/* A member that is a string, borrowed; NULL: there is none, or it is something else. */
const char *tree_get_string(JsonNode *object, const char *name);
void tree_set(JsonNode *object, const char *name, JsonNode *take);
void tree_set_string(JsonNode *object, const char *name, const char *value);
void tree_set_null(JsonNode *object, const char *name);
/* Adds to the end of a list member, which is made when there is none (or something else). */
void tree_append(JsonNode *object, const char *name, JsonNode *take);
void tree_remove(JsonNode *object, const char *name);

/* Puts copies of @over's members over @under's; where both are objects, member by member. */
void tree_merge(JsonNode *under, JsonNode *over);
