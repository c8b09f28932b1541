/*
 * Filling new clusters: what a write brings, and around it what was there before.
 */
#pragma once
#include "block/graph/driver.h"

/* What the filling asks the format. All: 0 or -errno; @state is the node's. */
typedef struct CowOps {
    /* Is the old content of the cluster around guest @offset, inside the disk, known to be zero? */
    int (*co_is_zero)(void *state, uint64_t offset, bool *ret);
    /* Reads guest bytes as they are now; inside the disk. */
    int (*co_read)(void *state, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset);
    /* The image is about to be written there. NULL: nothing to check. */
    int (*co_before_write)(void *state, uint64_t host, uint64_t bytes);
} CowOps;

/* One write into new clusters that adjoin each other in the image. */
typedef struct CowWrite {
    uint64_t offset, bytes; /* guest: the new data, within the clusters */
    const IoVec *vec;
    size_t vec_offset;
    uint64_t start, length; /* guest: where the clusters begin, and their bytes */
    uint64_t host;          /* where they are in the image */
    uint64_t disk_size;     /* guest bytes behind it are zero */
    bool fresh;             /* the clusters read as zeroes: never written since the file grew over them */
} CowWrite;

/* Writes to the node's file child: the new data with whatever else belongs in the first and the last of the clusters. 0
 * or -errno. */
int cow_co_write(Node *node, const CowOps *ops, const CowWrite *write);
