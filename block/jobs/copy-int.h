/*
 * What copy.c and copy-op.c share.
 */
#pragma once
#include "block/jobs/copy.h"

/* One piece on its way. Loop's thread. */
struct CopyOp {
    Copy *copy;
    CopyOp *next; /* in the list of free ones */
    RangeHold hold;
    uint64_t offset, bytes;
    bool zero;
};

/* What [@offset, @offset + @bytes) counts in the job's progress. */
uint64_t copy_counted(const Copy *copy, uint64_t offset, uint64_t bytes);
/* Bytes of the buffer of one request. */
uint64_t copy_buffer_size(const CopyOptions *options);

/* Takes a free one for a range that nobody holds, locks the range and clears its bits. */
CopyOp *copy_op_take(Copy *copy, uint64_t offset, uint64_t bytes);
/* Leaves all but the first @bytes to others, whose bits are set. 0: nothing is left to do, but it must be started. */
void copy_op_shorten(CopyOp *op, uint64_t bytes);
/* Sets it off; @zero: the range reads as zeroes. */
void copy_op_start(CopyOp *op, bool zero);

/* Copies a range that is locked: zeroes as zeroes, data as data. On failure *@ret_is_read tells which side failed. */
int copy_co_range(Copy *copy, uint64_t offset, uint64_t bytes, bool *ret_is_read);
