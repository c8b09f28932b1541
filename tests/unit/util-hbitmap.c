/* The hierarchical bitmap against an array of bool under seeded random operations, and its cost at 16 TiB. */
#include "block/util/bytes.h"
#include "block/util/hbitmap.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#include <cmocka.h>

typedef struct Model {
    uint64_t size;
    unsigned granularity_bits;
    bool dirty[20000]; /* a granule each */
} Model;

static uint64_t model_granules(const Model *m)
{
    return div_round_up(m->size, UINT64_C(1) << m->granularity_bits);
}

static bool model_get(const Model *m, uint64_t offset)
{
    return offset < m->size && m->dirty[offset >> m->granularity_bits];
}

/* By the byte, as the naive reading of the header has it. */
static void model_set(Model *m, uint64_t offset, uint64_t bytes, bool value)
{
    const uint64_t end = offset >= m->size ? offset : offset + MIN(bytes, m->size - offset);
    for (uint64_t b = offset; b < end; b++)
        m->dirty[b >> m->granularity_bits] = value;
}

static int64_t model_next(const Model *m, uint64_t offset, uint64_t end, bool value)
{
    for (uint64_t b = offset; b < MIN(end, m->size); b++)
        if (model_get(m, b) == value)
            return (int64_t)b;
    return -1;
}

static void assert_same(const HBitmap *hb, const Model *m)
{
    const uint64_t granularity = UINT64_C(1) << m->granularity_bits;
    uint64_t count = 0;
    assert_true(hbitmap_size(hb) == m->size);
    for (uint64_t g = 0; g < model_granules(m); g++) {
        count += m->dirty[g];
        assert_true(hbitmap_get(hb, g * granularity) == m->dirty[g]);
    }
    assert_true(hbitmap_count(hb) == count * granularity);
    assert_int_equal(hbitmap_empty(hb), count == 0);
    /* The levels agree with the bits: a walk finds each dirty area once and nothing else. */
    uint64_t offset = 0, bytes, walked = 0;
    while (hbitmap_next_dirty_area(hb, offset, m->size, UINT64_MAX, &offset, &bytes)) {
        assert_true(bytes > 0);
        walked += div_round_up(bytes, granularity);
        assert_true(model_get(m, offset) && model_get(m, offset + bytes - 1) && !model_get(m, offset + bytes));
        offset += bytes;
    }
    assert_true(walked == count);
}

static uint64_t pick(GRand *rand, uint64_t below)
{
    return below ? (uint64_t)g_rand_int(rand) % below : 0;
}

/* Mostly short ranges, sometimes up to the whole. */
static void pick_range(GRand *rand, uint64_t size, uint64_t *offset, uint64_t *bytes)
{
    *offset = pick(rand, size + 8);
    *bytes = pick(rand, 4) ? pick(rand, 40) : pick(rand, size + 8);
}

static void check_searches(GRand *rand, const HBitmap *hb, const Model *m)
{
    uint64_t offset, bytes, ro = 12345, rb = 54321;
    pick_range(rand, m->size, &offset, &bytes);
    const uint64_t end = offset + bytes;
    assert_true(hbitmap_next_dirty(hb, offset, bytes) == model_next(m, offset, end, true));
    assert_true(hbitmap_next_zero(hb, offset, bytes) == model_next(m, offset, end, false));
    assert_true(hbitmap_next_dirty(hb, offset, UINT64_MAX) == model_next(m, offset, m->size, true));
    const uint64_t max = 1 + pick(rand, 100);
    const int64_t start = model_next(m, offset, end, true);
    if (!hbitmap_next_dirty_area(hb, offset, end, max, &ro, &rb)) {
        assert_true(start == -1 && ro == 12345 && rb == 54321);
    } else {
        const uint64_t limit = MIN(MIN(end, m->size), (uint64_t)start + max);
        const int64_t stop = model_next(m, (uint64_t)start, limit, false);
        assert_true(ro == (uint64_t)start && ro + rb == (stop < 0 ? limit : (uint64_t)stop));
    }
    if (offset < m->size && bytes > 0) {
        bool dirty;
        const uint64_t same = hbitmap_status(hb, offset, bytes, &dirty);
        const int64_t change = model_next(m, offset, end, !dirty);
        assert_int_equal(dirty, model_get(m, offset));
        assert_true(same == (change < 0 ? MIN(end, m->size) : (uint64_t)change) - offset);
    }
}

