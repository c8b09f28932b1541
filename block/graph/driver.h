/*
 * The contract between the graph and a driver.
 *
 * One designated-initialiser `const Driver driver_NAME` per driver; block/drivers/list.sh finds them and generates the
 * list, so nothing includes a driver (LAW 1). A callback that is NULL forwards to the filtered child in a filter, and
 * means "cannot" elsewhere, unless its comment says otherwise.
 *
 * Callbacks named co_* run in a coroutine on the node's loop and may yield. The graph hands them requests that are
 * inside the node (except growing writes, see may_grow), aligned to limits.request_alignment and within max_transfer,
 * and counts them in flight, so that a node is never closed or moved under one.
 */
#pragma once
#include "block/aio/io.h"
#include "block/graph/node.h"
#include "block/graph/status.h"

/* A buffer of a request: @size bytes scattered over @iov. Never owns its memory. */
typedef struct IoVec {
    const struct iovec *iov;
    int n;
    size_t size; /* bytes in all of iov */
} IoVec;

/* Flags of requests. */
typedef enum ReqFlags {
    REQ_FUA = 1 << 0,              /* durable when it completes */
    REQ_MAY_UNMAP = 1 << 1,        /* write-zeroes may deallocate */
    REQ_NO_FALLBACK = 1 << 2,      /* write-zeroes: fast or -ENOTSUP, never written-out zeroes */
    REQ_WRITE_UNCHANGED = 1 << 3,  /* visible data stays the same: needs PERM_WRITE_UNCHANGED only, dirties no bitmap */
    REQ_WRITE_COMPRESSED = 1 << 4, /* store compressed: whole clusters only */
    REQ_COPY_ON_READ = 1 << 5,     /* a read: what the node has not allocated is written to it (PERM_WRITE_UNCHANGED) */
    REQ_MAY_SKIP_ZEROES = 1 << 6,  /* a read may return READ_ZEROES instead of filling the buffer with zeroes */
    REQ_THRIFTY = 1 << 7,          /* a copy: may take a little longer where that saves processor time */
} ReqFlags;

/* All that was to be read reads as zeroes; what the buffer holds means nothing. Only with REQ_MAY_SKIP_ZEROES. */
#define READ_ZEROES 1

/* What an image is created with. Borrowed throughout; NULL or 0 means "the format's default". A format refuses by name
 * what it does not know. */
typedef struct CreateOptions {
    uint64_t size;            /* bytes */
    bool exact;               /* a size that the format would round is refused */
    const char *backing_file; /* written into the header as it is */
    const char *backing_format;
    uint64_t cluster_size; /* bytes */
    PreallocMode preallocation;
    struct {         /* qcow2 */
        int version; /* 2 or 3 */
        int64_t refcount_bits;
        bool lazy_refcounts, extended_l2, zstd;
        Port *data_file; /* takes the guest's data; emptied. NULL: the image itself does */
        const char *data_file_name;
        bool data_file_raw;
        const QCryptoBlockCreateOptions *encrypt;
    };
    int64_t table_size; /* qed: clusters */
    const QCryptoBlockCreateOptionsLUKS *luks;
    struct { /* files */
        bool nocow;
        bool has_extent_size_hint;
        int64_t extent_size_hint; /* bytes */
    };
} CreateOptions;

/* An internal snapshot that is to be taken. */
typedef struct SnapshotNew {
    const char *name; /* borrowed */
    int64_t date_ns;  /* since 1970 */
} SnapshotNew;

typedef struct NodeInfo NodeInfo;
typedef struct CheckOptions CheckOptions; /* check.h */
typedef struct CheckResult CheckResult;
typedef struct DriverDebug DriverDebug; /* debug.h */

struct Driver {
    const char *name;      /* as in BlockdevDriver; a second name can have its own Driver with the same callbacks */
    size_t state_size;     /* bytes of node->state */
    bool is_format;        /* an image format over a file child */
    bool is_filter;        /* same data as its ROLE_FILTERED child at the same offsets */
    bool is_protocol;      /* a leaf: where bytes come from outside */
    bool may_grow;         /* a write past the end grows it (files); others get requests cut at their size */
    bool internal;         /* not for blockdev-add: jobs' filters */
    bool supports_backing; /* takes a backing child */
    bool grows_zeroed;     /* co_truncate hides what a longer backing file has, before the disk is larger */

