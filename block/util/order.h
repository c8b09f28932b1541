/*
 * Places where the order of what reaches the disk matters, each with a name. Built with SD_MUTATE, the one that the
 * environment names (SD_MUTATE=NAME) is left out, and tests/fault/test_mutation.py expects the replay of power cuts to
 * notice: docs/crash-replay.md. Otherwise nothing of this is left in the program.
 *
 * The names are found in the sources: write them in place, as a string.
 */
#pragma once
#include <stdbool.h>

#ifdef SD_MUTATE
#include <stdlib.h>
#include <string.h>

static inline bool order_left_out(const char *site)
{
    const char *name = getenv("SD_MUTATE");
    return name && strcmp(name, site) == 0;
}
#else
static inline bool order_left_out(const char *site)
{
    return false;
}
#endif
