/*
 * Trees of values as JSON knows them: what the parser and the command line give, what replies and events are printed
 * from, and what rooms put options together in.
 *
 * Objects keep their members in the order in which they came. Integers are int64_t, or uint64_t above that. Strings
 * have no zero bytes.
 *
 * A tree is counted by references, which are for reading: who changes one must be the only one who holds it. "@take"
 * arguments belong to the callee. "object" and "list" arguments must be one. Nothing yields; loop's thread or any
 * other, one at a time per tree.
 */
#pragma once
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum TreeKind {
    TREE_NULL,
    TREE_BOOL,
    TREE_INT,
    TREE_UINT, /* above INT64_MAX */
    TREE_DOUBLE,
    TREE_STRING,
    TREE_LIST,
    TREE_OBJECT,
} TreeKind;

typedef struct Tree Tree;

/* New ones, the caller's; lists and objects are empty, strings are copied (NULL: a null). */
Tree *tree_null(void);
Tree *tree_bool(bool value);
Tree *tree_int(int64_t value);
Tree *tree_uint(uint64_t value); /* a TREE_INT where that holds it */
Tree *tree_double(double value);
Tree *tree_string(const char *value);
Tree *tree_list(void);
Tree *tree_object(void);

Tree *tree_ref(Tree *tree);
void tree_unref(Tree *tree); /* takes NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Tree, tree_unref)
/* A copy that shares nothing: what is secret in it has to be wiped there, too. */
Tree *tree_copy(const Tree *tree);
/* Are they equal? The order of members does not count, the kind of a number does. */
bool tree_equal(const Tree *a, const Tree *b);
/* Overwrites all strings in it, wherever else the tree is referenced: for what held a secret, before its last unref. */
void tree_wipe(Tree *tree);

/* ---- scalars ---------------------------------------------------------------------------------------------------- */

TreeKind tree_kind(const Tree *tree);
bool tree_is_object(const Tree *tree); /* false for NULL */
/* Each wants a tree of its kind, but for tree_as_double(), which takes integers, too. */
bool tree_as_bool(const Tree *tree);
int64_t tree_as_int(const Tree *tree);
uint64_t tree_as_uint(const Tree *tree);
double tree_as_double(const Tree *tree);
/* Borrowed; NULL: the tree is NULL, or not a string. */
const char *tree_as_string(const Tree *tree);

/* ---- lists and objects ------------------------------------------------------------------------------------------ */

/* The number of a list's elements or an object's members. */
guint tree_size(const Tree *tree);

/* An element, borrowed; @index must be below tree_size(). */
Tree *tree_element(const Tree *list, guint index);
/* Adds to the end. */
void tree_add(Tree *list, Tree *take);

/* A member by its place, borrowed, with its name; @index must be below tree_size(). */
Tree *tree_member(const Tree *object, guint index, const char **ret_name);
/* A member by its name, borrowed; NULL: there is none. */
Tree *tree_get(const Tree *object, const char *name);
/* A member that is a string, borrowed, or an integer; otherwise NULL, or @otherwise. */
const char *tree_get_string(const Tree *object, const char *name);
int64_t tree_get_int(const Tree *object, const char *name, int64_t otherwise);
/* Adds a member at the end, or replaces the one of that name where it stands. */
void tree_set(Tree *object, const char *name, Tree *take);
void tree_set_string(Tree *object, const char *name, const char *value);
/* Adds to the end of a list member, which is made when there is none (or something else). */
void tree_append(Tree *object, const char *name, Tree *take);
void tree_remove(Tree *object, const char *name);
/* Puts copies of @over's members over @under's; where both are objects, member by member. */
void tree_merge(Tree *under, const Tree *over);
