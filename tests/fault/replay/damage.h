/*
 * Damage to a qcow2 image in memory, as broken writers, bad memory and bad disks do it; at random, by rnd().
 */
#pragma once
#include "tests/fault/replay/disk.h"

/* To entries of tables: what guests find may change by it. */
void damage_entries(Disk *disk);
/* To reference counts, what leads to them, the header's bits, the snapshots' table and the bitmaps: what guests find
 * does not change, though nobody may be able to open the image. True: a repair of everything will give up the
 * bitmaps. */
bool damage_rest(Disk *disk);
/* To a qed image: what leads nowhere, leaks at the end, the flag that asks for a check. */
void damage_qed(Disk *disk);
/* Where entry @i of the snapshots' table begins, bytes; 0: there is none. */
uint64_t snapshot_entry_at(const Disk *disk, uint32_t i);
