/*
 * The copy engine between two scripted leaves: what is read and written, in which pieces, and what races do.
 */
#include "block/graph/txn.h"
#include "block/jobs/copy.h"
#include "block/util/iovec.h"
#include "jobs-common.h"
#include "qapi/rt/tree.h"

#define KIB UINT64_C(1024)

/* A leaf in memory. */
typedef struct Mem {
    uint8_t *data;
    GString *log;
    bool hold;
    CoQueue held;
    unsigned now, most; /* requests at a time */
    int fail;           /* errno of the next requests */
    int fail_count;     /* how many of them */
    bool all_data;      /* status knows of no zeroes */
    bool raw;           /* status says that bytes stand here as they are, zeroes too */
    void (*on_status)(void);
} Mem;

static Node *source, *target;

static Mem *mem(Node *node)
{
    return node->state;
}

static int mem_co_gate(Mem *m, const char *what, uint64_t offset, uint64_t bytes)
{
    int ret = 0;

    g_string_append_printf(m->log, "%s%" G_GUINT64_FORMAT "+%" G_GUINT64_FORMAT " ", what, offset / KIB, bytes / KIB);
    m->now++;
    m->most = MAX(m->most, m->now);
    if (m->hold)
        coqueue_co_wait(&m->held, NULL);
    m->now--;
    if (m->fail_count > 0) {
        m->fail_count--;
        ret = -m->fail;
    }
    return ret;
}

static int mem_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                         ReqFlags flags)
{
    int ret;

    /* The data of before the wait: the worst that can happen. */
    iov_from_buf(vec->iov, vec->n, vec_offset, mem(node)->data + offset, bytes);
    ret = mem_co_gate(mem(node), "r", offset, bytes);
    return ret;
}

static int mem_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    int ret = mem_co_gate(mem(node), "w", offset, bytes);

    if (ret == 0)
        iov_to_buf(vec->iov, vec->n, vec_offset, mem(node)->data + offset, bytes);
    return ret;
}

static int mem_co_pwritev_compressed(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    g_string_append(mem(node)->log, "c");
    return mem_co_pwritev(node, offset, bytes, vec, vec_offset, 0);
}

static int mem_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    int ret = mem_co_gate(mem(node), "z", offset, bytes);

    if (ret == 0)
        memset(mem(node)->data + offset, 0, bytes);
    return ret;
}

static int mem_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    Mem *m = mem(node);
    uint64_t n = 0;
    bool zero;

    zero = !m->all_data && !m->data[offset];
    while (n < bytes && (m->all_data || !m->data[offset + n] == zero))
        n += 512;
    *ret = (BlockStatus){.flags = STATUS_ALLOCATED | (zero ? STATUS_ZERO : STATUS_DATA), .bytes = MIN(n, bytes)};
    if (m->raw) {
        ret->flags |= STATUS_OFFSET_VALID;
        ret->file = node;
        ret->map = offset;
    }
    if (m->on_status)
        m->on_status();
    return 0;
}

static void mem_co_close(Node *node)
{
    g_free(mem(node)->data);
    g_string_free(mem(node)->log, TRUE);
}

static const Driver mem_driver = {
    .name = "mem",
    .state_size = sizeof(Mem),
    .is_protocol = true,
    .co_close = mem_co_close,
    .co_preadv = mem_co_preadv,
    .co_pwritev = mem_co_pwritev,
    .co_pwritev_compressed = mem_co_pwritev_compressed,
    .co_pwrite_zeroes = mem_co_pwrite_zeroes,
    .co_block_status = mem_co_block_status,
};

static Node *mem_new(const char *name, uint64_t size)
{
    Node *node = node_new_internal(graph, &mem_driver, name, &(NodeFlags){.discard_unmap = true}, size, NULL);

    mem(node)->data = g_malloc0(size);
    mem(node)->log = g_string_new(NULL);
    return node;
}

static void logged(Node *node, const char *want)
{
    assert_string_equal(mem(node)->log->str, want);
    g_string_truncate(mem(node)->log, 0);
}

static void same(void)
{
    assert_memory_equal(mem(source)->data, mem(target)->data, source->size);
}

/* ---- a job around the engine ---- */

typedef struct CopyJob {
    Job common;
    CopyOptions options;
    Copy *copy;
    HBitmap *todo;
    Port *from, *to;
    unsigned passes;
} CopyJob;

static CopyJob *cj;
static void (*between)(void); /* after every pass */

static int copy_job_co_run(Job *job, GError **error)
{
    CopyJob *c = (CopyJob *)job;
    int ret = 0;

    while (ret == 0 && !job_is_cancelled(job) && copy_remaining(c->copy)) {
        ret = copy_co_pass(c->copy);
        c->passes++;
        if (between)
            between();
    }
    return ret;
}

