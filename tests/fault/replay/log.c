#include "tests/fault/replay/log.h"
#include "block/util/bytes.h"
#include <glib.h>
#include <inttypes.h>
#include <stdio.h>

static Record *find(GArray *records, uint64_t submitted)
{
    guint low = 0, high = records->len;

    while (low < high) {
        guint mid = (low + high) / 2;
        if (g_array_index(records, Record, mid).submitted < submitted)
            low = mid + 1;
        else
            high = mid;
    }
    Record *r = low < records->len ? &g_array_index(records, Record, low) : NULL;
    return r && r->submitted == submitted ? r : NULL;
}

/* @submitted: of the next entry, by the last mark. */
static bool take_mark(GArray *records, const char *text, uint64_t *submitted, GError **error)
{
    uint64_t a, b;
    int code;
    Record *r;

    if (sscanf(text, "sd submit %" SCNu64, &a) == 1) {
        *submitted = a;
        return true;
    }
    if (sscanf(text, "sd size %" SCNu64 " at %" SCNu64, &a, &b) == 2) {
        g_array_append_vals(records, &(Record){.kind = RECORD_SIZE, .bytes = a, .submitted = b}, 1);
        return true;
    }
    if (sscanf(text, "sd complete %" SCNu64 " of %" SCNu64, &a, &b) == 2) {
        r = find(records, b);
        if (r)
            r->completed = a;
        return r || error_set(error, "'%s' completes nothing", text);
    }
    if (sscanf(text, "sd failed %" SCNu64 " of %" SCNu64 " errno %d", &a, &b, &code) >= 2) {
        r = find(records, b);
        if (r)
            r->failed = true;
        return r || error_set(error, "'%s' completes nothing", text);
    }
    return true; /* somebody else's */
}

static bool take_entry(GArray *records, const LogEntry *e, const uint8_t *data, uint32_t sector, uint64_t submitted,
                       GError **error)
{
    uint64_t flags = le64toh(e->flags);
    Record r = {.offset = le64toh(e->sector) * sector,
                .bytes = le64toh(e->nr_sectors) * sector,
                .data = data,
                .submitted = submitted};

    if (!submitted)
        return error_set(error, "a request without a mark before it: the log was made without log-order=on");
    r.fua = flags & LOG_FUA;
    r.kind = flags & LOG_FLUSH ? RECORD_FLUSH : flags & LOG_DISCARD ? RECORD_DISCARD : RECORD_WRITE;
    if (r.kind != RECORD_WRITE)
        r.data = NULL;
    g_array_append_val(records, r);
    return true;
}

static bool parse(GArray *records, const uint8_t *log, size_t size, GError **error)
{
    LogSuper super;
    uint64_t at, submitted = 0;
    uint32_t sector;

    if (size < sizeof(super))
        return error_set(error, "the log is too short");
    memcpy(&super, log, sizeof(super));
    sector = le32toh(super.sector_size);
    if (le64toh(super.magic) != LOG_MAGIC || !is_pow2(sector) || sector < 128)
        return error_set(error, "not a log");
    at = sector;
    for (uint64_t i = 0; i < le64toh(super.nr_entries); i++) {
        LogEntry e;
        uint64_t n;
        bool ok;
        if (at + sector > size)
            return error_set(error, "the log ends in entry %" PRIu64, i);
        memcpy(&e, log + at, sizeof(e));
        n = le64toh(e.flags) & (LOG_DISCARD | LOG_MARK) ? 0 : le64toh(e.nr_sectors);
        if (n > (size - at) / sector - 1)
            return error_set(error, "the log ends in the data of entry %" PRIu64, i);
        if (le64toh(e.flags) & LOG_MARK) {
            g_autofree char *text =
                g_strndup((const char *)log + at + sizeof(e), u64_min(le64toh(e.data_len), sector - sizeof(e)));
            ok = take_mark(records, text, &submitted, error);
        } else {
            ok = take_entry(records, &e, log + at + sector, sector, submitted, error);
            submitted = 0;
        }
        if (!ok)
            return false;
        at += (1 + n) * sector;
    }
    return true;
}

GArray *log_parse(const uint8_t *log, size_t size, GError **error)
{
    GArray *records = g_array_new(FALSE, TRUE, sizeof(Record));

    if (parse(records, log, size, error))
        return records;
    g_array_free(records, TRUE);
    return NULL;
}
