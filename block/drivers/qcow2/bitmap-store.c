/*
 * Bitmaps from memory into the image: when it is closed, when it becomes read-only, and when one is removed.
 *
 * What the image holds is never changed but for one thing: before anything else is written to an image, all its bitmaps
 * are marked as in use, in place, durably (each flag lies within a sector; some marked and some not is as good as none,
 * since nothing has been written). From then on a crash leaves them inconsistent: nothing is under-reported.
 *
 * Storing is one step from one directory to the next:
 *
 *   1. bits and tables go to newly allocated clusters;
 *   2. a place for the new directory is allocated, and all these refcounts are written in a commit;
 *   3. the directory is written; barrier;
 *   4. the header extension is switched (ext.c); where there was none, its autoclear bit, which says that the
 *      extension counts, is set after that. Where there is none any more the bit has no meaning, and is cleared;
 *   5. what only the old directory led to is freed.
 *
 * So a crash leaves the old bitmaps, in use, or the new ones; or leaks. Storing is the last thing before the node stops
 * writing, so no write comes after 4 that the bitmaps do not know of. When it fails, the image's stay in use.
 *
 * A disk of 0 bytes has no bitmaps: the format has no word for theirs.
 */
#include "block/drivers/qcow2/bitmaps.h"
#include "block/graph/bitmap.h"

/* A new directory on its way. */
typedef struct Store {
    Qcow2 *q;
    GPtrArray *list; /* of Q2Bitmap, borrowed from @made or from q->stored */
    GPtrArray *made; /* owned: those with new tables */
    Q2Run directory; /* n 0: none */
    uint64_t size;   /* bytes of it */
    uint8_t *buf;    /* one cluster */
    bool switching;  /* the header may lead to the new directory */
} Store;

/* ---- clusters --------------------------------------------------------------------------------------------------- */

/* Takes clusters for @bytes bytes, as metadata from now on. On failure nothing was taken. */
static int take_co_new(Qcow2 *q, uint64_t bytes, Q2Run *ret_run)
{
    uint64_t n = div_round_up(bytes, q->cluster_size);
    Q2Run run;
    int ret = q2_co_alloc(q, n, true, &run);

    if (q2_free_co_reclaim(q, ret))
        ret = q2_co_alloc(q, n, true, &run);
    if (ret < 0)
        return ret;
    ret = q2_co_meta_check(q, 0, run.offset, n << q->cluster_bits);
    if (ret == 0 && !q2_meta_reserve(q, n))
        ret = -ENOMEM;
    if (ret < 0) {
        q2_co_unref(q, run.offset, n << q->cluster_bits, Q2_FREE_OTHER);
        return ret;
    }
    q2_meta_add(q, Q2_META_BITMAPS, run.offset, bytes);
    *ret_run = run;
    return 0;
}

/* Gives clusters back that nothing durable refers to. After an error the rest are leaks. */
static int free_co_range(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    uint64_t end = align_up(offset + bytes, q->cluster_size);

    for (; offset < end; offset += q->cluster_size) {
        int ret;
        /* A crafted image could call a table its own that is the L1 table, too: that stays protected. */
        if (q2_meta_kind(q, offset) == Q2_META_BITMAPS)
            q2_meta_remove(q, offset, q->cluster_size);
        ret = q2_co_unref(q, offset, q->cluster_size, Q2_FREE_OTHER);
        if (ret < 0)
            return ret;
    }
    return 0;
}

/* Takes clusters for bits or a table of @bytes bytes, and writes them. On failure nothing was taken. */
static int write_co_new(Qcow2 *q, const void *data, uint64_t bytes, Q2Run *ret_run)
{
    Q2Run run;
    int ret = take_co_new(q, bytes, &run);

    if (ret < 0)
        return ret;
    ret = child_co_pwrite(q->node->file, run.offset, bytes, data, 0);
    if (ret < 0)
        free_co_range(q, run.offset, bytes);
    else
        *ret_run = run;
    return ret;
}

/* Table and bits. */
static int free_co_bitmap(Qcow2 *q, const Q2Bitmap *b)
{
    int ret = 0;

    for (uint32_t i = 0; ret == 0 && i < b->table_size; i++)
        if (b->table[i] & Q2_OFFSET_MASK)
            ret = free_co_range(q, b->table[i] & Q2_OFFSET_MASK, q->cluster_size);
    if (ret == 0 && b->table_offset)
        ret = free_co_range(q, b->table_offset, (uint64_t)b->table_size * 8);
    return ret;
}

/* ---- one bitmap ------------------------------------------------------------------------------------------------- */

