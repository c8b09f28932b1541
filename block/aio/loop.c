#include "block/aio/internal.h"
#include "block/util/error.h"
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

/*
 * Submissions of one turn; a turn with more submits in between. Completions that find no room in their ring wait in the
 * kernel (IORING_FEAT_NODROP) and come with the next turn, so it is no larger than a busy turn fills: 32768 entries
 * were half a megabyte of an idle daemon's memory, and 0.2 ms of its start.
 */
#define SQ_ENTRIES 1024
#define CQ_PER_SQ  4
/*
 * The kernel charges these entries (64 bytes for a submission, 16 for a completion: about 140 KiB) to the user, all of
 * whose processes together may lock RLIMIT_MEMLOCK bytes; CAP_IPC_LOCK spares that. With 8 MiB some 55 daemons get
 * theirs. Where it is used up, or was small from the start, fewer entries do as well, at some cost: a busy turn submits
 * more often.
 */
#define SQ_ENTRIES_MIN 32
/*
 * loop_expect(): how long to look out; not with a timer so near, which would be late; a try for so many turns where
 * luck has run out. Measured (fio, 4 KiB reads of a tmpfs file, one at a time): 67,000 to 71,000 a second where
 * being woken for each makes it 54,000, nbdkit 48,000; 14 us of our time a request instead of 8, nbdkit's 12.7.
 */
#define LOOK_OUT_NS   20000
#define TIMER_NEAR_NS 1000000
#define LUCK_MAX      8
#define LUCK_TRIES    64

static int ring_init_sized(struct io_uring *ring, unsigned entries)
{
    /*
     * What spares interrupts and locks: one thread submits, and the kernel leaves completion work until that thread
     * asks; that there is some, a flag in memory says. Older kernels know fewer of these.
     */
    static const unsigned flags[] = {
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN |
            IORING_SETUP_TASKRUN_FLAG,
        IORING_SETUP_SUBMIT_ALL | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
        0,
    };
    int ret = -EINVAL;
    for (size_t i = 0; i < G_N_ELEMENTS(flags) && ret == -EINVAL; i++) {
        struct io_uring_params params = {.flags = flags[i] | IORING_SETUP_CQSIZE, .cq_entries = entries * CQ_PER_SQ};
        ret = io_uring_queue_init_params(entries, ring, &params);
    }
    return ret;
}

static int ring_init(struct io_uring *ring)
{
    unsigned entries = SQ_ENTRIES;
    int ret;

    do
        ret = ring_init_sized(ring, entries);
    while (ret == -ENOMEM && (entries /= 2) >= SQ_ENTRIES_MIN);
    return ret;
}

static bool no_locked_memory(GError **error)
{
    struct rlimit limit;

    getrlimit(RLIMIT_MEMLOCK, &limit);
    return error_set_errno(
        error, ENOMEM,
        "Cannot create an io_uring: the processes of this user lock as much memory as they may, %llu "
        "KiB together; raise RLIMIT_MEMLOCK (ulimit -l, LimitMEMLOCK= of systemd, "
        "/etc/security/limits.conf) or give CAP_IPC_LOCK",
        (unsigned long long)limit.rlim_cur / 1024);
}

static bool loop_setup(Loop *loop, GError **error)
{
    int ret = ring_init(&loop->ring);
    if (ret == -ENOSYS || ret == -EPERM) {
        return error_set_errno(error, -ret,
                               "Cannot create an io_uring: the kernel or a seccomp filter does not allow it (see "
                               "/proc/sys/kernel/io_uring_disabled and the container's seccomp profile)");
    }
    if (ret == -ENOMEM)
        return no_locked_memory(error);
    if (ret < 0)
        return error_set_errno(error, -ret, "Cannot create an io_uring");
    const unsigned needed = IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG | IORING_FEAT_RW_CUR_POS;
    if ((loop->ring.features & needed) != needed) {
        io_uring_queue_exit(&loop->ring);
        return error_set(error, "Cannot use this kernel's io_uring: Linux 5.11 or later is needed");
    }
    /* Spares the kernel a look-up at each entry; older kernels do without. */
    io_uring_register_ring_fd(&loop->ring);
    loop->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (loop->wake_fd < 0) {
        int errnum = errno;
        io_uring_queue_exit(&loop->ring);
        return error_set_errno(error, errnum, "Cannot create an eventfd");
    }
    return true;
}

