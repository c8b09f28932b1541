/* System calls from coroutines: files on disk and in memory, pipes, sockets, cancellation, workers, bounce buffers. */
#include "block/aio/io.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/un.h>
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

/* Runs @entry to its end, whatever it starts too. */
static void run(CoroutineEntry *entry, void *opaque)
{
    coroutine_start(loop, entry, opaque);
    while (coroutine_count(loop))
        loop_run(loop);
}

static void done(void)
{
    loop_stop(loop);
}

static void stop_fire(void *opaque)
{
    loop_stop(loop);
}

static void run_for_ms(int ms)
{
    Timer timer;
    timer_init(&timer, loop, LOOP_CLOCK_REAL, stop_fire, NULL);
    timer_arm(&timer, loop_now(loop, LOOP_CLOCK_REAL) + ms * INT64_C(1000000));
    loop_run(loop);
    timer_cancel(&timer);
}

static ssize_t pwrite_co_text(int fd, const char *text, int64_t offset)
{
    struct iovec iov = {(void *)text, strlen(text)};
    return aio_co_pwritev(fd, &iov, 1, offset, 0);
}

/* The same for every kind of file. */
static void file_co_entry(void *opaque)
{
    const int fd = GPOINTER_TO_INT(opaque);
    char a[8] = "", b[8] = "";
    struct iovec two[2] = {{a, 5}, {b, 7}};
    struct stat st;

    assert_int_equal(pwrite_co_text(fd, "hello", 100), 5);
    assert_int_equal(pwrite_co_text(fd, " world", 105), 6);
    assert_int_equal(aio_co_preadv(fd, two, 2, 100, 0), 11); /* short: the end of the file */
    assert_string_equal(a, "hello");
    assert_string_equal(b, " world");
    two[0].iov_base = (void *)"HE";
    two[0].iov_len = 2;
    two[1].iov_base = (void *)"LLO";
    two[1].iov_len = 3;
    assert_int_equal(aio_co_pwritev(fd, two, 2, 100, RWF_DSYNC), 5);
    struct iovec one = {a, 8};
    assert_int_equal(aio_co_preadv(fd, &one, 1, 98, 0), 8);
    assert_memory_equal(a, "\0\0HELLO ", 8);
    assert_int_equal(aio_co_preadv(fd, &one, 1, 5000, 0), 0);
    assert_int_equal(aio_co_fsync(fd, true), 0);
    assert_int_equal(aio_co_fsync(fd, false), 0);
    assert_int_equal(aio_co_fallocate(fd, 0, 0, 65536), 0);
    assert_int_equal(aio_co_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, 65536);
    assert_int_equal(aio_co_preadv(fd, &one, 1, 100, 0), 8);
    assert_memory_equal(a, "\0\0\0\0\0\0\0\0", 8);
    assert_int_equal(aio_co_fallocate(fd, 0, 0, -1), -EINVAL);

    /* Beyond what is done on the loop's thread. */
    enum { LARGE = 3 << 20 };
    char *large = aio_buf_get(loop, LARGE);
    char *back = aio_buf_get(loop, LARGE);
    for (int i = 0; i < LARGE; i++)
        large[i] = (char)(i * 7 + i / 4096);
    struct iovec l = {large, LARGE}, r = {back, LARGE};
    assert_int_equal(aio_co_pwritev(fd, &l, 1, 4096, 0), LARGE);
    assert_int_equal(aio_co_preadv(fd, &r, 1, 4096, 0), LARGE);
    assert_memory_equal(large, back, LARGE);
    aio_buf_put(loop, large, LARGE);
    aio_buf_put(loop, back, LARGE);
    done();
}

static void test_file_on_disk(void **state)
{
    char name[] = "/var/tmp/aio-io-XXXXXX";
    const int fd = mkstemp(name);
    assert_true(fd >= 0);
    unlink(name);
    run(file_co_entry, GINT_TO_POINTER(fd));
    close(fd);
}

static void test_file_in_memory(void **state)
{
    const int fd = memfd_create("aio-io", MFD_CLOEXEC);
    assert_true(fd >= 0);
    run(file_co_entry, GINT_TO_POINTER(fd));
    close(fd);
}

