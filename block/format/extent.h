/*
 * Guest requests as a format's tables cut them: into extents, stretches that are alike.
 *
 * Each extent of a request becomes one request to whoever has the data. A request of one extent, nearly every one, goes
 * straight on; the parts of others run side by side.
 */
#pragma once
#include "block/graph/driver.h"

typedef struct Extent {
    int kind;       /* the format's own words for data, zeroes, nothing … */
    bool in_place;  /* may be written where it is */
    uint64_t bytes; /* from the asked offset on */
    uint64_t host;  /* kinds with a place in the image: where the asked offset lies */
    uint64_t entry; /* the table entry itself, for kinds that need it */
} Extent;

/* What a format provides; @state is the node's. All but status: 0 or -errno. */
typedef struct ExtentOps {
    /* Looks [@offset, @offset + @bytes) up, as far as it is alike. The answer is true until the next yield. */
    int (*co_map)(void *state, uint64_t offset, uint64_t bytes, Extent *ret);
    /* Read and write @map->bytes from guest @offset on. Run right after the lookup, so what they do before they yield
     * relies on it. co_write: only where in_place. */
    int (*co_read)(void *state, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset);
    int (*co_write)(void *state, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset);
    /* Writes the beginning of a range that cannot be written in place. *@done: bytes; 0: the world has changed, look
     * again. */
    int (*co_write_new)(void *state, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                        uint64_t *done);
    /* STATUS_* of a kind (status.h). */
    unsigned (*status)(int kind);
} ExtentOps;

/* For Driver.co_preadv: 0, -errno, or READ_ZEROES where @flags allow it. */
int extents_co_read(Node *node, const ExtentOps *ops, uint64_t offset, uint64_t bytes, const IoVec *vec,
                    size_t vec_offset, ReqFlags flags);
int extents_co_write(Node *node, const ExtentOps *ops, uint64_t offset, uint64_t bytes, const IoVec *vec,
                     size_t vec_offset);
/* For Driver.co_block_status: extents with the same status and, for data, adjoining in the image are one. */
int extents_co_status(Node *node, const ExtentOps *ops, uint64_t offset, uint64_t bytes, BlockStatus *ret);