static void copy_job_co_settle(Job *job)
{
    copy_co_settle(((CopyJob *)job)->copy);
}

static void copy_job_co_clean(Job *job)
{
    CopyJob *c = (CopyJob *)job;

    port_co_free(c->from);
    port_co_free(c->to);
    copy_free(c->copy);
    hbitmap_free(c->todo);
}

static const JobDriver copy_job = {.type = JOB_TYPE_BACKUP,
                                   .size = sizeof(CopyJob),
                                   .is_block = true,
                                   .co_run = copy_job_co_run,
                                   .co_settle = copy_job_co_settle,
                                   .co_clean = copy_job_co_clean};

static void prepare_co_entry(void *opaque)
{
    CopyOptions *o = opaque;

    cj = (CopyJob *)job_new(list, &copy_job, "j", NULL, true, false, NULL);
    cj->from = job_co_open_port(&cj->common, source, PERM_CONSISTENT_READ, PERM_ALL, NULL);
    cj->to = job_co_open_port(&cj->common, target, PERM_WRITE, PERM_ALL, NULL);
    cj->todo = hbitmap_new(source->size, 16);
    o->source = cj->from->child;
    o->target = cj->to->child;
    o->status_of = source;
    o->todo = cj->todo;
    o->size = source->size;
    cj->copy = copy_new(&cj->common, o, NULL);
    assert_non_null(cj->copy);
}

static void make(CopyOptions options)
{
    coroutine_start(loop, prepare_co_entry, &options);
    assert_non_null(cj->copy);
}

static void run(int want)
{
    job_start(&cj->common);
    for (int i = 0; cj->common.status != JOB_STATUS_CONCLUDED && i < 10000; i++)
        turns(1);
    assert_int_equal(cj->common.status, JOB_STATUS_CONCLUDED);
    assert_int_equal(cj->common.ret, want);
}

static void release(Node *node)
{
    mem(node)->hold = false;
    coqueue_wake_all(&mem(node)->held);
}

static void sink(const char *name, Tree *data, void *opaque)
{
    if (!strcmp(name, "BLOCK_JOB_ERROR"))
        g_string_append(story, "error ");
    tree_unref(data);
}

#define SIZE (4096 * KIB)

static int setup(void **state)
{
    jobs_setup(sink);
    source = mem_new("source", SIZE);
    target = mem_new("target", SIZE);
    between = NULL;
    return 0;
}

static void end_co_entry(void *opaque)
{
    job_list_co_cancel_all(list);
    node_co_unref(source);
    node_co_unref(target);
}

static int teardown(void **state)
{
    jobs_teardown(end_co_entry);
    return 0;
}

static void fill(Node *node, uint64_t offset, uint64_t bytes, int value)
{
    memset(mem(node)->data + offset, value, bytes);
}

/* ---- what is copied ---- */

static void test_data_and_zeroes(void **state)
{
    fill(source, 1024 * KIB, 600 * KIB, 7);
    fill(target, 0, SIZE, 9);
    make((CopyOptions){.unmap = true});
    hbitmap_set(cj->todo, 0, SIZE);
    run(0);
    same();
    logged(target, "z0+1024 w1024+512 w1536+128 z1664+2432 ");
    assert_int_equal(cj->common.progress, SIZE);
    assert_int_equal(cj->common.progress_total, SIZE);
}

static void test_only_what_is_marked(void **state)
{
    fill(source, 0, SIZE, 7);
    make((CopyOptions){});
    hbitmap_set(cj->todo, 64 * KIB, 1);
    hbitmap_set(cj->todo, 640 * KIB, 128 * KIB);
    run(0);
    logged(source, "r64+64 r640+128 ");
    logged(target, "w64+64 w640+128 ");
}

static void test_skips_known_zeroes(void **state)
{
    fill(target, 512 * KIB, 64 * KIB, 9);
    make((CopyOptions){.skip_zeroes = true});
    hbitmap_set(cj->todo, 0, SIZE);
    run(0);
    logged(target, "z512+64 ");
    same();
}

static void test_mixed_granule_is_data(void **state)
{
    fill(source, 70 * KIB, KIB, 7);
    fill(target, 0, 192 * KIB, 9);
    make((CopyOptions){});
    hbitmap_set(cj->todo, 0, 192 * KIB);
    run(0);
    logged(target, "z0+64 w64+64 z128+64 ");
}

