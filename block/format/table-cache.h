/*
 * A cache of an image format's metadata: tables of one size, by their offset in the image, written back late and many
 * at a time.
 *
 * The order in which an image's metadata becomes durable is the format's business: it freezes the cache, makes durable
 * what must come before, and writes what was frozen. Content is in the image's byte order. Loop's thread.
 */
#pragma once
#include "block/graph/node.h"

/* A table stays valid until the next yield: nobody pins one. */
typedef struct CacheTable {
    uint64_t offset; /* 0: unused */
    uint8_t *data;   /* in the cache's memory or, while there is stable, elsewhere */
    uint8_t *stable; /* what a commit is writing, when data has been changed since; else NULL */
    uint32_t next;   /* in its hash chain; index + 1, 0: end */
    bool dirty;      /* differs from what is in the image or being written by a commit */
    bool listed;     /* in cache->dirty */
    bool commit;     /* in cache->commit: its content of the time of freezing has to be written */
    bool loading;    /* being read; data is not valid */
    bool used;       /* since the clock's hand came by */
    bool recent;     /* since the last cleaning */
    bool touched;    /* its memory may take space: it was used, and not given back since */
} CacheTable;

typedef struct TableCache TableCache;

typedef struct TableCacheOps {
    /* A table is about to be read. An error is the result of the lookup. */
    int (*co_before_read)(TableCache *cache, uint64_t offset);
    /* Tables that adjoin each other, @bytes in all, are about to be written. An error leaves them dirty. */
    int (*co_before_write)(TableCache *cache, uint64_t offset, uint64_t bytes);
    /* All tables are dirty and a place is needed: makes some of them clean. NULL: they may be written at any time. */
    int (*co_make_room)(TableCache *cache);
} TableCacheOps;

struct TableCache {
    const TableCacheOps *ops;
    Node *node; /* the image; its file child holds the tables */
    uint32_t table_size;
    unsigned table_bits;
    uint32_t n; /* tables */
    uint32_t hand;
    unsigned hash_bits;
    CacheTable *tables;
    uint8_t *memory;    /* of all of them */
    uint32_t *hash;     /* index + 1 */
    CacheTable **dirty; /* room for n */
    uint32_t n_dirty;
    CacheTable **commit; /* room for n */
    uint32_t n_commit;
    CoQueue loaders; /* wait for a table that is loading, or for a free place */
};

/* @table_size: bytes, a power of two. @n: how many tables at most; their memory comes when they are used. */
bool table_cache_init(TableCache *cache, const TableCacheOps *ops, Node *node, uint32_t table_size, uint64_t n,
                      GError **error);
/* Takes a zeroed one. What is dirty is lost. */
void table_cache_free(TableCache *cache);
/* The table at @offset (a multiple of the table size), read if need be. Valid until the next yield. */
int table_cache_co_get(TableCache *cache, uint64_t offset, CacheTable **ret);
/* A table that is not in the image yet, zeroed and dirty. */
int table_cache_co_new(TableCache *cache, uint64_t offset, CacheTable **ret);
/* Announces a change: returns the bytes to change, before the next yield. NULL when memory is short. */
void *table_cache_modify(TableCache *cache, CacheTable *table);
/* Drops clean tables within the range: their place has been freed. Dirty ones are dropped too: nobody needs them. */
void table_cache_forget(TableCache *cache, uint64_t offset, uint64_t bytes);
/* Drops all of them. None may be dirty, loading or being written. */
void table_cache_forget_all(TableCache *cache);
/* Commit: everything dirty at this moment is what table_cache_co_write_frozen() writes. thaw: or not, after an error.
 */
void table_cache_freeze(TableCache *cache);
int table_cache_co_write_frozen(TableCache *cache);
void table_cache_thaw(TableCache *cache);
/* Gives memory of clean tables back that were not used since the last call. */
void table_cache_clean(TableCache *cache);
static inline bool table_cache_is_dirty(const TableCache *cache)
{
    return cache->n_dirty || cache->n_commit;
}
