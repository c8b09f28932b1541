/*
 * The qcow2 driver's own header: what its files share. Format: docs/interop/qcow2 of the QEMU project, versions 2
 * and 3.
 *
 * How an image stays whole (LAW 9), in one place; each file says how it does its part:
 *
 *   1. A cluster's reference count is durable before anything durable refers to the cluster.
 *   2. Guest data is durable before the L2 entry that shows it.
 *   3. A reference count goes down only when the entry that referred to the cluster is durably gone, and only when no
 *      request that may still use the old mapping is in flight. Such "frees" wait in a list (free.c).
 *
 * From 3 follows that any content of a refcount block in memory may be written at any time: what is not durable yet
 * can only be a leak. So refcount blocks have no dependencies at all, and the one ordered step is commit.c: refcount
 * blocks, [barrier, refcount table,] barrier, L2 tables and L1 entries.
 *
 * Everything belongs to the node's loop thread. Functions without `_co_` run to their end undisturbed; after every
 * call of a `_co_` function the world may have changed. Locks are taken in this order: first_write_lock, bitmap_lock,
 * l1_lock, commit_lock, alloc_lock. None of them is held over guest I/O.
 */
#pragma once
#include "block/aio/io.h"
#include "block/crypto/cipher.h"
#include "block/format/backing.h"
#include "block/format/claim.h"
#include "block/format/cow.h"
#include "block/format/extent.h"
#include "block/format/table-cache.h"
#include "block/graph/io.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include "block/util/order.h"

#define Q2_MAGIC              0x514649fb
#define Q2_MIN_CLUSTER_BITS   9
#define Q2_MAX_CLUSTER_BITS   21
#define Q2_MAX_L1_BYTES       (32 << 20)
#define Q2_MAX_RT_BYTES       (8 << 20)
#define Q2_MAX_SNAPSHOTS      65536
#define Q2_MAX_SNAPSHOT_BYTES (64 << 20)
#define Q2_MAX_BITMAPS        65535
#define Q2_MAX_BACKING        1023
#define Q2_V2_HEADER          72
#define Q2_V3_HEADER          104
#define Q2_OUR_HEADER         112 /* with the compression type */
#define Q2_MAX_HOST           (UINT64_C(1) << 56)

/* Entries of L1 and L2 tables. */
#define Q2_COPIED      (UINT64_C(1) << 63) /* the refcount is exactly 1: may be written in place */
#define Q2_COMPRESSED  (UINT64_C(1) << 62)
#define Q2_ZERO        UINT64_C(1)
#define Q2_OFFSET_MASK UINT64_C(0x00fffffffffffe00)

#define Q2_SUBCLUSTERS                                                                                                 \
    32 /* of a cluster with an extended entry: bits 0 … 31 of its bitmap are data, the others zeroes */
#define Q2_MIN_SUB_BITS 9

enum { Q2_INCOMPAT_DIRTY = 1, Q2_INCOMPAT_CORRUPT = 2, Q2_INCOMPAT_DATA_FILE = 4, Q2_INCOMPAT_COMPRESSION = 8 };
enum { Q2_INCOMPAT_EXTL2 = 16 };
enum { Q2_COMPAT_LAZY_REFCOUNTS = 1 };
enum { Q2_AUTOCLEAR_BITMAPS = 1, Q2_AUTOCLEAR_RAW = 2 };

/* Offsets of header fields that are rewritten in place. */
enum {
    Q2_H_SIZE = 24,
    Q2_H_L1_SIZE = 36,   /* 4 bytes, then 8 of the table's offset */
    Q2_H_RT_OFFSET = 48, /* 8 bytes, then 4 of the number of clusters */
    Q2_H_INCOMPAT = 72,
    Q2_H_AUTOCLEAR = 88,
};

/* Type numbers of header extensions. */
enum {
    Q2_EXT_BACKING_FORMAT = 0xe2792aca,
    Q2_EXT_FEATURES = 0x6803f857,
    Q2_EXT_BITMAPS = 0x23852875,
    Q2_EXT_CRYPTO = 0x0537be77,
    Q2_EXT_DATA_FILE = 0x44415441,
};

/* Encryption methods. */
enum { Q2_CRYPT_NONE, Q2_CRYPT_AES, Q2_CRYPT_LUKS };
#define Q2_MAX_CRYPTO_BYTES (16 << 20)

typedef struct Qcow2 Qcow2;

/* ---- header.c --------------------------------------------------------------------------------------------------- */

