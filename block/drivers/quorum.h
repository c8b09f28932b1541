/*
 * quorum: what its files share. See docs/drivers/quorum.md. Loop's thread.
 *
 * A request goes to all children at once, each in a coroutine of its own; quorum.c sends and counts, quorum-vote.c
 * compares what was read.
 */
#pragma once
#include "block/aio/io.h"
#include "block/graph/io.h"
#include "block/graph/status.h"

#define QUORUM_CHILDREN_MAX 64

typedef struct Quorum {
    unsigned threshold;
    unsigned next_index; /* of the name of the next child */
    bool fifo, blkverify, rewrite;
    /* Held for reading by every write; for writing by whoever has to know that the children stand still. */
    CoRwlock still;
} Quorum;

typedef struct QuorumOp QuorumOp;

/* One child's share of a request. */
typedef struct QuorumPart {
    QuorumOp *op;
    Child *child;
    int ret;
    uint8_t *buf; /* what was read */
    int winner;   /* whose data is right: the index of the first part that has it */
} QuorumPart;

struct QuorumOp {
    Node *node;
    uint64_t offset, bytes;
    const IoVec *vec;
    size_t vec_offset;
    ReqFlags flags;
    int (*co_do)(QuorumPart *part);
    unsigned n, pending;
    CoQueue done;
    QuorumPart *parts; /* n of them, from the buffer pool */
};

/* Sends the request to every child and waits for all. 0, or -ENOMEM before anything was done. */
int quorum_co_begin(QuorumOp *op);
void quorum_co_all(QuorumOp *op);
void quorum_end(QuorumOp *op);
/* Reports children that failed; 0 when enough did not, else the error that most of them had. */
int quorum_settle(QuorumOp *op, QuorumOpType type);
void quorum_report_bad(const QuorumOp *op, const QuorumPart *part, QuorumOpType type);
void quorum_report_failure(const QuorumOp *op);

/* The read with a vote, into op->vec. */
int quorum_co_vote(QuorumOp *op);
