/*
 * The states that a power cut may leave of some disks, by their logs.
 *
 * Moments between two completed flushes are one window: whatever can be there at one of them can be there at its end,
 * where most is demanded of it. At the end of a window everything is durable that a completed flush covers (it had
 * completed when that flush was submitted), and FUA writes that completed. The rest is open: cut into pieces of 512
 * bytes, any subset of them may be there, applied in order.
 */
#pragma once
#include "tests/fault/replay/disk.h"
#include "tests/fault/replay/log.h"

enum { STATES_DISKS_MAX = 4, ALL_SUBSETS = 10 /* pieces: where there are no more, all subsets are built */ };

/* A disk with its log. */
typedef struct Tracked {
    Disk *disk;
    uint8_t *start; /* what it held before */
    uint64_t start_size;
    GArray *records; /* of Record */
} Tracked;

typedef struct States States;

/* @tracked borrowed, with what it points to. */
States *states_new(const Tracked *tracked, size_t n);
void states_free(States *s);
size_t states_windows(const States *s);
/* Goes to a window; the moment of its end. */
uint64_t states_enter(States *s, size_t window);
/* How many pieces and requests are open in it. */
size_t states_open(const States *s);
size_t states_requests(const States *s);
/* Puts the next state on the disks: all subsets, or up to @most of several kinds. False: there are no more. */
bool states_next(States *s, unsigned most);
/* The whole of what was written, everything completed. */
void states_final(States *s);
/* Of the content of all disks, from @hash on. */
uint64_t states_hash(const States *s, uint64_t hash);
/* For failures: which pieces are there. Caller frees. */
char *states_describe(const States *s);
