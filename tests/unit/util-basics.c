/* Errors, byte access, alignment, the scan for zeros, scatter-gather lists. */
#include "block/util/bytes.h"
#include "block/util/error.h"
#include "block/util/iovec.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static void test_errors(void **state)
{
    g_autoptr(GError) a = NULL;
    g_autoptr(GError) b = NULL;
    g_autoptr(GError) c = NULL;
    assert_false(error_set(&a, "no %s %d", "room", 5));
    assert_true(g_error_matches(a, SD_ERROR, SD_ERROR_GENERIC));
    assert_string_equal(a->message, "no room 5");
    assert_false(error_set_class(&b, SD_ERROR_DEVICE_NOT_FOUND, "Device '%s' not found", "x"));
    assert_true(g_error_matches(b, SD_ERROR, SD_ERROR_DEVICE_NOT_FOUND));
    assert_false(error_set_errno(&c, ENOENT, "Could not open '%s'", "100%"));
    assert_string_equal(c->message, "Could not open '100%': No such file or directory");
    assert_false(error_set(NULL, "nobody listens"));
    assert_false(error_set_errno(NULL, EIO, "nobody listens"));
}

static void test_byte_access(void **state)
{
    unsigned char buf[16];
    for (int at = 0; at < 8; at++) {
        store_be64(buf + at, 0x0102030405060708);
        assert_int_equal(buf[at], 1);
        assert_int_equal(buf[at + 7], 8);
        assert_true(load_be64(buf + at) == 0x0102030405060708);
        assert_true(load_le64(buf + at) == 0x0807060504030201);
        assert_true(load_be32(buf + at + 1) == 0x02030405);
        assert_true(load_le16(buf + at + 1) == 0x0302);
        store_le32(buf + at, 0xfffefdfc);
        assert_int_equal(buf[at], 0xfc);
        assert_true(load_le32(buf + at) == 0xfffefdfc);
        store_be16(buf + at, 0xabcd);
        assert_true(load_be16(buf + at) == 0xabcd);
        store_be32(buf + at, 0x11223344);
        store_le16(buf + at + 4, 0x5566);
        store_le64(buf + at, load_be64(buf + at));
        assert_true(load_le32(buf + at + 4) == 0x11223344);
    }
}

static void test_arithmetic(void **state)
{
    assert_true(is_pow2(1) && is_pow2(512) && is_pow2(UINT64_C(1) << 63));
    assert_false(is_pow2(0) || is_pow2(3) || is_pow2(UINT64_MAX));
    assert_true(align_up(0, 512) == 0 && align_up(1, 512) == 512 && align_up(512, 512) == 512);
    assert_true(align_down(511, 512) == 0 && align_down(513, 512) == 512);
    assert_true(is_aligned(1024, 512) && !is_aligned(1025, 512));
    assert_true(div_round_up(0, 7) == 0 && div_round_up(14, 7) == 2 && div_round_up(15, 7) == 3);
    assert_true(div_round_up(UINT64_MAX, 2) == UINT64_C(1) << 63);
    assert_true(u64_min(1, UINT64_MAX) == 1 && u64_max(1, 2) == 2);
    assert_true(ilog2(1) == 0 && ilog2(3) == 1 && ilog2(4096) == 12 && ilog2(UINT64_MAX) == 63);
}

static void test_bytes_are_zero(void **state)
{
    enum { MAX_SIZE = 300 };
    unsigned char buf[MAX_SIZE + 16];
    for (size_t start = 0; start < 9; start++) {
        for (size_t size = 0; size <= MAX_SIZE; size++) {
            /* Exactly the bytes named are looked at, wherever the odd one is. */
            memset(buf, 0xff, sizeof(buf));
            memset(buf + start, 0, size);
            assert_true(bytes_are_zero(buf + start, size));
            for (size_t i = 0; i < size; i++) {
                buf[start + i] = 0x40;
                assert_false(bytes_are_zero(buf + start, size));
                buf[start + i] = 0;
            }
        }
    }
}

static size_t total_of(const struct iovec *iov, int n)
{
    size_t sum = 0;

    for (int i = 0; i < n; i++)
        sum += iov[i].iov_len;
    return sum;
}

static void test_iov_against_flat(void **state)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(20240501);
    for (int round = 0; round < 3000; round++) {
        unsigned char mem[256], flat[256], buf[256];
        struct iovec iov[8], cut[8];
        int n = g_rand_int_range(rand, 1, 9);
        size_t total = 0;
        for (int i = 0; i < n; i++) {
            iov[i].iov_base = mem + total;
            iov[i].iov_len = (size_t)g_rand_int_range(rand, 0, 32);
            total += iov[i].iov_len;
        }
        for (size_t i = 0; i < total; i++)
            mem[i] = flat[i] = (unsigned char)g_rand_int_range(rand, 0, 3);
        size_t offset = (size_t)g_rand_int_range(rand, 0, (int)total + 5);
        size_t bytes = (size_t)g_rand_int_range(rand, 0, (int)total + 5);
        size_t there = offset > total ? 0 : u64_min(bytes, total - offset);

        assert_int_equal(iov_to_buf(iov, n, offset, buf, bytes), there);
        assert_memory_equal(buf, flat + offset, there);
        bool zero = true;
        for (size_t i = 0; i < there; i++)
            zero = zero && flat[offset + i] == 0;
        assert_int_equal(iov_is_zero(iov, n, offset, bytes), zero);

        int m = iov_slice(cut, 8, iov, n, offset, bytes);
        if (there < bytes) {
            assert_int_equal(m, -1);
        } else {
            assert_int_equal(total_of(cut, m), bytes);
            assert_int_equal(iov_to_buf(cut, m, 0, buf, bytes), bytes);
            assert_memory_equal(buf, flat + offset, bytes);
            for (int i = 0; i < m; i++)
                assert_true(cut[i].iov_len > 0);
            if (m > 0)
                assert_int_equal(iov_slice(cut, m - 1, iov, n, offset, bytes), -1);
            memcpy(cut, iov, sizeof(iov));
            assert_int_equal(iov_slice(cut, 8, cut, n, offset, bytes), m);
            assert_int_equal(total_of(cut, m), bytes);
            if (m > 1) {
                size_t some;
                assert_int_equal(iov_slice_some(cut, m - 1, iov, n, offset, bytes, &some), m - 1);
                assert_int_equal(total_of(cut, m - 1), some);
                assert_true(some < bytes);
            }
        }
        memset(buf, 0x77, sizeof(buf));
        assert_int_equal(iov_from_buf(iov, n, offset, buf, bytes), there);
        memset(flat + offset, 0x77, there);
        assert_memory_equal(mem, flat, total);
        assert_int_equal(iov_memset(iov, n, offset, 0x12, bytes), there);
        memset(flat + offset, 0x12, there);
        assert_memory_equal(mem, flat, total);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors),           cmocka_unit_test(test_byte_access),
        cmocka_unit_test(test_arithmetic),       cmocka_unit_test(test_bytes_are_zero),
        cmocka_unit_test(test_iov_against_flat),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
