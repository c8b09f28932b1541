/*
 * The log of blklogwrites: the format of Linux's dm-log-writes, little endian. Sector 0 holds the super block, entries
 * follow without gaps: a sector that begins with a LogEntry (a mark's data follows in the same one), then the data, but
 * for discards and marks. Sectors are those of the super block.
 *
 * With log-order=on, marks say when each request began and ended; see docs/drivers/blklogwrites.md.
 */
#pragma once
#include <stdint.h>

#define LOG_MAGIC   UINT64_C(0x6a736677736872)
#define LOG_VERSION 1

enum { LOG_FLUSH = 1, LOG_FUA = 2, LOG_DISCARD = 4, LOG_MARK = 8 };

typedef struct LogSuper {
    uint64_t magic, version, nr_entries;
    uint32_t sector_size;
} __attribute__((packed)) LogSuper;

typedef struct LogEntry {
    uint64_t sector, nr_sectors, flags;
    uint64_t data_len; /* of a mark, bytes */
} __attribute__((packed)) LogEntry;

/* Takes the next moment for something else that has to fit in with the logs. They count up through the process. */
uint64_t blklogwrites_moment(void);
