/*
 * key=value options to trees, and what is refused.
 */
#include "qapi/rt/keyval.h"
#include "qapi/rt/json.h"
#include "qapi/types.h"
#include "qapi/rt/tree.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static void test_good(void **state)
{
    static const struct {
        const char *text, *implied, *printed;
    } table[] = {
        {"", NULL, "{}"},
        {"a=1", NULL, "{\"a\": \"1\"}"},
        {"a=1,b=2,", NULL, "{\"a\": \"1\", \"b\": \"2\"}"},
        {"a=,b=x=y", NULL, "{\"a\": \"\", \"b\": \"x=y\"}"},
        {"a=1,,2,,,b=3", NULL, "{\"a\": \"1,2,\", \"b\": \"3\"}"},
        {"a=1,a=2", NULL, "{\"a\": \"2\"}"},
        {"nbd,id=x", "type", "{\"type\": \"nbd\", \"id\": \"x\"}"},
        {"a,,b,id=x", "type", "{\"type\": \"a,b\", \"id\": \"x\"}"},
        {"type=nbd,id=x", "type", "{\"type\": \"nbd\", \"id\": \"x\"}"},
        {"socket,server,nowait", "backend", "{\"backend\": \"socket\", \"server\": \"on\", \"wait\": \"off\"}"},
        {"server=on,wait=off", NULL, "{\"server\": \"on\", \"wait\": \"off\"}"},
        {"noserver", NULL, "{\"server\": \"off\"}"},
        {"a.b.c=1,a.d=2,e_f-g=3", NULL, "{\"a\": {\"b\": {\"c\": \"1\"}, \"d\": \"2\"}, \"e_f-g\": \"3\"}"},
        {"l.1=b,l.0=a,m.0.x=1,m.1.0=2", NULL, "{\"l\": [\"a\", \"b\"], \"m\": [{\"x\": \"1\"}, [\"2\"]]}"},
        {"{\"a\": 1}", "type", "{\"a\": 1}"},
        {"json:{\"a\": [true]}", "type", "{\"a\": [true]}"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(table); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Tree) node = keyval_parse(table[i].text, table[i].implied, &error);
        if (!node)
            fail_msg("%s: %s", table[i].text, error->message);
        g_autofree char *printed = json_to_str(node, false);
        assert_string_equal(printed, table[i].printed);
    }
}

static void test_bad(void **state)
{
    static const struct {
        const char *text, *message;
    } table[] = {
        {"=1", "Invalid parameter ''"},
        {"a=1,,=2", NULL}, /* a value "1,=2": fine */
        {"a=1,=2", "Invalid parameter ''"},
        {".a=1", "Invalid parameter '.a'"},
        {"a.=1", "Invalid parameter 'a.'"},
        {"a..b=1", "Invalid parameter 'a..b'"},
        {"1=1", "Invalid parameter '1'"},
        {"0.a=1", "Invalid parameter '0.a'"},
        {"a b=1", "Invalid parameter 'a b'"},
        {"a.00=1", "Invalid parameter 'a.00'"},
        {"a.9999999999=1", "Invalid parameter 'a.9999999999'"},
        {"a=1,a.b=2", "Parameters 'a.*' used inconsistently"},
        {"a.b=1,a=2", "Parameters 'a.*' used inconsistently"},
        {"x.a.b=1,x.a=2", "Parameters 'x.a.*' used inconsistently"},
        {"a.0=1,a.b=2", "Parameters 'a.*' used inconsistently"},
        {"a.1=1", "Parameter 'a.0' missing"},
        {"b.a.0=1,b.a.2=1", "Parameter 'b.a.1' missing"},
        {"a.999999999=1", "Parameter 'a.0' missing"},
        {"a=\xff", "Options must be valid UTF-8"},
        {"{\"a\"", "JSON parse error, premature end of input"},
        {"json:", "JSON parse error, premature end of input"},
        {"{} x", "JSON parse error, something follows the value"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(table); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(Tree) node = keyval_parse(table[i].text, NULL, &error);
        if (!table[i].message) {
            assert_non_null(node);
            continue;
        }
        if (node)
            fail_msg("%s: accepted", table[i].text);
        assert_string_equal(error->message, table[i].message);
    }
}

static void test_deep(void **state)
{
    GString *key = g_string_new("a");
    for (int i = 1; i < JSON_MAX_DEPTH; i++)
        g_string_append(key, ".a");
    g_autofree char *deepest = g_strconcat(key->str, "=1", NULL);
    g_autoptr(Tree) node = keyval_parse(deepest, NULL, NULL);
    assert_non_null(node);
    g_autofree char *deeper = g_strconcat(key->str, ".a=1", NULL);
    assert_null(keyval_parse(deeper, NULL, NULL));
    g_string_free(key, TRUE);
}

static void test_by_steps(void **state)
{
    g_autoptr(GError) error = NULL;
    Tree *root = tree_object();
    assert_true(keyval_put(root, "driver", "null-co", &error));
    assert_true(keyval_put(root, "cache.direct", "on", &error));
    assert_false(keyval_put(root, "cache", "on", &error));
    assert_string_equal(error->message, "Parameters 'cache.*' used inconsistently");
    g_clear_error(&error);
    g_autoptr(Tree) tree = keyval_finish(root, &error);
    g_autoptr(BlockdevOptions) node = qapi_decode_keyval_BlockdevOptions(tree, &error);
    assert_non_null(node);
    assert_true(node->cache->direct);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_deep),
        cmocka_unit_test(test_by_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
