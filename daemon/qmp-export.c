/*
 * The commands of qapi/schema/export.json.
 */
#include "block/export/export.h"
#include "daemon/daemon.h"
#include "qapi/commands.h"

bool qmp_co_nbd_server_start(QmpContext *ctx, const NbdServerStartArgs *arg, GError **error)
{
    return nbd_server_co_start_legacy(qmp_daemon(ctx)->exports, arg->addr, arg->tls_creds, arg->tls_authz,
                                      arg->max_connections, error);
}

bool qmp_co_nbd_server_stop(QmpContext *ctx, GError **error)
{
    return nbd_server_co_stop(qmp_daemon(ctx)->exports, error);
}

bool qmp_co_nbd_server_add(QmpContext *ctx, const NbdServerAddArgs *arg, GError **error)
{
    return nbd_server_co_add(qmp_daemon(ctx)->exports, arg, error);
}

bool qmp_co_nbd_server_remove(QmpContext *ctx, const NbdServerRemoveArgs *arg, GError **error)
{
    ExportList *list = qmp_daemon(ctx)->exports;
    Export *exp = export_find(list, arg->name);

    if (exp && exp->type->type != BLOCK_EXPORT_TYPE_NBD)
        return error_set(error, "Block export '%s' is not an NBD export", arg->name);
    return export_del(list, arg->name, arg->mode, error);
}

bool qmp_co_block_export_add(QmpContext *ctx, const BlockExportOptions *arg, GError **error)
{
    return export_co_add(qmp_daemon(ctx)->exports, arg, error);
}

bool qmp_co_block_export_del(QmpContext *ctx, const BlockExportDelArgs *arg, GError **error)
{
    return export_del(qmp_daemon(ctx)->exports, arg->id, arg->mode, error);
}

bool qmp_co_query_block_exports(QmpContext *ctx, BlockExportInfoList **ret, GError **error)
{
    *ret = export_query(qmp_daemon(ctx)->exports);
    return true;
}
