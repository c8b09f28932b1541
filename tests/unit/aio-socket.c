/*
 * Listening and connecting by address.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "block/aio/io.h"
#include "block/aio/socket.h"
#include <glib/gstdio.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

typedef struct Fixture {
    Loop *loop;
    char *dir, *path;
    int accepted; /* the last connection, -1: none */
    unsigned count;
} Fixture;

static int setup(void **state)
{
    Fixture *f = g_new0(Fixture, 1);

    f->loop = loop_new(NULL);
    assert_non_null(f->loop);
    f->dir = g_dir_make_tmp("sd-socket-XXXXXX", NULL);
    f->path = g_build_filename(f->dir, "s", NULL);
    f->accepted = -1;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    Fixture *f = *state;

    if (f->accepted >= 0)
        close(f->accepted);
    loop_free(f->loop);
    unlink(f->path);
    assert_int_equal(rmdir(f->dir), 0); /* nothing else was left there */
    g_free(f->path);
    g_free(f->dir);
    g_free(f);
    return 0;
}

static void on_accepted(int fd, void *opaque)
{
    Fixture *f = opaque;

    if (f->accepted >= 0)
        close(f->accepted);
    f->accepted = fd;
    f->count++;
}

static SocketAddr unix_addr(const Fixture *f)
{
    return (SocketAddr){.kind = SOCKET_UNIX, .path = f->path};
}

/* Waits until @n connections have arrived. */
static void wait_co_accepted(Fixture *f, unsigned n)
{
    for (int i = 0; i < 1000 && f->count < n; i++)
        aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(f->loop, LOOP_CLOCK_REAL) + 1000000);
    assert_int_equal(f->count, n);
}

/* Does a byte that @fd sends arrive at the last accepted connection? */
static void check_co_link(Fixture *f, int fd)
{
    char c = 'x';
    struct iovec iov = {.iov_base = &c, .iov_len = 1};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    assert_int_equal(aio_co_sendmsg(fd, &msg, 0), 1);
    c = 0;
    assert_int_equal(aio_co_recv(f->accepted, &c, 1, 0), 1);
    assert_int_equal(c, 'x');
}

static void unix_path_co_entry(void *opaque)
{
    Fixture *f = opaque;
    SocketAddr addr = unix_addr(f);
    g_autoptr(GError) error = NULL;
    SocketListener *l = socket_co_listen(f->loop, &addr, on_accepted, f, &error);
    int fd;

    assert_non_null(l);
    assert_int_equal(socket_listener_port(l), 0);
    fd = socket_co_connect(&addr, &error);
    assert_true(fd >= 0);
    wait_co_accepted(f, 1);
    check_co_link(f, fd);
    close(fd);
    socket_listener_co_close(l);
    assert_false(g_file_test(f->path, G_FILE_TEST_EXISTS));
    fd = socket_co_connect(&addr, &error);
    assert_int_equal(fd, -1);
    assert_non_null(strstr(error->message, f->path));
    loop_stop(f->loop);
}

static void stale_co_entry(void *opaque)
{
    Fixture *f = opaque;
    SocketAddr addr = unix_addr(f);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    SocketListener *l;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strncpy(name.sun_path, f->path, sizeof(name.sun_path) - 1);
    assert_int_equal(bind(fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_int_equal(listen(fd, 1), 0);
    close(fd); /* the file stays */
    assert_true(g_file_test(f->path, G_FILE_TEST_EXISTS));
    l = socket_co_listen(f->loop, &addr, on_accepted, f, NULL);
    assert_non_null(l);
    fd = socket_co_connect(&addr, NULL);
    assert_true(fd >= 0);
    wait_co_accepted(f, 1);
    close(fd);
    socket_listener_co_close(l);
    loop_stop(f->loop);
}

static void live_co_entry(void *opaque)
{
    Fixture *f = opaque;
    SocketAddr addr = unix_addr(f);
    g_autoptr(GError) error = NULL;
    g_autofree char *pid = g_strdup_printf("PID %d ", (int)getpid());
    SocketListener *l = socket_co_listen(f->loop, &addr, on_accepted, f, NULL);

    assert_non_null(l);
    assert_null(socket_co_listen(f->loop, &addr, on_accepted, f, &error));
    assert_non_null(strstr(error->message, pid));
    assert_non_null(strstr(error->message, f->path));
    assert_true(g_file_test(f->path, G_FILE_TEST_EXISTS));
    socket_listener_co_close(l);
    loop_stop(f->loop);
}

static void no_socket_co_entry(void *opaque)
{
    Fixture *f = opaque;
    SocketAddr addr = unix_addr(f);
    g_autoptr(GError) error = NULL;

    assert_true(g_file_set_contents(f->path, "x", 1, NULL));
    assert_null(socket_co_listen(f->loop, &addr, on_accepted, f, &error));
    assert_non_null(strstr(error->message, "no socket"));
    assert_true(g_file_test(f->path, G_FILE_TEST_IS_REGULAR));
    loop_stop(f->loop);
}

/* Who took the path over meanwhile keeps it. */
static void not_ours_co_entry(void *opaque)
{
    Fixture *f = opaque;
    SocketAddr addr = unix_addr(f);
    SocketListener *l = socket_co_listen(f->loop, &addr, on_accepted, f, NULL);

    assert_non_null(l);
    assert_int_equal(unlink(f->path), 0);
    assert_true(g_file_set_contents(f->path, "x", 1, NULL));
    socket_listener_co_close(l);
    assert_true(g_file_test(f->path, G_FILE_TEST_EXISTS));
    loop_stop(f->loop);
}

static void pausing_co_entry(void *opaque)
{
    Fixture *f = opaque;
    SocketAddr addr = unix_addr(f);
    SocketListener *l = socket_co_listen(f->loop, &addr, on_accepted, f, NULL);
    int a, b;

    a = socket_co_connect(&addr, NULL);
    wait_co_accepted(f, 1);
    socket_listener_pause(l, true);
    aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(f->loop, LOOP_CLOCK_REAL) + 20000000);
    b = socket_co_connect(&addr, NULL);
    assert_true(b >= 0);
    aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(f->loop, LOOP_CLOCK_REAL) + 50000000);
    assert_int_equal(f->count, 1);
    socket_listener_pause(l, false);
    wait_co_accepted(f, 2);
    socket_listener_pause(l, true);
    socket_listener_co_close(l); /* while paused */
    close(a);
    close(b);
    loop_stop(f->loop);
}