static void errors_co_entry(void *opaque)
{
    char byte;
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    const int ro = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    assert_int_equal(aio_co_preadv(-1, &iov, 1, 0, 0), -EBADF);
    assert_int_equal(aio_co_pwritev(ro, &iov, 1, 0, 0), -EBADF);
    assert_int_equal(aio_co_fsync(-1, false), -EBADF);
    assert_int_equal(aio_co_recv(ro, &byte, 1, 0), -ENOTSOCK);
    assert_int_equal(aio_co_sendmsg(ro, &msg, 0), -ENOTSOCK);
    assert_int_equal(aio_co_accept(ro), -ENOTSOCK);
    assert_int_equal(aio_co_poll(-1, POLLIN), -EBADF);
    close(ro);
    done();
}

static void test_errors(void **state)
{
    run(errors_co_entry, NULL);
}

/* Bytes of a file for copies: three buffers of the copying threads and some. Each place holds what tells it from
 * others. */
#define COPY_BYTES (3 * 512 * 1024 + 4567)

static char *copy_pattern(void)
{
    char *data = g_malloc(COPY_BYTES);
    for (size_t i = 0; i < COPY_BYTES; i++)
        data[i] = (char)(i ^ (i >> 8) ^ (i >> 16));
    return data;
}

/* A file of those bytes: in memory, or where temporary files are. */
static int copy_source(bool memory)
{
    g_autofree char *data = copy_pattern();
    const int fd =
        memory ? memfd_create("aio-io", MFD_CLOEXEC) : open(g_get_tmp_dir(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, COPY_BYTES), COPY_BYTES);
    return fd;
}

static void copy_co_between(bool memory, bool thrifty)
{
    static const size_t sizes[] = {1, 4096, 512 * 1024, 2 * 512 * 1024 + 11, COPY_BYTES - 100};
    g_autofree char *data = copy_pattern();
    g_autofree char *got = g_malloc(COPY_BYTES);
    const int in = copy_source(memory);
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        const int out = copy_source(memory);
        assert_return_code(ftruncate(out, 0), 0);
        assert_int_equal(aio_co_copy_range(in, 100, out, 7, sizes[i], thrifty), 0);
        assert_int_equal(pread(out, got, COPY_BYTES, 7), sizes[i]); /* and not a byte more */
        assert_memory_equal(got, data + 100, sizes[i]);
        close(out);
    }
    close(in);
}

static void copy_co_entry(void *opaque)
{
    copy_co_between(true, false);
    copy_co_between(true, true);
    copy_co_between(false, false);
    done();
}

static void test_copy_range(void **state)
{
    run(copy_co_entry, NULL);
}

/* What cannot be copied is told of, and what could be is there. */
static void copy_errors_co_entry(void *opaque)
{
    g_autofree char *data = copy_pattern();
    g_autofree char *got = g_malloc(COPY_BYTES);
    const bool thrifty = opaque;
    const int in = copy_source(true), out = memfd_create("aio-io", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(aio_co_copy_range(in, 0, out, 0, COPY_BYTES + 1, thrifty), -ENODATA);
    assert_int_equal(pread(out, got, COPY_BYTES, 0), COPY_BYTES);
    assert_memory_equal(got, data, COPY_BYTES);
    assert_int_equal(fcntl(out, F_ADD_SEALS, F_SEAL_WRITE), 0);
    assert_int_equal(aio_co_copy_range(in, 0, out, 0, COPY_BYTES, thrifty), -EPERM);
    assert_int_equal(aio_co_copy_range(in, 0, -1, 0, COPY_BYTES, thrifty), -EBADF);
    close(in);
    close(out);
    done();
}

static void test_copy_range_errors(void **state)
{
    run(copy_errors_co_entry, GINT_TO_POINTER(false));
    run(copy_errors_co_entry, GINT_TO_POINTER(true));
}

/* One coroutine that writes to memory without end does not keep a timer from firing. */
static bool writing;
static void write_on_co_entry(void *opaque)
{
    const int fd = memfd_create("aio-io", MFD_CLOEXEC);
    while (writing)
        assert_int_equal(pwrite_co_text(fd, "x", 0), 1);
    close(fd);
    done();
}

static void test_memory_io_is_fair(void **state)
{
    writing = true;
    Coroutine *co = coroutine_start(loop, write_on_co_entry, NULL);
    assert_non_null(co);
    run_for_ms(20);
    writing = false;
    loop_run(loop);
}

typedef struct Pair {
    int fd[2];
    int result;
} Pair;

static void pair_open(Pair *pair, bool nonblocking)
{
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0), 0, pair->fd),
                     0);
    pair->result = 12345;
}

