/*
 * Taking, deleting and applying internal snapshots.
 *
 * Guarantees: each is one switch from one whole picture of the image to another (shadow.c): after a crash at any point
 * the image is as before or as after, with leaked clusters at worst, and when something fails, a reference count that
 * cannot go higher included, nothing has happened. The node is drained: no request sees the change from within.
 *
 *   create: all that the active L1 table leads to gets one reference more. The snapshot and the disk have L1 tables of
 *           their own, and share L2 tables in which no cluster is marked as the disk's alone.
 *   delete: all that the snapshot's L1 table leads to loses one. L2 tables of the disk are written anew where clusters
 *           are its own again.
 *   apply:  all that the snapshot's L1 table leads to gets one more, and all that the disk's led to loses one. The
 *           disk takes the snapshot's size in the same write. Saved machine state, which lies behind the end of the
 *           disk in a snapshot's tables, stays there.
 */
#include "block/drivers/qcow2/snapshot.h"

#define NAME_MAX_BYTES 255

/* How a failed change is told. */
static bool change_failed(const Qcow2 *q, int ret, const char *what, const char *name, GError **error)
{
    if (ret == -EEXIST)
        return error_set(error, "Snapshot with name '%s' already exists on device '%s'", name, q->node->name);
    if (ret == -ERANGE)
        return error_set(error,
                         "Failed to %s snapshot '%s' of node '%s': a cluster cannot have more than %" G_GUINT64_FORMAT
                         " references with %u bits for each count",
                         what, name, q->node->name, UINT64_MAX >> (64 - (1u << q->header.refcount_order)),
                         1u << q->header.refcount_order);
    return error_set_errno(error, -ret, "Failed to %s snapshot '%s' of node '%s'", what, name, q->node->name);
}

static bool check_use(Qcow2 *q, GError **error)
{
    if (q->corrupt)
        return error_set(error, "Image is corrupt");
    if (!node_writable(q->node))
        return error_set(error, "Device '%s' is read only", q->node->name);
    if (q2_has_data_file(q))
        return error_set(error, "Node '%s' has an external data file, which has no internal snapshots", q->node->name);
    return true;
}

/* A change under way. */
typedef struct Change {
    Q2Shadow shadow;
    Q2Picture picture;
} Change;

/* How many clusters a change takes at most: the snapshot table, two L1 tables, all L2 tables of one. */
static uint64_t clusters_at_most(const Qcow2 *q, uint64_t l1_size)
{
    uint64_t table = q->snapshots_bytes + (uint64_t)q->n_snapshots * 32 + 1024;

    return div_round_up(table, q->cluster_size) + 2 * div_round_up(l1_size * 8, q->cluster_size) + l1_size;
}

/* The active picture as it is, with copies of the tables that will differ. */
static int picture_init(const Qcow2 *q, Q2Picture *p, uint32_t l1_size, uint32_t n_snapshots)
{
    *p = (Q2Picture){
        .size = q->header.size,
        .l1 = g_try_new0(uint64_t, (size_t)l1_size + 1),
        .l1_size = l1_size,
        .l1_offset = q->header.l1_offset,
        .nb_snapshots = n_snapshots,
        .snapshots_offset = q->header.snapshots_offset,
        .snapshots_bytes = q->snapshots_bytes,
        .snapshots = g_try_new0(Q2Snapshot, (size_t)n_snapshots + 1),
    };
    if (!p->l1 || !p->snapshots)
        return -ENOMEM;
    memcpy(p->l1, q->l1, (size_t)MIN(l1_size, q->l1_size) * 8);
    if (q->n_snapshots)
        memcpy(p->snapshots, q->snapshots, MIN(n_snapshots, q->n_snapshots) * sizeof(Q2Snapshot));
    return 0;
}

/* Makes ready for a picture with @l1_size entries in the disk's L1 table and @more snapshots. End it in any case. */
static int change_co_begin(Change *c, Qcow2 *q, uint32_t l1_size, int more)
{
    int ret = q2_co_before_first_write(q);

    *c = (Change){0};
    if (ret == 0)
        ret = q2_shadow_co_begin(&c->shadow, q, clusters_at_most(q, MAX(l1_size, q->l1_size)));
    return ret == 0 ? picture_init(q, &c->picture, l1_size, (uint32_t)((int64_t)q->n_snapshots + more)) : ret;
}

/* The snapshots' strings are not the picture's own. */
static void change_co_end(Change *c)
{
    g_free(c->picture.l1);
    g_free(c->picture.snapshots);
    q2_shadow_co_end(&c->shadow);
}

/* Writes the picture's snapshot table and lets the old one go. */
static int picture_co_store_table(Q2Shadow *s, Q2Picture *p)
{
    Qcow2 *q = s->q;
    size_t size = 0;
    g_autofree uint8_t *raw = q2_snapshots_store(p->snapshots, p->nb_snapshots, &size, NULL);
    int ret = raw ? q2_shadow_co_store(s, raw, size, &p->snapshots_offset) : -EFBIG;

    if (ret == 0 && q->snapshots_bytes)
        ret = q2_shadow_co_drop(s, q->header.snapshots_offset, q->snapshots_bytes, Q2_FREE_SNAPSHOT);
    p->snapshots_bytes = size;
    return ret;
}

