/*
 * qcow2, case by case: what is refused and with which words, options, backing files, snapshots, damage, resizing,
 * creation. The random tests are in drivers-image-model.c and tests/fault/replay.
 */
#include "drivers-qcow2.h"
#include "block/graph/debug.h"

static char *last_event;

static void on_event(const char *name, Tree *data, void *opaque)
{
    g_autofree char *text = json_to_str(data, false);

    g_free(last_event);
    last_event = g_strdup_printf("%s %s", name, text);
    tree_unref(data);
}

static void image_co_refuse(const char *text, const char *more)
{
    must_co_refuse(text, "{'driver':'qcow2','node-name':'q','file':{'driver':'file','filename':'%s/image'}%s}", folder,
                   more);
}

/* A fresh image by qemu-img, one field changed, and the error that has to come. */
static void field_co_refuse(const char *create, long offset, unsigned size, uint64_t value, const char *text)
{
    shell_must(1, "rm -f image; qemu-img create -f qcow2 %s image 1M", create);
    poke(offset, size, value);
    image_co_refuse(text, "");
}

static void headers_co_body(void)
{
    field_co_refuse("", 0, 4, 0x12345678, "Image is not in qcow2 format");
    field_co_refuse("", 4, 4, 1, "Unsupported qcow2 version 1");
    field_co_refuse("", 4, 4, 4, "Unsupported qcow2 version 4");
    field_co_refuse("", 8, 8, 70000, "backing_file_offset is 70000");
    field_co_refuse("-u -b x -F raw", 16, 4, 1024, "Backing file name too long: backing_file_size is 1024");
    field_co_refuse("", 20, 4, 8, "Unsupported cluster size: 2^8");
    field_co_refuse("", 20, 4, 22, "Unsupported cluster size: 2^22");
    field_co_refuse("", 24, 8, UINT64_C(1) << 62, "L1 table is too small");
    field_co_refuse("", 24, 8, UINT64_MAX - 511, "size is");
    field_co_refuse("", 32, 4, 1, "Parameter 'encrypt.key-secret' is required for cipher");
    field_co_refuse("", 32, 4, 2, "Missing CRYPTO header for crypt method 2");
    field_co_refuse("", 32, 4, 3, "Unsupported encryption method 3");
    field_co_refuse("", 36, 4, (32 * MIB) / 8 + 1, "Active L1 table too large: l1_size is 4194305");
    field_co_refuse("", 36, 4, 0, "L1 table is too small");
    field_co_refuse("", 40, 8, 0x30200, "l1_table_offset is 197120 (0x30200), not a multiple");
    field_co_refuse("", 40, 8, UINT64_C(1) << 56, "l1_table_offset is");
    field_co_refuse("", 40, 8, 1 << 30, "Image is truncated: the L1 table");
    field_co_refuse("", 48, 8, 0x10001, "refcount_table_offset is 65537");
    field_co_refuse("", 48, 8, 1 << 30, "Image is truncated: the refcount table");
    field_co_refuse("", 56, 4, 0, "Image does not contain a reference count table");
    field_co_refuse("", 56, 4, 129, "Reference count table too large: refcount_table_clusters is 129");
    field_co_refuse("", 60, 4, 65537, "Snapshot table too large: nb_snapshots is 65537");
    field_co_refuse("", 72, 8, 4, "'data-file' is required for this image");
    field_co_refuse("-o cluster_size=8k", 72, 8, 16, "Unsupported subcluster size: 256");
    field_co_refuse("", 72, 8, UINT64_C(1) << 40, "Unknown incompatible feature: 10000000000");
    field_co_refuse("", 72, 8, 2, "qcow2: Image is corrupt; cannot be opened read/write");
    field_co_refuse("", 72, 8, 8, "Compression type incompatible feature bit");
    field_co_refuse("", 96, 4, 7, "refcount_order is 7, may not exceed 6");
    field_co_refuse("", 100, 4, 100, "qcow2 header too short: header_length is 100");
    field_co_refuse("", 100, 4, 65537, "qcow2 header exceeds cluster size");
    field_co_refuse("", 104, 1, 1, "Compression type incompatible feature bit must be set");
    field_co_refuse("", 104, 1, 2, "unknown compression type: 2");
    field_co_refuse("", 116, 4, 0x7fffffff, "Header extension too large");
    /* The image names its features. */
    shell_must(1, "qemu-img create -f qcow2 image 1M");
    poke(120 + 4 * 48, 2, 0x0028); /* bit 40 is what the fifth name stands for */
    poke(72, 8, UINT64_C(1) << 40);
    image_co_refuse("Unsupported qcow2 feature(s): extended L2 entries", "");
    for (int cut = 0; cut < 104; cut += 13) {
        shell_must(1, "qemu-img create -f qcow2 image 1M && truncate -s %d image", cut);
        image_co_refuse(cut < 8 ? "Image is not in qcow2 format" : "qcow2", "");
    }
    shell_must(1, "rm -f image; qemu-img create -f qcow2 -o data_file=data image 1M");
    image_co_refuse("Could not open data file", "");
    assert_true(g_queue_is_empty(&graph->nodes));
}
CO_TEST(headers)

