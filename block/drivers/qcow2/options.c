/*
 * Options of a node: cache sizes, checks, discards.
 *
 * Caches: the L2 cache is as large as the disk needs, 32 MiB at most by default; refcount blocks get four clusters.
 */
#include "block/drivers/qcow2/qcow2.h"

#define L2_DEFAULT_MAX (32 << 20)
#define RB_MIN_TABLES  4
#define L2_MIN_TABLES  2
#define CLEAN_DEFAULT  600
#define CACHE_MAX      (INT64_C(1) << 40)

/* Bytes of memory for L2 slices that all of the disk needs. */
static uint64_t l2_need(const Qcow2 *q)
{
    uint64_t entries = div_round_up(q->header.size, q->cluster_size), per_slice = q->l2_slice_size / q->l2_entry_bytes;

    return div_round_up(entries, per_slice) * q->l2_slice_size;
}

static bool check_size(const char *name, bool has, int64_t value, GError **error)
{
    if (has && (value < 0 || value > CACHE_MAX))
        return error_set(error, "Parameter '%s' is %" G_GINT64_FORMAT ", must be from 0 to %" G_GINT64_FORMAT, name,
                         value, CACHE_MAX);
    return true;
}

static bool apply_caches(Qcow2 *q, const BlockdevOptionsQcow2 *o, GError **error)
{
    uint64_t rb_min = RB_MIN_TABLES * q->cluster_size, l2, rb;
    int64_t slice = o->has_l2_cache_entry_size ? o->l2_cache_entry_size : (int64_t)MIN(q->cluster_size, 4096);

    if (slice < 512 || !is_pow2((uint64_t)slice) || (uint64_t)slice > q->cluster_size)
        return error_set(
            error,
            "L2 cache entry size must be a power of two between 512 and the cluster size (%" G_GUINT64_FORMAT ")",
            q->cluster_size);
    q->l2_slice_size = (uint32_t)slice;
    q->slice_bits = ilog2((uint64_t)slice) - ilog2(q->l2_entry_bytes);
    if (!check_size("cache-size", o->has_cache_size, o->cache_size, error) ||
        !check_size("l2-cache-size", o->has_l2_cache_size, o->l2_cache_size, error) ||
        !check_size("refcount-cache-size", o->has_refcount_cache_size, o->refcount_cache_size, error))
        return false;
    l2 = o->has_l2_cache_size ? (uint64_t)o->l2_cache_size : L2_DEFAULT_MAX;
    rb = o->has_refcount_cache_size ? (uint64_t)o->refcount_cache_size : rb_min;
    if (o->has_cache_size) {
        uint64_t all = (uint64_t)o->cache_size;
        if (o->has_l2_cache_size && o->has_refcount_cache_size)
            return error_set(error,
                             "cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
        if (o->has_l2_cache_size && l2 > all)
            return error_set(error, "l2-cache-size may not exceed cache-size");
        if (o->has_refcount_cache_size && rb > all)
            return error_set(error, "refcount-cache-size may not exceed cache-size");
        if (o->has_l2_cache_size)
            rb = all - l2;
        else
            l2 = all > rb ? all - rb : 0;
        if (!o->has_l2_cache_size && !o->has_refcount_cache_size && l2 > l2_need(q)) {
            l2 = l2_need(q); /* the rest is worth more to the other cache */
            rb = all - l2;
        }
    }
    q->l2_cache_tables = u64_max(u64_min(l2, l2_need(q)) / q->l2_slice_size, L2_MIN_TABLES);
    /* More than the image could ever have is no use: one block for each entry of the largest refcount table. */
    q->rb_cache_tables = u64_min(u64_max(rb >> q->cluster_bits, RB_MIN_TABLES), Q2_MAX_RT_BYTES / 8);
    return true;
}

static unsigned mode_mask(Qcow2OverlapCheckMode mode)
{
    const unsigned all = ((1u << Q2_META__MAX) - 1) & ~1u;
    const unsigned constant = 1u << Q2_META_HEADER | 1u << Q2_META_L1 | 1u << Q2_META_REFTABLE |
                              1u << Q2_META_SNAPSHOTS | 1u << Q2_META_BITMAPS | 1u << Q2_META_CRYPTO;

    switch (mode) {
    case QCOW2_OVERLAP_CHECK_MODE_NONE:
        return 0;
    case QCOW2_OVERLAP_CHECK_MODE_CONSTANT:
        return constant;
    case QCOW2_OVERLAP_CHECK_MODE_ALL:
        return all;
    default:
        return all & ~(1u << Q2_META_INACTIVE_L2);
    }
}

static void apply_overlap(Qcow2 *q, const Qcow2OverlapChecks *checks)
{
    const Qcow2OverlapCheckFlags *f;

    q->overlap_mask = mode_mask(QCOW2_OVERLAP_CHECK_MODE_CACHED);
    if (!checks)
        return;
    if (checks->kind == QCOW2_OVERLAP_CHECKS_MODE) {
        q->overlap_mask = mode_mask(checks->u.mode);
        return;
    }
    f = checks->u.flags;
    if (f->has_template)
        q->overlap_mask = mode_mask(f->template);
    const struct {
        bool has, on;
        unsigned kind;
    } flags[] = {
        {f->has_main_header, f->main_header, Q2_META_HEADER},
        {f->has_active_l1, f->active_l1, Q2_META_L1},
        {f->has_active_l2, f->active_l2, Q2_META_L2},
        {f->has_refcount_table, f->refcount_table, Q2_META_REFTABLE},
        {f->has_refcount_block, f->refcount_block, Q2_META_REFBLOCK},
        {f->has_snapshot_table, f->snapshot_table, Q2_META_SNAPSHOTS},
        {f->has_inactive_l1, f->inactive_l1, Q2_META_INACTIVE_L1},
        {f->has_inactive_l2, f->inactive_l2, Q2_META_INACTIVE_L2},
        {f->has_bitmap_directory, f->bitmap_directory, Q2_META_BITMAPS},
    };
    for (unsigned i = 0; i < G_N_ELEMENTS(flags); i++)
        if (flags[i].has && flags[i].on)
            q->overlap_mask |= 1u << flags[i].kind;
        else if (flags[i].has)
            q->overlap_mask &= ~(1u << flags[i].kind);
}

bool q2_options_apply(Qcow2 *q, const BlockdevOptionsQcow2 *o, GError **error)
{
    int64_t interval = o->has_cache_clean_interval ? o->cache_clean_interval : CLEAN_DEFAULT;

    if (o->data_file && !q2_has_data_file(q))
        return error_set(error, "'data-file' can only be set for images with an external data file");
    q->lazy = o->has_lazy_refcounts ? o->lazy_refcounts : q->header.compat & Q2_COMPAT_LAZY_REFCOUNTS;
    if (q->lazy && q->header.version < 3)
        return error_set(error, "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
    if (o->has_discard_no_unref && o->discard_no_unref && q->header.version < 3)
        return error_set(error, "discard-no-unref is only supported since qcow2 version 3");
    q->discard_no_unref = o->has_discard_no_unref && o->discard_no_unref;
    if (interval < 0 || interval > UINT32_MAX)
        return error_set(error, "Cache clean interval too big");
    q->clean_interval = interval * INT64_C(1000000000);
    q->pass_discard[Q2_FREE_REQUEST] =
        o->has_pass_discard_request ? o->pass_discard_request : q->node->flags.discard_unmap;
    q->pass_discard[Q2_FREE_SNAPSHOT] = !o->has_pass_discard_snapshot || o->pass_discard_snapshot;
    q->pass_discard[Q2_FREE_OTHER] = o->has_pass_discard_other && o->pass_discard_other;
    apply_overlap(q, o->overlap_check);
    return apply_caches(q, o, error);
}
