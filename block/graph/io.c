/*
 * Reads and writes.
 *
 * Nearly every request fits: aligned, inside the node, within the limits. It goes straight to the driver. What does not
 * fit is cut into pieces: whole blocks in place, partial blocks (and buffers that the driver cannot take) through a
 * bounce buffer, read first where the rest of the block must survive.
 */
#include "block/graph/debug.h"
#include "block/graph/graph-int.h"
#include "block/aio/io.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"

#define BOUNCE_MAX (1024 * 1024) /* bytes of one bounce buffer, unless a single block is larger */

/* Can the driver work on this memory? O_DIRECT wants every address and every length aligned; the length of the last
 * piece is that of the request. */
static bool vec_fits(const Limits *l, const IoVec *vec, size_t vec_offset, uint64_t bytes)
{
    if (l->min_mem_align <= 1)
        return true;
    for (int i = 0; i < vec->n && bytes; i++) {
        size_t len = vec->iov[i].iov_len;
        if (vec_offset >= len) {
            vec_offset -= len;
            continue;
        }
        size_t n = u64_min(len - vec_offset, bytes);
        if (!is_aligned((uintptr_t)vec->iov[i].iov_base + vec_offset, l->min_mem_align) ||
            (n != bytes && !is_aligned(n, l->request_alignment)))
            return false;
        bytes -= n;
        vec_offset = 0;
    }
    return true;
}

static uint64_t max_transfer(const Node *node)
{
    const Limits *l = &node->limits;

    return l->max_transfer ? align_down(l->max_transfer, l->request_alignment)
                           : align_down(G_MAXINT32, l->request_alignment);
}

/* The driver's read, or the filtered child's. */
static int driver_co_read(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    if (node->drv->co_preadv)
        return node->drv->co_preadv(node, offset, bytes, vec, vec_offset, flags);
    if (node_filtered_child(node))
        return child_co_preadv(node->file, offset, bytes, vec, vec_offset, flags);
    return -ENOTSUP;
}

/* How much of a request that does not fit can be handled next, and how. */
typedef struct Piece {
    uint64_t bytes;       /* of the request */
    bool bounce;          /* through a buffer: */
    uint64_t start, span; /* the blocks around it */
} Piece;

static Piece next_piece(const Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    uint64_t align = node->limits.request_alignment, limit = max_transfer(node);
    uint64_t head = offset & (align - 1);
    Piece piece = {.bytes = bytes};

    if (vec_fits(&node->limits, vec, vec_offset, bytes)) {
        if (!head && bytes >= align) {
            piece.bytes = u64_min(align_down(bytes, align), limit);
            return piece;
        }
        piece.bytes = u64_min(bytes, align - head); /* one partial block */
    } else {
        piece.bytes = u64_min(bytes, u64_max(align, u64_min(BOUNCE_MAX, limit)) - head);
    }
    piece.bounce = true;
    piece.start = offset - head;
    piece.span = align_up(offset + piece.bytes, align) - piece.start;
    return piece;
}

static int node_co_read_bounced(Node *node, const Piece *piece, uint64_t offset, const IoVec *vec, size_t vec_offset)
{
    void *buf = aio_buf_get(node->loop, piece->span);
    struct iovec iov;
    IoVec whole;
    int ret;

    if (!buf)
        return -ENOMEM;
    iovec_one(&whole, &iov, buf, piece->span);
    ret = driver_co_read(node, piece->start, piece->span, &whole, 0, 0);
    if (ret == 0)
        iov_from_buf(vec->iov, vec->n, vec_offset, (char *)buf + (offset - piece->start), piece->bytes);
    aio_buf_put(node->loop, buf, piece->span);
    return ret;
}

static int node_co_read_pieces(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    while (bytes) {
        Piece piece = next_piece(node, offset, bytes, vec, vec_offset);
        int ret = piece.bounce ? node_co_read_bounced(node, &piece, offset, vec, vec_offset)
                               : driver_co_read(node, offset, piece.bytes, vec, vec_offset, 0);
        if (ret < 0)
            return ret;
        offset += piece.bytes;
        vec_offset += piece.bytes;
        bytes -= piece.bytes;
    }
    return 0;
}