static void options_co_body(void)
{
    static const char *const bad[][2] = {
        {",'cache-size':100,'l2-cache-size':1,'refcount-cache-size':1}", "may not be set at the same time"},
        {",'cache-size':65536,'l2-cache-size':131072}", "l2-cache-size may not exceed cache-size"},
        {",'cache-size':65536,'refcount-cache-size':131072}", "refcount-cache-size may not exceed cache-size"},
        {",'l2-cache-size':-1}", "Parameter 'l2-cache-size' is -1"},
        {",'l2-cache-entry-size':256}", "L2 cache entry size must be a power of two between 512"},
        {",'l2-cache-entry-size':131072}", "L2 cache entry size must be a power of two between 512"},
        {",'l2-cache-entry-size':1000}", "L2 cache entry size must be a power of two between 512"},
        {",'cache-clean-interval':-1}", "Cache clean interval too big"},
        {",'encrypt':{'format':'luks'}}", "No encryption in image header"},
        {",'data-file':'x'}", "'data-file' can only be set for images with an external data file"},
        {",'backing':'nobody'}", "nobody"},
    };
    static const char *const good[] = {
        ",'overlap-check':'none'",
        ",'overlap-check':'all'",
        ",'overlap-check':{'template':'constant','active-l2':true,'main-header':false}",
        ",'cache-size':1048576,'pass-discard-request':false,'pass-discard-other':true,'pass-discard-snapshot':false",
        ",'lazy-refcounts':true",
        ",'cache-clean-interval':0,'refcount-cache-size':0,'l2-cache-size':0,'lazy-refcounts':false",
    };

    shell_must(1, "qemu-img create -f qcow2 image 8M");
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *more = g_strndup(bad[i][0], strlen(bad[i][0]) - 1);
        image_co_refuse(bad[i][1], more);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++) {
        Node *node = image_co_open(good[i]);
        Port *port = must_co_port(node, true);
        uint64_t word = i;
        assert_int_equal(port_co_pwrite(port, 70000 * (i + 1), 8, &word, 0), 0);
        port_co_free(port);
        node_co_unref(node);
        shell_must(1, "qemu-img check -f qcow2 image");
    }
    for (size_t i = 0; i < G_N_ELEMENTS(good); i++)
        shell_must(1, "qemu-io -f qcow2 -c 'read -P %zu %zu 1' -c 'read -P 0 %zu 7' image >out && ! grep -q failed out",
                   i, 70000 * (i + 1), 70000 * (i + 1) + 1);
}
CO_TEST(options)

static uint8_t byte_co_at(Port *port, uint64_t offset)
{
    uint8_t byte;

    assert_int_equal(port_co_pread(port, offset, 1, &byte, 0), 0);
    return byte;
}

static void backing_co_body(void)
{
    Node *node, *base;
    Port *port;

    shell_must(1, "qemu-img create -f raw base 1M && qemu-io -f raw -c 'write -P 7 0 1M' base &&"
                  "qemu-img create -f raw other 1M && qemu-io -f raw -c 'write -P 8 0 1M' other &&"
                  "qemu-img create -f qcow2 -b base -F raw image 2M");
    /* As the header says, relative to the image. */
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_string_equal(node->backing->node->drv->name, "raw");
    assert_int_equal(byte_co_at(port, MIB - 1), 7);
    assert_int_equal(byte_co_at(port, MIB), 0);
    port_co_free(port);
    node_co_unref(node);
    /* None at all. */
    node = image_co_open(",'backing':null");
    port = must_co_port(node, false);
    assert_null(node->backing);
    assert_int_equal(byte_co_at(port, MIB - 1), 0);
    port_co_free(port);
    node_co_unref(node);
    /* By node, and by definition. */
    base = must_co_open("{'driver':'raw','node-name':'o','file':{'driver':'file','filename':'%s/other'}}", folder);
    node = image_co_open(",'backing':'o'");
    node_co_unref(base);
    port = must_co_port(node, false);
    assert_int_equal(byte_co_at(port, 0), 8);
    port_co_free(port);
    node_co_unref(node);
    g_autofree char *definition =
        g_strdup_printf(",'backing':{'driver':'raw','file':{'driver':'file','filename':'%s/other'}}", folder);
    node = image_co_open(definition);
    port = must_co_port(node, false);
    assert_int_equal(byte_co_at(port, 0), 8);
    port_co_free(port);
    node_co_unref(node);
    /* A json: name in the header, and one that is missing. */
    shell_must(1,
               "rm image; qemu-img create -f qcow2 -F raw -u -b "
               "'json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"%s/other\"}}' image 2M",
               folder);
    node = image_co_open("");
    port = must_co_port(node, false);
    assert_int_equal(byte_co_at(port, 5), 8);
    port_co_free(port);
    node_co_unref(node);
    shell_must(1, "rm image; qemu-img create -f qcow2 -u -b gone -F raw image 2M");
    image_co_refuse("gone", "");
}
CO_TEST(backing)

