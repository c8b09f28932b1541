/*
 * A qcow2, qed or LUKS image from somebody else: the input is the whole file, in memory, and what is done to it
 * (image-mutate.h). It is opened without its backing file, read, asked about, written to in every way, resized, opened
 * again, checked, repaired, and closed; what is encrypted, with the password "k". Whatever it is, that ends, within
 * bounds; a qcow2 image that was found damaged is not written to again; and one that the checker calls whole still is
 * so at the end.
 *
 * Passwords cost little here: what asks for more iterations than FUZZ_ITERATIONS is answered as if the time had run
 * out, which is what becomes of much larger numbers outside (the linker wraps pbkdf2(), see the Makefile).
 */
#include "block/crypto/hash.h"
#include "block/graph/bitmap.h"
#include "block/graph/check.h"
#include "block/graph/graph-int.h"
#include "block/graph/port.h"
#include "block/graph/snapshot.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include "qapi/events.h"
#include "qapi/rt/json.h"
#include "image-mutate.h"
#include <errno.h>
#include "qapi/rt/tree.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { DISK_MAX = 8 << 20, LONGER = 1 << 20, IO_MAX = 128 << 10, OPENS_MAX = 4 };

static uint8_t *disk;
static uint64_t disk_size, disk_high; /* now, and the most since it was zeroed */
static bool shared;                   /* a data file is the same memory: what one side cuts off, the other has still */
static bool damaged;                  /* a fatal event came */
static unsigned damaged_writes;       /* what was written after it */

/* The data of a qcow2 image is in another file. */
static bool has_data_file(void)
{
    return memcmp(disk, "QFI", 3) == 0 && disk[7] > 2 && (disk[79] & 4);
}

static bool mem_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    return true;
}

static void mem_co_close(Node *node)
{
}

static int64_t mem_co_getlength(Node *node)
{
    return (int64_t)disk_size;
}

static int mem_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                         ReqFlags flags)
{
    g_assert(offset + bytes <= (shared ? DISK_MAX : disk_size));
    iov_from_buf(vec->iov, vec->n, vec_offset, disk + offset, bytes);
    return 0;
}

static int mem_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    damaged_writes += damaged;
    if (offset > DISK_MAX || bytes > DISK_MAX - offset)
        return -ENOSPC;
    iov_to_buf(vec->iov, vec->n, vec_offset, disk + offset, bytes);
    disk_size = u64_max(disk_size, offset + bytes);
    disk_high = u64_max(disk_high, disk_size);
    return 0;
}

static bool mem_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                            GError **error)
{
    if (size > DISK_MAX)
        return error_set_errno(error, ENOSPC, "Could not resize");
    if (size < disk_size)
        memset(disk + size, 0, disk_size - size);
    disk_size = size;
    disk_high = u64_max(disk_high, disk_size);
    return true;
}

/* Takes the name of a driver that the schema knows. */
static const Driver mem_driver = {
    .name = "null-co",
    .is_protocol = true,
    .may_grow = true,
    .co_open = mem_co_open,
    .co_close = mem_co_close,
    .co_getlength = mem_co_getlength,
    .co_preadv = mem_co_preadv,
    .co_pwritev = mem_co_pwritev,
    .co_truncate = mem_co_truncate,
};
extern const Driver driver_qcow2, driver_qed, driver_luks;
static const Driver *const drivers[] = {&mem_driver, &driver_qcow2, &driver_qed, &driver_luks, NULL};

static Loop *loop;
static Graph *graph;

static void on_event(const char *name, Tree *data, void *opaque)
{
    if (tree_as_bool(tree_get(data, "fatal")))
        damaged = true;
    tree_unref(data);
}

static void quiet(const char *text)
{
}

/* ---- passwords ----------------------------------------------------------------------------------------------------
 */

enum { FUZZ_ITERATIONS = 3000 };

bool __real_pbkdf2(const Pbkdf2 *p, uint8_t *ret, size_t size, int64_t *cpu_ns);
bool __wrap_pbkdf2(const Pbkdf2 *p, uint8_t *ret, size_t size, int64_t *cpu_ns);
bool __wrap_pbkdf2(const Pbkdf2 *p, uint8_t *ret, size_t size, int64_t *cpu_ns)
{
    return p->iterations <= FUZZ_ITERATIONS && __real_pbkdf2(p, ret, size, cpu_ns);
}