    /* ---- life ---- */
    /* Opens children (node_co_open_child), reads headers, sets size through co_getlength later, limits and
     * supported_*_flags here. On failure undoes its own state; the graph drops the children. */
    bool (*co_open)(Node *node, const BlockdevOptions *options, GError **error);
    /* Writes out caches and releases state; the graph flushes the node before and its children after. Cannot fail. */
    void (*co_close)(Node *node);
    /* The node becomes writable (called after its flags and permissions did) or read-only (before). Nothing is in
     * flight. NULL: there is nothing to prepare or to write out. */
    bool (*co_set_read_only)(Node *node, bool read_only, GError **error);
    /* Bytes; NULL: the primary child's size. Called after open and after truncate. -errno on failure. */
    int64_t (*co_getlength)(Node *node);
    /* Fills in node->limits beyond what the graph merged from the children. NULL: nothing to add. Never yields. */
    void (*refresh_limits)(Node *node);

    /* The program ends. Whoever has heard nothing from outside since @since (ns, LOOP_CLOCK_REAL) though it waits for
     * something fails what is under way there, soon, and all that comes later. Never yields. NULL: nothing to give up.
     */
    void (*give_up)(Node *node, int64_t since);

    /* ---- permissions: LAW 4 ---- */
    /* What @node needs on @child (role @role) when its own parents together take @perm and share @shared. NULL: the
     * defaults of perm_default() (perm.h) for filters and formats. Must be a pure function. */
    void (*child_perm)(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared,
                       unsigned *ret_perm, unsigned *ret_shared);
    /* Prepare, commit, abort a new pair of cumulative permissions (the file driver's locks and reopen for writing). */
    bool (*check_perm)(Node *node, unsigned perm, unsigned shared, GError **error);
    void (*set_perm)(Node *node, unsigned perm, unsigned shared);
    void (*abort_perm)(Node *node);

    /* ---- changes of the graph ---- */
    /* x-blockdev-change: takes @child as another child, or gives @child up. Does its own drain and transaction. NULL:
     * has a fixed number of children. */
    bool (*co_add_child)(Node *node, Node *child, GError **error);
    bool (*co_remove_child)(Node *node, Child *child, GError **error);
    /* Could @to_replace, at or below @node, be replaced by a node with @node's data without anybody seeing other data?
     * NULL: a filter asks its child, others say no. */
    bool (*can_replace)(Node *node, const Node *to_replace);
    /* A drained section begins: requests that the driver holds back go on now; new ones are not held back while
     * node->quiesced. Must not yield. */
    void (*drained_begin)(Node *node);

