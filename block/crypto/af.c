/*
 * The splitter: stripe after stripe is added to an accumulator, which is hashed each time; the last stripe makes it
 * come out as the key.
 */
#include "block/crypto/af.h"
#include "block/crypto/hash.h"
#include "block/crypto/wipe.h"
#include "block/util/bytes.h"

static void add(uint8_t *to, const uint8_t *stripe, size_t size)
{
    for (size_t i = 0; i < size; i++)
        to[i] ^= stripe[i];
}

/* Each piece as long as a digest becomes its digest, the pieces numbered. */
static void diffuse(QCryptoHashAlgorithm alg, uint8_t *block, size_t size)
{
    uint8_t digest[HASH_MAX_BYTES], number[4];
    size_t step = hash_size(alg);

    for (uint32_t i = 0; i * step < size; i++) {
        size_t n = MIN(step, size - i * step);
        store_be32(number, i);
        hash_digest(alg, number, sizeof(number), block + i * step, n, digest);
        memcpy(block + i * step, digest, n);
    }
    explicit_bzero(digest, sizeof(digest));
}

/* All stripes but the last. */
static void accumulate(QCryptoHashAlgorithm alg, const uint8_t *stripes, size_t size, uint32_t n, uint8_t *ret)
{
    memset(ret, 0, size);
    for (uint32_t i = 0; i + 1 < n; i++) {
        add(ret, stripes + i * size, size);
        diffuse(alg, ret, size);
    }
}

void af_split(QCryptoHashAlgorithm alg, const uint8_t *key, size_t size, uint32_t stripes, uint8_t *out)
{
    uint8_t *last = out + (size_t)(stripes - 1) * size;

    crypto_random(out, (size_t)(stripes - 1) * size);
    accumulate(alg, out, size, stripes, last);
    add(last, key, size);
}

void af_merge(QCryptoHashAlgorithm alg, const uint8_t *in, size_t size, uint32_t stripes, uint8_t *key)
{
    accumulate(alg, in, size, stripes, key);
    add(key, in + (size_t)(stripes - 1) * size, size);
}
