/* How many requests a disk is given at a time: when some are held back, and that none is forgotten. */
#include "block/aio/internal.h"
#include "block/aio/io.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <cmocka.h>

static Loop *loop;

static int setup(void **state)
{
    loop = loop_new(NULL);
    assert_non_null(loop);
    return 0;
}

static int teardown(void **state)
{
    assert_int_equal(coroutine_count(loop), 0);
    loop_free(loop);
    return 0;
}

/* A disk that is silent for @silence ns and then tells of all @n requests, @apart ns after each other. */
static void bunch(Gate *gate, unsigned n, int64_t silence, int64_t apart)
{
    for (unsigned i = 0; i < n; i++)
        assert_true(gate_enter(gate, loop));
    loop->now[LOOP_CLOCK_REAL] += silence;
    for (unsigned i = 0; i < n; i++) {
        gate_leave(gate, loop);
        loop->now[LOOP_CLOCK_REAL] += i + 1 < n ? apart : 0;
    }
    assert_int_equal(gate->in_flight, 0);
}

/* How many of @n requests are let through at once; all have left again afterwards. */
static unsigned entered(Gate *gate, unsigned n)
{
    unsigned in = 0;
    for (unsigned i = 0; i < n; i++)
        in += gate_enter(gate, loop);
    for (unsigned i = 0; i < in; i++)
        gate_leave(gate, loop);
    return in;
}

static void test_learns(void **state)
{
    Gate gate = {0};
    for (int i = 0; i < 8; i++)
        bunch(&gate, 64, 300000, 1000); /* 63 µs after 300 */
    assert_in_range(entered(&gate, 64), 28, 32);
}

/* A client with @asked requests, who needs 3 µs for each before it comes again, and a disk of this silence, for so many
 * bunches; how many it was given on average. */
static unsigned work(Gate *gate, unsigned asked, int64_t base, int64_t each, unsigned bunches)
{
    uint64_t sum = 0;
    for (unsigned left = bunches; left; left--) {
        unsigned n = 0;
        gate->asked = asked; /* as waiting ones would make it */
        while (n < asked && gate_enter(gate, loop))
            n++;
        sum += n;
        loop->now[LOOP_CLOCK_REAL] += base + n * each;
        for (unsigned i = 0; i < n; i++)
            gate_leave(gate, loop);
        loop->now[LOOP_CLOCK_REAL] += n == asked ? n * INT64_C(3000) : 0; /* else the disk works meanwhile */
    }
    return (unsigned)(sum / bunches);
}

/* Whether it makes a request take less time decides. */
static void test_of_use(void **state)
{
    Gate serial = {0}, parallel = {0};
    work(&serial, 64, 25000, 5000, 10);
    assert_int_equal(work(&serial, 64, 25000, 5000, 1000), 32);
    assert_int_equal(work(&serial, 16, 25000, 5000, 1000), 8);
    assert_int_equal(work(&serial, 64, 25000, 5000, 20000), 32);
    assert_in_range(work(&parallel, 64, 500000, 100, 1000), 55, 64);
    assert_in_range(work(&parallel, 64, 500000, 100, 20000), 63, 64);
    /* Both change their ways. */
    work(&serial, 64, 500000, 100, 5000);
    assert_in_range(work(&serial, 64, 500000, 100, 1000), 55, 64);
    work(&parallel, 64, 25000, 5000, 5000);
    assert_int_equal(work(&parallel, 64, 25000, 5000, 1000), 32);
}

/* One by one, or after a rest: no sign of anything. */
static void test_others(void **state)
{
    Gate steady = {0}, rested = {0}, few = {0};
    for (int i = 0; i < 20; i++) {
        bunch(&steady, 64, 5000, 5000);
        bunch(&few, 3, 300000, 0);
        loop->now[LOOP_CLOCK_REAL] += 1000000000;
        bunch(&rested, 64, 80000, 2000);
    }
    assert_int_equal(entered(&steady, 64), 64);
    assert_int_equal(entered(&rested, 64), 64);
    assert_int_equal(entered(&few, 64), 64);
}

/* A disk that has changed its ways, and a client that asks for less, are noticed. */
static void test_forgets(void **state)
{
    Gate gate = {0};
    for (int i = 0; i < 8; i++)
        bunch(&gate, 64, 300000, 1000);
    assert_in_range(entered(&gate, 64), 28, 32);
    for (int i = 0; i < 80; i++)
        bunch(&gate, 4, 8000, 1000);
    assert_int_equal(entered(&gate, 6), 4); /* that many in any case */
    for (int i = 0; i < 20; i++)
        bunch(&gate, 4, 1000, 1000);
    assert_int_equal(entered(&gate, 64), 64);
}

/* ---- with a file --------------------------------------------------------------------------------------------------
 */

enum { N = 64, PIECE = 4096 };
static int fd;
static unsigned most, reading;
static Coroutine *readers[N];
static int results[N];
static uint8_t *data;

static void read_co_entry(void *opaque)
{
    const int i = GPOINTER_TO_INT(opaque);
    const struct iovec iov = {data + (size_t)i * PIECE, PIECE};
    results[i] = (int)aio_co_preadv(fd, &iov, 1, (int64_t)i * PIECE, 0);
    readers[i] = NULL;
    if (--reading == 0)
        loop_stop(loop);
}

static void read_all(bool cancel)
{
    Gate *gate;
    memset(data, 0, (size_t)N * PIECE);
    for (int i = 0; i < N; i++) {
        reading++;
        readers[i] = coroutine_start(loop, read_co_entry, GINT_TO_POINTER(i));
        gate = &loop->kinds[fd].gate;
        if (i == 0) /* it is there only now */
            gate->bunches = 16;
        most = MAX(most, gate->in_flight);
    }
    assert_true(gate->n_waiting > 0);
    if (cancel) /* the last has no place yet */
        aio_cancel(readers[N - 1]);
    loop_run(loop);
    assert_int_equal(coroutine_count(loop), 0);
    gate = &loop->kinds[fd].gate;
    assert_int_equal(gate->n_waiting, 0);
    assert_int_equal(gate->in_flight, 0);
    for (int i = 0; i < N; i++) {
        const bool refused = cancel && i == N - 1;
        assert_int_equal(results[i], refused ? -ECANCELED : PIECE);
        assert_int_equal(data[(size_t)i * PIECE + 7], refused ? 0 : i + 1);
    }
}

static void test_file(void **state)
{
    data = g_aligned_alloc(N, PIECE, PIECE);
    fd = open(g_get_tmp_dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    for (int i = 0; i < N; i++)
        memset(data + (size_t)i * PIECE, i + 1, PIECE);
    assert_int_equal(pwrite(fd, data, (size_t)N * PIECE, 0), N * PIECE);
    struct statfs st;
    assert_return_code(fstatfs(fd, &st), 0);
    if (st.f_type == TMPFS_MAGIC || fcntl(fd, F_SETFL, O_DIRECT) < 0 || pread(fd, data, PIECE, 0) != PIECE) {
        close(fd);
        g_aligned_free(data);
        skip(); /* no disk, or no O_DIRECT, where temporary files are */
    }
    read_all(false);
    read_all(true);
    assert_true(most < N);
    close(fd);
    g_aligned_free(data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_learns, setup, teardown),
        cmocka_unit_test_setup_teardown(test_of_use, setup, teardown),
        cmocka_unit_test_setup_teardown(test_others, setup, teardown),
        cmocka_unit_test_setup_teardown(test_forgets, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
