/*
 * blklogwrites: a filter that writes all that changes its node to a log, for tests of what a crash leaves. See
 * docs/drivers/blklogwrites.md and blklogwrites.h.
 *
 * Each entry's place in the log is taken before anything yields, so the log has the order of the moments at which
 * entries were made, whatever order they are written in. The super block counts only entries that are written, with all
 * before them. A log that could not be written is of no use: from then on every request fails.
 *
 * By default a request is logged when it has succeeded. With log-order=on it is logged when it is submitted, between
 * marks that say so and when it completed, for what was in flight at a moment is what a crash tears.
 */
#include "block/drivers/blklogwrites.h"
#include "block/aio/io.h"
#include "block/graph/io.h"
#include "block/util/bytes.h"
#include "block/util/iovec.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#define SECTOR_MAX       (1u << 23)
#define DEFAULT_INTERVAL 4096
#define MARK_SECTOR_MIN  128
#define ZERO_MAX         (1 << 20) /* bytes of zeroes in one entry */

/* Entries on their way into the log. */
typedef struct Pending {
    uint64_t index; /* of the first one */
    struct Pending *next, *prev;
} Pending;

/* Loop's thread. */
typedef struct Blklogwrites {
    Child *log;
    uint32_t sector;
    bool order, append;
    uint64_t interval;
    bool started;
    uint64_t entries;           /* made so far */
    uint64_t next;              /* byte offset in the log of the next one */
    uint64_t super_at;          /* how many entries there were when the super block was written */
    Pending *oldest, *youngest; /* in the order of their places */
    bool broken;                /* the log has a hole */
    CoMutex super_lock;
} Blklogwrites;

static uint64_t clock_now;

uint64_t blklogwrites_moment(void)
{
    return ++clock_now;
}

/* ---- the log ---------------------------------------------------------------------------------------------------- */

static int log_co_write(Node *node, uint64_t offset, const void *buf, size_t size)
{
    Blklogwrites *s = node->state;
    uint8_t *sector = aio_buf_get(node->loop, s->sector);
    int ret = -ENOMEM;

    if (sector) {
        memset(sector, 0, s->sector);
        memcpy(sector, buf, size);
        ret = child_co_pwrite(s->log, offset, s->sector, sector, 0);
    }
    aio_buf_put(node->loop, sector, s->sector);
    return ret;
}

static int log_co_super(Node *node)
{
    Blklogwrites *s = node->state;
    LogSuper super = {.magic = htole64(LOG_MAGIC), .version = htole64(LOG_VERSION)};
    int ret;

    comutex_co_lock(&s->super_lock);
    s->super_at = s->oldest ? s->oldest->index : s->entries;
    super.nr_entries = htole64(s->super_at);
    super.sector_size = htole32(s->sector);
    ret = s->broken ? -EIO : log_co_write(node, 0, &super, sizeof(super));
    comutex_unlock(&s->super_lock);
    return ret;
}

/* Places for @n entries, @bytes in all. */
static uint64_t log_take(Blklogwrites *s, Pending *p, unsigned n, uint64_t bytes)
{
    uint64_t at = s->next;

    *p = (Pending){.index = s->entries, .prev = s->youngest};
    *(p->prev ? &p->prev->next : &s->oldest) = p;
    s->youngest = p;
    s->entries += n;
    s->next += bytes;
    return at;
}

static int log_co_taken(Node *node, Pending *p, int ret)
{
    Blklogwrites *s = node->state;

    *(p->prev ? &p->prev->next : &s->oldest) = p->next;
    *(p->next ? &p->next->prev : &s->youngest) = p->prev;
    if (ret < 0)
        s->broken = true;
    else if (s->entries - s->super_at >= s->interval)
        ret = log_co_super(node);
    return ret;
}

static int log_co_mark_at(Node *node, uint64_t at, const char *text)
{
    uint8_t buf[sizeof(LogEntry) + 64] = {0};
    LogEntry entry = {.flags = htole64(LOG_MARK), .data_len = htole64(strlen(text))};

    memcpy(buf, &entry, sizeof(entry));
    memcpy(buf + sizeof(entry), text, strlen(text));
    return log_co_write(node, at, buf, sizeof(buf));
}

