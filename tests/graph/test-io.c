/*
 * The request pipeline: alignment, splitting, overlaps, zeroes, flush, status.
 */
#include "tests/graph/fake.h"
#include "block/aio/io.h"

#define SIZE (256 * 1024)
#define RW   (PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE)

static Port *open_co_port(Node *node)
{
    GError *error = NULL;
    Port *port = port_co_new(fake_graph, node, RW, PERM_ALL, NULL, NULL, &error);

    assert_null(error);
    return port;
}

static void assert_log(Node *node, const char *want)
{
    g_autofree char *got = fake_log_take(node);

    assert_string_equal(got, want);
}

/* Requests of any size and place against a plain array; the fake checks that it only sees what its limits allow. */
static void model_co_entry(void *opaque)
{
    Node *node = fake_node("n", SIZE);
    Port *port;
    g_autofree uint8_t *model = g_malloc0(SIZE), *buf = g_malloc(SIZE + 64);
    g_autoptr(GRand) rand = g_rand_new_with_seed(41);

    node->limits =
        (Limits){.request_alignment = 512, .max_transfer = 8192, .min_mem_align = 4, .write_zeroes_align = 4096};
    port = open_co_port(node);
    for (int i = 0; i < 3000; i++) {
        uint64_t offset = (uint64_t)g_rand_int_range(rand, 0, SIZE - 1);
        uint64_t bytes = (uint64_t)g_rand_int_range(rand, 1, i % 3 ? 3000 : 40000);
        uint8_t *at = buf + g_rand_int_range(rand, 0, 64);
        bytes = MIN(bytes, SIZE - offset);
        /* In two pieces, now and then such as the fake takes. */
        uint64_t first = (uint64_t)g_rand_int_range(rand, 0, (int)bytes + 1) & (i % 5 ? ~UINT64_C(0) : ~UINT64_C(511));
        struct iovec iov[] = {{at, first}, {at + first, bytes - first}};
        IoVec vec = {.iov = iov, .n = 2, .size = bytes};
        if (i % 4 == 0) {
            assert_int_equal(port_co_preadv(port, offset, bytes, &vec, 0), 0);
            assert_memory_equal(at, model + offset, bytes);
        } else if (i % 4 == 1) {
            fake_of(node)->zeroes_native = i % 8 == 1;
            assert_int_equal(port_co_pwrite_zeroes(port, offset, bytes, 0), 0);
            memset(model + offset, 0, bytes);
        } else {
            fake_pattern(at, offset, bytes, (unsigned)i);
            memcpy(model + offset, at, bytes);
            assert_int_equal(port_co_pwritev(port, offset, bytes, &vec, 0), 0);
        }
        g_string_truncate(fake_of(node)->log, 0);
    }
    assert_memory_equal(fake_of(node)->data, model, SIZE);
    port_co_free(port);
    node_co_unref(node);
}

static void test_model(void **state)
{
    fake_run(model_co_entry);
}

typedef struct Write {
    Port *port;
    uint64_t offset, bytes;
    uint8_t value;
    bool done;
    int ret;
} Write;

static void write_co_entry(void *opaque)
{
    Write *w = opaque;
    g_autofree uint8_t *buf = g_malloc(w->bytes);

    memset(buf, w->value, w->bytes);
    w->ret = port_co_pwrite(w->port, w->offset, w->bytes, buf, 0);
    w->done = true;
}

/* Two partial writes to one block: the second must not read before the first has written. */
static void overlap_co_entry(void *opaque)
{
    Node *node = fake_node("n", SIZE);
    Port *port;
    Write a = {.offset = 0, .bytes = 100, .value = 1}, b = {.offset = 100, .bytes = 100, .value = 2},
          c = {.offset = 4096, .bytes = 512, .value = 3};

    node->limits.request_alignment = 512;
    port = a.port = b.port = c.port = open_co_port(node);
    fake_of(node)->hold = true;
    coroutine_start(node->loop, write_co_entry, &a);
    coroutine_start(node->loop, write_co_entry, &b);
    coroutine_start(node->loop, write_co_entry, &c);
    assert_log(node, "r0+512 w4096+512"); /* b waits, c does not overlap */
    fake_release(node);
    while (!a.done || !b.done || !c.done)
        aio_co_reschedule();
    assert_log(node, "w0+512 r0+512 w0+512");
    assert_int_equal(fake_of(node)->data[99], 1);
    assert_int_equal(fake_of(node)->data[100], 2);
    assert_int_equal(fake_of(node)->data[199], 2);
    assert_int_equal(fake_of(node)->data[200], 0);
    port_co_free(port);
    node_co_unref(node);
}

