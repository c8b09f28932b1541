/*
 * What the files of the checker share. check.c says what it guarantees and in what order a repair writes.
 *
 * The checker works on the file alone: its Qcow2 has a header and a geometry and nothing else, no node and no caches.
 * All of it belongs to one coroutine.
 */
#pragma once
#include "block/drivers/qcow2/qcow2.h"
#include "block/graph/check.h"

#define Q2_L1_RESERVED     UINT64_C(0x7f000000000001ff)
#define Q2_L2_RESERVED     UINT64_C(0x3f000000000001fe) /* of entries that are not compressed */
#define Q2_RT_RESERVED     UINT64_C(0x1ff)
#define Q2_BITMAP_RESERVED UINT64_C(0xff000000000001fe)

/* ---- check-counts.c ---------------------------------------------------------------------------------------------- */

/* Numbers of references for each cluster, in chunks that come when they are needed and hold bytes until one is full. */
typedef struct CountChunk {
    void *counts;
    uint8_t width; /* bytes of each: 0 (all are zero), 1 or 4 */
} CountChunk;

typedef struct Counts {
    CountChunk *chunks;
    uint64_t clusters; /* indices below are possible */
    size_t bytes;      /* of all chunks */
} Counts;

bool counts_init(Counts *counts, uint64_t clusters);
void counts_free(Counts *counts);
/* 0 for what was never added to. */
uint32_t counts_get(const Counts *counts, uint64_t ci);
/* Adds one; stays at UINT32_MAX. -ENOMEM, also when all chunks together become too large. @ci must be possible. */
int counts_add(Counts *counts, uint64_t ci);
/* Takes one away, if there is one. */
void counts_sub(Counts *counts, uint64_t ci);
/* The first index from @ci on that may have a count, up to @end. Skips what never had one in large steps. */
uint64_t counts_next(const Counts *counts, uint64_t ci, uint64_t end);

/* ---- state ------------------------------------------------------------------------------------------------------- */

typedef struct CheckSnapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
} CheckSnapshot;

enum { REF_SLOTS_MAX = 64 };

/* A few refcount blocks as they are in the image. */
typedef struct RefSlot {
    uint8_t *data;
    uint64_t block; /* index in the refcount table + 1, 0: none */
} RefSlot;

typedef struct Check Check;

/* What is done with the entries of L1 and L2 tables on a walk through all of them. Both: 0 or -errno. */
typedef struct CheckVisitor {
    const char *what; /* for the progress */
    bool writes;
    /* An L1 entry that is not 0 and may be changed. */
    int (*co_l1)(Check *c, uint64_t index, uint64_t *entry);
    /* A table that its entry leads to; *@changed: it is to be written back. */
    int (*co_l2)(Check *c, uint64_t l1_index, uint64_t offset, uint8_t *table, bool *changed);
} CheckVisitor;

struct Check {
    Qcow2 q; /* header and geometry */
    Child *file;
    const CheckOptions *options;
    uint64_t clusters; /* of the file; the last one may be cut off */
    uint64_t room;     /* cluster indices below can be counted: a repair may append to the file */
    uint64_t max_refcount;
    bool has_data_file;
    unsigned fix; /* CHECK_FIX_* */
    bool silent;  /* findings are not told */

    /* the refcount table as it is in the image */
    uint64_t *rt;
    uint32_t rt_size;
    RefSlot slots[REF_SLOTS_MAX];
    unsigned n_slots;

    CheckSnapshot *snapshots;
    uint32_t n_snapshots;      /* read */
    uint64_t snapshots_bytes;  /* of their table */
    bool snapshots_incomplete; /* the table wants to be written anew */

    /* found by the present pass */
    CheckResult r;
    Counts refs, tables; /* all references; those that L1 entries make */
    Counts wild;         /* references to clusters behind the end of the file, up to room */
    bool bitmaps_broken; /* not all that they occupy could be counted */
    bool rebuild;        /* the refcount structure itself is damaged */
    uint64_t entries_wrong, copied_wrong;
    bool active;                 /* the walk is in the active tables, not a snapshot's */
    bool no_refcounts;           /* the refcount structure is not to be counted: it will be replaced */
    uint64_t walked, walk_total; /* bytes of the virtual disks */
};

