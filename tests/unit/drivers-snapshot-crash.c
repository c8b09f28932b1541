/*
 * What a power cut, or an error in the middle, leaves of a qcow2 image while internal snapshots are taken, deleted and
 * applied: LAW 9. A smaller and stricter sister of tests/fault/replay.
 *
 * The image lies in memory, in a driver that records each write and each flush, when they are asked for and when they
 * complete. From the record, states of the disk are built: everything that a completed flush covers, and any part of
 * the rest, torn at sectors. Each state has to open; qemu-img check may find leaks but no corruption; each sector of
 * the guest holds what was there at the last completed guest flush, or something that was written later. Internal
 * snapshots that were taken are there and hold what they held, those that were deleted are gone, and one that was being
 * applied has been applied as a whole or not at all. SD_SEED and SD_STATES make other and longer runs.
 */
#include "drivers-image.h"
#include "block/graph/snapshot.h"

enum { WORKERS = 6, SECTOR = 512, DISK_MAX = 64 * MIB };

/* ---- the recording driver --------------------------------------------------------------------------------------- */

typedef struct Record {
    bool flush, truncate;
    uint64_t offset, bytes; /* truncate: bytes is the new size */
    uint8_t *data;
    uint64_t submitted, completed; /* moments; completed 0: never */
} Record;

static GArray *records; /* of Record, in order of submission */
static uint8_t *disk;
static uint64_t disk_size, disk_high; /* now, and the most ever */
static uint64_t moment;               /* counts events of both sides */
static uint64_t rng;

static uint64_t rnd(uint64_t below)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return below ? (rng * UINT64_C(0x2545f4914f6cdd1d) >> 11) % below : 0;
}

/* Which request fails: the countdown'th read, write or flush; all of its kind from then on when sticky. */
static struct {
    unsigned kind; /* 0: none, 1: read, 2: write, 3: flush; 4: the disk is full from countdown bytes on */
    uint64_t countdown;
    bool sticky, happened;
} fault;

static bool fails(unsigned kind)
{
    if (fault.kind != kind || (fault.countdown && --fault.countdown) || (fault.happened && !fault.sticky))
        return false;
    fault.happened = true;
    return true;
}

static void delay_co_some(void)
{
    for (uint64_t n = rnd(40) ? rnd(6) : rnd(400); n; n--)
        aio_co_reschedule();
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
    delay_co_some();
    assert_true(offset + bytes <= DISK_MAX);
    if (fails(1))
        return -EIO;
    iov_from_buf(vec->iov, vec->n, vec_offset, disk + offset, bytes);
    return 0;
}

static int mem_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    Record r = {.offset = offset, .bytes = bytes, .data = g_malloc(bytes), .submitted = ++moment};
    guint i = records->len;

    assert_true(offset + bytes <= DISK_MAX);
    iov_to_buf(vec->iov, vec->n, vec_offset, r.data, bytes);
    g_array_append_val(records, r);
    bool fail = fails(2);
    if (fault.kind == 4 && offset + bytes > fault.countdown) {
        fault.happened = true;
        g_free(r.data);
        g_array_remove_index(records, i);
        return -ENOSPC;
    }
    delay_co_some();
    if (fail) /* some of it may be there */
        bytes = rnd(2) ? 0 : align_down(rnd(bytes), SECTOR);
    memcpy(disk + offset, r.data, bytes);
    disk_size = u64_max(disk_size, offset + bytes);
    disk_high = u64_max(disk_high, disk_size);
    if (fail)
        return -EIO;
    g_array_index(records, Record, i).completed = ++moment;
    return 0;
}

/* Zeroes what it is given: the worst that it may do. */
static int mem_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    Record r = {.offset = offset, .bytes = bytes, .data = g_malloc0(bytes), .submitted = ++moment};
    guint i = records->len;

    assert_true(offset + bytes <= DISK_MAX);
    g_array_append_val(records, r);
    delay_co_some();
    memset(disk + offset, 0, bytes);
    g_array_index(records, Record, i).completed = ++moment;
    return 0;
}

