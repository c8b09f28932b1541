/* The loop: timers on both clocks, turn-end callbacks, stopping from elsewhere. */
#include "block/aio/coroutine.h"
#include "block/aio/internal.h"
#include "block/aio/io.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

static Loop *loop;
static GString *trace;

static int setup(void **state)
{
    loop = loop_new(NULL);
    assert_non_null(loop);
    trace = g_string_new(NULL);
    return 0;
}

static int teardown(void **state)
{
    loop_free(loop);
    g_string_free(trace, TRUE);
    return 0;
}

static void one_turn(void)
{
    loop_stop(loop);
    loop_run(loop);
}

typedef struct Named {
    Timer timer;
    TurnEnd te;
    int id;
} Named;

static void fire_trace(void *opaque)
{
    Named *named = opaque;
    assert_false(coroutine_active());
    assert_false(timer_armed(&named->timer));
    g_string_append_printf(trace, "%d ", named->id);
}

static void fire_stop(void *opaque)
{
    loop_stop(loop);
}

static void test_real_timers_in_order(void **state)
{
    enum { N = 7 };
    static const int delays_ms[N] = {30, 5, 20, 1, 20, 10, 20};
    Named t[N];
    Timer last;
    one_turn();
    const int64_t start = loop_now(loop, LOOP_CLOCK_REAL);
    for (int i = 0; i < N; i++) {
        t[i].id = i;
        timer_init(&t[i].timer, loop, LOOP_CLOCK_REAL, fire_trace, &t[i]);
        assert_false(timer_armed(&t[i].timer));
        timer_arm(&t[i].timer, start + delays_ms[i] * INT64_C(1000000));
    }
    timer_init(&last, loop, LOOP_CLOCK_REAL, fire_stop, NULL);
    timer_arm(&last, start + 40000000);
    loop_run(loop);
    assert_string_equal(trace->str, "3 1 5 2 4 6 0 ");
    assert_true(loop_now(loop, LOOP_CLOCK_REAL) >= start + 40000000);
    assert_true(loop_now(loop, LOOP_CLOCK_REAL) < start + INT64_C(5000000000));
}

static void test_manual_clock(void **state)
{
    Named t[3];
    one_turn();
    loop_rate_clock_manual(loop);
    const int64_t start = loop_now(loop, LOOP_CLOCK_RATE);
    for (int i = 0; i < 3; i++) {
        t[i].id = i;
        timer_init(&t[i].timer, loop, LOOP_CLOCK_RATE, fire_trace, &t[i]);
        timer_arm(&t[i].timer, start + 100 * (i + 1));
    }
    usleep(2000);
    one_turn();
    assert_true(loop_now(loop, LOOP_CLOCK_RATE) == start);
    assert_true(loop_rate_clock_step(loop, 99) == start + 99);
    one_turn();
    assert_string_equal(trace->str, "");
    loop_rate_clock_step(loop, 101);
    timer_cancel(&t[2].timer);
    timer_cancel(&t[2].timer);
    one_turn();
    assert_string_equal(trace->str, "0 1 ");
    timer_arm(&t[0].timer, start + 300);
    timer_arm(&t[0].timer, start + 1000); /* anew */
    loop_rate_clock_step(loop, 300);
    one_turn();
    assert_string_equal(trace->str, "0 1 ");
    loop_rate_clock_step(loop, 500);
    one_turn();
    assert_string_equal(trace->str, "0 1 0 ");
}

/* Random arming, re-arming and disarming against a linear search. */
static int64_t fired_at;
static int fired_id;

static void fire_record(void *opaque)
{
    Named *named = opaque;
    fired_id = named->id;
    fired_at++;
}

