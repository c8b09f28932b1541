/*
 * Requests: each becomes one command; it is sent again when the connection is lost under it and comes back in time.
 * Commands of NBD may be repeated: they name absolute places, and their data is still here.
 */
#include "block/aio/io.h"
#include "block/drivers/nbd/nbd.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include <errno.h>

typedef enum NbdCommand { NBDC_READ, NBDC_WRITE, NBDC_ZERO, NBDC_TRIM, NBDC_FLUSH, NBDC_STATUS } NbdCommand;

/* On the stack of the request's coroutine. */
typedef struct NbdRequest {
    NbdState *s;
    NbdCommand command;
    uint64_t offset, bytes;
    void *buf; /* read, write */
    uint32_t flags;

    Coroutine *co;
    bool waiting, done;
    int error; /* positive errno, 0 */

    /* of the first extent in a status reply */
    bool has_extent;
    uint32_t extent_flags;
    uint64_t extent_bytes;
} NbdRequest;

static int request_done(void *opaque, int *error)
{
    NbdRequest *r = opaque;

    r->error = *error;
    r->done = true;
    r->s->outstanding--;
    r->s->completions++;
    if (r->waiting)
        coroutine_wake(r->co);
    return 1; /* libnbd forgets the command */
}

/* @entries are pairs of length and flags; neighbours that say the same count as one. */
static int status_extents(void *opaque, const char *context, uint64_t offset, uint32_t *entries, size_t n, int *error)
{
    NbdRequest *r = opaque;

    if (strcmp(context, r->s->context) || offset != r->offset || n < 2)
        return 0;
    r->has_extent = true;
    r->extent_flags = entries[1];
    r->extent_bytes = 0;
    for (size_t i = 0; i + 1 < n && entries[i + 1] == r->extent_flags; i += 2)
        r->extent_bytes += entries[i];
    return 0;
}

static int64_t issue(NbdRequest *r, struct nbd_handle *h)
{
    nbd_completion_callback done = {.callback = request_done, .user_data = r};
    nbd_extent_callback extents = {.callback = status_extents, .user_data = r};

    switch (r->command) {
    case NBDC_READ:
        return libnbd.aio_pread(h, r->buf, r->bytes, r->offset, done, r->flags);
    case NBDC_WRITE:
        return libnbd.aio_pwrite(h, r->buf, r->bytes, r->offset, done, r->flags);
    case NBDC_ZERO:
        return libnbd.aio_zero(h, r->bytes, r->offset, done, r->flags);
    case NBDC_TRIM:
        return libnbd.aio_trim(h, r->bytes, r->offset, done, r->flags);
    case NBDC_FLUSH:
        return libnbd.aio_flush(h, done, r->flags);
    case NBDC_STATUS:
        return libnbd.aio_block_status(h, r->bytes, r->offset, extents, done, r->flags);
    }
    g_assert_not_reached();
}

/* One try: 0, a positive errno from the server, or ENOTCONN. */
static int request_co_try(NbdRequest *r)
{
    NbdState *s = r->s;

    r->done = r->waiting = r->has_extent = false;
    if (s->outstanding++ == 0)
        s->progress = loop_now(s->node->loop, LOOP_CLOCK_REAL);
    if (issue(r, s->h) < 0) {
        int err = libnbd.get_errno();
        s->outstanding--;
        return libnbd.aio_is_dead(s->h) || libnbd.aio_is_closed(s->h) ? ENOTCONN : err ? err : EIO;
    }
    nbdc_kick(s);
    r->waiting = true;
    while (!r->done)
        aio_co_yield();
    return r->error;
}

static int request_co_run(NbdRequest *r)
{
    NbdState *s = r->s;
    int64_t first_loss = 0;

    r->co = coroutine_self();
    for (;;) {
        int64_t now;
        int err, ret = nbdc_co_ready(s);

        if (ret < 0)
            return ret;
        err = request_co_try(r);
        if (G_LIKELY(err != ENOTCONN))
            return -err;
        /* A server that falls over this very request would do so for ever. */
        now = loop_now(s->node->loop, LOOP_CLOCK_REAL);
        first_loss = first_loss ? first_loss : now;
        if (now - first_loss >= s->reconnect_ns)
            return -EIO;
    }
}

/* The part of @vec where it is one piece of memory, else NULL. */
static void *flat(const IoVec *vec, size_t skip, uint64_t bytes)
{
    for (int i = 0; i < vec->n; i++) {
        if (skip < vec->iov[i].iov_len)
            return vec->iov[i].iov_len - skip >= bytes ? (char *)vec->iov[i].iov_base + skip : NULL;
        skip -= vec->iov[i].iov_len;
    }
    return NULL;
}

