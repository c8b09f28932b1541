/*
 * What the tests of image formats share: a loop, a graph, a folder, a coroutine to run a test in, and qemu-img as the
 * judge.
 */
#pragma once
#include "block/graph/graph-int.h"
#include "block/graph/image.h"
#include "block/graph/port.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include "qapi/events.h"
#include "qapi/rt/json.h"
#include "qapi/rt/tree.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#include <glib/gstdio.h>

/* A failed test cannot jump out of a coroutine: it ends the program. */
static void __attribute__((constructor)) abort_on_failure(void)
{
    setenv("CMOCKA_TEST_ABORT", "1", 1);
}

enum { KIB = 1024, MIB = 1024 * 1024 };
#define RW (PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE)

static Loop *loop;
static Graph *graph;
static char *folder;

static inline char *in_folder(const char *name)
{
    return g_build_filename(folder, name, NULL);
}

/* Runs a shell command in the folder; its exit code. Its output goes to the file "log". */
static inline int G_GNUC_PRINTF(1, 2) shell(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, args);
    va_end(args);
    g_autofree char *command = g_strdup_printf("cd '%s' && { %s; } >log 2>&1", folder, text);
    int status = system(command);

    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

/* The command has to exit with one of the codes in @allowed (a bit mask). */
static inline void G_GNUC_PRINTF(2, 3) shell_must(unsigned allowed, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, args);
    va_end(args);
    int code = shell("%s", text);

    if (code > 31 || !(allowed >> code & 1)) {
        g_autofree char *log = in_folder("log"), *said = NULL;
        g_file_get_contents(log, &said, NULL, NULL);
        if (g_getenv("SD_KEEP"))
            g_printerr("kept: %s\n", folder);
        fail_msg("exit code %d of: %s\n%s", code, text, said);
    }
}

typedef struct TestBody {
    void (*fn)(void);
} TestBody;

static inline void test_co_entry(void *opaque)
{
    ((TestBody *)opaque)->fn();
    loop_stop(loop);
}

static inline void test_setup(void)
{
    driver_set_list(driver_list);
    loop = loop_new(NULL);
    assert_non_null(loop);
    graph = graph_new(loop);
    folder = g_dir_make_tmp("sd-image-XXXXXX", NULL);
    assert_non_null(folder);
}

static inline void test_teardown(void)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", folder);

    while (coroutine_count(loop)) /* whoever still has to end */
        loop_run(loop);
    graph_free(graph);
    loop_free(loop);
    if (!g_getenv("SD_KEEP"))
        assert_int_equal(system(command), 0);
    g_clear_pointer(&folder, g_free);
}

/* Runs a test's body in a coroutine, with everything set up. */
static inline void run_in_coroutine(void (*fn)(void))
{
    TestBody body = {fn};

    test_setup();
    coroutine_start(loop, test_co_entry, &body);
    if (coroutine_count(loop))
        loop_run(loop);
    test_teardown();
}

/* A cmocka test `name` whose body is the function name_co_body(). */
#define CO_TEST(name)                                                                                                  \
    static void name(void **state)                                                                                     \
    {                                                                                                                  \
        run_in_coroutine(name##_co_body);                                                                              \
    }

static inline Node *try_co_open(GError **error, const char *json)
{
    g_autoptr(Tree) tree = json_parse(json, strlen(json), error);
    g_autoptr(BlockdevOptions) options = tree ? qapi_decode_BlockdevOptions(tree, error) : NULL;

    return options ? node_co_open(graph, options, NULL, error) : NULL;
}

/* Opens what the text, JSON with ' for ", describes; must work. */
static inline Node *G_GNUC_PRINTF(1, 2) must_co_open(const char *fmt, ...)
{
    g_autoptr(GError) error = NULL;
    va_list args;
    va_start(args, fmt);
    g_autofree char *json = g_strdup_vprintf(fmt, args);
    va_end(args);
    Node *node = try_co_open(&error, json);

    if (!node)
        fail_msg("%s: %s", json, error->message);
    return node;
}

/* Opening must fail with a text that contains @text. */
static inline void G_GNUC_PRINTF(2, 3) must_co_refuse(const char *text, const char *fmt, ...)
{
    g_autoptr(GError) error = NULL;
    va_list args;
    va_start(args, fmt);
    g_autofree char *json = g_strdup_vprintf(fmt, args);
    va_end(args);
    Node *node = try_co_open(&error, json);

    if (node)
        fail_msg("%s was opened, but '%s' was expected", json, text);
    if (!strstr(error->message, text))
        fail_msg("%s: '%s' does not say '%s'", json, error->message, text);
}

static inline Port *must_co_port(Node *node, bool writable)
{
    g_autoptr(GError) error = NULL;
    Port *port = port_co_new(graph, node, writable ? RW : PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL, &error);

    if (!port)
        fail_msg("%s", error->message);
    port->writable = writable;
    return port;
}
