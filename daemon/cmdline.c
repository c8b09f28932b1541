/*
 * The command line: words of option_words with --word VALUE or --word=VALUE, and --help.
 */
#include "daemon/options.h"
#include "block/util/error.h"
#include "qapi/rt/keyval.h"
#include <stdio.h>
#include <string.h>

/* The word that argument @arg names, and where its "=VALUE" starts (NULL: none). */
static const OptionWord *find_word(const char *arg, const char **ret_value, GError **error)
{
    if (arg[0] == '-' && arg[1] && arg[1] != '-' && !arg[2]) {
        for (const OptionWord *w = option_words; w->name; w++) {
            if (w->letter == arg[1]) {
                *ret_value = NULL;
                return w;
            }
        }
    }
    if (strncmp(arg, "--", 2) != 0) {
        if (arg[0] == '-' && arg[1] && option_find(arg + 1))
            error_set(error, "unrecognized option '%s'; options have two dashes: --%s", arg, arg + 1);
        else if (arg[0] == '-')
            error_set(error, "unrecognized option '%s' (see --help)", arg);
        else
            error_set(error, "%s: Unexpected argument (see --help)", arg);
        return NULL;
    }
    const char *equals = strchr(arg, '=');
    g_autofree char *name = equals ? g_strndup(arg + 2, (size_t)(equals - arg - 2)) : g_strdup(arg + 2);
    const OptionWord *word = option_find(name), *near = option_nearest(name);
    if (!word && near)
        error_set(error, "unrecognized option '--%s'; is '--%s' meant?", name, near->name);
    else if (!word)
        error_set(error, "unrecognized option '--%s' (see --help)", name);
    *ret_value = equals ? equals + 1 : NULL;
    return word;
}

/* The value may be a password: neither messages nor the list of processes show it. */
static bool is_secret(const OptionWord *word, const char *value)
{
    return strcmp(word->name, "object") == 0 && strstr(value, "secret") && strstr(value, "data");
}

static bool add_option(Options *options, const OptionWord *word, const char *value, GError **error)
{
    if (strcmp(word->name, "config") == 0)
        return config_read(options, value, error);
    bool shown = value && !is_secret(word, value);
    g_autofree char *title =
        shown ? g_strdup_printf("--%s %s", word->name, value) : g_strdup_printf("--%s", word->name);
    Option *o = options_add(options, word, NULL, 0, title);
    if (word->form != OPTION_KEYVAL) {
        o->text = g_strdup(value);
        return true;
    }
    o->source = keyval_is_json(value) ? QAPI_SOURCE_JSON : QAPI_SOURCE_KEYVAL;
    o->tree = keyval_parse(value, word->implied_key, error);
    if (!o->tree) {
        option_blame(o, error);
        return false;
    }
    return option_decode(o, error);
}

bool options_parse_argv(Options *options, int argc, char **argv, GError **error)
{
    for (int i = 1; i < argc; i++) {
        const char *value = NULL;
        const OptionWord *word = find_word(argv[i], &value, error);
        if (!word)
            return false;
        if (word->form == OPTION_FLAG && value)
            return error_set(error, "option '--%s' doesn't allow an argument", word->name);
        if (word->form != OPTION_FLAG && !value) {
            if (i + 1 == argc)
                return error_set(error, "option '--%s' requires an argument", word->name);
            value = argv[++i];
            /* No value: somebody wonders what to say here. A file of that name is --check=--help. */
            if (strcmp(value, "--help") == 0)
                word = find_word(value, &value, NULL);
        }
        if (strcmp(word->name, "help") == 0 || strcmp(word->name, "version") == 0) {
            /* Whoever asks for these wants no judgement of the rest. */
            options_add(options, word, NULL, 0, word->name);
            return true;
        }
        bool ok = add_option(options, word, value, error);
        if (value && is_secret(word, value))
            memset((char *)value, '*', strlen(value));
        if (!ok)
            return false;
    }
    for (guint i = 0; i < options->list->len; i++) {
        const OptionWord *word = ((const Option *)g_ptr_array_index(options->list, i))->word;
        if (word->needs && !options_last(options, word->needs))
            return error_set(error, "option '--%s' needs '--%s'", word->name, word->needs);
    }
    return true;
}

static void print_indented(const char *text, const char *indent)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++)
        printf("%s%s\n", indent, *line);
}

void options_print_help(void)
{
    printf("Usage: storage-daemon OPTION…\n"
           "\n"
           "Opens disk images, copies them while they are in use, and serves them to NBD clients. Programs and\n"
           "people steer it with QMP, JSON commands over a socket. Options are carried out in the order given.\n"
           "\n"
           "Options:\n");
    for (const OptionWord *w = option_words; w->name; w++) {
        g_auto(GStrv) forms = g_strsplit(w->value_help ? w->value_help : "", "\n", -1);
        if (w->letter)
            printf("  -%c, --%s\n", w->letter, w->name);
        for (char **form = forms; *form; form++) {
            /* A form that starts with '[,' goes on where the last one ended. */
            if (g_str_has_prefix(*form, "[,"))
                printf("        %s\n", *form);
            else
                printf("  --%s %s\n", w->name, *form);
        }
        if (!forms[0] && !w->letter)
            printf("  --%s\n", w->name);
        print_indented(w->help, "          ");
    }
    printf("\n"
           "Examples:\n"
           "  Serve a disk image over NBD, read-only, and talk QMP to it:\n"
           "    storage-daemon --qmp /run/sd.sock \\\n"
           "      --blockdev driver=file,node-name=img,filename=disk.qcow2,read-only=on \\\n"
           "      --blockdev driver=qcow2,node-name=disk,file=img,read-only=on \\\n"
           "      --nbd-server addr.type=unix,addr.path=/run/nbd.sock --export nbd,id=e0,node-name=disk\n"
           "    nbdinfo 'nbd+unix:///disk?socket=/run/nbd.sock'\n"
           "    storage-ctl -s /run/sd.sock status\n"
           "  A named device for drive-mirror, its format found out by itself:\n"
           "    storage-daemon --qmp /run/sd.sock --drive id=drive0,file=disk.qcow2\n"
           "  The same words from a file, checked and then run as a service:\n"
           "    storage-daemon --config /etc/storage-daemon.conf --check-config\n"
           "    storage-daemon --config /etc/storage-daemon.conf --daemonize --pidfile /run/sd.pid\n"
           "\n"
           "More: storage-daemon(1), storage-daemon.conf(5), storage-ctl(1).\n");
}
