/*
 * Sectors encrypted and decrypted: a cipher, a mode, and where the initialisation vector of a sector comes from.
 *
 * Plain computation, and constant once made: any number of threads may use one at a time.
 */
#pragma once
#include "block/util/error.h"
#include "qapi/types.h"
#include <stddef.h>
#include <stdint.h>

#define CIPHER_SECTOR  512
#define CIPHER_KEY_MAX 64 /* bytes */

typedef struct CipherSpec {
    QCryptoCipherAlgorithm alg;
    QCryptoCipherMode mode;
    QCryptoIVGenAlgorithm ivgen;
    QCryptoHashAlgorithm ivgen_hash; /* essiv */
} CipherSpec;

typedef struct Cipher Cipher;

/* Bytes of key that the cipher takes in this mode. */
size_t cipher_key_size(QCryptoCipherAlgorithm alg, QCryptoCipherMode mode);
/* Do the parts go together? */
bool cipher_spec_check(const CipherSpec *spec, GError **error);
/* @key has cipher_key_size() bytes; it is copied. */
Cipher *cipher_new(const CipherSpec *spec, const uint8_t *key, GError **error);
void cipher_free(Cipher *cipher); /* takes NULL */

/* @bytes, whole sectors, of which the first has the number @sector. @in may be @out; no other overlap. */
void cipher_encrypt(const Cipher *cipher, uint64_t sector, const uint8_t *in, uint8_t *out, size_t bytes);
void cipher_decrypt(const Cipher *cipher, uint64_t sector, const uint8_t *in, uint8_t *out, size_t bytes);
/* How many bytes this takes less time for than handing the work to another thread does. */
size_t cipher_inline_bytes(const Cipher *cipher);

/* AES-256-CBC of @bytes, a multiple of 16, with @key of 32 and @iv of 16 bytes: how secrets are kept from each other.
 */
void cipher_decrypt_secret(const uint8_t *key, const uint8_t *iv, uint8_t *buf, size_t bytes);
