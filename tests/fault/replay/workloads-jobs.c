/*
 * Workloads that do more than guest's requests: sizes, jobs, headers.
 */
#include "tests/fault/replay/run.h"
#include "block/drivers/qcow2/qcow2.h"

#define QCOW2(disk, more) "{'driver':'qcow2','node-name':'NODE','MODE','file':DISK(" disk ")" more "}"
#define MID_BELOW         ",'backing':{'driver':'qcow2','MODE','file':DISK(mid)" /* open for more */

/* Nothing is dirty after that, and nothing waits to be freed. */
static void flush_co_all(Run *run)
{
    for (int i = 0; i < 5; i++)
        guest_co_flush(run);
}

void resize_co_body(Run *run)
{
    if (!run_co_open(run, NULL))
        return;
    for (int i = 0; i < 8; i++) {
        uint64_t size = (rnd(run->room - 64) + 64) * SECTOR;
        guest_co_run(run, run->w->ops / 8);
        if (i == 3)
            size = run->room * SECTOR;
        if (rnd(2))
            flush_co_all(run);
        guest_co_resize(run, size);
    }
    guest_co_run(run, run->w->ops / 8);
    run_co_close(run);
}

/* Larger and larger, over a base that is longer at first. */
void grow_co_body(Run *run)
{
    if (!run_co_open(run, NULL))
        return;
    for (int i = 0; i < 4; i++) {
        guest_co_run(run, run->w->ops / 4);
        if (rnd(2))
            flush_co_all(run);
        guest_co_resize(run, (run->sectors + 1 + rnd(run->w->size / SECTOR / 2)) * SECTOR);
    }
    guest_co_run(run, run->w->ops / 4);
    run_co_close(run);
}

/* What a shrunk disk's last cluster holds behind the end must not come to light when it grows again. */
void resize_tail_co_body(Run *run)
{
    uint64_t size = run->w->size;

    if (!run_co_open(run, NULL))
        return;
    for (int i = 0; i < 3; i++) {
        guest_co_run(run, run->w->ops);
        flush_co_all(run);
        guest_co_resize(run, rnd(size / SECTOR / 2) * SECTOR + size / 2);
        flush_co_all(run);
        guest_co_resize(run, size);
    }
    run_co_close(run);
}

/* "q" over "mid", which holds what the raw base does. */
static bool open_co_chain(Run *run)
{
    g_autofree char *json =
        g_strdup_printf("{'driver':'qcow2','node-name':'q','discard':'unmap','file':%s,"
                        "'backing':{'driver':'qcow2','node-name':'mid-q','discard':'unmap','file':%s,'backing':null}}",
                        run_logged(run, "file"), run_logged(run, "mid"));

    run_view(run, "file", "qcow2", QCOW2("file", MID_BELOW ",'backing':null}"));
    return run_co_open(run, json);
}

/* Requests while a job runs; in some runs there are none, so that nobody but the job flushes what it does. */
static void busy_or_not(Run *run)
{
    guest_start(run, rnd(2) ? run->w->ops / 2 : 1);
}

/* The guest is at rest when the job completes: from then on its disk is elsewhere. */
static void job_co_finish(Run *run, bool complete)
{
    guest_co_wait(run);
    if (complete) {
        run_co_job_wait(run, "j", "ready");
        run_co_cmd(run, "{'execute':'job-complete','arguments':{'id':'j'}}");
    }
    run_co_job_wait(run, "j", "concluded");
}

void commit_active_co_body(Run *run)
{
    if (!open_co_chain(run))
        return;
    guest_co_run(run, run->w->ops / 2);
    busy_or_not(run);
    run_co_cmd(run, "{'execute':'block-commit','arguments':{'job-id':'j','device':'q','auto-dismiss':false}}");
    job_co_finish(run, true);
    run_view(run, "mid", "qcow2", QCOW2("mid", ",'backing':null"));
    guest_co_verify(run);
    guest_co_run(run, run->w->ops / 2);
    run_co_cmd(run, "{'execute':'job-dismiss','arguments':{'id':'j'}}");
    run_co_close(run);
}

/* Over "low", "mid", from the top of which the job takes the data down while the guest writes to "file". */
void commit_co_body(Run *run)
{
    g_autofree char *json =
        g_strdup_printf("{'driver':'qcow2','node-name':'q','discard':'unmap','file':%s,"
                        "'backing':{'driver':'qcow2','node-name':'mid-q','file':%s,"
                        "'backing':{'driver':'qcow2','node-name':'low-q','file':%s,'backing':null}}}",
                        run_logged(run, "file"), run_logged(run, "mid"), run_logged(run, "low"));
    static const char above_mid[] =
        QCOW2("file", MID_BELOW ",'backing':{'driver':'qcow2','MODE','file':DISK(low),'backing':null}}");
    static const char above_low[] =
        QCOW2("file", ",'backing':{'driver':'qcow2','MODE','file':DISK(low),'backing':null}");

    /* Which one holds is for the header to say, at every moment. */
    run_view(run, "file", "qcow2", above_mid)->backing = "mid";
    run_view_too(run, "file", "qcow2", above_low)->backing = "low";
    if (!run_co_open(run, json))
        return;
    guest_co_run(run, run->w->ops / 2);
    busy_or_not(run);
    run_co_cmd(run, "{'execute':'block-commit','arguments':{'job-id':'j','device':'q','top-node':'mid-q',"
                    "'base-node':'low-q','backing-file':'low','auto-dismiss':false}}");
    job_co_finish(run, false);
    guest_co_verify(run);
    guest_co_run(run, run->w->ops / 2);
    run_co_cmd(run, "{'execute':'job-dismiss','arguments':{'id':'j'}}");
    run_co_close(run);
}

