/*
 * The human monitor: commands as a person types them, for human-monitor-command.
 *
 * Each prints into the reply; but for qemu-io, which stands for QEMU's tool of that name and prints to the process's
 * standard output, as it does in QEMU.
 */
#pragma once
#include "daemon/daemon.h"

/* One command line being carried out. */
typedef struct Hmp {
    Daemon *daemon;
    GString *out; /* the reply; lines end with '\n' */
} Hmp;

/* The words of @text, in which "…" holds spaces together and \ takes the meaning off what follows. NULL-terminated, the
 * caller's; NULL with @error when a quote is not closed. */
char **hmp_split(const char *text, GError **error);

/* "Error: …", as QEMU's monitor tells errors of a command. */
void hmp_error(Hmp *hmp, const GError *error);

/* The commands; @args follow the command's own words, NULL-terminated. */
void hmp_co_info_block(Hmp *hmp, char **args);
void hmp_co_info_block_jobs(Hmp *hmp, char **args);
void hmp_co_info_snapshots(Hmp *hmp, char **args);
void hmp_co_block_resize(Hmp *hmp, char **args);
void hmp_co_commit(Hmp *hmp, char **args);
void hmp_co_qemu_io(Hmp *hmp, char **args);

/* The process ends: requests that qemu-io holds up go on, and those that it left behind are waited for. */
void hmp_io_release(Daemon *daemon);
void hmp_io_co_finish(Daemon *daemon);
