/*
 * Resizing on a client's behalf.
 */
#pragma once
#include "daemon/daemon.h"

/* Makes @node @size bytes long, growing or shrinking its bitmaps. Refused while a job uses it, and for a negative size.
 */
bool resize_co_node(Daemon *daemon, Node *node, int64_t size, GError **error);