uint32_t __wrap_pbkdf2_iterations(QCryptoHashAlgorithm alg, size_t size, uint64_t ms);
uint32_t __wrap_pbkdf2_iterations(QCryptoHashAlgorithm alg, size_t size, uint64_t ms)
{
    return FUZZ_ITERATIONS / 2;
}

static void secret_co_entry(void *opaque)
{
    SecretProperties properties = {.data = (char *)"k"};

    g_assert(secret_co_new(graph_secrets(graph), "k", &properties, NULL));
    loop_stop(loop);
}

/* ---- what is done to the image ------------------------------------------------------------------------------------
 */

enum {
    OP_READ,
    OP_WRITE,
    OP_ZERO,
    OP_ZERO_UNMAP,
    OP_DISCARD,
    OP_FLUSH,
    OP_COMPRESS,
    OP_STATUS,
    OP_RESIZE,
    OP_REOPEN,
    OP_REOPEN_READ_ONLY,
    OP_REBASE,
    OP_CHECK,
    OP_SNAPSHOT,
    OP_BITMAP,
    OP_KEY_SLOT,
    OP__MAX,
};

enum { OPTION_SMALL_CACHES = 1, OPTION_READ_ONLY_FIRST = 2, OPTION_NO_OVERLAP_CHECK = 4, OPTION_LONGER = 8 };

/* What runs without a script: begins read-only, then everything once, at the start, in the middle and at the end. */
static const uint8_t standard[][OP_BYTES] = {
    {OP_READ, 0, 0, 7},        {OP_STATUS, 0, 0, 0},        {OP_READ, 128, 0, 7},     {OP_REOPEN, 0, 0, 0},
    {OP_READ, 0, 0, 7},        {OP_READ, 128, 0, 7},        {OP_WRITE, 0, 0, 2},      {OP_ZERO_UNMAP, 0, 0, 5},
    {OP_COMPRESS, 0, 0, 0x80}, {OP_FLUSH, 0, 0, 0},         {OP_DISCARD, 0, 0, 6},    {OP_FLUSH, 0, 0, 0},
    {OP_FLUSH, 0, 0, 0},       {OP_WRITE, 1, 1, 2},         {OP_ZERO_UNMAP, 1, 1, 5}, {OP_COMPRESS, 1, 0, 0x80},
    {OP_FLUSH, 0, 0, 0},       {OP_DISCARD, 1, 1, 6},       {OP_FLUSH, 0, 0, 0},      {OP_WRITE, 224, 1, 2},
    {OP_ZERO, 224, 1, 5},      {OP_COMPRESS, 224, 0, 0x80}, {OP_DISCARD, 224, 1, 6},  {OP_FLUSH, 0, 0, 0},
};

static Node *node;
static Port *port;
static unsigned opened; /* again; with tables as large as they may be each costs a tenth of a second */

static const Driver *image_driver(void)
{
    return memcmp(disk, "QED", 4) == 0 ? &driver_qed : memcmp(disk, "LUKS", 4) == 0 ? &driver_luks : &driver_qcow2;
}

/* Members of the node's options. */
static char *options_of(const Driver *drv, uint8_t options)
{
    static const char *const encrypt[] = {"", ",'encrypt':{'format':'aes','key-secret':'k'}",
                                          ",'encrypt':{'format':'luks','key-secret':'k'}"};
    bool no_overlap_check = options & OPTION_NO_OVERLAP_CHECK, small = options & OPTION_SMALL_CACHES;
    uint32_t crypt = load_be32(disk + 32);

    if (drv == &driver_luks)
        return g_strdup(",'key-secret':'k'");
    if (drv != &driver_qcow2)
        return g_strdup(",'backing':null");
    return g_strdup_printf(",'backing':null,'overlap-check':'%s'%s%s%s", no_overlap_check ? "none" : "all",
                           small ? ",'l2-cache-entry-size':512,'l2-cache-size':1024,'refcount-cache-size':8192" : "",
                           has_data_file() ? ",'data-file':{'driver':'null-co'}" : "", crypt < 3 ? encrypt[crypt] : "");
}

