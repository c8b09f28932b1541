/*
 * Dispatching commands, emitting events, the builtin types.
 */
#include "qapi/rt/command.h"
#include "qapi/rt/introspect.h"
#include "qapi/rt/json.h"
#include "qapi/rt/value.h"
#include <string.h>

const QapiType qapi_type_str = {.kind = QAPI_KIND_STR, .name = "str"};
const QapiType qapi_type_int = {.kind = QAPI_KIND_INT, .name = "int", .size = 8, .min = INT64_MIN, .max = INT64_MAX};
const QapiType qapi_type_int32 = {
    .kind = QAPI_KIND_INT, .name = "int32", .size = 4, .min = INT32_MIN, .max = INT32_MAX};
const QapiType qapi_type_uint64 = {.kind = QAPI_KIND_UINT, .name = "uint64", .size = 8, .max = INT64_MAX};
const QapiType qapi_type_uint32 = {.kind = QAPI_KIND_UINT, .name = "uint32", .size = 4, .max = UINT32_MAX};
const QapiType qapi_type_uint16 = {.kind = QAPI_KIND_UINT, .name = "uint16", .size = 2, .max = UINT16_MAX};
const QapiType qapi_type_uint8 = {.kind = QAPI_KIND_UINT, .name = "uint8", .size = 1, .max = UINT8_MAX};
const QapiType qapi_type_size = {.kind = QAPI_KIND_UINT, .name = "size", .size = 8, .max = INT64_MAX, .suffixes = true};
const QapiType qapi_type_bool = {.kind = QAPI_KIND_BOOL, .name = "bool", .size = sizeof(bool)};
const QapiType qapi_type_number = {.kind = QAPI_KIND_NUMBER, .name = "number", .size = sizeof(double)};
const QapiType qapi_type_any = {.kind = QAPI_KIND_ANY, .name = "any"};
const QapiType qapi_type_null = {.kind = QAPI_KIND_NULL, .name = "null"};

static const QapiType type_nothing = {.kind = QAPI_KIND_STRUCT, .name = "nothing", .size = 1};

const QapiCommand *qapi_find_command(const QapiCommand *table, size_t n, const char *name)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, table[middle].name);
        if (order == 0)
            return &table[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

bool qapi_co_dispatch(const QapiCommand *command, QmpContext *ctx, Tree *arguments, Tree **ret, GError **error)
{
    const QapiType *arg_type = command->arg ? command->arg : &type_nothing;
    g_autoptr(Tree) none = arguments ? NULL : tree_object();
    void *arg = qapi_decode(arg_type, QAPI_SOURCE_JSON, arguments ? arguments : none, error);
    if (!arg)
        return false;
    union {
        void *pointer;
        int64_t integer;
        double number;
    } result = {0};
    bool ok = command->call_co_handler(ctx, arg, &result, error);
    qapi_free(arg_type, arg);
    if (!ok)
        return false;
    if (!command->ret) {
        *ret = tree_object();
    } else {
        *ret = qapi_encode_at(command->ret, &result);
        if (qapi_is_pointer(command->ret))
            qapi_free(command->ret, result.pointer);
    }
    return true;
}

static QapiEventSink *event_sink;
static void *event_sink_opaque;

void qapi_set_event_sink(QapiEventSink *sink, void *opaque)
{
    event_sink = sink;
    event_sink_opaque = opaque;
}

void qapi_emit(const char *name, const QapiType *type, const void *event)
{
    if (event_sink)
        event_sink(name, type ? qapi_encode(type, event) : NULL, event_sink_opaque);
}

Tree *qapi_introspect(void)
{
    GError *error = NULL;
    Tree *node = json_parse(qapi_introspection, (gssize)qapi_introspection_len, &error);
    g_assert_no_error(error);
    return node;
}
