/*
 * LUKS version 1: the header, its key slots, and the master key that they hold.
 *
 * A header names cipher and hash, says where the data begins and keeps a digest of the master key. Each of eight slots
 * may hold the master key, split into stripes (af.h) and encrypted with a key that PBKDF2 makes of a password.
 *
 * Nothing in a header is trusted: sizes and places are checked before anything is read or derived, and opening takes
 * LUKS_UNLOCK_NS of processor time at most, whatever a header asks for. PBKDF2 runs on worker threads.
 *
 * Order of writing: a new slot's material is durable before the header that declares the slot active; the header that
 * declares a slot inactive is durable before its material is overwritten. So after a crash at any time a slot either
 * unlocks or is inactive.
 */
#pragma once
#include "block/crypto/cipher.h"
#include "block/crypto/secret.h"

#define LUKS_HEADER_BYTES   592
#define LUKS_SLOTS          8
#define LUKS_STRIPES        4000                       /* what everybody has */
#define LUKS_MAX_ITERATIONS (UINT32_C(1) << 28)        /* of a slot or the digest */
#define LUKS_UNLOCK_NS      (60 * INT64_C(1000000000)) /* processor time */
#define LUKS_ITER_TIME      2000                       /* ms */
#define LUKS_MAX_ITER_TIME  600000                     /* ms */
#define LUKS_DIGEST_BYTES   20
#define LUKS_SALT_BYTES     32

typedef struct LuksSlot {
    bool active;
    uint32_t iterations;
    uint32_t stripes;
    uint64_t offset; /* bytes, from the header on */
    uint8_t salt[LUKS_SALT_BYTES];
} LuksSlot;

typedef struct LuksHeader {
    CipherSpec cipher;
    QCryptoHashAlgorithm hash;
    uint64_t payload; /* bytes, from the header on */
    uint32_t key_bytes;
    uint32_t digest_iterations;
    uint8_t digest[LUKS_DIGEST_BYTES], digest_salt[LUKS_SALT_BYTES];
    char uuid[41];
    LuksSlot slots[LUKS_SLOTS];
} LuksHeader;

/* Where the header is kept; offsets from its beginning, in bytes. 0 or -errno. */
typedef struct LuksIo {
    int (*co_read)(void *opaque, uint64_t offset, size_t bytes, void *buf);
    int (*co_write)(void *opaque, uint64_t offset, size_t bytes, const void *buf);
    int (*co_flush)(void *opaque);
    void *opaque;
} LuksIo;

/* What a volume is made with; zero-initialise and let luks_options_default() fill in what is open. */
typedef struct LuksOptions {
    CipherSpec cipher;
    QCryptoHashAlgorithm hash;
    uint64_t iter_time; /* ms of PBKDF2 */
} LuksOptions;

/* AES-256-XTS, plain64, SHA-256, two seconds, where @o does not say otherwise. */
bool luks_options(const QCryptoBlockCreateOptionsLUKS *o, LuksOptions *ret, GError **error);

/* Parses LUKS_HEADER_BYTES of @buf. Key material must lie before the data and within the first @area bytes. */
bool luks_parse(LuksHeader *header, const uint8_t *buf, uint64_t area, GError **error);
/* And back: all bytes of @buf. */
void luks_store(const LuksHeader *header, uint8_t *buf);
/* Reads and parses. */
bool luks_co_load(LuksHeader *header, const LuksIo *io, uint64_t area, GError **error);

/* Finds the slot that @password unlocks. @key gets the master key, key_bytes of it; *@ret_slot (may be NULL) the slot.
 */
bool luks_co_unlock(const LuksHeader *header, const LuksIo *io, const char *password, uint8_t *key, unsigned *ret_slot,
                    GError **error);
/* Reads the header, unlocks it and makes the cipher; NULL with @error. */
Cipher *luks_co_open(LuksHeader *header, const LuksIo *io, uint64_t area, const char *password, GError **error);
/* How many bytes before the data a volume made with @o takes; false with @error: there is no such volume. */
bool luks_create_bytes(const QCryptoBlockCreateOptionsLUKS *o, uint64_t *ret, GError **error);
/* Makes a header with one password, durably. */
bool luks_co_create(const LuksIo *io, const QCryptoBlockCreateOptionsLUKS *o, const char *password, GError **error);
/* Lays a header out: @ret has everything but slots in use. Nothing is written. @key gets a new master key. Takes about
 * an eighth of the iteration time. */
bool luks_co_format(LuksHeader *ret, const LuksOptions *options, uint8_t *key, GError **error);
/* Writes the whole header, key material of no slot. Not flushed. */
int luks_co_write(const LuksHeader *header, const LuksIo *io);
/* Makes @slot hold @key under @password, durably. */
bool luks_co_fill_slot(LuksHeader *header, const LuksIo *io, unsigned slot, const char *password, const uint8_t *key,
                       uint64_t iter_time, GError **error);
/* Empties @slot, durably. */
bool luks_co_erase_slot(LuksHeader *header, const LuksIo *io, unsigned slot, GError **error);
/* x-blockdev-amend: fills or empties slots as @o says. Passwords come from @secrets. */
bool luks_co_amend(LuksHeader *header, const LuksIo *io, SecretStore *secrets, const char *key_secret,
                   const QCryptoBlockAmendOptionsLUKS *o, bool force, GError **error);

/* For queries; the caller's. */
QCryptoBlockInfoLUKS *luks_info(const LuksHeader *header);
