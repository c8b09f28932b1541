/*
 * Jobs: long work on the graph that clients start, watch and steer.
 *
 * Which verbs a job accepts in which state, and which state may follow which, is said once, in the tables of
 * job-state.c (LAW 8). A job's work runs in a coroutine of its own; every other job function runs on the loop's thread
 * as well, so a job is protected by that thread alone.
 */
#pragma once
#include "block/aio/coroutine.h"
#include "block/graph/node.h"
#include "block/util/error.h"
#include "qapi/types.h"

typedef struct Job Job;
typedef struct JobTxn JobTxn;
typedef struct JobList JobList;

/* ---- the registry: one a process -------------------------------------------------------------------------------- */

JobList *job_list_new(Loop *loop, Graph *graph);
/* Every job must be gone (job_list_co_cancel_all). Takes NULL. */
void job_list_free(JobList *list);

/* Borrowed. NULL with GenericError "Job not found". */
Job *job_find(JobList *list, const char *id, GError **error);
/* Only block jobs. NULL with DeviceNotActive "Block job 'x' not found". */
Job *job_find_block(JobList *list, const char *id, GError **error);

/* False with "Node 'x' is busy: block device is in use by block job: mirror" when a job relies on @node. For commands
 * that would take the node away or start other work on it. */
bool job_list_check_node(JobList *list, Node *node, GError **error);

/* query-jobs, query-block-jobs: newest first; the caller frees. */
JobInfoList *job_list_query(JobList *list);
BlockJobInfoList *job_list_query_block(JobList *list);

/* Cancels every job at once and waits until all are gone; dismisses what is concluded. For quit and SIGTERM. */
void job_list_co_cancel_all(JobList *list);

/* ---- verbs of clients: false with QEMU's words when the job's state refuses ------------------------------------- */

/* Pauses for a client; twice is refused. The job stops at its next pause point. */
bool job_user_pause(Job *job, GError **error);
bool job_user_resume(Job *job, GError **error);
/* Without @force a mirror that is ready ends well with a consistent target; anything else stops. Waits only where the
 * job has nothing left to run: then it is concluded on return. */
bool job_co_user_cancel(Job *job, bool force, GError **error);
bool job_complete(Job *job, GError **error);
/* Lets a pending job and its transaction make their changes; they are concluded on return. */
bool job_co_finalize(Job *job, GError **error);
bool job_dismiss(Job *job, GError **error);
/* @speed in bytes per second, 0: unlimited; negative is refused. */
bool job_set_speed(Job *job, int64_t speed, GError **error);

/* Is it paused by a client (block-job-cancel without force refuses then)? */
bool job_user_paused(const Job *job);

/* ---- transactions of jobs --------------------------------------------------------------------------------------- */

/*
 * Jobs of one transaction succeed together: they wait for one another before their changes, and when one fails or is
 * cancelled all others are cancelled. Every job has one, alone in it unless told otherwise. The creator holds a
 * reference and drops it once all members are started.
 */
JobTxn *job_txn_new(void);
void job_txn_unref(JobTxn *txn); /* takes NULL */

/*
 * Starts a job that a constructor (mirror.h, backup.h) returned: its coroutine runs until it first waits. Until then
 * the job is its maker's, who must start or discard it: a client that cancels it, or a job of its transaction that
 * fails, only marks it, and it ends as soon as it is started.
 */
void job_start(Job *job);
/* Undoes a job that was made and never started, with what its constructor did to the graph. */
void job_co_discard(Job *job);
/* The same, when it is not its own fault: clients are told that it aborted. */
void job_co_abandon(Job *job);
