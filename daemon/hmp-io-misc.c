/*
 * qemu-io in the human monitor: what asks about a node, and breakpoints.
 */
#include "daemon/hmp-io.h"
#include "block/graph/debug.h"
#include "block/graph/reopen.h"
#include "block/graph/status.h"
#include "block/util/error.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

enum { LOOK_AGAIN_NS = 1000000, DEFAULT_COUNT = 512 };

/* ---- facts ------------------------------------------------------------------------------------------------------ */

void io_co_length(HmpIo *io)
{
    g_autofree char *text = io_size_text((double)io->node->size);

    io_co_print("%s\n", text);
}

/* Is [offset, …) decided by the image itself and not by its backing file? 1, 0 or -errno, for *@ret_bytes. */
static int image_co_allocated(HmpIo *io, uint64_t offset, uint64_t bytes, uint64_t *ret_bytes)
{
    BlockStatus status;
    int ret = node_co_block_status(node_skip_filters(io->node), false, offset, bytes, &status);

    *ret_bytes = status.bytes;
    return ret < 0 ? ret : !!(status.flags & STATUS_ALLOCATED);
}

static void append_extent(GString *out, uint64_t offset, uint64_t bytes, bool allocated)
{
    g_autofree char *size = io_size_text((double)bytes), *at = io_size_text((double)offset);

    g_string_append_printf(out, "%s (0x%" PRIx64 ") bytes %s at offset %s (0x%" PRIx64 ")\n", size, bytes,
                           allocated ? "    allocated" : "not allocated", at, offset);
}

void io_co_map(HmpIo *io)
{
    g_autoptr(GString) out = g_string_new(NULL);
    uint64_t size = io->node->size, start = 0, offset = 0, n;
    int last = -1;

    while (offset < size) {
        int ret = image_co_allocated(io, offset, size - offset, &n);
        if (ret < 0) {
            g_string_append_printf(out, "Failed to get allocation status: %s\n", g_strerror(-ret));
            break;
        }
        if (!n) {
            g_string_append(out, "Unexpected end of image\n");
            break;
        }
        if (last >= 0 && ret != last) {
            append_extent(out, start, offset - start, last);
            start = offset;
        }
        last = ret;
        offset += n;
    }
    if (offset > start)
        append_extent(out, start, offset - start, last);
    io_co_print_string(out);
}

void io_co_alloc(HmpIo *io)
{
    uint64_t start, count = DEFAULT_COUNT, sum = 0, n;

    if (!io_co_parse_size(io->args[0], &start) || (io->args[1] && !io_co_parse_size(io->args[1], &count)))
        return;
    count = start < io->node->size ? MIN(count, io->node->size - start) : 0;
    for (uint64_t done = 0; done < count; done += n) {
        int ret = image_co_allocated(io, start + done, count - done, &n);
        if (ret < 0 || !n) {
            io_co_print("is_allocated failed: %s\n", g_strerror(ret < 0 ? -ret : EIO));
            return;
        }
        sum += ret ? n : 0;
    }
    g_autofree char *at = io_size_text((double)start);
    io_co_print("%" PRIu64 "/%" PRIu64 " bytes allocated at offset %s\n", sum, count, at);
}

void io_co_sleep(HmpIo *io)
{
    char *end;
    uint64_t ms = g_ascii_strtoull(io->args[0], &end, 0);

    if (end == io->args[0] || *end || io->args[0][0] == '-' || ms > G_MAXINT) {
        io_co_print("%s is not a valid number\n", io->args[0]);
        return;
    }
    aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(io->daemon->loop, LOOP_CLOCK_REAL) + (int64_t)ms * 1000000);
}

void io_co_reopen(HmpIo *io)
{
    g_autoptr(GError) error = NULL;

    if (io->flag['r'] == io->flag['w'])
        io_co_print("reopen (-r|-w): one of the two must be given\n");
    else if (!node_co_set_read_only(io->node, io->flag['r'], &error))
        io_co_print("%s\n", error->message);
}

/* ---- breakpoints ------------------------------------------------------------------------------------------------ */

void io_co_break(HmpIo *io)
{
    int ret = node_debug_break(io->node, io->args[0], io->args[1]);

    if (ret < 0) {
        io_co_print("Could not set breakpoint: %s\n", g_strerror(-ret));
        return;
    }
    GPtrArray *tags = io->daemon->hmp_tags;
    if (!g_ptr_array_find_with_equal_func(tags, io->args[1], g_str_equal, NULL))
        g_ptr_array_add(tags, g_strdup(io->args[1]));
}

void io_co_remove_break(HmpIo *io)
{
    int ret = node_debug_remove_break(io->node, io->args[0]);

    if (ret < 0)
        io_co_print("Could not remove breakpoint %s: %s\n", io->args[0], g_strerror(-ret));
}

void io_co_resume(HmpIo *io)
{
    int ret = node_debug_resume(io->node, io->args[0]);

    if (ret < 0)
        io_co_print("Could not resume request: %s\n", g_strerror(-ret));
}

/* Looks again and again, so that the end of the process, which cancels sleeps, gets through. */
void io_co_wait_break(HmpIo *io)
{
    Loop *loop = io->daemon->loop;

    if (!node_debug_suspended(io->node, io->args[0]) && node_debug_resume(io->node, io->args[0]) == -ENOTSUP) {
        io_co_print("Could not wait for a request: %s\n", g_strerror(ENOTSUP));
        return;
    }
    while (!node_debug_suspended(io->node, io->args[0]) && !io->daemon->quitting)
        if (aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(loop, LOOP_CLOCK_REAL) + LOOK_AGAIN_NS) < 0)
            return;
}

static void release_node(Node *node, void *opaque)
{
    const GPtrArray *tags = opaque;

    for (guint i = 0; i < tags->len; i++)
        node_debug_remove_break(node, tags->pdata[i]);
}

void hmp_io_release(Daemon *d)
{
    graph_foreach_node(d->graph, release_node, d->hmp_tags);
}
