#include "daemon/ctl.h"
#include <stdarg.h>
#include <stdio.h>

enum { MAX_COLUMNS = 8 };

struct CtlTable {
    GPtrArray *rows; /* of GStrv; the first is the header */
};

static void add_row(CtlTable *table, const char *first, va_list ap)
{
    GPtrArray *cells = g_ptr_array_new();
    for (const char *cell = first; cell; cell = va_arg(ap, const char *))
        g_ptr_array_add(cells, g_strdup(cell));
    g_ptr_array_add(cells, NULL);
    g_ptr_array_add(table->rows, g_ptr_array_free(cells, FALSE));
}

CtlTable *ctl_table_new(const char *title, ...)
{
    CtlTable *table = g_new(CtlTable, 1);
    table->rows = g_ptr_array_new_with_free_func((GDestroyNotify)g_strfreev);
    va_list ap;
    va_start(ap, title);
    add_row(table, title, ap);
    va_end(ap);
    return table;
}

void ctl_table_row(CtlTable *table, ...)
{
    va_list ap;
    va_start(ap, table);
    const char *first = va_arg(ap, const char *);
    add_row(table, first, ap);
    va_end(ap);
}

static void print_row(char **row, const glong *widths)
{
    g_autoptr(GString) line = g_string_new(NULL);
    for (guint i = 0; row[i] && i < MAX_COLUMNS; i++) {
        g_string_append(line, row[i]);
        /* Columns are characters, not bytes. */
        for (glong pad = widths[i] - g_utf8_strlen(row[i], -1) + 2; pad > 0; pad--)
            g_string_append_c(line, ' ');
    }
    printf("%s\n", g_strchomp(line->str));
}

void ctl_table_end(CtlTable *table, const char *what)
{
    glong widths[MAX_COLUMNS] = {0};
    for (guint r = 0; r < table->rows->len; r++) {
        char **row = g_ptr_array_index(table->rows, r);
        for (guint i = 0; row[i] && i < MAX_COLUMNS; i++)
            widths[i] = MAX(widths[i], g_utf8_strlen(row[i], -1));
    }
    if (table->rows->len == 1)
        printf("no %s\n", what);
    for (guint r = 0; r < table->rows->len && table->rows->len > 1; r++)
        print_row(g_ptr_array_index(table->rows, r), widths);
    g_ptr_array_unref(table->rows);
    g_free(table);
}
