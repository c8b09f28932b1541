/* The NBD client: names, and a real server (nbdkit) that is slow, silent, read-only, or goes away and comes back. */
#include "block/aio/io.h"
#include "block/drivers/nbd/nbd.h"
#include "drivers-common.h"
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define RW  (PERM_CONSISTENT_READ | PERM_WRITE)
#define MIB (UINT64_C(1) << 20)

/* ---- names ------------------------------------------------------------------------------------------------------ */

static void names(void **state)
{
    /* Name, and how the same place is written from its options; NULL: refused. As qemu-img 7.2 takes them. */
    static const char *const table[][2] = {
        {"nbd:unix:/tmp/x", "nbd+unix://?socket=/tmp/x"},
        {"nbd:unix:/tmp/x:exportname=e:f", "nbd+unix:///e:f?socket=/tmp/x"},
        {"nbd:h:1", "nbd://h:1"},
        {"nbd:h:1:exportname=a:b", "nbd://h:1/a:b"},
        {"nbd:[::1]:12", "nbd://::1:12"},
        {"nbd:h", NULL},
        {"nbd:h:", NULL},
        {"nbd://h", "nbd://h:10809"},
        {"nbd://h:12/", "nbd://h:12"},
        {"nbd://h/e", "nbd://h:10809/e"},
        {"nbd://h/a%20b/c", "nbd://h:10809/a b/c"},
        {"nbd://[::1]:12/x", "nbd://::1:12/x"},
        {"nbd+tcp://h/e", "nbd://h:10809/e"},
        {"nbd+unix:///e?socket=/tmp/s", "nbd+unix:///e?socket=/tmp/s"},
        {"nbd+unix://?socket=/tmp/s", "nbd+unix://?socket=/tmp/s"},
        {"nbd+unix:///e?socket=/tmp/a%3fb", "nbd+unix:///e?socket=/tmp/a?b"},
        {"nbd://", NULL},
        {"nbd+unix:///e", NULL},
        {"nbd+unix://h/e?socket=/tmp/s", NULL},
        {"nbd+unix:///e?socket=", NULL},
        {"nbd+unix:///e?socket=/tmp/s&x=y", NULL},
        {"nbd://h/e?socket=x", NULL},
        {"nbd://h/%zz", NULL},
        {"nbd+unix:x", NULL},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(table); i++) {
        g_autoptr(GError) error = NULL;
        g_autoptr(BlockdevOptions) options = nbdc_parse_filename(table[i][0], &error);
        g_autofree char *name = NULL;
        assert_int_equal(!options, error != NULL);
        if (options)
            name = nbdc_filename(options->u.nbd.server, options->u.nbd.export);
        if (g_strcmp0(name, table[i][1]))
            fail_msg("%s: %s", table[i][0], name ? name : error->message);
    }
}

DRIVERS_TEST(refusals)
static void refusals_co_body(void)
{
    refuse_co_open("tls-creds", "{'driver':'nbd','tls-creds':'t','server':{'type':'unix','path':'/x'}}");
    refuse_co_open("server.mptcp", "{'driver':'nbd','server':{'type':'inet','host':'h','port':'1','mptcp':true}}");
    refuse_co_open("server.to", "{'driver':'nbd','server':{'type':'inet','host':'h','port':'1','to':2}}");
    refuse_co_open("does not accept value 'fd'", "{'driver':'nbd','server':{'type':'fd','str':'3'}}");
    refuse_co_open("Failed to connect to", "{'driver':'nbd','server':{'type':'unix','path':'%s/none'}}", folder);
}

/* ---- servers ---------------------------------------------------------------------------------------------------- */

