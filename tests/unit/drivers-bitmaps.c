/*
 * Persistent bitmaps of qcow2, case by case: what hostile images are refused with, what is protected, what a reader of
 * the directory sees. Life over restarts is in tests/iotests/test_persistent_bitmaps.py, power cuts in
 * tests/fault/replay.
 */
#include "drivers-qcow2.h"
#include "block/drivers/qcow2/bitmaps.h"
#include "block/graph/bitmap.h"

static long ext; /* where the extension's data is in the image */
static long dir; /* the directory */

/* The data of the bitmaps extension: n, reserved, size, offset. */
static long find_ext(void)
{
    long at = 112;

    for (; peek(at) >> 32 != Q2_EXT_BITMAPS; at += 8 + (long)align_up(peek(at) & 0xffffffff, 8))
        assert_true(at < 4096 && peek(at) >> 32);
    return at + 8;
}

/* An image with bitmaps "first" and "other", made by qemu-img. */
static void make(const char *create)
{
    shell_must(1,
               "rm -f image; qemu-img create -f qcow2 %s && qemu-img bitmap --add image first &&"
               "qemu-img bitmap --add --disable image other && truncate -s +64k image",
               create);
    ext = find_ext();
    dir = (long)peek(ext + 16);
}

static void image_co_refuse(const char *text)
{
    must_co_refuse(text, "{'driver':'qcow2','node-name':'q','file':{'driver':'file','filename':'%s/image'}}", folder);
    must_co_refuse(text,
                   "{'driver':'qcow2','node-name':'q','read-only':true,"
                   "'file':{'driver':'file','filename':'%s/image'}}",
                   folder);
}

/* One field is changed, and that error has to come. @at: from the extension's data or from the directory on. */
static void field_co_refuse(long at, unsigned size, uint64_t value, const char *text)
{
    uint64_t old = peek(at) >> (64 - 8 * size);

    poke(at, size, value);
    image_co_refuse(text);
    poke(at, size, old);
}

static void extension_co_body(void)
{
    make("image 1M");
    field_co_refuse(ext - 4, 4, 23, "the bitmaps extension has 23 bytes, not 24");
    field_co_refuse(ext, 4, 0, "nb_bitmaps is 0 (0x0), from 1 to 65535 are allowed");
    field_co_refuse(ext, 4, 65536, "nb_bitmaps is 65536");
    field_co_refuse(ext, 4, 3, "it ends within bitmap 2");
    field_co_refuse(ext, 4, 1, "its 1 bitmaps take 32 bytes, but bitmap_directory_size is 64");
    field_co_refuse(ext + 4, 4, 1, "the reserved field of the bitmaps extension is 1 (0x1), not zero");
    field_co_refuse(ext + 8, 8, 0, "bitmap_directory_size is 0");
    field_co_refuse(ext + 8, 8, 67107841, "bitmap_directory_size is 67107841 (0x3fffc01), from 1 to 67107840");
    field_co_refuse(ext + 8, 8, 16, "it ends within bitmap 0");
    field_co_refuse(ext + 8, 8, 28, "it ends within bitmap 0");
    field_co_refuse(ext + 8, 8, 72, "its 2 bitmaps take 64 bytes, but bitmap_directory_size is 72");
    field_co_refuse(ext + 16, 8, 0, "bitmap_directory_offset is 0 (0x0), which is the header's place");
    field_co_refuse(ext + 16, 8, 0x50200, "bitmap_directory_offset is 328192 (0x50200), not a multiple");
    field_co_refuse(ext + 16, 8, UINT64_C(1) << 56, "bitmap_directory_offset is 72057594037927936");
    field_co_refuse(ext + 16, 8, 1 << 30, "bitmap_directory_offset is 1073741824, behind the end of the image");
    /* Without its bit it is not looked at. */
    poke(ext, 4, 65536);
    poke(88, 8, 0);
    Node *node = image_co_open("");
    assert_true(g_queue_is_empty(&node->bitmaps));
    node_co_unref(node);
}
CO_TEST(extension)

