/*
 * Every I/O of an operation fails in turn: once, or it and all of its kind after it.
 *
 * The whole daemon is here but for its sockets; operations are QMP commands and requests to nodes, images lie in
 * memory files, and the faults come from sweep-inject.h. What is demanded of every run: it ends; a short read or write
 * is nobody's business; what was reported as done, a flush included, is there when the image is opened again; what was
 * not is there or is not, sector by sector; the image is never corrupt, at worst clusters are leaked; after one fault
 * the same operation works the second time, unless a flush failed, and then flushes go on failing.
 *
 * Our own checker judges every state that is left; every fourth goes through qemu-img check, too, and both have to
 * agree.
 *
 * SD_ONLY=NAME runs one operation, SD_AT=N one index; SD_JUDGE=N asks qemu-img about every N-th state.
 */
#include "block/export/export.h"
#include "block/graph/reopen.h"
#include "block/jobs/job-int.h"
#include "daemon/session.h"
#include "qapi/commands.h"
#include "sweep-images.h"
#include "sweep-inject.h"
#include <sched.h>
#include <signal.h>

enum { SECTOR = 512 };

static Daemon *daemon_;
static QmpContext ctx;

/* ---- commands --------------------------------------------------------------------------------------------------- */

static unsigned said; /* lines on standard error */

static bool G_GNUC_PRINTF(2, 3) qmp_co_do(const char *name, const char *fmt, ...)
{
    const QapiCommand *command = qapi_find_command(qapi_commands, qapi_n_commands, name);
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) reply = NULL;
    va_list args;
    va_start(args, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, args);
    va_end(args);
    g_autoptr(Tree) tree = json_parse(text, strlen(text), &error);

    if (!command || !tree)
        fail_msg("%s %s: %s", name, text, error ? error->message : "no such command");
    if (qapi_co_dispatch(command, &ctx, tree, &reply, &error))
        return true;
    assert_true(error->message[0] != 0);
    g_free(last_error);
    last_error = g_strdup_printf("%s: %s", name, error->message);
    return false;
}

/* Waits for the end of job "j", completing it when it is ready. Was there no error? */
static bool job_co_end(const char *id)
{
    Job *job = job_find(daemon_->jobs, id, NULL);
    bool completed = false, ok;

    assert_non_null(job);
    while (job->status != JOB_STATUS_CONCLUDED) {
        if (job->status == JOB_STATUS_READY && !completed)
            completed = qmp_co_do("job-complete", "{'id':'%s'}", id);
        aio_co_reschedule();
    }
    ok = job->ret == 0;
    if (!ok) {
        assert_true(job->ret < 0);
        g_free(last_error);
        last_error = g_strdup_printf("job: %s", job->error ? job->error : g_strerror(-job->ret));
    }
    assert_true(qmp_co_do("job-dismiss", "{'id':'%s'}", id));
    return ok;
}

/* ---- the images -------------------------------------------------------------------------------------------------- */

static uint8_t before[2 * SIZE], after[2 * SIZE]; /* what the disk read before the operation, and what it should read */
static uint64_t size_before, size_after;

static void reset_model(void)
{
    put_files();
    memset(after, 0, sizeof(after));
    memcpy(before, beginning->reads, SIZE);
    memcpy(after, beginning->reads, SIZE);
    size_before = size_after = SIZE;
}

static Port *port; /* onto node "top" */

static bool top_co_add(const char *more)
{
    g_autofree char *members = g_strdup_printf(",'node-name':'top','discard':'unmap'%s", more);
    g_autofree char *json = image_json("top", members);
    return qmp_co_do("blockdev-add", "%s", json);
}

static void port_co_open(const char *name, unsigned perm)
{
    g_autoptr(GError) error = NULL;

    port = port_co_new(graph, graph_find_node(graph, name), perm, PERM_ALL, NULL, NULL, &error);
    if (!port)
        fail_msg("%s", error->message);
    port->writable = perm & PERM_WRITE;
}

static bool top_co_open(const char *more)
{
    if (!top_co_add(more))
        return false;
    port_co_open("top", PERM_CONSISTENT_READ | PERM_WRITE);
    return true;
}

static bool target_co_open(void)
{
    g_autofree char *json = image_json("target", ",'node-name':'target'");
    return qmp_co_do("blockdev-add", "%s", json);
}

static void port_co_close(void)
{
    port_co_free(port);
    port = NULL;
}

static bool result(int ret)
{
    if (ret >= 0)
        return true;
    g_free(last_error);
    last_error = g_strdup(g_strerror(-ret));
    return false;
}

