/*
 * Hash functions by nettle.
 */
#include "block/crypto/hash.h"
#include "block/crypto/wipe.h"
#include "block/util/bytes.h"
#include <nettle/hmac.h>
#include <nettle/nettle-meta.h>
#include <nettle/ripemd160.h>
#include <time.h>

typedef union HashState {
    struct md5_ctx md5;
    struct sha1_ctx sha1;
    struct sha256_ctx sha256;
    struct sha512_ctx sha512;
    struct ripemd160_ctx ripemd160;
} HashState;

static const struct nettle_hash *const hashes[Q_CRYPTO_HASH_ALGORITHM__MAX] = {
    [Q_CRYPTO_HASH_ALGORITHM_MD5] = &nettle_md5,
    [Q_CRYPTO_HASH_ALGORITHM_SHA1] = &nettle_sha1,
    [Q_CRYPTO_HASH_ALGORITHM_SHA224] = &nettle_sha224,
    [Q_CRYPTO_HASH_ALGORITHM_SHA256] = &nettle_sha256,
    [Q_CRYPTO_HASH_ALGORITHM_SHA384] = &nettle_sha384,
    [Q_CRYPTO_HASH_ALGORITHM_SHA512] = &nettle_sha512,
    [Q_CRYPTO_HASH_ALGORITHM_RIPEMD160] = &nettle_ripemd160,
};

size_t hash_size(QCryptoHashAlgorithm alg)
{
    return hashes[alg]->digest_size;
}

bool hash_find(const char *name, QCryptoHashAlgorithm *ret)
{
    for (int i = 0; i < Q_CRYPTO_HASH_ALGORITHM__MAX; i++)
        if (strcmp(qapi_QCryptoHashAlgorithm_str((QCryptoHashAlgorithm)i), name) == 0) {
            *ret = (QCryptoHashAlgorithm)i;
            return true;
        }
    return false;
}

void hash_digest(QCryptoHashAlgorithm alg, const void *a, size_t a_size, const void *b, size_t b_size, uint8_t *ret)
{
    const struct nettle_hash *hash = hashes[alg];
    HashState state;

    g_assert(hash->context_size <= sizeof(state));
    hash->init(&state);
    hash->update(&state, a_size, a);
    if (b_size)
        hash->update(&state, b_size, b);
    hash->digest(&state, hash->digest_size, ret);
    explicit_bzero(&state, sizeof(state));
}

/* ---- PBKDF2 (RFC 8018) ------------------------------------------------------------------------------------------ */

#define CLOCK_EVERY 16384 /* iterations between looks at the clock */

typedef struct Hmac {
    const struct nettle_hash *hash;
    HashState outer, inner, state;
} Hmac;

static int64_t cpu_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void hmac_feed(Hmac *h, const void *data, size_t size)
{
    hmac_update(&h->state, h->hash, size, data);
}

/* The authentication code, after which the next message can begin. */
static void hmac_take(Hmac *h, uint8_t *ret)
{
    hmac_digest(&h->outer, &h->inner, &h->state, h->hash, h->hash->digest_size, ret);
}

/* One block of output, a digest long. */
static bool derive_block(Hmac *h, const Pbkdf2 *p, uint32_t index, uint8_t *ret, int64_t deadline)
{
    size_t size = h->hash->digest_size;
    uint8_t u[HASH_MAX_BYTES], number[4];

    store_be32(number, index);
    hmac_feed(h, p->salt, p->salt_size);
    hmac_feed(h, number, sizeof(number));
    hmac_take(h, u);
    memcpy(ret, u, size);
    for (uint32_t i = 1; i < p->iterations; i++) {
        if (i % CLOCK_EVERY == 0 && cpu_now() > deadline)
            return false;
        hmac_feed(h, u, size);
        hmac_take(h, u);
        for (size_t k = 0; k < size; k++)
            ret[k] ^= u[k];
    }
    explicit_bzero(u, sizeof(u));
    return true;
}

bool pbkdf2(const Pbkdf2 *p, uint8_t *ret, size_t size, int64_t *cpu_ns)
{
    Hmac h = {.hash = hashes[p->alg]};
    int64_t start = cpu_now(), deadline = cpu_ns ? start + *cpu_ns : INT64_MAX;
    uint8_t block[HASH_MAX_BYTES];
    uint32_t index = 1;
    bool ok = true;

    hmac_set_key(&h.outer, &h.inner, &h.state, h.hash, p->password_size, p->password);
    while (size && ok) {
        size_t n = MIN(size, h.hash->digest_size);
        ok = derive_block(&h, p, index++, block, deadline);
        memcpy(ret, block, n);
        ret += n;
        size -= n;
    }
    explicit_bzero(&h, sizeof(h));
    explicit_bzero(block, sizeof(block));
    if (cpu_ns)
        *cpu_ns -= cpu_now() - start;
    return ok;
}

uint32_t pbkdf2_iterations(QCryptoHashAlgorithm alg, size_t size, uint64_t ms)
{
    const uint64_t ns = 1000000, want = u64_min(u64_max(ms, 5), 100) * ns;
    Pbkdf2 p = {.alg = alg, .password = "password", .password_size = 8, .salt = "saltsaltsalt", .salt_size = 12};
    g_autofree uint8_t *out = g_malloc(size);
    uint64_t took;

    for (p.iterations = 1 << 10;; p.iterations *= 2) {
        int64_t start = cpu_now();
        pbkdf2(&p, out, size, NULL);
        took = (uint64_t)(cpu_now() - start);
        if (took >= want || p.iterations >= UINT32_C(1) << 30)
            break;
    }
    double n = (double)p.iterations * ((double)ms * (double)ns / (double)u64_max(took, 1));
    return n >= UINT32_MAX ? UINT32_MAX : (uint32_t)n;
}
