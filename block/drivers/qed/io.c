/*
 * Guest requests.
 *
 * Guarantees: a write to clusters that are there goes there and changes no table. Any other write gets new clusters:
 * data and its surroundings first, then the L2 entries in memory, which table.c writes out later behind a barrier. A
 * write that fails half way gives its clusters back and leaves the entries alone.
 *
 * Claims: while a write fills new clusters, the guest range is claimed, and whoever else would change the same entries
 * waits. Requests to other clusters, and to clusters that have theirs, do not even look.
 */
#include "block/drivers/qed/qed.h"
#include "block/util/iovec.h"

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static int extent_co_map(void *state, uint64_t offset, uint64_t bytes, Extent *ret)
{
    return qed_co_map(state, offset, bytes, ret);
}

static int extent_co_read(void *state, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset)
{
    Qed *q = state;

    if (map->kind == QED_UNALLOCATED)
        return backing_co_read(q->node, offset, map->bytes, vec, vec_offset);
    if (map->kind == QED_DATA) {
        child_co_debug_event(q->node->file, BLKDEBUG_EVENT_READ_AIO);
        return child_co_preadv(q->node->file, map->host, map->bytes, vec, vec_offset, 0);
    }
    iov_memset(vec->iov, vec->n, vec_offset, 0, map->bytes);
    return 0;
}

static unsigned extent_status(int kind)
{
    switch (kind) {
    case QED_DATA:
        return STATUS_DATA | STATUS_ALLOCATED | STATUS_OFFSET_VALID;
    case QED_ZERO:
        return STATUS_ZERO | STATUS_ALLOCATED;
    default:
        return 0;
    }
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static int data_co_write(void *state, uint64_t offset, uint64_t host, uint64_t bytes, const IoVec *vec,
                         size_t vec_offset)
{
    Qed *q = state;

    child_co_debug_event(q->node->file, BLKDEBUG_EVENT_WRITE_AIO);
    return child_co_pwritev(q->node->file, host, bytes, vec, vec_offset, 0);
}

static int extent_co_write(void *state, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset)
{
    return data_co_write(state, offset, map->host, map->bytes, vec, vec_offset);
}

/* Is the old content of the cluster at guest @offset known to be zero? */
static int cow_co_is_zero(void *state, uint64_t offset, uint64_t bytes, bool *ret)
{
    Qed *q = state;
    Extent map;
    int r = qed_co_map(q, offset, 1, &map);

    if (r == 0)
        *ret = map.kind == QED_ZERO || (map.kind == QED_UNALLOCATED && !backing_at(q->node, offset));
    return r;
}

static int cow_co_read(void *state, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset);

static int cow_co_zero(void *state, uint64_t offset, uint64_t host, uint64_t bytes)
{
    Qed *q = state;

    return child_co_pwrite_zeroes(q->node->file, host, bytes, 0);
}

static const CowOps cow_ops = {
    .co_is_zero = cow_co_is_zero, .co_read = cow_co_read, .co_write = data_co_write, .co_zero = cow_co_zero};

/* Fills the new clusters of @run and points the entries from guest cluster @first on to them. */
static int run_co_write(Qed *q, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, uint64_t first,
                        const QedRun *run)
{
    const CowWrite w = {
        .offset = offset,
        .bytes = bytes,
        .vec = vec,
        .vec_offset = vec_offset,
        .start = first << q->cluster_bits,
        .length = run->n << q->cluster_bits,
        .host = run->offset,
        .disk_size = q->header.image_size,
        .align = q->node->file->node->limits.request_alignment,
        .fresh = run->fresh,
    };
    CacheTable *slice;
    uint8_t *data;
    unsigned i;
    int ret = cow_co_write(q->node, &cow_ops, &w);

    if (ret == 0)
        ret = qed_co_l2_for_write(q, first, &slice, &i);
    if (ret < 0)
        return ret;
    data = table_cache_modify(&q->tables, slice);
    if (!data)
        return -ENOMEM;
    for (uint64_t k = 0; k < run->n; k++)
        store_le64(data + (i + k) * 8, run->offset + (k << q->cluster_bits));
    return 0;
}

/* How many of the @max entries at @data have no cluster. */
static uint64_t count_empty(const uint8_t *data, uint64_t max)
{
    uint64_t n = 0;

    while (n < max && load_le64(data + n * 8) <= QED_ENTRY_ZERO)
        n++;
    return n;
}

/* Writes as much of the range as one run of new clusters takes. */
static int extent_co_write_new(void *state, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                               uint64_t *done)
{
    Qed *q = state;
    uint64_t first = offset >> q->cluster_bits, n;
    Claim *other, claim;
    CacheTable *slice;
    QedRun run;
    unsigned i;
    int ret = qed_co_l2_for_write(q, first, &slice, &i);

    *done = 0;
    if (ret < 0)
        return ret;
    if ((other = claim_find(q->claims, first, 1))) {
        coqueue_co_wait(&other->waiters, NULL);
        return 0;
    }
    n = ((offset + bytes - 1) >> q->cluster_bits) - first + 1;
    n = u64_min(n, q->tables.table_size / 8 - i);
    n = count_empty(slice->data + i * 8, claim_room(q->claims, first, n));
    if (!n)
        return 0;
    claim_begin(&q->claims, &claim, first, n);
    ret = qed_co_before_write(q, true);
    if (ret == 0)
        ret = qed_co_alloc(q, n, false, &run);
    if (ret == 0) {
        bytes = u64_min(bytes, ((first + run.n) << q->cluster_bits) - offset);
        ret = run_co_write(q, offset, bytes, vec, vec_offset, first, &run);
        if (ret < 0)
            qed_unalloc(q, &run);
    }
    claim_end(&q->claims, &claim);
    *done = bytes;
    return ret;
}

static const ExtentOps extent_ops = {
    .co_map = extent_co_map,
    .co_read = extent_co_read,
    .co_write = extent_co_write,
    .co_write_new = extent_co_write_new,
    .status = extent_status,
};

static int cow_co_read(void *state, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    return extents_co_read(((Qed *)state)->node, &extent_ops, offset, bytes, vec, vec_offset, 0);
}

int qed_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    return extents_co_read(node, &extent_ops, offset, bytes, vec, vec_offset, flags);
}

