/*
 * The configuration file, storage-daemon.conf(5): the words of the command line, one setting a line.
 *
 *     # a comment
 *     qmp = /run/storage-daemon.sock          words with a plain value stand before the first section
 *     [blockdev "disk"]                       other words are sections; the name is the node-name or id
 *     driver = qcow2                          keys as on the command line, dots and all
 *     file.driver = file
 *     file.filename = /srv/disk.qcow2         the value is the rest of the line; commas mean nothing special
 *
 * A section becomes the same tree of keys and strings that the command line's key=value text does.
 */
#include "daemon/options.h"
#include "block/util/error.h"
#include "qapi/rt/keyval.h"
#include "qapi/rt/tree.h"
#include <string.h>

enum { CONFIG_MAX_SIZE = 4 << 20 };

typedef struct Reader {
    Options *options;
    const char *path;
    unsigned line;
    Option *section; /* the one that lines belong to; NULL: before the first */
} Reader;

static bool refuse(const Reader *r, const char *what, GError **error)
{
    return error_set(error, "%s:%u: %s", r->path, r->line, what);
}

/* The section's lines are complete: decodes them. */
static bool end_section(Reader *r, GError **error)
{
    Option *o = g_steal_pointer(&r->section);
    if (!o)
        return true;
    o->tree = keyval_finish(o->tree, error);
    if (!o->tree) {
        option_blame(o, error);
        return false;
    }
    return option_decode(o, error);
}

static bool add_pair(Reader *r, const char *key, const char *value, GError **error)
{
    GError *cause = NULL;
    if (!keyval_put(r->section->tree, key, value, &cause)) {
        refuse(r, cause->message, error);
        g_error_free(cause);
        return false;
    }
    OptionLine line = {.key = g_strdup(key), .line = r->line};
    g_array_append_val(r->section->lines, line);
    return true;
}

static const OptionWord *find_word(const Reader *r, const char *name, GError **error)
{
    const OptionWord *word = option_find(name);
    if (word && !word->only_command_line)
        return word;
    g_autofree char *what = NULL;
    const OptionWord *near = option_nearest(name);
    if (word)
        what = g_strdup_printf("'%s' works on the command line only", name);
    else if (near && !near->only_command_line)
        what = g_strdup_printf("there is no '%s'; is '%s' meant?", name, near->name);
    else
        what = g_strdup_printf("there is no '%s'", name);
    refuse(r, what, error);
    return NULL;
}

/* '[word]' or '[word "name"]' */
static bool begin_section(Reader *r, char *text, GError **error)
{
    size_t len = strlen(text);
    if (text[len - 1] != ']')
        return refuse(r, "a section's header ends with ']'", error);
    text[len - 1] = '\0';
    g_autofree char *header = g_strdup(g_strstrip(text + 1));
    g_autofree char *title = g_strdup_printf("[%s]", header);
    char *name = header + strcspn(header, " \t\"");
    g_autofree char *kind = g_strndup(header, (size_t)(name - header));
    g_strstrip(name);
    size_t name_len = strlen(name);
    if (name_len && (name_len < 3 || name[0] != '"' || name[name_len - 1] != '"'))
        return refuse(r, "a section's header is [word] or [word \"name\"]", error);
    const OptionWord *word = find_word(r, kind, error);
    if (!word)
        return false;
    if (word->form != OPTION_KEYVAL) {
        g_autofree char *what =
            g_strdup_printf("'%s' is no section: write '%s = …' before the first section", kind, kind);
        return refuse(r, what, error);
    }
    if (name_len && !word->section_key) {
        g_autofree char *what = g_strdup_printf("a section [%s] has no name", kind);
        return refuse(r, what, error);
    }
    r->section = options_add(r->options, word, r->path, r->line, title);
    r->section->tree = tree_object();
    r->section->source = QAPI_SOURCE_KEYVAL;
    if (!name_len)
        return true;
    name[name_len - 1] = '\0';
    return add_pair(r, word->section_key, name + 1, error);
}

/* A line before the first section. */
static bool plain_word(Reader *r, const char *key, const char *value, GError **error)
{
    const OptionWord *word = find_word(r, key, error);
    if (!word)
        return false;
    if (word->form == OPTION_KEYVAL) {
        g_autofree char *what = word->section_key ? g_strdup_printf("'%s' is a section: [%s \"name\"]", key, key)
                                                  : g_strdup_printf("'%s' is a section: [%s]", key, key);
        return refuse(r, what, error);
    }
    if (!*value) {
        g_autofree char *what = g_strdup_printf("'%s' has no value", key);
        return refuse(r, what, error);
    }
    if (word->form == OPTION_FLAG) {
        if (strcmp(value, "on") != 0 && strcmp(value, "off") != 0) {
            g_autofree char *what = g_strdup_printf("'%s' is on or off, not '%s'", key, value);
            return refuse(r, what, error);
        }
        if (strcmp(value, "on") == 0)
            options_add(r->options, word, r->path, r->line, key);
        return true;
    }
    options_add(r->options, word, r->path, r->line, key)->text = g_strdup(value);
    return true;
}

static bool section_line(Reader *r, const char *key, const char *value, GError **error)
{
    for (guint i = 0; i < r->section->lines->len; i++) {
        const OptionLine *l = &g_array_index(r->section->lines, OptionLine, i);
        if (strcmp(l->key, key) == 0) {
            g_autofree char *what =
                l->line == r->section->line
                    ? g_strdup_printf("'%s' is what the header of line %u names already", key, l->line)
                    : g_strdup_printf("'%s' was set in line %u already", key, l->line);
            return refuse(r, what, error);
        }
    }
    return add_pair(r, key, value, error);
}

static bool read_line(Reader *r, char *text, GError **error)
{
    if (!g_utf8_validate(text, -1, NULL))
        return refuse(r, "not UTF-8", error);
    g_strstrip(text);
    if (!*text || *text == '#' || *text == ';')
        return true;
    if (*text == '[')
        return end_section(r, error) && begin_section(r, text, error);
    char *equals = strchr(text, '=');
    if (!equals || equals == text)
        return refuse(r, "neither 'key = value', nor a [section], nor a # comment", error);
    *equals = '\0';
    char *key = g_strchomp(text), *value = g_strchug(equals + 1);
    size_t len = strlen(value);
    if (len >= 2 && value[0] == '"' && value[len - 1] == '"') {
        /* Quotes keep blanks at the ends. */
        value[len - 1] = '\0';
        value++;
    }
    return r->section ? section_line(r, key, value, error) : plain_word(r, key, value, error);
}

bool config_read(Options *options, const char *path, GError **error)
{
    g_autofree char *content = NULL;
    gsize size = 0;
    GError *cause = NULL;
    if (!g_file_get_contents(path, &content, &size, &cause)) {
        /* glib's text names the file and the reason */
        g_propagate_error(error, cause);
        return false;
    }
    if (size > CONFIG_MAX_SIZE || memchr(content, 0, size)) {
        return error_set(error, "%s: not a configuration file: %s", path,
                         size > CONFIG_MAX_SIZE ? "larger than 4 MiB" : "it holds NUL bytes");
    }
    Reader r = {.options = options, .path = path};
    char *next = content;
    while (next) {
        char *line = next;
        next = strchr(line, '\n');
        if (next)
            *next++ = '\0';
        r.line++;
        if (!read_line(&r, line, error))
            return false;
    }
    return end_section(&r, error);
}
