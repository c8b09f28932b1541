/*
 * qed, case by case: what is refused and with which words, backing files, the flag that asks for a check and the repair
 * it brings about, damage, zeroes, resizing, creation. The random tests are in drivers-image-model.c and
 * tests/fault/replay.
 */
#include "drivers-image.h"
#include "block/graph/reopen.h"

#define GIB (UINT64_C(1) << 30)
enum { CLUSTER = 65536, FEATURES = 16, AUTOCLEAR = 32, L1 = CLUSTER };

/* Writes a little-endian number of @size bytes into the file "image". */
static void poke(uint64_t offset, unsigned size, uint64_t value)
{
    g_autofree char *path = in_folder("image");
    uint8_t raw[8];
    FILE *f = fopen(path, "r+b");

    assert_non_null(f);
    store_le64(raw, value);
    assert_int_equal(fseek(f, (long)offset, SEEK_SET), 0);
    assert_int_equal(fwrite(raw, size, 1, f), 1);
    assert_int_equal(fclose(f), 0);
}

static uint64_t peek(uint64_t offset)
{
    g_autofree char *path = in_folder("image");
    uint8_t raw[8];
    FILE *f = fopen(path, "rb");

    assert_non_null(f);
    assert_int_equal(fseek(f, (long)offset, SEEK_SET), 0);
    assert_int_equal(fread(raw, 8, 1, f), 1);
    fclose(f);
    return load_le64(raw);
}

