/*
 * Checking and repairing images that nobody else has open: `storage-daemon --check`.
 *
 * A checker works on the file below the format, so an image that the format's driver would refuse (damaged, dirty) can
 * be checked as long as its header can be read.
 */
#pragma once
#include "block/graph/driver.h"

enum {
    CHECK_FIX_LEAKS = 1 << 0,  /* give back what nothing refers to */
    CHECK_FIX_ERRORS = 1 << 1, /* make everything else good that can be */
};

struct CheckOptions {
    unsigned fix;
    /* What is being done and how far it is: bytes of metadata, @total 0 while it is not known. May be NULL. Must not
     * yield. */
    void (*progress)(void *opaque, const char *what, uint64_t done, uint64_t total);
    /* One finding, without a newline. May be NULL. Must not yield. */
    void (*message)(void *opaque, const char *text);
    void *opaque;
};

/* What is wrong, after the repair if one was asked for; clusters unless it says otherwise. */
struct CheckResult {
    uint64_t corruptions, leaks, check_errors; /* check_errors: what could not be found out */
    uint64_t corruptions_fixed, leaks_fixed;
    uint64_t image_end_offset; /* bytes: the end of the last cluster in use */
    uint64_t total_clusters, allocated_clusters, fragmented_clusters, compressed_clusters; /* of the virtual disk */
    bool unsupported;   /* the format has no checker: then the check fails */
    const char *format; /* the format's name, NULL: not even that was found out */
};

/* Checks @filename. @format NULL: probed. False when no check took place or it could not be finished. */
bool image_co_check(Graph *graph, const char *filename, const char *format, const CheckOptions *options,
                    CheckResult *result, GError **error);
