/*
 * The table of option words and what works on it for the command line and the configuration file alike.
 */
#include "daemon/options.h"
#include "daemon/chardev.h"
#include "daemon/drive.h"
#include "daemon/harness.h"
#include "daemon/object.h"
#include "daemon/startup.h"
#include "block/util/error.h"
#include "qapi/rt/tree.h"
#include <string.h>

const OptionWord option_words[] = {
    {
        .name = "blockdev",
        .form = OPTION_KEYVAL,
        .implied_key = "driver",
        .section_key = "node-name",
        .type = &qapi_type_BlockdevOptions,
        .co_apply = startup_co_blockdev,
        .value_help = "[driver=]DRIVER,node-name=NAME[,read-only=on|off][,cache.direct=on|off]\n"
                      "[,cache.no-flush=on|off][,discard=ignore|unmap][,KEY=VALUE…]",
        .help = "Adds a block node, as the QMP command blockdev-add does. Nested keys have dots,\n"
                "list elements numbers (children.0=…); JSON works too: '{\"driver\": …}'.",
    },
    {
        .name = "drive",
        .form = OPTION_KEYVAL,
        .section_key = "id",
        .decode = drive_decode,
        .free_value = drive_free,
        .co_apply = drive_co_apply,
        .value_help = "id=ID[,file=PATH][,format=FORMAT][,node-name=NAME][,backing.node-name=NAME]\n"
                      "[,cache=none|writeback|writethrough|directsync|unsafe][,aio=io_uring|threads|native]\n"
                      "[,read-only=on|off][,media=disk|cdrom][,discard=…][,detect-zeroes=…]\n"
                      "[,copy-on-read=on|off][,KEY=VALUE…]",
        .help = "Adds a named device with its tree of nodes, as QEMU's -drive if=none does. Without\n"
                "format the image's first bytes decide, with a warning when they say raw.",
    },
    {
        .name = "nbd-server",
        .form = OPTION_KEYVAL,
        .type = &qapi_type_NbdServerOptions,
        .co_apply = startup_co_nbd_server,
        .value_help = "addr.type=unix,addr.path=PATH[,max-connections=N]\n"
                      "addr.type=inet,addr.host=HOST,addr.port=PORT[,max-connections=N]",
        .help = "Starts the NBD server, which exports of type nbd need.",
    },
    {
        .name = "export",
        .form = OPTION_KEYVAL,
        .implied_key = "type",
        .section_key = "id",
        .decode = startup_decode_export,
        .free_value = startup_free_export,
        .co_apply = startup_co_export,
        .value_help = "[type=]nbd,id=ID,node-name=NODE[,name=EXPORT][,writable=on|off][,bitmap=NAME]",
        .help = "Exports a node to NBD clients under the name EXPORT (the node's name when left out).",
    },
    {
        .name = "chardev",
        .form = OPTION_KEYVAL,
        .implied_key = "backend",
        .section_key = "id",
        .decode = chardev_decode,
        .free_value = chardev_free_options,
        .co_apply = chardev_co_apply,
        .value_help = "socket,id=ID,path=PATH[,server=on|off][,wait=on|off][,reconnect=SECONDS]\n"
                      "socket,id=ID,host=HOST,port=PORT[,server=on|off][,wait=on|off][,ipv4=on|off][,ipv6=on|off]\n"
                      "socket,id=ID,fd=N[,server=on|off]\n"
                      "stdio,id=ID[,signal=on|off]",
        .help = "Makes a place for a monitor to talk at. With server=on it listens (and with wait=on,\n"
                "the default, start-up waits for the first client), without it connects.",
    },
    {
        .name = "monitor",
        .form = OPTION_KEYVAL,
        .implied_key = "chardev",
        .section_key = "chardev",
        .type = &qapi_type_MonitorOptions,
        .co_apply = monitor_co_apply,
        .value_help = "[chardev=]ID[,mode=control][,pretty=on|off]",
        .help = "Speaks QMP at a chardev, with any number of clients at once.",
    },
    {
        .name = "qmp",
        .form = OPTION_TEXT,
        .co_apply = startup_co_qmp,
        .value_help = "PATH",
        .help = "Speaks QMP at the unix socket PATH: short for --chardev socket,server=on,wait=off and\n"
                "--monitor. May be given several times.",
    },
    {
        .name = "config",
        .form = OPTION_TEXT,
        .only_command_line = true,
        .value_help = "FILE",
        .help = "Reads these words from FILE, see storage-daemon.conf(5). They count as given in the\n"
                "place of this option.",
    },
    {
        .name = "check-config",
        .form = OPTION_FLAG,
        .only_command_line = true,
        .help = "Opens nothing: says what is wrong with the options and the file, or that all is well.",
    },
    {
        .name = "check",
        .form = OPTION_TEXT,
        .only_command_line = true,
        .value_help = "IMAGE [--repair leaks|all] [--format FORMAT] [--output human|json]",
        .help = "Checks the image, which nobody else may have open, and ends: 0 clean, 1 no verdict,\n"
                "2 corruption, 3 leaked clusters, 63 the format has no checker.",
    },
    {
        .name = "repair",
        .form = OPTION_TEXT,
        .only_command_line = true,
        .needs = "check",
        .value_help = "leaks|all",
        .help = "With --check: gives leaked clusters back, or makes everything good that can be.",
    },
    {
        .name = "format",
        .form = OPTION_TEXT,
        .only_command_line = true,
        .needs = "check",
        .value_help = "FORMAT",
        .help = "With --check: the image's format; without it, its first bytes decide.",
    },
    {
        .name = "output",
        .form = OPTION_TEXT,
        .only_command_line = true,
        .needs = "check",
        .value_help = "human|json",
        .help = "With --check: how the result is told.",
    },
    {
        .name = "pidfile",
        .form = OPTION_TEXT,
        .value_help = "PATH",
        .help = "Writes the process id to PATH when start-up is complete. Two daemons cannot share one.",
    },
    {
        .name = "refuse-image-names",
        .form = OPTION_FLAG,
        .help = "Opens no file because an image names it: backing and data files count only where\n"
                "options (backing, data-file) name them. For images from others.",
    },
    {
        .name = "daemonize",
        .form = OPTION_FLAG,
        .help = "Goes to the background when start-up is complete; exit code 1 when it fails.",
    },
    {
        .name = "object",
        .form = OPTION_KEYVAL,
        .implied_key = "qom-type",
        .section_key = "id",
        .type = &qapi_type_ObjectOptions,
        .co_apply = object_co_apply,
        .value_help = "[qom-type=]throttle-group,id=ID[,limits.bps-total=N][,limits.KEY=N…]\n"
                      "[qom-type=]secret,id=ID,file=PATH|data=VALUE[,format=raw|base64][,keyid=ID,iv=IV]",
        .help = "Makes an object, as the QMP command object-add does, for what comes after it.",
    },
    {
        .name = "device",
        .form = OPTION_KEYVAL,
        .only_command_line = true,
        .type = &qapi_type_GuestDeviceOptions,
        .co_apply = harness_co_device,
        .value_help = "drive=ID|NODE,qdev=PATH",
        .help = "Says which guest device a drive, or a node, is attached to: query-block shows it.",
    },
    {
        .name = "manual-rate-clock",
        .form = OPTION_FLAG,
        .only_command_line = true,
        .co_apply = harness_co_manual_rate_clock,
        .help = "Rate limits run on a clock that only the QMP command x-rate-clock-step moves. For tests.",
    },
    {
        .name = "announce-images",
        .form = OPTION_FLAG,
        .only_command_line = true,
        .co_apply = harness_co_announce_images,
        .help = "Prints a line for every image that is made, as qemu-img does. For tests.",
    },
    {.name = "version", .letter = 'V', .form = OPTION_FLAG, .only_command_line = true, .help = "Says the version."},
    {.name = "help", .letter = 'h', .form = OPTION_FLAG, .only_command_line = true, .help = "Says this."},
    {.name = NULL},
};

