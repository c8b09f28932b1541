/*
 * crash-replay: workloads are recorded, power cuts are simulated, what they leave is judged: docs/crash-replay.md.
 */
#include "tests/fault/replay/file.h"
#include "tests/fault/replay/judge.h"
#include "block/util/bytes.h"
#include "qapi/events.h"
#include <errno.h>
#include <glib/gstdio.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define DEFAULT_STATES 2500
#else
#define DEFAULT_STATES 20000
#endif

static struct {
    int64_t states, seed, jobs;
    char *only;
    char *keep;
    gboolean list, no_faults;
    LogFiles files;
} opt = {.states = DEFAULT_STATES, .seed = 1};

static const GOptionEntry entries[] = {
    {"states", 0, 0, G_OPTION_ARG_INT64, &opt.states, "distinct states to judge", "N"},
    {"seed", 0, 0, G_OPTION_ARG_INT64, &opt.seed, "of all that is random", "S"},
    {"jobs", 'j', 0, G_OPTION_ARG_INT64, &opt.jobs, "processes; default: one a core", "N"},
    {"only", 0, 0, G_OPTION_ARG_STRING, &opt.only, "workloads whose names match", "REGEX"},
    {"keep", 0, 0, G_OPTION_ARG_FILENAME, &opt.keep, "where the images of a failure go", "DIR"},
    {"no-faults", 0, 0, G_OPTION_ARG_NONE, &opt.no_faults, "no run with failing requests", NULL},
    {"log", 0, 0, G_OPTION_ARG_FILENAME, &opt.files.log, "of a disk, to be replayed instead of workloads", "FILE"},
    {"image", 0, 0, G_OPTION_ARG_FILENAME, &opt.files.image, "what that disk held before the log began", "FILE"},
    {"guest-log", 0, 0, G_OPTION_ARG_FILENAME, &opt.files.guest_log, "log between format and guest", "FILE"},
    {"format", 0, 0, G_OPTION_ARG_STRING, &opt.files.format, "of the image: qcow2 (default), qed, raw", "NAME"},
    {"list", 0, 0, G_OPTION_ARG_NONE, &opt.list, "name the workloads", NULL},
    {NULL},
};

static Tally *tally;
static char *folder; /* of the images that qemu-img looks at; a folder in it for each process */
static const Workload *chosen[64];
static uint64_t n_chosen;
static unsigned per_run;

/* ---- failures --------------------------------------------------------------------------------------------------- */

/* The present state of the disks and the logs, for whoever looks into it. */
static void keep_disks(const Run *run)
{
    if (!opt.keep || g_mkdir_with_parents(opt.keep, 0700) != 0)
        return;
    for (size_t i = 0; i < run->n_tracked; i++) {
        const char *name = run->tracked[i].disk->name;
        g_autofree char *log = g_strdup_printf("%s.log%s", name, run->suffix ? run->suffix : "");
        g_autofree char *path = g_build_filename(opt.keep, name, NULL),
                        *log_path = g_build_filename(opt.keep, log, NULL);
        disk_store_file(run->tracked[i].disk, path);
        disk_store_file(disk_get(log), log_path);
        if (run->tracked[i].start) {
            g_autofree char *start = g_strdup_printf("%s.start", path);
            g_file_set_contents(start, (const char *)run->tracked[i].start, (gssize)run->tracked[i].start_size, NULL);
        }
    }
    if (run->w->backing) {
        g_autofree char *path = g_build_filename(opt.keep, "base", NULL);
        disk_store_file(disk_get("base"), path);
    }
    fprintf(stderr, "Its disks and logs are in %s.\n", opt.keep);
}

void run_fail(const Run *run, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, args);
    va_end(args);
    if (__atomic_fetch_add(&tally->failed, 1, __ATOMIC_RELAXED) == 0) {
        fprintf(stderr, "\ncrash-replay: '%s', seed %" PRIu64 ": %s\n", run->w->name, run->seed, text);
        if (run->w->files)
            fprintf(stderr, "The same again: the same logs with --seed %" PRIu64 " --jobs 1\n", run->seed);
        else
            fprintf(stderr, "The same again: crash-replay --only '^%s$' --seed %" PRIu64 " --jobs 1 --states %u\n",
                    run->w->name, run->seed, 3 * per_run);
        keep_disks(run);
    }
    fflush(stderr);
    _exit(1);
}

static void quiet(const char *text)
{
}

/* ---- a process of its own for every core ------------------------------------------------------------------------ */

static void ignore_event(const char *name, Tree *data, void *opaque)
{
    if (data)
        tree_unref(data);
}

static void task_co_entry(void *opaque)
{
    Run *run = opaque;

    judge_co_run(run, tally, per_run / MAX(run->w->every, 1));
    loop_stop(run->daemon->loop);
}

/* Every fourth run of a workload that consists of requests has one of them fail. */
static void choose_fault(Run *run)
{
    fault = (Fault){0};
    run->faulty = !opt.no_faults && run->seed % 4 == 3;
    if (!run->faulty || run->w->co_body)
        return;
    rnd_seed(run->seed);
    fault.kind = (FaultKind)(1 + rnd(4));
    fault.countdown = 1 + rnd(fault.kind == FAULT_FULL ? run->w->size : fault.kind == FAULT_FLUSH ? 30 : 400);
    if (fault.kind == FAULT_FULL) /* not before the image itself is there */
        fault.countdown = align_up(fault.countdown, run->w->cluster) + 8 * run->w->cluster;
    fault.sticky = rnd(3) == 0;
}

