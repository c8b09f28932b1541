/*
 * Carrying out options at start-up, in the order given, in the same way as QMP commands would.
 */
#pragma once
#include "daemon/options.h"

/*
 * Starts the coroutine that carries @options out (borrowed until it is done). Then the daemon serves, or it ends after
 * the reason was printed; *@ret_failed tells which.
 */
void startup_begin(Daemon *daemon, const Options *options, bool *ret_failed);

/* For the table of words. */
bool startup_co_blockdev(Daemon *daemon, void *value, GError **error);
bool startup_co_nbd_server(Daemon *daemon, void *value, GError **error);
void *startup_decode_export(Tree *tree, QapiSource source, GError **error);
void startup_free_export(void *value);
bool startup_co_export(Daemon *daemon, void *value, GError **error);
bool startup_co_qmp(Daemon *daemon, void *value, GError **error);
