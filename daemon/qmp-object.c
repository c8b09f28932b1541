/*
 * The commands of qapi/schema/qom.json. The tree of objects has three levels: /, /objects, and the objects.
 */
#include "block/util/error.h"
#include "daemon/object.h"
#include "qapi/commands.h"
#include <string.h>

bool qmp_co_object_add(QmpContext *ctx, const ObjectOptions *arg, GError **error)
{
    return object_co_add(qmp_daemon(ctx), arg, error);
}

bool qmp_co_object_del(QmpContext *ctx, const ObjectDelArgs *arg, GError **error)
{
    return object_del(qmp_daemon(ctx), arg->id, error);
}

/* What a path leads to. */
typedef enum Place { PLACE_NONE, PLACE_ROOT, PLACE_OBJECTS, PLACE_OBJECT } Place;

static Place resolve(Daemon *daemon, const char *path, Object **ret, GError **error)
{
    const char *id = path;

    *ret = NULL;
    if (strcmp(path, "/") == 0 || strcmp(path, "") == 0)
        return PLACE_ROOT;
    if (strcmp(path, "/objects") == 0 || strcmp(path, "objects") == 0)
        return PLACE_OBJECTS;
    if (g_str_has_prefix(path, "/objects/") || g_str_has_prefix(path, "objects/"))
        id = strchr(path + 1, '/') + 1;
    *ret = object_find(daemon, id);
    if (*ret)
        return PLACE_OBJECT;
    error_set_class(error, SD_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", path);
    return PLACE_NONE;
}

/* ---- lists ------------------------------------------------------------------------------------------------------ */

static void add_property(GPtrArray *list, const char *name, const char *type)
{
    ObjectPropertyInfo *info = g_new0(ObjectPropertyInfo, 1);

    info->name = g_strdup(name);
    info->type = g_strdup(type);
    g_ptr_array_add(list, info);
}

static void add_kind_properties(GPtrArray *list, const ObjectKind *kind)
{
    add_property(list, "type", "string");
    for (uint32_t i = 0; i < kind->properties->n_members; i++) {
        const QapiMember *m = &kind->properties->members[i];
        add_property(list, m->name, m->type->name);
    }
}

static ObjectPropertyInfoList *property_list(GPtrArray *list)
{
    ObjectPropertyInfoList *ret = g_new0(ObjectPropertyInfoList, 1);

    ret->len = list->len;
    ret->items = (ObjectPropertyInfo **)g_ptr_array_free(list, FALSE);
    return ret;
}

bool qmp_co_qom_list(QmpContext *ctx, const QomListArgs *arg, ObjectPropertyInfoList **ret, GError **error)
{
    Object *object;
    Place place = resolve(qmp_daemon(ctx), arg->path, &object, error);

    if (place == PLACE_NONE)
        return false;
    GPtrArray *list = g_ptr_array_new();
    if (place == PLACE_OBJECT)
        add_kind_properties(list, object->kind);
    else
        add_property(list, "type", "string");
    if (place == PLACE_ROOT)
        add_property(list, "objects", "child<container>");
    for (GList *l = qmp_daemon(ctx)->objects.head; l && place == PLACE_OBJECTS; l = l->next) {
        const Object *o = l->data;
        g_autofree char *type = g_strdup_printf("child<%s>", object_kind_name(o->kind));
        add_property(list, o->id, type);
    }
    *ret = property_list(list);
    return true;
}

bool qmp_co_qom_list_types(QmpContext *ctx, const QomListTypesArgs *arg, ObjectTypeInfoList **ret, GError **error)
{
    GPtrArray *list = g_ptr_array_new();

    for (int i = 0; i < OBJECT_TYPE__MAX; i++) {
        const char *name = qapi_ObjectType_str((ObjectType)i), *want = arg->implements;
        if (want && strcmp(want, name) != 0 && strcmp(want, "object") != 0 && strcmp(want, "user-creatable") != 0)
            continue;
        ObjectTypeInfo *info = g_new0(ObjectTypeInfo, 1);
        info->name = g_strdup(name);
        info->parent = g_strdup("object");
        g_ptr_array_add(list, info);
    }
    *ret = g_new0(ObjectTypeInfoList, 1);
    (*ret)->len = list->len;
    (*ret)->items = (ObjectTypeInfo **)g_ptr_array_free(list, FALSE);
    return true;
}

bool qmp_co_qom_list_properties(QmpContext *ctx, const QomListPropertiesArgs *arg, ObjectPropertyInfoList **ret,
                                GError **error)
{
    const ObjectKind *kind = object_kind_find(arg->typename);

    if (!kind)
        return error_set_class(error, SD_ERROR_DEVICE_NOT_FOUND, "Class '%s' not found", arg->typename);
    GPtrArray *list = g_ptr_array_new();
    add_kind_properties(list, kind);
    *ret = property_list(list);
    return true;
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static bool has_property(const ObjectKind *kind, const char *name)
{
    for (uint32_t i = 0; i < kind->properties->n_members; i++)
        if (strcmp(kind->properties->members[i].name, name) == 0)
            return true;
    return false;
}

static const char *place_type(Place place, const Object *object)
{
    return place == PLACE_OBJECT ? object_kind_name(object->kind) : "container";
}

bool qmp_co_qom_get(QmpContext *ctx, const QomGetArgs *arg, Tree **ret, GError **error)
{
    Object *object;
    Place place = resolve(qmp_daemon(ctx), arg->path, &object, error);

    if (place == PLACE_NONE)
        return false;
    if (strcmp(arg->property, "type") == 0) {
        *ret = tree_string(place_type(place, object));
        return true;
    }
    if (place == PLACE_ROOT && strcmp(arg->property, "objects") == 0) {
        *ret = tree_string("/objects");
        return true;
    }
    if (place == PLACE_OBJECTS && object_find(qmp_daemon(ctx), arg->property)) {
        g_autofree char *path = g_strdup_printf("/objects/%s", arg->property);
        *ret = tree_string(path);
        return true;
    }
    if (place != PLACE_OBJECT || !has_property(object->kind, arg->property))
        return error_set(error, "Property '%s.%s' not found", place_type(place, object), arg->property);
    *ret = object->kind->get(object->thing, arg->property, error);
    return *ret;
}

bool qmp_co_qom_set(QmpContext *ctx, const QomSetArgs *arg, GError **error)
{
    Object *object;
    Place place = resolve(qmp_daemon(ctx), arg->path, &object, error);

    if (place == PLACE_NONE)
        return false;
    if (place == PLACE_OBJECT && has_property(object->kind, arg->property))
        return object->kind->set(object->thing, arg->property, arg->value, error);
    if (strcmp(arg->property, "type") == 0)
        return error_set(error, "Property '%s.type' is not writable", place_type(place, object));
    return error_set(error, "Property '%s.%s' not found", place_type(place, object), arg->property);
}
