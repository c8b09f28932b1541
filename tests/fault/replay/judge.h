/*
 * Judging a state: the image opens, the guest finds what the model allows, the checkers find leaks at worst, and all
 * that again after a second power cut while the image is used again.
 */
#pragma once
#include "tests/fault/replay/run.h"

/* Counts, in memory that all processes share. */
typedef struct Tally {
    uint64_t idle; /* runs since there was a new state */
    uint64_t built, distinct, opened, ours, qemu, second, runs, tasks, failed;
    uint64_t hashes_room; /* a power of two */
    uint64_t hashes[];    /* of distinct states; 0: empty */
} Tally;

/* True when no other state had that hash. Any process. */
bool tally_is_new(Tally *tally, uint64_t hash);

/* Records one run and judges @states of its states. In a coroutine. Does not return when something is wrong. */
void judge_co_run(Run *run, Tally *tally, unsigned states);