static bool open_co_image(bool read_only, uint8_t options)
{
    const Driver *drv = image_driver();
    g_autofree char *more = options_of(drv, options);
    g_autofree char *text = g_strdup_printf("{'driver':'%s','node-name':'q','discard':'unmap','read-only':%s,"
                                            "'file':{'driver':'null-co'}%s}",
                                            drv->name, read_only ? "true" : "false", more);
    g_autoptr(Tree) json = json_parse(text, -1, NULL);
    g_autoptr(BlockdevOptions) o = qapi_decode_BlockdevOptions(json, NULL);
    g_autoptr(GError) error = NULL;

    if (disk[7] < 3 || drv != &driver_qcow2) /* has no bit to say that it is damaged */
        damaged = false;
    shared |= has_data_file();
    node = node_co_open(graph, o, NULL, &error);
    g_assert((node == NULL) == (error != NULL));
    g_assert(!error || g_utf8_validate(error->message, -1, NULL));
    if (node)
        port =
            port_co_new(graph, node, read_only ? PERM_CONSISTENT_READ : PERM_CONSISTENT_READ | PERM_WRITE | PERM_RESIZE,
                        PERM_ALL, NULL, NULL, NULL);
    g_assert(!node || port);
    return node != NULL;
}

static void close_co_image(void)
{
    port_co_free(port);
    node_co_unref(node);
    port = NULL;
    node = NULL;
}

/* Checks and maybe repairs the image, which nobody has open: is it whole now? */
static bool check_co_image(unsigned fix)
{
    const Driver *drv = image_driver();
    g_autoptr(Tree) json = json_parse("{'driver':'null-co'}", -1, NULL);
    g_autoptr(BlockdevOptions) o = qapi_decode_BlockdevOptions(json, NULL);
    const CheckOptions options = {.fix = fix};
    g_autoptr(GError) error = NULL;
    CheckResult result = {0};
    Node *file = node_co_open(graph, o, NULL, NULL);
    Port *on = port_co_new(graph, file, PERM_CONSISTENT_READ | (fix ? PERM_WRITE | PERM_RESIZE : 0), PERM_ALL, NULL,
                           NULL, NULL);
    bool ok;

    on->writable = fix;
    if (fix)
        damaged = false;
    ok = drv->co_check && drv->co_check(on->child, &options, &result, &error);
    g_assert(!ok || !error);
    port_co_free(on);
    node_co_unref(file);
    return ok && !result.corruptions && !result.check_errors;
}

/* Where an operation works: @place is a fraction of the disk; bits of @how: its length, and whether it is aligned. */
static void op_range(uint64_t place, uint8_t how, uint64_t *offset, uint64_t *bytes)
{
    static const uint64_t lengths[] = {1, 512, 3000, 65536, 0, 3, 5, 0};
    uint64_t size = port_size(port), cluster = u64_max(node->limits.write_zeroes_align, 512);
    unsigned k = how & 7;

    *offset = (uint64_t)((unsigned __int128)size * place >> 16) + (how >> 3 & 3) * cluster;
    if (how & 0x80)
        *offset -= *offset % cluster;
    *bytes = k == 4 || k == 7 ? size : k > 4 ? lengths[k] * cluster : lengths[k];
    *offset = u64_min(*offset, size);
    *bytes = u64_min(*bytes, size - *offset);
}

static void op_co_write(uint64_t offset, uint64_t bytes, uint8_t *buf, ReqFlags flags)
{
    uint64_t cluster = u64_max(node->limits.write_zeroes_align, 512);
    struct iovec iov;
    IoVec vec;

    if (flags & REQ_WRITE_COMPRESSED) {
        offset -= offset % cluster;
        bytes = u64_min(cluster, port_size(port) - offset);
    }
    bytes = u64_min(bytes, IO_MAX);
    if (flags & REQ_WRITE_COMPRESSED && bytes != u64_min(cluster, port_size(port) - offset))
        return;
    memset(buf, 0x5a, bytes);
    iovec_one(&vec, &iov, buf, bytes);
    port_co_pwritev(port, offset, bytes, &vec, flags);
}

