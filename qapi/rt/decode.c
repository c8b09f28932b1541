/*
 * JSON trees to C values: one walk over the descriptors, strict, with errors in QEMU's words that name the member by
 * its path ("file.filename", "bitmaps[0].node"; on the command line "bitmaps.0.node").
 *
 * Each value is hung up in its place before it is filled, so that after an error freeing the root frees everything.
 */
#include "block/util/error.h"
#include "block/util/sizestr.h"
#include "qapi/rt/json.h"
#include "qapi/rt/keyval.h"
#include "qapi/rt/type.h"
#include "qapi/rt/value.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN_MAX = 128 }; /* characters of a client's name or value that an error text repeats */

typedef struct Path {
    const struct Path *up;
    const char *name; /* NULL: a list element */
    size_t index;
} Path;

typedef struct Decoder {
    QapiSource source;
    GError **error;
} Decoder;

static bool decode_at(Decoder *d, const QapiType *type, Tree *in, const Path *path, void *at);

/* ---- errors ----------------------------------------------------------------------------------------------------- */

static char *shown(const char *text)
{
    if (g_utf8_strlen(text, -1) <= SHOWN_MAX)
        return g_strdup(text);
    g_autofree char *head = g_utf8_substring(text, 0, SHOWN_MAX);
    return g_strconcat(head, "...", NULL);
}

static void path_append(const Decoder *d, const Path *path, GString *out)
{
    if (path->up)
        path_append(d, path->up, out);
    if (path->name) {
        g_autofree char *name = shown(path->name);
        g_string_append_printf(out, "%s%s", out->len ? "." : "", name);
    } else if (d->source == QAPI_SOURCE_KEYVAL) {
        g_string_append_printf(out, "%s%zu", out->len ? "." : "", path->index);
    } else {
        g_string_append_printf(out, "[%zu]", path->index);
    }
}

static char *path_str(const Decoder *d, const Path *path)
{
    GString *out = g_string_new(NULL);
    path_append(d, path, out);
    return g_string_free(out, FALSE);
}

static bool wrong_type(Decoder *d, const Path *path, const char *expected)
{
    if (!path)
        return error_set(d->error, "Invalid parameter type, expected: %s", expected);
    g_autofree char *name = path_str(d, path);
    return error_set(d->error, "Invalid parameter type for '%s', expected: %s", name, expected);
}

static bool expects(Decoder *d, const Path *path, const char *what)
{
    if (!path)
        return error_set(d->error, "Expected %s", what);
    g_autofree char *name = path_str(d, path);
    return error_set(d->error, "Parameter '%s' expects %s", name, what);
}

/* ---- scalars ---------------------------------------------------------------------------------------------------- */

static bool out_of_range(Decoder *d, const QapiType *type, const Path *path)
{
    char name[16];
    g_snprintf(name, sizeof(name), "%sint%u_t", type->kind == QAPI_KIND_INT ? "" : "u", type->size * 8);
    return expects(d, path, name);
}

/* For a TREE_UINT, which no type of ours takes: 64 bits wide, they end at INT64_MAX as file sizes do. */
static bool too_large(Decoder *d, const QapiType *type, const Path *path)
{
    if (type->kind == QAPI_KIND_INT)
        return wrong_type(d, path, "integer");
    return type->size < 8 ? out_of_range(d, type, path) : expects(d, path, "integer up to 2^63 - 1");
}

static bool store_int(Decoder *d, const QapiType *type, int64_t value, const Path *path, void *at)
{
    bool is_signed = type->kind == QAPI_KIND_INT;
    if (is_signed ? value < type->min || value > (int64_t)type->max : value < 0 || (uint64_t)value > type->max)
        return out_of_range(d, type, path);
    switch (type->size) {
    case 1:
        *(uint8_t *)at = (uint8_t)value;
        break;
    case 2:
        *(uint16_t *)at = (uint16_t)value;
        break;
    case 4:
        *(uint32_t *)at = (uint32_t)value;
        break;
    default:
        *(int64_t *)at = value;
    }
    return true;
}

static bool int_from_text(Decoder *d, const QapiType *type, const char *text, const Path *path, void *at)
{
    if (type->suffixes) {
        g_autofree char *name = path ? path_str(d, path) : g_strdup("size");
        return size_parse(name, text, type->max, at, d->error);
    }
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 0);
    if (errno || end == text || *end || g_ascii_isspace(*text))
        return expects(d, path, "integer");
    return store_int(d, type, value, path, at);
}

static bool bool_from_text(Decoder *d, const char *text, const Path *path, void *at)
{
    static const char *const yes[] = {"on", "yes", "true", "y", NULL};
    static const char *const no[] = {"off", "no", "false", "n", NULL};
    if (!g_strv_contains(yes, text) && !g_strv_contains(no, text))
        return expects(d, path, "'on' or 'off'");
    *(bool *)at = g_strv_contains(yes, text);
    return true;
}

