/*
 * The guest: random requests, several at a time, none overlapping another; what it reads is compared at once.
 */
#include "tests/fault/replay/run.h"
#include "block/aio/io.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include <errno.h>
#include <inttypes.h>

static const Mix some_of_everything = {20, 40, 15, 10, 7, 7, 1};

uint64_t base_value(uint64_t sector)
{
    return UINT64_C(0xbac) << 48 | sector;
}

void fill(uint8_t *buf, uint64_t bytes, uint64_t value)
{
    for (uint64_t i = 0; i < bytes; i += 8)
        memcpy(buf + i, &value, 8);
}

static bool is_busy(const Run *run, unsigned self, uint64_t first, uint64_t n)
{
    for (unsigned i = 0; i < WORKERS; i++)
        if (i != self && first < run->busy[i].first + run->busy[i].n && run->busy[i].first < first + n)
            return true;
    return false;
}

static void judge_result(const Run *run, const char *what, int ret)
{
    if (ret < 0 && !fault.happened)
        run_fail(run, "%s: %s", what, g_strerror(-ret));
}

/* What is read when nothing was cut. */
static void compare(const Run *run, const uint8_t *buf, uint64_t first, uint64_t n)
{
    for (uint64_t s = first; s < first + n; s++) {
        uint64_t value = sector_value(buf + (s - first) * SECTOR);
        if (run->sure[s] && value != run->now[s])
            run_fail(run, "sector %" PRIu64 " reads 0x%" PRIx64 ", not 0x%" PRIx64, s, value, run->now[s]);
    }
}

/* Its index in the log. */
static guint submit(Run *run, Record r)
{
    r.submitted = blklogwrites_moment();
    g_array_append_val(run->guest, r);
    return run->guest->len - 1;
}

static void complete(Run *run, guint i, const char *what, int ret)
{
    Record *r = &g_array_index(run->guest, Record, i);

    judge_result(run, what, ret);
    r->failed = ret < 0;
    r->completed = ret < 0 ? 0 : blklogwrites_moment();
}

void guest_co_flush(Run *run)
{
    guint i = submit(run, (Record){.kind = RECORD_FLUSH});

    complete(run, i, "flush", port_co_flush(run->port));
}

void guest_reverted(Run *run, const uint64_t *content, uint64_t submitted, bool failed)
{
    Record r = {.kind = RECORD_REVERT, .bytes = run->sectors * SECTOR, .submitted = submitted, .failed = failed};

    r.data = g_memdup2(content, run->sectors * 8); /* for the rest of the process */
    r.completed = failed ? 0 : blklogwrites_moment();
    g_array_append_val(run->guest, r);
    memset(run->sure, !failed, run->sectors);
    if (failed)
        return;
    memcpy(run->now, content, run->sectors * 8);
}

void guest_co_resize(Run *run, uint64_t size)
{
    uint64_t sectors = size / SECTOR;
    guint i = submit(run, (Record){.kind = RECORD_SIZE, .bytes = size});
    bool ok;

    g_assert(sectors <= run->room);
    if (sectors > run->sectors && strcmp(run->w->format, "qcow2") == 0 && rnd(2)) /* with its space prepared */
        ok = port_co_set_perm(run->port, run->port->child->want_perm | PERM_RESIZE, PERM_ALL, NULL) &&
             port_co_truncate(run->port, size, true, (PreallocMode)(1 + rnd(PREALLOC_MODE__MAX - 1)), 0, NULL);
    else
        ok = run_co_cmd(run, "{'execute':'block_resize','arguments':{'node-name':'q','size':%" PRIu64 "}}", size);
    complete(run, i, "resize", ok ? 0 : -EIO);
    for (uint64_t s = u64_min(sectors, run->sectors); s < run->room; s++) {
        run->now[s] = 0;
        run->sure[s] = 1;
    }
    run->sectors = sectors;
}

void guest_co_verify(Run *run)
{
    g_autofree uint8_t *buf = g_malloc(run->sectors * SECTOR);
    int ret = port_co_pread(run->port, 0, run->sectors * SECTOR, buf, 0);

    judge_result(run, "read", ret);
    if (ret == 0)
        compare(run, buf, 0, run->sectors);
}

typedef enum What { READ, WRITE, ZERO, DISCARD, COMPRESSED, FLUSH, FUA } What;

static What pick(const Mix *mix)
{
    const unsigned odds[] = {mix->read, mix->write, mix->zero, mix->discard, mix->compressed, mix->flush, mix->fua};
    unsigned sum = 0;

    for (size_t i = 0; i < G_N_ELEMENTS(odds); i++)
        sum += odds[i];
    uint64_t at = rnd(sum);
    for (size_t i = 0;; i++) {
        if (at < odds[i])
            return (What)i;
        at -= odds[i];
    }
}