static void random_reset(GRand *rand, HBitmap *hb, Model *m)
{
    const uint64_t granularity = UINT64_C(1) << m->granularity_bits;
    uint64_t offset, bytes;
    pick_range(rand, m->size, &offset, &bytes);
    offset = align_down(offset, granularity);
    bytes = offset + bytes >= m->size ? bytes : align_down(bytes, granularity);
    hbitmap_reset(hb, offset, bytes);
    model_set(m, offset, bytes, false);
}

static void random_truncate(GRand *rand, HBitmap *hb, Model *m)
{
    const uint64_t before = model_granules(m);
    m->size = pick(rand, 4) ? pick(rand, 9000) : m->size;
    assert_true(hbitmap_truncate(hb, m->size));
    for (uint64_t g = MIN(before, model_granules(m)); g < G_N_ELEMENTS(m->dirty); g++)
        m->dirty[g] = false;
}

/* Through the serialised form part by part and back. */
static void check_serialise(GRand *rand, const HBitmap *hb, const Model *m)
{
    g_autoptr(HBitmap) copy = hbitmap_new(m->size, m->granularity_bits);
    const uint64_t align = hbitmap_serialize_align(hb);
    hbitmap_set(copy, pick(rand, m->size), 50); /* to be replaced */
    for (uint64_t offset = 0; offset < m->size;) {
        const uint64_t bytes = u64_min(m->size - offset, align * (1 + pick(rand, 5)));
        const size_t size = hbitmap_serialize_size(hb, offset, bytes);
        g_autofree unsigned char *buf = g_malloc(size);
        hbitmap_serialize(hb, buf, offset, bytes);
        for (size_t i = 0; i < size * 8; i++)
            assert_int_equal(buf[i / 8] >> (i % 8) & 1, model_get(m, offset + ((uint64_t)i << m->granularity_bits)));
        if (offset + bytes == m->size)
            buf[size - 1] |= model_granules(m) % 64 ? 0x80 : 0; /* past the end: ignored */
        hbitmap_deserialize(copy, buf, offset, bytes);
        offset += bytes;
    }
    assert_same(copy, m);
}

static void check_merge(GRand *rand, const HBitmap *hb, const Model *m)
{
    g_autofree Model *sum = g_new0(Model, 1);
    sum->size = m->size;
    sum->granularity_bits = (unsigned)pick(rand, 6);
    g_autoptr(HBitmap) dst = hbitmap_new(m->size, sum->granularity_bits);
    g_autoptr(HBitmap) other = hbitmap_new(m->size + 1, m->granularity_bits);
    const uint64_t offset = pick(rand, m->size);
    hbitmap_set(dst, offset, 30);
    model_set(sum, offset, 30, true);
    assert_true(hbitmap_merge(dst, hb));
    for (uint64_t b = 0; b < m->size; b++)
        if (model_get(m, b))
            sum->dirty[b >> sum->granularity_bits] = true;
    assert_same(dst, sum);
    assert_false(hbitmap_merge(other, hb));
    assert_true(hbitmap_empty(other));
    g_autoptr(HBitmap) copy = hbitmap_clone(hb);
    assert_same(copy, m);
}

static void run_random(unsigned seed, uint64_t size, unsigned granularity_bits)
{
    g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
    g_autofree Model *m = g_new0(Model, 1);
    g_autoptr(HBitmap) hb = hbitmap_new(size, granularity_bits);
    m->size = size;
    m->granularity_bits = granularity_bits;
    for (int i = 0; i < 400; i++) {
        uint64_t offset, bytes;
        switch (pick(rand, 12)) {
        case 0:
            random_truncate(rand, hb, m);
            break;
        case 1:
            check_merge(rand, hb, m);
            break;
        case 2:
            check_serialise(rand, hb, m);
            break;
        case 3:
            if (pick(rand, 8) == 0) {
                hbitmap_reset_all(hb);
                memset(m->dirty, 0, sizeof(m->dirty));
            }
            break;
        case 4:
        case 5:
        case 6:
            random_reset(rand, hb, m);
            break;
        default:
            pick_range(rand, m->size, &offset, &bytes);
            hbitmap_set(hb, offset, bytes);
            model_set(m, offset, bytes, true);
            break;
        }
        check_searches(rand, hb, m);
        check_searches(rand, hb, m);
        if (i % 8 == 0)
            assert_same(hb, m);
    }
    assert_same(hb, m);
}

