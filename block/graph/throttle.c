/*
 * Throttle groups.
 */
#include "block/graph/throttle.h"
#include "block/graph/graph-int.h"

#define VALUE_MAX 1e15 /* of a rate */
#define NS        1e9

/* Of operations and of bytes: all, reads, writes. In the order of bucket_fields. */
enum { OPS_TOTAL, OPS_READ, OPS_WRITE, BPS_TOTAL, BPS_READ, BPS_WRITE, BUCKETS };

typedef struct Bucket {
    double avg, max;    /* a second; 0: no limit */
    double length;      /* seconds that max may last */
    double level;       /* how full: what has not leaked at avg */
    double burst_level; /* how full: what has not leaked at max, where length > 1 */
} Bucket;

typedef struct Limited {
    Bucket bucket[BUCKETS];
    int64_t op_size; /* bytes that count as one operation; 0: a request always is one */
} Limited;

struct ThrottleWaiter {
    uint64_t bytes;
    bool go;
    CoQueue queue;
    ThrottleWaiter *next;
};

struct ThrottleGroup {
    Graph *graph;
    char *id;
    unsigned refs;
    Limited limits;
    int64_t leaked_at; /* ns: when the buckets last leaked */
    GQueue members;    /* of ThrottleMember * */
    GList *turn[2];    /* whose turn it is: reads, writes */
    Timer timer[2];    /* armed while requests wait */
};

/* ---- limits ----------------------------------------------------------------------------------------------------- */

#define LIMIT_FIELDS(X)                                                                                                \
    X(OPS_TOTAL, iops_total)                                                                                           \
    X(OPS_READ, iops_read)                                                                                             \
    X(OPS_WRITE, iops_write)                                                                                           \
    X(BPS_TOTAL, bps_total)                                                                                            \
    X(BPS_READ, bps_read)                                                                                              \
    X(BPS_WRITE, bps_write)

static void take(bool has, int64_t value, double *field)
{
    if (has)
        *field = (double)value;
}

