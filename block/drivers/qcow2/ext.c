/*
 * Changing header extensions of an image that is in use.
 *
 * Extensions follow the header one after the other, up to an end mark; behind it, or at the end of the cluster, stands
 * the backing file's name. None of them ever moves. Guarantees: each step below is durable before the next, and is
 * within one 512-byte sector or touches only what nothing refers to. So after a crash the image has the old extension
 * or the new one, and all others. For a moment it may have both: of two of a type the last one counts, which is the new
 * one where that matters (see below).
 *
 * Setting: 1. where the old extension has room for the new one within one sector, it is overwritten, and that is all.
 * 2. Otherwise the new data is written to where nobody looks: into a filler (an extension that means nothing to
 * anybody, left behind by an earlier change), or behind the end mark, with a new end mark; a backing file's name that
 * is in the way is first copied to the cluster's end, then its offset changes. 3. The eight bytes of the new
 * extension's type and length. 4. The old one becomes a filler, or part of what follows the end mark.
 *
 * In 3, a filler may lie in front of the old extension. Then the old one counts until 4, which comes to the same: each
 * of the two is whole. Removing is 4 alone.
 */
#include "block/drivers/qcow2/qcow2.h"

#define EXT_FILLER UINT32_C(0x66696c6c)
#define SECTOR     512

/* Where an extension begins (0: there is none) and how many bytes of data there is room for. */
typedef struct Slot {
    size_t at, room;
} Slot;

typedef struct Edit {
    Qcow2 *q;
    uint8_t *cluster; /* the first one, kept as it stands in the image */
    size_t size;
    size_t name, name_len; /* of the backing file; 0: none */
    size_t limit;          /* extensions end here */
    size_t end;            /* of the end mark; 0: there is none */
    uint32_t type;         /* what is to be changed */
    bool dry;              /* only to see whether it can be: nothing is written */
    Slot old;
} Edit;

static int write_co_step(Edit *e, size_t offset, const void *bytes, size_t size)
{
    int ret = e->dry ? 0 : child_co_pwrite(e->q->node->file, offset, size, bytes, 0);

    if (ret == 0 && !e->dry)
        ret = q2_co_barrier(e->q, "extension");
    if (ret == 0)
        memcpy(e->cluster + offset, bytes, size);
    return ret;
}

static size_t slot_end(const Slot *slot)
{
    return slot->at + 8 + slot->room;
}

/* The extension at @at; false at the end mark, and where there is none. */
static bool slot_at(const Edit *e, size_t at, uint32_t *ret_type, Slot *ret)
{
    if (at + 8 > e->limit)
        return false;
    *ret_type = load_be32(e->cluster + at);
    *ret = (Slot){.at = at, .room = align_up(load_be32(e->cluster + at + 4), 8)};
    return *ret_type != 0 && ret->room <= e->limit - at - 8;
}

/* Finds the old extension (the last one of the type) and the end mark. */
static void edit_scan(Edit *e)
{
    size_t at = e->q->header.header_length;
    uint32_t type;
    Slot slot;

    e->name = (size_t)u64_min(load_be64(e->cluster + 8), e->size);
    e->name_len = e->name ? (size_t)u64_min(load_be32(e->cluster + 16), e->size - e->name) : 0;
    e->limit = e->name ? e->name : e->size;
    e->old = (Slot){0};
    for (; slot_at(e, at, &type, &slot); at = slot_end(&slot))
        if (type == e->type)
            e->old = slot;
    e->end = at + 8 <= e->limit && load_be32(e->cluster + at) == 0 ? at : 0;
}

/* The first extension of @type with room for @room bytes, alone or with another filler behind it. */
static Slot find_slot(const Edit *e, uint32_t want, size_t room)
{
    uint32_t type;
    Slot slot;

    for (size_t at = e->q->header.header_length; slot_at(e, at, &type, &slot); at = slot_end(&slot))
        if (type == want && (slot.room == room || slot.room >= room + 8))
            return slot;
    return (Slot){0};
}

