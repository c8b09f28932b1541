/*
 * Filling new clusters: what a write brings, and around it what was there before.
 */
#pragma once
#include "block/graph/driver.h"

/* What the filling asks the format. All: 0 or -errno; @state is the node's. */
typedef struct CowOps {
    /* Is the old content of a part of one cluster, inside the disk, known to be zero? */
    int (*co_is_zero)(void *state, uint64_t offset, uint64_t bytes, bool *ret);
    /* Reads guest bytes as they are now; inside the disk. */
    int (*co_read)(void *state, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset);
    /* Writes guest bytes to their place in the image. */
    int (*co_write)(void *state, uint64_t offset, uint64_t host, uint64_t bytes, const IoVec *vec, size_t vec_offset);
    /* Zeroes a part of the clusters. -ENOTSUP: co_write is given zeroes instead. */
    int (*co_zero)(void *state, uint64_t offset, uint64_t host, uint64_t bytes);
} CowOps;

/* One write into new clusters that adjoin each other in the image. */
typedef struct CowWrite {
    uint64_t offset, bytes; /* guest: the new data, within the clusters */
    const IoVec *vec;
    size_t vec_offset;
    uint64_t start, length; /* guest: where the clusters begin, and their bytes */
    uint64_t host;          /* where they are in the image */
    uint64_t disk_size;     /* guest bytes behind it are zero */
    uint32_t align;         /* what parts of a cluster are best cut at: power of two */
    bool fresh;             /* the clusters read as zeroes: never written since the file grew over them */
} CowWrite;

/* Writes the new data with whatever else belongs in the first and the last of the clusters. 0 or -errno. */
int cow_co_write(Node *node, const CowOps *ops, const CowWrite *write);
