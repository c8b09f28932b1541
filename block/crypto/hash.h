/*
 * Hash functions, and PBKDF2 on top of them. Plain computation: any thread.
 */
#pragma once
#include "qapi/types.h"
#include <stddef.h>
#include <stdint.h>

#define HASH_MAX_BYTES 64

/* Bytes of a digest. */
size_t hash_size(QCryptoHashAlgorithm alg);
/* As QMP and LUKS call it; false when there is no such function. */
bool hash_find(const char *name, QCryptoHashAlgorithm *ret);
/* The digest of two pieces, the second of which may be empty, into @ret (hash_size() bytes). */
void hash_digest(QCryptoHashAlgorithm alg, const void *a, size_t a_size, const void *b, size_t b_size, uint8_t *ret);

/* A password, a salt and an effort. */
typedef struct Pbkdf2 {
    QCryptoHashAlgorithm alg;
    const void *password, *salt;
    size_t password_size, salt_size;
    uint32_t iterations; /* > 0 */
} Pbkdf2;

/* Derives @size bytes. @cpu_ns: processor time that this thread may still take, which is what is left afterwards; NULL:
 * any. False when it was not enough; then nothing was derived. */
bool pbkdf2(const Pbkdf2 *p, uint8_t *ret, size_t size, int64_t *cpu_ns);
/* How many iterations take @ms of processor time here when @size bytes are derived, at most UINT32_MAX. Takes up to a
 * fifth of a second. */
uint32_t pbkdf2_iterations(QCryptoHashAlgorithm alg, size_t size, uint64_t ms);
