/*
 * qemu-io in the human monitor: what its commands share.
 *
 * A command works through a port of its own onto the node, with the permissions that it needs and for as long as it
 * needs them. The aio commands leave a request behind, which keeps the port until it completes. Output goes to the
 * process's standard output in the form of QEMU's qemu-io; it is written by coroutines, so a reader that sleeps delays
 * nobody else.
 */
#pragma once
#include "block/graph/port.h"
#include "daemon/hmp.h"

typedef struct IoCommand IoCommand;

/* A port that a command and its requests hold together. */
typedef struct IoPort {
    unsigned refs;
    Port *port;
    Daemon *daemon;
} IoPort;

/* One qemu-io command being carried out. */
typedef struct HmpIo {
    Hmp *hmp;
    Daemon *daemon;
    Node *node;     /* the device's or the one named; a reference */
    Device *device; /* whose limits hold, which is gone only after all requests are; NULL: a node was named */
    IoPort *on;     /* NULL: the command needs none */
    const IoCommand *command;
    /* its words, taken apart */
    bool flag[128];         /* by letter */
    const char *value[128]; /* of letters that take one; borrowed */
    char **args;            /* the others, NULL-terminated */
    unsigned n_args;
} HmpIo;

struct IoCommand {
    const char *name, *alias; /* alias NULL: none */
    const char *letters;      /* options; a colon follows those that take a value */
    unsigned min, max;        /* number of arguments; max UINT_MAX: any */
    bool needs_port;
    unsigned perm; /* PERM_* of the port */
    const char *usage;
    void (*co_run)(HmpIo *io);
};

/* To standard output. */
void io_co_print(const char *format, ...) G_GNUC_PRINTF(1, 2);
void io_co_print_string(const GString *text);

IoPort *io_port_ref(IoPort *on);
void io_port_co_unref(IoPort *on); /* takes NULL */

/* ---- numbers and reports: hmp-io-text.c ---- */

/* A size or pattern as typed. False after telling what is wrong on standard output. */
bool io_co_parse_size(const char *text, uint64_t *ret);
bool io_co_parse_pattern(const char *text, uint8_t *ret);
/* "64 KiB", "1.500 MiB", "48 bytes"; the caller frees. */
char *io_size_text(double bytes);
/* Appends what qemu-io says when @done of @total bytes at @offset are "read", "wrote" or "discard"ed after @ns. */
void io_report(GString *out, const char *verb, uint64_t offset, uint64_t done, uint64_t total, int64_t ns, bool terse);
/* Appends a dump of @size bytes that stand at @offset. */
void io_dump(GString *out, const uint8_t *data, size_t size, uint64_t offset);
/* ns of a clock that is not the loop's, which stands still while a request runs without waiting. */
int64_t io_clock(void);

/* ---- the commands: hmp-io-rw.c, hmp-io-aio.c, hmp-io-misc.c ---- */

/* Memory of a command; NULL after telling that there is none. */
uint8_t *io_co_buffer(const char *command, uint64_t size, int fill);
void io_buffer_free(uint8_t *buffer);
/* The range of the arguments from @first on: offset and one or more lengths, which it adds up. */
bool io_co_parse_range(const HmpIo *io, uint64_t *ret_offset, uint64_t *ret_bytes);
/* Appends a complaint when @data is not all of @pattern. */
void io_verify(GString *out, const uint8_t *data, uint64_t size, uint8_t pattern, uint64_t offset);

void io_co_read(HmpIo *io);
void io_co_write(HmpIo *io);
void io_co_discard(HmpIo *io);
void io_co_flush(HmpIo *io);
void io_co_truncate(HmpIo *io);
void io_co_aio_read(HmpIo *io);
void io_co_aio_write(HmpIo *io);
void io_co_aio_flush(HmpIo *io);
void io_co_length(HmpIo *io);
void io_co_map(HmpIo *io);
void io_co_alloc(HmpIo *io);
void io_co_sleep(HmpIo *io);
void io_co_reopen(HmpIo *io);
void io_co_break(HmpIo *io);
void io_co_remove_break(HmpIo *io);
void io_co_resume(HmpIo *io);
void io_co_wait_break(HmpIo *io);
