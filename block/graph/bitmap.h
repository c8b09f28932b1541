/*
 * Dirty bitmaps: which granules of a node were written since somebody last looked.
 *
 * A bitmap belongs to one node and grows with it. LAW 9: it may over-report, never under-report: bits are set when a
 * write completes (or fails: then too), before its completion is reported.
 */
#pragma once
#include "block/graph/node.h"
#include "block/util/hbitmap.h"

struct Bitmap {
    Node *node;
    char *name;           /* NULL: a job's own, invisible to clients */
    HBitmap *bits;        /* byte offsets rounded to granules */
    uint64_t granularity; /* bytes, a power of two */
    bool enabled;         /* records writes */
    bool persistent;      /* the format stores it */
    bool unsaved;         /* persistent: differs from what the image holds, though nothing was written to the node */
    bool inconsistent;    /* was in use when the image was last left: only good for removal */
    unsigned busy;        /* a job or export uses it: not to be changed by commands */
    Bitmap *successor;    /* while frozen by a backup: records new writes in its place */
    /* Called whenever a write has set bits, for a job that sleeps until there is something to copy. NULL: nobody. Must
     * not yield, nor free the bitmap. */
    void (*dirtied)(void *opaque);
    void *opaque;
};

/* What granularity 0 means for @node: its cluster size within 4 KiB..64 KiB, or 64 KiB. Bytes. */
uint64_t bitmap_default_granularity(Node *node);
/* @granularity in bytes (power of two, 512 to 2 GiB; 0: bitmap_default_granularity()).
 * @name NULL: anonymous. Enabled. NULL with @error in QEMU's words ("Bitmap already exists: x", "Granularity must be a
 * power of 2" …). */
Bitmap *bitmap_new(Node *node, uint64_t granularity, const char *name, GError **error);
/* For drivers that open an image of @size bytes: a bitmap that it holds, persistent, clean and disabled. What was not
 * stored properly, @inconsistent, has no bits at all. Names must differ. */
Bitmap *bitmap_new_stored(Node *node, uint64_t size, unsigned granularity_bits, const char *name, bool inconsistent,
                          GError **error);
void bitmap_free(Bitmap *bitmap); /* removes it from its node; takes NULL */
Bitmap *bitmap_find(Node *node, const char *name);
/* For QMP arguments: "Dirty bitmap 'x' not found" etc. @ret_node may be NULL. */
Bitmap *bitmap_lookup(Graph *graph, const char *node, const char *name, Node **ret_node, GError **error);

/* Is @name, which is not NULL, fit for a bitmap: neither empty nor longer than 1023 bytes? */
bool bitmap_name_ok(const char *name, GError **error);

enum { BITMAP_REFUSE_BUSY = 1, BITMAP_REFUSE_RO = 2, BITMAP_REFUSE_INCONSISTENT = 4, BITMAP_REFUSE_ALL = 7 };
/* Refuses bitmaps that are in the named states, with QEMU's texts. */
bool bitmap_check(const Bitmap *bitmap, unsigned refuse, GError **error);

/* Can the node's format store one more bitmap of that name and granularity (bytes)? With QEMU's texts. */
bool bitmap_can_store(Node *node, const char *name, uint64_t granularity, GError **error);
/* Has the image a place where it can say that it holds bitmaps at all, which takes reading? Formats that hold none, and
 * nodes that are read-only, are left to the above. */
bool bitmap_co_check_room(Node *node, GError **error);
/* A persistent bitmap is about to be changed by other means than a write to its node: the image says so from now on,
 * durably. What cannot be written to needs nothing. The bitmap may be gone when it returns. */
bool bitmap_co_touch(Bitmap *bitmap, GError **error);
/* Takes the stored copy of a persistent bitmap out of its image; the bitmap itself stays, unsaved. It may be gone when
 * this returns. */
bool bitmap_co_forget(Bitmap *bitmap, GError **error);

/* Freezes it for a backup: content stands still, writes go to a successor (enabled as the bitmap was). */
bool bitmap_freeze(Bitmap *bitmap, GError **error);
/* The backup worked: what the successor recorded is the bitmap now. */
void bitmap_thaw_replace(Bitmap *bitmap);
/* It did not: what the successor recorded is added to the old content. */
void bitmap_thaw_merge(Bitmap *bitmap);

/* Is it held by an image that cannot be written to? Then it cannot change either. */
bool bitmap_readonly(const Bitmap *bitmap);
/* Does it, or its successor, record writes? */
bool bitmap_recording(const Bitmap *bitmap);
void bitmap_set(Bitmap *bitmap, uint64_t offset, uint64_t bytes);
void bitmap_reset(Bitmap *bitmap, uint64_t offset, uint64_t bytes); /* whole granules (or up to the end) only */
/* What is to be stored of it: its bits and those of a successor. The caller frees; NULL when memory is short. */
HBitmap *bitmap_all_bits(const Bitmap *bitmap);
uint64_t bitmap_count(const Bitmap *bitmap); /* dirty bytes, whole granules */

/* For graph/io: marks all enabled bitmaps of @node. For resize: adapts them. */
void node_mark_dirty(Node *node, uint64_t offset, uint64_t bytes);
bool node_resize_bitmaps(Node *node, uint64_t size, GError **error);

/* For query-block and friends: BlockDirtyInfo of every named bitmap, NULL when there is none. Caller frees. */
BlockDirtyInfoList *bitmap_query(Node *node);
