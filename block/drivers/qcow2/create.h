/*
 * What the files that make images share: where everything of a new image lies.
 */
#pragma once
#include "block/drivers/qcow2/qcow2.h"
#include "block/graph/port.h"

/*
 * In this order, each in whole clusters and right behind the one before: header, refcount table, refcount blocks, L1
 * table, the LUKS header of an encrypted image, and where space is prepared, L2 tables and (unless there is a data
 * file) the clusters of the disk. So each cluster of the file has one reference, and every table can be told from its
 * place.
 */
typedef struct Q2Layout {
    unsigned version, cluster_bits, refcount_order;
    unsigned entry_bytes; /* of L2 entries */
    uint64_t cluster;     /* bytes */
    uint64_t size;        /* of the disk, whole sectors: others would cut a part of one off */
    bool prepared;        /* there are L2 tables, which give every cluster of the disk its place */
    bool raw;             /* the data file is the disk by itself */
    uint64_t l1_entries;
    uint64_t crypto_bytes; /* of the LUKS header with its key slots; 0: none */
    bool encrypted;        /* zeroes in the file are no zeroes of the disk */
    /* clusters */
    uint64_t rt_clusters, blocks, l1_clusters, crypto, l2_tables, disk,
        data; /* disk: of the guest; data: of it, in the file */
    uint64_t total;
} Q2Layout;

static inline uint64_t q2_layout_blocks(const Q2Layout *l)
{
    return 1 + l->rt_clusters;
}

static inline uint64_t q2_layout_l1(const Q2Layout *l)
{
    return q2_layout_blocks(l) + l->blocks;
}

static inline uint64_t q2_layout_crypto(const Q2Layout *l)
{
    return q2_layout_l1(l) + l->l1_clusters;
}

static inline uint64_t q2_layout_l2(const Q2Layout *l)
{
    return q2_layout_crypto(l) + l->crypto;
}

static inline uint64_t q2_layout_data(const Q2Layout *l)
{
    return q2_layout_l2(l) + l->l2_tables;
}

/* create-header.c: the first cluster into @buf, which has room for it and is zero. */
bool q2_create_header(const CreateOptions *options, const Q2Layout *layout, uint8_t *buf, GError **error);
/* create-tables.c: refcounts, L1 and L2 tables. Not flushed. 0 or -errno. */
int q2_create_co_tables(Port *file, const Q2Layout *layout);
