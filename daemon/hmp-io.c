/*
 * qemu-io in the human monitor: the table of its commands, and how one is taken apart and started.
 */
#include "daemon/hmp-io.h"
#include "block/aio/io.h"
#include "block/graph/device.h"
#include "block/util/error.h"
#include <limits.h>
#include <string.h>
#include <unistd.h>

#define RW_USAGE "[-P pattern] off len [len..]"

static const IoCommand io_commands[] = {
    {"aio_flush", NULL, "", 0, 0, false, 0, "", io_co_aio_flush},
    {"aio_read", NULL, "CP:qv", 2, UINT_MAX, true, 0, "[-Cqv] " RW_USAGE, io_co_aio_read},
    {"aio_write", NULL, "CfP:quz", 2, UINT_MAX, true, PERM_WRITE, "[-Cfquz] " RW_USAGE, io_co_aio_write},
    {"alloc", NULL, "", 1, 2, false, 0, "offset [count]", io_co_alloc},
    {"break", NULL, "", 2, 2, false, 0, "event tag", io_co_break},
    {"discard", "d", "Cq", 2, 2, true, PERM_WRITE, "[-Cq] off len", io_co_discard},
    {"flush", "f", "", 0, 0, true, 0, "", io_co_flush},
    {"length", "l", "", 0, 0, false, 0, "", io_co_length},
    {"map", NULL, "", 0, 0, false, 0, "", io_co_map},
    {"read", "r", "Cl:pP:qs:v", 2, 2, true, 0, "[-Cqv] [-P pattern [-s off] [-l len]] off len", io_co_read},
    {"readv", NULL, "CP:qv", 2, UINT_MAX, true, 0, "[-Cqv] " RW_USAGE, io_co_read},
    {"remove_break", NULL, "", 1, 1, false, 0, "tag", io_co_remove_break},
    {"reopen", NULL, "rw", 0, 0, false, 0, "(-r|-w)", io_co_reopen},
    {"resume", NULL, "", 1, 1, false, 0, "tag", io_co_resume},
    {"sleep", NULL, "", 1, 1, false, 0, "ms", io_co_sleep},
    {"truncate", "t", "m:", 1, 1, true, PERM_WRITE | PERM_RESIZE, "[-m prealloc_mode] off", io_co_truncate},
    {"wait_break", NULL, "", 1, 1, false, 0, "tag", io_co_wait_break},
    {"write", "w", "cCfnpP:quz", 2, 2, true, PERM_WRITE, "[-cCfnquz] [-P pattern] off len", io_co_write},
    {"writev", NULL, "CfP:q", 2, UINT_MAX, true, PERM_WRITE, "[-Cfq] " RW_USAGE, io_co_write},
};

static const PortOps io_port_ops = {.what = "qemu-io"};

/* ---- output ----------------------------------------------------------------------------------------------------- */

void io_co_print_string(const GString *text)
{
    size_t done = 0;

    while (done < text->len) {
        struct iovec iov = {.iov_base = text->str + done, .iov_len = text->len - done};
        ssize_t n = aio_co_pwritev(STDOUT_FILENO, &iov, 1, -1, 0);
        if (n <= 0 && n != -EINTR && n != -EAGAIN)
            return; /* nobody listens */
        done += n > 0 ? (size_t)n : 0;
    }
}

void io_co_print(const char *format, ...)
{
    g_autoptr(GString) text = g_string_new(NULL);
    va_list ap;

    va_start(ap, format);
    g_string_vprintf(text, format, ap);
    va_end(ap);
    io_co_print_string(text);
}

/* ---- ports ------------------------------------------------------------------------------------------------------ */

static IoPort *io_port_co_new(Daemon *daemon, Node *node, unsigned perm, GError **error)
{
    Port *port = port_co_new(daemon->graph, node, perm, PERM_ALL, &io_port_ops, NULL, error);
    if (!port)
        return NULL;
    IoPort *on = g_new(IoPort, 1);
    *on = (IoPort){.refs = 1, .port = port, .daemon = daemon};
    return on;
}

IoPort *io_port_ref(IoPort *on)
{
    on->refs++;
    return on;
}

void io_port_co_unref(IoPort *on)
{
    if (on && --on->refs == 0) {
        port_co_free(on->port);
        g_free(on);
    }
}

/* ---- taking a command apart ------------------------------------------------------------------------------------- */

static const IoCommand *find_command(const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(io_commands); i++) {
        const IoCommand *c = &io_commands[i];
        if (strcmp(c->name, name) == 0 || (c->alias && strcmp(c->alias, name) == 0))
            return c;
    }
    return NULL;
}

static void io_co_usage(const IoCommand *command)
{
    io_co_print("%s%s%s\n", command->name, command->usage[0] ? " " : "", command->usage);
}

