/*
 * The two tables that rule jobs (LAW 8): which state may follow which, and which verb a state accepts.
 * docs/jobs/README.md shows the same tables to people.
 */
#include "block/jobs/job-int.h"

/* By bit of JobStatus: the states that may follow. */
#define S(x) (1u << JOB_STATUS_##x)
static const unsigned may_follow[JOB_STATUS__MAX] = {
    [JOB_STATUS_UNDEFINED] = S(CREATED),
    [JOB_STATUS_CREATED] = S(RUNNING) | S(ABORTING) | S(NULL),
    [JOB_STATUS_RUNNING] = S(PAUSED) | S(READY) | S(WAITING) | S(ABORTING),
    [JOB_STATUS_PAUSED] = S(RUNNING),
    [JOB_STATUS_READY] = S(STANDBY) | S(WAITING) | S(ABORTING),
    [JOB_STATUS_STANDBY] = S(READY),
    [JOB_STATUS_WAITING] = S(PENDING) | S(ABORTING),
    [JOB_STATUS_PENDING] = S(ABORTING) | S(CONCLUDED),
    [JOB_STATUS_ABORTING] = S(ABORTING) | S(CONCLUDED),
    [JOB_STATUS_CONCLUDED] = S(NULL),
    [JOB_STATUS_NULL] = 0,
};

/* By verb: the states that accept it. */
#define S_RUN (S(CREATED) | S(RUNNING) | S(PAUSED) | S(READY) | S(STANDBY))
static const unsigned accepts[JOB_VERB__MAX] = {
    [JOB_VERB_CANCEL] = S_RUN | S(WAITING) | S(PENDING),
    [JOB_VERB_PAUSE] = S_RUN,
    [JOB_VERB_RESUME] = S_RUN,
    [JOB_VERB_SET_SPEED] = S_RUN,
    [JOB_VERB_COMPLETE] = S(READY) | S(STANDBY),
    [JOB_VERB_DISMISS] = S(CONCLUDED),
    [JOB_VERB_FINALIZE] = S(PENDING),
    [JOB_VERB_CHANGE] = S_RUN,
};

bool job_status_may_follow(JobStatus from, JobStatus to)
{
    return may_follow[from] & (1u << to);
}

bool job_check_verb(const Job *job, JobVerb verb, GError **error)
{
    if (accepts[verb] & (1u << job->status))
        return true;
    return error_set(error, "Job '%s' in state '%s' cannot accept command verb '%s'", job->id,
                     qapi_JobStatus_str(job->status), qapi_JobVerb_str(verb));
}
