/*
 * Hierarchical bitmap: which granules of a byte range are set (dirty), found and counted fast at any size.
 *
 * One bit stands for a granule of 2^granularity_bits bytes. Above the bits lie levels in which one bit says "some bit
 * below is set" for 64 bits of the level beneath, so that a search skips what is clean in a few steps. Memory comes as
 * untouched zero pages from the kernel: 16 TiB in granules of 64 KiB reserve 32 MiB + 1/64 and cost what is dirtied.
 *
 * Ranges are given in bytes: @offset >= 0, @bytes >= 0, cut at the end of the bitmap's size where not said otherwise.
 * Nothing here locks or yields: the owner (a node's loop) serialises.
 */
#pragma once
#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct HBitmap HBitmap;

/*
 * A bitmap for @bytes bytes, all clear; 0 <= @bytes, 9 <= @granularity_bits <= 31 or any other value up to 40.
 * NULL when memory is short.
 */
HBitmap *hbitmap_new(int64_t bytes, unsigned granularity_bits) G_GNUC_WARN_UNUSED_RESULT;
void hbitmap_free(HBitmap *hb); /* takes NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(HBitmap, hbitmap_free)

/* An independent copy; NULL when memory is short. Costs what is dirty, not what is covered. */
HBitmap *hbitmap_clone(const HBitmap *hb) G_GNUC_WARN_UNUSED_RESULT;

int64_t hbitmap_size(const HBitmap *hb); /* in bytes, as given to hbitmap_new() or hbitmap_truncate() */
unsigned hbitmap_granularity_bits(const HBitmap *hb);
int64_t hbitmap_granularity(const HBitmap *hb); /* in bytes */

/*
 * The number of bytes in dirty granules, O(1). Whole granules are counted, so the last may reach past the size, as
 * QMP's dirty-bitmap "count" has it.
 */
int64_t hbitmap_count(const HBitmap *hb);
static inline bool hbitmap_empty(const HBitmap *hb)
{
    return hbitmap_count(hb) == 0;
}

/* Is the granule of byte @offset set? False at and past the end. */
bool hbitmap_get(const HBitmap *hb, int64_t offset);

/* Sets every granule that the range touches. */
void hbitmap_set(HBitmap *hb, int64_t offset, int64_t bytes);

/*
 * Clears whole granules: asserts that the range starts at a granule and ends at one or at (or past) the size. To clear
 * less would lose what is dirty in the rest of the granule.
 */
void hbitmap_reset(HBitmap *hb, int64_t offset, int64_t bytes);

void hbitmap_reset_all(HBitmap *hb);

/*
 * The first dirty (clean) byte at or after @offset and before @offset + @bytes, or -1. INT64_MAX - @offset or more
 * for @bytes means: to the end.
 */
int64_t hbitmap_next_dirty(const HBitmap *hb, int64_t offset, int64_t bytes);
int64_t hbitmap_next_zero(const HBitmap *hb, int64_t offset, int64_t bytes);

/*
 * The first dirty area in [@offset, @end): its first byte goes to @ret_offset and its length, at most @max_bytes (> 0),
 * to @ret_bytes. Both are cut to [@offset, @end) and to the size. False, leaving both alone, when there is none.
 */
bool hbitmap_next_dirty_area(const HBitmap *hb, int64_t offset, int64_t end, int64_t max_bytes, int64_t *ret_offset,
                             int64_t *ret_bytes);

/* How does the byte at @offset begin: returns its state in @ret_dirty and how many bytes (cut to @bytes) share it. */
int64_t hbitmap_status(const HBitmap *hb, int64_t offset, int64_t bytes, bool *ret_dirty);

/*
 * @dst becomes @dst or @src, any granularities: a granule of @src dirties all that it touches in @dst (over-reporting,
 * never under-reporting, LAW 9). Sizes must be equal; false, with @dst untouched, when they are not.
 */
bool hbitmap_merge(HBitmap *dst, const HBitmap *src);

/* Changes the size in bytes; new bytes are clean, bits past a smaller size are gone. False when memory is short. */
bool hbitmap_truncate(HBitmap *hb, int64_t bytes);

/*
 * Serialisation as qcow2 and the migration stream have it: one bit a granule, least significant first, little endian.
 * A part covers the range from @offset (a multiple of hbitmap_serialize_align()) and ends at such a multiple or at
 * the size.
 */
int64_t hbitmap_serialize_align(const HBitmap *hb); /* in bytes of the disk: 64 granules */
/* Bytes of buffer needed for a part; a multiple of 8. */
size_t hbitmap_serialize_size(const HBitmap *hb, int64_t offset, int64_t bytes);
void hbitmap_serialize(const HBitmap *hb, void *buf, int64_t offset, int64_t bytes);
/* Replaces the part's bits by those in @buf; bits past the size are ignored. The counts stay right after each part. */
void hbitmap_deserialize(HBitmap *hb, const void *buf, int64_t offset, int64_t bytes);