static uint64_t file_size(const char *name)
{
    g_autofree char *path = in_folder(name);
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

static Node *image_co_open(const char *more)
{
    return must_co_open("{'driver':'qed','node-name':'q','discard':'unmap',"
                        "'file':{'driver':'file','filename':'%s/image'}%s}",
                        folder, more);
}

static void image_co_refuse(const char *text, const char *more)
{
    must_co_refuse(text, "{'driver':'qed','node-name':'q','file':{'driver':'file','filename':'%s/image'}%s}", folder,
                   more);
}

static uint8_t byte_co_at(Port *port, uint64_t offset)
{
    uint8_t byte;

    assert_int_equal(port_co_pread(port, offset, 1, &byte, 0), 0);
    return byte;
}

static void close_co_image(Node *node, Port *port)
{
    port_co_free(port);
    node_co_unref(node);
}

/* A fresh image by qemu-img, one field changed, and the error that has to come. */
static void field_co_refuse(const char *create, uint64_t offset, unsigned size, uint64_t value, const char *text)
{
    shell_must(1, "rm -f image; qemu-img create -f qed %s image 1M", create);
    poke(offset, size, value);
    image_co_refuse(text, ",'read-only':true");
    image_co_refuse(text, "");
}

static void headers_co_body(void)
{
    field_co_refuse("", 0, 4, 0x12345678, "Image not in QED format");
    field_co_refuse("", 4, 4, 0, "cluster_size is 0 (0x0), must be a power of two");
    field_co_refuse("", 4, 4, 2048, "cluster_size is 2048");
    field_co_refuse("", 4, 4, 65537, "cluster_size is 65537");
    field_co_refuse("", 4, 4, 1 << 27, "cluster_size is 134217728");
    field_co_refuse("", 8, 4, 0, "table_size is 0");
    field_co_refuse("", 8, 4, 3, "table_size is 3");
    field_co_refuse("", 8, 4, 32, "table_size is 32");
    field_co_refuse("", 12, 4, 0, "header_size is 0");
    field_co_refuse("", 12, 4, 2, "l1_table_offset is 65536 (0x10000), within the header");
    field_co_refuse("", 12, 4, UINT32_MAX, "header_size is 4294967295");
    field_co_refuse("", FEATURES, 8, 8, "Unsupported QED features: 8");
    field_co_refuse("", FEATURES, 8, UINT64_C(1) << 63, "Unsupported QED features: 8000000000000000");
    field_co_refuse("", 40, 8, 0, "l1_table_offset is 0");
    field_co_refuse("", 40, 8, 65537, "l1_table_offset is 65537 (0x10001), not a multiple of the cluster size");
    field_co_refuse("", 40, 8, 131072, "the table ends behind the end of the image");
    field_co_refuse("", 40, 8, UINT64_MAX - 65535, "the table ends behind the end of the image");
    field_co_refuse("", 48, 8, 1000, "image_size is 1000 (0x3e8), not a multiple of 512");
    field_co_refuse("", 48, 8, UINT64_MAX - 511, "more than the tables can describe");
    field_co_refuse("-o cluster_size=4k", 48, 8, (UINT64_C(1) << 34) + 512, "more than the tables can describe");
    field_co_refuse("-u -b x -F raw", 56, 4, 63, "backing_filename_offset is 63");
    field_co_refuse("-u -b x -F raw", 56, 4, 65536, "the name ends behind the header");
    field_co_refuse("-u -b x -F raw", 60, 4, 1024, "backing_filename_size is 1024");
    for (int cut = 0; cut < 5 * CLUSTER; cut += cut < 64 ? 13 : 60000) {
        shell_must(1, "rm -f image; qemu-img create -f qed image 1M && truncate -s %d image", cut);
        image_co_refuse(cut < 64 ? "Image not in QED format" : "behind the end of the image", "");
    }
    assert_true(g_queue_is_empty(&graph->nodes));
}
CO_TEST(headers)

/* The smallest tables, which qemu-img makes and does not open, and the largest disk with them. */
static void geometry_co_body(void)
{
    Node *node;
    Port *port;

    shell_must(1, "qemu-img create -f qed -o cluster_size=4k,table_size=1 image 1G");
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(port_co_pwrite(port, GIB - 1, 1, "x", 0), 0);
    assert_int_equal(port_co_pwrite(port, 5, 1, "y", 0), 0);
    close_co_image(node, port);
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(byte_co_at(port, GIB - 1), 'x');
    assert_int_equal(byte_co_at(port, 5), 'y');
    assert_int_equal(byte_co_at(port, 6), 0);
    close_co_image(node, port);
    assert_int_equal(file_size("image"), 6 * 4096);
    /* The largest; qemu-img does not make those. */
    shell_must(1, "rm image; truncate -s 1088M image");
    poke(0, 4, 0x444551);
    poke(4, 4, 64 * MIB);
    poke(8, 4, 16);
    poke(12, 4, 1);
    poke(40, 8, 64 * MIB);
    poke(48, 8, INT64_MAX - 511);
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(port_co_pwrite(port, INT64_MAX - 600, 1, "x", 0), 0);
    assert_int_equal(byte_co_at(port, INT64_MAX - 600), 'x');
    assert_int_equal(byte_co_at(port, INT64_MAX - 601), 0);
    assert_int_equal(byte_co_at(port, 0), 0);
    close_co_image(node, port);
    assert_int_equal(file_size("image"), (1 + 16 + 16 + 1) * 64 * (uint64_t)MIB);
    node = image_co_open(",'read-only':true");
    port = must_co_port(node, false);
    assert_int_equal(byte_co_at(port, INT64_MAX - 600), 'x');
    close_co_image(node, port);
}
CO_TEST(geometry)

/* Every size with every other that qemu-img opens: what one of us writes, the other reads, and adds to. */
static void pairs_co_body(void)
{
    static const unsigned clusters[] = {4, 8, 32, 128, 512, 2048}, tables[] = {2, 4, 8, 16};
    g_autofree uint8_t *buf = g_malloc(300 * KIB);

    for (unsigned i = 0; i < G_N_ELEMENTS(clusters) * G_N_ELEMENTS(tables); i++) {
        unsigned cluster = clusters[i % G_N_ELEMENTS(clusters)], table = tables[i / G_N_ELEMENTS(clusters)];
        if (cluster == 2048 && table > 4)
            continue;
        shell_must(1,
                   "rm -f image; qemu-img create -f qed -o cluster_size=%uk,table_size=%u image 60M &&"
                   "qemu-io -f qed -c 'write -P 1 1000000 300000' -c 'write -z 8M 4M' image",
                   cluster, table);
        Node *node = image_co_open("");
        Port *port = must_co_port(node, true);
        assert_int_equal(byte_co_at(port, 999999), 0);
        assert_int_equal(byte_co_at(port, 1299999), 1);
        memset(buf, 2, 300 * KIB);
        assert_int_equal(port_co_pwrite(port, 1200000, 300 * KIB, buf, 0), 0);
        assert_int_equal(port_co_pwrite(port, 9 * MIB, 5000, buf, 0), 0);
        assert_int_equal(port_co_pwrite(port, 60 * MIB - 5000, 5000, buf, 0), 0);
        close_co_image(node, port);
        shell_must(1, "qemu-img check -f qed image && qemu-io -f qed -c 'read -P 1 1000000 200000' "
                      "-c 'read -P 2 1200000 300k' -c 'read -P 0 1507200 6M' -c 'read -P 2 9M 5000' "
                      "-c 'read -P 0 10M 40M' -c 'read -P 2 62909560 5000' -c 'write -P 3 30M 1M' image >out"
                      " && ! grep -q failed out");
        node = image_co_open("");
        port = must_co_port(node, false);
        assert_int_equal(byte_co_at(port, 30 * MIB), 3);
        assert_int_equal(byte_co_at(port, 31 * MIB - 1), 3);
        assert_int_equal(byte_co_at(port, 31 * MIB), 0);
        close_co_image(node, port);
    }
}
CO_TEST(pairs)

static void backing_co_body(void)
{
    Node *node;
    Port *port;

    shell_must(1, "printf 'QFI\\373aaaa' >base && truncate -s 1M base");
    /* The flag says raw, so a file that looks like qcow2 is none. */
    shell_must(1, "qemu-img create -f qed -b base -F raw image 2M");
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_string_equal(node->backing->node->drv->name, "raw");
    assert_int_equal(byte_co_at(port, 4), 'a');
    assert_int_equal(port_co_pwrite(port, 100, 1, "x", 0), 0);
    close_co_image(node, port);
    shell_must(1, "qemu-img check -f qed image && "
                  "qemu-io -f qed -r -c 'read -P 0x61 4 4' -c 'read -P 0x78 100 1' -c 'read -P 0 101 1900k' image >out"
                  " && ! grep -q failed out");
    /* Without the flag it is probed. */
    shell_must(1, "rm image; qemu-img create -f qcow2 other 1M && qemu-io -f qcow2 -c 'write -P 8 0 64k' other &&"
                  "qemu-img create -f qed -b other -F qcow2 image 2M");
    node = image_co_open("");
    port = must_co_port(node, false);
    assert_string_equal(node->backing->node->drv->name, "qcow2");
    assert_int_equal(byte_co_at(port, 4), 8);
    close_co_image(node, port);
    node = image_co_open(",'backing':null");
    port = must_co_port(node, false);
    assert_int_equal(byte_co_at(port, 4), 0);
    close_co_image(node, port);
    g_autofree char *definition =
        g_strdup_printf(",'backing':{'driver':'raw','file':{'driver':'file','filename':'%s/base'}}", folder);
    node = image_co_open(definition);
    port = must_co_port(node, false);
    assert_int_equal(byte_co_at(port, 4), 'a');
    close_co_image(node, port);
    image_co_refuse("nobody", ",'backing':'nobody'");
    shell_must(1, "rm image; qemu-img create -f qed -u -b gone -F raw image 2M");
    image_co_refuse("gone", "");
}
CO_TEST(backing)

/* The flag is on from before the first new cluster until the image is closed. */
static void flag_co_body(void)
{
    g_autofree uint8_t *buf = g_malloc0(CLUSTER);
    Node *node;
    Port *port;

    shell_must(1, "qemu-img create -f qed image 4M");
    poke(AUTOCLEAR, 8, 5);
    poke(AUTOCLEAR - 8, 8, 6); /* compatible ones stay */
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(byte_co_at(port, 0), 0);
    assert_int_equal(port_co_flush(port), 0);
    assert_int_equal(peek(FEATURES), 0);
    assert_int_equal(peek(AUTOCLEAR), 5);
    assert_int_equal(port_co_pwrite(port, 0, CLUSTER, buf, 0), 0);
    assert_int_equal(peek(FEATURES), 2);
    assert_int_equal(peek(AUTOCLEAR), 0);
    assert_int_equal(port_co_flush(port), 0);
    assert_int_equal(peek(FEATURES), 2);
    close_co_image(node, port);
    assert_int_equal(peek(FEATURES), 0);
    assert_int_equal(peek(AUTOCLEAR - 8), 6);
    assert_int_equal(file_size("image"), (1 + 4 + 4 + 1) * CLUSTER);
    shell_must(1, "qemu-img check -f qed image");
    /* What is there already is written without it. */
    poke(AUTOCLEAR, 8, 5);
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(port_co_pwrite(port, 7, 100, buf, 0), 0);
    assert_int_equal(peek(FEATURES), 0);
    assert_int_equal(peek(AUTOCLEAR), 0);
    assert_int_equal(port_co_pwrite(port, CLUSTER, 1, "x", 0), 0);
    assert_int_equal(peek(FEATURES), 2);
    /* A node that stops being writable leaves a closed image. */
    port_co_free(port);
    g_autoptr(GError) error = NULL;
    assert_true(node_co_set_read_only(node, true, &error));
    assert_int_equal(peek(FEATURES), 0);
    assert_int_equal(file_size("image"), (1 + 4 + 4 + 2) * CLUSTER);
    assert_true(node_co_set_read_only(node, false, &error));
    port = must_co_port(node, true);
    assert_int_equal(port_co_pwrite(port, 3 * CLUSTER, 1, "x", 0), 0);
    assert_int_equal(byte_co_at(port, CLUSTER), 'x');
    close_co_image(node, port);
    assert_int_equal(peek(FEATURES), 0);
    shell_must(1, "qemu-img check -f qed image");
}
CO_TEST(flag)

/* Three clusters of ones at 0, 64k and 128k, on a backing file of twos; the place of the L2 table. */
static uint64_t broken_start(void)
{
    shell_must(1, "rm -f image base; qemu-img create -f raw base 4M && qemu-io -f raw -c 'write -P 2 0 4M' base &&"
                  "qemu-img create -f qed -b base -F raw image 4M && qemu-io -f qed -c 'write -P 1 0 192k' image");
    return peek(L1);
}

static void repair_co_body(void)
{
    uint64_t l2 = broken_start(), first = peek(l2), size = file_size("image");
    g_autoptr(GError) error = NULL;
    Node *node;
    Port *port;

    /* An entry behind the end, one that is not aligned, one into the L1 table, an L1 entry to nowhere, a longer file.
     */
    poke(l2 + 8, 8, UINT64_C(1) << 40);
    poke(l2 + 16, 8, first + 512);
    poke(l2 + 24, 8, L1 + CLUSTER);
    poke(l2 + 32, 8, 1);
    poke(L1 + 8, 8, size + 3 * MIB);
    poke(FEATURES, 8, 1 | 2 | 4);
    shell_must(1, "truncate -s +3M image");
    /* Who only reads changes nothing, and what makes no sense fails. */
    node = image_co_open(",'read-only':true");
    port = must_co_port(node, false);
    assert_int_equal(byte_co_at(port, 0), 1);
    assert_int_equal(port_co_pread(port, CLUSTER, 1, &size, 0), -EIO);
    assert_int_equal(peek(FEATURES), 1 | 2 | 4);
    assert_int_equal(peek(l2 + 8), UINT64_C(1) << 40);
    /* What it has in memory is no longer true when the image has been repaired. */
    port_co_free(port);
    if (!node_co_set_read_only(node, false, &error))
        fail_msg("%s", error->message);
    port = must_co_port(node, true);
    assert_int_equal(peek(FEATURES), 1 | 4);
    assert_int_equal(byte_co_at(port, 0), 1);
    for (unsigned i = 1; i < 4; i++)
        assert_int_equal(byte_co_at(port, i * CLUSTER), 2);
    assert_int_equal(byte_co_at(port, 4 * CLUSTER), 0);
    close_co_image(node, port);
    assert_int_equal(peek(l2 + 8), 0);
    assert_int_equal(peek(L1 + 8), 0);
    assert_int_equal(file_size("image"), MAX(first + CLUSTER, l2 + 4 * CLUSTER));
    shell_must(1 << 3, "qemu-img check -f qed image"); /* clusters in the middle are lost */
    /* The same on opening. */
    l2 = broken_start();
    poke(l2 + 8, 8, UINT64_C(1) << 40);
    poke(FEATURES, 8, 1 | 2 | 4);
    node = image_co_open("");
    assert_int_equal(peek(FEATURES), 1 | 4);
    node_co_unref(node);
    shell_must(1 << 3, "qemu-img check -f qed image");
}
CO_TEST(repair)

/* Somebody else's crash. */
static void killed_co_body(void)
{
    Node *node;
    Port *port;

    shell_must(1, "qemu-img create -f qed image 4M");
    shell_must(
        1, "qemu-io -f qed -c 'write -P 5 1M 100k' -c 'flush' -c 'write -P 6 2M 64k' -c 'sigraise 9' image || true");
    assert_int_equal(peek(FEATURES), 2);
    node = image_co_open("");
    assert_int_equal(peek(FEATURES), 0);
    port = must_co_port(node, true);
    assert_int_equal(byte_co_at(port, MIB), 5);
    assert_int_equal(byte_co_at(port, MIB + 100 * KIB - 1), 5);
    assert_int_equal(byte_co_at(port, MIB + 100 * KIB), 0);
    close_co_image(node, port);
    shell_must(1, "qemu-img check -f qed image");
}
CO_TEST(killed)

/* What is in use twice cannot be repaired. */
static void twice_co_body(void)
{
    uint64_t l2 = broken_start(), first = peek(l2);
    struct {
        uint64_t offset, value;
    } bad[] = {{l2 + 8, first}, {l2 + 64, l2}, {L1 + 8, l2}, {L1 + 8, first}};

    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        l2 = broken_start();
        poke(FEATURES, 8, 1 | 2 | 4);
        poke(bad[i].offset, 8, bad[i].value);
        image_co_refuse("is in use twice; cannot be opened read/write", "");
        assert_int_equal(peek(FEATURES), 1 | 2 | 4);
        node_co_unref(image_co_open(",'read-only':true"));
    }
}
CO_TEST(twice)

