/* The file driver: options, data, zeroes and holes, size, creation, and the failures that must not be forgotten. */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include "block/graph/io.h"
#include "block/util/bytes.h"
#include "drivers-common.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { KIB = 1024, MIB = 1024 * 1024 };
#define RW (PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE)

DRIVERS_TEST(refusals)
static void refusals_co_body(void)
{
    g_autofree char *file = make_file("a", 512, 0);

    refuse_co_open("Could not open '/nowhere/x': No such file or directory",
                   "{'driver':'file','filename':'/nowhere/x'}");
    refuse_co_open(": Is a directory", "{'driver':'file','filename':'%s'}", folder);
    refuse_co_open(": Is a directory", "{'driver':'file','filename':'%s','read-only':true}", folder);
    refuse_co_open("'file' driver requires '/dev/null' to be a regular file",
                   "{'driver':'file','filename':'/dev/null'}");
    refuse_co_open("to be either a character or block device", "{'driver':'host_device','filename':'%s'}", file);
    refuse_co_open("The 'file' block driver requires a file name", "{'driver':'file','filename':''}");
    refuse_co_open("pr-manager", "{'driver':'file','filename':'%s','pr-manager':'p'}", file);
    refuse_co_open("requires cache.direct=on", "{'driver':'file','filename':'%s','aio':'native'}", file);
    refuse_co_open("aio-max-batch", "{'driver':'file','filename':'%s','aio-max-batch':1}", file);
    refuse_co_open("x-check-cache-dropped", "{'driver':'file','filename':'%s','x-check-cache-dropped':true}", file);
    assert_true(g_queue_is_empty(&graph->nodes));
}

/* A FIFO without a writer must not hang the worker that opens it. */
DRIVERS_TEST(fifo)
static void fifo_co_body(void)
{
    g_autofree char *path = in_folder("fifo");

    assert_int_equal(mkfifo(path, 0600), 0);
    refuse_co_open("to be a regular file", "{'driver':'file','filename':'%s','read-only':true}", path);
}

DRIVERS_TEST(data)
static void data_co_body(void)
{
    g_autofree char *path = make_file("a", 64 * KIB, 0x11);
    Node *node = open_co_node("{'driver':'file','filename':'%s'}", path);
    Port *port = port_co_open(node, RW, PERM_ALL);
    g_autofree uint8_t *buf = g_malloc(64 * KIB), *all = NULL;
    struct iovec iov[100];
    IoVec vec = {.iov = iov, .n = 100, .size = 100 * 100};
    size_t size;

    assert_int_equal(port_size(port), 64 * KIB);
    memset(buf, 0x22, 1000);
    assert_int_equal(port_co_pwrite(port, 777, 1000, buf, 0), 0);
    assert_int_equal(port_co_pread(port, 700, 1200, buf, 0), 0);
    assert_all(buf, 77, 0x11);
    assert_all(buf + 77, 1000, 0x22);
    assert_all(buf + 1077, 123, 0x11);

    /* More pieces of memory than one system call of the slow path takes, and not from their beginning. */
    for (int i = 0; i < 100; i++)
        iov[i] = (struct iovec){.iov_base = buf + 200 * i, .iov_len = 100};
    memset(buf, 0, 64 * KIB);
    assert_int_equal(child_co_preadv(port->child, 30000, 9000, &vec, 950, 0), 0);
    for (int i = 0; i < 100; i++) {
        size_t skip = i < 9 ? 100 : i == 9 ? 50 : 0, have = i > 99 ? 0 : i == 99 ? 50 : 100;
        assert_all(buf + 200 * i, skip, 0);
        if (skip < have)
            assert_all(buf + 200 * i + skip, have - skip, 0x11);
        assert_all(buf + 200 * i + have, 200 - have, 0);
    }
    for (int i = 0; i < 100; i++)
        memset(buf + 200 * i, i, 100);
    assert_int_equal(child_co_pwritev(port->child, 30000, 9000, &vec, 950, REQ_FUA), 0);
    port_co_free(port);
    node_co_unref(node);
    all = file_bytes(path, &size);
    assert_int_equal(size, 64 * KIB);
    assert_all(all + 29000, 1000, 0x11);
    for (int i = 0; i < 9000; i++)
        assert_int_equal(all[30000 + i], (950 + i) / 100);
    assert_all(all + 39000, 1000, 0x11);
}

