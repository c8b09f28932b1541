/*
 * Disks in memory, for workloads to run on and for states to be judged on: the driver takes the name of null-co, and a
 * node is the disk that has the node's name.
 */
#pragma once
#include "block/graph/driver.h"

enum { SECTOR = 512, DISK_MAX = 256 << 20 };

typedef struct Disk {
    char *name;
    uint8_t *data;
    uint64_t size, room; /* behind size, data is zero */
    bool slow;           /* requests take their time, each its own */
} Disk;

/* Of that name; made when there is none yet. */
Disk *disk_get(const char *name);
void disk_resize(Disk *disk, uint64_t size);
void disk_load(Disk *disk, const void *data, uint64_t size);
void disk_load_file(Disk *disk, const char *path);
void disk_store_file(const Disk *disk, const char *path);
/* All disks are gone. */
void disks_free(void);

/* Which request of a slow disk fails: the countdown'th read, write or flush; all from then on when sticky. */
typedef enum FaultKind {
    FAULT_NONE,
    FAULT_READ,
    FAULT_WRITE,
    FAULT_FLUSH,
    FAULT_FULL,
    FAULT_HEADER /* a flush that follows a write of the first sector */
} FaultKind;
typedef struct Fault {
    FaultKind kind;
    uint64_t countdown; /* FAULT_FULL: bytes that the disk can hold */
    bool sticky, happened;
    bool header; /* it was written */
} Fault;
extern Fault fault;

/* One generator for all that is random: below @below, any number when that is 0. */
uint64_t rnd(uint64_t below);
void rnd_seed(uint64_t seed);

/* All drivers, with this one in null-co's place. */
const Driver *const *disk_drivers(void);
