/*
 * Guest reads.
 *
 * Each stretch that is alike is one request to whoever has the data: the image file, the backing file, a worker that
 * decompresses, or nobody. A read of host clusters is a data section, so the clusters are not reused under it.
 */
#include "block/drivers/qcow2/event.h"
#include "block/util/iovec.h"

int q2_co_read_backing(Qcow2 *q, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    Child *backing = q->node->backing;
    uint64_t size = backing ? backing->node->size : 0, inside = offset < size ? u64_min(bytes, size - offset) : 0;

    if (inside < bytes)
        iov_memset(vec->iov, vec->n, vec_offset + inside, 0, bytes - inside);
    if (!inside)
        return 0;
    q2_co_event(q, BLKDEBUG_EVENT_READ_BACKING_AIO);
    return child_co_preadv(backing, offset, inside, vec, vec_offset, 0);
}

/* One stretch that is alike. */
static int read_co_piece(void *opaque, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset)
{
    Qcow2 *q = opaque;
    unsigned phase;
    int ret;

    switch (map->kind) {
    case Q2_NORMAL:
        phase = q2_data_enter(q);
        q2_co_event(q, BLKDEBUG_EVENT_READ_AIO);
        ret = child_co_preadv(q->node->file, map->host, map->bytes, vec, vec_offset, 0);
        q2_data_leave(q, phase);
        return ret;
    case Q2_PACKED:
        return q2_co_read_packed(q, map->entry, offset, map->bytes, vec, vec_offset);
    case Q2_UNALLOCATED:
        return q2_co_read_backing(q, offset, map->bytes, vec, vec_offset);
    default:
        iov_memset(vec->iov, vec->n, vec_offset, 0, map->bytes);
        return 0;
    }
}

/* Several stretches, of which @map is the first. */
static int read_co_pieces(Qcow2 *q, Extent *map, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    Pieces all = {.loop = q->node->loop, .owner = q, .vec = vec, .fn = read_co_piece};
    int ret = 0;

    for (;;) {
        pieces_co_add(&all, map, offset, vec_offset);
        offset += map->bytes;
        vec_offset += map->bytes;
        bytes -= map->bytes;
        if (!bytes || all.ret < 0)
            break;
        ret = q2_co_map(q, offset, bytes, map);
        if (ret < 0)
            break;
    }
    int first = pieces_co_wait(&all);
    return first < 0 ? first : ret;
}

int q2_co_read(Qcow2 *q, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    Extent map;
    int ret = q2_co_map(q, offset, bytes, &map);

    if (G_UNLIKELY(ret < 0))
        return ret;
    if (G_LIKELY(map.bytes == bytes))
        return read_co_piece(q, &map, offset, vec, vec_offset);
    return read_co_pieces(q, &map, offset, bytes, vec, vec_offset);
}

int q2_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    Qcow2 *q = q2_of(node);

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    if (!vec) /* a prefetch without a buffer has no side effect here */
        return 0;
    return q2_co_read(q, offset, bytes, vec, vec_offset);
}
