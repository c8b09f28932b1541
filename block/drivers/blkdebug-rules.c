/*
 * blkdebug's rules: a state machine driven by events.
 *
 * An event looks through the rules that are for it and for the present state. Rules of errors become armed, in place of
 * what was armed before (an event without any leaves that be); then a rule may change the state; then breakpoints hold
 * the request up. A request fails when an armed rule fits its range and kind. Where several rules fit, the one defined
 * first counts, rules of the file before those of the options.
 */
#include "block/aio/io.h"
#include "block/drivers/blkdebug.h"
#include "qapi/rt/tree.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#define CONFIG_MAX (64 * 1024) /* bytes of a configuration file */
#define SECTOR     512

typedef enum RuleAction { ACTION_INJECT_ERROR, ACTION_SET_STATE, ACTION_BREAK } RuleAction;

typedef struct Rule {
    RuleAction action;
    BlkdebugEvent event;
    int64_t state; /* 0: any */
    /* inject-error */
    int error;      /* errno; 0: the rule fits, but nothing fails */
    unsigned types; /* 1 << BlkdebugIOType */
    int64_t offset; /* bytes; negative: any */
    bool once, immediately;
    /* set-state */
    int64_t new_state;
    /* break */
    char *tag;
} Rule;

static void rule_free(void *opaque)
{
    Rule *rule = opaque;

    g_free(rule->tag);
    g_free(rule);
}

static void rule_remove(Blkdebug *s, Rule *rule)
{
    g_ptr_array_remove(s->armed, rule);
    g_ptr_array_remove(s->rules, rule);
}

/* ---- reading rules ---------------------------------------------------------------------------------------------- */

static bool add_inject(Blkdebug *s, const BlkdebugInjectErrorOptions *o, GError **error)
{
    const unsigned all = 1u << BLKDEBUG_IO_TYPE_READ | 1u << BLKDEBUG_IO_TYPE_WRITE |
                         1u << BLKDEBUG_IO_TYPE_WRITE_ZEROES | 1u << BLKDEBUG_IO_TYPE_DISCARD |
                         1u << BLKDEBUG_IO_TYPE_FLUSH;
    int64_t sector = o->has_sector ? o->sector : -1;
    Rule *rule;

    if (o->has_errno && (o->q_errno < 0 || o->q_errno > 4095))
        return error_set(error, "Parameter 'errno' expects a number from 0 to 4095, not %" G_GINT64_FORMAT, o->q_errno);
    if (sector < -1 || sector > INT64_MAX / SECTOR)
        return error_set(error, "Parameter 'sector' expects -1 or a sector number, not %" G_GINT64_FORMAT, sector);
    rule = g_new0(Rule, 1);
    rule->action = ACTION_INJECT_ERROR;
    rule->event = o->event;
    rule->state = o->has_state ? o->state : 0;
    rule->error = o->has_errno ? (int)o->q_errno : EIO;
    rule->types = o->has_iotype ? 1u << o->iotype : all;
    rule->offset = sector < 0 ? -1 : sector * SECTOR;
    rule->once = o->has_once && o->once;
    rule->immediately = o->has_immediately && o->immediately;
    g_ptr_array_add(s->rules, rule);
    return true;
}

static void add_set_state(Blkdebug *s, const BlkdebugSetStateOptions *o)
{
    Rule *rule = g_new0(Rule, 1);

    rule->action = ACTION_SET_STATE;
    rule->event = o->event;
    rule->state = o->has_state ? o->state : 0;
    rule->new_state = o->new_state;
    g_ptr_array_add(s->rules, rule);
}

/* A section of the file has come to its end: @tree holds its keys. */
static bool add_section(Blkdebug *s, const char *name, Tree *tree, GError **error)
{
    if (!strcmp(name, "inject-error")) {
        g_autoptr(BlkdebugInjectErrorOptions) o = qapi_decode_keyval_BlkdebugInjectErrorOptions(tree, error);
        return o && add_inject(s, o, error);
    }
    g_autoptr(BlkdebugSetStateOptions) o = qapi_decode_keyval_BlkdebugSetStateOptions(tree, error);
    if (o)
        add_set_state(s, o);
    return o != NULL;
}

/* `[name]`, or `[name "id"]` where the id means nothing here. The name, the caller's; NULL: something else. */
static char *section_name(const char *line)
{
    const char *end = strchr(line, ']');
    size_t len = strcspn(line + 1, " \t\"]");

    if (line[0] != '[' || !end || end[1])
        return NULL;
    return g_strndup(line + 1, len);
}