typedef struct Q2Bitmaps {
    uint32_t n;
    uint64_t directory_size, directory_offset; /* bytes */
} Q2Bitmaps;

/* Where the LUKS header lies. */
typedef struct Q2Crypto {
    uint64_t offset, bytes; /* bytes 0: nowhere */
} Q2Crypto;

/* The header as it stands in the image, checked; in the machine's byte order. */
typedef struct Q2Header {
    uint32_t version;
    uint32_t cluster_bits;
    uint64_t size; /* of the virtual disk, bytes */
    uint32_t crypt_method;
    uint32_t l1_size; /* entries */
    uint64_t l1_offset;
    uint64_t rt_offset;
    uint32_t rt_clusters;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset;
    uint64_t incompat, compat, autoclear;
    uint32_t refcount_order;
    uint32_t header_length;
    uint8_t compression_type; /* 0 zlib, 1 zstd */
    char *backing_file;       /* NULL: none */
    char *backing_format;     /* NULL: not named */
    char *data_file;          /* the data file's name; NULL: none, or not named */
    Q2Crypto crypto;
    Q2Bitmaps bitmaps; /* n is 0 when there is no such extension */
} Q2Header;

/* Parses the first @len bytes of an image (at least the first cluster, or all there is). Refuses with an error that
 * names field, value and limit what cannot be opened at all; nothing outside @buf is read. */
bool q2_header_parse(Q2Header *header, const uint8_t *buf, size_t len, GError **error);
/* Bytes of an L2 entry: 8, or 16 where the header says that each has a bitmap of subclusters beside it. */
static inline unsigned q2_header_l2_entry_bytes(const Q2Header *header)
{
    return header->incompat & Q2_INCOMPAT_EXTL2 ? 16 : 8;
}
/* Reads it from the image and parses it. */
bool q2_header_co_read(Q2Header *header, Child *file, GError **error);
void q2_header_free(Q2Header *header); /* what it points to */
/* Are there tables where the header says? A checker can live with what a driver cannot. */
bool q2_header_check_tables(const Q2Header *header, GError **error);
/* Checks that need to know how the image is to be used. */
bool q2_header_check_use(const Q2Header *header, bool writable, GError **error);
/* Writes @size bytes (within one sector) of the header at @offset. Not flushed. */
int q2_co_header_patch(Qcow2 *q, unsigned offset, const void *bytes, unsigned size);
/* Replaces @size bytes of the header, @old by @now, durably. When that fails @old is put back. When that fails as well
 * nobody knows which of the two the image has: then q->unsure is set, nothing is committed and no flush succeeds until
 * the image is opened again, and what either of the two leads to must stay as it is. @site: q2_co_barrier()'s. 0 or
 * -errno. */
int q2_co_header_switch(Qcow2 *q, unsigned offset, const void *old, const void *now, unsigned size, const char *site);
/* Sets the corrupt bit in the image and in memory and makes it durable; nothing in version 2, which has none. */
int q2_co_set_corrupt(Qcow2 *q);
/* Sets the dirty bit or takes it off, without the barrier: what it vouches for, or no longer does, brings its own. */
int q2_co_set_dirty(Qcow2 *q, bool dirty);

/* ---- ext.c ------------------------------------------------------------------------------------------------------ */

/* Gives the image a header extension, in the place of one of that type or besides the others; durable, and after a
 * crash the old one stands or the new one. What is in memory of the header is the caller's business. False with @error
 * when the header cluster has no room (nothing has changed then) or could not be written. Takes header_lock. */
bool q2_ext_co_set(Qcow2 *q, uint32_t type, const void *data, uint32_t len, GError **error);
/* Could it, with @len bytes? Reads the header, and changes nothing. */
bool q2_ext_co_fits(Qcow2 *q, uint32_t type, uint32_t len, GError **error);
/* Takes all extensions of that type away; no error when there are none. */
bool q2_ext_co_remove(Qcow2 *q, uint32_t type, GError **error);

/* ---- bitmap-load.c, bitmap-store.c: more in bitmaps.h ----------------------------------------------------------- */

/* Reads the directory and makes the node's bitmaps. */
bool q2_bitmaps_co_load(Qcow2 *q, GError **error);
void q2_bitmaps_free(Qcow2 *q);
/* Enters what the image's bitmaps take into the set of metadata. */
bool q2_bitmaps_meta(Qcow2 *q, GError **error);
/* NULL: there are none. The caller frees. */
Qcow2BitmapInfoList *q2_bitmaps_info(const Qcow2 *q);
/* Marks all that the image holds as in use, durably. */
int q2_bitmaps_co_mark(Qcow2 *q);
/* Stores what has changed since the image was opened for writing, all or nothing, durably. The node is drained or being
 * closed. On failure those in the image stay in use. */
