/*
 * Transactions that are undone while the world goes on: undoing a backup waits for its source, and meanwhile other
 * clients remove what the transaction made, delete its nodes and write.
 *
 * The source has a parent that says it is busy, from its third question on, until the test lets it go: the first two
 * are asked when the transaction drains the source and when the backup begins.
 */
#include "daemon/session.h"
#include "block/graph/bitmap.h"
#include "drivers-image.h"
#include "qapi/commands.h"

static Daemon *daemon_;
static QmpContext ctx;

/* The reply's error; NULL: it succeeded. Caller frees. */
static char *qmp_co_error(const char *name, const char *text)
{
    const QapiCommand *command = qapi_find_command(qapi_commands, qapi_n_commands, name);
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) reply = NULL;
    g_autoptr(Tree) tree = json_parse(text, strlen(text), &error);

    if (!command || !tree)
        fail_msg("%s %s: %s", name, text, error ? error->message : "no such command");
    return qapi_co_dispatch(command, &ctx, tree, &reply, &error) ? NULL : g_strdup(error->message);
}

static void qmp_co_must(const char *name, const char *text)
{
    g_autofree char *error = qmp_co_error(name, text);

    if (error)
        fail_msg("%s %s: %s", name, text, error);
}

/* ---- a parent that holds the source up -------------------------------------------------------------------------- */

static unsigned questions;
static bool let_go;

static bool brake_poll(Port *port)
{
    return ++questions > 2 && !let_go;
}

static const PortOps brake_ops = {.what = "brake", .drained_poll = brake_poll};

/* ---- the second client ------------------------------------------------------------------------------------------- */

typedef struct Client {
    const char *command, *arg;
    char *error;
    bool done;
} Client;

static void client_co_entry(void *opaque)
{
    Client *c = opaque;

    c->error = qmp_co_error(c->command, c->arg);
    c->done = true;
}

typedef struct Undone {
    const char *action; /* the first action, on bitmap "b" of node "n" */
    bool writes;        /* somebody writes to "n" meanwhile */
    Client other;
    const char *error; /* that the other gets, NULL: none */
    bool gone;         /* the bitmap, afterwards */
    uint64_t dirty;    /* bytes that it reports */
} Undone;

static void release_co_entry(void *opaque)
{
    const Undone *u = opaque;
    Node *n = graph_find_node(graph, "n");

    while (questions < 3)
        aio_co_reschedule();
    if (u->writes)
        node_mark_dirty(n, 128 * KIB, 1), n->write_gen++;
    coroutine_start(loop, client_co_entry, (void *)&u->other);
    for (int i = 0; i < 5; i++)
        aio_co_reschedule();
    let_go = true;
    graph_drain_kick(graph);
}

static void undone_co_case(Undone *u)
{
    g_autofree char *text =
        g_strdup_printf("{'actions':[{'type':'block-dirty-bitmap-%s,"
                        "{'type':'blockdev-backup','data':{'job-id':'j','device':'s','target':'t','sync':'full'}},"
                        "{'type':'block-dirty-bitmap-add','data':{'node':'s','name':'wrong','granularity':3}}]}",
                        u->action);
    g_autoptr(GError) none = NULL;
    Port *brake;
    Node *n;

    qmp_co_must("blockdev-add", "{'driver':'null-co','node-name':'s','size':1048576}");
    qmp_co_must("blockdev-add", "{'driver':'null-co','node-name':'t','size':1048576}");
    qmp_co_must("blockdev-add", "{'driver':'null-co','node-name':'n','size':1048576}");
    if (!g_str_has_prefix(u->action, "add"))
        qmp_co_must("block-dirty-bitmap-add", "{'node':'n','name':'b','granularity':65536}");
    n = graph_find_node(graph, "n");
    if (bitmap_find(n, "b"))
        node_mark_dirty(n, 0, 1);
    brake = port_co_new(graph, graph_find_node(graph, "s"), 0, PERM_ALL, &brake_ops, NULL, &none);
    assert_non_null(brake);
    questions = 0;
    let_go = false;
    coroutine_start(loop, release_co_entry, u);
    g_autofree char *error = qmp_co_error("transaction", text);
    assert_string_equal(error, "Granularity must be power of 2 and at least 512");
    assert_true(let_go);
    while (!u->other.done)
        aio_co_reschedule();
    if (g_strcmp0(u->other.error, u->error))
        fail_msg("%s, %s: %s", u->action, u->other.command, u->other.error);
    g_free(u->other.error);
    n = graph_find_node(graph, "n");
    assert_int_equal(u->gone, !n || !bitmap_find(n, "b"));
    if (!u->gone)
        assert_int_equal(bitmap_count(bitmap_find(n, "b")), u->dirty);
    port_co_free(brake);
    graph_co_close_all(graph);
}

#define B "','data':{'node':'n','name':'b'}}"
#define NOBODY                                                                                                         \
    {                                                                                                                  \
        "query-jobs", "{}"                                                                                             \
    }
#define REMOVE                                                                                                         \
    {                                                                                                                  \
        "block-dirty-bitmap-remove", "{'node':'n','name':'b'}"                                                         \
    }
#define DELETE                                                                                                         \
    {                                                                                                                  \
        "blockdev-del", "{'node-name':'n'}"                                                                            \
    }

#define IN_USE "Block device n is in use"

static Undone cases[] = {
    {.action = "add" B, .other = REMOVE, .error = "Dirty bitmap 'b' not found", .gone = true},
    {.action = "clear" B, .other = REMOVE, .gone = true},
    {.action = "disable" B, .other = REMOVE, .gone = true},
    {.action = "remove" B, .other = REMOVE, .error = "Dirty bitmap 'b' not found", .dirty = 65536},
    {.action = "add" B, .other = DELETE, .error = IN_USE, .gone = true},
    {.action = "clear" B, .other = DELETE, .error = IN_USE, .dirty = 65536},
    {.action = "disable" B, .other = DELETE, .error = IN_USE, .dirty = 65536},
    {.action = "remove" B, .other = DELETE, .error = IN_USE, .dirty = 65536},
    {.action = "clear" B, .other = NOBODY, .dirty = 65536},
    {.action = "clear" B, .writes = true, .other = NOBODY, .dirty = 131072},
    {.action = "merge','data':{'node':'n','target':'b','bitmaps':['b']}}", .other = NOBODY, .dirty = 65536},
    {.action = "merge','data':{'node':'n','target':'b','bitmaps':['b']}}",
     .writes = true,
     .other = NOBODY,
     .dirty = 131072},
    {.action = "disable" B, .other = NOBODY, .dirty = 65536},
    {.action = "disable" B, .writes = true, .other = NOBODY, .dirty = MIB},
    {.action = "remove" B, .other = NOBODY, .dirty = 65536},
    {.action = "remove" B, .writes = true, .other = NOBODY, .dirty = MIB},
};

static void undone_co_entry(void *opaque)
{
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++)
        undone_co_case(&cases[i]);
    daemon_end(daemon_, SHUTDOWN_CAUSE_HOST_QMP_QUIT);
}

static void undone(void **state)
{
    test_setup();
    graph_free(graph);
    daemon_ = daemon_new(loop);
    graph = daemon_->graph;
    ctx.daemon = daemon_;
    coroutine_start(loop, undone_co_entry, NULL);
    loop_run(loop);
    while (coroutine_count(loop))
        loop_run(loop);
    daemon_free(daemon_);
    graph = graph_new(loop);
    test_teardown();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(undone)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