static void pair_close(Pair *pair)
{
    close(pair->fd[0]);
    close(pair->fd[1]);
}

enum { STREAM = 4 << 20 };

static void send_co_entry(void *opaque)
{
    Pair *pair = opaque;
    static char data[STREAM];
    for (size_t i = 0; i < STREAM; i++)
        data[i] = (char)(i % 251);
    for (size_t sent = 0; sent < STREAM;) {
        struct iovec iov[2] = {{data + sent, MIN(100, STREAM - sent)}, {data + sent + MIN(100, STREAM - sent), 0}};
        iov[1].iov_len = STREAM - sent - iov[0].iov_len;
        struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
        ssize_t n = aio_co_sendmsg(pair->fd[0], &msg, 0);
        assert_true(n > 0);
        sent += (size_t)n;
    }
}

static void receive_co_entry(void *opaque)
{
    Pair *pair = opaque;
    char buf[3000];
    for (size_t got = 0; got < STREAM;) {
        struct iovec iov = {buf, sizeof(buf)};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n = got % 2 ? aio_co_recv(pair->fd[1], buf, sizeof(buf), 0) : aio_co_recvmsg(pair->fd[1], &msg, 0);
        assert_true(n > 0);
        for (ssize_t i = 0; i < n; i++)
            assert_int_equal(buf[i], (char)(got++ % 251));
    }
    done();
}

typedef struct Share {
    int fd;
    size_t bytes;
    bool shares, ended;
} Share;

static void share_co_entry(void *opaque)
{
    Share *s = opaque;
    g_autofree char *buf = g_malloc(s->bytes), *got = g_malloc(s->bytes);
    struct iovec out = {buf, s->bytes}, in = {got, s->bytes};
    memset(buf, 's', s->bytes);
    if (s->shares)
        coroutine_share_work();
    assert_int_equal(aio_co_pwritev(s->fd, &out, 1, 1000, 0), s->bytes);
    assert_int_equal(aio_co_preadv(s->fd, &in, 1, 1000, 0), s->bytes);
    assert_memory_equal(buf, got, s->bytes);
    s->ended = true;
}

/* Copies of memory files are made at once, but for long ones of a coroutine that leaves them to others. */
static void test_memory_io_is_shared(void **state)
{
    const int fd = memfd_create("aio-io", MFD_CLOEXEC);
    for (int i = 0; i < 4; i++) {
        Share s = {.fd = fd, .bytes = i & 1 ? 256 * 1024 : 4096, .shares = i >= 2};
        run_for_ms(1); /* a new turn's budget */
        coroutine_start(loop, share_co_entry, &s);
        assert_int_equal(s.ended, !(s.shares && s.bytes > 4096) || g_get_num_processors() == 1);
        while (!s.ended)
            run_for_ms(1);
    }
    close(fd);
}

static void test_stream(void **state)
{
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        Pair pair;
        pair_open(&pair, nonblocking);
        coroutine_start(loop, receive_co_entry, &pair);
        run(send_co_entry, &pair);
        pair_close(&pair);
    }
}

static void pipe_read_co_entry(void *opaque)
{
    Pair *pair = opaque;
    char buf[8] = "";
    struct iovec iov = {buf, 7};
    assert_int_equal(aio_co_preadv(pair->fd[0], &iov, 1, -1, 0), 4);
    assert_string_equal(buf, "pipe");
    assert_int_equal(aio_co_preadv(pair->fd[0], &iov, 1, -1, 0), 0);
    done();
}

