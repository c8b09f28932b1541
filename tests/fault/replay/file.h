/*
 * Logs of other processes: `crash-replay --log FILE --image FILE`.
 */
#pragma once
#include "tests/fault/replay/run.h"

typedef struct LogFiles {
    char *log, *image; /* of the disk; the image is what it held before the log began */
    char *guest_log;   /* between format and guest, NULL: none */
    char *format;      /* NULL: qcow2 */
} LogFiles;

/* A workload that consists of what the log tells; @files is borrowed. NULL with @error: it cannot be replayed. */
const Workload *log_workload(const LogFiles *files, GError **error);
/* Its run_co_record(). */
void log_co_record(Run *run);