static void limits_change(Limited *l, const ThrottleLimits *o)
{
#define CHANGE(index, name)                                                                                            \
    take(o->has_##name, o->name, &l->bucket[index].avg);                                                               \
    take(o->has_##name##_max, o->name##_max, &l->bucket[index].max);                                                   \
    take(o->has_##name##_max_length, o->name##_max_length, &l->bucket[index].length);
    LIMIT_FIELDS(CHANGE)
#undef CHANGE
    if (o->has_iops_size)
        l->op_size = o->iops_size;
}

static bool both(const Limited *l, int total)
{
    const Bucket *all = &l->bucket[total], *reads = all + 1, *writes = all + 2;

    return (all->avg && (reads->avg || writes->avg)) || (all->max && (reads->max || writes->max));
}

static bool bucket_check(const Bucket *b, GError **error)
{
    if (b->avg < 0 || b->max < 0 || b->avg > VALUE_MAX || b->max > VALUE_MAX)
        return error_set(error, "bps/iops/max values must be within [0, %.0f]", VALUE_MAX);
    if (b->length == 0)
        return error_set(error, "the burst length cannot be 0");
    if (b->length < 0 || b->length > UINT32_MAX)
        return error_set(error, "the burst length must be in the range [0, %u]", UINT32_MAX);
    if (b->length > 1 && !b->max)
        return error_set(error, "burst length set without burst rate");
    if (b->max && b->length > VALUE_MAX / b->max)
        return error_set(error, "burst length too high for this burst rate");
    if (b->max && !b->avg)
        return error_set(error, "bps_max/iops_max require corresponding bps/iops values");
    if (b->max && b->max < b->avg)
        return error_set(error, "bps_max/iops_max cannot be lower than bps/iops");
    return true;
}

static bool limits_check(const Limited *l, GError **error)
{
    bool ops = l->bucket[OPS_TOTAL].avg || l->bucket[OPS_READ].avg || l->bucket[OPS_WRITE].avg;

    if (both(l, OPS_TOTAL) || both(l, BPS_TOTAL))
        return error_set(error, "bps/iops/max total values and read/write values cannot be used at the same time");
    if (l->op_size && !ops)
        return error_set(error, "iops size requires an iops value to be set");
    if (l->op_size < 0)
        return error_set(error, "iops size cannot be negative");
    for (int i = 0; i < BUCKETS; i++)
        if (!bucket_check(&l->bucket[i], error))
            return false;
    return true;
}

ThrottleLimits *throttle_group_get(const ThrottleGroup *group)
{
    ThrottleLimits *o = g_new0(ThrottleLimits, 1);

#define GET(index, name)                                                                                               \
    o->has_##name = o->has_##name##_max = o->has_##name##_max_length = true;                                           \
    o->name = (int64_t)group->limits.bucket[index].avg;                                                                \
    o->name##_max = (int64_t)group->limits.bucket[index].max;                                                          \
    o->name##_max_length = (int64_t)group->limits.bucket[index].length;
    LIMIT_FIELDS(GET)
#undef GET
    o->has_iops_size = true;
    o->iops_size = group->limits.op_size;
    return o;
}

/* ---- buckets ---------------------------------------------------------------------------------------------------- */

static int64_t group_now(const ThrottleGroup *group)
{
    return loop_now(group->graph->loop, LOOP_CLOCK_RATE);
}

static void group_leak(ThrottleGroup *group)
{
    int64_t now = group_now(group);
    double seconds = (double)(now - group->leaked_at) / NS;

    group->leaked_at = now;
    for (int i = 0; i < BUCKETS; i++) {
        Bucket *b = &group->limits.bucket[i];
        b->level = MAX(b->level - b->avg * seconds, 0);
        b->burst_level = MAX(b->burst_level - b->max * seconds, 0);
    }
}

/* Seconds until the bucket takes another request. Without a burst rate a tenth of a second's worth may go at once, or
 * every second request would wait. */
static double bucket_wait(const Bucket *b)
{
    double extra;

    if (!b->avg)
        return 0;
    extra = b->level - (b->max ? b->max * b->length : b->avg / 10);
    if (extra > 0)
        return extra / b->avg;
    extra = b->length > 1 ? b->burst_level - b->max / 10 : 0;
    return extra > 0 ? extra / b->max : 0;
}

/* Nanoseconds until the next request of that direction may start. */
static int64_t group_wait(ThrottleGroup *group, bool write)
{
    const Bucket *b = group->limits.bucket;
    double wait = 0;

    group_leak(group);
    wait = MAX(bucket_wait(&b[OPS_TOTAL]), bucket_wait(&b[BPS_TOTAL]));
    wait = MAX(wait, bucket_wait(&b[write ? OPS_WRITE : OPS_READ]));
    wait = MAX(wait, bucket_wait(&b[write ? BPS_WRITE : BPS_READ]));
    /* What is less than the clock can tell is a rounding error of the levels. */
    wait *= NS;
    return wait < 1                          ? 0
           : wait >= (double)(INT64_MAX / 4) ? INT64_MAX / 4
                                             : (int64_t)wait + (wait > (double)(int64_t)wait);
}

static void bucket_fill(Bucket *b, double units)
{
    b->level += units;
    if (b->length > 1)
        b->burst_level += units;
}

static void group_account(ThrottleGroup *group, bool write, uint64_t bytes)
{
    Limited *l = &group->limits;
    double ops = l->op_size && bytes > (uint64_t)l->op_size ? (double)bytes / (double)l->op_size : 1;

    bucket_fill(&l->bucket[OPS_TOTAL], ops);
    bucket_fill(&l->bucket[write ? OPS_WRITE : OPS_READ], ops);
    bucket_fill(&l->bucket[BPS_TOTAL], (double)bytes);
    bucket_fill(&l->bucket[write ? BPS_WRITE : BPS_READ], (double)bytes);
}

/* ---- turns ------------------------------------------------------------------------------------------------------ */

/* Lets the first waiting request of @member go. */
static void member_pass(ThrottleMember *member, bool write)
{
    ThrottleWaiter *w = member->first[write];

    member->first[write] = w->next;
    if (!w->next)
        member->last[write] = &member->first[write];
    group_account(member->group, write, w->bytes);
    w->go = true;
    coqueue_wake_all(&w->queue);
}

/* The member whose turn it is among those that have requests waiting; NULL: none has. */
static ThrottleMember *group_next(ThrottleGroup *group, bool write)
{
    GList *start = group->turn[write] ? group->turn[write] : group->members.head, *l = start;

    if (!l)
        return NULL;
    do {
        if (((ThrottleMember *)l->data)->first[write]) {
            group->turn[write] = l->next;
            return l->data;
        }
        l = l->next ? l->next : group->members.head;
    } while (l != start);
    return NULL;
}

static bool group_has_waiters(const ThrottleGroup *group, bool write)
{
    for (const GList *l = group->members.head; l; l = l->next)
        if (((const ThrottleMember *)l->data)->first[write])
            return true;
    return false;
}

/* Lets as many go as the limits allow; the timer comes back for the others. */
static void group_pass(ThrottleGroup *group, bool write)
{
    timer_cancel(&group->timer[write]);
    while (group_has_waiters(group, write)) {
        int64_t wait = group_wait(group, write);
        if (wait) {
            timer_arm(&group->timer[write], group_now(group) + wait);
            return;
        }
        member_pass(group_next(group, write), write);
    }
}

static void read_timer(void *opaque)
{
    group_pass(opaque, false);
}

static void write_timer(void *opaque)
{
    group_pass(opaque, true);
}

void throttle_co_wait(ThrottleMember *member, bool write, uint64_t bytes, bool now)
{
    ThrottleGroup *group = member->group;
    ThrottleWaiter w = {.bytes = bytes};

    if (now || group->graph->unthrottled || (!group_has_waiters(group, write) && !group_wait(group, write))) {
        group_account(group, write, bytes);
        return;
    }
    *member->last[write] = &w;
    member->last[write] = &w.next;
    if (!timer_armed(&group->timer[write]))
        group_pass(group, write);
    while (!w.go)
        coqueue_co_wait(&w.queue, NULL);
}

void throttle_release(ThrottleMember *member)
{
    for (int write = 0; write < 2; write++)
        while (member->group && member->first[write])
            member_pass(member, write);
}

void graph_unthrottle(Graph *graph)
{
    graph->unthrottled = true;
    for (GList *g = graph->throttle_groups.head; g; g = g->next)
        for (GList *m = ((ThrottleGroup *)g->data)->members.head; m; m = m->next)
            throttle_release(m->data);
}

/* ---- groups and members ----------------------------------------------------------------------------------------- */

ThrottleGroup *throttle_group_find(Graph *graph, const char *id)
{
    for (GList *l = graph->throttle_groups.head; l; l = l->next)
        if (!strcmp(((ThrottleGroup *)l->data)->id, id))
            return l->data;
    return NULL;
}

ThrottleGroup *throttle_group_new(Graph *graph, const char *id, GError **error)
{
    ThrottleGroup *group;

    if (throttle_group_find(graph, id)) {
        error_set(error, "A throttle group with name '%s' exists already", id);
        return NULL;
    }
    group = g_new0(ThrottleGroup, 1);
    group->graph = graph;
    group->id = g_strdup(id);
    group->refs = 1;
    for (int i = 0; i < BUCKETS; i++)
        group->limits.bucket[i].length = 1;
    timer_init(&group->timer[false], graph->loop, LOOP_CLOCK_RATE, read_timer, group);
    timer_init(&group->timer[true], graph->loop, LOOP_CLOCK_RATE, write_timer, group);
    group->leaked_at = group_now(group);
    g_queue_push_tail(&graph->throttle_groups, group);
    return group;
}

ThrottleGroup *throttle_group_ref(ThrottleGroup *group)
{
    group->refs++;
    return group;
}

void throttle_group_unref(ThrottleGroup *group)
{
    if (!group || --group->refs)
        return;
    timer_cancel(&group->timer[false]);
    timer_cancel(&group->timer[true]);
    g_queue_remove(&group->graph->throttle_groups, group);
    g_free(group->id);
    g_free(group);
}

const char *throttle_group_id(const ThrottleGroup *group)
{
    return group->id;
}

bool throttle_group_in_use(const ThrottleGroup *group)
{
    return group->refs > 1;
}

bool throttle_group_set(ThrottleGroup *group, const ThrottleLimits *limits, GError **error)
{
    Limited changed = group->limits;

    limits_change(&changed, limits);
    if (!limits_check(&changed, error))
        return false;
    /* Old debts were made under other limits. */
    for (int i = 0; i < BUCKETS; i++)
        changed.bucket[i].level = changed.bucket[i].burst_level = 0;
    group->limits = changed;
    group->leaked_at = group_now(group);
    group_pass(group, false);
    group_pass(group, true);
    return true;
}

void throttle_join(ThrottleMember *member, ThrottleGroup *group)
{
    g_assert(!member->group);
    *member = (ThrottleMember){.group = throttle_group_ref(group)};
    member->last[false] = &member->first[false];
    member->last[true] = &member->first[true];
    member->link.data = member;
    g_queue_push_tail_link(&group->members, &member->link);
}

void throttle_leave(ThrottleMember *member)
{
    ThrottleGroup *group = member->group;

    if (!group)
        return;
    throttle_release(member);
    for (int write = 0; write < 2; write++)
        if (group->turn[write] == &member->link)
            group->turn[write] = member->link.next;
    g_queue_unlink(&group->members, &member->link);
    member->group = NULL;
    throttle_group_unref(group);
}
