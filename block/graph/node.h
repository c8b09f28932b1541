/*
 * The block graph: nodes, the edges between them, and what an edge may do.
 *
 * A node is one instance of a driver: a file, a format on top of a file, a filter. A child is an edge from a parent to
 * a node; the parent is another node or somebody outside the graph (a device, an export, a job: see port.h). The graph
 * changes only through graph transactions (txn.h, LAW 4).
 *
 * Unless a comment says otherwise, everything here is protected by the node's loop thread and holds no lock.
 */
#pragma once
#include "block/aio/coroutine.h"
#include "block/crypto/secret.h"
#include "block/util/error.h"
#include "qapi/types.h"
#include <sys/uio.h>

typedef struct Graph Graph;
typedef struct Node Node;
typedef struct Child Child;
typedef struct Driver Driver;
typedef struct Bitmap Bitmap;
typedef struct Device Device;
typedef struct Port Port;

/* ---- permissions ------------------------------------------------------------------------------------------------ */

/*
 * What a parent does to a node through an edge (Child.perm), and what it lets the other parents of that node do
 * (Child.shared). The bits and their meaning are those of QMP's BlockPermission, and the file driver's locks use them.
 */
enum {
    PERM_CONSISTENT_READ = 1 << 0, /* reads, and relies on what it reads */
    PERM_WRITE = 1 << 1,           /* changes data */
    PERM_WRITE_UNCHANGED = 1 << 2, /* writes that leave the visible data alone (copy-on-read, metadata) */
    PERM_RESIZE = 1 << 3,          /* changes the size */
    PERM_ALL = (1 << 4) - 1,
};

/* "consistent read, write": the names in PERM_* order, for error texts. Caller frees. */
char *perm_names(unsigned perm);

/* What a child is to its parent; decides the default permissions and what walks follow. */
typedef enum ChildRole {
    ROLE_DATA = 1 << 0,     /* holds the parent's data, at offsets of the parent's choice */
    ROLE_METADATA = 1 << 1, /* holds the parent's metadata */
    ROLE_FILTERED = 1 << 2, /* the parent is a filter over it: same data at the same offsets */
    ROLE_COW = 1 << 3,      /* backing: read where the parent has nothing allocated */
    ROLE_PRIMARY = 1 << 4,  /* the one child that "file" usually names: followed for filenames and flush */
    ROLE_IMAGE = ROLE_DATA | ROLE_METADATA | ROLE_PRIMARY,  /* the file child of an image format */
    ROLE_FILTER = ROLE_DATA | ROLE_FILTERED | ROLE_PRIMARY, /* the child of a filter */
} ChildRole;

/* ---- edges ------------------------------------------------------------------------------------------------------ */

/*
 * What a parent outside the graph is told. Every callback may be NULL. None may yield; none may change the graph.
 */
typedef struct ParentOps {
    const char *what;                    /* "export", "device", "job": for error texts */
    char *(*describe)(Child *child);     /* "NBD export 'x'": for error texts, caller frees */
    void (*drained_begin)(Child *child); /* send no new requests; balanced by drained_end */
    void (*drained_end)(Child *child);
    bool (*drained_poll)(Child *child); /* still busy? when it ends being so: graph_drain_kick() */
    void (*node_changed)(Child *child); /* child->node is another one now (or none) */
    void (*resized)(Child *child);      /* the node's size changed */
} ParentOps;

struct Child {
    Node *node;   /* whom the edge leads to; NULL only for an edge without a node (an empty device) */
    Node *parent; /* whose edge it is; NULL when the parent is outside the graph */
    char *name;   /* "file", "backing", "children.0", "root" */
    ChildRole role;
    unsigned perm, shared; /* PERM_*: what commit() granted last */
    const ParentOps *ops;  /* NULL when parent is a node */
    void *opaque;          /* for ops' owner */

    /* graph/ only */
    bool quiesced_parent;            /* the parent has been told drained_begin because of this edge */
    bool frozen;                     /* a job relies on it: transactions refuse to move it */
    GList link;                      /* in node->parents */
    unsigned want_perm, want_shared; /* asked for by an outside parent: commit() grants or refuses */
    bool by_header; /* a backing file that was opened because the image names it, and nothing moved the edge since */
    bool listed;    /* in node->parents at the moment */
};

/* ---- nodes ------------------------------------------------------------------------------------------------------ */

