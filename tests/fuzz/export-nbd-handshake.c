/*
 * The negotiation of the NBD server: the input is what a client sends after the greeting, its flags and then options.
 * Whatever it is, answers are well-formed, belong to the option asked, and stay within bounds.
 */
#include "block/export/nbd-handshake.h"
#include "block/export/nbd-proto.h"
#include "block/util/bytes.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void add_export(GPtrArray *list, uint64_t serial, const char *name, const char *description, unsigned contexts)
{
    NbdExportInfo *info = g_new0(NbdExportInfo, 1);

    info->serial = serial;
    info->name = g_strdup(name);
    info->description = g_strdup(description);
    info->size = serial << 30;
    info->flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH;
    info->min_block = 512;
    info->pref_block = 4096;
    info->contexts = g_ptr_array_new_with_free_func(g_free);
    g_ptr_array_add(info->contexts, g_strdup("base:allocation"));
    for (unsigned i = 1; i < contexts; i++)
        g_ptr_array_add(info->contexts, g_strdup_printf("qemu:dirty-bitmap:b%u", i));
    g_ptr_array_add(list, info);
}

static void free_export(gpointer p)
{
    NbdExportInfo *info = p;

    g_free(info->name);
    g_free(info->description);
    g_ptr_array_unref(info->contexts);
    g_free(info);
}

/* The answers to one option: all but the old-style one are a row of replies, of which only the last is final. */
static void check_answers(const NbdHandshake *hs, uint32_t option)
{
    const uint8_t *p = hs->out->data;
    size_t left = hs->out->len;
    bool final = false;

    if (option == NBD_OPT_EXPORT_NAME) {
        g_assert(hs->state == NBD_HS_TRANSMIT ? left == 10 || left == 10 + NBD_EXPORT_NAME_PADDING : left == 0);
        return;
    }
    g_assert_cmpuint(left, <=, 256 * 1024);
    while (left) {
        uint32_t type, len;

        g_assert(!final && left >= NBD_OPTION_REPLY_SIZE && load_be64(p) == NBD_OPTION_REP_MAGIC);
        g_assert_cmpuint(load_be32(p + 8), ==, option);
        type = load_be32(p + 12);
        len = load_be32(p + 16);
        g_assert_cmpuint(len, <=, left - NBD_OPTION_REPLY_SIZE);
        final = type == NBD_REP_ACK || type & 0x80000000u;
        p += NBD_OPTION_REPLY_SIZE + len;
        left -= NBD_OPTION_REPLY_SIZE + len;
    }
    g_assert(final || hs->state == NBD_HS_CLOSE);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_autoptr(GPtrArray) exports = g_ptr_array_new_with_free_func(free_export);
    NbdHandshake hs;

    add_export(exports, 1, "", NULL, 1);
    add_export(exports, 2, "disk", "what it is for", NBD_MAX_CONTEXTS);
    add_export(exports, 3, "other", NULL, 3);
    nbd_handshake_init(&hs, exports);
    g_assert_cmpuint(hs.out->len, ==, NBD_GREETING_SIZE);
    if (size >= 4) {
        nbd_handshake_client_flags(&hs, load_be32(data));
        data += 4;
        size -= 4;
    }
    while (hs.state == NBD_HS_OPTIONS && size >= NBD_OPTION_SIZE && load_be64(data) == NBD_OPTION_MAGIC) {
        uint32_t option = load_be32(data + 8), len = load_be32(data + 12);

        data += NBD_OPTION_SIZE;
        size -= NBD_OPTION_SIZE;
        g_byte_array_set_size(hs.out, 0);
        if (len > NBD_OPTION_MAX) {
            nbd_handshake_option_too_big(&hs, option);
            len = 0;
        } else if (len > size) {
            break;
        } else {
            /* A copy of its exact size: a sanitizer sees reads past the end. */
            g_autofree uint8_t *copy = g_memdup2(data, len);
            nbd_handshake_option(&hs, option, copy, len);
        }
        check_answers(&hs, option);
        data += len;
        size -= len;
    }
    if (hs.state == NBD_HS_TRANSMIT) {
        guint n = hs.chosen->contexts->len;

        g_assert(g_ptr_array_find(exports, hs.chosen, NULL));
        g_assert(n == NBD_MAX_CONTEXTS || hs.contexts >> n == 0);
        g_assert(!hs.contexts || (hs.structured && hs.contexts_serial == hs.chosen->serial));
    }
    nbd_handshake_clear(&hs);
    return 0;
}
