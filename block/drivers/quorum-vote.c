/*
 * Reading from all children and voting.
 *
 * Children that were read while a write was on its way to them may differ without anything being wrong. So when they
 * do, the read is done again with writes held up, and only what differs then is reported, outvoted and put right.
 */
#include "block/drivers/quorum.h"
#include "block/util/iovec.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

static int part_co_read(QuorumPart *part)
{
    const QuorumOp *op = part->op;

    return child_co_pread(part->child, op->offset, op->bytes, part->buf, op->flags);
}

/* Puts the parts that agree together. True: all that could be read are the same. */
static bool compare(QuorumOp *op)
{
    bool same = true;

    for (unsigned i = 0; i < op->n; i++) {
        QuorumPart *part = &op->parts[i];
        part->winner = (int)i;
        if (part->ret < 0)
            continue;
        for (unsigned k = 0; k < i; k++) {
            const QuorumPart *other = &op->parts[k];
            if (other->ret < 0 || other->winner != (int)k)
                continue;
            if (!memcmp(other->buf, part->buf, op->bytes)) {
                part->winner = (int)k;
                break;
            }
            same = false;
        }
    }
    return same;
}

/* The version that most children have: the index of the first that has it. @ret_votes: how many. -1: none was read. */
static int winner(const QuorumOp *op, unsigned *ret_votes)
{
    int best = -1;

    *ret_votes = 0;
    for (unsigned i = 0; i < op->n; i++) {
        unsigned votes = 0;
        for (unsigned k = 0; k < op->n; k++)
            votes += op->parts[k].ret == 0 && op->parts[k].winner == (int)i;
        if (votes > *ret_votes) {
            *ret_votes = votes;
            best = (int)i;
        }
    }
    return best;
}

/* blkverify=on: a difference is a bug in what is under test, and the evidence must stay. */
static void G_GNUC_NORETURN verify_failed(const QuorumOp *op)
{
    uint64_t at = 0;

    while (op->parts[0].buf[at] == op->parts[1].buf[at])
        at++;
    g_printerr("quorum: offset=%" PRIu64 " bytes=%" PRIu64 " contents mismatch at offset %" PRIu64 "\n", op->offset,
               op->bytes, op->offset + at);
    fflush(NULL);
    _exit(1); /* out of the middle of a request: nothing is taken down in order */
}

/* Overwrites what the losers have. Writes are held up. */
static void rewrite_co_losers(QuorumOp *op, int win)
{
    for (unsigned i = 0; i < op->n; i++) {
        QuorumPart *part = &op->parts[i];
        if (part->ret == 0 && part->winner != win)
            child_co_pwrite(part->child, op->offset, op->bytes, op->parts[win].buf, 0);
    }
}

/* The children differ, and stand still: who is right? */
static int vote_co_decide(QuorumOp *op)
{
    const Quorum *s = op->node->state;
    unsigned votes;
    int win = winner(op, &votes);

    if (s->blkverify && op->n == 2 && op->parts[0].ret == 0 && op->parts[1].ret == 0)
        verify_failed(op);
    if (votes < s->threshold) {
        quorum_report_failure(op);
        return -EIO;
    }
    for (unsigned i = 0; i < op->n; i++)
        if (op->parts[i].ret == 0 && op->parts[i].winner != win)
            quorum_report_bad(op, &op->parts[i], QUORUM_OP_TYPE_READ);
    if (s->rewrite)
        rewrite_co_losers(op, win);
    return win;
}

/* The index of the part to deliver, or -errno. */
static int vote_co_read(QuorumOp *op)
{
    Quorum *s = op->node->state;
    unsigned votes;
    int ret;

    quorum_co_all(op);
    if (!compare(op)) {
        corwlock_co_wrlock(&s->still);
        quorum_co_all(op);
        ret = quorum_settle(op, QUORUM_OP_TYPE_READ);
        if (ret == 0)
            ret = compare(op) ? winner(op, &votes) : vote_co_decide(op);
        corwlock_unlock(&s->still);
        return ret;
    }
    ret = quorum_settle(op, QUORUM_OP_TYPE_READ);
    return ret < 0 ? ret : winner(op, &votes);
}

int quorum_co_vote(QuorumOp *op)
{
    Loop *loop = op->node->loop;
    int ret = quorum_co_begin(op);

    if (ret < 0)
        return ret;
    op->co_do = part_co_read;
    for (unsigned i = 0; i < op->n && ret == 0; i++) {
        op->parts[i].buf = aio_buf_get(loop, op->bytes);
        ret = op->parts[i].buf ? 0 : -ENOMEM;
    }
    if (ret == 0)
        ret = vote_co_read(op);
    if (ret >= 0) {
        iov_from_buf(op->vec->iov, op->vec->n, op->vec_offset, op->parts[ret].buf, op->bytes);
        ret = 0;
    }
    for (unsigned i = 0; i < op->n; i++)
        aio_buf_put(loop, op->parts[i].buf, op->bytes);
    quorum_end(op);
    return ret;
}