static void resize_co_to(Port *port, uint64_t size)
{
    g_autoptr(GError) error = NULL;

    if (!port_co_truncate(port, size, true, PREALLOC_MODE_OFF, 0, &error))
        fail_msg("%s", error->message);
    assert_int_equal(port_size(port), size);
}

/* What a snapshot shares is copied before it is changed. */
static void snapshots_co_body(void)
{
    uint8_t buf[5000];
    Node *node;
    Port *port;

    shell_must(1,
               "qemu-img create -f qcow2 -o cluster_size=4k image 4M && qemu-io -f qcow2 -c 'write -P 1 0 2M' image &&"
               "qemu-img snapshot -c one image && qemu-io -f qcow2 -c 'write -P 2 512k 512k' image &&"
               "qemu-img snapshot -c two image && qemu-img convert -f qcow2 -O raw -l snapshot.name=one image s1 &&"
               "qemu-img convert -f qcow2 -O raw -l snapshot.name=two image s2");
    node = image_co_open(",'overlap-check':'all'");
    port = must_co_port(node, true);
    memset(buf, 3, sizeof(buf));
    for (uint64_t at = 1000; at < 3 * MIB; at += 300000)
        assert_int_equal(port_co_pwrite(port, at, sizeof(buf), buf, 0), 0);
    assert_int_equal(port_co_pwrite_zeroes(port, 100 * KIB, 200 * KIB, REQ_MAY_UNMAP), 0);
    assert_int_equal(port_co_pdiscard(port, MIB, 64 * KIB), 0);
    assert_int_equal(byte_co_at(port, 1000), 3);
    assert_int_equal(byte_co_at(port, 999), 1);
    assert_int_equal(byte_co_at(port, 150 * KIB), 0);
    resize_co_to(port, 3 * MIB);
    resize_co_to(port, 5 * MIB);
    port_co_free(port);
    node_co_unref(node);
    shell_must(1, "qemu-img check -f qcow2 image");
    shell_must(1, "qemu-img convert -f qcow2 -O raw -l snapshot.name=one image t1 && cmp -n 4194304 s1 t1 &&"
                  "qemu-img convert -f qcow2 -O raw -l snapshot.name=two image t2 && cmp -n 4194304 s2 t2");
    shell_must(1,
               "qemu-io -f qcow2 -c 'read -P 3 1000 5000' -c 'read -P 1 6000 1000' -c 'read -P 0 100k 200k' image >out"
               " && ! grep -q failed out");
}
CO_TEST(snapshots)

/* Before anything changes, and only then, the image says that what we do not maintain is out of date. */
static void autoclear_co_body(void)
{
    Node *node;
    Port *port;

    shell_must(1, "qemu-img create -f qcow2 image 4M && qemu-img bitmap --add image b");
    assert_int_equal(peek(88), 1);
    poke(88, 8, 0x41); /* bit 6 means nothing yet */
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(byte_co_at(port, 0), 0);
    assert_int_equal(peek(88), 0x41);
    assert_int_equal(port_co_pwrite(port, 0, 1, "x", 0), 0);
    assert_int_equal(peek(88), 1); /* bitmaps are maintained */
    port_co_free(port);
    node_co_unref(node);
    assert_int_equal(peek(88), 1);
    shell_must(1, "qemu-img check -f qcow2 image");
}
CO_TEST(autoclear)

/* Makes an image with 64 KiB of data and returns where its L2 table is. */
static uint64_t damaged_start(void)
{
    shell_must(1, "rm -f image; qemu-img create -f qcow2 image 4M && qemu-io -f qcow2 -c 'write -P 1 0 64k' image");
    return peek((long)peek(40)) & UINT64_C(0x00fffffffffffe00);
}