/* ---- check.c ----------------------------------------------------------------------------------------------------- */

/* Checks, and repairs as options->fix says. */
bool q2_co_check(Child *file, const CheckOptions *options, CheckResult *result, GError **error);
/* One look at all of the image, changing nothing: fills c->r, refs, meta and what is wrong. 0 or -errno. */
int check_co_pass(Check *c);

void check_say(Check *c, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
void check_progress(const Check *c, const char *what, uint64_t done, uint64_t total);
/* What was written so far is durable. @site: its name for the mutation proof (block/util/order.h). */
static inline int check_co_barrier(Check *c, const char *site)
{
    return order_left_out(site) ? 0 : child_co_flush(c->file);
}
/* Reads; behind the end of the file are zeroes. -errno counts as a check error. */
int check_co_read(Check *c, uint64_t offset, uint64_t bytes, void *buf);
/* Does a range end a cluster or more behind the end of the file? Then it is not counted. */
bool check_exceeds(const Check *c, uint64_t offset, uint64_t bytes);
/* Counts a reference to each cluster of a range. */
int check_count(Check *c, uint64_t offset, uint64_t bytes);
/* Where @bytes may be appended to the file: behind its end, but nowhere that a wrong entry leads to. Until that entry
 * is repaired it reads as zeroes, also when the power goes in between. */
uint64_t check_place_behind(const Check *c, uint64_t bytes);
/* Does the cluster that begins at @offset begin within the file? */
static inline bool check_in_file(const Check *c, uint64_t offset)
{
    return offset >> c->q.cluster_bits < c->clusters;
}

/* ---- check-walk.c ------------------------------------------------------------------------------------------------ */

/* Walks through the active tables and, unless @only_active, those of all snapshots. */
int check_co_walk(Check *c, const CheckVisitor *visitor, bool only_active);
Q2Kind check_entry_kind(const Check *c, uint64_t entry);

/* check-count.c: counts the references of tables and reports what is wrong with them. */
extern const CheckVisitor check_count_visitor;
/* check-fix.c: entries that make no sense, and flags of ownership. */
extern const CheckVisitor check_entries_visitor, check_copied_visitor;

/* ---- check-own.c ------------------------------------------------------------------------------------------------- */

/* Does nothing but L1 entries refer to the cluster? */
bool check_only_table(const Check *c, uint64_t ci);
/* How many L2 tables share their place with anything else. */
uint64_t check_tables_shared(const Check *c);
/* Does the active L1 table share its place with anything? */
bool check_l1_shared(const Check *c);
/* If so, copies it, durably, and the header then leads to the copy. Only where the file can grow. */
int check_co_own_l1(Check *c);
/* The same for the L2 table of *@entry, an L1 entry, which is changed in memory. */
int check_co_own_table(Check *c, uint64_t *entry);

/* ---- check-refs.c ------------------------------------------------------------------------------------------------ */

int check_co_load_refcount_table(Check *c);
/* The refcount that the image gives @ci; -errno when it gives none. */
int check_co_refcount(Check *c, uint64_t ci, uint64_t *ret);
/* Counts the refcount structure's own references. */
int check_co_refcount_structure(Check *c);
/* Compares what was counted with what the image says; with @fix (CHECK_FIX_*), writes what differs, not flushed. */
int check_co_compare(Check *c, unsigned fix);
void check_forget_refcounts(Check *c);

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

/* check-snapshots.c */
int check_co_read_snapshots(Check *c);
int check_co_rewrite_snapshots(Check *c);
/* check-bitmaps.c */
int check_co_bitmaps(Check *c);
/* check-rebuild.c: a refcount structure anew from c->refs, in which the old one must not be counted. */
int check_co_rebuild(Check *c);
