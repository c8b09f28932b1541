/*
 * storage-ctl status, jobs, qmp, events.
 */
#include "daemon/ctl.h"
#include "block/util/error.h"
#include "block/util/sizestr.h"
#include "qapi/rt/keyval.h"
#include <json-glib/json-glib.h>
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
    g_autoptr(JsonNode) reply = ctl_call(ctl, "query-jobs", NULL, &error);
    g_autoptr(JobInfoList) jobs = reply ? qapi_decode_JobInfoList(reply, &error) : NULL;
    g_autoptr(JsonNode) block_reply = jobs ? ctl_call(ctl, "query-block-jobs", NULL, &error) : NULL;
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
    g_autoptr(JsonNode) reply = ctl_call(ctl, "query-block", NULL, error);
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
    JsonNode *arguments = json_node_new(JSON_NODE_OBJECT);
    json_node_take_object(arguments, json_object_new());
    json_object_set_boolean_member(json_node_get_object(arguments), "flat", TRUE);
    g_autoptr(JsonNode) reply = ctl_call(ctl, "query-named-block-nodes", arguments, error);
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
    g_autoptr(JsonNode) reply = ctl_call(ctl, "query-block-exports", NULL, error);
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
static JsonNode *typed_value(const char *word)
{
    bool json = strchr("{[\"-0123456789", word[0]) && word[0];
    json |= strcmp(word, "true") == 0 || strcmp(word, "false") == 0 || strcmp(word, "null") == 0;
    JsonNode *node = json ? json_parse(word, -1, NULL) : NULL;
    return node ? node : json_node_init_string(json_node_alloc(), word);
}

/* Replaces the strings of a key=value tree by what they stand for. */
static void type_tree(JsonNode *tree)
{
    if (JSON_NODE_HOLDS_OBJECT(tree)) {
        JsonObject *object = json_node_get_object(tree);
        g_autoptr(GList) names = json_object_get_members(object);
        for (GList *l = names; l; l = l->next) {
            JsonNode *value = json_object_get_member(object, l->data);
            type_tree(value);
            if (JSON_NODE_HOLDS_VALUE(value))
                json_object_set_member(object, l->data, typed_value(json_node_get_string(value)));
        }
    } else if (JSON_NODE_HOLDS_ARRAY(tree)) {
        JsonArray *array = json_node_get_array(tree);
        for (guint i = 0; i < json_array_get_length(array); i++) {
            JsonNode *value = json_array_dup_element(array, 0);
            type_tree(value);
            JsonNode *typed =
                JSON_NODE_HOLDS_VALUE(value) ? typed_value(json_node_get_string(value)) : json_node_copy(value);
            json_array_remove_element(array, 0);
            json_array_add_element(array, typed);
            json_node_unref(value);
        }
    }
}

static JsonNode *qmp_arguments(int argc, char **argv, GError **error)
{
    if (argc == 1 && argv[0][0] == '{')
        return json_parse(argv[0], -1, error);
    JsonNode *tree = keyval_new();
    for (int i = 0; i < argc; i++) {
        char *equals = strchr(argv[i], '=');
        g_autofree char *key = equals ? g_strndup(argv[i], (gsize)(equals - argv[i])) : NULL;
        if (!key)
            error_set(error, "'%s' is neither KEY=VALUE nor {JSON}", argv[i]);
        if (!key || !keyval_put(tree, key, equals + 1, error)) {
            json_node_unref(tree);
            return NULL;
        }
    }
    tree = keyval_finish(tree, error);
    if (tree)
        type_tree(tree);
    return tree;
}

int ctl_qmp(Ctl *ctl, int argc, char **argv)
{
    GError *error = NULL;
    JsonNode *arguments = NULL;
    if (argc > 1) {
        arguments = qmp_arguments(argc - 1, argv + 1, &error);
        if (!arguments)
            return ctl_fail(error);
    }
    g_autoptr(JsonNode) reply = ctl_call(ctl, argv[0], arguments, &error);
    if (!reply)
        return ctl_fail(error);
    bool nothing = JSON_NODE_HOLDS_OBJECT(reply) && json_object_get_size(json_node_get_object(reply)) == 0;
    if (!nothing) {
        g_autofree char *text = json_to_str(reply, true);
        printf("%s\n", text);
    }
    return 0;
}

/* ---- events ----------------------------------------------------------------------------------------------------- */

static void print_event(JsonNode *event)
{
    JsonObject *object = json_node_get_object(event);
    JsonNode *stamp = json_object_get_member(object, "timestamp"), *data = json_object_get_member(object, "data");
    if (stamp && JSON_NODE_HOLDS_OBJECT(stamp)) {
        JsonObject *s = json_node_get_object(stamp);
        g_autoptr(GDateTime) when =
            g_date_time_new_from_unix_local(json_object_get_int_member_with_default(s, "seconds", 0));
        g_autofree char *clock = when ? g_date_time_format(when, "%H:%M:%S") : NULL;
        printf("%s.%06" G_GINT64_FORMAT " ", clock ? clock : "-",
               json_object_get_int_member_with_default(s, "microseconds", 0));
    }
    g_autofree char *text = data ? json_to_str(data, false) : g_strdup("");
    printf("%s %s\n", json_object_get_string_member_with_default(object, "event", "?"), text);
    fflush(stdout);
}

int ctl_events(Ctl *ctl, int argc, char **argv)
{
    for (;;) {
        GError *error = NULL;
        JsonNode *event = NULL;
        if (!ctl_event(ctl, -1, &event, &error))
            return ctl_fail(error);
        if (event) {
            print_event(event);
            json_node_unref(event);
        }
    }
}
