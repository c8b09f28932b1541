#include "tests/fault/replay/states.h"
#include "block/util/bytes.h"
#include <inttypes.h>

typedef struct Piece {
    unsigned disk;
    uint32_t request; /* counted through the open requests of the window */
    uint64_t offset;
    const uint8_t *data; /* NULL: zeroes */
    bool size;           /* the disk gets the size offset */
} Piece;

struct States {
    const Tracked *tracked;
    size_t n;
    GArray *windows; /* of uint64_t: moments of their ends */
    Disk base[STATES_DISKS_MAX];
    GArray *pieces;
    uint32_t requests;
    uint8_t *chosen; /* for each piece */
    size_t chosen_room;
    uint64_t step; /* states built in this window */
};

static int by_moment(gconstpointer a, gconstpointer b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

States *states_new(const Tracked *tracked, size_t n)
{
    States *s = g_new0(States, 1);
    uint64_t last = 1;

    g_assert(n <= STATES_DISKS_MAX);
    s->tracked = tracked;
    s->n = n;
    s->windows = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    s->pieces = g_array_new(FALSE, FALSE, sizeof(Piece));
    for (size_t d = 0; d < n; d++)
        for (guint i = 0; i < tracked[d].records->len; i++) {
            const Record *r = &g_array_index(tracked[d].records, Record, i);
            last = u64_max(last, u64_max(r->submitted, r->completed) + 1);
            if (r->kind == RECORD_FLUSH && r->completed)
                g_array_append_vals(s->windows, &(uint64_t){r->completed - 1}, 1);
        }
    g_array_append_vals(s->windows, &last, 1);
    g_array_sort(s->windows, by_moment);
    return s;
}

void states_free(States *s)
{
    for (size_t d = 0; d < s->n; d++)
        g_free(s->base[d].data);
    g_array_free(s->windows, TRUE);
    g_array_free(s->pieces, TRUE);
    g_free(s->chosen);
    g_free(s);
}

size_t states_windows(const States *s)
{
    return s->windows->len;
}

size_t states_open(const States *s)
{
    return s->pieces->len;
}

size_t states_requests(const States *s)
{
    return s->requests;
}

/* What had completed before this moment is durable at @when. */
static uint64_t covered_until(const GArray *records, uint64_t when)
{
    uint64_t until = 0;

    for (guint i = 0; i < records->len; i++) {
        const Record *r = &g_array_index(records, Record, i);
        if (r->kind == RECORD_FLUSH && r->completed && r->completed <= when)
            until = u64_max(until, r->submitted);
    }
    return until;
}

static void apply(Disk *disk, const Record *r)
{
    if (r->kind == RECORD_SIZE) {
        disk_resize(disk, r->bytes);
        return;
    }
    disk_resize(disk, u64_max(disk->size, r->kind == RECORD_WRITE ? r->offset + r->bytes : 0));
    if (r->kind == RECORD_WRITE)
        memcpy(disk->data + r->offset, r->data, r->bytes);
    else if (r->offset < disk->size)
        memset(disk->data + r->offset, 0, u64_min(r->bytes, disk->size - r->offset));
}

/* An open request. */
typedef struct Open {
    unsigned disk;
    const Record *record;
} Open;

static int by_submission(gconstpointer a, gconstpointer b)
{
    const Record *x = ((const Open *)a)->record, *y = ((const Open *)b)->record;

    return x->submitted < y->submitted ? -1 : x->submitted > y->submitted;
}

static bool is_durable(const Record *r, uint64_t until, uint64_t when)
{
    return r->completed && (r->completed < until || (r->fua && r->completed <= when));
}

/* Did a later request that is durable write there? So it is with those that failed and were done again. */
static bool is_overwritten(const Tracked *t, const Record *r, uint64_t offset, uint64_t until, uint64_t when)
{
    const Record *end = &g_array_index(t->records, Record, t->records->len);

    for (const Record *later = r + 1; later < end; later++)
        if (later->kind == RECORD_WRITE && is_durable(later, until, when) && offset - later->offset < later->bytes)
            return true;
    return false;
}

static void add_pieces(States *s, unsigned d, const Record *r, uint64_t until, uint64_t when)
{
    Piece p = {.disk = d, .request = s->requests++, .offset = r->bytes, .size = r->kind == RECORD_SIZE};

    if (p.size)
        g_array_append_val(s->pieces, p);
    for (uint64_t at = 0; !p.size && at < r->bytes; at += SECTOR) {
        p.offset = r->offset + at;
        p.data = r->kind == RECORD_WRITE ? r->data + at : NULL;
        if (!is_overwritten(&s->tracked[d], r, p.offset, until, when))
            g_array_append_val(s->pieces, p);
    }
}

uint64_t states_enter(States *s, size_t window)
{
    uint64_t when = g_array_index(s->windows, uint64_t, window);
    g_autoptr(GArray) open = g_array_new(FALSE, FALSE, sizeof(Open));

    g_array_set_size(s->pieces, 0);
    s->requests = 0;
    s->step = 0;
    for (unsigned d = 0; d < s->n; d++) {
        const Tracked *t = &s->tracked[d];
        uint64_t until = covered_until(t->records, when);
        disk_load(&s->base[d], t->start, t->start_size);
        for (guint i = 0; i < t->records->len; i++) {
            const Record *r = &g_array_index(t->records, Record, i);
            if (r->kind == RECORD_FLUSH || r->submitted > when)
                continue;
            if (is_durable(r, until, when))
                apply(&s->base[d], r);
            else
                g_array_append_vals(open, &(Open){d, r}, 1);
        }
    }
    g_array_sort(open, by_submission);
    for (guint i = 0; i < open->len; i++) {
        const Open *o = &g_array_index(open, Open, i);
        add_pieces(s, o->disk, o->record, covered_until(s->tracked[o->disk].records, when), when);
    }
    if (s->pieces->len > s->chosen_room) {
        s->chosen_room = s->pieces->len * 2;
        s->chosen = g_realloc(s->chosen, s->chosen_room);
    }
    return when;
}

static void build(States *s)
{
    for (unsigned d = 0; d < s->n; d++)
        disk_load(s->tracked[d].disk, s->base[d].data, s->base[d].size);
    for (guint i = 0; i < s->pieces->len; i++) {
        const Piece *p = &g_array_index(s->pieces, Piece, i);
        Disk *disk = s->tracked[p->disk].disk;
        if (!s->chosen[i])
            continue;
        if (p->size) {
            disk_resize(disk, p->offset);
            continue;
        }
        if (p->data)
            disk_resize(disk, u64_max(disk->size, p->offset + SECTOR));
        if (p->data)
            memcpy(disk->data + p->offset, p->data, SECTOR);
        else if (p->offset + SECTOR <= disk->size)
            memset(disk->data + p->offset, 0, SECTOR);
    }
}

/* ---- which pieces ----------------------------------------------------------------------------------------------- */

static const Piece *piece(const States *s, guint i)
{
    return &g_array_index(s->pieces, Piece, i);
}

/* Each request with odds of @odds in 8; torn: each piece. */
static void choose_random(States *s, unsigned odds, bool torn)
{
    bool in = false;

    for (guint i = 0; i < s->pieces->len; i++) {
        if (torn || i == 0 || piece(s, i)->request != piece(s, i - 1)->request)
            in = rnd(8) < odds;
        s->chosen[i] = in;
    }
}

/* All requests before @end; torn: what lies before a random place in them. */
static void choose_prefix(States *s, uint32_t end, bool tear)
{
    guint n = 0;

    while (n < s->pieces->len && piece(s, n)->request < end)
        n++;
    if (tear && n)
        n = (guint)rnd(n) + 1;
    for (guint i = 0; i < s->pieces->len; i++)
        s->chosen[i] = i < n;
}

/* Everything but @request (@without), or nothing but it; torn: part of it. */
static void choose_one(States *s, uint32_t request, bool without, bool torn)
{
    for (guint i = 0; i < s->pieces->len; i++) {
        bool its = piece(s, i)->request == request && (!torn || rnd(2));
        s->chosen[i] = without ? !its : its;
    }
}

/* The step'th of the kinds that there are where not all subsets can be built. */
static void choose(States *s, uint64_t step)
{
    uint32_t request = (uint32_t)rnd(s->requests);

    switch (step) {
    case 0:
        choose_random(s, 0, false);
        return;
    case 1:
        choose_random(s, 8, false);
        return;
    }
    switch (step % 8) {
    case 2:
        choose_prefix(s, request + 1, false);
        break;
    case 3:
        choose_prefix(s, request + 1, true);
        break;
    case 4:
        choose_one(s, request, true, false);
        break;
    case 5:
        choose_one(s, request, rnd(4) != 0, true);
        break;
    case 6:
        choose_one(s, request, false, false);
        break;
    default:
        choose_random(s, (unsigned)(1 + rnd(7)), rnd(2));
        break;
    }
}

bool states_next(States *s, unsigned most)
{
    uint64_t step = s->step++;

    if (s->pieces->len <= ALL_SUBSETS) {
        if (step >> s->pieces->len)
            return false;
        for (guint i = 0; i < s->pieces->len; i++)
            s->chosen[i] = step >> i & 1;
    } else {
        if (step >= most)
            return false;
        choose(s, step);
    }
    build(s);
    return true;
}

void states_final(States *s)
{
    states_enter(s, s->windows->len - 1);
    choose_random(s, 8, false);
    build(s);
}

static uint64_t hash_bytes(const uint8_t *data, uint64_t size, uint64_t hash)
{
    uint64_t lane[4] = {hash, hash + 1, hash + 2, hash + 3};

    for (uint64_t i = 0; i + 32 <= size; i += 32)
        for (unsigned k = 0; k < 4; k++)
            lane[k] = (lane[k] ^ load_le64(data + i + k * 8)) * UINT64_C(0x9fb21c651e98df25) + (lane[k] >> 29);
    for (unsigned k = 0; k < 4; k++)
        hash = (hash ^ lane[k] ^ lane[k] >> 32) * UINT64_C(0x9e3779b97f4a7c15);
    for (uint64_t i = align_down(size, 32); i < size; i++)
        hash = (hash ^ data[i]) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 31;
}

uint64_t states_hash(const States *s, uint64_t hash)
{
    for (size_t d = 0; d < s->n; d++) {
        const Disk *disk = s->tracked[d].disk;
        hash = hash_bytes(disk->data, disk->size, hash + disk->size);
    }
    return hash;
}

char *states_describe(const States *s)
{
    GString *text = g_string_new(NULL);
    uint32_t last = UINT32_MAX;

    for (guint i = 0; i < s->pieces->len; i++) {
        const Piece *p = piece(s, i);
        if (p->request != last)
            g_string_append_printf(text, "\n  request %" PRIu32 " of '%s', %s 0x%" PRIx64 ": ", p->request,
                                   s->tracked[p->disk].disk->name,
                                   p->size   ? "size"
                                   : p->data ? "write"
                                             : "discard",
                                   p->offset);
        last = p->request;
        g_string_append_c(text, s->chosen[i] ? '#' : '.');
    }
    return g_string_free(text, FALSE);
}
