/*
 * Rate limit of jobs: how long to wait so that bytes per second stay under a speed. Time is cut into slices; each has
 * a quota of bytes, and what goes over it is paid for in the following slices, so bursts of any size average out.
 *
 * Zero-initialised memory is a limit that is off. The caller brings the time (LAW 10) and does the waiting.
 */
#pragma once
#include <stdint.h>

#define RATELIMIT_SLICE_NS INT64_C(100000000)

typedef struct RateLimit {
    int64_t speed;       /* bytes per second, 0: unlimited */
    int64_t slice_start; /* ns */
    double dispatched;   /* bytes accounted for since slice_start */
} RateLimit;

/* @bytes_per_s >= 0; 0 switches the limit off. What was used before is forgiven. */
void ratelimit_set(RateLimit *rl, int64_t bytes_per_s);

/* Accounts for @bytes done at @now_ns; returns the ns to wait before the next piece, 0 for none. */
int64_t ratelimit_delay(RateLimit *rl, int64_t now_ns, int64_t bytes);
