/* Mutex, reader-writer lock and wait queue: exclusion, order of arrival, no starvation. */
#include "block/aio/coroutine.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <cmocka.h>

static Loop *loop;
static GString *trace;
static CoMutex mutex;
static CoRwlock rwlock;
static CoQueue queue;

static int setup(void **state)
{
    loop = loop_new(NULL);
    assert_non_null(loop);
    trace = g_string_new(NULL);
    memset(&mutex, 0, sizeof(mutex));
    memset(&rwlock, 0, sizeof(rwlock));
    memset(&queue, 0, sizeof(queue));
    return 0;
}

static int teardown(void **state)
{
    assert_int_equal(coroutine_count(loop), 0);
    loop_free(loop);
    g_string_free(trace, TRUE);
    return 0;
}

static void run_until_done(void)
{
    for (int turns = 0; coroutine_count(loop); turns++) {
        assert_true(turns < 100000);
        loop_stop(loop);
        loop_run(loop);
    }
}

static int inside, counter;

static void lock_co_entry(void *opaque)
{
    const char *name = opaque;
    comutex_co_lock(&mutex);
    assert_int_equal(inside++, 0);
    g_string_append(trace, name);
    aio_co_reschedule();
    aio_co_reschedule();
    assert_int_equal(--inside, 0);
    comutex_unlock(&mutex);
}

/* One that lets go and comes again at once must not overtake those who waited. */
static void greedy_co_entry(void *opaque)
{
    for (int i = 0; i < 3; i++) {
        comutex_co_lock(&mutex);
        g_string_append(trace, "G");
        aio_co_reschedule();
        comutex_unlock(&mutex);
    }
}

static void test_mutex_is_fair(void **state)
{
    coroutine_start(loop, greedy_co_entry, NULL);
    coroutine_start(loop, lock_co_entry, (void *)"a");
    coroutine_start(loop, lock_co_entry, (void *)"b");
    coroutine_start(loop, lock_co_entry, (void *)"c");
    run_until_done();
    assert_string_equal(trace->str, "GabcGG");
    assert_null(mutex.holder);
}

static void add_co_entry(void *opaque)
{
    for (int i = 0; i < 10; i++) {
        comutex_co_lock(&mutex);
        int seen = counter;
        aio_co_reschedule();
        counter = seen + 1;
        comutex_unlock(&mutex);
    }
}

static void test_mutex_many(void **state)
{
    counter = 0;
    for (int i = 0; i < 200; i++)
        coroutine_start(loop, add_co_entry, NULL);
    run_until_done();
    assert_int_equal(counter, 2000);
}

static int readers;

static void read_co_entry(void *opaque)
{
    corwlock_co_rdlock(&rwlock);
    readers++;
    g_string_append_printf(trace, "r%d", readers);
    aio_co_reschedule();
    readers--;
    corwlock_unlock(&rwlock);
}

static void write_co_entry(void *opaque)
{
    corwlock_co_wrlock(&rwlock);
    assert_int_equal(readers, 0);
    g_string_append(trace, "W");
    aio_co_reschedule();
    assert_int_equal(readers, 0);
    corwlock_unlock(&rwlock);
}

static void test_rwlock_order(void **state)
{
    coroutine_start(loop, read_co_entry, NULL);
    coroutine_start(loop, read_co_entry, NULL);
    coroutine_start(loop, write_co_entry, NULL);
    /* These come after the writer: they wait although readers are inside. */
    coroutine_start(loop, read_co_entry, NULL);
    coroutine_start(loop, read_co_entry, NULL);
    coroutine_start(loop, write_co_entry, NULL);
    coroutine_start(loop, write_co_entry, NULL);
    coroutine_start(loop, read_co_entry, NULL);
    run_until_done();
    assert_string_equal(trace->str, "r1r2Wr1r2WWr1");
    assert_int_equal(rwlock.readers, 0);
    assert_null(rwlock.writer);
}

static void writer_again_co_entry(void *opaque)
{
    for (int i = 0; i < 3; i++) {
        corwlock_co_wrlock(&rwlock);
        g_string_append(trace, "W");
        aio_co_reschedule();
        corwlock_unlock(&rwlock);
    }
}

static void test_rwlock_readers_do_not_starve(void **state)
{
    coroutine_start(loop, writer_again_co_entry, NULL);
    coroutine_start(loop, read_co_entry, NULL);
    run_until_done();
    assert_string_equal(trace->str, "Wr1WW");
}

static void wait_co_entry(void *opaque)
{
    coqueue_co_wait(&queue, NULL);
    g_string_append(trace, opaque);
}

static void test_queue(void **state)
{
    assert_true(coqueue_empty(&queue));
    assert_false(coqueue_wake_one(&queue));
    coroutine_start(loop, wait_co_entry, (void *)"a");
    coroutine_start(loop, wait_co_entry, (void *)"b");
    coroutine_start(loop, wait_co_entry, (void *)"c");
    assert_false(coqueue_empty(&queue));
    assert_true(coqueue_wake_one(&queue));
    assert_string_equal(trace->str, ""); /* waking does not yield */
    loop_stop(loop);
    loop_run(loop);
    assert_string_equal(trace->str, "a");
    coqueue_wake_all(&queue);
    assert_true(coqueue_empty(&queue));
    run_until_done();
    assert_string_equal(trace->str, "abc");
}

static int ready;

static void consumer_co_entry(void *opaque)
{
    comutex_co_lock(&mutex);
    while (!ready) {
        coqueue_co_wait(&queue, &mutex);
        assert_ptr_equal(mutex.holder, coroutine_self());
    }
    ready--;
    g_string_append(trace, "c");
    comutex_unlock(&mutex);
}

static void producer_co_entry(void *opaque)
{
    for (int i = 0; i < 5; i++) {
        comutex_co_lock(&mutex);
        ready++;
        coqueue_wake_one(&queue);
        aio_co_reschedule();
        comutex_unlock(&mutex);
        aio_co_reschedule();
    }
}

static void test_queue_with_mutex(void **state)
{
    ready = 0;
    for (int i = 0; i < 5; i++)
        coroutine_start(loop, consumer_co_entry, NULL);
    coroutine_start(loop, producer_co_entry, NULL);
    run_until_done();
    assert_string_equal(trace->str, "ccccc");
    assert_int_equal(ready, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_mutex_is_fair, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mutex_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rwlock_order, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rwlock_readers_do_not_starve, setup, teardown),
        cmocka_unit_test_setup_teardown(test_queue, setup, teardown),
        cmocka_unit_test_setup_teardown(test_queue_with_mutex, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
