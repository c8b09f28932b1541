/*
 * The walk through L1 and L2 tables, active ones and those of snapshots. What is done with each entry is the visitor's.
 *
 * Tables that a visitor changes are written back in place: each entry within its own sector, so a power cut leaves the
 * old or the new one. Nothing is written that has a second owner: what one takes for a bad entry may be the other's
 * data. See check-own.c.
 */
#include "block/drivers/qcow2/check.h"

#define L1_CHUNK (64 * 1024)

Q2Kind check_entry_kind(const Check *c, uint64_t entry)
{
    if (entry & Q2_COMPRESSED)
        return Q2_PACKED;
    if ((entry & Q2_ZERO) && c->q.l2_entry_bytes == 8)
        return entry & Q2_OFFSET_MASK ? Q2_ZERO_ALLOC : Q2_ZERO_PLAIN;
    if (!(entry & Q2_OFFSET_MASK))
        return c->has_data_file && (entry & Q2_COPIED) ? Q2_NORMAL : Q2_UNALLOCATED;
    return Q2_NORMAL;
}

/* Bytes of the disk that an L1 entry stands for. */
static uint64_t l1_cover(const Check *c)
{
    return c->q.cluster_size / c->q.l2_entry_bytes * c->q.cluster_size;
}

static int table_co_walk(Check *c, const CheckVisitor *visitor, uint64_t l1_index, uint64_t offset, uint8_t *table)
{
    uint64_t size = c->q.cluster_size;
    bool changed = false;
    int ret = check_co_read(c, offset, size, table);

    check_progress(c, visitor->what, c->walked + l1_index * l1_cover(c), c->walk_total);
    if (ret == 0)
        ret = visitor->co_l2(c, l1_index, offset, table, &changed);
    if (ret == 0 && changed && offset && is_aligned(offset, size) && check_only_table(c, offset >> c->q.cluster_bits))
        ret = child_co_pwrite(c->file, offset, size, table, 0);
    return ret;
}

/* The entries of one piece of an L1 table. */
static int l1_co_walk_chunk(Check *c, const CheckVisitor *visitor, uint64_t first, uint8_t *chunk, uint64_t n,
                            uint8_t *table, bool *changed)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t old = load_be64(chunk + i * 8), entry = old, offset;
        int ret;
        if (!old)
            continue;
        ret = visitor->co_l1(c, first + i, &entry);
        if (ret < 0)
            return ret;
        if (entry != old) {
            store_be64(chunk + i * 8, entry);
            *changed = true;
        }
        offset = entry & Q2_OFFSET_MASK;
        if (!entry || (entry == old && !check_in_file(c, offset))) /* a table that was moved lies behind the end */
            continue;
        ret = table_co_walk(c, visitor, first + i, offset, table);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Writes those clusters of a piece of an L1 table that are nothing else. */
static int l1_co_write_chunk(Check *c, uint64_t at, uint64_t bytes, const uint8_t *chunk)
{
    for (uint64_t done = 0, n; done < bytes; done += n) {
        int ret;
        n = u64_min(bytes - done, c->q.cluster_size - q2_in_cluster(&c->q, at + done));
        if (counts_get(&c->refs, (at + done) >> c->q.cluster_bits) > 1 || (!c->active && !check_in_file(c, at + done)))
            continue;
        ret = child_co_pwrite(c->file, at + done, n, chunk + done, 0);
        if (ret < 0)
            return ret;
    }
    return 0;
}

static int l1_co_walk(Check *c, const CheckVisitor *visitor, uint64_t offset, uint32_t size, uint8_t *chunk,
                      uint8_t *table)
{
    for (uint64_t done = 0; done < size;) {
        uint64_t n = u64_min(size - done, L1_CHUNK / 8), at = offset + done * 8;
        bool changed = false;
        int ret = 0;
        if (at >= c->file->node->size || (!c->active && !check_in_file(c, at))) /* nothing but zeroes from here on */
            break;
        ret = check_co_read(c, at, n * 8, chunk);
        if (ret == 0)
            ret = l1_co_walk_chunk(c, visitor, done, chunk, n, table, &changed);
        if (ret == 0 && changed)
            ret = l1_co_write_chunk(c, at, n * 8, chunk);
        if (ret < 0)
            return ret;
        done += n;
    }
    c->walked += size * l1_cover(c);
    return 0;
}

int check_co_walk(Check *c, const CheckVisitor *visitor, bool only_active)
{
    Loop *loop = c->file->node->loop;
    uint8_t *chunk = aio_buf_get(loop, L1_CHUNK), *table = aio_buf_get(loop, c->q.cluster_size);
    int ret = chunk && table ? 0 : -ENOMEM;

    c->walked = 0;
    c->walk_total = c->q.header.l1_size * l1_cover(c);
    for (uint32_t i = 0; i < c->n_snapshots && !only_active; i++)
        c->walk_total += c->snapshots[i].l1_size * l1_cover(c);
    c->active = true;
    if (ret == 0)
        ret = l1_co_walk(c, visitor, c->q.header.l1_offset, c->q.header.l1_size, chunk, table);
    c->active = false;
    for (uint32_t i = 0; i < c->n_snapshots && ret == 0 && !only_active; i++) {
        const CheckSnapshot *s = &c->snapshots[i];
        /* What claims more than there is may claim what is not its own. */
        if (is_aligned(s->l1_offset, c->q.cluster_size) &&
            !(visitor->writes && check_exceeds(c, s->l1_offset, (uint64_t)s->l1_size * 8)))
            ret = l1_co_walk(c, visitor, s->l1_offset, s->l1_size, chunk, table);
    }
    aio_buf_put(loop, chunk, L1_CHUNK);
    aio_buf_put(loop, table, c->q.cluster_size);
    return ret;
}
