/*
 * The JSON printer.
 */
#include "qapi/rt/json.h"
#include <json-glib/json-glib.h>
#include <string.h>

static void print_at(const JsonNode *node, bool pretty, int depth, GString *out);

static void print_unit(unsigned unit, GString *out)
{
    static const char digits[] = "0123456789ABCDEF";
    char text[6] = {
        '\\', 'u', digits[unit >> 12 & 15], digits[unit >> 8 & 15], digits[unit >> 4 & 15], digits[unit & 15]};
    g_string_append_len(out, text, sizeof(text));
}

static void print_escaped(gunichar c, GString *out)
{
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *found = c < 0x80 ? strchr(from, (int)c) : NULL;
    if (found) {
        g_string_append_c(out, '\\');
        g_string_append_c(out, to[found - from]);
    } else if (c > 0xffff) {
        print_unit(0xd800 + ((c - 0x10000) >> 10), out);
        print_unit(0xdc00 + ((c - 0x10000) & 0x3ff), out);
    } else {
        print_unit(c, out);
    }
}

static void print_string(const char *text, GString *out)
{
    g_string_append_c(out, '"');
    while (*text) {
        size_t run = 0;
        while (text[run] >= ' ' && text[run] < 0x7f && text[run] != '"' && text[run] != '\\')
            run++;
        g_string_append_len(out, text, (gssize)run);
        text += run;
        if (!*text)
            break;
        gunichar c = g_utf8_get_char_validated(text, -1);
        bool bad = c == (gunichar)-1 || c == (gunichar)-2;
        print_escaped(bad ? 0xfffd : c, out);
        text += bad ? 1 : g_utf8_skip[(uint8_t)*text];
    }
    g_string_append_c(out, '"');
}

static void print_break(bool pretty, int depth, GString *out)
{
    if (pretty)
        g_string_append_printf(out, "\n%*s", depth * 4, "");
}

static void print_object(JsonObject *object, bool pretty, int depth, GString *out)
{
    JsonObjectIter iter;
    const char *name;
    JsonNode *value;
    bool first = true;
    g_string_append_c(out, '{');
    json_object_iter_init_ordered(&iter, object);
    while (json_object_iter_next_ordered(&iter, &name, &value)) {
        if (!first)
            g_string_append(out, pretty ? "," : ", ");
        first = false;
        print_break(pretty, depth + 1, out);
        print_string(name, out);
        g_string_append(out, ": ");
        print_at(value, pretty, depth + 1, out);
    }
    if (!first)
        print_break(pretty, depth, out);
    g_string_append_c(out, '}');
}

static void print_array(JsonArray *array, bool pretty, int depth, GString *out)
{
    guint len = json_array_get_length(array);
    g_string_append_c(out, '[');
    for (guint i = 0; i < len; i++) {
        if (i)
            g_string_append(out, pretty ? "," : ", ");
        print_break(pretty, depth + 1, out);
        print_at(json_array_get_element(array, i), pretty, depth + 1, out);
    }
    if (len)
        print_break(pretty, depth, out);
    g_string_append_c(out, ']');
}

static void print_int(int64_t value, GString *out)
{
    char text[24];
    char *p = text + sizeof(text);
    uint64_t rest = value < 0 ? -(uint64_t)value : (uint64_t)value;
    do {
        *--p = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (value < 0)
        *--p = '-';
    g_string_append_len(out, p, text + sizeof(text) - p);
}

static void print_double(double value, GString *out)
{
    char text[G_ASCII_DTOSTR_BUF_SIZE];
    if (value - value != 0) {
        g_string_append(out, "null");
        return;
    }
    g_string_append(out, g_ascii_dtostr(text, sizeof(text), value));
    if (!strpbrk(text, ".e"))
        g_string_append(out, ".0"); /* so that it reads back as what it is */
}

static void print_scalar(const JsonNode *node, GString *out)
{
    JsonNode *n = (JsonNode *)node;
    GType type = json_node_get_value_type(n);
    if (type == G_TYPE_STRING)
        print_string(json_node_get_string(n), out);
    else if (type == G_TYPE_INT64)
        print_int(json_node_get_int(n), out);
    else if (type == G_TYPE_BOOLEAN)
        g_string_append(out, json_node_get_boolean(n) ? "true" : "false");
    else
        print_double(json_node_get_double(n), out);
}

static void print_at(const JsonNode *node, bool pretty, int depth, GString *out)
{
    switch (JSON_NODE_TYPE((JsonNode *)node)) {
    case JSON_NODE_OBJECT:
        print_object(json_node_get_object((JsonNode *)node), pretty, depth, out);
        break;
    case JSON_NODE_ARRAY:
        print_array(json_node_get_array((JsonNode *)node), pretty, depth, out);
        break;
    case JSON_NODE_VALUE:
        print_scalar(node, out);
        break;
    case JSON_NODE_NULL:
        g_string_append(out, "null");
    }
}

void json_print(const JsonNode *node, bool pretty, GString *out)
{
    print_at(node, pretty, 0, out);
}

char *json_to_str(const JsonNode *node, bool pretty)
{
    GString *out = g_string_sized_new(256);
    json_print(node, pretty, out);
    return g_string_free(out, FALSE);
}