static void pipe_write_co_entry(void *opaque)
{
    Pair *pair = opaque;
    aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(loop, LOOP_CLOCK_REAL) + 2000000);
    assert_int_equal(pwrite_co_text(pair->fd[1], "pipe", -1), 4);
    aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(loop, LOOP_CLOCK_REAL) + 2000000);
    close(pair->fd[1]);
}

static void test_pipe(void **state)
{
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        Pair pair;
        assert_int_equal(pipe2(pair.fd, O_CLOEXEC | (nonblocking ? O_NONBLOCK : 0)), 0);
        coroutine_start(loop, pipe_read_co_entry, &pair);
        run(pipe_write_co_entry, &pair);
        close(pair.fd[0]);
    }
}

/* A file's pages through a pipe into a socket that is smaller than they are. */
static void pages_co_entry(void *opaque)
{
    enum { BYTES = 400000 };
    Pair *pair = opaque;
    const int fd = memfd_create("aio-io", MFD_CLOEXEC);
    g_autofree char *want = g_malloc(BYTES), *got = g_malloc(BYTES);
    AioPipe *pages = aio_pipe_get(loop), *other;
    size_t sent = 0, received = 0;
    ssize_t n;

    for (int i = 0; i < BYTES; i++)
        want[i] = (char)((unsigned)i * 7919 >> 5);
    assert_int_equal(pwrite(fd, want, BYTES, 0), BYTES);
    assert_int_equal(aio_pipe_write(pages, want, 10), 0);
    assert_int_equal(aio_co_splice(pages, fd, 10, BYTES - 10), 0);
    assert_int_equal(aio_pipe_bytes(pages), BYTES);
    while (received < BYTES) {
        while ((n = sent < BYTES ? aio_pipe_send(pages, pair->fd[0]) : -EAGAIN) > 0)
            sent += (size_t)n;
        assert_int_equal(n, -EAGAIN);
        assert_int_equal(aio_pipe_bytes(pages), BYTES - sent);
        n = aio_co_recv(pair->fd[1], got + received, BYTES - received, 0);
        assert_true(n > 0);
        received += (size_t)n;
    }
    assert_memory_equal(got, want, BYTES);
    aio_pipe_put(loop, pages);
    assert_ptr_equal(aio_pipe_get(loop), pages); /* kept */
    assert_int_equal(aio_co_splice(pages, fd, BYTES - 1, 2), -ENODATA);
    assert_int_equal(aio_co_splice(pages, fd, 0, AIO_PIPE_MAX + 1), -ENOTSUP);
    assert_int_equal(aio_co_splice(pages, pair->fd[0], 0, 1), -ENOTSUP);
    aio_pipe_put(loop, pages); /* with the first byte in it */
    other = aio_pipe_get(loop);
    assert_int_equal(aio_pipe_bytes(other), 0);
    assert_int_equal(aio_pipe_write(other, "x", 1), 0);
    close(pair->fd[1]);
    assert_int_equal(aio_pipe_send(other, pair->fd[0]), -EPIPE);
    aio_pipe_put(loop, other);
    close(pair->fd[0]);
    close(fd);
    done();
}

static void test_pages(void **state)
{
    Pair pair;
    AioPipe *pipes[100];
    int n = 0;

    signal(SIGPIPE, SIG_IGN);
    pair_open(&pair, true);
    run(pages_co_entry, &pair);
    while ((pipes[n] = aio_pipe_get(loop)))
        assert_true(++n < 100);
    assert_true(n > 0);
    while (n)
        aio_pipe_put(loop, pipes[--n]);
}

