/*
 * Changing the size of the disk.
 *
 * Growing: what the last cluster holds behind the old end is zeroed; a larger L1 table is made where needed (its
 * clusters' refcounts and its content durable, then the header's pointer to it, then the old one is freed); what the
 * tables have for the new part of the disk is dropped, and where a longer backing file would show, zeroes are put; new
 * clusters get their place where that is asked for (preallocate.c); all that is durable before the size, which is last.
 * Shrinking: first the size, then what lies behind it is let go of. All of that is durable step by step, so a crash
 * leaves the disk with the old or the new size, and leaks at worst.
 */
#include "block/drivers/qcow2/event.h"
#include "block/util/iovec.h"

static int resize_co_set_size(Qcow2 *q, uint64_t size)
{
    uint8_t old[8], field[8];
    int ret = q2_co_settle(q);

    store_be64(old, q->header.size);
    store_be64(field, size);
    if (ret == 0)
        ret = q2_co_header_switch(q, Q2_H_SIZE, old, field, sizeof(field), "resize-size");
    if (ret == 0)
        q->header.size = size;
    return ret;
}

/* Writes the L1 table into its new place, @run, and the header. Everything else has been committed. */
static int l1_co_write_new(Qcow2 *q, const Q2Run *run, uint32_t size)
{
    g_autofree uint8_t *raw = g_try_malloc0((size_t)size * 8);
    uint8_t old[12], field[12];
    int ret;

    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < q->l1_size; i++)
        store_be64(raw + (size_t)i * 8, q->l1[i]);
    ret = q2_co_commit_counts_locked(q); /* of the new place */
    if (ret == 0)
        ret = q2_co_meta_check(q, 0, run->offset, (uint64_t)size * 8);
    if (ret == 0)
        q2_co_event(q, BLKDEBUG_EVENT_L1_GROW_WRITE_TABLE);
    if (ret == 0)
        ret = child_co_pwrite(q->node->file, run->offset, (uint64_t)size * 8, raw, 0);
    if (ret == 0)
        ret = q2_co_barrier(q, "resize-l1");
    if (ret < 0)
        return ret;
    q2_co_event(q, BLKDEBUG_EVENT_L1_GROW_ACTIVATE_TABLE);
    store_be32(old, q->header.l1_size);
    store_be64(old + 4, q->header.l1_offset);
    store_be32(field, size);
    store_be64(field + 4, run->offset);
    return q2_co_header_switch(q, Q2_H_L1_SIZE, old, field, sizeof(field), "resize-l1-header");
}

/* l1_lock and commit_lock held: no entry changes, and none is dirty. */
static int l1_co_grow_locked(Qcow2 *q, uint32_t size)
{
    uint64_t old = q->header.l1_offset, old_bytes = align_up((uint64_t)q->l1_size * 8, q->cluster_size);
    uint64_t clusters = div_round_up((uint64_t)size * 8, q->cluster_size);
    uint64_t *l1 = g_try_new0(uint64_t, (size_t)size + 1), *dirty = g_try_new0(uint64_t, size / 4096 + 1);
    Q2Run run;
    int ret = l1 && dirty && q2_meta_reserve(q, clusters) ? q2_co_commit_locked(q) : -ENOMEM;

    if (ret == 0)
        q2_co_event(q, BLKDEBUG_EVENT_L1_GROW_ALLOC_TABLE);
    if (ret == 0)
        ret = q2_co_alloc(q, clusters, true, &run);
    if (ret == 0) {
        ret = l1_co_write_new(q, &run, size);
        if (ret == 0 && !q2_meta_reserve(q, clusters)) {
            ret = -ENOMEM;
            q->unsure = true; /* the header points there already, memory cannot follow */
        } else if (ret < 0 && !q->unsure)
            q2_co_unref(q, run.offset, run.n << q->cluster_bits, Q2_FREE_OTHER);
    }
    if (ret < 0) {
        g_free(l1);
        g_free(dirty);
        return ret;
    }
    memcpy(l1, q->l1, (size_t)q->l1_size * 8);
    g_free(q->l1);
    g_free(q->l1_dirty);
    q->l1 = l1;
    q->l1_dirty = dirty;
    q->header.l1_offset = run.offset;
    q->header.l1_size = size;
    q2_meta_add(q, Q2_META_L1, run.offset, (uint64_t)size * 8);
    if (q->l1_size) {
        q2_meta_remove(q, old, old_bytes);
        ret = q2_co_unref(q, old, old_bytes, Q2_FREE_OTHER);
    }
    q->l1_size = size;
    return ret;
}

static int l1_co_grow(Qcow2 *q, uint64_t size)
{
    int ret;

    do {
        comutex_co_lock(&q->l1_lock);
        comutex_co_lock(&q->commit_lock);
        ret = l1_co_grow_locked(q, (uint32_t)size);
        comutex_unlock(&q->commit_lock);
        comutex_unlock(&q->l1_lock);
    } while (q2_free_co_reclaim(q, ret));
    return ret;
}

/* Writes zeroes where the disk does not reach yet, whatever the entries say. */
static int grow_co_write_zeroes(Qcow2 *q, uint64_t at, uint64_t end)
{
    struct iovec iov[Q2_MAX_CLUSTER_BITS * 2];
    int ret = 0;

    while (at < end && ret == 0) {
        IoVec vec = {.iov = iov};
        uint64_t bytes = u64_min(end - at, (uint64_t)G_N_ELEMENTS(iov) * IOV_ZEROES);
        for (; vec.size < bytes; vec.n++) {
            iov[vec.n] = (struct iovec){.iov_base = iov_zeroes, .iov_len = u64_min(bytes - vec.size, IOV_ZEROES)};
            vec.size += iov[vec.n].iov_len;
        }
        ret = q2_co_pwritev(q->node, at, bytes, &vec, 0, 0);
        at += bytes;
    }
    return ret;
}

