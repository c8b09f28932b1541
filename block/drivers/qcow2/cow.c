/*
 * Filling new clusters: what a write brings, and around it what was there before.
 *
 * Guarantees: when q2_cow_co_write() has returned 0, every byte of the new clusters reads as it should once the L2
 * entry points to them. The entry comes later (write.c), so a crash in between shows the old content.
 *
 * As few requests as possible: what is known to be zero is not read, and in clusters that the file has never held
 * (Q2Run.fresh) not written either; both edges are read in one go where they are close; all is written in one go.
 */
#include "block/drivers/qcow2/event.h"
#include "block/util/iovec.h"

#define GAP_MAX (16 * 1024) /* read over the new data between the edges rather than reading twice */

/* One write, in pieces: zeroes or buffer before, the new data, zeroes or buffer behind. */
typedef struct Cow {
    Qcow2 *q;
    uint64_t offset, bytes; /* guest: the new data */
    const IoVec *vec;
    size_t vec_offset;
    uint64_t start;           /* guest: where the new clusters begin */
    uint64_t host;            /* and in the image */
    uint64_t head, tail;      /* bytes to be written before and behind */
    uint8_t *buf;             /* content of head, gap and tail; NULL: both are zero */
    size_t buf_size, tail_at; /* where the tail is in buf */
} Cow;

/* Is the old content of the cluster at guest @offset known to be zero? */
static int cow_co_is_zero(Qcow2 *q, uint64_t offset, uint64_t bytes, bool *ret)
{
    Q2Map map;
    int r = 0;

    *ret = true;
    if (!bytes || offset >= q->header.size)
        return 0;
    r = q2_co_map(q, offset, 1, &map);
    if (r == 0)
        *ret = map.kind == Q2_ZERO_PLAIN || map.kind == Q2_ZERO_ALLOC ||
               (map.kind == Q2_UNALLOCATED && !q2_backing_at(q, offset));
    return r;
}

/* Reads [@offset, @offset + @bytes) as it is now into @buf; zeroes behind the end of the disk. */
static int cow_co_read(Qcow2 *q, uint64_t offset, uint64_t bytes, uint8_t *buf)
{
    uint64_t inside = offset < q->header.size ? u64_min(bytes, q->header.size - offset) : 0;
    struct iovec iov;
    IoVec vec;

    memset(buf + inside, 0, bytes - inside);
    if (!inside)
        return 0;
    q2_co_event(q, BLKDEBUG_EVENT_COW_READ);
    iovec_one(&vec, &iov, buf, inside);
    return q2_co_read(q, offset, inside, &vec, 0);
}

/* Gets the old content of both edges, unless it is zero. */
static int cow_co_load(Cow *c, bool head_zero, bool tail_zero)
{
    uint64_t after = c->offset + c->bytes;
    bool together = !head_zero && !tail_zero && c->bytes <= GAP_MAX;
    int ret = 0;

    c->tail_at = c->head + (together ? c->bytes : 0);
    c->buf_size = c->tail_at + c->tail;
    c->buf = aio_buf_get(c->q->node->loop, c->buf_size);
    if (!c->buf)
        return -ENOMEM;
    if (together) {
        ret = cow_co_read(c->q, c->start, c->buf_size, c->buf);
    } else {
        if (head_zero)
            memset(c->buf, 0, c->head);
        else
            ret = cow_co_read(c->q, c->start, c->head, c->buf);
        if (tail_zero)
            memset(c->buf + c->tail_at, 0, c->tail);
        else if (ret == 0)
            ret = cow_co_read(c->q, after, c->tail, c->buf + c->tail_at);
    }
    if (ret == 0 && bytes_are_zero(c->buf, c->head) && bytes_are_zero(c->buf + c->tail_at, c->tail)) {
        aio_buf_put(c->q->node->loop, c->buf, c->buf_size);
        c->buf = NULL;
    }
    return ret;
}

/* Zero edges: none at all in fresh clusters, by write-zeroes where they are long. What is left of them (to a block
 * boundary of the file) goes with the data. */
