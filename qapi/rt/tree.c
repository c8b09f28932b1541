#include "qapi/rt/tree.h"
#include <json-glib/json-glib.h>
#include <string.h>

JsonNode *tree_object(void)
{
    JsonNode *node = json_node_new(JSON_NODE_OBJECT);

    json_node_take_object(node, json_object_new());
    return node;
}

JsonNode *tree_ref(JsonNode *tree)
{
    return json_node_ref(tree);
}

void tree_unref(JsonNode *tree)
{
    if (tree)
        json_node_unref(tree);
}

JsonNode *tree_copy(JsonNode *tree)
{
    return json_node_copy(tree);
}

static void wipe_member(JsonObject *object, const char *name, JsonNode *member, void *opaque)
{
    tree_wipe(member);
}

static void wipe_element(JsonArray *array, guint index, JsonNode *element, void *opaque)
{
    tree_wipe(element);
}

void tree_wipe(JsonNode *tree)
{
    if (JSON_NODE_HOLDS_OBJECT(tree))
        json_object_foreach_member(json_node_get_object(tree), wipe_member, NULL);
    else if (JSON_NODE_HOLDS_ARRAY(tree))
        json_array_foreach_element(json_node_get_array(tree), wipe_element, NULL);
    else if (json_node_get_value_type(tree) == G_TYPE_STRING)
        explicit_bzero((char *)json_node_get_string(tree), strlen(json_node_get_string(tree)));
}

bool tree_is_object(JsonNode *tree)
{
    return tree && JSON_NODE_HOLDS_OBJECT(tree);
}

bool tree_is_empty(JsonNode *object)
{
    return json_object_get_size(json_node_get_object(object)) == 0;
}

JsonNode *tree_get(JsonNode *object, const char *name)
{
    return json_object_get_member(json_node_get_object(object), name);
}

const char *tree_get_string(JsonNode *object, const char *name)
{
    JsonNode *member = tree_get(object, name);

    return member && JSON_NODE_HOLDS_VALUE(member) && json_node_get_value_type(member) == G_TYPE_STRING
               ? json_node_get_string(member)
               : NULL;
}

void tree_set(JsonNode *object, const char *name, JsonNode *take)
{
    json_object_set_member(json_node_get_object(object), name, take);
}

void tree_set_string(JsonNode *object, const char *name, const char *value)
{
    json_object_set_string_member(json_node_get_object(object), name, value);
}

void tree_set_null(JsonNode *object, const char *name)
{
    json_object_set_null_member(json_node_get_object(object), name);
}

void tree_append(JsonNode *object, const char *name, JsonNode *take)
{
    JsonNode *list = tree_get(object, name);

    if (!list || !JSON_NODE_HOLDS_ARRAY(list)) {
        list = json_node_new(JSON_NODE_ARRAY);
        json_node_take_array(list, json_array_new());
        tree_set(object, name, list);
    }
    json_array_add_element(json_node_get_array(list), take);
}

void tree_remove(JsonNode *object, const char *name)
{
    json_object_remove_member(json_node_get_object(object), name);
}

void tree_merge(JsonNode *under, JsonNode *over)
{
    g_autoptr(GList) names = json_object_get_members(json_node_get_object(over));

    for (GList *l = names; l; l = l->next) {
        JsonNode *theirs = tree_get(over, l->data), *ours = tree_get(under, l->data);
        if (tree_is_object(ours) && tree_is_object(theirs)) {
            /* json_node_copy() shares objects: merge into a copy of our own. */
            JsonNode *merged = tree_object();
            tree_merge(merged, ours);
            tree_merge(merged, theirs);
            tree_set(under, l->data, merged);
        } else {
            tree_set(under, l->data, tree_copy(theirs));
        }
    }
}
