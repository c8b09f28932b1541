/*
 * key=value options to trees.
 */
#include "qapi/rt/keyval.h"
#include "block/util/error.h"
#include "qapi/rt/json.h"
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

static bool inconsistent(GError **error, const char *key, size_t len)
{
    return error_set(error, "Parameters '%.*s.*' used inconsistently", (int)len, key);
}

bool keyval_put(Tree *root, const char *key, const char *value, GError **error)
{
    if (!valid_key(key))
        return error_set(error, "Invalid parameter '%.128s'", key);
    Tree *object = root;
    const char *part = key;
    for (;;) {
        size_t len = strcspn(part, ".");
        g_autofree char *name = g_strndup(part, len);
        Tree *old = tree_get(object, name);
        size_t upto = (size_t)(part - key) + len;
        if (!part[len]) {
            if (tree_is_object(old))
                return inconsistent(error, key, upto);
            tree_set_string(object, name, value);
            return true;
        }
        if (!old) {
            old = tree_object();
            tree_set(object, name, old);
        } else if (!tree_is_object(old)) {
            return inconsistent(error, key, upto);
        }
        object = old;
        part += len + 1;
    }
}

/* Numbered members become a list's elements. */
static Tree *to_list(const Tree *object, const char *path, GError **error)
{
    g_autoptr(Tree) list = tree_list();
    for (guint i = 0; i < tree_size(object); i++) {
        char index[16];
        g_snprintf(index, sizeof(index), "%u", i);
        Tree *element = tree_get(object, index);
        if (!element) {
            error_set(error, "Parameter '%s.%u' missing", path, i);
            return NULL;
        }
        tree_add(list, tree_ref(element));
    }
    return g_steal_pointer(&list);
}

/* Makes the lists in it; returns what stands for @tree then, as a new reference. NULL sets @error. */
static Tree *listify(Tree *tree, const char *path, GError **error)
{
    if (!tree_is_object(tree))
        return tree_ref(tree);
    guint indexes = 0;
    for (guint i = 0; i < tree_size(tree); i++) {
        const char *name;
        Tree *value = tree_member(tree, i, &name);
        indexes += g_ascii_isdigit(*name) ? 1 : 0;
        g_autofree char *below = *path ? g_strconcat(path, ".", name, NULL) : g_strdup(name);
        Tree *member = listify(value, below, error);
        if (!member)
            return NULL;
        tree_set(tree, name, member);
    }
    if (indexes && indexes < tree_size(tree)) {
        inconsistent(error, path, strlen(path));
        return NULL;
    }
    return indexes ? to_list(tree, path, error) : tree_ref(tree);
}

Tree *keyval_finish(Tree *root, GError **error)
{
    g_autoptr(Tree) tree = root;
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
static bool take_element(Tree *root, const char **text, const char *implied_key, GError **error)
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

Tree *keyval_parse(const char *text, const char *implied_key, GError **error)
{
    if (keyval_is_json(text))
        return json_parse(*text == '{' ? text : text + strlen("json:"), -1, error);
    if (!g_utf8_validate(text, -1, NULL)) {
        error_set(error, "Options must be valid UTF-8");
        return NULL;
    }
    g_autoptr(Tree) root = tree_object();
    const char *implied = implied_key;
    while (*text) {
        if (!take_element(root, &text, implied, error))
            return NULL;
        implied = NULL;
    }
    return keyval_finish(g_steal_pointer(&root), error);
}
