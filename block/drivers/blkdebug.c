/*
 * blkdebug: a filter that lets chosen requests fail or wait, and has whatever limits are asked for. See
 * docs/drivers/blkdebug.md.
 */
#include "block/drivers/blkdebug.h"
#include "block/graph/filename.h"
#include "block/graph/io.h"
#include "block/graph/txn.h"
#include "block/util/bytes.h"
#include <errno.h>

/* ---- life ------------------------------------------------------------------------------------------------------- */

static bool bad_limit(const char *name, int64_t value, GError **error)
{
    return error_set(error, "Cannot meet constraints with %s %" G_GINT64_FORMAT, name, value);
}

/* A multiple of @unit below 2^31, or 0 (then *@ret stays). */
static bool take_limit(const char *name, bool has, int64_t value, uint64_t unit, uint32_t *ret, GError **error)
{
    if (!has || !value)
        return true;
    if (value < 0 || value >= INT32_MAX || (uint64_t)value % unit)
        return bad_limit(name, value, error);
    *ret = (uint32_t)value;
    return true;
}

static bool take_limits(Limits *l, const BlockdevOptionsBlkdebug *o, uint32_t below, GError **error)
{
    uint64_t align;

    if (!take_limit("align", o->has_align, o->align, 1, &l->request_alignment, error))
        return false;
    if (l->request_alignment && !is_pow2(l->request_alignment))
        return bad_limit("align", o->align, error);
    align = u64_max(l->request_alignment, below);
    return take_limit("max-transfer", o->has_max_transfer, o->max_transfer, align, &l->max_transfer, error) &&
           take_limit("opt-write-zero", o->has_opt_write_zero, o->opt_write_zero, align, &l->write_zeroes_align,
                      error) &&
           take_limit("max-write-zero", o->has_max_write_zero, o->max_write_zero, u64_max(l->write_zeroes_align, align),
                      &l->max_write_zeroes, error) &&
           take_limit("opt-discard", o->has_opt_discard, o->opt_discard, align, &l->discard_align, error) &&
           take_limit("max-discard", o->has_max_discard, o->max_discard, u64_max(l->discard_align, align),
                      &l->max_discard, error);
}

/* BlockPermission has its values in the order of the PERM_* bits. */
G_STATIC_ASSERT(1 << BLOCK_PERMISSION_CONSISTENT_READ == PERM_CONSISTENT_READ);
G_STATIC_ASSERT(1 << BLOCK_PERMISSION_RESIZE == PERM_RESIZE);

static unsigned perms_of(const BlockPermissionList *list)
{
    unsigned perms = 0;

    for (size_t i = 0; list && i < list->len; i++)
        perms |= 1u << list->items[i];
    return perms;
}

static bool blkdebug_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsBlkdebug *o = &options->u.blkdebug;
    Blkdebug *s = node->state;
    Node *image;

    s->take_perms = perms_of(o->take_child_perms);
    s->unshare_perms = perms_of(o->unshare_child_perms);
    blkdebug_rules_init(s);
    if (!blkdebug_co_rules_load(s, o, error) || !node_co_open_child(node, "image", o->image, ROLE_FILTER, error))
        goto fail;
    image = node->file->node;
    if (!take_limits(&s->limits, o, image->limits.request_alignment, error))
        goto fail;
    node_pass_flags(node);
    if (!node_writable(image) && node->flags.auto_read_only)
        node->flags.read_only = true;
    blkdebug_co_event(node, BLKDEBUG_EVENT_NONE);
    return true;
fail:
    blkdebug_rules_free(s);
    return false;
}

static void blkdebug_co_close(Node *node)
{
    blkdebug_rules_free(node->state);
}

/* Also the moment at which the name can have changed: the child is another one. */
static void blkdebug_refresh_limits(Node *node)
{
    const Blkdebug *s = node->state;
    const BlockdevOptionsBlkdebug *o = &node->options->u.blkdebug;
    g_autofree char *image = node_filename(node->file->node);
    bool plain = !o->inject_error && !o->set_state && !o->has_align && !o->has_max_transfer && !o->has_opt_write_zero &&
                 !o->has_max_write_zero && !o->has_opt_discard && !o->has_max_discard && !o->take_child_perms &&
                 !o->unshare_child_perms;
    Limits *l = &node->limits;

    l->request_alignment = s->limits.request_alignment ? s->limits.request_alignment : l->request_alignment;
    l->max_transfer = s->limits.max_transfer;
    l->write_zeroes_align = s->limits.write_zeroes_align;
    l->max_write_zeroes = s->limits.max_write_zeroes;
    l->discard_align = s->limits.discard_align;
    l->max_discard = s->limits.max_discard;

    g_clear_pointer(&node->exact_filename, g_free);
    if (plain && !g_str_has_prefix(image, "json:"))
        node->exact_filename = g_strdup_printf("blkdebug:%s:%s", o->config ? o->config : "", image);
}

