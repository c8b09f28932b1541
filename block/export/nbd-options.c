/*
 * The NBD server as commands and the command line describe it.
 */
#include "block/aio/socket.h"
#include "block/export/nbd-int.h"
#include <errno.h>
#include <stdlib.h>

static bool inet_addr_of(const InetSocketAddress *in, SocketAddr *ret, GError **error)
{
    if (in->keep_alive)
        return error_set(error, "keep-alive option is not supported for passive sockets");
    if (in->mptcp)
        return error_set(error, "Parameter 'mptcp' is not supported");
    *ret = (SocketAddr){
        .kind = SOCKET_INET,
        .host = in->host,
        .port = in->port,
        .port_to = in->to,
        .numeric = in->numeric,
        /* Who asks for one family only names that one. */
        .no_ipv4 = in->has_ipv4 ? !in->ipv4 : in->ipv6,
        .no_ipv6 = in->has_ipv6 ? !in->ipv6 : in->ipv4,
    };
    return true;
}

static bool unix_addr_of(const UnixSocketAddress *un, SocketAddr *ret)
{
    *ret = (SocketAddr){
        .kind = SOCKET_UNIX,
        .path = un->path,
        .abstract = un->abstract,
        .padded = un->has_tight && !un->tight,
    };
    return true;
}

static bool fd_addr_of(const FdSocketAddress *fd, SocketAddr *ret, GError **error)
{
    char *end;
    long number;

    errno = 0;
    number = strtol(fd->str, &end, 10);
    if (errno || end == fd->str || *end || number < 0 || number > G_MAXINT) {
        return error_set(error, "'%s' is no file descriptor number (passing descriptors by name is not supported)",
                         fd->str);
    }
    *ret = (SocketAddr){.kind = SOCKET_FD, .fd = (int)number};
    return true;
}

static bool refuse_tls(const char *tls_creds, const char *tls_authz, GError **error)
{
    if (tls_creds)
        return error_set(error, "Parameter 'tls-creds' is not supported: this server has no TLS");
    if (tls_authz)
        return error_set(error, "Parameter 'tls-authz' is not supported: this server has no TLS");
    return true;
}

bool nbd_server_co_start_options(ExportList *list, const NbdServerOptions *options, GError **error)
{
    const SocketAddress *addr = options->addr;
    SocketAddr sa;
    bool ok = false;

    if (!refuse_tls(options->tls_creds, options->tls_authz, error))
        return false;
    switch (addr->type) {
    case SOCKET_ADDRESS_TYPE_INET:
        ok = inet_addr_of(&addr->u.inet, &sa, error);
        break;
    case SOCKET_ADDRESS_TYPE_UNIX:
        ok = unix_addr_of(&addr->u.q_unix, &sa);
        break;
    case SOCKET_ADDRESS_TYPE_FD:
        ok = fd_addr_of(&addr->u.fd, &sa, error);
        break;
    default:
        return error_set(error, "Sockets of type '%s' are not supported", qapi_SocketAddressType_str(addr->type));
    }
    return ok && nbd_server_co_start(list, &sa, options->max_connections, error);
}

bool nbd_server_co_start_legacy(ExportList *list, const SocketAddressLegacy *addr, const char *tls_creds,
                                const char *tls_authz, uint32_t max_connections, GError **error)
{
    SocketAddr sa;
    bool ok = false;

    if (!refuse_tls(tls_creds, tls_authz, error))
        return false;
    switch (addr->type) {
    case SOCKET_ADDRESS_TYPE_INET:
        ok = inet_addr_of(addr->u.inet.data, &sa, error);
        break;
    case SOCKET_ADDRESS_TYPE_UNIX:
        ok = unix_addr_of(addr->u.q_unix.data, &sa);
        break;
    case SOCKET_ADDRESS_TYPE_FD:
        ok = fd_addr_of(addr->u.fd.data, &sa, error);
        break;
    default:
        return error_set(error, "Sockets of type '%s' are not supported", qapi_SocketAddressType_str(addr->type));
    }
    return ok && nbd_server_co_start(list, &sa, max_connections, error);
}

bool nbd_server_co_add(ExportList *list, const NbdServerAddArgs *args, GError **error)
{
    const char *name = args->name ? args->name : args->device;
    BlockDirtyBitmapOrStr bitmap = {.kind = BLOCK_DIRTY_BITMAP_OR_STR_LOCAL, .u.local = args->bitmap};
    BlockDirtyBitmapOrStr *items[] = {&bitmap};
    BlockDirtyBitmapOrStrList bitmaps = {.len = 1, .items = items};
    BlockExportOptions options = {
        .type = BLOCK_EXPORT_TYPE_NBD,
        .id = (char *)name,
        .u.nbd = {.name = (char *)name, .description = args->description, .bitmaps = args->bitmap ? &bitmaps : NULL},
    };
    Node *node;

    if (!nbd_server_running(list))
        return error_set(error, "NBD server not running");
    node = graph_lookup(list->graph, args->device, error);
    if (!node)
        return false;
    options.node_name = node->name;
    options.writable = args->writable && node_writable(node); /* as QEMU has it: read-only nodes go as such, unasked */
    return export_co_add(list, &options, error);
}