static void test_random(void **state)
{
    for (unsigned seed = 1; seed <= 12; seed++) {
        run_random(seed, 1 + seed * 700, seed % 4);
        run_random(100 + seed, seed * 64, 0);
    }
    run_random(99, 0, 9);
}

static void test_at_word_borders(void **state)
{
    for (uint64_t first = 60; first < 70; first++) {
        for (uint64_t n = 1; n < 140; n++) {
            g_autoptr(HBitmap) hb = hbitmap_new(64 * 64 * 3, 0);
            hbitmap_set(hb, first, n);
            assert_true(hbitmap_count(hb) == n);
            assert_true(hbitmap_next_dirty(hb, 0, UINT64_MAX) == (int64_t)first);
            assert_true(hbitmap_next_zero(hb, first, UINT64_MAX) == (int64_t)(first + n));
            hbitmap_reset(hb, first, n);
            assert_true(hbitmap_empty(hb));
            assert_true(hbitmap_next_dirty(hb, 0, UINT64_MAX) == -1);
        }
    }
}

static double seconds(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void test_16_tib(void **state)
{
    const uint64_t size = UINT64_C(16) << 40;
    const double start = seconds();
    for (int i = 0; i < 100; i++) {
        g_autoptr(HBitmap) hb = hbitmap_new(size, 16);
        assert_non_null(hb);
        hbitmap_set(hb, size - 1, 1);
        assert_true(hbitmap_next_dirty(hb, 0, UINT64_MAX) == (int64_t)(size - 65536));
        g_autoptr(HBitmap) copy = hbitmap_clone(hb);
        assert_true(hbitmap_count(copy) == 65536);
        hbitmap_reset(hb, 0, size);
        assert_true(hbitmap_empty(hb));
    }
    /* Filling or scanning 32 MiB a hundred times over would take far longer than this. */
    assert_true(seconds() - start < 0.5);
    g_autoptr(HBitmap) full = hbitmap_new(size, 16);
    hbitmap_set(full, 0, size);
    assert_true(hbitmap_count(full) == size);
    assert_true(hbitmap_next_zero(full, 0, UINT64_MAX) == -1);
    hbitmap_reset(full, size / 2, 65536);
    assert_true(hbitmap_next_zero(full, 0, UINT64_MAX) == (int64_t)(size / 2));
    hbitmap_reset_all(full);
    assert_true(hbitmap_next_dirty(full, 0, UINT64_MAX) == -1);
}

static void test_absurd_sizes(void **state)
{
    assert_null(hbitmap_new(INT64_MAX, 9));
    g_autoptr(HBitmap) coarse = hbitmap_new(INT64_MAX, 31);
    assert_non_null(coarse);
    hbitmap_set(coarse, INT64_MAX - 1, 1);
    assert_true(hbitmap_next_dirty(coarse, 0, UINT64_MAX) == (int64_t)align_down(INT64_MAX - 1, UINT64_C(1) << 31));
    assert_false(hbitmap_get(coarse, INT64_MAX));
    g_autoptr(HBitmap) none = hbitmap_new(0, 16);
    hbitmap_set(none, 0, 1);
    assert_true(hbitmap_empty(none));
    assert_false(hbitmap_truncate(coarse, 0) && hbitmap_count(coarse) != 0);
    assert_true(hbitmap_truncate(coarse, UINT64_C(1) << 40));
    assert_true(hbitmap_empty(coarse));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_at_word_borders),
        cmocka_unit_test(test_16_tib),
        cmocka_unit_test(test_absurd_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
