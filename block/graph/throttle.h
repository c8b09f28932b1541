/*
 * Throttle groups: limits of bytes and operations per second that several users share.
 *
 * A group has six leaky buckets (operations and bytes; all, reads, writes). What a request costs flows in when it
 * starts, the allowed rate flows out; a request has to wait while a bucket that it concerns is fuller than a burst may
 * make it. Members are the users: throttle nodes and devices. Their waiting requests take turns, member by member, so
 * none starves. Time is LOOP_CLOCK_RATE.
 *
 * Loop's thread. A group lives as long as something refers to it: its object, its members.
 */
#pragma once
#include "block/aio/coroutine.h"
#include "block/graph/node.h"

typedef struct ThrottleGroup ThrottleGroup;
typedef struct ThrottleWaiter ThrottleWaiter;

/* A user of a group; embedded by its owner, zeroed while it is in no group. */
typedef struct ThrottleMember {
    ThrottleGroup *group;                /* NULL: in none */
    ThrottleWaiter *first[2], **last[2]; /* requests that wait: reads, writes; throttle.c only */
    GList link;                          /* in the group's members */
} ThrottleMember;

/* Ids are unique in a graph. NULL with @error when it is taken. One reference, the caller's. */
ThrottleGroup *throttle_group_new(Graph *graph, const char *id, GError **error);
ThrottleGroup *throttle_group_find(Graph *graph, const char *id);
ThrottleGroup *throttle_group_ref(ThrottleGroup *group);
void throttle_group_unref(ThrottleGroup *group); /* takes NULL */
const char *throttle_group_id(const ThrottleGroup *group);
/* Does anybody but the caller, who has one reference, refer to it? */
bool throttle_group_in_use(const ThrottleGroup *group);

/* Changes the limits that @limits has; waiting requests are judged by the new ones. False with @error, in QEMU's words,
 * where they do not go together; then nothing changes. */
bool throttle_group_set(ThrottleGroup *group, const ThrottleLimits *limits, GError **error);
/* All limits; the caller's. */
ThrottleLimits *throttle_group_get(const ThrottleGroup *group);

/* @member takes a reference to @group. Its waiting requests go on when it leaves. */
void throttle_join(ThrottleMember *member, ThrottleGroup *group);
void throttle_leave(ThrottleMember *member); /* harmless when it is in no group */

/* Waits until a request of @bytes may start; @now: it may at once (in a drained section), but counts. */
void throttle_co_wait(ThrottleMember *member, bool write, uint64_t bytes, bool now);
/* From now on no request waits, and those that do go on: the process ends. */
void graph_unthrottle(Graph *graph);
/* Lets all requests of @member go on that wait: a drained section begins. */
void throttle_release(ThrottleMember *member);
