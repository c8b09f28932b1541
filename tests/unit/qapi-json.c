/*
 * The JSON parser and printer: what is good, what is bad and why, and that a stream may be cut anywhere.
 */
#include "qapi/rt/json.h"
#include "qapi/rt/tree.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void assert_parses(const char *text, const char *printed)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) node = json_parse(text, -1, &error);
    if (!node)
        fail_msg("%s: %s", text, error->message);
    g_autofree char *out = json_to_str(node, false);
    assert_string_equal(out, printed);
}

static void assert_refused(const char *text, gssize len, const char *reason)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) node = json_parse(text, len, &error);
    if (node)
        fail_msg("%s: accepted", text);
    if (!strstr(error->message, reason))
        fail_msg("%s: \"%s\" does not tell \"%s\"", text, error->message, reason);
}

static const struct {
    const char *text, *printed;
} good[] = {
    {"{}", "{}"},
    {" [ ] \n", "[]"},
    {"null", "null"},
    {"true", "true"},
    {"[false]", "[false]"},
    {"\"\"", "\"\""},
    {"{\"b\":1,\"a\":2}", "{\"b\": 1, \"a\": 2}"},
    {"{'a': 'it\\'s \"x\"'}", "{\"a\": \"it's \\\"x\\\"\"}"},
    {"[[],{},[[{}]]]", "[[], {}, [[{}]]]"},
    {"0", "0"},
    {"-0", "0"},
    {"[9223372036854775807,-9223372036854775808]", "[9223372036854775807, -9223372036854775808]"},
    {"[9223372036854775808,18446744073709551615]", "[9223372036854775808, 18446744073709551615]"},
    {"[1.5,1e2,-2.5E-1,0.0]", "[1.5, 100.0, -0.25, 0.0]"},
    {"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\"", "\"\\\"\\\\/\\b\\f\\n\\r\\tA\""},
    {"\"\\u00e9 \xc3\xa9 \\ud83d\\ude00 \xf0\x9f\x98\x80\"", "\"\\u00E9 \\u00E9 \\uD83D\\uDE00 \\uD83D\\uDE00\""},
    {"\"\x7f\"", "\"\\u007F\""},
    {"\"\\u0001\\u001f\"", "\"\\u0001\\u001F\""},
    {"\"\xf4\x8f\xbf\xbf\"", "\"\\uDBFF\\uDFFF\""},
    {"{\"a\":{\"a\":{\"a\":[1,{\"a\":2}]}}}", "{\"a\": {\"a\": {\"a\": [1, {\"a\": 2}]}}}"},
};

