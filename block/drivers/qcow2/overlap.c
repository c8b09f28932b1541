/*
 * Where the metadata lies, so that no write hits it by accident, and what happens when damage is found.
 *
 * Guarantees: before data or metadata is written somewhere, a set of all metadata clusters is asked, one probe per
 * cluster; a cluster has one owner, and only writes of that owner's kind pass. A damaged image is so not made worse:
 * the write fails, the image is marked corrupt (durably, before the error is reported) and no more I/O reaches it.
 */
#include "block/drivers/qcow2/qcow2.h"
#include "block/graph/device.h"
#include "qapi/events.h"

const char *q2_meta_name(unsigned kind)
{
    static const char *const names[Q2_META__MAX] = {
        [Q2_META_HEADER] = "qcow2_header",
        [Q2_META_L1] = "active L1 table",
        [Q2_META_L2] = "active L2 table",
        [Q2_META_REFTABLE] = "refcount table",
        [Q2_META_REFBLOCK] = "refcount block",
        [Q2_META_SNAPSHOTS] = "snapshot table",
        [Q2_META_INACTIVE_L1] = "inactive L1 table",
        [Q2_META_INACTIVE_L2] = "inactive L2 table",
        [Q2_META_BITMAPS] = "bitmap directory",
        [Q2_META_CRYPTO] = "encryption header",
    };
    return kind < Q2_META__MAX && names[kind] ? names[kind] : "data";
}

static inline uint64_t slot_of(const Q2MetaSet *set, uint64_t key)
{
    return (key * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - ilog2(set->room));
}

static Q2MetaSlot *slot_find(const Q2MetaSet *set, uint64_t key)
{
    uint64_t i = slot_of(set, key);

    while (set->slots[i].key && set->slots[i].key != key)
        i = (i + 1) & (set->room - 1);
    return &set->slots[i];
}

bool q2_meta_reserve(Qcow2 *q, uint64_t n)
{
    Q2MetaSet *set = &q->meta, grown = *set;

    if (set->room && (set->used + n) * 2 <= set->room)
        return true;
    grown.room = UINT64_C(2) << ilog2((set->used + n) * 2 + 64);
    grown.slots = g_try_new0(Q2MetaSlot, grown.room);
    if (!grown.slots)
        return false;
    for (uint64_t i = 0; i < set->room; i++)
        if (set->slots[i].key)
            *slot_find(&grown, set->slots[i].key) = set->slots[i];
    g_free(set->slots);
    *set = grown;
    return true;
}

bool q2_meta_init(Qcow2 *q, GError **error)
{
    q->meta = (Q2MetaSet){.mask = q->overlap_mask};
    if (!q2_meta_reserve(q, 64))
        return error_set(error, "Could not allocate the table of qcow2 metadata");
    return true;
}

void q2_meta_free(Qcow2 *q)
{
    g_clear_pointer(&q->meta.slots, g_free);
}

void q2_meta_add(Qcow2 *q, unsigned kind, uint64_t offset, uint64_t bytes)
{
    uint64_t ci = offset >> q->cluster_bits, end = (offset + bytes + q->cluster_size - 1) >> q->cluster_bits;

    for (; ci < end; ci++) {
        Q2MetaSlot *slot = slot_find(&q->meta, ci + 1);
        if (slot->key)
            continue;
        *slot = (Q2MetaSlot){.key = ci + 1, .kind = (uint8_t)kind};
        q->meta.used++;
        g_assert(q->meta.used * 2 <= q->meta.room);
    }
}

void q2_meta_add_table(Qcow2 *q, unsigned kind, uint64_t offset)
{
    if (offset && is_aligned(offset, q->cluster_size) && offset < Q2_MAX_HOST)
        q2_meta_add(q, kind, offset, q->cluster_size);
}

/* Linear probing without gravestones: what comes behind the hole moves up where it may. */
static void slot_remove(Q2MetaSet *set, Q2MetaSlot *slot)
{
    uint64_t hole = (uint64_t)(slot - set->slots), i = hole;

    for (;;) {
        i = (i + 1) & (set->room - 1);
        if (!set->slots[i].key)
            break;
        uint64_t home = slot_of(set, set->slots[i].key);
        if (((i - home) & (set->room - 1)) >= ((i - hole) & (set->room - 1))) {
            set->slots[hole] = set->slots[i];
            hole = i;
        }
    }
    set->slots[hole].key = 0;
    set->used--;
}

