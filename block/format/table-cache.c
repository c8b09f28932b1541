/*
 * The metadata cache.
 *
 * Guarantees: a buffer that is being written never changes (a change meanwhile goes to a copy), so what reaches the
 * image is the content of one moment, that of table_cache_freeze(). Only clean tables are ever replaced, so replacing
 * does no I/O. When all are dirty, whoever needs a place has the format commit first, or writes out what has no
 * dependencies.
 *
 * A lookup is one hash and mostly one comparison; hits do not yield and allocate nothing. A clock hand finds the table
 * to replace.
 *
 * All tables lie in one mapping, so each costs its size and no more, and pages that nobody uses go back to the system
 * one by one. Only a change during a commit takes other memory, until that table is written.
 */
#include "block/format/table-cache.h"
#include "block/graph/io.h"
#include "block/util/bytes.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define MERGE_MAX 64 /* adjoining tables in one write */

/* A table's place in the cache's memory. */
static uint8_t *own_memory(const TableCache *c, const CacheTable *table)
{
    return c->memory + (size_t)(table - c->tables) * c->table_size;
}

bool table_cache_init(TableCache *c, const TableCacheOps *ops, Node *node, uint32_t table_size, uint64_t n,
                      GError **error)
{
    *c = (TableCache){.ops = ops, .node = node, .table_size = table_size, .n = (uint32_t)MIN(n, UINT32_MAX / 4)};
    c->table_bits = ilog2(table_size);
    c->hash_bits = ilog2(c->n) + 1;
    c->tables = g_try_new0(CacheTable, c->n);
    c->hash = g_try_new0(uint32_t, UINT64_C(1) << c->hash_bits);
    c->dirty = g_try_new0(CacheTable *, c->n);
    c->commit = g_try_new0(CacheTable *, c->n);
    c->memory = mmap(NULL, (size_t)c->n * table_size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (c->memory == MAP_FAILED)
        c->memory = NULL;
    if (!c->tables || !c->hash || !c->dirty || !c->commit || !c->memory) {
        table_cache_free(c);
        return error_set(error, "Could not allocate a metadata cache of %" G_GUINT64_FORMAT " tables", n);
    }
    for (uint32_t i = 0; i < c->n; i++)
        c->tables[i].data = own_memory(c, &c->tables[i]);
    return true;
}

void table_cache_free(TableCache *c)
{
    for (uint32_t i = 0; c->tables && i < c->n; i++)
        if (c->tables[i].stable)
            free(c->tables[i].data);
    if (c->memory)
        munmap(c->memory, (size_t)c->n * c->table_size);
    c->memory = NULL;
    g_clear_pointer(&c->tables, g_free);
    g_clear_pointer(&c->hash, g_free);
    g_clear_pointer(&c->dirty, g_free);
    g_clear_pointer(&c->commit, g_free);
    c->n = 0; /* nothing to clean until there is another one */
}

static inline uint32_t *hash_slot(TableCache *c, uint64_t offset)
{
    return &c->hash[((offset >> c->table_bits) * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - c->hash_bits)];
}

static inline CacheTable *find(TableCache *c, uint64_t offset)
{
    for (uint32_t i = *hash_slot(c, offset); i; i = c->tables[i - 1].next)
        if (c->tables[i - 1].offset == offset)
            return &c->tables[i - 1];
    return NULL;
}

static void unhash(TableCache *c, CacheTable *table)
{
    uint32_t *link = hash_slot(c, table->offset), self = (uint32_t)(table - c->tables) + 1;

    while (*link != self)
        link = &c->tables[*link - 1].next;
    *link = table->next;
    table->next = 0;
    table->offset = 0;
}

static bool is_busy(const CacheTable *table)
{
    return table->dirty || table->commit || table->loading;
}

static uint8_t *copy_alloc(const TableCache *c)
{
    void *mem;

    return posix_memalign(&mem, MIN(MAX(c->table_size, 512), 4096), c->table_size) == 0 ? mem : NULL;
}

/* A table that can be replaced, taken out of the hash; NULL when all are busy. */
static CacheTable *take_victim(TableCache *c)
{
    for (uint64_t i = 0; i < (uint64_t)c->n * 2; i++) {
        CacheTable *table = &c->tables[c->hand];
        c->hand = c->hand + 1 == c->n ? 0 : c->hand + 1;
        if (is_busy(table))
            continue;
        if (table->used && table->offset) {
            table->used = false;
            continue;
        }
        if (table->offset)
            unhash(c, table);
        table->touched = true;
        return table;
    }
    return NULL;
}

static void enhash(TableCache *c, CacheTable *table, uint64_t offset)
{
    uint32_t *slot = hash_slot(c, offset);

    table->offset = offset;
    table->next = *slot;
    *slot = (uint32_t)(table - c->tables) + 1;
    table->used = table->recent = true;
}

/* Makes dirty tables clean so that one can be replaced. */
static int cache_co_make_room(TableCache *c)
{
    int ret;

    if (!table_cache_is_dirty(c)) {
        /* All are being loaded by others. */
        coqueue_co_wait(&c->loaders, NULL);
        return 0;
    }
    if (c->ops->co_make_room)
        return c->ops->co_make_room(c);
    if (c->n_commit) {
        coqueue_co_wait(&c->loaders, NULL); /* somebody is writing already */
        return 0;
    }
    table_cache_freeze(c);
    ret = table_cache_co_write_frozen(c);
    return ret;
}

static int cache_co_load(TableCache *c, CacheTable *table, uint64_t offset)
{
    int ret;

    enhash(c, table, offset);
    table->loading = true;
    ret = c->ops->co_before_read(c, offset);
    if (ret == 0)
        ret = child_co_pread(c->node->file, offset, c->table_size, table->data, 0);
    table->loading = false;
    if (ret < 0 && table->offset == offset)
        unhash(c, table);
    coqueue_wake_all(&c->loaders);
    return ret;
}

int table_cache_co_get(TableCache *c, uint64_t offset, CacheTable **ret)
{
    for (;;) {
        CacheTable *table = find(c, offset);
        int r;

        if (G_LIKELY(table)) {
            if (G_UNLIKELY(table->loading)) {
                coqueue_co_wait(&c->loaders, NULL);
                continue;
            }
            table->used = table->recent = true;
            *ret = table;
            return 0;
        }
        table = take_victim(c);
        r = table ? cache_co_load(c, table, offset) : cache_co_make_room(c);
        if (r < 0)
            return r;
    }
}

int table_cache_co_new(TableCache *c, uint64_t offset, CacheTable **ret)
{
    CacheTable *table;

    table_cache_forget(c, offset, c->table_size);
    while (!(table = take_victim(c))) {
        int r = cache_co_make_room(c);
        if (r < 0)
            return r;
    }
    memset(table->data, 0, c->table_size);
    enhash(c, table, offset);
    table_cache_modify(c, table);
    *ret = table;
    return 0;
}

void *table_cache_modify(TableCache *c, CacheTable *table)
{
    g_assert(table->offset && !table->loading);
    if (table->commit && !table->stable) {
        uint8_t *copy = copy_alloc(c);
        if (!copy)
            return NULL;
        memcpy(copy, table->data, c->table_size);
        table->stable = table->data;
        table->data = copy;
    }
    table->dirty = true;
    if (!table->listed) {
        table->listed = true;
        c->dirty[c->n_dirty++] = table;
    }
    return table->data;
}

void table_cache_forget(TableCache *c, uint64_t offset, uint64_t bytes)
{
    for (uint64_t at = offset; at < offset + bytes; at += c->table_size) {
        CacheTable *table = find(c, at);
        if (!table)
            continue;
        unhash(c, table); /* offset becomes 0: a commit passes it over, a loader notices */
        table->dirty = false;
    }
}

void table_cache_forget_all(TableCache *c)
{
    for (uint32_t i = 0; i < c->n; i++) {
        g_assert(!is_busy(&c->tables[i]));
        if (c->tables[i].offset)
            unhash(c, &c->tables[i]);
    }
}

void table_cache_freeze(TableCache *c)
{
    g_assert(c->n_commit == 0);
    for (uint32_t i = 0; i < c->n_dirty; i++) {
        CacheTable *table = c->dirty[i];
        table->listed = false;
        if (!table->dirty)
            continue;
        table->dirty = false;
        table->commit = true;
        c->commit[c->n_commit++] = table;
    }
    c->n_dirty = 0;
}

static int by_offset(const void *a, const void *b)
{
    const CacheTable *const *x = a, *const *y = b;

    return (*x)->offset < (*y)->offset ? -1 : (*x)->offset > (*y)->offset;
}

/* @table's part in the commit is over; on failure its content still has to be written. */
static void commit_done(TableCache *c, CacheTable *table, bool ok)
{
    table->commit = false;
    if (table->stable) { /* back to the place that it has */
        memcpy(table->stable, table->data, c->table_size);
        free(table->data);
        table->data = table->stable;
        table->stable = NULL;
    }
    if (!ok && table->offset) {
        table->dirty = true;
        if (!table->listed) {
            table->listed = true;
            c->dirty[c->n_dirty++] = table;
        }
    }
}

/* Writes @n frozen tables that adjoin each other in the image. */
static int cache_co_write_run(TableCache *c, CacheTable **tables, uint32_t n)
{
    struct iovec iov[MERGE_MAX];
    IoVec vec = {.iov = iov, .n = (int)n, .size = (size_t)n * c->table_size};
    int ret;

    for (uint32_t i = 0; i < n; i++)
        iov[i] = (struct iovec){.iov_base = tables[i]->stable ? tables[i]->stable : tables[i]->data,
                                .iov_len = c->table_size};
    ret = c->ops->co_before_write(c, tables[0]->offset, vec.size);
    if (ret == 0)
        ret = child_co_pwritev(c->node->file, tables[0]->offset, vec.size, &vec, 0, 0);
    for (uint32_t i = 0; i < n; i++)
        commit_done(c, tables[i], ret == 0);
    return ret;
}

int table_cache_co_write_frozen(TableCache *c)
{
    uint32_t n = c->n_commit;
    int ret = 0;

    qsort(c->commit, n, sizeof(c->commit[0]), by_offset);
    for (uint32_t i = 0; i < n;) {
        uint32_t run = 1;
        if (!c->commit[i]->offset) { /* forgotten meanwhile */
            commit_done(c, c->commit[i], true);
            i++;
            continue;
        }
        while (i + run < n && run < MERGE_MAX &&
               c->commit[i + run]->offset == c->commit[i]->offset + (uint64_t)run * c->table_size)
            run++;
        int r = cache_co_write_run(c, c->commit + i, run);
        if (ret == 0)
            ret = r;
        i += run;
    }
    c->n_commit = 0;
    coqueue_wake_all(&c->loaders);
    return ret;
}

void table_cache_thaw(TableCache *c)
{
    for (uint32_t i = 0; i < c->n_commit; i++)
        commit_done(c, c->commit[i], false);
    c->n_commit = 0;
    coqueue_wake_all(&c->loaders);
}

/* Gives the pages back that lie within the unused tables [@first, @end). */
static void give_back(TableCache *c, uint32_t first, uint32_t end)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), base = (uintptr_t)c->memory;
    uintptr_t from = align_up(base + (uintptr_t)first * c->table_size, page);
    uintptr_t to = align_down(base + (uintptr_t)end * c->table_size, page);
    bool touched = false;

    for (uint32_t i = first; i < end; i++) {
        touched |= c->tables[i].touched;
        c->tables[i].touched = false;
    }
    if (touched && to > from)
        madvise((void *)from, to - from, MADV_DONTNEED);
}

void table_cache_clean(TableCache *c)
{
    uint32_t first = 0; /* of the unused ones in a row */

    for (uint32_t i = 0; i < c->n; i++) {
        CacheTable *table = &c->tables[i];
        if (is_busy(table) || table->recent) {
            table->recent = false;
            give_back(c, first, i);
            first = i + 1;
        } else if (table->offset) {
            unhash(c, table);
        }
    }
    give_back(c, first, c->n);
}
