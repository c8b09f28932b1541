/*
 * storage-ctl status, jobs, qmp, events.
 */
#include "daemon/ctl.h"
#include "block/util/error.h"
#include "block/util/sizestr.h"
#include "qapi/rt/keyval.h"
#include "qapi/rt/tree.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static char *percent(int64_t done, int64_t total)
{
    return total > 0 ? g_strdup_printf("%.1f%%", 100.0 * (double)done / (double)total) : g_strdup("-");
}

static void show_job(CtlTable *table, const JobInfo *job, const BlockJobInfoList *block_jobs)
{
    g_autofree char *done = percent(job->current_progress, job->total_progress);
    g_autofree char *speed = NULL;
    for (size_t i = 0; i < block_jobs->len; i++) {
        const BlockJobInfo *b = block_jobs->items[i];
        if (strcmp(b->device, job->id) == 0 && b->speed) {
            g_autofree char *size = size_to_str((uint64_t)b->speed);
            speed = g_strconcat("at most ", size, "/s", NULL);
        }
    }
    ctl_table_row(table, job->id, qapi_JobType_str(job->type), qapi_JobStatus_str(job->status), done,
                  job->error ? job->error
                  : speed    ? speed
                             : "",
                  NULL);
}

int ctl_jobs(Ctl *ctl, int argc, char **argv)
{
    GError *error = NULL;
    g_autoptr(Tree) reply = ctl_call(ctl, "query-jobs", NULL, &error);
    g_autoptr(JobInfoList) jobs = reply ? qapi_decode_JobInfoList(reply, &error) : NULL;
    g_autoptr(Tree) block_reply = jobs ? ctl_call(ctl, "query-block-jobs", NULL, &error) : NULL;
    g_autoptr(BlockJobInfoList) block_jobs = block_reply ? qapi_decode_BlockJobInfoList(block_reply, &error) : NULL;
    if (!block_jobs)
        return ctl_fail(error);
    CtlTable *table = ctl_table_new("JOB", "TYPE", "STATE", "DONE", "", NULL);
    for (size_t i = 0; i < jobs->len; i++)
        show_job(table, jobs->items[i], block_jobs);
    ctl_table_end(table, "jobs");
    return 0;
}

static bool show_devices(Ctl *ctl, GError **error)
{
    g_autoptr(Tree) reply = ctl_call(ctl, "query-block", NULL, error);
    g_autoptr(BlockInfoList) list = reply ? qapi_decode_BlockInfoList(reply, error) : NULL;
    if (!list)
        return false;
    CtlTable *table = ctl_table_new("DEVICE", "NODE", "", NULL);
    for (size_t i = 0; i < list->len; i++) {
        const BlockInfo *d = list->items[i];
        const BlockDeviceInfo *in = d->inserted;
        ctl_table_row(table, d->device, in && in->node_name ? in->node_name : "-", in ? "" : "no medium", NULL);
    }
    ctl_table_end(table, "devices");
    return true;
}

static bool show_nodes(Ctl *ctl, GError **error)
{
    Tree *arguments = tree_object();
    tree_set(arguments, "flat", tree_bool(true));
    g_autoptr(Tree) reply = ctl_call(ctl, "query-named-block-nodes", arguments, error);
    g_autoptr(BlockDeviceInfoList) list = reply ? qapi_decode_BlockDeviceInfoList(reply, error) : NULL;
    if (!list)
        return false;
    CtlTable *table = ctl_table_new("NODE", "DRIVER", "SIZE", "", "FILE", NULL);
    for (size_t i = 0; i < list->len; i++) {
        const BlockDeviceInfo *n = list->items[i];
        g_autofree char *size = size_to_str((uint64_t)n->image->virtual_size);
        ctl_table_row(table, n->node_name ? n->node_name : "-", n->drv, size, n->ro ? "ro" : "rw", n->file, NULL);
    }
    ctl_table_end(table, "nodes");
    return true;
}

static bool show_exports(Ctl *ctl, GError **error)
{
    g_autoptr(Tree) reply = ctl_call(ctl, "query-block-exports", NULL, error);
    g_autoptr(BlockExportInfoList) list = reply ? qapi_decode_BlockExportInfoList(reply, error) : NULL;
    if (!list)
        return false;
    CtlTable *table = ctl_table_new("EXPORT", "TYPE", "NODE", "", NULL);
    for (size_t i = 0; i < list->len; i++) {
        const BlockExportInfo *e = list->items[i];
        ctl_table_row(table, e->id, qapi_BlockExportType_str(e->type), e->node_name,
                      e->shutting_down ? "shutting down" : "", NULL);
    }
    ctl_table_end(table, "exports");
    return true;
}

