/*
 * Persistent bitmaps in workloads. A claim says: from this moment on the bitmap reports every sector whose content is
 * not what it was then. After a power cut that has to hold for each bitmap that the image shows as consistent; those
 * that are inconsistent, or not there, promise nothing.
 */
#include "tests/fault/replay/run.h"
#include "block/graph/bitmap.h"
#include "block/graph/graph-int.h"
#include "block/util/bytes.h"
#include <inttypes.h>

struct Claim {
    char *bitmap;
    uint64_t since;    /* moment */
    uint64_t *content; /* of each sector at that moment; NULL: the bitmap was removed */
    uint64_t sectors;
};

static void claim_clear(void *opaque)
{
    Claim *claim = opaque;

    g_free(claim->bitmap);
    g_free(claim->content);
}

void claims_free(GArray *claims)
{
    if (claims)
        g_array_free(claims, TRUE);
}

static const Claim *find_claim(const GArray *claims, const char *bitmap, uint64_t when)
{
    const Claim *found = NULL;

    for (guint i = 0; claims && i < claims->len; i++) {
        const Claim *claim = &g_array_index(claims, Claim, i);
        if (claim->since <= when && strcmp(claim->bitmap, bitmap) == 0)
            found = claim;
    }
    return found;
}

static Claim *add_claim(Run *run, const char *bitmap)
{
    Claim claim = {.bitmap = g_strdup(bitmap), .since = blklogwrites_moment()};

    if (!run->claims) {
        run->claims = g_array_new(FALSE, FALSE, sizeof(Claim));
        g_array_set_clear_func(run->claims, claim_clear);
    }
    g_array_append_val(run->claims, claim);
    return &g_array_index(run->claims, Claim, run->claims->len - 1);
}

/* The bitmap is empty now, while the guest is quiet. */
static bool claim_co_empty(Run *run, const char *bitmap)
{
    g_autofree uint8_t *data = g_malloc(run->sectors * SECTOR);
    Claim *claim;

    if (port_co_pread(run->port, 0, run->sectors * SECTOR, data, 0) < 0)
        return false;
    claim = add_claim(run, bitmap);
    claim->sectors = run->sectors;
    claim->content = g_new(uint64_t, run->sectors);
    for (uint64_t s = 0; s < run->sectors; s++)
        memcpy(&claim->content[s], data + s * SECTOR, 8);
    return true;
}

/* The bitmap reports what @source does, and goes on from there. */
static void claim_merged(Run *run, const char *bitmap, const char *source)
{
    const Claim *from = find_claim(run->claims, source, UINT64_MAX);
    uint64_t *content = g_memdup2(from->content, from->sectors * sizeof(uint64_t)), sectors = from->sectors;
    Claim *claim = add_claim(run, bitmap);

    claim->content = content;
    claim->sectors = sectors;
}

char *claims_broken(const GArray *claims, Node *node, const uint8_t *data, uint64_t size, uint64_t when, bool clean)
{
    for (guint i = 0; claims && i < claims->len; i++) {
        const char *name = g_array_index(claims, Claim, i).bitmap;
        const Claim *claim = find_claim(claims, name, when);
        const Bitmap *bitmap = bitmap_find(node, name);
        if (clean && claim && claim->content && (!bitmap || bitmap->inconsistent))
            return g_strdup_printf("bitmap '%s' is %s after an orderly end", name, bitmap ? "inconsistent" : "gone");
        if (!claim || !claim->content || !bitmap || bitmap->inconsistent)
            continue;
        for (uint64_t s = 0; s < MIN(claim->sectors, size / SECTOR); s++) {
            uint64_t value;
            memcpy(&value, data + s * SECTOR, 8);
            if (value != claim->content[s] && !hbitmap_get(bitmap->bits, s * SECTOR))
                return g_strdup_printf("bitmap '%s' lacks sector %" PRIu64 ", which holds 0x%" PRIx64
                                       " and held 0x%" PRIx64 " at moment %" PRIu64,
                                       name, s, value, claim->content[s], claim->since);
        }
    }
    return NULL;
}

/* ---- the workload ----------------------------------------------------------------------------------------------- */

static bool bitmap_co_do(Run *run, const char *verb, const char *name, const char *more)
{
    return run_co_cmd(run, "{'execute':'block-dirty-bitmap-%s','arguments':{'node':'q','%s':'%s'%s}}", verb,
                      strcmp(verb, "merge") ? "name" : "target", name, more);
}

/* Two new ones, before and between requests. */
static bool first_co_round(Run *run, unsigned ops)
{
    guest_co_run(run, ops);
    if (!bitmap_co_do(run, "add", "fine", ",'persistent':true,'granularity':512") || !claim_co_empty(run, "fine"))
        return false;
    guest_co_run(run, ops);
    if (!bitmap_co_do(run, "add", "coarse", ",'persistent':true,'granularity':65536") || !claim_co_empty(run, "coarse"))
        return false;
    guest_co_run(run, ops);
    return true;
}

/* What stored ones go through. */
static bool second_co_round(Run *run, unsigned ops)
{
    bool ok;

    if (rnd(2))
        guest_co_run(run, ops);
    if (!bitmap_co_do(run, "clear", "fine", "") || !claim_co_empty(run, "fine"))
        return false;
    guest_co_run(run, ops);
    if (!bitmap_co_do(run, "add", "sum", ",'persistent':true") ||
        !bitmap_co_do(run, "merge", "sum", ",'bitmaps':['coarse']"))
        return false;
    claim_merged(run, "sum", "coarse");
    guest_start(run, ops);
    ok = bitmap_co_do(run, "remove", "coarse", "");
    if (ok)
        add_claim(run, "coarse");
    guest_co_wait(run);
    return ok;
}

/* As little as possible: a merge alone, and nothing at all. */
static bool third_co_round(Run *run, unsigned ops)
{
    if (!bitmap_co_do(run, "clear", "fine", "") || !claim_co_empty(run, "fine") ||
        !bitmap_co_do(run, "merge", "fine", ",'bitmaps':['sum']"))
        return false;
    claim_merged(run, "fine", "sum");
    return true;
}

static bool fourth_co_round(Run *run, unsigned ops)
{
    return true;
}

/* Emptied, then all of them removed. */
static bool fifth_co_round(Run *run, unsigned ops)
{
    static const char *const names[] = {"sum", "fine"};

    size_t n = 1 + rnd(G_N_ELEMENTS(names));
    bool ok = true;

    guest_start(run, ops);
    for (size_t i = 0; ok && i < n; i++) {
        ok = bitmap_co_do(run, "remove", names[i], "");
        if (ok)
            add_claim(run, names[i]);
    }
    guest_co_wait(run);
    return ok;
}

void bitmaps_co_body(Run *run)
{
    static bool (*const rounds[])(Run *, unsigned) = {
        first_co_round, second_co_round, third_co_round, fourth_co_round, fifth_co_round,
    };
    bool ok = true;

    for (size_t i = 0; i < G_N_ELEMENTS(rounds) && ok && !fault.happened; i++) {
        if (!run_co_open(run, NULL))
            return;
        ok = rounds[i](run, run->w->ops);
        run_co_close(run);
    }
}