int node_co_read(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    uint64_t align = node->limits.request_alignment;

    if (G_UNLIKELY(offset + bytes > node->size)) {
        flags = 0;
        uint64_t inside = offset < node->size ? node->size - offset : 0;
        iov_memset(vec->iov, vec->n, vec_offset + inside, 0, bytes - inside);
        bytes = inside;
    }
    if (G_LIKELY(!((offset | bytes) & (align - 1)) && bytes <= max_transfer(node) && bytes &&
                 vec_fits(&node->limits, vec, vec_offset, bytes)))
        return driver_co_read(node, offset, bytes, vec, vec_offset, flags & REQ_MAY_SKIP_ZEROES);
    return node_co_read_pieces(node, offset, bytes, vec, vec_offset);
}

int child_co_preadv(Child *child, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    Node *node = child->node;
    int ret;

    node_in_flight_inc(node);
    if (G_UNLIKELY(flags & REQ_COPY_ON_READ)) {
        TrackedRequest req;
        g_assert(child->perm & (PERM_WRITE | PERM_WRITE_UNCHANGED));
        tracked_begin(&req, node, offset, bytes);
        ret = node_co_read_copying(node, &req, offset, bytes, vec, vec_offset);
        tracked_end(&req);
    } else {
        ret = node_co_read(node, offset, bytes, vec, vec_offset, flags);
    }
    node_in_flight_dec(node);
    return ret;
}

/* The driver's write, or the filtered child's. */
static int driver_co_write(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                           ReqFlags flags)
{
    const Driver *drv = node->drv;

    if (flags & REQ_WRITE_COMPRESSED) {
        if (drv->co_pwritev_compressed)
            return drv->co_pwritev_compressed(node, offset, bytes, vec, vec_offset);
        if (!node_filtered_child(node))
            return -ENOTSUP;
    } else if (drv->co_pwritev) {
        return drv->co_pwritev(node, offset, bytes, vec, vec_offset, flags & node->supported_write_flags);
    }
    if (node_filtered_child(node))
        return child_co_pwritev(node->file, offset, bytes, vec, vec_offset,
                                flags & (node->supported_write_flags | ~REQ_FUA));
    return -ENOTSUP;
}

/* An aligned write, split at the limits. */
static int node_co_write_split(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                               ReqFlags flags)
{
    uint64_t limit = max_transfer(node);

    node_co_debug_event(node, BLKDEBUG_EVENT_PWRITEV);
    for (;;) {
        uint64_t n = u64_min(bytes, limit);
        int ret = driver_co_write(node, offset, n, vec, vec_offset, flags);
        if (ret < 0 || n == bytes)
            return ret;
        offset += n;
        vec_offset += n;
        bytes -= n;
    }
}

/* Writes part of some blocks: reads the partial ones at both ends, puts the new bytes in, writes whole blocks. */
static int node_co_write_bounced(Node *node, const Piece *piece, uint64_t offset, const IoVec *vec, size_t vec_offset,
                                 ReqFlags flags)
{
    uint64_t align = node->limits.request_alignment, last = piece->span - align;
    char *buf = aio_buf_get(node->loop, piece->span);
    struct iovec iov;
    IoVec part;
    int ret = 0;

    if (!buf)
        return -ENOMEM;
    if (offset != piece->start || piece->span == align) {
        /* A block of which only the beginning is written is the tail. */
        bool head = offset != piece->start;
        iovec_one(&part, &iov, buf, align);
        node_co_debug_event(node, head ? BLKDEBUG_EVENT_PWRITEV_RMW_HEAD : BLKDEBUG_EVENT_PWRITEV_RMW_TAIL);
        ret = node_co_read(node, piece->start, align, &part, 0, 0);
        node_co_debug_event(node, head ? BLKDEBUG_EVENT_PWRITEV_RMW_AFTER_HEAD : BLKDEBUG_EVENT_PWRITEV_RMW_AFTER_TAIL);
    }
    if (ret == 0 && last && offset + piece->bytes != piece->start + piece->span) {
        iovec_one(&part, &iov, buf + last, align);
        node_co_debug_event(node, BLKDEBUG_EVENT_PWRITEV_RMW_TAIL);
        ret = node_co_read(node, piece->start + last, align, &part, 0, 0);
        node_co_debug_event(node, BLKDEBUG_EVENT_PWRITEV_RMW_AFTER_TAIL);
    }
    if (ret == 0) {
        iov_to_buf(vec->iov, vec->n, vec_offset, buf + (offset - piece->start), piece->bytes);
        iovec_one(&part, &iov, buf, piece->span);
        ret = node_co_write_split(node, piece->start, piece->span, &part, 0, flags);
    }
    aio_buf_put(node->loop, buf, piece->span);
    return ret;
}

