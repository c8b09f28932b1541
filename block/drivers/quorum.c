/*
 * quorum: several nodes with the same data. See docs/drivers/quorum.md.
 */
#include "block/drivers/quorum.h"
#include "block/graph/device.h"
#include "block/graph/drain.h"
#include "block/graph/txn.h"
#include "block/util/bytes.h"
#include "qapi/events.h"
#include <errno.h>

#define SECTOR       512
#define TRANSFER_MAX (512 * 1024) /* bytes: a read needs a buffer for each child */

/* ---- one request to all ----------------------------------------------------------------------------------------- */

int quorum_co_begin(QuorumOp *op)
{
    GPtrArray *children = op->node->children;

    op->n = children->len;
    op->parts = aio_buf_get(op->node->loop, sizeof(QuorumPart) * op->n);
    if (!op->parts)
        return -ENOMEM;
    for (unsigned i = 0; i < op->n; i++)
        op->parts[i] = (QuorumPart){.op = op, .child = g_ptr_array_index(children, i)};
    return 0;
}

void quorum_end(QuorumOp *op)
{
    aio_buf_put(op->node->loop, op->parts, sizeof(QuorumPart) * op->n);
}

static void part_co_entry(void *opaque)
{
    QuorumPart *part = opaque;
    QuorumOp *op = part->op;

    part->ret = op->co_do(part);
    if (--op->pending == 0)
        coqueue_wake_all(&op->done);
}

void quorum_co_all(QuorumOp *op)
{
    Loop *loop = op->node->loop;

    /* The last one needs no coroutine of its own; where they are short, none gets one. */
    op->pending = op->n;
    for (unsigned i = 0; i < op->n; i++)
        if (i + 1 < op->n && coroutine_available(loop))
            coroutine_start(loop, part_co_entry, &op->parts[i]);
        else
            part_co_entry(&op->parts[i]);
    while (op->pending)
        coqueue_co_wait(&op->done, NULL);
}

static int64_t sector_num(const QuorumOp *op)
{
    return (int64_t)(op->offset / SECTOR);
}

static int64_t sectors_count(const QuorumOp *op)
{
    return (int64_t)(div_round_up(op->offset + op->bytes, SECTOR) - op->offset / SECTOR);
}

void quorum_report_bad(const QuorumOp *op, const QuorumPart *part, QuorumOpType type)
{
    qapi_emit_quorum_report_bad(&(QuorumReportBadEvent){
        .type = type,
        .error = part->ret < 0 ? (char *)g_strerror(-part->ret) : NULL,
        .node_name = part->child->node->name,
        .sector_num = sector_num(op),
        .sectors_count = sectors_count(op),
    });
}

typedef struct FindDevice {
    const Node *node;
    const char *id;
} FindDevice;

static void find_device(Device *device, void *opaque)
{
    FindDevice *find = opaque;

    if (port_node(device->port) && node_skip_implicit(port_node(device->port)) == find->node)
        find->id = device->id;
}

void quorum_report_failure(const QuorumOp *op)
{
    FindDevice find = {.node = op->node};

    graph_foreach_device(op->node->graph, find_device, &find);
    qapi_emit_quorum_failure(&(QuorumFailureEvent){
        .reference = (char *)(find.id ? find.id : op->node->name),
        .sector_num = sector_num(op),
        .sectors_count = sectors_count(op),
    });
}

int quorum_settle(QuorumOp *op, QuorumOpType type)
{
    const Quorum *s = op->node->state;
    unsigned good = 0, best = 0;
    int error = 0;

    for (unsigned i = 0; i < op->n; i++) {
        unsigned votes = 0;
        if (op->parts[i].ret == 0) {
            good++;
            continue;
        }
        quorum_report_bad(op, &op->parts[i], type);
        for (unsigned k = 0; k < op->n; k++)
            votes += op->parts[k].ret == op->parts[i].ret;
        if (votes > best) {
            best = votes;
            error = op->parts[i].ret;
        }
    }
    if (good >= s->threshold)
        return 0;
    if (type != QUORUM_OP_TYPE_FLUSH)
        quorum_report_failure(op);
    return error;
}

