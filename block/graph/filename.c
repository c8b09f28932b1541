/*
 * File names to options and back.
 */
#include "block/graph/filename.h"
#include "qapi/rt/json.h"
#include <sys/stat.h>

/* The tree of the protocol node for a name that is not "json:". */
static Tree *protocol_tree(const char *filename, GError **error)
{
    const Driver *drv = driver_for_scheme(filename);
    g_autoptr(BlockdevOptions) options = NULL;
    Tree *tree;
    struct stat st;

    if (drv && drv->parse_filename) {
        options = drv->parse_filename(filename, error);
        return options ? qapi_encode_BlockdevOptions(options) : NULL;
    }
    /* A colon before the first slash is QEMU's way to name a protocol; a path like that is written ./a:b. */
    if (!drv && strchr(filename, ':') && strcspn(filename, ":") < strcspn(filename, "/")) {
        g_autofree char *scheme = g_strndup(filename, strcspn(filename, ":"));
        error_set(error, "Unknown protocol '%s'", scheme);
        return NULL;
    }
    tree = tree_object();
    tree_set_string(tree, "driver", stat(filename, &st) == 0 && S_ISBLK(st.st_mode) ? "host_device" : "file");
    tree_set_string(tree, "filename", filename);
    return tree;
}

static Tree *json_tree(const char *filename, GError **error)
{
    Tree *node = json_parse(filename + strlen("json:"), strlen(filename) - strlen("json:"), error);

    if (!node) {
        g_prefix_error(error, "Could not parse the JSON options: ");
        return NULL;
    }
    if (!tree_is_object(node)) {
        tree_unref(node);
        error_set(error, "Invalid JSON object given");
        return NULL;
    }
    return node;
}

static const char *tree_driver(Tree *tree)
{
    return tree_is_object(tree) ? tree_get_string(tree, "driver") : NULL;
}

bool filename_names_format(const char *filename, Tree *extra)
{
    g_autoptr(Tree) tree = NULL;

    if (tree_driver(extra))
        return true;
    if (!g_str_has_prefix(filename, "json:"))
        return false;
    tree = json_tree(filename, NULL);
    return !tree || tree_driver(tree);
}

/* @format over the protocol tree; a "json:" tree that already begins with a format stands as it is. */
static Tree *whole_tree(const char *filename, const char *format, GError **error)
{
    bool json = g_str_has_prefix(filename, "json:");
    Tree *tree = json ? json_tree(filename, error) : protocol_tree(filename, error), *whole;
    const Driver *drv = tree_driver(tree) ? driver_find(tree_driver(tree)) : NULL;

    if (!tree || !format || (json && drv && !drv->is_protocol && !drv->schemes))
        return tree;
    whole = tree_object();
    tree_set_string(whole, "driver", format);
    tree_set(whole, "file", tree);
    return whole;
}

BlockdevOptions *filename_protocol_options(const char *filename, Tree *extra, GError **error)
{
    bool json = g_str_has_prefix(filename, "json:");
    g_autoptr(Tree) tree = json ? json_tree(filename, error) : protocol_tree(filename, error);
    Tree *file = extra ? tree_get(extra, "file") : NULL;

    if (!tree)
        return NULL;
    if (tree_is_object(file))
        tree_merge(tree, file);
    return qapi_decode_keyval_BlockdevOptions(tree, error);
}

BlockdevOptions *filename_options(const char *filename, const char *format, Tree *extra, Tree **ret_backing_extra,
                                  GError **error)
{
    g_autoptr(Tree) tree = whole_tree(filename, format, error);
    Tree *backing;

    *ret_backing_extra = NULL;
    if (!tree)
        return NULL;
    if (extra)
        tree_merge(tree, extra);
    backing = tree_get(tree, "backing");
    if (tree_is_object(backing) && !tree_driver(backing)) {
        *ret_backing_extra = tree_copy(backing);
        tree_remove(tree, "backing");
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

/* ---- from nodes to names ---------------------------------------------------------------------------------------- */

/* Options that change what is read; the others do not belong in a name. */
static const char *const strong_options[] = {"offset",         "size",           "data-file", "encrypt",
                                             "x-dirty-bitmap", "throttle-group", NULL};

/* Is the backing file another one than the image's header names? */
static bool backing_overridden(Node *node)
{
    NodeInfo info = {0};
    g_autofree char *actual = NULL, *named = NULL;

    if (!node->drv->supports_backing || (node->backing && node->backing->by_header))
        return false;
    if (node->drv->get_info)
        node->drv->get_info(node, &info);
    actual = node->backing ? node_filename(node_skip_implicit(node->backing->node)) : NULL;
    named = info.backing_filename ? filename_resolve(node, info.backing_filename, NULL) : NULL;
    return g_strcmp0(actual, named) != 0;
}

static bool has_strong_options(Node *node)
{
    g_autoptr(Tree) tree = node->options ? qapi_encode_BlockdevOptions(node->options) : NULL;

    for (const char *const *name = strong_options; tree && *name; name++)
        if (tree_get(tree, *name))
            return true;
    return backing_overridden(node);
}

/* The name where it says everything, else NULL. Borrowed. */
static const char *plain_filename(Node *node)
{
    if (node->exact_filename)
        return node->exact_filename;
    /* A filter with a syntax of its own has a name when it says so. */
    if (!node->file || node->drv->schemes || has_strong_options(node))
        return NULL;
    return plain_filename(node->file->node);
}

static Tree *node_tree(Node *node)
{
    static const char *const common[] = {"node-name",      "discard",     "cache",         "read-only",
                                         "auto-read-only", "force-share", "detect-zeroes", NULL};
    Tree *tree = node->options ? qapi_encode_BlockdevOptions(node->options) : tree_object();

    for (const char *const *name = common; *name; name++)
        tree_remove(tree, *name);
    tree_set_string(tree, "driver", node->drv->name);
    for (guint i = 0; i < node->children->len; i++) {
        Child *child = g_ptr_array_index(node->children, i);
        const char *dot = strchr(child->name, '.');
        if (dot) { /* children.N: N is not the place in the list when some have gone */
            g_autofree char *list = g_strndup(child->name, (gsize)(dot - child->name));
            if (i == 0)
                tree_remove(tree, list);
            tree_append(tree, list, node_tree(child->node));
            continue;
        }
        if (tree_get(tree, child->name) || child == node->file)
            tree_set(tree, child->name, node_tree(child->node));
    }
    return tree;
}

char *node_filename(Node *node)
{
    const char *plain = plain_filename(node_skip_implicit(node));
    g_autoptr(Tree) tree = NULL;
    g_autofree char *text = NULL;

    if (plain)
        return g_strdup(plain);
    tree = node_tree(node_skip_implicit(node));
    text = json_to_str(tree, false);
    return g_strconcat("json:", text, NULL);
}

char *filename_as_backing(Node *backing, const char *overlay)
{
    g_autofree char *name = node_filename(backing), *folder = g_path_get_dirname(overlay);

    if (g_path_is_absolute(name) || g_str_has_prefix(name, "json:") || driver_for_scheme(name) || !strcmp(folder, "."))
        return g_steal_pointer(&name);
    return g_canonicalize_filename(name, NULL);
}

char *filename_for_header(Node *backing, Node *overlay)
{
    Node *leaf = overlay;

    while (leaf->file)
        leaf = leaf->file->node;
    return filename_as_backing(backing, leaf->exact_filename ? leaf->exact_filename : "/");
}