/* ---- requests, which the model follows ----------------------------------------------------------------------------
 */

static bool do_co_write(uint64_t offset, uint64_t bytes, uint8_t value, ReqFlags flags)
{
    g_autofree uint8_t *buf = g_malloc(bytes);
    struct iovec iov;
    IoVec vec;

    memset(buf, value, bytes);
    memset(after + offset, value, bytes);
    iovec_one(&vec, &iov, buf, bytes);
    return result(port_co_pwritev(port, offset, bytes, &vec, flags));
}

static bool do_co_zero(uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    memset(after + offset, 0, bytes);
    return result(port_co_pwrite_zeroes(port, offset, bytes, flags));
}

static bool do_co_flush(void)
{
    return result(port_co_flush(port));
}

static bool do_co_read(void)
{
    g_autofree uint8_t *buf = g_malloc(size_after);

    if (!result(port_co_pread(port, 0, size_after, buf, 0)))
        return false;
    for (uint64_t at = 0; at < size_after; at += SECTOR) /* the second time after an error: some may be done */
        if (memcmp(buf + at, after + at, SECTOR) != 0)
            assert_memory_equal(buf + at, before + at, SECTOR);
    return true;
}

/* ---- operations ---------------------------------------------------------------------------------------------------
 */

typedef struct Op {
    const char *name;
    bool (*co_prepare)(void); /* without faults; NULL: opens "top" */
    bool (*co_run)(void);     /* with faults; true: done, and durable */
    bool once;                /* cannot be done a second time after an error */
    bool backing;             /* "top" has a backing file */
    bool shows_target;        /* when done, the target reads as the disk does */
    bool may_vanish;          /* discards: what it does may or may not show */
    bool not_qed, only_v3;    /* which cannot */
    bool packs, snapshots;    /* compresses clusters; takes internal snapshots */
} Op;

static bool nothing_co_prepare(void)
{
    return true;
}

static bool op_co_open(void)
{
    return top_co_open("") && do_co_read();
}

static bool op_co_write_allocating(void)
{
    return do_co_write(64 * KIB, 3 * 4 * KIB, 0xa1, 0) && do_co_write(128 * KIB, 4 * KIB, 0xa2, 0) && do_co_flush();
}

static bool op_co_write_in_place(void)
{
    return do_co_write(4096, 8192, 0xb1, 0) && do_co_write(513, 1000, 0xb2, 0) && do_co_flush();
}

static bool op_co_write_cow(void)
{
    return do_co_write(100 * KIB + 512, 512, 0xc1, 0) && do_co_write(120 * KIB + 1000, 9000, 0xc2, 0) && do_co_flush();
}

static bool op_co_write_over_packed(void)
{
    return do_co_write(208 * KIB + 512, 512, 0xc3, 0) && do_co_flush();
}

static bool op_co_write_fua(void)
{
    return do_co_write(64 * KIB, 4 * KIB, 0xa3, REQ_FUA) && do_co_write(4096, 512, 0xa4, REQ_FUA);
}

static bool op_co_write_many(void)
{
    for (unsigned i = 0; i < 12; i++)
        if (!do_co_write((i * 5 % 12) * 20 * KIB, 5 * KIB, (uint8_t)(0x10 + i), 0))
            return false;
    return do_co_flush();
}

static bool op_co_zeroes(void)
{
    return do_co_zero(0, 8 * KIB, 0) && do_co_zero(100 * KIB + 512, 7000, 0) && do_co_flush();
}

static bool op_co_zeroes_unmap(void)
{
    return do_co_zero(0, 24 * KIB, REQ_MAY_UNMAP) && do_co_flush() && do_co_flush() &&
           do_co_write(64 * KIB, 8 * KIB, 0xd1, 0) && do_co_flush();
}

static bool op_co_discard(void)
{
    memset(after + 4 * KIB, 0, 12 * KIB);
    return result(port_co_pdiscard(port, 4 * KIB, 12 * KIB)) && do_co_flush() && do_co_flush();
}

static bool prepare_co_dirty(void)
{
    return top_co_open("") && do_co_write(64 * KIB, 20 * KIB, 0xe1, 0) && do_co_write(0, 512, 0xe2, 0) &&
           do_co_zero(8 * KIB, 4 * KIB, REQ_MAY_UNMAP);
}

