/*
 * The backup's filter node, "copy-before-write": before a client changes something that is not in the copy yet, the old
 * data is copied. When that fails the client's write fails, and the copy stays what it is meant to be.
 */
#include "block/jobs/backup-int.h"

static int filter_co_before_write(Node *node, uint64_t offset, uint64_t bytes)
{
    BackupJob *b = ((BackupFilter *)node->state)->job;
    RangeHold hold;
    int ret;

    if (!b || b->stopped || !bytes || hbitmap_empty(b->todo))
        if (!b || b->stopped || !b->copy->lock.holds)
            return 0;
    copy_align(b->copy, &offset, &bytes);
    rangelock_co_wait(&b->copy->lock, offset, offset + bytes);
    if (b->stopped || hbitmap_next_dirty(b->todo, offset, bytes) < 0)
        return 0;
    rangelock_take(&b->copy->lock, &hold, offset, offset + bytes);
    ret = copy_co_before_write(b->copy, offset, bytes);
    rangelock_release(&hold);
    /* A copy that was given up needs no old data any more: the client goes on. */
    return ret < 0 && job_is_cancelled(&b->common) ? 0 : ret;
}

static int filter_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                             ReqFlags flags)
{
    int ret = filter_co_before_write(node, offset, bytes);

    return ret < 0 ? ret : child_co_pwritev(node->file, offset, bytes, vec, vec_offset, flags);
}

static int filter_co_pwritev_compressed(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec,
                                        size_t vec_offset)
{
    return filter_co_pwritev(node, offset, bytes, vec, vec_offset, REQ_WRITE_COMPRESSED);
}

static int filter_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    int ret = filter_co_before_write(node, offset, bytes);

    return ret < 0 ? ret : child_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int filter_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    int ret = filter_co_before_write(node, offset, bytes);

    return ret < 0 ? ret : child_co_pdiscard(node->file, offset, bytes);
}

static void filter_child_perm(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared,
                              unsigned *ret_perm, unsigned *ret_shared)
{
    if (role & ROLE_FILTERED) {
        /* Whoever wrote past the filter would change what is yet to be copied. */
        *ret_perm = perm;
        *ret_shared = shared & ~(PERM_WRITE | PERM_RESIZE);
        return;
    }
    /* The target may be in use meanwhile (somebody reads the backup from an overlay), but must keep its size. */
    *ret_perm = PERM_WRITE;
    *ret_shared = PERM_ALL & ~PERM_RESIZE;
}

const Driver backup_filter = {
    .name = "copy-before-write",
    .state_size = sizeof(BackupFilter),
    .is_filter = true,
    .internal = true,
    .child_perm = filter_child_perm,
    .co_pwritev = filter_co_pwritev,
    .co_pwritev_compressed = filter_co_pwritev_compressed,
    .co_pwrite_zeroes = filter_co_pwrite_zeroes,
    .co_pdiscard = filter_co_pdiscard,
};
