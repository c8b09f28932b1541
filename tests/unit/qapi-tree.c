/*
 * Trees: the order of members, names among few and many of them, copies, equality.
 */
#include "qapi/rt/tree.h"
#include "qapi/rt/json.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>

static Tree *parse(const char *text)
{
    g_autoptr(GError) error = NULL;
    Tree *tree = json_parse(text, -1, &error);
    if (!tree)
        fail_msg("%s: %s", text, error->message);
    return tree;
}

static void assert_prints(const Tree *tree, const char *text)
{
    g_autofree char *printed = json_to_str(tree, false);
    assert_string_equal(printed, text);
}

/* Thousands of random changes, beside a list of names that is searched from its beginning. */
static void test_model(void **state)
{
    enum { NAMES = 40, STEPS = 20000 };
    g_autoptr(Tree) tree = tree_object();
    g_autoptr(GArray) names = g_array_new(FALSE, FALSE, sizeof(int));
    int64_t values[NAMES];
    guint32 seed = 5;
    guint most = 0;
    for (int step = 0; step < STEPS; step++) {
        seed = seed * 1664525 + 1013904223;
        int n = (int)(seed >> 16) % NAMES;
        /* Now more are added, now more are taken away. */
        bool remove = (int)(seed >> 8 & 7) < (step / 500 % 2 ? 6 : 2);
        guint place = 0;
        while (place < names->len && g_array_index(names, int, place) != n)
            place++;
        g_autofree char *name = g_strdup_printf("n%d", n);
        if (remove) {
            tree_remove(tree, name);
            if (place < names->len)
                g_array_remove_index(names, place);
        } else {
            tree_set(tree, name, tree_int(values[n] = step));
            if (place == names->len)
                g_array_append_val(names, n);
        }
        most = MAX(most, names->len);
        assert_int_equal(tree_size(tree), names->len);
        for (guint i = 0; i < names->len; i++) {
            int want = g_array_index(names, int, i);
            const char *got;
            g_autofree char *wanted = g_strdup_printf("n%d", want);
            assert_int_equal(tree_as_int(tree_member(tree, i, &got)), values[want]);
            assert_string_equal(got, wanted);
            assert_int_equal(tree_get_int(tree, wanted, -1), values[want]);
        }
        if (remove)
            assert_null(tree_get(tree, name));
    }
    assert_true(most > 30); /* it has had a table, and lost it */
}

static void test_copy(void **state)
{
    g_autoptr(Tree) tree = parse("{'a':[1,{'b':'c'}],'d':{'e':null,'f':-1.5},'g':true,'h':18446744073709551615}");
    g_autoptr(Tree) copy = tree_copy(tree);
    assert_true(tree_equal(tree, copy));
    tree_set_string(tree_element(tree_get(copy, "a"), 1), "b", "other");
    assert_false(tree_equal(tree, copy));
    tree_set(tree_get(copy, "d"), "e", tree_bool(false));
    tree_add(tree_get(copy, "a"), tree_list());
    assert_prints(tree, "{\"a\": [1, {\"b\": \"c\"}], \"d\": {\"e\": null, \"f\": -1.5}, \"g\": true, "
                        "\"h\": 18446744073709551615}");
    assert_prints(copy, "{\"a\": [1, {\"b\": \"other\"}, []], \"d\": {\"e\": false, \"f\": -1.5}, \"g\": true, "
                        "\"h\": 18446744073709551615}");
}

static void test_equal(void **state)
{
    static const char *const different[] = {
        "null",          "true",     "false", "0",       "1",       "9223372036854775808",
        "1.0",           "2.0",      "''",    "'1'",     "[]",      "[1]",
        "[1,2]",         "[2,1]",    "{}",    "{'a':1}", "{'b':1}", "{'a':2}",
        "{'a':1,'b':1}", "{'a':[]}",
    };
    for (size_t i = 0; i < G_N_ELEMENTS(different); i++) {
        for (size_t j = 0; j < G_N_ELEMENTS(different); j++) {
            g_autoptr(Tree) a = parse(different[i]), b = parse(different[j]);
            if (tree_equal(a, b) != (i == j))
                fail_msg("%s and %s", different[i], different[j]);
        }
    }
    g_autoptr(Tree) a = parse("{'a':1,'b':{'c':2,'d':3}}"), b = parse("{'b':{'d':3,'c':2},'a':1}");
    assert_true(tree_equal(a, b));
}

static void test_scalars(void **state)
{
    g_autoptr(Tree) small = tree_uint(INT64_MAX), large = tree_uint((uint64_t)INT64_MAX + 1);
    g_autoptr(Tree) object = parse("{'s':'x','i':-3,'u':9223372036854775808}");
    assert_int_equal(tree_kind(small), TREE_INT);
    assert_int_equal(tree_kind(large), TREE_UINT);
    assert_true(tree_as_double(large) == 9223372036854775808.0);
    assert_true(tree_as_double(tree_get(object, "i")) == -3.0);
    assert_null(tree_as_string(NULL));
    assert_null(tree_as_string(small));
    assert_string_equal(tree_get_string(object, "s"), "x");
    assert_null(tree_get_string(object, "i"));
    assert_null(tree_get_string(object, "none"));
    assert_int_equal(tree_get_int(object, "i", 7), -3);
    assert_int_equal(tree_get_int(object, "u", 7), 7);
    assert_int_equal(tree_get_int(object, "s", 7), 7);
    assert_false(tree_is_object(NULL));
}

static void test_merge(void **state)
{
    g_autoptr(Tree) under = parse("{'a':{'b':1,'c':{'d':2}},'e':3,'f':{'g':4}}");
    g_autoptr(Tree) over = parse("{'a':{'c':{'h':5},'b':6},'e':{'i':7},'f':8,'j':{'k':9}}");
    tree_merge(under, over);
    assert_prints(under, "{\"a\": {\"b\": 6, \"c\": {\"d\": 2, \"h\": 5}}, \"e\": {\"i\": 7}, \"f\": 8, "
                         "\"j\": {\"k\": 9}}");
    tree_set(tree_get(under, "j"), "k", tree_null()); /* a copy: the other does not see it */
    assert_int_equal(tree_get_int(tree_get(over, "j"), "k", -1), 9);
}

static void test_append(void **state)
{
    g_autoptr(Tree) tree = parse("{'a':1}");
    tree_append(tree, "a", tree_int(2));
    tree_append(tree, "a", tree_int(3));
    tree_append(tree, "b", tree_null());
    assert_prints(tree, "{\"a\": [2, 3], \"b\": [null]}");
}

static void test_wipe(void **state)
{
    g_autoptr(Tree) tree = parse("{'a':'secret','b':[1,'secret',{'c':'secret'}]}");
    g_autoptr(Tree) kept = tree_ref(tree_get(tree, "a"));
    tree_wipe(tree);
    assert_prints(tree, "{\"a\": \"\", \"b\": [1, \"\", {\"c\": \"\"}]}");
    assert_memory_equal(tree_as_string(kept), "\0\0\0\0\0\0", 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),   cmocka_unit_test(test_copy),  cmocka_unit_test(test_equal),
        cmocka_unit_test(test_scalars), cmocka_unit_test(test_merge), cmocka_unit_test(test_append),
        cmocka_unit_test(test_wipe),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