static void blkdebug_child_perm(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared,
                                unsigned *ret_perm, unsigned *ret_shared)
{
    const Blkdebug *s = node->state;

    perm_default(node, child, role, perm, shared, ret_perm, ret_shared);
    *ret_perm |= s->take_perms;
    *ret_shared &= ~s->unshare_perms;
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

static int blkdebug_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                              ReqFlags flags)
{
    int ret = blkdebug_co_check(node->state, offset, bytes, BLKDEBUG_IO_TYPE_READ);

    return ret < 0 ? ret : child_co_preadv(node->file, offset, bytes, vec, vec_offset, flags);
}

static int blkdebug_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                               ReqFlags flags)
{
    int ret = blkdebug_co_check(node->state, offset, bytes, BLKDEBUG_IO_TYPE_WRITE);

    return ret < 0 ? ret : child_co_pwritev(node->file, offset, bytes, vec, vec_offset, flags);
}

static int blkdebug_co_pwritev_compressed(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec,
                                          size_t vec_offset)
{
    return blkdebug_co_pwritev(node, offset, bytes, vec, vec_offset, REQ_WRITE_COMPRESSED);
}

static int blkdebug_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    int ret;

    if (bytes < u64_max(node->limits.write_zeroes_align, node->limits.request_alignment))
        return -ENOTSUP; /* not what was preferred: written out */
    ret = blkdebug_co_check(node->state, offset, bytes, BLKDEBUG_IO_TYPE_WRITE_ZEROES);
    return ret < 0 ? ret : child_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int blkdebug_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    int ret;

    if (bytes < node->limits.discard_align)
        return -ENOTSUP;
    ret = blkdebug_co_check(node->state, offset, bytes, BLKDEBUG_IO_TYPE_DISCARD);
    return ret < 0 ? ret : child_co_pdiscard(node->file, offset, bytes);
}

/* The graph has flushed the child before. */
static int blkdebug_co_flush_to_disk(Node *node)
{
    return blkdebug_co_check(node->state, 0, 0, BLKDEBUG_IO_TYPE_FLUSH);
}

static int blkdebug_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    int r = blkdebug_co_check(node->state, offset, bytes, BLKDEBUG_IO_TYPE_BLOCK_STATUS);

    return r < 0 ? r : node_co_block_status(node->file->node, want_zero, offset, bytes, ret);
}

/* ---- names ------------------------------------------------------------------------------------------------------ */

static BlockdevOptions *blkdebug_parse_filename(const char *filename, GError **error)
{
    const char *config = filename + strlen("blkdebug:"), *colon = strchr(config, ':');
    BlockdevOptions *image, *options;

    if (!colon) {
        error_set(error, "blkdebug requires both config file and image path");
        return NULL;
    }
    image = filename_protocol_options(colon + 1, NULL, error);
    if (!image)
        return NULL;
    options = g_new0(BlockdevOptions, 1);
    options->driver = BLOCKDEV_DRIVER_BLKDEBUG;
    options->u.blkdebug.config = colon == config ? NULL : g_strndup(config, (gsize)(colon - config));
    options->u.blkdebug.image = g_new0(BlockdevRef, 1);
    options->u.blkdebug.image->kind = BLOCKDEV_REF_DEFINITION;
    options->u.blkdebug.image->u.definition = image;
    return options;
}

static const char *const blkdebug_schemes[] = {"blkdebug", NULL};

const Driver driver_blkdebug = {
    .name = "blkdebug",
    .state_size = sizeof(Blkdebug),
    .is_filter = true,
    .co_open = blkdebug_co_open,
    .co_close = blkdebug_co_close,
    .refresh_limits = blkdebug_refresh_limits,
    .child_perm = blkdebug_child_perm,
    .co_preadv = blkdebug_co_preadv,
    .co_pwritev = blkdebug_co_pwritev,
    .co_pwritev_compressed = blkdebug_co_pwritev_compressed,
    .co_pwrite_zeroes = blkdebug_co_pwrite_zeroes,
    .co_pdiscard = blkdebug_co_pdiscard,
    .co_flush_to_disk = blkdebug_co_flush_to_disk,
    .co_block_status = blkdebug_co_block_status,
    .schemes = blkdebug_schemes,
    .parse_filename = blkdebug_parse_filename,
    .debug = &blkdebug_debug,
};
