/*
 * NBD's negotiation, option by option. The fuzzer checks form; this checks content.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include "block/export/nbd-handshake.h"
#include "block/export/nbd-proto.h"
#include "block/util/bytes.h"
#include <string.h>

typedef struct Fixture {
    NbdExportInfo a, b;
    GPtrArray *exports;
    NbdHandshake hs;
    size_t at; /* what of hs.out has been looked at */
} Fixture;

static void info_init(NbdExportInfo *info, uint64_t serial, const char *name, uint64_t size)
{
    *info = (NbdExportInfo){
        .serial = serial,
        .name = g_strdup(name),
        .size = size,
        .flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH,
        .min_block = 512,
        .pref_block = 8192,
        .contexts = g_ptr_array_new_with_free_func(g_free),
    };
    g_ptr_array_add(info->contexts, g_strdup("base:allocation"));
}

static int setup(void **state)
{
    Fixture *f = g_new0(Fixture, 1);

    info_init(&f->a, 1, "a", 1000);
    f->a.description = g_strdup("first");
    g_ptr_array_add(f->a.contexts, g_strdup("qemu:dirty-bitmap:x"));
    g_ptr_array_add(f->a.contexts, g_strdup("qemu:dirty-bitmap:xy"));
    info_init(&f->b, 2, "b", 2000);
    f->exports = g_ptr_array_new();
    g_ptr_array_add(f->exports, &f->a);
    g_ptr_array_add(f->exports, &f->b);
    nbd_handshake_init(&f->hs, f->exports);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    Fixture *f = *state;

    nbd_handshake_clear(&f->hs);
    g_free(f->a.name);
    g_free(f->b.name);
    g_free(f->a.description);
    g_ptr_array_unref(f->a.contexts);
    g_ptr_array_unref(f->b.contexts);
    g_ptr_array_unref(f->exports);
    g_free(f);
    return 0;
}

/* A payload: 's' a string with its length, '4' and '2' integers. */
static GByteArray *payload(const char *fmt, ...)
{
    GByteArray *out = g_byte_array_new();
    uint8_t raw[4];
    va_list ap;

    va_start(ap, fmt);
    for (; *fmt; fmt++) {
        if (*fmt == 's') {
            const char *text = va_arg(ap, const char *);
            store_be32(raw, strlen(text));
            g_byte_array_append(out, raw, 4);
            g_byte_array_append(out, (const guint8 *)text, strlen(text));
        } else if (*fmt == '4') {
            store_be32(raw, va_arg(ap, unsigned));
            g_byte_array_append(out, raw, 4);
        } else {
            store_be16(raw, (uint16_t)va_arg(ap, unsigned));
            g_byte_array_append(out, raw, 2);
        }
    }
    va_end(ap);
    return out;
}

/* Sends an option; @data is used up, NULL: none. */
static void option(Fixture *f, uint32_t number, GByteArray *data)
{
    g_byte_array_set_size(f->hs.out, 0);
    f->at = 0;
    nbd_handshake_option(&f->hs, number, data ? data->data : NULL, data ? data->len : 0);
    if (data)
        g_byte_array_unref(data);
}

/* The next reply must be of @type; its payload. */
static const uint8_t *expect(Fixture *f, uint32_t number, uint32_t type, uint32_t *ret_len)
{
    const uint8_t *p = f->hs.out->data + f->at;
    uint32_t len;

    assert_true(f->at + NBD_OPTION_REPLY_SIZE <= f->hs.out->len);
    assert_int_equal(load_be64(p), NBD_OPTION_REP_MAGIC);
    assert_int_equal(load_be32(p + 8), number);
    assert_int_equal(load_be32(p + 12), type);
    len = load_be32(p + 16);
    f->at += NBD_OPTION_REPLY_SIZE + len;
    assert_true(f->at <= f->hs.out->len);
    if (ret_len)
        *ret_len = len;
    return p + NBD_OPTION_REPLY_SIZE;
}

static void expect_end(Fixture *f)
{
    assert_int_equal(f->at, f->hs.out->len);
}

static void expect_only(Fixture *f, uint32_t number, uint32_t type)
{
    expect(f, number, type, NULL);
    expect_end(f);
}

static void greeting(void **state)
{
    Fixture *f = *state;

    assert_int_equal(f->hs.out->len, NBD_GREETING_SIZE);
    assert_memory_equal(f->hs.out->data, "NBDMAGICIHAVEOPT\0\3", 18);
}

static void unknown_client_flags_close(void **state)
{
    Fixture *f = *state;

    nbd_handshake_client_flags(&f->hs, 7);
    assert_int_equal(f->hs.state, NBD_HS_CLOSE);
}

