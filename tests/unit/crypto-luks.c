/* LUKS headers: made, unlocked, changed under power cuts, and hostile ones refused. */
#include "block/aio/coroutine.h"
#include "block/aio/loop.h"
#include "block/crypto/luks.h"
#include "block/util/bytes.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define AREA    (3 << 20)
#define PENDING 16

static void __attribute__((constructor)) abort_on_failure(void)
{
    setenv("CMOCKA_TEST_ABORT", "1", 1);
}

/* A disk with a volatile cache: writes since the last flush may be lost, each by itself. */
typedef struct Disk {
    uint8_t *now, *durable;
    struct {
        uint64_t offset;
        size_t bytes;
        uint8_t *data;
    } pending[PENDING];
    unsigned n;
    unsigned states; /* that were judged */
    void (*co_judge)(const uint8_t *image);
} Disk;

static Loop *loop;
static Disk disk;

static void apply(uint8_t *image, unsigned i)
{
    memcpy(image + disk.pending[i].offset, disk.pending[i].data, disk.pending[i].bytes);
}

/* Every state that a power cut may leave here. */
static void judge_co_all(void)
{
    for (unsigned set = 0; disk.co_judge && set < 1u << disk.n; set++) {
        g_autofree uint8_t *image = g_memdup2(disk.durable, AREA);
        for (unsigned i = 0; i < disk.n; i++)
            if (set >> i & 1)
                apply(image, i);
        disk.states++;
        disk.co_judge(image);
    }
}

static int disk_co_read(void *opaque, uint64_t offset, size_t bytes, void *buf)
{
    const uint8_t *image = opaque;

    if (offset + bytes > AREA)
        return -EIO;
    memcpy(buf, image + offset, bytes);
    return 0;
}

static int disk_co_write(void *opaque, uint64_t offset, size_t bytes, const void *buf)
{
    assert_true(offset + bytes <= AREA);
    assert_true(disk.n < PENDING);
    memcpy(disk.now + offset, buf, bytes);
    disk.pending[disk.n].offset = offset;
    disk.pending[disk.n].bytes = bytes;
    disk.pending[disk.n++].data = g_memdup2(buf, bytes);
    judge_co_all();
    return 0;
}

static int disk_co_flush(void *opaque)
{
    for (unsigned i = 0; i < disk.n; i++) {
        apply(disk.durable, i);
        g_free(disk.pending[i].data);
    }
    disk.n = 0;
    judge_co_all();
    return 0;
}

static LuksIo io_on(uint8_t *image)
{
    return (LuksIo){.co_read = disk_co_read, .co_write = disk_co_write, .co_flush = disk_co_flush, .opaque = image};
}

static void test_co_entry(void *opaque)
{
    void (*const *body)(void) = opaque;

    (*body)();
    loop_stop(loop);
}

static void run(void (*body)(void))
{
    loop = loop_new(NULL);
    disk = (Disk){.now = g_malloc0(AREA), .durable = g_malloc0(AREA)};
    coroutine_start(loop, test_co_entry, &body);
    while (coroutine_count(loop))
        loop_run(loop);
    for (unsigned i = 0; i < disk.n; i++)
        g_free(disk.pending[i].data);
    g_free(disk.now);
    g_free(disk.durable);
    loop_free(loop);
}

