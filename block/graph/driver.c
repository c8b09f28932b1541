/*
 * The list of drivers, as the graph sees it.
 */
#include "block/graph/driver.h"

static const Driver *const *drivers;

void driver_set_list(const Driver *const *list)
{
    drivers = list;
}

const Driver *driver_find(const char *name)
{
    for (const Driver *const *d = drivers; d && *d; d++)
        if (!strcmp((*d)->name, name))
            return *d;
    return NULL;
}

const Driver *driver_for_scheme(const char *filename)
{
    for (const Driver *const *d = drivers; d && *d; d++)
        for (const char *const *s = (*d)->schemes; s && *s; s++)
            if (g_str_has_prefix(filename, *s) && filename[strlen(*s)] == ':')
                return *d;
    return NULL;
}

const Driver *driver_probe(const uint8_t *buf, size_t size)
{
    const Driver *best = NULL;
    int best_score = 0;

    for (const Driver *const *d = drivers; d && *d; d++) {
        int score = (*d)->probe ? (*d)->probe(buf, size) : 0;
        if (score > best_score) {
            best = *d;
            best_score = score;
        }
    }
    return best ? best : driver_find("raw");
}
