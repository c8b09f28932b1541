/*
 * Inputs of the fuzz target drivers-image: an image, and at its end a script of what is done to it.
 *
 *     image · N operations of 4 bytes · options (1 byte) · N (1 byte) · "SDS1"
 *
 * Without the last six bytes all of it is the image, and a standard script runs. The mutator keeps that shape: it
 * changes either the script or the image, and of the image mostly the numbers that mean something: fields of the
 * header, extensions, entries of tables that the header leads to.
 */
#pragma once
#include "block/util/bytes.h"
#include <glib.h>
#include <string.h>

enum { OP_BYTES = 4, OPS_MAX = 48, TRAILER = 6 };

typedef struct FuzzInput {
    const uint8_t *image;
    size_t size;
    const uint8_t *ops; /* n of OP_BYTES */
    unsigned n;
    uint8_t options;
} FuzzInput;

/* False: no script. */
static inline bool fuzz_input_parse(FuzzInput *in, const uint8_t *data, size_t size)
{
    const uint8_t *end = data + size - TRAILER;

    *in = (FuzzInput){.image = data, .size = size};
    if (size < TRAILER || memcmp(end + 2, "SDS1", 4) != 0 || end[1] > OPS_MAX ||
        (size_t)end[1] * OP_BYTES > size - TRAILER)
        return false;
    in->n = end[1];
    in->options = end[0];
    in->ops = end - (size_t)in->n * OP_BYTES;
    in->size = (size_t)(in->ops - data);
    return true;
}

/* libFuzzer's; absent where a corpus is only replayed. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max) __attribute__((weak));
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

static uint64_t mutate_rng;

static inline uint64_t mutate_rnd(uint64_t below)
{
    mutate_rng ^= mutate_rng << 13;
    mutate_rng ^= mutate_rng >> 7;
    mutate_rng ^= mutate_rng << 17;
    return below ? (mutate_rng * UINT64_C(0x2545f4914f6cdd1d) >> 11) % below : 0;
}

static inline uint64_t mutate_read(const uint8_t *p, unsigned bytes)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | p[i];
    return value;
}

static inline void mutate_write(uint8_t *p, unsigned bytes, uint64_t value)
{
    for (unsigned i = bytes; i-- > 0; value >>= 8)
        p[i] = (uint8_t)value;
}

/* A number that formats trip over, in place of @old. */
static inline uint64_t mutate_number(uint64_t old, uint64_t size, unsigned cluster_bits)
{
    uint64_t cluster = UINT64_C(1) << cluster_bits, flags = old & ~UINT64_C(0x00fffffffffffe00);

    switch (mutate_rnd(12)) {
    case 0:
        return 0;
    case 1:
        return mutate_rnd(4);
    case 2:
        return UINT64_MAX >> mutate_rnd(64);
    case 3:
        return UINT64_C(1) << mutate_rnd(64);
    case 4:
        return old ^ UINT64_C(1) << mutate_rnd(64);
    case 5:
        return old + (mutate_rnd(2) ? cluster : -cluster);
    case 6:
        return old + mutate_rnd(17) - 8;
    case 7:
    case 8:
        return (mutate_rnd(size / cluster + 2) << cluster_bits) | (mutate_rnd(2) ? flags : UINT64_C(1) << 63);
    case 9:
        return align_down(mutate_rnd(size + 1), 512) | UINT64_C(1) << (mutate_rnd(2) ? 62 : 63);
    case 10:
        return size - mutate_rnd(3);
    default:
        return mutate_rnd(UINT64_MAX);
    }
}

/* Somewhere in a table that a chain of pointers, which begins in the header, leads to. */
static inline size_t mutate_place(const uint8_t *image, size_t size, unsigned cluster_bits)
{
    static const uint8_t pointers[] = {40, 40, 48, 48, 64, 8};
    size_t at = pointers[mutate_rnd(sizeof(pointers))];

    for (uint64_t deep = mutate_rnd(4); deep > 0 && at + 8 <= size; deep--) {
        uint64_t to = mutate_read(image + at, 8) & UINT64_C(0x00fffffffffffe00);
        if (to == 0 || to >= size)
            break;
        at = (size_t)to + (size_t)mutate_rnd(mutate_rnd(2) ? 8 : UINT64_C(1) << (cluster_bits - 3)) * 8;
    }
    return at;
}

