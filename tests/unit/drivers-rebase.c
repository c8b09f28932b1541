/*
 * Changes of a qcow2 header, and what a power cut leaves of them: LAW 9.
 *
 * The image lies in memory, in a driver that records writes and flushes. Of what was written since the last flush any
 * sectors may be there after a crash. In every such state the header has to parse. While the backing file's name
 * changes, it has to name the old file or the new one, whole, with its own format or none; while an extension changes,
 * the old or the new one has to be there, and all else as it was.
 */
#include "drivers-image.h"
#include "block/drivers/qcow2/qcow2.h"

enum { SECTOR = 512, DISK_MAX = 2 * MIB };

typedef struct Piece {
    uint64_t offset, bytes; /* within one sector */
    uint8_t data[SECTOR];
} Piece;

static uint8_t disk[DISK_MAX], durable[DISK_MAX];
static uint64_t disk_size;
static GArray *pieces; /* of Piece: not durable yet */
static unsigned states;

/* What the header may say now. */
static struct {
    const char *file, *format;
} before, after;

static void check_names(const uint8_t *image, bool done)
{
    g_autoptr(GError) error = NULL;
    Q2Header h;

    if (!q2_header_parse(&h, image, u64_min(disk_size, 65536), &error))
        fail_msg("%s", error->message);
    bool is_new = g_strcmp0(h.backing_file, after.file) == 0, is_old = g_strcmp0(h.backing_file, before.file) == 0;
    if (!is_new && (!is_old || done))
        fail_msg("backing file '%s', neither '%s' nor '%s'", h.backing_file, before.file, after.file);
    if (h.backing_file && !(is_new && g_strcmp0(h.backing_format, after.format) == 0) &&
        !(is_old && g_strcmp0(h.backing_format, before.format) == 0) && (h.backing_format || done))
        fail_msg("'%s' has format '%s'", h.backing_file, h.backing_format);
    q2_header_free(&h);
    states++;
}

static void (*check_header)(const uint8_t *image, bool done);

/* All states between the last flush and now; where they are too many, some. */
static void check_states(void)
{
    static uint8_t state[DISK_MAX];
    bool all = pieces->len <= 10;
    unsigned n = all ? 1u << pieces->len : 1000;

    for (unsigned i = 0; i < n; i++) {
        memcpy(state, durable, disk_size);
        for (guint k = 0; k < pieces->len; k++) {
            const Piece *p = &g_array_index(pieces, Piece, k);
            if (all ? i >> k & 1 : g_random_boolean())
                memcpy(state + p->offset, p->data, p->bytes);
        }
        check_header(state, false);
    }
}

static int64_t mem_co_getlength(Node *node)
{
    return (int64_t)disk_size;
}

static bool mem_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    return true;
}

static int mem_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                         ReqFlags flags)
{
    iov_from_buf(vec->iov, vec->n, vec_offset, disk + offset, bytes);
    return 0;
}

static int mem_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    assert_true(offset + bytes <= disk_size);
    iov_to_buf(vec->iov, vec->n, vec_offset, disk + offset, bytes);
    while (bytes) {
        Piece p = {.offset = offset, .bytes = u64_min(bytes, SECTOR - offset % SECTOR)};
        memcpy(p.data, disk + offset, p.bytes);
        g_array_append_val(pieces, p);
        offset += p.bytes;
        bytes -= p.bytes;
    }
    return 0;
}

static int mem_co_flush_to_disk(Node *node)
{
    check_states();
    g_array_set_size(pieces, 0);
    memcpy(durable, disk, disk_size);
    return 0;
}

/* Takes the name of a driver that the schema knows. */
static const Driver mem_driver = {
    .name = "null-co",
    .is_protocol = true,
    .co_open = mem_co_open,
    .co_getlength = mem_co_getlength,
    .co_preadv = mem_co_preadv,
    .co_pwritev = mem_co_pwritev,
    .co_flush_to_disk = mem_co_flush_to_disk,
};

extern const Driver driver_file, driver_qcow2, driver_raw;
static const Driver *const list[] = {&mem_driver, &driver_file, &driver_qcow2, &driver_raw, NULL};

typedef struct Case {
    const char *name, *options, *format; /* format: what the header names; NULL: none */
    size_t unknown;                      /* bytes of an extension before that; 0: none */
    size_t gap;                          /* between the end mark and the name */
    size_t features;                     /* bytes of a table of feature names, 0: none */
} Case;

static const Case *cfg;
static bool extensions; /* are to be changed, not names */