static void send_to_nobody_co_entry(void *opaque)
{
    Pair *pair = opaque;
    struct iovec iov = {(void *)"x", 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    close(pair->fd[1]);
    assert_int_equal(aio_co_sendmsg(pair->fd[0], &msg, 0), -EPIPE); /* and no SIGPIPE */
    char c;
    assert_int_equal(aio_co_recv(pair->fd[0], &c, 1, 0), 0);
    close(pair->fd[0]);
    done();
}

static void test_peer_gone(void **state)
{
    Pair pair;
    pair_open(&pair, false);
    run(send_to_nobody_co_entry, &pair);
}

static void dontwait_co_entry(void *opaque)
{
    Pair *pair = opaque;
    char c;
    assert_int_equal(aio_co_recv(pair->fd[0], &c, 1, MSG_DONTWAIT), -EAGAIN);
    done();
}

static void test_dontwait(void **state)
{
    Pair pair;
    pair_open(&pair, true);
    run(dontwait_co_entry, &pair);
    pair_close(&pair);
}

typedef struct Server {
    struct sockaddr_un addr;
    int fd, accepted;
} Server;

static void accept_co_entry(void *opaque)
{
    Server *server = opaque;
    char c = 0;
    server->accepted = aio_co_accept(server->fd);
    assert_true(server->accepted >= 0);
    assert_int_equal(fcntl(server->accepted, F_GETFD), FD_CLOEXEC);
    assert_int_equal(aio_co_recv(server->accepted, &c, 1, 0), 1);
    assert_int_equal(c, '!');
    close(server->accepted);
    done();
}

static void connect_co_entry(void *opaque)
{
    Server *server = opaque;
    struct iovec iov = {(void *)"!", 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct sockaddr_un nobody = {.sun_family = AF_UNIX, .sun_path = "/nobody/listens/here"};
    assert_int_equal(aio_co_connect(fd, (struct sockaddr *)&nobody, sizeof(nobody)), -ENOENT);
    assert_int_equal(aio_co_connect(fd, (struct sockaddr *)&server->addr, sizeof(sa_family_t) + 20), 0);
    assert_int_equal(aio_co_sendmsg(fd, &msg, 0), 1);
    close(fd);
}

static void test_accept_connect(void **state)
{
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        Server server = {.addr = {.sun_family = AF_UNIX}};
        snprintf(server.addr.sun_path + 1, 20, "aio-io-%010u%c", (unsigned)getpid(), nonblocking ? 'n' : 'b');
        server.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (nonblocking ? SOCK_NONBLOCK : 0), 0);
        assert_int_equal(bind(server.fd, (struct sockaddr *)&server.addr, sizeof(sa_family_t) + 20), 0);
        assert_int_equal(listen(server.fd, 5), 0);
        coroutine_start(loop, accept_co_entry, &server);
        loop_stop(loop);
        loop_run(loop); /* it waits by now */
        run(connect_co_entry, &server);
        close(server.fd);
    }
}

static void recv_forever_co_entry(void *opaque)
{
    Pair *pair = opaque;
    char c;
    pair->result = (int)aio_co_recv(pair->fd[0], &c, 1, 0);
    done();
}

static void poll_forever_co_entry(void *opaque)
{
    Pair *pair = opaque;
    pair->result = aio_co_poll(pair->fd[0], POLLIN);
    done();
}

static void read_forever_co_entry(void *opaque)
{
    Pair *pair = opaque;
    char c;
    struct iovec iov = {&c, 1};
    pair->result = (int)aio_co_preadv(pair->fd[0], &iov, 1, -1, 0);
    done();
}

static void cancel_each(CoroutineEntry *entry, bool nonblocking, bool submitted)
{
    Pair pair;
    pair_open(&pair, nonblocking);
    Coroutine *co = coroutine_start(loop, entry, &pair);
    if (submitted)
        run_for_ms(2);
    assert_int_equal(pair.result, 12345);
    aio_cancel(co);
    aio_cancel(co);
    loop_run(loop);
    assert_int_equal(pair.result, -ECANCELED);
    assert_int_equal(coroutine_count(loop), 0);
    /* Nothing of it is left to hit the next one, which has the same stack. */
    pair.result = 12345;
    assert_int_equal(write(pair.fd[1], "x", 1), 1);
    coroutine_start(loop, entry, &pair);
    loop_run(loop);
    assert_int_equal(pair.result, 1);
    pair_close(&pair);
}