/* The bits for [@from, @from + @bytes) of the disk: *@ret_entry is the table's entry for them. */
static int store_co_part(Store *s, const HBitmap *bits, uint64_t from, uint64_t bytes, uint64_t *ret_entry)
{
    size_t size = hbitmap_serialize_size(bits, from, bytes);
    bool dirty;
    Q2Run run;
    int ret;

    if (hbitmap_status(bits, from, bytes, &dirty) == bytes) {
        *ret_entry = dirty ? Q2_BITMAP_ALL_ONES : 0;
        return 0;
    }
    hbitmap_serialize(bits, s->buf, from, bytes);
    memset(s->buf + size, 0, s->q->cluster_size - size);
    ret = write_co_new(s->q, s->buf, s->q->cluster_size, &run);
    if (ret == 0)
        *ret_entry = run.offset;
    return ret;
}

static int store_co_table(Store *s, Q2Bitmap *b)
{
    g_autofree uint64_t *raw = g_try_new(uint64_t, b->table_size);
    Q2Run run;
    int ret;

    if (!raw)
        return -ENOMEM;
    for (uint32_t i = 0; i < b->table_size; i++)
        store_be64(&raw[i], b->table[i]);
    ret = write_co_new(s->q, raw, (uint64_t)b->table_size * 8, &run);
    if (ret == 0)
        b->table_offset = run.offset;
    return ret;
}

/* Writes @bitmap, which becomes one more of s->made. */
static int store_co_bits(Store *s, const Bitmap *bitmap)
{
    Qcow2 *q = s->q;
    g_autoptr(HBitmap) both = bitmap->successor ? bitmap_all_bits(bitmap) : NULL;
    const HBitmap *bits = bitmap->successor ? both : bitmap->bits;
    Q2Bitmap *b = g_new0(Q2Bitmap, 1);
    uint64_t per_cluster = q->cluster_size * 8 * bitmap->granularity, from = 0;
    int ret = 0;

    b->name = g_strdup(bitmap->name);
    b->granularity_bits = ilog2(bitmap->granularity);
    b->flags = bitmap_recording(bitmap) ? Q2_BITMAP_AUTO : 0;
    g_ptr_array_add(s->made, b);
    b->table_size = (uint32_t)q2_bitmap_clusters(q, q->header.size, bitmap->granularity);
    b->table = g_try_new0(uint64_t, b->table_size);
    if (!bits || !b->table || hbitmap_size(bits) != q->header.size) /* there was no memory to resize it */
        return -ENOMEM;
    for (uint32_t i = 0; ret == 0 && from < q->header.size; i++, from += per_cluster)
        ret = store_co_part(s, bits, from, u64_min(per_cluster, q->header.size - from), &b->table[i]);
    return ret == 0 ? store_co_table(s, b) : ret;
}

/* ---- the directory ---------------------------------------------------------------------------------------------- */

static Q2Bitmap *find_stored(const Qcow2 *q, const char *name)
{
    for (guint i = 0; i < q->stored->len; i++) {
        Q2Bitmap *b = g_ptr_array_index(q->stored, i);
        if (!strcmp(b->name, name))
            return b;
    }
    return NULL;
}

/* Not flushed. */
static int autoclear_co_set(Qcow2 *q, uint64_t autoclear)
{
    uint8_t field[8];
    int ret;

    store_be64(field, autoclear);
    ret = q2_co_header_patch(q, Q2_H_AUTOCLEAR, field, sizeof(field));
    if (ret == 0)
        q->header.autoclear = autoclear;
    return ret;
}

static bool failed(const Qcow2 *q, int ret, GError **error)
{
    return ret == 0 || error_set_errno(error, -ret, "Could not store the bitmaps of node '%s'", q->node->name);
}

/* Steps 2 and 3: everything is durable when it returns. */
static int directory_co_write(Store *s, const uint8_t *raw)
{
    Qcow2 *q = s->q;
    int ret = take_co_new(q, s->size, &s->directory);

    if (ret == 0)
        ret = q2_co_commit_counts(q);
    if (ret == 0)
        ret = child_co_pwrite(q->node->file, s->directory.offset, s->size, raw, 0);
    return ret == 0 ? q2_co_barrier(q, "bitmap-directory") : ret;
}

/* The header extension that leads to a directory. */
enum { EXTENSION_BYTES = 24 };

bool q2_co_bitmaps_fit(Node *node, GError **error)
{
    return q2_ext_co_fits(q2_of(node), Q2_EXT_BITMAPS, EXTENSION_BYTES, error);
}

