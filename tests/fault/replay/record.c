/*
 * Carrying a workload out: images, nodes, commands, the logs that come of it.
 */
#include "tests/fault/replay/file.h"
#include "block/aio/io.h"
#include "block/graph/graph-int.h"
#include "block/util/bytes.h"
#include "qapi/commands.h"
#include "qapi/rt/json.h"
#include "daemon/session.h"
#include "block/drivers/qed/qed.h"
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- images ----------------------------------------------------------------------------------------------------- */

static void shell_must(const Run *run, const char *command)
{
    g_autofree char *text = g_strdup_printf("cd '%s' && { %s; } >shell.log 2>&1", run->folder, command);
    g_autofree char *path = g_build_filename(run->folder, "shell.log", NULL), *said = NULL;

    if (system(text) == 0)
        return;
    g_file_get_contents(path, &said, NULL, NULL);
    run_fail(run, "%s: %s", command, said);
}

static void make_base(const Run *run)
{
    uint64_t size = run->w->base ? run->w->base : run->w->size;
    g_autofree uint8_t *data = g_malloc(size);
    g_autofree char *path = g_build_filename(run->folder, "base", NULL);

    for (uint64_t s = 0; s < size / SECTOR; s++)
        fill(data + s * SECTOR, SECTOR, base_value(s));
    disk_load(disk_get("base"), data, size);
    disk_store_file(disk_get("base"), path);
}

static void track(Run *run, const char *name)
{
    Tracked *t = &run->tracked[run->n_tracked++];
    g_autofree char *path = g_build_filename(run->folder, name, NULL);

    t->disk = disk_get(name);
    disk_load_file(t->disk, path);
    t->disk->slow = true;
    t->start = g_memdup2(t->disk->data, t->disk->size);
    t->start_size = t->disk->size;
}

/* All of these have the same image, since qemu-img takes long to measure how long a key takes. */
static void make_locked(const Run *run, const char *command)
{
    static char *image;
    static gsize size;
    g_autofree char *path = g_build_filename(run->folder, "file", NULL);
    bool ok = true;

    if (image)
        ok = g_file_set_contents(path, image, (gssize)size, NULL);
    else
        shell_must(run, command);
    if (!image)
        ok = g_file_get_contents(path, &image, &size, NULL);
    g_assert(ok);
}

static void make_images(Run *run)
{
    /* Often qemu-img does not manage to measure how long a key takes: the kernel counts its user time in ticks. */
    g_autofree char *command = g_strdup_printf(
        "%s && { n=%u; until qemu-img create -f %s %s file %" PRIu64 "; do [ $((n -= 1)) -gt 0 ] || exit 1; done; }",
        run->w->more ? run->w->more : "true", run->w->locked ? 50U : 1U, run->w->format, run->w->create, run->w->size);

    if (run->w->backing)
        make_base(run);
    if (run->w->locked)
        make_locked(run, command);
    else
        shell_must(run, command);
    if (run->w->then)
        shell_must(run, run->w->then);
    if (!run->w->tracked[0])
        track(run, "file");
    for (size_t i = 0; i < STATES_DISKS_MAX && run->w->tracked[i]; i++)
        track(run, run->w->tracked[i]);
}

/* ---- commands and nodes ----------------------------------------------------------------------------------------- */

bool run_co_cmd(Run *run, const char *fmt, ...)
{
    QmpContext ctx = {.daemon = run->daemon};
    g_autoptr(GError) error = NULL;
    Tree *ret = NULL;
    va_list args;

    va_start(args, fmt);
    g_autofree char *text = g_strdup_vprintf(fmt, args);
    va_end(args);
    g_autoptr(Tree) tree = json_parse(text, -1, &error);
    if (!tree)
        run_fail(run, "%s: %s", text, error->message);
    const char *name = tree_get_string(tree, "execute");
    const QapiCommand *command = qapi_find_command(qapi_commands, qapi_n_commands, name);
    if (!command)
        run_fail(run, "there is no command '%s'", name);
    if (!qapi_co_dispatch(command, &ctx, tree_get(tree, "arguments"), &ret, &error)) {
        if (!fault.happened)
            run_fail(run, "%s: %s", text, error->message);
        return false;
    }
    tree_unref(ret);
    return true;
}

static char *log_name(const Run *run, const char *disk)
{
    return g_strdup_printf("%s.log%s", disk, run->suffix ? run->suffix : "");
}