#define LUKS_TEST(name)                                                                                                \
    static void name(void **state)                                                                                     \
    {                                                                                                                  \
        run(name##_co_body);                                                                                           \
    }

static const QCryptoBlockCreateOptionsLUKS quick = {.has_iter_time = true, .iter_time = 1};

static void must_co_create(const QCryptoBlockCreateOptionsLUKS *o, const char *password)
{
    LuksIo io = io_on(disk.now);
    g_autoptr(GError) error = NULL;

    if (!luks_co_create(&io, o, password, &error))
        fail_msg("%s", error->message);
}

/* The slot that the password unlocks, -1: none. @key may be NULL. */
static int unlock_co_image(const uint8_t *image, const char *password, uint8_t *key)
{
    LuksIo io = io_on((uint8_t *)image);
    g_autoptr(GError) error = NULL;
    uint8_t any[CIPHER_KEY_MAX];
    LuksHeader h;
    unsigned slot;

    if (!luks_co_load(&h, &io, AREA, &error))
        fail_msg("%s", error->message);
    if (luks_co_unlock(&h, &io, password, key ? key : any, &slot, &error))
        return (int)slot;
    assert_string_equal(error->message, "Invalid password, cannot unlock any keyslot");
    return -1;
}

static void test_round_trip_co_body(void)
{
    uint8_t key[CIPHER_KEY_MAX], again[CIPHER_KEY_MAX];
    LuksIo io = io_on(disk.now);
    LuksHeader h;
    uint64_t bytes;

    must_co_create(&quick, "one");
    assert_true(luks_create_bytes(&quick, &bytes, NULL));
    assert_int_equal(bytes, 2068480);
    assert_int_equal(unlock_co_image(disk.durable, "one", key), 0);
    assert_int_equal(unlock_co_image(disk.durable, "", NULL), -1);
    assert_int_equal(unlock_co_image(disk.durable, "one ", NULL), -1);
    assert_true(luks_co_load(&h, &io, AREA, NULL));
    assert_int_equal(h.payload, bytes);
    assert_true(luks_co_fill_slot(&h, &io, 7, "two", key, 1, NULL));
    assert_int_equal(unlock_co_image(disk.durable, "two", again), 7);
    assert_memory_equal(key, again, h.key_bytes);
    assert_true(luks_co_erase_slot(&h, &io, 0, NULL));
    assert_int_equal(unlock_co_image(disk.durable, "one", NULL), -1);
    assert_int_equal(unlock_co_image(disk.durable, "two", NULL), 7);
    /* As bytes and back it is the same header. */
    uint8_t buf[LUKS_HEADER_BYTES];
    luks_store(&h, buf);
    assert_memory_equal(buf, disk.durable, sizeof(buf));
}
LUKS_TEST(test_round_trip)

static void test_odd_keys_co_body(void)
{
    QCryptoBlockCreateOptionsLUKS o = quick;

    /* 24 bytes times 4000 are no whole sectors. */
    o.has_cipher_alg = o.has_cipher_mode = true;
    o.cipher_alg = Q_CRYPTO_CIPHER_ALGORITHM_AES_192;
    o.cipher_mode = Q_CRYPTO_CIPHER_MODE_CBC;
    must_co_create(&o, "x");
    assert_int_equal(unlock_co_image(disk.durable, "x", NULL), 0);
}
LUKS_TEST(test_odd_keys)

/* ---- power cuts ------------------------------------------------------------------------------------------------- */

/* Whatever the header calls active unlocks, and "one" always does. */
static void judge_co_image(const uint8_t *image)
{
    static const char *const passwords[] = {"one", "two"};
    unsigned active = 0, unlocked = 0;
    g_autoptr(GError) error = NULL;
    LuksHeader h;

    if (!luks_parse(&h, image, AREA, &error))
        fail_msg("%s", error->message);
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        active += h.slots[i].active;
    assert_true(unlock_co_image(image, "one", NULL) >= 0);
    for (unsigned i = 0; i < G_N_ELEMENTS(passwords); i++)
        unlocked += unlock_co_image(image, passwords[i], NULL) >= 0;
    assert_int_equal(active, unlocked);
}

static void test_power_cuts_co_body(void)
{
    uint8_t key[CIPHER_KEY_MAX];
    LuksIo io = io_on(disk.now);
    LuksHeader h;

    must_co_create(&quick, "one");
    unlock_co_image(disk.durable, "one", key);
    assert_true(luks_co_load(&h, &io, AREA, NULL));
    disk.co_judge = judge_co_image;
    assert_true(luks_co_fill_slot(&h, &io, 3, "two", key, 1, NULL));
    assert_true(luks_co_erase_slot(&h, &io, 3, NULL));
    assert_true(disk.states > 20);
}
LUKS_TEST(test_power_cuts)

/* ---- hostile headers -------------------------------------------------------------------------------------------- */

static void refuse(size_t at, uint32_t value, unsigned bytes, const char *text)
{
    uint8_t buf[LUKS_HEADER_BYTES];
    g_autoptr(GError) error = NULL;
    LuksHeader h;

    memcpy(buf, disk.durable, sizeof(buf));
    if (bytes == 2)
        store_be16(buf + at, (uint16_t)value);
    else
        store_be32(buf + at, value);
    if (luks_parse(&h, buf, AREA, &error))
        fail_msg("%u at %zu was not refused", value, at);
    if (!strstr(error->message, text))
        fail_msg("'%s' does not say '%s'", error->message, text);
}

static void refuse_text(size_t at, const char *value, const char *text)
{
    uint8_t buf[LUKS_HEADER_BYTES];
    g_autoptr(GError) error = NULL;
    LuksHeader h;

    memcpy(buf, disk.durable, sizeof(buf));
    memset(buf + at, 0, 32);
    memcpy(buf + at, value, MIN(strlen(value), 32));
    if (luks_parse(&h, buf, AREA, &error))
        fail_msg("%s at %zu was not refused", value, at);
    if (!strstr(error->message, text))
        fail_msg("'%s' does not say '%s'", error->message, text);
}

static void test_hostile_co_body(void)
{
    must_co_create(&quick, "one");
    refuse(0, 0, 4, "Volume is not in LUKS format");
    refuse(6, 2, 2, "LUKS version 2 is not supported");
    refuse(6, 0, 2, "LUKS version 0 is not supported");
    refuse(104, 0, 4, "overlapping with the encrypted payload");
    refuse(104, 503, 4, "overlapping with the encrypted payload");
    for (uint32_t bytes = 0; bytes < 4096; bytes++)
        if (bytes != 32 && bytes != 48 && bytes != 64)
            refuse(108, bytes, 4, "takes no keys of");
    refuse(108, UINT32_MAX, 4, "takes no keys of");
    refuse(164, 0, 4, "iteration count 0");
    refuse(164, UINT32_MAX, 4, "iteration count 4294967295");
    refuse(208, 0, 4, "Keyslot 0 is corrupted (its state is 0x00000000)");
    refuse(212, 0, 4, "Keyslot 0 is corrupted (iteration count 0");
    refuse(212, (1u << 28) + 1, 4, "Keyslot 0 is corrupted (iteration count 268435457");
    refuse(248, 0, 4, "Keyslot 0 is overlapping with the LUKS header");
    refuse(248, 1, 4, "Keyslot 0 is overlapping with the LUKS header");
    refuse(248, UINT32_MAX, 4, "Keyslot 0 is overlapping with the encrypted payload");
    refuse(252, 0, 4, "Keyslot 0 is corrupted (stripes count 0 != 4000)");
    refuse(252, UINT32_MAX, 4, "Keyslot 0 is corrupted (stripes count 4294967295 != 4000)");
    refuse(248 + 48, 8, 4, "Keyslots 0 and 1 are overlapping");
    refuse(248 + 48, 499, 4, "Keyslots 0 and 1 are overlapping");
    refuse_text(8, "", "LUKS cipher '' is not supported");
    refuse_text(8, "rot13", "LUKS cipher 'rot13' is not supported");
    refuse_text(8, "aesaesaesaesaesaesaesaesaesaesaesaes", "is not supported");
    refuse_text(8, "\xff\xfe", "is not supported");
    refuse_text(8, "cast5", "cast5");
    refuse_text(40, "", "mode '' is not supported");
    refuse_text(40, "xts", "mode 'xts' is not supported");
    refuse_text(40, "xts-", "unknown IV generator ''");
    refuse_text(40, "lrw-plain64", "mode 'lrw-plain64' is not supported");
    refuse_text(40, "xts-benbi", "unknown IV generator 'benbi'");
    refuse_text(40, "xts-essiv", "a hash goes with 'essiv'");
    refuse_text(40, "xts-plain64:sha256", "a hash goes with 'essiv'");
    refuse_text(40, "xts-essiv:rot13", "LUKS hash 'rot13' is not supported");
    refuse_text(40, "xts-essiv:sha1", "'essiv' with hash 'sha1'");
    refuse_text(72, "whirlpool", "LUKS hash 'whirlpool' is not supported");
}
LUKS_TEST(test_hostile)

/* The area that is there counts, not what the header says of it. */
static void test_area_co_body(void)
{
    g_autoptr(GError) error = NULL;
    LuksHeader h;

    must_co_create(&quick, "one");
    assert_true(luks_parse(&h, disk.durable, 2068480, &error));
    assert_false(luks_parse(&h, disk.durable, 1000000, &error));
    assert_string_equal(error->message, "Keyslot 3 is overlapping with the encrypted payload");
}
LUKS_TEST(test_area)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_odd_keys), cmocka_unit_test(test_power_cuts),
        cmocka_unit_test(test_hostile),    cmocka_unit_test(test_area),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
