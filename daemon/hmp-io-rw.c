/*
 * qemu-io in the human monitor: read, write, discard, flush, truncate.
 */
#include "daemon/hmp-io.h"
#include "block/util/error.h"
#include <errno.h>
#include <stdlib.h>
#include <inttypes.h>
#include <string.h>

enum {
    REQUEST_MAX = 2147483136, /* of memory that one command asks for, as in qemu-io */
    BUFFER_ALIGN = 4096,
    FILL_READ = 0xab, /* what a buffer holds before anything was read into it */
    FILL_WRITE = 0xcd,
};

uint8_t *io_co_buffer(const char *command, uint64_t size, int fill)
{
    void *buffer = NULL;

    if (posix_memalign(&buffer, BUFFER_ALIGN, MAX(size, 1)) != 0) {
        io_co_print("%s failed: %s\n", command, g_strerror(ENOMEM));
        return NULL;
    }
    memset(buffer, fill, size);
    return buffer;
}

void io_buffer_free(uint8_t *buffer)
{
    free(buffer);
}

bool io_co_parse_range(const HmpIo *io, uint64_t *ret_offset, uint64_t *ret_bytes)
{
    uint64_t total = 0;

    if (!io_co_parse_size(io->args[0], ret_offset))
        return false;
    for (unsigned i = 1; i < io->n_args; i++) {
        uint64_t n;
        if (!io_co_parse_size(io->args[i], &n))
            return false;
        bool no_memory = io->flag['z'] && io->flag['n'];
        if (n > (no_memory ? INT64_MAX : REQUEST_MAX) || (total += n) > (no_memory ? INT64_MAX : REQUEST_MAX)) {
            io_co_print("length cannot exceed %d without -n, given %s\n", REQUEST_MAX, io->args[i]);
            return false;
        }
    }
    *ret_bytes = total;
    return true;
}

void io_verify(GString *out, const uint8_t *data, uint64_t size, uint8_t pattern, uint64_t offset)
{
    for (uint64_t i = 0; i < size; i++) {
        if (data[i] != pattern) {
            g_string_append_printf(out, "Pattern verification failed at offset %" PRIu64 ", %" PRIu64 " bytes\n",
                                   offset, size);
            return;
        }
    }
}

/* ---- read ------------------------------------------------------------------------------------------------------- */

/* Which part of what is read -P is about: all of it, or -l bytes from -s on. */
static bool io_co_parse_window(HmpIo *io, uint64_t bytes, uint64_t *ret_start, uint64_t *ret_length)
{
    *ret_start = 0;
    if (!io->flag['P'] && (io->flag['s'] || io->flag['l'])) {
        io_co_print("%s %s\n", io->command->name, io->command->usage);
        return false;
    }
    if (io->flag['s'] && !io_co_parse_size(io->value['s'], ret_start))
        return false;
    *ret_length = *ret_start <= bytes ? bytes - *ret_start : 0;
    if (io->flag['l'] && !io_co_parse_size(io->value['l'], ret_length))
        return false;
    if (*ret_start > bytes || *ret_length > bytes - *ret_start) {
        io_co_print("pattern verification range exceeds end of read data\n");
        return false;
    }
    return true;
}

void io_co_read(HmpIo *io)
{
    uint64_t offset, bytes, start, length;
    uint8_t pattern = 0;

    if ((io->flag['P'] && !io_co_parse_pattern(io->value['P'], &pattern)) || !io_co_parse_range(io, &offset, &bytes) ||
        !io_co_parse_window(io, bytes, &start, &length))
        return;
    uint8_t *buffer = io_co_buffer(io->command->name, bytes, FILL_READ);
    if (!buffer)
        return;
    g_autoptr(GString) out = g_string_new(NULL);
    int64_t begin = io_clock();
    int ret = port_co_pread(io->on->port, offset, bytes, buffer, 0);
    int64_t took = io_clock() - begin;
    if (ret < 0) {
        g_string_append_printf(out, "%s failed: %s\n", io->command->name, g_strerror(-ret));
    } else {
        if (io->flag['P'])
            io_verify(out, buffer + start, length, pattern, offset + start);
        if (io->flag['v'] && !io->flag['q'])
            io_dump(out, buffer, bytes, offset);
        if (!io->flag['q'])
            io_report(out, "read", offset, bytes, bytes, took, io->flag['C']);
    }
    io_buffer_free(buffer);
    io_co_print_string(out);
}