/* Constraints on what a driver's callbacks are handed; 0 means "no limit". Bytes. */
typedef struct Limits {
    uint32_t request_alignment; /* power of two, >= 1: offset and size of every request */
    uint32_t max_transfer;      /* read and write */
    uint32_t max_write_zeroes;
    uint32_t write_zeroes_align; /* what is worth splitting at; 0: request_alignment */
    uint32_t max_discard;
    uint32_t discard_align;
    uint32_t min_mem_align; /* of buffer addresses; above 1, parts of buffers are request_alignment long, too */
} Limits;

/* Counters of client traffic (devices and exports, not jobs): query-blockstats. */
typedef enum StatKind { STAT_READ, STAT_WRITE, STAT_FLUSH, STAT_UNMAP, STAT_ZERO, STAT__MAX } StatKind;
typedef struct IoStats {
    uint64_t bytes[STAT__MAX], ops[STAT__MAX], failed[STAT__MAX], invalid[STAT__MAX];
    uint64_t time_ns[STAT__MAX];
    uint64_t highest_write; /* end of the highest write, bytes */
    int64_t last_access;    /* ns, LOOP_CLOCK_REAL */
} IoStats;

/* The options every node has, after inheritance; bool members mirror BlockdevOptions. */
typedef struct NodeFlags {
    unsigned level; /* how many nodes stand above this one in the tree that one command opens */
    bool read_only;
    bool auto_read_only; /* read_only may become true on open instead of an error */
    bool cache_direct, cache_no_flush;
    bool discard_unmap; /* discard=unmap */
    bool force_share;
    BlockdevDetectZeroesOptions detect_zeroes;
} NodeFlags;

/*
 * The longest way from a node down to a leaf, and the deepest nesting of one open: what recurses along edges stays
 * within a coroutine's stack, and an image that is its own backing file comes to an end.
 */
#define GRAPH_LEVELS_MAX 256

struct Node {
    char *name; /* unique; "#blockNNN" when the user gave none */
    const Driver *drv;
    void *state; /* the driver's own, drv->state_size bytes, zeroed before co_open */
    Graph *graph;
    Loop *loop;
    BlockdevOptions *options; /* as opened, for filenames and queries */
    NodeFlags flags;
    Limits limits;
    uint64_t size;        /* bytes; kept by graph/ from the driver's answers */
    char *exact_filename; /* set by co_open of protocol drivers ("/img/a.raw", "nbd+unix:///x?socket=…"), else NULL */
    Tree *backing_extra;  /* options to merge over those of the backing file named in the header; NULL: none */
    bool probed;          /* the format was guessed (raw then refuses writes that would look like another) */
    bool implicit;        /* a filter that a job inserted without a name: queries skip it */
    bool monitor_owned;   /* blockdev-add made it, blockdev-del takes it */
    bool reopening;       /* between read-only and writable, or the way back: nobody may become a writer */
    bool partial;         /* being opened or closed: its name is taken, but names and queries do not lead to it */
    bool backing_expected; /* an image names a backing file and was opened without: it may come later (format/backing.h)
                            */
    bool failed;           /* LAW 9: a flush failed; flushes and FUA writes fail until the node is reopened */
    bool pages;            /* a leaf whose data lies in the host's memory: co_read_pages is worth asking */
    unsigned supported_write_flags, supported_zero_flags; /* REQ_* the driver's callbacks take themselves */

    /* edges */
    GPtrArray *children; /* of Child *, owned */
    GQueue parents;      /* of Child *, borrowed */
    Child *file;         /* the ROLE_PRIMARY child, NULL for leaves */
    Child *backing;      /* the ROLE_COW child or NULL */

    /* requests: graph/io.c and drain.c only */
    unsigned in_flight;
    unsigned quiesced; /* nested drained sections on this node */
    struct TrackedRequest *tracked;
    unsigned serialising; /* how many of them serialise */
    uint64_t next_ticket;
    CoQueue overlap_waiters;
    uint64_t write_gen, flushed_gen; /* a flush is skipped when nothing was written since the last one */
    CoQueue flush_waiters;
    bool flushing;

    GQueue bitmaps; /* of Bitmap * */
    IoStats stats;
    unsigned refs;
    unsigned height;               /* levels below: 0 for a leaf */
    unsigned visited;              /* walk mark of permission computation */
    unsigned cum_perm, cum_shared; /* granted to the parents together */
};

/* ---- the graph -------------------------------------------------------------------------------------------------- */

Graph *graph_new(Loop *loop);
/* Every node must be gone. Takes NULL. */
void graph_free(Graph *graph);
Loop *graph_loop(Graph *graph);
/* The secrets that options of nodes name. */
SecretStore *graph_secrets(Graph *graph);

