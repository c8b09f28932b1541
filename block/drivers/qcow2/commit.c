/*
 * The one place where metadata goes to the image in order.
 *
 * At one moment everything that is dirty is frozen: refcount blocks, refcount table, L2 slices, L1 entries, and the
 * list of what they no longer refer to. Then:
 *
 *   1. refcount blocks are written;
 *   2. where the refcount table has new blocks: barrier, then its entries;
 *   3. barrier: the blocks, and all guest data whose L2 entries were in memory at that moment, are durable; so are the
 *      L2 and L1 entries that earlier commits wrote, hence what they dropped may be freed now;
 *   4. L2 slices and L1 entries are written. Between them there is no order to keep: an L1 entry leads to a table that
 *      was written whole (zeroed or copied) before 3, and anything that is in it after a crash refers to what is
 * durable.
 *
 * With lazy refcounts 1 and 2 are left out: counts stay in memory until the image is closed or memory is short. Before
 * the first entries that rely on such counts the dirty bit is durable, by the barrier of 3, so after a crash the image
 * is repaired before it is written to again. The barrier of 3 remains, since guest data must not come after its entry;
 * what is gained is the writing of refcount blocks. What the header itself is about to lead to (an L1 table, a bitmap
 * directory) does not go by the dirty bit: its counts are written in any case.
 *
 * A crash at any point leaves leaks at worst. Changes made meanwhile go to copies and belong to the next commit. The
 * caller's flush (the graph's) is the barrier after 4. When a step fails, everything frozen is dirty again.
 */
#include "block/drivers/qcow2/event.h"

#define SECTOR_ENTRIES 64 /* of L1 and refcount table, 512 bytes */

/* Sectors of a table in the image, as they were at one moment. */
typedef struct Sectors {
    uint64_t *index; /* in units of SECTOR_ENTRIES */
    uint8_t *data;   /* 512 bytes each */
    uint32_t n;
} Sectors;

static void sectors_free(Sectors *s)
{
    g_free(s->index);
    g_free(s->data);
}

/* Copies the dirty sectors of @table, which has @size entries, and marks them clean. */
static bool sectors_take(Sectors *s, const uint64_t *table, uint32_t size, uint64_t *dirty, uint32_t *n_dirty)
{
    *s = (Sectors){0};
    if (!*n_dirty)
        return true;
    s->index = g_try_new(uint64_t, *n_dirty);
    s->data = g_try_malloc0((size_t)*n_dirty * 512);
    if (!s->index || !s->data) {
        sectors_free(s);
        return false;
    }
    for (uint64_t word = 0; s->n < *n_dirty; word++) {
        while (dirty[word]) {
            unsigned bit = (unsigned)__builtin_ctzll(dirty[word]);
            uint64_t sector = word * 64 + bit;
            dirty[word] &= dirty[word] - 1;
            for (uint64_t i = 0; i < SECTOR_ENTRIES && sector * SECTOR_ENTRIES + i < size; i++)
                store_be64(s->data + (size_t)s->n * 512 + i * 8, table[sector * SECTOR_ENTRIES + i]);
            s->index[s->n++] = sector;
        }
    }
    *n_dirty = 0;
    return true;
}

static void sectors_put_back(const Sectors *s, uint64_t *dirty, uint32_t *n_dirty)
{
    for (uint32_t i = 0; i < s->n; i++) {
        uint64_t bit = UINT64_C(1) << (s->index[i] % 64);
        *n_dirty += !(dirty[s->index[i] / 64] & bit);
        dirty[s->index[i] / 64] |= bit;
    }
}

