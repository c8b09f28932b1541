/* Dirty bitmaps of nodes: what writes mark, freezing and thawing, resizing, queries. */
#include "tests/graph/fake.h"

#define KIB 1024

static void write_co_at(Port *port, uint64_t offset, uint64_t bytes, int want)
{
    g_autofree uint8_t *buf = g_malloc0(bytes);

    assert_int_equal(port_co_pwrite(port, offset, bytes, buf, 0), want);
}

static Port *port_co_rw(Node *node)
{
    Port *port =
        port_co_new(fake_graph, node, PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE, PERM_ALL, NULL, NULL, NULL);

    assert_non_null(port);
    return port;
}

static void writes_co_entry(void *opaque)
{
    Node *node = fake_node("n", 1024 * KIB);
    Port *port = port_co_rw(node);
    Bitmap *fine = bitmap_new(node, 512, "fine", NULL), *coarse = bitmap_new(node, 0, "coarse", NULL);

    assert_int_equal(coarse->granularity, 64 * KIB);
    write_co_at(port, 1000, 100, 0);
    assert_int_equal(bitmap_count(fine), 1024);
    assert_int_equal(bitmap_count(coarse), 64 * KIB);
    fake_of(node)->zeroes_native = true;
    assert_int_equal(port_co_pwrite_zeroes(port, 8 * KIB, 512, 0), 0);
    assert_int_equal(bitmap_count(fine), 1536);
    node->flags.discard_unmap = true;
    assert_int_equal(port_co_pdiscard(port, 16 * KIB, 1024), 0);
    assert_int_equal(bitmap_count(fine), 2560);
    /* A write that fails may have changed something. */
    fake_of(node)->fail = EIO;
    write_co_at(port, 32 * KIB, 512, -EIO);
    assert_int_equal(bitmap_count(fine), 3072);
    fake_of(node)->fail = 0;
    /* What does not change visible data does not count. */
    uint8_t block[512] = {0};
    assert_int_equal(port_co_pwrite(port, 512 * KIB, 512, block, REQ_WRITE_UNCHANGED), 0);
    assert_int_equal(bitmap_count(fine), 3072);
    fine->enabled = false;
    write_co_at(port, 700 * KIB, 512, 0);
    assert_int_equal(bitmap_count(fine), 3072);
    assert_int_equal(bitmap_count(coarse), 2 * 64 * KIB);
    port_co_free(port);
    node_co_unref(node); /* with its bitmaps */
}

static void test_writes(void **state)
{
    fake_run(writes_co_entry);
}

/* In flight and completed: the bit is set before the write completes, and not at its start. */
static Port *held_port;
static bool held_done;

static void held_co_entry(void *opaque)
{
    write_co_at(held_port, 0, 512, 0);
    held_done = true;
}

static void order_co_entry(void *opaque)
{
    Node *node = fake_node("n", 64 * KIB);
    Bitmap *bitmap = bitmap_new(node, 512, "b", NULL);

    held_port = port_co_rw(node);
    fake_of(node)->hold = true;
    coroutine_start(fake_graph->loop, held_co_entry, NULL);
    assert_int_equal(bitmap_count(bitmap), 0);
    fake_of(node)->hold = false;
    fake_release(node);
    while (!held_done)
        aio_co_reschedule();
    assert_int_equal(bitmap_count(bitmap), 512);
    port_co_free(held_port);
    node_co_unref(node);
}

static void test_order(void **state)
{
    fake_run(order_co_entry);
}

static void frozen_co_entry(void *opaque)
{
    g_autoptr(GError) error = NULL;
    Node *node = fake_node("n", 1024 * KIB);
    Port *port = port_co_rw(node);
    Bitmap *b = bitmap_new(node, 4096, "b", NULL);

    write_co_at(port, 0, 512, 0);
    assert_true(bitmap_freeze(b, NULL));
    assert_false(bitmap_freeze(b, &error));
    assert_string_equal(error->message, "Bitmap 'b' is currently in use by another operation and cannot be used");
    write_co_at(port, 8192, 512, 0);
    assert_int_equal(bitmap_count(b), 4096);
    assert_true(bitmap_recording(b));
    bitmap_thaw_merge(b);
    assert_int_equal(bitmap_count(b), 8192);

    assert_true(bitmap_freeze(b, NULL));
    write_co_at(port, 65536, 512, 0);
    bitmap_thaw_replace(b);
    assert_int_equal(bitmap_count(b), 4096);
    assert_true(hbitmap_get(b->bits, 65536));

    /* A disabled one comes out disabled, and records nothing meanwhile. */
    b->enabled = false;
    assert_true(bitmap_freeze(b, NULL));
    assert_false(bitmap_recording(b));
    write_co_at(port, 0, 512, 0);
    bitmap_thaw_replace(b);
    assert_int_equal(bitmap_count(b), 0);
    assert_false(b->enabled);

    /* Freed while frozen. */
    assert_true(bitmap_freeze(b, NULL));
    bitmap_free(b);
    port_co_free(port);
    node_co_unref(node);
}

