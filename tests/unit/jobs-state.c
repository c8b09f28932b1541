/*
 * The job state machine with a scripted job: verbs by state, pauses, finalisation, transactions.
 */
#include "jobs-toy.h"

/* Without the optional parts. */
static const JobDriver bare_driver = {.type = JOB_TYPE_CREATE, .size = sizeof(Toy), .co_run = toy_co_run};

#define ENDS(id)                                                                                                       \
    id ":waiting " id ":pending " id ":prepare " id ":commit " id ":clean " id ":BLOCK_JOB_COMPLETED " id              \
       ":concluded " id ":null "
#define CANCELLED(id) id ":aborting " id ":abort " id ":clean " id ":BLOCK_JOB_CANCELLED " id ":concluded " id ":null "

static void test_success(void **state)
{
    Toy *t = toy_new("a", NULL);

    t->steps = 3;
    job_start(&t->common);
    told("a:created a:running ");
    turns(10);
    told(ENDS("a"));
    assert_true(g_queue_is_empty(&list->jobs));
}

static void test_ids(void **state)
{
    g_autoptr(GError) error = NULL;
    const char *bad[] = {"", "1a", "a b", "-", "ä"};
    Toy *t = toy_new("a-1.b_c", NULL);

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autofree char *want = g_strdup_printf("Invalid job ID '%s'", bad[i]);
        refused(job_new(list, &toy_driver, bad[i], NULL, true, true, &error), &error, want);
    }
    refused(job_new(list, &toy_driver, NULL, NULL, true, true, &error), &error, "Invalid job ID ''");
    refused(job_new(list, &toy_driver, "a-1.b_c", NULL, true, true, &error), &error, "Job ID 'a-1.b_c' already in use");
    assert_ptr_equal(job_find(list, "a-1.b_c", NULL), t);
    assert_ptr_equal(job_find_block(list, "a-1.b_c", NULL), t);
    refused(job_find(list, "x", &error), &error, "Job not found");
    refused(job_find_block(list, "x", &error), &error, "Block job 'x' not found");
    job_start(&t->common);
}

/* Every pair of state and verb, against the table as QEMU's documentation has it. */
static void test_verb_table(void **state)
{
    static const char *const want[JOB_VERB__MAX] = {
        /* undefined created running paused ready standby waiting pending aborting concluded null */
        [JOB_VERB_CANCEL] = "01111111000",    [JOB_VERB_PAUSE] = "01111100000",    [JOB_VERB_RESUME] = "01111100000",
        [JOB_VERB_SET_SPEED] = "01111100000", [JOB_VERB_COMPLETE] = "00001100000", [JOB_VERB_FINALIZE] = "00000001000",
        [JOB_VERB_DISMISS] = "00000000010",   [JOB_VERB_CHANGE] = "01111100000",
    };
    Job job = {.id = (char *)"j"};

    for (JobVerb verb = 0; verb < JOB_VERB__MAX; verb++)
        for (job.status = 0; job.status < JOB_STATUS__MAX; job.status++) {
            g_autoptr(GError) error = NULL;
            bool ok = job_check_verb(&job, verb, &error);
            assert_int_equal(ok, want[verb][job.status] == '1');
            assert_int_equal(ok, error == NULL);
        }
}

static void test_transition_table(void **state)
{
    static const char *const want[JOB_STATUS__MAX] = {
        [JOB_STATUS_UNDEFINED] = "01000000000", [JOB_STATUS_CREATED] = "00100000101",
        [JOB_STATUS_RUNNING] = "00011010100",   [JOB_STATUS_PAUSED] = "00100000000",
        [JOB_STATUS_READY] = "00000110100",     [JOB_STATUS_STANDBY] = "00001000000",
        [JOB_STATUS_WAITING] = "00000001100",   [JOB_STATUS_PENDING] = "00000000110",
        [JOB_STATUS_ABORTING] = "00000000110",  [JOB_STATUS_CONCLUDED] = "00000000001",
        [JOB_STATUS_NULL] = "00000000000",
    };

    for (JobStatus from = 0; from < JOB_STATUS__MAX; from++)
        for (JobStatus to = 0; to < JOB_STATUS__MAX; to++)
            assert_int_equal(job_status_may_follow(from, to), want[from][to] == '1');
}