/* Somebody else cut the file: what is gone reads as zeroes. A write past the end makes it grow. */
DRIVERS_TEST(ends)
static void ends_co_body(void)
{
    g_autofree char *path = make_file("a", 8000, 0x33);
    Node *node = open_co_node("{'driver':'file','filename':'%s'}", path);
    Port *port = port_co_open(node, RW, PERM_ALL);
    uint8_t buf[8000];

    assert_int_equal(truncate(path, 3000), 0);
    assert_int_equal(port_co_pread(port, 0, 8000, buf, 0), 0);
    assert_all(buf, 3000, 0x33);
    assert_all(buf + 3000, 5000, 0);
    memset(buf, 0x44, 100);
    assert_int_equal(child_co_pwrite(port->child, 9000, 100, buf, 0), 0);
    assert_int_equal(port_size(port), 9100);
    port_co_free(port);
    node_co_unref(node);
}

/* O_DIRECT: any offset, any memory. */
DRIVERS_TEST(direct)
static void direct_co_body(void)
{
    g_autofree char *path = make_file("a", 256 * KIB + 1000, 0x55);
    g_autoptr(GError) error = NULL;
    g_autofree char *json = g_strdup_printf("{'driver':'file','filename':'%s','cache':{'direct':true}}", path);
    Node *node = open_co_json(json, &error);
    g_autofree uint8_t *buf = g_malloc(300 * KIB);
    uint8_t *aligned = (uint8_t *)align_up((uintptr_t)buf, 64 * KIB);
    struct iovec iov[2];
    IoVec vec = {.iov = iov, .n = 2, .size = 8192};
    FileState *s;
    Port *port;

    if (!node) {
        assert_non_null(strstr(error->message, "does not support O_DIRECT"));
        skip();
    }
    s = node->state;
    port = port_co_open(node, RW, PERM_ALL);
    assert_true(s->align >= 512 && s->align == node->limits.request_alignment);
    memset(buf, 0x66, 3000);
    assert_int_equal(port_co_pwrite(port, 1001, 3000, buf + 1, 0), 0);
    assert_int_equal(port_co_pread(port, 0, 256 * KIB + 1000, buf, 0), 0);
    assert_all(buf, 1001, 0x55);
    assert_all(buf + 1001, 2999, 0x66);
    assert_all(buf + 4001, 256 * KIB + 1000 - 4001, 0x55);
    iov[0] = (struct iovec){.iov_base = buf + 3, .iov_len = 1003};
    iov[1] = (struct iovec){.iov_base = buf + 20001, .iov_len = 8192 - 1003};
    memset(buf, 0x77, 30000);
    assert_int_equal(port_co_pwritev(port, 8192, 8192, &vec, 0), 0);
    memset(buf, 0, 30000);
    assert_int_equal(port_co_preadv(port, 8192, 8192, &vec, 0), 0);
    assert_all(buf, 3, 0);
    assert_all(buf + 3, 1003, 0x77);
    assert_all(buf + 1006, 1000, 0);
    assert_all(buf + 20001, 8192 - 1003, 0x77);
    /* Addresses that fit, of pieces that do not. */
    iov[0] = (struct iovec){.iov_base = aligned, .iov_len = 8192 - s->mem_align};
    iov[1] = (struct iovec){.iov_base = aligned + 64 * KIB, .iov_len = s->mem_align};
    memset(aligned, 0x78, 96 * KIB);
    assert_int_equal(port_co_pwritev(port, 16384, 8192, &vec, 0), 0);
    memset(aligned, 0, 96 * KIB);
    assert_int_equal(port_co_preadv(port, 16384, 8192, &vec, 0), 0);
    assert_all(aligned, 8192 - s->mem_align, 0x78);
    assert_all(aligned + 64 * KIB, s->mem_align, 0x78);
    port_co_free(port);
    node_co_unref(node);
}