/* One word of options, "-qP" with the value in the next word: takes *@i on. False after telling what is wrong. */
static bool io_co_parse_letters(HmpIo *io, char **words, unsigned *i)
{
    for (const char *p = words[*i] + 1; *p; p++) {
        const char *known = *p != ':' ? strchr(io->command->letters, *p) : NULL;
        if (!known) {
            io_co_print("%s: invalid option -- '%c'\n", io->command->name, *p);
            io_co_usage(io->command);
            return false;
        }
        io->flag[(unsigned char)*p] = true;
        if (known[1] == ':') {
            const char *value = p[1] ? p + 1 : words[*i + 1];
            if (!value) {
                io_co_print("%s: option requires an argument -- '%c'\n", io->command->name, *p);
                io_co_usage(io->command);
                return false;
            }
            *i += !p[1];
            io->value[(unsigned char)*p] = value;
            return true;
        }
    }
    return true;
}

/* Sorts @words, which follow the command's name, into options and arguments; the latter end up in io->args. */
static bool io_co_parse_words(HmpIo *io, char **words)
{
    const IoCommand *c = io->command;
    bool only_args = false;

    io->args = g_new0(char *, g_strv_length(words) + 1);
    for (unsigned i = 0; words[i]; i++) {
        if (!only_args && strcmp(words[i], "--") == 0) {
            only_args = true;
        } else if (!only_args && words[i][0] == '-' && words[i][1]) {
            if (!io_co_parse_letters(io, words, &i))
                return false;
        } else {
            io->args[io->n_args++] = words[i];
        }
    }
    if (io->n_args >= c->min && io->n_args <= c->max)
        return true;
    if (c->letters[0] && io->n_args > c->max) {
        io_co_usage(c);
    } else if (c->letters[0]) {
        io_co_print("bad argument count %u to %s, expected at least %u arguments\n", io->n_args, c->name, c->min);
    } else if (c->min == c->max) {
        io_co_print("bad argument count %u to %s, expected %u arguments\n", io->n_args, c->name, c->min);
    } else {
        io_co_print("bad argument count %u to %s, expected between %u and %u arguments\n", io->n_args, c->name, c->min,
                    c->max);
    }
    return false;
}

/* ---- running it ------------------------------------------------------------------------------------------------- */

static void io_co_run(HmpIo *io, char **words)
{
    g_autoptr(GError) error = NULL;

    if (!io_co_parse_words(io, words))
        return;
    if (io->command->needs_port) {
        io->on = io_port_co_new(io->daemon, io->node, io->command->perm, &error);
        if (!io->on) {
            hmp_error(io->hmp, error);
            return;
        }
        io->on->port->throttle = io->device ? &io->device->throttle : NULL;
        io->on->port->writethrough = io->device && io->device->port->writethrough;
    }
    io->command->co_run(io);
}

typedef struct QdevSearch {
    const char *id;
    Device *device;
} QdevSearch;

static void match_qdev(Device *device, void *opaque)
{
    QdevSearch *search = opaque;
    g_auto(GStrv) parts = g_strsplit(device->qdev ? device->qdev : "", "/", -1);

    if (g_strv_contains((const char *const *)parts, search->id) || g_strcmp0(device->qdev, search->id) == 0)
        search->device = device;
}

/* The node that @name, of a device or a node, means; with @by_qdev the name of a guest device. *@ret_device may be
 * NULL. */
static Node *find_node(Graph *graph, const char *name, bool by_qdev, Device **ret_device, GError **error)
{
    if (!by_qdev) {
        *ret_device = device_find(graph, name);
        return graph_lookup(graph, name, error);
    }
    QdevSearch search = {.id = name};
    graph_foreach_device(graph, match_qdev, &search);
    if (!search.device) {
        error_set(error, "Device '%s' not found", name);
        return NULL;
    }
    if (!port_node(search.device->port)) {
        error_set(error, "Device '%s' has no medium", name);
        return NULL;
    }
    *ret_device = search.device;
    return port_node(search.device->port);
}

void hmp_co_qemu_io(Hmp *hmp, char **args)
{
    g_autoptr(GError) error = NULL;
    bool by_qdev = strcmp(args[0], "-d") == 0;

    if (by_qdev != !!args[2]) {
        g_string_append(hmp->out, "Usage: qemu-io [-d] DEVICE|NODE \"COMMAND\"\n");
        return;
    }
    args += by_qdev;
    Device *device = NULL;
    Node *node = find_node(hmp->daemon->graph, args[0], by_qdev, &device, &error);
    g_auto(GStrv) words = node ? hmp_split(args[1], &error) : NULL;
    if (!words) {
        hmp_error(hmp, error);
        return;
    }
    if (!words[0])
        return;
    const IoCommand *command = find_command(words[0]);
    if (!command) {
        io_co_print("command \"%s\" not found\n", words[0]);
        return;
    }
    HmpIo io = {.hmp = hmp, .daemon = hmp->daemon, .node = node_ref(node), .device = device, .command = command};
    io_co_run(&io, words + 1);
    io_port_co_unref(io.on);
    node_co_unref(io.node);
    g_free(io.args);
}
