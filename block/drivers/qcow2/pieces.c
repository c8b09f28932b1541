/*
 * The pieces of one request, side by side: a stretch that is not alike is read from several places (or decompressed by
 * several workers) at once. A request of one piece, nearly every one, does not come here.
 */
#include "block/drivers/qcow2/qcow2.h"

static void piece_co_entry(void *opaque)
{
    Q2Piece *piece = opaque;
    Q2Pieces *all = piece->all;
    int ret = all->fn(all->q, &piece->map, piece->offset, all->vec, piece->vec_offset);

    if (ret < 0 && all->ret == 0)
        all->ret = ret;
    piece->all = NULL;
    all->n--;
    coqueue_wake_all(&all->done);
}

void q2_pieces_co_add(Q2Pieces *all, const Q2Map *map, uint64_t offset, size_t vec_offset)
{
    Q2Piece *piece = all->pieces;

    if (all->n == Q2_PIECES || !coroutine_available(all->q->node->loop)) {
        int ret = all->fn(all->q, map, offset, all->vec, vec_offset);
        if (ret < 0 && all->ret == 0)
            all->ret = ret;
        return;
    }
    while (piece->all)
        piece++;
    *piece = (Q2Piece){.all = all, .map = *map, .offset = offset, .vec_offset = vec_offset};
    all->n++;
    /* Runs until it yields: the first thing it does is to enter its data section. */
    coroutine_start(all->q->node->loop, piece_co_entry, piece);
}

int q2_pieces_co_wait(Q2Pieces *all)
{
    while (all->n)
        coqueue_co_wait(&all->done, NULL);
    return all->ret;
}
