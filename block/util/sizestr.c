#include "block/util/sizestr.h"
#include "block/util/error.h"
#include <string.h>

static const char suffixes[] = "bkmgtpe";

/* Digits of @base into @ret; the end of the digits, NULL when there are none; @overflow when they do not fit. */
static const char *scan_digits(const char *p, unsigned base, uint64_t *ret, bool *overflow)
{
    const char *start = p;
    *ret = 0;
    for (;; p++) {
        int digit = g_ascii_xdigit_value(*p);
        if (digit < 0 || digit >= (int)base)
            return p == start ? NULL : p;
        if (__builtin_mul_overflow(*ret, base, ret) || __builtin_add_overflow(*ret, (uint64_t)digit, ret))
            *overflow = true;
    }
}

/* ".5" as 0.5; digits past the twentieth cannot matter. */
static const char *scan_fraction(const char *p, double *ret)
{
    double weight = 0.1;
    *ret = 0;
    for (; g_ascii_isdigit(*p); p++) {
        *ret += g_ascii_digit_value(*p) * weight;
        weight /= 10;
    }
    return p;
}

SizeParse size_scan(const char *text, uint64_t *ret)
{
    bool overflow = false;
    uint64_t value;
    double fraction = 0;

    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
        const char *end = scan_digits(text + 2, 16, &value, &overflow);
        if (!end || *end)
            return SIZE_SYNTAX;
        if (overflow)
            return SIZE_RANGE;
        *ret = value;
        return SIZE_OK;
    }
    const char *p = scan_digits(text, 10, &value, &overflow);
    if (!p)
        return SIZE_SYNTAX;
    if (*p == '.')
        p = scan_fraction(p + 1, &fraction);
    unsigned shift = 0;
    if (*p) {
        const char *suffix = strchr(suffixes, g_ascii_tolower(*p));
        if (!suffix || p[1])
            return SIZE_SYNTAX;
        shift = (unsigned)(suffix - suffixes) * 10;
    }
    if (fraction > 0 && shift == 0)
        return SIZE_SYNTAX;
    if (overflow || (value << shift) >> shift != value)
        return SIZE_RANGE;
    const uint64_t part = (uint64_t)(fraction * (double)(UINT64_C(1) << shift) + 0.5);
    return __builtin_add_overflow(value << shift, part, ret) ? SIZE_RANGE : SIZE_OK;
}

bool size_parse(const char *what, const char *text, uint64_t max, uint64_t *ret, GError **error)
{
    uint64_t value = 0;
    SizeParse result = size_scan(text, &value);
    if (result == SIZE_SYNTAX) {
        return error_set(error,
                         "Invalid %s '%s': expected a number of bytes, optionally with a suffix k, M, G, T, P or E",
                         what, text);
    }
    if (result == SIZE_RANGE || value > max)
        return error_set(error, "Invalid %s '%s': must be between 0 and %" G_GUINT64_FORMAT, what, text, max);
    *ret = value;
    return true;
}

char *size_to_str(uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    unsigned unit = 0;
    while (unit < 6 && bytes >> (10 * (unit + 1)))
        unit++;
    if (bytes == bytes >> (10 * unit) << (10 * unit))
        return g_strdup_printf("%" G_GUINT64_FORMAT " %s", bytes >> (10 * unit), units[unit]);
    const double value = (double)bytes / (double)(UINT64_C(1) << (10 * unit));
    return g_strdup_printf("%.*f %s", value < 10 ? 2 : value < 100 ? 1 : 0, value, units[unit]);
}
