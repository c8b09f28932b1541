/*
 * The table engine on the project's own schema: decoding in both modes, round trips, copies, and what errors say.
 */
#include "qapi/commands.h"
#include "qapi/events.h"
#include "qapi/rt/introspect.h"
#include "qapi/rt/json.h"
#include "qapi/rt/keyval.h"
#include "qapi/types.h"
#include "qapi/rt/tree.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static void *decode_json(const QapiType *type, const char *text, GError **error)
{
    g_autoptr(Tree) in = json_parse(text, -1, error);
    assert_non_null(in);
    return qapi_decode(type, QAPI_SOURCE_JSON, in, error);
}

static char *print_value(const QapiType *type, const void *value)
{
    g_autoptr(Tree) node = qapi_encode(type, value);
    return json_to_str(node, false);
}

static void assert_refused(const QapiType *type, const char *text, const char *message)
{
    g_autoptr(GError) error = NULL;
    void *value =
        *text == '{' || *text == '[' ? decode_json(type, text, &error) : qapi_decode_option(type, text, NULL, &error);
    if (value)
        fail_msg("%s: accepted", text);
    assert_string_equal(error->message, message);
}

/* Decoding, encoding, cloning and comparing agree with one another. */
static void assert_round_trip(const QapiType *type, const char *text, const char *expected)
{
    g_autoptr(GError) error = NULL;
    void *value = qapi_decode_option(type, text, NULL, &error);
    if (!value)
        fail_msg("%s: %s", text, error->message);
    g_autofree char *printed = print_value(type, value);
    assert_string_equal(printed, expected);
    void *copy = qapi_clone(type, value);
    assert_true(qapi_equal(type, value, copy));
    qapi_free(type, value);
    g_autofree char *copied = print_value(type, copy);
    assert_string_equal(copied, expected);
    qapi_free(type, copy);
    void *again = decode_json(type, expected, &error);
    assert_non_null(again);
    g_autofree char *twice = print_value(type, again);
    assert_string_equal(twice, expected);
    qapi_free(type, again);
}

#define NODE (&qapi_type_BlockdevOptions)

