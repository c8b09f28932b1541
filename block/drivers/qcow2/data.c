/*
 * Guest data on its way to and from host clusters: the one place that reads, writes and zeroes them.
 *
 * Metadata goes to q->node->file; guest data goes to q->data, which is the same child unless the image has a data file
 * of its own. Every call names the guest offset as well as the host offset: what transforms data needs either.
 *
 * Guarantees: nothing is written over metadata (overlap.c). q2_co_data_flush() makes durable what these calls wrote to
 * a file of their own; what they wrote to the image file becomes durable with that.
 *
 * Who calls is in a data section, or owns the clusters because no entry shows them yet.
 */
#include "block/drivers/qcow2/event.h"

int q2_co_data_read(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    q2_co_event(q, BLKDEBUG_EVENT_READ_AIO);
    if (q->crypt)
        return q2_crypt_co_read(q, guest, host, bytes, vec, vec_offset);
    return child_co_preadv(q->data, host, bytes, vec, vec_offset, 0);
}

/* Data may not lie where metadata does: only in one file they can meet. */
static inline int data_co_check(Qcow2 *q, uint64_t host, uint64_t bytes)
{
    return q2_has_data_file(q) ? 0 : q2_co_meta_check(q, 0, host, bytes);
}

int q2_co_data_write(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    int ret = data_co_check(q, host, bytes);

    if (G_UNLIKELY(ret < 0))
        return ret;
    q2_co_event(q, BLKDEBUG_EVENT_WRITE_AIO);
    if (q->crypt)
        return q2_crypt_co_write(q, guest, host, bytes, vec, vec_offset);
    return child_co_pwritev(q->data, host, bytes, vec, vec_offset, 0);
}

int q2_co_data_copy(Qcow2 *q, uint64_t host, uint64_t bytes, Node *source, uint64_t source_offset, ReqFlags flags)
{
    int ret = data_co_check(q, host, bytes);

    /* No event: where blkdebug listens, nothing is copied, and what it would make of one is meant for the write. */
    return ret < 0 ? ret : child_co_copy_from(q->data, host, bytes, source, source_offset, flags);
}

int q2_co_data_zero(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, ReqFlags flags)
{
    int ret = q->crypt ? -ENOTSUP : data_co_check(q, host, bytes); /* zeroes in the file are no zeroes */

    return ret < 0 ? ret : child_co_pwrite_zeroes(q->data, host, bytes, flags);
}

int q2_co_data_flush(Qcow2 *q)
{
    return q2_has_data_file(q) && !order_left_out("commit-data-file") ? child_co_flush(q->data) : 0;
}

int q2_co_packed_load(Qcow2 *q, uint64_t host, uint64_t bytes, void *buf)
{
    q2_co_event(q, BLKDEBUG_EVENT_READ_COMPRESSED);
    return child_co_pread(q->data, host, bytes, buf, 0);
}

int q2_co_packed_store(Qcow2 *q, uint64_t host, uint64_t bytes, const void *buf)
{
    int ret = data_co_check(q, host, bytes);

    if (ret < 0)
        return ret;
    q2_co_event(q, BLKDEBUG_EVENT_WRITE_COMPRESSED);
    return child_co_pwrite(q->data, host, bytes, buf, 0);
}
