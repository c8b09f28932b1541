/* raw: ranges of files, the guard of a guessed format; and the null drivers. */
#include "drivers-common.h"

#define RW (PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE)

/* A format that raw must not turn into: its magic is "EVIL". */
static int evil_probe(const uint8_t *buf, size_t size)
{
    return size >= 4 && !memcmp(buf, "EVIL", 4) ? 100 : 0;
}

static const Driver driver_evil = {.name = "evil", .is_format = true, .probe = evil_probe};

static void use_evil(void)
{
    static const Driver *const list[] = {&driver_file, &driver_raw, &driver_evil, NULL};
    driver_set_list(list);
}

DRIVERS_TEST(ranges)
static void ranges_co_body(void)
{
    g_autofree char *path = make_file("a", 8192, 0x11);
    Node *file = open_co_node("{'driver':'file','filename':'%s','node-name':'f'}", path);
    g_autofree uint8_t *all = NULL;
    uint8_t buf[8192];
    Node *node;
    Port *port;
    size_t size;

    refuse_co_open("Offset (9000) cannot be greater than size of the containing file (8192)",
                   "{'driver':'raw','file':'f','offset':9000}");
    refuse_co_open("The sum of offset (8000) and size (512) has to be smaller",
                   "{'driver':'raw','file':'f','offset':8000,'size':512}");
    refuse_co_open("Specified size is not multiple of 512", "{'driver':'raw','file':'f','size':513}");
    refuse_co_open("'offset' expects a non-negative number", "{'driver':'raw','file':'f','offset':-512}");
    refuse_co_open("'size' expects a non-negative number", "{'driver':'raw','file':'f','size':-512}");

    node = open_co_node("{'driver':'raw','file':'f','offset':1001,'size':1024}");
    port = port_co_open(node, RW, PERM_ALL);
    assert_int_equal(port_size(port), 1024);
    memset(buf, 0x22, sizeof(buf));
    assert_int_equal(port_co_pwrite(port, 0, 1024, buf, 0), 0);
    assert_int_equal(child_co_pwrite(port->child, 1000, 100, buf, 0), -ENOSPC);
    assert_int_equal(child_co_pwrite_zeroes(port->child, 1000, 100, 0), -ENOSPC);
    assert_int_equal(port_co_pwrite_zeroes(port, 100, 10, 0), 0);
    assert_int_equal(port_co_pread(port, 90, 30, buf, 0), 0);
    assert_all(buf, 10, 0x22);
    assert_all(buf + 10, 10, 0);
    assert_all(buf + 20, 10, 0x22);
    assert_false(port_co_truncate(port, 512, true, PREALLOC_MODE_OFF, 0, NULL));
    port_co_free(port);
    node_co_unref(node);

    node = open_co_node("{'driver':'raw','file':'f','offset':4096}");
    port = port_co_open(node, RW, PERM_ALL);
    assert_int_equal(port_size(port), 4096);
    assert_true(port_co_truncate(port, 8192, true, PREALLOC_MODE_OFF, 0, NULL));
    assert_int_equal(port_size(port), 8192);
    port_co_free(port);
    node_co_unref(node);
    node_co_unref(file);

    all = file_bytes(path, &size);
    assert_int_equal(size, 4096 + 8192);
    assert_all(all, 1001, 0x11);
    assert_all(all + 1001, 100, 0x22);
    assert_all(all + 1101, 10, 0);
    assert_all(all + 1111, 914, 0x22);
    assert_all(all + 2025, 8192 - 2025, 0x11);
    assert_all(all + 8192, 4096, 0);
}

DRIVERS_TEST(permissions)
static void permissions_co_body(void)
{
    g_autofree char *path = make_file("a", 8192, 0x11);
    Node *file = open_co_node("{'driver':'file','filename':'%s','node-name':'f'}", path);
    Node *plain = open_co_node("{'driver':'raw','file':'f'}");
    Node *range = open_co_node("{'driver':'raw','file':'f','offset':512}");
    Port *port = port_co_open(plain, PERM_CONSISTENT_READ, PERM_ALL);

    assert_int_equal(plain->file->perm, PERM_CONSISTENT_READ);
    assert_int_equal(plain->file->shared, PERM_ALL);
    assert_int_equal(range->file->perm, 0);
    assert_int_equal(range->file->shared, PERM_ALL & ~PERM_RESIZE);
    assert_false(port_co_set_perm(port, RW, PERM_ALL, NULL)); /* the range does not share resize */
    port_co_free(port);
    node_co_unref(range);
    port = port_co_open(plain, RW, PERM_CONSISTENT_READ);
    assert_int_equal(plain->file->perm, RW);
    assert_int_equal(plain->file->shared, PERM_CONSISTENT_READ);
    port_co_free(port);
    node_co_unref(plain);
    node_co_unref(file);
}

