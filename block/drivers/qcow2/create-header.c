/*
 * The header cluster of a new image: header, extensions, name of the backing file.
 */
#include "block/drivers/qcow2/create.h"

typedef struct Header {
    uint8_t *buf, *at; /* at: where the next extension goes */
    size_t size;
    size_t tail; /* bytes that have to go behind the extensions, end mark included */
} Header;

static void feature_name(uint8_t **at, uint8_t type, uint8_t bit, const char *name)
{
    uint8_t *p = *at;

    p[0] = type;
    p[1] = bit;
    memcpy(p + 2, name, strlen(name)); /* 46 bytes, the rest is zero */
    *at += 48;
}

static bool has_room(const Header *h, size_t len)
{
    return (size_t)(h->at - h->buf) + 8 + align_up(len, 8) + h->tail <= h->size;
}

static void extension(Header *h, uint32_t type, const void *data, size_t len)
{
    store_be32(h->at, type);
    store_be32(h->at + 4, (uint32_t)len);
    if (len)
        memcpy(h->at + 8, data, len);
    h->at += 8 + align_up(len, 8);
}

/* A help for others' error messages; small clusters have no room for it. */
static void add_feature_names(Header *h)
{
    uint8_t names[8 * 48] = {0}, *end = names;

    feature_name(&end, 0, 0, "dirty bit");
    feature_name(&end, 0, 1, "corrupt bit");
    feature_name(&end, 0, 2, "external data file");
    feature_name(&end, 0, 3, "compression type");
    feature_name(&end, 0, 4, "extended L2 entries");
    feature_name(&end, 1, 0, "lazy refcounts");
    feature_name(&end, 2, 0, "bitmaps");
    feature_name(&end, 2, 1, "raw external data");
    if (has_room(h, sizeof(names)))
        extension(h, Q2_EXT_FEATURES, names, sizeof(names));
}

static bool add_extensions(const CreateOptions *o, const Q2Layout *l, Header *h, GError **error)
{
    size_t format = o->backing_file && o->backing_format ? strlen(o->backing_format) : 0;
    size_t data_file = o->data_file_name ? strlen(o->data_file_name) : 0;

    if (format > 15)
        return error_set(error, "Backing format name '%s' is too long, the limit is 15 bytes", o->backing_format);
    if (!has_room(h, format))
        return error_set(error,
                         "Backing file name too long: it has %zu bytes and does not fit into a header cluster of %zu",
                         h->tail - 8, h->size);
    if (format)
        extension(h, Q2_EXT_BACKING_FORMAT, o->backing_format, format);
    if (data_file && !has_room(h, data_file))
        return error_set(error,
                         "Data file name too long: it has %zu bytes and does not fit into a header cluster of %zu",
                         data_file, h->size);
    if (data_file)
        extension(h, Q2_EXT_DATA_FILE, o->data_file_name, data_file);
    if (l->crypto) {
        uint8_t place[16];
        if (!has_room(h, sizeof(place)))
            return error_set(error, "The header cluster of %zu bytes has no room for encryption", h->size);
        store_be64(place, q2_layout_crypto(l) << l->cluster_bits);
        store_be64(place + 8, l->crypto_bytes);
        extension(h, Q2_EXT_CRYPTO, place, sizeof(place));
    }
    if (l->version > 2)
        add_feature_names(h);
    extension(h, 0, NULL, 0);
    return true;
}

static void store_fields(const CreateOptions *o, const Q2Layout *l, uint8_t *buf, size_t length)
{
    uint64_t incompat = 0;

    store_be32(buf, Q2_MAGIC);
    store_be32(buf + 4, l->version);
    store_be32(buf + 20, l->cluster_bits);
    store_be64(buf + Q2_H_SIZE, l->size);
    store_be32(buf + 32, !l->encrypted ? Q2_CRYPT_NONE : l->crypto ? Q2_CRYPT_LUKS : Q2_CRYPT_AES);
    store_be32(buf + Q2_H_L1_SIZE, (uint32_t)l->l1_entries);
    store_be64(buf + Q2_H_L1_SIZE + 4, q2_layout_l1(l) << l->cluster_bits);
    store_be64(buf + Q2_H_RT_OFFSET, UINT64_C(1) << l->cluster_bits);
    store_be32(buf + Q2_H_RT_OFFSET + 8, (uint32_t)l->rt_clusters);
    if (l->version < 3)
        return;
    incompat |= o->data_file ? Q2_INCOMPAT_DATA_FILE : 0;
    incompat |= o->zstd ? Q2_INCOMPAT_COMPRESSION : 0;
    incompat |= o->extended_l2 ? Q2_INCOMPAT_EXTL2 : 0;
    store_be64(buf + Q2_H_INCOMPAT, incompat);
    store_be64(buf + Q2_H_INCOMPAT + 8, o->lazy_refcounts ? Q2_COMPAT_LAZY_REFCOUNTS : 0);
    store_be64(buf + Q2_H_AUTOCLEAR, l->raw ? Q2_AUTOCLEAR_RAW : 0);
    store_be32(buf + 96, l->refcount_order);
    store_be32(buf + 100, (uint32_t)length);
    buf[104] = o->zstd;
}

bool q2_create_header(const CreateOptions *o, const Q2Layout *l, uint8_t *buf, GError **error)
{
    size_t length = l->version == 2 ? Q2_V2_HEADER : Q2_OUR_HEADER;
    size_t name = o->backing_file ? strlen(o->backing_file) : 0;
    Header h = {.buf = buf, .at = buf + length, .size = (size_t)l->cluster, .tail = 8 + name};

    if (name > Q2_MAX_BACKING)
        return error_set(error, "Backing file name too long: it has %zu bytes, the limit is %d", name, Q2_MAX_BACKING);
    if (!add_extensions(o, l, &h, error))
        return false;
    if (name) {
        memcpy(h.at, o->backing_file, name);
        store_be64(buf + 8, (uint64_t)(h.at - buf));
        store_be32(buf + 16, (uint32_t)name);
    }
    store_fields(o, l, buf, length);
    return true;
}
