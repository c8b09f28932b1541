/*
 * Bytes and numbers: integers in big and little endian at any address, alignment arithmetic, a fast scan for zeros.
 */
#pragma once
#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/*
 * load_be16(p), store_be16(p, value) and so on: 16, 32 and 64 bits, big (be) and little (le) endian. @p needs no
 * alignment; memcpy of a constant size compiles to one plain load or store.
 */
#define BYTES_DEFINE_ACCESS(order, bits)                                                                               \
    static inline uint##bits##_t load_##order##bits(const void *p)                                                     \
    {                                                                                                                  \
        uint##bits##_t raw;                                                                                            \
        memcpy(&raw, p, sizeof(raw));                                                                                  \
        return order##bits##toh(raw);                                                                                  \
    }                                                                                                                  \
    static inline void store_##order##bits(void *p, uint##bits##_t value)                                              \
    {                                                                                                                  \
        uint##bits##_t raw = hto##order##bits(value);                                                                  \
        memcpy(p, &raw, sizeof(raw));                                                                                  \
    }
BYTES_DEFINE_ACCESS(be, 16)
BYTES_DEFINE_ACCESS(be, 32)
BYTES_DEFINE_ACCESS(be, 64)
BYTES_DEFINE_ACCESS(le, 16)
BYTES_DEFINE_ACCESS(le, 32)
BYTES_DEFINE_ACCESS(le, 64)
#undef BYTES_DEFINE_ACCESS

static inline bool is_pow2(uint64_t n)
{
    return n && !(n & (n - 1));
}

/* @align is a power of two in both. align_up() wraps around when the result would not fit: cap sizes first. */
static inline uint64_t align_down(uint64_t n, uint64_t align)
{
    return n & ~(align - 1);
}

static inline uint64_t align_up(uint64_t n, uint64_t align)
{
    return (n + (align - 1)) & ~(align - 1);
}

static inline bool is_aligned(uint64_t n, uint64_t align)
{
    return !(n & (align - 1));
}

/* n / d rounded up; any d > 0, no overflow. */
static inline uint64_t div_round_up(uint64_t n, uint64_t d)
{
    return n / d + (n % d != 0);
}

static inline uint64_t u64_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t u64_max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* The exponent of the largest power of two that is at most @n; @n > 0. */
static inline unsigned ilog2(uint64_t n)
{
    return 63 - (unsigned)__builtin_clzll(n);
}

/* Are all @size bytes at @buf zero? True for none. Data that is not zero is usually found out in the first bytes. */
bool bytes_are_zero(const void *buf, size_t size);