bool q2_bitmaps_co_store(Qcow2 *q, GError **error);
/* May the disk have @size bytes, with the bitmaps that it has? */
bool q2_bitmaps_allow_size(const Qcow2 *q, uint64_t size, GError **error);
/* The driver's callbacks. */
bool q2_can_store_bitmap(Node *node, const char *name, uint64_t granularity, GError **error);
bool q2_co_bitmaps_fit(Node *node, GError **error);
int q2_co_touch_bitmaps(Node *node);
bool q2_co_remove_bitmap(Node *node, const char *name, GError **error);

/* ---- overlap.c -------------------------------------------------------------------------------------------------- */

/* What a host cluster is reserved for. 0: nothing (free or data). */
enum {
    Q2_META_HEADER = 1,
    Q2_META_L1,
    Q2_META_L2,
    Q2_META_REFTABLE,
    Q2_META_REFBLOCK,
    Q2_META_SNAPSHOTS,
    Q2_META_INACTIVE_L1,
    Q2_META_INACTIVE_L2,
    Q2_META_BITMAPS,
    Q2_META_CRYPTO,
    Q2_META__MAX,
};

typedef struct Q2MetaSlot {
    uint64_t key; /* cluster index + 1, 0: empty */
    uint8_t kind;
} Q2MetaSlot;

/* Open-addressing set of the metadata clusters. */
typedef struct Q2MetaSet {
    Q2MetaSlot *slots;
    uint64_t used, room; /* room: power of two */
    unsigned mask;       /* bits of (1 << kind) that are looked after */
} Q2MetaSet;

bool q2_meta_init(Qcow2 *q, GError **error);
/* open.c: a new set of all that there is now. */
bool q2_meta_co_fill(Qcow2 *q, GError **error);
void q2_meta_free(Qcow2 *q);
/* Makes room for @n more. */
bool q2_meta_reserve(Qcow2 *q, uint64_t n);
/* Marks the clusters of a range; the first owner stays the owner. Room must have been reserved. */
void q2_meta_add(Qcow2 *q, unsigned kind, uint64_t offset, uint64_t bytes);
/* One table of a cluster, as an entry of an untrusted table names it; what cannot be one is passed over, since its use
 * is reported as damage. */
void q2_meta_add_table(Qcow2 *q, unsigned kind, uint64_t offset);
void q2_meta_remove(Qcow2 *q, uint64_t offset, uint64_t bytes);
/* What the first reserved cluster in the range is reserved for; 0: none is. */
unsigned q2_meta_find(const Qcow2 *q, uint64_t offset, uint64_t bytes);
/* What the cluster at @offset is, even where that is not looked after. */
unsigned q2_meta_kind(const Qcow2 *q, uint64_t offset);
const char *q2_meta_name(unsigned kind);
/* 0 when data (@kind 0) or metadata of @kind may be written there; else the image is marked corrupt and -EIO. */
int q2_co_meta_check(Qcow2 *q, unsigned kind, uint64_t offset, uint64_t bytes);
static inline bool q2_meta_hit(const Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    return q2_meta_find(q, offset, bytes) != 0;
}

/* Reports damage: BLOCK_IMAGE_CORRUPTED and a message, once. Where the image is writable it is marked corrupt and from
 * then on nothing more is read from or written to it. @offset: of the bad access, -1: none. Returns -EIO. */
int q2_co_corrupt(Qcow2 *q, int64_t offset, int64_t size, const char *fmt, ...) G_GNUC_PRINTF(4, 5);

/* ---- refcount.c ------------------------------------------------------------------------------------------------- */

/* The @index'th entry of a refcount block with entries of 2^@order bits. */
uint64_t q2_refcount_get(const uint8_t *block, unsigned order, uint64_t index);
void q2_refcount_set(uint8_t *block, unsigned order, uint64_t index, uint64_t value);

bool q2_refcount_co_init(Qcow2 *q, GError **error);
/* Makes the refcount table have room for @want entries. alloc_lock held. */
int q2_refcount_co_grow(Qcow2 *q, uint64_t want);
void q2_refcount_free(Qcow2 *q);
/* The refcount block of the cluster with index @ci; makes one, and grows the refcount table, where there is none.
 * alloc_lock held. */
