/*
 * Entries made good: tables get a place of their own, what entries cannot lead to is no longer named, and the flags of
 * ownership say what the counts do.
 *
 * Guests see after it what they saw before where that was defined. An entry to a place behind the end of the file read
 * as zeroes and becomes a zero cluster. One that is not aligned could not be read; it becomes zeroes, too.
 * Where version 2 has no word for zeroes and a backing file would shine through, the entry stays as it is.
 */
#include "block/drivers/qcow2/check.h"

static int fix_co_l1(Check *c, uint64_t index, uint64_t *entry)
{
    uint64_t offset;

    *entry &= ~Q2_L1_RESERVED;
    offset = *entry & Q2_OFFSET_MASK;
    if (!offset || !is_aligned(offset, c->q.cluster_size) || !check_in_file(c, offset))
        *entry = 0;
    return *entry ? check_co_own_table(c, entry) : 0;
}

static bool packed_ok(const Check *c, uint64_t entry)
{
    uint64_t offset, bytes;

    q2_packed_range(&c->q, entry & ~Q2_COPIED, &offset, &bytes);
    return !c->has_data_file && check_in_file(c, offset + bytes - 1);
}

static bool place_ok(const Check *c, uint64_t entry)
{
    uint64_t offset = entry & Q2_OFFSET_MASK;

    return is_aligned(offset, c->q.cluster_size) && (c->has_data_file || check_in_file(c, offset));
}

/* A cluster of zeroes without a place; false when there is no word for it. */
static bool make_zero(const Check *c, uint64_t *entry, uint64_t *bitmap)
{
    if (c->q.header.version < 3 && c->q.header.backing_file)
        return false;
    *entry = c->q.l2_entry_bytes == 16 || c->q.header.version < 3 ? 0 : Q2_ZERO;
    *bitmap = c->q.l2_entry_bytes == 16 ? UINT64_C(0xffffffff00000000) : 0;
    return true;
}

static void fix_entry(const Check *c, uint64_t *entry, uint64_t *bitmap)
{
    Q2Kind kind = check_entry_kind(c, *entry);

    if (kind == Q2_PACKED) {
        *entry &= ~Q2_COPIED;
        *bitmap = 0;
        if (!packed_ok(c, *entry))
            make_zero(c, entry, bitmap);
        return;
    }
    *entry &= ~Q2_L2_RESERVED;
    if ((kind == Q2_NORMAL || kind == Q2_ZERO_ALLOC) && !place_ok(c, *entry))
        make_zero(c, entry, bitmap);
    else if (kind == Q2_UNALLOCATED)
        *bitmap &= ~UINT64_C(0xffffffff);
    else
        *bitmap &= ~(*bitmap << 32); /* said to be both: data, for zeroes would hide it */
}

static int fix_co_l2(Check *c, uint64_t l1_index, uint64_t table_offset, uint8_t *table, bool *changed)
{
    for (unsigned i = 0; i < c->q.cluster_size / c->q.l2_entry_bytes; i++) {
        uint64_t entry = q2_l2_entry(&c->q, table, i), bitmap = q2_l2_bitmap(&c->q, table, i);
        uint64_t old_entry = entry, old_bitmap = bitmap;
        if (!entry && !bitmap)
            continue;
        fix_entry(c, &entry, &bitmap);
        if (entry == old_entry && bitmap == old_bitmap)
            continue;
        q2_l2_set(&c->q, table, i, entry, bitmap);
        *changed = true;
    }
    return 0;
}

const CheckVisitor check_entries_visitor = {
    .what = "Repairing entries", .writes = true, .co_l1 = fix_co_l1, .co_l2 = fix_co_l2};

/* ---- flags of ownership ------------------------------------------------------------------------------------------ */

/* @entry with its flag as the count at @offset says. Without CHECK_FIX_ERRORS it is only ever set, for a count that
 * went down, and not where the count is wrong and the cluster shared. */
static int copied_co_fix(Check *c, uint64_t offset, uint64_t *entry)
{
    uint64_t count, ci = offset >> c->q.cluster_bits;
    bool all = c->fix & CHECK_FIX_ERRORS;
    int ret = check_co_refcount(c, ci, &count);

    if (ret == -EIO || ret == -EINVAL)
        return 0;
    if (ret == 0 && count == 1 && (all || counts_get(&c->refs, ci) == 1))
        *entry |= Q2_COPIED;
    else if (ret == 0 && all)
        *entry &= ~Q2_COPIED;
    return ret;
}

static int copied_co_l1(Check *c, uint64_t index, uint64_t *entry)
{
    uint64_t offset = *entry & Q2_OFFSET_MASK;

    return offset ? copied_co_fix(c, offset, entry) : 0;
}

static int copied_co_l2(Check *c, uint64_t l1_index, uint64_t table_offset, uint8_t *table, bool *changed)
{
    for (unsigned i = 0; i < c->q.cluster_size / c->q.l2_entry_bytes; i++) {
        uint64_t entry = q2_l2_entry(&c->q, table, i), old = entry;
        Q2Kind kind = check_entry_kind(c, entry);
        int ret = 0;
        if (kind != Q2_NORMAL && kind != Q2_ZERO_ALLOC)
            continue;
        if (c->has_data_file)
            entry |= Q2_COPIED;
        else
            ret = copied_co_fix(c, entry & Q2_OFFSET_MASK, &entry);
        if (ret < 0)
            return ret;
        if (entry == old)
            continue;
        q2_l2_set(&c->q, table, i, entry, q2_l2_bitmap(&c->q, table, i));
        *changed = true;
    }
    return 0;
}

const CheckVisitor check_copied_visitor = {
    .what = "Repairing flags", .writes = true, .co_l1 = copied_co_l1, .co_l2 = copied_co_l2};
