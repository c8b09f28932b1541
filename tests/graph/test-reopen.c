/*
 * Read-only to writable and back, while drivers take their time and refuse, and others want to write meanwhile.
 */
#include "block/graph/port.h"
#include "block/graph/reopen.h"
#include "tests/graph/fake.h"

enum { SIZE = 64 * 1024 };

typedef struct Reopen {
    Node *node;
    bool read_only, done, ok;
    char *said;
} Reopen;

static void reopen_co_entry(void *opaque)
{
    Reopen *r = opaque;
    g_autoptr(GError) error = NULL;

    r->ok = node_co_set_read_only(r->node, r->read_only, &error);
    r->said = g_strdup(error ? error->message : "");
    r->done = true;
}

/* Starts it, and returns when the driver has been asked. */
static void start_co_reopen(Reopen *r)
{
    fake_of(r->node)->hold = true;
    r->done = false;
    coroutine_start(graph_loop(fake_graph), reopen_co_entry, r);
    while (!fake_of(r->node)->held_count)
        aio_co_reschedule();
}

static void finish_co_reopen(Reopen *r, const char *said)
{
    fake_release(r->node);
    while (!r->done)
        aio_co_reschedule();
    assert_string_equal(r->said, said);
    assert_int_equal(r->ok, !*said);
    g_clear_pointer(&r->said, g_free);
}

static void writer_co_refused(Node *node)
{
    g_autoptr(GError) error = NULL;

    assert_null(port_co_new(fake_graph, node, PERM_WRITE, PERM_ALL, NULL, NULL, &error));
    assert_non_null(strstr(error->message, "read-only"));
}

static void reopen_co_body(void *opaque)
{
    Reopen r = {.node = fake_node("n", SIZE), .read_only = true};
    Fake *f = fake_of(r.node);
    Port *port;

    for (int refuse = 0; refuse < 2; refuse++) {
        f->refuse_reopen = refuse;
        r.read_only = true;
        start_co_reopen(&r);
        writer_co_refused(r.node);
        finish_co_reopen(&r, refuse ? "fake 'n' stays as it is" : "");
        assert_int_equal(node_writable(r.node), refuse);
        if (refuse) {
            f->refuse_reopen = false;
            assert_true(node_co_set_read_only(r.node, true, NULL));
            f->refuse_reopen = true;
        }
        r.read_only = false;
        start_co_reopen(&r);
        writer_co_refused(r.node);
        finish_co_reopen(&r, refuse ? "fake 'n' stays as it is" : "");
        assert_int_equal(node_writable(r.node), !refuse);
    }
    f->refuse_reopen = false;
    assert_true(node_co_set_read_only(r.node, false, NULL));
    port = port_co_new(fake_graph, r.node, PERM_WRITE, PERM_ALL, NULL, NULL, NULL);
    assert_non_null(port);
    port_co_free(port);
    node_co_unref(r.node);
}

static void test_writer_meanwhile(void **state)
{
    fake_run(reopen_co_body);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_writer_meanwhile)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