void q2_meta_remove(Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    uint64_t ci = offset >> q->cluster_bits, end = (offset + bytes + q->cluster_size - 1) >> q->cluster_bits;

    for (; ci < end; ci++) {
        Q2MetaSlot *slot = slot_find(&q->meta, ci + 1);
        if (slot->key)
            slot_remove(&q->meta, slot);
    }
}

unsigned q2_meta_find(const Qcow2 *q, uint64_t offset, uint64_t bytes)
{
    uint64_t ci = offset >> q->cluster_bits, end = (offset + bytes + q->cluster_size - 1) >> q->cluster_bits;

    for (; ci < end; ci++) {
        const Q2MetaSlot *slot = slot_find(&q->meta, ci + 1);
        if (slot->key && (q->meta.mask >> slot->kind & 1))
            return slot->kind;
    }
    return 0;
}

unsigned q2_meta_kind(const Qcow2 *q, uint64_t offset)
{
    const Q2MetaSlot *slot = slot_find(&q->meta, (offset >> q->cluster_bits) + 1);

    return slot->key ? slot->kind : 0;
}

int q2_co_meta_check(Qcow2 *q, unsigned kind, uint64_t offset, uint64_t bytes)
{
    uint64_t ci = offset >> q->cluster_bits, end = (offset + bytes + q->cluster_size - 1) >> q->cluster_bits;

    if (G_UNLIKELY(q->corrupt))
        return -EIO;
    for (; ci < end; ci++) {
        const Q2MetaSlot *slot = slot_find(&q->meta, ci + 1);
        if (G_UNLIKELY(slot->key && slot->kind != kind && (q->meta.mask >> slot->kind & 1)))
            return q2_co_corrupt(q, (int64_t)offset, (int64_t)bytes,
                                 "Preventing invalid write on %s (overlaps with %s)", kind ? "metadata" : "data",
                                 q2_meta_name(slot->kind));
    }
    return 0;
}

typedef struct DeviceOf {
    const Node *node;
    const char *id;
} DeviceOf;

static void device_of(Device *device, void *opaque)
{
    DeviceOf *of = opaque;
    Node *node = port_node(device->port);

    if (node && node_skip_implicit(node) == of->node)
        of->id = device->id;
}

static void emit_corrupted(Qcow2 *q, const char *msg, int64_t offset, int64_t size, bool fatal)
{
    DeviceOf of = {.node = q->node, .id = ""};

    graph_foreach_device(q->node->graph, device_of, &of);
    BlockImageCorruptedEvent event = {
        .device = (char *)of.id,
        .node_name = q->node->name,
        .msg = (char *)msg,
        .has_offset = offset >= 0,
        .offset = offset,
        .has_size = offset >= 0,
        .size = size,
        .fatal = fatal,
    };
    qapi_emit_block_image_corrupted(&event);
}

int q2_co_corrupt(Qcow2 *q, int64_t offset, int64_t size, const char *fmt, ...)
{
    bool fatal = node_writable(q->node);
    g_autofree char *msg = NULL;
    va_list args;

    if (q->corrupt || (q->reported && !fatal))
        return -EIO;
    va_start(args, fmt);
    msg = g_strdup_vprintf(fmt, args);
    va_end(args);
    q->reported = true;
    if (fatal) {
        q->corrupt = true; /* before anything yields: nobody goes on meanwhile */
        g_printerr("qcow2: Marking image as corrupt: %s; further corruption events will be suppressed\n", msg);
        if (q2_co_set_corrupt(q) < 0)
            g_printerr("qcow2: node '%s' could not be marked as corrupt\n", q->node->name);
    } else {
        g_printerr("qcow2: Image is corrupt: %s; further non-fatal corruption events will be suppressed\n", msg);
    }
    emit_corrupted(q, msg, offset, size, fatal);
    return -EIO;
}
