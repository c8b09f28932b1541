/*
 * The NBD server: a listener and its clients.
 */
#include "block/export/nbd-int.h"
#include <unistd.h>

static void server_accepted(int fd, void *opaque)
{
    NbdServer *server = opaque;

    if (server->max_connections && server->clients.length >= server->max_connections) {
        close(fd); /* it came on another address just when the last place was taken */
        return;
    }
    nbd_client_start(server, fd);
    if (server->max_connections && server->clients.length >= server->max_connections)
        socket_listener_pause(server->listener, true);
}

void nbd_server_client_gone(NbdServer *server, NbdClient *client)
{
    bool was_full = server->max_connections && server->clients.length >= server->max_connections;

    g_queue_remove(&server->clients, client);
    if (was_full && server->listener)
        socket_listener_pause(server->listener, false);
    coqueue_wake_all(&server->client_gone);
}

bool nbd_server_co_start(ExportList *list, const SocketAddr *addr, uint32_t max_connections, GError **error)
{
    NbdServer *server;

    if (list->nbd)
        return error_set(error, "NBD server already running");
    server = g_new0(NbdServer, 1);
    server->list = list;
    server->loop = list->loop;
    server->max_connections = max_connections;
    server->exports = g_ptr_array_new();
    g_queue_init(&server->clients);
    timer_init(&server->idle_timer, list->loop, LOOP_CLOCK_REAL, nbd_server_idle_tick, server);
    server->starting = true;
    list->nbd = server;
    server->listener = socket_co_listen(list->loop, addr, server_accepted, server, error);
    server->starting = false;
    if (!server->listener) {
        list->nbd = NULL;
        g_ptr_array_free(server->exports, TRUE);
        g_free(server);
        coqueue_wake_all(&list->gone);
        return false;
    }
    coqueue_wake_all(&list->gone);
    return true;
}

bool nbd_server_running(const ExportList *list)
{
    return list->nbd && !list->nbd->starting && !list->nbd->stopping;
}

bool nbd_server_co_stop(ExportList *list, GError **error)
{
    NbdServer *server = list->nbd;

    if (!nbd_server_running(list))
        return error_set(error, "NBD server not running");
    server->stopping = true;
    socket_listener_co_close(g_steal_pointer(&server->listener));
    for (GList *l = server->clients.head; l; l = l->next)
        nbd_client_close(l->data);
    export_list_co_close_type(list, BLOCK_EXPORT_TYPE_NBD);
    while (server->clients.length)
        coqueue_co_wait(&server->client_gone, NULL);
    timer_cancel(&server->idle_timer);
    nbd_pool_free(server);
    g_ptr_array_free(server->exports, TRUE);
    g_free(server);
    list->nbd = NULL;
    coqueue_wake_all(&list->gone);
    return true;
}