/* Borrowed; NULL when there is none, or none yet: a node can be found when it is open. */
Node *graph_find_node(Graph *graph, const char *name);
/* The device or node of that name: how most QMP commands take their argument (@device first, then node names).
 * Borrowed. NULL with "Cannot find device='x' nor node-name='x'" or, for an empty device, "Device 'x' has no medium".
 */
Node *graph_lookup(Graph *graph, const char *name, GError **error);
/* Calls @fn for every node that is open in order of creation; @fn must not change the graph. */
void graph_foreach_node(Graph *graph, void (*fn)(Node *node, void *opaque), void *opaque);

Node *node_ref(Node *node);
/* Drops a reference; the last one flushes, closes and frees the node and then drops its children's. Takes NULL. */
void node_co_unref(Node *node);

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/*
 * Opens the tree that @options describe. No guessing: formats are named. The result has one reference, the caller's.
 * @defaults (may be NULL) holds what options leave open at the top. NULL with @error; then nothing is left behind.
 */
Node *node_co_open(Graph *graph, const BlockdevOptions *options, const NodeFlags *defaults, GError **error);

/*
 * Opens by file name as QEMU's -drive and backing files do: @filename is a path, "json:{…}", "file:PATH" or a
 * protocol's "nbd:…" form. @format NULL: probe as QEMU does, and warn when it comes out raw. @extra (may be NULL,
 * borrowed) is a tree of more options, with strings for scalars, that are merged over what the name says:
 * {"node-name": "top", "cache": {"direct": "on"}, "backing": {"node-name": "base"}}. A "backing" or "file" object
 * without "driver" adds options to the child that the name or the image header gives. Otherwise as node_co_open().
 */
Node *node_co_open_filename(Graph *graph, const char *filename, const char *format, Tree *extra,
                            const NodeFlags *defaults, GError **error);

/* Just the protocol node behind a name, without a format on top. */
Node *node_co_open_protocol(Graph *graph, const char *filename, const NodeFlags *defaults, GError **error);

/*
 * For co_open of drivers: opens or looks up the node that @ref says and attaches it as child @name. The child inherits
 * the parent's flags as its role asks. On failure nothing is attached.
 */
Child *node_co_open_child(Node *parent, const char *name, const BlockdevRef *ref, ChildRole role, GError **error);

/*
 * The same for files that an image's header names. Whether such a name is followed at all is for the user of the
 * process to say: see graph_refuse_image_names().
 *
 * A backing file: relative names are resolved against the parent's own path; @format NULL: to be probed. A data file:
 * a name for a protocol, relative to the process's folder.
 */
Child *node_co_open_backing(Node *parent, const char *filename, const char *format, GError **error);
Child *node_co_open_data_file(Node *parent, const char *filename, GError **error);
/* From now on no file is opened because an image names it, only because options do: an image that names one whose
 * option (backing, data-file) was left open is refused. */
void graph_refuse_image_names(Graph *graph);

/* A node made by the program, not by options: a job's filter. @drv->co_open is not called; state is zeroed. The result
 * has one reference. @name NULL gives an automatic one and marks the node implicit. Attach children through txn.h. */
Node *node_new_internal(Graph *graph, const Driver *drv, const char *name, const NodeFlags *flags, uint64_t size,
                        GError **error);

/* Asks all drivers to give up on what has been silent since then: see Driver.give_up. */
void graph_give_up(Graph *graph, int64_t since);

/* Frees all devices and drops what blockdev-add holds: for the end of the process, after jobs and exports are gone. */
void graph_co_close_all(Graph *graph);

/* ---- walks and facts -------------------------------------------------------------------------------------------- */

/* The child that a filter passes everything to, NULL when @node is no filter. */
Child *node_filtered_child(Node *node);
/* Through filters down to the first node that is none. */
Node *node_skip_filters(Node *node);
/* Through implicit filters only: what queries show for @node. */
Node *node_skip_implicit(Node *node);
/* The next node of the backing chain that is no filter, or NULL. */
Node *node_backing(Node *node);
/* Is @base in @top's backing chain (filters included) or @top itself? */
bool node_chain_contains(Node *top, Node *base);
/* May a node with @node's data take the place of @to_replace without anybody seeing other data? Of @node itself, of
 * what it filters, and of what its driver says (a quorum's children). */
bool node_can_replace(Node *node, const Node *to_replace);
/* Can @descendant be reached from @node over any edges? */
bool node_reaches(Node *node, Node *descendant);

/* What names the image for people and for backing file strings: the plain name where it says everything, else
 * "json:{…}". Caller frees. */
char *node_filename(Node *node);
static inline bool node_writable(const Node *node)
{
    return !node->flags.read_only;
}