static bool mem_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                            GError **error)
{
    Record r = {.truncate = true, .bytes = size, .submitted = ++moment};
    guint i = records->len;

    assert_true(size <= DISK_MAX);
    g_array_append_val(records, r);
    delay_co_some();
    if (size < disk_size)
        memset(disk + size, 0, disk_size - size);
    disk_size = size;
    disk_high = u64_max(disk_high, disk_size);
    g_array_index(records, Record, i).completed = ++moment;
    return true;
}

static int mem_co_flush_to_disk(Node *node)
{
    Record r = {.flush = true, .submitted = ++moment};
    guint i = records->len;

    g_array_append_val(records, r);
    delay_co_some();
    if (fails(3))
        return -EIO;
    g_array_index(records, Record, i).completed = ++moment;
    return 0;
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
    .co_pdiscard = mem_co_pdiscard,
    .co_flush_to_disk = mem_co_flush_to_disk,
    .co_truncate = mem_co_truncate,
};

extern const Driver driver_file, driver_qcow2, driver_raw;
static const Driver *const list[] = {&mem_driver, &driver_file, &driver_qcow2, &driver_raw, NULL};

/* ---- the guest -------------------------------------------------------------------------------------------------- */

/* A write of the guest, as one sector saw it. */
typedef struct Seen {
    uint64_t value; /* first eight bytes of the sector; the others repeat them */
    bool optional;  /* a discard: may or may not have an effect */
    uint64_t submitted, completed;
} Seen;

typedef struct Case {
    const char *name;
    const char *create;
    const char *options; /* members of the node's JSON */
    uint64_t size;
    uint64_t cluster;
    bool backing;
    int ops;
    uint64_t sub;       /* bytes of a subcluster, 0: there are none */
    unsigned snapshots; /* how many are taken, deleted or applied in each round */
} Case;

static const Case *cfg;

static GArray **seen;   /* of Seen, for each sector */
static GArray *flushes; /* of Record: those that completed */
static uint64_t next_value;
static Node *node;
static Port *port;
static int ops_left;
static unsigned running;
static CoQueue workers_done;
static struct {
    uint64_t first, n;
} busy[WORKERS];

static bool is_busy(unsigned self, uint64_t first, uint64_t n)
{
    for (unsigned i = 0; i < WORKERS; i++)
        if (i != self && first < busy[i].first + busy[i].n && busy[i].first < first + n)
            return true;
    return false;
}

static void fill(uint8_t *buf, uint64_t bytes, uint64_t value)
{
    for (uint64_t i = 0; i < bytes; i += 8)
        memcpy(buf + i, &value, 8);
}

static void saw(uint64_t first, uint64_t n, Seen what)
{
    for (uint64_t s = first; s < first + n; s++)
        g_array_append_val(seen[s], what);
}

/* A request that failed may have had its effect, all or part of it. */
static void saw_completed(uint64_t first, uint64_t n, bool failed)
{
    uint64_t now = ++moment;

    for (uint64_t s = first; s < first + n; s++) {
        Seen *last = &g_array_index(seen[s], Seen, seen[s]->len - 1);
        last->completed = now;
        last->optional |= failed;
    }
}

static void guest_co_flush(void)
{
    Record r = {.flush = true, .submitted = ++moment};

    int ret = port_co_flush(port);
    assert_true(ret == 0 || (fault.happened && fault.kind != 4));
    if (ret < 0)
        return;
    r.completed = ++moment;
    g_array_append_val(flushes, r);
}

static uint64_t base_value(uint64_t sector)
{
    return cfg->backing ? UINT64_C(0xbac) << 48 | sector : 0;
}

/* No crash, nothing in flight: what was written last, but for what may or may not have had an effect since. */
static void check_read(const uint8_t *buf, uint64_t first, uint64_t n)
{
    for (uint64_t s = first; s < first + n; s++) {
        guint i = seen[s]->len;
        uint64_t value, want = base_value(s);
        bool ok = false;
        memcpy(&value, buf + (s - first) * SECTOR, 8);
        for (; i > 0 && g_array_index(seen[s], Seen, i - 1).optional; i--)
            ok |= value == g_array_index(seen[s], Seen, i - 1).value;
        if (i > 0)
            want = g_array_index(seen[s], Seen, i - 1).value;
        if (value != want && !ok)
            fail_msg("%s: sector %" G_GUINT64_FORMAT " reads 0x%" G_GINT64_MODIFIER "x, not 0x%" G_GINT64_MODIFIER "x",
                     cfg->name, s, value, want);
    }
}

