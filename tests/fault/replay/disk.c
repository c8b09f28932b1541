#include "tests/fault/replay/disk.h"
#include "block/aio/io.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

Fault fault;
static GHashTable *disks;
static uint64_t rng;

uint64_t rnd(uint64_t below)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return below ? (rng * UINT64_C(0x2545f4914f6cdd1d) >> 11) % below : rng * UINT64_C(0x2545f4914f6cdd1d);
}

void rnd_seed(uint64_t seed)
{
    rng = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15);
    for (int i = 0; i < 8; i++)
        rnd(0);
}

/* ---- disks ------------------------------------------------------------------------------------------------------ */

static void disk_free(void *opaque)
{
    Disk *disk = opaque;

    free(disk->data);
    g_free(disk->name);
    g_free(disk);
}

Disk *disk_get(const char *name)
{
    Disk *disk;

    if (!disks)
        disks = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, disk_free);
    disk = g_hash_table_lookup(disks, name);
    if (!disk) {
        disk = g_new0(Disk, 1);
        disk->name = g_strdup(name);
        g_hash_table_insert(disks, disk->name, disk);
    }
    return disk;
}

void disks_free(void)
{
    g_clear_pointer(&disks, g_hash_table_destroy);
}

void disk_resize(Disk *disk, uint64_t size)
{
    g_assert(size <= DISK_MAX);
    if (size > disk->room) {
        uint64_t room = u64_max(size, u64_max(disk->room * 2, 1 << 16));
        disk->data = g_realloc(disk->data, room);
        memset(disk->data + disk->room, 0, room - disk->room);
        disk->room = room;
    }
    if (size < disk->size)
        memset(disk->data + size, 0, disk->size - size);
    disk->size = size;
}

void disk_load(Disk *disk, const void *data, uint64_t size)
{
    disk_resize(disk, size);
    if (size)
        memcpy(disk->data, data, size);
}

void disk_load_file(Disk *disk, const char *path)
{
    g_autoptr(GError) error = NULL;
    g_autofree char *data = NULL;
    gsize size;

    if (!g_file_get_contents(path, &data, &size, &error))
        g_error("%s", error->message);
    disk_load(disk, data, size);
}

void disk_store_file(const Disk *disk, const char *path)
{
    FILE *f = fopen(path, "w");

    if (!f || fwrite(disk->data, 1, disk->size, f) != disk->size || fclose(f) != 0)
        g_error("%s: %s", path, g_strerror(errno));
}

/* ---- the driver ------------------------------------------------------------------------------------------------- */

static Disk *disk_of(const Node *node)
{
    return *(Disk **)node->state;
}

static void delay_co_some(const Disk *disk)
{
    for (uint64_t n = !disk->slow ? 0 : rnd(40) ? rnd(6) : rnd(400); n; n--)
        aio_co_reschedule();
}

static bool fails(const Disk *disk, FaultKind kind)
{
    if (!disk->slow || fault.kind != kind || (fault.countdown && --fault.countdown) ||
        (fault.happened && !fault.sticky))
        return false;
    fault.happened = true;
    return true;
}

static bool mem_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    *(Disk **)node->state = disk_get(node->name);
    return true;
}

static int64_t mem_co_getlength(Node *node)
{
    return (int64_t)disk_of(node)->size;
}

static int mem_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                         ReqFlags flags)
{
    Disk *disk = disk_of(node);

    delay_co_some(disk);
    if (fails(disk, FAULT_READ))
        return -EIO;
    g_assert(offset + bytes <= disk->size);
    iov_from_buf(vec->iov, vec->n, vec_offset, disk->data + offset, bytes);
    return 0;
}

static int mem_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    Disk *disk = disk_of(node);
    bool fail = fails(disk, FAULT_WRITE);

    fault.header |= disk->slow && offset == 0;
    if (disk->slow && fault.kind == FAULT_FULL && offset + bytes > fault.countdown) {
        fault.happened = true;
        return -ENOSPC;
    }
    if (offset + bytes > DISK_MAX)
        return -EFBIG;
    delay_co_some(disk);
    if (fail) /* some of it may be there */
        bytes = rnd(2) ? 0 : align_down(rnd(bytes), SECTOR);
    if (bytes) {
        disk_resize(disk, u64_max(disk->size, offset + bytes));
        iov_to_buf(vec->iov, vec->n, vec_offset, disk->data + offset, bytes);
    }
    return fail ? -EIO : 0;
}

static int mem_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    Disk *disk = disk_of(node);

    delay_co_some(disk);
    memset(disk->data + offset, 0, bytes);
    return 0;
}

static bool mem_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                            GError **error)
{
    if (size > DISK_MAX)
        return error_set(error, "Too large");
    delay_co_some(disk_of(node));
    disk_resize(disk_of(node), size);
    return true;
}

static int mem_co_flush_to_disk(Node *node)
{
    delay_co_some(disk_of(node));
    if (fails(disk_of(node), FAULT_FLUSH) || (fault.header && fails(disk_of(node), FAULT_HEADER)))
        return -EIO;
    fault.header = false;
    return 0;
}

/* Not found by list.sh: its name is not at the beginning of a line. */
static const Driver mem_driver = {
    .name = "null-co",
    .state_size = sizeof(Disk *),
    .is_protocol = true,
    .may_grow = true,
    .co_open = mem_co_open,
    .co_getlength = mem_co_getlength,
    .co_preadv = mem_co_preadv,
    .co_pwritev = mem_co_pwritev,
    .co_pdiscard = mem_co_pdiscard,
    .co_truncate = mem_co_truncate,
    .co_flush_to_disk = mem_co_flush_to_disk,
};

const Driver *const *disk_drivers(void)
{
    static const Driver *list[64];
    size_t n = 0;

    list[n++] = &mem_driver;
    for (size_t i = 0; driver_list[i]; i++)
        if (strcmp(driver_list[i]->name, "null-co") != 0)
            list[n++] = driver_list[i];
    g_assert(n < G_N_ELEMENTS(list));
    return list;
}