/* Damage in an image that was closed: what lies there fails, the rest works. */
static void damage_co_body(void)
{
    g_autofree uint8_t *three = g_malloc0(3 * CLUSTER);
    uint64_t l2 = broken_start();
    BlockStatus status;
    Node *node;
    Port *port;

    poke(l2 + 8, 8, UINT64_MAX - 65535);
    poke(l2 + 40, 8, 2);
    poke(L1 + 8, 8, 3);
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(byte_co_at(port, 0), 1);
    assert_int_equal(byte_co_at(port, 2 * CLUSTER), 1);
    assert_int_equal(port_co_pread(port, CLUSTER, 1, &status, 0), -EIO);
    assert_int_equal(port_co_pwrite(port, CLUSTER + 5, 1, "x", 0), -EIO);
    assert_int_equal(port_co_pwrite_zeroes(port, CLUSTER, CLUSTER, 0), -EIO);
    assert_int_equal(port_co_pwrite(port, 5 * CLUSTER, 1, "x", 0), -EIO);
    assert_int_equal(node_co_block_status(node, true, CLUSTER, CLUSTER, &status), -EIO);
    assert_int_equal(node_co_block_status(node, true, 0, 2 * CLUSTER, &status), 0);
    assert_int_equal(status.bytes, CLUSTER);
    /* New clusters go where they do not overwrite what is wrong. */
    assert_int_equal(port_co_pwrite(port, 3 * CLUSTER, 3 * CLUSTER, three, 0), -EIO);
    assert_int_equal(port_co_pwrite(port, 3 * CLUSTER, 1, "x", 0), 0);
    close_co_image(node, port);
    assert_int_equal(peek(l2 + 8), UINT64_MAX - 65535);
    assert_int_equal(peek(l2 + 40), 2);
    assert_int_equal(peek(L1 + 8), 3);
}
CO_TEST(damage)