static void corrupt_co_write(uint64_t offset, const char *text)
{
    Node *node = image_co_open("");
    Port *port = must_co_port(node, true);
    g_autofree char *before = NULL, *path = in_folder("image");
    char *after;
    gsize len;

    g_clear_pointer(&last_event, g_free);
    assert_true(g_file_get_contents(path, &before, &len, NULL));
    assert_int_equal(port_co_pwrite(port, offset, 1, "x", 0), -EIO);
    assert_non_null(last_event);
    if (!strstr(last_event, text) || !strstr(last_event, "BLOCK_IMAGE_CORRUPTED") ||
        !strstr(last_event, "\"fatal\": true"))
        fail_msg("%s", last_event);
    /* From here on nothing goes, and nothing but the corrupt bit has changed. */
    assert_int_equal(port_co_pwrite(port, 2 * MIB, 1, "x", 0), -EIO);
    assert_int_equal(port_co_pread(port, 2 * MIB, 1, path, 0), -EIO);
    assert_int_equal(port_co_flush(port), -EIO);
    port_co_free(port);
    node_co_unref(node);
    assert_int_equal(peek(72), 2);
    poke(72, 8, 0);
    assert_true(g_file_get_contents(path, &after, &len, NULL));
    assert_memory_equal(before, after, len);
    g_free(after);
    poke(72, 8, 2);
    image_co_refuse("Image is corrupt", "");
    node = image_co_open(",'read-only':true");
    node_co_unref(node);
}

static void damage_co_body(void)
{
    const uint64_t copied = UINT64_C(1) << 63;
    Node *node;
    Port *port;
    uint64_t l2;

    qapi_set_event_sink(on_event, NULL);
    l2 = damaged_start();
    poke((long)l2, 8, copied); /* offset 0: not allocated */
    poke((long)l2, 8, copied | 0x10000);
    corrupt_co_write(100, "overlaps with refcount table");
    l2 = damaged_start();
    poke((long)l2, 8, copied | peek(40));
    corrupt_co_write(100, "overlaps with active L1 table");
    l2 = damaged_start();
    poke((long)l2, 8, copied | l2);
    corrupt_co_write(100, "overlaps with active L2 table");
    l2 = damaged_start();
    poke((long)l2, 8, copied | 0x20000);
    corrupt_co_write(100, "overlaps with refcount block");
    l2 = damaged_start();
    poke((long)l2, 8, copied | 0x50200);
    corrupt_co_write(100, "Data cluster offset 0x50200 unaligned");
    damaged_start();
    poke((long)peek(40), 8, copied | 0x40200);
    corrupt_co_write(100, "L2 table offset 0x40200 unaligned");
    damaged_start();
    poke(0x20000 + 4 * 2, 2, 0); /* the L2 table's refcount */
    corrupt_co_write(MIB, "Preventing invalid allocation of active L2 table");
    /* Reading a damaged image that is read-only reports it once and marks nothing. */
    l2 = damaged_start();
    poke((long)l2, 8, copied | 0x50200);
    node = image_co_open(",'read-only':true");
    port = must_co_port(node, false);
    g_clear_pointer(&last_event, g_free);
    assert_int_equal(port_co_pread(port, 0, 1, &l2, 0), -EIO);
    assert_non_null(strstr(last_event, "\"fatal\": false"));
    assert_int_equal(byte_co_at(port, MIB), 0);
    port_co_free(port);
    node_co_unref(node);
    assert_int_equal(peek(72), 0);
    qapi_set_event_sink(NULL, NULL);
    g_clear_pointer(&last_event, g_free);
}
CO_TEST(damage)

/* A discard of what an entry wrongly leads to: metadata is not let go of, nor is its content. */
static void discard_metadata_co_body(void)
{
    const uint64_t copied = UINT64_C(1) << 63;
    uint64_t l2 = damaged_start(), l1 = peek(40), l1_entry = peek((long)l1);
    Node *node;
    Port *port;

    qapi_set_event_sink(on_event, NULL);
    poke((long)l2, 8, copied | l1);
    node = must_co_open("{'driver':'qcow2','node-name':'q','discard':'unmap',"
                        "'file':{'driver':'file','discard':'unmap','filename':'%s/image'}}",
                        folder);
    port = must_co_port(node, true);
    g_clear_pointer(&last_event, g_free);
    assert_int_equal(port_co_pdiscard(port, 0, 64 * KIB), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(port_co_pwrite(port, MIB, 1, "x", 0), last_event ? -EIO : 0);
        port_co_flush(port);
    }
    assert_non_null(last_event);
    assert_non_null(strstr(last_event, "from being freed"));
    assert_int_equal(peek((long)l1), l1_entry);
    port_co_free(port);
    node_co_unref(node);
    assert_int_equal(peek(72), 2);
    qapi_set_event_sink(NULL, NULL);
    g_clear_pointer(&last_event, g_free);
}
CO_TEST(discard_metadata)

