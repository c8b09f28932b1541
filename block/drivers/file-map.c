/*
 * Where a file has data and where holes: SEEK_DATA and SEEK_HOLE.
 *
 * A look-up costs one or two system calls, so the extent of data found last is remembered, and a look-up that lands in
 * a hole remembers the extent that follows it. That is safe: data turns into a hole only through discards, zero writes
 * and truncation of our own, which forget it; if somebody else did, we would report data where there are zeroes, and
 * that is always allowed. Holes are never remembered, since every write makes data of them.
 *
 * On ext4, xfs and btrfs a look-up takes about a microsecond and is done in place. tmpfs walks its pages (6.5 ms for a
 * GiB of data was measured) and network file systems ask a server: those go to a worker thread, one at a time, since
 * what one finds often answers those that wait. What is found is joined to what is remembered where the two touch: a
 * look-up in front of it would else walk to the same end each time (reads of 256 KiB at random places of a GiB on tmpfs
 * came down to 300 a second). What takes the time is to find the end of data far away. A question about a short range
 * (up to NEAR_MAX) is answered in place: data at both ends of it counts as data throughout.
 */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include "block/util/bytes.h"
#include <errno.h>
#include <unistd.h>

#define NEAR_MAX  (256 * 1024)
#define NEAR_PAGE 4096

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

static bool is_known_data(const FileState *s, uint64_t offset)
{
    return offset >= s->data_start && offset < s->data_end;
}

static void remember(FileState *s, const Lookup *l)
{
    if (l->data_start == UINT64_MAX)
        return;
    if (l->data_start <= s->data_end && s->data_start <= l->data_end) {
        s->data_start = u64_min(s->data_start, l->data_start);
        s->data_end = u64_max(s->data_end, l->data_end);
    } else {
        s->data_start = l->data_start;
        s->data_end = l->data_end;
    }
}

/*
 * The end of the data that begins at @offset, if it lies within @bytes; else 0. Where the last page is data, too, all
 * is taken for data; where not, the kernel need not walk further than there.
 */
static uint64_t near_end(const FileState *s, uint64_t offset, uint64_t bytes)
{
    off_t last = (off_t)align_down(offset + bytes - 1, NEAR_PAGE), hole;

    if (last <= (off_t)offset || lseek(s->fd, last, SEEK_DATA) == last)
        return 0;
    hole = lseek(s->fd, (off_t)offset, SEEK_HOLE);
    return hole > (off_t)offset && (uint64_t)hole < offset + bytes ? (uint64_t)hole : 0;
}

static void answer_near(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    FileState *s = node->state;
    off_t data = lseek(s->fd, (off_t)offset, SEEK_DATA);
    uint64_t end;

    if (data < 0 && errno == ENXIO) {
        answer(node, STATUS_ZERO, offset, bytes, ret);
    } else if (data > (off_t)offset) {
        answer(node, STATUS_ZERO, offset, u64_min(bytes, (uint64_t)data - offset), ret);
    } else {
        end = data < 0 ? 0 : near_end(s, offset, bytes); /* or it could not be told */
        if (end)
            remember(s, &(Lookup){.data_start = offset, .data_end = end});
        answer(node, STATUS_DATA, offset, end ? end - offset : bytes, ret);
    }
}

/* Looks up on a worker thread, unless somebody else's look-up has brought the answer meanwhile (*@ret_known). */
static int lookup_co_slow(FileState *s, Lookup *l, bool *ret_known)
{
    int err = 0;

    comutex_co_lock(&s->seek_lock);
    *ret_known = is_known_data(s, l->offset);
    if (!*ret_known)
        err = aio_co_worker(lookup, l);
    comutex_unlock(&s->seek_lock);
    return err;
}

int file_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    FileState *s = node->state;
    Lookup l = {.fd = s->fd, .offset = offset};
    bool known = is_known_data(s, offset);
    int err = 0;

    if (!want_zero || s->no_seek) {
        answer(node, STATUS_DATA, offset, bytes, ret);
        return 0;
    }
    if (!known && s->memory && bytes <= NEAR_MAX) {
        answer_near(node, offset, bytes, ret);
        return 0;
    }
    if (!known)
        err = s->slow_seek ? lookup_co_slow(s, &l, &known) : lookup(&l);
    if (known) {
        answer(node, STATUS_DATA, offset, u64_min(bytes, s->data_end - offset), ret);
        return 0;
    }
    if (err < 0) {
        /* Not knowing is no reason to fail. */
        s->no_seek = err == -EINVAL || err == -EOPNOTSUPP;
        answer(node, STATUS_DATA, offset, bytes, ret);
        return 0;
    }
    remember(s, &l);
    if (l.data_start == offset)
        answer(node, STATUS_DATA, offset, u64_min(bytes, l.data_end - offset), ret);
    else
        answer(node, STATUS_ZERO, offset, u64_min(bytes, l.data_start - offset), ret);
    return 0;
}