/* Starts nbdkit with @args on the folder's socket; 0 when it is not installed. */
static GPid server_start(const char *args)
{
    g_autofree char *socket = in_folder("sock");
    g_autofree char *line = g_strdup_printf("nbdkit --foreground --unix '%s' %s", socket, args);
    g_auto(GStrv) argv = NULL;
    GPid pid = 0;

    g_unlink(socket);
    assert_true(g_shell_parse_argv(line, NULL, &argv, NULL));
    if (!g_spawn_async(NULL, argv, NULL, G_SPAWN_SEARCH_PATH | G_SPAWN_DO_NOT_REAP_CHILD, NULL, NULL, &pid, NULL))
        return 0;
    return pid;
}

static void server_stop(GPid pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static Node *open_co_server(const char *more)
{
    return open_co_node("{'driver':'nbd','open-timeout':10,'server':{'type':'unix','path':'%s/sock'}%s}", folder, more);
}

DRIVERS_TEST(requests)
static void requests_co_body(void)
{
    GPid pid = server_start("--filter=blocksize-policy memory 10M blocksize-minimum=512 blocksize-preferred=4096 "
                            "blocksize-maximum=2M blocksize-error-policy=error");
    g_autofree uint8_t *buf = g_malloc(4 * MIB), *back = g_malloc(4 * MIB);
    struct iovec iov[3];
    IoVec vec = {.iov = iov, .n = 3, .size = 3000};
    BlockStatus st;
    Node *node;
    Port *port;

    if (!pid)
        skip();
    node = open_co_server("");
    port = port_co_open(node, RW, PERM_ALL);
    assert_int_equal(port_size(port), 10 * MIB);
    assert_int_equal(node->limits.request_alignment, 512);
    assert_int_equal(node->limits.max_transfer, 2 * MIB);
    for (size_t i = 0; i < 4 * MIB; i++)
        buf[i] = (uint8_t)(i * 7 + i / 509);
    assert_int_equal(port_co_pwrite(port, MIB + 77, 4 * MIB - 200, buf, REQ_FUA), 0);
    assert_int_equal(port_co_pread(port, MIB + 77, 4 * MIB - 200, back, 0), 0);
    assert_memory_equal(buf, back, 4 * MIB - 200);
    for (int i = 0; i < 3; i++)
        iov[i] = (struct iovec){.iov_base = back + 5000 * i, .iov_len = 1000};
    memset(back, 0xee, 20000);
    assert_int_equal(port_co_preadv(port, MIB + 77, 3000, &vec, 0), 0);
    for (int i = 0; i < 3; i++)
        assert_memory_equal(back + 5000 * i, buf + 1000 * i, 1000);
    assert_all(back + 1000, 4000, 0xee);
    assert_int_equal(port_co_pwritev(port, 8 * MIB, 3000, &vec, 0), 0);
    assert_int_equal(port_co_flush(port), 0);
    assert_int_equal(port_co_pread(port, 8 * MIB, 3000, back, 0), 0);
    assert_memory_equal(back, buf, 3000);
    assert_int_equal(port_co_pwrite_zeroes(port, MIB, 2 * MIB, REQ_MAY_UNMAP), 0);
    assert_int_equal(port_co_pread(port, MIB, 2 * MIB, back, 0), 0);
    assert_all(back, 2 * MIB, 0);
    assert_int_equal(node_co_block_status(node, true, MIB, 9 * MIB, &st), 0);
    assert_int_equal(st.flags & (STATUS_DATA | STATUS_ZERO), STATUS_ZERO);
    assert_int_equal(st.bytes, 2 * MIB);
    assert_int_equal(node_co_block_status(node, true, 3 * MIB, 7 * MIB, &st), 0);
    assert_int_equal(st.flags & (STATUS_DATA | STATUS_ZERO), STATUS_DATA);
    assert_false(port_co_truncate(port, 11 * MIB, true, PREALLOC_MODE_OFF, 0, NULL));
    port_co_free(port);
    node_co_unref(node);
    server_stop(pid);
}

/* Many requests at once over a server that takes 50 ms for each: together they take little more. */
static unsigned running;
static Port *many_port;

static void many_co_entry(void *opaque)
{
    uint64_t offset = (uint64_t)(uintptr_t)opaque * 65536;
    g_autofree uint8_t *buf = g_malloc(65536), *back = g_malloc(65536);

    memset(buf, (int)(offset / 65536) + 1, 65536);
    assert_int_equal(port_co_pwrite(many_port, offset, 65536, buf, 0), 0);
    assert_int_equal(port_co_pread(many_port, offset, 65536, back, 0), 0);
    assert_memory_equal(buf, back, 65536);
    running--;
}

/* Runs @entry @n times at once, on a node of what nbdkit serves with @args; @limit in seconds. */
static void run_co_many(const char *args, CoroutineEntry *entry, uintptr_t n, int64_t limit)
{
    GPid pid = server_start(args);
    int64_t end;
    Node *node;

    if (!pid)
        skip();
    node = open_co_server("");
    many_port = port_co_open(node, RW, PERM_ALL);
    end = loop_now(loop, LOOP_CLOCK_REAL) + limit * 1000000000;
    for (uintptr_t i = 0; i < n; i++) {
        running++;
        coroutine_start(loop, entry, (void *)i);
    }
    while (running) {
        aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(loop, LOOP_CLOCK_REAL) + 1000000);
        if (loop_now(loop, LOOP_CLOCK_REAL) > end)
            g_error("%u requests are not done in time", running);
    }
    port_co_free(many_port);
    node_co_unref(node);
    server_stop(pid);
}