static void abstract_co_entry(void *opaque)
{
    Fixture *f = opaque;
    SocketAddr addr = {.kind = SOCKET_UNIX, .path = f->dir, .abstract = true};
    g_autoptr(GError) error = NULL;
    SocketListener *l = socket_co_listen(f->loop, &addr, on_accepted, f, NULL);
    int fd;

    assert_non_null(l);
    assert_null(socket_co_listen(f->loop, &addr, on_accepted, f, &error));
    assert_non_null(strstr(error->message, "in use"));
    fd = socket_co_connect(&addr, NULL);
    assert_true(fd >= 0);
    wait_co_accepted(f, 1);
    close(fd);
    addr.padded = true; /* another name */
    assert_int_equal(socket_co_connect(&addr, NULL), -1);
    socket_listener_co_close(l);
    loop_stop(f->loop);
}

static void inet_co_entry(void *opaque)
{
    Fixture *f = opaque;
    SocketAddr addr = {.kind = SOCKET_INET, .host = "127.0.0.1", .port = "0"};
    g_autoptr(GError) error = NULL;
    SocketListener *l = socket_co_listen(f->loop, &addr, on_accepted, f, &error);
    SocketListener *m;
    char port[8];
    int fd;

    assert_non_null(l);
    assert_true(socket_listener_port(l) > 0);
    snprintf(port, sizeof(port), "%u", socket_listener_port(l));
    addr.port = port;
    fd = socket_co_connect(&addr, &error);
    assert_true(fd >= 0);
    wait_co_accepted(f, 1);
    check_co_link(f, fd);
    close(fd);
    assert_null(socket_co_listen(f->loop, &addr, on_accepted, f, &error));
    assert_non_null(strstr(error->message, port));
    /* Of a range, the next free one. */
    addr.port_to = MIN(socket_listener_port(l) + 20, 65535);
    m = socket_co_listen(f->loop, &addr, on_accepted, f, NULL);
    assert_non_null(m);
    assert_true(socket_listener_port(m) > socket_listener_port(l));
    socket_listener_co_close(m);
    socket_listener_co_close(l);
    loop_stop(f->loop);
}

/* "Every address" is one port of both families. */
static void any_co_entry(void *opaque)
{
    Fixture *f = opaque;
    SocketAddr any = {.kind = SOCKET_INET, .host = "", .port = "0"};
    SocketListener *l = socket_co_listen(f->loop, &any, on_accepted, f, NULL);
    SocketAddr addr = {.kind = SOCKET_INET, .host = "localhost", .no_ipv6 = true};
    char port[8];
    int fd;

    assert_non_null(l);
    snprintf(port, sizeof(port), "%u", socket_listener_port(l));
    addr.port = port;
    fd = socket_co_connect(&addr, NULL);
    assert_true(fd >= 0);
    wait_co_accepted(f, 1);
    close(fd);
    if (g_file_test("/proc/net/if_inet6", G_FILE_TEST_EXISTS)) {
        addr.no_ipv6 = false;
        addr.host = "::1";
        fd = socket_co_connect(&addr, NULL);
        assert_true(fd >= 0);
        wait_co_accepted(f, 2);
        close(fd);
    }
    socket_listener_co_close(l);
    loop_stop(f->loop);
}

