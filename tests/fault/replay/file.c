/*
 * A log from a file instead of a workload: what a daemon did to an image below a blklogwrites node with log-order=on.
 *
 * With the log of a second such node, between the format and its guest, each sector is judged as well; both logs must
 * be of one process, since moments are its own.
 */
#include "tests/fault/replay/file.h"
#include "block/drivers/qcow2/qcow2.h"
#include "block/graph/graph-int.h"
#include "block/util/bytes.h"
#include "qapi/rt/json.h"
#include <glib/gstdio.h>
#include <inttypes.h>
#include <unistd.h>

static Workload workload = {.name = "log"};

static bool fits(const char *path, GError **error)
{
    GStatBuf st;

    if (g_stat(path, &st) != 0 || access(path, R_OK) != 0)
        return error_set(error, "%s cannot be read", path);
    return st.st_size <= DISK_MAX ||
           error_set(error, "%s is larger than %d MiB, which is as much as is replayed", path, DISK_MAX >> 20);
}

/* What the image's header says about it, as a workload would. */
static bool describe_qcow2(const char *path, GError **error)
{
    g_autofree char *data = NULL;
    gsize size;
    Q2Header h;

    if (!g_file_get_contents(path, &data, &size, error) ||
        !q2_header_parse(&h, (const uint8_t *)data, MIN(size, 2 << 20), error))
        return false;
    workload.cluster = UINT64_C(1) << h.cluster_bits;
    workload.sub = q2_header_l2_entry_bytes(&h) == 16 ? workload.cluster / 32 : 0;
    if (h.version >= 3 && h.compat & 1)
        workload.create = "lazy_refcounts=on";
    if (h.backing_file || h.incompat & Q2_INCOMPAT_DATA_FILE || h.crypt_method)
        error_set(error, "%s has a backing file, a data file or a password, with which logs are not replayed", path);
    q2_header_free(&h);
    return !*error;
}

const Workload *log_workload(const LogFiles *files, GError **error)
{
    const char *format = files->format ? files->format : "qcow2";

    if (!files->log || !files->image) {
        error_set(error, "--log and --image belong together");
        return NULL;
    }
    if (strcmp(format, "qcow2") != 0 && strcmp(format, "qed") != 0 && strcmp(format, "raw") != 0) {
        error_set(error, "--format may be qcow2, qed or raw, not '%s'", format);
        return NULL;
    }
    workload.format = format;
    workload.create = "";
    workload.cluster = 65536;
    workload.files = files;
    if (!fits(files->log, error) || !fits(files->image, error) ||
        (files->guest_log && !fits(files->guest_log, error)) ||
        (strcmp(format, "qcow2") == 0 && !describe_qcow2(files->image, error)))
        return NULL;
    return &workload;
}

/* The log in that file, all of which is kept as disk @name. */
static GArray *load_log(const Run *run, const char *path, const char *name)
{
    g_autoptr(GError) error = NULL;
    Disk *disk = disk_get(name);
    GArray *records;

    disk_load_file(disk, path);
    records = log_parse(disk->data, disk->size, &error);
    if (!records)
        run_fail(run, "%s: %s", path, error->message);
    for (guint i = 0; i < records->len; i++) {
        const Record *r = &g_array_index(records, Record, i);
        if (r->offset > DISK_MAX || r->bytes > DISK_MAX - r->offset)
            run_fail(run, "%s: the disk is larger than %d MiB, which is as much as is replayed", path, DISK_MAX >> 20);
    }
    return records;
}

/* What the guest found in the image before anything was logged. */
static void load_co_base(Run *run, const View *view)
{
    g_autofree char *json = run_view_json(run, view, "before", VIEW_READ);
    g_autoptr(GError) error = NULL;
    g_autoptr(Tree) tree = json_parse(json, -1, NULL);
    g_autoptr(BlockdevOptions) options = qapi_decode_BlockdevOptions(tree, NULL);
    Node *node = node_co_open(run->daemon->graph, options, NULL, &error);
    Port *port =
        node ? port_co_new(run->daemon->graph, node, PERM_CONSISTENT_READ, PERM_ALL, NULL, NULL, &error) : NULL;
    g_autofree uint8_t *data = NULL;
    uint64_t size;

    if (!port)
        run_fail(run, "%s: %s", run->w->files->image, error->message);
    size = port_size(port);
    if (size > DISK_MAX)
        run_fail(run, "the guest's disk is larger than %d MiB, which is as much as is replayed", DISK_MAX >> 20);
    data = g_malloc(size + 1);
    if (size && port_co_pread(port, 0, size, data, 0) < 0)
        run_fail(run, "%s: the guest's disk does not read", run->w->files->image);
    port_co_free(port);
    node_co_unref(node);
    run_alloc_guest(run, size, size);
    for (uint64_t s = 0; s < run->sectors; s++)
        run->now[s] = sector_value(data + s * SECTOR);
    run->base = g_memdup2(run->now, run->sectors * 8);
}

void log_co_record(Run *run)
{
    const LogFiles *files = run->w->files;
    Tracked *t = &run->tracked[0];
    g_autofree char *json =
        g_strdup_printf("{'driver':'%s','node-name':'NODE','MODE','file':DISK(file)}", run->w->format);
    View *view;

    rnd_seed(run->seed * 1000003);
    run->views = g_array_new(FALSE, TRUE, sizeof(View));
    run->next_value = (run->seed + 1) << 32;
    run->n_tracked = 1;
    t->disk = disk_get("file");
    disk_load_file(t->disk, files->image);
    t->start = g_memdup2(t->disk->data, t->disk->size);
    t->start_size = t->disk->size;
    view = run_view(run, strcmp(run->w->format, "raw") ? "file" : NULL, run->w->format, json);
    view->from = 0;
    load_co_base(run, view);
    t->records = load_log(run, files->log, "file.log");
    if (files->guest_log) {
        g_array_free(run->guest, TRUE);
        run->guest = load_log(run, files->guest_log, "guest.log");
    } else {
        view->expect = g_new0(uint64_t, 1); /* nothing */
    }
}