static void test_frozen(void **state)
{
    fake_run(frozen_co_entry);
}

static void resize_co_entry(void *opaque)
{
    Node *node = fake_node("n", 64 * KIB);
    Port *port = port_co_rw(node);
    Bitmap *b = bitmap_new(node, 4096, "b", NULL);

    assert_true(bitmap_freeze(b, NULL));
    assert_true(port_co_truncate(port, 256 * KIB, true, PREALLOC_MODE_OFF, 0, NULL));
    write_co_at(port, 200 * KIB, 512, 0);
    bitmap_thaw_merge(b);
    assert_int_equal(hbitmap_size(b->bits), 256 * KIB);
    assert_true(hbitmap_get(b->bits, 200 * KIB));
    assert_true(port_co_truncate(port, 100 * KIB, true, PREALLOC_MODE_OFF, 0, NULL));
    assert_false(hbitmap_get(b->bits, 200 * KIB));
    bitmap_set(b, 96 * KIB, 1024 * KIB); /* cut at the end */
    assert_int_equal(bitmap_count(b), 4096);
    port_co_free(port);
    node_co_unref(node);
}

static void test_resize(void **state)
{
    fake_run(resize_co_entry);
}

static void refused(Bitmap *bitmap, GError **error, const char *want)
{
    assert_null(bitmap);
    assert_string_equal((*error)->message, want);
    g_clear_error(error);
}

static void names_co_entry(void *opaque)
{
    g_autoptr(GError) error = NULL;
    Node *node = fake_node("n", 64 * KIB), *found = NULL;
    Bitmap *b = bitmap_new(node, 4096, "b", NULL), *anonymous = bitmap_new(node, 4096, NULL, NULL);
    g_autofree char *longest = g_strnfill(1023, 'x'), *longer = g_strnfill(1024, 'x');

    assert_ptr_equal(bitmap_find(node, "b"), b);
    assert_null(bitmap_find(node, "c"));
    assert_ptr_equal(bitmap_lookup(fake_graph, "n", "b", &found, NULL), b);
    assert_ptr_equal(found, node);
    refused(bitmap_new(node, 4096, "b", &error), &error, "Bitmap already exists: b");
    refused(bitmap_new(node, 4096, "", &error), &error, "Bitmap name cannot be empty");
    refused(bitmap_lookup(fake_graph, "m", "b", NULL, &error), &error, "Node 'm' not found");
    refused(bitmap_lookup(fake_graph, "n", "c", NULL, &error), &error, "Dirty bitmap 'c' not found");
    for (int i = 0; i < 4; i++) {
        static const uint64_t bad[] = {1, 256, 4097, UINT64_C(1) << 32};
        refused(bitmap_new(node, bad[i], "c", &error), &error, "Granularity must be power of 2 and at least 512");
    }
    assert_false(bitmap_name_ok(longer, NULL));
    assert_true(bitmap_name_ok(longest, NULL));
    bitmap_free(anonymous);
    bitmap_free(NULL);
    node_co_unref(node);
}

static void test_names(void **state)
{
    fake_run(names_co_entry);
}