static const struct {
    const char *text, *reason;
} bad[] = {
    {"", "premature end"},
    {"  ", "premature end"},
    {"{", "premature end"},
    {"[1", "premature end"},
    {"{\"a\":1", "premature end"},
    {"\"abc", "premature end"},
    {"{} {}", "something follows"},
    {"1 2", "something follows"},
    {"nul", "invalid keyword 'nul'"},
    {"True", "invalid keyword 'True'"},
    {"NaN", "invalid keyword 'NaN'"},
    {"[Infinity]", "invalid keyword 'Infinity'"},
    {"[-Infinity]", "malformed number '-Infinity'"},
    {"[01]", "malformed number '01'"},
    {"[-01]", "malformed number '-01'"},
    {"[+1]", "malformed number '+1'"},
    {"[1.]", "malformed number '1.'"},
    {"[.5]", "malformed number '.5'"},
    {"[1e]", "malformed number '1e'"},
    {"[1e+]", "malformed number '1e+'"},
    {"[0x10]", "malformed number '0x10'"},
    {"[1_000]", "malformed number '1_000'"},
    {"[--1]", "malformed number '--1'"},
    {"[-]", "malformed number '-'"},
    {"[12ab]", "malformed number '12ab'"},
    {"[18446744073709551616]", "number '18446744073709551616' is out of range"},
    {"[-9223372036854775809]", "out of range"},
    {"[1e999]", "number '1e999' is out of range"},
    {"[-1e999]", "out of range"},
    {"[1,]", "expecting value"},
    {"[,1]", "expecting value"},
    {"[1 2]", "expected separator in list"},
    {"{\"a\":1 \"b\":2}", "expected separator in dict"},
    {"{\"a\" 1}", "missing : in object pair"},
    {"{\"a\"}", "missing : in object pair"},
    {"{\"a\",\"b\"}", "missing : in object pair"},
    {"{\"a\":}", "expecting value"},
    {"{\"a\":,}", "expecting value"},
    {"{\"a\"::1}", "stray ':'"},
    {"{\"a\":1,}", "key is not a string"},
    {"{,}", "expecting value"},
    {"{1:2}", "key is not a string"},
    {"{null:2}", "key is not a string"},
    {"{[]:2}", "key is not a string"},
    {"{\"a\":1]", "']' where '}' is expected"},
    {"[1}", "'}' where ']' is expected"},
    {"]", "stray ']'"},
    {"}", "stray '}'"},
    {":", "stray ':'"},
    {"{\"a\":1,\"a\":2}", "duplicate key"},
    {"{\"a\":1,\"\\u0061\":2}", "duplicate key"},
    {"{\"x\":{\"a\":1,'a':2}}", "duplicate key"},
    {"\"\\x\"", "invalid escape"},
    {"\"\\u12g4\"", "invalid escape"},
    {"\"\\u\"", "invalid escape"},
    {"\"\\u0000\"", "\\u0000 is not a valid"},
    {"\"\\ud800\"", "\\ud800 is not a valid"},
    {"\"\\ud800x\"", "\\ud800 is not a valid"},
    {"\"\\ud800\\n\"", "\\ud800 is not a valid"},
    {"\"\\ud800\\u0041\"", "\\ud800 is not a valid"},
    {"\"\\ud800\\ud800\"", "\\ud800 is not a valid"},
    {"\"\\udc00\"", "\\udc00 is not a valid"},
    {"\"a\nb\"", "control character 0x0a"},
    {"\"a\tb\"", "control character 0x09"},
    {"\"\x80\"", "invalid UTF-8"},
    {"\"\xc0\xaf\"", "invalid UTF-8"},         /* overlong '/' */
    {"\"\xe0\x80\xaf\"", "invalid UTF-8"},     /* overlong in three */
    {"\"\xed\xa0\x80\"", "invalid UTF-8"},     /* a surrogate */
    {"\"\xf4\x90\x80\x80\"", "invalid UTF-8"}, /* above U+10FFFF */
    {"\"\xc3\"", "invalid UTF-8"},             /* cut short */
    {"\"\xc3\\u00a9\"", "invalid UTF-8"},
    {"{\"\xff\":1}", "invalid UTF-8"},
    {"\xff", "stray byte 0xff"},
    {"\xef\xbb\xbf{}", "stray byte 0xef"},
    {"@", "stray '@'"},
    {"[1;2]", "stray ';'"},
    {"/* */ 1", "stray '/'"},
};

static void test_good(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        assert_parses(good[i].text, good[i].printed);
        assert_parses(good[i].printed, good[i].printed);
    }
}

static void test_bad(void **state)
{
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++)
        assert_refused(bad[i].text, -1, bad[i].reason);
    assert_refused("{}\0", 3, "something follows");
    assert_refused("\0", 1, "stray byte 0x00");
    assert_refused("\"a\0b\"", 5, "control character 0x00");
}

/* Everything that a stream gives for a text fed in pieces of @piece bytes, a line each. */
static char *stream_all(const char *text, size_t len, size_t piece)
{
    g_autoptr(JsonStream) stream = json_stream_new();
    GString *out = g_string_new(NULL);
    for (size_t at = 0; at < len; at += piece) {
        json_stream_feed(stream, text + at, MIN(piece, len - at));
        for (;;) {
            g_autoptr(Tree) node = NULL;
            g_autoptr(GError) error = NULL;
            JsonStreamResult result = json_stream_next(stream, &node, &error);
            assert_int_equal(result == JSON_STREAM_ERROR, error != NULL);
            assert_int_equal(result == JSON_STREAM_MESSAGE, node != NULL);
            if (result == JSON_STREAM_NEED_MORE)
                break;
            if (node)
                json_print(node, false, out);
            else
                g_string_append(out, error->message);
            g_string_append_c(out, '\n');
        }
    }
    if (json_stream_pending(stream))
        g_string_append(out, "pending\n");
    return g_string_free(out, FALSE);
}