static void guest_co_op(unsigned self, uint8_t *buf)
{
    uint64_t sectors = cfg->size / SECTOR, per_cluster = cfg->cluster / SECTOR, first, n, what = rnd(100);
    struct iovec iov;
    IoVec vec;
    int ret = 0;

    if (what >= 92) {
        guest_co_flush();
        return;
    }
    do {
        n = 1 + rnd(u64_min(sectors, rnd(4) ? per_cluster + 2 : rnd(8) ? per_cluster * 5 : sectors / 20));
        first = rnd(sectors - n + 1);
        if (what >= 85) { /* compressed */
            first -= first % per_cluster;
            n = u64_min(per_cluster, sectors - first);
        } else if (what >= 60) {
            uint64_t unit = cfg->sub && rnd(3) ? cfg->sub / SECTOR : per_cluster;
            first -= first % unit;
            n = u64_min(align_up(n, unit), sectors - first);
        }
        if (is_busy(self, first, n))
            aio_co_reschedule();
    } while (is_busy(self, first, n));
    busy[self].first = first;
    busy[self].n = n;
    if (what < 20) {
        ret = port_co_pread(port, first * SECTOR, n * SECTOR, buf, 0);
        if (ret == 0)
            check_read(buf, first, n);
    } else if (what < 60 || what >= 85) {
        fill(buf, n * SECTOR, ++next_value);
        iovec_one(&vec, &iov, buf, n * SECTOR);
        saw(first, n, (Seen){.value = next_value, .submitted = ++moment});
        ret = port_co_pwritev(port, first * SECTOR, n * SECTOR, &vec, what >= 85 ? REQ_WRITE_COMPRESSED : 0);
    } else if (what < 75) {
        saw(first, n, (Seen){.submitted = ++moment});
        ret = port_co_pwrite_zeroes(port, first * SECTOR, n * SECTOR, what & 1 ? REQ_MAY_UNMAP : 0);
    } else {
        saw(first, n, (Seen){.optional = true, .submitted = ++moment});
        ret = port_co_pdiscard(port, first * SECTOR, n * SECTOR);
    }
    if (ret < 0 && !fault.happened)
        fail_msg("%s: %s", cfg->name, g_strerror(-ret));
    if (what >= 20)
        saw_completed(first, n, ret < 0);
    busy[self].n = 0;
}

static void worker_co_entry(void *opaque)
{
    unsigned self = GPOINTER_TO_UINT(opaque);
    g_autofree uint8_t *buf = g_malloc(cfg->size);

    while (ops_left-- > 0)
        guest_co_op(self, buf);
    if (--running == 0)
        coqueue_wake_all(&workers_done);
}

static void guest_co_run(int ops)
{
    ops_left = ops;
    running = WORKERS;
    for (unsigned i = 0; i < WORKERS; i++)
        coroutine_start(loop, worker_co_entry, GUINT_TO_POINTER(i));
    if (running)
        coqueue_co_wait(&workers_done, NULL);
}

/* ---- internal snapshots: while no request is in flight ---------------------------------------------------------- */

typedef struct Kept {
    char *name;
    uint8_t *content;
    uint64_t created, created_done, deleted, deleted_done; /* moments; 0: never */
    bool uncertain;                                        /* something about it failed */
} Kept;

typedef struct Applied {
    const uint8_t *content;
    uint64_t begun, done; /* moments; done 0: it failed */
} Applied;

static GArray *kept;    /* of Kept */
static GArray *applied; /* of Applied */

/* What a change has made durable is like a guest's flush. */
static void all_is_durable(void)
{
    Record r = {.flush = true, .submitted = ++moment};

    r.completed = ++moment;
    g_array_append_val(flushes, r);
}

