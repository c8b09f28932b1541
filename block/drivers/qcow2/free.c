/*
 * Clusters on their way to being free.
 *
 * Guarantees: between the moment when an entry in memory stops referring to a cluster and the moment when its refcount
 * goes down lie: the write of that entry to the image, a barrier after it, and the end of every request that began
 * while the old entry could be seen. A cluster so cannot be reused while a crash, or a slow request, could still find
 * it through the old entry.
 *
 * A range is `dropped` when the entry changes in memory, `committing` while a commit writes the entry, then `written`.
 * A later commit gives what was written a time of grace: it begins a new phase of requests (q2_data_enter() counts a
 * request in the present one), and behind its barrier, when the last request of the old phase has ended, lowers the
 * counts. A request that takes long so delays only what is freed, never a flush.
 *
 * So space comes back late. Whoever finds none left has what waits freed at once, and tries again.
 */
#include "block/drivers/qcow2/qcow2.h"

#define MAX_DROPPED       4096
#define MAX_DROPPED_BYTES (UINT64_C(1) << 30)

static Q2Free *list_push(Q2FreeList *list)
{
    if (list->n == list->room) {
        size_t room = list->room ? list->room * 2 : 64;
        Q2Free *items = g_try_renew(Q2Free, list->items, room);
        if (!items)
            return NULL;
        list->items = items;
        list->room = room;
    }
    return &list->items[list->n++];
}

void q2_free_later(Qcow2 *q, uint64_t offset, uint64_t bytes, unsigned kind)
{
    Q2FreeList *list = &q->dropped;
    Q2Free *last = list->n ? &list->items[list->n - 1] : NULL;

    q->free_bytes += bytes;
    /* Neighbours are joined where both are whole clusters: compressed data shares clusters, and each part counts. */
    if (last && last->kind == kind && last->offset + last->bytes == offset &&
        is_aligned(offset | bytes | last->offset, q->cluster_size)) {
        last->bytes += bytes;
        return;
    }
    last = list_push(list);
    if (last)
        *last = (Q2Free){.offset = offset, .bytes = bytes, .kind = kind};
}

void q2_free_entry_later(Qcow2 *q, uint64_t entry, unsigned kind)
{
    uint64_t offset, bytes;

    if (q2_has_data_file(q))
        return; /* nobody counts references there */
    switch (q2_entry_kind(q, entry)) {
    case Q2_NORMAL:
    case Q2_ZERO_ALLOC:
        q2_free_later(q, entry & Q2_OFFSET_MASK, q->cluster_size, kind);
        break;
    case Q2_PACKED:
        q2_packed_range(q, entry, &offset, &bytes);
        q2_free_later(q, offset, bytes, Q2_FREE_NEVER);
        break;
    default:
        break;
    }
}

bool q2_free_pending(const Qcow2 *q)
{
    return q->dropped.n || q->committing.n || q->written.n || q->grace.n;
}

void q2_free_co_throttle(Qcow2 *q)
{
    /* An error is not this request's: what could not be written is still dirty and the next flush fails. */
    if (G_UNLIKELY(q->dropped.n > MAX_DROPPED || q->free_bytes > MAX_DROPPED_BYTES))
        q2_co_commit(q);
}

bool q2_free_co_reclaim(Qcow2 *q, int ret)
{
    if (G_LIKELY(ret != -ENOSPC) || !q2_free_pending(q))
        return false;
    comutex_co_lock(&q->commit_lock);
    ret = 0;
    /* What is dropped now is written by the first commit and freed by the second, or by the third when requests were in
     * the way; one more for what the first had to free before. */
    for (unsigned i = 0; i < 4 && ret == 0 && q2_free_pending(q); i++) {
        ret = q2_co_commit_locked(q);
        q2_free_co_wait(q);
    }
    comutex_unlock(&q->commit_lock);
    return ret == 0;
}

/* All of @from to the end of @to, without joining anything: @to may be in use. */
static void list_move(Q2FreeList *to, Q2FreeList *from)
{
    if (to->n == 0) {
        Q2FreeList empty = *to;
        *to = *from;
        *from = empty;
        return;
    }
    for (size_t i = 0; i < from->n; i++) {
        Q2Free *item = list_push(to);
        if (item)
            *item = from->items[i];
    }
    from->n = 0;
}

void q2_free_begin(Qcow2 *q)
{
    if (q->grace.n || !q->written.n || q->in_data[!q->phase])
        return;
    list_move(&q->grace, &q->written);
    q->grace_phase = q->phase;
    q->phase = !q->phase;
}

void q2_free_freeze(Qcow2 *q)
{
    list_move(order_left_out("free-late") ? &q->grace : &q->committing,
              &q->dropped); /* to what a commit has left that failed */
    q->free_bytes = 0;
}

void q2_free_written(Qcow2 *q)
{
    list_move(&q->written, &q->committing);
}

int q2_free_co_apply(Qcow2 *q)
{
    int ret = 0;

    if (!q->grace.n || q->in_data[q->grace_phase])
        return 0;
    for (size_t i = 0; i < q->grace.n && ret == 0; i++)
        ret = q2_co_unref(q, q->grace.items[i].offset, q->grace.items[i].bytes, q->grace.items[i].kind);
    q->grace.n = 0; /* after an error the rest are leaks */
    return ret;
}

void q2_free_co_wait(Qcow2 *q)
{
    while ((q->grace.n && q->in_data[q->grace_phase]) || (!q->grace.n && q->written.n && q->in_data[!q->phase]))
        coqueue_co_wait(&q->phase_waiters, NULL);
}