void stream_co_body(Run *run)
{
    if (!open_co_chain(run))
        return;
    g_array_index(run->views, View, run->views->len - 1).backing = "mid";
    run_view_too(run, "file", "qcow2", QCOW2("file", ",'backing':null"))->backing = "";
    guest_co_run(run, run->w->ops / 2);
    busy_or_not(run);
    run_co_cmd(run, "{'execute':'block-stream','arguments':{'job-id':'j','device':'q','auto-dismiss':false}}");
    job_co_finish(run, false);
    guest_co_verify(run);
    guest_co_run(run, run->w->ops / 2);
    run_co_cmd(run, "{'execute':'job-dismiss','arguments':{'id':'j'}}");
    run_co_close(run);
}

static bool open_co_with_target(Run *run)
{
    return run_co_open(run, NULL) &&
           run_co_cmd(run,
                      "{'execute':'blockdev-add','arguments':{'driver':'qcow2','node-name':'t','discard':'unmap',"
                      "'file':%s}}",
                      run_logged(run, "target"));
}

void mirror_co_body(Run *run)
{
    if (!open_co_with_target(run))
        return;
    guest_co_run(run, run->w->ops / 2);
    busy_or_not(run);
    run_co_cmd(run, "{'execute':'blockdev-mirror','arguments':{'job-id':'j','device':'q','target':'t','sync':'full',"
                    "'auto-dismiss':false}}");
    job_co_finish(run, true);
    run_view(run, "target", "qcow2", QCOW2("target", ""));
    guest_co_verify(run);
    guest_co_run(run, run->w->ops / 2);
    run_co_cmd(run, "{'execute':'job-dismiss','arguments':{'id':'j'}}");
    run_co_close(run);
}

/* From the job's end on the target holds what there was at its beginning. */
void backup_co_body(Run *run)
{
    uint64_t *then;
    View *view;

    if (!open_co_with_target(run))
        return;
    guest_co_run(run, run->w->ops / 2);
    then = run_snapshot(run);
    run_co_cmd(run, "{'execute':'transaction','arguments':{'actions':["
                    "{'type':'block-dirty-bitmap-add','data':{'node':'q','name':'b'}},"
                    "{'type':'blockdev-backup','data':{'job-id':'j','device':'q','target':'t','sync':'full',"
                    "'auto-dismiss':false}}]}}");
    busy_or_not(run);
    job_co_finish(run, false);
    view = run_view_too(run, "target", "qcow2", QCOW2("target", ""));
    view->expect = then;
    view->expect_n = run->sectors;
    guest_co_run(run, run->w->ops / 4);
    run_co_cmd(run, "{'execute':'job-dismiss','arguments':{'id':'j'}}");
    run_co_close(run);
}

/* ---- the backing file's name ------------------------------------------------------------------------------------ */

static GArray *names; /* of Named: what the header says from which moments on */

typedef struct Named {
    char name[64];
    uint64_t submitted, completed;
} Named;

/* The header names the file of the last change that had ended, or of one that had begun. */
static bool check_name(Run *run, const uint8_t *data, uint64_t size, uint64_t when, char **ret_why)
{
    const Disk *disk = disk_get("file");
    g_autoptr(GError) error = NULL;
    Q2Header h;
    bool ok = false;

    if (!q2_header_parse(&h, disk->data, MIN(disk->size, run->w->cluster), &error)) {
        *ret_why = g_strdup(error->message);
        return false;
    }
    for (guint i = 0; i < names->len; i++) {
        const Named *n = &g_array_index(names, Named, i);
        if (n->completed <= when)
            ok = false;
        if (n->submitted <= when)
            ok |= g_strcmp0(h.backing_file, n->name) == 0;
    }
    if (!ok)
        *ret_why = g_strdup_printf("the backing file's name is '%s'", h.backing_file);
    q2_header_free(&h);
    return ok;
}

