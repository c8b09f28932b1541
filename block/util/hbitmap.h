/*
 * Hierarchical bitmap: which granules of a byte range are set (dirty), found and counted fast at any size.
 *
 * One bit stands for a granule of 2^granularity_bits bytes. Above the bits lie levels in which one bit says "some bit
 * below is set" for 64 bits of the level beneath, so that a search skips what is clean in a few steps. Memory comes as
 * untouched zero pages from the kernel: 16 TiB in granules of 64 KiB reserve 32 MiB + 1/64 and cost what is dirtied.
 *
 * Ranges are given in bytes, up to INT64_MAX, and cut at the bitmap's size; what lies beyond is no error.
 * Nothing here locks or yields: the owner (a node's loop) serialises.
 */
#pragma once
#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct HBitmap HBitmap;

/*
 * A bitmap for @bytes bytes (0 to INT64_MAX), all clear; @granularity_bits <= 40. NULL when memory is short or there
 * were more than 2^35 granules (4 GiB of bits): whoever chose such a size and granularity is to be refused.
 */
HBitmap *hbitmap_new(uint64_t bytes, unsigned granularity_bits) G_GNUC_WARN_UNUSED_RESULT;
void hbitmap_free(HBitmap *hb); /* takes NULL */
G_DEFINE_AUTOPTR_CLEANUP_FUNC(HBitmap, hbitmap_free)

/* An independent copy; NULL when memory is short. Costs what is dirty, not what is covered. */
HBitmap *hbitmap_clone(const HBitmap *hb) G_GNUC_WARN_UNUSED_RESULT;

uint64_t hbitmap_size(const HBitmap *hb); /* in bytes, as given to hbitmap_new() or hbitmap_truncate() */
unsigned hbitmap_granularity_bits(const HBitmap *hb);
uint64_t hbitmap_granularity(const HBitmap *hb); /* in bytes */

/*
 * The number of bytes in dirty granules, O(1). Whole granules are counted, so the last may reach past the size, as
 * QMP's dirty-bitmap "count" has it.
 */
uint64_t hbitmap_count(const HBitmap *hb);
static inline bool hbitmap_empty(const HBitmap *hb)
{
    return hbitmap_count(hb) == 0;
}

/* Is the granule of byte @offset set? False at and past the end. */
bool hbitmap_get(const HBitmap *hb, uint64_t offset);

/* Sets every granule that the range touches. */
void hbitmap_set(HBitmap *hb, uint64_t offset, uint64_t bytes);

/*
 * Clears whole granules: asserts that the range starts at a granule and ends at one or at (or past) the size. To clear
 * less would lose what is dirty in the rest of the granule.
 */
void hbitmap_reset(HBitmap *hb, uint64_t offset, uint64_t bytes);

void hbitmap_reset_all(HBitmap *hb);

/*
 * The first dirty (clean) byte at or after @offset and before @offset + @bytes, or -1. UINT64_MAX for @bytes means:
 * to the end.
 */
int64_t hbitmap_next_dirty(const HBitmap *hb, uint64_t offset, uint64_t bytes);
int64_t hbitmap_next_zero(const HBitmap *hb, uint64_t offset, uint64_t bytes);

/*
 * The first dirty area in [@offset, @end): its first byte goes to @ret_offset and its length, at most @max_bytes (> 0),
 * to @ret_bytes. Both are cut to [@offset, @end) and to the size. False, leaving both alone, when there is none.
 */
bool hbitmap_next_dirty_area(const HBitmap *hb, uint64_t offset, uint64_t end, uint64_t max_bytes, uint64_t *ret_offset,
                             uint64_t *ret_bytes);

/*
 * Is the byte at @offset dirty (@ret_dirty), and how many bytes from there on are in the same state: at most @bytes
 * (which is > 0), and none past the size, which lies behind @offset.
 */
uint64_t hbitmap_status(const HBitmap *hb, uint64_t offset, uint64_t bytes, bool *ret_dirty);

/*
 * @dst becomes @dst or @src, any granularities: a granule of @src dirties all that it touches in @dst (over-reporting,
 * never under-reporting, LAW 9). Sizes must be equal; false, with @dst untouched, when they are not.
 */
bool hbitmap_merge(HBitmap *dst, const HBitmap *src);

/*
 * Changes the size in bytes; new bytes are clean, bits past a smaller size are gone. False, with nothing
 * changed, when memory is short or there were too many granules.
 */
bool hbitmap_truncate(HBitmap *hb, uint64_t bytes);

/*
 * Serialisation as qcow2 and the migration stream have it: one bit a granule, least significant first, little endian.
 * A part covers the range from @offset (a multiple of hbitmap_serialize_align()) and ends at such a multiple or at
 * the size.
 */
uint64_t hbitmap_serialize_align(const HBitmap *hb); /* in bytes of the disk: 64 granules */
/* Bytes of buffer needed for a part; a multiple of 8. */
size_t hbitmap_serialize_size(const HBitmap *hb, uint64_t offset, uint64_t bytes);
void hbitmap_serialize(const HBitmap *hb, void *buf, uint64_t offset, uint64_t bytes);
/* Replaces the part's bits by those in @buf; bits past the size are ignored. The counts stay right after each part. */
void hbitmap_deserialize(HBitmap *hb, const void *buf, uint64_t offset, uint64_t bytes);
