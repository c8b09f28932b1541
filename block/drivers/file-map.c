/*
 * Where a file has data and where holes: SEEK_DATA and SEEK_HOLE.
 *
 * A look-up costs one or two system calls, so the extent of data found last is remembered, and a look-up that lands in
 * a hole remembers the extent that follows it. That is safe: data turns into a hole only through discards, zero writes
 * and truncation of our own, which forget it; if somebody else did, we would report data where there are zeroes, and
 * that is always allowed. Holes are never remembered, since every write makes data of them.
 *
 * On ext4, xfs and btrfs a look-up takes about a microsecond and is done in place. tmpfs walks its pages (6.5 ms for a
 * GiB of data was measured) and network file systems ask a server: those go to a worker thread.
 */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include "block/util/bytes.h"
#include <errno.h>
#include <unistd.h>

/* What one look-up found out from @offset on. */
typedef struct Lookup {
    int fd;
    uint64_t offset;
    uint64_t data_start, data_end; /* the first extent of data at or after offset; none: both UINT64_MAX */
} Lookup;

static int lookup(void *opaque)
{
    Lookup *l = opaque;
    off_t data = lseek(l->fd, (off_t)l->offset, SEEK_DATA);
    off_t hole;

    l->data_start = l->data_end = UINT64_MAX;
    if (data < 0)
        return errno == ENXIO ? 0 : -errno; /* ENXIO: a hole up to the end of the file, or past it */
    hole = lseek(l->fd, data, SEEK_HOLE);
    if (hole < 0)
        return errno == ENXIO ? 0 : -errno; /* the file was cut meanwhile */
    if ((uint64_t)data < l->offset || hole <= data)
        return -EIO;
    l->data_start = (uint64_t)data;
    l->data_end = (uint64_t)hole;
    return 0;
}

static void answer(Node *node, unsigned what, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    ret->flags = what | STATUS_ALLOCATED | STATUS_OFFSET_VALID;
    ret->bytes = bytes;
    ret->map = offset;
    ret->file = node;
}

int file_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    FileState *s = node->state;
    Lookup l = {.fd = s->fd, .offset = offset};
    int err;

    if (!want_zero || s->no_seek) {
        answer(node, STATUS_DATA, offset, bytes, ret);
        return 0;
    }
    if (offset >= s->data_start && offset < s->data_end) {
        answer(node, STATUS_DATA, offset, u64_min(bytes, s->data_end - offset), ret);
        return 0;
    }
    err = s->slow_seek ? aio_co_worker(lookup, &l) : lookup(&l);
    if (err < 0) {
        /* Not knowing is no reason to fail. */
        s->no_seek = err == -EINVAL || err == -EOPNOTSUPP;
        answer(node, STATUS_DATA, offset, bytes, ret);
        return 0;
    }
    if (l.data_start != UINT64_MAX) {
        s->data_start = l.data_start;
        s->data_end = l.data_end;
    }
    if (l.data_start == offset)
        answer(node, STATUS_DATA, offset, u64_min(bytes, l.data_end - offset), ret);
    else
        answer(node, STATUS_ZERO, offset, u64_min(bytes, l.data_start - offset), ret);
    return 0;
}
