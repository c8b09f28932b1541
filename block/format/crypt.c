/*
 * Encrypted data.
 */
#include "block/format/crypt.h"
#include "block/aio/io.h"
#include "block/crypto/wipe.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include <errno.h>

#define BOUNCE_MAX (512 * 1024)

typedef struct CryptWork {
    const Cipher *cipher;
    bool encrypt;
    uint64_t sector;
    const uint8_t *in;
    uint8_t *out;
    size_t bytes;
} CryptWork;

static int crypt_run(void *opaque)
{
    const CryptWork *w = opaque;

    if (w->encrypt)
        cipher_encrypt(w->cipher, w->sector, w->in, w->out, w->bytes);
    else
        cipher_decrypt(w->cipher, w->sector, w->in, w->out, w->bytes);
    return 0;
}

static int crypt_co_sectors(const Cipher *cipher, bool encrypt, uint64_t sector, const uint8_t *in, uint8_t *out,
                            size_t bytes)
{
    CryptWork w = {.cipher = cipher, .encrypt = encrypt, .sector = sector, .in = in, .out = out, .bytes = bytes};

    return bytes <= cipher_inline_bytes(cipher) ? crypt_run(&w) : aio_co_worker(crypt_run, &w);
}

/* One piece by way of a buffer. */
static int read_co_bounced(Child *file, const Cipher *cipher, uint64_t sector, uint64_t offset, size_t bytes,
                           const IoVec *vec, size_t vec_offset)
{
    Loop *loop = file->node->loop;
    uint8_t *buf = aio_buf_get(loop, bytes);
    int ret = buf ? child_co_pread(file, offset, bytes, buf, 0) : -ENOMEM;

    if (ret == 0)
        ret = crypt_co_sectors(cipher, false, sector, buf, buf, bytes);
    if (ret == 0)
        iov_from_buf(vec->iov, vec->n, vec_offset, buf, bytes);
    aio_buf_put(loop, buf, bytes);
    return ret;
}

int crypt_co_read(Child *file, const Cipher *cipher, uint64_t sector, uint64_t offset, uint64_t bytes, const IoVec *vec,
                  size_t vec_offset)
{
    struct iovec piece;
    int ret = 0;

    if (iov_slice(&piece, 1, vec->iov, vec->n, vec_offset, bytes) == 1) {
        ret = child_co_preadv(file, offset, bytes, vec, vec_offset, 0);
        return ret < 0 ? ret : crypt_co_sectors(cipher, false, sector, piece.iov_base, piece.iov_base, bytes);
    }
    while (bytes && ret == 0) {
        uint64_t n = u64_min(bytes, BOUNCE_MAX);
        ret = read_co_bounced(file, cipher, sector, offset, n, vec, vec_offset);
        sector += n / CIPHER_SECTOR;
        offset += n;
        vec_offset += n;
        bytes -= n;
    }
    return ret;
}

static int write_co_piece(Child *file, const Cipher *cipher, uint64_t sector, uint64_t offset, size_t bytes,
                          const IoVec *vec, size_t vec_offset, uint8_t *buf)
{
    struct iovec piece;
    const uint8_t *in = buf;
    int ret;

    if (iov_slice(&piece, 1, vec->iov, vec->n, vec_offset, bytes) == 1)
        in = piece.iov_base;
    else
        iov_to_buf(vec->iov, vec->n, vec_offset, buf, bytes);
    ret = crypt_co_sectors(cipher, true, sector, in, buf, bytes);
    return ret < 0 ? ret : child_co_pwrite(file, offset, bytes, buf, 0);
}

int crypt_co_write(Child *file, const Cipher *cipher, uint64_t sector, uint64_t offset, uint64_t bytes,
                   const IoVec *vec, size_t vec_offset)
{
    Loop *loop = file->node->loop;
    size_t room = u64_min(bytes, BOUNCE_MAX);
    uint8_t *buf = aio_buf_get(loop, room);
    int ret = buf ? 0 : -ENOMEM;

    while (bytes && ret == 0) {
        uint64_t n = u64_min(bytes, room);
        ret = write_co_piece(file, cipher, sector, offset, n, vec, vec_offset, buf);
        sector += n / CIPHER_SECTOR;
        offset += n;
        vec_offset += n;
        bytes -= n;
    }
    aio_buf_put(loop, buf, room);
    return ret;
}

/* ---- making ----------------------------------------------------------------------------------------------------- */

typedef struct Place {
    Port *file;
    uint64_t offset;
} Place;

static int place_co_read(void *opaque, uint64_t offset, size_t bytes, void *buf)
{
    const Place *at = opaque;

    return port_co_pread(at->file, at->offset + offset, bytes, buf, 0);
}

static int place_co_write(void *opaque, uint64_t offset, size_t bytes, const void *buf)
{
    const Place *at = opaque;

    return port_co_pwrite(at->file, at->offset + offset, bytes, buf, 0);
}

static int place_co_flush(void *opaque)
{
    return port_co_flush(((const Place *)opaque)->file);
}

bool crypt_co_create(Port *file, uint64_t offset, const QCryptoBlockCreateOptionsLUKS *o, GError **error)
{
    Place at = {file, offset};
    const LuksIo io = {place_co_read, place_co_write, place_co_flush, &at};
    char *password;
    bool ok;

    if (!o->key_secret)
        return error_set(error, "Parameter 'key-secret' is required for cipher");
    password = secret_password(graph_secrets(file->graph), o->key_secret, error);
    ok = password && luks_co_create(&io, o, password, error);
    wipe_free_string(password);
    return ok;
}
