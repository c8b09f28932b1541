/*
 * Exports: nodes of the graph made visible outside the process.
 *
 * An export has an id, a node (through a port of its own) and a kind; each kind is one ExportType, a vtable in a file
 * of its own, so that another kind comes without touching this one. The registry knows no protocol.
 *
 * Life: export_co_add() makes it; whoever uses it (a client's connection) holds a reference; export_del() drops the
 * user's own reference and, with mode hard, the users. When the last reference goes the export is taken down in a
 * coroutine, BLOCK_EXPORT_DELETED is sent, and the id is free.
 *
 * Everything belongs to the loop's thread.
 */
#pragma once
#include "block/aio/coroutine.h"
#include "block/graph/port.h"
#include "qapi/types.h"

typedef struct ExportList ExportList;
typedef struct Export Export;

typedef struct ExportType {
    BlockExportType type;
    size_t size; /* bytes of the kind's struct, which begins with an Export */
    /* Sets the kind's part up; exp->port is open. On failure undoes its own part. */
    bool (*co_create)(Export *exp, const BlockExportOptions *options, GError **error);
    /* Asks all users to leave; those with a reference drop it soon. */
    void (*request_shutdown)(Export *exp);
    /* The node's size changed, or it is another node now. Optional, never yields. */
    void (*resized)(Export *exp);
    /* The last reference is gone: frees the kind's part (not the port). */
    void (*co_delete)(Export *exp);
} ExportType;

struct Export {
    const ExportType *type;
    ExportList *list;
    char *id;
    Port *port;
    bool writable;
    bool ready;         /* completely made */
    bool user_owned;    /* the user's reference has not been dropped */
    bool shutting_down; /* no new users */
    unsigned refs;
};

/* The kinds. */
extern const ExportType export_type_nbd;

ExportList *export_list_new(Loop *loop, Graph *graph);
/* Every export must be gone and the NBD server stopped: see export_list_co_close_all(). Takes NULL. */
void export_list_free(ExportList *list);

/* For exit: stops the NBD server and waits until all exports are gone, clients or not. */
void export_list_co_close_all(ExportList *list);
/* Removes all exports of a kind and waits until they are gone. */
void export_list_co_close_type(ExportList *list, BlockExportType type);

/* block-export-add. */
bool export_co_add(ExportList *list, const BlockExportOptions *options, GError **error);
/* block-export-del. */
bool export_del(ExportList *list, const char *id, BlockExportRemoveMode mode, GError **error);
/* query-block-exports, newest first as QEMU lists them. Caller frees. */
BlockExportInfoList *export_query(ExportList *list);

/* Borrowed; NULL when there is none. */
Export *export_find(ExportList *list, const char *id);

void export_ref(Export *exp);
void export_unref(Export *exp);

/* ---- the NBD server: one a registry ----------------------------------------------------------------------------- */

struct SocketAddr;
/* nbd-server-start; @max_connections 0: no limit. */
bool nbd_server_co_start(ExportList *list, const struct SocketAddr *addr, uint32_t max_connections, GError **error);
/* nbd-server-stop: drops the clients and removes the NBD exports. */
bool nbd_server_co_stop(ExportList *list, GError **error);

/* nbd-server-start with the schema's options, as --nbd-server has them. TLS is refused by name. */
bool nbd_server_co_start_options(ExportList *list, const NbdServerOptions *options, GError **error);
/* The same with nbd-server-start's own nesting of the address. */
bool nbd_server_co_start_legacy(ExportList *list, const SocketAddressLegacy *addr, const char *tls_creds,
                                const char *tls_authz, uint32_t max_connections, GError **error);
/* nbd-server-add: the name is the id. */
bool nbd_server_co_add(ExportList *list, const NbdServerAddArgs *args, GError **error);
