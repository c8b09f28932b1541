/*
 * Worker threads of a loop: for what no SQE can do, and for computation that would hold up the loop.
 *
 * Threads are started when work comes and none is idle, and leave after a while without. A work item lives on the
 * stack of the coroutine that waits for it.
 */
#include "block/aio/internal.h"
#include "block/aio/io.h"
#include <errno.h>
#include <signal.h>
#include <time.h>

#define WORKERS_MAX  8
#define IDLE_SECONDS 10
/* Bytes, whatever limit the process was started with: work may keep a buffer there. */
#define STACK_SIZE (2 * 1024 * 1024)

typedef struct WorkItem {
    WorkerFn *fn;
    void *opaque;
    int result;
    Coroutine *co;
    struct WorkItem *next;
} WorkItem;

typedef struct WorkQueue {
    WorkItem *head, *tail;
} WorkQueue;

struct Workers {
    Loop *loop;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t work;  /* there is some, or it is time to go */
    pthread_cond_t left;  /* a thread has left */
    WorkQueue todo, done;
    unsigned queued; /* in todo */
    unsigned threads, idle;
    bool quit;
};

static void queue_push(WorkQueue *queue, WorkItem *item)
{
    item->next = NULL;
    if (queue->tail)
        queue->tail->next = item;
    else
        queue->head = item;
    queue->tail = item;
}

static WorkItem *queue_pop(WorkQueue *queue)
{
    WorkItem *item = queue->head;
    if (item) {
        queue->head = item->next;
        if (!queue->head)
            queue->tail = NULL;
    }
    return item;
}

/* With the lock held: the next item, NULL when the thread shall leave. */
static WorkItem *next_item(Workers *w)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += IDLE_SECONDS;
    int ret = 0;
    while (!w->todo.head && !w->quit && ret != ETIMEDOUT) {
        w->idle++;
        ret = pthread_cond_timedwait(&w->work, &w->lock, &until);
        w->idle--;
    }
    WorkItem *item = queue_pop(&w->todo);
    if (item)
        w->queued--;
    return item;
}

static void *worker_main(void *opaque)
{
    Workers *w = opaque;
    WorkItem *item;
    pthread_mutex_lock(&w->lock);
    while ((item = next_item(w))) {
        pthread_mutex_unlock(&w->lock);
        item->result = item->fn(item->opaque);
        pthread_mutex_lock(&w->lock);
        queue_push(&w->done, item);
        loop_wake(w->loop);
    }
    w->threads--;
    pthread_cond_signal(&w->left);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* With the lock held. 0 or a positive errno. */
static int thread_start(Workers *w)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, before;
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    /* Signals are for the loop's thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int ret = pthread_create(&thread, &attr, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (ret == 0) {
        w->threads++;
        pthread_setname_np(thread, "worker");
    }
    return ret;
}

static Workers *workers_new(Loop *loop)
{
    Workers *w = g_new0(Workers, 1);
    pthread_condattr_t attr;
    w->loop = loop;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->work, &attr);
    pthread_cond_init(&w->left, NULL);
    pthread_condattr_destroy(&attr);
    return w;
}

int aio_co_worker(WorkerFn *fn, void *opaque)
{
    Coroutine *self = coroutine_self();
    Loop *loop = self->loop;
    if (!loop->workers)
        loop->workers = workers_new(loop);
    Workers *w = loop->workers;
    WorkItem item = {.fn = fn, .opaque = opaque, .co = self};
    pthread_mutex_lock(&w->lock);
    if (w->idle <= w->queued && w->threads < WORKERS_MAX) {
        int ret = thread_start(w);
        if (ret != 0 && w->threads == 0) {
            pthread_mutex_unlock(&w->lock);
            return -ret;
        }
    }
    queue_push(&w->todo, &item);
    w->queued++;
    pthread_cond_signal(&w->work);
    pthread_mutex_unlock(&w->lock);
    loop->working++;
    co_suspend(self, CO_WORKER);
    loop->working--;
    return item.result;
}

void workers_reap(Loop *loop)
{
    Workers *w = loop->workers;
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    WorkQueue done = w->done;
    w->done = (WorkQueue){0};
    pthread_mutex_unlock(&w->lock);
    WorkItem *item;
    while ((item = queue_pop(&done)))
        co_resume(item->co);
}

void workers_free(Loop *loop)
{
    Workers *w = loop->workers;
    if (!w)
        return;
    pthread_mutex_lock(&w->lock);
    w->quit = true;
    pthread_cond_broadcast(&w->work);
    while (w->threads)
        pthread_cond_wait(&w->left, &w->lock);
    pthread_mutex_unlock(&w->lock);
    pthread_cond_destroy(&w->work);
    pthread_cond_destroy(&w->left);
    pthread_mutex_destroy(&w->lock);
    g_free(w);
    loop->workers = NULL;
}