static void create_co_snapshot(void)
{
    Kept k = {.name = g_strdup_printf("s%u", kept->len), .content = g_malloc(cfg->size)};
    const SnapshotNew what = {.name = k.name, .date_ns = 1};
    bool ok;

    if (port_co_pread(port, 0, cfg->size, k.content, 0) == 0) {
        check_read(k.content, 0, cfg->size / SECTOR);
        node_co_drained_begin(node);
        k.created = ++moment;
        ok = node_co_snapshot_create(node, &what, NULL);
        node_drained_end(node);
        k.created_done = ok ? ++moment : 0;
        k.uncertain = !ok;
        assert_true(ok || fault.happened);
        if (ok)
            all_is_durable();
    }
    g_array_append_val(kept, k);
}

static void delete_co_snapshot(Kept *k)
{
    bool ok;

    k->deleted = ++moment;
    node_co_drained_begin(node);
    ok = node_co_snapshot_delete(node, NULL, k->name, NULL);
    node_drained_end(node);
    k->deleted_done = ok ? ++moment : 0;
    k->uncertain |= !ok;
    assert_true(ok || fault.happened);
}

static void apply_co_snapshot(const Kept *k)
{
    Applied a = {.content = k->content, .begun = ++moment};
    bool ok = node_co_snapshot_apply(node, NULL, k->name, NULL);

    assert_true(ok || fault.happened);
    for (uint64_t s = 0; s < cfg->size / SECTOR; s++) {
        Seen what = {.submitted = a.begun, .completed = moment + 1, .optional = !ok};
        memcpy(&what.value, k->content + s * SECTOR, 8);
        g_array_append_val(seen[s], what);
    }
    a.done = ok ? ++moment : 0;
    g_array_append_val(applied, a);
    if (ok)
        all_is_durable();
}

static void snapshot_co_op(void)
{
    Kept *there[3];
    unsigned n = 0;

    for (guint i = 0; i < kept->len && n < G_N_ELEMENTS(there); i++) {
        Kept *k = &g_array_index(kept, Kept, i);
        if (k->created_done && !k->deleted)
            there[n++] = k;
    }
    if (n < 2 || (n < 3 && rnd(2)))
        create_co_snapshot();
    else if (rnd(2))
        delete_co_snapshot(there[rnd(n)]);
    else
        apply_co_snapshot(there[rnd(n)]);
}

/* ---- crash states ----------------------------------------------------------------------------------------------- */

/* The latest flush that had completed at @when: everything that completed before it was asked for is durable. */
static uint64_t covered_until(const GArray *list, uint64_t when)
{
    uint64_t until = 0;

    for (guint i = 0; i < list->len; i++) {
        const Record *r = &g_array_index(list, Record, i);
        if (r->flush && r->completed && r->completed <= when)
            until = u64_max(until, r->submitted);
    }
    return until;
}

/* Builds a state of the disk at moment @when in @state and returns its size. */
static uint64_t build_state(const uint8_t *start, uint64_t start_size, uint64_t when, uint8_t *state)
{
    uint64_t until = covered_until(records, when), size = start_size, mode = rnd(5);

    memset(state, 0, disk_high);
    memcpy(state, start, start_size);
    for (guint i = 0; i < records->len; i++) {
        const Record *r = &g_array_index(records, Record, i);
        bool must = r->completed && r->completed < until;
        if (r->flush || r->submitted > when)
            continue;
        if (!must && (mode == 0 || (mode == 1 && rnd(2)) || (mode == 2 && rnd(8) == 0) || (mode == 3 && rnd(8))))
            continue;
        if (r->truncate) {
            if (r->bytes < size)
                memset(state + r->bytes, 0, size - r->bytes);
            size = r->bytes;
        }
        for (uint64_t at = 0; !r->truncate && at < r->bytes;) {
            uint64_t n = u64_min(SECTOR - (r->offset + at) % SECTOR, r->bytes - at);
            if (must || mode < 4 || rnd(2)) {
                memcpy(state + r->offset + at, r->data + at, n);
                size = u64_max(size, r->offset + at + n);
            }
            at += n;
        }
    }
    return size;
}