static bool op_co_compressed(void)
{
    return do_co_write(64 * KIB, layout->cluster, 0xf1, REQ_WRITE_COMPRESSED) &&
           do_co_write(80 * KIB, layout->cluster, 0xf2, REQ_WRITE_COMPRESSED) && do_co_flush();
}

static bool do_co_truncate(uint64_t size, PreallocMode prealloc)
{
    g_autoptr(GError) error = NULL;

    assert_true(port_co_set_perm(port, RW, PERM_ALL, NULL));
    size_after = size;
    if (size < SIZE)
        memset(after + size, 0, sizeof(after) - size);
    if (port_co_truncate(port, size, true, prealloc, 0, &error))
        return do_co_flush();
    g_free(last_error);
    last_error = g_strdup(error->message);
    return false;
}

static bool op_co_grow(void)
{
    return do_co_truncate(SIZE + 100 * KIB, PREALLOC_MODE_OFF);
}

static bool op_co_shrink(void)
{
    return do_co_truncate(90 * KIB, PREALLOC_MODE_OFF);
}

static bool op_co_close(void)
{
    bool ok = do_co_write(64 * KIB, 12 * KIB, 0xe5, 0) && do_co_zero(0, 4 * KIB, REQ_MAY_UNMAP);
    unsigned before_close = said;

    port_co_close();
    /* Whoever closes without a flush asks for no promise, but what was lost must not be lost in silence. */
    ok = qmp_co_do("blockdev-del", "{'node-name':'top'}") && ok;
    if (ok && said == before_close)
        return true;
    g_free(last_error);
    last_error = g_strdup("said on standard error");
    return false;
}

static bool op_co_reopen(void)
{
    g_autoptr(GError) error = NULL;
    bool ok = node_co_set_read_only(graph_find_node(graph, "top"), false, &error);

    if (error) {
        g_free(last_error);
        last_error = g_strdup(error->message);
    }
    port->writable = ok;
    return ok && port_co_set_perm(port, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, NULL) &&
           do_co_write(64 * KIB, 4 * KIB, 0x91, 0) && do_co_flush();
}

static bool prepare_co_read_only(void)
{
    if (!top_co_add(",'read-only':true"))
        return false;
    port_co_open("top", PERM_CONSISTENT_READ);
    return true;
}

/* ---- operations: jobs ---------------------------------------------------------------------------------------------
 */

static bool prepare_co_both(void)
{
    return top_co_open("") && target_co_open();
}

static bool op_co_mirror(void)
{
    return qmp_co_do("blockdev-mirror",
                     "{'job-id':'j','device':'top','target':'target','sync':'full','auto-dismiss':false}") &&
           job_co_end("j");
}

static bool op_co_backup(void)
{
    bool ok = qmp_co_do("transaction",
                        "{'actions':[{'type':'block-dirty-bitmap-add','data':{'node':'top','name':'b0'}},"
                        "{'type':'blockdev-backup','data':{'job-id':'j','device':'top','target':'target','sync':'full',"
                        "'auto-dismiss':false}}]}");

    if (!ok)
        return false;
    ok = job_co_end("j");
    /* A second time is asked for only after an error. */
    return qmp_co_do("block-dirty-bitmap-remove", "{'node':'top','name':'b0'}") && ok;
}

static bool op_co_commit(void)
{
    return qmp_co_do("block-commit", "{'job-id':'j','device':'top','auto-dismiss':false}") && job_co_end("j");
}

static bool op_co_stream(void)
{
    return qmp_co_do("block-stream", "{'job-id':'j','device':'top','auto-dismiss':false}") && job_co_end("j");
}

static bool op_co_snapshot(void)
{
    port_co_close();
    return qmp_co_do("blockdev-snapshot-sync",
                     "{'node-name':'top','snapshot-file':'%s/target','snapshot-node-name':'over','format':'%s'}",
                     folder, layout->format);
}

static bool op_co_create(void)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *path = in_folder("target");
    const CreateOptions options = {.size = SIZE};

    if (image_co_create(graph, path, layout->format, &options, &error))
        return true;
    g_free(last_error);
    last_error = g_strdup(error->message);
    assert_true(image_is_new(path)); /* a half-made file is removed */
    return false;
}

static bool op_co_bitmap(void)
{
    return qmp_co_do("block-dirty-bitmap-add", "{'node':'top','name':'b','persistent':true,'granularity':512}") &&
           do_co_write(64 * KIB, 4 * KIB, 0x51, 0) && do_co_flush() &&
           qmp_co_do("block-dirty-bitmap-remove", "{'node':'top','name':'b'}");
}

