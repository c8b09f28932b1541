#include "block/export/nbd-handshake.h"
#include "block/export/nbd-proto.h"
#include "block/util/bytes.h"
#include <string.h>

/* What is left of an option's payload. */
typedef struct Cursor {
    const uint8_t *p;
    size_t left;
} Cursor;

static bool take_u16(Cursor *c, uint16_t *ret)
{
    if (c->left < sizeof(*ret))
        return false;
    *ret = load_be16(c->p);
    c->p += sizeof(*ret);
    c->left -= sizeof(*ret);
    return true;
}

static bool take_u32(Cursor *c, uint32_t *ret)
{
    if (c->left < sizeof(*ret))
        return false;
    *ret = load_be32(c->p);
    c->p += sizeof(*ret);
    c->left -= sizeof(*ret);
    return true;
}

/* A string with its length before it; @ret borrows. */
static bool take_string(Cursor *c, const char **ret, size_t *ret_len)
{
    uint32_t len;

    if (!take_u32(c, &len) || len > c->left)
        return false;
    *ret = (const char *)c->p;
    *ret_len = len;
    c->p += len;
    c->left -= len;
    return true;
}

static void put_u16(GByteArray *out, uint16_t value)
{
    uint8_t raw[sizeof(value)];
    store_be16(raw, value);
    g_byte_array_append(out, raw, sizeof(raw));
}

static void put_u32(GByteArray *out, uint32_t value)
{
    uint8_t raw[sizeof(value)];
    store_be32(raw, value);
    g_byte_array_append(out, raw, sizeof(raw));
}

static void put_u64(GByteArray *out, uint64_t value)
{
    uint8_t raw[sizeof(value)];
    store_be64(raw, value);
    g_byte_array_append(out, raw, sizeof(raw));
}

static void put_bytes(GByteArray *out, const char *data, size_t len)
{
    g_byte_array_append(out, (const guint8 *)data, len);
}

static void reply(NbdHandshake *hs, uint32_t option, uint32_t type, size_t len)
{
    put_u64(hs->out, NBD_OPTION_REP_MAGIC);
    put_u32(hs->out, option);
    put_u32(hs->out, type);
    put_u32(hs->out, len);
}

G_GNUC_PRINTF(4, 5)
static void reply_error(NbdHandshake *hs, uint32_t option, uint32_t type, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    size_t len;
    va_list ap;

    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    len = MIN(strlen(text), NBD_MAX_STRING);
    reply(hs, option, type, len);
    put_bytes(hs->out, text, len);
}

static const NbdExportInfo *find_export(const NbdHandshake *hs, const char *name, size_t len)
{
    for (guint i = 0; i < hs->exports->len; i++) {
        const NbdExportInfo *info = g_ptr_array_index(hs->exports, i);

        if (strlen(info->name) == len && (len == 0 || !memcmp(info->name, name, len)))
            return info;
    }
    return NULL;
}

static void choose(NbdHandshake *hs, const NbdExportInfo *info)
{
    hs->chosen = info;
    hs->state = NBD_HS_TRANSMIT;
    if (hs->contexts_serial != info->serial)
        hs->contexts = 0; /* they were selected for another export */
}

static uint16_t transmission_flags(const NbdHandshake *hs, const NbdExportInfo *info)
{
    return info->flags | (hs->structured ? NBD_FLAG_SEND_DF : 0);
}

/* ---- the options, one function each ----------------------------------------------------------------------------- */

/* The old way in: no answer but the export's size and flags, and a closed connection where there is none. */
static void opt_export_name(NbdHandshake *hs, Cursor c)
{
    static const char zeroes[NBD_EXPORT_NAME_PADDING];
    const NbdExportInfo *info = find_export(hs, (const char *)c.p, c.left);

    if (!info) {
        hs->state = NBD_HS_CLOSE;
        return;
    }
    put_u64(hs->out, info->size);
    put_u16(hs->out, transmission_flags(hs, info));
    if (!hs->no_zeroes)
        put_bytes(hs->out, zeroes, sizeof(zeroes));
    choose(hs, info);
}