int ctl_status(Ctl *ctl, int argc, char **argv)
{
    GError *error = NULL;
    if (!show_devices(ctl, &error))
        return ctl_fail(error);
    printf("\n");
    if (!show_nodes(ctl, &error))
        return ctl_fail(error);
    printf("\n");
    if (!show_exports(ctl, &error))
        return ctl_fail(error);
    printf("\n");
    return ctl_jobs(ctl, 0, NULL);
}

/* ---- qmp -------------------------------------------------------------------------------------------------------- */

/* What a word on the command line stands for in JSON. */
static Tree *typed_value(const char *word)
{
    bool json = strchr("{[\"-0123456789", word[0]) && word[0];
    json |= strcmp(word, "true") == 0 || strcmp(word, "false") == 0 || strcmp(word, "null") == 0;
    Tree *value = json ? json_parse(word, -1, NULL) : NULL;
    return value ? value : tree_string(word);
}

/* A copy of a key=value tree with what its strings stand for. */
static Tree *typed(const Tree *tree)
{
    Tree *copy;
    switch (tree_kind(tree)) {
    case TREE_STRING:
        return typed_value(tree_as_string(tree));
    case TREE_LIST:
        copy = tree_list();
        for (guint i = 0; i < tree_size(tree); i++)
            tree_add(copy, typed(tree_element(tree, i)));
        return copy;
    case TREE_OBJECT:
        copy = tree_object();
        for (guint i = 0; i < tree_size(tree); i++) {
            const char *name;
            const Tree *value = tree_member(tree, i, &name);
            tree_set(copy, name, typed(value));
        }
        return copy;
    default:
        return tree_copy(tree);
    }
}

static Tree *qmp_arguments(int argc, char **argv, GError **error)
{
    if (argc == 1 && argv[0][0] == '{')
        return json_parse(argv[0], -1, error);
    Tree *tree = tree_object();
    for (int i = 0; i < argc; i++) {
        char *equals = strchr(argv[i], '=');
        g_autofree char *key = equals ? g_strndup(argv[i], (gsize)(equals - argv[i])) : NULL;
        if (!key)
            error_set(error, "'%s' is neither KEY=VALUE nor {JSON}", argv[i]);
        if (!key || !keyval_put(tree, key, equals + 1, error)) {
            tree_unref(tree);
            return NULL;
        }
    }
    g_autoptr(Tree) spelled = keyval_finish(tree, error);
    return spelled ? typed(spelled) : NULL;
}

int ctl_qmp(Ctl *ctl, int argc, char **argv)
{
    GError *error = NULL;
    Tree *arguments = NULL;
    if (argc > 1) {
        arguments = qmp_arguments(argc - 1, argv + 1, &error);
        if (!arguments)
            return ctl_fail(error);
    }
    g_autoptr(Tree) reply = ctl_call(ctl, argv[0], arguments, &error);
    if (!reply)
        return ctl_fail(error);
    bool nothing = tree_is_object(reply) && tree_size(reply) == 0;
    if (!nothing) {
        g_autofree char *text = json_to_str(reply, true);
        printf("%s\n", text);
    }
    return 0;
}

/* ---- events ----------------------------------------------------------------------------------------------------- */

static void print_event(const Tree *event)
{
    Tree *stamp = tree_get(event, "timestamp"), *data = tree_get(event, "data");
    if (tree_is_object(stamp)) {
        g_autoptr(GDateTime) when = g_date_time_new_from_unix_local(tree_get_int(stamp, "seconds", 0));
        g_autofree char *clock = when ? g_date_time_format(when, "%H:%M:%S") : NULL;
        printf("%s.%06" PRId64 " ", clock ? clock : "-", tree_get_int(stamp, "microseconds", 0));
    }
    g_autofree char *text = data ? json_to_str(data, false) : g_strdup("");
    const char *name = tree_get_string(event, "event");
    printf("%s %s\n", name ? name : "?", text);
    fflush(stdout);
}

int ctl_events(Ctl *ctl, int argc, char **argv)
{
    for (;;) {
        GError *error = NULL;
        Tree *event = NULL;
        if (!ctl_event(ctl, -1, &event, &error))
            return ctl_fail(error);
        if (event) {
            print_event(event);
            tree_unref(event);
        }
    }
}