/* Bitmaps are stored when the image is closed; then they say at least what they must. */
static bool op_co_bitmap_store(void)
{
    unsigned before_close = said;
    bool ok = qmp_co_do("block-dirty-bitmap-add", "{'node':'top','name':'b','persistent':true,'granularity':4096}") &&
              do_co_write(64 * KIB, 4 * KIB, 0x52, 0) && do_co_flush();

    port_co_close();
    ok = qmp_co_do("blockdev-del", "{'node-name':'top'}") && ok;
    if (ok && said != before_close) {
        ok = false;
        g_free(last_error);
        last_error = g_strdup("said on standard error");
    }
    return ok;
}

static bool op_co_internal_snapshot(void)
{
    return qmp_co_do("blockdev-snapshot-internal-sync", "{'device':'top','name':'two'}") &&
           do_co_write(4 * KIB, 6000, 0x41, 0) && do_co_flush() &&
           qmp_co_do("blockdev-snapshot-delete-internal-sync", "{'device':'top','name':'two'}");
}

static bool op_co_snapshot_delete(void)
{
    return qmp_co_do("blockdev-snapshot-delete-internal-sync", "{'device':'top','name':'one'}") &&
           do_co_write(4 * KIB, 6000, 0x42, 0) && do_co_flush();
}

static bool prepare_co_snapshot(void)
{
    bool ok = top_co_open("") && qmp_co_do("blockdev-snapshot-internal-sync", "{'device':'top','name':'one'}") &&
              do_co_write(4 * KIB, 6000, 0x43, 0) && do_co_flush();

    memcpy(before, after, SIZE);
    return ok;
}

static bool op_co_snapshot_apply(void)
{
    memcpy(after, beginning->reads, SIZE);
    return qmp_co_do("blockdev-snapshot-apply-internal-sync", "{'device':'top','name':'one'}");
}

static bool op_co_export(void)
{
    bool ok = qmp_co_do("nbd-server-start", "{'addr':{'type':'unix','data':{'path':'%s/nbd'}}}", folder) &&
              qmp_co_do("block-export-add", "{'type':'nbd','id':'e','node-name':'top','writable':true}") &&
              qmp_co_do("blockdev-add",
                        "{'driver':'nbd','node-name':'client','export':'top','server':{'type':'unix','path':'%s/nbd'}}",
                        folder);

    if (!ok) /* not a matter of files */
        fail_msg("%s", last_error);
    port_co_close();
    port_co_open("client", PERM_CONSISTENT_READ | PERM_WRITE);
    ok = do_co_read() && do_co_write(64 * KIB, 16 * KIB, 0x71, 0) && do_co_zero(100 * KIB, 8 * KIB, REQ_MAY_UNMAP) &&
         do_co_flush();
    port_co_close();
    assert_true(qmp_co_do("blockdev-del", "{'node-name':'client'}"));
    assert_true(qmp_co_do("nbd-server-stop", "{}"));
    while (export_find(daemon_->exports, "e"))
        aio_co_reschedule();
    port_co_open("top", PERM_CONSISTENT_READ | PERM_WRITE);
    return ok;
}

static bool op_co_read(void)
{
    return do_co_read();
}

#define OP(n, prepare, run, ...)                                                                                       \
    {                                                                                                                  \
        .name = n, .co_prepare = prepare, .co_run = run, ##__VA_ARGS__                                                 \
    }

