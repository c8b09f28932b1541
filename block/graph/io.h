/*
 * The request pipeline: what happens to a request at every node it passes.
 *
 * Requests walk edges: a driver sends them to its children through child_co_*(). Each step checks the edge's
 * permission (assert: a parent must hold what it uses), counts the request in flight, aligns it (read-modify-write
 * through a bounce buffer where a write does not fit request_alignment), splits it at the node's limits, keeps it apart
 * from overlapping serialising ones, and after a write dirties the node's bitmaps. Reads past the end of a node give
 * zeroes (a backing file may be shorter than its overlay); writes past it grow nodes whose driver may_grow and are -EIO
 * elsewhere. Everyone outside the graph uses a Port, which checks the range.
 *
 * All: 0 or -errno, bytes, from coroutines.
 */
#pragma once
#include "block/graph/driver.h"

int child_co_preadv(Child *child, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
int child_co_pwritev(Child *child, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                     ReqFlags flags);
int child_co_pwrite_zeroes(Child *child, uint64_t offset, uint64_t bytes, ReqFlags flags);
int child_co_pdiscard(Child *child, uint64_t offset, uint64_t bytes);
/* Flushes the node's caches, then its children, then the disk; skipped when nothing was written since the last. */
int child_co_flush(Child *child);
bool child_co_truncate(Child *child, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error);

/* May a write past the end make it larger? */
bool node_may_grow(const Node *node);

/* Writes what @source (a leaf that block status named, alive for as long) holds at @source_offset, by the host's own
 * means. @flags: REQ_THRIFTY or none. -ENOTSUP: there are none between these two; -EAGAIN: not for this range. In both
 * cases part of it may have been written. */
int child_co_copy_from(Child *child, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset,
                       ReqFlags flags);

/* Appends the pages that hold the data to @pipe. They go on showing what is written there until the pipe's reader has
 * read them: io-pages.c says which drivers may do that. -ENOTSUP: this read has to copy; after any error the pipe is of
 * no more use. */
int child_co_read_pages(Child *child, uint64_t offset, uint64_t bytes, AioPipe *pipe);
/* Is there any hope that it can? */
bool node_has_pages(const Node *node);

/* Read and write for one flat buffer. */
int child_co_pread(Child *child, uint64_t offset, uint64_t bytes, void *buf, ReqFlags flags);
int child_co_pwrite(Child *child, uint64_t offset, uint64_t bytes, const void *buf, ReqFlags flags);

/* An IoVec over one buffer: `IoVec v; struct iovec i; iovec_one(&v, &i, buf, size)`. */
static inline void iovec_one(IoVec *vec, struct iovec *iov, void *buf, size_t size)
{
    *iov = (struct iovec){.iov_base = buf, .iov_len = size};
    *vec = (IoVec){.iov = iov, .n = 1, .size = size};
}

/* For co_open of a filter that sends requests on with their flags: what the child cannot do is emulated on the way to
 * it. */
static inline void node_pass_flags(Node *node)
{
    node->supported_write_flags = REQ_FUA | REQ_WRITE_UNCHANGED;
    node->supported_zero_flags = REQ_FUA | REQ_MAY_UNMAP | REQ_NO_FALLBACK | REQ_WRITE_UNCHANGED;
}

int node_co_flush(Node *node);
/* Re-reads the size from the driver and tells parents and bitmaps when it changed. */
int node_co_refresh_size(Node *node);
/* Merges the children's limits and asks the driver. Never yields. */
void node_refresh_limits(Node *node);
