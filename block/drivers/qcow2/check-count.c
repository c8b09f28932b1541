/*
 * What L1 and L2 tables refer to, and what is wrong with their entries. Changes nothing.
 *
 * Flags of ownership are held against the counts in the image, not those that are being found: a wrong count is a
 * finding of its own.
 */
#include "block/drivers/qcow2/check.h"

#define L2_ALLOCATED UINT64_C(0xffffffff)

static void corrupt(Check *c, bool fixable)
{
    c->r.corruptions++;
    c->entries_wrong += fixable;
}

/* Only clusters with one reference may be written in place. */
static int count_co_copied(Check *c, const char *what, uint64_t index, uint64_t entry, uint64_t offset)
{
    uint64_t count = 1;
    int ret = 0;

    if (!c->active)
        return 0;
    if (!c->has_data_file || !strcmp(what, "L2 cluster"))
        ret = check_co_refcount(c, offset >> c->q.cluster_bits, &count);
    if (ret == -EIO || ret == -EINVAL) /* which is reported elsewhere */
        return 0;
    if (ret == 0 && (count == 1) != !!(entry & Q2_COPIED)) {
        c->r.corruptions++;
        c->copied_wrong++;
        check_say(c,
                  "ERROR OFLAG_COPIED %s: index=%" G_GUINT64_FORMAT " entry=%" G_GINT64_MODIFIER
                  "x refcount=%" G_GUINT64_FORMAT,
                  what, index, entry, count);
    }
    return ret;
}

static int count_co_l1(Check *c, uint64_t index, uint64_t *entry)
{
    uint64_t offset = *entry & Q2_OFFSET_MASK;
    int ret;

    if (*entry & Q2_L1_RESERVED) {
        corrupt(c, true);
        check_say(c, "ERROR L1 entry %" G_GUINT64_FORMAT " has reserved bits set: %" G_GINT64_MODIFIER "x", index,
                  *entry);
    }
    ret = check_count(c, offset, c->q.cluster_size);
    if (ret == 0 && check_in_file(c, offset))
        ret = counts_add(&c->tables, offset >> c->q.cluster_bits);
    if (ret == 0 && !is_aligned(offset, c->q.cluster_size)) {
        corrupt(c, true);
        check_say(c, "ERROR L2 table of L1 entry %" G_GUINT64_FORMAT " is not cluster aligned: %" G_GINT64_MODIFIER "x",
                  index, offset);
    }
    if (offset && !check_in_file(c, offset))
        c->entries_wrong++; /* counted as corruption by check_count() */
    return ret == 0 && offset ? count_co_copied(c, "L2 cluster", index, *entry, offset) : ret;
}

static int count_packed(Check *c, uint64_t gc, uint64_t entry, uint64_t bitmap)
{
    uint64_t offset, bytes;

    if (entry & Q2_COPIED) {
        corrupt(c, true);
        check_say(c, "ERROR copied flag set for the compressed cluster %" G_GUINT64_FORMAT ": %" G_GINT64_MODIFIER "x",
                  gc, entry);
    }
    if (c->has_data_file) {
        corrupt(c, true);
        check_say(
            c, "ERROR cluster %" G_GUINT64_FORMAT " is compressed, with an external data file: %" G_GINT64_MODIFIER "x",
            gc, entry);
        return 0;
    }
    if (bitmap) {
        corrupt(c, true);
        check_say(c,
                  "ERROR compressed cluster %" G_GUINT64_FORMAT
                  " has a subcluster bitmap that is not 0: %" G_GINT64_MODIFIER "x",
                  gc, bitmap);
        return 0;
    }
    q2_packed_range(&c->q, entry & ~Q2_COPIED, &offset, &bytes);
    c->r.allocated_clusters += c->active;
    c->r.compressed_clusters += c->active;
    c->r.fragmented_clusters += c->active; /* wherever it lies, whole sectors are read again for its neighbour */
    if (!check_in_file(c, offset + bytes - 1))
        c->entries_wrong++;
    return check_count(c, offset, bytes);
}

/* Clusters with a place of their own. @next: where the last one ended, 0 at the beginning of a table. */
static int count_co_normal(Check *c, uint64_t gc, uint64_t entry, uint64_t bitmap, uint64_t *next)
{
    uint64_t offset = entry & Q2_OFFSET_MASK;

    if ((bitmap >> 32) & bitmap & L2_ALLOCATED) {
        corrupt(c, true);
        check_say(
            c, "ERROR subclusters of cluster %" G_GUINT64_FORMAT " are both data and zeroes: %" G_GINT64_MODIFIER "x",
            gc, bitmap);
    }
    if (!is_aligned(offset, c->q.cluster_size)) {
        corrupt(c, true);
        check_say(c, "ERROR cluster %" G_GUINT64_FORMAT " is not properly aligned: %" G_GINT64_MODIFIER "x", gc, entry);
    } else if (!c->has_data_file && !check_in_file(c, offset)) {
        c->entries_wrong++;
    }
    if (c->active) {
        c->r.allocated_clusters++;
        c->r.fragmented_clusters += *next && offset != *next;
        *next = offset + c->q.cluster_size;
    }
    if (!c->has_data_file) {
        int ret = check_count(c, offset, c->q.cluster_size);
        if (ret < 0)
            return ret;
    }
    return count_co_copied(c, "data cluster", gc, entry, offset);
}

static int count_co_l2(Check *c, uint64_t l1_index, uint64_t table_offset, uint8_t *table, bool *changed)
{
    unsigned n = (unsigned)(c->q.cluster_size / c->q.l2_entry_bytes);
    uint64_t next = 0;
    int ret = 0;

    for (unsigned i = 0; i < n && ret == 0; i++) {
        uint64_t entry = q2_l2_entry(&c->q, table, i), bitmap = q2_l2_bitmap(&c->q, table, i), gc = l1_index * n + i;
        Q2Kind kind;
        if (!entry && !bitmap)
            continue;
        kind = check_entry_kind(c, entry);
        if (kind != Q2_PACKED && (entry & Q2_L2_RESERVED)) {
            corrupt(c, true);
            check_say(c,
                      "ERROR L2 entry of cluster %" G_GUINT64_FORMAT " has reserved bits set: %" G_GINT64_MODIFIER "x",
                      gc, entry);
        }
        if (kind == Q2_PACKED) {
            ret = count_packed(c, gc, entry, bitmap);
        } else if (kind == Q2_NORMAL || kind == Q2_ZERO_ALLOC) {
            ret = count_co_normal(c, gc, entry, bitmap, &next);
        } else if (bitmap & L2_ALLOCATED) {
            corrupt(c, true);
            check_say(c, "ERROR cluster %" G_GUINT64_FORMAT " has no place, but data: %" G_GINT64_MODIFIER "x", gc,
                      bitmap);
        }
    }
    return ret;
}

const CheckVisitor check_count_visitor = {.what = "Checking", .co_l1 = count_co_l1, .co_l2 = count_co_l2};