/* Writes of any kind: all children get them, and enough must manage. */
static int quorum_co_change(QuorumOp *op, QuorumOpType type)
{
    Quorum *s = op->node->state;
    int ret = quorum_co_begin(op);

    if (ret < 0)
        return ret;
    corwlock_co_rdlock(&s->still);
    quorum_co_all(op);
    corwlock_unlock(&s->still);
    ret = quorum_settle(op, type);
    quorum_end(op);
    return ret;
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

/* From the first child that can; those before it are reported. */
static int read_co_fifo(QuorumOp *op)
{
    int ret = quorum_co_begin(op);

    if (ret < 0)
        return ret;
    for (unsigned i = 0; i < op->n; i++) {
        ret = child_co_preadv(op->parts[i].child, op->offset, op->bytes, op->vec, op->vec_offset, op->flags);
        if (ret == 0)
            break;
        op->parts[i].ret = ret;
        quorum_report_bad(op, &op->parts[i], QUORUM_OP_TYPE_READ);
    }
    quorum_end(op);
    return ret;
}

static int quorum_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                            ReqFlags flags)
{
    QuorumOp op = {.node = node, .offset = offset, .bytes = bytes, .vec = vec, .vec_offset = vec_offset};

    return ((Quorum *)node->state)->fifo ? read_co_fifo(&op) : quorum_co_vote(&op);
}

static int part_co_write(QuorumPart *part)
{
    const QuorumOp *op = part->op;

    return child_co_pwritev(part->child, op->offset, op->bytes, op->vec, op->vec_offset, op->flags);
}

static int quorum_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                             ReqFlags flags)
{
    QuorumOp op = {.node = node,
                   .offset = offset,
                   .bytes = bytes,
                   .vec = vec,
                   .vec_offset = vec_offset,
                   .flags = flags,
                   .co_do = part_co_write};

    return quorum_co_change(&op, QUORUM_OP_TYPE_WRITE);
}

static int part_co_write_zeroes(QuorumPart *part)
{
    const QuorumOp *op = part->op;

    return child_co_pwrite_zeroes(part->child, op->offset, op->bytes, op->flags);
}

static int quorum_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    QuorumOp op = {.node = node, .offset = offset, .bytes = bytes, .flags = flags, .co_do = part_co_write_zeroes};

    return quorum_co_change(&op, QUORUM_OP_TYPE_WRITE);
}

static int part_co_flush(QuorumPart *part)
{
    return child_co_flush(part->child);
}

static int quorum_co_flush_children(Node *node)
{
    QuorumOp op = {.node = node, .co_do = part_co_flush};

    return quorum_co_change(&op, QUORUM_OP_TYPE_FLUSH);
}

/* Zeroes where all children say so; where one has data there is data. */
static int quorum_co_block_status(Node *node, bool want_zero, uint64_t offset, uint64_t bytes, BlockStatus *ret)
{
    uint64_t zero = bytes, data = 0;

    for (guint i = 0; i < node->children->len; i++) {
        Child *child = g_ptr_array_index(node->children, i);
        BlockStatus status;
        int r = node_co_block_status_above(child->node, NULL, want_zero, offset, bytes, &status, NULL);
        if (r < 0 || !status.bytes)
            status = (BlockStatus){.flags = STATUS_DATA, .bytes = bytes};
        if (status.flags & STATUS_ZERO)
            zero = u64_min(zero, status.bytes);
        else
            data = u64_max(data, status.bytes);
    }
    *ret = (BlockStatus){.flags = STATUS_ALLOCATED | (data ? STATUS_DATA : STATUS_ZERO), .bytes = data ? data : zero};
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

static bool check_options(const BlockdevOptionsQuorum *o, GError **error)
{
    bool fifo = o->has_read_pattern && o->read_pattern == QUORUM_READ_PATTERN_FIFO;
    bool blkverify = o->has_blkverify && o->blkverify, rewrite = o->has_rewrite_corrupted && o->rewrite_corrupted;

    if (o->children->len < 1)
        return error_set(error, "Number of provided children must be 1 or more");
    if (o->children->len > QUORUM_CHILDREN_MAX)
        return error_set(error, "Too many children: %zu, the limit is %d", o->children->len, QUORUM_CHILDREN_MAX);
    if (o->vote_threshold < 1)
        return error_set(error, "Parameter 'vote-threshold' expects a value >= 1");
    if ((uint64_t)o->vote_threshold > o->children->len)
        return error_set(error, "threshold may not exceed children count");
    if (fifo && (blkverify || rewrite))
        return error_set(error, "%s=on cannot be used with read-pattern=fifo, where nothing is compared",
                         blkverify ? "blkverify" : "rewrite-corrupted");
    if (blkverify && (o->children->len != 2 || o->vote_threshold != 2))
        return error_set(error, "blkverify=on can only be set if there are exactly two files and vote-threshold is 2");
    if (blkverify && rewrite)
        return error_set(error, "rewrite-corrupted=on cannot be used with blkverify=on");
    return true;
}

static bool quorum_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsQuorum *o = &options->u.quorum;
    Quorum *s = node->state;

    if (!check_options(o, error))
        return false;
    s->threshold = (unsigned)o->vote_threshold;
    s->fifo = o->has_read_pattern && o->read_pattern == QUORUM_READ_PATTERN_FIFO;
    s->blkverify = o->has_blkverify && o->blkverify;
    s->rewrite = o->has_rewrite_corrupted && o->rewrite_corrupted;
    for (; s->next_index < o->children->len; s->next_index++) {
        g_autofree char *name = g_strdup_printf("children.%u", s->next_index);
        if (!node_co_open_child(node, name, o->children->items[s->next_index], ROLE_DATA, error))
            return false;
    }
    node->supported_write_flags = REQ_WRITE_UNCHANGED;
    node->supported_zero_flags = REQ_WRITE_UNCHANGED | REQ_MAY_UNMAP;
    return true;
}

