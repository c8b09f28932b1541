/*
 * Another backing file in the header.
 *
 * The first cluster holds the header, extensions up to an end mark (one of them names the backing file's format) and,
 * anywhere behind them, the backing file's name. Nothing in it moves but that name. Each step below is durable before
 * the next and within one sector, or touches only what nothing refers to, so after a crash the image names the old file
 * or the new one, with its format or, for a moment, without any:
 *
 *   1. the new name, beside the old one
 *   2. an old format that is not the new one becomes a filler, which everybody skips
 *   3. the header's offset and length of the name
 *   4. the new format's name: in the old one's place if it fits in there, else behind the end mark, with a new mark
 *   5. the type and length of 4: over the filler's, or over the old end mark
 *
 * Where the old format stands in the first sector and has room for the new one, 2 to 5 are one write.
 */
#include "block/drivers/qcow2/qcow2.h"

#define EXT_FILLER UINT32_C(0x66696c6c) /* means nothing to anybody */
#define SECTOR     512

typedef struct Rebase {
    Qcow2 *q;
    uint8_t *cluster; /* the first one, as it is */
    size_t size;
    size_t old_name, old_name_end; /* 0: none */
    size_t format_at,
        format_space; /* where the old format's extension is, and the room for its data. 0: there is none */
    size_t end_at;    /* of the end mark */
    size_t name_at;   /* of the new name */
} Rebase;

static int write_co_step(Rebase *r, size_t offset, const void *bytes, size_t size)
{
    int ret = child_co_pwrite(r->q->node->file, offset, size, bytes, 0);

    return ret < 0 ? ret : q2_co_barrier(r->q, "rebase");
}

/* Finds format and end mark. False when there is no end mark: what follows the extensions could not change. */
static bool find_extensions(Rebase *r)
{
    size_t at = r->q->header.header_length, limit = r->old_name ? r->old_name : r->size;

    while (at + 8 <= limit) {
        uint32_t type = load_be32(r->cluster + at), len = load_be32(r->cluster + at + 4);
        r->end_at = at;
        if (!type) /* one with a length would reach over a name that comes behind it */
            return len == 0;
        if (len > limit - at - 8)
            return false;
        if (type == Q2_EXT_BACKING_FORMAT) {
            r->format_at = at;
            r->format_space = align_up(len, 8);
        }
        at += 8 + align_up(len, 8);
    }
    return false;
}

static bool has_format(const Rebase *r, const char *format)
{
    const char *old = r->q->header.backing_format;

    return r->format_at && old && !strcmp(old, format);
}

static bool fits_in_place(const Rebase *r, size_t len)
{
    return r->format_at && r->format_space == align_up(len, 8);
}

/* Where the new name goes: behind what the extensions will take, before or behind the old name. */
static bool place_name(Rebase *r, size_t len, const char *format)
{
    size_t from = r->end_at + 8;

    if (format && !has_format(r, format) && !fits_in_place(r, strlen(format)))
        from += 8 + align_up(strlen(format), 8);
    if (r->old_name && from + len > r->old_name)
        from = MAX(from, r->old_name_end);
    r->name_at = from;
    return from + len <= r->size;
}

static bool read_co_cluster(Rebase *r, GError **error)
{
    int ret = child_co_pread(r->q->node->file, 0, u64_min(r->size, r->q->node->file->node->size), r->cluster, 0);

    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read the header of '%s'", r->q->node->name);
    r->old_name = (size_t)u64_min(load_be64(r->cluster + 8), r->size);
    r->old_name_end = (size_t)u64_min(r->old_name + load_be32(r->cluster + 16), r->size);
    return find_extensions(r) ||
           error_set(error, "The header extensions of '%s' have no end mark: the backing file's name cannot change",
                     r->q->node->name);
}

/* Offset and length of the name, as the header has them. */
static void store_pointer(uint8_t *bytes, size_t offset, size_t len)
{
    store_be64(bytes, offset);
    store_be32(bytes + 8, (uint32_t)len);
}

