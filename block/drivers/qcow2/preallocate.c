/*
 * Giving clusters of the disk their place before anybody writes to them, when the disk grows.
 *
 * Guarantees: what gets its place here reads as zeroes, as what a disk grows by does. The clusters lie behind the end
 * of the disk until all of them are durably in the tables; then the disk's size changes (resize.c). A crash on the way
 * leaves clusters with a place and zeroes behind the end, which nobody sees.
 *
 * A cluster that has not been written since the file grew over it is zero and is left alone; others are zeroed. Under
 * encryption zeroes in the file are no zeroes, so there the entries say that the clusters read as such.
 */
#include "block/drivers/qcow2/qcow2.h"
#include "block/util/iovec.h"

#define FILL_IOVS 16

/* Writes zeroes to the new clusters of [@guest, @guest + @bytes), as a client would. */
static int write_co_out(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes)
{
    struct iovec iov[FILL_IOVS];
    IoVec vec = {.iov = iov, .n = FILL_IOVS, .size = (size_t)FILL_IOVS * IOV_ZEROES};
    int ret = 0;

    for (int i = 0; i < FILL_IOVS; i++)
        iov[i] = (struct iovec){.iov_base = iov_zeroes, .iov_len = IOV_ZEROES};
    for (uint64_t at = 0, n; at < bytes && ret == 0; at += n) {
        n = u64_min(bytes - at, vec.size);
        ret = q2_co_data_write(q, guest + at, host + at, n, &vec, 0);
    }
    return ret;
}

/* Makes what @run has for guest @guest, up to @end, read as zeroes, and takes as much space as @mode says. */
static int run_co_fill(Qcow2 *q, uint64_t guest, uint64_t end, const Q2Run *run, PreallocMode mode)
{
    uint64_t bytes = u64_min(run->n << q->cluster_bits, end - guest);
    int ret = -ENOTSUP;

    if (mode == PREALLOC_MODE_METADATA && (q->crypt ? q->zero_flag != 0 : run->fresh))
        return 0;
    if (mode != PREALLOC_MODE_FULL)
        ret = q2_co_data_zero(q, guest, run->offset, bytes, mode == PREALLOC_MODE_METADATA ? REQ_MAY_UNMAP : 0);
    return ret == -ENOTSUP ? write_co_out(q, guest, run->offset, bytes) : ret;
}

static int run_co_link(Qcow2 *q, uint64_t gc, const Q2Run *run)
{
    CacheTable *table;
    uint8_t *data;
    unsigned i;
    int ret = q2_co_l2_for_write(q, gc, &table, &i);

    if (ret < 0)
        return ret;
    data = table_cache_modify(&q->l2, table);
    if (!data)
        return -ENOMEM;
    for (uint64_t k = 0; k < run->n; k++) {
        q2_free_entry_later(q, q2_l2_entry(q, data, i + k), Q2_FREE_OTHER);
        /* What is marked as zero, where a longer backing file lies below, stays so. */
        q2_l2_set(q, data, i + k, (run->offset + (k << q->cluster_bits)) | Q2_COPIED | (q->crypt ? q->zero_flag : 0),
                  q2_l2_bitmap(q, data, i + k) >> 32 << 32);
    }
    return 0;
}

/* The file reaches to the end of what entries are about to show. */
static int file_co_cover(Qcow2 *q, const Q2Run *run)
{
    Child *file = q->node->file;
    uint64_t end = run->offset + (run->n << q->cluster_bits);

    if (q2_has_data_file(q) || end <= file->node->size)
        return 0;
    return child_co_truncate(file, end, false, PREALLOC_MODE_OFF, 0, NULL) ? 0 : -EIO;
}

int q2_co_preallocate(Qcow2 *q, uint64_t old_size, uint64_t size, PreallocMode mode)
{
    uint64_t first = div_round_up(old_size, q->cluster_size), end = div_round_up(size, q->cluster_size), gc = first;
    int ret = 0;

    while (gc < end && ret == 0) {
        uint64_t room = u64_min(end - gc, (1u << q->slice_bits) - q2_slice_index(q, gc));
        Q2Run run;
        ret = q2_co_data_alloc(q, gc, room, &run);
        if (q2_free_co_reclaim(q, ret))
            ret = q2_co_data_alloc(q, gc, room, &run);
        if (ret < 0)
            break;
        ret = run_co_fill(q, gc << q->cluster_bits, q2_has_data_file(q) ? size : UINT64_MAX, &run, mode);
        if (ret == 0)
            ret = file_co_cover(q, &run);
        if (ret == 0)
            ret = run_co_link(q, gc, &run);
        if (ret < 0)
            q2_co_data_unalloc(q, &run);
        q2_free_co_throttle(q);
        gc += run.n;
    }
    if (ret < 0 && first < end)
        q2_co_drop(q, first, end - first);
    return ret;
}