static void do_task(uint64_t task, char *path)
{
    Run run = {.w = chosen[task % n_chosen], .seed = (uint64_t)opt.seed + task / n_chosen, .folder = path};
    uint64_t round = task / n_chosen;
    Loop *loop;

    if (run.w->every && n_chosen > 1 && round % run.w->every)
        return;
    loop = loop_new(NULL);
    g_assert(loop);
    choose_fault(&run);
    run.daemon = daemon_new(loop);
    qapi_set_event_sink(ignore_event, NULL);
    coroutine_start(loop, task_co_entry, &run);
    while (coroutine_count(loop))
        loop_run(loop);
    daemon_free(run.daemon);
    loop_free(loop);
}

/* Some workloads do not have many different states. */
static bool goes_on(void)
{
    return tally->idle < 64 * (uint64_t)opt.jobs && tally->distinct < (uint64_t)opt.states && !tally->failed;
}

static void G_GNUC_NORETURN worker(int number)
{
    g_autofree char *name = g_strdup_printf("%d", number), *path = g_build_filename(folder, name, NULL);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    g_set_printerr_handler(quiet);
    driver_set_list(disk_drivers());
    if (g_mkdir(path, 0700) != 0)
        g_error("%s: %s", path, g_strerror(errno));
    while (goes_on())
        do_task(__atomic_fetch_add(&tally->tasks, 1, __ATOMIC_RELAXED), path);
    _exit(0);
}

/* ---- the parent ------------------------------------------------------------------------------------------------- */

static void show_progress(double seconds, bool last)
{
    fprintf(stdout,
            "%s%" PRIu64 " of %" PRId64 " distinct states (%" PRIu64 " built) of %" PRIu64 " workloads in %" PRIu64
            " runs; %" PRIu64 " openings compared, %" PRIu64 " by --check, %" PRIu64 " by qemu-img check, %" PRIu64
            " after a second cut; %" PRIu64 " failures; seed %" PRId64 "; %.0f s%s",
            isatty(1) ? "\r" : "", tally->distinct, opt.states, tally->built, n_chosen, tally->runs, tally->opened,
            tally->ours, tally->qemu, tally->second, tally->failed, opt.seed, seconds, last || !isatty(1) ? "\n" : "");
    fflush(stdout);
}

static bool choose_log(GError **error)
{
    chosen[0] = log_workload(&opt.files, error);
    n_chosen = chosen[0] != NULL;
    return n_chosen;
}

static bool choose_workloads(void)
{
    for (size_t i = 0; i < n_workloads; i++)
        if (!opt.only || g_regex_match_simple(opt.only, workloads[i].name, 0, 0)) {
            g_assert(n_chosen < G_N_ELEMENTS(chosen));
            chosen[n_chosen++] = &workloads[i];
        }
    if (opt.list)
        for (size_t i = 0; i < n_chosen; i++)
            puts(chosen[i]->name);
    return n_chosen > 0;
}

static void make_folder(void)
{
    const char *parent = g_getenv("TMPDIR");

    if (!parent)
        parent = g_file_test("/dev/shm", G_FILE_TEST_IS_DIR) ? "/dev/shm" : g_get_tmp_dir();
    folder = g_build_filename(parent, "crash-replay-XXXXXX", NULL);
    if (!g_mkdtemp(folder))
        g_error("no temporary folder: %s", g_strerror(errno));
}

static bool drop_folder(void)
{
    g_autofree char *command = g_strdup_printf("rm -rf '%s'", folder);

    return system(command) == 0;
}

static void make_tally(void)
{
    uint64_t room = UINT64_C(1) << (ilog2((uint64_t)opt.states + 1) + 3);

    tally = mmap(NULL, sizeof(*tally) + room * 8, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    g_assert(tally != MAP_FAILED);
    tally->hashes_room = room;
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_autoptr(GError) error = NULL;
    int64_t start = g_get_monotonic_time();
    int left, status;
    bool ok = true;

    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, &error) || opt.states < 1) {
        fprintf(stderr, "crash-replay: %s\n", error ? error->message : "--states must be positive");
        return 2;
    }
    if ((opt.files.log || opt.files.image) && !choose_log(&error)) {
        fprintf(stderr, "crash-replay: %s\n", error->message);
        return 2;
    }
    if (!n_chosen && !choose_workloads()) {
        fprintf(stderr, "crash-replay: no workload matches '%s'\n", opt.only);
        return 2;
    }
    if (opt.list)
        return 0;
    if (!opt.keep) {
        g_autofree char *dir = g_path_get_dirname(argv[0]);
        opt.keep = g_build_filename(dir, "crash-replay-failed", NULL);
    }
    if (opt.jobs < 1)
        opt.jobs = g_get_num_processors();
    per_run = (unsigned)CLAMP((uint64_t)opt.states / n_chosen / 3, 40, 300);
    make_tally();
    make_folder();
    for (left = 0; left < opt.jobs; left++)
        if (fork() == 0)
            worker(left);
    for (int64_t shown = start; left;) {
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid > 0) {
            left--;
            if (!WIFEXITED(status) || WEXITSTATUS(status)) {
                ok = false;
                __atomic_fetch_add(&tally->failed, !tally->failed, __ATOMIC_RELAXED);
            }
            continue;
        }
        poll(NULL, 0, 100);
        if (g_get_monotonic_time() - shown > (isatty(1) ? 1 : 20) * G_USEC_PER_SEC) {
            shown = g_get_monotonic_time();
            show_progress((double)(shown - start) / G_USEC_PER_SEC, false);
        }
    }
    show_progress((double)(g_get_monotonic_time() - start) / G_USEC_PER_SEC, true);
    return drop_folder() && ok && !tally->failed ? 0 : 1;
}
