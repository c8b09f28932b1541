#include "block/util/hbitmap.h"
#include "block/util/bytes.h"
#include <string.h>
#include <sys/mman.h>

#define WORD_BITS  64
#define LEVELS_MAX 7 /* 64^6 > BITS_MAX, and the top level is one word */
#define BITS_MAX   (UINT64_C(1) << 35)
#define NONE       UINT64_MAX
/* From this size on the bits are a mapping of their own: zero pages that cost nothing until written to. */
#define MAP_MIN (64 * 1024)

struct HBitmap {
    uint64_t size; /* bytes */
    unsigned granularity_bits;
    unsigned levels;             /* level[0] are the bits, level[levels - 1] is one word */
    uint64_t bits;               /* granules; bits past them are always 0 */
    uint64_t count;              /* bits that are set in level[0] */
    uint64_t words[LEVELS_MAX];  /* of each level */
    uint64_t *level[LEVELS_MAX]; /* bit i: word i of the level below is not 0 */
    void *memory;
    size_t memory_size;
};

static uint64_t mask_from(uint64_t bit)
{
    return ~UINT64_C(0) << (bit % WORD_BITS);
}

static uint64_t mask_to(uint64_t bit)
{
    return ~UINT64_C(0) >> (WORD_BITS - 1 - bit % WORD_BITS);
}

static bool memory_get(HBitmap *hb, size_t size)
{
    hb->memory_size = size;
    if (size < MAP_MIN) {
        hb->memory = g_try_malloc0(size);
        return hb->memory != NULL;
    }
    hb->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return hb->memory != MAP_FAILED;
}

static void memory_put(HBitmap *hb)
{
    if (hb->memory_size < MAP_MIN)
        g_free(hb->memory);
    else
        munmap(hb->memory, hb->memory_size);
}

/* Fills in @hb, whose old content does not matter; false when memory is short. */
static bool hbitmap_init(HBitmap *hb, uint64_t bytes, unsigned granularity_bits)
{
    g_assert(bytes <= INT64_MAX && granularity_bits <= 40);
    *hb = (HBitmap){.size = bytes, .granularity_bits = granularity_bits};
    hb->bits = div_round_up(bytes, UINT64_C(1) << granularity_bits);
    if (hb->bits > BITS_MAX)
        return false;
    uint64_t total = 0;
    uint64_t words = hb->bits;
    do {
        words = MAX(div_round_up(words, WORD_BITS), 1);
        hb->words[hb->levels++] = words;
        total += words;
    } while (words > 1);
    if (!memory_get(hb, total * sizeof(uint64_t)))
        return false;
    uint64_t *next = hb->memory;
    for (unsigned l = 0; l < hb->levels; l++) {
        hb->level[l] = next;
        next += hb->words[l];
    }
    return true;
}

HBitmap *hbitmap_new(uint64_t bytes, unsigned granularity_bits)
{
    HBitmap *hb = g_new(HBitmap, 1);
    if (!hbitmap_init(hb, bytes, granularity_bits)) {
        g_free(hb);
        return NULL;
    }
    return hb;
}

void hbitmap_free(HBitmap *hb)
{
    if (hb) {
        memory_put(hb);
        g_free(hb);
    }
}

uint64_t hbitmap_size(const HBitmap *hb)
{
    return hb->size;
}

unsigned hbitmap_granularity_bits(const HBitmap *hb)
{
    return hb->granularity_bits;
}

uint64_t hbitmap_granularity(const HBitmap *hb)
{
    return UINT64_C(1) << hb->granularity_bits;
}

uint64_t hbitmap_count(const HBitmap *hb)
{
    return hb->count << hb->granularity_bits;
}

static bool get_bit(const HBitmap *hb, uint64_t bit)
{
    return hb->level[0][bit / WORD_BITS] >> (bit % WORD_BITS) & 1;
}

