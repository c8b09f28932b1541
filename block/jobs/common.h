/*
 * What mirror and backup have in common when they start and end: finding source and target, putting a filter in and
 * taking it out.
 */
#pragma once
#include "block/jobs/job-int.h"

/*
 * The root node that a command's @device names: a device's, or a node without parents in the graph. NULL with QEMU's
 * words ("Cannot find device='x' nor node-name='x'", "Need a root block node"). Borrowed.
 */
Node *job_find_root(Graph *graph, const char *device, GError **error);
/* Refuses a node with parents in the graph: "Need a root block node". */
bool job_check_root(Node *node, GError **error);
/* The same without asking for a root. */
Node *job_find_target(Graph *graph, const char *name, GError **error);
/* The id of the job on @node when the client gave none: the name of the device that shows it, or NULL. Borrowed. */
const char *job_default_id(Graph *graph, Node *node);

/* Flushes what a job wrote to @node; an error counts as one of writing under @policy. 0 (also when cancelled) or
 * -errno. */
int job_co_flush(Job *job, Node *node, BlockdevOnError policy);

/* How a job's target image comes to be. */
typedef struct TargetOptions {
    const char *filename;
    const char *format;    /* NULL: the source's format; where the image exists: probe */
    const char *node_name; /* NULL: automatic */
    bool create;           /* else it exists */
    Node *backing;         /* what a new image names as its backing file; NULL: none */
    /* When it is opened: 'h' with the backing file of its header, '0' without any, 'n' with the node @backing. */
    char open_backing;
    /* Comes back: the file was not there before. It is removed when it cannot be opened. */
    bool made_new;
} TargetOptions;

/* Makes (where asked) and opens the target of a drive-* command. One reference, the caller's; NULL with @error. */
Node *job_co_open_target(Node *source, TargetOptions *options, GError **error);

/*
 * Puts @filter, which has no children yet, above @source, its child @name: all parents of @source get @filter instead,
 * but for @except (may be NULL). @source must be drained. False with @error: nothing changed.
 */
bool job_co_insert_filter(Node *filter, Node *source, const char *name, Node *except, GError **error);
/* Takes it out again: its parents go to its child. The node must be drained. What refuses is impossible: it gives
 * permissions back. */
void job_co_remove_filter(Node *filter);

/* The cluster size of @node's image in bytes, 0: none. */
uint64_t job_cluster_size(Node *node);
/* What a write of less than that would fill up from the image's backing file: its clusters, or their subclusters.
 * Bytes, 0: none. */
uint64_t job_fill_size(Node *node);
