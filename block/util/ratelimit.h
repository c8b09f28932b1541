/*
 * Rate limit of jobs: how long to wait so that bytes per second stay under a speed.
 *
 * It keeps the time until which all that was done is paid for at that speed. Up to one slice ahead of the clock there
 * is no wait at all, so that small pieces do not sleep one by one; beyond, the wait lasts until all is paid for.
 *
 * Zero-initialised memory is a limit that is off. The caller brings the time (LAW 10) and does the waiting.
 */
#pragma once
#include <stdint.h>

#define RATELIMIT_SLICE_NS INT64_C(100000000)

typedef struct RateLimit {
    int64_t speed;      /* bytes per second, 0: unlimited */
    int64_t paid_until; /* ns */
} RateLimit;

/* @bytes_per_s >= 0; 0 switches the limit off. What was done before is forgiven. */
void ratelimit_set(RateLimit *rl, int64_t bytes_per_s);

/* Accounts for @bytes (>= 0) done at @now_ns; returns the ns to wait before the next piece, 0 for none. */
int64_t ratelimit_delay(RateLimit *rl, int64_t now_ns, int64_t bytes);