static void assert_stream(const char *text, const char *expected)
{
    size_t len = strlen(text);
    for (size_t piece = 1; piece <= len; piece++) {
        g_autofree char *got = stream_all(text, len, piece);
        if (strcmp(got, expected))
            fail_msg("in pieces of %zu:\n%s\ngave\n%s\nand not\n%s", piece, text, got, expected);
    }
}

static void test_stream_splits(void **state)
{
    GString *text = g_string_new(NULL), *expected = g_string_new(NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        g_string_append_printf(text, "%s\n", good[i].text);
        g_string_append_printf(expected, "%s\n", good[i].printed);
    }
    assert_stream(text->str, expected->str);
    g_string_free(text, TRUE);
    g_string_free(expected, TRUE);
}

static void test_stream_joined(void **state)
{
    assert_stream("{}{}[1][2]\"a\"'b'", "{}\n{}\n[1]\n[2]\n\"a\"\n\"b\"\n");
    assert_stream("1 2\n", "1\n2\n");
    assert_stream("{\"a\":", "pending\n");
    assert_stream("  \n\n ", "");
    assert_stream("{\"a\":[1,\n2],\n\"b\":{\n}}", "{\"a\": [1, 2], \"b\": {}}\n");
}

static void test_stream_recovers(void **state)
{
    /* The bracket that closes the bad value ends the skipping, on whatever line it is. */
    assert_stream("{\"a\":@,\"b\":{\"c\":[1]}}{\"d\":1}", "JSON parse error, stray '@'\n{\"d\": 1}\n");
    assert_stream("{\"a\":@,\n \"b\":{\n \"c\":[1]}\n}\n{\"d\":1}", "JSON parse error, stray '@'\n{\"d\": 1}\n");
    assert_stream("{\"a\":1,\"a\":\"}\"}{}", "JSON parse error, duplicate key\n{}\n");
    assert_stream("{\"a\":\"\\x}{\"}{}", "JSON parse error, invalid escape sequence in string\n{}\n");
    assert_stream("{\"a\":\"\\x\\\"}{\"}{}", "JSON parse error, invalid escape sequence in string\n{}\n");
    assert_stream("[1}[2]", "JSON parse error, '}' where ']' is expected\n[2]\n");
    /* An unclosed value does not swallow the next line. */
    assert_stream("{\"a\":1\n{\"b\":2}\n", "JSON parse error, expected separator in dict\n{\"b\": 2}\n");
    assert_stream("{\"a\":[\"x\n{\"b\":2}\n", "JSON parse error, control character 0x0a in string\n{\"b\": 2}\n");
    /* Garbage between values. */
    assert_stream("foo bar \"baz\n{\"b\":2}\n", "JSON parse error, invalid keyword 'foo'\n{\"b\": 2}\n");
    assert_stream("}}]{\"b\":2}\n", "JSON parse error, stray '}'\n{\"b\": 2}\n");
    assert_stream("\xff\xff\n{\"b\":2}", "JSON parse error, stray byte 0xff\n{\"b\": 2}\n");
    assert_stream("@\n1\n", "JSON parse error, stray '@'\n1\n");
    /* One error after the other. */
    assert_stream("{\"a\":1]{\"a\":01}{}", "JSON parse error, ']' where '}' is expected\n"
                                           "JSON parse error, malformed number '01'\n{}\n");
}

static char *nested(int depth)
{
    GString *text = g_string_new(NULL);
    for (int i = 0; i < depth; i++)
        g_string_append(text, i % 2 ? "{\"a\":" : "[");
    g_string_append(text, "1");
    for (int i = depth; i-- > 0;)
        g_string_append_c(text, i % 2 ? '}' : ']');
    return g_string_free(text, FALSE);
}

