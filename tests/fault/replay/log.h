/*
 * What a log of blklogwrites with log-order=on tells: requests, each with the moments of its submission and completion.
 */
#pragma once
#include "block/drivers/blklogwrites.h"
#include "block/util/error.h"
#include <stdbool.h>

typedef enum RecordKind { RECORD_WRITE, RECORD_DISCARD, RECORD_FLUSH, RECORD_SIZE, RECORD_REVERT } RecordKind;

typedef struct Record {
    RecordKind kind;
    bool fua, failed;
    uint64_t offset, bytes; /* RECORD_SIZE: bytes is the new size */
    const uint8_t *data;    /* of a write: within the log; NULL: every 8 bytes are value */
    uint64_t value;         /* RECORD_REVERT, of the guest only: data has the values of all sectors, 8 bytes each */
    uint64_t submitted, completed; /* moments; completed 0: never, or failed */
} Record;

/* A GArray of Record in order of submission. The log must outlive it. NULL: it is no such log. */
GArray *log_parse(const uint8_t *log, size_t size, GError **error);
