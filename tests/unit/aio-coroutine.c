/* Coroutines: start, yield, wake, nesting, many at a time, their sleep and its cancellation, deep stacks. */
#include "block/aio/coroutine.h"
#include "block/aio/io.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static Loop *loop;
static GString *trace;

static int setup(void **state)
{
    g_autoptr(GError) error = NULL;
    loop = loop_new(&error);
    assert_non_null(loop);
    trace = g_string_new(NULL);
    return 0;
}

static int teardown(void **state)
{
    assert_int_equal(coroutine_count(loop), 0);
    loop_free(loop);
    g_string_free(trace, TRUE);
    return 0;
}

static void two_steps_co_entry(void *opaque)
{
    const char *name = opaque;
    assert_true(coroutine_active());
    g_string_append_printf(trace, "%s1 ", name);
    aio_co_yield();
    g_string_append_printf(trace, "%s2 ", name);
}

static void stop_at_end(void *opaque)
{
    loop_stop(opaque);
}

static void run_one_turn(void)
{
    TurnEnd te = {.fn = stop_at_end, .opaque = loop};
    loop_at_turn_end(loop, &te);
    loop_run(loop);
}

static void test_start_yield_wake(void **state)
{
    Coroutine *a = coroutine_start(loop, two_steps_co_entry, (void *)"a");
    g_string_append(trace, "- ");
    Coroutine *b = coroutine_start(loop, two_steps_co_entry, (void *)"b");
    assert_ptr_equal(coroutine_loop(a), loop);
    assert_false(coroutine_active());
    assert_int_equal(coroutine_count(loop), 2);
    coroutine_wake(b);
    coroutine_wake(a);
    coroutine_wake(b); /* harmless */
    assert_string_equal(trace->str, "a1 - b1 ");
    run_one_turn();
    assert_string_equal(trace->str, "a1 - b1 b2 a2 ");
}

static void nested_co_entry(void *opaque)
{
    Coroutine *self = coroutine_self();
    g_string_append(trace, "outer ");
    Coroutine *inner = coroutine_start(loop, two_steps_co_entry, (void *)"in");
    assert_ptr_equal(coroutine_self(), self);
    coroutine_wake(inner);
    coroutine_wake(inner);
    g_string_append(trace, "woken ");
    aio_co_reschedule();
    g_string_append(trace, "last ");
    loop_stop(loop);
}

static void test_nested(void **state)
{
    coroutine_start(loop, nested_co_entry, NULL);
    loop_run(loop);
    assert_string_equal(trace->str, "outer in1 woken in2 last ");
}

static void recurse_co_entry(void *opaque)
{
    int depth = GPOINTER_TO_INT(opaque);
    if (depth > 0)
        coroutine_start(loop, recurse_co_entry, GINT_TO_POINTER(depth - 1));
    g_string_append_printf(trace, "%d ", depth);
}

static void test_start_inside_start(void **state)
{
    coroutine_start(loop, recurse_co_entry, GINT_TO_POINTER(3));
    assert_string_equal(trace->str, "0 1 2 3 ");
    assert_int_equal(coroutine_count(loop), 0);
}

/* Every register that a call must keep, and floating point, survive a switch. */
static void count_co_entry(void *opaque)
{
    int *sum = opaque;
    double f = 1.5;
    int a = 1, b = 2, c = 3, d = 4, e = 5, g = 6, h = 7;
    for (int i = 0; i < 100; i++) {
        aio_co_reschedule();
        f += 0.5;
        a++, b++, c++, d++, e++, g++, h++;
    }
    assert_true(f == 51.5);
    *sum += a + b + c + d + e + g + h - 700 - 28 + 1;
}

/* ThreadSanitizer keeps a megabyte and more for each stack. */
#ifdef __SANITIZE_THREAD__
#define SKIP_IF_TSAN() skip()
#else
#define SKIP_IF_TSAN()
#endif

