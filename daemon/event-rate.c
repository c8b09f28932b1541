#include "daemon/event-rate.h"
#include "daemon/session.h"
#include <string.h>

#define PERIOD_NS INT64_C(1000000000)

typedef struct LimitedEvent {
    const char *name;
    const char *member; /* of its data, a string: the limit is one for each value; NULL: one for all */
} LimitedEvent;

static const LimitedEvent limited_events[] = {
    {"QUORUM_FAILURE", "reference"},
    {"QUORUM_REPORT_BAD", "node-name"},
};

/* An event that was sent less than a period ago. Loop's thread. */
typedef struct Held {
    Daemon *daemon;
    char *key;
    const LimitedEvent *event;
    Tree *data; /* of the last one since; NULL: none came */
    Timer timer;
} Held;

static void held_free(void *opaque)
{
    Held *h = opaque;
    timer_cancel(&h->timer);
    g_clear_pointer(&h->data, tree_unref);
    g_free(h->key);
    g_free(h);
}

static void start_period(Held *h)
{
    timer_arm(&h->timer, loop_now(h->daemon->loop, LOOP_CLOCK_RATE) + PERIOD_NS);
}

static void period_over(void *opaque)
{
    Held *h = opaque;
    if (!h->data) {
        g_hash_table_remove(h->daemon->held_events, h->key);
        return;
    }
    session_event(h->event->name, g_steal_pointer(&h->data), h->daemon);
    start_period(h);
}

static const LimitedEvent *find_limited(const char *name)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(limited_events); i++)
        if (strcmp(limited_events[i].name, name) == 0)
            return &limited_events[i];
    return NULL;
}

static char *limit_key(const LimitedEvent *event, const Tree *data)
{
    const char *value = event->member && tree_is_object(data) ? tree_get_string(data, event->member) : NULL;
    return g_strdup_printf("%s %s", event->name, value ? value : "");
}

void event_rate_sink(const char *name, Tree *data, void *opaque)
{
    Daemon *d = opaque;
    const LimitedEvent *event = find_limited(name);
    if (!event || d->quitting) {
        session_event(name, data, d);
        return;
    }
    if (!d->held_events)
        d->held_events = g_hash_table_new_full(g_str_hash, g_str_equal, NULL, held_free);
    g_autofree char *key = limit_key(event, data);
    Held *h = g_hash_table_lookup(d->held_events, key);
    if (h) {
        g_clear_pointer(&h->data, tree_unref);
        h->data = data;
        return;
    }
    h = g_new(Held, 1);
    *h = (Held){.daemon = d, .key = g_steal_pointer(&key), .event = event};
    timer_init(&h->timer, d->loop, LOOP_CLOCK_RATE, period_over, h);
    g_hash_table_insert(d->held_events, h->key, h);
    start_period(h);
    session_event(name, data, d);
}

void event_rate_flush(Daemon *d)
{
    GHashTableIter iter;
    void *value;
    if (!d->held_events)
        return;
    g_hash_table_iter_init(&iter, d->held_events);
    while (g_hash_table_iter_next(&iter, NULL, &value)) {
        Held *h = value;
        if (h->data)
            session_event(h->event->name, g_steal_pointer(&h->data), d);
    }
    g_clear_pointer(&d->held_events, g_hash_table_unref);
}
