/*
 * What the files of LUKS share among themselves.
 */
#pragma once
#include "block/crypto/luks.h"

/* Bytes of key material of a slot, whole sectors. */
uint64_t luks_material_bytes(const LuksHeader *header);
/* Places for slots and data; needs key_bytes. */
void luks_layout(LuksHeader *header);
/* The option, checked: @min ms or more. */
bool luks_iter_time(bool has, int64_t ms, int64_t min, uint64_t *ret, GError **error);
/* 0: @password unlocks the slot, and @key is the master key. -EACCES: it does not. -ETIMEDOUT: *@cpu_ns (processor time
 * that may still be taken) was not enough. */
int luks_co_try_slot(const LuksHeader *header, const LuksIo *io, unsigned slot, const char *password, uint8_t *key,
                     int64_t *cpu_ns);