/* Writes the picture's L1 table and lets the old one go. */
static int picture_co_store_l1(Q2Shadow *s, Q2Picture *p)
{
    Qcow2 *q = s->q;
    int ret = q2_shadow_co_store_l1(s, p->l1, p->l1_size, &p->l1_offset);

    if (ret == 0 && q->l1_size)
        ret = q2_shadow_co_drop(s, q->header.l1_offset, (uint64_t)q->l1_size * 8, Q2_FREE_OTHER);
    return ret;
}

/* ---- create ----------------------------------------------------------------------------------------------------- */

/* One above the highest id that is a number. */
static char *new_id(const Qcow2 *q)
{
    uint64_t max = 0;

    for (uint32_t i = 0; i < q->n_snapshots; i++) {
        uint64_t id = g_ascii_strtoull(q->snapshots[i].id, NULL, 10);
        max = id == UINT64_MAX ? max : u64_max(max, id);
    }
    return g_strdup_printf("%" G_GUINT64_FORMAT, max + 1);
}

static int create_co_draw(Change *c, Q2Snapshot *new)
{
    Q2Shadow *s = &c->shadow;
    Q2Picture *p = &c->picture;
    int ret = q2_shadow_co_ref_tables(s, p->l1, p->l1_size);

    if (ret == 0)
        ret = q2_shadow_co_fix_flags(s, p->l1, p->l1_size, 2);
    if (ret == 0)
        ret = q2_shadow_co_store_l1(s, p->l1, p->l1_size, &new->l1_offset);
    if (ret == 0)
        ret = picture_co_store_l1(s, p);
    return ret == 0 ? picture_co_store_table(s, p) : ret;
}

static int create_co_locked(Change *c, Qcow2 *q, const SnapshotNew *what)
{
    Q2Snapshot *new = &c->picture.snapshots[q->n_snapshots];
    int ret;

    if (q2_snapshot_find(q, NULL, what->name))
        return -EEXIST;
    *new = (Q2Snapshot){
        .l1_size = q->l1_size,
        .id = new_id(q),
        .name = g_strdup(what->name),
        .date_sec = (uint32_t)(what->date_ns / 1000000000),
        .date_nsec = (uint32_t)(what->date_ns % 1000000000),
        .size = q->header.size,
        .icount = UINT64_MAX,
    };
    ret = create_co_draw(c, new);
    if (ret == 0)
        ret = q2_shadow_co_switch(&c->shadow, &c->picture);
    if (c->picture.snapshots) /* nothing has taken them over */
        q2_snapshot_clear(new);
    return ret;
}

bool q2_co_snapshot_create(Node *node, const SnapshotNew *what, GError **error)
{
    Qcow2 *q = q2_of(node);
    Change c;
    int ret;

    if (!check_use(q, error))
        return false;
    if (strlen(what->name) > NAME_MAX_BYTES)
        return error_set(error, "Snapshot name '%s' is too long, the limit is %d bytes", what->name, NAME_MAX_BYTES);
    if (q->n_snapshots >= Q2_MAX_SNAPSHOTS)
        return error_set(error, "Node '%s' has %" G_GUINT32_FORMAT " internal snapshots already, which is the limit",
                         node->name, q->n_snapshots);
    ret = change_co_begin(&c, q, q->l1_size, 1);
    if (ret == 0)
        ret = create_co_locked(&c, q, what);
    change_co_end(&c);
    return ret == 0 || change_failed(q, ret, "create", what->name, error);
}

/* ---- delete ----------------------------------------------------------------------------------------------------- */

static bool find_snapshot(Qcow2 *q, const char *id, const char *name, Q2Snapshot **ret, GError **error)
{
    *ret = q2_snapshot_find(q, id, name);
    return *ret || error_set(error, "Snapshot with id '%s' and name '%s' does not exist on device '%s'",
                             id ? id : "null", name ? name : "null", q->node->name);
}

/* The snapshot that was meant, and its L1 table, now that nobody else can change either: somebody may have before. */
static int change_co_find(Qcow2 *q, const char *id, const char *name, Q2Snapshot **ret, uint64_t **ret_l1)
{
    *ret = q2_snapshot_find(q, id, name);
    if (!*ret)
        return -ENOENT;
    return q2_snapshot_co_l1(q, *ret, ret_l1, NULL) ? 0 : -EIO;
}

