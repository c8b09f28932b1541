/*
 * storage-ctl watch: a job's progress until it is ready or over.
 *
 * How far it is comes from query-jobs a few times a second. How it ended comes from events: a job may be gone by the
 * next time one looks.
 */
#include "daemon/ctl.h"
#include "block/util/error.h"
#include "block/util/sizestr.h"
#include "qapi/rt/tree.h"
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    POLL_MS = 200,      /* between two looks */
    SAMPLES = 15,       /* looks that the rate is taken over: 3 s */
    PLAIN_INTERVAL = 2, /* seconds between lines without a terminal */
};

typedef enum WatchEnd { WATCH_ON, WATCH_READY, WATCH_DONE, WATCH_FAILED } WatchEnd;

typedef struct Watch {
    const char *job;
    bool tty, unicode;
    WatchEnd end;
    char *why; /* of WATCH_FAILED */

    /* progress */
    JobType type;
    JobStatus status;
    int64_t done, total;
    int64_t times[SAMPLES]; /* us */
    int64_t values[SAMPLES];
    unsigned samples;
    int64_t last_line; /* us */
    bool drawn;
} Watch;

static void take_end(Watch *w, WatchEnd end, const char *why)
{
    if (w->end != WATCH_FAILED) {
        w->end = end;
        g_free(w->why);
        w->why = g_strdup(why);
    }
}

static void take_event(Watch *w, const Tree *event)
{
    const Tree *data = tree_get(event, "data");
    const char *name = tree_get_string(event, "event");
    if (!name || !tree_is_object(data))
        return;
    const char *id = tree_get_string(data, "device");
    id = id ? id : tree_get_string(data, "id");
    if (g_strcmp0(id, w->job) != 0)
        return;
    /* Members that an event does not have leave the progress as it is. */
    w->done = tree_get_int(data, "offset", w->done);
    w->total = tree_get_int(data, "len", w->total);
    if (strcmp(name, "BLOCK_JOB_READY") == 0) {
        take_end(w, WATCH_READY, NULL);
    } else if (strcmp(name, "BLOCK_JOB_COMPLETED") == 0) {
        const char *why = tree_get_string(data, "error");
        take_end(w, why ? WATCH_FAILED : WATCH_DONE, why);
    } else if (strcmp(name, "BLOCK_JOB_CANCELLED") == 0) {
        take_end(w, WATCH_FAILED, "cancelled");
    } else if (strcmp(name, "JOB_STATUS_CHANGE") == 0) {
        const char *status = tree_get_string(data, "status");
        if (!status)
            return;
        if (strcmp(status, "null") == 0 && w->end == WATCH_ON) {
            /* Jobs that are no block jobs have no other event; what failed was aborting before. */
            take_end(w, w->status == JOB_STATUS_ABORTING ? WATCH_FAILED : WATCH_DONE, "failed");
        } else if (qapi_enum_find(&qapi_type_JobStatus, status) >= 0) {
            w->status = (JobStatus)qapi_enum_find(&qapi_type_JobStatus, status);
        }
    }
}

static bool take_events(Watch *w, Ctl *ctl, int wait_ms, GError **error)
{
    Tree *event = NULL;
    if (!ctl_event(ctl, wait_ms, &event, error))
        return false;
    while (event) {
        take_event(w, event);
        tree_unref(event);
        if (!ctl_event(ctl, 0, &event, error))
            return false;
    }
    return true;
}

/* Looks at the job; *@ret_there tells whether it still exists. */
static bool look(Watch *w, Ctl *ctl, bool *ret_there, GError **error)
{
    g_autoptr(Tree) reply = ctl_call(ctl, "query-jobs", NULL, error);
    g_autoptr(JobInfoList) jobs = reply ? qapi_decode_JobInfoList(reply, error) : NULL;
    if (!jobs)
        return false;
    *ret_there = false;
    for (size_t i = 0; i < jobs->len; i++) {
        const JobInfo *job = jobs->items[i];
        if (strcmp(job->id, w->job) != 0)
            continue;
        *ret_there = true;
        w->done = job->current_progress;
        w->total = job->total_progress;
        w->type = job->type;
        w->status = job->status;
        if (job->status == JOB_STATUS_READY || job->status == JOB_STATUS_STANDBY)
            take_end(w, WATCH_READY, NULL);
        else if (job->status == JOB_STATUS_CONCLUDED)
            take_end(w, job->error ? WATCH_FAILED : WATCH_DONE, job->error);
    }
    w->times[w->samples % SAMPLES] = g_get_monotonic_time();
    w->values[w->samples % SAMPLES] = w->done;
    w->samples++;
    return true;
}