int q2_refcount_co_block(Qcow2 *q, uint64_t ci, CacheTable **ret);
/* Makes blocks for a range that has room for @want free clusters in a row: more than lie between two blocks otherwise.
 * *@ret_ci is the first. alloc_lock held. */
int q2_refcount_co_region(Qcow2 *q, uint64_t want, uint64_t *ret_ci);
/* The block of a cluster without making one: *@ret is NULL where there is none. */
int q2_refcount_co_find(Qcow2 *q, uint64_t ci, CacheTable **ret);

/* ---- alloc.c ---------------------------------------------------------------------------------------------------- */

typedef struct Q2Run {
    uint64_t offset; /* in the image */
    uint64_t n;      /* clusters */
    bool fresh;      /* reads as zeroes: never written since the file grew over it */
} Q2Run;

/* Can the file hold something that ends at @end: is it there, or can the file grow? */
bool q2_file_holds(const Qcow2 *q, uint64_t end);
/* Takes up to @want free clusters in a row (@exact: all of them or -ENOSPC …); their refcount becomes 1. */
int q2_co_alloc(Qcow2 *q, uint64_t want, bool exact, Q2Run *ret);
/* Room for @bytes of compressed data, packed behind the last. */
int q2_co_alloc_bytes(Qcow2 *q, uint64_t bytes, uint64_t *ret);
/* Lowers the refcounts of all clusters that the range touches, now: for what nothing durable refers to. @kind: why. */
int q2_co_unref(Qcow2 *q, uint64_t offset, uint64_t bytes, unsigned kind);

/* ---- free.c ----------------------------------------------------------------------------------------------------- */

/* Why clusters are freed: decides about pass-discard-*. */
enum { Q2_FREE_NEVER, Q2_FREE_REQUEST, Q2_FREE_SNAPSHOT, Q2_FREE_OTHER, Q2_FREE__MAX };

typedef struct Q2Free {
    uint64_t offset, bytes;
    unsigned kind;
} Q2Free;

typedef struct Q2FreeList {
    Q2Free *items;
    size_t n, room;
} Q2FreeList;

/* The range lost a reference in the L2 (or L1) tables in memory. When memory is short it becomes a leak. */
void q2_free_later(Qcow2 *q, uint64_t offset, uint64_t bytes, unsigned kind);
/* The same for what an L2 entry refers to. */
void q2_free_entry_later(Qcow2 *q, uint64_t entry, unsigned kind);
/* For commit.c, in this order. begin: what earlier commits wrote may become free in this one; freeze: what was dropped
 * until now belongs to this commit; apply, behind a barrier: lowers the counts, unless somebody still uses the
 * clusters; written: all entries of this commit have been. */
void q2_free_begin(Qcow2 *q);
void q2_free_freeze(Qcow2 *q);
int q2_free_co_apply(Qcow2 *q);
void q2_free_written(Qcow2 *q);
/* Waits until the requests have ended that stand in the way of freeing. commit_lock held. */
void q2_free_co_wait(Qcow2 *q);
/* Is there anything that waits to be freed? */
bool q2_free_pending(const Qcow2 *q);
/* A request failed with @ret. Was it for want of space, while something waited to be freed? Then that is free now, and
 * the request may be tried once more. Nothing may be held. */
bool q2_free_co_reclaim(Qcow2 *q, int ret);
/* Commits when a lot waits: else, without flushes, nothing would ever become free. Nothing may be held. */
void q2_free_co_throttle(Qcow2 *q);

/* Sections during which a request uses host clusters that the tables gave it: until it ends they are not free. */
static inline unsigned q2_data_enter(Qcow2 *q);
static inline void q2_data_leave(Qcow2 *q, unsigned phase);

/* ---- commit.c --------------------------------------------------------------------------------------------------- */

/* Writes all metadata that is dirty now in the order that keeps the image whole; not the last barrier. */
int q2_co_commit(Qcow2 *q);
/* The same for who holds commit_lock. */
int q2_co_commit_locked(Qcow2 *q);
/* The same two, with the reference counts even where they may be late: before the header leads to new clusters. */
int q2_co_commit_counts(Qcow2 *q);
int q2_co_commit_counts_locked(Qcow2 *q);
/* Commits, makes it durable and applies all frees, so that nothing is pending: close, resize. */
int q2_co_settle(Qcow2 *q);
/* The same for who holds commit_lock. */
int q2_co_settle_locked(Qcow2 *q);
/* Of the caches. L2 tables are only written in a commit, refcount blocks at any time. */
extern const TableCacheOps q2_l2_ops, q2_refblock_ops;

