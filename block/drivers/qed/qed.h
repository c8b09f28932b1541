/*
 * The qed driver's own header: what its files share. Format: docs/interop/qed_spec of the QEMU project.
 *
 * An image is a header, an L1 table, L2 tables and data clusters. There are no reference counts: a cluster is in use
 * when a table says so, new ones are taken at the end of the file, and none ever becomes free again. So a mapping, once
 * looked up, stays true, and requests need no protection against clusters that change their owner.
 *
 * How an image stays whole (LAW 9): tables are changed in memory and written in one ordered step (table.c): barrier,
 * then L1 and L2. Behind the barrier guest data is durable, and so is the file's size, which makes a new L2 table read
 * as zeroes; hence L1 and L2 need no order between them. A crash leaves clusters at the end of the file that nothing
 * refers to. The flag that asks for a check is durable before the first of those is taken, and off again after a clean
 * close.
 *
 * Everything belongs to the node's loop thread. Functions without `_co_` run to their end undisturbed; after every
 * call of a `_co_` function the world may have changed. Locks are taken in this order: l1_lock, commit_lock,
 * alloc_lock, header_lock. None of them is held over guest I/O.
 */
#pragma once
#include "block/aio/io.h"
#include "block/format/backing.h"
#include "block/format/claim.h"
#include "block/format/cow.h"
#include "block/format/extent.h"
#include "block/format/table-cache.h"
#include "block/graph/debug.h"
#include "block/graph/io.h"
#include "block/graph/status.h"
#include "block/util/bytes.h"
#include "block/util/order.h"

#define QED_MAGIC        0x00444551 /* "QED\0" */
#define QED_HEADER_BYTES 64
#define QED_MIN_CLUSTER  4096
#define QED_MAX_CLUSTER  (64 << 20)
#define QED_MAX_TABLE    16 /* clusters */
#define QED_MAX_BACKING  1023

/* Feature bits. */
#define QED_F_BACKING_FILE            UINT64_C(1)
#define QED_F_NEED_CHECK              UINT64_C(2)
#define QED_F_BACKING_FORMAT_NO_PROBE UINT64_C(4)
#define QED_F_KNOWN                   UINT64_C(7)

/* Offsets of header fields. */
enum {
    QED_H_CLUSTER_SIZE = 4,
    QED_H_TABLE_SIZE = 8,
    QED_H_HEADER_SIZE = 12,
    QED_H_FEATURES = 16, /* then compatible and autoclear ones, 8 bytes each */
    QED_H_L1_OFFSET = 40,
    QED_H_IMAGE_SIZE = 48,
    QED_H_BACKING_OFFSET = 56,
    QED_H_BACKING_SIZE = 60,
};

/* Entries of L2 tables that are no offsets. */
enum { QED_ENTRY_NONE = 0, QED_ENTRY_ZERO = 1 };

typedef struct Qed Qed;

/* ---- header.c ---------------------------------------------------------------------------------------------------- */

/* The header as it stands in the image, checked; in the machine's byte order. */
typedef struct QedHeader {
    uint32_t cluster_size;
    uint32_t table_size;   /* clusters */
    uint64_t header_bytes; /* header_size in bytes */
    uint64_t features, compat, autoclear;
    uint64_t l1_offset;
    uint64_t image_size; /* of the virtual disk, bytes */
    uint32_t backing_offset, backing_size;
} QedHeader;

/* The largest disk that tables of that size can describe; bytes, a multiple of 512. */
uint64_t qed_max_size(uint32_t cluster_size, uint32_t table_size);
/* Parses the first @len bytes of an image of @file_size bytes. Refuses with an error that names field and value what
 * cannot be opened. */
bool qed_header_parse(QedHeader *header, const uint8_t *buf, size_t len, uint64_t file_size, GError **error);
/* The header as bytes. */
void qed_header_store(const QedHeader *header, uint8_t buf[QED_HEADER_BYTES]);
/* Changes the features in the image and in memory and makes that durable. Autoclear bits, of which we know none, go. */
int qed_co_set_features(Qed *q, uint64_t features);
/* The image is about to change: marks it as in need of a check, where clusters are @allocating, and clears unknown
 * autoclear bits. Durable on return; nothing is done when it already is so. */
