/*
 * Transactions, permissions and drained sections.
 */
#include "tests/graph/fake.h"
#include "block/aio/io.h"

#define SIZE 65536

static void conflict_co_entry(void *opaque)
{
    Node *node = fake_node("n", SIZE);
    Port *writer, *reader;
    GError *error = NULL;

    writer = port_co_new(fake_graph, node, PERM_WRITE, PERM_ALL & ~PERM_WRITE, NULL, NULL, &error);
    assert_non_null(writer);
    assert_int_equal(fake_of(node)->perm_set, 1);
    assert_null(port_co_new(fake_graph, node, PERM_WRITE, PERM_ALL, NULL, NULL, &error));
    assert_string_equal(error->message, "Permission conflict on node 'n': permissions 'write' are both required by an "
                                        "unnamed block device (uses node 'n' as 'root' child) and unshared by an "
                                        "unnamed block device (uses node 'n' as 'root' child).");
    g_clear_error(&error);
    assert_int_equal(g_queue_get_length(&node->parents), 1); /* nothing half done */
    assert_int_equal(node->cum_perm, PERM_WRITE);
    reader = port_co_new(fake_graph, node, PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL, &error);
    assert_non_null(reader);
    assert_false(port_co_set_perm(reader, PERM_WRITE, PERM_ALL, &error));
    g_clear_error(&error);
    assert_int_equal(reader->child->perm, PERM_CONSISTENT_READ);
    assert_true(port_co_set_perm(writer, 0, PERM_ALL, &error));
    assert_true(port_co_set_perm(reader, PERM_WRITE, PERM_ALL, &error));
    port_co_free(reader);
    port_co_free(writer);
    node_co_unref(node);
}

static void test_conflict(void **state)
{
    fake_run(conflict_co_entry);
}

/* A driver that refuses in the middle: everything is as before. */
static void refusal_co_entry(void *opaque)
{
    Node *a = fake_node("a", SIZE), *b = fake_node("b", SIZE), *filter = fake_co_filter("f", a);
    Port *port = port_co_new(fake_graph, filter, PERM_WRITE, PERM_ALL, NULL, NULL, NULL);
    g_autoptr(GraphTxn) txn = graph_txn_new(fake_graph);
    GError *error = NULL;
    int aborted;

    fake_of(b)->refuse_perm = true;
    aborted = fake_of(a)->perm_aborted;
    graph_txn_replace(txn, filter->file, b);
    assert_ptr_equal(filter->file->node, b);
    assert_false(graph_txn_co_commit(txn, &error));
    assert_string_equal(error->message, "fake 'b' refuses");
    g_clear_error(&error);
    assert_ptr_equal(filter->file->node, a);
    assert_int_equal(a->cum_perm, PERM_WRITE);
    assert_int_equal(b->cum_perm, 0);
    assert_true(g_queue_is_empty(&b->parents));
    assert_true(fake_of(a)->perm_aborted >= aborted);
    fake_of(b)->refuse_perm = false;

    graph_txn_free(g_steal_pointer(&txn));
    txn = graph_txn_new(fake_graph);
    graph_txn_replace(txn, filter->file, b);
    assert_true(graph_txn_co_commit(txn, &error));
    assert_int_equal(a->cum_perm, 0);
    assert_int_equal(b->cum_perm, PERM_WRITE);
    b->flags.read_only = true;
    assert_false(node_co_refresh_perms(b, &error));
    assert_non_null(strstr(error->message, "read-only"));
    g_clear_error(&error);
    b->flags.read_only = false;
    port_co_free(port);
    node_co_unref(filter);
    node_co_unref(a);
    node_co_unref(b);
}

static void test_refusal(void **state)
{
    fake_run(refusal_co_entry);
}