/* A snapshot's L2 tables are looked after where that is asked for, also when the disk does not share them any more. */
static void inactive_tables_co_body(void)
{
    const uint64_t copied = UINT64_C(1) << 63;
    uint64_t l2;
    Node *node;
    Port *port;

    qapi_set_event_sink(on_event, NULL);
    shell_must(1, "rm -f image; qemu-img create -f qcow2 -o cluster_size=4k image 4M && "
                  "qemu-io -f qcow2 -c 'write -P 1 0 4k' -c 'write -P 1 2M 4k' image && "
                  "qemu-img snapshot -c s image && qemu-io -f qcow2 -c 'write -P 2 2M 4k' image");
    l2 = peek((long)peek(40)) & UINT64_C(0x00fffffffffffe00);
    poke((long)(peek((long)peek(40) + 8) & UINT64_C(0x00fffffffffffe00)), 8, copied | l2);
    node = image_co_open(",'overlap-check':'all'");
    port = must_co_port(node, true);
    g_clear_pointer(&last_event, g_free);
    assert_int_equal(port_co_pwrite(port, 0, 1, "x", 0), 0); /* the disk gets a table of its own */
    for (int i = 0; i < 3; i++)
        assert_int_equal(port_co_flush(port), 0);
    assert_null(last_event);
    assert_int_equal(port_co_pwrite(port, 2 * MIB, 1, "x", 0), -EIO);
    assert_non_null(strstr(last_event, "inactive L2 table"));
    port_co_free(port);
    node_co_unref(node);
    qapi_set_event_sink(NULL, NULL);
    g_clear_pointer(&last_event, g_free);
}
CO_TEST(inactive_tables)

static void resize_co_body(void)
{
    g_autoptr(GError) error = NULL;
    Node *node;
    Port *port;

    /* With small clusters the L1 table needs more of them in a row than a refcount block has. */
    shell_must(1, "qemu-img create -f qcow2 -o cluster_size=512,refcount_bits=64 image 1M");
    node = image_co_open("");
    port = must_co_port(node, true);
    assert_int_equal(port_co_pwrite(port, MIB - 1, 1, "a", 0), 0);
    resize_co_to(port, 4 * MIB);
    resize_co_to(port, UINT64_C(1) << 30);
    assert_int_equal(port_co_pwrite(port, (1 << 30) - 1, 1, "b", 0), 0);
    resize_co_to(port, UINT64_C(16) << 30);
    assert_int_equal(byte_co_at(port, MIB - 1), 'a');
    assert_int_equal(byte_co_at(port, (1 << 30) - 1), 'b');
    assert_int_equal(byte_co_at(port, UINT64_C(15) << 30), 0);
    resize_co_to(port, MIB);
    resize_co_to(port, UINT64_C(2) << 30);
    assert_int_equal(byte_co_at(port, (1 << 30) - 1), 0);
    assert_false(port_co_truncate(port, 1000, true, PREALLOC_MODE_OFF, 0, &error));
    assert_non_null(strstr(error->message, "multiple of 512"));
    g_clear_error(&error);
    assert_false(port_co_truncate(port, UINT64_C(1) << 50, true, PREALLOC_MODE_OFF, 0, &error));
    assert_non_null(strstr(error->message, "too large"));
    g_clear_error(&error);
    assert_false(port_co_truncate(port, 4 * MIB, true, PREALLOC_MODE_FULL, 0, &error));
    assert_non_null(strstr(error->message, "Preallocation can't be used for shrinking"));
    port_co_free(port);
    node_co_unref(node);
    shell_must(1, "qemu-img check -f qcow2 image && test $(qemu-img info image | grep -c 'virtual size: 2 GiB') = 1");
}
CO_TEST(resize)

