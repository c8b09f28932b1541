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
#include <json-glib/json-glib.h>
#include <string.h>

typedef struct Drive {
    DriveOptions *options;
    char *filename;  /* NULL: no medium */
    char *format;    /* NULL: named by filename, or to be probed */
    JsonNode *extra; /* more options of the node, an object */
} Drive;

void drive_free(void *opaque)
{
    Drive *d = opaque;
    if (d) {
        qapi_free_DriveOptions(d->options);
        g_free(d->filename);
        g_free(d->format);
        g_clear_pointer(&d->extra, json_node_unref);
        g_free(d);
    }
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Drive, drive_free)

static JsonNode *new_object(void)
{
    JsonNode *node = json_node_new(JSON_NODE_OBJECT);
    json_node_take_object(node, json_object_new());
    return node;
}

/* The object that is member @name of @object, made when it is not there; NULL when something else is there. */
static JsonObject *sub_object(JsonObject *object, const char *name)
{
    if (!json_object_has_member(object, name)) {
        json_object_set_member(object, name, new_object());
    }
    JsonNode *node = json_object_get_member(object, name);
    return JSON_NODE_HOLDS_OBJECT(node) ? json_node_get_object(node) : NULL;
}

static const char *string_member(JsonObject *object, const char *name)
{
    JsonNode *node = json_object_get_member(object, name);
    return node && json_node_get_value_type(node) == G_TYPE_STRING ? json_node_get_string(node) : NULL;
}

static void set_default(JsonObject *object, const char *name, const char *value)
{
    if (!json_object_has_member(object, name)) {
        json_object_set_string_member(object, name, value);
    }
}

/* Members that DriveOptions has go to the result, the others stay in @node. 'driver' is another word for 'format'. */
static JsonNode *split_device_options(JsonObject *node, GError **error)
{
    g_autoptr(JsonNode) device = new_object();
    JsonObject *object = json_node_get_object(device);
    if (json_object_has_member(node, "driver")) {
        if (json_object_has_member(node, "format")) {
            error_set(error, "Cannot specify both 'driver' and 'format'");
            return NULL;
        }
        json_object_set_member(node, "format", json_node_copy(json_object_get_member(node, "driver")));
        json_object_remove_member(node, "driver");
    }
    for (uint32_t i = 0; i < qapi_type_DriveOptions.n_members; i++) {
        const char *name = qapi_type_DriveOptions.members[i].name;
        JsonNode *value = json_object_get_member(node, name);
        if (value) {
            json_object_set_member(object, name, json_node_copy(value));
            json_object_remove_member(node, name);
        }
    }
    return g_steal_pointer(&device);
}

/* cache=WORD becomes cache.direct and cache.no-flush. */
static bool spell_cache(JsonObject *node, GError **error)
{
    const char *word = string_member(node, "cache");
    if (!word) {
        return true;
    }
    int cache = qapi_enum_find(&qapi_type_DriveCache, word);
    if (cache < 0) {
        return error_set(error, "Parameter 'cache' does not accept value '%s'", word);
    }
    if (cache == DRIVE_CACHE_WRITETHROUGH || cache == DRIVE_CACHE_DIRECTSYNC) {
        return error_set(error, "cache=%s is not supported: clients flush when they need to (use %s)", word,
                         cache == DRIVE_CACHE_DIRECTSYNC ? "none" : "writeback");
    }
    JsonNode *options = new_object();
    json_object_set_string_member(json_node_get_object(options), "direct", cache == DRIVE_CACHE_NONE ? "on" : "off");
    json_object_set_string_member(json_node_get_object(options), "no-flush",
                                  cache == DRIVE_CACHE_UNSAFE ? "on" : "off");
    json_object_set_member(node, "cache", options);
    return true;
}