/* @when: writes from then on are not expected. */
static bool is_allowed(uint64_t sector, uint64_t value, uint64_t base, uint64_t until, uint64_t when)
{
    const GArray *list = seen[sector];
    guint from = 0;
    bool ok = false, floor = true;

    /* The last write that the flush covers decides, and what came after it may show. */
    for (guint i = 0; i < list->len; i++) {
        const Seen *s = &g_array_index(list, Seen, i);
        if (!s->optional && s->completed && s->completed < until) {
            from = i;
            floor = false;
        }
    }
    if (floor && value == base)
        return true;
    for (guint i = from; i < list->len && !ok; i++) {
        const Seen *s = &g_array_index(list, Seen, i);
        ok = s->submitted <= when && s->value == value;
    }
    return ok;
}

/* Is it what was read at @taken? A write that had failed by then may have reached the disk all the same. */
static bool is_content(const uint8_t *got, const uint8_t *content, uint64_t taken)
{
    for (uint64_t s = 0; s < cfg->size / SECTOR; s++) {
        bool ok = memcmp(got + s * SECTOR, content + s * SECTOR, SECTOR) == 0;
        for (guint i = 0; i < seen[s]->len && !ok && fault.happened; i++) {
            const Seen *old = &g_array_index(seen[s], Seen, i);
            ok = old->optional && old->submitted < taken && memcmp(got + s * SECTOR, &old->value, 8) == 0;
        }
        if (!ok)
            return false;
    }
    return true;
}

static void check_guest(const uint8_t *got, uint64_t when)
{
    uint64_t until = covered_until(flushes, when);

    for (guint i = 0; i < applied->len; i++) {
        const Applied *a = &g_array_index(applied, Applied, i);
        if (a->begun > when || a->done == 0 || a->done <= when)
            continue;
        /* In the middle of it: all of the snapshot, or nothing of it. */
        if (is_content(got, a->content, a->begun))
            return;
        when = a->begun - 1;
    }

    for (uint64_t s = 0; s < cfg->size / SECTOR; s++) {
        uint64_t value, base = base_value(s);
        memcpy(&value, got + s * SECTOR, 8);
        for (unsigned i = 8; i < SECTOR; i += 8)
            if (memcmp(got + s * SECTOR + i, &value, 8) != 0)
                fail_msg("%s: sector %" G_GUINT64_FORMAT " is a mixture", cfg->name, s);
        if (!is_allowed(s, value, base, until, when))
            fail_msg("%s: sector %" G_GUINT64_FORMAT " has 0x%" G_GINT64_MODIFIER
                     "x, which is neither flushed nor newer "
                     "(crash at %" G_GUINT64_FORMAT ", flushed until %" G_GUINT64_FORMAT ")",
                     cfg->name, s, value, when, until);
    }
}

/* Applies one snapshot after another and compares. */
static void check_co_snapshots(const char *path, uint64_t when)
{
    Node *after = must_co_open("{'driver':'qcow2','node-name':'after','file':{'driver':'file','filename':'%s'}}", path);
    g_autofree uint8_t *got = g_malloc(cfg->size);

    for (guint i = 0; i < kept->len; i++) {
        const Kept *k = &g_array_index(kept, Kept, i);
        g_autoptr(SnapshotInfo) info = node_find_snapshot(after, NULL, k->name);
        bool may = k->created && k->created <= when && !(k->deleted_done && k->deleted_done <= when);
        bool must = may && !k->uncertain && k->created_done <= when && !(k->deleted && k->deleted <= when);
        Port *reader;
        if (info ? !may : must)
            fail_msg("%s: snapshot %s is%s there (crash at %" G_GUINT64_FORMAT ", taken %" G_GUINT64_FORMAT
                     " to %" G_GUINT64_FORMAT ", deleted %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT ")",
                     cfg->name, k->name, info ? "" : " not", when, k->created, k->created_done, k->deleted,
                     k->deleted_done);
        if (!info)
            continue;
        assert_true(node_co_snapshot_apply(after, NULL, k->name, NULL));
        reader = must_co_port(after, false);
        assert_int_equal(port_co_pread(reader, 0, cfg->size, got, 0), 0);
        if (!is_content(got, k->content, k->created))
            fail_msg("%s: snapshot %s holds something else (crash at %" G_GUINT64_FORMAT ", taken %" G_GUINT64_FORMAT
                     " to %" G_GUINT64_FORMAT ", deleted %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT
                     ", last moment %" G_GUINT64_FORMAT ", fault %u)",
                     cfg->name, k->name, when, k->created, k->created_done, k->deleted, k->deleted_done, moment,
                     fault.kind);
        port_co_free(reader);
    }
    node_co_unref(after);
}