/* Cuts the range at the size; false when nothing is left. */
static bool to_bits(const HBitmap *hb, uint64_t offset, uint64_t bytes, uint64_t *first, uint64_t *last)
{
    if (bytes == 0 || offset >= hb->size)
        return false;
    const uint64_t end = offset + MIN(bytes, hb->size - offset);
    *first = offset >> hb->granularity_bits;
    *last = (end - 1) >> hb->granularity_bits;
    return true;
}

bool hbitmap_get(const HBitmap *hb, uint64_t offset)
{
    return offset < hb->size && get_bit(hb, offset >> hb->granularity_bits);
}

/* Says upwards from level @l that its words @first to @last (of that level) are not 0. */
static void summary_set(HBitmap *hb, unsigned l, uint64_t first, uint64_t last)
{
    for (l++; l < hb->levels; l++) {
        const uint64_t lo = first / WORD_BITS;
        const uint64_t hi = last / WORD_BITS;
        uint64_t *words = hb->level[l];
        if (lo == hi) {
            const uint64_t mask = mask_from(first) & mask_to(last);
            if ((words[lo] & mask) == mask)
                return; /* and so do all levels above */
            words[lo] |= mask;
        } else {
            words[lo] |= mask_from(first);
            memset(&words[lo + 1], 0xff, (hi - lo - 1) * sizeof(uint64_t));
            words[hi] |= mask_to(last);
        }
        first = lo;
        last = hi;
    }
}

/* Says upwards that word @word of the bits is 0 now. */
static void summary_reset(HBitmap *hb, uint64_t word)
{
    for (unsigned l = 1; l < hb->levels; l++) {
        uint64_t *above = &hb->level[l][word / WORD_BITS];
        *above &= ~(UINT64_C(1) << (word % WORD_BITS));
        if (*above)
            return;
        word /= WORD_BITS;
    }
}

/* Most words are all set; without an instruction for the rest of them it takes 4 ns to count one. */
static unsigned ones(uint64_t word)
{
    return word == ~UINT64_C(0) ? WORD_BITS : (unsigned)__builtin_popcountll(word);
}

static void or_word(HBitmap *hb, uint64_t word, uint64_t mask)
{
    uint64_t *w = &hb->level[0][word];
    hb->count += ones(mask & ~*w);
    *w |= mask;
}

void hbitmap_set(HBitmap *hb, uint64_t offset, uint64_t bytes)
{
    uint64_t first, last;
    if (!to_bits(hb, offset, bytes, &first, &last))
        return;
    const uint64_t lo = first / WORD_BITS;
    const uint64_t hi = last / WORD_BITS;
    if (lo == hi) {
        const uint64_t mask = mask_from(first) & mask_to(last);
        /* The usual write to what is dirty already. */
        if ((hb->level[0][lo] & mask) == mask)
            return;
        or_word(hb, lo, mask);
    } else {
        if (hb->count == 0) {
            /* Not to be read: each page would be brought in twice, as zeroes and to be written to. */
            memset(&hb->level[0][lo + 1], 0xff, (hi - lo - 1) * sizeof(uint64_t));
            hb->count = (hi - lo - 1) * WORD_BITS;
        } else {
            for (uint64_t w = lo + 1; w < hi; w++)
                or_word(hb, w, ~UINT64_C(0));
        }
        or_word(hb, lo, mask_from(first));
        or_word(hb, hi, mask_to(last));
    }
    summary_set(hb, 0, lo, hi);
}

/* The first bit at or after @bit that is set, NONE if there is none. Up until a word has one, then down to it. */
static uint64_t next_set(const HBitmap *hb, uint64_t bit)
{
    unsigned l = 0;
    for (;;) {
        if (bit / WORD_BITS >= hb->words[l])
            return NONE;
        const uint64_t word = hb->level[l][bit / WORD_BITS] & mask_from(bit);
        if (word) {
            bit = bit / WORD_BITS * WORD_BITS + (unsigned)__builtin_ctzll(word);
            break;
        }
        if (++l == hb->levels)
            return NONE;
        bit = bit / WORD_BITS + 1;
    }
    while (l > 0) {
        l--;
        bit = bit * WORD_BITS + (unsigned)__builtin_ctzll(hb->level[l][bit]);
    }
    return bit;
}