/* What the old last cluster holds, or shows, behind the old end must not come to light. */
static int grow_co_zero_tail(Qcow2 *q, uint64_t size)
{
    uint64_t at = q->header.size, end = u64_min(size, align_up(at, q->cluster_size));
    Extent map;
    int ret = 0;

    for (; at < end && ret == 0; at += map.bytes) {
        ret = q2_co_map(q, at, end - at, &map);
        if (ret == 0 &&
            (map.kind == Q2_NORMAL || map.kind == Q2_PACKED || (map.kind == Q2_UNALLOCATED && backing_at(q->node, at))))
            ret = grow_co_write_zeroes(q, at, at + map.bytes);
    }
    return ret;
}

/*
 * The same for the clusters between the old end and the new one. Tables may have entries for them: the state of a
 * machine lies there. And a longer backing file would shine through.
 */
static int grow_co_clear(Qcow2 *q, uint64_t size)
{
    uint64_t gc = div_round_up(q->header.size, q->cluster_size), end = div_round_up(size, q->cluster_size);
    uint64_t below = q->node->backing ? u64_min(size, q->node->backing->node->size) : 0;
    int ret = gc < end ? q2_co_drop(q, gc, end - gc) : 0;

    end = div_round_up(below, q->cluster_size);
    if (ret < 0 || gc >= end)
        return ret;
    if (q->header.version < 3)
        return grow_co_write_zeroes(q, gc << q->cluster_bits, below);
    return q2_co_zero(q, gc, end - gc);
}

static int resize_co_grow(Qcow2 *q, uint64_t size, uint64_t l1_need, PreallocMode prealloc)
{
    int ret = grow_co_zero_tail(q, size);

    if (ret == 0 && l1_need > q->l1_size)
        ret = l1_co_grow(q, l1_need);
    if (ret == 0 && !q2_is_raw(q))
        ret = grow_co_clear(q, size);
    if (ret == 0 && prealloc != PREALLOC_MODE_OFF)
        ret = q2_co_preallocate(q, q->header.size, size, prealloc);
    return ret == 0 ? resize_co_set_size(q, size) : ret;
}

/* Gives the L2 tables back that serve nothing below @l1_need. Their entries are empty by now. */
static void drop_l2_tables(Qcow2 *q, uint64_t l1_need)
{
    for (uint64_t i = l1_need; i < q->l1_size; i++) {
        uint64_t offset = q->l1[i] & Q2_OFFSET_MASK;
        if (!offset)
            continue;
        q2_l1_set(q, i, 0);
        table_cache_forget(&q->l2, offset, q->cluster_size);
        q2_l2_drop(q, offset);
    }
}

static int resize_co_shrink(Qcow2 *q, uint64_t size, uint64_t l1_need)
{
    uint64_t old_end = div_round_up(q->header.size, q->cluster_size), end = div_round_up(size, q->cluster_size);
    int ret = resize_co_set_size(q, size);

    if (ret == 0)
        ret = q2_co_drop(q, end, old_end - end);
    if (ret == 0)
        ret = q2_co_commit(q); /* no slice of the tables is dirty or being written any more */
    if (ret == 0 && l1_need < q->l1_size) {
        q2_co_event(q, BLKDEBUG_EVENT_L1_SHRINK_WRITE_TABLE);
        drop_l2_tables(q, l1_need);
        q2_co_event(q, BLKDEBUG_EVENT_L1_SHRINK_FREE_L2_CLUSTERS);
    }
    return ret == 0 ? q2_co_settle(q) : ret;
}

bool q2_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error)
{
    Qcow2 *q = q2_of(node);
    uint64_t l1_need = size ? ((size - 1) >> (q->l2_bits + q->cluster_bits)) + 1 : 0;
    uint64_t old_size = q->header.size;
    int ret;

    if (prealloc != PREALLOC_MODE_OFF && size < old_size)
        return error_set(error, "Preallocation can't be used for shrinking an image");
    if (prealloc == PREALLOC_MODE_OFF && q2_is_raw(q))
        prealloc = PREALLOC_MODE_METADATA; /* as it has been from the start */
    if (!is_aligned(size, 512))
        return error_set(error, "The new size must be a multiple of 512");
    if (q->corrupt)
        return error_set(error, "Image is corrupt");
    if (q->header.nb_snapshots && q->header.version < 3)
        return error_set(error, "Can't resize a v2 image which has snapshots");
    if (!q2_bitmaps_allow_size(q, size, error))
        return false;
    if (l1_need > Q2_MAX_L1_BYTES / 8)
        return error_set(error,
                         "The image size is too large for a cluster size of %" G_GUINT64_FORMAT
                         " bytes: its L1 table would have %" G_GUINT64_FORMAT " entries, the limit is %d",
                         q->cluster_size, l1_need, Q2_MAX_L1_BYTES / 8);
    ret = q->wrote ? 0 : q2_co_before_first_write(q);
    if (ret == 0 && size > old_size && !q2_co_data_resize(q, old_size, size, exact, error))
        return false;
    if (ret == 0 && size > old_size)
        ret = resize_co_grow(q, size, l1_need, prealloc);
    else if (ret == 0 && size < old_size)
        ret = resize_co_shrink(q, size, l1_need);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not resize qcow2 image to %" G_GUINT64_FORMAT " bytes", size);
    return size > old_size || q2_co_data_resize(q, old_size, size, exact, error);
}
