/*
 * Counting references in bounded memory: a byte for each cluster, in chunks that exist where something was counted; a
 * chunk in which a byte overflows gets four bytes for each. What a sparse or a hostile file claims to have costs
 * nothing until something refers to it.
 */
#include "block/drivers/qcow2/check.h"

#define CHUNK_BITS 16
#define CHUNK      (UINT64_C(1) << CHUNK_BITS)
#define BYTES_MAX  (UINT64_C(1) << 30)

bool counts_init(Counts *counts, uint64_t clusters)
{
    *counts = (Counts){.clusters = clusters};
    counts->chunks = g_try_new0(CountChunk, (clusters >> CHUNK_BITS) + 1);
    return counts->chunks != NULL;
}

void counts_free(Counts *counts)
{
    for (uint64_t i = 0; counts->chunks && i <= counts->clusters >> CHUNK_BITS; i++)
        g_free(counts->chunks[i].counts);
    g_clear_pointer(&counts->chunks, g_free);
}

uint32_t counts_get(const Counts *counts, uint64_t ci)
{
    const CountChunk *chunk = &counts->chunks[ci >> CHUNK_BITS];
    uint64_t i = ci & (CHUNK - 1);

    if (ci >= counts->clusters || !chunk->width)
        return 0;
    return chunk->width == 1 ? ((const uint8_t *)chunk->counts)[i] : ((const uint32_t *)chunk->counts)[i];
}

static bool chunk_widen(Counts *counts, CountChunk *chunk)
{
    uint8_t width = chunk->width ? 4 : 1;
    void *wide;

    if (counts->bytes + CHUNK * width > BYTES_MAX)
        return false;
    wide = g_try_malloc0(CHUNK * width);
    if (!wide)
        return false;
    if (chunk->width)
        for (uint64_t i = 0; i < CHUNK; i++)
            ((uint32_t *)wide)[i] = ((const uint8_t *)chunk->counts)[i];
    g_free(chunk->counts);
    counts->bytes += CHUNK * (uint64_t)(width - chunk->width);
    chunk->counts = wide;
    chunk->width = width;
    return true;
}

int counts_add(Counts *counts, uint64_t ci)
{
    CountChunk *chunk = &counts->chunks[ci >> CHUNK_BITS];
    uint64_t i = ci & (CHUNK - 1);
    uint32_t *count;

    g_assert(ci < counts->clusters);
    if (chunk->width == 1 && ((uint8_t *)chunk->counts)[i] < UINT8_MAX) {
        ((uint8_t *)chunk->counts)[i]++;
        return 0;
    }
    if (chunk->width != 4 && !chunk_widen(counts, chunk))
        return -ENOMEM;
    if (chunk->width == 1) {
        ((uint8_t *)chunk->counts)[i]++;
        return 0;
    }
    count = (uint32_t *)chunk->counts + i;
    *count += *count < UINT32_MAX;
    return 0;
}

void counts_sub(Counts *counts, uint64_t ci)
{
    CountChunk *chunk = &counts->chunks[ci >> CHUNK_BITS];
    uint64_t i = ci & (CHUNK - 1);

    if (!counts_get(counts, ci))
        return;
    if (chunk->width == 1)
        ((uint8_t *)chunk->counts)[i]--;
    else
        ((uint32_t *)chunk->counts)[i]--;
}

uint64_t counts_next(const Counts *counts, uint64_t ci, uint64_t end)
{
    while (ci < end && (ci >= counts->clusters || !counts->chunks[ci >> CHUNK_BITS].width))
        ci = ci >= counts->clusters ? end : u64_min(end, (ci | (CHUNK - 1)) + 1);
    return ci;
}