/* Lays the header's extensions out anew, with "old" as the backing file. */
static void lay_out(void)
{
    size_t at = load_be32(disk + 4) > 2 ? load_be32(disk + 100) : Q2_V2_HEADER;

    memset(disk + at, 0, (1u << load_be32(disk + 20)) - at);
    if (cfg->unknown) {
        store_be32(disk + at, 0x12345678);
        store_be32(disk + at + 4, (uint32_t)cfg->unknown);
        memset(disk + at + 8, 'U', cfg->unknown);
        at += 8 + align_up(cfg->unknown, 8);
    }
    if (cfg->format) {
        store_be32(disk + at, Q2_EXT_BACKING_FORMAT);
        store_be32(disk + at + 4, (uint32_t)strlen(cfg->format));
        memcpy(disk + at + 8, cfg->format, strlen(cfg->format));
        at += 8 + align_up(strlen(cfg->format), 8);
    }
    if (cfg->features) {
        store_be32(disk + at, Q2_EXT_FEATURES);
        store_be32(disk + at + 4, (uint32_t)cfg->features);
        memset(disk + at + 8, 1, cfg->features);
        at += 8 + cfg->features;
    }
    at += 8 + cfg->gap;
    memcpy(disk + at, "old", 3);
    store_be64(disk + 8, at);
    store_be32(disk + 16, 3);
}

static void change_co_names(Node *node)
{
    static const char *const formats[] = {"raw", "qcow2", "a-format-of-its", NULL};
    g_autofree char *old_file = g_strdup("old"), *old_format = g_strdup(cfg->format);
    int room = (int)(1u << load_be32(disk + 20)) / 8;

    for (int i = 0; i < 60; i++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *file = g_strnfill((gsize)g_random_int_range(1, MIN(room, 1000)), (char)('a' + i % 26));
        const char *format = formats[g_random_int_range(0, G_N_ELEMENTS(formats))];
        bool none = i % 7 == 5;
        before.file = old_file;
        before.format = old_format;
        after.file = none ? NULL : file;
        after.format = none ? NULL : format;
        if (!node->drv->co_change_backing(node, after.file, after.format, &error)) {
            /* A small cluster may be full one day. */
            assert_true(room <= 512 && strstr(error->message, "do not fit"));
            break;
        }
        assert_int_equal(pieces->len, 0);
        check_header(disk, true);
        g_free(old_file);
        old_file = g_strdup(after.file);
        if (!none) {
            g_free(old_format);
            old_format = g_strdup(after.format);
        }
    }
    before.file = old_file;
    before.format = old_format;
    after.file = NULL; /* for qemu-img, which is to judge the rest */
    assert_true(node->drv->co_change_backing(node, NULL, NULL, NULL));
}

/* ---- extensions ------------------------------------------------------------------------------------------------- */

enum { EXT_A = 0x41414141, EXT_B = 0x42424242, EXT__N = 2 };

/* What the two extensions that the test changes may hold: NULL for none. */
static GBytes *ext_before[EXT__N], *ext_after[EXT__N];

static bool same(GBytes *want, const uint8_t *got, size_t len)
{
    return want && got && g_bytes_get_size(want) == len && memcmp(g_bytes_get_data(want, NULL), got, len) == 0;
}

/* The last extension of the type, as all readers have it; NULL: none. */
static const uint8_t *find_extension(const uint8_t *image, uint32_t type, size_t *ret_len)
{
    size_t at = load_be32(image + 4) > 2 ? load_be32(image + 100) : Q2_V2_HEADER;
    const uint8_t *found = NULL;

    for (; load_be32(image + at); at += 8 + align_up(load_be32(image + at + 4), 8)) {
        assert_true(at + 8 + load_be32(image + at + 4) + 8 <= 1u << load_be32(image + 20));
        if (load_be32(image + at) != type)
            continue;
        found = image + at + 8;
        *ret_len = load_be32(image + at + 4);
    }
    return found;
}

static void check_extensions(const uint8_t *image, bool done)
{
    check_names(image, true);
    for (int i = 0; i < EXT__N; i++) {
        size_t len = 0;
        const uint8_t *got = find_extension(image, i ? EXT_B : EXT_A, &len);
        bool is_after = got ? same(ext_after[i], got, len) : !ext_after[i];
        bool is_before = got ? same(ext_before[i], got, len) : !ext_before[i];
        if (!is_after && (done || !is_before))
            fail_msg("extension %d is neither the old nor the new one (%zu bytes)", i, len);
    }
}

