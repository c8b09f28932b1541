#include "block/util/bytes.h"

/* Four vectors of 16 bytes at a time: every target has 16-byte registers, and one branch serves 64 bytes. */
typedef uint64_t Vec __attribute__((vector_size(16), aligned(1), may_alias));

static uint64_t load64(const unsigned char *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof(word));
    return word;
}

static bool short_is_zero(const unsigned char *p, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (p[i])
            return false;
    return true;
}

bool bytes_are_zero(const void *buf, size_t size)
{
    const unsigned char *p = buf;

    if (size < 8)
        return short_is_zero(p, size);
    /* Data betrays itself at its ends or in the middle far more often than not. */
    if (load64(p) | load64(p + size - 8) | load64(p + (size - 8) / 2))
        return false;
    const unsigned char *end = p + size;
    for (; end - p >= 64; p += 64) {
        const Vec *v = (const Vec *)p;
        Vec any = (v[0] | v[1]) | (v[2] | v[3]);
        if (any[0] | any[1])
            return false;
    }
    for (; end - p >= 8; p += 8)
        if (load64(p))
            return false;
    /* The last few bytes belong to the last word, which was looked at first. */
    return true;
}