/* A backing file's name that ends the room there is moves to the cluster's end, when that helps. */
static int name_co_move(Edit *e, size_t room)
{
    size_t to = align_down(e->size - e->name_len, 8);
    g_autofree uint8_t *name = NULL;
    uint8_t field[8];
    int ret;

    if (!e->name || !e->end || to < e->name + e->name_len || to < e->end + 8 + room + 8)
        return 0;
    name = g_memdup2(e->cluster + e->name, e->name_len);
    ret = name ? write_co_step(e, to, name, e->name_len) : 0; /* a place without a name */
    store_be64(field, to);
    if (ret == 0)
        ret = write_co_step(e, 8, field, sizeof(field));
    edit_scan(e);
    return ret;
}

/* An extension becomes a filler, one with its neighbours, or the end when nothing else follows. */
static int slot_co_retire(Edit *e, const Slot *slot)
{
    size_t start = 0, end = slot_end(slot);
    uint8_t head[8] = {0};
    uint32_t type;
    Slot next;

    for (size_t at = e->q->header.header_length; slot_at(e, at, &type, &next); at = slot_end(&next)) {
        if (at > slot->at && type != EXT_FILLER)
            break;
        if (at != slot->at && type != EXT_FILLER)
            start = 0;
        else if (!start)
            start = at;
        end = MAX(end, slot_end(&next));
    }
    if (end != e->end) {
        store_be32(head, EXT_FILLER);
        store_be32(head + 4, (uint32_t)(end - start - 8));
    }
    return write_co_step(e, start, head, sizeof(head));
}

/* All of the type but the one at @keep, from the first on, so that the last one counts to the end. */
static int edit_co_retire_others(Edit *e, size_t keep)
{
    size_t at = e->q->header.header_length;
    uint32_t type;
    Slot slot;
    int ret = 0;

    edit_scan(e);
    for (; ret == 0 && slot_at(e, at, &type, &slot); at = slot_end(&slot))
        if (type == e->type && at != keep)
            ret = slot_co_retire(e, &slot);
    return ret;
}

/* Where the new extension goes, as it is. Slot.at 0: there is no room. */
static Slot place_for(const Edit *e, size_t room)
{
    Slot slot = find_slot(e, EXT_FILLER, room);

    if (!slot.at && e->end && e->end + 8 + room + 8 <= e->limit)
        slot = (Slot){.at = e->end, .room = room};
    return slot;
}

/* The same, after making room where there is none. */
static int edit_co_find_room(Edit *e, size_t room, Slot *ret)
{
    Slot features;
    int r = 0;

    *ret = place_for(e, room);
    if (!ret->at)
        r = name_co_move(e, room);
    if (r == 0 && !ret->at)
        *ret = place_for(e, room);
    if (r < 0 || ret->at)
        return r;
    /* Names of features only serve error messages. */
    features = find_slot(e, Q2_EXT_FEATURES, room);
    if (features.at)
        r = slot_co_retire(e, &features);
    edit_scan(e);
    *ret = place_for(e, room);
    return r;
}

/* Steps 2 to 4. */
static int edit_co_place(Edit *e, const void *data, uint32_t len, bool *ret_no_room)
{
    size_t room = align_up(len, 8), size = room;
    Slot slot = {0};
    g_autofree uint8_t *inside = g_malloc0(room + 8); /* the end mark is zeroes, too */
    uint8_t head[8];
    int ret = edit_co_find_room(e, room, &slot);

    *ret_no_room = ret == 0 && !slot.at;
    if (ret < 0 || !slot.at)
        return ret;
    if (len)
        memcpy(inside, data, len);
    if (slot.at == e->end) {
        size += 8;
    } else if (slot.room > room) {
        store_be32(inside + room, EXT_FILLER);
        store_be32(inside + room + 4, (uint32_t)(slot.room - room - 8));
        size += 8;
    }
    store_be32(head, e->type);
    store_be32(head + 4, len);
    if (size)
        ret = write_co_step(e, slot.at + 8, inside, size);
    if (ret == 0)
        ret = write_co_step(e, slot.at, head, sizeof(head));
    return ret == 0 ? edit_co_retire_others(e, slot.at) : ret;
}