/* Bytes per second over the last looks; 0 for jobs whose progress is counted in steps. */
static double rate(const Watch *w)
{
    if (w->type == JOB_TYPE_CREATE || w->type == JOB_TYPE_AMEND)
        return 0;
    unsigned newest = (w->samples - 1) % SAMPLES, oldest = w->samples > SAMPLES ? w->samples % SAMPLES : 0;
    int64_t us = w->times[newest] - w->times[oldest];
    return us > 0 ? (double)(w->values[newest] - w->values[oldest]) * 1e6 / (double)us : 0;
}

static char *describe(const Watch *w)
{
    double per_second = rate(w);
    GString *text = g_string_new(NULL);
    g_string_append_printf(text, "%5.1f%%", w->total > 0 ? 100.0 * (double)w->done / (double)w->total : 0.0);
    if (per_second >= 1) {
        g_autofree char *size = size_to_str((uint64_t)per_second);
        int64_t left = (int64_t)((double)(w->total - w->done) / per_second);
        g_string_append_printf(text, "  %s/s", size);
        if (left < 3600)
            g_string_append_printf(text, "  %d:%02d left", (int)(left / 60), (int)(left % 60));
        else
            g_string_append_printf(text, "  %d:%02d h left", (int)(left / 3600), (int)(left / 60 % 60));
    }
    if (w->status != JOB_STATUS_RUNNING && w->end == WATCH_ON)
        g_string_append_printf(text, "  %s", qapi_JobStatus_str(w->status));
    return g_string_free(text, FALSE);
}

static void draw_bar(Watch *w, const char *text)
{
    struct winsize size = {0};
    ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    int width = CLAMP((size.ws_col ? size.ws_col : 80) - (int)strlen(w->job) - 44, 10, 50);
    int full = w->total > 0 ? (int)((double)width * (double)w->done / (double)w->total) : 0;
    printf("\r%s ", w->job);
    if (!w->unicode)
        putchar('[');
    for (int i = 0; i < width; i++)
        fputs(w->unicode ? (i < full ? "█" : "░") : (i < full ? "#" : "."), stdout);
    printf("%s %s\033[K", w->unicode ? "" : "]", text);
    w->drawn = true;
    fflush(stdout);
}

static void show(Watch *w)
{
    g_autofree char *text = describe(w);
    int64_t now = g_get_monotonic_time();
    if (w->tty) {
        draw_bar(w, text);
    } else if (w->end != WATCH_ON || now - w->last_line >= PLAIN_INTERVAL * G_USEC_PER_SEC) {
        printf("%s %s\n", w->job, text);
        fflush(stdout);
        w->last_line = now;
    }
}

static int say_end(const Watch *w)
{
    if (w->drawn)
        printf("\n");
    switch (w->end) {
    case WATCH_READY:
        printf("%s is ready\n", w->job);
        return 0;
    case WATCH_DONE:
        printf("%s is done\n", w->job);
        return 0;
    default:
        printf("%s failed: %s\n", w->job, w->why ? w->why : "nobody knows why");
        return 1;
    }
}

int ctl_watch(Ctl *ctl, int argc, char **argv)
{
    GError *error = NULL;
    Watch w = {.job = argv[0], .tty = isatty(STDOUT_FILENO), .unicode = ctl_unicode()};
    bool there = true;
    for (bool first = true; w.end == WATCH_ON; first = false) {
        if (!look(&w, ctl, &there, &error) || !take_events(&w, ctl, 0, &error)) {
            g_free(w.why);
            return ctl_fail(error);
        }
        if (!there && w.end == WATCH_ON) {
            error_set(&error, first ? "there is no job '%s' (any more)" : "job '%s' is gone", w.job);
            return ctl_fail(error);
        }
        if (w.end == WATCH_ON)
            show(&w);
        if (w.end == WATCH_ON && !take_events(&w, ctl, POLL_MS, &error))
            return ctl_fail(error);
    }
    if (w.end != WATCH_FAILED)
        show(&w);
    int code = say_end(&w);
    g_free(w.why);
    return code;
}
