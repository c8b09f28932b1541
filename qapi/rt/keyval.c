/*
 * key=value options to trees.
 */
#include "qapi/rt/keyval.h"
#include "block/util/error.h"
#include "qapi/rt/json.h"
#include <json-glib/json-glib.h>
#include <string.h>

bool keyval_is_json(const char *text)
{
    return *text == '{' || g_str_has_prefix(text, "json:");
}

static bool valid_name(const char *name, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!g_ascii_isalnum(name[i]) && name[i] != '-' && name[i] != '_')
            return false;
    return len && g_ascii_isalpha(*name);
}

static bool is_index(const char *name, size_t len)
{
    return len && len <= 9 && strspn(name, "0123456789") >= len && (len == 1 || *name != '0');
}

/* Can this key be split into names and indexes, beginning with a name? */
static bool valid_key(const char *key)
{
    int parts = 0;
    for (const char *p = key;; p++) {
        size_t len = strcspn(p, ".");
        if (!valid_name(p, len) && (parts == 0 || !is_index(p, len)))
            return false;
        p += len;
        if (++parts > JSON_MAX_DEPTH)
            return false;
        if (!*p)
            return true;
    }
}

JsonNode *keyval_new(void)
{
    JsonNode *node = json_node_new(JSON_NODE_OBJECT);
    json_node_take_object(node, json_object_new());
    return node;
}

static bool inconsistent(GError **error, const char *key, size_t len)
{
    return error_set(error, "Parameters '%.*s.*' used inconsistently", (int)len, key);
}

bool keyval_put(JsonNode *root, const char *key, const char *value, GError **error)
{
    if (!valid_key(key))
        return error_set(error, "Invalid parameter '%.128s'", key);
    JsonObject *object = json_node_get_object(root);
    const char *part = key;
    for (;;) {
        size_t len = strcspn(part, ".");
        g_autofree char *name = g_strndup(part, len);
        JsonNode *old = json_object_get_member(object, name);
        size_t upto = (size_t)(part - key) + len;
        if (!part[len]) {
            if (old && JSON_NODE_HOLDS_OBJECT(old))
                return inconsistent(error, key, upto);
            json_object_set_string_member(object, name, value);
            return true;
        }
        if (!old) {
            old = keyval_new();
            json_object_set_member(object, name, old);
        } else if (!JSON_NODE_HOLDS_OBJECT(old)) {
            return inconsistent(error, key, upto);
        }
        object = json_node_get_object(old);
        part += len + 1;
    }
}

/* Numbered members become an array's elements. */
static JsonNode *to_array(JsonObject *object, const char *path, GError **error)
{
    guint n = json_object_get_size(object);
    g_autoptr(JsonArray) array = json_array_sized_new(n);
    for (guint i = 0; i < n; i++) {
        char index[16];
        g_snprintf(index, sizeof(index), "%u", i);
        JsonNode *element = json_object_get_member(object, index);
        if (!element) {
            error_set(error, "Parameter '%s.%u' missing", path, i);
            return NULL;
        }
        json_array_add_element(array, json_node_copy(element));
    }
    JsonNode *node = json_node_new(JSON_NODE_ARRAY);
    json_node_set_array(node, array);
    return node;
}

/* Returns what stands for @node with its lists made, as a new node; NULL sets @error. */
static JsonNode *listify(JsonNode *node, const char *path, GError **error)
{
    if (!JSON_NODE_HOLDS_OBJECT(node))
        return json_node_copy(node);
    JsonObject *object = json_node_get_object(node);
    g_autoptr(GList) names = json_object_get_members(object);
    guint indexes = 0;
    for (GList *item = names; item; item = item->next) {
        const char *name = item->data;
        indexes += g_ascii_isdigit(*name) ? 1 : 0;
        g_autofree char *below = *path ? g_strconcat(path, ".", name, NULL) : g_strdup(name);
        JsonNode *member = listify(json_object_get_member(object, name), below, error);
        if (!member)
            return NULL;
        json_object_set_member(object, name, member);
    }
    if (indexes && indexes < json_object_get_size(object)) {
        inconsistent(error, path, strlen(path));
        return NULL;
    }
    return indexes ? to_array(object, path, error) : json_node_copy(node);
}

JsonNode *keyval_finish(JsonNode *root, GError **error)
{
    g_autoptr(JsonNode) tree = root;
    return listify(tree, "", error);
}

/* Takes a value up to a single comma, with double ones halved; *@text moves past the comma. */
static char *take_value(const char **text)
{
    GString *value = g_string_sized_new(strlen(*text));
    const char *p = *text;
    for (; *p; p++) {
        if (*p == ',') {
            if (p[1] != ',')
                break;
            p++;
        }
        g_string_append_c(value, *p);
    }
    *text = *p ? p + 1 : p;
    return g_string_free(value, FALSE);
}

/* Reads one element and puts it into the tree. */
static bool take_element(JsonNode *root, const char **text, const char *implied_key, GError **error)
{
    const char *p = *text;
    size_t len = strcspn(p, "=,");
    if (p[len] == '=') {
        g_autofree char *key = g_strndup(p, len);
        *text = p + len + 1;
        g_autofree char *value = take_value(text);
        bool ok = keyval_put(root, key, value, error);
        explicit_bzero(value, strlen(value)); /* it may be a password */
        return ok;
    }
    g_autofree char *word = take_value(text);
    if (implied_key)
        return keyval_put(root, implied_key, word, error);
    if (!strcmp(word, "noserver") || !strcmp(word, "nowait"))
        return keyval_put(root, word + 2, "off", error);
    return keyval_put(root, word, "on", error);
}

JsonNode *keyval_parse(const char *text, const char *implied_key, GError **error)
{
    if (keyval_is_json(text))
        return json_parse(*text == '{' ? text : text + strlen("json:"), -1, error);
    if (!g_utf8_validate(text, -1, NULL)) {
        error_set(error, "Options must be valid UTF-8");
        return NULL;
    }
    g_autoptr(JsonNode) root = keyval_new();
    const char *implied = implied_key;
    while (*text) {
        if (!take_element(root, &text, implied, error))
            return NULL;
        implied = NULL;
    }
    return keyval_finish(g_steal_pointer(&root), error);
}
