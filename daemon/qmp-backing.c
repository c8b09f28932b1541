/*
 * change-backing-file: another name for the backing file in an image's header. The graph stays what it is.
 */
#include "block/graph/drain.h"
#include "block/graph/driver.h"
#include "block/jobs/chain.h"
#include "daemon/daemon.h"
#include "qapi/commands.h"

/* The image whose header is meant. Borrowed. */
static Node *find_image(Daemon *daemon, const ChangeBackingFileArgs *arg, GError **error)
{
    Node *top = job_find_root(daemon->graph, arg->device, error);
    Node *image = top ? chain_find_node(daemon->graph, arg->image_node_name, error) : NULL;

    if (!image)
        return NULL;
    if (!node_backing(image)) {
        error_set(error, "not allowing backing file change on an image without a backing file");
        return NULL;
    }
    if (!node_chain_contains(top, image)) {
        error_set(error, "'%s' and image file are not in the same chain", arg->device);
        return NULL;
    }
    return job_list_check_node(daemon->jobs, image, error) ? image : NULL;
}

bool qmp_co_change_backing_file(QmpContext *ctx, const ChangeBackingFileArgs *arg, GError **error)
{
    Node *image = find_image(qmp_daemon(ctx), arg, error), *backing;
    bool ok;

    if (!image)
        return false;
    node_ref(image);
    node_co_drained_begin(image);
    backing = *arg->backing_file ? node_backing(image) : NULL;
    ok = chain_co_write_backing(image, backing, *arg->backing_file ? arg->backing_file : NULL, error);
    node_drained_end(image);
    node_co_unref(image);
    if (!ok)
        g_prefix_error(error, "Could not change backing file to '%.200s': ", arg->backing_file);
    return ok;
}