static int delete_co_locked(Change *c, Qcow2 *q, uint32_t index, const uint64_t *l1)
{
    Q2Shadow *s = &c->shadow;
    Q2Picture *p = &c->picture;
    Q2Snapshot gone = q->snapshots[index];
    int ret = q2_shadow_co_drop_tables(s, l1, gone.l1_size, Q2_FREE_SNAPSHOT);

    if (ret == 0 && gone.l1_size)
        ret = q2_shadow_co_drop(s, gone.l1_offset, (uint64_t)gone.l1_size * 8, Q2_FREE_SNAPSHOT);
    if (ret == 0)
        ret = q2_shadow_co_fix_flags(s, p->l1, p->l1_size, 1);
    if (ret == 0 && memcmp(p->l1, q->l1, (size_t)q->l1_size * 8) != 0)
        ret = picture_co_store_l1(s, p);
    for (uint32_t i = index; i < p->nb_snapshots; i++)
        p->snapshots[i] = q->snapshots[i + 1];
    if (ret == 0)
        ret = picture_co_store_table(s, p);
    if (ret == 0)
        ret = q2_shadow_co_switch(s, p);
    if (!p->snapshots) /* it has happened */
        q2_snapshot_clear(&gone);
    return ret;
}

bool q2_co_snapshot_delete(Node *node, const char *id, const char *name, GError **error)
{
    Qcow2 *q = q2_of(node);
    g_autofree uint64_t *l1 = NULL;
    Q2Snapshot *snapshot;
    Change c;
    int ret;

    if (!check_use(q, error) || !find_snapshot(q, id, name, &snapshot, error) ||
        !q2_snapshot_check_l1(q, snapshot, error))
        return false;
    g_autofree char *title = g_strdup(snapshot->name), *exact = g_strdup(snapshot->id);
    ret = change_co_begin(&c, q, q->l1_size, -1);
    if (ret == 0)
        ret = change_co_find(q, exact, title, &snapshot, &l1);
    if (ret == 0)
        ret = delete_co_locked(&c, q, (uint32_t)(snapshot - q->snapshots), l1);
    change_co_end(&c);
    return ret == 0 || change_failed(q, ret, "delete", title, error);
}

/* ---- apply ------------------------------------------------------------------------------------------------------ */

static uint64_t l1_need(const Qcow2 *q, uint64_t size)
{
    return size ? ((size - 1) >> (q->l2_bits + q->cluster_bits)) + 1 : 0;
}

/* @l1: the snapshot's. First what the disk had is given up, then the snapshot's is taken: counts go no higher than they
 * have to, and what both have keeps one at least. */
static int apply_co_locked(Change *c, Qcow2 *q, const Q2Snapshot *snapshot, const uint64_t *l1)
{
    Q2Shadow *s = &c->shadow;
    Q2Picture *p = &c->picture;
    int ret = q2_shadow_co_drop_tables(s, q->l1, q->l1_size, Q2_FREE_OTHER);

    memset(p->l1, 0, (size_t)p->l1_size * 8);
    memcpy(p->l1, l1, (size_t)MIN(p->l1_size, snapshot->l1_size) * 8);
    p->size = snapshot->size;
    if (ret == 0)
        ret = q2_shadow_co_ref_tables(s, p->l1, p->l1_size);
    if (ret == 0)
        ret = q2_shadow_co_fix_flags(s, p->l1, p->l1_size, 1);
    if (ret == 0)
        ret = picture_co_store_l1(s, p);
    return ret == 0 ? q2_shadow_co_switch(s, p) : ret;
}

bool q2_snapshot_size(Node *node, const char *id, const char *name, uint64_t *ret, GError **error)
{
    Q2Snapshot *snapshot;

    if (!find_snapshot(q2_of(node), id, name, &snapshot, error))
        return false;
    *ret = snapshot->size;
    return true;
}

bool q2_co_snapshot_apply(Node *node, const char *id, const char *name, uint64_t size, GError **error)
{
    Qcow2 *q = q2_of(node);
    g_autofree uint64_t *l1 = NULL;
    Q2Snapshot *snapshot;
    uint64_t need;
    Change c;
    int ret;

    if (!check_use(q, error) || !find_snapshot(q, id, name, &snapshot, error) ||
        !q2_snapshot_check_l1(q, snapshot, error))
        return false;
    need = l1_need(q, size);
    if (snapshot->size != size)
        return error_set(error, "Snapshot '%s' of node '%s' is another one than a moment ago", snapshot->name,
                         node->name);
    if (size > (uint64_t)INT64_MAX - q->cluster_size || need > Q2_MAX_L1_BYTES / 8)
        return error_set(error,
                         "Snapshot '%s' of node '%s' has a disk size of %" G_GUINT64_FORMAT ", which is too large",
                         snapshot->name, node->name, size);
    if (size != q->header.size && !q2_bitmaps_allow_size(q, size, error))
        return false;
    g_autofree char *title = g_strdup(snapshot->name), *exact = g_strdup(snapshot->id);
    ret = change_co_begin(&c, q, (uint32_t)need, 0);
    if (ret == 0)
        ret = change_co_find(q, exact, title, &snapshot, &l1);
    if (ret == 0)
        ret = snapshot->size == size ? apply_co_locked(&c, q, snapshot, l1) : -ENOENT;
    change_co_end(&c);
    return ret == 0 || change_failed(q, ret, "apply", title, error);
}