/* 2 to 5 at once, in the first sector. */
static int switch_co_at_once(Rebase *r, size_t name_len, const char *format)
{
    uint8_t *sector = r->cluster;
    size_t end = r->format_at + 8 + r->format_space;

    store_pointer(sector + 8, r->name_at, name_len);
    store_be32(sector + r->format_at + 4, (uint32_t)strlen(format));
    memset(sector + r->format_at + 8, 0, r->format_space);
    memcpy(sector + r->format_at + 8, format, strlen(format));
    return write_co_step(r, 8, sector + 8, end - 8);
}

/* 4 and 5. */
static int write_co_format(Rebase *r, const char *format)
{
    size_t len = strlen(format), at = fits_in_place(r, len) ? r->format_at : r->end_at;
    uint8_t head[8], data[16 + 8] = {0}; /* the end mark is zeroes, too */
    int ret;

    memcpy(data, format, len);
    store_be32(head, Q2_EXT_BACKING_FORMAT);
    store_be32(head + 4, (uint32_t)len);
    ret = write_co_step(r, at + 8, data, align_up(len, 8) + (at == r->end_at ? 8 : 0));
    return ret < 0 ? ret : write_co_step(r, at, head, sizeof(head));
}

static int switch_co_names(Rebase *r, const char *file, const char *format)
{
    bool change_format = !format ? r->format_at != 0 : !has_format(r, format);
    uint8_t pointer[12], filler[4];
    int ret = write_co_step(r, r->name_at, file, strlen(file));

    if (ret == 0 && format && change_format && fits_in_place(r, strlen(format)) &&
        r->format_at + 8 + r->format_space <= SECTOR)
        return switch_co_at_once(r, strlen(file), format);
    store_pointer(pointer, r->name_at, strlen(file));
    store_be32(filler, EXT_FILLER);
    if (ret == 0 && change_format && r->format_at)
        ret = write_co_step(r, r->format_at, filler, sizeof(filler));
    if (ret == 0)
        ret = write_co_step(r, 8, pointer, sizeof(pointer));
    if (ret == 0 && format && change_format)
        ret = write_co_format(r, format);
    return ret;
}

/* No name at all. That of a format says nothing then, and may stay. */
static int drop_co_name(Rebase *r)
{
    static const uint8_t none[12];

    return write_co_step(r, 8, none, sizeof(none));
}

static bool rebase_co_image(Rebase *r, const char *file, const char *format, GError **error)
{
    int ret;

    if (!read_co_cluster(r, error))
        return false;
    if (file && (strlen(file) > Q2_MAX_BACKING || !place_name(r, strlen(file), format)))
        return error_set(error, "Backing file name too long: its %zu bytes do not fit into the header cluster of %zu",
                         strlen(file), r->size);
    ret = file ? switch_co_names(r, file, format) : drop_co_name(r);
    return ret == 0 || error_set_errno(error, -ret, "Could not write the header of '%s'", r->q->node->name);
}

bool q2_co_change_backing(Node *node, const char *file, const char *format, GError **error)
{
    Qcow2 *q = q2_of(node);
    size_t size = (size_t)q->cluster_size;
    g_autofree uint8_t *cluster = g_try_malloc0(size);
    Rebase r = {.q = q, .size = size, .cluster = cluster};
    bool ok;
    int ret;

    if (!cluster)
        return error_set(error, "Could not allocate memory for the header of '%s'", node->name);
    if (format && strlen(format) > 15)
        return error_set(error, "Backing format name '%s' is too long, the limit is 15 bytes", format);
    ret = q2_co_before_first_write(q);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not write the header of '%s'", node->name);
    comutex_co_lock(&q->header_lock);
    ok = rebase_co_image(&r, file, format, error);
    comutex_unlock(&q->header_lock);
    if (!ok)
        return false;
    g_free(q->header.backing_file);
    q->header.backing_file = g_strdup(file);
    if (file) { /* else the old format's name is still there */
        g_free(q->header.backing_format);
        q->header.backing_format = g_strdup(format);
    }
    return true;
}
