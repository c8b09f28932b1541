/*
 * --drive: a named device with its tree of nodes, as QEMU's -drive if=none makes it.
 */
#pragma once
#include "daemon/daemon.h"

/* Decodes and checks without opening anything; @tree is changed and kept. The result is for the two below. */
void *drive_decode(Tree *tree, QapiSource source, GError **error);
void drive_free(void *drive);
const char *drive_id(const void *drive); /* borrowed */
bool drive_co_apply(Daemon *daemon, void *drive, GError **error);