static void go(void **state)
{
    Fixture *f = *state;
    const uint8_t *p;
    uint32_t len;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_GO, payload("s2222", "a", 3u, NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE));
    p = expect(f, NBD_OPT_GO, NBD_REP_INFO, &len);
    assert_int_equal(load_be16(p), NBD_INFO_NAME);
    assert_int_equal(len, 3);
    p = expect(f, NBD_OPT_GO, NBD_REP_INFO, &len);
    assert_int_equal(load_be16(p), NBD_INFO_DESCRIPTION);
    assert_memory_equal(p + 2, "first", 5);
    p = expect(f, NBD_OPT_GO, NBD_REP_INFO, &len);
    assert_int_equal(load_be16(p), NBD_INFO_BLOCK_SIZE);
    assert_int_equal(load_be32(p + 2), 512);
    assert_int_equal(load_be32(p + 6), 8192);
    assert_int_equal(load_be32(p + 10), 32 << 20);
    p = expect(f, NBD_OPT_GO, NBD_REP_INFO, &len);
    assert_int_equal(load_be16(p), NBD_INFO_EXPORT);
    assert_int_equal(load_be64(p + 2), 1000);
    assert_int_equal(load_be16(p + 10), f->a.flags);
    expect_only(f, NBD_OPT_GO, NBD_REP_ACK);
    assert_int_equal(f->hs.state, NBD_HS_TRANSMIT);
    assert_ptr_equal(f->hs.chosen, &f->a);
}

/* Who does not ask for the block size may send unaligned requests, and is told so. */
static void block_size_only_binds_who_asked(void **state)
{
    Fixture *f = *state;
    const uint8_t *p;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_GO, payload("s2", "b", 0u));
    p = expect(f, NBD_OPT_GO, NBD_REP_INFO, NULL);
    assert_int_equal(load_be16(p), NBD_INFO_BLOCK_SIZE);
    assert_int_equal(load_be32(p + 2), 1);
}

static void info_goes_on(void **state)
{
    Fixture *f = *state;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_INFO, payload("s2", "none", 0u));
    expect_only(f, NBD_OPT_INFO, NBD_REP_ERR_UNKNOWN);
    option(f, NBD_OPT_INFO, payload("s2", "a", 0u));
    assert_int_equal(f->hs.state, NBD_HS_OPTIONS);
    assert_null(f->hs.chosen);
}

static void go_malformed(void **state)
{
    Fixture *f = *state;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_GO, payload("s", "a"));
    expect_only(f, NBD_OPT_GO, NBD_REP_ERR_INVALID);
    option(f, NBD_OPT_GO, payload("s22", "a", 2u, 3u));
    expect_only(f, NBD_OPT_GO, NBD_REP_ERR_INVALID);
    option(f, NBD_OPT_GO, payload("s22", "a", 0u, 3u));
    expect_only(f, NBD_OPT_GO, NBD_REP_ERR_INVALID);
    option(f, NBD_OPT_GO, payload("42", 0xffffffffu, 0u));
    expect_only(f, NBD_OPT_GO, NBD_REP_ERR_INVALID);
    assert_int_equal(f->hs.state, NBD_HS_OPTIONS);
}

static void structured_replies_offer_df(void **state)
{
    Fixture *f = *state;
    const uint8_t *p;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_STRUCTURED_REPLY, NULL);
    expect_only(f, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
    option(f, NBD_OPT_GO, payload("s2", "b", 0u));
    expect(f, NBD_OPT_GO, NBD_REP_INFO, NULL);
    p = expect(f, NBD_OPT_GO, NBD_REP_INFO, NULL);
    assert_int_equal(load_be16(p + 10), f->b.flags | NBD_FLAG_SEND_DF);
}

static void export_name(void **state)
{
    Fixture *f = *state;

    nbd_handshake_client_flags(&f->hs, NBD_FLAG_FIXED_NEWSTYLE);
    g_byte_array_set_size(f->hs.out, 0);
    nbd_handshake_option(&f->hs, NBD_OPT_EXPORT_NAME, (const uint8_t *)"b", 1);
    assert_int_equal(f->hs.state, NBD_HS_TRANSMIT);
    assert_int_equal(f->hs.out->len, 10 + 124);
    assert_int_equal(load_be64(f->hs.out->data), 2000);
}

static void export_name_unknown_closes(void **state)
{
    Fixture *f = *state;

    nbd_handshake_client_flags(&f->hs, 3);
    g_byte_array_set_size(f->hs.out, 0);
    nbd_handshake_option(&f->hs, NBD_OPT_EXPORT_NAME, (const uint8_t *)"bb", 2);
    assert_int_equal(f->hs.state, NBD_HS_CLOSE);
    assert_int_equal(f->hs.out->len, 0);
}