/* `key = "value"` goes into @tree. */
static bool parse_key(Tree *tree, const char *line, GError **error)
{
    size_t len = strcspn(line, " \t=");
    g_autofree char *key = g_strndup(line, len), *value = NULL;
    const char *rest = line + len + strspn(line + len, " \t");
    size_t value_len;

    if (!len || *rest != '=')
        return error_set(error, "expected [section] or key = \"value\", not '%s'", line);
    rest += 1 + strspn(rest + 1, " \t");
    value_len = *rest == '"' ? strcspn(rest + 1, "\"") : 0;
    if (*rest != '"' || rest[1 + value_len] != '"' || rest[2 + value_len])
        return error_set(error, "the value of '%s' must stand in double quotes", key);
    value = g_strndup(rest + 1, value_len);
    tree_set_string(tree, key, value);
    return true;
}

static bool parse_lines(Blkdebug *s, char **lines, unsigned *number, GError **error)
{
    g_autofree char *section = NULL;
    g_autoptr(Tree) tree = NULL;
    unsigned head = 0; /* the line that begins the section */

    for (*number = 1; lines[*number - 1]; ++*number) {
        char *line = g_strstrip(lines[*number - 1]);
        if (!*line || *line == '#')
            continue;
        if (*line != '[') {
            if (!section)
                return error_set(error, "no group defined");
            if (!parse_key(tree, line, error))
                return false;
            continue;
        }
        if (section && !add_section(s, section, tree, error))
            break;
        g_free(section);
        section = section_name(line);
        if (!section || (strcmp(section, "inject-error") && strcmp(section, "set-state")))
            return error_set(error, "There is no option group '%s'", section ? section : line);
        tree_unref(tree);
        tree = tree_object();
        head = *number;
    }
    if (!lines[*number - 1] && (!section || add_section(s, section, tree, error)))
        return true;
    *number = head;
    return false;
}

typedef struct ConfigFile {
    const char *path;
    char *text; /* NUL-terminated */
} ConfigFile;

static int config_read(void *opaque)
{
    ConfigFile *file = opaque;
    int fd = open(file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), ret = 0;
    size_t size = 0;

    if (fd < 0)
        return -errno;
    file->text = g_malloc0(CONFIG_MAX + 1);
    while (ret == 0 && size <= CONFIG_MAX) {
        ssize_t n = read(fd, file->text + size, CONFIG_MAX + 1 - size);
        if (n <= 0) {
            ret = n < 0 ? -errno : 0;
            break;
        }
        size += (size_t)n;
    }
    close(fd);
    if (ret == 0 && size > CONFIG_MAX)
        ret = -EFBIG;
    if (ret == 0)
        file->text[size] = 0;
    return ret;
}

bool blkdebug_parse(Blkdebug *s, const char *text, unsigned *ret_line, GError **error)
{
    g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

    return parse_lines(s, lines, ret_line, error);
}

static bool config_co_load(Blkdebug *s, const char *path, GError **error)
{
    ConfigFile file = {.path = path};
    int ret = aio_co_worker(config_read, &file);
    g_autofree char *text = file.text;
    unsigned number;

    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read blkdebug config file");
    if (blkdebug_parse(s, text, &number, error))
        return true;
    g_prefix_error(error, "%s:%u: ", path, number);
    return false;
}

void blkdebug_rules_init(Blkdebug *s)
{
    s->rules = g_ptr_array_new_with_free_func(rule_free);
    s->armed = g_ptr_array_new();
    s->state = 1;
}

bool blkdebug_co_rules_load(Blkdebug *s, const BlockdevOptionsBlkdebug *options, GError **error)
{
    if (options->config && *options->config && !config_co_load(s, options->config, error))
        return false;
    for (size_t i = 0; options->inject_error && i < options->inject_error->len; i++)
        if (!add_inject(s, options->inject_error->items[i], error))
            return false;
    for (size_t i = 0; options->set_state && i < options->set_state->len; i++)
        add_set_state(s, options->set_state->items[i]);
    return true;
}

void blkdebug_rules_free(Blkdebug *s)
{
    g_clear_pointer(&s->armed, g_ptr_array_unref);
    g_clear_pointer(&s->rules, g_ptr_array_unref);
}

/* ---- using them ------------------------------------------------------------------------------------------------- */

static bool rule_fits(const Blkdebug *s, const Rule *rule, BlkdebugEvent event)
{
    return rule->event == event && (!rule->state || rule->state == s->state);
}