static void test_pause(void **state)
{
    g_autoptr(GError) error = NULL;
    Toy *t = toy_new("a", NULL);

    t->hold = true;
    job_start(&t->common);
    assert_true(job_user_pause(&t->common, NULL));
    refused(job_user_pause(&t->common, &error), &error, "Job is already paused");
    turns(2);
    told("a:created a:running a:paused ");
    assert_false(t->common.busy);
    assert_true(job_user_resume(&t->common, NULL));
    refused(job_user_resume(&t->common, &error), &error, "Can't resume a job that was not paused");
    turns(2);
    told("a:running ");
    t->finish = true;
    job_kick(&t->common);
    turns(2);
    told(ENDS("a"));
}

/* A pause before the first step: the job has done nothing yet. */
static void test_pause_at_start(void **state)
{
    Toy *t = toy_new("a", NULL);

    t->steps = 1;
    assert_true(job_user_pause(&t->common, NULL));
    job_start(&t->common);
    turns(3);
    told("a:created a:running a:paused ");
    assert_int_equal(t->common.progress, 0);
    assert_true(job_user_resume(&t->common, NULL));
    turns(3);
    told("a:running " ENDS("a"));
}

static void test_ready_and_standby(void **state)
{
    g_autoptr(GError) error = NULL;
    Toy *t = toy_new("a", NULL);

    t->ready_first = true;
    refused(job_complete(&t->common, &error), &error,
            "Job 'a' in state 'created' cannot accept command verb 'complete'");
    job_start(&t->common);
    told("a:created a:running a:ready a:BLOCK_JOB_READY ");
    job_user_pause(&t->common, NULL);
    turns(2);
    told("a:standby ");
    assert_true(job_complete(&t->common, NULL));
    turns(2);
    told("");
    job_user_resume(&t->common, NULL);
    turns(2);
    told("a:ready " ENDS("a"));
}

static void force_co_entry(void *opaque)
{
    assert_true(job_co_user_cancel(opaque, true, NULL));
}

static void soft_co_entry(void *opaque)
{
    assert_true(job_co_user_cancel(opaque, false, NULL));
}

static void test_cancel(void **state)
{
    Toy *t = toy_new("a", NULL);

    t->hold = true;
    job_start(&t->common);
    coroutine_start(loop, soft_co_entry, t);
    turns(3);
    told("a:created a:running " CANCELLED("a"));
}

/* Whoever makes a job has hold of it until it is started: till then a cancellation leaves it in place. */
static void test_cancel_created(void **state)
{
    Toy *t = toy_new("a", NULL);

    coroutine_start(loop, soft_co_entry, t);
    turns(3);
    told("a:created ");
    job_start(&t->common);
    turns(3);
    told("a:running " CANCELLED("a"));
}

static void test_cancel_ready(void **state)
{
    Toy *t = toy_new("a", NULL);

    t->ready_first = true;
    job_start(&t->common);
    g_string_truncate(story, 0);
    coroutine_start(loop, soft_co_entry, t);
    turns(3);
    told(ENDS("a"));

    t = toy_new("b", NULL);
    t->ready_first = true;
    job_start(&t->common);
    g_string_truncate(story, 0);
    coroutine_start(loop, force_co_entry, t);
    turns(3);
    told(CANCELLED("b"));
}

static void test_cancel_paused(void **state)
{
    Toy *t = toy_new("a", NULL);

    t->hold = true;
    job_start(&t->common);
    job_user_pause(&t->common, NULL);
    turns(2);
    g_string_truncate(story, 0);
    coroutine_start(loop, force_co_entry, t);
    turns(3);
    told("a:running " CANCELLED("a"));
}

static void discard_co_entry(void *opaque)
{
    job_co_discard(opaque);
}

static void test_discard(void **state)
{
    coroutine_start(loop, discard_co_entry, toy_new("a", NULL));
    told("a:created a:abort a:clean a:null ");
}

static void test_failure(void **state)
{
    Toy *t = toy_new("a", NULL);

    t->common.auto_dismiss = false;
    t->ret = -EIO;
    job_start(&t->common);
    turns(2);
    told("a:created a:running a:aborting a:abort a:clean a:BLOCK_JOB_COMPLETED a:concluded ");
    assert_string_equal(t->common.error, "Input/output error");
    assert_true(job_dismiss(&t->common, NULL));
    told("a:null ");

    t = toy_new("b", NULL);
    t->common.auto_dismiss = false;
    t->ret = -EINVAL;
    t->error = "it does not fit";
    job_start(&t->common);
    turns(2);
    assert_string_equal(t->common.error, "it does not fit");
    assert_true(job_dismiss(&t->common, NULL));
}

static void finalize_co_entry(void *opaque)
{
    assert_true(job_co_finalize(opaque, NULL));
}

