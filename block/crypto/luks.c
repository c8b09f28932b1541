/*
 * The header as bytes: big endian, with names for cipher and hash.
 */
#include "block/crypto/luks-int.h"
#include "block/crypto/hash.h"
#include "block/util/bytes.h"

#define MAGIC       "LUKS\xba\xbe"
#define MAGIC_BYTES 6
#define SLOT_ON     0x00ac71f3
#define SLOT_OFF    0x0000dead
#define ALIGN       4096 /* where slots and data begin */

/* Places of fields. */
enum {
    AT_VERSION = 6,
    AT_CIPHER = 8,
    AT_MODE = 40,
    AT_HASH = 72,
    AT_PAYLOAD = 104, /* sectors */
    AT_KEY_BYTES = 108,
    AT_DIGEST = 112,
    AT_DIGEST_SALT = 132,
    AT_DIGEST_ITERATIONS = 164,
    AT_UUID = 168,
    AT_SLOTS = 208,
    NAME_BYTES = 32,
    UUID_BYTES = 40,
    SLOT_BYTES = 48,
};

/* ---- names ------------------------------------------------------------------------------------------------------ */

/* LUKS names the family and has the size of the key elsewhere. */
static const struct {
    const char *name;
    QCryptoCipherAlgorithm alg;
} ciphers[] = {
    {"aes", Q_CRYPTO_CIPHER_ALGORITHM_AES_128},         {"aes", Q_CRYPTO_CIPHER_ALGORITHM_AES_192},
    {"aes", Q_CRYPTO_CIPHER_ALGORITHM_AES_256},         {"cast5", Q_CRYPTO_CIPHER_ALGORITHM_CAST5_128},
    {"serpent", Q_CRYPTO_CIPHER_ALGORITHM_SERPENT_128}, {"serpent", Q_CRYPTO_CIPHER_ALGORITHM_SERPENT_192},
    {"serpent", Q_CRYPTO_CIPHER_ALGORITHM_SERPENT_256}, {"twofish", Q_CRYPTO_CIPHER_ALGORITHM_TWOFISH_128},
    {"twofish", Q_CRYPTO_CIPHER_ALGORITHM_TWOFISH_192}, {"twofish", Q_CRYPTO_CIPHER_ALGORITHM_TWOFISH_256},
};

/* A name of at most @size bytes, made fit to be shown. */
static char *text_of(const uint8_t *at, size_t size)
{
    g_autofree char *copy = g_strndup((const char *)at, size);

    return g_utf8_make_valid(copy, -1);
}

static bool parse_cipher(const char *name, uint32_t key_bytes, CipherSpec *spec, GError **error)
{
    bool known = false;

    for (size_t i = 0; i < G_N_ELEMENTS(ciphers); i++) {
        if (strcmp(ciphers[i].name, name) != 0)
            continue;
        known = true;
        spec->alg = ciphers[i].alg;
        if (cipher_key_size(spec->alg, spec->mode) == key_bytes)
            return true;
    }
    if (known)
        return error_set(error, "LUKS cipher '%s' in mode '%s' takes no keys of %" G_GUINT32_FORMAT " bytes", name,
                         qapi_QCryptoCipherMode_str(spec->mode), key_bytes);
    return error_set(error, "LUKS cipher '%s' is not supported", name);
}