static void test_depth(void **state)
{
    g_autofree char *deepest = nested(JSON_MAX_DEPTH);
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) node = json_parse(deepest, -1, &error);
    assert_non_null(node);
    g_autofree char *printed = json_to_str(node, false);
    g_autoptr(Tree) again = json_parse(printed, -1, &error);
    assert_true(tree_equal(node, again));

    g_autofree char *deeper = nested(JSON_MAX_DEPTH + 1);
    assert_refused(deeper, -1, "nested deeper than 256 levels");
    g_autofree char *far_too_deep = nested(200000);
    g_autofree char *text = g_strconcat(far_too_deep, "{}", NULL);
    g_autofree char *got = stream_all(text, strlen(text), 4096);
    assert_string_equal(got, "JSON value is nested deeper than 256 levels\n{}\n");
}

static void test_size(void **state)
{
    size_t len = JSON_MAX_SIZE;
    g_autofree char *text = g_malloc(len + 8);
    memset(text, 'x', len + 8);
    text[0] = text[len - 1] = '"';
    g_autoptr(Tree) node = json_parse(text, (gssize)len, NULL);
    assert_non_null(node);
    assert_int_equal(strlen(tree_as_string(node)), len - 2);

    memcpy(text, "{\"a\":\"", 6);
    text[len - 1] = 'x';
    memcpy(text + len, "\"}[1]\n{}", 8);
    assert_refused(text, (gssize)len + 2, "JSON value is larger than 4194304 bytes");
    g_autofree char *got = stream_all(text, len + 8, 65536);
    assert_string_equal(got, "JSON value is larger than 4194304 bytes\n[1]\n{}\n");
    /* Blanks between values do not count. */
    memset(text, ' ', len + 8);
    memcpy(text + len, "[]", 2);
    g_autofree char *blanks = stream_all(text, len + 8, 65536);
    assert_string_equal(blanks, "[]\n");
}

static void test_limits(void **state)
{
    GString *many = g_string_new("[0");
    for (int i = 0; i < JSON_MAX_TOKENS / 2; i++)
        g_string_append(many, ",0");
    g_string_append(many, "]");
    assert_refused(many->str, -1, "more than 262144 tokens");
    g_string_assign(many, "{\"k\":0");
    for (int i = 0; i < JSON_MAX_MEMBERS; i++)
        g_string_append_printf(many, ",\"k%d\":0", i);
    g_string_append(many, "}");
    assert_refused(many->str, -1, "more than 8192 members");
    g_string_assign(many, "0.");
    for (int i = 0; i < JSON_MAX_WORD; i++)
        g_string_append_c(many, '1');
    assert_refused(many->str, -1, "longer than 512 characters");
    g_string_free(many, TRUE);
}

static void test_print(void **state)
{
    g_autoptr(Tree) node = json_parse("{\"a\":[1,{\"b\":[],\"c\":{}}],\"d\":\"e\"}", -1, NULL);
    g_autofree char *pretty = json_to_str(node, true);
    assert_string_equal(pretty,
                        "{\n    \"a\": [\n        1,\n        {\n            \"b\": [],\n            \"c\": {}\n"
                        "        }\n    ],\n    \"d\": \"e\"\n}");
    g_autoptr(Tree) odd = tree_string("a\xff\xc3z\xe2\x82");
    g_autofree char *replaced = json_to_str(odd, false);
    assert_string_equal(replaced, "\"a\\uFFFD\\uFFFDz\\uFFFD\\uFFFD\"");
    g_autoptr(Tree) nan = tree_double(strtod("nan", NULL));
    g_autofree char *null = json_to_str(nan, false);
    assert_string_equal(null, "null");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_bad),
        cmocka_unit_test(test_stream_splits),
        cmocka_unit_test(test_stream_joined),
        cmocka_unit_test(test_stream_recovers),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_size),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_print),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