/* A filter goes in above a node that has users, and out again. */
static void insert_co_entry(void *opaque)
{
    Node *node = fake_node("n", SIZE), *filter = fake_co_filter("f", node), *top = fake_co_overlay("top", SIZE, node);
    Port *port = port_co_new(fake_graph, node, PERM_WRITE, PERM_ALL, NULL, NULL, NULL);
    g_autoptr(GraphTxn) txn = graph_txn_new(fake_graph);
    GError *error = NULL;

    assert_true(graph_txn_replace_node(txn, node, filter, NULL, &error));
    assert_true(graph_txn_co_commit(txn, &error));
    assert_ptr_equal(port_node(port), filter);
    assert_ptr_equal(top->backing->node, filter);
    assert_ptr_equal(filter->file->node, node); /* not itself: that would be a circle */
    assert_true(node_chain_contains(top, node));
    assert_ptr_equal(node_skip_filters(filter), node);
    assert_ptr_equal(node_backing(top), node);

    assert_true(node_freeze_chain(top, node, &error));
    graph_txn_free(g_steal_pointer(&txn));
    txn = graph_txn_new(fake_graph);
    assert_false(graph_txn_replace_node(txn, filter, node, NULL, &error));
    assert_string_equal(error->message, "Cannot change 'backing' link from 'top' to 'n'");
    g_clear_error(&error);
    node_unfreeze_chain(top, node);
    assert_true(graph_txn_replace_node(txn, filter, node, NULL, &error));
    assert_true(graph_txn_co_commit(txn, &error));
    assert_ptr_equal(port_node(port), node);
    assert_ptr_equal(top->backing->node, node);
    port_co_free(port);
    node_co_unref(top);
    node_co_unref(filter);
    node_co_unref(node);
}

static void test_insert(void **state)
{
    fake_run(insert_co_entry);
}

typedef struct Read {
    Port *port;
    bool done;
} Read;

static void read_co_entry(void *opaque)
{
    Read *r = opaque;
    uint8_t buf[512];

    assert_int_equal(port_co_pread(r->port, 0, sizeof(buf), buf, 0), 0);
    r->done = true;
}

static void drain_co_entry(void *opaque)
{
    struct {
        Node *node;
        bool drained;
    } *d = opaque;

    node_co_drained_begin(d->node);
    d->drained = true;
}

static void quiet_co_entry(void *opaque)
{
    Node *node = fake_node("n", SIZE), *filter = fake_co_filter("f", node);
    Port *port = port_co_new(fake_graph, filter, PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL, NULL);
    Read before = {port, false}, during = {port, false};
    struct {
        Node *node;
        bool drained;
    } d = {node, false};

    fake_of(node)->hold = true;
    coroutine_start(node->loop, read_co_entry, &before);
    coroutine_start(node->loop, drain_co_entry, &d);
    coroutine_start(node->loop, read_co_entry, &during);
    for (int i = 0; i < 5; i++)
        aio_co_reschedule();
    assert_false(d.drained); /* one request is still in flight */
    assert_int_equal(fake_of(node)->held_count, 1);
    fake_release(node);
    for (int i = 0; i < 5; i++)
        aio_co_reschedule();
    assert_true(before.done && d.drained && !during.done);

    /* The port moves while it is quiet; the request that waits goes to the new node. */
    Node *other = fake_node("other", SIZE);
    assert_true(port_co_set_node(port, other, NULL));
    for (int i = 0; i < 5; i++)
        aio_co_reschedule();
    assert_true(during.done); /* @other is not drained */
    g_autofree char *log = fake_log_take(other);
    assert_string_equal(log, "r0+512");
    node_drained_end(node);
    assert_int_equal(node->quiesced + filter->quiesced + port->quiesced, 0);
    port_co_free(port);
    node_co_unref(filter);
    node_co_unref(node);
    node_co_unref(other);
}

static void test_drain(void **state)
{
    fake_run(quiet_co_entry);
}

static void names_co_entry(void *opaque)
{
    static const NodeFlags none;
    static const char *const bad[] = {"9", "", "a b", "-x", "aaaaaaaaaabbbbbbbbbbccccccccccdd", "n"};
    Node *node = fake_node("n", SIZE);
    GError *error = NULL;

    for (guint i = 0; i < G_N_ELEMENTS(bad); i++) {
        assert_null(node_new_internal(fake_graph, node->drv, bad[i], &none, 0, &error));
        assert_non_null(error);
        g_clear_error(&error);
    }
    assert_ptr_equal(graph_lookup(fake_graph, "n", &error), node);
    assert_null(graph_lookup(fake_graph, "nobody", &error));
    assert_string_equal(error->message, "Cannot find device='nobody' nor node-name='nobody'");
    assert_int_equal(error->code, SD_ERROR_GENERIC);
    g_clear_error(&error);
    node_co_unref(node);
}

static void test_names(void **state)
{
    fake_run(names_co_entry);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conflict), cmocka_unit_test(test_refusal), cmocka_unit_test(test_insert),
        cmocka_unit_test(test_drain),    cmocka_unit_test(test_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
