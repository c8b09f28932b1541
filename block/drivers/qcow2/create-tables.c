/*
 * The tables of a new image, computed from their places and written in pieces, since those of a large disk whose space
 * is prepared are large, too.
 */
#include "block/drivers/qcow2/create.h"

#define PIECE (1 << 20) /* bytes: a multiple of every table entry */

/* Puts [@at, @at + @bytes) of a table into @buf, which is zero. */
typedef void FillFn(const Q2Layout *l, uint64_t at, uint64_t bytes, uint8_t *buf);

static void fill_reftable(const Q2Layout *l, uint64_t at, uint64_t bytes, uint8_t *buf)
{
    for (uint64_t i = 0; i < bytes / 8 && at / 8 + i < l->blocks; i++)
        store_be64(buf + i * 8, (q2_layout_blocks(l) + at / 8 + i) << l->cluster_bits);
}

static void fill_blocks(const Q2Layout *l, uint64_t at, uint64_t bytes, uint8_t *buf)
{
    uint64_t first = at * 8 >> l->refcount_order, n = bytes * 8 >> l->refcount_order;

    for (uint64_t i = 0; i < n && first + i < l->total; i++)
        q2_refcount_set(buf, l->refcount_order, i, 1);
}

static void fill_l1(const Q2Layout *l, uint64_t at, uint64_t bytes, uint8_t *buf)
{
    for (uint64_t i = 0; i < bytes / 8 && at / 8 + i < l->l2_tables; i++)
        store_be64(buf + i * 8, (q2_layout_l2(l) + at / 8 + i) << l->cluster_bits | Q2_COPIED);
}

/* All L2 tables are one: they adjoin each other. With extended entries, no subcluster is marked as data: it has its
 * place, but shows what lies below. Without them, the flag for zeroes does that where the file is encrypted. */
static void fill_l2(const Q2Layout *l, uint64_t at, uint64_t bytes, uint8_t *buf)
{
    uint64_t first = at / l->entry_bytes, start = l->data ? q2_layout_data(l) : 0;
    uint64_t zero = l->encrypted && l->entry_bytes == 8 ? Q2_ZERO : 0;

    for (uint64_t i = 0; i < bytes / l->entry_bytes && first + i < l->disk; i++)
        store_be64(buf + i * l->entry_bytes, (start + first + i) << l->cluster_bits | Q2_COPIED | zero);
}

/* The table that takes @n clusters from @cluster on. */
static int table_co_write(Port *file, const Q2Layout *l, uint64_t cluster, uint64_t n, FillFn *fill, uint8_t *buf)
{
    uint64_t start = cluster << l->cluster_bits, bytes = n << l->cluster_bits;
    int ret = 0;

    for (uint64_t at = 0; at < bytes && ret == 0; at += PIECE) {
        uint64_t part = u64_min(bytes - at, PIECE);
        memset(buf, 0, part);
        fill(l, at, part, buf);
        ret = port_co_pwrite(file, start + at, part, buf, 0);
    }
    return ret;
}

int q2_create_co_tables(Port *file, const Q2Layout *l)
{
    g_autofree uint8_t *buf = g_try_malloc(PIECE);
    int ret = buf ? 0 : -ENOMEM;

    if (ret == 0)
        ret = table_co_write(file, l, 1, l->rt_clusters, fill_reftable, buf);
    if (ret == 0)
        ret = table_co_write(file, l, q2_layout_blocks(l), l->blocks, fill_blocks, buf);
    if (ret == 0)
        ret = table_co_write(file, l, q2_layout_l1(l), l->l1_clusters, fill_l1, buf);
    if (ret == 0)
        ret = table_co_write(file, l, q2_layout_l2(l), l->l2_tables, fill_l2, buf);
    return ret;
}