int qed_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags)
{
    int ret = qed_co_before_write(qed_of(node), false);

    return ret < 0 ? ret : extents_co_write(node, &extent_ops, offset, bytes, vec, vec_offset);
}

int qed_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    return extents_co_status(node, &extent_ops, offset, bytes, ret);
}

/* ---- zeroes ------------------------------------------------------------------------------------------------------ */

/* Turns entries of up to @n clusters without data, from guest cluster @gc on, into zeroes. *@done 0: look again. */
static int zero_co_entries(Qed *q, uint64_t gc, uint64_t n, uint64_t *done)
{
    CacheTable *slice;
    uint8_t *data;
    unsigned i;
    int ret = qed_co_before_write(q, true);

    *done = 0;
    if (ret == 0)
        ret = qed_co_l2_for_write(q, gc, &slice, &i);
    if (ret < 0)
        return ret;
    n = u64_min(n, q->tables.table_size / 8 - i);
    n = count_empty(slice->data + i * 8, claim_room(q->claims, gc, n));
    if (!n || claim_find(q->claims, gc, n))
        return 0;
    data = table_cache_modify(&q->tables, slice);
    if (!data)
        return -ENOMEM;
    for (uint64_t k = 0; k < n; k++)
        store_le64(data + (i + k) * 8, QED_ENTRY_ZERO);
    *done = n;
    return 0;
}

/* One extent: data is zeroed where it is, nothing needs nothing, and what the backing file shows is covered by zero
 * entries, for which the range has to be whole clusters. *@done: bytes, 0: look again. */
