/*
 * A refcount structure anew, from what was counted.
 *
 * New blocks and a new table go where nothing is: behind the end of the file or, where it cannot grow, into clusters
 * that nothing refers to and the old structure does not occupy. They are durable before the header names them, which is
 * one write of 12 bytes. Before it the image is what it was; behind it all counts are right, and the old
 * structure is free. What follows, the flags, writes nothing there, so it need not wait for the header.
 */
#include "block/drivers/qcow2/check.h"

typedef struct Rebuild {
    uint8_t *need; /* a byte for each entry of the table: there will be a block */
    uint64_t size; /* entries */
    uint64_t blocks, table_clusters;
    uint64_t start; /* cluster index */
    Counts old;     /* clusters of the present structure */
} Rebuild;

static int old_structure(Check *c, Counts *old)
{
    uint64_t first = c->q.header.rt_offset >> c->q.cluster_bits;
    int ret = 0;

    if (!counts_init(old, c->room))
        return -ENOMEM;
    for (uint64_t i = 0; i < c->q.header.rt_clusters && first + i < c->room && ret == 0; i++)
        ret = counts_add(old, first + i);
    for (uint64_t i = 0; i < c->rt_size && ret == 0; i++)
        if (check_in_file(c, c->rt[i]))
            ret = counts_add(old, c->rt[i] >> c->q.cluster_bits);
    return ret;
}

/* Room for @n clusters in a row, in or behind the file. */
static int find_place(Check *c, const Rebuild *r, uint64_t n, uint64_t *ret)
{
    uint64_t len = 0;

    if (node_may_grow(c->file->node)) {
        *ret = check_place_behind(c, n << c->q.cluster_bits) >> c->q.cluster_bits;
        return *ret + n <= c->room ? 0 : -EFBIG;
    }
    for (uint64_t ci = 1; ci < c->file->node->size >> c->q.cluster_bits; ci++) {
        len = counts_get(&c->refs, ci) || counts_get(&r->old, ci) ? 0 : len + 1;
        if (len == n) {
            *ret = ci + 1 - n;
            return 0;
        }
    }
    return -ENOSPC;
}

/* Which blocks are needed, for what was counted and for the structure itself: until both agree. */
static int plan(Check *c, Rebuild *r)
{
    uint64_t max = u64_max(Q2_MAX_RT_BYTES, c->q.cluster_size) / 8, room = ((c->room - 1) >> c->q.rb_bits) + 1;
    uint64_t n = 0;
    int ret;

    if (room > max)
        room = max;
    r->need = g_try_malloc0(room);
    if (!r->need)
        return -ENOMEM;
    for (uint64_t ci = 0; (ci = counts_next(&c->refs, ci, c->clusters)) < c->clusters; ci++)
        if (counts_get(&c->refs, ci)) {
            if (ci >> c->q.rb_bits >= room)
                return -EFBIG;
            r->need[ci >> c->q.rb_bits] = 1;
            ci |= (UINT64_C(1) << c->q.rb_bits) - 1; /* the next block's */
        }
    for (;;) {
        r->blocks = r->size = 0;
        for (uint64_t i = 0; i < room; i++)
            if (r->need[i]) {
                r->blocks++;
                r->size = i + 1;
            }
        r->table_clusters = div_round_up(r->size * 8, c->q.cluster_size);
        if (r->blocks + r->table_clusters == n)
            return 0;
        n = r->blocks + r->table_clusters;
        ret = find_place(c, r, n, &r->start);
        if (ret < 0)
            return ret;
        if ((r->start + n - 1) >> c->q.rb_bits >= room)
            return -EFBIG;
        for (uint64_t i = r->start >> c->q.rb_bits; i <= (r->start + n - 1) >> c->q.rb_bits; i++)
            r->need[i] = 1;
    }
}

static void fill_block(const Check *c, uint8_t *block, uint64_t index)
{
    uint64_t per_block = UINT64_C(1) << c->q.rb_bits;

    memset(block, 0, c->q.cluster_size);
    for (uint64_t i = 0; i < per_block && index * per_block + i < c->room; i++) {
        uint64_t refs = u64_min(counts_get(&c->refs, index * per_block + i), c->max_refcount);
        if (refs)
            q2_refcount_set(block, c->q.header.refcount_order, i, refs);
    }
}

static int blocks_co_write(Check *c, const Rebuild *r, uint8_t *table, uint8_t *block)
{
    uint64_t at = r->start << c->q.cluster_bits;

    for (uint64_t i = 0; i < r->size; i++) {
        int ret;
        if (!r->need[i])
            continue;
        fill_block(c, block, i);
        ret = child_co_pwrite(c->file, at, c->q.cluster_size, block, 0);
        if (ret < 0)
            return ret;
        store_be64(table + i * 8, at);
        at += c->q.cluster_size;
        check_progress(c, "Rebuilding refcounts", i + 1, r->size);
    }
    return 0;
}

static int structure_co_write(Check *c, const Rebuild *r)
{
    uint64_t bytes = r->table_clusters << c->q.cluster_bits, at = (r->start + r->blocks) << c->q.cluster_bits;
    g_autofree uint8_t *table = g_try_malloc0(bytes);
    uint8_t *block = aio_buf_get(c->file->node->loop, c->q.cluster_size), field[12];
    int ret = table && block ? 0 : -ENOMEM;

    for (uint64_t i = 0; i < r->blocks + r->table_clusters && ret == 0; i++)
        ret = counts_add(&c->refs, r->start + i);
    if (ret == 0)
        ret = blocks_co_write(c, r, table, block);
    aio_buf_put(c->file->node->loop, block, c->q.cluster_size);
    if (ret == 0)
        ret = child_co_pwrite(c->file, at, bytes, table, 0);
    if (ret == 0)
        ret = check_co_barrier(c, "repair-refcounts");
    store_be64(field, at);
    store_be32(field + 8, (uint32_t)r->table_clusters);
    if (ret == 0)
        ret = child_co_pwrite(c->file, Q2_H_RT_OFFSET, sizeof(field), field, 0);
    if (ret == 0) {
        c->q.header.rt_offset = at;
        c->q.header.rt_clusters = (uint32_t)r->table_clusters;
    }
    return ret;
}

int check_co_rebuild(Check *c)
{
    Rebuild r = {0};
    int ret = old_structure(c, &r.old);

    if (ret == 0)
        ret = plan(c, &r);
    if (ret == 0)
        ret = structure_co_write(c, &r);
    counts_free(&r.old);
    g_free(r.need);
    return ret;
}
