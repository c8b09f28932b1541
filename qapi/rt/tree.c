/*
 * A tree's nodes. An object's members lie in an array; a table finds them by name once there are many.
 */
#include "qapi/rt/tree.h"
#include <string.h>

enum { INDEX_FROM = 16 }; /* members; fewer are found as fast by looking at each */

typedef struct Member {
    char *name;
    Tree *value;
} Member;

struct Tree {
    unsigned refs;
    TreeKind kind;
    union {
        bool boolean;
        int64_t integer;
        uint64_t natural;
        double number;
        char *string;
        GPtrArray *elements;
        struct {
            GArray *members;
            GHashTable *index; /* of a name its place + 1; NULL: not made yet */
        };
    };
};

static Tree *new_tree(TreeKind kind)
{
    Tree *tree = g_new0(Tree, 1);
    tree->refs = 1;
    tree->kind = kind;
    return tree;
}

Tree *tree_null(void)
{
    return new_tree(TREE_NULL);
}

Tree *tree_bool(bool value)
{
    Tree *tree = new_tree(TREE_BOOL);
    tree->boolean = value;
    return tree;
}

Tree *tree_int(int64_t value)
{
    Tree *tree = new_tree(TREE_INT);
    tree->integer = value;
    return tree;
}

Tree *tree_uint(uint64_t value)
{
    if (value <= INT64_MAX)
        return tree_int((int64_t)value);
    Tree *tree = new_tree(TREE_UINT);
    tree->natural = value;
    return tree;
}

Tree *tree_double(double value)
{
    Tree *tree = new_tree(TREE_DOUBLE);
    tree->number = value;
    return tree;
}

Tree *tree_string(const char *value)
{
    if (!value)
        return tree_null();
    Tree *tree = new_tree(TREE_STRING);
    tree->string = g_strdup(value);
    return tree;
}

static void unref_element(gpointer element)
{
    tree_unref(element);
}

Tree *tree_list(void)
{
    Tree *tree = new_tree(TREE_LIST);
    tree->elements = g_ptr_array_new_with_free_func(unref_element);
    return tree;
}

static void clear_member(gpointer member)
{
    Member *m = member;
    g_free(m->name);
    tree_unref(m->value);
}

Tree *tree_object(void)
{
    Tree *tree = new_tree(TREE_OBJECT);
    tree->members = g_array_new(FALSE, FALSE, sizeof(Member));
    g_array_set_clear_func(tree->members, clear_member);
    return tree;
}

Tree *tree_ref(Tree *tree)
{
    tree->refs++;
    return tree;
}

void tree_unref(Tree *tree)
{
    if (!tree || --tree->refs)
        return;
    if (tree->kind == TREE_STRING) {
        g_free(tree->string);
    } else if (tree->kind == TREE_LIST) {
        g_ptr_array_unref(tree->elements);
    } else if (tree->kind == TREE_OBJECT) {
        g_clear_pointer(&tree->index, g_hash_table_unref);
        g_array_unref(tree->members);
    }
    g_free(tree);
}

static Member *member_at(const Tree *object, guint index)
{
    return &g_array_index(object->members, Member, index);
}

Tree *tree_copy(const Tree *tree)
{
    Tree *copy;
    switch (tree->kind) {
    case TREE_STRING:
        return tree_string(tree->string);
    case TREE_LIST:
        copy = tree_list();
        for (guint i = 0; i < tree->elements->len; i++)
            tree_add(copy, tree_copy(tree_element(tree, i)));
        return copy;
    case TREE_OBJECT:
        copy = tree_object();
        for (guint i = 0; i < tree->members->len; i++)
            tree_set(copy, member_at(tree, i)->name, tree_copy(member_at(tree, i)->value));
        return copy;
    default:
        copy = g_new(Tree, 1);
        *copy = *tree;
        copy->refs = 1;
        return copy;
    }
}

bool tree_equal(const Tree *a, const Tree *b)
{
    if (a->kind != b->kind)
        return false;
    switch (a->kind) {
    case TREE_NULL:
        return true;
    case TREE_BOOL:
        return a->boolean == b->boolean;
    case TREE_INT:
        return a->integer == b->integer;
    case TREE_UINT:
        return a->natural == b->natural;
    case TREE_DOUBLE:
        return a->number == b->number;
    case TREE_STRING:
        return strcmp(a->string, b->string) == 0;
    case TREE_LIST:
    case TREE_OBJECT:
        break;
    }
    if (tree_size(a) != tree_size(b))
        return false;
    for (guint i = 0; i < tree_size(a); i++) {
        const Tree *ours, *theirs;
        if (a->kind == TREE_LIST) {
            ours = tree_element(a, i);
            theirs = tree_element(b, i);
        } else {
            ours = member_at(a, i)->value;
            theirs = tree_get(b, member_at(a, i)->name);
        }
        if (!theirs || !tree_equal(ours, theirs))
            return false;
    }
    return true;
}