DRIVERS_TEST(many_at_once)
static void many_at_once_co_body(void)
{
    /* One by one they would take 10 s. */
    run_co_many("--threads=200 --filter=delay memory 10M delay-read=50ms delay-write=50ms", many_co_entry, 100, 3);
}

/* Writes that fill the socket while replies arrive: libnbd stops sending to read, and must get to go on. */
static void big_co_entry(void *opaque)
{
    uint64_t index = (uintptr_t)opaque;
    g_autofree uint8_t *buf = g_malloc(MIB), *back = g_malloc(MIB);

    for (int round = 0; round < 4; round++) {
        memset(buf, (int)index + round, MIB);
        assert_int_equal(port_co_pwrite(many_port, index * MIB, MIB, buf, 0), 0);
        assert_int_equal(port_co_pread(many_port, index * MIB, 4096, back, 0), 0);
        assert_memory_equal(buf, back, 4096);
    }
    running--;
}

DRIVERS_TEST(big_writes)
static void big_writes_co_body(void)
{
    run_co_many("memory 64M", big_co_entry, 32, 20);
}

DRIVERS_TEST(read_only)
static void read_only_co_body(void)
{
    GPid pid = server_start("--readonly memory 1M");
    Node *node;

    if (!pid)
        skip();
    node = open_co_server(",'auto-read-only':true"); /* waits until the server is there */
    assert_true(node->flags.read_only);
    node_co_unref(node);
    refuse_co_open("request on write denied without write permission",
                   "{'driver':'nbd','server':{'type':'unix','path':'%s/sock'}}", folder);
    refuse_co_open("requested x-dirty-bitmap 'qemu:dirty-bitmap:b' not found",
                   "{'driver':'nbd','read-only':true,'x-dirty-bitmap':'qemu:dirty-bitmap:b',"
                   "'server':{'type':'unix','path':'%s/sock'}}",
                   folder);
    server_stop(pid);
}

