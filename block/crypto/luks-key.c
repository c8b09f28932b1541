/*
 * Key slots: passwords tried, slots filled and emptied. What takes long (PBKDF2, splitting, the encryption of the
 * stripes) runs on worker threads, on memory of its own.
 */
#include "block/aio/io.h"
#include "block/crypto/af.h"
#include "block/crypto/hash.h"
#include "block/crypto/luks-int.h"
#include "block/crypto/wipe.h"
#include "block/util/bytes.h"
#include <errno.h>

#define MIN_ITERATIONS 1000

/* One slot's work for a worker. */
typedef struct SlotWork {
    const LuksHeader *header;
    const LuksSlot *slot;
    const char *password;
    uint8_t *material; /* encrypted stripes */
    size_t material_bytes;
    uint8_t *key; /* the master key */
    int64_t *cpu_ns;
} SlotWork;

static size_t stripes_bytes(const LuksHeader *h)
{
    return (size_t)h->key_bytes * LUKS_STRIPES;
}

static bool key_digest(const LuksHeader *h, const uint8_t *key, uint8_t ret[LUKS_DIGEST_BYTES], int64_t *cpu_ns)
{
    Pbkdf2 p = {
        .alg = h->hash,
        .password = key,
        .password_size = h->key_bytes,
        .salt = h->digest_salt,
        .salt_size = LUKS_SALT_BYTES,
        .iterations = h->digest_iterations,
    };

    return pbkdf2(&p, ret, LUKS_DIGEST_BYTES, cpu_ns);
}

/* The cipher that the password gives for the slot's material. */
static int slot_cipher(const SlotWork *w, Cipher **ret)
{
    uint8_t key[CIPHER_KEY_MAX];
    Pbkdf2 p = {
        .alg = w->header->hash,
        .password = w->password,
        .password_size = strlen(w->password),
        .salt = w->slot->salt,
        .salt_size = LUKS_SALT_BYTES,
        .iterations = w->slot->iterations,
    };

    if (!pbkdf2(&p, key, w->header->key_bytes, w->cpu_ns))
        return -ETIMEDOUT;
    *ret = cipher_new(&w->header->cipher, key, NULL);
    explicit_bzero(key, sizeof(key));
    return *ret ? 0 : -EINVAL;
}

/* 0: the password unlocks the slot; -EACCES: it does not. */
static int unlock_run(void *opaque)
{
    SlotWork *w = opaque;
    const LuksHeader *h = w->header;
    uint8_t digest[LUKS_DIGEST_BYTES];
    Cipher *cipher = NULL;
    int ret = slot_cipher(w, &cipher);

    if (ret < 0)
        return ret;
    cipher_decrypt(cipher, 0, w->material, w->material, w->material_bytes);
    cipher_free(cipher);
    af_merge(h->hash, w->material, h->key_bytes, LUKS_STRIPES, w->key);
    if (!key_digest(h, w->key, digest, w->cpu_ns))
        return -ETIMEDOUT;
    return memcmp(digest, h->digest, sizeof(digest)) == 0 ? 0 : -EACCES;
}

static int fill_run(void *opaque)
{
    SlotWork *w = opaque;
    Cipher *cipher = NULL;
    int ret = slot_cipher(w, &cipher);

    if (ret < 0)
        return ret;
    memset(w->material, 0, w->material_bytes);
    af_split(w->header->hash, w->key, w->header->key_bytes, LUKS_STRIPES, w->material);
    cipher_encrypt(cipher, 0, w->material, w->material, w->material_bytes);
    cipher_free(cipher);
    return 0;
}

/* ---- unlocking -------------------------------------------------------------------------------------------------- */