static void test_overlap(void **state)
{
    fake_run(overlap_co_entry);
}

/* Lets the request go on that has been held longest. */
static void held_co_pass(Node *node)
{
    coqueue_wake_one(&fake_of(node)->held);
    for (int i = 0; i < 4; i++)
        aio_co_reschedule();
}

/*
 * A partial write waits for another one; meanwhile a write of whole blocks passes it. When its turn comes it must not
 * read before that one has written, though that one came later.
 */
static void passed_co_entry(void *opaque)
{
    Node *node = fake_node("n", SIZE);
    Write a = {.offset = 0, .bytes = 100, .value = 1}, b = {.offset = 50, .bytes = 562, .value = 2},
          c = {.offset = 512, .bytes = 512, .value = 3};

    node->limits.request_alignment = 512;
    a.port = b.port = c.port = open_co_port(node);
    fake_of(node)->hold = true;
    coroutine_start(node->loop, write_co_entry, &a);
    held_co_pass(node); /* a has read */
    coroutine_start(node->loop, write_co_entry, &b);
    coroutine_start(node->loop, write_co_entry, &c);
    assert_log(node, "r0+512 w0+512 w512+512");
    held_co_pass(node);
    assert_true(a.done);
    assert_log(node, ""); /* b waits for c */
    fake_release(node);
    while (!a.done || !b.done || !c.done)
        aio_co_reschedule();
    assert_int_equal(fake_of(node)->data[49], 1);
    assert_int_equal(fake_of(node)->data[611], 2);
    assert_int_equal(fake_of(node)->data[612], 3);
    assert_int_equal(fake_of(node)->data[1023], 3);
    port_co_free(a.port);
    node_co_unref(node);
}

static void test_passed(void **state)
{
    fake_run(passed_co_entry);
}