/* A barrier: what was written to the image before it is durable when it returns. @site: its name, see util/order.h. */
static inline int q2_co_barrier(Qcow2 *q, const char *site);

/* ---- map.c ------------------------------------------------------------------------------------------------------ */

typedef enum Q2Kind { Q2_UNALLOCATED, Q2_NORMAL, Q2_ZERO_PLAIN, Q2_ZERO_ALLOC, Q2_PACKED } Q2Kind;

/* With extended entries Q2_NORMAL and Q2_UNALLOCATED say no more than whether there is a host cluster. */
static inline Q2Kind q2_entry_kind(const Qcow2 *q, uint64_t entry);
/* Entry @i of @table, an L2 table or a slice of one as it is in the image; the bitmap of its subclusters beside it, 0
 * where entries have none; and setting both. */
static inline uint64_t q2_l2_entry(const Qcow2 *q, const uint8_t *table, uint64_t i);
static inline uint64_t q2_l2_bitmap(const Qcow2 *q, const uint8_t *table, uint64_t i);
static inline void q2_l2_set(const Qcow2 *q, uint8_t *table, uint64_t i, uint64_t entry, uint64_t bitmap);
/* Position of guest cluster @gc in its slice, and of the subcluster at @offset in its cluster. */
static inline unsigned q2_slice_index(const Qcow2 *q, uint64_t gc);
static inline unsigned q2_sub_index(const Qcow2 *q, uint64_t offset);
/* Looks [@offset, @offset + @bytes) up, as far as it is alike within one L2 slice. */
int q2_co_map(Qcow2 *q, uint64_t offset, uint64_t bytes, Extent *ret);
/* The same and more, for requests. */
extern const ExtentOps q2_extent_ops;
/* Reports the entry of guest cluster @gc as damage: q2_entry_is_bad(). */
int q2_co_entry_bad(Qcow2 *q, uint64_t gc, uint64_t entry);
/* A slice of an L2 table that may be changed. Entries for guest cluster @gc on: *@ret_index is its index in the slice.
 */
int q2_co_l2_for_write(Qcow2 *q, uint64_t gc, CacheTable **ret, unsigned *ret_index);
/* Where compressed data lies. */
void q2_packed_range(const Qcow2 *q, uint64_t entry, uint64_t *ret_offset, uint64_t *ret_bytes);
bool q2_l1_co_load(Qcow2 *q, GError **error);
/* The L1 table in memory no longer leads to the L2 table at @offset. */
void q2_l2_drop(Qcow2 *q, uint64_t offset);
/* Marks an L1 entry as changed in memory. */
void q2_l1_set(Qcow2 *q, uint64_t index, uint64_t entry);

/* ---- subcluster.c ----------------------------------------------------------------------------------------------- */

/* Damage: an offset that cannot be one, or a bitmap that contradicts itself. */
bool q2_entry_is_bad(const Qcow2 *q, uint64_t entry, uint64_t bitmap);
/* Does it have a host cluster that nobody else refers to? */
bool q2_entry_is_ours(const Qcow2 *q, uint64_t entry);
/* What subcluster @sub of a sound entry is; without extended entries, what the cluster is. */
Q2Kind q2_sub_kind(const Qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub);
/* How many subclusters from @sub on are what that one is. */
unsigned q2_sub_alike(const Qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub);
/* How many from @sub on have a place in the host cluster, but no data there. */
unsigned q2_sub_unused(const Qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned sub);
/* The subclusters of guest cluster @gc that [@start, @end), which touches it, covers; lower half of a bitmap. */
uint32_t q2_sub_mask(const Qcow2 *q, uint64_t gc, uint64_t start, uint64_t end);
/* When the cluster gets a new place: all subclusters that must move there are among [*@ret_first, *@ret_after). */
void q2_sub_kept(const Qcow2 *q, uint64_t entry, uint64_t bitmap, unsigned *ret_first, unsigned *ret_after);

/* ---- snapshot.c and its kin: snapshot.h ------------------------------------------------------------------------- */

typedef struct Q2Snapshot Q2Snapshot;