/* Four granules: little data at the beginning, in the middle and at the end of one, and one with a short gap. */
static void fill_parts(void)
{
    fill(source, 0, 4 * KIB, 7);
    fill(source, 64 * KIB + 40 * KIB, 8 * KIB, 7);
    fill(source, 128 * KIB + 60 * KIB, 4 * KIB, 7);
    fill(source, 192 * KIB, 64 * KIB, 7);
    fill(source, 192 * KIB + 20 * KIB, 31 * KIB, 0);
}

static void copy_parts(CopyOptions options, const char *want)
{
    fill_parts();
    make(options);
    for (unsigned i = 0; i < 4; i++)
        hbitmap_set(cj->todo, i * 64 * KIB, 64 * KIB);
    run(0);
    logged(target, want);
    same();
}

static void test_leaves_out_zeroes_amid_data(void **state)
{
    mem(target)->raw = true;
    copy_parts((CopyOptions){.chunk = 64 * KIB}, "w0+4 w104+24 w188+4 w192+64 ");
}

static void test_leaves_out_zeroes_that_read_so(void **state)
{
    copy_parts((CopyOptions){.chunk = 64 * KIB, .skip_zeroes = true}, "w0+4 w104+24 w188+4 w192+64 ");
}

static void test_writes_zeroes_for_want_of_backing(void **state)
{
    copy_parts((CopyOptions){.chunk = 64 * KIB}, "w0+64 w64+64 w128+64 w192+64 ");
}

static void test_writes_zeroes_over_data(void **state)
{
    mem(target)->raw = true;
    fill(target, 0, SIZE, 9);
    make((CopyOptions){.chunk = 64 * KIB});
    fill_parts();
    hbitmap_set(cj->todo, 0, SIZE);
    run(0);
    same();
}

static void test_compresses_zeroes_with_data(void **state)
{
    mem(target)->raw = true;
    copy_parts((CopyOptions){.compress_cluster = 64 * KIB}, "cw0+64 cw64+64 cw128+64 cw192+64 ");
}

static void test_first_write_of_a_cluster_is_whole(void **state)
{
    fill(source, 0, SIZE, 7);
    make((CopyOptions){.cow_cluster = 1024 * KIB});
    hbitmap_set(cj->todo, 128 * KIB, 64 * KIB);
    run(0);
    logged(source, "r0+1024 ");
}

static int twice;

static void mark_again(void)
{
    if (twice++ == 0)
        hbitmap_set(cj->todo, 128 * KIB, 64 * KIB);
}

static void test_later_writes_of_a_cluster_are_not(void **state)
{
    fill(source, 0, SIZE, 7);
    make((CopyOptions){.cow_cluster = 1024 * KIB});
    hbitmap_set(cj->todo, 128 * KIB, 64 * KIB);
    twice = 0;
    between = mark_again;
    run(0);
    logged(source, "r0+1024 r128+64 ");
}

static void test_compressed(void **state)
{
    fill(source, 0, 256 * KIB, 7);
    make((CopyOptions){.compress_cluster = 64 * KIB, .max_ops = 1});
    hbitmap_set(cj->todo, 0, 256 * KIB);
    run(0);
    logged(target, "cw0+64 cw64+64 cw128+64 cw192+64 ");
    same();
}

static void test_buffers_bound_requests(void **state)
{
    fill(source, 0, SIZE, 7);
    mem(source)->hold = true;
    make((CopyOptions){.chunk = 256 * KIB, .buffers = 1024 * KIB});
    hbitmap_set(cj->todo, 0, SIZE);
    job_start(&cj->common);
    turns(5);
    assert_int_equal(mem(source)->now, 4);
    release(source);
    turns(50);
    assert_int_equal(cj->common.ret, 0);
    same();
}

static void test_workers_bound_requests(void **state)
{
    fill(source, 0, SIZE, 7);
    mem(target)->hold = true;
    make((CopyOptions){.chunk = 64 * KIB, .max_ops = 3});
    hbitmap_set(cj->todo, 0, SIZE);
    job_start(&cj->common);
    turns(5);
    assert_int_equal(mem(target)->now, 3);
    assert_int_equal(cj->copy->in_flight, 3);
    release(target);
    turns(200);
    same();
}

/* ---- races ---- */

/* A write that comes while the old data is on its way is copied in the next pass. */
static void test_write_during_copy(void **state)
{
    fill(source, 0, 64 * KIB, 1);
    mem(source)->hold = true;
    make((CopyOptions){});
    hbitmap_set(cj->todo, 0, 64 * KIB);
    job_start(&cj->common);
    turns(3);
    fill(source, 0, 64 * KIB, 2);
    hbitmap_set(cj->todo, 0, 64 * KIB);
    release(source);
    turns(20);
    assert_int_equal(cj->common.status, JOB_STATUS_CONCLUDED);
    same();
    logged(source, "r0+64 r0+64 ");
}