const char *run_logged(Run *run, const char *disk)
{
    g_autofree char *log = log_name(run, disk);
    g_autofree char *text = g_strdup_printf(
        "{'driver':'blklogwrites','node-name':'%s.logged','log-order':true,'log-append':%s,"
        "'file':{'driver':'null-co','node-name':'%s'},'log':{'driver':'null-co','node-name':'%s','read-only':false}}",
        disk, disk_get(log)->size ? "true" : "false", disk, log);

    return g_intern_string(text);
}

Port *run_co_disk(Run *run, const char *disk, ViewMode mode)
{
    g_autofree char *plain = g_strdup_printf("{'driver':'null-co','node-name':'%s'}", disk);
    const char *json = mode == VIEW_LOGGED ? run_logged(run, disk) : plain;
    unsigned perm = PERM_CONSISTENT_READ | (mode != VIEW_READ ? PERM_WRITE | PERM_RESIZE : 0);
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) tree = json_parse(json, -1, &error);
    g_autoptr(BlockdevOptions) options = tree ? qapi_decode_BlockdevOptions(tree, &error) : NULL;
    Node *node = options ? node_co_open(run->daemon->graph, options, NULL, &error) : NULL;
    Port *port = node ? port_co_new(run->daemon->graph, node, perm, PERM_ALL, NULL, NULL, &error) : NULL;

    if (!port)
        run_fail(run, "%s: %s", json, error->message);
    node_co_unref(node); /* the port has it */
    return port;
}

bool run_co_open(Run *run, const char *json)
{
    g_autofree char *row = NULL;
    g_autoptr(GString) options = g_string_new(run->w->options);
    g_autoptr(GError) error = NULL;
    Node *node;

    for (size_t i = 0; i < run->n_tracked; i++) {
        g_autofree char *word = g_strdup_printf("LOGGED(%s)", run->tracked[i].disk->name);
        if (strstr(options->str, word))
            g_string_replace(options, word, run_logged(run, run->tracked[i].disk->name), 0);
    }
    if (!json)
        json = row = g_strdup_printf("{'driver':'%s','node-name':'q','discard':'unmap','file':%s%s%s}", run->w->format,
                                     run_logged(run, "file"), options->str,
                                     run->w->backing ? ",'backing':{'driver':'null-co','node-name':'base'}" : "");
    if (!run_co_cmd(run, "{'execute':'blockdev-add','arguments':%s}", json))
        return false;
    if (run->w->qed_slices &&
        !qed_tables_init(qed_of(graph_find_node(run->daemon->graph, "q")), run->w->qed_slices, NULL))
        run_fail(run, "no memory for qed's cache");
    node = graph_find_node(run->daemon->graph, "q");
    run->port = port_co_new(run->daemon->graph, node, PERM_CONSISTENT_READ | PERM_WRITE, PERM_ALL, NULL, NULL, &error);
    if (!run->port)
        run_fail(run, "%s", error->message);
    run->port->writable = true;
    return true;
}

/* Deletes what blockdev-add made, parents first. */
static void drop_co_nodes(Run *run)
{
    graph_co_close_all(run->daemon->graph);
}

void run_co_close(Run *run)
{
    port_co_free(g_steal_pointer(&run->port));
    drop_co_nodes(run);
}

void run_co_job_wait(Run *run, const char *job, const char *state)
{
    for (;;) {
        QmpContext ctx = {.daemon = run->daemon};
        const QapiCommand *command = qapi_find_command(qapi_commands, qapi_n_commands, "query-jobs");
        g_autoptr(GError) error = NULL;
        Tree *ret = NULL;
        const char *status = NULL, *trouble = NULL;
        if (!qapi_co_dispatch(command, &ctx, NULL, &ret, &error))
            run_fail(run, "query-jobs: %s", error->message);
        g_autoptr(Tree) tree = ret;
        for (guint i = 0; i < tree_size(tree); i++) {
            const Tree *o = tree_element(tree, i);
            if (strcmp(tree_get_string(o, "id"), job) == 0) {
                status = tree_get_string(o, "status");
                trouble = tree_get_string(o, "error");
            }
        }
        if (!status || (trouble && !fault.happened))
            run_fail(run, "job '%s': %s", job, trouble ? trouble : "is gone");
        if (strcmp(status, state) == 0 || strcmp(status, "concluded") == 0)
            return;
        aio_co_sleep_until(LOOP_CLOCK_REAL, loop_now(run->daemon->loop, LOOP_CLOCK_REAL) + 500000);
    }
}

/* ---- views ------------------------------------------------------------------------------------------------------ */

