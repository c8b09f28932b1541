/*
 * A scripted driver for graph tests: bytes in memory, a log of what it was asked, and levers to hold requests up or to
 * make them fail.
 */
#pragma once
#include "block/graph/graph-int.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

typedef struct Fake {
    uint8_t *data;   /* of length bytes */
    uint64_t length; /* what co_getlength says */
    GString *log;    /* "r 0+512 w 512+512 z … d … f …", since fake_log_take() */
    bool hold;       /* requests wait in held until fake_release() */
    CoQueue held;
    int held_count;
    int fail; /* errno for every request, 0: none */
    int fail_flush;
    bool zeroes_native; /* write-zeroes and discard work, else -ENOTSUP */
    bool refuse_perm;   /* check_perm refuses */
    bool refuse_reopen; /* co_set_read_only refuses, after it was held */
    int touched;        /* calls of co_touch_bitmaps */
    int perm_prepared, perm_set, perm_aborted;
    bool (*allocated)(uint64_t offset); /* for block status, per 512 bytes; NULL: all */
} Fake;

/* One turn of the world: a loop and a graph, and @entry as a coroutine until it returns. */
extern Graph *fake_graph;
void fake_run(CoroutineEntry *entry);

/* A leaf "fake" of @size bytes (one reference, the caller's); alignment, limits: set them after. */
Node *fake_node(const char *name, uint64_t size);
/* A node whose driver has no callbacks, a plain filter, or a format with a file child (and backing). */
Node *fake_co_filter(const char *name, Node *below);
Node *fake_co_overlay(const char *name, uint64_t size, Node *backing);
static inline Fake *fake_of(Node *node)
{
    return node->state;
}
char *fake_log_take(Node *node);
void fake_release(Node *node);
void fake_pattern(void *buf, uint64_t offset, size_t size, unsigned seed);
