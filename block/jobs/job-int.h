/*
 * The contract between the job state machine and the kinds of jobs.
 */
#pragma once
#include "block/graph/port.h"
#include "block/jobs/job.h"
#include "block/util/ratelimit.h"

typedef struct JobDriver {
    JobType type;
    size_t size;   /* of the job's own struct, whose first member is a Job */
    bool is_block; /* shown by query-block-jobs, sends BLOCK_JOB_* events */

    /* The work. Returns 0 or -errno; @error may be set besides, to say more than strerror(3) does. Reaches a pause
     * point (job_co_pause_point, job_co_sleep, job_co_wait) often, and looks at job_is_cancelled() after each. */
    int (*co_run)(Job *job, GError **error);
    /* Before the job counts as paused: waits for its requests in flight. NULL: has none outside co_run. */
    void (*co_settle)(Job *job);
    /* A client wants it to complete; sets a flag that co_run looks at. NULL: cannot be completed. Never yields. */
    bool (*complete)(Job *job, GError **error);
    /* A cancellation: is it one that must stop the job now? NULL: always. */
    bool (*must_force)(Job *job, bool force);
    /* Are requests in flight outside co_run? NULL: no. When the answer turns to no, graph_drain_kick(). */
    bool (*drained_poll)(Job *job);

    /* Finalisation; each may be NULL. On success of the whole transaction: co_prepare of every job, which may still
     * fail (0 or -errno, @error besides), then co_commit of each; else co_abort. co_clean follows both. */
    int (*co_prepare)(Job *job, GError **error);
    void (*co_commit)(Job *job);
    void (*co_abort)(Job *job);
    void (*co_clean)(Job *job);
    /* Frees what the job's struct holds, not itself. Everything of the graph was given back in co_clean. */
    void (*free)(Job *job);
} JobDriver;

/* All fields: the loop's thread. */
struct Job {
    const JobDriver *drv;
    JobList *list;
    Graph *graph;
    Loop *loop;
    char *id;
    unsigned refs;

    /* state */
    JobStatus status;
    bool auto_finalize, auto_dismiss;
    bool started;     /* job_start() was called */
    bool run_over;    /* co_run returned (or never will be called) */
    bool busy;        /* co_run is not in job_co_sleep(), job_co_wait() or paused */
    bool waiting;     /* it is, or paused: job_kick() wakes it */
    bool paused;      /* at a pause point */
    bool user_paused; /* by a client or an error */
    bool cancelled;   /* asked to end; with force_cancel: now */
    bool force_cancel;
    bool own_drain;       /* co_run itself holds a drained section, and pauses for nobody */
    unsigned pause_count; /* reasons to pause: a client, drained sections */
    int ret;              /* 0 or -errno */
    char *error;          /* for people; NULL: none */

    /* running */
    Coroutine *co; /* of co_run */
    Timer sleep;
    CoQueue changed; /* woken when run_over or gone */

    /* progress and pace */
    int64_t progress, progress_total; /* bytes */
    int64_t speed;                    /* bytes per second, 0: unlimited */
    RateLimit rate;
    BlockDeviceIoStatus io_status;

    JobTxn *txn;
    GPtrArray *nodes; /* of Node *, referenced: what job_list_check_node() guards */
};

/*
 * Makes a job in state created. @id NULL or malformed: "Invalid job ID 'x'"; taken: "Job ID 'x' already in use".
 * @txn NULL: one of its own. The result is NULL with @error; give it to job_start() or job_co_discard().
 */
Job *job_new(JobList *list, const JobDriver *drv, const char *id, JobTxn *txn, bool auto_finalize, bool auto_dismiss,
             GError **error);

/* The job relies on @node from now on, until its end. */
void job_add_node(Job *job, Node *node);
/* A port for the job's requests: drained sections pause the job instead of holding its requests up. */
Port *job_co_open_port(Job *job, Node *node, unsigned perm, unsigned shared, GError **error);

/* ---- for co_run ------------------------------------------------------------------------------------------------- */

/* Must it stop now (not: may it end well)? */
bool job_is_cancelled(const Job *job);
/* Pauses when there is reason to, until there is none any more. */
void job_co_pause_point(Job *job);
/* Sleeps @ns, or until kicked; then a pause point. Returns at once when cancelled. */
void job_co_sleep(Job *job, int64_t ns);
/* The same on the clock of rate limits, which a test may hold still. */
void job_co_sleep_rate(Job *job, int64_t ns);
/* Sleeps until kicked; then a pause point. */
void job_co_wait(Job *job);
/* Wakes it out of the two above. Harmless at any time. */
void job_kick(Job *job);
/* A drained section of the job's own, at most one: it goes on working, and is in nobody else's section until the end.
 * A pause point comes first. False: it is cancelled, and there is no section. The end may also be after co_run. */
bool job_co_drained_begin(Job *job, Node *node);
void job_drained_end(Job *job, Node *node);

/* Changes state as the table allows, and tells clients. */
void job_set_status(Job *job, JobStatus status);
/* Running to ready, with BLOCK_JOB_READY. */
void job_set_ready(Job *job);
bool job_is_ready(const Job *job);

/* Progress. */
void job_progress_done(Job *job, int64_t bytes);
void job_progress_set_remaining(Job *job, int64_t bytes);

/* How long a job rests after an error that does not end it, before it tries again. ns */
#define JOB_ERROR_REST_NS (INT64_C(100) * 1000 * 1000)
/* What to do about errno @errnum (positive) under @policy: tells clients; where the action is to stop, the job is
 * paused as by a client. */
BlockErrorAction job_error_action(Job *job, BlockdevOnError policy, bool is_read, int errnum);

/* ---- job-state.c ------------------------------------------------------------------------------------------------ */

/* May @verb be done in @job's state? False with "Job 'x' in state 'y' cannot accept command verb 'z'". */
bool job_check_verb(const Job *job, JobVerb verb, GError **error);
/* May @to follow @from? */
bool job_status_may_follow(JobStatus from, JobStatus to);

/* ---- job.c, job-txn.c, for each other --------------------------------------------------------------------------- */

struct JobList {
    Loop *loop;
    Graph *graph;
    GQueue jobs; /* of Job *, newest first; each holds a reference */
};

void job_ref(Job *job);
void job_unref(Job *job);
/* Marks it cancelled and gets it going; never waits. */
void job_cancel_async(Job *job, bool force);
/* The end of co_run. */
void job_co_run_over(Job *job, int ret, GError *error);
/* Fails the transaction of @job, or lets it fail when somebody already does; concludes all its jobs. */
void job_co_txn_abort(Job *job);
void job_txn_add(JobTxn *txn, Job *job);
void job_txn_del(Job *job);
/* Is its end being made by some coroutine? */
bool job_txn_finalizing(const Job *job);
/* Concluded, and gone where it dismisses itself. */
void job_conclude(Job *job);
void job_co_drop_nodes(Job *job);
void job_init_sleep(Job *job);

/* job-event.c */
void job_event_status(const Job *job);
void job_event_ready(const Job *job);
void job_event_pending(const Job *job);
void job_event_end(const Job *job);
void job_event_error(const Job *job, bool is_read, BlockErrorAction action);
