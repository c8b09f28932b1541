/*
 * Workloads: what is done to an image while its disks' requests and the guest's are logged.
 *
 * A workload is a row of the table in workloads.c. Disks have names; the images of the row are made by qemu-img under
 * those names. Whatever the body does to the disks that the row tracks is recorded; what the guest does goes through
 * port, to node "q", and is logged on the same clock. Commands are those of QMP.
 */
#pragma once
#include "tests/fault/replay/model.h"
#include "tests/fault/replay/states.h"
#include "block/graph/port.h"
#include "daemon/daemon.h"

typedef struct Run Run;
typedef struct Claim Claim;

/* How often the guest does what. */
typedef struct Mix {
    unsigned read, write, zero, discard, compressed, flush, fua;
} Mix;

typedef struct Workload {
    const char *name;
    const char *format;  /* of the image "file" */
    const char *create;  /* options of qemu-img create for it */
    const char *then;    /* a shell command when it is there */
    const char *options; /* of its node: members of JSON, with a comma before them; LOGGED(name): a disk with its log */
    const char *view;    /* the same for who looks at what is left; DISK(name): a disk */
    uint64_t size, cluster;
    uint64_t longest; /* bytes of long requests, 0: a twentieth of the disk, and seldom */
    uint64_t sub;     /* bytes of a subcluster, 0: there are none */
    bool backing;     /* a raw "base" with content */
    uint64_t base;    /* its bytes, 0: as many as the disk has */
    unsigned ops;     /* of the guest, in each of two rounds */
    const Mix *mix;   /* NULL: some of everything */
    /* NULL: two rounds of the guest's requests */
    void (*co_body)(Run *run);
    bool faults;      /* the body lets requests fail in every fourth run: Run.faulty */
    bool locked;      /* "file" is encrypted; secret object "sec" opens it */
    unsigned every;   /* only in each so-manieth round, and so many fewer states: it takes long; 0: in all */
    const char *more; /* a shell command that makes more images */
    const char *tracked[STATES_DISKS_MAX]; /* NULL: "file" alone */
    unsigned qed_slices;                   /* of qed's cache, 0: as it comes */
    const struct LogFiles *files;          /* nothing is done, all that was is in these; NULL */
} Workload;

/* Bodies, in workloads-jobs.c. */
void resize_co_body(Run *run);
void resize_tail_co_body(Run *run);
void grow_co_body(Run *run);
void damage_co_body(Run *run);
void keys_co_body(Run *run);
void commit_active_co_body(Run *run);
void commit_co_body(Run *run);
void stream_co_body(Run *run);
void mirror_co_body(Run *run);
void backup_co_body(Run *run);
void rebase_co_body(Run *run);
void autoclear_co_body(Run *run);

void snapshots_co_body(Run *run);
void snapshots_header_co_body(Run *run);
void repair_co_body(Run *run);

extern const Workload workloads[];
extern const size_t n_workloads;

/* Looks at a state, whose guest's disk reads as @data. False: something is wrong, *@ret_why (caller frees) says what.
 */
typedef bool ViewCheck(Run *run, const uint8_t *data, uint64_t size, uint64_t when, char **ret_why);

/* How the guest's disk is found again. */
typedef struct View {
    char *json;        /* of a node; NODE stands for its name, DISK(name) for disks; NULL: not to be opened */
    const char *image; /* what the checkers look at: a disk, NULL: nothing */
    const char *format;
    uint64_t from, until; /* moments at which it holds */
    uint64_t *expect;     /* what each sector holds, NULL: what the guest may find */
    uint64_t expect_n;
    ViewCheck *co_check; /* more to look at, or NULL */
    const char *backing; /* it only holds when "file" names that backing file, "": none; NULL: always */
    bool clean;          /* what co_check leaves has not even leaks */
} View;

enum { WORKERS = 6 };
#define REPLAY_SECRET "geheim"

struct Run {
    const Workload *w;
    uint64_t seed;
    Daemon *daemon;
    char *folder;
    const char *suffix; /* of the logs' names */
    Tracked tracked[STATES_DISKS_MAX];
    size_t n_tracked;
    GArray *views;  /* of View */
    bool faulty;    /* requests are to fail */
    bool clean;     /* the end was orderly: the image has no leaks then */
    Model *model;   /* what the guest may find, while states are judged */
    uint64_t size;  /* of the guest's disk at first */
    uint64_t *base; /* values of its sectors then; NULL: what the workload's row says */
    GArray *guest;  /* of Record: the guest's log */
    GArray *claims; /* of Claim: about bitmaps; NULL: there are none */

