/*
 * What the tests of jobs share: a loop that is turned by hand, a graph, the list of jobs and a story of their events.
 */
#pragma once
#include "block/jobs/job-int.h"
#include "qapi/rt/command.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static Loop *loop;
static Graph *graph;
static JobList *list;
static GString *story; /* what the test's sink of events makes of them */

static void turns(int n)
{
    while (n-- > 0) {
        loop_stop(loop);
        loop_run(loop);
    }
}

static void jobs_setup(QapiEventSink *sink)
{
    loop = loop_new(NULL);
    assert_non_null(loop);
    graph = graph_new(loop);
    list = job_list_new(loop, graph);
    story = g_string_new(NULL);
    qapi_set_event_sink(sink, NULL);
}

/* @end_co_entry cancels the jobs and drops the test's nodes. */
static void jobs_teardown(CoroutineEntry *end_co_entry)
{
    coroutine_start(loop, end_co_entry, NULL);
    for (int i = 0; coroutine_count(loop) && i < 1000; i++)
        turns(1);
    assert_int_equal(coroutine_count(loop), 0);
    job_list_free(list);
    graph_free(graph);
    loop_free(loop);
    g_string_free(story, TRUE);
    qapi_set_event_sink(NULL, NULL);
}