static void test_manual(void **state)
{
    g_autoptr(GError) error = NULL;
    Toy *t = toy_new("a", NULL);

    t->common.auto_finalize = t->common.auto_dismiss = false;
    job_start(&t->common);
    turns(2);
    told("a:created a:running a:waiting a:pending a:BLOCK_JOB_PENDING ");
    refused(job_dismiss(&t->common, &error), &error, "Job 'a' in state 'pending' cannot accept command verb 'dismiss'");
    coroutine_start(loop, finalize_co_entry, t);
    told("a:prepare a:commit a:clean a:BLOCK_JOB_COMPLETED a:concluded ");
    assert_true(job_dismiss(&t->common, NULL));
    told("a:null ");
}

static void test_cancel_pending(void **state)
{
    Toy *t = toy_new("a", NULL);

    t->common.auto_finalize = false;
    job_start(&t->common);
    turns(2);
    g_string_truncate(story, 0);
    coroutine_start(loop, soft_co_entry, t);
    told(CANCELLED("a"));
}

static void test_prepare_fails(void **state)
{
    Toy *t = toy_new("a", NULL);

    t->prepare_ret = -EPERM;
    job_start(&t->common);
    turns(2);
    told("a:created a:running a:waiting a:pending a:prepare a:aborting a:abort a:clean a:BLOCK_JOB_COMPLETED "
         "a:concluded "
         "a:null ");
}

static void test_txn_success(void **state)
{
    JobTxn *txn = job_txn_new();
    Toy *a = toy_new("a", txn), *b = toy_new("b", txn);

    job_txn_unref(txn);
    b->hold = true;
    job_start(&a->common);
    job_start(&b->common);
    turns(3);
    told("a:created b:created a:running a:waiting b:running ");
    b->finish = true;
    job_kick(&b->common);
    turns(3);
    told("b:waiting b:pending a:pending b:prepare a:prepare b:commit b:clean b:BLOCK_JOB_COMPLETED b:concluded b:null "
         "a:commit a:clean a:BLOCK_JOB_COMPLETED a:concluded a:null ");
}

static void test_txn_failure(void **state)
{
    JobTxn *txn = job_txn_new();
    Toy *a = toy_new("a", txn), *b = toy_new("b", txn), *c = toy_new("c", txn);

    job_txn_unref(txn);
    a->hold = true; /* at work, c done and waiting, when b fails */
    b->steps = 5;
    b->ret = -EIO;
    job_start(&a->common);
    job_start(&c->common);
    job_start(&b->common);
    g_string_truncate(story, 0);
    turns(12);
    told("b:aborting " CANCELLED("c") "b:abort b:clean b:BLOCK_JOB_COMPLETED b:concluded b:null " CANCELLED("a"));
}

/* One fails at once, before the others have been started at all. */
static void test_txn_failure_before_start(void **state)
{
    JobTxn *txn = job_txn_new();
    Toy *a = toy_new("a", txn), *b = toy_new("b", txn);

    job_txn_unref(txn);
    a->ret = -EIO;
    job_start(&a->common);
    turns(3);
    told("a:created b:created a:running a:aborting ");
    job_start(&b->common);
    turns(3);
    told("b:running " CANCELLED("b") "a:abort a:clean a:BLOCK_JOB_COMPLETED a:concluded a:null ");
}

static void test_txn_prepare_fails(void **state)
{
    JobTxn *txn = job_txn_new();
    Toy *a = toy_new("a", txn), *b = toy_new("b", txn);

    job_txn_unref(txn);
    a->hold = true;
    b->prepare_ret = -EIO;
    job_start(&a->common);
    job_start(&b->common);
    g_string_truncate(story, 0);
    a->finish = true;
    job_kick(&a->common);
    turns(3);
    told("a:waiting b:pending a:pending b:prepare b:aborting b:abort b:clean b:BLOCK_JOB_COMPLETED b:concluded "
         "b:null " CANCELLED("a"));
}

static void test_speed(void **state)
{
    g_autoptr(GError) error = NULL;
    Toy *t = toy_new("a", NULL);

    t->hold = true;
    job_start(&t->common);
    refused(job_set_speed(&t->common, -1, &error), &error, "Parameter 'speed' expects a non-negative value");
    assert_true(job_set_speed(&t->common, 12345, NULL));
    assert_int_equal(t->common.speed, 12345);
}

/* On the manual rate clock: sleeps last as long as it says, and a kick ends them early. */
static int sleep_co_run(Job *job, GError **error)
{
    int64_t start = loop_now(loop, LOOP_CLOCK_RATE);

    job_co_sleep_rate(job, 1000);
    return loop_now(loop, LOOP_CLOCK_RATE) - start >= 1000 ? 0 : -EAGAIN;
}

