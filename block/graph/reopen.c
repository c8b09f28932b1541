/*
 * Read-only to writable and back. Drained, so that no request sees the way between; and nobody becomes a writer until
 * the drivers, which may yield, have agreed, so that the way back is open.
 */
#include "block/graph/reopen.h"
#include "block/graph/driver.h"
#include "block/graph/graph-int.h"

/* Does the node at @child follow its parent's lead: opened for it alone, without a will of its own? */
static bool follows(const Child *child)
{
    const Node *node = child->node;

    return !(child->role & ROLE_COW) && (child->role & (ROLE_DATA | ROLE_METADATA)) && !node->monitor_owned &&
           node->parents.length == 1 && !(node->options && node->options->has_read_only);
}

static void set_flags(Node *node, bool read_only)
{
    node->flags.read_only = read_only;
    for (guint i = 0; i < node->children->len; i++) {
        Child *child = g_ptr_array_index(node->children, i);
        if (follows(child))
            set_flags(child->node, read_only);
    }
}

/* The drivers' part, from the top down. */
static bool drivers_co_change(Node *node, bool read_only, GError **error)
{
    if (node->drv->co_set_read_only && !node->drv->co_set_read_only(node, read_only, error))
        return false;
    for (guint i = 0; i < node->children->len; i++) {
        Child *child = g_ptr_array_index(node->children, i);
        if (follows(child) && !drivers_co_change(child->node, read_only, error))
            return false;
    }
    return true;
}

static bool node_co_make_writable(Node *node, GError **error)
{
    set_flags(node, false);
    if (node_co_refresh_perms(node, error) && drivers_co_change(node, false, error))
        return true;
    set_flags(node, true);
    if (!node_co_refresh_perms(node, NULL))
        g_assert_not_reached(); /* asks for less than before, and nobody has become a writer */
    return false;
}

static bool node_co_make_read_only(Node *node, GError **error)
{
    if (node->cum_perm & (PERM_WRITE | PERM_WRITE_UNCHANGED))
        return error_set(error, "Cannot make block node read-only, there is a writer on it");
    /* Drivers write out what they hold while they still may. */
    if (!drivers_co_change(node, true, error))
        return false;
    set_flags(node, true);
    if (node_co_refresh_perms(node, error))
        return true;
    set_flags(node, false);
    return false;
}

bool node_co_set_read_only(Node *node, bool read_only, GError **error)
{
    bool ok;
    int ret;

    if (node->flags.read_only == read_only)
        return true;
    node_ref(node);
    ret = node_co_flush(node);
    if (ret < 0) {
        error_set_errno(error, -ret, "Could not flush node '%s'", node->name);
        node_co_unref(node);
        return false;
    }
    node_co_drained_begin(node);
    if (node->flags.read_only == read_only) { /* somebody else was at it while we waited */
        ok = true;
    } else if (node->reopening) {
        ok = error_set(error, "Node '%s' is being reopened", node->name);
    } else {
        node->reopening = true;
        ok = read_only ? node_co_make_read_only(node, error) : node_co_make_writable(node, error);
        node->reopening = false;
    }
    node_drained_end(node);
    node_co_unref(node);
    return ok;
}