static const Op ops[] = {
    OP("open", nothing_co_prepare, op_co_open, .once = true),
    OP("open with a backing file", nothing_co_prepare, op_co_open, .once = true, .backing = true),
    OP("read", NULL, op_co_read, .backing = true),
    OP("allocating write", NULL, op_co_write_allocating),
    OP("write in place", NULL, op_co_write_in_place),
    OP("copy-on-write", NULL, op_co_write_cow, .backing = true),
    OP("write over a compressed cluster", NULL, op_co_write_over_packed, .packs = true),
    OP("write with FUA", NULL, op_co_write_fua),
    OP("many writes", NULL, op_co_write_many, .backing = true),
    OP("write zeroes", NULL, op_co_zeroes),
    OP("write zeroes, unmap", NULL, op_co_zeroes_unmap),
    OP("write zeroes over a backing file", NULL, op_co_zeroes, .backing = true),
    OP("discard", NULL, op_co_discard, .may_vanish = true, .not_qed = true),
    OP("flush", prepare_co_dirty, do_co_flush),
    OP("compressed write", NULL, op_co_compressed, .packs = true),
    OP("resize up", NULL, op_co_grow),
    OP("resize down", NULL, op_co_shrink, .not_qed = true),
    OP("close", NULL, op_co_close, .once = true),
    OP("reopen", prepare_co_read_only, op_co_reopen),
    OP("mirror", prepare_co_both, op_co_mirror, .once = true, .shows_target = true),
    OP("backup in a transaction", prepare_co_both, op_co_backup, .shows_target = true),
    OP("commit", NULL, op_co_commit, .once = true, .backing = true),
    OP("stream", NULL, op_co_stream, .backing = true),
    OP("snapshot", NULL, op_co_snapshot, .once = true, .shows_target = true),
    OP("create", nothing_co_prepare, op_co_create),
    OP("bitmap", NULL, op_co_bitmap, .once = true, .only_v3 = true),
    OP("bitmap stored at the end", NULL, op_co_bitmap_store, .once = true, .only_v3 = true),
    OP("internal snapshot", NULL, op_co_internal_snapshot, .once = true, .snapshots = true),
    OP("internal snapshot, delete", prepare_co_snapshot, op_co_snapshot_delete, .once = true, .snapshots = true),
    OP("internal snapshot, apply", prepare_co_snapshot, op_co_snapshot_apply, .once = true, .snapshots = true),
    OP("export", NULL, op_co_export),
};

/* ---- one run ------------------------------------------------------------------------------------------------------
 */

static const Op *op;
static unsigned runs;

static void on_alarm(int number)
{
    static const char text[] = "hangs: ";
    ssize_t ignore = write(2, text, sizeof(text) - 1);

    ignore = write(2, what, strlen(what));
    ignore = write(2, "\n", 1);
    (void)ignore;
    abort();
}

/* The image at @name reads as the disk should. @done: what was done must show. */
static void compare_co_image(const char *name, bool done)
{
    g_autofree char *json = image_json(name, ",'node-name':'v'");
    g_autofree uint8_t *got = g_malloc(2 * SIZE);
    uint64_t size;
    Port *reader;
    Node *node;

    if (!qmp_co_do("blockdev-add", "%s", json))
        bad("%s does not open any more", name);
    node = graph_find_node(graph, "v");
    reader = must_co_port(node, false);
    size = port_size(reader);
    if (size != size_after && (done || size != size_before))
        bad("the size of %s is %" G_GUINT64_FORMAT, name, size);
    if (port_co_pread(reader, 0, size, got, 0) < 0)
        bad("%s cannot be read", name);
    for (uint64_t at = 0; at < size; at += SECTOR) {
        bool is_after = memcmp(got + at, after + at, SECTOR) == 0;
        bool is_before = at < SIZE && memcmp(got + at, before + at, SECTOR) == 0;
        if (!is_after && (!is_before || (done && !op->may_vanish)))
            bad("sector %" G_GUINT64_FORMAT " of %s reads 0x%02x…, not 0x%02x… (%s)", at / SECTOR, name, got[at],
                after[at], done ? "it was done" : "before it was 0x%02x…");
    }
    port_co_free(reader);
    assert_true(qmp_co_do("blockdev-del", "{'node-name':'v'}"));
}

static void drop_co_nodes(void)
{
    static const char *const names[] = {"over", "top", "target"};

    port_co_close();
    for (unsigned i = 0; i < G_N_ELEMENTS(names); i++)
        if (graph_find_node(graph, names[i]) && !qmp_co_do("blockdev-del", "{'node-name':'%s'}", names[i]))
            bad("node %s stays", names[i]);
    if (graph_find_node(graph, "top") || graph_find_node(graph, "target"))
        bad("nodes stay");
}

static void run_co_once(unsigned chosen, FaultKind kind, bool sticky)
{
    bool done, again = false;

    snprintf(what, sizeof(what), "%s, %s, I/O %u, %s%s", layout->name, op->name, chosen, fault_names[kind],
             sticky ? ", sticky" : "");
    g_clear_pointer(&last_error, g_free);
    alarm(60);
    reset_model();
    if (!(op->co_prepare ? op->co_prepare() : top_co_open("")))
        bad("cannot be prepared");
    inject_arm(chosen, kind, sticky);
    done = op->co_run();
    runs++;
    if (inject.happened && kind == FAULT_SHORT && !done)
        bad("a short transfer is no error");
    if (!inject.happened && !done)
        bad("failed by itself");
    if (!done && !last_error)
        bad("fails without an error");
    if (!done && !sticky && inject.happened) {
        inject_arm(UINT_MAX, kind, false);
        again = !op->once && op->co_run();
        if (!op->once && inject.io != IO_FLUSH && !again)
            bad("does not work the second time");
    }
    drop_co_nodes();
    inject_off();
    if (!is_repaired_on_open())
        judge_co_all(done && !inject.happened);
    compare_co_image(op->shows_target && done ? "target" : "top", done || again);
    judge_co_all(done && !inject.happened);
    alarm(0);
}