/* A range that nobody is at: whole clusters (or subclusters) where the request is about entries, and for
 * compression one. */
static void pick_range(Run *run, What what, uint64_t *ret_first, uint64_t *ret_n)
{
    uint64_t sectors = run->sectors, per_cluster = u64_max(run->w->cluster / SECTOR, 1), first, n;

    if (rnd(4))
        n = per_cluster + 2;
    else if (!run->w->longest)
        n = rnd(8) ? per_cluster * 5 : sectors / 20 + 1;
    else
        n = run->w->longest / SECTOR;
    n = 1 + rnd(u64_min(sectors, n));
    first = rnd(sectors - n + 1);
    if (what == COMPRESSED) {
        first -= first % per_cluster;
        n = u64_min(per_cluster, sectors - first);
    } else if (what == ZERO || what == DISCARD) {
        uint64_t unit = run->w->sub && rnd(3) ? run->w->sub / SECTOR : per_cluster;
        first -= first % unit;
        n = u64_min(align_up(n, unit), sectors - first);
    }
    *ret_first = first;
    *ret_n = n;
}

static int request_co_send(Run *run, What what, uint64_t first, uint64_t n, uint8_t *buf)
{
    uint64_t offset = first * SECTOR, bytes = n * SECTOR;
    struct iovec iov;
    IoVec vec;

    switch (what) {
    case READ:
        return port_co_pread(run->port, offset, bytes, buf, 0);
    case ZERO:
        return port_co_pwrite_zeroes(run->port, offset, bytes, rnd(2) ? REQ_MAY_UNMAP : 0);
    case DISCARD:
        return port_co_pdiscard(run->port, offset, bytes);
    default:
        fill(buf, bytes, ++run->next_value);
        iovec_one(&vec, &iov, buf, bytes);
        return port_co_pwritev(run->port, offset, bytes, &vec,
                               what == COMPRESSED ? REQ_WRITE_COMPRESSED
                               : what == FUA      ? REQ_FUA
                                                  : 0);
    }
}

static void guest_co_request(Run *run, unsigned self, uint8_t *buf)
{
    What what = pick(run->w->mix ? run->w->mix : &some_of_everything);
    uint64_t first, n, value;
    Record record;
    guint i;
    int ret;

    if (what == COMPRESSED && strcmp(run->w->format, "qcow2") != 0)
        what = WRITE;
    if (what == FLUSH) {
        guest_co_flush(run);
        return;
    }
    for (pick_range(run, what, &first, &n); is_busy(run, self, first, n); pick_range(run, what, &first, &n))
        aio_co_reschedule();
    run->busy[self].first = first;
    run->busy[self].n = n;
    value = what == ZERO || what == DISCARD ? 0 : run->next_value + 1;
    record = (Record){.offset = first * SECTOR, .bytes = n * SECTOR, .value = value, .fua = what == FUA};
    record.kind = what == DISCARD ? RECORD_DISCARD : RECORD_WRITE;
    i = what == READ ? 0 : submit(run, record);
    ret = request_co_send(run, what, first, n, buf);
    if (what == READ)
        judge_result(run, "read", ret);
    else
        complete(run, i, "request", ret);
    if (what == READ && ret == 0)
        compare(run, buf, first, n);
    for (uint64_t s = first; s < first + n && what != READ; s++) {
        run->now[s] = value;
        run->sure[s] = ret == 0 && what != DISCARD;
    }
    run->busy[self].n = 0;
}

typedef struct Worker {
    Run *run;
    unsigned self;
} Worker;

static void worker_co_entry(void *opaque)
{
    Worker *w = opaque;
    Run *run = w->run;
    g_autofree uint8_t *buf = g_malloc(run->sectors * SECTOR);

    while (run->left-- > 0)
        guest_co_request(run, w->self, buf);
    g_free(w);
    if (--run->running == 0)
        coqueue_wake_all(&run->done);
}

void guest_start(Run *run, unsigned ops)
{
    run->left = (int)ops;
    run->running = WORKERS;
    for (unsigned i = 0; i < WORKERS; i++) {
        Worker *w = g_new(Worker, 1);
        *w = (Worker){run, i};
        coroutine_start(run->daemon->loop, worker_co_entry, w);
    }
}

void guest_co_wait(Run *run)
{
    while (run->running)
        coqueue_co_wait(&run->done, NULL);
}

void guest_co_run(Run *run, unsigned ops)
{
    guest_start(run, ops);
    guest_co_wait(run);
}