static void zeroes_co_body(void)
{
    uint64_t l2 = broken_start(), size = file_size("image");
    BlockStatus status;
    Node *node = image_co_open("");
    Port *port = must_co_port(node, true);

    /* Data stays where it is and becomes zero; what the backing file shows is covered; nothing needs new clusters. */
    assert_int_equal(port_co_pwrite_zeroes(port, CLUSTER, 4 * CLUSTER, REQ_MAY_UNMAP), 0);
    assert_int_equal(byte_co_at(port, CLUSTER - 1), 1);
    for (unsigned i = 1; i < 5; i++)
        assert_int_equal(byte_co_at(port, i * CLUSTER + 5), 0);
    assert_int_equal(byte_co_at(port, 5 * CLUSTER), 2);
    assert_int_equal(port_co_pwrite_zeroes(port, 10 * CLUSTER, 10 * CLUSTER, REQ_NO_FALLBACK), 0);
    assert_int_equal(port_co_pwrite_zeroes(port, 30 * CLUSTER + 1, 10, REQ_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(node_co_block_status(node, true, 3 * CLUSTER, 50 * CLUSTER, &status), 0);
    assert_int_equal(status.flags, STATUS_ZERO | STATUS_ALLOCATED);
    assert_int_equal(status.bytes, 2 * CLUSTER);
    assert_int_equal(port_co_flush(port), 0);
    assert_int_equal(file_size("image"), size);
    assert_int_equal(peek(l2 + 3 * 8), 1);
    assert_int_equal(peek(l2 + 10 * 8), 1);
    /* A zero cluster that is written to gets data, with zeroes around. */
    assert_int_equal(port_co_pwrite(port, 3 * CLUSTER + 100, 1, "x", 0), 0);
    assert_int_equal(byte_co_at(port, 3 * CLUSTER + 99), 0);
    assert_int_equal(byte_co_at(port, 3 * CLUSTER + 100), 'x');
    close_co_image(node, port);
    shell_must(1, "qemu-img check -f qed image && qemu-io -f qed -r -c 'read -P 1 0 64k' -c 'read -P 0 64k 131172' "
                  "-c 'read -P 2 320k 320k' -c 'read -P 0 640k 640k' -c 'read -P 2 1280k 1M' image >out"
                  " && ! grep -q failed out");
    /* Without a backing file there is nothing to do. */
    shell_must(1, "rm image; qemu-img create -f qed image 1T");
    size = file_size("image");
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(port_co_pwrite_zeroes(port, 0, port_size(port), REQ_NO_FALLBACK), 0);
    assert_int_equal(node_co_block_status(node, true, 0, port_size(port), &status), 0);
    assert_int_equal(status.bytes, UINT64_C(1) << 40);
    close_co_image(node, port);
    assert_int_equal(file_size("image"), size);
}
CO_TEST(zeroes)

static bool resize_co_to(Port *port, uint64_t size, PreallocMode prealloc, const char *text)
{
    g_autoptr(GError) error = NULL;

    if (port_co_truncate(port, size, true, prealloc, 0, &error))
        return text == NULL;
    if (!text || !strstr(error->message, text))
        fail_msg("resize to %" G_GUINT64_FORMAT ": %s", size, error->message);
    return true;
}

static void resize_co_body(void)
{
    Node *node;
    Port *port;

    shell_must(1, "qemu-img create -f qed -o cluster_size=4k,table_size=2 image 100k &&"
                  "qemu-io -f qed -c 'write -P 1 0 100k' image");
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_true(resize_co_to(port, 50 * KIB, PREALLOC_MODE_OFF, "Shrinking images is currently not supported"));
    assert_true(resize_co_to(port, 100 * KIB + 1, PREALLOC_MODE_OFF, "must be a multiple of 512"));
    assert_true(resize_co_to(port, (UINT64_C(1) << 32) + 512, PREALLOC_MODE_OFF, "more than the image's tables"));
    assert_true(resize_co_to(port, MIB, PREALLOC_MODE_FULL, "Unsupported preallocation mode 'full'"));
    assert_int_equal(port_size(port), 100 * KIB);
    assert_true(resize_co_to(port, 101 * KIB, PREALLOC_MODE_OFF, NULL));
    assert_int_equal(port_co_pwrite(port, 100 * KIB, 3, "abc", 0), 0);
    assert_true(resize_co_to(port, UINT64_C(1) << 32, PREALLOC_MODE_OFF, NULL));
    assert_int_equal(byte_co_at(port, 100 * KIB), 'a');
    assert_int_equal(byte_co_at(port, 101 * KIB), 0);
    assert_int_equal(port_co_pwrite(port, (UINT64_C(1) << 32) - 1, 1, "z", 0), 0);
    close_co_image(node, port);
    shell_must(1, "qemu-img check -f qed image && qemu-io -f qed -r -c 'read -P 1 0 100k' -c 'read -P 0 101k 1M' "
                  "-c 'read -P 0x7a 4294967295 1' image >out && ! grep -q failed out");
    /* What a cluster holds behind the old end must not come to light. */
    shell_must(1, "rm image; qemu-img create -f qed image 100k && qemu-io -f qed -c 'write -P 1 0 100k' image");
    g_autofree uint8_t *junk = g_malloc(28 * KIB);
    g_autofree char *path = in_folder("image");
    memset(junk, 9, 28 * KIB);
    FILE *f = fopen(path, "r+b");
    assert_int_equal(fseek(f, (long)(peek(peek(L1) + 8) + 36 * KIB), SEEK_SET), 0);
    assert_int_equal(fwrite(junk, 28 * KIB, 1, f), 1);
    assert_int_equal(fclose(f), 0);
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_true(resize_co_to(port, 110 * KIB, PREALLOC_MODE_OFF, NULL));
    assert_true(resize_co_to(port, 200 * KIB, PREALLOC_MODE_OFF, NULL));
    close_co_image(node, port);
    shell_must(1, "qemu-io -f qed -r -c 'read -P 1 0 100k' -c 'read -P 0 100k 100k' image >out"
                  " && ! grep -q failed out && qemu-img check -f qed image");
}
CO_TEST(resize)

static void create_co_refuse(CreateOptions options, const char *text)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = in_folder("new");

    assert_false(image_co_create(graph, path, "qed", &options, &error));
    if (!strstr(error->message, text))
        fail_msg("'%s' does not say '%s'", error->message, text);
}

static void create_co_body(void)
{
    static const uint64_t sizes[] = {4096, 8192, 65536, 1 << 20, 2 << 20};
    g_autofree char *path = in_folder("image");
    g_autofree char *name = g_strnfill(1024, 'x');
    g_autoptr(GError) error = NULL;

    create_co_refuse((CreateOptions){.cluster_size = 2048}, "QED cluster size must be within range");
    create_co_refuse((CreateOptions){.cluster_size = 12288}, "QED cluster size must be within range");
    create_co_refuse((CreateOptions){.cluster_size = 4 << 20}, "QED cluster size must be within range");
    create_co_refuse((CreateOptions){.size = (UINT64_C(1) << 34) + 1, .cluster_size = 4096}, "limit is 17179869184");
    create_co_refuse((CreateOptions){.size = UINT64_MAX}, "too large for file format 'qed'");
    create_co_refuse((CreateOptions){.version = 3}, "'version'");
    create_co_refuse((CreateOptions){.backing_file = name}, "Backing file name too long");
    shell_must(1, "truncate -s 1M base");
    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        CreateOptions o = {
            .size = 3 * MIB + 1, .cluster_size = sizes[i], .backing_file = "base", .backing_format = "raw"};
        shell_must(1, "rm -f image");
        if (!image_co_create(graph, path, "qed", &o, &error))
            fail_msg("%s", error->message);
        assert_int_equal(file_size("image"), 5 * sizes[i]);
        shell_must(
            1,
            "qemu-img check -f qed image && qemu-img info --output=json image >out && grep -q '\"virtual-size\": "
            "3146240' out && grep -q '\"cluster-size\": %d,' out && grep -q '\"backing-filename\": \"base\"' out &&"
            "grep -q '\"backing-filename-format\": \"raw\"' out",
            (int)sizes[i]);
    }
}
CO_TEST(create)

