#include "tests/fault/replay/model.h"
#include "tests/fault/replay/disk.h"
#include "block/util/bytes.h"
#include <inttypes.h>

/* A request of the guest, as one sector saw it. */
typedef struct Seen {
    uint64_t value;
    bool optional; /* a discard, or one that failed: may or may not have an effect */
    bool durable;  /* when it completes, without a flush */
    uint64_t submitted, completed;
} Seen;

struct Model {
    GArray **seen; /* of Seen, for each sector */
    uint64_t sectors;
    uint64_t *base;
    const GArray *records;
    GArray *sizes; /* of Seen: value is the size */
    /* model_at() */
    uint64_t when;
    uint32_t *from, *until; /* which of seen may show; from 0: the base as well */
};

uint64_t sector_value(const uint8_t *sector)
{
    uint64_t value;

    memcpy(&value, sector, 8);
    if (memcmp(sector, sector + 8, SECTOR - 8) == 0)
        return value;
    for (unsigned i = 8; i < SECTOR; i += 8)
        value = (value ^ load_le64(sector + i) ^ value >> 29) * UINT64_C(0x9fb21c651e98df25);
    return value;
}

static void see(GArray *list, Seen what)
{
    g_array_append_val(list, what);
}

static void take_request(Model *m, const Record *r)
{
    Seen what = {.submitted = r->submitted, .completed = r->completed, .durable = r->fua || r->kind == RECORD_REVERT};
    uint64_t first = r->offset / SECTOR, end = u64_min(m->sectors, (r->offset + r->bytes) / SECTOR);

    what.optional = r->kind == RECORD_DISCARD || r->failed;
    what.value = r->value;
    for (uint64_t s = first; s < end; s++) {
        if (r->data && r->kind == RECORD_REVERT)
            memcpy(&what.value, r->data + (s - first) * 8, 8);
        else if (r->data)
            what.value = sector_value(r->data + (s - first) * SECTOR);
        see(m->seen[s], what);
    }
}

static void take_size(Model *m, const Record *r)
{
    Seen what = {.submitted = r->submitted, .completed = r->completed, .durable = true, .optional = r->failed};

    for (uint64_t s = r->bytes / SECTOR; s < m->sectors; s++)
        see(m->seen[s], what);
    what.value = r->bytes;
    see(m->sizes, what);
}

Model *model_new(const GArray *records, uint64_t size, const uint64_t *base, size_t n_base)
{
    Model *m = g_new0(Model, 1);
    uint64_t room = size;

    for (guint i = 0; i < records->len; i++)
        if (g_array_index(records, Record, i).kind == RECORD_SIZE)
            room = u64_max(room, g_array_index(records, Record, i).bytes);
    m->records = records;
    m->sectors = room / SECTOR;
    m->seen = g_new(GArray *, m->sectors);
    m->base = g_new0(uint64_t, m->sectors);
    m->from = g_new0(uint32_t, m->sectors);
    m->until = g_new0(uint32_t, m->sectors);
    m->sizes = g_array_new(FALSE, FALSE, sizeof(Seen));
    see(m->sizes, (Seen){.value = size, .durable = true, .completed = 1});
    for (uint64_t s = 0; s < m->sectors; s++) {
        m->seen[s] = g_array_new(FALSE, FALSE, sizeof(Seen));
        m->base[s] = base && s < n_base ? base[s] : 0;
    }
    for (guint i = 0; i < records->len; i++) {
        const Record *r = &g_array_index(records, Record, i);
        if (r->kind == RECORD_SIZE)
            take_size(m, r);
        else if (r->kind != RECORD_FLUSH)
            take_request(m, r);
    }
    return m;
}

void model_free(Model *m)
{
    if (!m)
        return;
    for (uint64_t s = 0; s < m->sectors; s++)
        g_array_free(m->seen[s], TRUE);
    g_array_free(m->sizes, TRUE);
    g_free(m->seen);
    g_free(m->base);
    g_free(m->from);
    g_free(m->until);
    g_free(m);
}

