/*
 * The copy engine of mirror and backup: brings what a bitmap marks from one edge of the graph to another.
 *
 * It goes through the bitmap in passes. A piece whose bit is set is locked, its bits are cleared, and then it is read
 * and written by a coroutine, up to max_ops at a time; a write to the source that comes in between sets its bits again,
 * so nothing is missed. What reads as zeroes is found by block status, asked for whole stretches at a time, and costs
 * one request however long it is; where the target is known to read zeroes there already it costs none.
 *
 * Buffers come from the loop's pool and are bounded by max_ops * chunk. Everything: the loop's thread.
 */
#pragma once
#include "block/jobs/job-int.h"
#include "block/jobs/rangelock.h"
#include "block/util/hbitmap.h"

typedef struct CopyOptions {
    Child *source, *target; /* borrowed; see status_of */
    Node *status_of;        /* borrowed: whose block status tells what the source reads */
    HBitmap *todo;          /* borrowed: what is to be copied */
    uint64_t size;          /* bytes of both */
    uint64_t chunk;         /* most bytes of one request; rounded to granules; 0: the engine chooses */
    uint64_t buffers;       /* most bytes of all buffers; 0: the engine chooses */
    unsigned max_ops;       /* most requests at a time; 0: the engine chooses */
    /* The target's cluster size where a cluster must be copied whole the first time, since the target cannot fill its
     * rest in from a backing file yet. 0: no need to. */
    uint64_t cow_cluster;
    uint64_t compress_cluster; /* write compressed, in units of this; 0: plain */
    bool skip_zeroes;          /* leave alone what reads as zeroes on both sides */
    bool unmap;                /* zeroes may become unallocated */
    bool thrifty;              /* nobody waits for the end: save processor time */
    bool copy_on_read;         /* no target: the source takes in what it reads from its backing file */
    bool whole_granules;       /* progress counts the last granule as a whole */
    BlockdevOnError on_source_error, on_target_error;
} CopyOptions;

typedef struct CopyOp CopyOp;

typedef struct Copy {
    Job *job;
    CopyOptions opt;
    uint64_t granule;     /* bytes */
    uint64_t buffer_size; /* bytes of the buffer of one request */
    RangeLock lock;       /* by the engine's own requests and by clients' writes through the job's filter */
    HBitmap *cow_done;    /* clusters of the target that were copied whole; NULL without cow_cluster */
    CopyOp *ops;          /* a pool of opt.max_ops */
    CopyOp *free_ops;
    unsigned in_flight; /* requests of passes (not of clients) */
    uint64_t in_flight_bytes;
    CoQueue op_done;
    uint64_t data_start, data_end; /* known to be no zeroes: no need to ask again */
    unsigned zero_streak;          /* stretches handled since anybody else could run */
    bool no_offload;               /* the host cannot copy between these two by itself */
    bool failed_lately;            /* an error was ignored in this pass: take a rest before the next */
    int ret;                       /* the error that ends the job, or 0 */
} Copy;

/* NULL with @error when memory is short. */
Copy *copy_new(Job *job, const CopyOptions *options, GError **error);
/* Nothing may be in flight. Takes NULL. */
void copy_free(Copy *copy);

/*
 * One pass over the bitmap, from the start to the end, with all that was started completed. Pauses with the job and
 * keeps to its speed. 0, or the error that a policy of "report" met; also 0 when the job is cancelled.
 */
int copy_co_pass(Copy *copy);
/* Waits until no request is in flight. */
void copy_co_settle(Copy *copy);

/*
 * For a client's write to [@offset, @offset + @bytes), which the caller holds locked (whole granules): copies what is
 * still to be copied of it now. 0 or -errno; what failed stays marked.
 */
int copy_co_before_write(Copy *copy, uint64_t offset, uint64_t bytes);

/* Granules (or clusters that must be copied whole) around a range, cut at the size. */
void copy_align(const Copy *copy, uint64_t *offset, uint64_t *bytes);

/* Bytes still to be copied or in flight. */
uint64_t copy_remaining(const Copy *copy);
/* Tells the job what remains. */
void copy_update_progress(Copy *copy);

/* Marks in @todo what is allocated in @top above @base; or, with @unmark, unmarks granules that are not and marks
 * nothing. Reaches pause points. 0 (also when cancelled) or -errno. */
int copy_co_mark_allocated(Job *job, HBitmap *todo, Node *top, Node *base, uint64_t size, bool unmark);
