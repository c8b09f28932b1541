/*
 * Sizes as people write and read them: "64k", "1.5G", "0x10000".
 */
#pragma once
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Parses a size in bytes with an optional suffix b k M G T P E (any case, powers of 1024), decimal with an optional
 * fraction where a suffix follows ("1.5k"), or hexadecimal without fraction or suffix ("0x10"). Nothing else may stand
 * before or after. Errors name @what (e.g. "size") and the text; results above INT64_MAX are refused.
 */
bool size_parse(const char *what, const char *text, int64_t *ret, GError **error);

/* The same for a suffix-less default unit: "10" means 10 * @unit; @unit is a power of two. */
bool size_parse_unit(const char *what, const char *text, uint64_t unit, int64_t *ret, GError **error);

/* "1.5 GiB", "64 KiB", "512 B": three significant digits. The caller frees. */
char *size_to_str(uint64_t bytes);
