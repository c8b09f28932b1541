/*
 * Commands about the session and the process itself.
 */
#include "daemon/session.h"
#include "block/util/error.h"
#include "qapi/commands.h"
#include "qapi/rt/introspect.h"

bool qmp_co_qmp_capabilities(QmpContext *ctx, const QmpCapabilitiesArgs *arg, GError **error)
{
    if (arg->enable && arg->enable->len)
        return error_set(error, "Capability '%s' is not available", qapi_QMPCapability_str(arg->enable->items[0]));
    if (!session_negotiate(ctx->session)) {
        return error_set_class(error, SD_ERROR_COMMAND_NOT_FOUND,
                               "Capabilities negotiation is already complete, command ignored");
    }
    return true;
}

/*
 * "qemu" is the version of the protocol that we speak, not ours: clients look at it to learn what commands, arguments
 * and error texts to expect, and ours are those of QEMU 7.2. Who we are stands in "package", for people.
 */
bool qmp_co_query_version(QmpContext *ctx, VersionInfo **ret, GError **error)
{
    VersionInfo *info = g_new0(VersionInfo, 1);
    info->qemu = g_new0(VersionTriple, 1);
    info->qemu->major = 7;
    info->qemu->minor = 2;
    info->qemu->micro = 0;
    info->package = g_strdup("storage-daemon " SD_VERSION);
    *ret = info;
    return true;
}

bool qmp_co_query_commands(QmpContext *ctx, CommandInfoList **ret, GError **error)
{
    CommandInfoList *list = g_new0(CommandInfoList, 1);
    list->items = g_new0(CommandInfo *, qapi_n_commands);
    for (list->len = 0; list->len < qapi_n_commands; list->len++) {
        list->items[list->len] = g_new0(CommandInfo, 1);
        list->items[list->len]->name = g_strdup(qapi_commands[list->len].name);
    }
    *ret = list;
    return true;
}

bool qmp_co_query_qmp_schema(QmpContext *ctx, Tree **ret, GError **error)
{
    *ret = qapi_introspect();
    return true;
}

/* The reply comes when everything is closed: whoever waits for it may use the images. */
bool qmp_co_quit(QmpContext *ctx, GError **error)
{
    Daemon *d = ctx->daemon;
    daemon_end(d, SHUTDOWN_CAUSE_HOST_QMP_QUIT);
    d->commands--;
    coqueue_wake_all(&d->idle);
    while (!d->closed)
        coqueue_co_wait(&d->on_closed, NULL);
    d->commands++;
    return true;
}