static void directory_co_body(void)
{
    make("image 1M");
    field_co_refuse(dir, 8, 0, "bitmap_table_offset of bitmap 0 is 0");
    field_co_refuse(dir, 8, 0x40100, "bitmap_table_offset of bitmap 0 is 262400 (0x40100), not a multiple");
    field_co_refuse(dir, 8, 1 << 30, "bitmap_table_offset of bitmap 0 is 1073741824 (0x40000000), behind the end");
    field_co_refuse(dir, 8, UINT64_C(0xffffffffffff0000), "behind the end of the image");
    field_co_refuse(dir + 8, 4, 0, "bitmap_table_size of bitmap 0 is 0");
    field_co_refuse(dir + 8, 4, 0x8000001, "bitmap_table_size of bitmap 0 is 134217729");
    field_co_refuse(dir + 8, 4, 8193, "bitmap_table_size of bitmap 0 is 8193 (0x2001), more than 512 MiB of bits");
    field_co_refuse(dir + 12, 4, 4, "flags of bitmap 0 is 4 (0x4), bits above 1 are not supported");
    field_co_refuse(dir + 12, 4, 0x80000002, "flags of bitmap 0 is 2147483650");
    field_co_refuse(dir + 16, 1, 0, "type of bitmap 0 is 0 (0x0), only 1");
    field_co_refuse(dir + 16, 1, 2, "type of bitmap 0 is 2");
    field_co_refuse(dir + 17, 1, 8, "granularity_bits of bitmap 0 is 8 (0x8), from 9 to 31 are allowed");
    field_co_refuse(dir + 17, 1, 32, "granularity_bits of bitmap 0 is 32");
    field_co_refuse(dir + 18, 2, 0, "name_size of bitmap 0 is 0 (0x0), from 1 to 1023 are allowed");
    field_co_refuse(dir + 18, 2, 1024, "it ends within bitmap 0");
    field_co_refuse(dir + 20, 4, 8, "extra_data_size of bitmap 0 is 8 (0x8), bitmap extra data is not supported");
    field_co_refuse(dir + 20, 4, UINT32_MAX, "extra_data_size of bitmap 0 is 4294967295");
    field_co_refuse(dir + 24, 1, 0xff, "the name of bitmap 0 is not UTF-8");
    field_co_refuse(dir + 24, 1, 0, "the name of bitmap 0 is not UTF-8");
    field_co_refuse(dir + 24, 5, UINT64_C(0x6f74686572), "there are two bitmaps with the name 'other'");
    field_co_refuse(dir + 32 + 17, 1, 77, "granularity_bits of bitmap 1 is 77");
    /* A long name, at the limit and above. */
    g_autofree char *name = g_strnfill(1023, 'n');
    shell_must(1,
               "qemu-img bitmap --remove image first && qemu-img bitmap --remove image other &&"
               "qemu-img bitmap --add image %s",
               name);
    dir = (long)peek(find_ext() + 16);
    node_co_unref(image_co_open(""));
    poke(find_ext() + 8, 8, 1048 + 8);
    field_co_refuse(dir + 18, 2, 1024, "name_size of bitmap 0 is 1024 (0x400), from 1 to 1023 are allowed");
}
CO_TEST(directory)

static void tables_co_body(void)
{
    long table;

    make("-o cluster_size=512 image 40M");
    table = (long)peek(dir);
    field_co_refuse(table, 8, 2, "table of bitmap 'first': entry 0 is 0x2, reserved bits are set");
    field_co_refuse(table, 8, UINT64_C(1) << 56, "entry 0 is 0x100000000000000, reserved bits are set");
    field_co_refuse(table, 8, 0x401, "entry 0 is 0x401, bit 0 is set besides an offset");
    field_co_refuse(table, 8, 0x40000000, "entry 0 is 0x40000000, behind the end of the image");
    /* 10240 granules of 4 KiB: three clusters of bits. Of granules of 512 bytes there are more. */
    field_co_refuse(dir + 17, 1, 9,
                    "bitmap_table_size of bitmap 'first' is 3, which does not fit a disk of 41943040 bytes");
    /* What is in use may stem from a smaller disk. */
    poke(dir + 17, 1, 9);
    poke(dir + 12, 4, Q2_BITMAP_IN_USE);
    Node *node = image_co_open("");
    assert_true(bitmap_find(node, "first")->inconsistent);
    assert_false(bitmap_find(node, "other")->inconsistent);
    node_co_unref(node);
    make("-o cluster_size=2M image 40M");
    field_co_refuse((long)peek(dir), 8, 0x600200, "entry 0 is 0x600200, not a multiple of the cluster size");
}
CO_TEST(tables)

/* Many bitmaps, each within the limits, may not cost more than they together may. */
static void together_co_body(void)
{
    uint64_t table = UINT64_C(64) << 20;

    shell_must(1, "qemu-img create -f qcow2 -o cluster_size=512 image 2M &&"
                  "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17; do qemu-img bitmap --add image bitmap$i; done &&"
                  "truncate -s 256M image");
    dir = (long)peek(find_ext() + 16);
    for (int i = 0; i < 17; i++) {
        uint64_t size = align_up(24 + (i < 9 ? 7 : 8), 8);
        poke(dir, 8, table);
        poke(dir + 8, 4, 1 << 20);
        dir += (long)size;
    }
    image_co_refuse("bitmap_table_size of bitmap 16 is 1048576 (0x100000), more than 16777216 entries in all tables");
    /* The bits of a disk of 2 TiB in granules of 512 bytes: 512 MiB each. */
    shell_must(1, "rm image; qemu-img create -f qcow2 -o cluster_size=2M image 2T &&"
                  "for i in 1 2 3 4 5 6 7 8 9; do qemu-img bitmap --add -g 512 image bitmap$i; done");
    image_co_refuse("would take more than 4294967296 bytes of memory");
}
CO_TEST(together)

