/*
 * Random I/O on qcow2 and qed images against a flat copy in memory, with qemu-img as the judge of the result.
 *
 * Several coroutines work at once on ranges of bytes that do not overlap, in clusters that do; small caches force
 * evictions. In between the image is closed and opened again, resized, and copied as it is at that moment: such a copy
 * is what a crash leaves behind, and may have leaks but no corruption. SD_SEED and SD_ROUNDS make other and longer
 * runs.
 */
#include "drivers-image.h"
#include "block/drivers/qed/qed.h"

enum { WORKERS = 8, MAX_SIZE = 6 * MIB, MAX_IO = 700 * KIB };

typedef struct Config {
    const char *name;
    bool qed;           /* else qcow2 */
    const char *create; /* arguments of qemu-img create before the file name; NULL: made by us */
    CreateOptions ours;
    uint64_t size;
    uint64_t cluster;
    uint64_t sub;               /* bytes of a subcluster, 0: there are none */
    const char *backing_format; /* NULL: no backing file */
    uint64_t backing_size;
    bool v2;
    const char *options; /* members of the node's JSON */
    unsigned slices;     /* qed: of the cache, 0: as it comes */
    bool direct;         /* O_DIRECT below */
    unsigned align;      /* bytes: the file takes requests in such blocks; 0: of any size */
    enum { DATA_INSIDE, DATA_FILE, DATA_FILE_RAW } data;
    int ops;
} Config;

static const Config *cfg;
static uint64_t rng;
static uint8_t *model, *backing;
static uint64_t size;
static char *image;
static Node *node;
static Port *port;
static unsigned running;
static CoQueue workers_done;
static int ops_left;
static struct {
    uint64_t offset, bytes;
} busy[WORKERS];

static uint64_t rnd(uint64_t below)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return below ? (rng * UINT64_C(0x2545f4914f6cdd1d) >> 11) % below : 0;
}

static void fill_random(uint8_t *buf, size_t n)
{
    unsigned kind = (unsigned)rnd(4);

    for (size_t i = 0; i < n; i++)
        buf[i] = kind == 0 ? (uint8_t)(i / 300 + rng) : kind == 1 ? 0 : (uint8_t)rnd(256);
}

static const char *format(void)
{
    return cfg->qed ? "qed" : "qcow2";
}

static void open_co_image(void)
{
    node = must_co_open("{'driver':'%s','node-name':'q','discard':'unmap','cache':{'no-flush':true,'direct':%s},"
                        "'file':{'driver':'blkdebug','align':%u,'image':{'driver':'file','filename':'%s'}}%s}",
                        format(), cfg->direct ? "true" : "false", cfg->align, image, cfg->options ? cfg->options : "");
    if (cfg->slices)
        assert_true(qed_tables_init(qed_of(node), cfg->slices, NULL));
    port = must_co_port(node, true);
    assert_int_equal(port_size(port), size);
}

static void close_co_image(void)
{
    port_co_free(port);
    node_co_unref(node);
}

static bool is_busy(unsigned self, uint64_t offset, uint64_t bytes)
{
    for (unsigned i = 0; i < WORKERS; i++)
        if (i != self && offset < busy[i].offset + busy[i].bytes && busy[i].offset < offset + bytes)
            return true;
    return false;
}

static void check_equal(const uint8_t *got, uint64_t offset, uint64_t bytes, const char *what)
{
    for (uint64_t i = 0; i < bytes; i++) {
        if (got[i] != model[offset + i])
            fail_msg("%s: %s: byte %" G_GUINT64_FORMAT " (range %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT
                     ") is 0x%02x, not 0x%02x",
                     cfg->name, what, offset + i, offset, bytes, got[i], model[offset + i]);
    }
}

static void read_co_check(uint64_t offset, uint64_t bytes, uint8_t *buf)
{
    memset(buf, 0xa5, bytes);
    assert_int_equal(port_co_pread(port, offset, bytes, buf, 0), 0);
    check_equal(buf, offset, bytes, "read");
}

