#include "tests/fault/replay/damage.h"
#include "block/drivers/qcow2/qcow2.h"
#include "block/drivers/qed/qed.h"
#include "block/util/bytes.h"

enum { NORMAL_ONLY = 1, COMPRESSED_ONLY = 2 };

typedef struct Image {
    Disk *disk;
    Q2Header h;
    unsigned bits; /* of a cluster */
    uint64_t cluster, clusters;
    unsigned entry; /* bytes of an L2 entry */
    bool gives_up_bitmaps;
} Image;

static bool image_parse(Image *m, Disk *disk)
{
    *m = (Image){.disk = disk};
    if (!q2_header_parse(&m->h, disk->data, disk->size, NULL))
        return false;
    m->bits = m->h.cluster_bits;
    m->cluster = UINT64_C(1) << m->bits;
    m->clusters = disk->size >> m->bits;
    m->entry = q2_header_l2_entry_bytes(&m->h);
    return true;
}

static uint8_t *at(const Image *m, uint64_t offset)
{
    return m->disk->data + offset;
}

static bool within(const Image *m, uint64_t offset, uint64_t bytes)
{
    return offset <= m->disk->size && bytes <= m->disk->size - offset;
}

/* ---- finding things --------------------------------------------------------------------------------------------- */

/* Offset of a random entry of the active L1 table that leads to a table; 0: there is none. */
static uint64_t some_l1_entry(const Image *m)
{
    uint64_t found = 0, n = 0;

    for (uint32_t i = 0; i < m->h.l1_size && within(m, m->h.l1_offset, (i + 1) * 8); i++) {
        uint64_t offset = load_be64(at(m, m->h.l1_offset + i * 8)) & Q2_OFFSET_MASK;
        if (offset && is_aligned(offset, m->cluster) && within(m, offset, m->cluster) && rnd(++n) == 0)
            found = m->h.l1_offset + i * 8;
    }
    return found;
}

static uint64_t some_l2_table(const Image *m)
{
    uint64_t l1 = some_l1_entry(m);

    return l1 ? load_be64(at(m, l1)) & Q2_OFFSET_MASK : 0;
}

/* Offset of a random entry of a random active L2 table, of that kind; 0: there is none. */
static uint64_t some_l2_entry(const Image *m, unsigned kind)
{
    uint64_t table = some_l2_table(m), found = 0, n = 0;

    for (uint64_t i = 0; table && i < m->cluster; i += m->entry) {
        uint64_t entry = load_be64(at(m, table + i));
        bool packed = entry & Q2_COMPRESSED, normal = !packed && (entry & Q2_OFFSET_MASK);
        if ((kind == NORMAL_ONLY ? normal : packed) && rnd(++n) == 0)
            found = table + i;
    }
    return found;
}

/* Where the refcount block of a cluster is; 0: nowhere. */
static uint64_t block_of(const Image *m, uint64_t ci)
{
    uint64_t index = ci >> (m->bits + 3 - m->h.refcount_order), offset;

    if (!within(m, m->h.rt_offset, (index + 1) * 8) || index >= (uint64_t)m->h.rt_clusters << m->bits >> 3)
        return 0;
    offset = load_be64(at(m, m->h.rt_offset + index * 8));
    return is_aligned(offset, m->cluster) && within(m, offset, m->cluster) ? offset : 0;
}

static uint64_t count_mask(const Image *m)
{
    return (UINT64_C(1) << (m->bits + 3 - m->h.refcount_order)) - 1;
}

static uint64_t count_get(const Image *m, uint64_t ci)
{
    uint64_t block = block_of(m, ci);

    return block ? q2_refcount_get(at(m, block), m->h.refcount_order, ci & count_mask(m)) : 0;
}

static void count_set(const Image *m, uint64_t ci, uint64_t count)
{
    uint64_t block = block_of(m, ci);

    if (block)
        q2_refcount_set(at(m, block), m->h.refcount_order, ci & count_mask(m), count);
}

uint64_t snapshot_entry_at(const Disk *disk, uint32_t i)
{
    uint64_t offset = load_be64(disk->data + 64);

    if (i >= load_be32(disk->data + 60))
        return 0;
    for (; i && offset + 40 <= disk->size; i--) {
        const uint8_t *e = disk->data + offset;
        offset += align_up(40 + (uint64_t)load_be32(e + 36) + load_be16(e + 12) + load_be16(e + 14), 8);
    }
    return offset + 40 <= disk->size ? offset : 0;
}

/* ---- entries ---------------------------------------------------------------------------------------------------- */

