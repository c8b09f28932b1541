/*
 * Block status: what is known about ranges without reading them. Offsets and lengths in bytes; 0 or -errno.
 */
#pragma once
#include "block/graph/node.h"

enum {
    STATUS_DATA = 1 << 0,         /* stored somewhere below (or unknown: then assume so) */
    STATUS_ZERO = 1 << 1,         /* reads as zeroes */
    STATUS_OFFSET_VALID = 1 << 2, /* BlockStatus.map and .file are set: raw bytes stand there */
    STATUS_ALLOCATED = 1 << 3,    /* decided by this layer, not by its backing */
    STATUS_EOF = 1 << 4,          /* the range ends at the end of the node */
    STATUS_RECURSE = 1 << 5,      /* driver to graph: ask .file at .map about zeroes as well */
};

typedef struct BlockStatus {
    unsigned flags;
    uint64_t bytes; /* the answer holds for this many, from the asked offset on */
    uint64_t map;   /* offset in file */
    Node *file;     /* borrowed */
} BlockStatus;

/* One layer: flags say DATA/ZERO as a reader of @node sees them where this layer decides (STATUS_ALLOCATED), and
 * nothing but !ALLOCATED where the backing file does. */
int node_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret);

/* Down the backing chain from @top to above @base (NULL: all of it). STATUS_ALLOCATED set when a layer above @base
 * decides. Where the chain says nothing to the bottom (@base NULL), the range reads as zeroes: STATUS_ZERO.
 * @ret_depth (may be NULL): 0 for @top, 1 for its backing … */
int node_co_block_status_above(Node *top, Node *base, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret,
                               int *ret_depth);

/* Is the range allocated in a layer of @top above @base (@include_base: or in @base itself)? 1, 0 or -errno, for the
 * first *@ret_bytes of the range. */
int node_co_is_allocated_above(Node *top, Node *base, bool include_base, uint64_t offset, uint64_t bytes,
                               uint64_t *ret_bytes);