static void zero_co_entry(void *opaque)
{
    Node *node = fake_node("n", SIZE);
    Port *port;

    node->limits = (Limits){.request_alignment = 512, .min_mem_align = 1, .write_zeroes_align = 4096};
    node->limits.max_write_zeroes = 8192;
    node->supported_zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK;
    port = open_co_port(node);
    assert_int_equal(port_co_pwrite_zeroes(port, 512, 20480, REQ_MAY_UNMAP), 0);
    assert_log(node, "z512+3584u z4096+8192u z12288+8192u z20480+512u");
    fake_of(node)->zeroes_native = false;
    assert_int_equal(port_co_pwrite_zeroes(port, 0, 512, REQ_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(port_co_pwrite_zeroes(port, 0, 512, 0), 0);
    assert_log(node, "w0+512");
    fake_of(node)->zeroes_native = true;
    assert_int_equal(port_co_pdiscard(port, 100, 1500), 0);
    assert_log(node, "d512+1024"); /* whole blocks only */
    node->flags.discard_unmap = false;
    assert_int_equal(port_co_pdiscard(port, 0, 4096), 0);
    assert_int_equal(port_co_pwrite_zeroes(port, 0, 4096, REQ_MAY_UNMAP), 0);
    assert_log(node, "z0+4096"); /* neither discards nor unmaps without discard=unmap */
    port_co_free(port);
    node_co_unref(node);
}

static void test_zeroes(void **state)
{
    fake_run(zero_co_entry);
}

static void flush_co_entry(void *opaque)
{
    Node *node = fake_node("n", SIZE), *top = fake_co_filter("f", node);
    Port *port = open_co_port(top);
    uint8_t byte = 1;

    assert_int_equal(port_co_flush(port), 0);
    assert_log(node, ""); /* nothing written, nothing to flush */
    assert_int_equal(port_co_pwrite(port, 0, 1, &byte, 0), 0);
    assert_int_equal(port_co_flush(port), 0);
    assert_int_equal(port_co_flush(port), 0);
    assert_log(node, "w0+1 f");
    assert_int_equal(port_co_pwrite(port, 0, 1, &byte, REQ_FUA), 0);
    assert_log(node, "w0+1 f"); /* FUA by flush where the driver has none */
    port->writethrough = true;
    assert_int_equal(port_co_pwrite(port, 0, 1, &byte, 0), 0);
    assert_log(node, "w0+1 f");
    assert_int_equal(port_co_pwrite_zeroes(port, 0, 512, 0), 0);
    assert_log(node, "z0+512 f");
    port->writethrough = false;
    node->supported_write_flags = REQ_FUA;
    top->supported_write_flags = 0;
    fake_of(node)->fail_flush = EIO;
    assert_int_equal(port_co_pwrite(port, 0, 1, &byte, 0), 0);
    assert_int_equal(port_co_flush(port), -EIO);
    fake_of(node)->fail_flush = 0;
    assert_int_equal(port_co_flush(port), -EIO); /* never retried into a false success */
    node->failed = false;                        /* so that closing is quiet */
    port_co_free(port);
    node_co_unref(top);
    node_co_unref(node);
}

static void test_flush(void **state)
{
    fake_run(flush_co_entry);
}

static bool first_half(uint64_t offset)
{
    return offset < SIZE / 4;
}

static bool nothing(uint64_t offset)
{
    return false;
}

static void status_co_entry(void *opaque)
{
    Node *base = fake_node("base", SIZE / 2), *mid = fake_co_overlay("mid", SIZE, base);
    Node *filter = fake_co_filter("filter", mid), *top = fake_co_overlay("top", SIZE, filter);
    BlockStatus st;
    uint64_t n;
    int depth;

    fake_of(top)->allocated = nothing;
    fake_of(mid)->allocated = first_half;
    assert_int_equal(node_co_block_status_above(top, NULL, true, 0, SIZE, &st, &depth), 0);
    assert_int_equal(st.flags & (STATUS_DATA | STATUS_ALLOCATED), STATUS_DATA | STATUS_ALLOCATED);
    assert_int_equal(st.bytes, SIZE / 4);
    assert_int_equal(depth, 1);
    assert_int_equal(node_co_block_status_above(top, NULL, true, SIZE / 4, SIZE, &st, &depth), 0);
    assert_int_equal(st.bytes, SIZE / 4);
    assert_int_equal(depth, 2);
    /* Past the end of the shorter base: zeroes. */
    assert_int_equal(node_co_block_status_above(top, NULL, true, SIZE / 2, SIZE, &st, NULL), 0);
    assert_int_equal(st.flags & (STATUS_ZERO | STATUS_DATA | STATUS_EOF), STATUS_ZERO | STATUS_EOF);
    assert_int_equal(st.bytes, SIZE / 2);
    assert_int_equal(node_co_is_allocated_above(top, mid, false, 0, SIZE, &n), 0);
    assert_int_equal(n, SIZE);
    assert_int_equal(node_co_is_allocated_above(top, mid, true, 0, SIZE, &n), 1);
    assert_int_equal(n, SIZE / 4);
    node_co_unref(top);
    node_co_unref(filter);
    node_co_unref(mid);
    node_co_unref(base);
}

static void test_status(void **state)
{
    fake_run(status_co_entry);
}

static void range_co_entry(void *opaque)
{
    Node *node = fake_node("n", 1024);
    Port *port = open_co_port(node), *ro;
    uint8_t buf[16] = {0};

    assert_int_equal(port_co_pread(port, 1020, 8, buf, 0), -EIO);
    assert_int_equal(port_co_pread(port, UINT64_MAX - 2, 8, buf, 0), -EIO);
    assert_int_equal(port_co_pwrite(port, 1020, 8, buf, 0), -EIO);
    assert_int_equal(port_co_pread(port, 1024, 0, buf, 0), 0);
    ro = port_co_new(fake_graph, node, PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL, NULL);
    assert_int_equal(port_co_pwrite(ro, 0, 8, buf, 0), -EPERM);
    fake_of(node)->fail = EIO;
    assert_int_equal(port_co_pread(port, 0, 8, buf, 0), -EIO);
    fake_of(node)->fail = 0;
    port->count_stats = true;
    assert_int_equal(port_co_pread(port, 0, 8, buf, 0), 0);
    assert_int_equal(port_co_pwrite(port, 8, 8, buf, 0), 0);
    assert_int_equal(port_co_pread(port, 1024, 8, buf, 0), -EIO);
    assert_int_equal(node->stats.ops[STAT_READ], 1);
    assert_int_equal(node->stats.bytes[STAT_WRITE], 8);
    assert_int_equal(node->stats.invalid[STAT_READ], 1);
    assert_int_equal(node->stats.highest_write, 16);
    port_co_free(ro);
    port_co_free(port);
    node_co_unref(node);
}

static void test_range(void **state)
{
    fake_run(range_co_entry);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_model),  cmocka_unit_test(test_overlap), cmocka_unit_test(test_passed),
        cmocka_unit_test(test_zeroes), cmocka_unit_test(test_flush),   cmocka_unit_test(test_status),
        cmocka_unit_test(test_range),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