static void sweep_co_entry(void *opaque)
{
    uint8_t ios[IOS_MAX];
    unsigned n, step;
    const char *at = g_getenv("SD_AT");

    prepare_beginning(op->backing, op->shows_target && strcmp(op->name, "snapshot") != 0);
    if (layout->luks && !qmp_co_do("object-add", "{'qom-type':'secret','id':'k','data':'k'}"))
        bad("there is no key");
    run_co_once(UINT_MAX, FAULT_EIO, false);
    n = MIN(inject.n, IOS_MAX);
    memcpy(ios, inject.ios, n);
    if (n == 0)
        bad("makes no I/O");
    step = MAX(n / layout->runs_max, 1);
    for (unsigned i = at ? (unsigned)atoi(at) : 0; i < n; i += at ? n : step)
        for (FaultKind kind = 0; kind < FAULT__MAX; kind++)
            for (int sticky = 0; sticky < 2; sticky++)
                if (io_faults[ios[i]][kind])
                    run_co_once(i, kind, sticky);
    daemon_end(daemon_, SHUTDOWN_CAUSE_HOST_QMP_QUIT);
}

static void count_said(const char *text)
{
    said++;
    if (g_getenv("SD_VERBOSE"))
        fputs(text, stderr);
}

typedef struct Which {
    const Layout *layout;
    const Op *op;
    char *name;
} Which;

static void sweep(void **state)
{
    const Which *which = *state;

    op = which->op;
    layout = which->layout;

    test_setup();
    graph_free(graph);
    daemon_ = daemon_new(loop);
    graph = daemon_->graph;
    ctx.daemon = daemon_;
    known = g_hash_table_new_full(g_bytes_hash, g_bytes_equal, (GDestroyNotify)g_bytes_unref, NULL);
    g_set_printerr_handler(count_said);
    signal(SIGALRM, on_alarm);
    coroutine_start(loop, sweep_co_entry, NULL);
    loop_run(loop);
    while (coroutine_count(loop))
        loop_run(loop);
    daemon_free(daemon_);
    g_set_printerr_handler(NULL);
    g_hash_table_destroy(known);
    graph = graph_new(loop);
    test_teardown();
}

/* The runs counted, so that a change that makes them fewer is seen. */
static void sweep_total(void **state)
{
    print_message("%u faults, %u states, %u of them judged by qemu-img\n", runs, states, judged);
    assert_true(runs >= 5000 || g_getenv("SD_ONLY"));
}

static bool fits(const Op *o, const Layout *l)
{
    bool qed = strcmp(l->format, "qed") == 0, v3 = !qed && !strstr(l->create, "0.10");
    bool raw = l->data_raw && strcmp(l->data_raw, "on") == 0;

    return !((o->not_qed || o->packs || o->snapshots) && qed) && !(o->only_v3 && !v3) && !(o->backing && raw) &&
           !(o->packs && (l->luks || l->data_raw)) && !(o->snapshots && l->data_raw);
}

int main(void)
{
    static Which which[G_N_ELEMENTS(ops) * G_N_ELEMENTS(layouts)];
    struct CMUnitTest tests[G_N_ELEMENTS(which) + 1];
    const char *only = g_getenv("SD_ONLY");
    size_t n = 0;

    if (access("/dev/shm", W_OK) == 0)
        g_setenv("TMPDIR", "/dev/shm", FALSE);
    for (size_t i = 0; i < G_N_ELEMENTS(layouts); i++)
        for (size_t k = 0; k < G_N_ELEMENTS(ops); k++)
            if (fits(&ops[k], &layouts[i])) {
                which[n] = (Which){&layouts[i], &ops[k], g_strdup_printf("%s: %s", layouts[i].name, ops[k].name)};
                tests[n] = (struct CMUnitTest){.name = which[n].name, .test_func = sweep, .initial_state = &which[n]};
                n++;
            }
    tests[n++] = (struct CMUnitTest){.name = "total", .test_func = sweep_total};
    if (only)
        cmocka_set_test_filter(only);
    return _cmocka_run_group_tests("sweep", tests, n, NULL, NULL);
}