static void query_co_entry(void *opaque)
{
    g_autoptr(GError) error = NULL;
    Node *node = fake_node("n", 64 * KIB);
    Bitmap *job = bitmap_new(node, 4096, NULL, NULL), *b, *c;
    BlockDirtyInfoList *list;

    bitmap_set(job, 0, 512);
    assert_null(bitmap_query(node)); /* a job's own is not for clients */
    b = bitmap_new(node, 4096, "b", NULL);
    c = bitmap_new(node, 512, "c", NULL);
    bitmap_set(b, 5000, 1);
    assert_true(bitmap_freeze(b, NULL));
    c->enabled = false;
    list = bitmap_query(node);
    assert_int_equal(list->len, 2);
    assert_string_equal(list->items[0]->name, "b");
    assert_int_equal(list->items[0]->count, 4096);
    assert_true(list->items[0]->busy && list->items[0]->recording);
    assert_int_equal(list->items[0]->status, DIRTY_BITMAP_STATUS_FROZEN);
    assert_false(list->items[1]->busy || list->items[1]->recording);
    assert_int_equal(list->items[1]->granularity, 512);
    assert_int_equal(list->items[1]->status, DIRTY_BITMAP_STATUS_DISABLED);
    qapi_free_BlockDirtyInfoList(list);
    c->inconsistent = true;
    assert_false(bitmap_check(c, BITMAP_REFUSE_ALL, &error));
    assert_true(bitmap_check(c, BITMAP_REFUSE_BUSY, NULL));
    list = bitmap_query(node);
    assert_true(list->items[1]->has_inconsistent);
    qapi_free_BlockDirtyInfoList(list);
    bitmap_thaw_merge(b);
    node_co_unref(node);
}

static void test_query(void **state)
{
    fake_run(query_co_entry);
}

/* A job that sleeps is told of every write that set a bit. */
static int kicks;

static void on_dirty(void *opaque)
{
    kicks++;
}

static void kick_co_entry(void *opaque)
{
    Node *node = fake_node("n", 64 * KIB);
    Port *port = port_co_rw(node);
    Bitmap *b = bitmap_new(node, 4096, NULL, NULL);
    uint8_t block[512];

    b->dirtied = on_dirty;
    assert_int_equal(port_co_pread(port, 0, 512, block, 0), 0);
    assert_int_equal(kicks, 0);
    write_co_at(port, 0, 512, 0);
    assert_int_equal(kicks, 1);
    b->enabled = false;
    write_co_at(port, 0, 512, 0);
    assert_int_equal(kicks, 1);
    port_co_free(port);
    node_co_unref(node);
}

static void test_kick(void **state)
{
    fake_run(kick_co_entry);
}

/* ---- stored bitmaps and drained sections ------------------------------------------------------------------------- */

static bool touched;

static void touch_co_entry(void *opaque)
{
    assert_true(bitmap_co_touch(opaque, NULL));
    touched = true;
}

static void drain_co_entry(void *opaque)
{
    node_co_drained_begin(opaque);
    node_drained_end(opaque);
    touched = false;
}

/* Marking the image is no request of a parent, and yet nothing of it happens while the node is at rest, and who wants
 * it to rest waits for its end. */
static void touch_co_body_entry(void *opaque)
{
    Node *node = fake_node("n", 64 * KIB);
    Bitmap *b = bitmap_new(node, 4096, "b", NULL);

    assert_true(bitmap_co_touch(b, NULL)); /* is in no image */
    assert_int_equal(fake_of(node)->touched, 0);
    b->persistent = true;
    touched = false;
    node_co_drained_begin(node);
    coroutine_start(fake_graph->loop, touch_co_entry, b);
    for (int i = 0; i < 5; i++)
        aio_co_reschedule();
    assert_int_equal(fake_of(node)->touched, 0);
    node_drained_end(node);
    while (!touched)
        aio_co_reschedule();
    assert_int_equal(fake_of(node)->touched, 1);
    fake_of(node)->hold = true;
    coroutine_start(fake_graph->loop, touch_co_entry, b);
    coroutine_start(fake_graph->loop, drain_co_entry, node);
    for (int i = 0; i < 5; i++)
        aio_co_reschedule();
    assert_true(touched); /* of before */
    assert_int_equal(node->quiesced, 1);
    fake_release(node);
    while (touched)
        aio_co_reschedule();
    assert_int_equal(fake_of(node)->touched, 2);
    /* What cannot be written to cannot change. */
    assert_false(bitmap_readonly(b));
    node->flags.read_only = true;
    assert_true(bitmap_readonly(b));
    assert_true(bitmap_co_touch(b, NULL));
    assert_int_equal(fake_of(node)->touched, 2);
    node_co_unref(node);
}

static void test_touch(void **state)
{
    fake_run(touch_co_body_entry);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_writes), cmocka_unit_test(test_order), cmocka_unit_test(test_frozen),
        cmocka_unit_test(test_resize), cmocka_unit_test(test_names), cmocka_unit_test(test_query),
        cmocka_unit_test(test_kick),   cmocka_unit_test(test_touch),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