void tree_wipe(Tree *tree)
{
    if (tree->kind == TREE_STRING)
        explicit_bzero(tree->string, strlen(tree->string));
    for (guint i = 0; tree->kind == TREE_LIST && i < tree->elements->len; i++)
        tree_wipe(tree_element(tree, i));
    for (guint i = 0; tree->kind == TREE_OBJECT && i < tree->members->len; i++)
        tree_wipe(member_at(tree, i)->value);
}

/* ---- scalars ---------------------------------------------------------------------------------------------------- */

TreeKind tree_kind(const Tree *tree)
{
    return tree->kind;
}

bool tree_is_object(const Tree *tree)
{
    return tree && tree->kind == TREE_OBJECT;
}

bool tree_as_bool(const Tree *tree)
{
    g_assert(tree->kind == TREE_BOOL);
    return tree->boolean;
}

int64_t tree_as_int(const Tree *tree)
{
    g_assert(tree->kind == TREE_INT);
    return tree->integer;
}

uint64_t tree_as_uint(const Tree *tree)
{
    g_assert(tree->kind == TREE_UINT);
    return tree->natural;
}

double tree_as_double(const Tree *tree)
{
    if (tree->kind == TREE_INT)
        return (double)tree->integer;
    if (tree->kind == TREE_UINT)
        return (double)tree->natural;
    g_assert(tree->kind == TREE_DOUBLE);
    return tree->number;
}

const char *tree_as_string(const Tree *tree)
{
    return tree && tree->kind == TREE_STRING ? tree->string : NULL;
}

/* ---- lists and objects ------------------------------------------------------------------------------------------ */

guint tree_size(const Tree *tree)
{
    g_assert(tree->kind == TREE_LIST || tree->kind == TREE_OBJECT);
    return tree->kind == TREE_LIST ? tree->elements->len : tree->members->len;
}

Tree *tree_element(const Tree *list, guint index)
{
    g_assert(list->kind == TREE_LIST && index < list->elements->len);
    return g_ptr_array_index(list->elements, index);
}

void tree_add(Tree *list, Tree *take)
{
    g_assert(list->kind == TREE_LIST);
    g_ptr_array_add(list->elements, take);
}

Tree *tree_member(const Tree *object, guint index, const char **ret_name)
{
    g_assert(object->kind == TREE_OBJECT && index < object->members->len);
    *ret_name = member_at(object, index)->name;
    return member_at(object, index)->value;
}

/* A member's place; -1: there is none of that name. */
static int find(const Tree *object, const char *name)
{
    g_assert(object->kind == TREE_OBJECT);
    if (object->index)
        return GPOINTER_TO_INT(g_hash_table_lookup(object->index, name)) - 1;
    for (guint i = 0; i < object->members->len; i++)
        if (strcmp(member_at(object, i)->name, name) == 0)
            return (int)i;
    return -1;
}

static void add_to_index(Tree *object, guint place)
{
    g_hash_table_insert(object->index, member_at(object, place)->name, GINT_TO_POINTER((int)place + 1));
}

Tree *tree_get(const Tree *object, const char *name)
{
    int place = find(object, name);
    return place < 0 ? NULL : member_at(object, (guint)place)->value;
}

const char *tree_get_string(const Tree *object, const char *name)
{
    return tree_as_string(tree_get(object, name));
}

int64_t tree_get_int(const Tree *object, const char *name, int64_t otherwise)
{
    const Tree *member = tree_get(object, name);
    return member && member->kind == TREE_INT ? member->integer : otherwise;
}

void tree_set(Tree *object, const char *name, Tree *take)
{
    int place = find(object, name);
    if (place >= 0) {
        tree_unref(member_at(object, (guint)place)->value);
        member_at(object, (guint)place)->value = take;
        return;
    }
    Member m = {.name = g_strdup(name), .value = take};
    g_array_append_val(object->members, m);
    guint n = object->members->len;
    if (object->index) {
        add_to_index(object, n - 1);
    } else if (n >= INDEX_FROM) {
        object->index = g_hash_table_new(g_str_hash, g_str_equal);
        for (guint i = 0; i < n; i++)
            add_to_index(object, i);
    }
}

void tree_set_string(Tree *object, const char *name, const char *value)
{
    tree_set(object, name, tree_string(value));
}

void tree_append(Tree *object, const char *name, Tree *take)
{
    Tree *list = tree_get(object, name);
    if (!list || list->kind != TREE_LIST) {
        list = tree_list();
        tree_set(object, name, list);
    }
    tree_add(list, take);
}

void tree_remove(Tree *object, const char *name)
{
    int place = find(object, name);
    if (place < 0)
        return;
    g_clear_pointer(&object->index, g_hash_table_unref); /* places change; the next member to be added makes it anew */
    g_array_remove_index(object->members, (guint)place);
}

void tree_merge(Tree *under, const Tree *over)
{
    for (guint i = 0; i < tree_size(over); i++) {
        const char *name;
        const Tree *theirs = tree_member(over, i, &name);
        Tree *ours = tree_get(under, name);
        if (tree_is_object(ours) && tree_is_object(theirs))
            tree_merge(ours, theirs);
        else
            tree_set(under, name, tree_copy(theirs));
    }
}