static void op_co_status(uint64_t offset, uint64_t bytes)
{
    BlockStatus status;

    for (int i = 0; i < 64 && bytes; i++) {
        if (node_co_block_status(node, i & 1, offset, bytes, &status) < 0)
            return;
        g_assert(status.bytes > 0);
        status.bytes = u64_min(status.bytes, bytes);
        offset += status.bytes;
        bytes -= status.bytes;
    }
}

static void op_co_snapshot(const uint8_t *op)
{
    char name[3] = {'s', (char)('0' + op[2] % 4), 0};
    const SnapshotNew create = {.name = name, .date_ns = op[1] * INT64_C(1000000007)};

    if (op[3] % 4 == 0)
        node_co_snapshot_delete(node, NULL, name, NULL);
    else if (op[3] % 4 == 1)
        node_co_snapshot_apply(node, NULL, name, NULL);
    else
        node_co_snapshot_create(node, &create, NULL);
}

static void op_co_bitmap(const uint8_t *op)
{
    char name[3] = {'b', (char)('0' + op[2] % 4), 0};
    Bitmap *bitmap = bitmap_find(node, name);
    uint64_t granularity = UINT64_C(512) << op[1] % 12;

    if (op[3] % 4 == 0) {
        if (bitmap && bitmap_check(bitmap, BITMAP_REFUSE_BUSY | BITMAP_REFUSE_RO, NULL) &&
            bitmap_co_forget(bitmap, NULL) && (bitmap = bitmap_find(node, name)))
            bitmap_free(bitmap);
    } else if (op[3] % 4 == 1 && bitmap && bitmap_check(bitmap, BITMAP_REFUSE_ALL, NULL)) {
        if (bitmap_co_touch(bitmap, NULL) && (bitmap = bitmap_find(node, name)))
            bitmap->enabled = op[3] & 4;
    } else if (!bitmap && (bitmap = bitmap_new(node, granularity, name, NULL))) {
        bitmap->persistent = bitmap->unsaved = bitmap_can_store(node, name, granularity, NULL);
    }
}

/* Fills or empties one of LUKS's slots. */
static void op_co_key_slot(const uint8_t *op)
{
    bool qcow2 = node->drv == &driver_qcow2, fill = op[3] & 1;
    g_autofree char *slot = op[2] & 8 ? g_strdup("") : g_strdup_printf(",'keyslot':%u", op[2] & 7u);
    g_autofree char *luks = g_strdup_printf("'state':'%s'%s%s", fill ? "active','new-secret':'k" : "inactive", slot,
                                            !fill && op[2] & 8 ? ",'old-secret':'k'" : "");
    g_autofree char *text =
        g_strdup_printf(qcow2 ? "{'driver':'qcow2','encrypt':{'format':'luks',%s}}" : "{'driver':'luks',%s}", luks);
    g_autoptr(Tree) json = json_parse(text, -1, NULL);
    g_autoptr(BlockdevAmendOptions) o = qapi_decode_BlockdevAmendOptions(json, NULL);
    g_autoptr(GError) error = NULL;

    g_assert(o);
    g_assert(node->drv->co_amend(node, o, op[3] & 2, &error) == !error);
}

/* What needs a node of ours that is whole: changes of the header, and what the image keeps beside the disk. */
static void op_co_beside(const uint8_t *op)
{
    const Driver *drv = node->drv;

    if (damaged)
        return;
    switch (op[0] % OP__MAX) {
    case OP_REBASE:
        if (drv->co_change_backing)
            drv->co_change_backing(node, op[3] & 1 ? "base" : NULL, op[3] & 2 ? "raw" : NULL, NULL);
        break;
    case OP_SNAPSHOT:
        if (drv == &driver_qcow2)
            op_co_snapshot(op);
        break;
    case OP_BITMAP:
        op_co_bitmap(op);
        break;
    case OP_KEY_SLOT:
        if (drv->co_amend)
            op_co_key_slot(op);
        break;
    }
}