static void test_sleep(void **state)
{
    static const JobDriver sleeper = {.type = JOB_TYPE_CREATE, .size = sizeof(Toy), .co_run = sleep_co_run};
    Job *job;

    loop_rate_clock_manual(loop);
    job = job_new(list, &sleeper, "a", NULL, true, false, NULL);
    job_start(job);
    turns(3);
    loop_rate_clock_step(loop, 999);
    turns(3);
    assert_int_equal(job->status, JOB_STATUS_RUNNING);
    assert_false(job->busy);
    loop_rate_clock_step(loop, 1);
    turns(3);
    assert_int_equal(job->status, JOB_STATUS_CONCLUDED);
    assert_int_equal(job->ret, 0);

    job = job_new(list, &sleeper, "b", NULL, true, false, NULL);
    job_start(job);
    job_kick(job);
    turns(3);
    assert_int_equal(job->ret, -EAGAIN);
}

static void test_error_actions(void **state)
{
    Toy *t = toy_new("a", NULL);
    Job *job = &t->common;

    t->hold = true;
    job_start(job);
    assert_int_equal(job_error_action(job, BLOCKDEV_ON_ERROR_REPORT, true, EIO), BLOCK_ERROR_ACTION_REPORT);
    assert_int_equal(job_error_action(job, BLOCKDEV_ON_ERROR_IGNORE, true, EIO), BLOCK_ERROR_ACTION_IGNORE);
    assert_int_equal(job_error_action(job, BLOCKDEV_ON_ERROR_ENOSPC, false, EIO), BLOCK_ERROR_ACTION_REPORT);
    assert_false(job_user_paused(job));
    assert_int_equal(job->io_status, BLOCK_DEVICE_IO_STATUS_OK);
    assert_int_equal(job_error_action(job, BLOCKDEV_ON_ERROR_AUTO, false, ENOSPC), BLOCK_ERROR_ACTION_STOP);
    assert_int_equal(job->io_status, BLOCK_DEVICE_IO_STATUS_NOSPACE);
    assert_int_equal(job_error_action(job, BLOCKDEV_ON_ERROR_STOP, false, EIO), BLOCK_ERROR_ACTION_STOP);
    assert_int_equal(job->io_status, BLOCK_DEVICE_IO_STATUS_FAILED);
    assert_true(job_user_paused(job));
    assert_int_equal(job->pause_count, 1);
    assert_true(job_user_resume(job, NULL));
    assert_int_equal(job->io_status, BLOCK_DEVICE_IO_STATUS_OK);
}

/* ---- queries ---- */

static void test_query(void **state)
{
    Toy *a = toy_new("a", NULL);
    Job *bare = job_new(list, &bare_driver, "b", NULL, true, false, NULL);
    JobInfoList *jobs;
    BlockJobInfoList *block_jobs;

    a->hold = true;
    a->steps = 2;
    job_start(&a->common);
    job_start(bare);
    turns(6);
    job_progress_set_remaining(&a->common, 30);
    jobs = job_list_query(list);
    assert_int_equal(jobs->len, 2);
    assert_string_equal(jobs->items[0]->id, "b");
    assert_int_equal(jobs->items[0]->status, JOB_STATUS_CONCLUDED);
    assert_int_equal(jobs->items[1]->current_progress, 20);
    assert_int_equal(jobs->items[1]->total_progress, 50);
    qapi_free_JobInfoList(jobs);
    block_jobs = job_list_query_block(list);
    assert_int_equal(block_jobs->len, 1);
    assert_string_equal(block_jobs->items[0]->device, "a");
    assert_int_equal(block_jobs->items[0]->offset, 20);
    assert_int_equal(block_jobs->items[0]->len, 50);
    assert_false(block_jobs->items[0]->busy);
    qapi_free_BlockJobInfoList(block_jobs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(test_success),
        CASE(test_ids),
        CASE(test_verb_table),
        CASE(test_transition_table),
        CASE(test_pause),
        CASE(test_pause_at_start),
        CASE(test_ready_and_standby),
        CASE(test_cancel),
        CASE(test_cancel_created),
        CASE(test_cancel_ready),
        CASE(test_cancel_paused),
        CASE(test_discard),
        CASE(test_failure),
        CASE(test_manual),
        CASE(test_cancel_pending),
        CASE(test_prepare_fails),
        CASE(test_txn_success),
        CASE(test_txn_failure),
        CASE(test_txn_failure_before_start),
        CASE(test_txn_prepare_fails),
        CASE(test_speed),
        CASE(test_sleep),
        CASE(test_error_actions),
        CASE(test_query),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