/* The first bit in [@bit, @end) that is clear, or @end. */
static uint64_t next_clear(const HBitmap *hb, uint64_t bit, uint64_t end)
{
    if (bit >= end)
        return end;
    uint64_t w = bit / WORD_BITS;
    uint64_t word = ~hb->level[0][w] & mask_from(bit);
    while (!word) {
        if (++w * WORD_BITS >= end)
            return end;
        word = ~hb->level[0][w];
    }
    return MIN(w * WORD_BITS + (unsigned)__builtin_ctzll(word), end);
}

void hbitmap_reset(HBitmap *hb, uint64_t offset, uint64_t bytes)
{
    uint64_t first, last;
    if (!to_bits(hb, offset, bytes, &first, &last))
        return;
    const uint64_t granularity = UINT64_C(1) << hb->granularity_bits;
    g_assert(is_aligned(offset, granularity));
    g_assert(bytes >= hb->size - offset || is_aligned(bytes, granularity));
    /* From one dirty word to the next: what is clean is neither looked at nor, being zero pages, brought in. */
    uint64_t bit = first;
    while ((bit = next_set(hb, bit)) <= last) {
        const uint64_t w = bit / WORD_BITS;
        uint64_t mask = mask_from(bit);
        if (w == last / WORD_BITS)
            mask &= mask_to(last);
        uint64_t *word = &hb->level[0][w];
        hb->count -= ones(*word & mask);
        *word &= ~mask;
        if (!*word)
            summary_reset(hb, w);
        bit = (w + 1) * WORD_BITS;
    }
}

void hbitmap_reset_all(HBitmap *hb)
{
    if (hb->count == 0)
        return;
    if (hb->memory_size < MAP_MIN || madvise(hb->memory, hb->memory_size, MADV_DONTNEED) < 0)
        memset(hb->memory, 0, hb->memory_size);
    hb->count = 0;
}

/* Where a search of @bytes from @offset on ends. */
static uint64_t search_end(const HBitmap *hb, uint64_t offset, uint64_t bytes)
{
    return offset >= hb->size ? offset : offset + MIN(bytes, hb->size - offset);
}

int64_t hbitmap_next_dirty(const HBitmap *hb, uint64_t offset, uint64_t bytes)
{
    const uint64_t end = search_end(hb, offset, bytes);
    if (offset >= end)
        return -1;
    const uint64_t bit = next_set(hb, offset >> hb->granularity_bits);
    if (bit == NONE)
        return -1;
    const uint64_t found = MAX(bit << hb->granularity_bits, offset);
    return found < end ? (int64_t)found : -1;
}

int64_t hbitmap_next_zero(const HBitmap *hb, uint64_t offset, uint64_t bytes)
{
    const uint64_t end = search_end(hb, offset, bytes);
    if (offset >= end)
        return -1;
    const uint64_t end_bit = ((end - 1) >> hb->granularity_bits) + 1;
    const uint64_t bit = next_clear(hb, offset >> hb->granularity_bits, end_bit);
    return bit == end_bit ? -1 : (int64_t)MAX(bit << hb->granularity_bits, offset);
}

bool hbitmap_next_dirty_area(const HBitmap *hb, uint64_t offset, uint64_t end, uint64_t max_bytes, uint64_t *ret_offset,
                             uint64_t *ret_bytes)
{
    end = MIN(end, hb->size);
    if (offset >= end || max_bytes == 0)
        return false;
    const int64_t start = hbitmap_next_dirty(hb, offset, end - offset);
    if (start < 0)
        return false;
    const uint64_t limit = MIN(end - (uint64_t)start, max_bytes);
    const int64_t zero = hbitmap_next_zero(hb, (uint64_t)start, limit);
    *ret_offset = (uint64_t)start;
    *ret_bytes = zero < 0 ? limit : (uint64_t)(zero - start);
    return true;
}

