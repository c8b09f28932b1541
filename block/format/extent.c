/*
 * Requests in extents.
 */
#include "block/format/extent.h"

enum {
    PIECES_MAX = 8,    /* of one request at the same time */
    STEPS_MAX = 65536, /* lookups in one answer about status */
};

typedef int PieceFn(void *state, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset);
typedef struct Pieces Pieces;

typedef struct Piece {
    Pieces *all; /* NULL: free */
    Extent map;
    uint64_t offset;
    size_t vec_offset;
} Piece;

/* Parts of one request that run at the same time. Zero-initialise but for node, vec and fn. */
struct Pieces {
    Node *node;
    const IoVec *vec;
    PieceFn *fn;
    unsigned n; /* running */
    int ret;    /* the first error */
    CoQueue done;
    Piece pieces[PIECES_MAX];
};

static void piece_co_entry(void *opaque)
{
    Piece *piece = opaque;
    Pieces *all = piece->all;
    int ret = all->fn(all->node->state, &piece->map, piece->offset, all->vec, piece->vec_offset);

    if (ret < 0 && all->ret == 0)
        all->ret = ret;
    piece->all = NULL;
    all->n--;
    coqueue_wake_all(&all->done);
}

/* Starts fn for one piece (or runs it, when many run already). */
static void pieces_co_add(Pieces *all, const Extent *map, uint64_t offset, size_t vec_offset)
{
    Piece *piece = all->pieces;

    if (all->n == PIECES_MAX || !coroutine_available(all->node->loop)) {
        int ret = all->fn(all->node->state, map, offset, all->vec, vec_offset);
        if (ret < 0 && all->ret == 0)
            all->ret = ret;
        return;
    }
    while (piece->all)
        piece++;
    *piece = (Piece){.all = all, .map = *map, .offset = offset, .vec_offset = vec_offset};
    all->n++;
    /* Runs until it yields: until then what the lookup said is true. */
    coroutine_start(all->node->loop, piece_co_entry, piece);
}

/* Waits for all; 0 or the first error. */
static int pieces_co_wait(Pieces *all)
{
    while (all->n)
        coqueue_co_wait(&all->done, NULL);
    return all->ret;
}

/* Several extents, of which @map is the first. */
static int read_co_several(Node *node, const ExtentOps *ops, Extent *map, uint64_t offset, uint64_t bytes,
                           const IoVec *vec, size_t vec_offset)
{
    Pieces all = {.node = node, .vec = vec, .fn = ops->co_read};
    int ret = 0, first;

    for (;;) {
        pieces_co_add(&all, map, offset, vec_offset);
        offset += map->bytes;
        vec_offset += map->bytes;
        bytes -= map->bytes;
        if (!bytes || all.ret < 0)
            break;
        ret = ops->co_map(node->state, offset, bytes, map);
        if (ret < 0)
            break;
    }
    first = pieces_co_wait(&all);
    return first < 0 ? first : ret;
}

/* Zeroes for sure, by what the tables say alone. */
static bool is_zeroes(const Node *node, const ExtentOps *ops, const Extent *map)
{
    unsigned status = ops->status(map->kind);

    return status & STATUS_ALLOCATED ? status & STATUS_ZERO : !node->backing;
}

int extents_co_read(Node *node, const ExtentOps *ops, uint64_t offset, uint64_t bytes, const IoVec *vec,
                    size_t vec_offset, ReqFlags flags)
{
    Extent map;
    int ret = ops->co_map(node->state, offset, bytes, &map);

    if (G_UNLIKELY(ret < 0))
        return ret;
    if (G_LIKELY(map.bytes == bytes)) {
        if ((flags & REQ_MAY_SKIP_ZEROES) && is_zeroes(node, ops, &map))
            return READ_ZEROES;
        return ops->co_read(node->state, &map, offset, vec, vec_offset);
    }
    return read_co_several(node, ops, &map, offset, bytes, vec, vec_offset);
}

/* Several extents, or one that needs new clusters; @map is the first. Those in place run at the same time. */
static int write_co_several(Node *node, const ExtentOps *ops, Extent *map, uint64_t offset, uint64_t bytes,
                            const IoVec *vec, size_t vec_offset)
{
    Pieces all = {.node = node, .vec = vec, .fn = ops->co_write};
    int ret = 0, first;

    for (;;) {
        if (map->in_place)
            pieces_co_add(&all, map, offset, vec_offset);
        else
            ret = ops->co_write_new(node->state, offset, bytes, vec, vec_offset, &map->bytes);
        if (ret < 0 || all.ret < 0)
            break;
        offset += map->bytes;
        vec_offset += map->bytes;
        bytes -= map->bytes;
        if (!bytes)
            break;
        ret = ops->co_map(node->state, offset, bytes, map);
        if (ret < 0)
            break;
    }
    first = pieces_co_wait(&all);
    return first < 0 ? first : ret;
}

int extents_co_write(Node *node, const ExtentOps *ops, uint64_t offset, uint64_t bytes, const IoVec *vec,
                     size_t vec_offset)
{
    Extent map;
    int ret = ops->co_map(node->state, offset, bytes, &map);

    if (G_UNLIKELY(ret < 0))
        return ret;
    if (G_LIKELY(map.in_place && map.bytes == bytes))
        return ops->co_write(node->state, &map, offset, vec, vec_offset);
    return write_co_several(node, ops, &map, offset, bytes, vec, vec_offset);
}

int extents_co_status(Node *node, const ExtentOps *ops, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    Extent map;
    int r = ops->co_map(node->state, offset, bytes, &map);

    if (r < 0)
        return r;
    *ret = (BlockStatus){.flags = ops->status(map.kind), .bytes = map.bytes};
    if (ret->flags & STATUS_OFFSET_VALID) {
        ret->map = map.host;
        ret->file = node->file->node;
    }
    for (unsigned step = 0; ret->bytes < bytes && step < STEPS_MAX; step++) {
        r = ops->co_map(node->state, offset + ret->bytes, bytes - ret->bytes, &map);
        if (r < 0 || ops->status(map.kind) != ret->flags)
            break; /* an error will come up when its place is asked for */
        if ((ret->flags & STATUS_OFFSET_VALID) && map.host != ret->map + ret->bytes)
            break;
        ret->bytes += map.bytes;
    }
    return 0;
}