/* Entries behind the end of the disk, as the saved state of a machine leaves them, do not become part of it. */
static void behind_the_end_co_body(void)
{
    Node *node;
    Port *port;

    shell_must(1,
               "qemu-img create -f qcow2 image 2G && qemu-io -f qcow2 -c 'write -P 7 100M 1M' -c 'write -P 7 600M 1M' "
               "-c 'write -P 7 1200M 1M' image && qemu-img check -f qcow2 image");
    poke(24, 8, 200 * MIB);
    node = image_co_open("");
    port = must_co_port(node, true);
    resize_co_to(port, 2048 * (uint64_t)MIB);
    assert_int_equal(byte_co_at(port, 100 * MIB), 7);
    assert_int_equal(byte_co_at(port, 600 * MIB), 0);
    assert_int_equal(byte_co_at(port, 1200 * MIB), 0);
    port_co_free(port);
    node_co_unref(node);
    shell_must(1, "qemu-img check -f qcow2 image && qemu-io -f qcow2 -c 'read -P 0 200M 1848M' image > out && "
                  "! grep -q failed out");
}
CO_TEST(behind_the_end)

static void status_co_body(void)
{
    BlockStatus status;
    Node *node;
    Port *port;

    shell_must(1, "qemu-img create -f qcow2 image 100G && qemu-io -f qcow2 -c 'write 0 8M' -c 'write -z 8M 8M' image");
    node = image_co_open(",'l2-cache-entry-size':512");
    port = must_co_port(node, false);
    assert_int_equal(node_co_block_status(node, true, 4096, node->size - 4096, &status), 0);
    assert_int_equal(status.bytes, 8 * MIB - 4096);
    assert_int_equal(status.flags & ~STATUS_EOF, STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID);
    assert_int_equal(node_co_block_status(node, true, 8 * MIB, node->size - 8 * MIB, &status), 0);
    assert_int_equal(status.bytes, 8 * MIB);
    assert_int_equal(status.flags, STATUS_ZERO | STATUS_ALLOCATED);
    assert_int_equal(node_co_block_status(node, true, 16 * MIB, node->size - 16 * MIB, &status), 0);
    assert_int_equal(status.bytes, node->size - 16 * MIB);
    assert_int_equal(status.flags, STATUS_EOF);
    port_co_free(port);
    node_co_unref(node);
}
CO_TEST(status)

/* Images of all shapes are what qemu-img takes them for. */
static void create_co_body(void)
{
    static const struct {
        uint64_t size, cluster;
        int version;
        const char *backing, *format;
    } shapes[] = {
        {0, 0, 0, NULL, NULL},
        {1, 512, 3, NULL, NULL},
        {UINT64_C(64) << 30, 512, 2, NULL, NULL},
        {UINT64_C(128) << 30, 512, 3, NULL, NULL},
        {UINT64_C(1) << 40, 65536, 3, "base", "raw"},
        {UINT64_C(1) << 40, 2 * MIB, 2, "base", NULL},
        {12345678, 4096, 3, "base2", "qcow2"},
        {MIB, 512, 3, "base", "raw"},
    };
    g_autofree char *path = in_folder("image");
    g_autoptr(GError) error = NULL;

    shell_must(1, "qemu-img create -f raw base 1M && qemu-img create -f qcow2 base2 1M");
    for (size_t i = 0; i < G_N_ELEMENTS(shapes); i++) {
        CreateOptions o = {.size = shapes[i].size,
                           .cluster_size = shapes[i].cluster,
                           .version = shapes[i].version,
                           .backing_file = shapes[i].backing,
                           .backing_format = shapes[i].format};
        shell_must(1, "rm -f image");
        if (!image_co_create(graph, path, "qcow2", &o, &error))
            fail_msg("%s", error->message);
        shell_must(1, "qemu-img check -f qcow2 image");
        shell_must(1,
                   "qemu-img info -U image >info && grep -q 'compat: %s' info && grep -q 'cluster_size: %u' info &&"
                   "grep -q '(%" G_GUINT64_FORMAT " bytes)' info",
                   o.version == 2 ? "0.10" : "1.1", (unsigned)(o.cluster_size ? o.cluster_size : 65536),
                   align_up(o.size, 512));
        if (o.backing_file)
            shell_must(1, "grep -q 'backing file: base' info");
        if (o.backing_format)
            shell_must(1, "grep -q 'backing file format: %s' info", o.backing_format);
    }
    static const struct {
        CreateOptions o;
        const char *text;
    } bad[] = {
        {{.size = MIB, .cluster_size = 256}, "Cluster size must be a power of two between 512 and 2048k"},
        {{.size = MIB, .cluster_size = 4 * MIB}, "Cluster size must be a power of two between 512 and 2048k"},
        {{.size = MIB, .cluster_size = 3000}, "Cluster size must be a power of two between 512 and 2048k"},
        {{.size = MIB, .version = 4}, "Unsupported qcow2 version 4"},
        {{.size = UINT64_C(1) << 40, .cluster_size = 512}, "too large for file format 'qcow2'"},
        {{.size = UINT64_MAX}, "too large"},
        {{.size = MIB, .backing_file = "b", .backing_format = "0123456789abcdef"}, "too long, the limit is 15"},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
        assert_false(image_co_create(graph, path, "qcow2", &bad[i].o, &error));
        if (!strstr(error->message, bad[i].text))
            fail_msg("'%s' does not say '%s'", error->message, bad[i].text);
        g_clear_error(&error);
    }
    g_autofree char *name = g_strnfill(1024, 'x');
    assert_false(image_co_create(graph, path, "qcow2", &(CreateOptions){.size = 1, .backing_file = name}, &error));
    assert_non_null(strstr(error->message, "Backing file name too long"));
}
CO_TEST(create)

