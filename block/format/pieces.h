/*
 * What a format's tables say about a stretch of guest data, and requests that span several of those.
 */
#pragma once
#include "block/graph/driver.h"

/* A stretch that is alike. */
typedef struct Extent {
    int kind;       /* the format's own words for data, zeroes, nothing … */
    bool copied;    /* host data: may be written in place */
    uint64_t bytes; /* from the asked offset on */
    uint64_t host;  /* host data: where the asked offset lies in the image */
    uint64_t entry; /* the table entry itself, for kinds that need it */
} Extent;

/* Parts of one request that run at the same time. Zero-initialise but for loop, owner, vec and fn. */
enum { PIECES_MAX = 8 };
typedef int PieceFn(void *owner, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset);
typedef struct Pieces Pieces;
typedef struct Piece {
    Pieces *all; /* NULL: free */
    Extent map;
    uint64_t offset;
    size_t vec_offset;
} Piece;
struct Pieces {
    Loop *loop;
    void *owner; /* for fn */
    const IoVec *vec;
    PieceFn *fn; /* may yield; 0 or -errno */
    unsigned n;  /* running */
    int ret;     /* the first error */
    CoQueue done;
    Piece pieces[PIECES_MAX];
};
/* Starts fn for one piece (or runs it, when many run already). Must be called right after the lookup of @map, and what
 * fn does before it yields still relies on that. */
void pieces_co_add(Pieces *all, const Extent *map, uint64_t offset, size_t vec_offset);
/* Waits for all; 0 or the first error. */
int pieces_co_wait(Pieces *all);
