/*
 * What the files about internal snapshots share: the table (snapshot.c), the switch from one picture of the image to
 * another (shadow.c), and what is done with both (snapshot-change.c).
 */
#pragma once
#include "block/drivers/qcow2/event.h"

/* ---- snapshot.c ------------------------------------------------------------------------------------------------- */

/* An entry of the table, in memory. */
struct Q2Snapshot {
    uint64_t l1_offset;
    uint32_t l1_size; /* entries */
    char *id, *name;  /* bytes as in the image, up to the first NUL */
    uint32_t date_sec, date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t vm_state_size; /* bytes */
    uint64_t size;          /* of the virtual disk, bytes */
    uint64_t icount;        /* UINT64_MAX: unknown */
    uint8_t *unknown;       /* extra data that we do not know */
    uint32_t unknown_len;
};

/* The one that has @id and @name, of which either may be NULL; the first of several. NULL: none. */
Q2Snapshot *q2_snapshot_find(const Qcow2 *q, const char *id, const char *name);
/* Caller frees. */
SnapshotInfo *q2_snapshot_info(const Q2Snapshot *s);
/* Frees what it points to. */
void q2_snapshot_clear(Q2Snapshot *s);
bool q2_snapshot_check_l1(const Qcow2 *q, const Q2Snapshot *s, GError **error);
/* Its L1 table in the machine's byte order; caller frees. */
bool q2_snapshot_co_l1(Qcow2 *q, const Q2Snapshot *s, uint64_t **ret_l1, GError **error);
/* The @n entries as they stand in an image; caller frees. */
uint8_t *q2_snapshots_store(const Q2Snapshot *list, uint32_t n, size_t *ret_size, GError **error);

/* ---- shadow.c --------------------------------------------------------------------------------------------------- */

/* A new picture of the image while it is being drawn. Its functions are called in the order begin, ref, drop,
 * fix_flags, store_*, switch, end; nobody else may use the image meanwhile: the node is drained. 0 or -errno. */
typedef struct Q2Shadow {
    Qcow2 *q;
    Q2Run region;      /* the copies of the refcount blocks, and behind them the new refcount table */
    uint64_t blocks;   /* how many copies */
    uint64_t *old_rt;  /* the refcount table that the image has; NULL: there is no shadow */
    uint64_t old_hint; /* q->free_hint of the old picture */
    GArray *drops;     /* of Q2Free: what nothing refers to once the switch has happened */
    bool locked;
} Q2Shadow;

/* What the header says after the switch. */
typedef struct Q2Picture {
    uint64_t size; /* of the virtual disk, bytes */
    uint64_t *l1;  /* entries, machine byte order, l1_size + 1 in all; switch takes it over when it succeeds */
    uint32_t l1_size;
    uint64_t l1_offset;
    uint32_t nb_snapshots;
    uint64_t snapshots_offset, snapshots_bytes;
    Q2Snapshot *snapshots; /* nb_snapshots of them; taken over as well, and the old array is freed */
} Q2Picture;

/* @clusters: how many will be allocated at most. After a failure q2_shadow_co_end() as well. */
int q2_shadow_co_begin(Q2Shadow *s, Qcow2 *q, uint64_t clusters);
/* One reference more, or one less, to each L2 table that the @n entries of an L1 table name, and to all that these
 * refer to. -ERANGE: a reference count is as high as it can get. */
int q2_shadow_co_ref_tables(Q2Shadow *s, const uint64_t *l1, uint32_t n);
int q2_shadow_co_drop_tables(Q2Shadow *s, const uint64_t *l1, uint32_t n, unsigned kind);
/* One reference less to the clusters of a range. @kind: why, Q2_FREE_*. */
int q2_shadow_co_drop(Q2Shadow *s, uint64_t offset, uint64_t bytes, unsigned kind);
/* Makes the flags in the tables of an L1 table, which @sharers L1 tables will have in common, say what the reference
 * counts say. An L2 table where they do not is written anew elsewhere. */
int q2_shadow_co_fix_flags(Q2Shadow *s, uint64_t *l1, uint32_t n, unsigned sharers);
/* Writes @bytes into new clusters; *@ret_offset is 0 when there are none. */
int q2_shadow_co_store(Q2Shadow *s, const void *data, uint64_t bytes, uint64_t *ret_offset);
int q2_shadow_co_store_l1(Q2Shadow *s, const uint64_t *l1, uint32_t n, uint64_t *ret_offset);
/* Shows the new picture. When it fails before the one write that matters, the old one stands and end undoes the rest;
 * when that write itself fails, it is taken back, and where that fails, too, the node is of no more use. */
int q2_shadow_co_switch(Q2Shadow *s, Q2Picture *picture);
/* Ends it: takes back what has not been switched to. */
void q2_shadow_co_end(Q2Shadow *s);