/* How much later than asked for the kernel may wake the loop's thread; 50 us if it is not told. */
#define TIMER_SLACK_NS 1000ul

Loop *loop_new(GError **error)
{
    Loop *loop = g_new0(Loop, 1);
    if (!loop_setup(loop, error)) {
        g_free(loop);
        return NULL;
    }
    loop->thread = pthread_self();
    loop->processors = g_get_num_processors();
    context_init_thread(&loop->context);
    prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS);
    timers_update(loop);
    return loop;
}

void loop_free(Loop *loop)
{
    if (!loop)
        return;
    g_assert(!coroutine_active() && loop->live == 0);
    workers_free(loop);
    io_uring_queue_exit(&loop->ring);
    close(loop->wake_fd);
    co_pool_free(loop);
    bufpool_free(loop);
    pipes_free(loop);
    timers_free(loop);
    g_free(loop->kinds);
    g_free(loop);
}

static void submit_check(int ret)
{
    /*
     * Interrupted, timed out, or short of memory or room for the moment: what was not taken stays queued and is offered
     * again in the next turn.
     */
    if (ret < 0 && ret != -EINTR && ret != -ETIME && ret != -EAGAIN && ret != -EBUSY)
        g_error("io_uring_enter: %s", g_strerror(-ret));
}

void loop_submit(Loop *loop)
{
    submit_check(io_uring_submit(&loop->ring));
}

struct io_uring_sqe *loop_sqe(Loop *loop)
{
    struct io_uring_sqe *sqe;
    while (G_UNLIKELY(!(sqe = io_uring_get_sqe(&loop->ring))))
        loop_submit(loop);
    return sqe;
}