DRIVERS_TEST(status)
static void status_co_body(void)
{
    g_autofree char *path = make_file("a", 65536, 0x11);
    BlockStatus st;
    Node *node;

    assert_int_equal(truncate(path, 1 << 20), 0);
    node = open_co_node("{'driver':'raw','file':{'driver':'file','filename':'%s'},'offset':4096}", path);
    assert_int_equal(node_co_block_status(node, true, 0, 1 << 20, &st), 0);
    assert_int_equal(st.flags & (STATUS_DATA | STATUS_ZERO | STATUS_ALLOCATED | STATUS_OFFSET_VALID),
                     STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID);
    assert_int_equal(st.bytes, 65536 - 4096);
    assert_int_equal(st.map, 4096);
    assert_ptr_equal(st.file, node->file->node);
    assert_int_equal(node_co_block_status(node, true, 100000, 1 << 20, &st), 0);
    assert_int_equal(st.flags & (STATUS_DATA | STATUS_ZERO), STATUS_ZERO);
    assert_int_equal(st.bytes, (1 << 20) - 4096 - 100000);
    node_co_unref(node);
}

/* CVE-2008-2004 and its kin: a guest must not write a header for the next opening to believe. */
DRIVERS_TEST(guard)
static void guard_co_body(void)
{
    g_autofree char *path = make_file("a", 65536, 0);
    g_autofree char *evil = g_malloc0(65536);
    Port *port;
    Node *node;
    char buf[512];

    use_evil();
    node = node_co_open_filename(graph, path, NULL, NULL, NULL, NULL);
    assert_non_null(node);
    assert_true(node->probed);
    port = port_co_open(node, RW, PERM_ALL);
    memcpy(evil, "EVIL", 4);
    assert_int_equal(port_co_pwrite(port, 0, 512, evil, 0), -EPERM);
    assert_int_equal(port_co_pwrite(port, 0, 4, evil, 0), -EPERM);
    assert_int_equal(port_co_pwrite(port, 0, 65536, evil, 0), -EPERM);
    /* In two halves, the second one refused; and by zeroing what stands before it. */
    assert_int_equal(port_co_pwrite(port, 0, 2, "EV", 0), 0);
    assert_int_equal(port_co_pwrite(port, 2, 2, "IL", 0), -EPERM);
    assert_int_equal(port_co_pread(port, 0, 512, buf, 0), 0);
    assert_memory_equal(buf, "EV\0\0", 4);
    /* Anything else goes through, in one write and over the boundary. */
    evil[0] = 'D';
    memset(evil + 512, 0x33, 1024);
    assert_int_equal(port_co_pwrite(port, 0, 4096, evil, 0), 0);
    assert_int_equal(port_co_pwrite_zeroes(port, 1, 511, 0), 0);
    assert_int_equal(port_co_pwrite(port, 512, 4, "EVIL", 0), 0);
    assert_int_equal(port_co_pread(port, 0, 512, buf, 0), 0);
    assert_int_equal(buf[0], 'D');
    assert_all(buf + 1, 511, 0);
    port_co_free(port);
    node_co_unref(node);

    /* Named, the format is the user's own business. */
    node = node_co_open_filename(graph, path, "raw", NULL, NULL, NULL);
    port = port_co_open(node, RW, PERM_ALL);
    evil[0] = 'E';
    assert_int_equal(port_co_pwrite(port, 0, 512, evil, 0), 0);
    port_co_free(port);
    node_co_unref(node);
}

DRIVERS_TEST(null_drivers)
static void null_drivers_co_body(void)
{
    Node *plain = open_co_node("{'driver':'null-co'}");
    Node *zero = open_co_node("{'driver':'null-aio','size':100000,'read-zeroes':true,'latency-ns':20000000}");
    Port *port = port_co_open(zero, RW, PERM_ALL);
    int64_t start = loop_now(loop, LOOP_CLOCK_REAL);
    g_autofree uint8_t *buf = g_malloc(4096);
    BlockStatus st;

    assert_int_equal(plain->size, UINT64_C(1) << 30);
    assert_string_equal(plain->exact_filename, "null-co://");
    assert_null(zero->exact_filename);
    memset(buf, 1, 4096);
    assert_int_equal(port_co_pread(port, 95000, 4096, buf, 0), 0);
    assert_all(buf, 4096, 0);
    assert_true(loop_now(loop, LOOP_CLOCK_REAL) - start >= 20000000);
    assert_int_equal(port_co_pwrite(port, 0, 4096, buf, REQ_FUA), 0);
    assert_int_equal(port_co_flush(port), 0);
    assert_int_equal(node_co_block_status(zero, true, 0, 100000, &st), 0);
    assert_int_equal(st.flags & (STATUS_DATA | STATUS_ZERO), STATUS_ZERO);
    port_co_free(port);
    node_co_unref(zero);
    node_co_unref(plain);
    refuse_co_open("'size' expects a non-negative number", "{'driver':'null-co','size':-1}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges), cmocka_unit_test(permissions),  cmocka_unit_test(status),
        cmocka_unit_test(guard),  cmocka_unit_test(null_drivers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