static int64_t quorum_co_getlength(Node *node)
{
    uint64_t size = ((Child *)g_ptr_array_index(node->children, 0))->node->size;

    for (guint i = 1; i < node->children->len; i++)
        if (((Child *)g_ptr_array_index(node->children, i))->node->size != size)
            return -EIO;
    return (int64_t)size;
}

static void quorum_refresh_limits(Node *node)
{
    node->limits.max_transfer = TRANSFER_MAX;
}

/* Nobody else may write to a child or resize it, or the children would differ. */
static void quorum_child_perm(Node *node, const Child *child, ChildRole role, unsigned perm, unsigned shared,
                              unsigned *ret_perm, unsigned *ret_shared)
{
    *ret_perm = perm & ~PERM_RESIZE;
    if (((Quorum *)node->state)->rewrite)
        *ret_perm |= PERM_WRITE;
    *ret_shared = (shared & PERM_CONSISTENT_READ) | PERM_WRITE_UNCHANGED;
}

/* ---- children that come and go ---------------------------------------------------------------------------------- */

static bool quorum_co_add_child(Node *node, Node *child, GError **error)
{
    Quorum *s = node->state;
    g_autofree char *name = g_strdup_printf("children.%u", s->next_index);
    g_autoptr(GraphTxn) txn = graph_txn_new(node->graph);
    bool ok;

    if (s->blkverify)
        return error_set(error, "Cannot add a child to a quorum in blkverify mode");
    if (node->children->len >= QUORUM_CHILDREN_MAX)
        return error_set(error, "Too many children: the limit is %d", QUORUM_CHILDREN_MAX);
    if (child->size != node->size)
        return error_set(error, "Node '%s' has %" G_GUINT64_FORMAT " bytes, the quorum '%s' has %" G_GUINT64_FORMAT,
                         child->name, child->size, node->name, node->size);
    if (child->height + 1 >= GRAPH_LEVELS_MAX)
        return error_set(error, "Node '%s' has too many levels below it (the limit is %d)", child->name,
                         GRAPH_LEVELS_MAX);
    node_co_drained_begin(node);
    graph_txn_attach(txn, node, name, child, ROLE_DATA);
    ok = graph_txn_co_commit(txn, error);
    if (ok) {
        s->next_index++;
        node->height = MAX(node->height, child->height + 1);
    }
    node_drained_end(node);
    return ok;
}

static bool quorum_co_remove_child(Node *node, Child *child, GError **error)
{
    Quorum *s = node->state;
    g_autoptr(GraphTxn) txn = graph_txn_new(node->graph);
    g_autofree char *last = g_strdup_printf("children.%u", s->next_index - 1);
    bool ok, was_last = !strcmp(child->name, last);

    if (node->children->len <= s->threshold)
        return error_set(error, "The number of children cannot be lower than the vote threshold %u", s->threshold);
    node_co_drained_begin(node);
    graph_txn_detach(txn, child);
    ok = graph_txn_co_commit(txn, error);
    if (ok && was_last)
        s->next_index--; /* so that taking out what was just added leaves no gap in the names */
    node_drained_end(node);
    return ok;
}

/* A child of ours may come to hold other data at any time, that is what we are for; another parent may not like it. */
static bool quorum_can_replace(Node *node, const Node *to_replace)
{
    for (guint i = 0; i < node->children->len; i++)
        if (((Child *)g_ptr_array_index(node->children, i))->node == to_replace)
            return g_queue_get_length((GQueue *)&to_replace->parents) == 1;
    return false;
}

const Driver driver_quorum = {
    .name = "quorum",
    .state_size = sizeof(Quorum),
    .co_open = quorum_co_open,
    .co_getlength = quorum_co_getlength,
    .refresh_limits = quorum_refresh_limits,
    .child_perm = quorum_child_perm,
    .co_add_child = quorum_co_add_child,
    .co_remove_child = quorum_co_remove_child,
    .can_replace = quorum_can_replace,
    .co_preadv = quorum_co_preadv,
    .co_pwritev = quorum_co_pwritev,
    .co_pwrite_zeroes = quorum_co_pwrite_zeroes,
    .co_flush_children = quorum_co_flush_children,
    .co_block_status = quorum_co_block_status,
};