static void test_many(void **state)
{
    SKIP_IF_TSAN();
    enum { N = 5000 }; /* more than the pool keeps */
    int sum = 0;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N; i++)
            coroutine_start(loop, count_co_entry, &sum);
        assert_int_equal(coroutine_count(loop), N);
        assert_true(coroutine_available(loop));
        while (coroutine_count(loop))
            run_one_turn();
    }
    assert_int_equal(sum, 2 * N);
}

static void just_yield_co_entry(void *opaque)
{
    aio_co_yield();
}

static void test_available_has_an_end(void **state)
{
    SKIP_IF_TSAN();
    g_autoptr(GPtrArray) all = g_ptr_array_new();
    while (coroutine_available(loop)) {
        g_ptr_array_add(all, coroutine_start(loop, just_yield_co_entry, NULL));
        assert_true(all->len <= 100000);
    }
    assert_true(all->len >= 10000);
    /* What the process itself needs still starts. */
    g_ptr_array_add(all, coroutine_start(loop, just_yield_co_entry, NULL));
    for (guint i = 0; i < all->len; i++)
        coroutine_wake(all->pdata[i]);
    run_one_turn();
    assert_int_equal(coroutine_count(loop), 0);
    assert_true(coroutine_available(loop));
}

static G_GNUC_NO_INLINE int deep(int depth)
{
    volatile char frame[1024];
    memset((char *)frame, depth, sizeof(frame));
    int below = depth > 0 ? deep(depth - 1) : 0;
    return below + frame[17] - (char)depth + 1;
}

static void deep_co_entry(void *opaque)
{
    assert_int_equal(deep(180), 181);
    aio_co_reschedule();
    assert_int_equal(deep(180), 181);
    loop_stop(loop);
}

static void test_deep_stack(void **state)
{
    coroutine_start(loop, deep_co_entry, NULL);
    loop_run(loop);
}

/* Rescheduling for ever does not keep the rest of the turn from happening. */
static bool spinning;
static void spin_co_entry(void *opaque)
{
    while (spinning)
        aio_co_reschedule();
}

static void sleep_co_entry(void *opaque)
{
    int64_t before = loop_now(loop, LOOP_CLOCK_REAL);
    assert_int_equal(aio_co_sleep_until(LOOP_CLOCK_REAL, before + 20000000), 0);
    assert_true(loop_now(loop, LOOP_CLOCK_REAL) >= before + 20000000);
    spinning = false;
    loop_stop(loop);
}

static void test_reschedule_is_fair(void **state)
{
    spinning = true;
    coroutine_start(loop, spin_co_entry, NULL);
    coroutine_start(loop, sleep_co_entry, NULL);
    loop_run(loop);
    run_one_turn();
}

static int slept = 1;
static void sleeper_co_entry(void *opaque)
{
    slept = aio_co_sleep_until(LOOP_CLOCK_REAL, INT64_MAX);
    loop_stop(loop);
}

static void test_cancel_sleep(void **state)
{
    Coroutine *co = coroutine_start(loop, sleeper_co_entry, NULL);
    run_one_turn();
    assert_int_equal(slept, 1);
    aio_cancel(co);
    aio_cancel(co); /* on its way already: harmless */
    loop_run(loop);
    assert_int_equal(slept, -ECANCELED);
}

static void test_cancel_elsewhere_does_nothing(void **state)
{
    Coroutine *co = coroutine_start(loop, just_yield_co_entry, NULL);
    aio_cancel(co);
    run_one_turn();
    assert_int_equal(coroutine_count(loop), 1);
    coroutine_wake(co);
    run_one_turn();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_start_yield_wake, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nested, setup, teardown),
        cmocka_unit_test_setup_teardown(test_start_inside_start, setup, teardown),
        cmocka_unit_test_setup_teardown(test_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_available_has_an_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deep_stack, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reschedule_is_fair, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel_sleep, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel_elsewhere_does_nothing, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