static int cow_co_trim(Cow *c, bool fresh)
{
    uint64_t align = c->q->node->file->node->limits.request_alignment;
    uint64_t head = c->offset & (align - 1), tail = -(c->offset + c->bytes) & (align - 1);
    int ret = 0;

    if (c->buf || (!fresh && c->head + c->tail <= 2 * Q2_ZEROES))
        return 0;
    if (c->head > head || c->tail > tail)
        q2_co_event(c->q, BLKDEBUG_EVENT_CLUSTER_ALLOC_SPACE);
    if (!fresh && c->head > head)
        ret = child_co_pwrite_zeroes(c->q->node->file, c->host, c->head - head, 0);
    if (!fresh && c->tail > tail && ret == 0)
        ret = child_co_pwrite_zeroes(c->q->node->file, c->host + c->head + c->bytes + tail, c->tail - tail, 0);
    c->host += c->head - head;
    c->head = head;
    c->tail = tail;
    return ret;
}

static int push_edge(const Cow *c, struct iovec *iov, uint64_t bytes, const uint8_t *content)
{
    int n = 0;

    if (content && bytes) {
        iov[n++] = (struct iovec){.iov_base = (void *)content, .iov_len = bytes};
        return n;
    }
    for (; bytes; n++) {
        iov[n] = (struct iovec){.iov_base = c->q->zeroes, .iov_len = u64_min(bytes, Q2_ZEROES)};
        bytes -= iov[n].iov_len;
    }
    return n;
}

static int cow_co_store(Cow *c)
{
    struct iovec few[16], *iov = few;
    size_t room = (size_t)c->vec->n + 8, room_bytes = room * sizeof(iov[0]);
    IoVec all = {.size = c->head + c->bytes + c->tail};
    int ret;

    ret = q2_co_meta_check(c->q, 0, c->host, all.size);
    if (ret < 0)
        return ret;
    if (c->head || c->tail)
        q2_co_event(c->q, BLKDEBUG_EVENT_COW_WRITE);
    q2_co_event(c->q, BLKDEBUG_EVENT_WRITE_AIO);
    if (!c->head && !c->tail)
        return child_co_pwritev(c->q->node->file, c->host, c->bytes, c->vec, c->vec_offset, 0);
    if (room > G_N_ELEMENTS(few))
        iov = aio_buf_get(c->q->node->loop, room_bytes);
    if (!iov)
        return -ENOMEM;
    all.iov = iov;
    all.n = push_edge(c, iov, c->head, c->buf);
    all.n += iov_slice(iov + all.n, (int)room - all.n, c->vec->iov, c->vec->n, c->vec_offset, c->bytes);
    all.n += push_edge(c, iov + all.n, c->tail, c->buf ? c->buf + c->tail_at : NULL);
    ret = child_co_pwritev(c->q->node->file, c->host, all.size, &all, 0, 0);
    if (iov != few)
        aio_buf_put(c->q->node->loop, iov, room_bytes);
    return ret;
}

int q2_cow_co_write(Qcow2 *q, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, uint64_t first,
                    const Q2Run *run)
{
    uint64_t start = first << q->cluster_bits;
    Cow c = {
        .q = q,
        .offset = offset,
        .bytes = bytes,
        .vec = vec,
        .vec_offset = vec_offset,
        .start = start,
        .host = run->offset,
        .head = offset - start,
        .tail = start + (run->n << q->cluster_bits) - (offset + bytes),
    };
    bool head_zero, tail_zero;
    int ret = cow_co_is_zero(q, start, c.head, &head_zero);

    if (ret == 0)
        ret = cow_co_is_zero(q, offset + bytes, c.tail, &tail_zero);
    if (ret == 0 && !(head_zero && tail_zero))
        ret = cow_co_load(&c, head_zero, tail_zero);
    if (ret == 0)
        ret = cow_co_trim(&c, run->fresh);
    if (ret == 0)
        ret = cow_co_store(&c);
    aio_buf_put(q->node->loop, c.buf, c.buf_size);
    return ret;
}
