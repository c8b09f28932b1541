/*
 * What tests of single drivers share: a loop, a graph, a folder, and a coroutine to run a test's body in.
 */
#pragma once
#include "block/graph/graph-int.h"
#include "block/graph/port.h"
#include "block/graph/status.h"
#include "qapi/rt/json.h"
#include "qapi/rt/tree.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>
#include <glib/gstdio.h>

extern const Driver driver_file, driver_host_device, driver_raw, driver_nbd, driver_null_co, driver_null_aio;

static Loop *loop;
static Graph *graph;
static char *folder;

static void drivers_setup(void)
{
    static const Driver *const list[] = {
        &driver_file, &driver_host_device, &driver_raw, &driver_nbd, &driver_null_co, &driver_null_aio, NULL,
    };

    driver_set_list(list);
    loop = loop_new(NULL);
    assert_non_null(loop);
    graph = graph_new(loop);
    folder = g_dir_make_tmp("sd-drivers-XXXXXX", NULL);
    assert_non_null(folder);
}

static void drivers_teardown(void)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", folder);

    assert_int_equal(coroutine_count(loop), 0);
    graph_free(graph);
    loop_free(loop);
    assert_int_equal(system(command), 0);
    g_clear_pointer(&folder, g_free);
}

/* Runs @entry and whatever it starts to the end. */
static void drivers_run(CoroutineEntry *entry)
{
    coroutine_start(loop, entry, NULL);
    while (coroutine_count(loop))
        loop_run(loop);
}

/* Declares the test NAME, whose body is `static void NAME_co_body(void)`, run in a coroutine. */
#define DRIVERS_TEST(name)                                                                                             \
    static void name##_co_body(void);                                                                                  \
    static void name##_co_entry(void *opaque)                                                                          \
    {                                                                                                                  \
        name##_co_body();                                                                                              \
        loop_stop(loop);                                                                                               \
    }                                                                                                                  \
    static void name(void **state)                                                                                     \
    {                                                                                                                  \
        drivers_setup();                                                                                               \
        drivers_run(name##_co_entry);                                                                                  \
        drivers_teardown();                                                                                            \
    }

/* Opens what the JSON text describes. */
static Node *open_co_json(const char *json, GError **error)
{
    g_autoptr(Tree) tree = json_parse(json, strlen(json), error);
    g_autoptr(BlockdevOptions) options = tree ? qapi_decode_BlockdevOptions(tree, error) : NULL;

    return options ? node_co_open(graph, options, NULL, error) : NULL;
}

static Node *G_GNUC_PRINTF(1, 2) open_co_node(const char *format, ...)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *json = NULL;
    va_list args;
    Node *node;

    va_start(args, format);
    json = g_strdup_vprintf(format, args);
    va_end(args);
    node = open_co_json(json, &error);
    if (!node)
        fail_msg("%s: %s", json, error->message);
    return node;
}

/* Opening must fail, and its text contain @text. */
static void G_GNUC_PRINTF(2, 3) refuse_co_open(const char *text, const char *format, ...)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *json = NULL;
    va_list args;
    Node *node;

    va_start(args, format);
    json = g_strdup_vprintf(format, args);
    va_end(args);
    node = open_co_json(json, &error);
    if (node)
        fail_msg("%s was not refused", json);
    if (!strstr(error->message, text))
        fail_msg("%s: '%s' does not say '%s'", json, error->message, text);
}

static Port *port_co_open(Node *node, unsigned perm, unsigned shared)
{
    g_autoptr(GError) error = NULL;
    Port *port = port_co_new(graph, node, perm, shared, NULL, NULL, &error);

    if (!port)
        fail_msg("%s", error->message);
    port->writable = perm & PERM_WRITE;
    return port;
}

static char *in_folder(const char *name)
{
    return g_build_filename(folder, name, NULL);
}

/* A file of @size bytes, each @fill. The caller frees the name. */
static char *make_file(const char *name, size_t size, uint8_t fill)
{
    char *path = in_folder(name);
    g_autofree char *data = g_malloc(size + 1);

    memset(data, fill, size);
    assert_true(g_file_set_contents(path, data, (gssize)size, NULL));
    return path;
}

/* The whole file; the caller frees. */
static uint8_t *file_bytes(const char *path, size_t *ret_size)
{
    char *data;

    assert_true(g_file_get_contents(path, &data, ret_size, NULL));
    return (uint8_t *)data;
}

static inline void assert_all(const void *data, size_t size, uint8_t value)
{
    for (size_t i = 0; i < size; i++)
        if (((const uint8_t *)data)[i] != value)
            fail_msg("byte %zu of %zu is 0x%02x, not 0x%02x", i, size, ((const uint8_t *)data)[i], value);
}

/* Not every test uses every helper. */
static inline void drivers_common_used(void)
{
    (void)open_co_json;
    (void)open_co_node;
    (void)refuse_co_open;
    (void)port_co_open;
    (void)make_file;
    (void)file_bytes;
    (void)drivers_run;
    (void)drivers_setup;
    (void)drivers_teardown;
}
