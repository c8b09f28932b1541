/*
 * The list of objects, and the kinds there are.
 */
#include "daemon/object.h"
#include "block/graph/throttle.h"
#include "block/util/error.h"
#include <string.h>

/* ---- throttle-group --------------------------------------------------------------------------------------------- */

/* The limits under their x- names. */
static bool set_legacy_limits(ThrottleGroup *group, const ObjectOptions *options, GError **error)
{
    g_autoptr(Tree) all = qapi_encode_ObjectOptions(options);
    g_autoptr(Tree) plain = tree_object();

    for (guint i = 0; i < tree_size(all); i++) {
        const char *name;
        Tree *value = tree_member(all, i, &name);
        if (!g_str_has_prefix(name, "x-"))
            continue;
        if (tree_as_int(value) < 0)
            return error_set(error, "Property values cannot be negative");
        tree_set(plain, name + strlen("x-"), tree_ref(value));
    }
    g_autoptr(ThrottleLimits) limits = qapi_decode_ThrottleLimits(plain, error);
    return limits && throttle_group_set(group, limits, error);
}

static void *group_co_make(Daemon *daemon, const ObjectOptions *options, GError **error)
{
    const ThrottleLimits *limits = options->u.throttle_group.limits;
    ThrottleGroup *group = throttle_group_new(daemon->graph, options->id, error);

    if (!group)
        return NULL;
    if (!set_legacy_limits(group, options, error) || (limits && !throttle_group_set(group, limits, error))) {
        throttle_group_unref(group);
        return NULL;
    }
    return group;
}

static bool group_in_use(const void *thing)
{
    return throttle_group_in_use(thing);
}

static void group_free(void *thing)
{
    throttle_group_unref(thing);
}

static Tree *group_get(const void *thing, const char *property, GError **error)
{
    g_autoptr(ThrottleLimits) limits = throttle_group_get(thing);
    g_autoptr(Tree) all = qapi_encode_ThrottleLimits(limits);

    if (strcmp(property, "limits") == 0)
        return g_steal_pointer(&all);
    return tree_ref(tree_get(all, property + strlen("x-")));
}

static bool group_set(void *thing, const char *property, Tree *value, GError **error)
{
    if (strcmp(property, "limits") != 0)
        return error_set(error, "Property cannot be set after initialization");
    if (!tree_is_object(value))
        return error_set(error, "Invalid parameter type for 'limits', expected: object");
    g_autoptr(ThrottleLimits) limits = qapi_decode_ThrottleLimits(value, error);
    if (!limits) {
        g_prefix_error(error, "limits: ");
        return false;
    }
    return throttle_group_set(thing, limits, error);
}

/* ---- secret ----------------------------------------------------------------------------------------------------- */

static void *secret_co_make(Daemon *daemon, const ObjectOptions *options, GError **error)
{
    return secret_co_new(graph_secrets(daemon->graph), options->id, &options->u.secret, error);
}

/* Whoever needed the value has taken it. */
static bool secret_in_use(const void *thing)
{
    return false;
}

static void secret_release(void *thing)
{
    secret_free(thing);
}

static Tree *secret_get(const void *thing, const char *property, GError **error)
{
    g_autoptr(Tree) all = qapi_encode_SecretProperties(secret_properties(thing));
    Tree *value = tree_get(all, property);

    if (strcmp(property, "data") == 0) {
        error_set(error, "Property 'secret.data' is not readable");
        return NULL;
    }
    if (value)
        return tree_ref(value);
    if (strcmp(property, "loaded") == 0)
        return tree_bool(true);
    return tree_string(strcmp(property, "format") == 0 ? "raw" : "");
}

static bool secret_set(void *thing, const char *property, Tree *value, GError **error)
{
    return error_set(error, "Property cannot be set after initialization");
}

/* ---- all kinds -------------------------------------------------------------------------------------------------- */

static const ObjectKind kinds[] = {
    {
        .type = OBJECT_TYPE_SECRET,
        .properties = &qapi_type_SecretProperties,
        .co_make = secret_co_make,
        .in_use = secret_in_use,
        .free = secret_release,
        .get = secret_get,
        .set = secret_set,
    },
    {
        .type = OBJECT_TYPE_THROTTLE_GROUP,
        .properties = &qapi_type_ThrottleGroupProperties,
        .co_make = group_co_make,
        .in_use = group_in_use,
        .free = group_free,
        .get = group_get,
        .set = group_set,
    },
};

const char *object_kind_name(const ObjectKind *kind)
{
    return qapi_ObjectType_str(kind->type);
}

const ObjectKind *object_kind_find(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
        if (strcmp(object_kind_name(&kinds[i]), name) == 0)
            return &kinds[i];
    return NULL;
}

static bool id_well_formed(const char *id)
{
    bool ok = g_ascii_isalpha(id[0]);

    for (const char *c = id; *c && ok; c++)
        ok = g_ascii_isalnum(*c) || strchr("-._", *c);
    return ok;
}

Object *object_find(Daemon *daemon, const char *id)
{
    for (GList *l = daemon->objects.head; l; l = l->next)
        if (strcmp(((Object *)l->data)->id, id) == 0)
            return l->data;
    return NULL;
}

bool object_co_add(Daemon *daemon, const ObjectOptions *options, GError **error)
{
    const ObjectKind *kind = object_kind_find(qapi_ObjectType_str(options->qom_type));

    g_assert(kind);
    if (!id_well_formed(options->id))
        return error_set(error, "Parameter 'id' expects an identifier");
    if (object_find(daemon, options->id))
        return error_set(error, "attempt to add duplicate property '%s' to object (type 'container')", options->id);
    void *thing = kind->co_make(daemon, options, error);
    if (!thing)
        return false;
    Object *object = g_new(Object, 1);
    *object = (Object){.id = g_strdup(options->id), .kind = kind, .thing = thing};
    g_queue_push_tail(&daemon->objects, object);
    return true;
}

static void object_free(Daemon *daemon, Object *object)
{
    g_queue_remove(&daemon->objects, object);
    object->kind->free(object->thing);
    g_free(object->id);
    g_free(object);
}

bool object_del(Daemon *daemon, const char *id, GError **error)
{
    Object *object = object_find(daemon, id);

    if (!object)
        return error_set(error, "object '%s' not found", id);
    if (object->kind->in_use(object->thing))
        return error_set(error, "object '%s' is in use, can not be deleted", id);
    object_free(daemon, object);
    return true;
}

void objects_free(Daemon *daemon)
{
    while (daemon->objects.head)
        object_free(daemon, daemon->objects.head->data);
}

bool object_co_apply(Daemon *daemon, void *value, GError **error)
{
    return object_co_add(daemon, value, error);
}
