/*
 * The registry of exports.
 */
#include "block/export/export-int.h"
#include "qapi/events.h"
#include <string.h>

static const ExportType *const export_types[] = {&export_type_nbd};

ExportList *export_list_new(Loop *loop, Graph *graph)
{
    ExportList *list = g_new0(ExportList, 1);

    list->loop = loop;
    list->graph = graph;
    g_queue_init(&list->exports);
    return list;
}

void export_list_free(ExportList *list)
{
    if (list) {
        g_assert(g_queue_is_empty(&list->exports) && !list->nbd);
        g_free(list);
    }
}

Export *export_find(ExportList *list, const char *id)
{
    for (GList *l = list->exports.head; l; l = l->next) {
        Export *exp = l->data;

        if (!strcmp(exp->id, id))
            return exp;
    }
    return NULL;
}

/* Ids as QEMU takes them: a letter, then letters, digits, '-', '.' and '_'. */
static bool id_wellformed(const char *id)
{
    if (!g_ascii_isalpha(*id))
        return false;
    for (const char *p = id + 1; *p; p++)
        if (!g_ascii_isalnum(*p) && !strchr("-._", *p))
            return false;
    return true;
}

static char *export_describe(Port *port)
{
    Export *exp = port->owner;
    return g_strdup_printf("%s export '%s'", qapi_BlockExportType_str(exp->type->type), exp->id);
}

static void export_resized(Port *port)
{
    Export *exp = port->owner;

    if (exp->ready && exp->type->resized)
        exp->type->resized(exp);
}

static const PortOps export_port_ops = {
    .what = "export",
    .describe = export_describe,
    .resized = export_resized,
    .node_changed = export_resized,
};

static const ExportType *type_find(BlockExportType type)
{
    for (size_t i = 0; i < G_N_ELEMENTS(export_types); i++)
        if (export_types[i]->type == type)
            return export_types[i];
    return NULL;
}

bool export_co_add(ExportList *list, const BlockExportOptions *options, GError **error)
{
    const ExportType *type = type_find(options->type);
    unsigned perm = PERM_CONSISTENT_READ;
    Export *exp;
    Node *node;

    if (!id_wellformed(options->id))
        return error_set(error, "Invalid block export id");
    if (export_find(list, options->id))
        return error_set(error, "Block export id '%s' is already in use", options->id);
    if (!type)
        return error_set(error, "Exports of type '%s' are not supported", qapi_BlockExportType_str(options->type));
    node = graph_find_node(list->graph, options->node_name);
    if (!node)
        return error_set(error, "Cannot find device='' nor node-name='%s'", options->node_name);
    if (options->writable) {
        if (!node_writable(node))
            return error_set(error, "Cannot export read-only node as writable");
        perm |= PERM_WRITE;
    }

    exp = g_malloc0(type->size);
    exp->type = type;
    exp->list = list;
    exp->id = g_strdup(options->id);
    exp->writable = options->writable;
    exp->refs = 1;
    /* The id is taken from now on, also while this waits. */
    g_queue_push_head(&list->exports, exp);
    /* Clients were told a size: nobody, another process included, may change it under them. */
    exp->port = port_co_new(list->graph, node, perm, PERM_ALL & ~PERM_RESIZE, &export_port_ops, exp, error);
    if (!exp->port)
        goto fail;
    exp->port->count_stats = true;
    exp->port->writable = options->writable;
    exp->port->writethrough = options->writethrough;
    if (!type->co_create(exp, options, error))
        goto fail;
    exp->ready = exp->user_owned = true;
    coqueue_wake_all(&list->gone);
    return true;
fail:
    port_co_free(exp->port);
    g_queue_remove(&list->exports, exp);
    g_free(exp->id);
    g_free(exp);
    coqueue_wake_all(&list->gone);
    return false;
}

static void export_delete_co_entry(void *opaque)
{
    Export *exp = opaque;
    ExportList *list = exp->list;

    /* The command that caused this is answered first. */
    aio_co_reschedule();
    exp->type->co_delete(exp);
    port_co_free(exp->port);
    g_queue_remove(&list->exports, exp);
    qapi_emit_block_export_deleted(&(BlockExportDeletedEvent){.id = exp->id});
    g_free(exp->id);
    g_free(exp);
    coqueue_wake_all(&list->gone);
}

void export_ref(Export *exp)
{
    g_assert(exp->refs > 0);
    exp->refs++;
}

void export_unref(Export *exp)
{
    g_assert(exp->refs > 0);
    if (--exp->refs == 0) {
        exp->shutting_down = true;
        coroutine_start(exp->list->loop, export_delete_co_entry, exp);
    }
}

static void export_request_shutdown(Export *exp)
{
    if (!exp->user_owned)
        return;
    exp->user_owned = false;
    exp->shutting_down = true;
    exp->type->request_shutdown(exp);
    export_unref(exp);
}

bool export_del(ExportList *list, const char *id, BlockExportRemoveMode mode, GError **error)
{
    Export *exp = export_find(list, id);

    if (!exp || !exp->ready)
        return error_set(error, "Export '%s' is not found", id);
    if (!exp->user_owned)
        return error_set(error, "Export '%s' is already shutting down", id);
    if (mode == BLOCK_EXPORT_REMOVE_MODE_SAFE && exp->refs > 1)
        return error_set(error, "export '%s' still in use", id);
    export_request_shutdown(exp);
    return true;
}

/* The first export of @type; BLOCK_EXPORT_TYPE__MAX: of any. */
static Export *first_of(ExportList *list, BlockExportType type)
{
    for (GList *l = list->exports.head; l; l = l->next) {
        Export *exp = l->data;

        if (type == BLOCK_EXPORT_TYPE__MAX || exp->type->type == type)
            return exp;
    }
    return NULL;
}

void export_list_co_close_type(ExportList *list, BlockExportType type)
{
    do {
        for (GList *l = list->exports.head, *next; l; l = next) {
            Export *exp = l->data;

            next = l->next;
            if (type == BLOCK_EXPORT_TYPE__MAX || exp->type->type == type)
                export_request_shutdown(exp);
        }
        if (first_of(list, type))
            coqueue_co_wait(&list->gone, NULL);
    } while (first_of(list, type));
}

void export_list_co_close_all(ExportList *list)
{
    while (list->nbd && !nbd_server_co_stop(list, NULL))
        coqueue_co_wait(&list->gone, NULL); /* it is just being started or stopped */
    export_list_co_close_type(list, BLOCK_EXPORT_TYPE__MAX);
}

BlockExportInfoList *export_query(ExportList *list)
{
    BlockExportInfoList *ret = g_new0(BlockExportInfoList, 1);

    ret->items = g_new0(BlockExportInfo *, list->exports.length);
    for (GList *l = list->exports.head; l; l = l->next) {
        Export *exp = l->data;
        BlockExportInfo *info;

        if (!exp->ready)
            continue;
        info = g_new0(BlockExportInfo, 1);
        info->id = g_strdup(exp->id);
        info->type = exp->type->type;
        info->node_name = g_strdup(port_node(exp->port) ? port_node(exp->port)->name : "");
        info->shutting_down = !exp->user_owned;
        ret->items[ret->len++] = info;
    }
    return ret;
}
