/*
 * An option of --drive is one of three things: a property of the device (DriveOptions), a short word for options of the
 * node (cache=none, aio=…, file=PATH), or an option of the node with its dotted key. The second kind is spelled out,
 * and everything about nodes goes to node_co_open_filename() as one tree.
 */
#include "daemon/drive.h"
#include "block/graph/device.h"
#include "block/graph/filename.h"
#include "block/util/error.h"
#include "qapi/rt/json.h"
#include <string.h>

typedef struct Drive {
    DriveOptions *options;
    char *filename; /* NULL: no medium */
    char *format;   /* NULL: named by filename, or to be probed */
    Tree *extra;    /* more options of the node, an object */
    bool writethrough;
} Drive;

void drive_free(void *opaque)
{
    Drive *d = opaque;
    if (d) {
        qapi_free_DriveOptions(d->options);
        g_free(d->filename);
        g_free(d->format);
        tree_unref(d->extra);
        g_free(d);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Drive, drive_free)

static void set_default(Tree *object, const char *name, const char *value)
{
    if (!tree_get(object, name))
        tree_set_string(object, name, value);
}

/* Members that DriveOptions has go to the result, the others stay in @node. 'driver' is another word for 'format'. */
static Tree *split_device_options(Tree *node, GError **error)
{
    g_autoptr(Tree) device = tree_object();
    if (tree_get(node, "driver")) {
        if (tree_get(node, "format")) {
            error_set(error, "Cannot specify both 'driver' and 'format'");
            return NULL;
        }
        tree_set(node, "format", tree_copy(tree_get(node, "driver")));
        tree_remove(node, "driver");
    }
    for (uint32_t i = 0; i < qapi_type_DriveOptions.n_members; i++) {
        const char *name = qapi_type_DriveOptions.members[i].name;
        Tree *value = tree_get(node, name);
        if (value) {
            tree_set(device, name, tree_copy(value));
            tree_remove(node, name);
        }
    }
    return g_steal_pointer(&device);
}

/* cache=WORD becomes cache.direct and cache.no-flush, and says what the device makes of writes. */
static bool spell_cache(Drive *d, Tree *node, GError **error)
{
    const char *word = tree_get_string(node, "cache");
    if (!word)
        return true;
    int cache = qapi_enum_find(&qapi_type_DriveCache, word);
    if (cache < 0)
        return error_set(error, "Parameter 'cache' does not accept value '%s'", word);
    bool direct = cache == DRIVE_CACHE_NONE || cache == DRIVE_CACHE_DIRECTSYNC;
    d->writethrough = cache == DRIVE_CACHE_WRITETHROUGH || cache == DRIVE_CACHE_DIRECTSYNC;
    Tree *options = tree_object();
    tree_set_string(options, "direct", direct ? "on" : "off");
    tree_set_string(options, "no-flush", cache == DRIVE_CACHE_UNSAFE ? "on" : "off");
    tree_set(node, "cache", options);
    return true;
}

/* file=PATH, or any other name. */
static void image_by_name(Drive *d, Tree *node, const char *filename)
{
    d->filename = g_strdup(filename);
    d->format = g_strdup(d->options->format);
    tree_remove(node, "file");
    if (d->options->has_aio) {
        tree_set(node, "file", tree_object());
        tree_set_string(tree_get(node, "file"), "aio", qapi_BlockdevAioOptions_str(d->options->aio));
    }
}

/* Everything is said by options: a name is made of them. */
static void image_by_options(Drive *d, Tree *node)
{
    tree_set_string(node, "driver", d->options->format);
    g_autofree char *text = json_to_str(node, false);
    d->filename = g_strconcat("json:", text, NULL);
    g_clear_pointer(&d->extra, tree_unref);
}

/* file.KEY=… without a format: a plain file, which is then named by its path and probed. */
static bool image_to_probe(Drive *d, Tree *file, GError **error)
{
    if (g_strcmp0(tree_get_string(file, "driver"), "file") != 0 || !tree_get_string(file, "filename"))
        return error_set(error, "Parameter 'format' is missing (only plain files are probed)");
    d->filename = g_strdup(tree_get_string(file, "filename"));
    tree_remove(file, "filename");
    tree_remove(file, "driver");
    return true;
}

/* Finds out what names the image: sets .filename and .format, and takes what they say out of .extra, which @node is. */
static bool find_image(Drive *d, Tree *node, GError **error)
{
    const char *filename = tree_get_string(node, "file");
    if (filename) {
        image_by_name(d, node, filename);
        return true;
    }
    Tree *file = tree_get(node, "file");
    file = tree_is_object(file) ? file : NULL;
    if (file && tree_get(file, "filename"))
        set_default(file, "driver", "file");
    if (d->options->has_aio) {
        if (!file)
            return error_set(error, "Parameter 'aio' works with a file only");
        tree_set_string(file, "aio", qapi_BlockdevAioOptions_str(d->options->aio));
    }
    if (d->options->format) {
        image_by_options(d, node);
        return true;
    }
    if (file)
        return image_to_probe(d, file, error);
    /* No medium. */
    return tree_size(node) == 0 ? true : error_set(error, "Parameter 'file' is missing");
}

/* What can be known to be wrong before anything is opened. */
static bool check_options(const Drive *d, GError **error)
{
    if (!d->filename)
        return true;
    g_autoptr(Tree) backing_extra = NULL;
    g_autoptr(BlockdevOptions) options =
        !d->format && !filename_names_format(d->filename, d->extra)
            ? filename_protocol_options(d->filename, d->extra, error)
            : filename_options(d->filename, d->format, d->extra, &backing_extra, error);
    return options != NULL;
}

void *drive_decode(Tree *tree, QapiSource source, GError **error)
{
    if (!tree_is_object(tree)) {
        error_set(error, "Invalid parameter type, expected: object");
        return NULL;
    }
    g_autoptr(Drive) d = g_new0(Drive, 1);
    d->extra = tree_ref(tree);
    g_autoptr(Tree) device = split_device_options(tree, error);
    d->options = device ? qapi_decode(&qapi_type_DriveOptions, source, device, error) : NULL;
    if (!d->options || !spell_cache(d, tree, error))
        return NULL;
    if (d->options->media == DRIVE_MEDIA_CDROM && tree_size(tree))
        set_default(tree, "read-only", "on");
    if (!find_image(d, tree, error) || !check_options(d, error))
        return NULL;
    return g_steal_pointer(&d);
}

const char *drive_id(const void *drive)
{
    return ((const Drive *)drive)->options->id;
}

/* Puts a filter on top that queries do not show. Takes the caller's reference to @node, and gives one to the result. */
static Node *add_co_copy_on_read(Graph *graph, const char *id, Node *node, GError **error)
{
    BlockdevRef file = {.kind = BLOCKDEV_REF_REFERENCE, .u.reference = node->name};
    BlockdevOptions options = {.driver = BLOCKDEV_DRIVER_COPY_ON_READ, .u.copy_on_read.file = &file};
    if (!node_writable(node)) {
        g_printerr("storage-daemon: warning: drive '%s' is read-only: nothing is copied on read\n", id);
        return node;
    }
    Node *filter = node_co_open(graph, &options, &node->flags, error);
    node_co_unref(node);
    if (filter)
        filter->implicit = true;
    return filter;
}

bool drive_co_apply(Daemon *daemon, void *opaque, GError **error)
{
    const Drive *d = opaque;
    bool removable = d->options->media == DRIVE_MEDIA_CDROM;
    Node *node = NULL;
    if (d->filename) {
        /* An image that may not be written is opened for reading, as QEMU's -drive does. */
        NodeFlags defaults = {.auto_read_only = true};
        node = node_co_open_filename(daemon->graph, d->filename, d->format, d->extra, &defaults, error);
        if (node && d->options->copy_on_read)
            node = add_co_copy_on_read(daemon->graph, d->options->id, node, error);
        if (!node)
            return false;
    }
    bool read_only = node ? node->flags.read_only : removable;
    Device *device = device_co_new(daemon->graph, d->options->id, node, read_only, removable, error);
    node_co_unref(node);
    if (device)
        device->port->writethrough = d->writethrough;
    return device != NULL;
}