int nbdc_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    void *direct = flat(vec, vec_offset, bytes);
    NbdRequest r = {.s = node->state, .command = NBDC_READ, .offset = offset, .bytes = bytes, .buf = direct};
    int ret;

    if (!direct) {
        r.buf = aio_buf_get(node->loop, bytes);
        if (!r.buf)
            return -ENOMEM;
    }
    ret = request_co_run(&r);
    if (!direct) {
        if (ret == 0)
            iov_from_buf(vec->iov, vec->n, vec_offset, r.buf, bytes);
        aio_buf_put(node->loop, r.buf, bytes);
    }
    return ret;
}

int nbdc_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    void *direct = flat(vec, vec_offset, bytes);
    NbdRequest r = {.s = node->state, .command = NBDC_WRITE, .offset = offset, .bytes = bytes, .buf = direct};
    int ret;

    r.flags = flags & REQ_FUA ? LIBNBD_CMD_FLAG_FUA : 0;
    if (!direct) {
        r.buf = aio_buf_get(node->loop, bytes);
        if (!r.buf)
            return -ENOMEM;
        iov_to_buf(vec->iov, vec->n, vec_offset, r.buf, bytes);
    }
    ret = request_co_run(&r);
    if (ret == 0 && !(flags & REQ_FUA))
        r.s->writes++;
    if (!direct)
        aio_buf_put(node->loop, r.buf, bytes);
    return ret;
}

int nbdc_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    NbdRequest r = {.s = node->state, .command = NBDC_ZERO, .offset = offset, .bytes = bytes};
    int ret;

    if (!r.s->facts.can_zero || ((flags & REQ_NO_FALLBACK) && !r.s->facts.can_fast_zero))
        return -ENOTSUP;
    r.flags = (flags & REQ_FUA ? LIBNBD_CMD_FLAG_FUA : 0) | (flags & REQ_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
              (flags & REQ_NO_FALLBACK ? LIBNBD_CMD_FLAG_FAST_ZERO : 0);
    ret = request_co_run(&r);
    if (ret == 0 && !(flags & REQ_FUA))
        r.s->writes++;
    return ret;
}

int nbdc_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    NbdRequest r = {.s = node->state, .command = NBDC_TRIM, .offset = offset, .bytes = bytes};

    return r.s->facts.can_trim ? request_co_run(&r) : -ENOTSUP;
}

int nbdc_co_flush_to_disk(Node *node)
{
    NbdState *s = node->state;
    NbdRequest r = {.s = s, .command = NBDC_FLUSH};
    uint64_t covers = s->writes;
    int ret;

    if (!s->facts.can_flush)
        return 0; /* the server says that it has nothing to flush */
    ret = request_co_run(&r);
    /* What the server could not save it may have dropped: asking again proves nothing. */
    if (ret < 0)
        node->failed = true;
    else
        s->flushed = covers;
    return ret;
}

int nbdc_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    NbdState *s = node->state;
    uint64_t align = node->limits.request_alignment;
    NbdRequest r = {.s = s, .command = NBDC_STATUS, .offset = offset, .flags = LIBNBD_CMD_FLAG_REQ_ONE};
    int err;

    *ret = (BlockStatus){
        .flags = STATUS_ALLOCATED | STATUS_OFFSET_VALID | STATUS_DATA, .bytes = bytes, .map = offset, .file = node};
    if (!s->facts.has_context || (!want_zero && s->is_allocation) || !is_aligned(offset, align))
        return 0;
    r.bytes = align_down(u64_min(bytes, G_MAXINT32), align);
    if (!r.bytes)
        return 0;
    err = request_co_run(&r);
    if (err < 0)
        return err;
    if (!r.has_extent)
        return -EIO;
    /* An extent that ends inside a block says nothing about that block. */
    r.extent_bytes = align_down(u64_min(r.extent_bytes, bytes), align);
    if (!r.extent_bytes) {
        ret->bytes = u64_min(align, bytes);
        return 0;
    }
    ret->bytes = r.extent_bytes;
    if (r.extent_flags & 2) /* NBD_STATE_ZERO */
        ret->flags |= STATUS_ZERO;
    /* A hole that need not read as zeroes still is what the client reads. Of another context (x-dirty-bitmap) the bits
     * are shown as they come: in qemu:dirty-bitmap, what is dirty is no data. Either way it has no place with the
     * server, who may read it as zeroes only until it puts a backing file behind. */
    if ((r.extent_flags & 1) && (!s->is_allocation || (r.extent_flags & 2)))
        ret->flags &= ~(unsigned)(STATUS_DATA | STATUS_OFFSET_VALID);
    return 0;
}