    /* ---- data: 0 or -errno; offsets and bytes in bytes; buffer is @vec from @vec_offset on ---- */
    /* @flags: REQ_MAY_SKIP_ZEROES or none; whoever looks at the data does not pass it on. */
    int (*co_preadv)(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
    /* A read that appends the pages of the data to @pipe instead of copying it: see child_co_read_pages(). -ENOTSUP:
     * the caller reads. NULL: never. */
    int (*co_read_pages)(Node *node, uint64_t offset, uint64_t bytes, AioPipe *pipe);
    /* @flags: only those in node->supported_write_flags (the graph emulates FUA by a flush otherwise). */
    int (*co_pwritev)(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset, ReqFlags flags);
    /* -ENOTSUP: the graph writes zeroes out, unless REQ_NO_FALLBACK. */
    int (*co_pwrite_zeroes)(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags);
    /* A hint; -ENOTSUP counts as success. Only called when the node has discard=unmap. */
    int (*co_pdiscard)(Node *node, uint64_t offset, uint64_t bytes);
    /* A write whose data @source, a leaf, holds at @source_offset. @flags: REQ_THRIFTY or none. -ENOTSUP (never between
     * these two) and -EAGAIN (not this range): the caller reads and writes. NULL: -ENOTSUP, or the filtered child's in
     * a filter that does not look at writes. */
    int (*co_copy_from)(Node *node, uint64_t offset, uint64_t bytes, Node *source, uint64_t source_offset,
                        ReqFlags flags);
    /* One compressed cluster (or the image's tail): for REQ_WRITE_COMPRESSED. NULL: -ENOTSUP. */
    int (*co_pwritev_compressed)(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset);
    /* Writes the driver's own caches down; the graph flushes the children afterwards. */
    int (*co_flush)(Node *node);
    /* Instead of the graph's flush of every child, which all must manage. NULL: that. */
    int (*co_flush_children)(Node *node);
    /* For protocols: makes everything durable that co_pwritev completed. Not called with cache.no-flush. */
    int (*co_flush_to_disk)(Node *node);
    /* What is known of [offset, offset + *ret->bytes) at this layer; sets ret->flags, bytes (>= 1), map, file. NULL:
     * all data, or the child's answer in a filter. @want_zero false: no need to find zeroes out, only allocation. */
    int (*co_block_status)(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret);
    /* @exact: fail rather than round. The graph checks permissions before and updates node->size after. */
    bool (*co_truncate)(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags, GError **error);

    /* ---- images and names ---- */
    /* Formats with backing files: writes another backing file's name and format (or NULL) into the image, durably;
     * @file NULL: none. The node is drained and writable; its edges are the caller's business. */
    bool (*co_change_backing)(Node *node, const char *file, const char *format, GError **error);
    /* Formats: checks the image that @file holds, and repairs it as @options ask. Nobody has it open; no node of the
     * format exists. False: could not be finished. NULL: cannot. */
    bool (*co_check)(Child *file, const CheckOptions *options, CheckResult *result, GError **error);
    /* Formats: changes options of the image, which is writable, durably. */
    bool (*co_amend)(Node *node, const BlockdevAmendOptions *options, bool force, GError **error);
    /* Score 0 (no) to 100 for a file that begins with @buf. Formats only. */
    int (*probe)(const uint8_t *buf, size_t size);
    /* Protocol: makes the file. Format: lays the image out on @file, which is open and writable; what it holds is
     * nobody's any more once the options are found to be good. */
    bool (*co_create)(Graph *graph, const char *filename, Port *file, const CreateOptions *options, GError **error);
    /* Protocols: "nbd" when names "nbd:…" belong to it (the full scheme up to the colon), NULL-terminated list. */
    const char *const *schemes;
    /* Turns such a name into options; caller frees the result. */
    BlockdevOptions *(*parse_filename)(const char *filename, GError **error);

    /* ---- bitmaps that the image holds; all or none. co_open makes them (bitmap_new_stored), co_close stores them ----
     */
    /* Could one more of that name and granularity (bytes) be stored? Says why not. */
    bool (*can_store_bitmap)(Node *node, const char *name, uint64_t granularity, GError **error);
    /* Has the image a place where it can say that it holds bitmaps? Says why not. NULL: always. */
    bool (*co_bitmaps_fit)(Node *node, GError **error);
    /* A bitmap is about to change: the image does not vouch for any from now on, durably. 0 or -errno. */
    int (*co_touch_bitmaps)(Node *node);
    /* Takes one out of the image, durably; no error where it is not in there. */
    bool (*co_remove_bitmap)(Node *node, const char *name, GError **error);

    /* ---- internal snapshots: all or none of these (snapshot.h) ---- */
    /* Caller frees; empty when there is none. Never yields. */
    SnapshotInfoList *(*list_snapshots)(Node *node);
    /* The node is drained and writable. Each has happened, durably, or when it fails has not. @id or @name may be NULL,
     * not both. apply: the disk has @size bytes afterwards, as snapshot_size said; refused when that has changed. */
    bool (*co_snapshot_create)(Node *node, const SnapshotNew *what, GError **error);
    bool (*co_snapshot_delete)(Node *node, const char *id, const char *name, GError **error);
    bool (*co_snapshot_apply)(Node *node, const char *id, const char *name, uint64_t size, GError **error);
    /* Bytes of the disk in a snapshot. Never yields. */
    bool (*snapshot_size)(Node *node, const char *id, const char *name, uint64_t *ret, GError **error);

    /* ---- facts for queries ---- */
    /* Fills in what it knows: cluster size, compressed, corrupt, … */
    void (*get_info)(Node *node, NodeInfo *info);
    /* Format specific part of ImageInfo, or NULL. Caller frees. */
    ImageInfoSpecific *(*get_specific_info)(Node *node);

    /* ---- for tests of what lies above: events and breakpoints (debug.h). NULL: does not listen. ---- */
    const DriverDebug *debug;
};

struct NodeInfo {
    uint32_t cluster_size;   /* bytes, 0: none */
    uint32_t fill_size;      /* what it fills at a time when less than a cluster is written; 0: a cluster */
    uint64_t allocated_size; /* bytes on disk; UINT64_MAX: unknown */
    bool is_dirty;
    bool encrypted;
    bool zero_init;                                /* reads as zeroes where nothing was written since creation */
    const char *backing_filename, *backing_format; /* as the header says, borrowed from the node, NULL: none */
};

/* The generated list, NULL-terminated. */
extern const Driver *const driver_list[];
/* By name; NULL when there is none. The graph storey reaches drivers only through this list, set at start. */
void driver_set_list(const Driver *const *list);
const Driver *driver_find(const char *name);
/* The best match for a file that begins with @buf; raw's driver when nothing matches. */
const Driver *driver_probe(const uint8_t *buf, size_t size);
/* The driver whose schemes name the part of @filename before its colon; NULL for plain paths. */
const Driver *driver_for_scheme(const char *filename);
