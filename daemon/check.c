/*
 * --check-config beyond the single option: names that are given twice or used before anything has them.
 *
 * Options are carried out in order, so one pass sees what start-up would see, without opening anything. Names that only
 * an image's header leads to stay unknown here; nothing on the command line can refer to them but by dotted keys.
 */
#include "daemon/options.h"
#include "daemon/drive.h"
#include "block/util/error.h"
#include "qapi/rt/tree.h"
#include <string.h>

typedef struct Checker {
    GHashTable *nodes, *devices, *chardevs, *monitors, *exports, *objects; /* sets of borrowed names */
    bool nbd_server;
} Checker;

static bool define(GHashTable *set, const char *what, const char *key, const char *name, GError **error)
{
    if (!g_hash_table_add(set, (char *)name))
        return error_set(error, "'%s': %s '%s' exists already", key, what, name);
    return true;
}

static bool use(GHashTable *set, const char *what, const char *key, const char *name, GError **error)
{
    if (!g_hash_table_contains(set, name))
        return error_set(error, "'%s': there is no %s '%s' so far", key, what, name);
    return true;
}

static bool check_value(Checker *c, const QapiType *type, const char *key, const void *at, GError **error);

static char *key_below(const char *key, const char *name)
{
    return *key ? g_strdup_printf("%s.%s", key, name) : g_strdup(name);
}

static bool check_struct(Checker *c, const QapiType *type, const char *key, const char *value, GError **error)
{
    /* Children first: they are made first. */
    const char *name = NULL;
    g_autofree char *name_key = NULL;
    for (uint32_t i = 0; i < type->n_members; i++) {
        const QapiMember *m = &type->members[i];
        if (m->has_offset >= 0 && !*(const bool *)(value + m->has_offset))
            continue;
        g_autofree char *below = key_below(key, m->name);
        if (strcmp(m->name, "node-name") == 0 && m->type->kind == QAPI_KIND_STR) {
            name = *(const char *const *)(value + m->offset);
            name_key = g_steal_pointer(&below);
        } else if (strcmp(m->name, "throttle-group") == 0) {
            if (!use(c->objects, "object", below, *(const char *const *)(value + m->offset), error))
                return false;
        } else if (!check_value(c, m->type, below, value + m->offset, error)) {
            return false;
        }
    }
    if (type->tag) {
        unsigned tag = *(const unsigned *)(value + type->tag->offset);
        const QapiType *branch = tag < type->tag->type->max ? type->branches[tag] : NULL;
        if (branch && !check_struct(c, branch, key, value + type->branch_offset, error))
            return false;
    }
    return !name || define(c->nodes, "node", name_key, name, error);
}

static bool check_alternate(Checker *c, const QapiType *type, const char *key, const void *value, GError **error)
{
    unsigned kind = *(const unsigned *)value;
    const QapiMember *m = &type->members[kind];
    const void *at = (const char *)value + m->offset;
    if (m->type->kind == QAPI_KIND_STR && g_str_has_prefix(type->name, "BlockdevRef"))
        return use(c->nodes, "node", key, *(const char *const *)at, error);
    return m->type->kind == QAPI_KIND_NULL || check_value(c, m->type, key, at, error);
}

static bool check_list(Checker *c, const QapiType *type, const char *key, const QapiList *list, GError **error)
{
    size_t step = qapi_is_pointer(type->element) ? sizeof(void *) : type->element->size;
    for (size_t i = 0; i < list->len; i++) {
        g_autofree char *below = g_strdup_printf("%s.%zu", key, i);
        if (!check_value(c, type->element, below, (const char *)list->items + i * step, error))
            return false;
    }
    return true;
}

/* @at is where the member lies: for kinds reached through a pointer, the place of the pointer. */
static bool check_value(Checker *c, const QapiType *type, const char *key, const void *at, GError **error)
{
    const void *value = qapi_is_pointer(type) ? *(const void *const *)at : at;
    if (!value)
        return true;
    switch (type->kind) {
    case QAPI_KIND_STRUCT:
        return check_struct(c, type, key, value, error);
    case QAPI_KIND_ALTERNATE:
        return check_alternate(c, type, key, value, error);
    case QAPI_KIND_LIST:
        return check_list(c, type, key, value, error);
    default:
        return true;
    }
}

static bool check_drive_tree(Checker *c, const Tree *tree, const char *key, GError **error)
{
    for (guint i = 0; i < tree_size(tree); i++) {
        const char *name;
        const Tree *value = tree_member(tree, i, &name);
        g_autofree char *below = key_below(key, name);
        if (tree_is_object(value) && !check_drive_tree(c, value, below, error))
            return false;
        if (strcmp(name, "node-name") == 0 && tree_as_string(value) &&
            !define(c->nodes, "node", below, tree_as_string(value), error))
            return false;
    }
    return true;
}

static bool check_export(Checker *c, const BlockExportOptions *e, GError **error)
{
    if (e->type == BLOCK_EXPORT_TYPE_NBD && !c->nbd_server)
        return error_set(error, "'type': an export of type nbd needs nbd-server before it");
    return use(c->nodes, "node", "node-name", e->node_name, error) && define(c->exports, "export", "id", e->id, error);
}

static bool check_option(Checker *c, const Option *o, GError **error)
{
    const char *word = o->word->name;
    if (strcmp(word, "blockdev") == 0)
        return check_struct(c, o->word->type, "", o->value, error);
    if (strcmp(word, "drive") == 0)
        return define(c->devices, "device", "id", drive_id(o->value), error) && check_drive_tree(c, o->tree, "", error);
    if (strcmp(word, "chardev") == 0)
        return define(c->chardevs, "chardev", "id", ((const ChardevOptions *)o->value)->id, error);
    if (strcmp(word, "monitor") == 0) {
        const MonitorOptions *m = o->value;
        return use(c->chardevs, "chardev", "chardev", m->chardev, error) &&
               define(c->monitors, "monitor at", "chardev", m->chardev, error);
    }
    if (strcmp(word, "object") == 0)
        return define(c->objects, "object", "id", ((const ObjectOptions *)o->value)->id, error);
    if (strcmp(word, "nbd-server") == 0) {
        if (c->nbd_server)
            return error_set(error, "there is one NBD server already");
        c->nbd_server = true;
    }
    return strcmp(word, "export") != 0 || check_export(c, o->value, error);
}

bool options_check_names(const Options *options, GError **error)
{
    Checker c = {0};
    GHashTable **sets[] = {&c.nodes, &c.devices, &c.chardevs, &c.monitors, &c.exports, &c.objects};
    for (size_t i = 0; i < G_N_ELEMENTS(sets); i++)
        *sets[i] = g_hash_table_new(g_str_hash, g_str_equal);
    bool ok = true;
    for (guint i = 0; i < options->list->len && ok; i++) {
        const Option *o = g_ptr_array_index(options->list, i);
        ok = check_option(&c, o, error);
        if (!ok)
            option_blame(o, error);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(sets); i++)
        g_hash_table_destroy(*sets[i]);
    return ok;
}

bool options_check_background(const Options *options, GError **error)
{
    if (!options_last(options, "daemonize"))
        return true;
    for (guint i = 0; i < options->list->len; i++) {
        const Option *o = g_ptr_array_index(options->list, i);
        if (strcmp(o->word->name, "chardev") == 0 &&
            ((const ChardevOptions *)o->value)->backend == CHARDEV_BACKEND_KIND_STDIO) {
            error_set(error, "'backend': stdio does not work in the background (daemonize)");
            option_blame(o, error);
            return false;
        }
    }
    return true;
}