/* Compressed clusters of both kinds, as qemu-img writes them, and as it reads ours. */
static void compressed_co_body(void)
{
    static const char *const kinds[] = {"zlib", "zstd"};
    g_autofree uint8_t *buf = g_malloc(MIB);

    for (int k = 0; k < 2; k++) {
        Node *node;
        Port *port;
        shell_must(1,
                   "rm -f image raw; cat /proc/self/environ /etc/services /etc/mime.types >raw 2>/dev/null;"
                   "truncate -s 1M raw && qemu-img convert -c -f raw -O qcow2 -o compression_type=%s raw image &&"
                   "qemu-img resize -f qcow2 image 4M && truncate -s 4M raw",
                   kinds[k]);
        node = image_co_open("");
        port = must_co_port(node, true);
        assert_int_equal(port_co_pread(port, 0, MIB, buf, 0), 0);
        struct iovec iov;
        IoVec vec;
        for (uint64_t at = 0; at < MIB; at += 65536) {
            iovec_one(&vec, &iov, buf + at, 65536);
            assert_int_equal(port_co_pwritev(port, 2 * MIB + at, 65536, &vec, REQ_WRITE_COMPRESSED), 0);
        }
        port_co_free(port);
        node_co_unref(node);
        shell_must(1, "dd if=raw of=raw bs=1M count=1 seek=2 conv=notrunc && qemu-img check -f qcow2 image &&"
                      "qemu-img compare -f raw -F qcow2 raw image");
        shell_must(1, "qemu-img check --output=json -f qcow2 image | grep '\"compressed-clusters\": [1-9]'");
    }
}
CO_TEST(compressed)

static void info_co_body(void)
{
    Node *node;
    NodeInfo info = {0};
    ImageInfoSpecific *specific;

    shell_must(1, "qemu-img create -f qcow2 -o compression_type=zstd,refcount_bits=8,lazy_refcounts=on,cluster_size=4k "
                  "image 4M");
    node = image_co_open("");
    node->drv->get_info(node, &info);
    assert_int_equal(info.cluster_size, 4096);
    assert_null(info.backing_filename);
    specific = node->drv->get_specific_info(node);
    g_autoptr(Tree) json = qapi_encode_ImageInfoSpecific(specific);
    g_autofree char *text = json_to_str(json, false);
    if (!strstr(text, "\"compat\": \"1.1\"") || !strstr(text, "\"refcount-bits\": 8") ||
        !strstr(text, "\"compression-type\": \"zstd\"") || !strstr(text, "\"lazy-refcounts\": true"))
        fail_msg("%s", text);
    qapi_free_ImageInfoSpecific(specific);
    node_co_unref(node);
}
CO_TEST(info)

static uint64_t host_co_of(Node *node, uint64_t offset)
{
    BlockStatus status;

    assert_int_equal(node_co_block_status(node, false, offset, 65536, &status), 0);
    assert_true(status.flags & STATUS_OFFSET_VALID);
    return status.map;
}

typedef struct HeldRead {
    Port *port;
    uint8_t buf[65536];
    bool done;
} HeldRead;

static void held_co_entry(void *opaque)
{
    HeldRead *held = opaque;

    assert_int_equal(port_co_pread(held->port, 0, sizeof(held->buf), held->buf, 0), 0);
    held->done = true;
}