static int zero_co_extent(Qed *q, const Extent *map, uint64_t offset, bool whole, ReqFlags flags, uint64_t *done)
{
    uint64_t gc = offset >> q->cluster_bits, n = ((offset + map->bytes - 1) >> q->cluster_bits) - gc + 1;
    Claim *other;
    int ret;

    *done = map->bytes;
    if (map->kind == QED_DATA)
        return child_co_pwrite_zeroes(q->node->file, map->host, map->bytes, flags);
    if ((other = claim_find(q->claims, gc, n))) {
        coqueue_co_wait(&other->waiters, NULL);
        *done = 0;
        return 0;
    }
    if (map->kind == QED_ZERO || !backing_may_show(q->node, offset))
        return 0;
    if (!whole)
        return -ENOTSUP;
    ret = zero_co_entries(q, gc, n, &n);
    *done = u64_min(n << q->cluster_bits, map->bytes);
    return ret;
}

int qed_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    Qed *q = qed_of(node);
    bool to_end = offset + bytes == q->header.image_size; /* which is the end of the last cluster as well */
    bool whole = !qed_in_cluster(q, offset) && (!qed_in_cluster(q, bytes) || to_end);
    int ret = qed_co_before_write(q, false);

    while (bytes && ret == 0) {
        uint64_t done = 0;
        Extent map;
        ret = qed_co_map(q, offset, bytes, &map);
        if (ret == 0)
            ret = zero_co_extent(q, &map, offset, whole, flags & (REQ_MAY_UNMAP | REQ_NO_FALLBACK), &done);
        offset += done;
        bytes -= done;
    }
    return ret;
}

/* ---- size -------------------------------------------------------------------------------------------------------- */

/* The old end lies within a cluster of the backing file: gives the disk its own, which is zero behind the old end. */
static int grow_co_own_last(Qed *q)
{
    struct iovec iov = {.iov_base = iov_zeroes, .iov_len = 512};
    IoVec vec = {.iov = &iov, .n = 1, .size = iov.iov_len};

    return extents_co_write(q->node, &extent_ops, q->header.image_size, vec.size, &vec, 0);
}

/*
 * What the last cluster holds behind the old end must not come to light, nor what a longer backing file has: data
 * becomes zero, and zero entries cover the rest. All that is durable on return, so the size may follow.
 */
static int grow_co_hide(Qed *q, uint64_t size)
{
    uint64_t at = q->header.image_size, end = align_up(at, q->header.cluster_size);
    int ret = 0;

    if (q->node->backing)
        end = u64_max(end, q->node->backing->node->size);
    end = u64_min(end, size);
    while (at < end && ret == 0) {
        uint64_t done = 0;
        Extent map;
        ret = qed_co_map(q, at, end - at, &map);
        if (ret == 0 && map.kind == QED_UNALLOCATED && !backing_at(q->node, at))
            done = map.bytes; /* and so is the rest */
        else if (ret == 0 && map.kind == QED_UNALLOCATED && qed_in_cluster(q, at))
            ret = grow_co_own_last(q); /* and look again */
        else if (ret == 0)
            ret = zero_co_extent(q, &map, at, !qed_in_cluster(q, at), 0, &done);
        at += done;
    }
    if (ret == 0)
        ret = qed_co_commit(q);
    return ret == 0 ? child_co_flush(q->node->file) : ret;
}

bool qed_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error)
{
    Qed *q = qed_of(node);
    uint8_t field[8];
    int ret;

    if (prealloc != PREALLOC_MODE_OFF)
        return error_set(error, "Unsupported preallocation mode '%s'", qapi_PreallocMode_str(prealloc));
    if (!is_aligned(size, 512))
        return error_set(error, "The new size must be a multiple of 512");
    if (size > qed_max_size(q->header.cluster_size, q->header.table_size))
        return error_set(error, "The new size %" G_GUINT64_FORMAT " is more than the image's tables can describe",
                         size);
    if (size < q->header.image_size)
        return error_set(error, "Shrinking images is currently not supported");
    store_le64(field, size);
    ret = qed_co_before_write(q, false);
    if (ret == 0)
        ret = grow_co_hide(q, size);
    if (ret == 0)
        ret = child_co_pwrite(node->file, QED_H_IMAGE_SIZE, sizeof(field), field, 0);
    if (ret == 0)
        ret = child_co_flush(node->file);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not resize qed image to %" G_GUINT64_FORMAT " bytes", size);
    q->header.image_size = size;
    return true;
}
