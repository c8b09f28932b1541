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
 * came down to 300 a second). What takes the time is to find the end of data far away, so it is not looked for: how
 * many pages there are in the next 4 MiB tells whether all of it is data (9 us). An old kernel does not tell; there,
 * data at both ends of a short range counts as data throughout, and only longer ranges are looked up.
 */
#include "block/aio/io.h"
#include "block/drivers/file.h"
#include "block/util/bytes.h"
#include <errno.h>
#include <unistd.h>

#define NEAR_MAX    (256 * 1024)
#define NEAR_PAGE   4096
#define COUNTED_MAX (4 * 1024 * 1024)
#define CACHESTAT   451 /* the system call of this name, Linux 6.5, which the headers may not know yet */

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

/* Bytes of a range that tmpfs has pages for, in memory or swapped out; -1: the kernel is too old to tell. */
static int64_t bytes_there(int fd, uint64_t offset, uint64_t bytes)
{
    struct {
        uint64_t offset, bytes;
    } range = {offset, bytes};
    struct {
        uint64_t cached, dirty, writeback, evicted, recently_evicted;
    } pages;

    if (syscall(CACHESTAT, fd, &range, &pages, 0) < 0)
        return -1;
    return (int64_t)((pages.cached + pages.evicted) * (uint64_t)sysconf(_SC_PAGESIZE));
}

/*
 * How far the data that begins at @offset of a file in memory goes, for a range of some MiB at most: no further than
 * @bytes, and the kernel is not made to walk further. 0: that cannot be told in a short time.
 */
static uint64_t near_data(FileState *s, uint64_t offset, uint64_t bytes)
{
    int64_t there = bytes_there(s->fd, offset, bytes);
    off_t last = (off_t)align_down(offset + bytes - 1, NEAR_PAGE);
    /* Pages that were only taken in advance, mostly up to the end of something, are no data. */
    bool ends_in_data = last <= (off_t)offset || lseek(s->fd, last, SEEK_DATA) == last;

    if (there < 0 && bytes > NEAR_MAX)
        return 0;
    /* Where the kernel does not count, data at both ends counts as data throughout. */
    if (there < 0 && ends_in_data)
        return bytes;
    if (there < (int64_t)bytes || !ends_in_data) {
        off_t hole = lseek(s->fd, (off_t)offset, SEEK_HOLE);
        if (hole > (off_t)offset)
            bytes = u64_min(bytes, (uint64_t)hole - offset);
    }
    remember(s, &(Lookup){.data_start = offset, .data_end = offset + bytes});
    return bytes;
}

/* Answers in place, if that takes a short time. */
static bool answer_near(Node *node, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    FileState *s = node->state;
    off_t data = lseek(s->fd, (off_t)offset, SEEK_DATA);

    if (data < 0 && errno == ENXIO) {
        answer(node, STATUS_ZERO, offset, bytes, ret);
    } else if (data > (off_t)offset) {
        answer(node, STATUS_ZERO, offset, u64_min(bytes, (uint64_t)data - offset), ret);
    } else {
        bytes = data < 0 ? 0 : near_data(s, offset, u64_min(bytes, COUNTED_MAX));
        answer(node, STATUS_DATA, offset, bytes, ret);
    }
    return bytes > 0;
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
    if (!known && s->memory && answer_near(node, offset, bytes, ret))
        return 0;
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