void rebase_co_body(Run *run)
{
    Named first = {.name = "base"};

    if (names)
        g_array_free(names, TRUE);
    names = g_array_new(FALSE, FALSE, sizeof(Named));
    g_array_append_val(names, first);
    run_view(run, NULL, "qcow2", QCOW2("file", ",'backing':{'driver':'raw','file':DISK(base)}"))->co_check = check_name;
    if (!run_co_cmd(run, "{'execute':'blockdev-add','arguments':{'driver':'raw','node-name':'r','read-only':true,"
                         "'file':{'driver':'null-co','node-name':'base'}}}") ||
        !run_co_open(run, "{'driver':'qcow2','node-name':'q','file':"
                          "{'driver':'blklogwrites','log-order':true,'node-name':'l','file':{'driver':'null-co',"
                          "'node-name':'file'},'log':{'driver':'null-co','node-name':'file.log'}},'backing':'r'}"))
        return;
    for (int i = 0; i < 6; i++) {
        g_autofree char *fillup = g_strnfill(rnd(40), (char)('a' + i));
        Node *q = graph_find_node(run->daemon->graph, "q");
        g_autoptr(GError) error = NULL;
        Named n = {.submitted = blklogwrites_moment()};
        g_snprintf(n.name, sizeof(n.name), "name-%d-%s", i, fillup);
        guest_co_run(run, run->w->ops / 6);
        if (!q->drv->co_change_backing(q, n.name, "raw", &error))
            run_fail(run, "%s", error->message);
        n.completed = blklogwrites_moment();
        g_array_append_val(names, n);
    }
    run_co_close(run);
}

/* ---- autoclear bits --------------------------------------------------------------------------------------------- */

enum { AUTOCLEAR = 88 }; /* offset in the header */

/* Whoever keeps the bits' promise would go wrong if they were still set when the guest's data has changed. */
static bool check_autoclear(Run *run, const uint8_t *data, uint64_t size, uint64_t when, char **ret_why)
{
    if (!load_be64(disk_get("file")->data + AUTOCLEAR) || bytes_are_zero(data, size))
        return true;
    *ret_why = g_strdup("data was written, but the autoclear bits are still set");
    return false;
}

void autoclear_co_body(Run *run)
{
    g_array_index(run->views, View, 0).co_check = check_autoclear;
    if (!run_co_open(run, NULL))
        return;
    guest_co_run(run, run->w->ops);
    run_co_close(run);
}

/* ---- damage ----------------------------------------------------------------------------------------------------- */

static uint64_t found_at; /* moment */

/* Once somebody was told, the image says it as well. */
static bool check_corrupt(Run *run, const uint8_t *data, uint64_t size, uint64_t when, char **ret_why)
{
    if (when < found_at || (load_be64(disk_get("file")->data + Q2_H_INCOMPAT) & Q2_INCOMPAT_CORRUPT))
        return true;
    *ret_why = g_strdup("damage was reported, but the image is not marked");
    return false;
}

/* An entry that leads nowhere is found while the image is in use. */
void damage_co_body(Run *run)
{
    Tracked *t = &run->tracked[0];
    uint64_t l2 = load_be64(t->start + load_be64(t->start + Q2_H_L1_SIZE + 4)) & Q2_OFFSET_MASK;
    uint8_t buf[SECTOR];

    store_be64(t->start + l2 + 3 * 8, Q2_COPIED | 0x600);
    disk_load(t->disk, t->start, t->start_size);
    found_at = UINT64_MAX;
    run->clean = false;
    run_view(run, NULL, "qcow2", NULL)->co_check = check_corrupt;
    if (!run_co_open(run, NULL))
        return;
    if (port_co_pread(run->port, 3 * run->w->cluster, SECTOR, buf, 0) == 0)
        run_fail(run, "damage was not found");
    found_at = blklogwrites_moment();
    run_co_close(run);
}

/* ---- key slots -------------------------------------------------------------------------------------------------- */

static void amend_co_keys(Run *run, const char *how)
{
    run_co_cmd(run,
               "{'execute':'x-blockdev-amend','arguments':{'job-id':'a','node-name':'q','options':"
               "{'driver':'qcow2','encrypt':{'format':'luks',%s}}}}",
               how);
    run_co_job_wait(run, "a", "concluded");
    run_co_cmd(run, "{'execute':'job-dismiss','arguments':{'id':'a'}}");
}

/* Another password, then no longer the first: at every moment one of them opens the image. */
void keys_co_body(Run *run)
{
    static const char second[] = QCOW2("file", ",'encrypt':{'format':'luks','key-secret':'sec2'}");
    View *view = &g_array_index(run->views, View, 0);

    view->image = NULL; /* the others' checker knows one password only */
    run_co_cmd(run, "{'execute':'object-add','arguments':{'qom-type':'secret','id':'sec2','data':'noch eins'}}");
    if (!run_co_open(run, NULL))
        return;
    guest_co_run(run, run->w->ops);
    amend_co_keys(run, "'state':'active','new-secret':'sec2','iter-time':10");
    run_view_too(run, NULL, "qcow2", second);
    guest_co_run(run, run->w->ops);
    g_array_index(run->views, View, 0).until = blklogwrites_moment();
    amend_co_keys(run, "'state':'inactive','old-secret':'sec'");
    guest_co_run(run, run->w->ops);
    run_co_close(run);
}