/* Data appears where status has just said that there are zeroes: right after the answer, before the bits are cleared.
 */
static unsigned answers;

static void write_after_status(void)
{
    if (answers++ == 0) {
        fill(source, 128 * KIB, 512, 5);
        hbitmap_set(cj->todo, 128 * KIB, 512);
    }
}

static void test_stale_zeroes(void **state)
{
    fill(target, 0, SIZE, 9);
    answers = 0;
    mem(source)->on_status = write_after_status;
    make((CopyOptions){});
    hbitmap_set(cj->todo, 0, SIZE);
    run(0);
    same();
}

/* The same before the second look: the bits set meanwhile stay set. */
static void write_after_second_status(void)
{
    if (answers++ == 1) {
        fill(source, 128 * KIB, 512, 5);
        hbitmap_set(cj->todo, 128 * KIB, 512);
    }
}

static void test_stale_confirmation(void **state)
{
    fill(target, 0, SIZE, 9);
    answers = 0;
    mem(source)->on_status = write_after_second_status;
    make((CopyOptions){});
    hbitmap_set(cj->todo, 0, SIZE);
    run(0);
    same();
}

/* A client's write waits for the piece that is being copied, and copies itself what is not copied yet. */
static int client_ret;
static bool client_done;

static void client_co_entry(void *opaque)
{
    uint64_t offset = 100 * KIB, bytes = 512;
    RangeHold hold;

    client_done = false;
    copy_align(cj->copy, &offset, &bytes);
    rangelock_co_wait(&cj->copy->lock, offset, offset + bytes);
    rangelock_take(&cj->copy->lock, &hold, offset, offset + bytes);
    client_ret = copy_co_before_write(cj->copy, offset, bytes);
    rangelock_release(&hold);
    client_done = true;
}

static void test_before_write(void **state)
{
    fill(source, 0, SIZE, 7);
    make((CopyOptions){});
    hbitmap_set(cj->todo, 0, 256 * KIB);
    coroutine_start(loop, client_co_entry, NULL);
    turns(3);
    assert_true(client_done && client_ret == 0);
    logged(target, "w64+64 ");
    assert_false(hbitmap_get(cj->todo, 100 * KIB));
    coroutine_start(loop, client_co_entry, NULL); /* nothing left to do */
    turns(3);
    logged(target, "");
    run(0);
    logged(target, "w0+64 w128+128 ");
    assert_int_equal(cj->common.progress, 256 * KIB);
}

static void test_before_write_waits(void **state)
{
    fill(source, 0, SIZE, 7);
    mem(target)->hold = true;
    make((CopyOptions){});
    hbitmap_set(cj->todo, 0, 256 * KIB);
    job_start(&cj->common);
    coroutine_start(loop, client_co_entry, NULL);
    turns(5);
    assert_false(client_done);
    release(target);
    turns(20);
    assert_true(client_done && client_ret == 0);
    logged(target, "w0+256 ");
}

static void test_before_write_fails(void **state)
{
    fill(source, 0, SIZE, 7);
    make((CopyOptions){});
    hbitmap_set(cj->todo, 0, 256 * KIB);
    mem(target)->fail = ENOSPC;
    mem(target)->fail_count = 1;
    coroutine_start(loop, client_co_entry, NULL);
    turns(3);
    assert_int_equal(client_ret, -ENOSPC);
    assert_true(hbitmap_get(cj->todo, 100 * KIB));
    assert_string_equal(story->str, ""); /* the client's affair, not the job's */
    run(0);
    assert_memory_equal(mem(source)->data, mem(target)->data, 256 * KIB);
}

/*
 * A client copies a granule and then changes it, right after the pass has found out what the stretch around it holds.
 * The copy must keep the old data.
 */
static void client_changes_after_status(void)
{
    if (answers++)
        return;
    coroutine_start(loop, client_co_entry, NULL);
    assert_true(client_done && client_ret == 0);
    fill(source, 64 * KIB, 64 * KIB, 5);
}

static void test_write_before_lock(void **state)
{
    const int values[] = {7, 0};

    for (unsigned i = 0; i < 4; i++) {
        bool tail = i & 2; /* is the granule in the middle of what is dirty, or its end? */
        fill(source, 0, SIZE, values[i & 1]);
        fill(target, 0, SIZE, 9);
        answers = 0;
        make((CopyOptions){});
        hbitmap_set(cj->todo, 0, tail ? 128 * KIB : SIZE);
        mem(source)->on_status = client_changes_after_status;
        run(0);
        mem(source)->on_status = NULL;
        assert_int_equal(mem(target)->data[100 * KIB], values[i & 1]);
        assert_int_equal(mem(target)->data[0], values[i & 1]);
        assert_int_equal(mem(target)->data[128 * KIB], tail ? 9 : values[i & 1]);
        assert_int_equal(cj->common.progress, tail ? 128 * KIB : SIZE);
        job_dismiss(&cj->common, NULL);
    }
}