/* Steps 2 to 4. */
static bool directory_co_switch(Store *s, GError **error)
{
    Qcow2 *q = s->q;
    g_autofree uint8_t *raw = q2_bitmaps_directory(s->list, &s->size);
    uint8_t ext[EXTENSION_BYTES] = {0};
    int ret = raw ? 0 : -ENOMEM;

    if (ret == 0 && s->list->len)
        ret = directory_co_write(s, raw);
    if (ret < 0)
        return failed(q, ret, error);
    s->switching = true;
    if (!s->list->len)
        return failed(q, autoclear_co_set(q, q->header.autoclear & ~(uint64_t)Q2_AUTOCLEAR_BITMAPS), error) &&
               q2_ext_co_remove(q, Q2_EXT_BITMAPS, error);
    store_be32(ext, s->list->len);
    store_be64(ext + 8, s->size);
    store_be64(ext + 16, s->directory.offset);
    return q2_ext_co_set(q, Q2_EXT_BITMAPS, ext, sizeof(ext), error) &&
           ((q->header.autoclear & Q2_AUTOCLEAR_BITMAPS) ||
            failed(q, autoclear_co_set(q, q->header.autoclear | Q2_AUTOCLEAR_BITMAPS), error));
}

/* Step 5, and what is in memory: s->list is what the image holds. */
static int directory_co_done(Store *s)
{
    Qcow2 *q = s->q;
    Q2Bitmaps old = q->header.bitmaps;
    g_autoptr(GPtrArray) gone = q2_bitmap_list_new(), before = q->stored, made = g_steal_pointer(&s->made);
    int ret = 0;

    q->stored = q2_bitmap_list_new();
    g_ptr_array_set_free_func(made, NULL);
    g_ptr_array_set_free_func(before, NULL);
    for (guint i = 0; i < s->list->len; i++) {
        Q2Bitmap *b = g_ptr_array_index(s->list, i);
        b->kept = true;
        g_ptr_array_add(q->stored, b);
    }
    for (guint i = 0; i < before->len; i++)
        if (!((Q2Bitmap *)g_ptr_array_index(before, i))->kept)
            g_ptr_array_add(gone, g_ptr_array_index(before, i));
    for (guint i = 0; i < q->stored->len; i++)
        ((Q2Bitmap *)g_ptr_array_index(q->stored, i))->kept = false;
    q->header.bitmaps = (Q2Bitmaps){
        .n = s->list->len,
        .directory_size = s->list->len ? s->size : 0,
        .directory_offset = s->directory.offset,
    };
    for (guint i = 0; ret == 0 && i < gone->len; i++)
        ret = free_co_bitmap(q, g_ptr_array_index(gone, i));
    if (ret == 0 && old.n)
        ret = free_co_range(q, old.directory_offset, old.directory_size);
    return ret;
}

/* Nothing refers to what was made. */
static void store_co_undo(Store *s)
{
    int ret = 0;

    if (s->switching) /* the header may have been written: what it may lead to has to stay */
        return;
    for (guint i = 0; ret == 0 && i < s->made->len; i++)
        if (((Q2Bitmap *)g_ptr_array_index(s->made, i))->table)
            ret = free_co_bitmap(s->q, g_ptr_array_index(s->made, i));
    if (ret == 0 && s->directory.n)
        free_co_range(s->q, s->directory.offset, s->size);
}

static void store_begin(Store *s, Qcow2 *q)
{
    *s = (Store){.q = q, .list = g_ptr_array_new(), .made = q2_bitmap_list_new()};
    s->buf = aio_buf_get(q->node->loop, q->cluster_size);
}

/* The rest of a store whose bitmaps have been made; frees @s. */
static bool store_co_end(Store *s, bool ok, GError **error)
{
    ok = ok && directory_co_switch(s, error);
    if (!ok)
        store_co_undo(s);
    else if (directory_co_done(s) < 0) /* what could not be freed has leaked, and has been reported as damage */
        g_printerr("storage-daemon: clusters of old bitmaps of node '%s' could not be freed\n", s->q->node->name);
    aio_buf_put(s->q->node->loop, s->buf, s->q->cluster_size);
    g_ptr_array_unref(s->list);
    if (s->made)
        g_ptr_array_unref(s->made);
    return ok;
}

/* ---- storing all ------------------------------------------------------------------------------------------------ */

static bool is_changed(const Qcow2 *q)
{
    bool unsaved = false;
    guint n = 0;

    for (GList *l = q->node->bitmaps.head; l; l = l->next) {
        const Bitmap *bitmap = l->data;
        n += bitmap->persistent && (q->header.size || bitmap->inconsistent);
        unsaved |= bitmap->persistent && bitmap->unsaved;
    }
    return unsaved || n != q->stored->len || (n && q->wrote);
}