/* As a format does with its file: only such a parent may write past the end. */
static int append_co_write(Port *port, uint64_t offset, size_t bytes, uint8_t value, ReqFlags flags)
{
    g_autofree void *memory = NULL;
    struct iovec iov = {.iov_len = bytes};
    IoVec vec = {.iov = &iov, .n = 1, .size = bytes};

    assert_int_equal(posix_memalign(&memory, 4096, bytes), 0);
    iov.iov_base = memset(memory, value, bytes);
    return child_co_pwritev(port->child, offset, bytes, &vec, 0, flags);
}

typedef struct Append {
    Port *port;
    int want;            /* what every write returns */
    unsigned next, done; /* parts that were begun, that are through */
    CoQueue wait;
} Append;

enum { PARTS = 16, PART = 64 * 1024 };

static void append_co_entry(void *opaque)
{
    Append *a = opaque;
    unsigned i = (a->next++ * 7 + 3) % PARTS; /* in no order */

    assert_int_equal(append_co_write(a->port, 4096 + (uint64_t)i * PART, PART, (uint8_t)(i + 1), i % 2 ? REQ_FUA : 0),
                     a->want);
    if (++a->done == PARTS)
        coqueue_wake_all(&a->wait);
}

static void append_co_all(Append *a)
{
    a->next = a->done = 0;
    for (unsigned i = 0; i < PARTS; i++)
        coroutine_start(loop, append_co_entry, a);
    if (a->done < PARTS)
        coqueue_co_wait(&a->wait, NULL);
}

/* O_DIRECT, many writes past the end at once: the file ends where the last of them does, and afterwards where it is
 * cut. What cannot grow says so, and the file goes on. */
DRIVERS_TEST(direct_past_the_end)
static void direct_past_the_end_co_body(void)
{
    g_autofree char *path = make_file("a", 4096, 0x55);
    g_autoptr(GError) error = NULL;
    g_autofree char *json = g_strdup_printf("{'driver':'file','filename':'%s','cache':{'direct':true}}", path);
    Node *node = open_co_json(json, &error);
    struct rlimit limit, small;
    struct stat st;
    Append a = {0};

    if (!node) {
        assert_non_null(strstr(error->message, "does not support O_DIRECT"));
        skip();
    }
    a.port = port_co_open(node, RW, PERM_ALL);
    append_co_all(&a);
    assert_int_equal(port_size(a.port), 4096 + PARTS * PART);
    size_t size;
    g_autofree uint8_t *all = file_bytes(path, &size);
    assert_int_equal(size, 4096 + PARTS * PART);
    assert_all(all, 4096, 0x55);
    for (unsigned i = 0; i < PARTS; i++)
        assert_all(all + 4096 + (size_t)i * PART, PART, (uint8_t)(i + 1));

    assert_true(port_co_truncate(a.port, 4096, true, PREALLOC_MODE_OFF, 0, NULL));
    assert_int_equal(append_co_write(a.port, 4096, 4096, 1, 0), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 8192);

    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    small = (struct rlimit){.rlim_cur = 8192, .rlim_max = limit.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    a.want = -EFBIG;
    append_co_all(&a);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 8192);
    assert_int_equal(append_co_write(a.port, 8192, 8192, 1, 0), 0);
    assert_int_equal(port_size(a.port), 16384);
    port_co_free(a.port);
    node_co_unref(node);
}

static uint64_t status_co_run(Node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    BlockStatus st;

    assert_int_equal(node_co_block_status(node, true, offset, bytes, &st), 0);
    if ((st.flags & (STATUS_DATA | STATUS_ZERO)) != flags)
        fail_msg("at %ju: flags 0x%x, not 0x%x", (uintmax_t)offset, st.flags, flags);
    assert_int_equal(st.map, offset);
    assert_ptr_equal(st.file, node);
    return st.bytes;
}

