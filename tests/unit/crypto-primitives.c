/* Hashes, PBKDF2, ciphers and the splitter against published values and against nettle's own, slower, ways. */
#include "block/crypto/af.h"
#include "block/crypto/cipher.h"
#include "block/crypto/hash.h"
#include "block/crypto/wipe.h"
#include "block/util/bytes.h"
#include <nettle/aes.h>
#include <nettle/xts.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

static void assert_hex(const uint8_t *data, size_t size, const char *hex)
{
    g_autoptr(GString) text = g_string_new(NULL);

    for (size_t i = 0; i < size; i++)
        g_string_append_printf(text, "%02x", data[i]);
    assert_string_equal(text->str, hex);
}

static void from_hex(const char *hex, uint8_t *out)
{
    for (; hex[0] && hex[1]; hex += 2)
        *out++ = (uint8_t)(g_ascii_xdigit_value(hex[0]) << 4 | g_ascii_xdigit_value(hex[1]));
}

static void test_hash(void **state)
{
    static const struct {
        const char *name, *hex;
    } of_abc[] = {
        {"md5", "900150983cd24fb0d6963f7d28e17f72"},
        {"sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"},
        {"sha224", "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"},
        {"sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"sha384", "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7"},
        {"sha512", "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
                   "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"},
        {"ripemd160", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"},
    };
    uint8_t out[HASH_MAX_BYTES];
    QCryptoHashAlgorithm alg;

    for (size_t i = 0; i < G_N_ELEMENTS(of_abc); i++) {
        assert_true(hash_find(of_abc[i].name, &alg));
        assert_int_equal(hash_size(alg) * 2, strlen(of_abc[i].hex));
        hash_digest(alg, "a", 1, "bc", 2, out);
        assert_hex(out, hash_size(alg), of_abc[i].hex);
        hash_digest(alg, "abc", 3, NULL, 0, out);
        assert_hex(out, hash_size(alg), of_abc[i].hex);
    }
    assert_false(hash_find("whirlpool", &alg));
    assert_false(hash_find("", &alg));
}

static void derive(QCryptoHashAlgorithm alg, const char *password, const char *salt, uint32_t n, size_t size,
                   const char *hex)
{
    Pbkdf2 p = {alg, password, salt, strlen(password), strlen(salt), n};
    uint8_t out[64];

    assert_true(pbkdf2(&p, out, size, NULL));
    assert_hex(out, size, hex);
}

static void test_pbkdf2(void **state)
{
    /* RFC 6070 */
    derive(Q_CRYPTO_HASH_ALGORITHM_SHA1, "password", "salt", 1, 20, "0c60c80f961f0e71f3a9b524af6012062fe037a6");
    derive(Q_CRYPTO_HASH_ALGORITHM_SHA1, "password", "salt", 4096, 20, "4b007901b765489abead49d926f721d065a429c1");
    derive(Q_CRYPTO_HASH_ALGORITHM_SHA1, "passwordPASSWORDpassword", "saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096, 25,
           "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
    /* RFC 7914 */
    derive(Q_CRYPTO_HASH_ALGORITHM_SHA256, "passwd", "salt", 1, 64,
           "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"
           "49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783");
}

static void test_pbkdf2_time(void **state)
{
    Pbkdf2 p = {Q_CRYPTO_HASH_ALGORITHM_SHA256, "x", "y", 1, 1, UINT32_MAX};
    int64_t ns = 1000000;
    uint8_t out[32];

    assert_false(pbkdf2(&p, out, sizeof(out), &ns));
    assert_true(ns <= 0);
    ns = INT64_C(60) * 1000000000;
    p.iterations = 2;
    assert_true(pbkdf2(&p, out, sizeof(out), &ns));
    assert_true(ns > INT64_C(50) * 1000000000 && ns < INT64_C(60) * 1000000000);
    uint32_t slow = pbkdf2_iterations(Q_CRYPTO_HASH_ALGORITHM_SHA256, 64, 50);
    assert_true(slow > 1000);
    assert_int_equal(pbkdf2_iterations(Q_CRYPTO_HASH_ALGORITHM_SHA256, 20, UINT64_C(1) << 40), UINT32_MAX);
}

static void fill(uint8_t *buf, size_t size, unsigned seed)
{
    for (size_t i = 0; i < size; i++) {
        seed = seed * 1103515245 + 12345;
        buf[i] = (uint8_t)(seed >> 16);
    }
}

static Cipher *make(QCryptoCipherAlgorithm alg, QCryptoCipherMode mode, QCryptoIVGenAlgorithm ivgen, const uint8_t *key)
{
    CipherSpec spec = {alg, mode, ivgen, Q_CRYPTO_HASH_ALGORITHM_SHA256};
    g_autoptr(GError) error = NULL;
    Cipher *c = cipher_new(&spec, key, &error);

    if (!c)
        fail_msg("%s", error->message);
    return c;
}

static void test_xts(void **state)
{
    uint8_t key[64], plain[8 * CIPHER_SECTOR], ours[sizeof(plain)], theirs[sizeof(plain)], iv[16];
    struct xts_aes128_key x128;
    struct xts_aes256_key x256;
    Cipher *c;

    /* IEEE 1619, vector 4: its beginning. */
    from_hex("2718281828459045235360287471352631415926535897932384626433832795", key);
    for (size_t i = 0; i < CIPHER_SECTOR; i++)
        plain[i] = (uint8_t)i;
    c = make(Q_CRYPTO_CIPHER_ALGORITHM_AES_128, Q_CRYPTO_CIPHER_MODE_XTS, Q_CRYPTO_IV_GEN_ALGORITHM_PLAIN64, key);
    cipher_encrypt(c, 0, plain, ours, CIPHER_SECTOR);
    assert_hex(ours, 32, "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c");
    /* Any number of sectors at once, any sector number. */
    fill(plain, sizeof(plain), 7);
    xts_aes128_set_encrypt_key(&x128, key);
    for (uint64_t sector = 0; sector < 8; sector++) {
        memset(iv, 0, sizeof(iv));
        store_le64(iv, sector + UINT64_C(0xfffffffffd));
        xts_aes128_encrypt_message(&x128, iv, CIPHER_SECTOR, theirs + sector * CIPHER_SECTOR,
                                   plain + sector * CIPHER_SECTOR);
    }
    for (size_t n = 1; n <= 8; n++) {
        cipher_encrypt(c, UINT64_C(0xfffffffffd), plain, ours, n * CIPHER_SECTOR);
        assert_memory_equal(ours, theirs, n * CIPHER_SECTOR);
        cipher_decrypt(c, UINT64_C(0xfffffffffd), ours, ours, n * CIPHER_SECTOR);
        assert_memory_equal(ours, plain, n * CIPHER_SECTOR);
    }
    cipher_free(c);
    fill(key, sizeof(key), 8);
    xts_aes256_set_encrypt_key(&x256, key);
    memset(iv, 0, sizeof(iv));
    iv[0] = 5;
    xts_aes256_encrypt_message(&x256, iv, CIPHER_SECTOR, theirs, plain);
    c = make(Q_CRYPTO_CIPHER_ALGORITHM_AES_256, Q_CRYPTO_CIPHER_MODE_XTS, Q_CRYPTO_IV_GEN_ALGORITHM_PLAIN, key);
    cipher_encrypt(c, (UINT64_C(1) << 32) + 5, plain, ours, CIPHER_SECTOR); /* 32 bits of the number count */
    assert_memory_equal(ours, theirs, CIPHER_SECTOR);
    cipher_free(c);
}

/* CBC and CTR from their definitions, ESSIV from its own. */
static void test_modes(void **state)
{
    uint8_t key[32], plain[CIPHER_SECTOR], ours[CIPHER_SECTOR], iv[16] = {9}, block[16], salt[32];
    struct aes256_ctx aes, essiv;
    Cipher *c;

    fill(key, sizeof(key), 1);
    fill(plain, sizeof(plain), 2);
    aes256_set_encrypt_key(&aes, key);
    hash_digest(Q_CRYPTO_HASH_ALGORITHM_SHA256, key, sizeof(key), NULL, 0, salt);
    aes256_set_encrypt_key(&essiv, salt);

    c = make(Q_CRYPTO_CIPHER_ALGORITHM_AES_256, Q_CRYPTO_CIPHER_MODE_CBC, Q_CRYPTO_IV_GEN_ALGORITHM_ESSIV, key);
    cipher_encrypt(c, 9, plain, ours, CIPHER_SECTOR);
    aes256_encrypt(&essiv, 16, block, iv);
    for (size_t at = 0; at < CIPHER_SECTOR; at += 16) {
        for (size_t i = 0; i < 16; i++)
            block[i] ^= plain[at + i];
        aes256_encrypt(&aes, 16, block, block);
        assert_memory_equal(block, ours + at, 16);
    }
    cipher_free(c);

    c = make(Q_CRYPTO_CIPHER_ALGORITHM_AES_256, Q_CRYPTO_CIPHER_MODE_CTR, Q_CRYPTO_IV_GEN_ALGORITHM_PLAIN64, key);
    cipher_encrypt(c, 9, plain, ours, CIPHER_SECTOR);
    aes256_encrypt(&aes, 16, block, iv);
    for (size_t i = 0; i < 16; i++)
        assert_int_equal(block[i] ^ plain[i], ours[i]);
    cipher_free(c);

    c = make(Q_CRYPTO_CIPHER_ALGORITHM_AES_256, Q_CRYPTO_CIPHER_MODE_ECB, Q_CRYPTO_IV_GEN_ALGORITHM_PLAIN64, key);
    cipher_encrypt(c, 9, plain, ours, CIPHER_SECTOR);
    aes256_encrypt(&aes, 16, block, plain + 496);
    assert_memory_equal(block, ours + 496, 16);
    cipher_free(c);
}

static void test_round_trips(void **state)
{
    uint8_t key[64], plain[6 * CIPHER_SECTOR], out[sizeof(plain)];
    unsigned made = 0;

    fill(key, sizeof(key), 3);
    fill(plain, sizeof(plain), 4);
    for (int alg = 0; alg < Q_CRYPTO_CIPHER_ALGORITHM__MAX; alg++)
        for (int mode = 0; mode < Q_CRYPTO_CIPHER_MODE__MAX; mode++)
            for (int ivgen = 0; ivgen < Q_CRYPTO_IV_GEN_ALGORITHM__MAX; ivgen++) {
                CipherSpec spec = {(QCryptoCipherAlgorithm)alg, (QCryptoCipherMode)mode, (QCryptoIVGenAlgorithm)ivgen,
                                   Q_CRYPTO_HASH_ALGORITHM_SHA256};
                g_autoptr(GError) error = NULL;
                Cipher *c = cipher_new(&spec, key, &error);
                if (!c) {
                    assert_int_equal(alg, Q_CRYPTO_CIPHER_ALGORITHM_CAST5_128);
                    assert_non_null(error);
                    continue;
                }
                made++;
                cipher_encrypt(c, 1000, plain, out, sizeof(plain));
                assert_memory_not_equal(out, plain, sizeof(plain));
                /* Sector by sector it is the same. */
                for (size_t s = 6; s-- > 0;)
                    cipher_decrypt(c, 1000 + s, out + s * CIPHER_SECTOR, out + s * CIPHER_SECTOR, CIPHER_SECTOR);
                assert_memory_equal(out, plain, sizeof(plain));
                assert_true(cipher_inline_bytes(c) >= CIPHER_SECTOR);
                cipher_free(c);
            }
    assert_int_equal(made, 9 * 4 * 3 + 3 * 2);
    cipher_free(NULL);
}

static void test_af(void **state)
{
    uint8_t key[64], back[64], *stripes = g_malloc(64 * 4000);

    fill(key, sizeof(key), 5);
    for (size_t size = 16; size <= 64; size += 8) {
        af_split(Q_CRYPTO_HASH_ALGORITHM_SHA1, key, size, 4000, stripes);
        af_merge(Q_CRYPTO_HASH_ALGORITHM_SHA1, stripes, size, 4000, back);
        assert_memory_equal(key, back, size);
        stripes[1999 * size] ^= 1; /* all of it is needed */
        af_merge(Q_CRYPTO_HASH_ALGORITHM_SHA1, stripes, size, 4000, back);
        assert_memory_not_equal(key, back, size);
    }
    g_free(stripes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hash), cmocka_unit_test(test_pbkdf2), cmocka_unit_test(test_pbkdf2_time),
        cmocka_unit_test(test_xts),  cmocka_unit_test(test_modes),  cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_af),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