static void list(void **state)
{
    Fixture *f = *state;
    const uint8_t *p;
    uint32_t len;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_LIST, NULL);
    p = expect(f, NBD_OPT_LIST, NBD_REP_SERVER, &len);
    assert_int_equal(len, 4 + 1 + 5);
    assert_memory_equal(p + 4, "afirst", 6);
    expect(f, NBD_OPT_LIST, NBD_REP_SERVER, NULL);
    expect_only(f, NBD_OPT_LIST, NBD_REP_ACK);
    option(f, NBD_OPT_LIST, payload("4", 0u));
    expect_only(f, NBD_OPT_LIST, NBD_REP_ERR_INVALID);
}

static void contexts(void **state)
{
    Fixture *f = *state;
    const uint8_t *p;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_SET_META_CONTEXT, payload("s4s", "a", 1u, "base:allocation"));
    expect_only(f, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
    option(f, NBD_OPT_STRUCTURED_REPLY, NULL);
    option(f, NBD_OPT_LIST_META_CONTEXT, payload("s4s", "a", 1u, "qemu:"));
    expect(f, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT, NULL);
    expect(f, NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT, NULL);
    expect_only(f, NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK);
    /* Selecting takes exact names only. */
    option(f, NBD_OPT_SET_META_CONTEXT, payload("s4sss", "a", 3u, "qemu:dirty-bitmap:x", "qemu:", "nobody:knows"));
    p = expect(f, NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT, NULL);
    assert_int_equal(load_be32(p), 1);
    assert_memory_equal(p + 4, "qemu:dirty-bitmap:x", 19);
    expect_only(f, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    assert_int_equal(f->hs.contexts, 2);
    option(f, NBD_OPT_GO, payload("s2", "a", 0u));
    assert_int_equal(f->hs.contexts, 2);
}

static void contexts_are_of_one_export(void **state)
{
    Fixture *f = *state;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_STRUCTURED_REPLY, NULL);
    option(f, NBD_OPT_SET_META_CONTEXT, payload("s4s", "a", 1u, "base:allocation"));
    assert_int_equal(f->hs.contexts, 1);
    option(f, NBD_OPT_GO, payload("s2", "b", 0u));
    assert_int_equal(f->hs.contexts, 0);
}

/* A selection that fails, or of nothing, undoes the one before. */
static void contexts_are_replaced(void **state)
{
    Fixture *f = *state;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_STRUCTURED_REPLY, NULL);
    option(f, NBD_OPT_SET_META_CONTEXT, payload("s4s", "a", 1u, "base:allocation"));
    option(f, NBD_OPT_SET_META_CONTEXT, payload("s4", "a", 2u));
    expect_only(f, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
    assert_int_equal(f->hs.contexts, 0);
    option(f, NBD_OPT_SET_META_CONTEXT, payload("s4s", "a", 1u, "base:allocation"));
    option(f, NBD_OPT_SET_META_CONTEXT, payload("s4", "a", 0u));
    expect_only(f, NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
    assert_int_equal(f->hs.contexts, 0);
}

static void refusals(void **state)
{
    Fixture *f = *state;

    nbd_handshake_client_flags(&f->hs, 3);
    option(f, NBD_OPT_STARTTLS, NULL);
    expect_only(f, NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY);
    option(f, 4711, payload("s", "whatever"));
    expect_only(f, 4711, NBD_REP_ERR_UNSUP);
    g_byte_array_set_size(f->hs.out, 0);
    f->at = 0;
    nbd_handshake_option_too_big(&f->hs, NBD_OPT_GO);
    expect_only(f, NBD_OPT_GO, NBD_REP_ERR_TOO_BIG);
    assert_int_equal(f->hs.state, NBD_HS_OPTIONS);
    option(f, NBD_OPT_ABORT, NULL);
    expect_only(f, NBD_OPT_ABORT, NBD_REP_ACK);
    assert_int_equal(f->hs.state, NBD_HS_CLOSE);
}

/* Without "fixed newstyle" a client knows one option. */
static void old_client(void **state)
{
    Fixture *f = *state;

    nbd_handshake_client_flags(&f->hs, 0);
    option(f, NBD_OPT_LIST, NULL);
    assert_int_equal(f->hs.state, NBD_HS_CLOSE);
    assert_int_equal(f->hs.out->len, 0);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(greeting),
        T(unknown_client_flags_close),
        T(go),
        T(block_size_only_binds_who_asked),
        T(info_goes_on),
        T(go_malformed),
        T(structured_replies_offer_df),
        T(export_name),
        T(export_name_unknown_closes),
        T(list),
        T(contexts),
        T(contexts_are_of_one_export),
        T(contexts_are_replaced),
        T(refusals),
        T(old_client),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