/* A discard leaves old data or zeroes, cluster by cluster (what it may do to parts of clusters is not said). */
static void discard_co_check(uint64_t offset, uint64_t bytes, uint8_t *buf)
{
    uint64_t unit = cfg->sub ? cfg->sub : cfg->cluster;

    assert_int_equal(port_co_pdiscard(port, offset, bytes), 0);
    assert_int_equal(port_co_pread(port, offset, bytes, buf, 0), 0);
    for (uint64_t at = offset; at < offset + bytes;) {
        uint64_t n = u64_min(offset + bytes - at, unit - at % unit);
        bool whole = at % unit == 0 && (n == unit || at + n == size);
        if (whole && bytes_are_zero(buf + (at - offset), n))
            memset(model + at, 0, n);
        at += n;
    }
    check_equal(buf, offset, bytes, "discard");
}

static void status_co_check(uint64_t offset, uint64_t bytes)
{
    BlockStatus status;

    assert_int_equal(node_co_block_status(node, true, offset, bytes, &status), 0);
    assert_true(status.bytes > 0 && status.bytes <= bytes);
    if ((status.flags & STATUS_ZERO) && !bytes_are_zero(model + offset, status.bytes))
        fail_msg("%s: status zero at %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT, cfg->name, offset, status.bytes);
    if (!(status.flags & STATUS_ALLOCATED) && memcmp(model + offset, backing + offset, status.bytes) != 0)
        fail_msg("%s: not allocated at %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT ", but not the backing file's data",
                 cfg->name, offset, status.bytes);
}

static void write_co_some(uint64_t offset, uint64_t bytes, uint8_t *buf, ReqFlags flags)
{
    struct iovec iov[3];
    IoVec vec = {.iov = iov, .n = 3, .size = bytes};
    uint64_t a = rnd(bytes + 1), b = rnd(bytes - a + 1);
    int ret;

    fill_random(buf, bytes);
    iov[0] = (struct iovec){buf, a};
    iov[1] = (struct iovec){buf + a, b};
    iov[2] = (struct iovec){buf + a + b, bytes - a - b};
    ret = port_co_pwritev(port, offset, bytes, &vec, flags);
    if (ret < 0)
        fail_msg("%s: write %" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT ": %s", cfg->name, offset, bytes,
                 g_strerror(-ret));
    memcpy(model + offset, buf, bytes);
}

/* One random request. */
static void op_co_run(unsigned self, uint8_t *buf)
{
    uint64_t offset, bytes, what;

    do {
        uint64_t max = rnd(8) ? 3 * cfg->cluster : MAX_IO;
        bytes = 1 + rnd(u64_min(u64_min(max, MAX_IO), size));
        offset = rnd(size - bytes + 1);
        what = rnd(100);
        if (what >= 90 && what < 96) { /* compressed: one cluster or the tail */
            offset -= offset % cfg->cluster;
            bytes = u64_min(cfg->cluster, size - offset);
        } else if (rnd(4) == 0) {
            offset -= offset % 4096 < offset ? offset % 4096 : 0;
        }
        if (is_busy(self, offset, bytes))
            aio_co_reschedule();
    } while (is_busy(self, offset, bytes));
    busy[self].offset = offset;
    busy[self].bytes = bytes;
    if (what < 45) {
        write_co_some(offset, bytes, buf, 0);
    } else if (what < 65) {
        read_co_check(offset, bytes, buf);
    } else if (what < 75) {
        assert_int_equal(port_co_pwrite_zeroes(port, offset, bytes, rnd(2) ? REQ_MAY_UNMAP : 0), 0);
        memset(model + offset, 0, bytes);
    } else if (what < 83) {
        discard_co_check(offset, bytes, buf);
    } else if (what < 90) {
        status_co_check(offset, bytes);
    } else if (what < 96) {
        write_co_some(offset, bytes, buf, cfg->qed || cfg->data ? 0 : REQ_WRITE_COMPRESSED);
    } else {
        assert_int_equal(port_co_flush(port), 0);
    }
    busy[self].bytes = 0;
}

static void worker_co_entry(void *opaque)
{
    unsigned self = GPOINTER_TO_UINT(opaque);
    g_autofree uint8_t *buf = g_malloc(MAX(MAX_IO, 2 * MIB));

    while (ops_left > 0) {
        ops_left--;
        op_co_run(self, buf);
    }
    if (--running == 0)
        coqueue_wake_all(&workers_done);
}

/* What a crash would leave now: leaks at worst, or with lazy refcounts what can be repaired. The data is another test's
 * business, since nothing was flushed. */
static void check_copy(void)
{
    bool lazy = cfg->create && strstr(cfg->create, "lazy_refcounts=on");

    /* The data file is in use. */
    shell_must(1 << 0 | 1 << 3, "cp --sparse=always image copy && %s qemu-img check %s -f %s copy",
               lazy ? "qemu-img check -r all -f qcow2 copy &&" : "", cfg->data ? "-U" : "", format());
}

static void workers_co_run(int ops)
{
    ops_left = ops;
    running = WORKERS;
    for (unsigned i = 0; i < WORKERS; i++)
        coroutine_start(loop, worker_co_entry, GUINT_TO_POINTER(i));
    while (running) {
        /* In the middle of it all. */
        if (rnd(2)) {
            aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(loop, LOOP_CLOCK_REAL) + (int64_t)rnd(20) * 1000000);
            check_copy();
        }
        if (running)
            coqueue_co_wait(&workers_done, NULL);
    }
}