static bool enum_from_text(Decoder *d, const QapiType *type, const char *text, const Path *path, void *at)
{
    int value = qapi_enum_find(type, text);
    if (value < 0) {
        g_autofree char *name = path ? path_str(d, path) : g_strdup(type->name);
        g_autofree char *bad = shown(text);
        return error_set(d->error, "Parameter '%s' does not accept value '%s'", name, bad);
    }
    *(int *)at = value;
    return true;
}

static bool number_from_text(Decoder *d, const char *text, const Path *path, void *at)
{
    char *end;
    double value = g_ascii_strtod(text, &end);
    if (end == text || *end || value - value != 0)
        return expects(d, path, "number");
    *(double *)at = value;
    return true;
}

/* A scalar from its spelling on the command line; the schema's defaults are spelled the same way. */
static bool scalar_from_text(Decoder *d, const QapiType *type, const char *text, const Path *path, void *at)
{
    switch (type->kind) {
    case QAPI_KIND_STR:
        *(char **)at = g_strdup(text);
        return true;
    case QAPI_KIND_INT:
    case QAPI_KIND_UINT:
        return int_from_text(d, type, text, path, at);
    case QAPI_KIND_BOOL:
        return bool_from_text(d, text, path, at);
    case QAPI_KIND_NUMBER:
        return number_from_text(d, text, path, at);
    default:
        return enum_from_text(d, type, text, path, at);
    }
}

static bool decode_scalar(Decoder *d, const QapiType *type, Tree *in, const Path *path, void *at)
{
    TreeKind held = tree_kind(in);
    bool text = type->kind == QAPI_KIND_STR || type->kind == QAPI_KIND_ENUM;
    if (held == TREE_STRING && (text || d->source == QAPI_SOURCE_KEYVAL))
        return scalar_from_text(d, type, tree_as_string(in), path, at);
    switch (type->kind) {
    case QAPI_KIND_INT:
    case QAPI_KIND_UINT:
        if (held == TREE_INT)
            return store_int(d, type, tree_as_int(in), path, at);
        return held == TREE_UINT ? too_large(d, type, path) : wrong_type(d, path, "integer");
    case QAPI_KIND_BOOL:
        if (held == TREE_BOOL) {
            *(bool *)at = tree_as_bool(in);
            return true;
        }
        return wrong_type(d, path, "boolean");
    case QAPI_KIND_NUMBER:
        if (held == TREE_INT || held == TREE_UINT || held == TREE_DOUBLE) {
            *(double *)at = tree_as_double(in);
            return true;
        }
        return wrong_type(d, path, "number");
    default:
        return wrong_type(d, path, "string");
    }
}

/* ---- structs and unions ----------------------------------------------------------------------------------------- */

static bool absent_member(Decoder *d, const QapiMember *m, const Path *path, void *value)
{
    if (!m->optional) {
        g_autofree char *name = path_str(d, path);
        return error_set(d->error, "Parameter '%s' is missing", name);
    }
    if (!m->preset)
        return true;
    if (m->has_offset >= 0)
        *(bool *)qapi_at(value, m->has_offset) = true;
    return scalar_from_text(d, m->type, m->preset, path, qapi_at(value, m->offset));
}

/* Decodes the members of a struct, or of the branch of a union, and counts those that were there. */
static bool decode_members(Decoder *d, const QapiType *type, const Tree *in, const Path *up, void *value, guint *seen)
{
    for (uint32_t i = 0; i < type->n_members; i++) {
        const QapiMember *m = &type->members[i];
        Path path = {.up = up, .name = m->name};
        Tree *member = tree_get(in, m->name);
        if (!member) {
            if (!absent_member(d, m, &path, value))
                return false;
            continue;
        }
        (*seen)++;
        if (!decode_at(d, m->type, member, &path, qapi_at(value, m->offset)))
            return false;
        if (m->has_offset >= 0)
            *(bool *)qapi_at(value, m->has_offset) = true;
    }
    const QapiType *branch = type->tag ? qapi_branch(type, value) : NULL;
    return !branch || decode_members(d, branch, in, up, qapi_at(value, type->branch_offset), seen);
}

static bool is_member(const QapiType *type, const void *value, const char *name)
{
    for (uint32_t i = 0; i < type->n_members; i++)
        if (!strcmp(type->members[i].name, name))
            return true;
    const QapiType *branch = type->tag ? qapi_branch(type, value) : NULL;
    return branch && is_member(branch, qapi_at_const(value, type->branch_offset), name);
}

