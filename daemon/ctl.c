#include "daemon/ctl.h"
#include "block/util/error.h"
#include <langinfo.h>
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/storage-daemon.sock"

typedef struct CtlCommand {
    const char *name, *arguments;
    CtlCommandFn *run;
    int min_args, max_args;
    const char *help;
} CtlCommand;

static const CtlCommand commands[] = {
    {"status", "", ctl_status, 0, 0, "Devices, nodes, exports and jobs at a glance."},
    {"jobs", "", ctl_jobs, 0, 0, "What the jobs are doing."},
    {"watch", "JOB", ctl_watch, 1, 1,
     "Follows a job with a progress bar until it is ready or has ended. Exit code 1 when it\n"
     "failed or was cancelled. Where the output is no terminal, a line now and then instead."},
    {"graph", "[--dot]", ctl_graph, 0, 1,
     "The block graph as a tree; with --dot for graphviz: storage-ctl graph --dot | dot -Tsvg"},
    {"qmp", "COMMAND [KEY=VALUE…]", ctl_qmp, 1, INT_MAX,
     "Gives any QMP command and prints what it returns. Keys may have dots\n"
     "(addr.type=unix addr.data.path=/run/nbd), values are words, numbers, true, false, null, or\n"
     "JSON; one argument in {} is all of them.\n"
     "Text that looks like a number goes in double quotes within single ones: port='\"10809\"'."},
    {"events", "", ctl_events, 0, 0, "Prints events as they come, until interrupted."},
    {NULL, NULL, NULL, 0, 0, NULL},
};

static void print_help(void)
{
    printf("Usage: storage-ctl [-s SOCKET] COMMAND [ARGUMENT…]\n"
           "\n"
           "Shows and steers a running storage-daemon.\n"
           "\n"
           "  -s, --socket SOCKET   Where the daemon speaks QMP. Otherwise $STORAGE_DAEMON_SOCKET, or\n"
           "                        " DEFAULT_SOCKET ".\n"
           "  -h, --help            Says this.\n"
           "\n"
           "Commands:\n");
    for (const CtlCommand *c = commands; c->name; c++) {
        printf("  %s%s%s\n", c->name, *c->arguments ? " " : "", c->arguments);
        g_auto(GStrv) lines = g_strsplit(c->help, "\n", -1);
        for (char **line = lines; *line; line++)
            printf("          %s\n", *line);
    }
    printf("\n"
           "Examples:\n"
           "  What is going on:\n"
           "    storage-ctl status\n"
           "  Copy a disk to another image while it is in use, follow the copy, and switch over to it:\n"
           "    storage-ctl qmp drive-mirror job-id=move device=drive0 target=/new/disk.qcow2 sync=full\n"
           "    storage-ctl watch move && storage-ctl qmp block-job-complete device=move\n"
           "  Add a node from JSON:\n"
           "    storage-ctl qmp blockdev-add '{\"driver\": \"null-co\", \"node-name\": \"n0\", \"size\": 1048576}'\n"
           "  End the daemon:\n"
           "    storage-ctl qmp quit\n");
}

int ctl_fail(GError *error)
{
    fflush(stdout);
    g_printerr("storage-ctl: %s\n", error->message);
    g_error_free(error);
    return 1;
}

static int usage(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
static int usage(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_printerr("storage-ctl: %s (see storage-ctl --help)\n", text);
    return 2;
}

bool ctl_unicode(void)
{
    return strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}

static int run(const char *socket, int argc, char **argv)
{
    const CtlCommand *c = commands;
    while (c->name && strcmp(c->name, argv[0]) != 0)
        c++;
    if (!c->name)
        return usage("there is no command '%s'", argv[0]);
    if (argc - 1 < c->min_args || argc - 1 > c->max_args)
        return usage("'%s' takes: %s", c->name, *c->arguments ? c->arguments : "no arguments");
    Ctl ctl;
    GError *error = NULL;
    if (!ctl_connect(&ctl, socket, &error))
        return ctl_fail(error);
    int code = c->run(&ctl, argc - 1, argv + 1);
    ctl_close(&ctl);
    return code;
}

int main(int argc, char **argv)
{
    setlocale(LC_CTYPE, "");
    const char *socket = g_getenv("STORAGE_DAEMON_SOCKET");
    if (!socket || !*socket)
        socket = DEFAULT_SOCKET;
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "-h") == 0 || strcmp(argv[i], "--help") == 0) {
            print_help();
            return 0;
        }
        if (g_str_has_prefix(argv[i], "--socket="))
            socket = argv[i] + strlen("--socket=");
        else if ((strcmp(argv[i], "-s") == 0 || strcmp(argv[i], "--socket") == 0) && i + 1 < argc)
            socket = argv[++i];
        else
            return usage("unrecognized option '%s', or its argument is missing", argv[i]);
    }
    if (i == argc)
        return usage("what shall it do?");
    if (strcmp(argv[i], "help") == 0) {
        print_help();
        return 0;
    }
    return run(socket, argc - i, argv + i);
}