char *run_view_json(Run *run, const View *view, const char *name, ViewMode mode)
{
    g_autoptr(GString) text = g_string_new(view->json);

    for (size_t i = 0; i < run->n_tracked && mode == VIEW_LOGGED; i++) {
        g_autofree char *disk = g_strdup_printf("DISK(%s)", run->tracked[i].disk->name);
        g_string_replace(text, disk, run_logged(run, run->tracked[i].disk->name), 0);
    }
    g_string_replace(text, "NODE", name, 0);
    g_string_replace(text, "DISK(", "{'driver':'null-co','node-name':'", 0);
    g_string_replace(text, ")", "'}", 0);
    g_string_replace(text, "'MODE'", mode != VIEW_READ ? "'read-only':false,'discard':'unmap'" : "'read-only':true", 0);
    return g_string_free(g_steal_pointer(&text), FALSE);
}

View *run_view_too(Run *run, const char *image, const char *format, const char *json)
{
    View view = {
        .json = g_strdup(json), .image = image, .format = format, .from = blklogwrites_moment(), .until = UINT64_MAX};

    g_array_append_val(run->views, view);
    return &g_array_index(run->views, View, run->views->len - 1);
}

View *run_view(Run *run, const char *image, const char *format, const char *json)
{
    uint64_t now = blklogwrites_moment();

    for (guint i = 0; i < run->views->len; i++) {
        View *view = &g_array_index(run->views, View, i);
        if (!view->expect)
            view->until = u64_min(view->until, now);
    }
    return run_view_too(run, image, format, json);
}

uint64_t *run_snapshot(const Run *run)
{
    for (uint64_t i = 0; i < run->sectors; i++)
        g_assert(run->sure[i]);
    return g_memdup2(run->now, run->sectors * 8);
}

static void first_view(Run *run)
{
    g_autofree char *json =
        g_strdup_printf("{'driver':'%s','node-name':'NODE','MODE','file':DISK(file)%s%s}", run->w->format,
                        run->w->view ? run->w->view : "", run->w->backing ? ",'backing':DISK(base)" : "");

    run_view(run, "file", run->w->format, json);
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

static void two_co_rounds(Run *run)
{
    for (int round = 0; round < 2 && !fault.happened; round++) {
        if (!run_co_open(run, NULL))
            return;
        guest_co_run(run, run->w->ops);
        run_co_close(run);
    }
}

static GArray *parse_log(Run *run, const char *disk)
{
    g_autofree char *name = log_name(run, disk);
    g_autoptr(GError) error = NULL;
    Disk *log = disk_get(name);
    GArray *records = log->size ? log_parse(log->data, log->size, &error) : g_array_new(FALSE, TRUE, sizeof(Record));

    if (!records)
        run_fail(run, "the log of '%s': %s", disk, error->message);
    return records;
}

void run_parse_logs(Run *run)
{
    for (size_t i = 0; i < run->n_tracked; i++) {
        run->tracked[i].disk->slow = false;
        run->tracked[i].records = parse_log(run, run->tracked[i].disk->name);
    }
}

void run_alloc_guest(Run *run, uint64_t size, uint64_t room)
{
    run->size = size;
    run->sectors = size / SECTOR;
    run->room = room / SECTOR;
    run->now = g_new0(uint64_t, room / SECTOR);
    run->sure = g_malloc(room / SECTOR);
    memset(run->sure, 1, room / SECTOR);
    run->guest = g_array_new(FALSE, TRUE, sizeof(Record));
}

void run_co_record(Run *run)
{
    if (run->w->files) {
        log_co_record(run);
        return;
    }
    rnd_seed(run->seed * 1000003 + (uint64_t)(run->w - workloads));
    run->views = g_array_new(FALSE, TRUE, sizeof(View));
    run->next_value = (run->seed + 1) << 32;
    run_alloc_guest(run, run->w->size, run->w->size * 4);
    for (uint64_t s = 0; s < run->sectors && run->w->backing; s++)
        run->now[s] = base_value(s);
    make_images(run);
    first_view(run);
    run->clean = true;
    run_co_cmd(run, "{'execute':'object-add','arguments':{'qom-type':'secret','id':'sec','data':'" REPLAY_SECRET "'}}");
    (run->w->co_body ? run->w->co_body : two_co_rounds)(run);
    run_parse_logs(run);
}

void run_clear(Run *run)
{
    for (size_t i = 0; i < run->n_tracked; i++) {
        g_free(run->tracked[i].start);
        g_array_free(run->tracked[i].records, TRUE);
    }
    for (guint i = 0; run->views && i < run->views->len; i++) {
        g_free(g_array_index(run->views, View, i).json);
        g_free(g_array_index(run->views, View, i).expect);
    }
    if (run->views)
        g_array_free(run->views, TRUE);
    g_array_free(run->guest, TRUE);
    g_free(run->base);
    g_free(run->now);
    g_free(run->sure);
}