/* file=PATH, or any other name. */
static void image_by_name(Drive *d, JsonObject *node, const char *filename)
{
    d->filename = g_strdup(filename);
    d->format = g_strdup(d->options->format);
    json_object_remove_member(node, "file");
    if (d->options->has_aio) {
        json_object_set_string_member(sub_object(node, "file"), "aio", qapi_BlockdevAioOptions_str(d->options->aio));
    }
}

/* Everything is said by options: a name is made of them. */
static void image_by_options(Drive *d, JsonObject *node)
{
    json_object_set_string_member(node, "driver", d->options->format);
    g_autofree char *text = json_to_str(d->extra, false);
    d->filename = g_strconcat("json:", text, NULL);
    g_clear_pointer(&d->extra, json_node_unref);
}

/* file.KEY=… without a format: a plain file, which is then named by its path and probed. */
static bool image_to_probe(Drive *d, JsonObject *file, GError **error)
{
    if (g_strcmp0(string_member(file, "driver"), "file") != 0 || !string_member(file, "filename")) {
        return error_set(error, "Parameter 'format' is missing (only plain files are probed)");
    }
    d->filename = g_strdup(string_member(file, "filename"));
    json_object_remove_member(file, "filename");
    json_object_remove_member(file, "driver");
    return true;
}

/* Finds out what names the image: sets .filename and .format, and takes what they say out of .extra, which @node is. */
static bool find_image(Drive *d, JsonObject *node, GError **error)
{
    const char *filename = string_member(node, "file");
    if (filename) {
        image_by_name(d, node, filename);
        return true;
    }
    JsonObject *file = json_object_has_member(node, "file") ? sub_object(node, "file") : NULL;
    if (file && json_object_has_member(file, "filename")) {
        set_default(file, "driver", "file");
    }
    if (d->options->has_aio) {
        if (!file) {
            return error_set(error, "Parameter 'aio' works with a file only");
        }
        json_object_set_string_member(file, "aio", qapi_BlockdevAioOptions_str(d->options->aio));
    }
    if (d->options->format) {
        image_by_options(d, node);
        return true;
    }
    if (file) {
        return image_to_probe(d, file, error);
    }
    /* No medium. */
    return json_object_get_size(node) ? error_set(error, "Parameter 'file' is missing") : true;
}

/* What can be known to be wrong before anything is opened. */
static bool check_options(const Drive *d, GError **error)
{
    if (!d->filename) {
        return true;
    }
    g_autoptr(JsonNode) backing_extra = NULL;
    g_autoptr(BlockdevOptions) options =
        !d->format && !filename_names_format(d->filename, d->extra)
            ? filename_protocol_options(d->filename, d->extra, error)
            : filename_options(d->filename, d->format, d->extra, &backing_extra, error);
    return options != NULL;
}

void *drive_decode(JsonNode *tree, QapiSource source, GError **error)
{
    if (!JSON_NODE_HOLDS_OBJECT(tree)) {
        error_set(error, "Invalid parameter type, expected: object");
        return NULL;
    }
    g_autoptr(Drive) d = g_new0(Drive, 1);
    d->extra = json_node_ref(tree);
    JsonObject *node = json_node_get_object(tree);
    g_autoptr(JsonNode) device = split_device_options(node, error);
    d->options = device ? qapi_decode(&qapi_type_DriveOptions, source, device, error) : NULL;
    if (!d->options || !spell_cache(node, error)) {
        return NULL;
    }
    if (d->options->media == DRIVE_MEDIA_CDROM && json_object_get_size(node)) {
        set_default(node, "read-only", "on");
    }
    if (!find_image(d, node, error) || !check_options(d, error)) {
        return NULL;
    }
    return g_steal_pointer(&d);
}

const char *drive_id(const void *drive)
{
    return ((const Drive *)drive)->options->id;
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
        if (!node) {
            return false;
        }
    }
    bool read_only = node ? node->flags.read_only : removable;
    Device *device = device_co_new(daemon->graph, d->options->id, node, read_only, removable, error);
    node_co_unref(node);
    return device != NULL;
}