uint64_t hbitmap_status(const HBitmap *hb, uint64_t offset, uint64_t bytes, bool *ret_dirty)
{
    g_assert(offset < hb->size && bytes > 0);
    const uint64_t end = search_end(hb, offset, bytes);
    *ret_dirty = hbitmap_get(hb, offset);
    const int64_t other = *ret_dirty ? hbitmap_next_zero(hb, offset, bytes) : hbitmap_next_dirty(hb, offset, bytes);
    return (other < 0 ? end : (uint64_t)other) - offset;
}

/* The words of @src that are not 0, or-ed into @dst of the same granularity; bits that @dst has not are left out. */
static void or_words(HBitmap *dst, const HBitmap *src)
{
    uint64_t bit = 0;
    while ((bit = next_set(src, bit)) < dst->bits) {
        const uint64_t w = bit / WORD_BITS;
        uint64_t word = src->level[0][w];
        if (w == (dst->bits - 1) / WORD_BITS)
            word &= mask_to(dst->bits - 1);
        or_word(dst, w, word);
        summary_set(dst, 0, w, w);
        bit = (w + 1) * WORD_BITS;
    }
}

bool hbitmap_merge(HBitmap *dst, const HBitmap *src)
{
    if (dst->size != src->size)
        return false;
    if (dst->granularity_bits == src->granularity_bits) {
        or_words(dst, src);
        return true;
    }
    uint64_t offset = 0, bytes;
    while (hbitmap_next_dirty_area(src, offset, src->size, UINT64_MAX, &offset, &bytes)) {
        hbitmap_set(dst, offset, bytes);
        offset += bytes;
    }
    return true;
}

HBitmap *hbitmap_clone(const HBitmap *hb)
{
    HBitmap *copy = hbitmap_new(hb->size, hb->granularity_bits);
    if (copy)
        or_words(copy, hb);
    return copy;
}

bool hbitmap_truncate(HBitmap *hb, uint64_t bytes)
{
    if (bytes == hb->size)
        return true;
    HBitmap resized;
    if (!hbitmap_init(&resized, bytes, hb->granularity_bits))
        return false;
    if (resized.bits)
        or_words(&resized, hb);
    memory_put(hb);
    *hb = resized;
    return true;
}

uint64_t hbitmap_serialize_align(const HBitmap *hb)
{
    return (uint64_t)WORD_BITS << hb->granularity_bits;
}

/* The words of a part; checks its alignment. */
static uint64_t part_words(const HBitmap *hb, uint64_t offset, uint64_t bytes, uint64_t *first)
{
    const uint64_t align = hbitmap_serialize_align(hb);
    g_assert(is_aligned(offset, align) && offset <= hb->size && bytes <= hb->size - offset);
    g_assert(is_aligned(bytes, align) || offset + bytes == hb->size);
    *first = offset / align;
    return div_round_up(bytes, align);
}

size_t hbitmap_serialize_size(const HBitmap *hb, uint64_t offset, uint64_t bytes)
{
    uint64_t first;
    return part_words(hb, offset, bytes, &first) * sizeof(uint64_t);
}

void hbitmap_serialize(const HBitmap *hb, void *buf, uint64_t offset, uint64_t bytes)
{
    uint64_t first;
    const uint64_t n = part_words(hb, offset, bytes, &first);
    for (uint64_t i = 0; i < n; i++)
        store_le64((char *)buf + i * sizeof(uint64_t), hb->level[0][first + i]);
}

void hbitmap_deserialize(HBitmap *hb, const void *buf, uint64_t offset, uint64_t bytes)
{
    uint64_t first;
    const uint64_t n = part_words(hb, offset, bytes, &first);
    hbitmap_reset(hb, offset, bytes);
    for (uint64_t i = 0; i < n; i++) {
        uint64_t word = load_le64((const char *)buf + i * sizeof(uint64_t));
        if (first + i == (hb->bits - 1) / WORD_BITS)
            word &= mask_to(hb->bits - 1);
        if (word) {
            or_word(hb, first + i, word);
            summary_set(hb, 0, first + i, first + i);
        }
    }
}