static void opt_list(NbdHandshake *hs, Cursor c)
{
    if (c.left) {
        reply_error(hs, NBD_OPT_LIST, NBD_REP_ERR_INVALID, "this option takes no data");
        return;
    }
    for (guint i = 0; i < hs->exports->len; i++) {
        const NbdExportInfo *info = g_ptr_array_index(hs->exports, i);
        size_t name_len = strlen(info->name);
        size_t desc_len = info->description ? strlen(info->description) : 0;

        reply(hs, NBD_OPT_LIST, NBD_REP_SERVER, 4 + name_len + desc_len);
        put_u32(hs->out, name_len);
        put_bytes(hs->out, info->name, name_len);
        put_bytes(hs->out, info->description, desc_len);
    }
    reply(hs, NBD_OPT_LIST, NBD_REP_ACK, 0);
}

static void put_info_string(NbdHandshake *hs, uint32_t option, uint16_t kind, const char *text)
{
    size_t len = strlen(text);

    reply(hs, option, NBD_REP_INFO, 2 + len);
    put_u16(hs->out, kind);
    put_bytes(hs->out, text, len);
}

static void put_info(NbdHandshake *hs, uint32_t option, const NbdExportInfo *info, bool name, bool description,
                     bool block_size)
{
    if (name)
        put_info_string(hs, option, NBD_INFO_NAME, info->name);
    if (description && info->description)
        put_info_string(hs, option, NBD_INFO_DESCRIPTION, info->description);
    /* Told to everybody. Who did not ask may not heed it, and so may send what is aligned to nothing. */
    reply(hs, option, NBD_REP_INFO, 14);
    put_u16(hs->out, NBD_INFO_BLOCK_SIZE);
    put_u32(hs->out, block_size || option == NBD_OPT_INFO ? info->min_block : 1);
    put_u32(hs->out, info->pref_block);
    put_u32(hs->out, NBD_MAX_PAYLOAD);

    reply(hs, option, NBD_REP_INFO, 12);
    put_u16(hs->out, NBD_INFO_EXPORT);
    put_u64(hs->out, info->size);
    put_u16(hs->out, transmission_flags(hs, info));
}

static void opt_go(NbdHandshake *hs, uint32_t option, Cursor c)
{
    bool want_name = false, want_description = false, want_block_size = false;
    const NbdExportInfo *info;
    const char *name;
    size_t len;
    uint16_t n, kind;

    if (!take_string(&c, &name, &len) || !take_u16(&c, &n) || c.left != 2 * (size_t)n) {
        reply_error(hs, option, NBD_REP_ERR_INVALID, "malformed request");
        return;
    }
    if (len > NBD_MAX_STRING) {
        reply_error(hs, option, NBD_REP_ERR_INVALID, "export name is longer than %d bytes", NBD_MAX_STRING);
        return;
    }
    while (take_u16(&c, &kind)) {
        want_name |= kind == NBD_INFO_NAME;
        want_description |= kind == NBD_INFO_DESCRIPTION;
        want_block_size |= kind == NBD_INFO_BLOCK_SIZE;
    }
    info = find_export(hs, name, len);
    if (!info) {
        reply_error(hs, option, NBD_REP_ERR_UNKNOWN, "export '%.*s' not present", (int)len, name);
        return;
    }
    put_info(hs, option, info, want_name, want_description, want_block_size);
    reply(hs, option, NBD_REP_ACK, 0);
    if (option == NBD_OPT_GO)
        choose(hs, info);
}

static void opt_structured_reply(NbdHandshake *hs, Cursor c)
{
    if (c.left) {
        reply_error(hs, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_INVALID, "this option takes no data");
        return;
    }
    hs->structured = true;
    reply(hs, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK, 0);
}

/* Does the query name the context? When listing, a query that ends with a colon asks for all that begin so. */
static bool query_matches(const char *query, size_t len, const char *context, bool list)
{
    size_t context_len = strlen(context);

    if (list && len && query[len - 1] == ':')
        return len <= context_len && !memcmp(query, context, len);
    return len == context_len && !memcmp(query, context, len);
}

static uint64_t query_select(const NbdExportInfo *info, const char *query, size_t len, bool list)
{
    uint64_t selected = 0;

    for (guint i = 0; i < info->contexts->len; i++)
        if (query_matches(query, len, g_ptr_array_index(info->contexts, i), list))
            selected |= UINT64_C(1) << i;
    return selected;
}

