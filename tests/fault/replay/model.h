/*
 * What a guest may find after a power cut, by the log of its requests: for each sector the value that the last covering
 * flush made durable, or any that was issued later. In workloads a sector holds one 8-byte value, repeated, and each
 * write has its own; in logs from elsewhere a number stands for what a sector holds.
 */
#pragma once
#include "tests/fault/replay/log.h"

typedef struct Model Model;

/* What a sector holds: its 8 bytes, if they are repeated; else a number that stands for all of it. */
uint64_t sector_value(const uint8_t *sector);

/* @records: the guest's, borrowed. @size: bytes of the disk at the beginning. @base: what the sectors hold then, NULL:
 * zeroes; copied. */
Model *model_new(const GArray *records, uint64_t size, const uint64_t *base, size_t n_base);
void model_free(Model *model);
/* The most that the disk ever measured, bytes. */
uint64_t model_room(const Model *model);
/* From now on it is asked about a power cut just after moment @when. */
void model_at(Model *model, uint64_t when);
/* May the disk have that size, and that content? Else false and *@ret_why, which the caller frees. */
bool model_allows(Model *model, const uint8_t *got, uint64_t size, char **ret_why);
/* Everything completed and nothing was cut: the value of sector @i. */
uint64_t model_final(const Model *model, uint64_t i);
