#include "block/util/iovec.h"
#include "block/util/bytes.h"

uint8_t iov_zeroes[IOV_ZEROES] __attribute__((aligned(4096)));

/* A walk over the pieces of a byte range of a list. */
typedef struct Walk {
    const struct iovec *iov, *end;
    size_t offset; /* to skip in *iov */
    size_t left;   /* bytes of the range still to visit */
} Walk;

static Walk walk_start(const struct iovec *iov, int niov, size_t offset, size_t bytes)
{
    Walk walk = {iov, iov + niov, offset, bytes};
    while (walk.iov < walk.end && walk.offset >= walk.iov->iov_len) {
        walk.offset -= walk.iov->iov_len;
        walk.iov++;
    }
    return walk;
}

/* The next piece that is not empty; false at the end of the range or of the list. */
static bool walk_next(Walk *walk, struct iovec *ret)
{
    while (walk->left && walk->iov < walk->end) {
        const struct iovec piece = *walk->iov++;
        size_t skip = walk->offset;
        walk->offset = 0;
        if (piece.iov_len > skip) {
            ret->iov_base = (char *)piece.iov_base + skip;
            ret->iov_len = u64_min(piece.iov_len - skip, walk->left);
            walk->left -= ret->iov_len;
            return true;
        }
    }
    return false;
}

int iov_slice_some(struct iovec *dst, int max, const struct iovec *src, int niov, size_t offset, size_t bytes,
                   size_t *ret_bytes)
{
    Walk walk = walk_start(src, niov, offset, bytes);
    struct iovec piece;
    int n = 0;

    while (n < max && walk_next(&walk, &piece))
        dst[n++] = piece;
    *ret_bytes = bytes - walk.left;
    return n;
}

int iov_slice(struct iovec *dst, int max, const struct iovec *src, int niov, size_t offset, size_t bytes)
{
    size_t done;
    int n = iov_slice_some(dst, max, src, niov, offset, bytes, &done);

    return done == bytes ? n : -1;
}

size_t iov_to_buf(const struct iovec *iov, int niov, size_t offset, void *buf, size_t bytes)
{
    Walk walk = walk_start(iov, niov, offset, bytes);
    struct iovec piece;
    char *p = buf;
    while (walk_next(&walk, &piece)) {
        memcpy(p, piece.iov_base, piece.iov_len);
        p += piece.iov_len;
    }
    return bytes - walk.left;
}

size_t iov_from_buf(const struct iovec *iov, int niov, size_t offset, const void *buf, size_t bytes)
{
    Walk walk = walk_start(iov, niov, offset, bytes);
    struct iovec piece;
    const char *p = buf;
    while (walk_next(&walk, &piece)) {
        memcpy(piece.iov_base, p, piece.iov_len);
        p += piece.iov_len;
    }
    return bytes - walk.left;
}

size_t iov_memset(const struct iovec *iov, int niov, size_t offset, int value, size_t bytes)
{
    Walk walk = walk_start(iov, niov, offset, bytes);
    struct iovec piece;
    while (walk_next(&walk, &piece))
        memset(piece.iov_base, value, piece.iov_len);
    return bytes - walk.left;
}

bool iov_is_zero(const struct iovec *iov, int niov, size_t offset, size_t bytes)
{
    Walk walk = walk_start(iov, niov, offset, bytes);
    struct iovec piece;
    while (walk_next(&walk, &piece))
        if (!bytes_are_zero(piece.iov_base, piece.iov_len))
            return false;
    return true;
}