/* "xts-plain64", "cbc-essiv:sha256", "ecb" */
static bool parse_mode(const char *text, CipherSpec *spec, GError **error)
{
    g_auto(GStrv) parts = g_strsplit(text, "-", 2);
    g_auto(GStrv) iv = g_strsplit(parts[0] && parts[1] ? parts[1] : "plain", ":", 2);
    int mode = 0, ivgen = 0;

    while (mode < Q_CRYPTO_CIPHER_MODE__MAX &&
           g_strcmp0(qapi_QCryptoCipherMode_str((QCryptoCipherMode)mode), parts[0]) != 0)
        mode++;
    while (ivgen < Q_CRYPTO_IV_GEN_ALGORITHM__MAX &&
           g_strcmp0(qapi_QCryptoIVGenAlgorithm_str((QCryptoIVGenAlgorithm)ivgen), iv[0]) != 0)
        ivgen++;
    if (mode == Q_CRYPTO_CIPHER_MODE__MAX || (!parts[1] && mode != Q_CRYPTO_CIPHER_MODE_ECB))
        return error_set(error, "LUKS cipher mode '%s' is not supported", text);
    if (ivgen == Q_CRYPTO_IV_GEN_ALGORITHM__MAX)
        return error_set(error, "LUKS cipher mode '%s' is not supported: unknown IV generator '%s'", text,
                         iv[0] ? iv[0] : "");
    spec->mode = (QCryptoCipherMode)mode;
    spec->ivgen = (QCryptoIVGenAlgorithm)ivgen;
    if (!!iv[1] != (spec->ivgen == Q_CRYPTO_IV_GEN_ALGORITHM_ESSIV))
        return error_set(error, "LUKS cipher mode '%s' is not supported: a hash goes with 'essiv' and nothing else",
                         text);
    if (iv[1] && !hash_find(iv[1], &spec->ivgen_hash))
        return error_set(error, "LUKS hash '%s' is not supported", iv[1]);
    return true;
}

static char *mode_name(const CipherSpec *spec)
{
    bool essiv = spec->ivgen == Q_CRYPTO_IV_GEN_ALGORITHM_ESSIV;

    return g_strdup_printf("%s-%s%s%s", qapi_QCryptoCipherMode_str(spec->mode),
                           qapi_QCryptoIVGenAlgorithm_str(spec->ivgen), essiv ? ":" : "",
                           essiv ? qapi_QCryptoHashAlgorithm_str(spec->ivgen_hash) : "");
}

/* ---- parsing ---------------------------------------------------------------------------------------------------- */

uint64_t luks_material_bytes(const LuksHeader *h)
{
    return align_up((uint64_t)h->key_bytes * LUKS_STRIPES, CIPHER_SECTOR);
}

static bool parse_slot(LuksHeader *h, unsigned i, const uint8_t *at, uint64_t area, GError **error)
{
    LuksSlot *slot = &h->slots[i];
    uint32_t state = load_be32(at);

    if (state != SLOT_ON && state != SLOT_OFF)
        return error_set(error, "Keyslot %u is corrupted (its state is 0x%08x)", i, state);
    slot->active = state == SLOT_ON;
    slot->iterations = load_be32(at + 4);
    memcpy(slot->salt, at + 8, LUKS_SALT_BYTES);
    slot->offset = (uint64_t)load_be32(at + 40) * CIPHER_SECTOR;
    slot->stripes = load_be32(at + 44);
    if (slot->stripes != LUKS_STRIPES)
        return error_set(error, "Keyslot %u is corrupted (stripes count %" G_GUINT32_FORMAT " != %d)", i, slot->stripes,
                         LUKS_STRIPES);
    if (slot->active && (slot->iterations == 0 || slot->iterations > LUKS_MAX_ITERATIONS))
        return error_set(error, "Keyslot %u is corrupted (iteration count %" G_GUINT32_FORMAT ", must be from 1 to %d)",
                         i, slot->iterations, LUKS_MAX_ITERATIONS);
    if (slot->offset < align_up(LUKS_HEADER_BYTES, CIPHER_SECTOR))
        return error_set(error, "Keyslot %u is overlapping with the LUKS header", i);
    if (slot->offset + luks_material_bytes(h) > u64_min(h->payload, area))
        return error_set(error, "Keyslot %u is overlapping with the encrypted payload", i);
    for (unsigned k = 0; k < i; k++)
        if (slot->offset < h->slots[k].offset + luks_material_bytes(h) &&
            h->slots[k].offset < slot->offset + luks_material_bytes(h))
            return error_set(error, "Keyslots %u and %u are overlapping in the header", k, i);
    return true;
}

