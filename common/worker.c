/* The thread of common/worker.h: a mutex, one slot, two signals. */
#include "common/worker.h"

#include "common/memory.h"

#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>

struct ingot_worker {
    pthread_t thread;
    pthread_mutex_t mutex; /* guards everything below */
    pthread_cond_t changed;
    ingot_job job; /* NULL: none is running */
    void *context;
    ingot_status status; /* of the last job, until it is taken */
    ingot_error error;
    bool is_stopping;
};

static void *worker_main(void *argument) {
    ingot_worker *w = argument;
    (void)pthread_mutex_lock(&w->mutex);
    for (;;) {
        while (w->job == NULL && !w->is_stopping) {
            (void)pthread_cond_wait(&w->changed, &w->mutex);
        }
        if (w->job == NULL) {
            break;
        }
        const ingot_job job = w->job;
        (void)pthread_mutex_unlock(&w->mutex);
        ingot_error error = {.status = INGOT_OK};
        const ingot_status status = job(w->context, &error);
        (void)pthread_mutex_lock(&w->mutex);
        w->status = status;
        w->error = error;
        w->job = NULL;
        (void)pthread_cond_broadcast(&w->changed);
    }
    (void)pthread_mutex_unlock(&w->mutex);
    return NULL;
}

ingot_status ingot_worker_create(ingot_worker **out) {
    void *memory;
    *out = NULL;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_worker)));
    ingot_worker *w = memory;
    (void)pthread_mutex_init(&w->mutex, NULL);
    (void)pthread_cond_init(&w->changed, NULL);
    /* Signals are for the thread that asks for them with ingot_interrupt_check. */
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&w->thread, NULL, worker_main, w);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed != 0) {
        (void)pthread_cond_destroy(&w->changed);
        (void)pthread_mutex_destroy(&w->mutex);
        ingot_free(w);
        return INGOT_ERR_NO_MEMORY;
    }
    *out = w;
    return INGOT_OK;
}

void ingot_worker_destroy(ingot_worker *worker) {
    if (worker == NULL) {
        return;
    }
    (void)pthread_mutex_lock(&worker->mutex);
    worker->is_stopping = true;
    (void)pthread_cond_broadcast(&worker->changed);
    (void)pthread_mutex_unlock(&worker->mutex);
    (void)pthread_join(worker->thread, NULL); /* after the job at hand */
    (void)pthread_cond_destroy(&worker->changed);
    (void)pthread_mutex_destroy(&worker->mutex);
    ingot_free(worker);
}

void ingot_worker_start(ingot_worker *worker, ingot_job job, void *context) {
    (void)pthread_mutex_lock(&worker->mutex);
    assert(worker->job == NULL && worker->status == INGOT_OK);
    worker->job = job;
    worker->context = context;
    (void)pthread_cond_broadcast(&worker->changed);
    (void)pthread_mutex_unlock(&worker->mutex);
}

ingot_status ingot_worker_wait(ingot_worker *worker, ingot_error *error) {
    (void)pthread_mutex_lock(&worker->mutex);
    while (worker->job != NULL) {
        (void)pthread_cond_wait(&worker->changed, &worker->mutex);
    }
    const ingot_status status = worker->status;
    if (status != INGOT_OK && error != NULL && worker->error.status != INGOT_OK) {
        *error = worker->error;
    }
    worker->status = INGOT_OK;
    (void)pthread_mutex_unlock(&worker->mutex);
    return status;
}