/* ---- write ------------------------------------------------------------------------------------------------------ */

static bool io_co_check_write(HmpIo *io)
{
    if (io->flag['n'] && !io->flag['z'])
        io_co_print("-n requires -z to be specified\n");
    else if (io->flag['u'] && !io->flag['z'])
        io_co_print("-u requires -z to be specified\n");
    else if (io->flag['z'] && io->flag['P'])
        io_co_print("Only one of -z and -P can be specified at the same time\n");
    else if (io->flag['z'] && io->flag['c'])
        io_co_print("-c and -z cannot be specified at the same time\n");
    else if (io->flag['f'] && io->flag['c'])
        io_co_print("-f and -c cannot be specified at the same time\n");
    else
        return true;
    return false;
}

void io_co_write(HmpIo *io)
{
    uint64_t offset, bytes;
    uint8_t pattern = FILL_WRITE;
    uint8_t *buffer = NULL;
    ReqFlags flags = (io->flag['f'] ? REQ_FUA : 0) | (io->flag['u'] ? REQ_MAY_UNMAP : 0) |
                     (io->flag['n'] ? REQ_NO_FALLBACK : 0) | (io->flag['c'] ? REQ_WRITE_COMPRESSED : 0);
    int ret;

    if (!io_co_check_write(io) || (io->flag['P'] && !io_co_parse_pattern(io->value['P'], &pattern)) ||
        !io_co_parse_range(io, &offset, &bytes))
        return;
    if (!io->flag['z'] && !(buffer = io_co_buffer(io->command->name, bytes, pattern)))
        return;
    g_autoptr(GString) out = g_string_new(NULL);
    int64_t begin = io_clock();
    if (io->flag['z'])
        ret = port_co_pwrite_zeroes(io->on->port, offset, bytes, flags);
    else
        ret = port_co_pwrite(io->on->port, offset, bytes, buffer, flags);
    int64_t took = io_clock() - begin;
    io_buffer_free(buffer);
    if (ret < 0)
        g_string_append_printf(out, "%s failed: %s\n", io->command->name, g_strerror(-ret));
    else if (!io->flag['q'])
        io_report(out, "wrote", offset, bytes, bytes, took, io->flag['C']);
    io_co_print_string(out);
}

/* ---- the others ------------------------------------------------------------------------------------------------- */

void io_co_discard(HmpIo *io)
{
    uint64_t offset, bytes;

    if (!io_co_parse_size(io->args[0], &offset) || !io_co_parse_size(io->args[1], &bytes))
        return;
    g_autoptr(GString) out = g_string_new(NULL);
    int64_t begin = io_clock();
    int ret = port_co_pdiscard(io->on->port, offset, bytes);
    int64_t took = io_clock() - begin;
    if (ret < 0)
        g_string_append_printf(out, "discard failed: %s\n", g_strerror(-ret));
    else if (!io->flag['q'])
        io_report(out, "discard", offset, bytes, bytes, took, io->flag['C']);
    io_co_print_string(out);
}

void io_co_flush(HmpIo *io)
{
    int ret = port_co_flush(io->on->port);

    if (ret < 0)
        io_co_print("flush failed: %s\n", g_strerror(-ret));
}

void io_co_truncate(HmpIo *io)
{
    g_autoptr(GError) error = NULL;
    int mode = io->flag['m'] ? qapi_enum_find(&qapi_type_PreallocMode, io->value['m']) : PREALLOC_MODE_OFF;
    uint64_t size;

    if (mode < 0) {
        io_co_print("Parameter 'preallocation' does not accept value '%s'\n", io->value['m']);
        return;
    }
    if (io_co_parse_size(io->args[0], &size) &&
        !port_co_truncate(io->on->port, size, false, (PreallocMode)mode, 0, &error))
        io_co_print("%s\n", error->message);
}