bool luks_parse(LuksHeader *h, const uint8_t *buf, uint64_t area, GError **error)
{
    g_autofree char *cipher = text_of(buf + AT_CIPHER, NAME_BYTES), *mode = text_of(buf + AT_MODE, NAME_BYTES);
    g_autofree char *hash = text_of(buf + AT_HASH, NAME_BYTES), *uuid = text_of(buf + AT_UUID, UUID_BYTES);

    *h = (LuksHeader){.payload = (uint64_t)load_be32(buf + AT_PAYLOAD) * CIPHER_SECTOR,
                      .key_bytes = load_be32(buf + AT_KEY_BYTES),
                      .digest_iterations = load_be32(buf + AT_DIGEST_ITERATIONS)};
    if (memcmp(buf, MAGIC, MAGIC_BYTES) != 0)
        return error_set(error, "Volume is not in LUKS format");
    if (load_be16(buf + AT_VERSION) != 1)
        return error_set(error, "LUKS version %u is not supported", load_be16(buf + AT_VERSION));
    g_strlcpy(h->uuid, uuid, sizeof(h->uuid));
    memcpy(h->digest, buf + AT_DIGEST, LUKS_DIGEST_BYTES);
    memcpy(h->digest_salt, buf + AT_DIGEST_SALT, LUKS_SALT_BYTES);
    if (!parse_mode(mode, &h->cipher, error) || !parse_cipher(cipher, h->key_bytes, &h->cipher, error) ||
        !cipher_spec_check(&h->cipher, error))
        return false;
    if (!hash_find(hash, &h->hash))
        return error_set(error, "LUKS hash '%s' is not supported", hash);
    if (h->digest_iterations == 0 || h->digest_iterations > LUKS_MAX_ITERATIONS)
        return error_set(error,
                         "LUKS header is corrupted (iteration count %" G_GUINT32_FORMAT
                         " of the key digest, must be from 1 to %d)",
                         h->digest_iterations, LUKS_MAX_ITERATIONS);
    for (unsigned i = 0; i < LUKS_SLOTS; i++)
        if (!parse_slot(h, i, buf + AT_SLOTS + i * SLOT_BYTES, area, error))
            return false;
    return true;
}

void luks_store(const LuksHeader *h, uint8_t *buf)
{
    g_autofree char *mode = mode_name(&h->cipher);

    memset(buf, 0, LUKS_HEADER_BYTES);
    memcpy(buf, MAGIC, MAGIC_BYTES);
    store_be16(buf + AT_VERSION, 1);
    for (size_t i = 0; i < G_N_ELEMENTS(ciphers); i++)
        if (ciphers[i].alg == h->cipher.alg)
            g_strlcpy((char *)buf + AT_CIPHER, ciphers[i].name, NAME_BYTES);
    g_strlcpy((char *)buf + AT_MODE, mode, NAME_BYTES);
    g_strlcpy((char *)buf + AT_HASH, qapi_QCryptoHashAlgorithm_str(h->hash), NAME_BYTES);
    store_be32(buf + AT_PAYLOAD, (uint32_t)(h->payload / CIPHER_SECTOR));
    store_be32(buf + AT_KEY_BYTES, h->key_bytes);
    memcpy(buf + AT_DIGEST, h->digest, LUKS_DIGEST_BYTES);
    memcpy(buf + AT_DIGEST_SALT, h->digest_salt, LUKS_SALT_BYTES);
    store_be32(buf + AT_DIGEST_ITERATIONS, h->digest_iterations);
    memcpy(buf + AT_UUID, h->uuid, UUID_BYTES);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        const LuksSlot *slot = &h->slots[i];
        uint8_t *at = buf + AT_SLOTS + i * SLOT_BYTES;
        store_be32(at, slot->active ? SLOT_ON : SLOT_OFF);
        store_be32(at + 4, slot->iterations);
        memcpy(at + 8, slot->salt, LUKS_SALT_BYTES);
        store_be32(at + 40, (uint32_t)(slot->offset / CIPHER_SECTOR));
        store_be32(at + 44, slot->stripes);
    }
}

