/*
 * The pieces of one request, side by side: a stretch that is not alike is read from several places (or decompressed by
 * several workers) at once. A request of one piece, nearly every one, does not come here.
 */
#include "block/format/pieces.h"

static void piece_co_entry(void *opaque)
{
    Piece *piece = opaque;
    Pieces *all = piece->all;
    int ret = all->fn(all->owner, &piece->map, piece->offset, all->vec, piece->vec_offset);

    if (ret < 0 && all->ret == 0)
        all->ret = ret;
    piece->all = NULL;
    all->n--;
    coqueue_wake_all(&all->done);
}

void pieces_co_add(Pieces *all, const Extent *map, uint64_t offset, size_t vec_offset)
{
    Piece *piece = all->pieces;

    if (all->n == PIECES_MAX || !coroutine_available(all->loop)) {
        int ret = all->fn(all->owner, map, offset, all->vec, vec_offset);
        if (ret < 0 && all->ret == 0)
            all->ret = ret;
        return;
    }
    while (piece->all)
        piece++;
    *piece = (Piece){.all = all, .map = *map, .offset = offset, .vec_offset = vec_offset};
    all->n++;
    /* Runs until it yields: until then what the lookup said is true. */
    coroutine_start(all->loop, piece_co_entry, piece);
}

int pieces_co_wait(Pieces *all)
{
    while (all->n)
        coqueue_co_wait(&all->done, NULL);
    return all->ret;
}