int luks_co_try_slot(const LuksHeader *h, const LuksIo *io, unsigned slot, const char *password, uint8_t *key,
                     int64_t *cpu_ns)
{
    SlotWork w = {
        .header = h,
        .slot = &h->slots[slot],
        .password = password,
        .material_bytes = luks_material_bytes(h),
        .key = key,
        .cpu_ns = cpu_ns,
    };
    int ret;

    g_assert(w.material_bytes >= stripes_bytes(h));
    w.material = g_try_malloc(w.material_bytes);
    if (!w.material)
        return -ENOMEM;
    ret = io->co_read(io->opaque, w.slot->offset, w.material_bytes, w.material);
    if (ret == 0)
        ret = aio_co_worker(unlock_run, &w);
    wipe_free(w.material, w.material_bytes);
    return ret;
}

bool luks_co_unlock(const LuksHeader *h, const LuksIo *io, const char *password, uint8_t *key, unsigned *ret_slot,
                    GError **error)
{
    int64_t cpu_ns = LUKS_UNLOCK_NS;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        int ret = h->slots[i].active ? luks_co_try_slot(h, io, i, password, key, &cpu_ns) : -EACCES;
        if (ret == 0) {
            if (ret_slot)
                *ret_slot = i;
            return true;
        }
        if (ret == -ETIMEDOUT)
            return error_set(error,
                             "LUKS keyslot %u could not be tried: trying passwords may take %d seconds of "
                             "processor time altogether, and its header asks for more",
                             i, (int)(LUKS_UNLOCK_NS / 1000000000));
        if (ret != -EACCES)
            return error_set_errno(error, -ret, "Could not read LUKS keyslot %u", i);
    }
    return error_set(error, "Invalid password, cannot unlock any keyslot");
}

/* ---- making ----------------------------------------------------------------------------------------------------- */

typedef struct Calibration {
    QCryptoHashAlgorithm hash;
    size_t bytes;
    uint64_t ms;
    uint32_t iterations;
} Calibration;

static int calibrate_run(void *opaque)
{
    Calibration *c = opaque;
    uint32_t n = pbkdf2_iterations(c->hash, c->bytes, c->ms);

    c->iterations = CLAMP(n, MIN_ITERATIONS, LUKS_MAX_ITERATIONS);
    return 0;
}

static int digest_run(void *opaque)
{
    SlotWork *w = opaque;

    return key_digest(w->header, w->key, w->material, NULL) ? 0 : -EINVAL;
}

bool luks_co_format(LuksHeader *ret, const LuksOptions *o, uint8_t *key, GError **error)
{
    LuksHeader h = {
        .cipher = o->cipher,
        .hash = o->hash,
        .key_bytes = (uint32_t)cipher_key_size(o->cipher.alg, o->cipher.mode),
    };
    Calibration c = {.hash = o->hash, .bytes = LUKS_DIGEST_BYTES, .ms = u64_max(o->iter_time / 8, 1)};
    g_autofree char *uuid = g_uuid_string_random();
    SlotWork w = {.header = &h, .key = key, .material = h.digest};
    int err = aio_co_worker(calibrate_run, &c);

    luks_layout(&h);
    g_strlcpy(h.uuid, uuid, sizeof(h.uuid));
    crypto_random(key, h.key_bytes);
    crypto_random(h.digest_salt, sizeof(h.digest_salt));
    h.digest_iterations = c.iterations;
    if (err == 0)
        err = aio_co_worker(digest_run, &w);
    if (err < 0)
        return error_set_errno(error, -err, "Could not make a LUKS header");
    *ret = h;
    return true;
}

int luks_co_write(const LuksHeader *h, const LuksIo *io)
{
    uint8_t buf[LUKS_HEADER_BYTES];

    luks_store(h, buf);
    return io->co_write(io->opaque, 0, sizeof(buf), buf);
}

bool luks_co_load(LuksHeader *h, const LuksIo *io, uint64_t area, GError **error)
{
    uint8_t buf[LUKS_HEADER_BYTES];
    int ret = io->co_read(io->opaque, 0, sizeof(buf), buf);

    if (ret < 0)
        return error_set_errno(error, -ret, "Unable to read LUKS header");
    return luks_parse(h, buf, area, error);
}