static void flip_flags(Image *m)
{
    for (uint64_t n = 1 + rnd(6); n; n--) {
        uint64_t e = rnd(3) ? some_l2_entry(m, NORMAL_ONLY) : some_l1_entry(m);
        if (e)
            store_be64(at(m, e), load_be64(at(m, e)) ^ Q2_COPIED);
    }
}

static void lead_nowhere(Image *m)
{
    uint64_t e = rnd(4) ? some_l2_entry(m, NORMAL_ONLY) : some_l1_entry(m);

    if (e)
        store_be64(at(m, e), align_up(m->disk->size, m->cluster) + (rnd(9) << m->bits) + (rnd(2) ? Q2_COPIED : 0));
}

static void lead_astray(Image *m)
{
    uint64_t e = some_l2_entry(m, NORMAL_ONLY);

    if (e)
        store_be64(at(m, e), load_be64(at(m, e)) ^ (m->bits > 9 && rnd(2) ? 512 : UINT64_C(1) << (56 + rnd(6))));
}

static void flag_compressed(Image *m)
{
    uint64_t e = some_l2_entry(m, COMPRESSED_ONLY);

    if (e)
        store_be64(at(m, e), load_be64(at(m, e)) | Q2_COPIED);
}

/* A cluster of the guest's is also a table, or another of the guest's; mostly the count knows, and nobody is harmed as
 * long as counts are believed. */
static void share_cluster(Image *m)
{
    uint64_t e = some_l2_entry(m, NORMAL_ONLY), other = some_l2_entry(m, NORMAL_ONLY), to, count;

    switch (rnd(4)) {
    case 0:
        to = m->h.l1_offset;
        break;
    case 1:
        to = other ? load_be64(at(m, other)) & Q2_OFFSET_MASK : 0;
        break;
    default:
        to = some_l2_table(m);
        break;
    }
    if (!e || !to)
        return;
    count = count_get(m, to >> m->bits);
    store_be64(at(m, e), to | (rnd(4) ? 0 : Q2_COPIED));
    if (m->entry == 16)
        store_be64(at(m, e + 8), UINT64_C(0xffffffff));
    if (count && rnd(4))
        count_set(m, to >> m->bits, count + 1);
}

/* Two entries of the L1 table lead to the same place. */
static void share_table(Image *m)
{
    uint64_t from = some_l1_entry(m), to = m->h.l1_offset + rnd(m->h.l1_size) * 8;

    if (from && within(m, to, 8))
        store_be64(at(m, to), load_be64(at(m, from)));
}

void damage_entries(Disk *disk)
{
    static void (*const kinds[])(Image *) = {
        flip_flags, lead_nowhere, lead_astray, flag_compressed, share_cluster, share_cluster, share_table,
    };

    for (uint64_t n = rnd(4); n; n--) {
        Image m;
        if (!image_parse(&m, disk))
            return;
        kinds[rnd(G_N_ELEMENTS(kinds))](&m);
        q2_header_free(&m.h);
    }
}

/* ---- the rest --------------------------------------------------------------------------------------------------- */

static void wrong_counts(Image *m)
{
    uint64_t most = rnd(3) ? 6 : m->clusters;

    for (uint64_t n = 1 + rnd(most); n; n--) {
        uint64_t ci = rnd(m->clusters), count = count_get(m, ci);
        switch (rnd(4)) {
        case 0:
            count_set(m, ci, 0);
            break;
        case 1:
            count_set(m, ci, count - (count > 0));
            break;
        default:
            count_set(m, ci, count + 1 + rnd(2));
            break;
        }
    }
}

static void leak(Image *m)
{
    uint64_t n = div_round_up(m->disk->size, m->cluster) + rnd(6);

    if (rnd(2))
        disk_resize(m->disk, n << m->bits);
    for (uint64_t ci = 0; ci < n; ci++)
        if (count_get(m, ci) == 0 && rnd(3) == 0)
            count_set(m, ci, 1);
}

static void garble_block(Image *m)
{
    uint64_t block = block_of(m, rnd(m->clusters)), from = rnd(m->cluster), n = rnd(m->cluster - from) + 1;

    for (uint64_t i = 0; block && i < n; i++)
        *at(m, block + from + i) = (uint8_t)rnd(0);
}

static uint64_t bad_place(Image *m)
{
    switch (rnd(5)) {
    case 0:
        return 0;
    case 1:
        return align_up(m->disk->size, m->cluster) + (rnd(9) << m->bits);
    case 2:
        return some_l2_table(m);
    case 3:
        return m->h.l1_offset;
    default:
        return rnd(m->clusters) << m->bits;
    }
}