void loop_wake(Loop *loop)
{
    /* One write until the loop has read it, however many threads have something to say. */
    if (!__atomic_exchange_n(&loop->wake_pending, true, __ATOMIC_SEQ_CST)) {
        int saved_errno = errno;
        const uint64_t one = 1;
        while (write(loop->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR) {
        }
        errno = saved_errno;
    }
}

void loop_stop(Loop *loop)
{
    __atomic_store_n(&loop->stop, true, __ATOMIC_SEQ_CST);
    loop_wake(loop);
}

static void wake_arm(Loop *loop)
{
    struct io_uring_sqe *sqe = loop_sqe(loop);
    io_uring_prep_read(sqe, loop->wake_fd, &loop->wake_count, sizeof(loop->wake_count), 0);
    io_uring_sqe_set_data64(sqe, UD_WAKE);
    loop->wake_armed = true;
}

static void woken(Loop *loop)
{
    loop->wake_armed = false;
    /* First this, then a look at what there is to do: what comes later wakes again. */
    __atomic_store_n(&loop->wake_pending, false, __ATOMIC_SEQ_CST);
    workers_reap(loop);
}

static void reap(Loop *loop)
{
    struct io_uring_cqe *cqe;
    /* What completes while these run, by a submission in between, waits for the next turn at the latest. */
    for (unsigned left = io_uring_cq_ready(&loop->ring); left; left--) {
        if (io_uring_peek_cqe(&loop->ring, &cqe) < 0)
            return;
        const uint64_t data = io_uring_cqe_get_data64(cqe);
        const int res = cqe->res;
        io_uring_cqe_seen(&loop->ring, cqe);
        if (data == UD_WAKE) {
            woken(loop);
        } else if (data != UD_IGNORE) {
            Coroutine *co = (Coroutine *)(uintptr_t)data;
            co->result = res;
            if (co->gate_fd >= 0) { /* the disk gets something to do before we turn to the answer */
                gate_leave(&loop->kinds[co->gate_fd].gate, loop);
                co->gate_fd = -1;
            }
            co_resume(co);
        }
    }
    if (loop->pressing)
        loop_submit(loop);
    loop->pressing = false;
}

static void run_ready(Loop *loop)
{
    Coroutine *co;
    while ((co = coqueue_pop(&loop->ready)))
        co_resume(co);
}

/* Behind those that are ready already. */
static void resume_rescheduled(Loop *loop)
{
    CoQueue queue = loop->ready_next;
    loop->ready_next = (CoQueue){0};
    if (!queue.head)
        return;
    if (loop->ready.tail)
        loop->ready.tail->next = queue.head;
    else
        loop->ready.head = queue.head;
    loop->ready.tail = queue.tail;
}

void loop_at_turn_end(Loop *loop, TurnEnd *te)
{
    if (te->queued)
        return;
    te->queued = true;
    te->next = NULL;
    if (loop->turn_end_tail)
        loop->turn_end_tail->next = te;
    else
        loop->turn_end_head = te;
    loop->turn_end_tail = te;
}

void loop_turn_end_cancel(Loop *loop, TurnEnd *te)
{
    if (!te->queued)
        return;
    TurnEnd *before = NULL;
    TurnEnd **link = &loop->turn_end_head;
    while (*link != te) {
        before = *link;
        link = &before->next;
    }
    *link = te->next;
    if (loop->turn_end_tail == te)
        loop->turn_end_tail = before;
    if (loop->turn_end_last == te)
        loop->turn_end_last = before;
    te->queued = false;
}

static void run_turn_ends(Loop *loop)
{
    /* One that queues itself again runs in the next turn: the last one of now marks the end. */
    loop->turn_end_last = loop->turn_end_tail;
    while (loop->turn_end_last) {
        TurnEnd *te = loop->turn_end_head;
        loop->turn_end_head = te->next;
        if (!loop->turn_end_head)
            loop->turn_end_tail = NULL;
        te->queued = false;
        if (te == loop->turn_end_last)
            loop->turn_end_last = NULL;
        te->fn(te->opaque);
    }
}

void loop_expect(Loop *loop)
{
    loop->expecting = true;
}

/* For a few dozen cycles the processor's other thread, where it has one, gets all of the core. */
static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/*
 * Submits, and looks for @wait ns (-1: no timer) whether anything comes; true when it did. That is seen in memory: no
 * system call, no lock that whoever sends would wait for. With one processor it could only be in the way, and so it
 * would be of workers.
 */
static bool look_out(Loop *loop, int64_t wait)
{
    const bool expecting = loop->expecting;
    loop->expecting = false;
    if (!expecting || loop->working || loop->processors < 2 || (wait >= 0 && wait < TIMER_NEAR_NS) ||
        (!loop->luck && ++loop->unlucky % LUCK_TRIES))
        return false;
    loop_submit(loop);
    const int64_t until = clock_ns() + LOOK_OUT_NS;
    bool came;
    do {
        relax();
        came = __atomic_load_n(loop->ring.sq.kflags, __ATOMIC_RELAXED) || io_uring_cq_ready(&loop->ring);
    } while (!came && clock_ns() < until);
    if (came)
        loop->luck = MIN(loop->luck + 1, LUCK_MAX);
    else if (loop->luck)
        loop->luck--;
    return came;
}

static void submit_and_wait(Loop *loop)
{
    if (!loop->wake_armed)
        wake_arm(loop);
    const bool stop = __atomic_load_n(&loop->stop, __ATOMIC_SEQ_CST);
    const bool more = loop->ready.head || loop->ready_next.head || loop->turn_end_head;
    int64_t wait = stop || more ? 0 : timers_wait_ns(loop);
    int ret;
    if (look_out(loop, wait))
        wait = 0;
    if (wait < 0) {
        ret = io_uring_submit_and_wait(&loop->ring, 1);
    } else if (wait == 0) {
        ret = io_uring_submit_and_get_events(&loop->ring);
    } else {
        struct __kernel_timespec ts = {.tv_sec = wait / 1000000000, .tv_nsec = wait % 1000000000};
        struct io_uring_cqe *cqe;
        ret = io_uring_submit_and_wait_timeout(&loop->ring, &cqe, 1, &ts, NULL);
    }
    submit_check(ret);
}

static void turn(Loop *loop)
{
    timers_update(loop);
    loop->inline_budget = INLINE_BUDGET;
    reap(loop);
    resume_rescheduled(loop);
    run_ready(loop);
    timers_fire(loop);
    run_ready(loop);
    run_turn_ends(loop);
    submit_and_wait(loop);
}

void loop_run(Loop *loop)
{
    g_assert(!coroutine_active() && pthread_equal(loop->thread, pthread_self()));
    do {
        turn(loop);
    } while (!__atomic_exchange_n(&loop->stop, false, __ATOMIC_SEQ_CST));
}