static void read_co_directory(Qcow2 *q, guint n)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(GPtrArray) list = q2_bitmaps_co_read_directory(q, &error);

    assert_non_null(list);
    assert_int_equal(list->len, n);
    for (guint i = 0; i < n; i++) {
        Q2Bitmap *b = g_ptr_array_index(list, i);
        assert_string_equal(b->name, i ? "other" : "first");
        assert_int_equal(b->flags, i ? 0 : Q2_BITMAP_AUTO);
        assert_int_equal(b->granularity_bits, 16);
        assert_true(q2_bitmap_co_read_table(q, b, &error));
        assert_int_equal(b->table[0], 0);
    }
}

/* The reader gives what qemu-img put in, and directory, tables and bits are protected. */
static void protected_co_body(void)
{
    uint64_t l2, bits;
    Node *node;
    Port *port;

    make("image 4M");
    shell_must(1, "qemu-io -f qcow2 -c 'write 0 64k' image && qemu-img bitmap --clear image first");
    node = image_co_open("");
    read_co_directory(q2_of(node), 2);
    node_co_unref(node);
    shell_must(1, "qemu-io -f qcow2 -c 'write 0 64k' image");
    dir = (long)peek(find_ext() + 16);
    bits = peek((long)peek(dir)) & Q2_OFFSET_MASK;
    assert_true(bits);
    node = image_co_open("");
    assert_int_equal(bitmap_count(bitmap_find(node, "first")), 65536);
    assert_int_equal(q2_meta_kind(q2_of(node), (uint64_t)dir), Q2_META_BITMAPS);
    assert_int_equal(q2_meta_kind(q2_of(node), peek(dir)), Q2_META_BITMAPS);
    assert_int_equal(q2_meta_kind(q2_of(node), bits), Q2_META_BITMAPS);
    node_co_unref(node);
    /* A guest cluster that claims to be the bits. */
    l2 = peek((long)peek(40)) & Q2_OFFSET_MASK;
    poke((long)l2, 8, bits | Q2_COPIED);
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(port_co_pwrite(port, 0, 1, "x", 0), -EIO);
    assert_true(q2_of(node)->corrupt);
    port_co_free(port);
    node_co_unref(node);
    assert_int_equal(peek(72), Q2_INCOMPAT_CORRUPT);
}
CO_TEST(protected)

/* A table that says that the L1 table holds its bits: nothing of that is freed when the bitmap is stored anew. */
static void shared_co_body(void)
{
    uint64_t l1, table;
    Node *node;
    Port *port;

    make("image 4M");
    l1 = peek(40);
    table = peek(dir);
    poke((long)table, 8, l1);
    node = image_co_open("");
    assert_int_equal(q2_meta_kind(q2_of(node), l1), Q2_META_L1);
    port = must_co_port(node, true);
    assert_int_equal(port_co_pwrite(port, 0, 5, "guest", 0), 0);
    assert_int_equal(port_co_flush(port), 0);
    port_co_free(port);
    node_co_unref(node);
    assert_int_equal(peek(72), Q2_INCOMPAT_CORRUPT); /* it was found out */
    shell_must(1, "qemu-img dd -f qcow2 -O raw -U if=image of=out bs=5 count=1 && grep -q guest out");
}
CO_TEST(shared)

/* Storing again and again leaks nothing and takes no more space than twice. */
static void again_co_body(void)
{
    g_autofree char *path = in_folder("image");
    struct stat st;
    off_t size = 0;

    make("-o cluster_size=4k image 64M");
    for (int i = 0; i < 12; i++) {
        Node *node = image_co_open("");
        Port *port = must_co_port(node, true);
        assert_int_equal(port_co_pwrite(port, 0, 1, "x", 0), 0);
        port_co_free(port);
        node_co_unref(node);
        assert_int_equal(stat(path, &st), 0);
        if (i == 3)
            size = st.st_size;
        assert_true(i <= 3 || st.st_size == size);
        shell_must(1, "qemu-img check -f qcow2 image");
    }
}
CO_TEST(again)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(extension), cmocka_unit_test(directory), cmocka_unit_test(tables), cmocka_unit_test(together),
        cmocka_unit_test(protected), cmocka_unit_test(shared),    cmocka_unit_test(again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
