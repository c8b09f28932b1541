/*
 * Command lines of the human monitor: taking them apart, finding the command.
 */
#include "daemon/hmp.h"
#include "block/util/error.h"
#include "qapi/commands.h"
#include <string.h>

static void hmp_co_help(Hmp *hmp, char **args);

typedef struct HmpCommand {
    const char *name; /* one word or two */
    unsigned min, max;
    const char *args, *help;
    void (*co_run)(Hmp *hmp, char **args);
} HmpCommand;

static const HmpCommand commands[] = {
    {"block_resize", 2, 2, "DEVICE SIZE", "resize the image of a device", hmp_co_block_resize},
    {"commit", 1, 1, "DEVICE|all", "write what a device's image holds into its backing file", hmp_co_commit},
    {"help", 0, 1, "[COMMAND]", "show the commands", hmp_co_help},
    {"info block", 0, 2, "[-n] [DEVICE]", "show devices, or with -n all named nodes", hmp_co_info_block},
    {"info block-jobs", 0, 0, "", "show the jobs", hmp_co_info_block_jobs},
    {"info snapshots", 0, 1, "[NODE]", "show internal snapshots", hmp_co_info_snapshots},
    {"qemu-io", 2, 3, "[-d] DEVICE|NODE \"COMMAND\"", "carry out a command of qemu-io", hmp_co_qemu_io},
};

void hmp_error(Hmp *hmp, const GError *error)
{
    g_string_append_printf(hmp->out, "Error: %s\n", error->message);
}

/* The next word from *@text on, which moves behind it. */
static char *next_word(const char **text, GError **error)
{
    GString *word = g_string_new(NULL);
    const char *p = *text;
    bool quoted = false;

    for (; *p && (quoted || !g_ascii_isspace(*p)); p++) {
        if (*p == '"') {
            quoted = !quoted;
        } else if (*p == '\\' && quoted && p[1]) {
            p++;
            g_string_append_c(word, *p == 'n' ? '\n' : *p == 'r' ? '\r' : *p == 't' ? '\t' : *p);
        } else {
            g_string_append_c(word, *p);
        }
    }
    *text = p;
    if (quoted) {
        error_set(error, "unterminated string");
        g_string_free(word, TRUE);
        return NULL;
    }
    return g_string_free(word, FALSE);
}

char **hmp_split(const char *text, GError **error)
{
    g_autoptr(GPtrArray) words = g_ptr_array_new_with_free_func(g_free);

    for (;;) {
        while (g_ascii_isspace(*text))
            text++;
        if (!*text)
            break;
        char *word = next_word(&text, error);
        if (!word)
            return NULL;
        g_ptr_array_add(words, word);
    }
    g_ptr_array_add(words, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&words), FALSE);
}

/* The command that @words begin with, and how many words name it. */
static const HmpCommand *find_command(char **words, unsigned *ret_n)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
        g_auto(GStrv) name = g_strsplit(commands[i].name, " ", -1);
        unsigned n = 0;
        while (name[n] && words[n] && strcmp(name[n], words[n]) == 0)
            n++;
        if (!name[n]) {
            *ret_n = n;
            return &commands[i];
        }
    }
    return NULL;
}

static void hmp_co_help(Hmp *hmp, char **args)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (!args[0] || g_str_has_prefix(commands[i].name, args[0])) {
            g_string_append_printf(hmp->out, "%s%s%s -- %s\n", commands[i].name, commands[i].args[0] ? " " : "",
                                   commands[i].args, commands[i].help);
        }
    }
}

/* Carries out @line; whatever goes wrong is told in .out. */
static void hmp_co_run(Hmp *hmp, const char *line)
{
    g_autoptr(GError) error = NULL;
    g_auto(GStrv) words = hmp_split(line, &error);
    unsigned n_name = 0;

    if (!words) {
        hmp_error(hmp, error);
        return;
    }
    if (!words[0])
        return;
    const HmpCommand *command = find_command(words, &n_name);
    if (!command) {
        g_autofree char *text = g_strjoinv(" ", words);
        g_string_append_printf(hmp->out, "unknown command: '%s'\n", text);
        return;
    }
    unsigned n = g_strv_length(words) - n_name;
    if (n < command->min || n > command->max) {
        g_string_append_printf(hmp->out, "Usage: %s %s\n", command->name, command->args);
        return;
    }
    command->co_run(hmp, words + n_name);
}

bool qmp_co_human_monitor_command(QmpContext *ctx, const HumanMonitorCommandArgs *arg, char **ret, GError **error)
{
    g_autoptr(GString) out = g_string_new(NULL);
    Hmp hmp = {.daemon = qmp_daemon(ctx), .out = out};

    hmp_co_run(&hmp, arg->command_line);
    /* Lines end as on a terminal. */
    g_auto(GStrv) lines = g_strsplit(out->str, "\n", -1);
    *ret = g_strjoinv("\r\n", lines);
    return true;
}