static void resize_co_random(void)
{
    g_autoptr(GError) error = NULL;
    uint64_t least = cfg->qed ? size : 512, old = size, want = least + 512 * rnd((MAX_SIZE - least) / 512 + 1);
    PreallocMode mode = !cfg->qed && want > size ? (PreallocMode)rnd(PREALLOC_MODE__MAX) : PREALLOC_MODE_OFF;

    if (!port_co_truncate(port, want, true, mode, 0, &error))
        fail_msg("%s: resize from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT ": %s", cfg->name, old, want,
                 error->message);
    if (want < old)
        memset(model + want, 0, old - want);
    size = want;
    assert_int_equal(port_size(port), size);
}

static void judge(void)
{
    g_autofree char *flat = in_folder("flat");

    assert_true(g_file_set_contents(flat, (char *)model, (gssize)size, NULL));
    shell_must(1, "qemu-img check -f %s image", format());
    shell_must(1, "qemu-img compare -f raw -F %s flat image", format());
    if (cfg->data == DATA_FILE_RAW)
        shell_must(1, "qemu-img compare -f raw -F raw flat data"); /* QEMU makes it a bit longer */
}

static void make_co_image(void)
{
    g_autofree char *base = in_folder("base");

    if (cfg->backing_format) {
        fill_random(backing, cfg->backing_size);
        for (uint64_t at = 0; at < cfg->backing_size; at += 40000) {
            uint64_t n = u64_min(cfg->backing_size - at, 40000);
            if (rnd(3) == 0)
                memset(backing + at, 0, n);
            else
                fill_random(backing + at, n);
        }
        assert_true(g_file_set_contents(base, (char *)backing, (gssize)cfg->backing_size, NULL));
        if (strcmp(cfg->backing_format, "raw") != 0)
            shell_must(1, "mv base flat && qemu-img convert -f raw -O %s flat base", cfg->backing_format);
    }
    memcpy(model, backing, u64_min(size, cfg->backing_size));
    if (cfg->create) {
        g_autofree char *data = cfg->data ? g_strdup_printf("-o data_file=%s/data,data_file_raw=%s", folder,
                                                            cfg->data == DATA_FILE_RAW ? "on" : "off")
                                          : g_strdup("");
        shell_must(1, "qemu-img create -f %s %s %s image %" G_GUINT64_FORMAT, format(), cfg->create, data, size);
    } else {
        g_autoptr(GError) error = NULL;
        CreateOptions options = cfg->ours;
        options.size = size;
        if (!image_co_create(graph, image, format(), &options, &error))
            fail_msg("%s", error->message);
    }
    shell_must(1, "qemu-img check -f %s image", format());
}