static void test_heap_against_linear(void **state)
{
    enum { N = 150 };
    static Named t[N];
    int64_t deadline[N];
    g_autoptr(GRand) rand = g_rand_new_with_seed(7);
    loop_rate_clock_manual(loop);
    int64_t now = loop_now(loop, LOOP_CLOCK_RATE);
    for (int i = 0; i < N; i++) {
        t[i].id = i;
        deadline[i] = INT64_MAX;
        timer_init(&t[i].timer, loop, LOOP_CLOCK_RATE, fire_record, &t[i]);
    }
    for (int round = 0; round < 3000; round++) {
        int i = g_rand_int_range(rand, 0, N);
        if (g_rand_int_range(rand, 0, 4)) {
            /* No two alike: the parity of the rounds keeps them apart. */
            deadline[i] = now + 1 + (int64_t)g_rand_int_range(rand, 0, 1000) * 4096 + round % 4096;
            timer_arm(&t[i].timer, deadline[i]);
        } else {
            deadline[i] = INT64_MAX;
            timer_cancel(&t[i].timer);
        }
        if (round % 3 == 0) {
            int first = 0;
            for (int k = 1; k < N; k++)
                first = deadline[k] < deadline[first] ? k : first;
            if (deadline[first] == INT64_MAX)
                continue;
            fired_at = 0;
            now = loop_rate_clock_step(loop, deadline[first] - now - 1);
            one_turn();
            assert_int_equal(fired_at, 0);
            now = loop_rate_clock_step(loop, 1);
            one_turn();
            assert_int_equal(fired_at, 1);
            assert_int_equal(fired_id, first);
            deadline[first] = INT64_MAX;
        }
    }
    for (int i = 0; i < N; i++)
        timer_cancel(&t[i].timer);
}

static void fire_again(void *opaque)
{
    Named *named = opaque;
    named->id++;
    timer_arm(&named->timer, 0); /* long past */
}

static void test_timer_in_the_past_does_not_hang(void **state)
{
    Named t = {.id = 0};
    timer_init(&t.timer, loop, LOOP_CLOCK_REAL, fire_again, &t);
    timer_arm(&t.timer, 0);
    one_turn();
    assert_int_equal(t.id, 1);
    one_turn();
    assert_int_equal(t.id, 2);
    timer_cancel(&t.timer);
    one_turn();
    assert_int_equal(t.id, 2);
}

static void te_trace(void *opaque)
{
    Named *named = opaque;
    assert_false(coroutine_active());
    g_string_append_printf(trace, "%d ", named->id);
    if (named->id >= 10)
        loop_at_turn_end(loop, &named->te); /* for the next turn */
}

static void test_turn_end(void **state)
{
    Named n[4];
    for (int i = 0; i < 4; i++)
        n[i] = (Named){.id = i, .te = {.fn = te_trace, .opaque = &n[i]}};
    for (int i = 3; i >= 0; i--) {
        loop_at_turn_end(loop, &n[i].te);
        loop_at_turn_end(loop, &n[i].te); /* harmless */
    }
    loop_turn_end_cancel(loop, &n[2].te);
    loop_turn_end_cancel(loop, &n[2].te);
    loop_turn_end_cancel(loop, &n[0].te); /* the last */
    one_turn();
    assert_string_equal(trace->str, "3 1 ");
    one_turn();
    assert_string_equal(trace->str, "3 1 ");
    n[0].id = 10;
    loop_at_turn_end(loop, &n[0].te);
    one_turn();
    one_turn();
    assert_string_equal(trace->str, "3 1 10 10 ");
    loop_turn_end_cancel(loop, &n[0].te);
}

static void te_cancel_other(void *opaque)
{
    Named *n = opaque;
    loop_turn_end_cancel(loop, &n[2].te); /* the last of this turn */
    loop_at_turn_end(loop, &n[0].te);
    g_string_append(trace, "x ");
}

static void test_turn_end_cancelled_from_one(void **state)
{
    Named n[3];
    n[0] = (Named){.te = {.fn = te_cancel_other, .opaque = n}};
    n[1] = (Named){.id = 1, .te = {.fn = te_trace, .opaque = &n[1]}};
    n[2] = (Named){.id = 2, .te = {.fn = te_trace, .opaque = &n[2]}};
    loop_at_turn_end(loop, &n[0].te);
    loop_at_turn_end(loop, &n[1].te);
    loop_at_turn_end(loop, &n[2].te);
    one_turn();
    assert_string_equal(trace->str, "x 1 ");
    loop_turn_end_cancel(loop, &n[0].te);
}