/* Reads the snapshot table: q->snapshots. */
bool q2_snapshots_co_load(Qcow2 *q, GError **error);
void q2_snapshots_free(Qcow2 *q);
/* Enters it, and the tables of all snapshots, into the set of metadata. */
bool q2_snapshots_co_meta(Qcow2 *q, GError **error);
/* The driver's callbacks. */
SnapshotInfoList *q2_list_snapshots(Node *node);
bool q2_co_snapshot_create(Node *node, const SnapshotNew *what, GError **error);
bool q2_co_snapshot_delete(Node *node, const char *id, const char *name, GError **error);
bool q2_co_snapshot_apply(Node *node, const char *id, const char *name, uint64_t size, GError **error);
bool q2_snapshot_size(Node *node, const char *id, const char *name, uint64_t *ret, GError **error);

/* ---- data.c ----------------------------------------------------------------------------------------------------- */

/* Guest data in host clusters: @guest and @host are where it lies on the disk and in the file that holds it (q->data).
 * 0 or -errno. Writes are refused, and the image marked corrupt, where they would hit metadata. */
int q2_co_data_read(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, const IoVec *vec, size_t vec_offset);
int q2_co_data_write(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, const IoVec *vec, size_t vec_offset);
/* Writes what @source has, by the host's means: see child_co_copy_from(). Not for encrypted images. */
int q2_co_data_copy(Qcow2 *q, uint64_t host, uint64_t bytes, Node *source, uint64_t source_offset, ReqFlags flags);
/* -ENOTSUP: zeroes have to be written out by q2_co_data_write(). */
int q2_co_data_zero(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, ReqFlags flags);
/* Makes what was written to another file than the image's durable. */
int q2_co_data_flush(Qcow2 *q);
/* The same for compressed data, which only lies in the image file. */
int q2_co_packed_load(Qcow2 *q, uint64_t host, uint64_t bytes, void *buf);
int q2_co_packed_store(Qcow2 *q, uint64_t host, uint64_t bytes, const void *buf);

/* ---- datafile.c ------------------------------------------------------------------------------------------------- */

/* A place for guest clusters from @first on, as q2_co_alloc() with its @exact false, and giving it back unused. */
int q2_co_data_alloc(Qcow2 *q, uint64_t first, uint64_t want, Q2Run *ret);
void q2_co_data_unalloc(Qcow2 *q, const Q2Run *run);
/* Do the options want the space of what a guest discards given back? */
bool q2_may_give_back(const Qcow2 *q);
/* For data files: the guest clusters have lost their data; gives the space back as far as the options want it. Reads
 * of the clusters as data give the old content or zeroes from here on. */
void q2_co_data_drop(Qcow2 *q, uint64_t first, uint64_t n);
/* Does the entry of guest cluster @gc contradict that its data lies in a data file? */
bool q2_data_entry_is_bad(const Qcow2 *q, uint64_t gc, uint64_t entry);
/* Write-zeroes and discard for raw data files. */
int q2_co_raw_zero(Qcow2 *q, uint64_t offset, uint64_t bytes, ReqFlags flags);
int q2_co_raw_discard(Qcow2 *q, uint64_t offset, uint64_t bytes);
/* Makes the data file fit a disk of @size bytes that had @old_size; nothing where there is none. Before the disk grows
 * and after it has shrunk. */
bool q2_co_data_resize(Qcow2 *q, uint64_t old_size, uint64_t size, bool exact, GError **error);

/* What follows from the header: sizes and masks. */
void q2_set_geometry(Qcow2 *q);

/* ---- guest I/O -------------------------------------------------------------------------------------------------- */

int q2_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
int q2_co_copy_from(Node *node, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset, ReqFlags flags);
int q2_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
int q2_co_pwritev_compressed(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset);
int q2_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags);
int q2_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes);
int q2_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret);
bool q2_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error);
/* preallocate.c: gives the clusters their place that a disk gains that grows from @old_size to @size. The L1 table is
 * large enough already; the size changes afterwards. */
int q2_co_preallocate(Qcow2 *q, uint64_t old_size, uint64_t size, PreallocMode mode);
/* rebase.c: the driver's co_change_backing. */
bool q2_co_change_backing(Node *node, const char *file, const char *format, GError **error);
bool q2_co_create(Graph *graph, const char *filename, Port *file, const CreateOptions *options, GError **error);