DRIVERS_TEST(holes)
static void holes_co_body(void)
{
    g_autofree char *path = make_file("a", MIB, 0x11);
    Node *node;
    Port *port;
    uint8_t byte = 1;

    assert_int_equal(truncate(path, 4 * MIB), 0);
    node = open_co_node("{'driver':'file','filename':'%s','discard':'unmap'}", path);
    port = port_co_open(node, RW, PERM_ALL);
    assert_int_equal(status_co_run(node, 0, 4 * MIB, STATUS_DATA), MIB);
    assert_int_equal(status_co_run(node, 4096, 64 * KIB, STATUS_DATA), 64 * KIB);
    assert_int_equal(status_co_run(node, MIB, 3 * MIB, STATUS_ZERO), 3 * MIB);
    assert_int_equal(status_co_run(node, 2 * MIB, 512, STATUS_ZERO), 512);
    /* A write into a hole shows at once; a discard inside remembered data, too. */
    assert_int_equal(port_co_pwrite(port, 3 * MIB, 1, &byte, 0), 0);
    assert_int_equal(status_co_run(node, 2 * MIB, 2 * MIB, STATUS_ZERO), MIB);
    assert_true(status_co_run(node, 3 * MIB, MIB, STATUS_DATA) < MIB);
    assert_int_equal(status_co_run(node, 0, 4 * MIB, STATUS_DATA), MIB);
    assert_int_equal(port_co_pdiscard(port, 512 * KIB, 256 * KIB), 0);
    assert_int_equal(status_co_run(node, 0, 4 * MIB, STATUS_DATA), 512 * KIB);
    assert_int_equal(status_co_run(node, 512 * KIB, 4 * MIB, STATUS_ZERO), 256 * KIB);
    assert_int_equal(port_co_pwrite_zeroes(port, 0, 64 * KIB, REQ_MAY_UNMAP), 0);
    assert_int_equal(status_co_run(node, 0, 4 * MIB, STATUS_ZERO), 64 * KIB);
    assert_true(port_co_truncate(port, 64 * KIB, true, PREALLOC_MODE_OFF, 0, NULL));
    assert_true(port_co_truncate(port, MIB, true, PREALLOC_MODE_OFF, 0, NULL));
    assert_int_equal(status_co_run(node, 0, 4 * MIB, STATUS_ZERO), MIB);
    port_co_free(port);
    node_co_unref(node);
}

/* Short questions about a file in memory are answered to the page, unless there is data at both ends. */
DRIVERS_TEST(holes_in_memory)
static void holes_in_memory_co_body(void)
{
    g_autofree char *path = g_strdup_printf("/dev/shm/sd-holes-%d", (int)getpid());
    g_autofree char *data = g_malloc0(64 * KIB);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    Node *node;
    Port *port;

    if (fd < 0)
        return;
    memset(data, 0x11, 64 * KIB);
    assert_int_equal(ftruncate(fd, 4 * MIB), 0);
    assert_int_equal(pwrite(fd, data, 4096, 0), 4096);
    assert_int_equal(pwrite(fd, data, 64 * KIB, 64 * KIB), 64 * KIB);
    node = open_co_node("{'driver':'file','filename':'%s'}", path);
    port = port_co_open(node, RW, PERM_ALL);
    assert_int_equal(status_co_run(node, 0, 64 * KIB, STATUS_DATA), 4096);
    assert_int_equal(status_co_run(node, 4096, 60 * KIB, STATUS_ZERO), 60 * KIB);
    assert_int_equal(status_co_run(node, 64 * KIB, 64 * KIB, STATUS_DATA), 64 * KIB);
    assert_int_equal(status_co_run(node, 96 * KIB, 64 * KIB, STATUS_DATA), 32 * KIB);
    assert_int_equal(status_co_run(node, 128 * KIB, 64 * KIB, STATUS_ZERO), 64 * KIB);
    assert_int_equal(status_co_run(node, 4 * MIB - 4096, 4096, STATUS_ZERO), 4096);
    /* What was remembered as data does not hide a write beside it. */
    assert_int_equal(port_co_pwrite(port, 4096, 4096, data, 0), 0);
    assert_int_equal(status_co_run(node, 4096, 60 * KIB, STATUS_DATA), 4096);
    assert_int_equal(status_co_run(node, 0, 64 * KIB, STATUS_DATA), 8192);
    assert_int_equal(status_co_run(node, 0, 128 * KIB, STATUS_DATA), 8192);
    port_co_free(port);
    node_co_unref(node);
    close(fd);
    unlink(path);
}