/* Writes them into the table at @offset with @size entries, neighbours in one go. */
static int sectors_co_write(Qcow2 *q, const Sectors *s, unsigned kind, uint64_t offset, uint32_t size)
{
    for (uint32_t i = 0, n; i < s->n; i += n) {
        uint64_t at = offset + s->index[i] * 512, bytes;
        int ret;
        for (n = 1; i + n < s->n && s->index[i + n] == s->index[i] + n; n++) {
        }
        bytes = u64_min((uint64_t)n * 512, offset + (uint64_t)size * 8 - at);
        q2_co_event(q, kind == Q2_META_L1 ? BLKDEBUG_EVENT_L1_UPDATE : BLKDEBUG_EVENT_REFTABLE_UPDATE);
        ret = q2_co_meta_check(q, kind, at, bytes);
        if (ret == 0)
            ret = child_co_pwrite(q->node->file, at, bytes, s->data + (size_t)i * 512, 0);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* What was frozen together. */
typedef struct Frozen {
    Sectors l1, rt;
    uint64_t rt_offset; /* of that moment: a table that has moved since was written whole */
} Frozen;

static bool freeze(Qcow2 *q, Frozen *f, bool lazy)
{
    *f = (Frozen){.rt_offset = q->header.rt_offset};
    if (!lazy && !sectors_take(&f->rt, q->rt, q->rt_size, q->rt_dirty, &q->rt_n_dirty))
        return false;
    if (!sectors_take(&f->l1, q->l1, q->l1_size, q->l1_dirty, &q->l1_n_dirty)) {
        sectors_put_back(&f->rt, q->rt_dirty, &q->rt_n_dirty);
        sectors_free(&f->rt);
        return false;
    }
    if (!lazy)
        table_cache_freeze(&q->rb);
    table_cache_freeze(&q->l2);
    q2_free_freeze(q);
    return true;
}

/* What is about to be written relies on counts that are in memory only. */
static int commit_co_mark_dirty(Qcow2 *q)
{
    if (order_left_out("lazy-dirty") || (!table_cache_is_dirty(&q->rb) && !q->rt_n_dirty))
        return 0;
    return q2_co_set_dirty(q, true);
}

/* Steps 1 to 3. */
static int commit_co_refcounts(Qcow2 *q, Frozen *f, bool lazy)
{
    int ret = lazy ? commit_co_mark_dirty(q) : table_cache_co_write_frozen(&q->rb);

    if (ret == 0 && f->rt.n) {
        ret = q2_co_barrier(q, "commit-refblocks");
        /* Not while the table is being replaced by a larger one, and not into one that has been. */
        comutex_co_lock(&q->alloc_lock);
        if (ret == 0 && f->rt_offset == q->header.rt_offset)
            ret = sectors_co_write(q, &f->rt, Q2_META_REFTABLE, q->header.rt_offset, q->rt_size);
        if (ret < 0 && f->rt_offset == q->header.rt_offset)
            sectors_put_back(&f->rt, q->rt_dirty, &q->rt_n_dirty);
        comutex_unlock(&q->alloc_lock);
    } else if (ret < 0) {
        sectors_put_back(&f->rt, q->rt_dirty, &q->rt_n_dirty);
    }
    if (ret == 0)
        ret = q2_co_data_flush(q);
    return ret == 0 ? q2_co_barrier(q, "commit-entries") : ret;
}

/* @lazy: counts may stay in memory. */
static int commit_co_run(Qcow2 *q, bool lazy)
{
    bool counts_dirty = !lazy && (table_cache_is_dirty(&q->rb) || q->rt_n_dirty);
    Frozen f;
    int ret;

    if (G_UNLIKELY(q->corrupt || q->unsure))
        return -EIO;
    if (!counts_dirty && !table_cache_is_dirty(&q->l2) && !q->l1_n_dirty && !q2_free_pending(q))
        return 0;
    while (q->rb.n_commit) /* an allocation makes room in the cache */
        coqueue_co_wait(&q->rb.loaders, NULL);
    q2_free_begin(q);
    if (!freeze(q, &f, lazy))
        return -ENOMEM;
    ret = order_left_out("commit-order") ? table_cache_co_write_frozen(&q->l2) : 0;
    if (ret == 0)
        ret = commit_co_refcounts(q, &f, lazy);
    if (ret == 0)
        ret = q2_free_co_apply(q);
    if (ret < 0)
        table_cache_thaw(&q->l2);
    else
        ret = table_cache_co_write_frozen(&q->l2);
    if (ret == 0)
        ret = sectors_co_write(q, &f.l1, Q2_META_L1, q->header.l1_offset, q->l1_size);
    if (ret < 0)
        sectors_put_back(&f.l1, q->l1_dirty, &q->l1_n_dirty);
    else
        q2_free_written(q);
    sectors_free(&f.rt);
    sectors_free(&f.l1);
    return ret;
}

int q2_co_commit_locked(Qcow2 *q)
{
    return commit_co_run(q, q->lazy);
}

int q2_co_commit(Qcow2 *q)
{
    int ret;

    comutex_co_lock(&q->commit_lock);
    ret = q2_co_commit_locked(q);
    comutex_unlock(&q->commit_lock);
    return ret;
}

int q2_co_commit_counts_locked(Qcow2 *q)
{
    return commit_co_run(q, false);
}

int q2_co_commit_counts(Qcow2 *q)
{
    int ret;

    comutex_co_lock(&q->commit_lock);
    ret = q2_co_commit_counts_locked(q);
    comutex_unlock(&q->commit_lock);
    return ret;
}

int q2_co_settle_locked(Qcow2 *q)
{
    int ret;

    do {
        ret = commit_co_run(q, false);
        if (ret == 0)
            ret = q2_co_barrier(q, "settle");
        q2_free_co_wait(q);
    } while (ret == 0 &&
             (q2_free_pending(q) || table_cache_is_dirty(&q->rb) || table_cache_is_dirty(&q->l2) || q->rt_n_dirty));
    return ret;
}

int q2_co_settle(Qcow2 *q)
{
    int ret;

    comutex_co_lock(&q->commit_lock);
    ret = q2_co_settle_locked(q);
    comutex_unlock(&q->commit_lock);
    return ret;
}

/* ---- the caches ------------------------------------------------------------------------------------------------- */

static int cache_co_before_read(Qcow2 *q, BlkdebugEvent event)
{
    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    q2_co_event(q, event);
    return 0;
}

static int l2_co_before_read(TableCache *cache, uint64_t offset)
{
    return cache_co_before_read(cache->node->state, BLKDEBUG_EVENT_L2_LOAD);
}

static int l2_co_before_write(TableCache *cache, uint64_t offset, uint64_t bytes)
{
    q2_co_event(cache->node->state, BLKDEBUG_EVENT_L2_UPDATE);
    return q2_co_meta_check(cache->node->state, Q2_META_L2, offset, bytes);
}

static int l2_co_make_room(TableCache *cache)
{
    return q2_co_commit(cache->node->state);
}

static int refblock_co_before_read(TableCache *cache, uint64_t offset)
{
    return cache_co_before_read(cache->node->state, BLKDEBUG_EVENT_REFBLOCK_LOAD);
}

static int refblock_co_before_write(TableCache *cache, uint64_t offset, uint64_t bytes)
{
    q2_co_event(cache->node->state, BLKDEBUG_EVENT_REFBLOCK_UPDATE_PART);
    return q2_co_meta_check(cache->node->state, Q2_META_REFBLOCK, offset, bytes);
}

const TableCacheOps q2_l2_ops = {
    .co_before_read = l2_co_before_read,
    .co_before_write = l2_co_before_write,
    .co_make_room = l2_co_make_room,
};

const TableCacheOps q2_refblock_ops = {
    .co_before_read = refblock_co_before_read,
    .co_before_write = refblock_co_before_write,
};