/* The entries of [@gc, @gc + @n) let go of what they refer to: see zero.c. For shrinking. */
int q2_co_drop(Qcow2 *q, uint64_t gc, uint64_t n);
/* They read as zeroes. -ENOTSUP in version 2 where something is below. */
int q2_co_zero(Qcow2 *q, uint64_t gc, uint64_t n);
/* Reads one extent. */
int q2_co_read_extent(void *state, const Extent *map, uint64_t offset, const IoVec *vec, size_t vec_offset);
/* STATUS_* of a Q2Kind. */
unsigned q2_status(int kind);
/* Reads guest bytes as a client would. */
int q2_co_read(Qcow2 *q, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset);
/* @bytes guest bytes from @offset of a compressed cluster with L2 entry @entry. */
int q2_co_read_packed(Qcow2 *q, uint64_t entry, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset);
/* What every change to the image waits for once: the autoclear bits of what we do not maintain are off. */
int q2_co_before_first_write(Qcow2 *q);

/* compress.c: on worker threads. Result sizes: bytes of @out used, -ENOMEM, -EIO (bad input) or, for compression, 0
 * when the result would not fit in @out_size. */
int q2_co_decompress(Qcow2 *q, const void *in, size_t in_size, void *out, size_t out_size);
ssize_t q2_co_compress(Qcow2 *q, const void *in, size_t in_size, void *out, size_t out_size);

/* ---- options.c -------------------------------------------------------------------------------------------------- */

/* Sizes of both caches, interval, overlap checks, pass-discard-*: into @q. Refuses by name what it does not do. */
bool q2_options_apply(Qcow2 *q, const BlockdevOptionsQcow2 *options, GError **error);

/* ---- crypt.c ---------------------------------------------------------------------------------------------------- */

typedef struct Q2Crypt Q2Crypt;
/* Makes q->crypt as header and options ask for it. On failure q2_crypt_close() cleans up. */
bool q2_crypt_co_open(Qcow2 *q, const BlockdevQcow2Encryption *options, GError **error);
void q2_crypt_close(Qcow2 *q);
/* For queries; the caller's. q->crypt is there. */
ImageInfoSpecificQCow2Encryption *q2_crypt_info(const Qcow2 *q);
/* Changes key slots. */
bool q2_crypt_co_amend(Qcow2 *q, const QCryptoBlockAmendOptions *options, bool force, GError **error);
/* Guest data of an encrypted image, whole sectors: for data.c. */
int q2_crypt_co_read(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, const IoVec *vec, size_t vec_offset);
int q2_crypt_co_write(Qcow2 *q, uint64_t guest, uint64_t host, uint64_t bytes, const IoVec *vec, size_t vec_offset);

/* ---- state ------------------------------------------------------------------------------------------------------ */

struct Qcow2 {
    Node *node;
    Child *data; /* holds the guest's data: node->file, or the data file */
    Q2Header header;

    /* geometry: constant while open */
    unsigned cluster_bits, l2_bits, slice_bits; /* l2_bits: entries of an L2 table; slice_bits: of a slice */
    unsigned l2_entry_bytes;                    /* 8, or 16: with a bitmap of subclusters */
    unsigned sub_bits, subs;                    /* subclusters, and how many a cluster has; without any: clusters, 1 */
    uint64_t place_mask;                        /* of an entry: any of these bits: it has a host cluster */
    uint64_t zero_flag;                         /* of an entry that reads as zeroes: Q2_ZERO or, if there is none, 0 */
    unsigned rb_bits;                           /* entries of a refcount block */
    uint64_t cluster_size;
    unsigned csize_shift; /* of compressed entries */
    uint64_t csize_mask, coffset_mask;

    /* L1 table, machine byte order. l1_dirty: a bit for each 64 entries that differ from the image. */
    uint64_t *l1;
    uint32_t l1_size;
    uint64_t *l1_dirty;
    uint32_t l1_n_dirty;
    CoMutex l1_lock;

    /* refcount table, the same way */
    uint64_t *rt;
    uint32_t rt_size;
    uint64_t *rt_dirty;
    uint32_t rt_n_dirty;
    uint8_t *rb_full; /* a byte for each entry of rt: the block is known to have no free cluster */

    TableCache l2, rb;
    Q2MetaSet meta;
    Q2Crypt *crypt; /* NULL: guest data is not encrypted */

    /* allocation: alloc_lock for whoever takes clusters */
    CoMutex alloc_lock;
    uint64_t free_hint;   /* index of the first cluster that may be free */
    uint64_t freed_low;   /* index of the first cluster that became free since the present allocation began */
    uint64_t fresh_above; /* host offset from which the file has never been written */
    uint64_t packed_next; /* host offset where the next compressed data goes, 0: into a new cluster */
    CoMutex packed_lock;

