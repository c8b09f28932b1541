/* Image locks: which bytes are held for which permissions, who is refused, and that a refusal changes nothing. */
#include "block/drivers/file.h"
#include "drivers-common.h"

#define R   PERM_CONSISTENT_READ
#define W   PERM_WRITE
#define U   PERM_WRITE_UNCHANGED
#define RES PERM_RESIZE

/* The locked bytes of the file as another description of it sees them: "100 101 203". The caller frees. */
static char *locked_bytes(const char *path)
{
    GString *s = g_string_new(NULL);
    int fd = open(path, O_RDWR);

    assert_true(fd >= 0);
    for (int byte = 0; byte < 300; byte++) {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
        assert_int_equal(fcntl(fd, F_OFD_GETLK, &lock), 0);
        if (lock.l_type != F_UNLCK) {
            assert_int_equal(lock.l_type, F_RDLCK);
            g_string_append_printf(s, s->len ? " %d" : "%d", byte);
        }
    }
    close(fd);
    return g_string_free(s, FALSE);
}

static void assert_locked(const char *path, const char *expected)
{
    g_autofree char *bytes = locked_bytes(path);
    assert_string_equal(bytes, expected);
}

/* What QEMU holds, as seen in /proc/locks with qemu-storage-daemon 7.2. */
DRIVERS_TEST(bytes)
static void bytes_co_body(void)
{
    g_autofree char *path = make_file("a", 4096, 0);
    Node *node = open_co_node("{'driver':'file','filename':'%s'}", path);
    Port *port;

    assert_locked(path, "");
    port = port_co_open(node, R | W, PERM_ALL & ~RES);
    assert_locked(path, "100 101 203");
    assert_true(port_co_set_perm(port, R, PERM_ALL, NULL));
    assert_locked(path, "100");
    assert_true(port_co_set_perm(port, R | W | RES, R | U, NULL));
    assert_locked(path, "100 101 103 201 203");
    assert_true(port_co_set_perm(port, U, 0, NULL));
    assert_locked(path, "102 200 201 202 203");
    port_co_free(port);
    assert_locked(path, "");
    node_co_unref(node);
}

static int other_fd(const char *path, int byte)
{
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
    int fd = open(path, O_RDWR);

    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
    return fd;
}

static void assert_refused(Port *port, const char *path, unsigned perm, unsigned shared, const char *lock)
{
    g_autofree char *expected =
        g_strdup_printf("Failed to get %s lock. Is another process using the image [%s]?", lock, path);
    g_autofree char *before = locked_bytes(path);
    g_autoptr(GError) error = NULL;

    assert_false(port->child->node->drv->check_perm(port->child->node, perm, shared, &error));
    assert_string_equal(error->message, expected);
    assert_locked(path, before);
}

DRIVERS_TEST(refusals)
static void refusals_co_body(void)
{
    static const char *const names[] = {"consistent read", "write", "write unchanged", "resize"};
    g_autofree char *path = make_file("a", 4096, 0);
    Node *node = open_co_node("{'driver':'file','filename':'%s'}", path);
    Port *port = port_co_open(node, R, PERM_ALL);

    for (int i = 0; i < 4; i++) {
        g_autofree char *mine = g_strdup_printf("\"%s\"", names[i]), *theirs = g_strdup_printf("shared %s", mine);
        int fd = other_fd(path, 200 + i);
        assert_refused(port, path, R | 1u << i, PERM_ALL, mine);
        close(fd);
        fd = other_fd(path, 100 + i);
        assert_refused(port, path, R, PERM_ALL & ~(1u << i), theirs);
        /* No quarrel: both read, both share. */
        assert_true(node->drv->check_perm(node, R | W, PERM_ALL, NULL));
        node->drv->abort_perm(node);
        close(fd);
        assert_locked(path, "100");
    }
    port_co_free(port);
    node_co_unref(node);
}

