/*
 * Tables that share their place with something else get one of their own.
 *
 * Which owner is the true one nobody can tell, and a bad entry of a table may be good data of a guest. So before
 * anything is changed in such a table it is copied behind the end of the file, durably, and what refers to it refers to
 * the copy: everybody still sees what they saw. Counts are the following pass's business. Until it c->clusters stays as
 * it is, so that entries to what was behind the end do not lead to copies.
 */
#include "block/drivers/qcow2/check.h"

/* Copies [@from, @from + @bytes) behind the end of the file: to *@ret. */
static int copy_co_behind(Check *c, uint64_t from, uint64_t bytes, uint64_t *ret_to)
{
    uint64_t piece = u64_min(bytes, 1 << 20), to = check_place_behind(c, bytes);
    uint8_t *buf = aio_buf_get(c->file->node->loop, piece);
    int ret = buf ? 0 : -ENOMEM;

    for (uint64_t done = 0; done < bytes && ret == 0; done += piece) {
        uint64_t n = u64_min(piece, bytes - done);
        ret = check_co_read(c, from + done, n, buf);
        if (ret == 0)
            ret = child_co_pwrite(c->file, to + done, n, buf, 0);
    }
    aio_buf_put(c->file->node->loop, buf, piece);
    if (ret == 0)
        ret = check_co_barrier(c, "repair-copy");
    *ret_to = to;
    return ret;
}

bool check_only_table(const Check *c, uint64_t ci)
{
    return counts_get(&c->refs, ci) <= counts_get(&c->tables, ci);
}

uint64_t check_tables_shared(const Check *c)
{
    uint64_t n = 0;

    for (uint64_t ci = 0; (ci = counts_next(&c->tables, ci, c->clusters)) < c->clusters; ci++)
        n += counts_get(&c->tables, ci) && !check_only_table(c, ci);
    return n;
}

int check_co_own_table(Check *c, uint64_t *entry)
{
    uint64_t offset = *entry & Q2_OFFSET_MASK, to;
    int ret;

    if (check_only_table(c, offset >> c->q.cluster_bits) || !node_may_grow(c->file->node))
        return 0;
    ret = copy_co_behind(c, offset, c->q.cluster_size, &to);
    if (ret == 0)
        *entry = to | Q2_COPIED;
    return ret;
}

bool check_l1_shared(const Check *c)
{
    uint64_t first = c->q.header.l1_offset >> c->q.cluster_bits;
    uint64_t n = div_round_up((uint64_t)c->q.header.l1_size * 8, c->q.cluster_size);

    if (n && check_exceeds(c, c->q.header.l1_offset, (uint64_t)c->q.header.l1_size * 8))
        return true;
    for (uint64_t i = 0; i < n; i++)
        if (counts_get(&c->refs, first + i) > 1)
            return true;
    return n && !first; /* on the header */
}

int check_co_own_l1(Check *c)
{
    uint64_t bytes = (uint64_t)c->q.header.l1_size * 8, to;
    uint8_t field[8];
    int ret;

    if (!check_l1_shared(c) || !node_may_grow(c->file->node))
        return 0;
    ret = copy_co_behind(c, c->q.header.l1_offset, bytes, &to);
    store_be64(field, to);
    if (ret == 0)
        ret = child_co_pwrite(c->file, Q2_H_L1_SIZE + 4, sizeof(field), field, 0);
    if (ret == 0)
        c->q.header.l1_offset = to; /* the old place stays as it is until this is durable with all other entries */
    return ret;
}
