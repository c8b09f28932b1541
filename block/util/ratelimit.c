#include "block/util/ratelimit.h"
#include <glib.h>

/* A century: no wait is longer, and sums of times stay far from overflow. */
#define WAIT_MAX (INT64_C(100) * 365 * 86400 * 1000000000)

void ratelimit_set(RateLimit *rl, int64_t bytes_per_s)
{
    g_assert(bytes_per_s >= 0);
    rl->speed = bytes_per_s;
    rl->paid_until = 0;
}

int64_t ratelimit_delay(RateLimit *rl, int64_t now_ns, int64_t bytes)
{
    if (rl->speed == 0)
        return 0;
    const unsigned __int128 cost = ((unsigned __int128)bytes * 1000000000 + rl->speed - 1) / (uint64_t)rl->speed;
    const int64_t paid_from = MAX(rl->paid_until, now_ns);
    rl->paid_until = MIN(paid_from + (int64_t)MIN(cost, WAIT_MAX), now_ns + WAIT_MAX);
    const int64_t ahead = rl->paid_until - now_ns;
    return ahead < RATELIMIT_SLICE_NS ? 0 : ahead;
}
