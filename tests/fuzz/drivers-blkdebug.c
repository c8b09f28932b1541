/*
 * A configuration file of blkdebug. Whatever it is, it becomes rules or an error that names its line.
 */
#include "block/drivers/blkdebug.h"
#include "block/util/error.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autofree char *text = g_strndup((const char *)data, size);
    g_autoptr(GError) error = NULL;
    unsigned lines = 1, line = 0;
    Blkdebug s = {0};

    for (const char *p = text; *p; p++)
        lines += *p == '\n';
    blkdebug_rules_init(&s);
    g_assert(blkdebug_parse(&s, text, &line, &error) == !error);
    g_assert(!error || (line >= 1 && line <= lines && error->message[0]));
    g_assert(s.rules->len <= lines);
    g_assert(!error || s.rules->len < line);
    blkdebug_rules_free(&s);
    return 0;
}
