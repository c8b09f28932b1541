/*
 * A scripted job, for the tests of the job state machine.
 */
#pragma once
#include "block/graph/drain.h"
#include "block/graph/port.h"
#include "jobs-common.h"
#include "qapi/rt/tree.h"

/* Works in steps of 10 "bytes" and looks at its levers between them. */
typedef struct Toy {
    Job common;
    bool hold;         /* waits before it ends; test lets it go */
    bool finish;       /* a client wants it to complete */
    bool ready_first;  /* becomes ready and waits for that */
    int ret;           /* of co_run */
    const char *error; /* its text */
    int prepare_ret;
    int steps;
    bool in_request; /* drained_poll */
    bool drains;     /* works in a drained section of its own, for as long as it may */
    bool stay;       /* and is asleep there, now and then, until told to leave */
    bool inside;     /* in it */
    Port *port;
} Toy;

static Node *leaf_node;

static Toy *toy_of(Job *job)
{
    return (Toy *)job;
}

static int toy_co_run(Job *job, GError **error)
{
    Toy *t = toy_of(job);

    for (int i = 0; i < t->steps; i++) {
        job_co_pause_point(job);
        if (job_is_cancelled(job))
            return 0;
        aio_co_reschedule();
        job_progress_done(job, 10);
    }
    if (t->drains && job_co_drained_begin(job, leaf_node)) {
        t->inside = true;
        while (t->stay) {
            job_co_pause_point(job);
            aio_co_reschedule();
            job_co_sleep(job, 1000);
        }
        t->inside = false;
        job_drained_end(job, leaf_node);
        job_co_pause_point(job);
    }
    if (t->ready_first)
        job_set_ready(job);
    while ((t->hold || t->ready_first) && !t->finish && !job->cancelled)
        job_co_wait(job);
    if (t->error)
        error_set(error, "%s", t->error);
    return t->ret;
}

static bool toy_complete(Job *job, GError **error)
{
    return toy_of(job)->finish = true;
}

static bool toy_must_force(Job *job, bool force)
{
    return force || !job_is_ready(job);
}

static bool toy_drained_poll(Job *job)
{
    return toy_of(job)->in_request;
}

static int toy_co_prepare(Job *job, GError **error)
{
    g_string_append_printf(story, "%s:prepare ", job->id);
    return toy_of(job)->prepare_ret;
}

static void toy_co_commit(Job *job)
{
    g_string_append_printf(story, "%s:commit ", job->id);
}

static void toy_co_abort(Job *job)
{
    g_string_append_printf(story, "%s:abort ", job->id);
}

static void toy_co_clean(Job *job)
{
    g_string_append_printf(story, "%s:clean ", job->id);
    port_co_free(toy_of(job)->port);
    toy_of(job)->port = NULL;
}

static const JobDriver toy_driver = {
    .type = JOB_TYPE_MIRROR,
    .size = sizeof(Toy),
    .is_block = true,
    .co_run = toy_co_run,
    .complete = toy_complete,
    .must_force = toy_must_force,
    .drained_poll = toy_drained_poll,
    .co_prepare = toy_co_prepare,
    .co_commit = toy_co_commit,
    .co_abort = toy_co_abort,
    .co_clean = toy_co_clean,
};

/* States and events of all jobs: "a:created a:running …". */
static void sink(const char *name, Tree *data, void *opaque)
{
    const char *id = tree_get_string(data, "id");

    if (!id)
        id = tree_get_string(data, "device");
    if (!strcmp(name, "JOB_STATUS_CHANGE"))
        g_string_append_printf(story, "%s:%s ", id, tree_get_string(data, "status"));
    else
        g_string_append_printf(story, "%s:%s ", id, name);
    tree_unref(data);
}

static int setup(void **state)
{
    jobs_setup(sink);
    return 0;
}

static void cancel_co_entry(void *opaque)
{
    job_list_co_cancel_all(list);
}

static int teardown(void **state)
{
    jobs_teardown(cancel_co_entry);
    return 0;
}

static Toy *toy_new(const char *id, JobTxn *txn)
{
    Toy *t = (Toy *)job_new(list, &toy_driver, id, txn, true, true, NULL);

    assert_non_null(t);
    return t;
}

static void told(const char *want)
{
    assert_string_equal(story->str, want);
    g_string_truncate(story, 0);
}

static void refused(bool ok, GError **error, const char *want)
{
    assert_false(ok);
    assert_string_equal((*error)->message, want);
    g_clear_error(error);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
