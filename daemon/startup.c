#include "daemon/startup.h"
#include "daemon/chardev.h"
#include "daemon/process.h"
#include "daemon/session.h"
#include "block/export/export.h"
#include "block/util/error.h"
#include "qapi/commands.h"
#include "qapi/rt/tree.h"
#include <string.h>

typedef struct Startup {
    Daemon *daemon;
    const Options *options;
    bool *failed;
} Startup;

/* ---- words ------------------------------------------------------------------------------------------------------ */

bool startup_co_blockdev(Daemon *daemon, void *value, GError **error)
{
    QmpContext ctx = {.daemon = daemon};
    return qmp_co_blockdev_add(&ctx, value, error);
}

bool startup_co_nbd_server(Daemon *daemon, void *value, GError **error)
{
    return nbd_server_co_start_options(daemon->exports, value, error);
}

/* bitmap=NAME is how the help of QEMU's program has always spelled bitmaps.0=NAME. */
void *startup_decode_export(Tree *tree, QapiSource source, GError **error)
{
    if (tree_is_object(tree) && tree_get(tree, "bitmap") && !tree_get(tree, "bitmaps")) {
        tree_append(tree, "bitmaps", tree_ref(tree_get(tree, "bitmap")));
        tree_remove(tree, "bitmap");
    }
    return qapi_decode(&qapi_type_BlockExportOptions, source, tree, error);
}

void startup_free_export(void *value)
{
    qapi_free_BlockExportOptions(value);
}

bool startup_co_export(Daemon *daemon, void *value, GError **error)
{
    QmpContext ctx = {.daemon = daemon};
    return qmp_co_block_export_add(&ctx, value, error);
}

bool startup_co_qmp(Daemon *daemon, void *value, GError **error)
{
    g_autofree char *id = g_strdup_printf("qmp:%s", (const char *)value);
    ChardevOptions chardev = {.backend = CHARDEV_BACKEND_KIND_SOCKET, .id = id};
    chardev.u.socket.path = value;
    chardev.u.socket.has_server = chardev.u.socket.server = true;
    chardev.u.socket.has_wait = true;
    MonitorOptions monitor = {.chardev = id};
    return chardev_co_new(daemon, &chardev, error) && monitor_new(daemon, &monitor, error);
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static bool apply_co_all(Startup *s, GError **error)
{
    const char *pidfile = options_last(s->options, "pidfile");
    if (pidfile && !process_pidfile_check(pidfile, error))
        return false;
    if (options_last(s->options, "refuse-image-names"))
        graph_refuse_image_names(s->daemon->graph);
    for (guint i = 0; i < s->options->list->len && !s->daemon->quitting; i++) {
        Option *o = g_ptr_array_index(s->options->list, i);
        if (!o->word->co_apply)
            continue;
        bool ok = o->word->co_apply(s->daemon, o->word->form == OPTION_TEXT ? o->text : o->value, error);
        if (strcmp(o->word->name, "object") == 0)
            option_forget(o); /* it may have been a password */
        if (!ok) {
            option_blame(o, error);
            return false;
        }
    }
    /* Last, so that whoever sees the file finds everything in place. */
    return s->daemon->quitting || !pidfile || process_pidfile_take(pidfile, error);
}

static void startup_co_entry(void *opaque)
{
    Startup *s = opaque;
    Daemon *d = s->daemon;
    g_autoptr(GError) error = NULL;
    d->startup = coroutine_self();
    bool ok = apply_co_all(s, &error);
    d->startup = NULL;
    if (!ok && !d->quitting) {
        g_printerr("storage-daemon: %s\n", error->message);
        *s->failed = true;
        daemon_end(d, SHUTDOWN_CAUSE_HOST_ERROR);
    } else if (ok && !d->quitting) {
        process_ready();
        d->serving = true;
        chardevs_serve(d);
    }
    coqueue_wake_all(&d->idle);
    g_free(s);
}

void startup_begin(Daemon *daemon, const Options *options, bool *ret_failed)
{
    Startup *s = g_new(Startup, 1);
    *s = (Startup){.daemon = daemon, .options = options, .failed = ret_failed};
    coroutine_start(daemon->loop, startup_co_entry, s);
}