/* Step 1 for one bitmap of the node. */
static bool store_co_bitmap(Store *s, const Bitmap *bitmap, GError **error)
{
    int ret;

    if (bitmap->inconsistent) { /* stays as it is, in use */
        Q2Bitmap *old = find_stored(s->q, bitmap->name);
        if (old)
            g_ptr_array_add(s->list, old);
        return true;
    }
    if (!s->q->header.size) { /* its table would have no entry, which nobody takes */
        g_printerr("storage-daemon: bitmap '%s' of node '%s' is not stored, because the disk has no bytes\n",
                   bitmap->name, s->q->node->name);
        return true;
    }
    if (!q2_bitmap_check_size(s->q, s->q->header.size, bitmap->granularity, error)) {
        g_prefix_error(error, "Could not store bitmap '%s' of node '%s': ", bitmap->name, s->q->node->name);
        return false;
    }
    ret = store_co_bits(s, bitmap);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not store bitmap '%s' of node '%s'", bitmap->name, s->q->node->name);
    g_ptr_array_add(s->list, g_ptr_array_index(s->made, s->made->len - 1));
    return true;
}

/* The persistent bitmaps of the node, busy: commands leave them alone meanwhile. */
static GPtrArray *hold_bitmaps(Node *node)
{
    GPtrArray *held = g_ptr_array_new();

    for (GList *l = node->bitmaps.head; l; l = l->next) {
        Bitmap *bitmap = l->data;
        if (!bitmap->persistent)
            continue;
        bitmap->busy++;
        g_ptr_array_add(held, bitmap);
    }
    return held;
}

static void let_go(GPtrArray *held, bool stored)
{
    for (guint i = 0; i < held->len; i++) {
        Bitmap *bitmap = g_ptr_array_index(held, i);
        bitmap->busy--;
        bitmap->unsaved &= !stored;
    }
    g_ptr_array_unref(held);
}

bool q2_bitmaps_co_store(Qcow2 *q, GError **error)
{
    GPtrArray *held;
    Store s;
    bool ok;

    if (!is_changed(q))
        return true;
    if (!failed(q, q2_co_before_first_write(q), error))
        return false;
    comutex_co_lock(&q->bitmap_lock);
    held = hold_bitmaps(q->node);
    store_begin(&s, q);
    ok = s.buf || failed(q, -ENOMEM, error);
    for (guint i = 0; ok && i < held->len; i++)
        ok = store_co_bitmap(&s, g_ptr_array_index(held, i), error);
    ok = store_co_end(&s, ok, error);
    let_go(held, ok);
    comutex_unlock(&q->bitmap_lock);
    if (ok)
        q->wrote = false; /* should anything be written after all, they are marked again first */
    return ok;
}

bool q2_co_remove_bitmap(Node *node, const char *name, GError **error)
{
    Qcow2 *q = q2_of(node);
    Q2Bitmap *gone;
    bool ok = true;

    if (!find_stored(q, name))
        return true;
    if (!failed(q, q2_co_before_first_write(q), error))
        return false;
    comutex_co_lock(&q->bitmap_lock);
    gone = find_stored(q, name);
    if (gone) {
        Store s;
        store_begin(&s, q);
        for (guint i = 0; i < q->stored->len; i++)
            if (g_ptr_array_index(q->stored, i) != gone)
                g_ptr_array_add(s.list, g_ptr_array_index(q->stored, i));
        ok = store_co_end(&s, true, error);
    }
    comutex_unlock(&q->bitmap_lock);
    return ok;
}

/* ---- in use ----------------------------------------------------------------------------------------------------- */

int q2_bitmaps_co_mark(Qcow2 *q)
{
    g_autoptr(GPtrArray) marked = g_ptr_array_new();
    g_autofree uint8_t *raw = NULL;
    uint64_t size;
    int ret = 0;

    comutex_co_lock(&q->bitmap_lock);
    for (guint i = 0; i < q->stored->len; i++) {
        Q2Bitmap *b = g_ptr_array_index(q->stored, i);
        if (b->flags & Q2_BITMAP_IN_USE)
            continue;
        b->flags |= Q2_BITMAP_IN_USE;
        g_ptr_array_add(marked, b);
    }
    if (marked->len) {
        raw = q2_bitmaps_directory(q->stored, &size);
        ret = raw ? q2_co_meta_check(q, Q2_META_BITMAPS, q->header.bitmaps.directory_offset, size) : -ENOMEM;
        if (ret == 0)
            ret = child_co_pwrite(q->node->file, q->header.bitmaps.directory_offset, size, raw, 0);
        if (ret == 0)
            ret = q2_co_barrier(q, "bitmap-in-use");
    }
    for (guint i = 0; ret < 0 && i < marked->len; i++)
        ((Q2Bitmap *)g_ptr_array_index(marked, i))->flags &= ~(uint32_t)Q2_BITMAP_IN_USE;
    comutex_unlock(&q->bitmap_lock);
    return ret;
}

int q2_co_touch_bitmaps(Node *node)
{
    return q2_of(node)->wrote ? 0 : q2_co_before_first_write(q2_of(node));
}
