/*
 * Compressed clusters.
 *
 * Written: compressed first, then room is taken for just that many bytes, packed behind the last; then the data, then
 * the L2 entry in memory, as for any other write. Each host cluster counts one reference for every compressed cluster
 * that lies in it, even in part. A cluster that does not get smaller is written plainly.
 */
#include "block/drivers/qcow2/event.h"
#include "block/util/iovec.h"

int q2_co_read_packed(Qcow2 *q, uint64_t entry, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    Loop *loop = q->node->loop;
    uint64_t at, size, in = q2_in_cluster(q, offset);
    uint8_t *packed, *plain;
    unsigned phase = q2_data_enter(q);
    int ret;

    q2_packed_range(q, entry, &at, &size);
    packed = aio_buf_get(loop, size);
    plain = aio_buf_get(loop, q->cluster_size);
    ret = packed && plain ? q2_co_packed_load(q, at, size, packed) : -ENOMEM;
    q2_data_leave(q, phase);
    if (ret == 0)
        ret = q2_co_decompress(q, packed, size, plain, q->cluster_size);
    if (ret == 0)
        iov_from_buf(vec->iov, vec->n, vec_offset, plain + in, bytes);
    aio_buf_put(loop, packed, size);
    aio_buf_put(loop, plain, q->cluster_size);
    return ret;
}

/* Writes @size compressed bytes and points the entry of guest cluster @gc to them. The cluster is claimed. */
static int packed_co_store(Qcow2 *q, uint64_t gc, const uint8_t *packed, size_t size)
{
    uint64_t at, sectors;
    CacheTable *table;
    uint8_t *data = NULL;
    unsigned i;
    int ret;

    q2_co_event(q, BLKDEBUG_EVENT_CLUSTER_ALLOC_BYTES);
    ret = q2_co_alloc_bytes(q, size, &at);

    if (ret < 0)
        return ret;
    ret = q2_co_packed_store(q, at, size, packed);
    if (ret == 0)
        q2_co_event(q, BLKDEBUG_EVENT_L2_UPDATE_COMPRESSED);
    if (ret == 0)
        ret = q2_co_l2_for_write(q, gc, &table, &i);
    if (ret == 0) {
        data = table_cache_modify(&q->l2, table);
        ret = data ? 0 : -ENOMEM;
    }
    if (ret < 0) {
        q2_co_unref(q, at, size, Q2_FREE_NEVER);
        return ret;
    }
    q2_free_entry_later(q, q2_l2_entry(q, data, i), Q2_FREE_OTHER);
    sectors = (at + size - 1) / 512 - at / 512;
    q2_l2_set(q, data, i, at | Q2_COMPRESSED | sectors << q->csize_shift, 0);
    return 0;
}

/* One cluster; what @bytes lacks of it lies behind the end of the disk. */
static int packed_co_write(Qcow2 *q, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    Loop *loop = q->node->loop;
    size_t size = q->cluster_size;
    uint8_t *plain = aio_buf_get(loop, size), *packed = aio_buf_get(loop, size);
    ssize_t ret = plain && packed ? 0 : -ENOMEM;
    Claim claim;

    if (ret == 0) {
        iov_to_buf(vec->iov, vec->n, vec_offset, plain, bytes);
        memset(plain + bytes, 0, size - bytes);
        ret = q2_co_compress(q, plain, size, packed, size - 1);
    }
    if (ret > 0) {
        claim_co_wait(&q->claims, &claim, offset >> q->sub_bits, q->subs);
        ret = packed_co_store(q, offset >> q->cluster_bits, packed, (size_t)ret);
        claim_end(&q->claims, &claim);
        q2_free_co_throttle(q);
    } else if (ret == 0) {
        ret = q2_co_pwritev(q->node, offset, bytes, vec, vec_offset, 0);
    }
    aio_buf_put(loop, plain, size);
    aio_buf_put(loop, packed, size);
    return (int)ret;
}

int q2_co_pwritev_compressed(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    Qcow2 *q = q2_of(node);
    int ret = 0;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    if (q2_has_data_file(q) || q->crypt)
        return -ENOTSUP;
    if (q2_in_cluster(q, offset) || (q2_in_cluster(q, bytes) && offset + bytes != q->header.size))
        return -EINVAL;
    if (!q->wrote)
        ret = q2_co_before_first_write(q);
    while (bytes && ret == 0) {
        uint64_t n = u64_min(bytes, q->cluster_size);
        ret = packed_co_write(q, offset, n, vec, vec_offset);
        if (q2_free_co_reclaim(q, ret))
            ret = packed_co_write(q, offset, n, vec, vec_offset);
        offset += n;
        vec_offset += n;
        bytes -= n;
    }
    return ret;
}