static void refused_co_entry(void *opaque)
{
    Fixture *f = opaque;
    static const struct {
        SocketAddr addr;
        const char *text;
    } cases[] = {
        {{.kind = SOCKET_UNIX, .path = ""}, "empty"},
        {{.kind = SOCKET_UNIX, .path = "/tmp/no/such/folder/s"}, "/tmp/no/such/folder/s"},
        {{.kind = SOCKET_INET, .host = "127.0.0.1", .port = ""}, "no port"},
        {{.kind = SOCKET_INET, .host = "127.0.0.1", .port = "65536"}, "Invalid port '65536'"},
        {{.kind = SOCKET_INET, .host = "127.0.0.1", .port = "18446744073709551617"}, "Invalid port"},
        {{.kind = SOCKET_INET, .host = "127.0.0.1", .port = "-1"}, "Invalid port '-1'"},
        {{.kind = SOCKET_INET, .host = "127.0.0.1", .port = " 1"}, "Invalid port ' 1'"},
        {{.kind = SOCKET_INET, .host = "127.0.0.1", .port = "1", .no_ipv4 = true, .no_ipv6 = true}, "IPv4 and IPv6"},
        {{.kind = SOCKET_INET, .host = "localhost", .port = "1", .numeric = true}, "localhost"},
        {{.kind = SOCKET_INET, .host = "127.0.0.1", .port = "no-such-service"}, "no-such-service"},
        {{.kind = SOCKET_FD, .fd = -1}, "-1"},
    };
    g_autofree char *deep = g_strnfill(200, 'x');
    SocketAddr long_name = {.kind = SOCKET_UNIX, .path = deep};
    g_autoptr(GError) too_long = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;

        assert_null(socket_co_listen(f->loop, &cases[i].addr, on_accepted, f, &error));
        if (!strstr(error->message, cases[i].text))
            fail_msg("'%s' does not name '%s'", error->message, cases[i].text);
    }
    assert_int_equal(socket_co_connect(&long_name, &too_long), -1);
    assert_non_null(strstr(too_long->message, "too long"));
    loop_stop(f->loop);
}

static void fd_co_entry(void *opaque)
{
    Fixture *f = opaque;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    SocketAddr addr = {.kind = SOCKET_FD, .fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    SocketAddr by_path = unix_addr(f);
    g_autoptr(GError) error = NULL;
    SocketListener *l;
    int fd;

    strncpy(name.sun_path, f->path, sizeof(name.sun_path) - 1);
    assert_int_equal(bind(addr.fd, (struct sockaddr *)&name, sizeof(name)), 0);
    assert_null(socket_co_listen(f->loop, &addr, on_accepted, f, &error));
    assert_non_null(strstr(error->message, "does not listen"));
    assert_int_equal(listen(addr.fd, 1), 0); /* refused, it stayed the caller's */
    l = socket_co_listen(f->loop, &addr, on_accepted, f, NULL);
    assert_non_null(l);
    fd = socket_co_connect(&by_path, NULL);
    assert_true(fd >= 0);
    wait_co_accepted(f, 1);
    close(fd);
    socket_listener_co_close(l);
    assert_true(g_file_test(f->path, G_FILE_TEST_EXISTS)); /* who made it removes it */
    loop_stop(f->loop);
}

#define CASE(name)                                                                                                     \
    static void name(void **state)                                                                                     \
    {                                                                                                                  \
        Fixture *f = *state;                                                                                           \
        coroutine_start(f->loop, name##_co_entry, f);                                                                  \
        loop_run(f->loop);                                                                                             \
    }
CASE(unix_path)
CASE(stale)
CASE(live)
CASE(no_socket)
CASE(not_ours)
CASE(pausing)
CASE(abstract)
CASE(inet)
CASE(any)
CASE(refused)
CASE(fd)

static void names(void **state)
{
    static const struct {
        SocketAddr addr;
        const char *text;
    } cases[] = {
        {{.kind = SOCKET_UNIX, .path = "/run/x"}, "unix:/run/x"},
        {{.kind = SOCKET_UNIX, .path = "x", .abstract = true}, "unix:@x"},
        {{.kind = SOCKET_INET, .host = "host", .port = "10809"}, "host:10809"},
        {{.kind = SOCKET_INET, .host = "::1", .port = "1"}, "[::1]:1"},
        {{.kind = SOCKET_INET, .port = "1"}, ":1"},
        {{.kind = SOCKET_FD, .fd = 3}, "fd:3"},
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *text = socket_addr_str(&cases[i].addr);
        assert_string_equal(text, cases[i].text);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(unix_path), T(stale), T(live), T(no_socket), T(not_ours), T(pausing),
        T(abstract),  T(inet),  T(any),  T(refused),   T(fd),       cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