static void opt_meta_context(NbdHandshake *hs, uint32_t option, Cursor c)
{
    bool list = option == NBD_OPT_LIST_META_CONTEXT;
    const NbdExportInfo *info;
    uint64_t selected = 0;
    const char *text;
    size_t len;
    uint32_t n;

    if (!list)
        hs->contexts = 0; /* whatever comes of it, it replaces what was selected before */
    if (!hs->structured) {
        reply_error(hs, option, NBD_REP_ERR_INVALID, "structured replies were not negotiated");
        return;
    }
    if (!take_string(&c, &text, &len) || !take_u32(&c, &n)) {
        reply_error(hs, option, NBD_REP_ERR_INVALID, "malformed request");
        return;
    }
    info = len <= NBD_MAX_STRING ? find_export(hs, text, len) : NULL;
    if (!info) {
        reply_error(hs, option, NBD_REP_ERR_UNKNOWN, "export '%.*s' not present", (int)MIN(len, NBD_MAX_STRING), text);
        return;
    }
    if (list && n == 0)
        selected = UINT64_MAX;
    for (uint32_t i = 0; i < n; i++) {
        if (!take_string(&c, &text, &len)) {
            reply_error(hs, option, NBD_REP_ERR_INVALID, "malformed request");
            return;
        }
        selected |= query_select(info, text, len, list);
    }
    if (c.left) {
        reply_error(hs, option, NBD_REP_ERR_INVALID, "malformed request");
        return;
    }
    for (guint i = 0; i < info->contexts->len; i++) {
        const char *context = g_ptr_array_index(info->contexts, i);

        if (selected & (UINT64_C(1) << i)) {
            reply(hs, option, NBD_REP_META_CONTEXT, 4 + strlen(context));
            put_u32(hs->out, list ? 0 : i);
            put_bytes(hs->out, context, strlen(context));
        }
    }
    reply(hs, option, NBD_REP_ACK, 0);
    if (!list) {
        hs->contexts = selected;
        hs->contexts_serial = info->serial;
    }
}

/* ---- the machine ------------------------------------------------------------------------------------------------ */

void nbd_handshake_init(NbdHandshake *hs, const GPtrArray *exports)
{
    *hs = (NbdHandshake){.exports = exports, .out = g_byte_array_new()};
    put_u64(hs->out, NBD_MAGIC);
    put_u64(hs->out, NBD_OPTION_MAGIC);
    put_u16(hs->out, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

void nbd_handshake_clear(NbdHandshake *hs)
{
    if (hs->out) {
        g_byte_array_unref(hs->out);
        hs->out = NULL;
    }
}

void nbd_handshake_client_flags(NbdHandshake *hs, uint32_t flags)
{
    if (flags & ~(uint32_t)(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES))
        hs->state = NBD_HS_CLOSE; /* the specification asks for it: they would change what comes next */
    hs->fixed = flags & NBD_FLAG_FIXED_NEWSTYLE;
    hs->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
}

void nbd_handshake_option(NbdHandshake *hs, uint32_t option, const uint8_t *data, size_t len)
{
    Cursor c = {.p = len ? data : (const uint8_t *)"", .left = len};

    if (!hs->fixed && option != NBD_OPT_EXPORT_NAME) {
        hs->state = NBD_HS_CLOSE; /* such a client understands no answers */
        return;
    }
    switch (option) {
    case NBD_OPT_EXPORT_NAME:
        opt_export_name(hs, c);
        break;
    case NBD_OPT_ABORT:
        reply(hs, option, NBD_REP_ACK, 0);
        hs->state = NBD_HS_CLOSE;
        break;
    case NBD_OPT_LIST:
        opt_list(hs, c);
        break;
    case NBD_OPT_STARTTLS:
        reply_error(hs, option, NBD_REP_ERR_POLICY, "TLS not configured");
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        opt_go(hs, option, c);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        opt_structured_reply(hs, c);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        opt_meta_context(hs, option, c);
        break;
    default:
        reply_error(hs, option, NBD_REP_ERR_UNSUP, "option %u is not supported", option);
    }
}

void nbd_handshake_option_too_big(NbdHandshake *hs, uint32_t option)
{
    if (!hs->fixed || option == NBD_OPT_EXPORT_NAME) {
        hs->state = NBD_HS_CLOSE;
        return;
    }
    reply_error(hs, option, NBD_REP_ERR_TOO_BIG, "option %u is longer than %u bytes", option, NBD_OPTION_MAX);
}
