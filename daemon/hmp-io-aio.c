/*
 * qemu-io in the human monitor: aio_read, aio_write, aio_flush. A request runs in a coroutine of its own and tells how
 * it went when it is over; the command is done once it is under way.
 */
#include "daemon/hmp-io.h"
#include "block/aio/coroutine.h"

typedef struct AioRequest {
    IoPort *on;
    bool write, zero, quiet, verbose, terse, verify;
    uint8_t pattern;
    uint64_t offset, bytes;
    ReqFlags flags;
    uint8_t *buffer; /* NULL: zeroes are written */
} AioRequest;

static int request_co_run(const AioRequest *r)
{
    if (r->zero)
        return port_co_pwrite_zeroes(r->on->port, r->offset, r->bytes, r->flags);
    return r->write ? port_co_pwrite(r->on->port, r->offset, r->bytes, r->buffer, r->flags)
                    : port_co_pread(r->on->port, r->offset, r->bytes, r->buffer, 0);
}

static void request_report(const AioRequest *r, int ret, int64_t took, GString *out)
{
    if (ret < 0) {
        g_string_append_printf(out, "%s failed: %s\n", r->write ? "aio_write" : "aio_read", g_strerror(-ret));
        return;
    }
    if (r->verify)
        io_verify(out, r->buffer, r->bytes, r->pattern, r->offset);
    if (r->quiet)
        return;
    if (r->verbose)
        io_dump(out, r->buffer, r->bytes, r->offset);
    io_report(out, r->write ? "wrote" : "read", r->offset, r->bytes, r->bytes, took, r->terse);
}

static void request_co_entry(void *opaque)
{
    AioRequest *r = opaque;
    Daemon *d = r->on->daemon;
    g_autoptr(GString) out = g_string_new(NULL);
    int64_t begin = io_clock();
    int ret = request_co_run(r);

    request_report(r, ret, io_clock() - begin, out);
    io_co_print_string(out);
    io_buffer_free(r->buffer);
    io_port_co_unref(r->on);
    g_free(r);
    d->hmp_requests--;
    coqueue_wake_all(&d->hmp_idle);
}

static void request_start(HmpIo *io, AioRequest *r)
{
    r->on = io_port_ref(io->on);
    r->on->port->count_stats = true;
    r->quiet = io->flag['q'];
    r->terse = io->flag['C'];
    io->daemon->hmp_requests++;
    coroutine_start(io->daemon->loop, request_co_entry, r);
}

void io_co_aio_read(HmpIo *io)
{
    AioRequest r = {.verbose = io->flag['v'], .verify = io->flag['P']};

    if ((r.verify && !io_co_parse_pattern(io->value['P'], &r.pattern)) || !io_co_parse_range(io, &r.offset, &r.bytes) ||
        !(r.buffer = io_co_buffer("aio_read", r.bytes, 0xab)))
        return;
    request_start(io, g_memdup2(&r, sizeof(r)));
}

void io_co_aio_write(HmpIo *io)
{
    AioRequest r = {.write = true, .zero = io->flag['z'], .pattern = 0xcd};

    r.flags = (io->flag['f'] ? REQ_FUA : 0) | (io->flag['u'] ? REQ_MAY_UNMAP : 0);
    if (io->flag['u'] && !r.zero) {
        io_co_print("-u requires -z to be specified\n");
        return;
    }
    if (r.zero && (io->flag['P'] || io->n_args > 2)) {
        io_co_print(io->flag['P'] ? "-z and -P cannot be specified at the same time\n"
                                  : "-z supports only a single length parameter\n");
        return;
    }
    if ((io->flag['P'] && !io_co_parse_pattern(io->value['P'], &r.pattern)) ||
        !io_co_parse_range(io, &r.offset, &r.bytes) ||
        (!r.zero && !(r.buffer = io_co_buffer("aio_write", r.bytes, r.pattern))))
        return;
    request_start(io, g_memdup2(&r, sizeof(r)));
}

void io_co_aio_flush(HmpIo *io)
{
    hmp_io_co_finish(io->daemon);
}

void hmp_io_co_finish(Daemon *d)
{
    while (d->hmp_requests)
        coqueue_co_wait(&d->hmp_idle, NULL);
}