/* False: the image could not be opened any more. */
static bool op_co_run(const uint8_t *op, uint8_t options)
{
    static uint8_t buf[IO_MAX];
    uint64_t offset, bytes, place = (uint64_t)op[1] << 8 | op[2];
    unsigned what = op[0] % OP__MAX;

    op_range(place, op[3], &offset, &bytes);
    if (!port->writable && what != OP_READ && what != OP_STATUS && what != OP_REOPEN && what != OP_REOPEN_READ_ONLY)
        return true;
    switch (what) {
    case OP_READ:
        port_co_pread(port, offset, u64_min(bytes, IO_MAX), buf, 0);
        break;
    case OP_WRITE:
    case OP_COMPRESS:
        op_co_write(offset, bytes, buf, what == OP_COMPRESS ? REQ_WRITE_COMPRESSED : 0);
        break;
    case OP_ZERO:
    case OP_ZERO_UNMAP:
        port_co_pwrite_zeroes(port, offset, u64_min(bytes, 1 << 20), what == OP_ZERO ? 0 : REQ_MAY_UNMAP);
        break;
    case OP_DISCARD:
        port_co_pdiscard(port, offset, bytes);
        break;
    case OP_FLUSH:
        port_co_flush(port);
        break;
    case OP_STATUS:
        op_co_status(offset, bytes);
        break;
    case OP_RESIZE:
        port_co_truncate(port, op[3] & 0x20 ? offset : port_size(port) + place * 512, false, PREALLOC_MODE_OFF, 0,
                         NULL);
        break;
    case OP_REOPEN:
    case OP_REOPEN_READ_ONLY:
        if (++opened > OPENS_MAX)
            break;
        close_co_image();
        if (!open_co_image(what == OP_REOPEN_READ_ONLY, options))
            return false;
        port->writable = what == OP_REOPEN;
        break;
    case OP_CHECK:
        if (++opened > OPENS_MAX)
            break;
        close_co_image();
        if (check_co_image(op[3] & (CHECK_FIX_LEAKS | CHECK_FIX_ERRORS)) && op[3] & CHECK_FIX_ERRORS)
            g_assert(check_co_image(0)); /* what was repaired stays so */
        if (!open_co_image(false, options))
            return false;
        port->writable = true;
        break;
    default:
        op_co_beside(op);
    }
    return true;
}

static void fuzz_co_entry(void *opaque)
{
    const FuzzInput *in = opaque;
    /* With a data file, the same memory is that, too. */
    bool whole = check_co_image(0) && !has_data_file();

    if (open_co_image(in->options & OPTION_READ_ONLY_FIRST, in->options)) {
        port->writable = !(in->options & OPTION_READ_ONLY_FIRST);
        for (unsigned i = 0; i < in->n && op_co_run(in->ops + (size_t)i * OP_BYTES, in->options); i++)
            ;
        if (node)
            close_co_image();
    }
    g_assert(!whole || check_co_image(0)); /* nothing that is done breaks what was whole */
    loop_stop(loop);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    FuzzInput in;

    if (!loop) {
        loop = loop_new(NULL);
        g_assert(loop);
        graph = graph_new(loop);
        driver_set_list(drivers);
        qapi_set_event_sink(on_event, NULL);
        g_set_printerr_handler(quiet);
        disk = g_malloc0(DISK_MAX);
        coroutine_start(loop, secret_co_entry, NULL);
        while (coroutine_count(loop))
            loop_run(loop);
    }
    if (!fuzz_input_parse(&in, data, size)) {
        in.ops = standard[0];
        in.n = G_N_ELEMENTS(standard);
        in.options = OPTION_READ_ONLY_FIRST;
    }
    if (in.size > DISK_MAX / 2)
        return 0;
    memset(disk, 0, disk_high);
    memcpy(disk, in.image, in.size);
    disk_size = disk_high = in.size + (in.options & OPTION_LONGER ? LONGER : 0); /* zeroes behind it */
    damaged = shared = false;
    damaged_writes = opened = 0;
    coroutine_start(loop, fuzz_co_entry, &in);
    while (coroutine_count(loop))
        loop_run(loop);
    g_assert_cmpuint(damaged_writes, ==, 0);
    return 0;
}
