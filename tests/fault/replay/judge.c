#include "tests/fault/replay/judge.h"
#include "block/drivers/qcow2/qcow2.h"
#include "block/graph/check.h"
#include "block/graph/graph-int.h"
#include "block/util/bytes.h"
#include "qapi/rt/json.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    QEMU_EVERY = 5,
    SECOND_EVERY = 24, /* states after which the image is used again, with a second cut */
    SECOND_OPS = 14,   /* of the guest then */
    SECOND_WINDOWS = 2,
    SECOND_STATES = 3, /* of each window */
    PER_WINDOW = 48,
};

/* What is being judged. */
typedef struct Case {
    Run *run;
    Tally *tally;
    States *states;
    Model *model;
    const GArray *views;
    uint64_t when;
    bool clean;       /* not even leaks */
    bool second;      /* it is a second cut already */
    const char *what; /* for failures */
} Case;

bool tally_is_new(Tally *t, uint64_t hash)
{
    hash += hash == 0;
    for (uint64_t i = hash & (t->hashes_room - 1);; i = (i + 1) & (t->hashes_room - 1)) {
        uint64_t seen = 0;
        if (__atomic_compare_exchange_n(&t->hashes[i], &seen, hash, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
            return true;
        if (seen == hash)
            return false;
    }
}

static void count(uint64_t *what)
{
    __atomic_fetch_add(what, 1, __ATOMIC_RELAXED);
}

static void G_GNUC_PRINTF(2, 3) G_GNUC_NORETURN fail(const Case *c, const char *fmt, ...)
{
    g_autofree char *pieces = states_describe(c->states);
    va_list args;

    va_start(args, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, args);
    va_end(args);
    run_fail(c->run, "%s, power cut after moment %" PRIu64 "%s: %s\nOpen requests, # is there:%s", c->what, c->when,
             c->second ? " (the second one)" : "", text, pieces);
}

/* ---- this driver ------------------------------------------------------------------------------------------------ */

static Node *open_co_view(const Case *c, const View *view, const char *name, ViewMode mode)
{
    g_autofree char *json = run_view_json(c->run, view, name, mode);
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) tree = json_parse(json, -1, &error);
    g_autoptr(BlockdevOptions) options = tree ? qapi_decode_BlockdevOptions(tree, &error) : NULL;
    Node *node = options ? node_co_open(c->run->daemon->graph, options, NULL, &error) : NULL;

    if (!node)
        fail(c, "%s does not open: %s", json, error->message);
    return node;
}

/* The guest's disk into *@ret_data, which the caller frees. Bitmaps are judged on the way. */
static uint64_t read_co_view(const Case *c, const View *view, uint8_t **ret_data)
{
    g_autoptr(GError) error = NULL;
    Node *node = open_co_view(c, view, "view", VIEW_READ);
    Port *port = port_co_new(c->run->daemon->graph, node, PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL, &error);
    g_autofree char *broken = NULL;
    uint64_t size;
    int ret;

    if (!port)
        fail(c, "%s", error->message);
    size = port_size(port);
    *ret_data = g_malloc(size + 1);
    ret = size ? port_co_pread(port, 0, size, *ret_data, 0) : 0;
    port_co_free(port);
    if (ret < 0)
        fail(c, "the guest's disk does not read: %s", g_strerror(-ret));
    broken = claims_broken(c->run->claims, node, *ret_data, size, c->when, c->clean);
    node_co_unref(node);
    if (broken)
        fail(c, "%s", broken);
    return size;
}

/* @last: what changes the state may be done now. */
static void judge_co_view(const Case *c, const View *view, bool last)
{
    g_autofree uint8_t *data = NULL;
    g_autofree char *why = NULL;
    uint64_t size = view->json ? read_co_view(c, view, &data) : 0, value;

    if (view->json && !view->expect && !model_allows(c->model, data, size, &why))
        fail(c, "%s", why);
    for (uint64_t s = 0; view->expect && s < view->expect_n; s++) {
        memcpy(&value, data + s * SECTOR, 8);
        if (value != view->expect[s])
            fail(c, "sector %" PRIu64 " of '%s' has 0x%" PRIx64 ", not 0x%" PRIx64, s, view->image, value,
                 view->expect[s]);
    }
    if (view->co_check && last && !c->second && !view->co_check(c->run, data, size, c->when, &why))
        fail(c, "%s", why);
}

/* ---- this driver's checker -------------------------------------------------------------------------------------- */

static void keep_message(void *opaque, const char *text)
{
    g_string_append_printf(opaque, "%s\n", text);
}

/* @fix: CHECK_FIX_*; then requests go over the log. */
static void judge_co_check(const Case *c, const View *view, unsigned fix)
{
    const Driver *drv = driver_find(view->format);
    g_autoptr(GString) said = g_string_new(NULL);
    CheckOptions options = {.fix = fix, .message = keep_message, .opaque = said};
    CheckResult r = {0};
    g_autoptr(GError) error = NULL;
    Port *port;
    bool ok, no_leaks;

    if (!drv->co_check)
        return;
    port = run_co_disk(c->run, view->image, fix ? VIEW_LOGGED : VIEW_READ);
    ok = drv->co_check(port->child, &options, &r, &error);
    port_co_free(port);
    count(&c->tally->ours);
    no_leaks = c->clean || view->clean ||
               (fix && strcmp(view->format, "qed") != 0); /* what leaks in the middle of a qed file stays there */
    if (!ok || r.corruptions || r.check_errors || (r.leaks && no_leaks))
        fail(c, "the checker finds %s%" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors\n%s",
             ok ? "" : error->message, r.corruptions, r.leaks, r.check_errors, said->str);
}

/* ---- qemu-img --------------------------------------------------------------------------------------------------- */

static char *path_of(const Case *c, const char *name)
{
    return g_build_filename(c->run->folder, name, NULL);
}

static int run_qemu_img(bool is_locked, const char *folder, const char *format, const char *path, const char *output)
{
    char *plain[] = {"qemu-img", "check", "-f", (char *)format, (char *)path, NULL};
    char *locked[] = {"qemu-img",
                      "check",
                      "--object",
                      "secret,id=sec,data=" REPLAY_SECRET,
                      "--image-opts",
                      "driver=qcow2,encrypt.format=luks,encrypt.key-secret=sec,file.filename=file",
                      NULL};
    char *const *argv = is_locked ? locked : plain;
    posix_spawn_file_actions_t actions;
    int status;
    pid_t pid;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    posix_spawn_file_actions_addchdir_np(&actions, folder); /* data files are found from there */
    if (posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ) != 0)
        return 127;
    posix_spawn_file_actions_destroy(&actions);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static void judge_by_qemu(const Case *c, const View *view)
{
    g_autofree char *output = path_of(c, "qemu-img.log"), *said = NULL;
    int code;

    for (size_t i = 0; i < c->run->n_tracked; i++) {
        g_autofree char *path = path_of(c, c->run->tracked[i].disk->name);
        disk_store_file(c->run->tracked[i].disk, path);
    }
    code = run_qemu_img(c->run->w->locked, c->run->folder, view->format, view->image, output);
    count(&c->tally->qemu);
    if (code == 0 || (code == 3 && !c->clean && !view->clean))
        return;
    g_file_get_contents(output, &said, NULL, NULL);
    fail(c, "qemu-img check ends with %d:\n%s", code, said ? said : "");
}

/* ---- a state ---------------------------------------------------------------------------------------------------- */

/* What a format does that was not closed, when it is opened for writing. */
static void repair_co_view(const Case *c, const View *view)
{

    node_co_unref(open_co_view(c, view, "repaired", VIEW_WRITE));
}

static bool needs_repair(const Case *c, const View *view)
{
    const char *create = c->run->w->create;

    return view->json && view->format &&
           (!strcmp(view->format, "qed") || (create && strstr(create, "lazy_refcounts=on")));
}

/* Is it the one to look at: now, and with what the image says? */
static bool holds(const Case *c, const View *view)
{
    const Disk *disk = disk_get("file");
    Q2Header h;
    bool ok;

    if (c->when < view->from || c->when >= view->until)
        return false;
    if (!view->backing)
        return true;
    if (!q2_header_parse(&h, disk->data, MIN(disk->size, c->run->w->cluster), NULL))
        fail(c, "the header is no header");
    ok = strcmp(h.backing_file ? h.backing_file : "", view->backing) == 0;
    q2_header_free(&h);
    return ok;
}

static void judge_co_state(const Case *c, bool qemu)
{
    for (guint i = 0; i < c->views->len; i++) {
        const View *view = &g_array_index(c->views, View, i);
        if (!holds(c, view))
            continue;
        judge_co_view(c, view, !needs_repair(c, view));
        count(&c->tally->opened);
        if (needs_repair(c, view)) {
            repair_co_view(c, view);
            judge_co_view(c, view, true);
        }
        if (view->image)
            judge_co_check(c, view, 0);
        if (qemu && view->image)
            judge_by_qemu(c, view);
    }
}

/* ---- the second cut --------------------------------------------------------------------------------------------- */

static const View *some_view(const Case *c)
{
    for (guint i = c->views->len; i > 0; i--) {
        const View *view = &g_array_index(c->views, View, i - 1);
        if (holds(c, view) && view->json && !view->expect)
            return view;
    }
    return NULL;
}

/* The disks as they are now are where @again begins; the guest's disk holds @data. */
static void begin_again(Run *again, const Run *run, const uint8_t *data, uint64_t size)
{
    *again = (Run){.w = run->w, .seed = run->seed, .daemon = run->daemon, .folder = run->folder, .suffix = ".again"};
    again->n_tracked = run->n_tracked;
    again->next_value = run->next_value + (UINT64_C(1) << 31) + rnd(1 << 20) * 1024;
    run_alloc_guest(again, size, size);
    for (uint64_t s = 0; s < again->sectors; s++)
        again->now[s] = sector_value(data + s * SECTOR);
    for (size_t i = 0; i < run->n_tracked; i++) {
        g_autofree char *log = g_strdup_printf("%s.log.again", run->tracked[i].disk->name);
        Tracked *t = &again->tracked[i];
        *t = (Tracked){.disk = run->tracked[i].disk};
        t->start = g_memdup2(t->disk->data, t->disk->size);
        t->start_size = t->disk->size;
        t->disk->slow = true;
        disk_resize(disk_get(log), 0);
    }
}

static void judge_co_second(const Case *first)
{
    const View *view = some_view(first);
    g_autofree uint8_t *data = NULL;
    g_autofree uint64_t *base = NULL;
    g_autofree char *json = NULL;
    uint64_t size;
    Run again;
    Case c = *first;

    if (!view)
        return;
    size = read_co_view(first, view, &data);
    begin_again(&again, first->run, data, size);
    base = g_memdup2(again.now, again.sectors * 8);
    c.run = &again;
    if (view->image && rnd(2))
        judge_co_check(&c, view, CHECK_FIX_LEAKS | CHECK_FIX_ERRORS);
    json = run_view_json(&again, view, "q", VIEW_LOGGED);
    run_co_open(&again, json);
    guest_co_run(&again, SECOND_OPS);
    run_co_close(&again);
    run_parse_logs(&again);
    again.claims = first->run->claims; /* hold whatever happens afterwards */
    c.second = true;
    c.clean = false;
    c.states = states_new(again.tracked, again.n_tracked);
    c.model = model_new(again.guest, size, base, again.sectors);
    for (unsigned w = 0; w < SECOND_WINDOWS; w++) {
        c.when = states_enter(c.states, rnd(states_windows(c.states)));
        model_at(c.model, c.when);
        c.when = first->when; /* for the views */
        for (unsigned i = 0; i < SECOND_STATES && states_next(c.states, UINT32_MAX); i++) {
            judge_co_state(&c, i == 0 && w == 0);
            count(&c.tally->second);
        }
    }
    states_free(c.states);
    model_free(c.model);
    run_clear(&again);
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

/* Everything completed and was closed. */
static void judge_co_end(Case *c)
{
    states_final(c->states);
    c->what = "the end";
    c->when = UINT64_MAX - 1;
    model_at(c->model, c->when);
    c->clean = c->run->clean;
    judge_co_state(c, true);
    c->clean = false;
}

static void judge_co_window(Case *c, size_t window, unsigned *left)
{
    unsigned most = MIN(*left, (unsigned)PER_WINDOW);

    c->when = states_enter(c->states, window);
    c->what = states_open(c->states) <= ALL_SUBSETS ? "one of all states" : "a state";
    model_at(c->model, c->when);
    while (*left && states_next(c->states, most)) {
        count(&c->tally->built);
        *left -= 1;
        if (!tally_is_new(c->tally, states_hash(c->states, 1)))
            continue;
        c->tally->idle = 0;
        uint64_t number = __atomic_add_fetch(&c->tally->distinct, 1, __ATOMIC_RELAXED);
        judge_co_state(c, number % QEMU_EVERY == 0);
        if (number % SECOND_EVERY == 0)
            judge_co_second(c);
    }
}

void judge_co_run(Run *run, Tally *tally, unsigned states)
{
    Case c = {.run = run, .tally = tally};
    g_autofree size_t *order = NULL;
    g_autofree uint64_t *base = NULL;
    size_t n;

    run_co_record(run);
    /* What failed may leak; but whoever finds no space for a snapshot gives back what it took. */
    run->clean = run->clean && (!fault.happened || (run->w->faults && fault.kind == FAULT_FULL));
    fault = (Fault){0};
    base = run->base ? g_memdup2(run->base, run->size / SECTOR * 8) : g_new0(uint64_t, run->size / SECTOR);
    for (uint64_t s = 0; s < run->size / SECTOR && run->w->backing; s++)
        base[s] = base_value(s);
    c.views = run->views;
    c.states = states_new(run->tracked, run->n_tracked);
    c.model = run->model = model_new(run->guest, run->size, base, run->size / SECTOR);
    judge_co_end(&c);
    n = states_windows(c.states);
    order = g_new(size_t, n);
    for (size_t i = 0; i < n; i++) {
        size_t k = (size_t)rnd(i + 1);
        order[i] = order[k];
        order[k] = i;
    }
    for (size_t i = 0; i < n && states; i++)
        judge_co_window(&c, order[i], &states);
    states_free(c.states);
    model_free(c.model);
    claims_free(run->claims);
    run_clear(run);
    disks_free();
    count(&tally->runs);
    count(&tally->idle);
}
