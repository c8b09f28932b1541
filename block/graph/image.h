/*
 * Making images by name, as drive-mirror and drive-backup do with mode=absolute-paths.
 */
#pragma once
#include "block/graph/driver.h"

/* Is there nothing yet where @filename, a plain path, says? Then what is made there can be removed on failure. */
bool image_is_new(const char *filename);
/*
 * Creates @filename in format @format (e.g. "qcow2", "raw"). Refused by name where the format has no such option; a
 * half-made file is removed. Prints nothing.
 */
bool image_co_create(Graph *graph, const char *filename, const char *format, const CreateOptions *options,
                     GError **error);

/* @fn is told of every image that is about to be made, for the life of the graph. One watcher; the last one counts. */
typedef void ImageWatch(const char *filename, const char *format, const CreateOptions *options, void *opaque);
void graph_watch_images(Graph *graph, ImageWatch *fn, void *opaque);
