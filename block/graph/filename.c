/*
 * File names to options and back.
 */
#include "block/graph/filename.h"
#include "qapi/rt/json.h"
#include <sys/stat.h>

static JsonObject *as_object(JsonNode *node)
{
    return node && JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

static JsonNode *object_node(JsonObject *object)
{
    JsonNode *node = json_node_new(JSON_NODE_OBJECT);

    json_node_take_object(node, object);
    return node;
}

/* @over's members over those of @under; objects merge member by member. */
static void merge(JsonObject *under, JsonObject *over)
{
    g_autoptr(GList) names = json_object_get_members(over);

    for (GList *l = names; l; l = l->next) {
        JsonNode *value = json_object_get_member(over, l->data);
        JsonObject *a = as_object(json_object_get_member(under, l->data)), *b = as_object(value);
        if (a && b)
            merge(a, b);
        else
            json_object_set_member(under, l->data, json_node_copy(value));
    }
}

JsonNode *filename_extra_node_name(const char *name)
{
    JsonObject *object = json_object_new();

    json_object_set_string_member(object, "node-name", name);
    return object_node(object);
}

/* The tree of the protocol node for a name that is not "json:". */
static JsonNode *protocol_tree(const char *filename, GError **error)
{
    const Driver *drv = driver_for_scheme(filename);
    g_autoptr(BlockdevOptions) options = NULL;
    JsonObject *object;
    struct stat st;

    if (drv && drv->parse_filename) {
        options = drv->parse_filename(filename, error);
        return options ? qapi_encode_BlockdevOptions(options) : NULL;
    }
    object = json_object_new();
    /* A colon before the first slash is QEMU's way to name a protocol; a path like that is written ./a:b. */
    if (!drv && strchr(filename, ':') && strcspn(filename, ":") < strcspn(filename, "/")) {
        g_autofree char *scheme = g_strndup(filename, strcspn(filename, ":"));
        json_object_unref(object);
        error_set(error, "Unknown protocol '%s'", scheme);
        return NULL;
    }
    json_object_set_string_member(object, "driver",
                                  stat(filename, &st) == 0 && S_ISBLK(st.st_mode) ? "host_device" : "file");
    json_object_set_string_member(object, "filename", filename);
    return object_node(object);
}

static JsonNode *json_tree(const char *filename, GError **error)
{
    JsonNode *node = json_parse(filename + strlen("json:"), strlen(filename) - strlen("json:"), error);

    if (!node) {
        g_prefix_error(error, "Could not parse the JSON options: ");
        return NULL;
    }
    if (!as_object(node)) {
        json_node_unref(node);
        error_set(error, "Invalid JSON object given");
        return NULL;
    }
    return node;
}

static const char *tree_driver(JsonNode *tree)
{
    return tree && as_object(tree) ? json_object_get_string_member_with_default(as_object(tree), "driver", NULL) : NULL;
}

bool filename_names_format(const char *filename, JsonNode *extra)
{
    g_autoptr(JsonNode) tree = NULL;

    if (tree_driver(extra))
        return true;
    if (!g_str_has_prefix(filename, "json:"))
        return false;
    tree = json_tree(filename, NULL);
    return !tree || tree_driver(tree);
}

/* @format over the protocol tree; a "json:" tree that already begins with a format stands as it is. */
static JsonNode *whole_tree(const char *filename, const char *format, GError **error)
{
    bool json = g_str_has_prefix(filename, "json:");
    JsonNode *tree = json ? json_tree(filename, error) : protocol_tree(filename, error);
    const Driver *drv = tree ? driver_find(tree_driver(tree) ? tree_driver(tree) : "") : NULL;
    JsonObject *object;

    if (!tree || !format || (json && drv && !drv->is_protocol))
        return tree;
    object = json_object_new();
    json_object_set_string_member(object, "driver", format);
    json_object_set_member(object, "file", tree);
    return object_node(object);
}

BlockdevOptions *filename_protocol_options(const char *filename, JsonNode *extra, GError **error)
{
    bool json = g_str_has_prefix(filename, "json:");
    g_autoptr(JsonNode) tree = json ? json_tree(filename, error) : protocol_tree(filename, error);
    JsonNode *file = extra ? json_object_get_member(as_object(extra), "file") : NULL;

    if (!tree)
        return NULL;
    if (file && as_object(file))
        merge(as_object(tree), as_object(file));
    return qapi_decode_keyval_BlockdevOptions(tree, error);
}

BlockdevOptions *filename_options(const char *filename, const char *format, JsonNode *extra,
                                  JsonNode **ret_backing_extra, GError **error)
{
    g_autoptr(JsonNode) tree = whole_tree(filename, format, error);
    JsonObject *object;
    JsonNode *backing;

    *ret_backing_extra = NULL;
    if (!tree)
        return NULL;
    object = as_object(tree);
    if (extra)
        merge(object, as_object(extra));
    backing = json_object_get_member(object, "backing");
    if (backing && as_object(backing) && !tree_driver(backing)) {
        *ret_backing_extra = json_node_copy(backing);
        json_object_remove_member(object, "backing");
    }
    return qapi_decode_keyval_BlockdevOptions(tree, error);
}

char *filename_resolve(Node *parent, const char *filename, GError **error)
{
    Node *leaf = parent;
    g_autofree char *dir = NULL;

    if (g_path_is_absolute(filename) || g_str_has_prefix(filename, "json:") || driver_for_scheme(filename))
        return g_strdup(filename);
    while (leaf->file)
        leaf = leaf->file->node;
    if (!leaf->exact_filename || driver_for_scheme(leaf->exact_filename)) {
        error_set(error, "Cannot use relative backing file name '%s': the image '%s' has no folder", filename,
                  parent->name);
        return NULL;
    }
    dir = g_path_get_dirname(leaf->exact_filename);
    return strcmp(dir, ".") ? g_build_filename(dir, filename, NULL) : g_strdup(filename);
}

/* ---- from nodes to names --------------------------------------------------------------------------------------- */

/* Options that change what is read; the others do not belong in a name. */
static const char *const strong_options[] = {"offset", "size", "data-file", "encrypt", "x-dirty-bitmap", NULL};

static bool has_strong_options(Node *node)
{
    g_autoptr(JsonNode) tree = node->options ? qapi_encode_BlockdevOptions(node->options) : NULL;

    for (const char *const *name = strong_options; tree && *name; name++)
        if (json_object_has_member(as_object(tree), *name) && !node->exact_filename)
            return true;
    /* A backing file that options gave in place of the header's. */
    return tree && json_object_has_member(as_object(tree), "backing");
}

/* The name where it says everything, else NULL. Borrowed. */
static const char *plain_filename(Node *node)
{
    if (node->exact_filename)
        return node->exact_filename;
    if (!node->file || has_strong_options(node))
        return NULL;
    return plain_filename(node->file->node);
}

static JsonNode *node_tree(Node *node)
{
    static const char *const common[] = {"node-name",      "discard",     "cache",         "read-only",
                                         "auto-read-only", "force-share", "detect-zeroes", NULL};
    JsonNode *tree = node->options ? qapi_encode_BlockdevOptions(node->options) : object_node(json_object_new());
    JsonObject *object = as_object(tree);

    for (const char *const *name = common; *name; name++)
        json_object_remove_member(object, *name);
    json_object_set_string_member(object, "driver", node->drv->name);
    for (guint i = 0; i < node->children->len; i++) {
        Child *child = g_ptr_array_index(node->children, i);
        if (json_object_has_member(object, child->name) || child == node->file)
            json_object_set_member(object, child->name, node_tree(child->node));
    }
    return tree;
}

char *node_filename(Node *node)
{
    const char *plain = plain_filename(node_skip_implicit(node));
    g_autoptr(JsonNode) tree = NULL;
    g_autofree char *text = NULL;

    if (plain)
        return g_strdup(plain);
    tree = node_tree(node_skip_implicit(node));
    text = json_to_string(tree, FALSE);
    return g_strconcat("json:", text, NULL);
}
