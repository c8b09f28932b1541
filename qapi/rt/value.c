/*
 * Values by their descriptors: freeing, copying, comparing, names of enum values.
 */
#include "qapi/rt/type.h"
#include "qapi/rt/value.h"
#include <string.h>

static void clear_at(const QapiType *type, void *at);

static void clear_members(const QapiType *type, void *value)
{
    for (uint32_t i = 0; i < type->n_members; i++) {
        const QapiMember *m = &type->members[i];
        clear_at(m->type, qapi_at(value, m->offset));
    }
    if (type->tag) {
        const QapiType *branch = qapi_branch(type, value);
        if (branch)
            clear_members(branch, qapi_at(value, type->branch_offset));
    }
}

static void clear_contents(const QapiType *type, void *value)
{
    if (type->kind == QAPI_KIND_STRUCT) {
        clear_members(type, value);
    } else if (type->kind == QAPI_KIND_ALTERNATE) {
        const QapiMember *m = qapi_alternative(type, value);
        if (m)
            clear_at(m->type, qapi_at(value, m->offset));
    } else if (type->kind == QAPI_KIND_LIST) {
        QapiList *list = value;
        size_t step = qapi_step(type->element);
        if (qapi_is_pointer(type->element))
            for (size_t i = 0; list->items && i < list->len; i++)
                clear_at(type->element, qapi_at(list->items, i * step));
        g_free(list->items);
    }
}

/* Frees what a member or element at @at holds; the place itself stays. */
static void clear_at(const QapiType *type, void *at)
{
    if (!qapi_is_pointer(type))
        return;
    void *value = *(void **)at;
    if (!value)
        return;
    if (type->kind == QAPI_KIND_ANY) {
        tree_unref(value);
        return;
    }
    if (type->kind != QAPI_KIND_STR)
        clear_contents(type, value);
    else
        explicit_bzero(value, strlen(value)); /* any may be a password */
    g_free(value);
}

void qapi_free(const QapiType *type, void *value)
{
    clear_at(type, &value);
}

static void clone_at(const QapiType *type, void *at, const void *from);

static void clone_members(const QapiType *type, void *value, const void *from)
{
    for (uint32_t i = 0; i < type->n_members; i++) {
        const QapiMember *m = &type->members[i];
        clone_at(m->type, qapi_at(value, m->offset), qapi_at_const(from, m->offset));
        if (m->has_offset >= 0)
            *(bool *)qapi_at(value, m->has_offset) = *(const bool *)qapi_at_const(from, m->has_offset);
    }
    if (type->tag) {
        const QapiType *branch = qapi_branch(type, from);
        if (branch)
            clone_members(branch, qapi_at(value, type->branch_offset), qapi_at_const(from, type->branch_offset));
    }
}

static void *clone_list(const QapiType *type, const QapiList *from)
{
    QapiList *list = g_new0(QapiList, 1);
    size_t step = qapi_step(type->element);
    list->len = from->len;
    list->items = g_malloc0_n(from->len, step);
    for (size_t i = 0; i < from->len; i++)
        clone_at(type->element, qapi_at(list->items, i * step), qapi_at_const(from->items, i * step));
    return list;
}

static void clone_at(const QapiType *type, void *at, const void *from)
{
    if (!qapi_is_pointer(type)) {
        memcpy(at, from, type->size);
        return;
    }
    void *source = *(void *const *)from;
    void *value = NULL;
    if (!source) {
        value = NULL;
    } else if (type->kind == QAPI_KIND_STR) {
        value = g_strdup(source);
    } else if (type->kind == QAPI_KIND_ANY) {
        value = tree_ref(source);
    } else if (type->kind == QAPI_KIND_LIST) {
        value = clone_list(type, source);
    } else if (type->kind == QAPI_KIND_STRUCT) {
        value = g_malloc0(type->size);
        clone_members(type, value, source);
    } else {
        value = g_malloc0(type->size);
        *(int *)value = *(const int *)source;
        const QapiMember *m = qapi_alternative(type, source);
        if (m)
            clone_at(m->type, qapi_at(value, m->offset), qapi_at_const(source, m->offset));
    }
    *(void **)at = value;
}

void *qapi_clone(const QapiType *type, const void *value)
{
    void *copy = NULL;
    clone_at(type, &copy, &value);
    return copy;
}

bool qapi_equal(const QapiType *type, const void *a, const void *b)
{
    if (!a || !b)
        return a == b;
    g_autoptr(Tree) left = qapi_encode(type, a);
    g_autoptr(Tree) right = qapi_encode(type, b);
    return tree_equal(left, right);
}

const char *qapi_enum_str(const QapiType *type, int value)
{
    return value >= 0 && (uint64_t)value < type->max ? type->values[value] : "?";
}

int qapi_enum_find(const QapiType *type, const char *name)
{
    for (uint64_t i = 0; i < type->max; i++)
        if (!strcmp(type->values[i], name))
            return (int)i;
    return -1;
}
