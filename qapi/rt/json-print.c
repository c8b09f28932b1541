/*
 * The JSON printer.
 */
#include "qapi/rt/json.h"
#include <string.h>

static void print_at(const Tree *tree, bool pretty, int depth, GString *out);

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

static void print_object(const Tree *object, bool pretty, int depth, GString *out)
{
    guint size = tree_size(object);
    g_string_append_c(out, '{');
    for (guint i = 0; i < size; i++) {
        const char *name;
        const Tree *value = tree_member(object, i, &name);
        if (i)
            g_string_append(out, pretty ? "," : ", ");
        print_break(pretty, depth + 1, out);
        print_string(name, out);
        g_string_append(out, ": ");
        print_at(value, pretty, depth + 1, out);
    }
    if (size)
        print_break(pretty, depth, out);
    g_string_append_c(out, '}');
}

static void print_list(const Tree *list, bool pretty, int depth, GString *out)
{
    guint len = tree_size(list);
    g_string_append_c(out, '[');
    for (guint i = 0; i < len; i++) {
        if (i)
            g_string_append(out, pretty ? "," : ", ");
        print_break(pretty, depth + 1, out);
        print_at(tree_element(list, i), pretty, depth + 1, out);
    }
    if (len)
        print_break(pretty, depth, out);
    g_string_append_c(out, ']');
}

static void print_int(bool negative, uint64_t rest, GString *out)
{
    char text[24];
    char *p = text + sizeof(text);
    do {
        *--p = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest);
    if (negative)
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

static void print_at(const Tree *tree, bool pretty, int depth, GString *out)
{
    switch (tree_kind(tree)) {
    case TREE_NULL:
        g_string_append(out, "null");
        break;
    case TREE_BOOL:
        g_string_append(out, tree_as_bool(tree) ? "true" : "false");
        break;
    case TREE_INT: {
        int64_t value = tree_as_int(tree);
        print_int(value < 0, value < 0 ? -(uint64_t)value : (uint64_t)value, out);
        break;
    }
    case TREE_UINT:
        print_int(false, tree_as_uint(tree), out);
        break;
    case TREE_DOUBLE:
        print_double(tree_as_double(tree), out);
        break;
    case TREE_STRING:
        print_string(tree_as_string(tree), out);
        break;
    case TREE_LIST:
        print_list(tree, pretty, depth, out);
        break;
    case TREE_OBJECT:
        print_object(tree, pretty, depth, out);
    }
}

void json_print(const Tree *tree, bool pretty, GString *out)
{
    print_at(tree, pretty, 0, out);
}

char *json_to_str(const Tree *tree, bool pretty)
{
    GString *out = g_string_sized_new(256);
    json_print(tree, pretty, out);
    return g_string_free(out, FALSE);
}
