/*
 * Taking clusters: at the end of the file, which grows in steps ahead of them.
 *
 * Guarantees: the file ends at or behind a cluster boundary above every cluster that is handed out, so a table never
 * refers to what is not there, and the file is only ever made larger where nobody writes yet. What it grows by reads as
 * zeroes; qed_co_trim_file() takes back what was not needed.
 */
#include "block/drivers/qed/qed.h"

#define GROW_STEP (1 << 20)

/* Makes the file reach up to @end. alloc_lock held. */
static int file_co_reach(Qed *q, uint64_t end)
{
    Child *file = q->node->file;
    uint64_t step = u64_max(GROW_STEP, q->header.cluster_size);
    g_autoptr(GError) error = NULL;

    if (G_LIKELY(end <= file->node->size))
        return 0;
    if (end > (uint64_t)INT64_MAX - 2 * step)
        return -EFBIG;
    q->grown = true;
    if (child_co_truncate(file, align_up(end, step), true, PREALLOC_MODE_OFF, 0, &error))
        return 0;
    /* A device, or an export: what cannot become larger is full. */
    return -ENOSPC;
}

static bool take_spare(Qed *q, uint64_t want, bool exact, QedRun *ret)
{
    for (unsigned i = 0; i < q->n_spare; i++) {
        QedRun *s = &q->spare[i];
        if (exact && s->n < want)
            continue;
        *ret = (QedRun){.offset = s->offset, .n = u64_min(s->n, want)};
        s->offset += ret->n << q->cluster_bits;
        s->n -= ret->n;
        if (!s->n)
            *s = q->spare[--q->n_spare];
        return true;
    }
    return false;
}

int qed_co_alloc(Qed *q, uint64_t want, bool exact, QedRun *ret)
{
    int r;

    comutex_co_lock(&q->alloc_lock);
    if (q->n_spare && take_spare(q, want, exact, ret)) {
        r = 0;
    } else {
        r = file_co_reach(q, q->end + (want << q->cluster_bits));
        *ret = (QedRun){.offset = q->end, .n = want, .fresh = q->end >= q->fresh_above};
        if (r == 0)
            q->end += want << q->cluster_bits;
    }
    comutex_unlock(&q->alloc_lock);
    return r;
}

/* The last spare run at the end of the clusters, if there is one, is no longer one of them. */
static bool drop_last_spare(Qed *q)
{
    for (unsigned i = 0; i < q->n_spare; i++) {
        if (q->spare[i].offset + (q->spare[i].n << q->cluster_bits) != q->end)
            continue;
        q->end = q->spare[i].offset;
        q->spare[i] = q->spare[--q->n_spare];
        return true;
    }
    return false;
}

void qed_unalloc(Qed *q, const QedRun *run)
{
    uint64_t end = run->offset + (run->n << q->cluster_bits);

    q->fresh_above = u64_max(q->fresh_above, end);
    if (q->n_spare < QED_SPARES) /* else it is a leak */
        q->spare[q->n_spare++] = (QedRun){.offset = run->offset, .n = run->n};
    /* An allocation that waits for the file to grow reads the end afterwards. */
    while (drop_last_spare(q)) {
    }
}

int qed_co_trim_file(Qed *q)
{
    g_autoptr(GError) error = NULL;

    while (drop_last_spare(q)) {
    }
    if (!q->grown || q->node->file->node->size <= q->end)
        return 0;
    if (!child_co_truncate(q->node->file, q->end, true, PREALLOC_MODE_OFF, 0, &error))
        return -EIO;
    q->grown = false;
    q->fresh_above = q->end;
    return 0;
}