/* Two nodes of one process are as much in each other's way as two processes. */
DRIVERS_TEST(within_process)
static void within_process_co_body(void)
{
    g_autofree char *path = make_file("a", 4096, 0);
    g_autoptr(GError) error = NULL;
    Node *one = open_co_node("{'driver':'file','filename':'%s'}", path);
    Node *two = open_co_node("{'driver':'file','filename':'%s'}", path);
    Node *off = open_co_node("{'driver':'file','filename':'%s','locking':'off'}", path);
    Port *writer = port_co_open(one, R | W, R), *third;

    assert_null(port_co_new(graph, two, R | W, PERM_ALL, NULL, NULL, &error));
    assert_non_null(strstr(error->message, "Failed to get \"write\" lock"));
    third = port_co_open(off, R | W, R);
    port_co_free(third);
    port_co_free(writer);
    third = port_co_open(two, R | W, R);
    port_co_free(third);
    node_co_unref(one);
    node_co_unref(two);
    node_co_unref(off);
}

/* A node opened for reading that gets a writer opens its file again; locks go along, and an abort leaves no trace. */
DRIVERS_TEST(reopening)
static void reopening_co_body(void)
{
    g_autofree char *path = make_file("a", 4096, 0x11);
    Node *node = open_co_node("{'driver':'file','filename':'%s','read-only':true}", path);
    FileState *s = node->state;
    Port *port = port_co_open(node, R, PERM_ALL);
    uint8_t byte = 7;
    int fd;

    assert_int_equal(fcntl(s->fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    node->flags.read_only = false; /* as a reopen does */
    assert_true(node->drv->check_perm(node, R | W, R, NULL));
    node->drv->abort_perm(node);
    assert_int_equal(fcntl(s->fd, F_GETFL) & O_ACCMODE, O_RDONLY);
    assert_locked(path, "100");
    fd = other_fd(path, 201);
    assert_refused(port, path, R | W, R, "\"write\"");
    close(fd);
    assert_true(port_co_set_perm(port, R | W, R, NULL));
    port->writable = true;
    assert_int_equal(fcntl(s->fd, F_GETFL) & O_ACCMODE, O_RDWR);
    assert_locked(path, "100 101 201 202 203");
    assert_int_equal(port_co_pwrite(port, 0, 1, &byte, 0), 0);
    assert_true(port_co_set_perm(port, R, PERM_ALL, NULL));
    assert_locked(path, "100");
    port_co_free(port);
    node_co_unref(node);
}

/* force-share reads what somebody else holds for writing. */
DRIVERS_TEST(force_share)
static void force_share_co_body(void)
{
    g_autofree char *path = make_file("a", 4096, 0);
    Node *one = open_co_node("{'driver':'file','filename':'%s'}", path);
    Node *two = open_co_node("{'driver':'file','filename':'%s','read-only':true,'force-share':true}", path);
    Port *writer = port_co_open(one, R | W, R | U);
    Port *reader = port_co_open(two, R, R);

    assert_locked(path, "100 101 201 203");
    port_co_free(reader);
    port_co_free(writer);
    node_co_unref(one);
    node_co_unref(two);
}

/* A file that may not be written to: with auto-read-only the node becomes read-only, else it is refused. */
DRIVERS_TEST(auto_read_only)
static void auto_read_only_co_body(void)
{
    static const char path[] = "/sys/kernel/uevent_seqnum"; /* refuses writers, even root */
    int fd = open(path, O_RDWR);
    Node *node;

    if (fd >= 0 || errno != EACCES || access(path, R_OK))
        skip();
    refuse_co_open("Could not open '/sys/kernel/uevent_seqnum': Permission denied", "{'driver':'file','filename':'%s'}",
                   path);
    node = open_co_node("{'driver':'file','filename':'%s','auto-read-only':true}", path);
    assert_true(node->flags.read_only);
    node_co_unref(node);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes),     cmocka_unit_test(refusals),    cmocka_unit_test(within_process),
        cmocka_unit_test(reopening), cmocka_unit_test(force_share), cmocka_unit_test(auto_read_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