/* Zeroes of every flag and place: content and size, on the file system of the folder and on tmpfs. */
static void zeroes_co_on(const char *path)
{
    static const ReqFlags flags[] = {0, REQ_MAY_UNMAP};
    static const struct {
        uint64_t offset, bytes, size_after;
    } ranges[] = {
        {0, 64 * KIB, 256 * KIB},          {100, 5000, 256 * KIB},           {64 * KIB, 192 * KIB, 256 * KIB},
        {192 * KIB, 128 * KIB, 320 * KIB}, {512 * KIB, 64 * KIB, 576 * KIB}, {700 * KIB + 1, 3, 700 * KIB + 4},
        {256 * KIB, 1, 256 * KIB + 1},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(ranges) * 2; i++) {
        uint64_t offset = ranges[i / 2].offset, end = offset + ranges[i / 2].bytes;
        g_autofree char *fill = g_malloc(256 * KIB);
        g_autofree uint8_t *all = NULL;
        size_t size;
        Node *node;
        Port *port;

        memset(fill, 0x5a, 256 * KIB);
        assert_true(g_file_set_contents(path, fill, 256 * KIB, NULL));
        node = open_co_node("{'driver':'file','filename':'%s','discard':'unmap'}", path);
        port = port_co_open(node, RW, PERM_ALL);
        assert_int_equal(child_co_pwrite_zeroes(port->child, offset, end - offset, flags[i % 2]), 0);
        assert_int_equal(port_size(port), ranges[i / 2].size_after);
        assert_int_equal(node->drv->co_getlength(node), ranges[i / 2].size_after);
        port_co_free(port);
        node_co_unref(node);
        all = file_bytes(path, &size);
        assert_int_equal(size, ranges[i / 2].size_after);
        for (uint64_t at = 0; at < size; at++)
            if (all[at] != (at < 256 * KIB && (at < offset || at >= end) ? 0x5a : 0))
                fail_msg("%s: range %zu flags 0x%x: byte %ju is 0x%02x", path, i / 2, flags[i % 2], (uintmax_t)at,
                         all[at]);
    }
}

DRIVERS_TEST(zeroes)
static void zeroes_co_body(void)
{
    g_autofree char *path = in_folder("a");
    g_autofree char *shm = g_strdup_printf("/dev/shm/sd-drivers-%d", (int)getpid());

    zeroes_co_on(path);
    if (g_file_test("/dev/shm", G_FILE_TEST_IS_DIR)) {
        zeroes_co_on(shm);
        g_unlink(shm);
    }
}