Cipher *luks_co_open(LuksHeader *h, const LuksIo *io, uint64_t area, const char *password, GError **error)
{
    uint8_t key[CIPHER_KEY_MAX];
    Cipher *cipher = NULL;

    if (!luks_co_load(h, io, area, error))
        return NULL;
    if (luks_co_unlock(h, io, password, key, NULL, error))
        cipher = cipher_new(&h->cipher, key, error);
    explicit_bzero(key, sizeof(key));
    return cipher;
}

bool luks_create_bytes(const QCryptoBlockCreateOptionsLUKS *o, uint64_t *ret, GError **error)
{
    LuksOptions options;
    LuksHeader h = {0};

    if (!luks_options(o, &options, error))
        return false;
    h.key_bytes = (uint32_t)cipher_key_size(options.cipher.alg, options.cipher.mode);
    luks_layout(&h);
    *ret = h.payload;
    return true;
}

bool luks_co_create(const LuksIo *io, const QCryptoBlockCreateOptionsLUKS *o, const char *password, GError **error)
{
    uint8_t key[CIPHER_KEY_MAX];
    LuksOptions options;
    LuksHeader h;
    bool ok = luks_options(o, &options, error) && luks_co_format(&h, &options, key, error) &&
              luks_co_fill_slot(&h, io, 0, password, key, options.iter_time, error);

    explicit_bzero(key, sizeof(key));
    return ok;
}

/* ---- changing slots --------------------------------------------------------------------------------------------- */

/* The header with another state of one slot, durably. On failure it counts as not done. */
static int write_co_slot(LuksHeader *h, const LuksIo *io, unsigned slot, const LuksSlot *state)
{
    LuksHeader changed = *h;
    int ret;

    changed.slots[slot] = *state;
    ret = luks_co_write(&changed, io);
    if (ret == 0)
        ret = io->co_flush(io->opaque);
    if (ret == 0)
        *h = changed;
    return ret;
}

bool luks_co_fill_slot(LuksHeader *h, const LuksIo *io, unsigned slot, const char *password, const uint8_t *key,
                       uint64_t iter_time, GError **error)
{
    Calibration c = {.hash = h->hash, .bytes = h->key_bytes, .ms = iter_time};
    LuksSlot filled = h->slots[slot];
    uint8_t copy[CIPHER_KEY_MAX];
    SlotWork w = {
        .header = h,
        .slot = &filled,
        .password = password,
        .material_bytes = luks_material_bytes(h),
        .key = copy,
    };
    int ret = aio_co_worker(calibrate_run, &c);

    filled.active = true;
    filled.iterations = c.iterations;
    crypto_random(filled.salt, sizeof(filled.salt));
    memcpy(copy, key, h->key_bytes);
    w.material = g_try_malloc(w.material_bytes);
    if (!w.material)
        ret = -ENOMEM;
    if (ret == 0)
        ret = aio_co_worker(fill_run, &w);
    if (ret == 0)
        ret = io->co_write(io->opaque, filled.offset, w.material_bytes, w.material);
    if (ret == 0)
        ret = io->co_flush(io->opaque);
    if (ret == 0)
        ret = write_co_slot(h, io, slot, &filled);
    wipe_free(w.material, w.material_bytes);
    explicit_bzero(copy, sizeof(copy));
    return ret == 0 || error_set_errno(error, -ret, "Could not write LUKS keyslot %u", slot);
}

bool luks_co_erase_slot(LuksHeader *h, const LuksIo *io, unsigned slot, GError **error)
{
    size_t size = luks_material_bytes(h);
    g_autofree uint8_t *noise = g_try_malloc(size);
    LuksSlot empty = {.stripes = LUKS_STRIPES, .offset = h->slots[slot].offset};
    int ret = noise ? write_co_slot(h, io, slot, &empty) : -ENOMEM;

    /* What the disk remembers of the place may be more than one layer deep: several times, each of them durable. */
    for (int pass = 0; pass < 8 && ret == 0; pass++) {
        crypto_random(noise, size);
        ret = io->co_write(io->opaque, empty.offset, size, noise);
        if (ret == 0)
            ret = io->co_flush(io->opaque);
    }
    return ret == 0 || error_set_errno(error, -ret, "Could not erase LUKS keyslot %u", slot);
}