static int G_GNUC_PRINTF(2, 3) log_co_mark(Node *node, const char *fmt, ...)
{
    Blklogwrites *s = node->state;
    char text[64];
    Pending p;
    va_list args;
    uint64_t at;

    if (s->broken)
        return -EIO;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    at = log_take(s, &p, 1, s->sector);
    return log_co_taken(node, &p, log_co_mark_at(node, at, text));
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

typedef struct Request {
    uint64_t offset, bytes;
    const IoVec *vec; /* NULL: zeroes, or no data at all */
    size_t vec_offset;
    uint64_t flags; /* LOG_* */
    bool data;
    uint64_t number; /* of its first mark */
} Request;

static int request_co_write_data(Node *node, uint64_t at, const Request *r)
{
    Blklogwrites *s = node->state;

    if (!r->data || !r->bytes)
        return 0;
    if (!r->vec)
        return child_co_pwrite_zeroes(s->log, at, r->bytes, 0);
    return child_co_pwritev(s->log, at, r->bytes, r->vec, r->vec_offset, 0);
}

/* The entry; with log-order=on, and the mark before it. */
static int request_co_log(Node *node, const Request *r)
{
    Blklogwrites *s = node->state;
    LogEntry entry = {
        .sector = htole64(r->offset / s->sector),
        .nr_sectors = htole64(r->bytes / s->sector),
        .flags = htole64(r->flags),
    };
    char text[64];
    Pending p;
    uint64_t at;
    int ret = 0;

    if (s->broken)
        return -EIO;
    at = log_take(s, &p, s->order ? 2 : 1, (s->order ? 2 : 1) * (uint64_t)s->sector + (r->data ? r->bytes : 0));
    if (s->order) {
        snprintf(text, sizeof(text), "sd submit %" PRIu64, r->number);
        ret = log_co_mark_at(node, at, text);
        at += s->sector;
    }
    if (ret == 0)
        ret = log_co_write(node, at, &entry, sizeof(entry));
    if (ret == 0)
        ret = request_co_write_data(node, at + s->sector, r);
    return log_co_taken(node, &p, ret);
}

static int request_co_begin(Node *node, Request *r)
{
    const Blklogwrites *s = node->state;

    if (!s->order)
        return s->broken ? -EIO : 0;
    r->number = blklogwrites_moment();
    return request_co_log(node, r);
}

static int request_co_end(Node *node, const Request *r, int ret)
{
    const Blklogwrites *s = node->state;
    int log;

    if (!s->order)
        log = ret == 0 ? request_co_log(node, r) : 0;
    else if (ret == 0)
        log = log_co_mark(node, "sd complete %" PRIu64 " of %" PRIu64, blklogwrites_moment(), r->number);
    else
        log =
            log_co_mark(node, "sd failed %" PRIu64 " of %" PRIu64 " errno %d", blklogwrites_moment(), r->number, -ret);
    return log < 0 ? log : ret;
}

static int logged_co_write(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                           ReqFlags flags)
{
    Request r = {.offset = offset, .bytes = bytes, .vec = vec, .vec_offset = vec_offset, .data = true};
    int ret;

    r.flags = flags & REQ_FUA ? LOG_FUA : 0;
    ret = request_co_begin(node, &r);
    if (ret == 0) {
        ret = vec ? child_co_pwritev(node->file, offset, bytes, vec, vec_offset, flags)
                  : child_co_pwrite_zeroes(node->file, offset, bytes, flags);
        ret = request_co_end(node, &r, ret);
    }
    return ret;
}

static int log_co_pwritev(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset,
                          ReqFlags flags)
{
    return logged_co_write(node, offset, bytes, vec, vec_offset, flags);
}

static int log_co_pwritev_compressed(Node *node, uint64_t offset, uint64_t bytes, const IoVec *vec, size_t vec_offset)
{
    return logged_co_write(node, offset, bytes, vec, vec_offset, REQ_WRITE_COMPRESSED);
}

static int log_co_pwrite_zeroes(Node *node, uint64_t offset, uint64_t bytes, ReqFlags flags)
{
    return logged_co_write(node, offset, bytes, NULL, 0, flags);
}

static int log_co_pdiscard(Node *node, uint64_t offset, uint64_t bytes)
{
    Request r = {.offset = offset, .bytes = bytes, .flags = LOG_DISCARD};
    int ret = request_co_begin(node, &r);

    return ret < 0 ? ret : request_co_end(node, &r, child_co_pdiscard(node->file, offset, bytes));
}

static int log_co_flush_children(Node *node)
{
    Blklogwrites *s = node->state;
    Request r = {.flags = LOG_FLUSH};
    int ret;

    if (!s->started)
        return child_co_flush(node->file);
    ret = request_co_begin(node, &r);
    if (ret == 0)
        ret = request_co_end(node, &r, child_co_flush(node->file));
    if (ret == 0)
        ret = log_co_super(node);
    return ret < 0 ? ret : child_co_flush(s->log);
}

/* What is cut off counts as discarded. The new size itself only goes into a log with an order: others have no such
 * thing. */
static bool log_co_truncate(Node *node, uint64_t size, bool exact, PreallocMode prealloc, ReqFlags flags,
                            GError **error)
{
    Blklogwrites *s = node->state;
    uint64_t begin = align_up(size, s->sector), end = align_down(node->file->node->size, s->sector);
    uint64_t number = blklogwrites_moment();
    Request r = {.offset = begin, .bytes = end > begin ? end - begin : 0, .flags = LOG_DISCARD};
    int ret = 0;
    bool ok;

    if (s->order)
        ret = log_co_mark(node, "sd size %" PRIu64 " at %" PRIu64, size, number);
    ok = ret == 0 && child_co_truncate(node->file, size, exact, prealloc, flags, error);
    if (ret == 0 && s->order)
        ret = log_co_mark(node, "sd %s %" PRIu64 " of %" PRIu64, ok ? "complete" : "failed", blklogwrites_moment(),
                          number);
    else if (ok && r.bytes)
        ret = request_co_log(node, &r);
    if (ret < 0 && (!error || !*error))
        return error_set_errno(error, -ret, "Could not write the log of node '%s'", node->name);
    return ok;
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

/* Goes through a log to its end. */
static bool log_co_find_end(Node *node, GError **error)
{
    Blklogwrites *s = node->state;
    uint64_t size = s->log->node->size;
    LogSuper super;
    int ret = child_co_pread(s->log, 0, sizeof(super), &super, 0);

    if (ret < 0)
        return error_set_errno(error, -ret, "Could not read log superblock");
    if (le64toh(super.magic) != LOG_MAGIC)
        return error_set(error, "Invalid log superblock magic");
    if (le64toh(super.version) != LOG_VERSION)
        return error_set(error, "Unsupported log version %" PRIu64, le64toh(super.version));
    s->sector = le32toh(super.sector_size);
    if (!is_pow2(s->sector) || s->sector < sizeof(LogEntry) || s->sector > SECTOR_MAX)
        return error_set(error, "Invalid log sector size %" PRIu32, s->sector);
    s->next = s->sector;
    for (s->entries = 0; s->entries < le64toh(super.nr_entries); s->entries++) {
        LogEntry e;
        uint64_t n;
        if (s->next > size - MIN(size, sizeof(e)))
            return error_set(error, "The log ends after %" PRIu64 " of %" PRIu64 " entries", s->entries,
                             le64toh(super.nr_entries));
        ret = child_co_pread(s->log, s->next, sizeof(e), &e, 0);
        if (ret < 0)
            return error_set_errno(error, -ret, "Failed to read log entry %" PRIu64, s->entries);
        n = le64toh(e.flags) & (LOG_DISCARD | LOG_MARK) ? 0 : le64toh(e.nr_sectors);
        if (le64toh(e.flags) & ~(uint64_t)0x1f)
            return error_set(error, "Invalid flags 0x%" PRIx64 " in log entry %" PRIu64, le64toh(e.flags), s->entries);
        if (n > (size - s->next) / s->sector)
            return error_set(error, "Log entry %" PRIu64 " lies behind the end of the log", s->entries);
        s->next += (1 + n) * s->sector;
        if (s->entries % 256 == 255)
            aio_co_reschedule();
    }
    s->super_at = s->entries;
    return true;
}

static bool check_order(const Blklogwrites *s, GError **error)
{
    return !s->order || s->sector >= MARK_SECTOR_MIN ||
           error_set(error, "log-order needs a log sector size of at least %d", MARK_SECTOR_MIN);
}

/* Only a node that can be written to has a log. */
static bool log_co_start(Node *node, GError **error)
{
    Blklogwrites *s = node->state;
    int ret;

    if (s->started)
        return true;
    if ((s->append && !log_co_find_end(node, error)) || !check_order(s, error))
        return false;
    if (!s->append)
        s->next = s->sector;
    ret = s->append ? 0 : log_co_super(node);
    s->started = ret == 0;
    return ret == 0 || error_set_errno(error, -ret, "Could not write log superblock");
}

static bool blklogwrites_co_open(Node *node, const BlockdevOptions *options, GError **error)
{
    const BlockdevOptionsBlklogwrites *o = &options->u.blklogwrites;
    Blklogwrites *s = node->state;

    s->append = o->has_log_append && o->log_append;
    s->order = o->has_log_order && o->log_order;
    s->sector = o->has_log_sector_size ? (uint32_t)MIN(o->log_sector_size, UINT32_MAX) : 512;
    s->interval = o->has_log_super_update_interval ? o->log_super_update_interval : DEFAULT_INTERVAL;
    if (s->append && o->has_log_sector_size)
        return error_set(error, "log-append and log-sector-size are mutually exclusive");
    if (!is_pow2(s->sector) || s->sector < sizeof(LogEntry) || s->sector > SECTOR_MAX)
        return error_set(error, "Invalid log sector size %" PRIu32, s->sector);
    if (!s->interval)
        return error_set(error, "Invalid log superblock update interval 0");
    if (!node_co_open_child(node, "file", o->file, ROLE_FILTER, error))
        return false;
    s->log = node_co_open_child(node, "log", o->log, ROLE_METADATA, error);
    if (!s->log)
        return false;
    node_pass_flags(node);
    node->supported_zero_flags &= ~REQ_NO_FALLBACK; /* zeroes go into the log */
    return !node_writable(node) || log_co_start(node, error);
}

static void blklogwrites_co_close(Node *node)
{
    Blklogwrites *s = node->state;

    if (s->started && node_writable(node) && log_co_super(node) < 0)
        g_printerr("storage-daemon: the log of node '%s' is not complete\n", node->name);
}

static bool blklogwrites_co_set_read_only(Node *node, bool read_only, GError **error)
{
    Blklogwrites *s = node->state;
    int ret;

    if (!read_only)
        return log_co_start(node, error);
    ret = s->started ? log_co_super(node) : 0;
    return ret == 0 || error_set_errno(error, -ret, "Could not write log superblock");
}

static void blklogwrites_refresh_limits(Node *node)
{
    const Blklogwrites *s = node->state;

    node->limits.request_alignment = MAX(s->sector, node->limits.request_alignment);
    node->limits.max_write_zeroes = MAX(ZERO_MAX, s->sector);
}

const Driver driver_blklogwrites = {
    .name = "blklogwrites",
    .state_size = sizeof(Blklogwrites),
    .is_filter = true,
    .co_open = blklogwrites_co_open,
    .co_close = blklogwrites_co_close,
    .co_set_read_only = blklogwrites_co_set_read_only,
    .refresh_limits = blklogwrites_refresh_limits,
    .co_pwritev = log_co_pwritev,
    .co_pwritev_compressed = log_co_pwritev_compressed,
    .co_pwrite_zeroes = log_co_pwrite_zeroes,
    .co_pdiscard = log_co_pdiscard,
    .co_flush_children = log_co_flush_children,
    .co_truncate = log_co_truncate,
};