static void test_cancel(void **state)
{
    for (int i = 0; i < 4; i++) {
        cancel_each(recv_forever_co_entry, i & 1, i & 2);
        cancel_each(read_forever_co_entry, i & 1, i & 2);
        cancel_each(poll_forever_co_entry, i & 1, i & 2);
    }
}

static void test_cancel_too_late(void **state)
{
    Pair pair;
    pair_open(&pair, false);
    assert_int_equal(write(pair.fd[1], "x", 1), 1);
    Coroutine *co = coroutine_start(loop, recv_forever_co_entry, &pair);
    aio_cancel(co); /* submitted behind a call that completes on the spot */
    loop_run(loop);
    assert_int_equal(pair.result, 1);
    pair_close(&pair);
}

/* More calls in one turn than the submission queue holds. */
typedef struct Crowd {
    int fd, woken;
} Crowd;

static void crowd_co_entry(void *opaque)
{
    Crowd *crowd = opaque;
    assert_int_equal(aio_co_poll(crowd->fd, POLLIN), POLLIN);
    crowd->woken++;
    assert_int_equal(aio_co_poll(crowd->fd, POLLIN | POLLOUT), POLLIN | POLLOUT);
    if (++crowd->woken == 10000)
        done();
}

static void test_crowd(void **state)
{
    Crowd crowd = {.fd = eventfd(0, EFD_CLOEXEC)};
    for (int i = 0; i < 5000; i++)
        coroutine_start(loop, crowd_co_entry, &crowd);
    run_for_ms(5);
    assert_int_equal(crowd.woken, 0);
    assert_int_equal(write(crowd.fd, &(uint64_t){1}, 8), 8);
    loop_run(loop);
    assert_int_equal(crowd.woken, 10000);
    assert_int_equal(coroutine_count(loop), 0);
    close(crowd.fd);
}

static int work(void *opaque)
{
    const int n = GPOINTER_TO_INT(opaque);
    assert_false(coroutine_active());
    usleep((unsigned)(n % 5) * 1000);
    return n - 50;
}

static int worked;

static void worker_co_entry(void *opaque)
{
    assert_int_equal(aio_co_worker(work, opaque), GPOINTER_TO_INT(opaque) - 50);
    if (++worked == 100)
        done();
}

static void test_workers(void **state)
{
    for (int round = 0; round < 3; round++) {
        worked = 0;
        for (int i = 0; i < 100; i++)
            coroutine_start(loop, worker_co_entry, GINT_TO_POINTER(i));
        loop_run(loop);
        assert_int_equal(worked, 100);
    }
}

/* Eight run at a time: each waits until all eight are there. */
static int meeting;

static int meet(void *opaque)
{
    __atomic_add_fetch(&meeting, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < 5000 && __atomic_load_n(&meeting, __ATOMIC_SEQ_CST) < 8; i++)
        usleep(1000);
    return __atomic_load_n(&meeting, __ATOMIC_SEQ_CST);
}

static void meet_co_entry(void *opaque)
{
    assert_int_equal(aio_co_worker(meet, NULL), 8);
    if (++worked == 8)
        done();
}

static void test_workers_run_together(void **state)
{
    worked = meeting = 0;
    for (int i = 0; i < 8; i++)
        coroutine_start(loop, meet_co_entry, NULL);
    loop_run(loop);
}

static void test_buffers(void **state)
{
    static const size_t sizes[] = {0,       1, 512, 4096, 4097, 65536, 1 << 20, (4 << 20) - 1, 4 << 20, (4 << 20) + 1,
                                   40 << 20};
    for (int round = 0; round < 3; round++) {
        char *buf[G_N_ELEMENTS(sizes)];
        for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
            buf[i] = aio_buf_get(loop, sizes[i]);
            assert_non_null(buf[i]);
            assert_int_equal((uintptr_t)buf[i] % 4096, 0);
            memset(buf[i], (int)i, sizes[i]);
        }
        for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
            assert_true(sizes[i] == 0 || (buf[i][0] == (char)i && buf[i][sizes[i] - 1] == (char)i));
            aio_buf_put(loop, buf[i], sizes[i]);
        }
    }
    /* The same one again: nothing is allocated in steady state. */
    void *one = aio_buf_get(loop, 5000);
    aio_buf_put(loop, one, 5000);
    void *again = aio_buf_get(loop, 8192);
    assert_ptr_equal(one, again);
    aio_buf_put(loop, again, 8192);
    assert_null(aio_buf_get(loop, (size_t)3 << 30));
    aio_buf_put(loop, NULL, 4096);
    /* More than is kept. */
    void *many[40];
    for (int i = 0; i < 40; i++)
        many[i] = aio_buf_get(loop, 4 << 20);
    for (int i = 0; i < 40; i++)
        aio_buf_put(loop, many[i], 4 << 20);
}