static void model_co_body(void)
{
    int rounds = g_getenv("SD_ROUNDS") ? atoi(g_getenv("SD_ROUNDS")) : 3;

    size = cfg->size;
    model = g_malloc0(MAX_SIZE + 1);
    backing = g_malloc0(MAX_SIZE + 1);
    image = in_folder("image");
    make_co_image();
    for (int round = 0; round < rounds; round++) {
        open_co_image();
        workers_co_run(cfg->ops);
        if (round % 2 == 1)
            resize_co_random();
        workers_co_run(cfg->ops / 2);
        close_co_image();
        judge();
    }
    g_free(model);
    g_free(backing);
    g_clear_pointer(&image, g_free);
}

#define SMALL ",'l2-cache-entry-size':512,'l2-cache-size':1024"

static const Config configs[] = {
    {.name = "ours, defaults", .size = 5 * MIB + 512, .cluster = 65536, .ops = 300},
    {.name = "ours, 512, v2",
     .ours = {.cluster_size = 512, .version = 2},
     .size = 701 * KIB - 512,
     .cluster = 512,
     .ops = 120,
     .options = SMALL},
    {.name = "ours, 4k, small caches",
     .ours = {.cluster_size = 4096},
     .size = 3 * MIB + 512,
     .cluster = 4096,
     .ops = 300,
     .options = SMALL},
    {.name = "ours, 2M", .ours = {.cluster_size = 2 * MIB}, .size = 6 * MIB - 512, .cluster = 2 * MIB, .ops = 200},
    {.name = "ours, raw backing, shorter",
     .ours = {.cluster_size = 16384, .backing_file = "base", .backing_format = "raw"},
     .backing_format = "raw",
     .backing_size = 2 * MIB + 1234,
     .size = 4 * MIB + 1024,
     .cluster = 16384,
     .ops = 300,
     .options = SMALL},
    {.name = "ours, qcow2 backing, longer",
     .ours = {.backing_file = "base", .backing_format = "qcow2"},
     .backing_format = "qcow2",
     .backing_size = 5 * MIB,
     .size = 3 * MIB + 512,
     .cluster = 65536,
     .ops = 300,
     .options = ",'l2-cache-entry-size':512,'l2-cache-size':1024,'pass-discard-other':true"},
    {.name = "ours, v2, backing",
     .ours = {.cluster_size = 4096, .version = 2, .backing_file = "base", .backing_format = "raw"},
     .backing_format = "raw",
     .backing_size = 1 * MIB + 1,
     .size = 2 * MIB,
     .cluster = 4096,
     .ops = 250},
    {.name = "qemu, refcount_bits=1, 512",
     .create = "-o cluster_size=512,refcount_bits=1",
     .size = MIB,
     .cluster = 512,
     .ops = 120,
     .options = SMALL},
    {.name = "qemu, refcount_bits=64, 512",
     .create = "-o cluster_size=512,refcount_bits=64",
     .size = MIB + 512,
     .cluster = 512,
     .ops = 120,
     .options = SMALL},
    {.name = "qemu, refcount_bits=2, 4k, zstd",
     .create = "-o cluster_size=4k,refcount_bits=2,compression_type=zstd",
     .size = 3 * MIB,
     .cluster = 4096,
     .ops = 300},
    {.name = "qemu, refcount_bits=8, 32k, zstd, backing",
     .create = "-b base -F qcow2 -o cluster_size=32k,refcount_bits=8,compression_type=zstd",
     .backing_format = "qcow2",
     .backing_size = 3 * MIB + 4096,
     .size = 4 * MIB - 512,
     .cluster = 32768,
     .ops = 300,
     .options = SMALL},
    {.name = "qemu, preallocated",
     .create = "-o preallocation=metadata,cluster_size=8k",
     .size = 3 * MIB + 512,
     .cluster = 8192,
     .ops = 300,
     .options = SMALL},
    {.name = "qemu, compat 0.10, 1k",
     .create = "-o compat=0.10,cluster_size=1k",
     .size = MIB,
     .cluster = 1024,
     .ops = 150,
     .options = SMALL},
    {.name = "qemu, refcount_bits=4, 64k, zstd, O_DIRECT",
     .create = "-o cluster_size=64k,refcount_bits=4,compression_type=zstd",
     .size = 4 * MIB + 512,
     .cluster = 65536,
     .ops = 200,
     .options = SMALL,
     .direct = true},
    {.name = "qemu, compat 0.10, 16k, qcow2 backing, O_DIRECT",
     .create = "-b base -F qcow2 -o compat=0.10,cluster_size=16k",
     .backing_format = "qcow2",
     .backing_size = 2 * MIB + 512,
     .size = 3 * MIB,
     .cluster = 16384,
     .ops = 200,
     .direct = true},
    {.name = "qemu, 512, blocks of 4k",
     .create = "-o cluster_size=512",
     .size = MIB,
     .cluster = 512,
     .ops = 200,
     .align = 4096},
    {.name = "qemu, 2k, refcount_bits=8, blocks of 64k, backing",
     .create = "-b base -F raw -o cluster_size=2k,refcount_bits=8",
     .backing_format = "raw",
     .backing_size = MIB + 512,
     .size = 2 * MIB,
     .cluster = 2048,
     .ops = 200,
     .align = 65536},
    {.name = "qemu, 2M, blocks of 2M",
     .create = "-o cluster_size=2M",
     .size = 6 * MIB,
     .cluster = 2 * MIB,
     .ops = 100,
     .align = 2 * MIB},
    {.name = "qemu, 2M, refcount_bits=64, backing",
     .create = "-b base -F raw -o cluster_size=2M,refcount_bits=64",
     .backing_format = "raw",
     .backing_size = 5 * MIB + 7,
     .size = 6 * MIB,
     .cluster = 2 * MIB,
     .ops = 150},
    {.name = "qemu, lazy_refcounts, 128k",
     .create = "-o lazy_refcounts=on,cluster_size=128k,refcount_bits=32",
     .size = 6 * MIB - 4096,
     .cluster = 128 * KIB,
     .ops = 300},
    {.name = "ours, extended_l2, 64k, zstd, preallocated, backing",
     .ours = {.cluster_size = 65536,
              .extended_l2 = true,
              .zstd = true,
              .preallocation = PREALLOC_MODE_METADATA,
              .backing_file = "base",
              .backing_format = "raw"},
     .backing_format = "raw",
     .backing_size = 3 * MIB + 512,
     .size = 4 * MIB + 512,
     .cluster = 65536,
     .sub = 2048,
     .ops = 300,
     .options = SMALL},
    {.name = "qemu, extended_l2, 16k, small caches",
     .create = "-o extended_l2=on,cluster_size=16k",
     .size = 4 * MIB + 512,
     .cluster = 16384,
     .sub = 512,
     .ops = 300,
     .options = SMALL},
    {.name = "qemu, extended_l2, 64k, zstd, raw backing, shorter",
     .create = "-b base -F raw -o extended_l2=on,cluster_size=64k,compression_type=zstd",
     .backing_format = "raw",
     .backing_size = 2 * MIB + 1234,
     .size = 5 * MIB + 1024,
     .cluster = 65536,
     .sub = 2048,
     .ops = 300,
     .options = SMALL},
    {.name = "qemu, extended_l2, 128k, qcow2 backing, longer",
     .create = "-b base -F qcow2 -o extended_l2=on,cluster_size=128k",
     .backing_format = "qcow2",
     .backing_size = 5 * MIB,
     .size = 4 * MIB - 512,
     .cluster = 128 * KIB,
     .sub = 4096,
     .ops = 300,
     .options = ",'pass-discard-other':true"},
    {.name = "qemu, extended_l2, 16k, preallocated",
     .create = "-o extended_l2=on,cluster_size=16k,preallocation=metadata",
     .size = 3 * MIB + 512,
     .cluster = 16384,
     .sub = 512,
     .ops = 300,
     .options = SMALL},
    {.name = "qemu, extended_l2, 2M, refcount_bits=1, backing",
     .create = "-b base -F raw -o extended_l2=on,cluster_size=2M,refcount_bits=1",
     .backing_format = "raw",
     .backing_size = 5 * MIB + 7,
     .size = 6 * MIB,
     .cluster = 2 * MIB,
     .sub = 65536,
     .ops = 200},
    {.name = "qemu, extended_l2, 32k, O_DIRECT, backing",
     .create = "-b base -F raw -o extended_l2=on,cluster_size=32k",
     .backing_format = "raw",
     .backing_size = 3 * MIB + 512,
     .size = 4 * MIB + 512,
     .cluster = 32768,
     .sub = 1024,
     .ops = 200,
     .direct = true},
    {.name = "qemu, extended_l2, 16k, blocks of 4k",
     .create = "-o extended_l2=on,cluster_size=16k",
     .size = 2 * MIB,
     .cluster = 16384,
     .sub = 512,
     .ops = 200,
     .align = 4096},
    {.name = "ours, 16k, 64 bits, preallocated",
     .ours = {.cluster_size = 16384, .refcount_bits = 64, .preallocation = PREALLOC_MODE_METADATA},
     .size = 4 * MIB + 512,
     .cluster = 16384,
     .ops = 200},
    {.name = "ours, extended_l2, 32k, zstd, backing, falloc",
     .ours = {.cluster_size = 32768,
              .extended_l2 = true,
              .zstd = true,
              .preallocation = PREALLOC_MODE_FALLOC,
              .backing_file = "base",
              .backing_format = "raw"},
     .backing_format = "raw",
     .backing_size = 3 * MIB + 512,
     .size = 4 * MIB + 512,
     .cluster = 32768,
     .sub = 1024,
     .ops = 200,
     .options = SMALL},
    {.name = "qemu, 8k, discard-no-unref, small caches",
     .create = "-o cluster_size=8k",
     .size = 3 * MIB + 512,
     .cluster = 8192,
     .ops = 300,
     .options = ",'discard-no-unref':true,'l2-cache-entry-size':512,'l2-cache-size':1024"},
    {.name = "qemu, extended_l2, 16k, discard-no-unref, backing",
     .create = "-b base -F raw -o extended_l2=on,cluster_size=16k",
     .backing_format = "raw",
     .backing_size = 2 * MIB + 512,
     .size = 3 * MIB + 512,
     .cluster = 16384,
     .sub = 512,
     .ops = 300,
     .options = ",'discard-no-unref':true,'pass-discard-request':true"},
    {.name = "qemu, data file",
     .create = "",
     .data = DATA_FILE,
     .size = 5 * MIB + 512,
     .cluster = 65536,
     .ops = 300,
     .options = SMALL},
    {.name = "qemu, data file, 4k, backing, O_DIRECT",
     .create = "-b base -F raw -o cluster_size=4k",
     .data = DATA_FILE,
     .backing_format = "raw",
     .backing_size = 3 * MIB + 1234,
     .size = 4 * MIB + 1024,
     .cluster = 4096,
     .ops = 300,
     .direct = true,
     .options = SMALL},
    {.name = "qemu, data file, extended_l2, 32k, backing, no discards",
     .create = "-b base -F qcow2 -o cluster_size=32k,extended_l2=on",
     .data = DATA_FILE,
     .backing_format = "qcow2",
     .backing_size = 3 * MIB + 512,
     .size = 4 * MIB + 512,
     .cluster = 32768,
     .sub = 1024,
     .ops = 300,
     .options = ",'pass-discard-request':false,'l2-cache-entry-size':512,'l2-cache-size':1024"},
    {.name = "qemu, raw data file",
     .create = "",
     .data = DATA_FILE_RAW,
     .size = 5 * MIB + 512,
     .cluster = 65536,
     .ops = 300},
    {.name = "qemu, raw data file, 2k, small caches",
     .create = "-o cluster_size=2k",
     .data = DATA_FILE_RAW,
     .size = 2 * MIB + 512,
     .cluster = 2048,
     .ops = 300,
     .options = SMALL},
    {.name = "qemu, raw data file, extended_l2, 16k, O_DIRECT",
     .create = "-o cluster_size=16k,extended_l2=on",
     .data = DATA_FILE_RAW,
     .size = 4 * MIB + 512,
     .cluster = 16384,
     .sub = 512,
     .ops = 300,
     .direct = true},
    {.name = "qed, ours, defaults", .qed = true, .size = 5 * MIB + 512, .cluster = 65536, .ops = 300},
    {.name = "qed, ours, 4k, small cache, raw backing, shorter",
     .qed = true,
     .ours = {.cluster_size = 4096, .backing_file = "base", .backing_format = "raw"},
     .backing_format = "raw",
     .backing_size = 2 * MIB + 1234,
     .size = 4 * MIB + 1024,
     .cluster = 4096,
     .ops = 300,
     .slices = 2},
    {.name = "qed, ours, 2M, qed backing, longer",
     .qed = true,
     .ours = {.cluster_size = 2 * MIB, .backing_file = "base", .backing_format = "qed"},
     .backing_format = "qed",
     .backing_size = 5 * MIB,
     .size = 3 * MIB + 512,
     .cluster = 2 * MIB,
     .ops = 150},
    {.name = "qed, qemu, 4k, two clusters of table, small cache",
     .qed = true,
     .create = "-o cluster_size=4k,table_size=2",
     .size = 5 * MIB,
     .cluster = 4096,
     .ops = 300,
     .slices = 2},
    {.name = "qed, qemu, 8k, 16 clusters of table, backing",
     .qed = true,
     .create = "-b base -F qcow2 -o cluster_size=8k,table_size=16",
     .backing_format = "qcow2",
     .backing_size = 3 * MIB + 4096,
     .size = 4 * MIB - 512,
     .cluster = 8192,
     .ops = 300,
     .slices = 2},
    {.name = "qed, qemu, 64k, O_DIRECT, backing",
     .qed = true,
     .create = "-b base -F raw",
     .backing_format = "raw",
     .backing_size = 5 * MIB + 7,
     .size = 5 * MIB - 512,
     .cluster = 65536,
     .ops = 200,
     .direct = true},
    {.name = "qed, qemu, 4k, blocks of 64k",
     .qed = true,
     .create = "-o cluster_size=4k",
     .size = 2 * MIB,
     .cluster = 4096,
     .ops = 200,
     .align = 65536},
};

static void model_test(void **state)
{
    cfg = *state;
    rng = (g_getenv("SD_SEED") ? strtoull(g_getenv("SD_SEED"), NULL, 0) : 1) * 0x9e3779b97f4a7c15 +
          (uint64_t)(cfg - configs);
    run_in_coroutine(model_co_body);
}

int main(void)
{
    struct CMUnitTest tests[G_N_ELEMENTS(configs)];
    const char *only = g_getenv("SD_ONLY");

    for (size_t i = 0; i < G_N_ELEMENTS(configs); i++)
        tests[i] =
            (struct CMUnitTest){.name = configs[i].name, .test_func = model_test, .initial_state = (void *)&configs[i]};
    if (only)
        cmocka_set_test_filter(only);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
