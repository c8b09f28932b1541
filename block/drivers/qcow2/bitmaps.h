/*
 * Persistent bitmaps: what bitmap-dir.c, bitmap-load.c and bitmap-store.c share among themselves and with the checker.
 *
 * q->stored is what the image holds: one Q2Bitmap for each entry of the directory that the header names. The bitmaps
 * that record writes are the node's (graph/bitmap.h). bitmap_lock protects the list and the image's directory.
 */
#pragma once
#include "block/drivers/qcow2/qcow2.h"

#define Q2_MAX_BITMAP_NAME      1023
#define Q2_MAX_BITMAP_BYTES     (UINT64_C(512) << 20) /* of the bits of one bitmap */
#define Q2_MAX_BITMAP_DIRECTORY (Q2_MAX_BITMAPS * UINT64_C(1024))
#define Q2_BITMAP_MIN_BITS      9
#define Q2_BITMAP_MAX_BITS      31

enum {
    Q2_BITMAP_IN_USE = 1, /* flags: not stored properly, or in use right now */
    Q2_BITMAP_AUTO = 2,   /* records writes from the time the image is opened */
};
enum { Q2_BITMAP_ALL_ONES = 1 }; /* of a table entry without an offset */

/* An entry of the bitmap directory. */
typedef struct Q2Bitmap {
    char *name;
    uint64_t table_offset;
    uint32_t table_size; /* entries */
    uint32_t flags;
    unsigned granularity_bits;
    bool kept;       /* by the store that is under way */
    uint64_t *table; /* in the machine's byte order; NULL: was not read */
} Q2Bitmap;

/* Of Q2Bitmap, which it owns. */
GPtrArray *q2_bitmap_list_new(void);
/* Reads and checks the directory that the header names, but no table; an empty list where there is none. NULL with
 * @error, which names what is wrong. The caller drops the reference. */
GPtrArray *q2_bitmaps_co_read_directory(Qcow2 *q, GError **error);
/* Reads and checks a bitmap's table into @b->table. What entries refer to lies within the file, at cluster boundaries.
 */
bool q2_bitmap_co_read_table(Qcow2 *q, Q2Bitmap *b, GError **error);
/* The directory as the image has it; its size in bytes goes to @ret_size. The caller frees. NULL: no memory. */
uint8_t *q2_bitmaps_directory(const GPtrArray *list, uint64_t *ret_size);
uint64_t q2_bitmap_entry_size(const char *name); /* bytes of a directory entry */
/* Clusters of bits for a disk of @size bytes: at least one. @granularity in bytes. */
uint64_t q2_bitmap_clusters(const Qcow2 *q, uint64_t size, uint64_t granularity);
/* Could a bitmap of @granularity bytes for a disk of @size bytes be stored? */
bool q2_bitmap_check_size(const Qcow2 *q, uint64_t size, uint64_t granularity, GError **error);