    /* frees: dropped in memory; part of the running commit (or of one that failed); written; waiting for a barrier and
     * for the sections of grace_phase */
    Q2FreeList dropped, committing, written, grace;
    uint64_t free_bytes; /* in dropped */
    unsigned phase, grace_phase;
    unsigned in_data[2]; /* sections of the present and of the other phase */
    CoQueue phase_waiters;

    CoMutex commit_lock;
    GPtrArray *stored;   /* of Q2Bitmap: what the image holds, see bitmaps.h */
    CoMutex bitmap_lock; /* for who changes that */
    CoMutex header_lock; /* for who changes extensions; nobody waits for another lock with it */
    Claim *claims;       /* in subclusters of the guest */

    /* internal snapshots, as the image has them: l1_lock and commit_lock for whoever changes them */
    Q2Snapshot *snapshots;
    uint32_t n_snapshots;
    uint64_t snapshots_bytes; /* of their table */
    bool in_shadow;           /* shadow.c: the refcount table in memory is not the image's, and may not grow */

    bool wrote; /* autoclear bits are dealt with */
    CoMutex first_write_lock;
    bool lazy;     /* refcounts may be written late: the dirty bit says so (commit.c) */
    bool corrupt;  /* fatal damage was found: nothing goes any more */
    bool reported; /* damage was reported */
    bool unsure;   /* q2_co_header_switch() */

    /* options */
    bool pass_discard[Q2_FREE__MAX];
    bool discard_no_unref;
    unsigned overlap_mask;
    uint64_t l2_cache_tables, rb_cache_tables;
    uint32_t l2_slice_size;
    int64_t clean_interval; /* ns, 0: never */
    Timer clean_timer;
};

static inline Qcow2 *q2_of(const Node *node)
{
    return node->state;
}

/* Does guest data lie in a file of its own? There each cluster has the place that it has on the disk, from the start:
 * nobody allocates it, nobody counts references. */
static inline bool q2_has_data_file(const Qcow2 *q)
{
    return q->header.incompat & Q2_INCOMPAT_DATA_FILE;
}

/* And is that file, by itself, a raw image of the disk? */
static inline bool q2_is_raw(const Qcow2 *q)
{
    return q2_has_data_file(q) && (q->header.autoclear & Q2_AUTOCLEAR_RAW);
}

static inline int q2_co_barrier(Qcow2 *q, const char *site)
{
    return order_left_out(site) ? 0 : child_co_flush(q->node->file);
}

static inline uint64_t q2_in_cluster(const Qcow2 *q, uint64_t offset)
{
    return offset & (q->cluster_size - 1);
}

static inline unsigned q2_data_enter(Qcow2 *q)
{
    q->in_data[q->phase]++;
    return q->phase;
}

static inline void q2_data_leave(Qcow2 *q, unsigned phase)
{
    if (--q->in_data[phase] == 0 && G_UNLIKELY(!coqueue_empty(&q->phase_waiters)))
        coqueue_wake_all(&q->phase_waiters);
}

static inline uint64_t q2_l2_entry(const Qcow2 *q, const uint8_t *table, uint64_t i)
{
    return load_be64(table + i * q->l2_entry_bytes);
}

static inline uint64_t q2_l2_bitmap(const Qcow2 *q, const uint8_t *table, uint64_t i)
{
    return q->l2_entry_bytes == 8 ? 0 : load_be64(table + i * q->l2_entry_bytes + 8);
}

static inline void q2_l2_set(const Qcow2 *q, uint8_t *table, uint64_t i, uint64_t entry, uint64_t bitmap)
{
    store_be64(table + i * q->l2_entry_bytes, entry);
    if (q->l2_entry_bytes != 8)
        store_be64(table + i * q->l2_entry_bytes + 8, bitmap);
}

static inline unsigned q2_slice_index(const Qcow2 *q, uint64_t gc)
{
    return (unsigned)(gc & ((UINT64_C(1) << q->slice_bits) - 1));
}

static inline unsigned q2_sub_index(const Qcow2 *q, uint64_t offset)
{
    return (unsigned)(offset >> q->sub_bits) & (q->subs - 1);
}

static inline Q2Kind q2_entry_kind(const Qcow2 *q, uint64_t entry)
{
    if (entry & Q2_COMPRESSED)
        return Q2_PACKED;
    if (entry & q->zero_flag)
        return entry & Q2_OFFSET_MASK ? Q2_ZERO_ALLOC : Q2_ZERO_PLAIN;
    return entry & q->place_mask ? Q2_NORMAL : Q2_UNALLOCATED;
}