static bool unexpected_member(Decoder *d, const QapiType *type, const Tree *in, const Path *up, const void *value)
{
    for (guint i = 0; i < tree_size(in); i++) {
        Path path = {.up = up};
        tree_member(in, i, &path.name);
        if (!is_member(type, value, path.name)) {
            g_autofree char *name = path_str(d, &path);
            return error_set(d->error, "Parameter '%s' is unexpected", name);
        }
    }
    g_assert_not_reached();
}

static bool decode_struct(Decoder *d, const QapiType *type, Tree *in, const Path *path, void **at)
{
    if (!tree_is_object(in))
        return wrong_type(d, path, "object");
    void *value = *at = g_malloc0(type->size);
    guint seen = 0;
    if (!decode_members(d, type, in, path, value, &seen))
        return false;
    return seen == tree_size(in) || unexpected_member(d, type, in, path, value);
}

/* ---- lists and alternates --------------------------------------------------------------------------------------- */

static bool decode_list(Decoder *d, const QapiType *type, Tree *in, const Path *up, void **at)
{
    if (tree_kind(in) != TREE_LIST)
        return wrong_type(d, up, "array");
    QapiList *list = *at = g_new0(QapiList, 1);
    size_t step = qapi_step(type->element);
    list->len = tree_size(in);
    list->items = g_malloc0_n(list->len, step);
    for (size_t i = 0; i < list->len; i++) {
        Path path = {.up = up, .index = i};
        if (!decode_at(d, type->element, tree_element(in, (guint)i), &path, qapi_at(list->items, i * step)))
            return false;
    }
    return true;
}

/* Could @in be of this branch's type? A string from the command line may stand for any scalar. */
static bool looks_like(const Decoder *d, const QapiType *type, Tree *in)
{
    TreeKind held = tree_kind(in);
    bool spelled = held == TREE_STRING && d->source == QAPI_SOURCE_KEYVAL;
    switch (type->kind) {
    case QAPI_KIND_STR:
    case QAPI_KIND_ENUM:
        return held == TREE_STRING;
    case QAPI_KIND_INT:
    case QAPI_KIND_UINT:
        return held == TREE_INT || held == TREE_UINT || spelled;
    case QAPI_KIND_NUMBER:
        return held == TREE_INT || held == TREE_UINT || held == TREE_DOUBLE || spelled;
    case QAPI_KIND_BOOL:
        return held == TREE_BOOL || spelled;
    case QAPI_KIND_NULL:
        return held == TREE_NULL;
    case QAPI_KIND_STRUCT:
        return held == TREE_OBJECT;
    case QAPI_KIND_LIST:
        return held == TREE_LIST;
    default:
        return true;
    }
}

static bool decode_alternate(Decoder *d, const QapiType *type, Tree *in, const Path *path, void **at)
{
    int chosen = -1;
    for (uint32_t i = 0; i < type->n_members; i++) {
        const QapiType *branch = type->members[i].type;
        bool text = branch->kind == QAPI_KIND_STR || branch->kind == QAPI_KIND_ENUM;
        if (looks_like(d, branch, in) && (chosen < 0 || text))
            chosen = (int)i;
    }
    if (chosen < 0)
        return wrong_type(d, path, type->name);
    void *value = *at = g_malloc0(type->size);
    const QapiMember *m = &type->members[chosen];
    *(int *)value = chosen;
    return m->type->kind == QAPI_KIND_NULL || decode_at(d, m->type, in, path, qapi_at(value, m->offset));
}

static bool decode_at(Decoder *d, const QapiType *type, Tree *in, const Path *path, void *at)
{
    switch (type->kind) {
    case QAPI_KIND_STRUCT:
        return decode_struct(d, type, in, path, at);
    case QAPI_KIND_LIST:
        return decode_list(d, type, in, path, at);
    case QAPI_KIND_ALTERNATE:
        return decode_alternate(d, type, in, path, at);
    case QAPI_KIND_ANY:
        *(Tree **)at = tree_ref(in);
        return true;
    default:
        return decode_scalar(d, type, in, path, at);
    }
}

void *qapi_decode(const QapiType *type, QapiSource source, Tree *in, GError **error)
{
    Decoder d = {.source = source, .error = error};
    void *value = NULL;
    if (!decode_at(&d, type, in, NULL, &value)) {
        qapi_free(type, value);
        return NULL;
    }
    return value;
}

void *qapi_decode_option(const QapiType *type, const char *text, const char *implied_key, GError **error)
{
    g_autoptr(Tree) in = keyval_parse(text, implied_key, error);
    if (!in)
        return NULL;
    return qapi_decode(type, keyval_is_json(text) ? QAPI_SOURCE_JSON : QAPI_SOURCE_KEYVAL, in, error);
}