uint64_t model_room(const Model *m)
{
    return m->sectors * SECTOR;
}

/* The submission of the latest flush that had completed: what had completed before that is durable. */
static uint64_t covered_until(const Model *m)
{
    uint64_t until = 0;

    for (guint i = 0; i < m->records->len; i++) {
        const Record *r = &g_array_index(m->records, Record, i);
        if (r->kind == RECORD_FLUSH && r->completed && r->completed <= m->when)
            until = u64_max(until, r->submitted);
    }
    return until;
}

/* The last one that must be there (its index + 1, 0: none), and the end of those that may. */
static void reach(const Model *m, const GArray *list, uint64_t covered, uint32_t *ret_from, uint32_t *ret_until)
{
    uint32_t from = 0, until = 0;

    for (guint i = 0; i < list->len; i++) {
        const Seen *s = &g_array_index(list, Seen, i);
        if (s->submitted > m->when)
            break;
        until = i + 1;
        if (!s->optional && s->completed && (s->completed < covered || (s->durable && s->completed <= m->when)))
            from = i + 1;
    }
    *ret_from = from;
    *ret_until = until;
}

void model_at(Model *m, uint64_t when)
{
    uint64_t covered;

    m->when = when;
    covered = covered_until(m);
    for (uint64_t s = 0; s < m->sectors; s++)
        reach(m, m->seen[s], covered, &m->from[s], &m->until[s]);
}

static bool is_allowed(const Model *m, uint64_t s, uint64_t value)
{
    if (m->from[s] == 0 && value == m->base[s])
        return true;
    for (uint32_t i = m->from[s] ? m->from[s] - 1 : 0; i < m->until[s]; i++)
        if (g_array_index(m->seen[s], Seen, i).value == value)
            return true;
    return false;
}

static bool size_allowed(const Model *m, uint64_t size)
{
    uint32_t from, until;

    reach(m, m->sizes, covered_until(m), &from, &until);
    for (uint32_t i = from ? from - 1 : 0; i < until; i++)
        if (g_array_index(m->sizes, Seen, i).value == size)
            return true;
    return false;
}

static char *explain(const Model *m, uint64_t s, uint64_t value)
{
    GString *text = g_string_new(NULL);

    g_string_printf(text, "sector %" PRIu64 " has 0x%" PRIx64 ", which is neither flushed nor newer; seen:", s, value);
    if (m->from[s] == 0)
        g_string_append_printf(text, " [0x%" PRIx64 " at first]", m->base[s]);
    for (uint32_t i = 0; i < m->seen[s]->len; i++) {
        const Seen *e = &g_array_index(m->seen[s], Seen, i);
        g_string_append_printf(text, " %s0x%" PRIx64 "%s (%" PRIu64 " to %" PRIu64 ")%s",
                               i + 1 == m->from[s] ? "[" : "", e->value, e->optional ? "?" : "", e->submitted,
                               e->completed, i + 1 == m->until[s] ? "]" : "");
    }
    return g_string_free(text, FALSE);
}

bool model_allows(Model *m, const uint8_t *got, uint64_t size, char **ret_why)
{
    if (!size_allowed(m, size)) {
        *ret_why = g_strdup_printf("the disk has %" PRIu64 " bytes", size);
        return false;
    }
    for (uint64_t s = 0; s < u64_min(m->sectors, size / SECTOR); s++) {
        const uint8_t *sector = got + s * SECTOR;
        uint64_t value = sector_value(sector);
        if (!is_allowed(m, s, value)) {
            *ret_why = explain(m, s, value);
            return false;
        }
    }
    return true;
}

uint64_t model_final(const Model *m, uint64_t s)
{
    for (guint i = m->seen[s]->len; i > 0; i--)
        if (!g_array_index(m->seen[s], Seen, i - 1).optional)
            return g_array_index(m->seen[s], Seen, i - 1).value;
    return m->base[s];
}
