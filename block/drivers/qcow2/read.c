/*
 * Guest reads.
 *
 * Each stretch that is alike is one request to whoever has the data: the image file, the backing file, a worker that
 * decompresses, or nobody. A read of host clusters is a data section, so the clusters are not reused under it.
 */
#include "block/drivers/qcow2/event.h"
#include "block/util/iovec.h"

int q2_co_read_extent(void *opaque, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset)
{
    Qcow2 *q = opaque;
    unsigned phase;
    int ret;

    switch (map->kind) {
    case Q2_NORMAL:
        phase = q2_data_enter(q);
        ret = q2_co_data_read(q, offset, map->host, map->bytes, vec, vec_offset);
        q2_data_leave(q, phase);
        return ret;
    case Q2_PACKED:
        return q2_co_read_packed(q, map->entry, offset, map->bytes, vec, vec_offset);
    case Q2_UNALLOCATED:
        return backing_co_read(q->node, offset, map->bytes, vec, vec_offset);
    default:
        iov_memset(vec->iov, vec->n, vec_offset, 0, map->bytes);
        return 0;
    }
}

int q2_co_read(Qcow2 *q, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    return extents_co_read(q->node, &q2_extent_ops, offset, bytes, vec, vec_offset, 0);
}

int q2_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    Qcow2 *q = q2_of(node);

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    if (!vec) /* a prefetch without a buffer has no side effect here */
        return 0;
    return extents_co_read(node, &q2_extent_ops, offset, bytes, vec, vec_offset, flags);
}
