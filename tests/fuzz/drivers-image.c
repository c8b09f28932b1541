/*
 * A qcow2 or qed image from somebody else: the input is the whole file, in memory. It is opened without its backing
 * file, read, asked about, written to in every way, and closed. Whatever it is, that ends, within bounds, and a qcow2
 * image that was found damaged is not written to again.
 */
#include "block/graph/graph-int.h"
#include "block/graph/port.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include "qapi/events.h"
#include "qapi/rt/json.h"
#include <errno.h>
#include <json-glib/json-glib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DISK_MAX = 8 << 20, IO_MAX = 128 << 10 };

static uint8_t *disk;
static uint64_t disk_size;
static bool damaged;            /* a fatal event came */
static unsigned damaged_writes; /* what was written after it */

static bool mem_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    return true;
}

static void mem_co_close(Node *node)
{
}

static int64_t mem_co_getlength(Node *node)
{
    return (int64_t)disk_size;
}

static int mem_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                         ReqFlags flags)
{
    g_assert(offset + bytes <= disk_size);
    iov_from_buf(vec->iov, vec->n, vec_offset, disk + offset, bytes);
    return 0;
}

static int mem_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    damaged_writes += damaged;
    if (offset > DISK_MAX || bytes > DISK_MAX - offset)
        return -ENOSPC;
    iov_to_buf(vec->iov, vec->n, vec_offset, disk + offset, bytes);
    disk_size = u64_max(disk_size, offset + bytes);
    return 0;
}

static bool mem_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                            GError **error)
{
    if (size > DISK_MAX)
        return error_set_errno(error, ENOSPC, "Could not resize");
    if (size < disk_size)
        memset(disk + size, 0, disk_size - size);
    disk_size = size;
    return true;
}

/* Takes the name of a driver that the schema knows. */
static const Driver mem_driver = {
    .name = "null-co",
    .is_protocol = true,
    .may_grow = true,
    .co_open = mem_co_open,
    .co_close = mem_co_close,
    .co_getlength = mem_co_getlength,
    .co_preadv = mem_co_preadv,
    .co_pwritev = mem_co_pwritev,
    .co_truncate = mem_co_truncate,
};
extern const Driver driver_qcow2, driver_qed;
static const Driver *const drivers[] = {&mem_driver, &driver_qcow2, &driver_qed, NULL};

static Loop *loop;
static Graph *graph;

static void on_event(const char *name, JsonNode *data, void *opaque)
{
    if (json_object_get_boolean_member(json_node_get_object(data), "fatal"))
        damaged = true;
    json_node_unref(data);
}

static void quiet(const char *text)
{
}

static void read_co_some(Port *port, uint8_t *buf, uint64_t offset)
{
    uint64_t size = port_size(port);
    BlockStatus status;

    if (offset >= size)
        return;
    port_co_pread(port, offset, u64_min(IO_MAX, size - offset), buf, 0);
    node_co_block_status(port_node(port), true, offset, size - offset, &status);
}

static void write_co_some(Port *port, uint8_t *buf, uint64_t offset)
{
    uint64_t size = port_size(port), cluster = port_node(port)->limits.write_zeroes_align;
    struct iovec iov;
    IoVec vec;

    if (offset >= size)
        return;
    memset(buf, 0x5a, IO_MAX);
    iovec_one(&vec, &iov, buf, IO_MAX);
    port_co_pwrite(port, offset, u64_min(3000, size - offset), buf, 0);
    port_co_pwrite_zeroes(port, offset, u64_min(3 * cluster, size - offset), REQ_MAY_UNMAP);
    offset -= offset % cluster;
    if (cluster <= IO_MAX)
        port_co_pwritev(port, offset, u64_min(cluster, size - offset), &vec, REQ_WRITE_COMPRESSED);
    port_co_flush(port);
    port_co_pdiscard(port, offset, u64_min(5 * cluster, size - offset));
    port_co_flush(port);
    port_co_flush(port);
}

static Node *open_co_image(bool read_only)
{
    bool qed = memcmp(disk, "QED", 4) == 0;
    g_autofree char *text =
        g_strdup_printf("{'driver':'%s','node-name':'q','discard':'unmap','backing':null,"
                        "'read-only':%s,'file':{'driver':'null-co'}%s}",
                        qed ? "qed" : "qcow2", read_only ? "true" : "false", qed ? "" : ",'overlap-check':'all'");
    g_autoptr(JsonNode) json = json_parse(text, -1, NULL);
    g_autoptr(BlockdevOptions) options = qapi_decode_BlockdevOptions(json, NULL);
    g_autoptr(GError) error = NULL;
    Node *node = node_co_open(graph, options, NULL, &error);

    g_assert((node == NULL) == (error != NULL));
    g_assert(!error || g_utf8_validate(error->message, -1, NULL));
    return node;
}

static void try_co_image(bool read_only)
{
    static uint8_t buf[IO_MAX];
    Node *node = open_co_image(read_only);
    Port *port;

    if (!node)
        return;
    port = port_co_new(graph, node, read_only ? PERM_CONSISTENT_READ : PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL,
                       NULL, NULL, NULL);
    g_assert(port);
    read_co_some(port, buf, 0);
    read_co_some(port, buf, port_size(port) / 2 + 1);
    if (!read_only) {
        write_co_some(port, buf, 0);
        write_co_some(port, buf, 7777);
        write_co_some(port, buf, port_size(port) - port_size(port) / 8 - 1);
    }
    port_co_free(port);
    node_co_unref(node);
}

static void fuzz_co_entry(void *opaque)
{
    try_co_image(true);
    try_co_image(false);
    loop_stop(loop);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!loop) {
        loop = loop_new(NULL);
        g_assert(loop);
        graph = graph_new(loop);
        driver_set_list(drivers);
        qapi_set_event_sink(on_event, NULL);
        g_set_printerr_handler(quiet);
        disk = g_malloc(DISK_MAX);
    }
    if (size > DISK_MAX / 2)
        return 0;
    memset(disk, 0, DISK_MAX);
    memcpy(disk, data, size);
    disk_size = size;
    damaged = false;
    damaged_writes = 0;
    coroutine_start(loop, fuzz_co_entry, NULL);
    while (coroutine_count(loop))
        loop_run(loop);
    g_assert_cmpuint(damaged_writes, ==, 0);
    return 0;
}
