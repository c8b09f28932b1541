/*
 * qcow2 with extended L2 entries, case by case: what reads, writes, zeroes and discards make of each state of a
 * subcluster, in bits; who waits for whom; damage. The random tests are in drivers-image-model.c and
 * tests/fault/replay.
 */
#include "drivers-qcow2.h"
#include "block/graph/debug.h"

#define COPIED   (UINT64_C(1) << 63)
#define HOST     UINT64_C(0x00fffffffffffe00)
#define DATA(n)  (UINT64_C(1) << (n))
#define ZERO(n)  (UINT64_C(1) << (32 + (n)))
#define ALL_DATA UINT64_C(0x00000000ffffffff)
#define ALL_ZERO UINT64_C(0xffffffff00000000)

enum { CLUSTER = 64 * KIB, SUB = 2 * KIB };

/* ---- entries in the file ---------------------------------------------------------------------------------------- */

static long entry_at(unsigned cluster)
{
    return (long)((peek((long)peek(40)) & HOST) + cluster * 16);
}

static uint64_t entry_of(unsigned cluster)
{
    return peek(entry_at(cluster));
}

static uint64_t bits_of(unsigned cluster)
{
    return peek(entry_at(cluster) + 8);
}

static void assert_bits(unsigned cluster, bool hosted, uint64_t bits)
{
    uint64_t entry = entry_of(cluster), is = bits_of(cluster);

    if (hosted != !!(entry & HOST) || is != bits)
        fail_msg("cluster %u: entry 0x%" G_GINT64_MODIFIER "x, bits 0x%" G_GINT64_MODIFIER
                 "x; expected %s cluster, 0x%" G_GINT64_MODIFIER "x",
                 cluster, entry, is, hosted ? "a" : "no", bits);
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

static Node *node;
static Port *port;

static void open_co_port(const char *more)
{
    node = image_co_open(more);
    port = must_co_port(node, true);
}

static void close_co_port(void)
{
    port_co_free(port);
    node_co_unref(node);
    shell_must(1, "qemu-img check -f qcow2 image");
}

static void write_co_bytes(uint64_t offset, uint64_t bytes, uint8_t byte)
{
    g_autofree uint8_t *buf = g_malloc(bytes);

    memset(buf, byte, bytes);
    assert_int_equal(port_co_pwrite(port, offset, bytes, buf, 0), 0);
}

static void expect_co_bytes(uint64_t offset, uint64_t bytes, uint8_t byte)
{
    g_autofree uint8_t *buf = g_malloc(bytes);

    assert_int_equal(port_co_pread(port, offset, bytes, buf, 0), 0);
    for (uint64_t i = 0; i < bytes; i++)
        if (buf[i] != byte)
            fail_msg("byte %" G_GUINT64_FORMAT " is 0x%02x, not 0x%02x", offset + i, buf[i], byte);
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

/*
 * One cluster for each state that a subcluster may be in, by qemu-io, over a backing file of 9s. Subcluster 4 is in
 * that state: 0: what is below; 1: data; 2: zero, with host cluster; 3: zero, without; 4: below, with host cluster; 5:
 * compressed; 6 and 7: data, shared with a snapshot.
 */
static void make_states(void)
{
    shell_must(1, "rm -f image base; qemu-img create -f raw base 1M && qemu-io -f raw -c 'write -P 9 0 1M' base &&"
                  "qemu-img create -f qcow2 -b base -F raw -o extended_l2=on image 1M &&"
                  "qemu-io -f qcow2 -c 'write -P 6 384k 128k' image && qemu-img snapshot -c s image &&"
                  "qemu-io -f qcow2 -c 'write -P 1 64k 64k' -c 'write -P 2 128k 64k' -c 'write -z 136k 2k'"
                  " -c 'write -z 200k 2k' -c 'write -P 4 256k 2k' -c 'write -c -P 5 320k 64k' image");
}

/* The same request to subcluster 4 of each cluster; what becomes of the entries. */
static void write_states_co_body(void)
{
    static const uint8_t before[] = {9, 1, 0, 0, 9, 5, 6, 6};
    uint64_t shared;

    make_states();
    shared = entry_of(6);
    assert_bits(0, false, 0);
    assert_bits(1, true, ALL_DATA);
    assert_bits(2, true, (ALL_DATA & ~DATA(4)) | ZERO(4));
    assert_bits(3, false, ZERO(4));
    assert_bits(4, true, DATA(0));
    assert_bits(5, true, 0);
    assert_bits(6, true, ALL_DATA);
    open_co_port("");
    for (unsigned c = 0; c < 8; c++) {
        uint64_t at = c * CLUSTER + 4 * SUB;
        expect_co_bytes(at, SUB, before[c]);
        write_co_bytes(at + 100, 50, 0x77);
        expect_co_bytes(at, 100, before[c]);
        expect_co_bytes(at + 100, 50, 0x77);
        expect_co_bytes(at + 150, SUB - 150, before[c]);
    }
    close_co_port();
    assert_bits(0, true, DATA(4)); /* no more than that was copied from below */
    assert_bits(1, true, ALL_DATA);
    assert_bits(2, true, ALL_DATA);
    assert_bits(3, true, DATA(4));
    assert_bits(4, true, DATA(0) | DATA(4));
    assert_bits(5, true, ALL_DATA);
    assert_bits(6, true, ALL_DATA);
    assert_int_not_equal(entry_of(6), shared);
    for (unsigned c = 0; c < 8; c++)
        assert_true(entry_of(c) & COPIED);
    shell_must(1, "qemu-img convert -f qcow2 -O raw -l s image old && qemu-io -f raw -c 'read -P 9 0 384k' "
                  "-c 'read -P 6 384k 128k' old >said && ! grep -q failed said");
}
CO_TEST(write_states)

/* A snapshot's cluster with holes: all data moves to the new place, and nothing else; zeroes stay zeroes. */
static void write_shared_co_body(void)
{
    shell_must(1, "qemu-img create -f raw base 1M && qemu-io -f raw -c 'write -P 9 0 1M' base &&"
                  "qemu-img create -f qcow2 -b base -F raw -o extended_l2=on image 1M &&"
                  "qemu-io -f qcow2 -c 'write -P 1 8k 2k' -c 'write -P 1 20k 4k' -c 'write -z 50k 2k' image &&"
                  "qemu-img snapshot -c s image");
    open_co_port("");
    write_co_bytes(12 * KIB, SUB, 2);
    expect_co_bytes(0, 8 * KIB, 9);
    expect_co_bytes(8 * KIB, 2 * KIB, 1);
    expect_co_bytes(10 * KIB, 2 * KIB, 9);
    expect_co_bytes(12 * KIB, 2 * KIB, 2);
    expect_co_bytes(20 * KIB, 4 * KIB, 1);
    expect_co_bytes(50 * KIB, 2 * KIB, 0);
    expect_co_bytes(52 * KIB, 12 * KIB, 9);
    close_co_port();
    assert_bits(0, true, (DATA(12) - DATA(4)) | ZERO(25));
}
CO_TEST(write_shared)

/* Large writes over everything at once: one step for what adjoins, whole subclusters at the ends. */
static void write_long_co_body(void)
{
    make_states();
    open_co_port("");
    write_co_bytes(2 * SUB + 1, 7 * CLUSTER, 0x55);
    expect_co_bytes(0, 2 * SUB + 1, 9);
    expect_co_bytes(2 * SUB + 1, 7 * CLUSTER, 0x55);
    expect_co_bytes(7 * CLUSTER + 2 * SUB + 1, CLUSTER - 2 * SUB - 1, 6);
    close_co_port();
    assert_bits(0, true, ALL_DATA & ~(DATA(0) | DATA(1)));
    for (unsigned c = 1; c < 8; c++)
        assert_bits(c, true, ALL_DATA);
}
CO_TEST(write_long)

static void zero_co_all(unsigned first, unsigned n, bool discard, ReqFlags flags)
{
    for (unsigned c = 0; c < 8; c++) {
        uint64_t at = c * CLUSTER + first * SUB;
        assert_int_equal(
            discard ? port_co_pdiscard(port, at, n * SUB) : port_co_pwrite_zeroes(port, at, n * SUB, flags), 0);
        if (!discard || c != 5)
            expect_co_bytes(at, n * SUB, 0);
    }
}

static void zero_states_co_body(void)
{
    uint64_t one = ZERO(4), others = ALL_DATA & ~DATA(4);

    for (int kind = 0; kind < 3; kind++) { /* zeroes, zeroes with unmapping, discard */
        make_states();
        open_co_port("");
        zero_co_all(4, 1, kind == 2, kind == 1 ? REQ_MAY_UNMAP : 0);
        close_co_port();
        assert_bits(0, false, one);
        assert_bits(1, true, one | others);
        assert_bits(2, true, one | others);
        assert_bits(3, false, one);
        assert_bits(4, true, one | DATA(0));
        assert_bits(5, true, kind == 2 ? 0 : ALL_DATA); /* of a compressed cluster zeroes are written out */
        assert_bits(6, true, one | others);
        /* The others as well: what keeps nothing is given back, but by zeroes that are to keep their space. */
        open_co_port("");
        zero_co_all(0, 4, kind == 2, kind == 1 ? REQ_MAY_UNMAP : 0);
        zero_co_all(5, 27, kind == 2, kind == 1 ? REQ_MAY_UNMAP : 0);
        close_co_port();
        for (unsigned c = 0; c < 8; c++) {
            bool was_ours = c == 1 || c == 2 || c == 4;
            if (c == 5)
                assert_bits(c, true, kind == 2 ? 0 : (ALL_ZERO & ~one) | DATA(4));
            else
                assert_bits(c, kind == 0 && was_ours, ALL_ZERO);
        }
    }
}
CO_TEST(zero_states)

static void zero_whole_co_body(void)
{
    for (int kind = 0; kind < 3; kind++) {
        make_states();
        open_co_port("");
        zero_co_all(0, 32, kind == 2, kind == 1 ? REQ_MAY_UNMAP : 0);
        close_co_port();
        for (unsigned c = 0; c < 8; c++)
            assert_bits(c, kind == 0 && (c == 1 || c == 2 || c == 4), ALL_ZERO);
        shell_must(1, "qemu-img convert -f qcow2 -O raw -l s image old && qemu-io -f raw -c 'read -P 6 384k 128k' "
                      "old >said && ! grep -q failed said");
    }
}
CO_TEST(zero_whole)

/* Without a backing file what is not there needs no mark. */
static void zero_nothing_below_co_body(void)
{
    shell_must(1, "qemu-img create -f qcow2 -o extended_l2=on image 1M && qemu-io -f qcow2 -c 'write 0 4k' image");
    open_co_port("");
    assert_int_equal(port_co_pwrite_zeroes(port, 0, 8 * KIB, REQ_MAY_UNMAP), 0);
    assert_int_equal(port_co_pwrite_zeroes(port, 128 * KIB, 64 * KIB, 0), 0);
    close_co_port();
    assert_bits(0, false, ZERO(0) | ZERO(1));
    assert_bits(2, false, 0);
}
CO_TEST(zero_nothing_below)

/* ---- who waits for whom ----------------------------------------------------------------------------------------- */

typedef struct Held {
    uint64_t offset;
    uint8_t byte;
    bool done;
} Held;

static void held_co_entry(void *opaque)
{
    Held *held = opaque;

    write_co_bytes(held->offset, SUB, held->byte);
    held->done = true;
}

static void open_co_debug(void)
{
    node = must_co_open("{'driver':'qcow2','node-name':'q','discard':'unmap','file':{'driver':'blkdebug','image':"
                        "{'driver':'file','filename':'%s/image'}}}",
                        folder);
    port = must_co_port(node, true);
}

/* Two writes to one cluster that has no place yet: the second waits for the place, and nobody's bit is lost. Where the
 * cluster has its place, the second does not wait. */
static void neighbours_co_body(void)
{
    shell_must(1, "qemu-img create -f qcow2 -o extended_l2=on image 1M");
    open_co_debug();
    for (unsigned c = 0; c < 2; c++) {
        Held first = {c * CLUSTER, 1, false}, second = {c * CLUSTER + 5 * SUB, 2, false};
        if (c == 1)
            write_co_bytes(c * CLUSTER + 31 * SUB, SUB, 3);
        assert_int_equal(node_debug_break(node, "write_aio", "held"), 0);
        coroutine_start(loop, held_co_entry, &first);
        while (!node_debug_suspended(node, "held"))
            aio_co_reschedule();
        coroutine_start(loop, held_co_entry, &second);
        if (c == 0)
            for (int i = 0; i < 3; i++) /* time enough, if it did not wait */
                assert_int_equal(port_co_flush(port), 0);
        else
            while (!second.done)
                aio_co_reschedule();
        assert_int_equal(second.done, c == 1);
        assert_false(first.done);
        expect_co_bytes(first.offset, SUB, 0); /* not before its data is there */
        assert_int_equal(node_debug_resume(node, "held"), 0);
        while (!first.done || !second.done)
            aio_co_reschedule();
        expect_co_bytes(first.offset, SUB, 1);
        expect_co_bytes(second.offset, SUB, 2);
    }
    close_co_port();
    assert_bits(0, true, DATA(0) | DATA(5));
    assert_bits(1, true, DATA(0) | DATA(5) | DATA(31));
}
CO_TEST(neighbours)

/* A discard of the neighbours does not take the cluster away from under a write that fills a part of it. */
static void discard_beside_co_body(void)
{
    Held held = {5 * SUB, 7, false};

    shell_must(1, "qemu-img create -f qcow2 -o extended_l2=on image 1M && qemu-io -f qcow2 -c 'write 0 2k' image");
    open_co_debug();
    assert_int_equal(node_debug_break(node, "write_aio", "held"), 0);
    coroutine_start(loop, held_co_entry, &held);
    while (!node_debug_suspended(node, "held"))
        aio_co_reschedule();
    assert_int_equal(port_co_pdiscard(port, 0, SUB), 0);
    expect_co_bytes(0, SUB, 0);
    assert_false(held.done);
    assert_int_equal(node_debug_resume(node, "held"), 0);
    while (!held.done)
        aio_co_reschedule();
    expect_co_bytes(5 * SUB, SUB, 7);
    close_co_port();
    assert_bits(0, true, ZERO(0) | DATA(5));
}
CO_TEST(discard_beside)

/* ---- the rest --------------------------------------------------------------------------------------------------- */

/* Our answers about status are those of qemu-img map. */
static void status_co_body(void)
{
    g_autofree char *path = in_folder("map"), *text = NULL;
    g_autoptr(GError) error = NULL;
    uint64_t offset = 0;

    make_states();
    shell_must(1,
               "qemu-io -f qcow2 -c 'write 600k 3k' -c 'write 640k 200k' -c 'write -z 700k 6k' -c 'write -z 801k 1k' "
               "image && qemu-img map -f qcow2 --output=json image >map");
    assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_autoptr(Tree) tree = json_parse(text, -1, &error);
    assert_non_null(tree);
    open_co_port("");
    for (guint i = 0; i < tree_size(tree); i++) {
        const Tree *o = tree_element(tree, i);
        uint64_t end = offset + (uint64_t)tree_get_int(o, "length", 0);
        bool data = tree_as_bool(tree_get(o, "data")), zero = tree_as_bool(tree_get(o, "zero"));
        bool here = tree_get_int(o, "depth", -1) == 0, valid = data && tree_get(o, "offset");
        assert_int_equal(tree_get_int(o, "start", -1), offset);
        for (BlockStatus s; offset < end; offset += s.bytes) {
            uint64_t map = here && valid ? (uint64_t)tree_get_int(o, "offset", -1) + offset -
                                               (uint64_t)tree_get_int(o, "start", -1)
                                         : 0;
            assert_int_equal(node_co_block_status(node, true, offset, MIB - offset, &s), 0);
            if (!!(s.flags & STATUS_ALLOCATED) != here || (here && !!(s.flags & STATUS_DATA) != data) ||
                (here && !!(s.flags & STATUS_ZERO) != zero) || !!(s.flags & STATUS_OFFSET_VALID) != (here && valid) ||
                (map && s.map != map) || offset + s.bytes > end)
                fail_msg("at %" G_GUINT64_FORMAT ": %" G_GUINT64_FORMAT " bytes, flags 0x%x, map 0x%" G_GINT64_MODIFIER
                         "x, which is not element %u of %s",
                         offset, s.bytes, s.flags, s.map, i, text);
        }
    }
    assert_int_equal(offset, MIB);
    close_co_port();
}
CO_TEST(status)

static char *last_event;

static void on_event(const char *name, Tree *data, void *opaque)
{
    g_autofree char *text = json_to_str(data, false);

    g_free(last_event);
    last_event = g_strdup_printf("%s %s", name, text);
    tree_unref(data);
}

/* Bitmaps that contradict themselves or their entry. */
static void damage_co_body(void)
{
    static const struct {
        bool hosted;
        uint64_t bits;
    } bad[] = {{true, DATA(0) | ZERO(0)}, {true, DATA(31) | ZERO(31)}, {false, DATA(7)}, {false, ALL_ZERO | DATA(1)}};

    qapi_set_event_sink(on_event, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        for (int how = 0; how < 4; how++) { /* reading read-only, reading, writing, zeroing */
            int ret = 0;
            uint8_t byte = 1;
            shell_must(1, "rm -f image; qemu-img create -f qcow2 -o extended_l2=on image 1M &&"
                          "qemu-io -f qcow2 -c 'write 0 128k' image");
            poke(entry_at(0), 8, bad[i].hosted ? entry_of(0) : 0);
            poke(entry_at(0) + 8, 8, bad[i].bits);
            g_clear_pointer(&last_event, g_free);
            node = image_co_open(how == 0 ? ",'read-only':true" : "");
            port = must_co_port(node, how > 0);
            if (how < 2)
                ret = port_co_pread(port, 20 * KIB, 1, &byte, 0);
            else if (how == 2)
                ret = port_co_pwrite(port, 20 * KIB, 1, &byte, 0);
            else
                ret = port_co_pwrite_zeroes(port, 0, CLUSTER, 0);
            assert_int_equal(ret, -EIO);
            assert_non_null(last_event);
            if (!strstr(last_event, "BLOCK_IMAGE_CORRUPTED") || !strstr(last_event, "Invalid cluster entry found ") ||
                !strstr(last_event, how ? "\"fatal\": true" : "\"fatal\": false"))
                fail_msg("%s", last_event);
            port_co_free(port);
            node_co_unref(node);
            assert_int_equal(peek(72), how ? 16 | 2 : 16);
        }
    }
    /* The bit that marks an ordinary cluster as zero means nothing here, and nobody looks at a compressed one's bitmap.
     */
    make_states();
    poke(entry_at(1), 8, entry_of(1) | 1);
    poke(entry_at(5) + 8, 8, ALL_DATA);
    node = image_co_open(",'read-only':true");
    port = must_co_port(node, false);
    expect_co_bytes(CLUSTER, CLUSTER, 1);
    expect_co_bytes(5 * CLUSTER, CLUSTER, 5);
    port_co_free(port);
    node_co_unref(node);
    qapi_set_event_sink(NULL, NULL);
    g_clear_pointer(&last_event, g_free);
}
CO_TEST(damage)

/* What lies behind the end in a cluster that stays must not come back, subcluster by subcluster. */
static void resize_co_body(void)
{
    static const uint64_t sizes[] = {CLUSTER + 512, CLUSTER + 5 * SUB, 2 * CLUSTER - 512, 512};
    g_autoptr(GError) error = NULL;

    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        shell_must(1, "rm -f image; qemu-img create -f qcow2 -o extended_l2=on image 256k &&"
                      "qemu-io -f qcow2 -c 'write -P 1 0 1k' -c 'write -P 1 8k 4k' -c 'write -z 10k 2k' -c 'write -P 1 "
                      "64k 3k' -c 'write -P 1 70k 20k' -c 'write -z 80k 2k' -c 'write -P 1 120k 8k' image");
        open_co_port("");
        assert_true(port_co_truncate(port, sizes[i], true, PREALLOC_MODE_OFF, 0, &error));
        assert_true(port_co_truncate(port, 256 * KIB, true, PREALLOC_MODE_OFF, 0, &error));
        expect_co_bytes(sizes[i], 256 * KIB - sizes[i], 0);
        expect_co_bytes(0, 512, 1);
        close_co_port();
    }
}
CO_TEST(resize)

static void info_co_body(void)
{
    ImageInfoSpecific *specific;
    NodeInfo info = {0};

    shell_must(1, "qemu-img create -f qcow2 -o extended_l2=on,cluster_size=128k image 1M");
    open_co_port("");
    node->drv->get_info(node, &info);
    assert_int_equal(info.cluster_size, 128 * KIB);
    assert_int_equal(node->limits.write_zeroes_align, 4 * KIB);
    assert_int_equal(node->limits.discard_align, 4 * KIB);
    specific = node->drv->get_specific_info(node);
    assert_true(specific->u.qcow2.data->has_extended_l2 && specific->u.qcow2.data->extended_l2);
    qapi_free_ImageInfoSpecific(specific);
    close_co_port();
}
CO_TEST(info)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(write_states), cmocka_unit_test(write_shared),   cmocka_unit_test(write_long),
        cmocka_unit_test(zero_states),  cmocka_unit_test(zero_whole),     cmocka_unit_test(zero_nothing_below),
        cmocka_unit_test(neighbours),   cmocka_unit_test(discard_beside), cmocka_unit_test(status),
        cmocka_unit_test(damage),       cmocka_unit_test(resize),         cmocka_unit_test(info),
    };
    const char *only = g_getenv("SD_ONLY");

    if (only)
        cmocka_set_test_filter(only);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
