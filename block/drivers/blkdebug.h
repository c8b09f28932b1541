/*
 * blkdebug: what its two files share. The rules (blkdebug-rules.c) decide which request fails and which waits; the
 * driver (blkdebug.c) asks them. See docs/drivers/blkdebug.md. Loop's thread.
 */
#pragma once
#include "block/graph/debug.h"

typedef struct Blkdebug Blkdebug;

/* A request that waits at a breakpoint. Lives on its coroutine's stack. */
typedef struct BlkdebugHeld {
    const char *tag;
    bool go; /* it may go on */
    CoQueue waiter;
    struct BlkdebugHeld *next;
} BlkdebugHeld;

struct Blkdebug {
    GPtrArray *rules;   /* of Rule *, owned, in order of definition: the first that fits wins */
    GPtrArray *armed;   /* of Rule *, borrowed: those that the last event with an error rule has armed */
    int64_t state;      /* of the state machine, 1 at first */
    BlkdebugHeld *held; /* requests at breakpoints, the latest first */

    /* set by open, constant afterwards */
    Limits limits; /* those that options ask for; 0: none */
    unsigned take_perms, unshare_perms;
};

/* No rules yet. */
void blkdebug_rules_init(Blkdebug *s);
void blkdebug_rules_free(Blkdebug *s);
/* Adds the rules of a configuration file's @text. False with @error: *@ret_line is where it stands, from 1; the rules
 * before it may have been added. */
bool blkdebug_parse(Blkdebug *s, const char *text, unsigned *ret_line, GError **error);
/* Adds those of the file that the options name and then the options' own. False with @error: some may have been. */
bool blkdebug_co_rules_load(Blkdebug *s, const BlockdevOptionsBlkdebug *options, GError **error);

/* An event; yields at breakpoints. */
void blkdebug_co_event(Node *node, BlkdebugEvent event);
/* Does a request of this kind fail? 0 or -errno; @bytes 0: a request without a range. */
int blkdebug_co_check(Blkdebug *s, uint64_t offset, uint64_t bytes, BlkdebugIOType type);

extern const DriverDebug blkdebug_debug;
