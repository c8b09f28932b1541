/*
 * The backing file of an image, as every format with one treats it.
 */
#pragma once
#include "block/graph/driver.h"

/* For co_open: attaches what the option `backing` says (@given; null: nothing), or else the file that the header names
 * (@filename NULL: none; @format NULL: to be probed). */
bool backing_co_open(Node *node, const BlockdevRefOrNull *given, const char *filename, const char *format,
                     GError **error);
/* Reads what the backing file has; zeroes behind its end or without one. 0 or -errno. */
int backing_co_read(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset);
/* Does the backing file have something at @offset? */
static inline bool backing_at(const Node *node, uint64_t offset)
{
    return node->backing && offset < node->backing->node->size;
}
/*
 * Has it, or could it one day? What a client zeroes there must be marked as zeroes, however it reads now. An image that
 * names a backing file may be opened without it and get it later: the target of a mirror with sync=top is one.
 */
static inline bool backing_may_show(const Node *node, uint64_t offset)
{
    return node->backing ? backing_at(node, offset) : node->backing_expected;
}