/* A server that takes the connection and says nothing: opening ends in time and in words. */
DRIVERS_TEST(silent)
static void silent_co_body(void)
{
    g_autofree char *path = in_folder("sock");
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    int64_t start = loop_now(loop, LOOP_CLOCK_REAL);

    g_strlcpy(name.sun_path, path, sizeof(name.sun_path));
    assert_int_equal(bind(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(listen(fd, 5), 0);
    refuse_co_open("Timed out connecting to NBD server",
                   "{'driver':'nbd','open-timeout':1,'server':{'type':'unix','path':'%s'}}", path);
    assert_true(loop_now(loop, LOOP_CLOCK_REAL) - start < INT64_C(3000000000));
    close(fd);
}

/* ---- losing the connection -------------------------------------------------------------------------------------- */

static int late_ret;
static bool late_done;

static void late_co_entry(void *opaque)
{
    uint8_t buf[512];

    late_ret = port_co_pread(many_port, 0, sizeof(buf), buf, 0);
    late_done = true;
}

static void sleep_co_ms(int ms)
{
    aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(loop, LOOP_CLOCK_REAL) + ms * INT64_C(1000000));
}

DRIVERS_TEST(lost_at_once)
static void lost_at_once_co_body(void)
{
    GPid pid = server_start("memory 1M");
    uint8_t buf[512];
    Node *node;

    if (!pid)
        skip();
    node = open_co_server("");
    many_port = port_co_open(node, RW, PERM_ALL);
    assert_int_equal(port_co_pread(many_port, 0, 512, buf, 0), 0);
    server_stop(pid);
    assert_int_equal(port_co_pread(many_port, 0, 512, buf, 0), -EIO);
    /* It goes on trying all the same. */
    pid = server_start("memory 1M");
    for (int i = 0; i < 100 && port_co_pread(many_port, 0, 512, buf, 0) < 0; i++)
        sleep_co_ms(100);
    assert_int_equal(port_co_pread(many_port, 0, 512, buf, 0), 0);
    /* Nothing was written before the loss, so nothing can have been lost. */
    assert_int_equal(port_co_pwrite(many_port, 0, 512, buf, 0), 0);
    assert_int_equal(port_co_flush(many_port), 0);
    /* Now something is, and no later flush may deny it. */
    assert_int_equal(port_co_pwrite(many_port, 0, 512, buf, 0), 0);
    server_stop(pid);
    assert_int_equal(port_co_pread(many_port, 0, 512, buf, 0), -EIO);
    pid = server_start("memory 1M");
    for (int i = 0; i < 100 && port_co_pread(many_port, 0, 512, buf, 0) < 0; i++)
        sleep_co_ms(100);
    assert_int_equal(port_co_pwrite(many_port, 0, 512, buf, 0), 0);
    assert_int_equal(port_co_flush(many_port), -EIO);
    port_co_free(many_port);
    node_co_unref(node);
    server_stop(pid);
}

DRIVERS_TEST(lost_and_found)
static void lost_and_found_co_body(void)
{
    GPid pid = server_start("--filter=delay memory 1M delay-read=2");
    Node *node;

    if (!pid)
        skip();
    node = open_co_server(",'reconnect-delay':3");
    many_port = port_co_open(node, RW, PERM_ALL);
    late_done = false;
    coroutine_start(loop, late_co_entry, NULL); /* in the server's hands when it dies */
    sleep_co_ms(200);
    server_stop(pid);
    sleep_co_ms(300);
    assert_false(late_done);
    pid = server_start("memory 1M");
    for (int i = 0; i < 80 && !late_done; i++)
        sleep_co_ms(100);
    assert_true(late_done);
    assert_int_equal(late_ret, 0);

    /* Nobody comes back, or somebody else: it fails after the delay, not before. */
    server_stop(pid);
    pid = server_start("memory 2M");
    late_done = false;
    coroutine_start(loop, late_co_entry, NULL);
    port_co_free(many_port); /* waits for it */
    assert_true(late_done);
    assert_int_equal(late_ret, -EIO);
    node_co_unref(node);
    server_stop(pid);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),        cmocka_unit_test(refusals),     cmocka_unit_test(requests),
        cmocka_unit_test(many_at_once), cmocka_unit_test(big_writes),   cmocka_unit_test(read_only),
        cmocka_unit_test(silent),       cmocka_unit_test(lost_at_once), cmocka_unit_test(lost_and_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