static void lose_block(Image *m)
{
    uint64_t n = ((m->clusters - 1) >> (m->bits + 3 - m->h.refcount_order)) + 1;
    uint8_t *entry = at(m, m->h.rt_offset + rnd(n) * 8);

    store_be64(entry, rnd(4) ? bad_place(m) : load_be64(entry) | 0x21);
}

static void lose_table(Image *m)
{
    uint64_t to = bad_place(m);

    if (to)
        store_be64(at(m, Q2_H_RT_OFFSET), to);
}

/* As version 2 had them: without what version 3 asks for. */
static void shorten_snapshots(Image *m)
{
    uint64_t from = m->h.snapshots_offset, to = from;

    if (m->h.version < 3)
        return;
    for (uint32_t i = 0; i < m->h.nb_snapshots; i++) {
        uint8_t *e = at(m, from);
        uint32_t extra = load_be32(e + 36), left = (uint32_t)u64_min(extra, rnd(3) * 8);
        uint64_t names = (uint64_t)load_be16(e + 12) + load_be16(e + 14);
        from += align_up(40 + extra + names, 8);
        store_be32(e + 36, left);
        memmove(e + 40 + left, e + 40 + extra, names);
        memmove(at(m, to), e, 40 + left + names);
        to += align_up(40 + left + names, 8);
    }
}

static void break_bitmaps(Image *m)
{
    uint64_t dir = m->h.bitmaps.directory_offset;

    if (!m->h.bitmaps.n)
        return;
    if (rnd(2))
        store_be32(at(m, dir + 12), 0x80); /* flags */
    else
        store_be64(at(m, load_be64(at(m, dir))), Q2_COPIED); /* its table */
    m->gives_up_bitmaps = true;
}

static void set_bits(Image *m)
{
    if (m->h.version >= 3)
        store_be64(at(m, Q2_H_INCOMPAT), m->h.incompat | (rnd(2) ? Q2_INCOMPAT_DIRTY : Q2_INCOMPAT_CORRUPT));
}

bool damage_rest(Disk *disk)
{
    enum { LOSE_FIRST = 8 };
    static void (*const kinds[])(Image *) = {
        set_bits, shorten_snapshots, break_bitmaps, wrong_counts, wrong_counts, leak,
        leak,     garble_block,      lose_block,    lose_table,
    };
    bool gives_up_bitmaps = false;
    size_t first =
        0; /* what is taken for a table or a block once it is lost may be anything: nothing is written there then */

    for (uint64_t n = 1 + rnd(3); n; n--) {
        size_t kind = first + rnd(G_N_ELEMENTS(kinds) - first);
        Image m;
        if (!image_parse(&m, disk))
            break;
        if (within(&m, m.h.rt_offset, (uint64_t)m.h.rt_clusters << m.bits))
            kinds[kind](&m);
        gives_up_bitmaps |= m.gives_up_bitmaps;
        q2_header_free(&m.h);
        if (kind >= LOSE_FIRST)
            first = kind;
    }
    return gives_up_bitmaps;
}

/* ---- qed -------------------------------------------------------------------------------------------------------- */

/* A random entry that leads somewhere, of the table at @offset; NULL: there is none. */
static uint8_t *some_qed_entry(const Disk *disk, const QedHeader *h, uint64_t offset)
{
    uint8_t *found = NULL;
    uint64_t n = 0;

    for (uint64_t i = 0; i < (uint64_t)h->table_size * h->cluster_size && offset + i + 8 <= disk->size; i += 8)
        if (load_le64(disk->data + offset + i) > QED_ENTRY_ZERO && rnd(++n) == 0)
            found = disk->data + offset + i;
    return found;
}

void damage_qed(Disk *disk)
{
    QedHeader h;

    if (!qed_header_parse(&h, disk->data, disk->size, disk->size, NULL))
        return;
    if (rnd(2))
        disk_resize(disk, align_up(disk->size, h.cluster_size) + rnd(4) * h.cluster_size);
    for (uint64_t n = rnd(4); n; n--) {
        uint8_t *l1 = some_qed_entry(disk, &h, h.l1_offset);
        uint8_t *l2 = l1 ? some_qed_entry(disk, &h, load_le64(l1)) : NULL;
        uint64_t to = align_up(disk->size, h.cluster_size) + (1 + rnd(5)) * h.cluster_size + (rnd(3) ? 0 : 512);
        if (l2 && rnd(4))
            store_le64(l2, to);
        else if (l1)
            store_le64(l1, to);
    }
    if (rnd(4))
        store_le64(disk->data + QED_H_FEATURES, h.features | QED_F_NEED_CHECK);
}
