/*
 * Changing what an open node may do.
 */
#pragma once
#include "block/graph/node.h"

/*
 * Makes @node read-only or writable, and along with it the file under it where that was opened for it and says nothing
 * else in its options. Harmless when it is so already. Flushes first. False with @error, and nothing changed, when
 * somebody writes to a node that is to be read-only, or when driver, file or its locks refuse writing.
 */
bool node_co_set_read_only(Node *node, bool read_only, GError **error);
