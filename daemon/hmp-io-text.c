/*
 * qemu-io in the human monitor: numbers and reports in qemu-io's form.
 */
#include "daemon/hmp-io.h"
#include "block/util/sizestr.h"
#include <inttypes.h>
#include <string.h>

int64_t io_clock(void)
{
    return g_get_monotonic_time() * 1000;
}

bool io_co_parse_size(const char *text, uint64_t *ret)
{
    SizeParse r = size_scan(text, ret);

    if (r == SIZE_OK && *ret <= INT64_MAX)
        return true;
    if (r == SIZE_SYNTAX)
        io_co_print("Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- %s\n", text);
    else
        io_co_print("Parsing error: argument too large -- %s\n", text);
    return false;
}

bool io_co_parse_pattern(const char *text, uint8_t *ret)
{
    char *end;
    uint64_t value = g_ascii_strtoull(text, &end, 0);

    if (end == text || *end || value > 0xff || text[0] == '-') {
        io_co_print("%s is not a valid pattern byte\n", text);
        return false;
    }
    *ret = (uint8_t)value;
    return true;
}

char *io_size_text(double bytes)
{
    static const char *const units[] = {"EiB", "PiB", "TiB", "GiB", "MiB", "KiB"};
    double unit = 1152921504606846976.0; /* an EiB */

    for (unsigned i = 0; i < G_N_ELEMENTS(units); i++, unit /= 1024) {
        if (bytes >= unit) {
            g_autofree char *number = g_strdup_printf("%.3f", bytes / unit);
            number[strcspn(number, ".")] = g_str_has_suffix(number, ".000") ? '\0' : '.';
            return g_strdup_printf("%s %s", number, units[i]);
        }
    }
    g_autofree char *number = g_strdup_printf("%f", bytes);
    number[strcspn(number, ".")] = g_str_has_suffix(number, ".000000") ? '\0' : '.';
    return g_strdup_printf("%s bytes", number);
}

/* "00.25 sec", "0:01:02.25" from a minute on or where a program reads it. */
static void append_time(GString *out, int64_t ns, bool fixed)
{
    int64_t hundredths = ns / 10000000 % 100, s = ns / 1000000000;

    if (fixed || s >= 60) {
        g_string_append_printf(out, "%" PRId64 ":%02" PRId64 ":%02" PRId64 ".%02" PRId64, s / 3600, s / 60 % 60, s % 60,
                               hundredths);
    } else {
        g_string_append_printf(out, "%02" PRId64 ".%02" PRId64 " sec", s, hundredths);
    }
}

void io_report(GString *out, const char *verb, uint64_t offset, uint64_t done, uint64_t total, int64_t ns, bool terse)
{
    /* The clock ticks in microseconds: what took less counts as one. */
    double seconds = (double)MAX(ns, 1000) / 1e9, rate = (double)done / seconds, ops = 1 / seconds;

    if (terse) {
        g_string_append_printf(out, "%" PRIu64 ",1,", done);
        append_time(out, ns, true);
        g_string_append_printf(out, ",%.3f,%.3f\n", rate, ops);
        return;
    }
    g_autofree char *size = io_size_text((double)done), *speed = io_size_text(rate);
    g_string_append_printf(out, "%s %" PRIu64 "/%" PRIu64 " bytes at offset %" PRIu64 "\n", verb, done, total, offset);
    g_string_append_printf(out, "%s, 1 ops; ", size);
    append_time(out, ns, false);
    g_string_append_printf(out, " (%s/sec and %.4f ops/sec)\n", speed, ops);
}

void io_dump(GString *out, const uint8_t *data, size_t size, uint64_t offset)
{
    enum { WIDTH = 16 };

    for (size_t i = 0; i < size; i += WIDTH) {
        size_t n = MIN(size - i, (size_t)WIDTH);
        g_string_append_printf(out, "%08" PRIx64 ": ", offset + i);
        for (size_t j = 0; j < n; j++)
            g_string_append_printf(out, " %02x", data[i + j]);
        g_string_append(out, "  ");
        for (size_t j = 0; j < n; j++)
            g_string_append_c(out, g_ascii_isalnum(data[i + j]) ? (char)data[i + j] : '.');
        g_string_append_c(out, '\n');
    }
}