/* A request that takes long keeps its clusters from being used again, and keeps nobody from flushing. */
static void grace_co_body(void)
{
    g_autofree HeldRead *held = g_new0(HeldRead, 1);
    uint64_t host, at = MIB;
    bool reused = false;
    Node *node;
    Port *port;

    shell_must(1, "qemu-img create -f qcow2 image 64M && qemu-io -f qcow2 -c 'write -P 1 0 64k' image");
    node = must_co_open("{'driver':'qcow2','node-name':'q','discard':'unmap','file':{'driver':'blkdebug','image':"
                        "{'driver':'file','filename':'%s/image'}}}",
                        folder);
    port = must_co_port(node, true);
    host = host_co_of(node, 0);
    held->port = must_co_port(node, false);
    assert_int_equal(node_debug_break(node, "read_aio", "held"), 0);
    coroutine_start(loop, held_co_entry, held);
    assert_true(node_debug_suspended(node, "held"));
    assert_int_equal(port_co_pdiscard(port, 0, 65536), 0);
    assert_int_equal(byte_co_at(port, 0), 0);
    for (int i = 0; i < 10; i++, at += 65536) {
        assert_int_equal(port_co_pwrite(port, at, 8, "new data", 0), 0);
        assert_int_not_equal(host_co_of(node, at), host);
        assert_int_equal(port_co_flush(port), 0);
    }
    assert_false(held->done);
    assert_int_equal(node_debug_resume(node, "held"), 0);
    while (!held->done)
        aio_co_reschedule();
    assert_int_equal(held->buf[0], 1);
    assert_int_equal(held->buf[65535], 1);
    for (int i = 0; i < 10; i++, at += 65536) {
        assert_int_equal(port_co_pwrite(port, at, 8, "new data", 0), 0);
        reused |= host_co_of(node, at) == host;
        assert_int_equal(port_co_flush(port), 0);
    }
    assert_true(reused);
    port_co_free(held->port);
    port_co_free(port);
    node_co_unref(node);
    shell_must(1, "qemu-img check -f qcow2 image");
}
CO_TEST(grace)

static void new_cluster_co_entry(void *opaque)
{
    HeldRead *held = opaque;

    assert_int_equal(port_co_pwrite(held->port, 300 * KIB, 512, held->buf, 0), 0);
    held->done = true;
}

/* What becomes free behind a search for free clusters, while it waits for a refcount block, is found by the next. */
static void freed_behind_the_search_co_body(void)
{
    g_autofree HeldRead *held = g_new0(HeldRead, 1);
    uint64_t host = 0, at = 0;
    Node *node;

    /* A refcount block for each 32 KiB of the file. */
    shell_must(1, "qemu-img create -f qcow2 -o cluster_size=512,refcount_bits=64 image 512k && "
                  "qemu-io -f qcow2 -c 'write -P 1 0 256k' image");
    node = must_co_open("{'driver':'qcow2','node-name':'q','discard':'unmap','file':{'driver':'blkdebug','image':"
                        "{'driver':'file','filename':'%s/image'}}}",
                        folder);
    held->port = must_co_port(node, true);
    for (; host < 32 * KIB; at += 512)
        host = host_co_of(node, at);
    assert_in_range(host, 32 * KIB, 64 * KIB - 1);
    assert_int_equal(port_co_pdiscard(held->port, at - 512, 512), 0);
    assert_int_equal(port_co_flush(held->port), 0);
    assert_int_equal(node_debug_break(node, "refblock_load", "0"), 0);
    coroutine_start(loop, new_cluster_co_entry, held);
    for (int i = 1; i < 4; i++) { /* holds the search up at one block after the other */
        g_autofree char *tag = g_strdup_printf("%d", i), *before = g_strdup_printf("%d", i - 1);
        while (!node_debug_suspended(node, before))
            aio_co_reschedule();
        assert_int_equal(node_debug_resume(node, before), 0);
        aio_co_reschedule();
        assert_int_equal(node_debug_break(node, "refblock_load", tag), 0);
    }
    while (!node_debug_suspended(node, "3"))
        aio_co_reschedule();
    assert_int_equal(port_co_flush(held->port), 0); /* now it becomes free */
    assert_int_equal(node_debug_resume(node, "3"), 0);
    while (!held->done)
        aio_co_reschedule();
    assert_int_equal(host_co_of(node, 300 * KIB), host); /* the search was for the L2 table */
    port_co_free(held->port);
    node_co_unref(node);
    shell_must(1, "qemu-img check -f qcow2 image");
}
CO_TEST(freed_behind_the_search)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers),         cmocka_unit_test(options),
        cmocka_unit_test(backing),         cmocka_unit_test(snapshots),
        cmocka_unit_test(autoclear),       cmocka_unit_test(damage),
        cmocka_unit_test(resize),          cmocka_unit_test(status),
        cmocka_unit_test(create),          cmocka_unit_test(behind_the_end),
        cmocka_unit_test(compressed),      cmocka_unit_test(info),
        cmocka_unit_test(grace),           cmocka_unit_test(discard_metadata),
        cmocka_unit_test(inactive_tables), cmocka_unit_test(freed_behind_the_search),
    };
    const char *only = g_getenv("SD_ONLY");

    if (only)
        cmocka_set_test_filter(only);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