static void change_co_extensions(Node *node)
{
    int room = (int)(1u << load_be32(disk + 20)) / 6, done = 0, refused = 0;

    before = after;
    for (int n = 0; n < 120; n++) {
        int i = g_random_int_range(0, EXT__N);
        uint32_t type = i ? EXT_B : EXT_A;
        /* Mostly the length that it has. */
        gsize len = ext_before[i] && n % 3 ? g_bytes_get_size(ext_before[i])
                                           : (gsize)g_random_int_range(1, MIN(room, n % 5 ? 60 : 1000));
        g_autofree char *data = g_strnfill(len, (char)('a' + n % 26));
        g_autoptr(GError) error = NULL;
        bool ok;
        ext_after[i] = n % 11 == 10 ? NULL : g_bytes_new(data, len);
        ok = ext_after[i] ? q2_ext_co_set(q2_of(node), type, data, (uint32_t)len, &error)
                          : q2_ext_co_remove(q2_of(node), type, &error);
        if (!ok) {
            assert_true(room <= 700 && strstr(error->message, "has no room"));
            g_bytes_unref(ext_after[i]);
            ext_after[i] = ext_before[i];
            refused++;
        } else if (ext_before[i]) {
            g_bytes_unref(ext_before[i]);
        }
        done += ok;
        assert_int_equal(pieces->len, 0);
        ext_before[i] = ext_after[i];
        check_extensions(disk, true);
    }
    assert_true(done > 20 && (refused == 0 || room <= 700));
    for (int i = 0; i < EXT__N; i++) {
        ext_after[i] = NULL;
        assert_true(q2_ext_co_remove(q2_of(node), i ? EXT_B : EXT_A, NULL));
        g_clear_pointer(&ext_before[i], g_bytes_unref);
    }
    after.file = NULL; /* for qemu-img, which is to judge the rest */
    check_header = check_names;
    assert_true(node->drv->co_change_backing(node, NULL, NULL, NULL));
}

static void header_co_body(void)
{
    g_autofree char *path = in_folder("image"), *data = NULL;
    gsize len;

    driver_set_list(list);
    shell_must(1, "qemu-img create -q -f qcow2 %s image 64k", cfg->options);
    assert_true(g_file_get_contents(path, &data, &len, NULL));
    disk_size = align_up(len, SECTOR);
    assert_true(disk_size <= DISK_MAX);
    memset(disk, 0, sizeof(disk));
    memcpy(disk, data, len);
    lay_out();
    memcpy(durable, disk, disk_size);
    pieces = g_array_new(FALSE, FALSE, sizeof(Piece));
    before.file = after.file = "old";
    before.format = after.format = cfg->format;
    Node *node = must_co_open("{'driver':'qcow2','node-name':'q','file':{'driver':'null-co'},'backing':null}");
    Port *port = must_co_port(node, true);
    states = 0;
    check_header = extensions ? check_extensions : check_names;
    if (extensions)
        change_co_extensions(node);
    else
        change_co_names(node);
    assert_true(states > (cfg->features ? 5 : 50)); /* with little room for names */
    port_co_free(port);
    node_co_unref(node);
    g_array_free(pieces, TRUE);
    /* What else is in the header is as it was. */
    assert_true(g_file_set_contents(path, (const char *)disk, (gssize)disk_size, NULL));
    shell_must(1, "qemu-img check -f qcow2 image");
    if (cfg->unknown)
        shell_must(1, "test $(head -c 65536 image | tr -dc U | wc -c) -eq %zu", cfg->unknown);
}

static const Case cases[] = {
    {"as qemu-img has it", "", "qcow2", 0, 0, 0},
    {"no format", "", NULL, 0, 0, 0},
    {"no format, others before", "", NULL, 345, 0, 0},
    {"long format", "", "a-format-of-its", 0, 0, 0},
    {"format across sectors", "", "raw", 512 - 112 - 8 - 8, 0, 0},
    {"format behind the first sector", "", "raw", 700, 0, 0},
    {"name far behind", "", "qcow2", 0, 5000, 0},
    {"version 2", "-o compat=0.10", "raw", 100, 0, 0},
    {"clusters of 512", "-o cluster_size=512", "raw", 0, 0, 0},
    {"clusters of 512, no format", "-o cluster_size=512", NULL, 0, 0, 0},
    {"clusters of 512, names of features", "-o cluster_size=512", "qcow2", 0, 0, 240},
    {"clusters of 4k, name at the end", "-o cluster_size=4k", "qcow2", 0, 3900, 0},
};

static void rebase_test(void **which)
{
    cfg = *which;
    extensions = false;
    run_in_coroutine(header_co_body);
}

static void extensions_test(void **which)
{
    cfg = *which;
    extensions = true;
    run_in_coroutine(header_co_body);
}

int main(void)
{
    struct CMUnitTest tests[2 * G_N_ELEMENTS(cases)];
    static char names[G_N_ELEMENTS(cases)][80];

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        tests[2 * i] =
            (struct CMUnitTest){.name = cases[i].name, .test_func = rebase_test, .initial_state = (void *)&cases[i]};
        tests[2 * i + 1] = tests[2 * i];
        g_snprintf(names[i], sizeof(names[i]), "extensions: %s", cases[i].name);
        tests[2 * i + 1].name = names[i];
        tests[2 * i + 1].test_func = extensions_test;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
