/*
 * Sizes as people write and read them: "64k", "1.5G", "0x10000".
 */
#pragma once
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum SizeParse {
    SIZE_OK,
    SIZE_SYNTAX, /* not a size */
    SIZE_RANGE,  /* 2^64 or more */
} SizeParse;

/*
 * Parses a size in bytes: decimal with an optional suffix b k M G T P E (any case, powers of 1024), with a fraction
 * where a suffix of k or above follows ("1.5k"; a fraction of zero may always stand there), or hexadecimal without
 * fraction or suffix ("0x10"). Fractions of a byte are rounded. Nothing may stand before or after, no sign, no space.
 */
SizeParse size_scan(const char *text, uint64_t *ret);

/*
 * The same with errors that name @what (e.g. "size") and the text. Results above @max are refused naming @max: give
 * INT64_MAX for sizes of images, UINT64_MAX for no limit.
 */
bool size_parse(const char *what, const char *text, uint64_t max, uint64_t *ret, GError **error);

/* For people: "1.50 GiB", "64 KiB", "512 B": three significant digits unless exact. The caller frees. */
char *size_to_str(uint64_t bytes);