/* A file that cannot grow is full; what is in it can be changed. */
static void full_co_body(void)
{
    Node *node;
    Port *port;

    broken_start();
    node = must_co_open("{'driver':'qed','node-name':'q','file':{'driver':'raw','size':%d,"
                        "'file':{'driver':'file','filename':'%s/image'}}}",
                        (int)file_size("image"), folder);
    port = must_co_port(node, true);
    assert_int_equal(port_co_pwrite(port, 3 * CLUSTER, 1, "x", 0), -ENOSPC);
    assert_int_equal(port_co_pwrite(port, 5, 1, "x", 0), 0);
    assert_int_equal(port_co_flush(port), 0);
    assert_int_equal(byte_co_at(port, 5), 'x');
    assert_int_equal(byte_co_at(port, 3 * CLUSTER), 2);
    close_co_image(node, port);
    shell_must(1, "qemu-img check -f qed image");
}
CO_TEST(full)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers), cmocka_unit_test(geometry), cmocka_unit_test(pairs),  cmocka_unit_test(backing),
        cmocka_unit_test(flag),    cmocka_unit_test(repair),   cmocka_unit_test(killed), cmocka_unit_test(twice),
        cmocka_unit_test(damage),  cmocka_unit_test(zeroes),   cmocka_unit_test(resize), cmocka_unit_test(create),
        cmocka_unit_test(full),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