static void *stopper(void *opaque)
{
    usleep(20000);
    loop_stop(opaque);
    return NULL;
}

static void test_stop_from_thread(void **state)
{
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, stopper, loop), 0);
        loop_run(loop); /* has nothing to do but wait */
        pthread_join(thread, NULL);
    }
}

static void on_alarm(int signum)
{
    loop_stop(loop);
}

static void test_stop_from_signal(void **state)
{
    struct sigaction action = {.sa_handler = on_alarm}, before;
    sigaction(SIGALRM, &action, &before);
    ualarm(20000, 0);
    loop_run(loop);
    sigaction(SIGALRM, &before, NULL);
}

static void te_wake(void *opaque)
{
    coroutine_wake(opaque);
}

static void stop_co_entry(void *opaque)
{
    aio_co_yield();
    loop_stop(loop);
}

/* What a turn-end callback wakes runs without waiting for anything else. */
static void test_wake_at_turn_end(void **state)
{
    TurnEnd te = {.fn = te_wake, .opaque = coroutine_start(loop, stop_co_entry, NULL)};
    loop_at_turn_end(loop, &te);
    loop_run(loop);
    assert_int_equal(coroutine_count(loop), 0);
}

static void *echo_thread(void *opaque)
{
    int fd = GPOINTER_TO_INT(opaque);
    char c;
    while (read(fd, &c, 1) == 1 && write(fd, &c, 1) == 1)
        if (c % 16 == 0)
            g_usleep(50);
    close(fd);
    return NULL;
}

static void ask_co_entry(void *opaque)
{
    int fd = GPOINTER_TO_INT(opaque);
    for (unsigned i = 0; i < 2000; i++) {
        char ask = (char)i, answer = (char)(i + 1);
        loop_expect(loop);
        assert_int_equal(write(fd, &ask, 1), 1);
        assert_int_equal(aio_co_recv(fd, &answer, 1, 0), 1);
        assert_int_equal(answer, ask);
    }
    loop_stop(loop);
}

/* Answers that come at once, and some that take longer than is looked out for. */
static void test_expected(void **state)
{
    int fds[2];
    pthread_t thread;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    assert_int_equal(pthread_create(&thread, NULL, echo_thread, GINT_TO_POINTER(fds[1])), 0);
    coroutine_start(loop, ask_co_entry, GINT_TO_POINTER(fds[0]));
    loop_run(loop);
    assert_int_equal(coroutine_count(loop), 0);
    close(fds[0]);
    pthread_join(thread, NULL);
}

static void wait_in_vain_co_entry(void *opaque)
{
    for (unsigned i = 0; i < 20; i++) {
        int64_t until = loop_now(loop, LOOP_CLOCK_REAL) + 2000000;
        loop_expect(loop);
        assert_int_equal(aio_co_sleep_until(LOOP_CLOCK_REAL, until), 0);
        assert_true(loop_now(loop, LOOP_CLOCK_REAL) >= until);
    }
    loop_stop(loop);
}

/* What does not come is not looked out for again and again. */
static void test_expected_in_vain(void **state)
{
    loop->processors = 2;
    loop->luck = 8;
    coroutine_start(loop, wait_in_vain_co_entry, NULL);
    loop_run(loop);
    assert_int_equal(loop->luck, 0);
    assert_true(loop->unlucky > 0);
    assert_false(loop->expecting);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_real_timers_in_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_manual_clock, setup, teardown),
        cmocka_unit_test_setup_teardown(test_heap_against_linear, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timer_in_the_past_does_not_hang, setup, teardown),
        cmocka_unit_test_setup_teardown(test_turn_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_turn_end_cancelled_from_one, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_from_thread, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_from_signal, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wake_at_turn_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expected, setup, teardown),
        cmocka_unit_test_setup_teardown(test_expected_in_vain, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