/* The same for what extensions of the header lead to: bitmaps' directory and tables, and the LUKS header. */
static inline size_t mutate_extension_place(const uint8_t *image, size_t size, unsigned cluster_bits)
{
    /* Fields of LUKS: iterations of the digest, data's place, length of a key; a slot's state, iterations, place. */
    static const uint16_t luks[] = {164, 104, 108, 208, 212, 248, 252, 256, 296, 300, 6, 8, 40, 72};
    size_t at = size > 104 && image[7] > 2 ? (size_t)mutate_read(image + 100, 4) : 72;

    for (unsigned n = 0; n < 8 && at + 32 <= size; n++) {
        uint64_t kind = mutate_read(image + at, 4), bytes = mutate_read(image + at + 4, 4);
        size_t data = at + 8;
        uint64_t to;

        if (kind == 0 || bytes > size)
            break;
        at = data + align_up(bytes, 8);
        if (kind == 0x0537be77 && (to = mutate_read(image + data, 8)) < size)
            return mutate_rnd(4) ? (size_t)to + luks[mutate_rnd(G_N_ELEMENTS(luks))] : data + (size_t)mutate_rnd(16);
        if (kind != 0x23852875 || mutate_rnd(4) == 0 || (to = mutate_read(image + data + 16, 8)) >= size)
            continue;
        if (mutate_rnd(3)) /* a field of the first entries, else what its table holds */
            return (size_t)to + (size_t)mutate_rnd(64);
        to = mutate_read(image + MIN(to, size - 8), 8);
        return to < size ? (size_t)to + (size_t)mutate_rnd(UINT64_C(1) << (cluster_bits - 3)) * 8 : at;
    }
    return at;
}

static inline void mutate_structure(uint8_t *image, size_t size)
{
    static const uint8_t widths[] = {1, 2, 4, 4, 8, 8, 8, 8};
    unsigned cluster_bits = size > 24 ? image[23] : 0;

    if (cluster_bits < 9 || cluster_bits > 21)
        cluster_bits = 9;
    for (uint64_t n = 1 + mutate_rnd(mutate_rnd(3) ? 2 : 6); n > 0; n--) {
        unsigned width = widths[mutate_rnd(sizeof(widths))];
        size_t at = mutate_rnd(3) ? mutate_place(image, size, cluster_bits) : mutate_rnd(mutate_rnd(3) ? 128 : 512);
        if (size > 4 && memcmp(image, "LUKS", 4) == 0)
            at = mutate_rnd(600);
        else if (mutate_rnd(4) == 0)
            at = mutate_extension_place(image, size, cluster_bits);
        if (mutate_rnd(8) == 0)
            at += mutate_rnd(16);
        if (at + width <= size)
            mutate_write(image + at, width, mutate_number(mutate_read(image + at, width), size, cluster_bits));
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
    uint8_t script[OPS_MAX * OP_BYTES + 1] = {0};
    size_t n = 0, image;
    FuzzInput in;

    mutate_rng = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    if (fuzz_input_parse(&in, data, size)) {
        n = (size_t)in.n * OP_BYTES + 1;
        script[0] = in.options;
        memcpy(script + 1, in.ops, n - 1);
    }
    image = in.size;
    switch (mutate_rnd(8)) {
    case 0:
        image = LLVMFuzzerMutate(data, image, max > sizeof(script) + TRAILER ? max - sizeof(script) - TRAILER : max);
        break;
    case 1:
        LLVMFuzzerMutate(data, MIN(image, mutate_rnd(2) ? 112 : 1024), MIN(image, 1024));
        break;
    case 2:
    case 3:
        n = LLVMFuzzerMutate(script, MAX(n, 1), sizeof(script));
        break;
    default:
        mutate_structure(data, image);
    }
    if (n < 1 + OP_BYTES) { /* a script to begin with */
        n = 1 + (size_t)(1 + mutate_rnd(12)) * OP_BYTES;
        for (size_t i = 0; i < n; i++)
            script[i] = (uint8_t)mutate_rnd(256);
    }
    n = (n - 1) / OP_BYTES;
    if (image + n * OP_BYTES + TRAILER > max)
        return image;
    memcpy(data + image, script + 1, n * OP_BYTES);
    image += n * OP_BYTES;
    data[image] = script[0];
    data[image + 1] = (uint8_t)n;
    memcpy(data + image + 2, "SDS1", 4);
    return image + TRAILER;
}
