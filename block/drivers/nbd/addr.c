/*
 * Where a server is: options to an address, names to options, and options to the name QEMU shows.
 */
#include "block/drivers/nbd/nbd.h"
#include "block/util/error.h"

#define PORT_DEFAULT "10809"

static bool address_inet(SocketAddr *addr, const InetSocketAddress *in, GError **error)
{
    bool ipv4 = in->has_ipv4 && in->ipv4, ipv6 = in->has_ipv6 && in->ipv6;

    if (in->has_to)
        return error_set(error, "Parameter 'server.to' is not supported: a client connects to one port");
    if (in->has_mptcp && in->mptcp)
        return error_set(error, "Parameter 'server.mptcp' is not supported");
    *addr = (SocketAddr){.kind = SOCKET_INET,
                         .host = in->host,
                         .port = in->port,
                         .no_ipv4 = in->has_ipv4 ? !in->ipv4 : ipv6 && !ipv4,
                         .no_ipv6 = in->has_ipv6 ? !in->ipv6 : ipv4 && !ipv6,
                         .numeric = in->has_numeric && in->numeric,
                         .keep_alive = in->has_keep_alive && in->keep_alive};
    return true;
}

bool nbdc_address(NbdState *s, GError **error)
{
    const SocketAddress *server = s->server;

    switch (server->type) {
    case SOCKET_ADDRESS_TYPE_INET:
        if (!address_inet(&s->addr, &server->u.inet, error))
            return false;
        break;
    case SOCKET_ADDRESS_TYPE_UNIX:
        s->addr = (SocketAddr){
            .kind = SOCKET_UNIX,
            .path = server->u.q_unix.path,
            .abstract = server->u.q_unix.has_abstract && server->u.q_unix.abstract,
            .padded = server->u.q_unix.has_tight && !server->u.q_unix.tight,
        };
        break;
    default:
        return error_set(error,
                         "Parameter 'server.type' does not accept value '%s': the NBD client knows inet and unix",
                         qapi_SocketAddressType_str(server->type));
    }
    s->addr_name = socket_addr_str(&s->addr);
    return true;
}

char *nbdc_filename(const SocketAddress *server, const char *export)
{
    const char *slash = export ? "/" : "";

    export = export ? export : "";
    if (server->type == SOCKET_ADDRESS_TYPE_UNIX)
        return g_strdup_printf("nbd+unix://%s%s?socket=%s", slash, export, server->u.q_unix.path);
    return g_strdup_printf("nbd://%s:%s%s%s", server->u.inet.host, server->u.inet.port, slash, export);
}

/* ---- names ------------------------------------------------------------------------------------------------------ */

/* Takes the strings. @export may be NULL. */
static BlockdevOptions *options_new(SocketAddressType type, char *host_or_path, char *port, char *export)
{
    BlockdevOptions *options = g_new0(BlockdevOptions, 1);
    SocketAddress *server = g_new0(SocketAddress, 1);

    server->type = type;
    if (type == SOCKET_ADDRESS_TYPE_UNIX) {
        server->u.q_unix.path = host_or_path;
    } else {
        server->u.inet.host = host_or_path;
        server->u.inet.port = port;
    }
    options->driver = BLOCKDEV_DRIVER_NBD;
    options->u.nbd.server = server;
    options->u.nbd.export = export;
    return options;
}

/* Splits HOST:PORT or [V6HOST]:PORT; without a port it is @port_default, or refused when that is NULL. */
static bool split_host_port(const char *text, const char *port_default, char **ret_host, char **ret_port)
{
    const char *end, *host = text;

    if (*text == '[') {
        host = text + 1;
        end = strchr(host, ']');
        if (!end || (end[1] && end[1] != ':'))
            return false;
        *ret_host = g_strndup(host, (gsize)(end - host));
        end++;
    } else {
        end = strrchr(text, ':');
        end = end ? end : text + strlen(text);
        *ret_host = g_strndup(host, (gsize)(end - host));
    }
    if (*end == ':' && end[1])
        *ret_port = g_strdup(end + 1);
    else if (port_default && !*end)
        *ret_port = g_strdup(port_default);
    else
        g_clear_pointer(ret_host, g_free);
    return *ret_host != NULL;
}

/* "nbd:unix:PATH[:exportname=NAME]" and "nbd:HOST:PORT[:exportname=NAME]": everything after the first exportname= is
 * the name, colons and all. */
static BlockdevOptions *parse_old_style(const char *filename, GError **error)
{
    static const char mark[] = ":exportname=";
    g_autofree char *address = g_strdup(filename + strlen("nbd:"));
    g_autofree char *export = NULL;
    char *at = strstr(address, mark), *host, *port;

    if (at) {
        export = g_strdup(at + strlen(mark));
        *at = '\0';
    }
    if (g_str_has_prefix(address, "unix:"))
        return options_new(SOCKET_ADDRESS_TYPE_UNIX, g_strdup(address + strlen("unix:")), NULL,
                           g_steal_pointer(&export));
    if (!split_host_port(address, NULL, &host, &port)) {
        error_set(error, "error parsing address '%s'", address);
        return NULL;
    }
    return options_new(SOCKET_ADDRESS_TYPE_INET, host, port, g_steal_pointer(&export));
}

static char *unescape(const char *text, gssize len)
{
    g_autofree char *part = len < 0 ? g_strdup(text) : g_strndup(text, (gsize)len);
    return g_uri_unescape_string(part, NULL);
}

/* The parts of SCHEME://AUTHORITY[/EXPORT][?socket=PATH]; false when it is no such URI. Caller frees all. */
static bool split_uri(const char *filename, char **ret_authority, char **ret_export, char **ret_socket)
{
    const char *authority = strstr(filename, "://") + 3;
    size_t len = strcspn(authority, "/?");
    const char *path = authority + len;
    size_t path_len = strcspn(path, "?");
    const char *query = path + path_len;

    *ret_authority = g_strndup(authority, len);
    /* "/" alone names no export. */
    *ret_export = path_len > 1 ? unescape(path + 1, (gssize)path_len - 1) : NULL;
    *ret_socket = NULL;
    if (path_len > 1 && !*ret_export)
        return false;
    if (!*query)
        return true;
    if (!g_str_has_prefix(query, "?socket=") || strpbrk(query, "&;"))
        return false;
    *ret_socket = unescape(query + strlen("?socket="), -1);
    return *ret_socket && **ret_socket;
}

static BlockdevOptions *parse_uri(const char *filename, GError **error)
{
    g_autofree char *authority = NULL, *export = NULL, *socket = NULL;
    bool is_unix = g_str_has_prefix(filename, "nbd+unix:");
    char *host, *port;

    if (split_uri(filename, &authority, &export, &socket)) {
        if (is_unix && !*authority && socket)
            return options_new(SOCKET_ADDRESS_TYPE_UNIX, g_steal_pointer(&socket), NULL, g_steal_pointer(&export));
        if (!is_unix && *authority && !socket && split_host_port(authority, PORT_DEFAULT, &host, &port))
            return options_new(SOCKET_ADDRESS_TYPE_INET, host, port, g_steal_pointer(&export));
    }
    error_set(error, "No valid URL specified: '%s'", filename);
    return NULL;
}

BlockdevOptions *nbdc_parse_filename(const char *filename, GError **error)
{
    if (strstr(filename, "://"))
        return parse_uri(filename, error);
    if (g_str_has_prefix(filename, "nbd:"))
        return parse_old_style(filename, error);
    error_set(error, "No valid URL specified: '%s'", filename);
    return NULL;
}
