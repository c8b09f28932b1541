/*
 * Encryption of guest data.
 *
 * A LUKS image keeps a LUKS header in clusters of its own (the crypto extension says where) and numbers its sectors by
 * their place in the file; the old AES scheme has its key from the password alone and numbers sectors as the guest
 * does. Only guest data is encrypted, no metadata.
 *
 * Guarantees: data.c sends everything it reads and writes through here, so no plain data reaches the file, and clusters
 * that were never written do not count as zeroes. The header changes only as block/crypto/luks.h orders it, and only
 * where nobody else's metadata lies. The key is wiped on close.
 */
#include "block/crypto/wipe.h"
#include "block/drivers/qcow2/qcow2.h"
#include "block/format/crypt.h"

#define AES_KEY_BYTES 16

struct Q2Crypt {
    Cipher *cipher;
    bool by_host; /* sectors are numbered by their place in the file */
    bool has_luks;
    LuksHeader luks;
    char *key_secret; /* the secret that opened it */
    CoMutex lock;     /* for who changes the header */
};

/* ---- the LUKS header in its clusters ---------------------------------------------------------------------------- */

static int io_co_read(void *opaque, uint64_t offset, size_t bytes, void *buf)
{
    Qcow2 *q = opaque;

    if (offset + bytes > q->header.crypto.bytes)
        return -EIO;
    return child_co_pread(q->node->file, q->header.crypto.offset + offset, bytes, buf, 0);
}

static int io_co_write(void *opaque, uint64_t offset, size_t bytes, const void *buf)
{
    Qcow2 *q = opaque;
    uint64_t at = q->header.crypto.offset + offset;
    int ret = offset + bytes > q->header.crypto.bytes ? -EIO : q2_co_meta_check(q, Q2_META_CRYPTO, at, bytes);

    return ret < 0 ? ret : child_co_pwrite(q->node->file, at, bytes, buf, 0);
}

static int io_co_flush(void *opaque)
{
    return q2_co_barrier(opaque, "luks-header");
}

static LuksIo luks_io(Qcow2 *q)
{
    return (LuksIo){.co_read = io_co_read, .co_write = io_co_write, .co_flush = io_co_flush, .opaque = q};
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static bool open_co_luks(Qcow2 *q, const char *password, GError **error)
{
    Q2Crypt *c = q->crypt;
    LuksIo io = luks_io(q);

    c->by_host = true;
    c->has_luks = true;
    if (q->header.crypto.offset + LUKS_HEADER_BYTES > q->node->file->node->size)
        return error_set(error, "Image is truncated: the encryption header is behind the end of the file");
    c->cipher = luks_co_open(&c->luks, &io, q->header.crypto.bytes, password, error);
    return c->cipher;
}

static bool open_aes(Qcow2 *q, const char *password, GError **error)
{
    const CipherSpec spec = {
        .alg = Q_CRYPTO_CIPHER_ALGORITHM_AES_128,
        .mode = Q_CRYPTO_CIPHER_MODE_CBC,
        .ivgen = Q_CRYPTO_IV_GEN_ALGORITHM_PLAIN64,
    };
    uint8_t key[AES_KEY_BYTES] = {0};

    memcpy(key, password, MIN(strlen(password), sizeof(key)));
    q->crypt->cipher = cipher_new(&spec, key, error);
    explicit_bzero(key, sizeof(key));
    return q->crypt->cipher;
}

static const char *scheme_name(const Qcow2 *q)
{
    return qapi_BlockdevQcow2EncryptionFormat_str(q->header.crypt_method == Q2_CRYPT_LUKS
                                                      ? BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_LUKS
                                                      : BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_AES);
}

bool q2_crypt_co_open(Qcow2 *q, const BlockdevQcow2Encryption *o, GError **error)
{
    const char *wanted = o ? qapi_BlockdevQcow2EncryptionFormat_str(o->format) : NULL, *secret;
    char *password;
    bool ok;

    if (!q->header.crypt_method)
        return !o || error_set(error, "No encryption in image header, but options specified format '%s'", wanted);
    if (o && strcmp(wanted, scheme_name(q)) != 0)
        return error_set(error, "Header reported '%s' encryption format but options specify '%s'", scheme_name(q),
                         wanted);
    secret = !o ? NULL : q->header.crypt_method == Q2_CRYPT_LUKS ? o->u.luks.key_secret : o->u.aes.key_secret;
    if (!secret)
        return error_set(error, "Parameter 'encrypt.key-secret' is required for cipher");
    password = secret_password(graph_secrets(q->node->graph), secret, error);
    if (!password)
        return false;
    q->crypt = g_new0(Q2Crypt, 1);
    q->crypt->key_secret = g_strdup(secret);
    ok = q->header.crypt_method == Q2_CRYPT_LUKS ? open_co_luks(q, password, error) : open_aes(q, password, error);
    wipe_free_string(password);
    return ok;
}

void q2_crypt_close(Qcow2 *q)
{
    if (!q->crypt)
        return;
    cipher_free(q->crypt->cipher);
    g_free(q->crypt->key_secret);
    g_clear_pointer(&q->crypt, g_free);
}

ImageInfoSpecificQCow2Encryption *q2_crypt_info(const Qcow2 *q)
{
    ImageInfoSpecificQCow2Encryption *info = g_new0(ImageInfoSpecificQCow2Encryption, 1);

    info->format = BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_AES;
    if (q->crypt->has_luks) {
        QCryptoBlockInfoLUKS *luks = luks_info(&q->crypt->luks);
        info->format = BLOCKDEV_QCOW2_ENCRYPTION_FORMAT_LUKS;
        info->u.luks = *luks;
        g_free(luks);
    }
    return info;
}

/* ---- data ------------------------------------------------------------------------------------------------------- */

static uint64_t sector_at(const Qcow2 *q, uint64_t guest, uint64_t host)
{
    return (q->crypt->by_host ? host : guest) / CIPHER_SECTOR;
}

int q2_crypt_co_read(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    return crypt_co_read(q->data, q->crypt->cipher, sector_at(q, guest, host), host, bytes, vec, vec_offset);
}

int q2_crypt_co_write(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    return crypt_co_write(q->data, q->crypt->cipher, sector_at(q, guest, host), host, bytes, vec, vec_offset);
}

/* ---- key slots -------------------------------------------------------------------------------------------------- */

bool q2_crypt_co_amend(Qcow2 *q, const QCryptoBlockAmendOptions *o, bool force, GError **error)
{
    Q2Crypt *c = q->crypt;
    LuksIo io = luks_io(q);
    bool ok;

    if (!c)
        return error_set(error, "image is not encrypted, can't amend");
    if (!c->has_luks || o->format != Q_CRYPTO_BLOCK_FORMAT_LUKS)
        return error_set(error, "Amending of encryption format '%s' is not supported; the image has '%s'",
                         qapi_QCryptoBlockFormat_str(o->format), scheme_name(q));
    comutex_co_lock(&c->lock);
    ok = luks_co_amend(&c->luks, &io, graph_secrets(q->node->graph), c->key_secret, &o->u.luks, force, error);
    comutex_unlock(&c->lock);
    return ok;
}