void luks_layout(LuksHeader *h)
{
    uint64_t at = ALIGN;

    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        h->slots[i] = (LuksSlot){.stripes = LUKS_STRIPES, .offset = at};
        at += align_up(luks_material_bytes(h), ALIGN);
    }
    h->payload = at;
}

/* ---- options and facts ------------------------------------------------------------------------------------------ */

bool luks_iter_time(bool has, int64_t ms, int64_t min, uint64_t *ret, GError **error)
{
    *ret = has ? (uint64_t)ms : LUKS_ITER_TIME;
    if (has && ms == 0 && min > 0)
        return error_set(error, "iter-time must be non-zero");
    if (has && (ms < min || ms > LUKS_MAX_ITER_TIME))
        return error_set(error,
                         "Parameter 'iter-time' is %" G_GINT64_FORMAT ", must be from %" G_GINT64_FORMAT " to %d", ms,
                         min, LUKS_MAX_ITER_TIME);
    return true;
}

bool luks_options(const QCryptoBlockCreateOptionsLUKS *o, LuksOptions *ret, GError **error)
{
    *ret = (LuksOptions){
        .cipher = {.alg = o->has_cipher_alg ? o->cipher_alg : Q_CRYPTO_CIPHER_ALGORITHM_AES_256,
                   .mode = o->has_cipher_mode ? o->cipher_mode : Q_CRYPTO_CIPHER_MODE_XTS,
                   .ivgen = o->has_ivgen_alg ? o->ivgen_alg : Q_CRYPTO_IV_GEN_ALGORITHM_PLAIN64,
                   .ivgen_hash = o->has_ivgen_hash_alg ? o->ivgen_hash_alg : Q_CRYPTO_HASH_ALGORITHM_SHA256},
        .hash = o->has_hash_alg ? o->hash_alg : Q_CRYPTO_HASH_ALGORITHM_SHA256,
    };
    return luks_iter_time(o->has_iter_time, o->iter_time, 1, &ret->iter_time, error) &&
           cipher_spec_check(&ret->cipher, error);
}

QCryptoBlockInfoLUKS *luks_info(const LuksHeader *h)
{
    QCryptoBlockInfoLUKS *info = g_new0(QCryptoBlockInfoLUKS, 1);

    info->cipher_alg = h->cipher.alg;
    info->cipher_mode = h->cipher.mode;
    info->ivgen_alg = h->cipher.ivgen;
    info->has_ivgen_hash_alg = h->cipher.ivgen == Q_CRYPTO_IV_GEN_ALGORITHM_ESSIV;
    info->ivgen_hash_alg = h->cipher.ivgen_hash;
    info->hash_alg = h->hash;
    info->payload_offset = (int64_t)h->payload;
    info->master_key_iters = h->digest_iterations;
    info->uuid = g_strdup(h->uuid);
    info->slots = g_new0(QCryptoBlockInfoLUKSSlotList, 1);
    info->slots->len = LUKS_SLOTS;
    info->slots->items = g_new0(QCryptoBlockInfoLUKSSlot *, LUKS_SLOTS);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        QCryptoBlockInfoLUKSSlot *slot = info->slots->items[i] = g_new0(QCryptoBlockInfoLUKSSlot, 1);
        slot->active = slot->has_iters = slot->has_stripes = h->slots[i].active;
        slot->iters = h->slots[i].iterations;
        slot->stripes = h->slots[i].stripes;
        slot->key_offset = (int64_t)h->slots[i].offset;
    }
    return info;
}