const OptionWord *option_find(const char *name)
{
    for (const OptionWord *w = option_words; w->name; w++)
        if (strcmp(w->name, name) == 0)
            return w;
    return NULL;
}

/* How many letters must be changed, added, taken away or swapped with their neighbour to turn @a into @b. */
static unsigned spelling_distance(const char *a, const char *b)
{
    enum { MAX_LEN = 24 };
    unsigned d[MAX_LEN + 1][MAX_LEN + 1], m = (unsigned)strlen(a), n = (unsigned)strlen(b);
    if (m > MAX_LEN || n > MAX_LEN)
        return UINT_MAX;
    for (unsigned i = 0; i <= m; i++) {
        for (unsigned j = 0; j <= n; j++) {
            if (!i || !j) {
                d[i][j] = i + j;
                continue;
            }
            unsigned best = MIN(d[i - 1][j], d[i][j - 1]) + 1;
            best = MIN(best, d[i - 1][j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                best = MIN(best, d[i - 2][j - 2] + 1);
            d[i][j] = best;
        }
    }
    return d[m][n];
}

const OptionWord *option_nearest(const char *name)
{
    const OptionWord *best = NULL;
    unsigned least = (unsigned)strlen(name) / 2 + 1;
    for (const OptionWord *w = option_words; w->name; w++) {
        unsigned distance = spelling_distance(name, w->name);
        if (distance < least || (!best && strlen(name) >= 2 && g_str_has_prefix(w->name, name))) {
            best = w;
            least = MIN(least, distance);
        }
    }
    return best;
}

void option_forget(Option *o)
{
    if (o->value) {
        if (o->word->type)
            qapi_free(o->word->type, o->value);
        else
            o->word->free_value(o->value);
    }
    o->value = NULL;
    if (o->tree)
        tree_wipe(o->tree);
    g_clear_pointer(&o->tree, tree_unref);
}

static void option_free(void *p)
{
    Option *o = p;
    option_forget(o);
    g_free(o->text);
    g_free(o->file);
    g_free(o->title);
    g_array_unref(o->lines);
    g_free(o);
}

Options *options_new(void)
{
    Options *options = g_new0(Options, 1);
    options->list = g_ptr_array_new_with_free_func(option_free);
    return options;
}

void options_free(Options *options)
{
    if (options) {
        g_ptr_array_unref(options->list);
        g_free(options);
    }
}

static void line_clear(void *p)
{
    g_free(((OptionLine *)p)->key);
}

Option *options_add(Options *options, const OptionWord *word, const char *file, unsigned line, const char *title)
{
    Option *o = g_new0(Option, 1);
    o->word = word;
    o->file = g_strdup(file);
    o->line = line;
    o->title = g_strdup(title);
    o->lines = g_array_new(FALSE, FALSE, sizeof(OptionLine));
    g_array_set_clear_func(o->lines, line_clear);
    g_ptr_array_add(options->list, o);
    return o;
}

static unsigned line_of_key(const Option *option, const char *key)
{
    g_autofree char *within = g_strconcat(key, ".", NULL);
    for (guint i = 0; i < option->lines->len; i++) {
        const OptionLine *l = &g_array_index(option->lines, OptionLine, i);
        if (strcmp(l->key, key) == 0 || g_str_has_prefix(l->key, within))
            return l->line;
    }
    return 0;
}

/* The line of the first key that stands in quotes in @message; where there is none, that of the header. */
static unsigned line_of_message(const Option *option, const char *message)
{
    for (const char *from = strchr(message, '\''), *to; from && (to = strchr(from + 1, '\''));
         from = strchr(to + 1, '\'')) {
        g_autofree char *key = g_strndup(from + 1, (size_t)(to - from - 1));
        unsigned line = line_of_key(option, key);
        if (line)
            return line;
    }
    return option->line;
}

void option_blame(const Option *option, GError **error)
{
    if (option->file) {
        unsigned line = error && *error ? line_of_message(option, (*error)->message) : option->line;
        g_prefix_error(error, "%s:%u: %s: ", option->file, line, option->title);
    } else {
        g_prefix_error(error, "%s: ", option->title);
    }
}

bool option_decode(Option *option, GError **error)
{
    const OptionWord *word = option->word;
    option->value = word->type ? qapi_decode(word->type, option->source, option->tree, error)
                               : word->decode(option->tree, option->source, error);
    if (!option->value) {
        option_blame(option, error);
        return false;
    }
    return true;
}

const char *options_last(const Options *options, const char *name)
{
    const char *found = NULL;
    for (guint i = 0; i < options->list->len; i++) {
        const Option *o = g_ptr_array_index(options->list, i);
        if (strcmp(o->word->name, name) == 0)
            found = o->text ? o->text : "";
    }
    return found;
}
