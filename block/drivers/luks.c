/*
 * LUKS volumes: what stands behind the header of a file, decrypted. Sectors are numbered from the beginning of the
 * data.
 *
 * Options and behaviour: docs/drivers/luks.md. The header: block/crypto/luks.h.
 */
#include "block/crypto/wipe.h"
#include "block/format/crypt.h"
#include "block/graph/io.h"
#include "block/util/bytes.h"

typedef struct LuksState {
    LuksHeader header;
    Cipher *cipher;
    char *key_secret; /* the secret that opened it */
    CoMutex lock;     /* for who changes the header */
} LuksState;

/* ---- the header in its file ------------------------------------------------------------------------------------- */

static int io_co_read(void *opaque, uint64_t offset, size_t bytes, void *buf)
{
    Child *file = opaque;

    if (offset + bytes > file->node->size)
        return -EINVAL;
    return child_co_pread(file, offset, bytes, buf, 0);
}

static int io_co_write(void *opaque, uint64_t offset, size_t bytes, const void *buf)
{
    return child_co_pwrite(opaque, offset, bytes, buf, 0);
}

static int io_co_flush(void *opaque)
{
    return child_co_flush(opaque);
}

static LuksIo io_of(Node *node)
{
    return (LuksIo){.co_read = io_co_read, .co_write = io_co_write, .co_flush = io_co_flush, .opaque = node->file};
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static void luks_co_close(Node *node)
{
    LuksState *s = node->state;

    cipher_free(s->cipher);
    g_free(s->key_secret);
}

static bool open_co_volume(Node *node, const char *password, GError **error)
{
    LuksState *s = node->state;
    LuksIo io = io_of(node);

    if (node->file->node->size < LUKS_HEADER_BYTES)
        return error_set(error, "Volume is not in LUKS format");
    s->cipher = luks_co_open(&s->header, &io, node->file->node->size, password, error);
    if (!s->cipher)
        return false;
    if (s->header.payload > node->file->node->size)
        return error_set(error,
                         "LUKS volume is truncated: its data begins at %" G_GUINT64_FORMAT
                         ", the file ends at %" G_GUINT64_FORMAT,
                         s->header.payload, node->file->node->size);
    return true;
}

static bool luks_co_open_node(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsLUKS *o = &options->u.luks;
    LuksState *s = node->state;
    char *password;
    bool ok;

    if (!node_co_open_child(node, "file", o->file, ROLE_IMAGE, error))
        return false;
    if (!o->key_secret)
        return error_set(error, "Parameter 'key-secret' is required for cipher");
    password = secret_password(graph_secrets(node->graph), o->key_secret, error);
    if (!password)
        return false;
    s->key_secret = g_strdup(o->key_secret);
    ok = open_co_volume(node, password, error);
    wipe_free_string(password);
    if (!ok)
        luks_co_close(node);
    return ok;
}

static int64_t luks_co_getlength(Node *node)
{
    const LuksState *s = node->state;
    uint64_t size = node->file->node->size;

    return size > s->header.payload ? (int64_t)align_down(size - s->header.payload, CIPHER_SECTOR) : 0;
}

static void luks_refresh_limits(Node *node)
{
    node->limits.request_alignment = MAX(node->limits.request_alignment, CIPHER_SECTOR);
}

/* ---- data ------------------------------------------------------------------------------------------------------- */

static int luks_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    const LuksState *s = node->state;

    if (!vec)
        return 0;
    return crypt_co_read(node->file, s->cipher, offset / CIPHER_SECTOR, s->header.payload + offset, bytes, vec,
                         vec_offset);
}

static int luks_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                           ReqFlags flags)
{
    const LuksState *s = node->state;

    return crypt_co_write(node->file, s->cipher, offset / CIPHER_SECTOR, s->header.payload + offset, bytes, vec,
                          vec_offset);
}

static bool luks_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                             GError **error)
{
    const LuksState *s = node->state;

    if (size > INT64_MAX - s->header.payload)
        return error_set(error, "The requested file size is too large");
    return child_co_truncate(node->file, s->header.payload + size, exact, prealloc, 0, error);
}

/* ---- the image -------------------------------------------------------------------------------------------------- */

static int luks_probe(const uint8_t *buf, size_t size)
{
    return size >= 8 && memcmp(buf, "LUKS\xba\xbe", 6) == 0 && load_be16(buf + 6) == 1 ? 100 : 0;
}

/* Header, one key slot, and data that is noise where nobody has written. */
static bool luks_co_create_image(Graph *graph, const char *filename, Port *file, const CreateOptions *o, GError **error)
{
    const QCryptoBlockCreateOptionsLUKS *luks = o->luks;
    PreallocMode mode = o->preallocation == PREALLOC_MODE_METADATA ? PREALLOC_MODE_OFF : o->preallocation;
    uint64_t bytes;
    char *password;

    if (!luks || !luks->key_secret)
        return error_set(error, "Parameter 'key-secret' is required for cipher");
    if (o->backing_file)
        return error_set(error, "Backing file not supported for file format 'luks'");
    if (o->cluster_size)
        return error_set(error, "Parameter 'cluster_size' is not supported by file format 'luks'");
    if (!luks_create_bytes(luks, &bytes, error))
        return false;
    if (o->size > INT64_MAX - bytes)
        return error_set(error, "The requested file size is too large");
    password = secret_password(graph_secrets(graph), luks->key_secret, error);
    if (!password)
        return false;
    wipe_free_string(password);
    if (!port_co_truncate(file, 0, false, PREALLOC_MODE_OFF, 0, error) ||
        !port_co_truncate(file, bytes + o->size, false, mode, 0, error))
        return false;
    if (port_size(file) < bytes + o->size)
        return error_set(error, "The file is too small: a LUKS volume of this size needs %" G_GUINT64_FORMAT " bytes",
                         bytes + o->size);
    return crypt_co_create(file, 0, luks, error);
}

static bool luks_co_amend_node(Node *node, const BlockdevAmendOptions *options, bool force, GError **error)
{
    LuksState *s = node->state;
    LuksIo io = io_of(node);
    bool ok;

    comutex_co_lock(&s->lock);
    ok = luks_co_amend(&s->header, &io, graph_secrets(node->graph), s->key_secret, &options->u.luks, force, error);
    comutex_unlock(&s->lock);
    return ok;
}

static void luks_get_info(Node *node, NodeInfo *info)
{
    info->encrypted = true;
}

static ImageInfoSpecific *luks_get_specific_info(Node *node)
{
    ImageInfoSpecific *info = g_new0(ImageInfoSpecific, 1);

    info->type = IMAGE_INFO_SPECIFIC_KIND_LUKS;
    info->u.luks.data = luks_info(&((LuksState *)node->state)->header);
    return info;
}

const Driver driver_luks = {
    .name = "luks",
    .state_size = sizeof(LuksState),
    .is_format = true,
    .co_open = luks_co_open_node,
    .co_close = luks_co_close,
    .co_getlength = luks_co_getlength,
    .refresh_limits = luks_refresh_limits,
    .co_preadv = luks_co_preadv,
    .co_pwritev = luks_co_pwritev,
    .co_truncate = luks_co_truncate,
    .co_amend = luks_co_amend_node,
    .probe = luks_probe,
    .co_create = luks_co_create_image,
    .get_info = luks_get_info,
    .get_specific_info = luks_get_specific_info,
};
