/*
 * The refcount structure as it is in the image, held against what was counted.
 *
 * Counts are changed in place: raised where something refers to a cluster, lowered where nothing does. Either is safe
 * whatever becomes of the others, since all that decides is durable before; so a block is written once with all its
 * changes, in any order.
 */
#include "block/drivers/qcow2/check.h"

int check_co_load_refcount_table(Check *c)
{
    uint64_t bytes = (uint64_t)c->q.header.rt_clusters << c->q.cluster_bits;

    check_forget_refcounts(c);
    c->rt = g_try_malloc0(bytes + 8);
    if (!c->rt)
        return -ENOMEM;
    c->rt_size = (uint32_t)(bytes / 8);
    if (check_co_read(c, c->q.header.rt_offset, bytes, c->rt) < 0) {
        memset(c->rt, 0, bytes);
        c->rebuild = true;
    }
    for (uint32_t i = 0; i < c->rt_size; i++)
        c->rt[i] = load_be64(&c->rt[i]);
    return 0;
}

void check_forget_refcounts(Check *c)
{
    g_clear_pointer(&c->rt, g_free);
    c->rt_size = 0;
    for (unsigned i = 0; i < REF_SLOTS_MAX; i++) {
        aio_buf_put(c->file->node->loop, c->slots[i].data, c->q.cluster_size);
        c->slots[i] = (RefSlot){0};
    }
}

/* Where the block @index lies. 0: there is none; -EINVAL: its entry makes no sense. It may be behind the end. */
static int block_offset(const Check *c, uint64_t index, uint64_t *ret)
{
    *ret = index < c->rt_size ? c->rt[index] & ~Q2_RT_RESERVED : 0;
    return is_aligned(*ret, c->q.cluster_size) && *ret <= INT64_MAX - c->q.cluster_size ? 0 : -EINVAL;
}

/* The block @index from the image; *@ret NULL where there is none. */
static int block_co_get(Check *c, uint64_t index, uint8_t **ret)
{
    RefSlot *slot = &c->slots[index % c->n_slots];
    uint64_t offset;
    int r = block_offset(c, index, &offset);

    *ret = NULL;
    if (r < 0 || !offset || !check_in_file(c, offset)) /* where only zeroes are */
        return r;
    if (slot->block != index + 1) {
        slot->block = 0;
        if (!slot->data)
            slot->data = aio_buf_get(c->file->node->loop, c->q.cluster_size);
        if (!slot->data)
            return -ENOMEM;
        r = child_co_pread(c->file, offset, c->q.cluster_size, slot->data, 0);
        if (r < 0)
            return -EIO;
        slot->block = index + 1;
    }
    *ret = slot->data;
    return 0;
}

int check_co_refcount(Check *c, uint64_t ci, uint64_t *ret)
{
    uint8_t *block;
    int r = block_co_get(c, ci >> c->q.rb_bits, &block);

    *ret = 0;
    if (r == 0 && block)
        *ret = q2_refcount_get(block, c->q.header.refcount_order, ci & ((UINT64_C(1) << c->q.rb_bits) - 1));
    return r;
}

/* Is the cluster of a block somebody else's as well? */
static void check_block_shared(Check *c, uint64_t index, uint64_t ci)
{
    uint64_t refs = counts_get(&c->refs, ci);

    if (refs != 1)
        c->rebuild = true;
    if (refs != 1 && c->max_refcount > 1) { /* else told as one reference too many */
        c->r.corruptions++;
        check_say(c, "ERROR refcount block %" G_GUINT64_FORMAT " is in use for something else as well", index);
    }
}

static void structure_broken(Check *c, const char *what, uint64_t index)
{
    c->r.corruptions++;
    c->rebuild = true;
    check_say(c, "ERROR refcount block %" G_GUINT64_FORMAT " %s", index, what);
}

int check_co_refcount_structure(Check *c)
{
    uint64_t bytes = (uint64_t)c->q.header.rt_clusters << c->q.cluster_bits;
    int ret = check_count(c, c->q.header.rt_offset, bytes);

    if (!check_in_file(c, c->q.header.rt_offset + bytes - 1))
        c->rebuild = true;
    for (uint64_t i = 0; i < c->rt_size && ret == 0; i++) {
        uint64_t offset = c->rt[i] & ~Q2_RT_RESERVED;
        if (c->rt[i] & Q2_RT_RESERVED) {
            structure_broken(c, "has reserved bits set in its entry of the refcount table", i);
        } else if (!is_aligned(offset, c->q.cluster_size)) {
            structure_broken(c, "is not cluster aligned; refcount table entry corrupted", i);
        } else if (offset && !check_in_file(c, offset)) {
            structure_broken(c, "is outside image", i);
        } else if (offset) {
            ret = check_count(c, offset, c->q.cluster_size);
            if (ret == 0)
                check_block_shared(c, i, offset >> c->q.cluster_bits);
        }
    }
    return ret;
}