    /* the guest: guest.c */
    Port *port;
    uint64_t next_value;
    uint64_t *now;          /* what each sector holds, when nothing is cut */
    uint8_t *sure;          /* is it sure? no discard since, no error */
    uint64_t sectors, room; /* of the disk now, and what there is room for */
    struct {
        uint64_t first, n;
    } busy[WORKERS];
    int left;
    unsigned running;
    CoQueue done;
};

/* ---- record.c --------------------------------------------------------------------------------------------------- */

/* Carries the workload out; afterwards tracked, views and guest are there. In a coroutine. */
void run_co_record(Run *run);
void run_clear(Run *run);
/* A QMP command, JSON with ' for "; must succeed, unless a fault was injected: then false. */
bool G_GNUC_PRINTF(2, 3) run_co_cmd(Run *run, const char *fmt, ...);
/* JSON of a logged disk. The result lives as long as the run. */
const char *run_logged(Run *run, const char *disk);
typedef enum ViewMode { VIEW_READ, VIEW_WRITE, VIEW_LOGGED } ViewMode; /* the last: for writing, over logged disks */
/* A view's JSON, for node @name. Caller frees. */
char *run_view_json(Run *run, const View *view, const char *name, ViewMode mode);
/* The port to a disk, for reading or writing, or over its log. */
Port *run_co_disk(Run *run, const char *disk, ViewMode mode);
/* What the disks' logs say: for tracked. */
void run_parse_logs(Run *run);
/* Room for what the guest knows about its disk. */
void run_alloc_guest(Run *run, uint64_t size, uint64_t room);
/* Opens node "q" from @json (NULL: the row's image), "guest" over it and the guest's port. False: a fault came first.
 */
bool run_co_open(Run *run, const char *json);
void run_co_close(Run *run);
/* Waits until the job is in @state ("ready", "concluded"). */
void run_co_job_wait(Run *run, const char *job, const char *state);
/* The image is found by @json from now on, and the former views hold no more. @image: for the checkers. */
View *run_view(Run *run, const char *image, const char *format, const char *json);
/* The same, beside the former views. What it returns may be changed until the next view. */
View *run_view_too(Run *run, const char *image, const char *format, const char *json);
/* A copy of what the disk holds for the guest now, nothing being in flight and nothing uncertain: for View.expect. */
uint64_t *run_snapshot(const Run *run);

/* ---- guest.c ---------------------------------------------------------------------------------------------------- */

/* @ops requests, several at a time. */
void guest_co_run(Run *run, unsigned ops);
/* The same, but returns at once; guest_co_wait() waits for their end. */
void guest_start(Run *run, unsigned ops);
void guest_co_wait(Run *run);
void guest_co_flush(Run *run);
/* The disk was turned back to @content, by a change submitted at moment @submitted; or perhaps, if that @failed.
 * Nothing is in flight. */
void guest_reverted(Run *run, const uint64_t *content, uint64_t submitted, bool failed);
/* Gives the disk another size. Nothing is in flight. */
void guest_co_resize(Run *run, uint64_t size);
/* Reads everything, and compares. */
void guest_co_verify(Run *run);
uint64_t base_value(uint64_t sector);
void fill(uint8_t *buf, uint64_t bytes, uint64_t value);

/* ---- bitmaps.c -------------------------------------------------------------------------------------------------- */

/* Bitmaps come, are cleared, merged and removed, and the image is closed and opened in between. */
void bitmaps_co_body(Run *run);
/* Do the bitmaps of @node, whose content is @data, report all that the claims say? Else why not; the caller frees.
 * @clean: after an orderly end, so they have to be there. */
char *claims_broken(const GArray *claims, Node *node, const uint8_t *data, uint64_t size, uint64_t when, bool clean);
void claims_free(GArray *claims); /* takes NULL */

void G_GNUC_PRINTF(2, 3) G_GNUC_NORETURN run_fail(const Run *run, const char *fmt, ...);
