/*
 * What the tests of single cases on qcow2 images share: the file "image", and bytes in it.
 */
#pragma once
#include "drivers-image.h"

/* Writes a big-endian number of @size bytes into the file "image". */
static inline void poke(long offset, unsigned size, uint64_t value)
{
    g_autofree char *path = in_folder("image");
    uint8_t raw[8];
    FILE *f = fopen(path, "r+b");

    assert_non_null(f);
    store_be64(raw, value);
    assert_int_equal(fseek(f, offset, SEEK_SET), 0);
    assert_int_equal(fwrite(raw + 8 - size, size, 1, f), 1);
    assert_int_equal(fclose(f), 0);
}

/* The one of 8 bytes there. */
static inline uint64_t peek(long offset)
{
    g_autofree char *path = in_folder("image");
    uint8_t raw[8];
    FILE *f = fopen(path, "rb");

    assert_non_null(f);
    assert_int_equal(fseek(f, offset, SEEK_SET), 0);
    assert_int_equal(fread(raw, 8, 1, f), 1);
    fclose(f);
    return load_be64(raw);
}

/* Opens the file "image"; @more: further members of the node's JSON. */
static inline Node *image_co_open(const char *more)
{
    return must_co_open("{'driver':'qcow2','node-name':'q','discard':'unmap',"
                        "'file':{'driver':'file','filename':'%s/image'}%s}",
                        folder, more);
}