/* Step 1; false where it cannot be done. */
static bool edit_co_in_place(Edit *e, const void *data, uint32_t len, int *ret)
{
    size_t room = align_up(len, 8), at = e->old.at;
    g_autofree uint8_t *bytes = g_malloc0(room + 8);

    if (!at || !room || e->old.room != room)
        return false;
    store_be32(bytes, e->type);
    store_be32(bytes + 4, len);
    memcpy(bytes + 8, data, len);
    if (at / SECTOR == (at + 8 + room - 1) / SECTOR)
        *ret = write_co_step(e, at, bytes, room + 8);
    else if (load_be32(e->cluster + at + 4) == len && (at + 8) / SECTOR == (at + 8 + room - 1) / SECTOR)
        *ret = write_co_step(e, at + 8, bytes + 8, room);
    else
        return false;
    return true;
}

static bool edit_co_begin(Edit *e, Qcow2 *q, uint32_t type, GError **error)
{
    Child *file = q->node->file;
    int ret;

    *e = (Edit){.q = q, .type = type, .size = (size_t)q->cluster_size, .cluster = g_try_malloc0(q->cluster_size)};
    if (!e->cluster)
        return error_set(error, "Could not allocate memory for the header of '%s'", q->node->name);
    comutex_co_lock(&q->header_lock);
    ret = child_co_pread(file, 0, u64_min(e->size, file->node->size), e->cluster, 0);
    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read the header of '%s'", q->node->name);
    if (!is_aligned(q->header.header_length, 8))
        return error_set(error,
                         "The header of '%s' has %" G_GUINT32_FORMAT
                         " bytes, not a multiple of 8: its extensions cannot be changed",
                         q->node->name, q->header.header_length);
    edit_scan(e);
    return true;
}

static void edit_end(Edit *e)
{
    if (e->cluster)
        comutex_unlock(&e->q->header_lock);
    g_free(e->cluster);
}

static bool ext_co_set(Qcow2 *q, uint32_t type, const void *data, uint32_t len, bool dry, GError **error)
{
    Edit e;
    bool ok = edit_co_begin(&e, q, type, error), no_room = false;
    int ret = 0;

    e.dry = dry;
    if (ok && !edit_co_in_place(&e, data, len, &ret))
        ret = edit_co_place(&e, data, len, &no_room);
    edit_end(&e);
    if (!ok)
        return false;
    if (no_room)
        return error_set(
            error, "The header cluster of '%s', %zu bytes, has no room for an extension of %" G_GUINT32_FORMAT " bytes",
            q->node->name, e.size, len);
    return ret == 0 || error_set_errno(error, -ret, "Could not write the header of '%s'", q->node->name);
}

bool q2_ext_co_set(Qcow2 *q, uint32_t type, const void *data, uint32_t len, GError **error)
{
    return ext_co_set(q, type, data, len, false, error);
}

bool q2_ext_co_fits(Qcow2 *q, uint32_t type, uint32_t len, GError **error)
{
    g_autofree uint8_t *data = g_malloc0(len);

    return ext_co_set(q, type, data, len, true, error);
}

bool q2_ext_co_remove(Qcow2 *q, uint32_t type, GError **error)
{
    Edit e;
    bool ok = edit_co_begin(&e, q, type, error);
    int ret = ok ? edit_co_retire_others(&e, 0) : 0;

    edit_end(&e);
    if (!ok)
        return false;
    return ret == 0 || error_set_errno(error, -ret, "Could not write the header of '%s'", q->node->name);
}