int qed_co_before_write(Qed *q, bool allocating);

/* ---- alloc.c ----------------------------------------------------------------------------------------------------- */

typedef struct QedRun {
    uint64_t offset; /* in the image */
    uint64_t n;      /* clusters */
    bool fresh;      /* reads as zeroes: never written since the file grew over it */
} QedRun;

/* Takes up to @want clusters in a row (@exact: all of them). The file is large enough for them on return. */
int qed_co_alloc(Qed *q, uint64_t want, bool exact, QedRun *ret);
/* Gives clusters back that nothing refers to: a request that was to use them failed. */
void qed_unalloc(Qed *q, const QedRun *run);
/* Cuts off what the file grew by and nobody took. Nothing is in flight. */
int qed_co_trim_file(Qed *q);

/* ---- table.c ----------------------------------------------------------------------------------------------------- */

typedef enum QedKind { QED_UNALLOCATED, QED_ZERO, QED_DATA } QedKind;

/* Can clusters at [@offset, @offset + @bytes) be what a table refers to: aligned, within the file, not on top of header
 * and L1 table? */
bool qed_place_ok(const Qed *q, uint64_t offset, uint64_t bytes);
/* Makes the cache, or makes it anew and empty, with room for @slices (0: what the disk needs). */
bool qed_tables_init(Qed *q, uint64_t slices, GError **error);
/* Looks [@offset, @offset + @bytes) up, as far as it is alike within one slice. */
int qed_co_map(Qed *q, uint64_t offset, uint64_t bytes, Extent *ret);
/* A slice of an L2 table that may be changed, with the entry of guest cluster @gc at *@ret_index; makes the table where
 * there is none. Valid until the next yield. */
int qed_co_l2_for_write(Qed *q, uint64_t gc, CacheTable **ret, unsigned *ret_index);
/* Writes all tables that are changed now, in order; not the last barrier. */
int qed_co_commit(Qed *q);
/* Commits, makes it durable, cuts the file to what is used and takes the flag off: a clean image. */
int qed_co_settle(Qed *q);

/* ---- check.c ----------------------------------------------------------------------------------------------------- */

/* Goes through all tables. Entries that refer to what cannot be are removed; clusters behind the last one in use are
 * cut off. Then the flag that asked for this comes off. An image where two entries share a cluster is refused: no
 * repair can tell whose it is. The cache is empty. */
bool qed_co_repair(Qed *q, GError **error);
/* check-image.c: the driver's co_check. */
bool qed_co_check(Child *file, const CheckOptions *options, CheckResult *result, GError **error);

/* ---- io.c -------------------------------------------------------------------------------------------------------- */

int qed_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
int qed_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
int qed_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags);
int qed_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret);
bool qed_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error);

/* rebase.c: the driver's co_change_backing. */
bool qed_co_change_backing(Node *node, const char *file, const char *format, GError **error);

/* create.c */
bool qed_co_create(Graph *graph, const char *filename, Port *file, const CreateOptions *options, GError **error);

/* ---- state ------------------------------------------------------------------------------------------------------- */

enum { QED_SPARES = 16 };

struct Qed {
    Node *node;
    QedHeader header;
    char *backing_file; /* as the header names it, NULL: none */

    /* geometry: constant while open */
    unsigned cluster_bits;
    unsigned table_bits;  /* of the number of entries of a table */
    uint64_t table_bytes; /* of a table */

    /* Slices of the L1 table and of L2 tables, all by their offset in the image, little-endian. */
    TableCache tables;
    CoMutex l1_lock;     /* for whoever makes an L2 table */
    CoMutex commit_lock; /* for whoever writes tables */
    Claim *claims;

    /* allocation */
    CoMutex alloc_lock;
    uint64_t end;         /* image offset where the next cluster is taken */
    uint64_t fresh_above; /* image offset from which the file has never been written */
    bool grown;           /* the file may be larger than `end` because of us */
    QedRun spare[QED_SPARES];
    unsigned n_spare;

    CoMutex header_lock;
    bool reported; /* damage */
};

static inline Qed *qed_of(const Node *node)
{
    return node->state;
}

static inline uint64_t qed_in_cluster(const Qed *q, uint64_t offset)
{
    return offset & (q->header.cluster_size - 1);
}
