/*
 * Jobs and drained sections: those of others, in which they pause, and their own.
 */
#include "jobs-toy.h"

static const Driver leaf = {.name = "leaf", .is_protocol = true};
static int drain_step;

static void leaf_port_co_entry(void *opaque)
{
    Toy *t = opaque;

    t->port = job_co_open_port(&t->common, leaf_node, 0, PERM_ALL, NULL);
    assert_non_null(t->port);
    job_add_node(&t->common, leaf_node);
}

static void port_co_entry(void *opaque)
{
    leaf_node = node_new_internal(graph, &leaf, "leaf", &(NodeFlags){0}, 4096, NULL);
    leaf_port_co_entry(opaque);
}

static void drain_co_entry(void *opaque)
{
    drain_step = 1;
    node_co_drained_begin(leaf_node);
    drain_step = 2;
    aio_co_reschedule();
    aio_co_reschedule();
    node_drained_end(leaf_node);
    drain_step = 3;
}

static void unref_co_entry(void *opaque)
{
    node_co_unref(leaf_node);
}

static Toy *toy_with_port(void)
{
    Toy *t = toy_new("a", NULL);

    coroutine_start(loop, port_co_entry, t);
    coroutine_start(loop, unref_co_entry, NULL); /* the job has its own reference */
    t->hold = true;
    return t;
}

static void test_drain_pauses(void **state)
{
    Toy *t = toy_with_port();
    g_autoptr(GError) error = NULL;

    job_start(&t->common);
    refused(job_list_check_node(list, leaf_node, &error), &error,
            "Node 'leaf' is busy: block device is in use by block job: mirror");
    g_string_truncate(story, 0);
    coroutine_start(loop, drain_co_entry, NULL);
    turns(6);
    assert_int_equal(drain_step, 3);
    told("a:paused a:running ");
}

static void test_drain_waits_for_requests(void **state)
{
    Toy *t = toy_with_port();

    job_start(&t->common);
    t->in_request = true;
    coroutine_start(loop, drain_co_entry, NULL);
    turns(6);
    assert_int_equal(drain_step, 1);
    t->in_request = false;
    graph_drain_kick(graph);
    turns(6);
    assert_int_equal(drain_step, 3);
}

static void test_start_while_drained(void **state)
{
    Toy *t = toy_with_port();

    g_string_truncate(story, 0);
    coroutine_start(loop, drain_co_entry, NULL);
    assert_int_equal(drain_step, 2);
    job_start(&t->common);
    told("a:running a:paused ");
    turns(6);
    told("a:running ");
}

/* Others' sections wait for the job's own, whether they begin in it or a moment before. */
static void test_own_section(void **state)
{
    Toy *t = toy_with_port();

    t->drains = t->stay = true;
    job_start(&t->common);
    assert_true(t->inside);
    coroutine_start(loop, drain_co_entry, NULL);
    for (int i = 0; i < 20; i++) {
        turns(1);
        assert_int_equal(drain_step, 1);
        assert_true(t->inside);
    }
    t->stay = false;
    while (drain_step < 3) {
        turns(1);
        assert_false(t->inside && drain_step == 2);
    }
    assert_int_equal(t->common.pause_count, 0);
}

static void test_own_section_later(void **state)
{
    Toy *t = toy_with_port();

    t->drains = true;
    t->steps = 1;
    job_start(&t->common);
    coroutine_start(loop, drain_co_entry, NULL);
    while (drain_step < 3) {
        assert_false(t->inside);
        turns(1);
    }
    turns(6);
    assert_int_equal(t->common.status, JOB_STATUS_RUNNING);
    assert_int_equal(t->common.pause_count, 0);
}

/* They are never in force at once, and both come to an end. */
static void test_two_own_sections(void **state)
{
    Toy *a = toy_with_port(), *b = toy_new("b", NULL);
    bool been_in_a = false, been_in_b = false;

    coroutine_start(loop, leaf_port_co_entry, b);
    a->drains = b->drains = a->stay = b->stay = b->hold = true;
    a->steps = b->steps = 1; /* both are at work when the first section begins */
    job_start(&a->common);
    job_start(&b->common);
    for (int i = 0; i < 50; i++) {
        turns(1);
        assert_false(a->inside && b->inside);
        a->stay = i < 10 || !a->inside;
        b->stay = i < 10 || !b->inside;
        been_in_a |= a->inside;
        been_in_b |= b->inside;
    }
    assert_true(been_in_a && been_in_b && !a->inside && !b->inside);
    assert_int_equal(a->common.pause_count + b->common.pause_count, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_drain_pauses), CASE(test_drain_waits_for_requests), CASE(test_start_while_drained),
        CASE(test_own_section),  CASE(test_own_section_later),        CASE(test_two_own_sections),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
