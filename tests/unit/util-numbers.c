/* Sizes as text, rate limits. */
#include "block/util/error.h"
#include "block/util/ratelimit.h"
#include "block/util/sizestr.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

static void test_sizes_taken(void **state)
{
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {
        {"0", 0},
        {"512", 512},
        {"512b", 512},
        {"64k", 65536},
        {"64K", 65536},
        {"1m", 1 << 20},
        {"2G", UINT64_C(2) << 30},
        {"1T", UINT64_C(1) << 40},
        {"3p", UINT64_C(3) << 50},
        {"15E", UINT64_C(15) << 60},
        {"1.5k", 1536},
        {"1.0", 1},
        {"1.k", 1024},
        {"0.7k", 717},
        {"0.1k", 102},
        {"0.25E", UINT64_C(1) << 58},
        {"0x10", 16},
        {"0X1000000", 1 << 24},
        {"0xffffffffffffffff", UINT64_MAX},
        {"18446744073709551615", UINT64_MAX},
        {"010", 10},
        {"0x1b", 27},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        uint64_t value = 99;
        assert_int_equal(size_scan(good[i].text, &value), SIZE_OK);
        assert_true(value == good[i].value);
    }
}

static void test_sizes_refused(void **state)
{
    static const char *const bad[] = {"",   "abc", "1.5", "1.5B", "0x10k", "0x1.8", "1e3", " 512", "512 ", "+512",
                                      "-5", "1k5", "0x",  ".5k",  "1kB",   "1KiB",  "k",   "1,5k", "1..5k"};
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        uint64_t value = 99;
        assert_int_equal(size_scan(bad[i], &value), SIZE_SYNTAX);
        assert_true(value == 99);
    }
    static const char *const large[] = {
        "18446744073709551616",    "16E", "17179869184G", "0x10000000000000000", "15.99999999999999999999E",
        "99999999999999999999999k"};
    for (size_t i = 0; i < G_N_ELEMENTS(large); i++) {
        uint64_t value;
        assert_int_equal(size_scan(large[i], &value), SIZE_RANGE);
    }
}

static void test_size_errors(void **state)
{
    uint64_t value = 99;
    g_autoptr(GError) a = NULL;
    g_autoptr(GError) b = NULL;
    assert_true(size_parse("size", "1M", INT64_MAX, &value, NULL));
    assert_true(value == 1 << 20);
    assert_false(size_parse("size", "1x", INT64_MAX, &value, &a));
    assert_non_null(strstr(a->message, "Invalid size '1x'"));
    assert_false(size_parse("size", "8E", INT64_MAX, &value, &b));
    assert_string_equal(b->message, "Invalid size '8E': must be between 0 and 9223372036854775807");
    assert_true(value == 1 << 20);
}

static void assert_text(uint64_t bytes, const char *text)
{
    g_autofree char *got = size_to_str(bytes);
    assert_string_equal(got, text);
}

static void test_size_to_str(void **state)
{
    assert_text(0, "0 B");
    assert_text(1023, "1023 B");
    assert_text(65536, "64 KiB");
    assert_text(UINT64_C(3) << 29, "1.50 GiB");
    assert_text(12345678, "11.8 MiB");
    assert_text(UINT64_C(1) << 63, "8 EiB");
    assert_text(123456789012, "115 GiB");
}

static void test_rate_is_kept(void **state)
{
    const int64_t second = 1000000000;
    RateLimit rl = {0};
    assert_int_equal(ratelimit_delay(&rl, 5, INT64_MAX), 0); /* off */
    ratelimit_set(&rl, 65536);
    int64_t now = 7 * second;
    /* One piece of a second's worth: the next may come a second later. */
    assert_int_equal(ratelimit_delay(&rl, now, 65536), second);
    now += second;
    assert_int_equal(ratelimit_delay(&rl, now, 32768), second / 2);
    /* Asked too early, it says how much is left. */
    assert_int_equal(ratelimit_delay(&rl, now + second / 4, 0), second / 4);
    /* Time unused is not saved up. */
    now += 100 * second;
    assert_int_equal(ratelimit_delay(&rl, now, 65536), second);
    ratelimit_set(&rl, 0);
    assert_int_equal(ratelimit_delay(&rl, now, 1 << 30), 0);
}

static void test_small_pieces_average_out(void **state)
{
    RateLimit rl = {0};
    ratelimit_set(&rl, 1000000);
    int64_t now = 0, done = 0, waits = 0;
    while (now < INT64_C(10000000000)) {
        done += 777;
        int64_t wait = ratelimit_delay(&rl, now, 777);
        assert_true(wait == 0 || wait >= RATELIMIT_SLICE_NS);
        waits += wait > 0;
        now += wait + 1000; /* the work itself takes a microsecond */
    }
    assert_in_range(done, 9800000, 10300000);
    assert_in_range(waits, 80, 110); /* slept by the slice, not by the piece */
}

static void test_rate_extremes(void **state)
{
    RateLimit rl = {0};
    ratelimit_set(&rl, 1);
    int64_t wait = ratelimit_delay(&rl, INT64_C(1) << 60, INT64_MAX);
    assert_true(wait > 0);
    assert_true(ratelimit_delay(&rl, INT64_C(1) << 60, INT64_MAX) == wait); /* capped, no overflow */
    ratelimit_set(&rl, INT64_MAX);
    assert_int_equal(ratelimit_delay(&rl, 0, 1 << 30), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes_taken),   cmocka_unit_test(test_sizes_refused),
        cmocka_unit_test(test_size_errors),   cmocka_unit_test(test_size_to_str),
        cmocka_unit_test(test_rate_is_kept),  cmocka_unit_test(test_small_pieces_average_out),
        cmocka_unit_test(test_rate_extremes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