/* Clusters in a row with the same finding, which are told together. */
typedef struct Finding {
    uint64_t first, n, count, refs;
} Finding;

static void finding_tell(Check *c, Finding *f)
{
    const char *what = f->count > f->refs ? "Leaked" : "ERROR";

    if (f->n == 1)
        check_say(c, "%s cluster %" G_GUINT64_FORMAT " refcount=%" G_GUINT64_FORMAT " reference=%" G_GUINT64_FORMAT,
                  what, f->first, f->count, f->refs);
    else if (f->n)
        check_say(c,
                  "%s clusters %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT " refcount=%" G_GUINT64_FORMAT
                  " reference=%" G_GUINT64_FORMAT,
                  what, f->first, f->first + f->n - 1, f->count, f->refs);
    f->n = 0;
}

static void finding_add(Check *c, Finding *f, uint64_t ci, uint64_t count, uint64_t refs)
{
    if (f->n && (f->first + f->n != ci || f->count != count || f->refs != refs))
        finding_tell(c, f);
    if (!f->n)
        *f = (Finding){.first = ci, .count = count, .refs = refs};
    f->n++;
    if (count > refs)
        c->r.leaks++;
    else
        c->r.corruptions++;
}

/* The clusters [@ci, @end) of one block; @block NULL: all have 0. True when something was changed in it. */
static bool compare_block(Check *c, uint8_t *block, uint64_t ci, uint64_t end, unsigned fix, Finding *f)
{
    uint64_t mask = (UINT64_C(1) << c->q.rb_bits) - 1;
    unsigned order = c->q.header.refcount_order;
    bool changed = false;

    for (; ci < end; ci++) {
        uint64_t count = block ? q2_refcount_get(block, order, ci & mask) : 0;
        uint64_t found = counts_get(&c->refs, ci), refs = u64_min(found, c->max_refcount);
        if (found > refs) {
            c->r.corruptions += found - refs;
            check_say(c,
                      "ERROR cluster %" G_GUINT64_FORMAT " has %" G_GUINT64_FORMAT
                      " references, more than its refcount can say; make a copy with 'qemu-img convert'",
                      ci, found);
        }
        if ((count || refs) && ci < c->clusters)
            c->r.image_end_offset = (ci + 1) << c->q.cluster_bits;
        if (count == refs || (ci >= c->clusters && counts_get(&c->wild, ci)))
            continue;
        if (block && (fix & (count > refs ? CHECK_FIX_LEAKS : CHECK_FIX_ERRORS))) {
            q2_refcount_set(block, order, ci & mask, refs);
            changed = true;
            continue;
        }
        finding_add(c, f, ci, count, refs);
        if (!block)
            c->rebuild = true; /* there is no place for this count */
    }
    return changed;
}

static void tell_unreadable(Check *c, uint64_t ci, uint64_t end)
{
    check_say(c, "ERROR the refcounts of clusters %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT " cannot be read", ci,
              end - 1);
    c->r.check_errors += end - ci;
    c->rebuild = true;
}

int check_co_compare(Check *c, unsigned fix)
{
    uint64_t per_block = UINT64_C(1) << c->q.rb_bits, ci = 0;
    /* What is counted behind the end of the file is no finding, but a repair does not leave it for the day when the
     * file grows. */
    uint64_t end = fix & CHECK_FIX_LEAKS ? u64_max(c->clusters, u64_min(c->room, c->rt_size * per_block)) : c->clusters;
    Finding f = {0};
    int ret = 0;

    while (ci < end && ret == 0) {
        uint64_t index = ci >> c->q.rb_bits, stop = u64_min(end, (index + 1) * per_block), offset;
        uint8_t *block = NULL;
        ret = block_co_get(c, index, &block);
        if (ret == -EIO || ret == -EINVAL) {
            finding_tell(c, &f);
            if (ci < c->clusters)
                tell_unreadable(c, ci, u64_min(stop, c->clusters));
            ret = 0;
        } else if (ret == 0) {
            /* Nothing counted and nothing there. */
            if (!block)
                ci = counts_next(&c->refs, ci, end);
            if (ci < stop && compare_block(c, block, ci, stop, fix, &f) && block_offset(c, index, &offset) == 0)
                ret = child_co_pwrite(c->file, offset, c->q.cluster_size, block, 0);
        }
        ci = u64_max(stop, ci);
        check_progress(c, "Comparing", ci << c->q.cluster_bits, end << c->q.cluster_bits);
    }
    finding_tell(c, &f);
    return ret;
}