/* ---- errors ---- */

static void test_report(void **state)
{
    fill(source, 0, SIZE, 7);
    mem(source)->fail = EIO;
    mem(source)->fail_count = 1;
    make((CopyOptions){.on_source_error = BLOCKDEV_ON_ERROR_REPORT, .max_ops = 1});
    hbitmap_set(cj->todo, 0, SIZE);
    run(-EIO);
    assert_string_equal(story->str, "error ");
    logged(target, "");
}

static void test_ignore(void **state)
{
    fill(source, 0, SIZE, 7);
    mem(target)->fail = EIO;
    mem(target)->fail_count = 2;
    make((CopyOptions){.on_target_error = BLOCKDEV_ON_ERROR_IGNORE});
    hbitmap_set(cj->todo, 0, SIZE);
    loop_rate_clock_manual(loop); /* which has nothing to say about a rest */
    job_start(&cj->common);
    turns(100);
    assert_int_equal(cj->common.status, JOB_STATUS_RUNNING); /* it rests */
    for (int ms = 0; ms < 5000 && cj->common.status != JOB_STATUS_CONCLUDED; ms++) {
        g_usleep(1000);
        turns(1);
    }
    assert_int_equal(cj->common.status, JOB_STATUS_CONCLUDED);
    assert_string_equal(story->str, "error error ");
    same();
}

static void test_stop(void **state)
{
    fill(source, 0, SIZE, 7);
    mem(target)->fail = ENOSPC;
    mem(target)->fail_count = 1;
    make((CopyOptions){.on_target_error = BLOCKDEV_ON_ERROR_ENOSPC});
    hbitmap_set(cj->todo, 0, SIZE);
    job_start(&cj->common);
    turns(100);
    assert_int_equal(cj->common.status, JOB_STATUS_PAUSED);
    assert_int_equal(cj->copy->in_flight, 0);
    assert_true(job_user_resume(&cj->common, NULL));
    loop_rate_clock_manual(loop);
    loop_rate_clock_step(loop, INT64_C(1000000000));
    turns(100);
    assert_int_equal(cj->common.status, JOB_STATUS_CONCLUDED);
    assert_int_equal(cj->common.ret, 0);
    same();
}

/* At 1 MiB/s, on a clock of ours: no more than what the time allows, and all of it in the end. */
static void test_speed(void **state)
{
    fill(source, 0, SIZE, 7);
    make((CopyOptions){});
    hbitmap_set(cj->todo, 0, SIZE);
    loop_rate_clock_manual(loop);
    assert_true(job_set_speed(&cj->common, 1024 * KIB, NULL));
    job_start(&cj->common);
    for (unsigned steps = 0; cj->common.status != JOB_STATUS_CONCLUDED; steps++) { /* of 10 ms */
        turns(20);
        assert_true((uint64_t)cj->common.progress <= (steps + 20) * 1024 * KIB / 100 + 64 * KIB);
        assert_true(steps < 450);
        loop_rate_clock_step(loop, INT64_C(10000000));
    }
    assert_int_equal(cj->common.progress, SIZE);
    same();
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_data_and_zeroes),
        CASE(test_only_what_is_marked),
        CASE(test_skips_known_zeroes),
        CASE(test_mixed_granule_is_data),
        CASE(test_leaves_out_zeroes_amid_data),
        CASE(test_leaves_out_zeroes_that_read_so),
        CASE(test_writes_zeroes_for_want_of_backing),
        CASE(test_writes_zeroes_over_data),
        CASE(test_compresses_zeroes_with_data),
        CASE(test_first_write_of_a_cluster_is_whole),
        CASE(test_later_writes_of_a_cluster_are_not),
        CASE(test_compressed),
        CASE(test_buffers_bound_requests),
        CASE(test_workers_bound_requests),
        CASE(test_write_during_copy),
        CASE(test_stale_zeroes),
        CASE(test_stale_confirmation),
        CASE(test_before_write),
        CASE(test_before_write_waits),
        CASE(test_before_write_fails),
        CASE(test_write_before_lock),
        CASE(test_report),
        CASE(test_ignore),
        CASE(test_stop),
        CASE(test_speed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