#define N_LARGE       96
#define LARGE_SIZE(i) ((size_t)1 << (17 + (i) % 4)) /* 128 KiB to 1 MiB */

/* Large buffers share blocks: they do not overlap, are used again in any order, and what is too much to keep goes back.
 */
static void test_large_buffers(void **state)
{
    char *buf[N_LARGE];
    for (int i = 0; i < N_LARGE; i++) {
        buf[i] = aio_buf_get(loop, LARGE_SIZE(i));
        assert_non_null(buf[i]);
        assert_int_equal((uintptr_t)buf[i] % 4096, 0);
        memset(buf[i], i, LARGE_SIZE(i));
    }
    for (int round = 0; round < 3; round++) { /* every third, each time in another order */
        for (int i = round; i < N_LARGE; i += 3) {
            for (size_t at = 0; at < LARGE_SIZE(i); at += 4095)
                assert_int_equal((uint8_t)buf[i][at], i);
            aio_buf_put(loop, buf[i], LARGE_SIZE(i));
        }
        for (int i = N_LARGE - 3 + round; i >= 0; i -= 3) {
            buf[i] = aio_buf_get(loop, LARGE_SIZE(i));
            memset(buf[i], i, LARGE_SIZE(i));
        }
    }
    for (int i = 0; i < N_LARGE; i++)
        aio_buf_put(loop, buf[i], LARGE_SIZE(i));
    /* The one that was given back last comes first. */
    void *one = aio_buf_get(loop, 256 << 10);
    void *two = aio_buf_get(loop, 256 << 10);
    aio_buf_put(loop, one, 256 << 10);
    assert_ptr_equal(aio_buf_get(loop, 200 << 10), one);
    aio_buf_put(loop, two, 256 << 10);
    aio_buf_put(loop, one, 256 << 10);
}

static size_t resident_mib(void)
{
    unsigned long pages[2];
    FILE *f = fopen("/proc/self/statm", "r");
    assert_int_equal(fscanf(f, "%lu %lu", &pages[0], &pages[1]), 2);
    fclose(f);
    return pages[1] * (size_t)sysconf(_SC_PAGESIZE) >> 20;
}

static void test_large_buffers_go_back(void **state)
{
    enum { N = 256 };
    void *buf[N];
    const size_t before = resident_mib();
    for (int i = 0; i < N; i++) {
        buf[i] = aio_buf_get(loop, 1 << 20);
        memset(buf[i], 1, 1 << 20);
    }
    assert_true(resident_mib() >= before + N);
    for (int i = 0; i < N; i++)
        aio_buf_put(loop, buf[i], 1 << 20);
    assert_in_range(resident_mib(), before, before + 64 + 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_file_on_disk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_file_in_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_copy_range, setup, teardown),
        cmocka_unit_test_setup_teardown(test_copy_range_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_io_is_fair, setup, teardown),
        cmocka_unit_test_setup_teardown(test_memory_io_is_shared, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stream, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pipe, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pages, setup, teardown),
        cmocka_unit_test_setup_teardown(test_peer_gone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dontwait, setup, teardown),
        cmocka_unit_test_setup_teardown(test_accept_connect, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel_too_late, setup, teardown),
        cmocka_unit_test_setup_teardown(test_crowd, setup, teardown),
        cmocka_unit_test_setup_teardown(test_workers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_workers_run_together, setup, teardown),
        cmocka_unit_test_setup_teardown(test_buffers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_buffers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_buffers_go_back, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
