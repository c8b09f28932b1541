/*
 * C values to JSON trees.
 */
#include "qapi/rt/type.h"
#include "qapi/rt/value.h"
#include <json-glib/json-glib.h>

static JsonNode *int_node(const QapiType *type, const void *at)
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
        value = *(const int64_t *)at;
        g_assert(is_signed || value >= 0);
    }
    return json_node_init_int(json_node_alloc(), value);
}

/* Is there something to encode for this member? */
static bool present(const QapiMember *m, const void *value)
{
    if (m->has_offset >= 0)
        return *(const bool *)qapi_at_const(value, m->has_offset);
    return !m->optional || *(void *const *)qapi_at_const(value, m->offset);
}

static void encode_members(const QapiType *type, const void *value, JsonObject *object)
{
    for (uint32_t i = 0; i < type->n_members; i++) {
        const QapiMember *m = &type->members[i];
        if (present(m, value))
            json_object_set_member(object, m->name, qapi_encode_at(m->type, qapi_at_const(value, m->offset)));
    }
    if (type->tag) {
        const QapiType *branch = qapi_branch(type, value);
        if (branch)
            encode_members(branch, qapi_at_const(value, type->branch_offset), object);
    }
}

static JsonNode *encode_struct(const QapiType *type, const void *value)
{
    g_assert(value);
    JsonNode *node = json_node_new(JSON_NODE_OBJECT);
    JsonObject *object = json_object_new();
    encode_members(type, value, object);
    json_node_take_object(node, object);
    return node;
}

static JsonNode *encode_list(const QapiType *type, const QapiList *list)
{
    JsonNode *node = json_node_new(JSON_NODE_ARRAY);
    size_t len = list ? list->len : 0;
    JsonArray *array = json_array_sized_new((guint)len);
    size_t step = qapi_step(type->element);
    for (size_t i = 0; i < len; i++)
        json_array_add_element(array, qapi_encode_at(type->element, qapi_at_const(list->items, i * step)));
    json_node_take_array(node, array);
    return node;
}

JsonNode *qapi_encode_at(const QapiType *type, const void *at)
{
    const void *pointer = qapi_is_pointer(type) ? *(void *const *)at : NULL;
    switch (type->kind) {
    case QAPI_KIND_STR:
        return json_node_init_string(json_node_alloc(), pointer ? pointer : "");
    case QAPI_KIND_INT:
    case QAPI_KIND_UINT:
        return int_node(type, at);
    case QAPI_KIND_BOOL:
        return json_node_init_boolean(json_node_alloc(), *(const bool *)at);
    case QAPI_KIND_NUMBER:
        return json_node_init_double(json_node_alloc(), *(const double *)at);
    case QAPI_KIND_ENUM:
        return json_node_init_string(json_node_alloc(), qapi_enum_str(type, *(const int *)at));
    case QAPI_KIND_ANY:
        return pointer ? json_node_copy((JsonNode *)pointer) : json_node_new(JSON_NODE_NULL);
    case QAPI_KIND_STRUCT:
        return encode_struct(type, pointer);
    case QAPI_KIND_LIST:
        return encode_list(type, pointer);
    case QAPI_KIND_ALTERNATE: {
        const QapiMember *m = qapi_alternative(type, pointer);
        return m ? qapi_encode_at(m->type, qapi_at_const(pointer, m->offset)) : json_node_new(JSON_NODE_NULL);
    }
    case QAPI_KIND_NULL:
        break;
    }
    return json_node_new(JSON_NODE_NULL);
}

JsonNode *qapi_encode(const QapiType *type, const void *value)
{
    return qapi_encode_at(type, &value);
}
