/*
 * C values to JSON trees.
 */
#include "qapi/rt/type.h"
#include "qapi/rt/value.h"

static Tree *int_node(const QapiType *type, const void *at)
{
    int64_t value;
    bool is_signed = type->kind == QAPI_KIND_INT;
    switch (type->size) {
    case 1:
        value = *(const uint8_t *)at;
        break;
    case 2:
        value = *(const uint16_t *)at;
        break;
    case 4:
        value = is_signed ? (int64_t) * (const int32_t *)at : (int64_t) * (const uint32_t *)at;
        break;
    default:
        return is_signed ? tree_int(*(const int64_t *)at) : tree_uint(*(const uint64_t *)at);
    }
    return tree_int(value);
}

/* Is there something to encode for this member? */
static bool present(const QapiMember *m, const void *value)
{
    if (m->has_offset >= 0)
        return *(const bool *)qapi_at_const(value, m->has_offset);
    return !m->optional || *(void *const *)qapi_at_const(value, m->offset);
}

static void encode_members(const QapiType *type, const void *value, Tree *object)
{
    for (uint32_t i = 0; i < type->n_members; i++) {
        const QapiMember *m = &type->members[i];
        if (present(m, value))
            tree_set(object, m->name, qapi_encode_at(m->type, qapi_at_const(value, m->offset)));
    }
    if (type->tag) {
        const QapiType *branch = qapi_branch(type, value);
        if (branch)
            encode_members(branch, qapi_at_const(value, type->branch_offset), object);
    }
}

static Tree *encode_struct(const QapiType *type, const void *value)
{
    g_assert(value);
    Tree *object = tree_object();
    encode_members(type, value, object);
    return object;
}

static Tree *encode_list(const QapiType *type, const QapiList *list)
{
    Tree *tree = tree_list();
    size_t len = list ? list->len : 0;
    size_t step = qapi_step(type->element);
    for (size_t i = 0; i < len; i++)
        tree_add(tree, qapi_encode_at(type->element, qapi_at_const(list->items, i * step)));
    return tree;
}

Tree *qapi_encode_at(const QapiType *type, const void *at)
{
    const void *pointer = qapi_is_pointer(type) ? *(void *const *)at : NULL;
    switch (type->kind) {
    case QAPI_KIND_STR:
        return tree_string(pointer ? pointer : "");
    case QAPI_KIND_INT:
    case QAPI_KIND_UINT:
        return int_node(type, at);
    case QAPI_KIND_BOOL:
        return tree_bool(*(const bool *)at);
    case QAPI_KIND_NUMBER:
        return tree_double(*(const double *)at);
    case QAPI_KIND_ENUM:
        return tree_string(qapi_enum_str(type, *(const int *)at));
    case QAPI_KIND_ANY:
        return pointer ? tree_ref((Tree *)pointer) : tree_null();
    case QAPI_KIND_STRUCT:
        return encode_struct(type, pointer);
    case QAPI_KIND_LIST:
        return encode_list(type, pointer);
    case QAPI_KIND_ALTERNATE: {
        const QapiMember *m = qapi_alternative(type, pointer);
        return m ? qapi_encode_at(m->type, qapi_at_const(pointer, m->offset)) : tree_null();
    }
    case QAPI_KIND_NULL:
        break;
    }
    return tree_null();
}

Tree *qapi_encode(const QapiType *type, const void *value)
{
    return qapi_encode_at(type, &value);
}
