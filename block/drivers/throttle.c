/*
 * throttle: a filter that keeps requests within the limits of a group (block/graph/throttle.h). See
 * docs/drivers/throttle.md.
 */
#include "block/graph/throttle.h"
#include "block/graph/io.h"

/* Loop's thread. */
typedef struct ThrottleState {
    ThrottleMember member;
} ThrottleState;

static bool throttle_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsThrottle *o = &options->u.throttle;
    ThrottleGroup *group;

    if (!node_co_open_child(node, "file", o->file, ROLE_FILTER, error))
        return false;
    group = throttle_group_find(node->graph, o->throttle_group);
    if (!group)
        return error_set(error, "Throttle group '%s' does not exist", o->throttle_group);
    node_pass_flags(node);
    throttle_join(&((ThrottleState *)node->state)->member, group);
    return true;
}

static void throttle_co_close(Node *node)
{
    throttle_leave(&((ThrottleState *)node->state)->member);
}

static void throttle_drained_begin(Node *node)
{
    throttle_release(&((ThrottleState *)node->state)->member);
}

static void node_co_throttle(Node *node, bool write, uint64_t bytes)
{
    throttle_co_wait(&((ThrottleState *)node->state)->member, write, bytes, node->quiesced);
}

static int throttle_co_preadv(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                              ReqFlags flags)
{
    node_co_throttle(node, false, bytes);
    return child_co_preadv(node->file, offset, bytes, vec, vec_offset, flags);
}

static int throttle_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                               ReqFlags flags)
{
    node_co_throttle(node, true, bytes);
    return child_co_pwritev(node->file, offset, bytes, vec, vec_offset, flags);
}

static int throttle_co_pwritev_compressed(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec,
                                          size_t vec_offset)
{
    return throttle_co_pwritev(node, offset, bytes, vec, vec_offset, REQ_WRITE_COMPRESSED);
}

static int throttle_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    node_co_throttle(node, true, bytes);
    return child_co_pwrite_zeroes(node->file, offset, bytes, flags);
}

static int throttle_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    node_co_throttle(node, true, bytes);
    return child_co_pdiscard(node->file, offset, bytes);
}

const Driver driver_throttle = {
    .name = "throttle",
    .state_size = sizeof(ThrottleState),
    .is_filter = true,
    .co_open = throttle_co_open,
    .co_close = throttle_co_close,
    .drained_begin = throttle_drained_begin,
    .co_preadv = throttle_co_preadv,
    .co_pwritev = throttle_co_pwritev,
    .co_pwritev_compressed = throttle_co_pwritev_compressed,
    .co_pwrite_zeroes = throttle_co_pwrite_zeroes,
    .co_pdiscard = throttle_co_pdiscard,
};