/* @clean: not even leaks. */
static void check_co_state(const uint8_t *state, uint64_t state_size, uint64_t when, bool judge, bool clean)
{
    g_autofree char *path = in_folder("state");
    g_autofree uint8_t *got = g_malloc(cfg->size);
    Node *after;
    Port *reader;

    assert_true(g_file_set_contents(path, (const char *)state, (gssize)state_size, NULL));
    if (judge)
        shell_must(1 << 0 | (clean ? 0 : 1 << 3), "qemu-img check -f qcow2 state");
    after = must_co_open("{'driver':'qcow2','node-name':'after','read-only':true,"
                         "'file':{'driver':'file','filename':'%s'}}",
                         path);
    reader = must_co_port(after, false);
    assert_int_equal(port_size(reader), cfg->size);
    assert_int_equal(port_co_pread(reader, 0, cfg->size, got, 0), 0);
    port_co_free(reader);
    node_co_unref(after);
    check_guest(got, when);
    if (cfg->snapshots) {
        check_co_snapshots(path, when);
        if (judge)
            shell_must(1 << 0 | (clean ? 0 : 1 << 3), "qemu-img check -f qcow2 state");
    }
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

static void load_image(void)
{
    g_autofree char *path = in_folder("image"), *content = NULL;
    gsize len;

    assert_true(g_file_get_contents(path, &content, &len, NULL));
    disk = g_malloc0(DISK_MAX);
    memcpy(disk, content, len);
    disk_size = disk_high = len;
}

static void make_files(void)
{
    if (cfg->backing) {
        g_autofree char *path = in_folder("base");
        g_autofree uint8_t *data = g_malloc(cfg->size);
        for (uint64_t s = 0; s < cfg->size / SECTOR; s++)
            fill(data + s * SECTOR, SECTOR, base_value(s));
        assert_true(g_file_set_contents(path, (char *)data, (gssize)cfg->size, NULL));
    }
    shell_must(1, "qemu-img create -f qcow2 %s image %" G_GUINT64_FORMAT, cfg->create, cfg->size);
}

static void crash_co_body(void)
{
    int states = fault.kind ? 5 : g_getenv("SD_STATES") ? atoi(g_getenv("SD_STATES")) : 60;
    g_autofree uint8_t *start = NULL, *state = NULL;
    g_autofree char *base = in_folder("base");
    uint64_t start_size;

    driver_set_list(list);
    moment = next_value = 0;
    records = g_array_new(FALSE, TRUE, sizeof(Record));
    flushes = g_array_new(FALSE, TRUE, sizeof(Record));
    kept = g_array_new(FALSE, TRUE, sizeof(Kept));
    applied = g_array_new(FALSE, TRUE, sizeof(Applied));
    seen = g_new(GArray *, cfg->size / SECTOR);
    for (uint64_t s = 0; s < cfg->size / SECTOR; s++)
        seen[s] = g_array_new(FALSE, FALSE, sizeof(Seen));
    make_files();
    load_image();
    start_size = disk_size;
    start = g_memdup2(disk, disk_size);
    /* The second round is on an image that is in use already. After a fault the end of the first may be lost. */
    for (int round = 0; round < 2 && !fault.happened; round++) {
        g_autofree char *backing =
            cfg->backing ? g_strdup_printf(",'backing':{'driver':'raw','file':{'driver':'file','filename':'%s'}}", base)
                         : g_strdup("");
        g_autofree char *json =
            g_strdup_printf("{'driver':'qcow2','node-name':'q','discard':'unmap','pass-discard-other':true,"
                            "'file':{'driver':'null-co','discard':'unmap'}%s%s}",
                            cfg->options, backing);
        g_autoptr(GError) error = NULL;
        node = try_co_open(&error, json);
        if (!node && fault.happened)
            break;
        if (!node)
            fail_msg("%s", error->message);
        port = must_co_port(node, true);
        for (unsigned i = 0; i < cfg->snapshots; i++) {
            guest_co_run(cfg->ops / (int)cfg->snapshots);
            snapshot_co_op();
        }
        guest_co_run(cfg->snapshots ? 10 : cfg->ops);
        port_co_free(port);
        node_co_unref(node);
    }
    check_co_state(disk, disk_size, moment, true, fault.kind == 0 || fault.kind == 4);
    state = g_malloc(DISK_MAX);
    for (int i = 0; i < states; i++) {
        uint64_t when = 1 + rnd(moment);
        uint64_t n = build_state(start, start_size, when, state);
        check_co_state(state, n, when, i % 3 == 0, false);
    }
    for (guint i = 0; i < records->len; i++)
        g_free(g_array_index(records, Record, i).data);
    for (uint64_t s = 0; s < cfg->size / SECTOR; s++)
        g_array_free(seen[s], TRUE);
    g_free(seen);
    g_array_free(records, TRUE);
    g_array_free(flushes, TRUE);
    for (guint i = 0; i < kept->len; i++) {
        g_free(g_array_index(kept, Kept, i).name);
        g_free(g_array_index(kept, Kept, i).content);
    }
    g_array_free(kept, TRUE);
    g_array_free(applied, TRUE);
    g_clear_pointer(&disk, g_free);
}

#define SMALL ",'l2-cache-entry-size':512,'l2-cache-size':1024"

static const Case cases[] = {
    {"64k", "", "", 2 * MIB, 65536, false, 120, 0, 8},
    {"4k, small caches, backing", "-b base -F raw -o cluster_size=4k", SMALL, MIB, 4096, true, 200, 0, 10},
    {"512, 64 bits", "-o cluster_size=512,refcount_bits=64", SMALL, 256 * KIB, 512, false, 200, 0, 8},
    {"512, compat 0.10", "-o cluster_size=512,compat=0.10", "", 256 * KIB, 512, false, 200, 0, 10},
    {"extended_l2, 16k, small caches", "-o extended_l2=on,cluster_size=16k", SMALL, MIB, 16384, false, 200, 512, 8},
};

static void seed(void)
{
    rng = (g_getenv("SD_SEED") ? strtoull(g_getenv("SD_SEED"), NULL, 0) : 1) * 0x9e3779b97f4a7c15 +
          (uint64_t)(cfg - cases);
}

static void crash_test(void **which)
{
    cfg = *which;
    seed();
    run_in_coroutine(crash_co_body);
}

static void fault_test(void **which)
{
    int runs = g_getenv("SD_FAULTS") ? atoi(g_getenv("SD_FAULTS")) : 12;

    cfg = *which;
    seed();
    for (int i = 0; i < runs; i++) {
        fault.kind = 1 + (unsigned)i % 4;
        fault.countdown = 1 + rnd(fault.kind == 4 ? cfg->size : fault.kind == 3 ? 30 : 400);
        if (fault.kind == 4) /* not before the image itself is there */
            fault.countdown = align_up(fault.countdown, cfg->cluster) + 8 * cfg->cluster;
        fault.sticky = rnd(3) == 0;
        fault.happened = false;
        run_in_coroutine(crash_co_body);
    }
    fault.kind = 0;
}

int main(void)
{
    struct CMUnitTest tests[2 * G_N_ELEMENTS(cases)];
    static char names[G_N_ELEMENTS(cases)][80];
    const char *only = g_getenv("SD_ONLY");

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        tests[2 * i] =
            (struct CMUnitTest){.name = cases[i].name, .test_func = crash_test, .initial_state = (void *)&cases[i]};
        tests[2 * i + 1] = tests[2 * i];
        g_snprintf(names[i], sizeof(names[i]), "faults: %s", cases[i].name);
        tests[2 * i + 1].name = names[i];
        tests[2 * i + 1].test_func = fault_test;
    }
    if (only)
        cmocka_set_test_filter(only);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