/* What the file system cannot do is asked once, and then falls back. */
DRIVERS_TEST(zeroes_without_help)
static void zeroes_without_help_co_body(void)
{
    g_autofree char *path = make_file("a", 64 * KIB, 0x11);
    Node *node = open_co_node("{'driver':'file','filename':'%s','discard':'unmap'}", path);
    Port *port = port_co_open(node, RW, PERM_ALL);
    FileState *s = node->state;
    uint8_t buf[8192];

    s->no_punch = s->no_zero_range = s->no_fallocate = true;
    assert_int_equal(port_co_pwrite_zeroes(port, 4096, 4096, REQ_MAY_UNMAP | REQ_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(port_co_pwrite_zeroes(port, 4096, 4096, REQ_MAY_UNMAP), 0);
    assert_int_equal(port_co_pread(port, 0, 8192, buf, 0), 0);
    assert_all(buf, 4096, 0x11);
    assert_all(buf + 4096, 4096, 0);
    assert_int_equal(port_co_pdiscard(port, 0, 4096), 0);
    port_co_free(port);
    node_co_unref(node);
}

static void refuse_co_truncate(Port *port, uint64_t size, PreallocMode mode, const char *text)
{
    g_autoptr(GError) error = NULL;

    assert_false(port_co_truncate(port, size, true, mode, 0, &error));
    if (!strstr(error->message, text))
        fail_msg("'%s' does not say '%s'", error->message, text);
}

DRIVERS_TEST(sizes)
static void sizes_co_body(void)
{
    g_autofree char *path = make_file("a", 64 * KIB, 0x11);
    Node *node = open_co_node("{'driver':'file','filename':'%s'}", path);
    Port *port = port_co_open(node, RW, PERM_ALL);
    g_autofree uint8_t *all = NULL;
    size_t size;
    NodeInfo info = {0};

    refuse_co_truncate(port, 128 * KIB, PREALLOC_MODE_METADATA, "Unsupported preallocation mode 'metadata'");
    refuse_co_truncate(port, 32 * KIB, PREALLOC_MODE_FULL, "Preallocation can't be used for shrinking files");
    refuse_co_truncate(port, UINT64_MAX, PREALLOC_MODE_OFF, "too large");
    assert_int_equal(port_size(port), 64 * KIB);
    assert_true(port_co_truncate(port, MIB, true, PREALLOC_MODE_FALLOC, 0, NULL));
    node->drv->get_info(node, &info);
    assert_true(info.allocated_size >= MIB && info.zero_init);
    assert_true(port_co_truncate(port, 2 * MIB, true, PREALLOC_MODE_FULL, 0, NULL));
    assert_true(port_co_truncate(port, 3 * MIB, true, PREALLOC_MODE_OFF, 0, NULL));
    assert_int_equal(port_size(port), 3 * MIB);
    node->drv->get_info(node, &info);
    assert_true(info.allocated_size >= 2 * MIB && info.allocated_size < 3 * MIB);
    port_co_free(port);
    node_co_unref(node);
    all = file_bytes(path, &size);
    assert_int_equal(size, 3 * MIB);
    assert_all(all, 64 * KIB, 0x11);
    assert_all(all + 64 * KIB, 3 * MIB - 64 * KIB, 0);
}

/* LAW 9: what fsync reports once is not forgotten. A pipe under the driver makes every sync fail. */
DRIVERS_TEST(failed_flush)
static void failed_flush_co_body(void)
{
    g_autofree char *path = make_file("a", 64 * KIB, 0x11);
    Node *node = open_co_node("{'driver':'file','filename':'%s'}", path);
    Port *port = port_co_open(node, RW, PERM_ALL);
    FileState *s = node->state;
    int real = dup(s->fd), ends[2];
    uint8_t byte = 1;

    assert_int_equal(pipe(ends), 0);
    assert_int_equal(port_co_pwrite(port, 0, 1, &byte, 0), 0);
    assert_int_equal(dup2(ends[1], s->fd), s->fd);
    assert_true(port_co_flush(port) < 0);
    assert_true(node->failed);
    assert_int_equal(dup2(real, s->fd), s->fd);
    assert_true(port_co_flush(port) < 0);
    assert_true(port_co_pwrite(port, 0, 1, &byte, REQ_FUA) < 0);
    assert_int_equal(port_co_pwrite(port, 0, 1, &byte, 0), 0);
    close(real);
    close(ends[0]);
    close(ends[1]);
    port_co_free(port);
    node_co_unref(node);
}

/* The number of a descriptor is used again: that it was a file in memory a moment ago says nothing about the next. */
DRIVERS_TEST(flush_of_a_reused_number)
static void flush_of_a_reused_number_co_body(void)
{
    struct iovec iov = {.iov_base = (char[]){1}, .iov_len = 1};
    int fd = memfd_create("memory", MFD_CLOEXEC), ends[2];

    assert_int_equal(aio_co_pwritev(fd, &iov, 1, 0, 0), 1);
    assert_int_equal(aio_co_fsync(fd, true), 0);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(dup2(ends[1], fd), fd);
    assert_int_equal(aio_co_fsync(fd, true), -EINVAL);
    close(ends[0]);
    close(ends[1]);
    close(fd);
}

/* A write that fails at the write is no lost data: the node is not given up. */
DRIVERS_TEST(failed_fua)
static void failed_fua_co_body(void)
{
    g_autofree char *path = make_file("a", 64 * KIB, 0x11);
    Node *node = open_co_node("{'driver':'file','filename':'%s'}", path);
    Port *port = port_co_open(node, RW, PERM_ALL);
    FileState *s = node->state;
    int real = dup(s->fd), full = open("/dev/full", O_WRONLY);
    uint8_t byte = 1;

    assert_int_equal(dup2(full, s->fd), s->fd);
    assert_int_equal(port_co_pwrite(port, 0, 1, &byte, REQ_FUA), -ENOSPC);
    assert_false(node->failed);
    assert_int_equal(dup2(real, s->fd), s->fd);
    assert_int_equal(port_co_pwrite(port, 0, 1, &byte, REQ_FUA), 0);
    assert_int_equal(port_co_flush(port), 0);
    close(real);
    close(full);
    port_co_free(port);
    node_co_unref(node);
}

DRIVERS_TEST(creation)
static void creation_co_body(void)
{
    g_autofree char *path = in_folder("new"), *prefixed = g_strconcat("file:", path, NULL);
    g_autofree char *used = make_file("used", 4096, 0x11);
    g_autofree char *nowhere = g_build_filename(folder, "no", "where", NULL);
    g_autoptr(GError) error = NULL;
    CreateOptions options = {.size = 100000};
    struct stat st;
    Node *node;
    Port *port;

    assert_true(driver_file.co_create(graph, prefixed, NULL, &options, NULL));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 100000);
    /* Again: emptied, then grown. */
    options.size = 10;
    assert_true(driver_file.co_create(graph, path, NULL, &options, NULL));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 10);

    node = open_co_node("{'driver':'file','filename':'%s'}", used);
    port = port_co_open(node, PERM_CONSISTENT_READ, PERM_CONSISTENT_READ);
    assert_false(driver_file.co_create(graph, used, NULL, &options, &error));
    assert_non_null(strstr(error->message, "Failed to get \"write\" lock"));
    assert_int_equal(stat(used, &st), 0);
    assert_int_equal(st.st_size, 4096);
    port_co_free(port);
    node_co_unref(node);
    g_clear_error(&error);

    assert_false(driver_file.co_create(graph, nowhere, NULL, &options, &error));
    assert_non_null(strstr(error->message, "No such file or directory"));
    g_clear_error(&error);
    options.size = UINT64_C(1) << 62; /* more than any file system takes: nothing is left behind */
    assert_int_equal(g_unlink(path), 0);
    assert_false(driver_file.co_create(graph, path, NULL, &options, &error));
    assert_int_not_equal(stat(path, &st), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals),
        cmocka_unit_test(fifo),
        cmocka_unit_test(data),
        cmocka_unit_test(ends),
        cmocka_unit_test(direct),
        cmocka_unit_test(direct_past_the_end),
        cmocka_unit_test(holes),
        cmocka_unit_test(holes_in_memory),
        cmocka_unit_test(zeroes),
        cmocka_unit_test(sizes),
        cmocka_unit_test(zeroes_without_help),
        cmocka_unit_test(creation),
        cmocka_unit_test(failed_flush),
        cmocka_unit_test(flush_of_a_reused_number),
        cmocka_unit_test(failed_fua),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