static void test_round_trips(void **state)
{
    static const struct {
        const QapiType *type;
        const char *text, *expected;
    } table[] = {
        {NODE, "driver=null-co,node-name=n,size=0x10,read-only=yes",
         "{\"driver\": \"null-co\", \"node-name\": \"n\", \"read-only\": true, \"size\": 16}"},
        {NODE, "driver=qcow2,node-name=q,file.driver=file,file.filename=a,,b=c,overlap-check=all,backing=b",
         "{\"driver\": \"qcow2\", \"node-name\": \"q\", \"file\": {\"driver\": \"file\", \"filename\": \"a,b=c\"}, "
         "\"backing\": \"b\", \"overlap-check\": \"all\"}"},
        {NODE, "{'driver':'qcow2','file':'f','backing':null,'overlap-check':{'template':'none','main-header':true}}",
         "{\"driver\": \"qcow2\", \"file\": \"f\", \"backing\": null, \"overlap-check\": {\"template\": \"none\", "
         "\"main-header\": true}}"},
        {NODE, "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"raw\",\"file\":\"x\",\"size\":-1}}",
         "{\"driver\": \"raw\", \"file\": {\"driver\": \"raw\", \"file\": \"x\", \"size\": -1}}"},
        {NODE, "driver=nbd,server.type=inet,server.host=h,server.port=1,server.to=65535,reconnect-delay=4294967295",
         "{\"driver\": \"nbd\", \"server\": {\"type\": \"inet\", \"host\": \"h\", \"port\": \"1\", \"to\": 65535}, "
         "\"reconnect-delay\": 4294967295}"},
        {NODE,
         "driver=null-aio,cache.direct=on,cache.no-flush=off,size=-9223372036854775808,latency-ns=9223372036854775807",
         "{\"driver\": \"null-aio\", \"cache\": {\"direct\": true, \"no-flush\": false}, "
         "\"size\": -9223372036854775808, \"latency-ns\": 9223372036854775807}"},
        {&qapi_type_BlockExportOptions, "type=nbd,id=e,node-name=n,bitmaps.0=a,bitmaps.1.node=x,bitmaps.1.name=y",
         "{\"type\": \"nbd\", \"id\": \"e\", \"node-name\": \"n\", \"writable\": false, \"writethrough\": false, "
         "\"bitmaps\": [\"a\", {\"node\": \"x\", \"name\": \"y\"}], \"allocation-depth\": false}"},
        {&qapi_type_SocketAddressLegacy, "{\"type\":\"unix\",\"data\":{\"path\":\"/x\"}}",
         "{\"type\": \"unix\", \"data\": {\"path\": \"/x\"}}"},
        {&qapi_type_NbdServerOptions, "addr.type=fd,addr.str=3",
         "{\"addr\": {\"type\": \"fd\", \"str\": \"3\"}, \"max-connections\": 100}"},
        {&qapi_type_SchemaInfoObjectMember, "{\"name\":\"a\",\"type\":\"b\",\"default\":{\"x\":[1,null]}}",
         "{\"name\": \"a\", \"type\": \"b\", \"default\": {\"x\": [1, null]}}"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(table); i++)
        assert_round_trip(table[i].type, table[i].text, table[i].expected);
}

static void test_json_errors(void **state)
{
    static const struct {
        const char *text, *message;
    } table[] = {
        {"{}", "Parameter 'driver' is missing"},
        {"[]", "Invalid parameter type, expected: object"},
        {"{'drivr':'raw'}", "Parameter 'driver' is missing"},
        {"{'driver':'foo'}", "Parameter 'driver' does not accept value 'foo'"},
        {"{'driver':1}", "Invalid parameter type for 'driver', expected: string"},
        {"{'driver':'raw'}", "Parameter 'file' is missing"},
        {"{'driver':'raw','file':1}", "Invalid parameter type for 'file', expected: BlockdevRef"},
        {"{'driver':'raw','file':null}", "Invalid parameter type for 'file', expected: BlockdevRef"},
        {"{'driver':'raw','file':{'driver':'file'}}", "Parameter 'file.filename' is missing"},
        {"{'driver':'raw','file':{'driver':'file','filename':'f','a':{}}}", "Parameter 'file.a' is unexpected"},
        {"{'driver':'raw','file':{'driver':'x'}}", "Parameter 'file.driver' does not accept value 'x'"},
        {"{'driver':'null-co','size':1.5}", "Invalid parameter type for 'size', expected: integer"},
        {"{'driver':'null-co','size':'1'}", "Invalid parameter type for 'size', expected: integer"},
        {"{'driver':'null-co','size':9223372036854775808}", "Invalid parameter type for 'size', expected: integer"},
        {"{'driver':'null-co','latency-ns':-1}", "Parameter 'latency-ns' expects uint64_t"},
        {"{'driver':'null-co','latency-ns':9223372036854775808}",
         "Parameter 'latency-ns' expects integer up to 2^63 - 1"},
        {"{'driver':'null-co','read-only':'on'}", "Invalid parameter type for 'read-only', expected: boolean"},
        {"{'driver':'null-co','read-only':1}", "Invalid parameter type for 'read-only', expected: boolean"},
        {"{'driver':'null-co','node-name':1}", "Invalid parameter type for 'node-name', expected: string"},
        {"{'driver':'null-co','node-name':null}", "Invalid parameter type for 'node-name', expected: string"},
        {"{'driver':'null-co','cache':[]}", "Invalid parameter type for 'cache', expected: object"},
        {"{'driver':'null-co','filename':'f'}", "Parameter 'filename' is unexpected"},
        {"{'driver':'qcow2','file':'f','backing':1}",
         "Invalid parameter type for 'backing', expected: BlockdevRefOrNull"},
        {"{'driver':'nbd','server':{'type':'inet','host':'h','port':'1','to':65536}}",
         "Parameter 'server.to' expects uint16_t"},
        {"{'driver':'nbd','server':{'type':'inet','host':'h','port':'1','to':-1}}",
         "Parameter 'server.to' expects uint16_t"},
        {"{'driver':'nbd','server':{'type':'unix','path':'p'},'reconnect-delay':4294967296}",
         "Parameter 'reconnect-delay' expects uint32_t"},
        {"{'driver':'nbd','server':{'type':'unix','path':'p'},'reconnect-delay':18446744073709551615}",
         "Parameter 'reconnect-delay' expects uint32_t"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(table); i++)
        assert_refused(NODE, table[i].text, table[i].message);
    assert_refused(&qapi_type_BlockDirtyBitmapMerge, "{'node':'n','target':'t','bitmaps':['a',{'node':'x'}]}",
                   "Parameter 'bitmaps[1].name' is missing");
    assert_refused(&qapi_type_BlockDirtyBitmapMerge, "{'node':'n','target':'t','bitmaps':['a',2]}",
                   "Invalid parameter type for 'bitmaps[1]', expected: BlockDirtyBitmapOrStr");
    assert_refused(&qapi_type_BlockDirtyBitmapMerge, "{'node':'n','target':'t','bitmaps':'a'}",
                   "Invalid parameter type for 'bitmaps', expected: array");
}

static void test_keyval_errors(void **state)
{
    static const struct {
        const char *text, *message;
    } table[] = {
        {"driver=null-co,size=abc", "Parameter 'size' expects integer"},
        {"driver=null-co,size=", "Parameter 'size' expects integer"},
        {"driver=null-co,size= 1", "Parameter 'size' expects integer"},
        {"driver=null-co,size=1k", "Parameter 'size' expects integer"},
        {"driver=null-co,size=9223372036854775808", "Parameter 'size' expects integer"},
        {"driver=null-co,read-only=maybe", "Parameter 'read-only' expects 'on' or 'off'"},
        {"driver=null-co,a.b=1", "Parameter 'a' is unexpected"},
        {"driver=raw,file.driver=file", "Parameter 'file.filename' is missing"},
        {"driver=raw,file.0=file", "Invalid parameter type for 'file', expected: BlockdevRef"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(table); i++)
        assert_refused(NODE, table[i].text, table[i].message);
    assert_refused(&qapi_type_BlockDirtyBitmapMerge, "node=n,target=t,bitmaps.0.node=x",
                   "Parameter 'bitmaps.0.name' is missing");
    g_autofree char *name = g_strnfill(1000, 'x');
    g_autofree char *text = g_strdup_printf("{\"driver\":\"null-co\",\"%s\":1}", name);
    g_autofree char *message = g_strdup_printf("Parameter '%.128s...' is unexpected", name);
    assert_refused(NODE, text, message);
}

static void test_members(void **state)
{
    g_autoptr(BlockdevOptions) node =
        qapi_decode_option_BlockdevOptions("driver=file,filename=/a,aio=io_uring,locking=off", NULL, NULL);
    assert_int_equal(node->driver, BLOCKDEV_DRIVER_FILE);
    assert_null(node->node_name);
    assert_false(node->has_read_only);
    assert_string_equal(node->u.file.filename, "/a");
    assert_true(node->u.file.has_aio);
    assert_int_equal(node->u.file.aio, BLOCKDEV_AIO_OPTIONS_IO_URING);
    assert_int_equal(node->u.file.locking, ON_OFF_AUTO_OFF);
    assert_false(node->u.file.has_drop_cache);
    assert_string_equal(qapi_BlockdevDriver_str(node->driver), "file");

    g_autoptr(DriveMirror) mirror =
        decode_json(&qapi_type_DriveMirror, "{\"device\":\"d\",\"target\":\"t\",\"sync\":\"full\"}", NULL);
    assert_true(mirror->has_mode && mirror->mode == NEW_IMAGE_MODE_ABSOLUTE_PATHS);
    assert_true(mirror->has_unmap && mirror->unmap);
    assert_true(mirror->has_speed && mirror->speed == 0);
    assert_false(mirror->has_granularity);

    BlockdevOptions bare = {.driver = BLOCKDEV_DRIVER_NULL_CO};
    g_autofree char *printed = print_value(NODE, &bare);
    assert_string_equal(printed, "{\"driver\": \"null-co\"}");
    BlockJobInfoList none = {0};
    g_autofree char *empty = print_value(&qapi_type_BlockJobInfoList, &none);
    assert_string_equal(empty, "[]");
    qapi_free_BlockdevOptions(NULL);
    assert_null(qapi_clone_BlockdevOptions(NULL));
}

/* ---- commands and events ---------------------------------------------------------------------------------------- */

static bool call_co_add(QmpContext *ctx, const void *arg, void *ret, GError **error)
{
    const BlockDirtyBitmapAdd *a = arg;
    assert_ptr_equal(ctx, (QmpContext *)0x10);
    *(int64_t *)ret = (int64_t)strlen(a->name);
    return true;
}

static bool call_co_list(QmpContext *ctx, const void *arg, void *ret, GError **error)
{
    StrList *list = *(StrList **)ret = g_new0(StrList, 1);
    list->items = g_new0(char *, 2);
    list->items[list->len++] = g_strdup("a");
    list->items[list->len++] = g_strdup("b");
    return true;
}

static bool call_co_fail(QmpContext *ctx, const void *arg, void *ret, GError **error)
{
    g_set_error_literal(error, G_FILE_ERROR, 1, "no");
    return false;
}

static void test_co_dispatch(void **state)
{
    static const QapiCommand table[] = {
        {"add", &qapi_type_BlockDirtyBitmapAdd, &qapi_type_int, false, call_co_add},
        {"fail", NULL, NULL, false, call_co_fail},
        {"list", NULL, &qapi_type_StrList, true, call_co_list},
    };
    QmpContext *ctx = (QmpContext *)0x10;
    g_autoptr(Tree) ret = NULL;
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) arguments = json_parse("{\"node\":\"n\",\"name\":\"four\"}", -1, NULL);
    const QapiCommand *add = qapi_find_command(table, G_N_ELEMENTS(table), "add");
    assert_true(qapi_co_dispatch(add, ctx, arguments, &ret, &error));
    assert_int_equal(tree_as_int(ret), 4);
    g_clear_pointer(&ret, tree_unref);

    const QapiCommand *list = qapi_find_command(table, G_N_ELEMENTS(table), "list");
    assert_true(list->preconfig);
    assert_true(qapi_co_dispatch(list, ctx, NULL, &ret, &error));
    g_autofree char *printed = json_to_str(ret, false);
    assert_string_equal(printed, "[\"a\", \"b\"]");
    g_clear_pointer(&ret, tree_unref);
    assert_false(qapi_co_dispatch(list, ctx, arguments, &ret, &error));
    assert_string_equal(error->message, "Parameter 'node' is unexpected");
    g_clear_error(&error);

    const QapiCommand *fail = qapi_find_command(table, G_N_ELEMENTS(table), "fail");
    assert_false(qapi_co_dispatch(fail, ctx, NULL, &ret, &error));
    assert_string_equal(error->message, "no");
    assert_null(ret);
    assert_null(qapi_find_command(table, G_N_ELEMENTS(table), "lis"));
    assert_null(qapi_find_command(table, G_N_ELEMENTS(table), "zzz"));
    assert_null(qapi_find_command(table, 0, "add"));
}

static void collect(const char *name, Tree *data, void *opaque)
{
    g_autofree char *printed = data ? json_to_str(data, false) : g_strdup("nothing");
    g_string_append_printf(opaque, "%s %s\n", name, printed);
    g_clear_pointer(&data, tree_unref);
}

static void test_events(void **state)
{
    g_autoptr(GString) seen = g_string_new(NULL);
    qapi_emit_job_status_change(&(JobStatusChangeEvent){.id = (char *)"lost", .status = JOB_STATUS_NULL});
    qapi_set_event_sink(collect, seen);
    qapi_emit_job_status_change(&(JobStatusChangeEvent){.id = (char *)"j", .status = JOB_STATUS_READY});
    qapi_emit("PLAIN", NULL, NULL);
    qapi_set_event_sink(NULL, NULL);
    assert_string_equal(seen->str, "JOB_STATUS_CHANGE {\"id\": \"j\", \"status\": \"ready\"}\nPLAIN nothing\n");
}

static void test_introspection(void **state)
{
    g_autoptr(Tree) node = qapi_introspect();
    g_autoptr(GError) error = NULL;
    g_autoptr(SchemaInfoList) list = qapi_decode_SchemaInfoList(node, &error);
    assert_non_null(list);
    bool found = false;
    for (size_t i = 0; i < list->len; i++) {
        SchemaInfo *info = list->items[i];
        found |= info->meta_type == SCHEMA_META_TYPE_COMMAND && !strcmp(info->name, "query-qmp-schema");
    }
    assert_true(found);
    g_autoptr(Tree) again = qapi_encode_SchemaInfoList(list);
    assert_int_equal(tree_size(again), list->len);
}

/* The deepest JSON that the parser lets through, on a type that nests. */
static void test_deep(void **state)
{
    GString *text = g_string_new(NULL);
    int depth = JSON_MAX_DEPTH - 1;
    for (int i = 0; i < depth; i++)
        g_string_append(text, "{\"driver\":\"raw\",\"file\":");
    g_string_append(text, "\"f\"");
    for (int i = 0; i < depth; i++)
        g_string_append_c(text, '}');
    g_autoptr(BlockdevOptions) node = decode_json(NODE, text->str, NULL);
    g_autoptr(BlockdevOptions) copy = qapi_clone_BlockdevOptions(node);
    assert_true(qapi_equal_BlockdevOptions(node, copy));
    g_string_free(text, TRUE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),   cmocka_unit_test(test_json_errors), cmocka_unit_test(test_keyval_errors),
        cmocka_unit_test(test_members),       cmocka_unit_test(test_co_dispatch), cmocka_unit_test(test_events),
        cmocka_unit_test(test_introspection), cmocka_unit_test(test_deep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
