/*
 * Filling new clusters.
 *
 * Guarantees: when cow_co_write() has returned 0, every byte of the new clusters reads as it should once the tables
 * point to them. They do so later (that is the format's part), so a crash in between shows the old content.
 *
 * As few requests as possible: what is known to be zero is not read, and in fresh clusters not written either; both
 * edges are read in one go where they are close; all is written in one go.
 */
#include "block/format/cow.h"
#include "block/aio/io.h"
#include "block/graph/debug.h"
#include "block/graph/io.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"

#define GAP_MAX (16 * 1024) /* read over the new data between the edges rather than reading twice */

/* One write, in pieces: zeroes or buffer before, the new data, zeroes or buffer behind. */
typedef struct Cow {
    const CowOps *ops;
    Node *node;
    const CowWrite *w;
    Child *file; /* is told of what happens (debug.h) */
    Loop *loop;
    uint64_t host;            /* where the write begins in the image: at first where the clusters do */
    uint64_t head, tail;      /* bytes to be written before and behind */
    uint8_t *buf;             /* content of head, gap and tail; NULL: both are zero */
    size_t buf_size, tail_at; /* where the tail is in buf */
} Cow;

static int cow_co_is_zero(const Cow *c, uint64_t offset, uint64_t bytes, bool *ret)
{
    *ret = true;
    if (!bytes || offset >= c->w->disk_size)
        return 0;
    return c->ops->co_is_zero(c->node->state, offset, u64_min(bytes, c->w->disk_size - offset), ret);
}

/* Reads [@offset, @offset + @bytes) as it is now into @buf; zeroes behind the end of the disk. */
static int cow_co_read(const Cow *c, uint64_t offset, uint64_t bytes, uint8_t *buf)
{
    uint64_t inside = offset < c->w->disk_size ? u64_min(bytes, c->w->disk_size - offset) : 0;
    struct iovec iov;
    IoVec vec;

    memset(buf + inside, 0, bytes - inside);
    if (!inside)
        return 0;
    child_co_debug_event(c->file, BLKDEBUG_EVENT_COW_READ);
    iovec_one(&vec, &iov, buf, inside);
    return c->ops->co_read(c->node->state, offset, inside, &vec, 0);
}

/* Gets the old content of both edges, unless it is zero. */
static int cow_co_load(Cow *c, bool head_zero, bool tail_zero)
{
    uint64_t after = c->w->offset + c->w->bytes;
    bool together = !head_zero && !tail_zero && c->w->bytes <= GAP_MAX;
    int ret = 0;

    c->tail_at = c->head + (together ? c->w->bytes : 0);
    c->buf_size = c->tail_at + c->tail;
    c->buf = aio_buf_get(c->loop, c->buf_size);
    if (!c->buf)
        return -ENOMEM;
    if (together) {
        ret = cow_co_read(c, c->w->start, c->buf_size, c->buf);
    } else {
        if (head_zero)
            memset(c->buf, 0, c->head);
        else
            ret = cow_co_read(c, c->w->start, c->head, c->buf);
        if (tail_zero)
            memset(c->buf + c->tail_at, 0, c->tail);
        else if (ret == 0)
            ret = cow_co_read(c, after, c->tail, c->buf + c->tail_at);
    }
    if (ret == 0 && bytes_are_zero(c->buf, c->head) && bytes_are_zero(c->buf + c->tail_at, c->tail)) {
        aio_buf_put(c->loop, c->buf, c->buf_size);
        c->buf = NULL;
    }
    return ret;
}

/* Zero edges: none at all in fresh clusters, by co_zero where they are long. What is left of them (to where a part of a
 * cluster is best cut) goes with the data. */
static int cow_co_trim(Cow *c)
{
    uint64_t align = c->w->align, after = c->w->offset + c->w->bytes;
    uint64_t head = u64_min(c->w->offset & (align - 1), c->head);
    uint64_t tail = u64_min(-after & (align - 1), c->tail); /* clusters may be smaller */
    int ret = 0;

    if (c->buf || (!c->w->fresh && c->head + c->tail <= 2 * IOV_ZEROES))
        return 0;
    if (c->head > head || c->tail > tail)
        child_co_debug_event(c->file, BLKDEBUG_EVENT_CLUSTER_ALLOC_SPACE);
    if (!c->w->fresh && c->head > head)
        ret = c->ops->co_zero(c->node->state, c->w->start, c->host, c->head - head);
    if (!c->w->fresh && c->tail > tail && ret == 0)
        ret = c->ops->co_zero(c->node->state, after + tail, c->host + c->head + c->w->bytes + tail, c->tail - tail);
    if (ret < 0)
        return ret == -ENOTSUP ? 0 : ret;
    c->host += c->head - head;
    c->head = head;
    c->tail = tail;
    return 0;
}

static int push_edge(const Cow *c, struct iovec *iov, uint64_t bytes, const uint8_t *content)
{
    int n = 0;

    if (content && bytes) {
        iov[n++] = (struct iovec){.iov_base = (void *)content, .iov_len = bytes};
        return n;
    }
    for (; bytes; n++) {
        iov[n] = (struct iovec){.iov_base = iov_zeroes, .iov_len = u64_min(bytes, IOV_ZEROES)};
        bytes -= iov[n].iov_len;
    }
    return n;
}

static int cow_co_store(Cow *c)
{
    struct iovec few[16], *iov = few;
    size_t room = (size_t)c->w->vec->n + div_round_up(c->head, IOV_ZEROES) + div_round_up(c->tail, IOV_ZEROES);
    size_t room_bytes = room * sizeof(iov[0]);
    IoVec all = {.size = c->head + c->w->bytes + c->tail};
    int ret;

    if (c->head || c->tail)
        child_co_debug_event(c->file, BLKDEBUG_EVENT_COW_WRITE);
    else
        return c->ops->co_write(c->node->state, c->w->offset, c->host, c->w->bytes, c->w->vec, c->w->vec_offset);
    if (room > G_N_ELEMENTS(few))
        iov = aio_buf_get(c->loop, room_bytes);
    if (!iov)
        return -ENOMEM;
    all.iov = iov;
    all.n = push_edge(c, iov, c->head, c->buf);
    all.n += iov_slice(iov + all.n, (int)room - all.n, c->w->vec->iov, c->w->vec->n, c->w->vec_offset, c->w->bytes);
    all.n += push_edge(c, iov + all.n, c->tail, c->buf ? c->buf + c->tail_at : NULL);
    ret = c->ops->co_write(c->node->state, c->w->offset - c->head, c->host, all.size, &all, 0);
    if (iov != few)
        aio_buf_put(c->loop, iov, room_bytes);
    return ret;
}

int cow_co_write(Node *node, const CowOps *ops, const CowWrite *w)
{
    uint64_t after = w->offset + w->bytes;
    Cow c = {
        .ops = ops,
        .node = node,
        .w = w,
        .file = node->file,
        .loop = node->loop,
        .host = w->host,
        .head = w->offset - w->start,
        .tail = w->start + w->length - after,
    };
    bool head_zero, tail_zero;
    int ret = cow_co_is_zero(&c, w->start, c.head, &head_zero);

    if (ret == 0)
        ret = cow_co_is_zero(&c, after, c.tail, &tail_zero);
    if (ret == 0 && !(head_zero && tail_zero))
        ret = cow_co_load(&c, head_zero, tail_zero);
    if (ret == 0)
        ret = cow_co_trim(&c);
    if (ret == 0)
        ret = cow_co_store(&c);
    aio_buf_put(c.loop, c.buf, c.buf_size);
    return ret;
}