static void arm_errors(Blkdebug *s, BlkdebugEvent event)
{
    bool first = true;

    for (guint i = 0; i < s->rules->len; i++) {
        Rule *rule = g_ptr_array_index(s->rules, i);
        if (rule->action != ACTION_INJECT_ERROR || !rule_fits(s, rule, event))
            continue;
        if (first)
            g_ptr_array_set_size(s->armed, 0);
        first = false;
        g_ptr_array_add(s->armed, rule);
    }
}

static int64_t next_state(const Blkdebug *s, BlkdebugEvent event)
{
    for (guint i = 0; i < s->rules->len; i++) {
        const Rule *rule = g_ptr_array_index(s->rules, i);
        if (rule->action == ACTION_SET_STATE && rule_fits(s, rule, event))
            return rule->new_state;
    }
    return s->state;
}

/* The next breakpoint at @event, which is used up by that: its tag, the caller's. NULL: none. */
static char *take_break(Blkdebug *s, BlkdebugEvent event)
{
    for (guint i = 0; i < s->rules->len; i++) {
        Rule *rule = g_ptr_array_index(s->rules, i);
        if (rule->action == ACTION_BREAK && rule->event == event) {
            char *tag = g_steal_pointer(&rule->tag);
            rule_remove(s, rule);
            return tag;
        }
    }
    return NULL;
}

static void rules_co_hold(Blkdebug *s, const char *tag)
{
    BlkdebugHeld held = {.tag = tag, .next = s->held};

    s->held = &held;
    while (!held.go)
        coqueue_co_wait(&held.waiter, NULL);
}

void blkdebug_co_event(Node *node, BlkdebugEvent event)
{
    Blkdebug *s = node->state;
    char *tag;

    if (!s->rules->len)
        return;
    arm_errors(s, event);
    s->state = next_state(s, event);
    while ((tag = take_break(s, event))) {
        rules_co_hold(s, tag);
        g_free(tag);
    }
}

int blkdebug_co_check(Blkdebug *s, uint64_t offset, uint64_t bytes, BlkdebugIOType type)
{
    for (guint i = 0; i < s->armed->len; i++) {
        Rule *rule = g_ptr_array_index(s->armed, i);
        bool hit =
            rule->offset < 0 || (bytes && (uint64_t)rule->offset >= offset && (uint64_t)rule->offset - offset < bytes);
        bool immediately = rule->immediately;
        int error = rule->error;

        if (!hit || !(rule->types & 1u << type))
            continue;
        if (!error)
            return 0;
        if (rule->once)
            rule_remove(s, rule);
        if (!immediately)
            aio_co_reschedule();
        return -error;
    }
    return 0;
}

/* ---- breakpoints ------------------------------------------------------------------------------------------------ */

static int set_break(Node *node, const char *event, const char *tag)
{
    Blkdebug *s = node->state;

    for (BlkdebugEvent e = 0; e < BLKDEBUG_EVENT__MAX; e++) {
        Rule *rule;
        if (strcmp(qapi_BlkdebugEvent_str(e), event))
            continue;
        rule = g_new0(Rule, 1);
        rule->action = ACTION_BREAK;
        rule->event = e;
        rule->tag = g_strdup(tag);
        g_ptr_array_add(s->rules, rule);
        return 0;
    }
    return -ENOENT;
}

/* Lets the one that has waited longest at @tag (NULL: any) go on. */
static int debug_resume(Node *node, const char *tag)
{
    Blkdebug *s = node->state;
    BlkdebugHeld **link = NULL, *held;

    for (BlkdebugHeld **l = &s->held; *l; l = &(*l)->next)
        if (!tag || !strcmp((*l)->tag, tag))
            link = l;
    if (!link)
        return -ENOENT;
    held = *link;
    *link = held->next;
    held->go = true;
    coqueue_wake_all(&held->waiter);
    return 0;
}

static int remove_break(Node *node, const char *tag)
{
    Blkdebug *s = node->state;
    int ret = -ENOENT;

    for (guint i = s->rules->len; i-- > 0;) {
        Rule *rule = g_ptr_array_index(s->rules, i);
        if (rule->action == ACTION_BREAK && (!tag || !strcmp(rule->tag, tag))) {
            rule_remove(s, rule);
            ret = 0;
        }
    }
    while (debug_resume(node, tag) == 0)
        ret = 0;
    return ret;
}

static bool debug_suspended(Node *node, const char *tag)
{
    for (const BlkdebugHeld *held = ((Blkdebug *)node->state)->held; held; held = held->next)
        if (!strcmp(held->tag, tag))
            return true;
    return false;
}

const DriverDebug blkdebug_debug = {
    .co_event = blkdebug_co_event,
    .set_break = set_break,
    .remove_break = remove_break,
    .resume = debug_resume,
    .suspended = debug_suspended,
};
