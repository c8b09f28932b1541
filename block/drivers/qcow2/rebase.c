/*
 * Another backing file in the header.
 *
 * The first cluster holds the header, extensions (one of them names the backing file's format) and, anywhere behind
 * them, the backing file's name. The new name goes where the old one is not and is made durable; then header and
 * extensions change in one small write, as a rule of a few bytes in the first sector. So after a crash one of the two
 * names is there, whole. Unknown extensions stay.
 */
#include "block/drivers/qcow2/qcow2.h"

/* The first cluster, as it is and as it is to be. */
typedef struct Rebase {
    Qcow2 *q;
    size_t size; /* bytes of both */
    uint8_t *old, *new;
    size_t old_name, old_name_end; /* 0: none */
    size_t ext_end;                /* in the new one: behind the extensions' end mark */
    size_t name, name_end;         /* the new one; 0: none */
} Rebase;

/* Appends an extension to the new cluster at .ext_end. False when there is no room. */
static bool put_extension(Rebase *r, uint32_t type, const void *data, size_t len)
{
    size_t end = r->ext_end + 8 + align_up(len, 8);

    if (end > r->size)
        return false;
    memset(r->new + r->ext_end, 0, end - r->ext_end);
    store_be32(r->new + r->ext_end, type);
    store_be32(r->new + r->ext_end + 4, (uint32_t)len);
    if (len)
        memcpy(r->new + r->ext_end + 8, data, len);
    r->ext_end = end;
    return true;
}

/* The extension at *@at of the old cluster; moves on to the next. False at the end. */
static bool next_extension(const Rebase *r, size_t *at, uint32_t *type, uint32_t *len, const uint8_t **data)
{
    size_t end = r->old_name ? r->old_name : r->size;

    if (*at + 8 > end || !load_be32(r->old + *at))
        return false;
    *type = load_be32(r->old + *at);
    *len = load_be32(r->old + *at + 4);
    *data = r->old + *at + 8;
    if (*len > end - *at - 8)
        return false;
    *at += 8 + align_up(*len, 8);
    return true;
}

static bool has_format(const Rebase *r)
{
    size_t at = r->q->header.header_length;
    uint32_t type, len;
    const uint8_t *data;

    while (next_extension(r, &at, &type, &len, &data))
        if (type == Q2_EXT_BACKING_FORMAT)
            return true;
    return false;
}

/*
 * Copies the extensions, with @format in the place of the old backing format, or before all others where none was
 * named. NULL leaves out what was named.
 */
static bool put_extensions(Rebase *r, const char *format)
{
    size_t at = r->q->header.header_length;
    uint32_t type, len;
    const uint8_t *data;

    r->ext_end = at;
    if (format && !has_format(r) && !put_extension(r, Q2_EXT_BACKING_FORMAT, format, strlen(format)))
        return false;
    while (next_extension(r, &at, &type, &len, &data)) {
        if (type == Q2_EXT_BACKING_FORMAT) {
            if (!format)
                continue;
            data = (const uint8_t *)format;
            len = (uint32_t)strlen(format);
        }
        if (!put_extension(r, type, data, len))
            return false;
    }
    return put_extension(r, 0, NULL, 0);
}

/* Where the new name of @len bytes goes: beside the old one, if there is room. */
static bool place_name(Rebase *r, size_t len)
{
    size_t behind = MAX(r->ext_end, r->old_name_end);

    if (!r->old_name || r->ext_end + len <= r->old_name)
        r->name = r->ext_end;
    else
        r->name = behind + len <= r->size ? behind : r->ext_end;
    r->name_end = r->name + len;
    return r->name_end <= r->size;
}

static bool make_cluster(Rebase *r, const char *file, const char *format, GError **error)
{
    size_t len = file ? strlen(file) : 0;

    if (format && strlen(format) > 15)
        return error_set(error, "Backing format name '%s' is too long, the limit is 15 bytes", format);
    if (!file) {
        /* The name of a format says nothing without that of a file. */
        r->ext_end = r->q->header.header_length;
        memset(r->new + 8, 0, 12);
        return true;
    }
    if (len > Q2_MAX_BACKING || !put_extensions(r, format) || !place_name(r, len))
        return error_set(error, "Backing file name too long: its %zu bytes do not fit into the header cluster of %zu",
                         len, r->size);
    memcpy(r->new + r->name, file, len);
    store_be64(r->new + 8, r->name);
    store_be32(r->new + 16, (uint32_t)len);
    return true;
}

/* Writes what differs in [@start, @end), in one piece, and flushes. */
static int write_co_difference(Rebase *r, size_t start, size_t end)
{
    int ret = 0;

    while (start < end && r->old[start] == r->new[start])
        start++;
    while (start < end && r->old[end - 1] == r->new[end - 1])
        end--;
    if (start < end)
        ret = child_co_pwrite(r->q->node->file, start, end - start, r->new + start, 0);
    return ret < 0 ? ret : child_co_flush(r->q->node->file);
}

static int write_co_cluster(Rebase *r)
{
    bool beside = r->name >= r->ext_end && (r->name >= r->old_name_end || r->name_end <= r->old_name);
    int ret = 0;

    if (beside && r->name_end > r->name)
        ret = write_co_difference(r, r->name, r->name_end);
    return ret < 0 ? ret : write_co_difference(r, 0, beside ? r->ext_end : MAX(r->ext_end, r->name_end));
}

static int read_co_cluster(Rebase *r)
{
    int ret = child_co_pread(r->q->node->file, 0, u64_min(r->size, r->q->node->file->node->size), r->old, 0);

    if (ret < 0)
        return ret;
    memcpy(r->new, r->old, r->size);
    r->old_name = (size_t)u64_min(load_be64(r->old + 8), r->size);
    r->old_name_end = (size_t)u64_min(r->old_name + load_be32(r->old + 16), r->size);
    return 0;
}

static bool rebase_co_header(Rebase *r, const char *file, const char *format, GError **error)
{
    int ret = q2_co_before_first_write(r->q);

    if (ret == 0)
        ret = read_co_cluster(r);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read the header of '%s'", r->q->node->name);
    if (!make_cluster(r, file, format, error))
        return false;
    ret = write_co_cluster(r);
    return ret == 0 || error_set_errno(error, -ret, "Could not write the header of '%s'", r->q->node->name);
}

bool q2_co_change_backing(Node *node, const char *file, const char *format, GError **error)
{
    Qcow2 *q = q2_of(node);
    size_t size = (size_t)q->cluster_size;
    g_autofree uint8_t *old = g_try_malloc0(size), *new = g_try_malloc0(size);
    Rebase r = {.q = q, .size = size, .old = old, .new = new};

    if (!old || !new)
        return error_set(error, "Could not allocate memory for the header of '%s'", node->name);
    if (!rebase_co_header(&r, file, format, error))
        return false;
    g_free(q->header.backing_file);
    g_free(q->header.backing_format);
    q->header.backing_file = g_strdup(file);
    q->header.backing_format = g_strdup(format);
    return true;
}
