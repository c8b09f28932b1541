/*
 * File names: "PATH", "json:{…}", "file:PATH", "nbd:…", and how they become options, and nodes names again.
 */
#pragma once
#include "block/graph/driver.h"
#include "qapi/rt/tree.h"

#define PROBE_SIZE 2048 /* bytes at the start of a file that probing looks at */

/* Does the name or @extra (may be NULL) say the format, so that nothing is left to probe? */
bool filename_names_format(const char *filename, Tree *extra);

/* Options of just the protocol node that @filename names, with what @extra says of "file". NULL with @error. */
BlockdevOptions *filename_protocol_options(const char *filename, Tree *extra, GError **error);

/*
 * Options of the whole tree: @format (NULL: the name says it) over the protocol, @extra merged in. What @extra says
 * about a backing file without naming its driver goes to *@ret_backing_extra (the caller's) instead.
 */
BlockdevOptions *filename_options(const char *filename, const char *format, Tree *extra, Tree **ret_backing_extra,
                                  GError **error);

/* What the header of an image called @overlay says for its backing file @backing: a relative name means another file
 * in another folder, so it stands only where the overlay's is in the current folder too. Caller frees. */
char *filename_as_backing(Node *backing, const char *overlay);
/* The same for an overlay that is open. */
char *filename_for_header(Node *backing, Node *overlay);
/* A backing file name as @parent's header has it, relative to the folder of @parent's own file. Caller frees. */
char *filename_resolve(Node *parent, const char *filename, GError **error);