int node_co_write_padded(Node *node, TrackedRequest *req, uint64_t offset, uint64_t bytes, const IoVec *vec,
                         size_t vec_offset, ReqFlags flags)
{
    uint64_t align = node->limits.request_alignment;

    if (G_LIKELY(!((offset | bytes) & (align - 1)) && vec_fits(&node->limits, vec, vec_offset, bytes)))
        return node_co_write_split(node, offset, bytes, vec, vec_offset, flags);
    if (!req->serialising)
        tracked_co_serialise(req, align);
    while (bytes) {
        Piece piece = next_piece(node, offset, bytes, vec, vec_offset);
        int ret = piece.bounce ? node_co_write_bounced(node, &piece, offset, vec, vec_offset, flags)
                               : node_co_write_split(node, offset, piece.bytes, vec, vec_offset, flags);
        if (ret < 0)
            return ret;
        offset += piece.bytes;
        vec_offset += piece.bytes;
        bytes -= piece.bytes;
    }
    return 0;
}

bool node_may_grow(const Node *node)
{
    while (node && !node->drv->may_grow)
        node = node->drv->is_filter && node->file ? node->file->node : NULL;
    return node != NULL;
}

static void node_grown(Node *node, uint64_t size)
{
    if (!node_resize_bitmaps(node, size, NULL))
        g_printerr("storage-daemon: no memory for the dirty bitmaps of node '%s' as it grows\n", node->name);
    node_set_size(node, size);
}

int node_co_write_done(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags, int ret)
{
    node->write_gen++;
    if (ret == 0 && G_UNLIKELY(offset + bytes > node->size))
        node_grown(node, offset + bytes);
    if (!(flags & REQ_WRITE_UNCHANGED) && node->bitmaps.head)
        node_mark_dirty(node, offset, bytes);
    if (ret == 0 && offset + bytes > node->stats.highest_write)
        node->stats.highest_write = offset + bytes;
    if (ret == 0 && (flags & REQ_FUA) && !(node->supported_write_flags & REQ_FUA))
        ret = node_co_flush(node);
    return ret;
}

/* Does detect-zeroes turn this write into a write of zeroes? Adds REQ_MAY_UNMAP where that is wanted. */
static bool write_is_zero(const Node *node, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags *flags)
{
    if (G_LIKELY(node->flags.detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF) || (*flags & REQ_WRITE_COMPRESSED) ||
        !iov_is_zero(vec->iov, vec->n, vec_offset, bytes))
        return false;
    if (node->flags.detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP)
        *flags |= REQ_MAY_UNMAP;
    return true;
}

int child_co_pwritev(Child *child, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    Node *node = child->node;
    TrackedRequest req;
    int ret;

    g_assert(child->perm & (PERM_WRITE | (flags & REQ_WRITE_UNCHANGED ? PERM_WRITE_UNCHANGED : 0)));
    if (G_UNLIKELY(!bytes))
        return 0;
    if (G_UNLIKELY(offset + bytes > node->size) && !((child->perm & PERM_RESIZE) && node_may_grow(node)))
        return -EIO;
    if (G_UNLIKELY(node->failed) && (flags & REQ_FUA))
        return -EIO;
    node_in_flight_inc(node);
    tracked_begin(&req, node, offset, bytes);
    tracked_co_wait(&req);
    if (write_is_zero(node, bytes, vec, vec_offset, &flags))
        ret = node_co_write_zeroes_tracked(node, &req, offset, bytes, flags);
    else
        ret = node_co_write_padded(node, &req, offset, bytes, vec, vec_offset, flags);
    node_co_debug_event(node, BLKDEBUG_EVENT_PWRITEV_DONE);
    ret = node_co_write_done(node, offset, bytes, flags, ret);
    tracked_end(&req);
    node_in_flight_dec(node);
    return ret;
}

int child_co_pread(Child *child, uint64_t offset, uint64_t bytes, void *buf, ReqFlags flags)
{
    struct iovec iov;
    IoVec vec;

    iovec_one(&vec, &iov, buf, bytes);
    return child_co_preadv(child, offset, bytes, &vec, 0, flags);
}

int child_co_pwrite(Child *child, uint64_t offset, uint64_t bytes, const void *buf, ReqFlags flags)
{
    struct iovec iov;
    IoVec vec;

    iovec_one(&vec, &iov, (void *)buf, bytes);
    return child_co_pwritev(child, offset, bytes, &vec, 0, flags);
}
