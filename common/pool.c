/* Persistent worker threads and one shared tile counter.
 *
 * A run publishes (task, context, count) and raises the generation; every worker takes tiles from
 * an atomic counter until none is left and then reports itself idle.  The caller works as worker 0.
 * The end of a run waits until every worker is idle again, so no worker can see the counter of one
 * run with the task of another.  Which worker gets which tile is not deterministic; by the contract
 * of pool.h nothing may depend on it.
 *
 * Decoding makes hundreds of short runs a token, and waking a thread takes as long as some of them:
 * whoever waits looks at the shared counters for some microseconds before it sleeps, and who did
 * not sleep takes no mutex, which the other side would hold at just that moment.  Who sleeps says
 * so first and looks once more; who changes a counter looks for sleepers afterwards.  Both in one
 * order for all threads (sequentially consistent atomics), so one of the two sees the other. */
#include "common/pool.h"

#include "common/memory.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

#define THREADS_MAX 256u

typedef struct pool_worker {
    ingot_pool *pool;
    unsigned index;
    pthread_t thread;
} pool_worker;

struct ingot_pool {
    unsigned threads;      /* the caller included */
    unsigned started;      /* workers whose thread exists */
    pthread_mutex_t mutex; /* of those who sleep and those who wake them */
    pthread_cond_t work_ready;
    pthread_cond_t work_done;
    atomic_uint_fast64_t generation;
    atomic_uint busy; /* workers that have not finished this generation */
    atomic_bool is_stopping;
    atomic_uint sleepers; /* workers that wait for work_ready, or are about to */
    atomic_bool is_caller_asleep;
    unsigned looks;         /* before a thread sleeps; 0 when threads outnumber the processors */
    atomic_bool is_running; /* catches re-entrant use */
    /* Of a run: written before its generation, read after it. */
    ingot_task task;
    void *context;
    size_t count;
    atomic_size_t next_index;
    pool_worker *workers; /* [threads]; entry 0 (the caller) has no thread */
};

static void run_tiles(ingot_pool *pool, unsigned worker) {
    for (;;) {
        const size_t index = atomic_fetch_add_explicit(&pool->next_index, 1, memory_order_relaxed);
        if (index >= pool->count) {
            return;
        }
        pool->task(pool->context, index, worker);
    }
}

/* Some 20 microseconds on current processors. */
#define LOOKS 400u

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static bool has_work(const ingot_pool *pool, uint64_t seen_generation) {
    return pool->is_stopping || pool->generation != seen_generation;
}

/* Until there is a generation that is not the one seen, or the end. */
static void wait_for_work(ingot_pool *pool, uint64_t seen_generation) {
    for (unsigned i = 0; i < pool->looks; i++) {
        if (has_work(pool, seen_generation)) {
            return;
        }
        pause_briefly();
    }
    (void)pthread_mutex_lock(&pool->mutex);
    pool->sleepers++;
    while (!has_work(pool, seen_generation)) {
        (void)pthread_cond_wait(&pool->work_ready, &pool->mutex);
    }
    pool->sleepers--;
    (void)pthread_mutex_unlock(&pool->mutex);
}

static void wake_workers(ingot_pool *pool) {
    if (pool->sleepers != 0) {
        (void)pthread_mutex_lock(&pool->mutex);
        (void)pthread_cond_broadcast(&pool->work_ready);
        (void)pthread_mutex_unlock(&pool->mutex);
    }
}

static void *worker_main(void *argument) {
    const pool_worker *worker = argument;
    ingot_pool *pool = worker->pool;
    uint64_t seen_generation = 0;
    for (;;) {
        wait_for_work(pool, seen_generation);
        if (pool->is_stopping) {
            return NULL;
        }
        /* The next one comes when this worker, too, is idle again. */
        seen_generation = pool->generation;
        run_tiles(pool, worker->index);
        if (atomic_fetch_sub(&pool->busy, 1) == 1 && pool->is_caller_asleep) {
            (void)pthread_mutex_lock(&pool->mutex);
            (void)pthread_cond_signal(&pool->work_done);
            (void)pthread_mutex_unlock(&pool->mutex);
        }
    }
}

/* The caller's wait for the workers of a run. */
static void wait_until_idle(ingot_pool *pool) {
    for (unsigned i = 0; i < pool->looks; i++) {
        if (pool->busy == 0) {
            return;
        }
        pause_briefly();
    }
    (void)pthread_mutex_lock(&pool->mutex);
    pool->is_caller_asleep = true;
    while (pool->busy != 0) {
        (void)pthread_cond_wait(&pool->work_done, &pool->mutex);
    }
    pool->is_caller_asleep = false;
    (void)pthread_mutex_unlock(&pool->mutex);
}

static unsigned usable_cpus(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    int count = 0;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        count = CPU_COUNT(&set);
    }
    if (count < 1) {
        count = (int)sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than the set can name */
    }
    return count < 1 ? 1 : (unsigned)count;
}

/* Workers block every signal, so that SIGINT and SIGTERM reach the main thread. */
static ingot_status start_workers(ingot_pool *pool) {
    sigset_t all_signals;
    sigset_t old_signals;
    (void)sigfillset(&all_signals);
    (void)pthread_sigmask(SIG_SETMASK, &all_signals, &old_signals);
    ingot_status status = INGOT_OK;
    for (unsigned i = 1; i < pool->threads; i++) {
        pool_worker *worker = &pool->workers[i];
        worker->pool = pool;
        worker->index = i;
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) {
            status = INGOT_ERR_NO_MEMORY;
            break;
        }
        pool->started++;
    }
    (void)pthread_sigmask(SIG_SETMASK, &old_signals, NULL);
    return status;
}

ingot_status ingot_pool_create(ingot_pool **out, unsigned threads) {
    *out = NULL;
    if (threads == 0) {
        threads = usable_cpus();
    }
    if (threads > THREADS_MAX) {
        threads = THREADS_MAX;
    }
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_pool)));
    ingot_pool *pool = memory;
    ingot_status status = ingot_alloc_zero(&memory, threads, sizeof(pool_worker));
    if (status != INGOT_OK) {
        ingot_free(pool);
        return status;
    }
    pool->workers = memory;
    pool->threads = threads;
    pool->looks = threads <= usable_cpus() ? LOOKS : 0;
    (void)pthread_mutex_init(&pool->mutex, NULL);
    (void)pthread_cond_init(&pool->work_ready, NULL);
    (void)pthread_cond_init(&pool->work_done, NULL);
    status = start_workers(pool);
    if (status != INGOT_OK) {
        ingot_pool_destroy(pool);
        return status;
    }
    *out = pool;
    return INGOT_OK;
}

void ingot_pool_destroy(ingot_pool *pool) {
    if (pool == NULL) {
        return;
    }
    pool->is_stopping = true;
    wake_workers(pool);
    for (unsigned i = 1; i <= pool->started; i++) {
        (void)pthread_join(pool->workers[i].thread, NULL);
    }
    (void)pthread_cond_destroy(&pool->work_done);
    (void)pthread_cond_destroy(&pool->work_ready);
    (void)pthread_mutex_destroy(&pool->mutex);
    ingot_free(pool->workers);
    ingot_free(pool);
}

unsigned ingot_pool_threads(const ingot_pool *pool) {
    return pool == NULL ? 1 : pool->threads;
}

void ingot_pool_run(ingot_pool *pool, size_t count, ingot_task task, void *context) {
    if (pool == NULL || pool->threads == 1 || count <= 1) {
        for (size_t i = 0; i < count; i++) {
            task(context, i, 0);
        }
        return;
    }
    const bool was_running = atomic_exchange(&pool->is_running, true);
    assert(!was_running);
    (void)was_running;
    pool->task = task;
    pool->context = context;
    pool->count = count;
    atomic_store(&pool->next_index, 0);
    pool->busy = pool->threads - 1;
    pool->generation++;
    wake_workers(pool);
    run_tiles(pool, 0);
    wait_until_idle(pool);
    pool->is_running = false;
}

typedef struct attempts {
    ingot_attempt attempt;
    void *context;
    atomic_size_t failed_index; /* the least so far; SIZE_MAX: none */
    pthread_mutex_t mutex;      /* of who changes that and these two: */
    ingot_status status;
    ingot_error *error;
} attempts;

static void run_attempt(void *context, size_t index, unsigned worker) {
    attempts *a = context;
    if (index > a->failed_index) {
        return;
    }
    ingot_error error = {.status = INGOT_OK};
    const ingot_status status = a->attempt(a->context, index, worker, &error);
    if (status == INGOT_OK) {
        return;
    }
    (void)pthread_mutex_lock(&a->mutex);
    if (index < a->failed_index) {
        a->failed_index = index;
        a->status = status;
        if (a->error != NULL) {
            *a->error = error;
        }
    }
    (void)pthread_mutex_unlock(&a->mutex);
}

ingot_status ingot_pool_try(ingot_pool *pool, size_t count, ingot_attempt attempt, void *context,
                            ingot_error *error) {
    attempts a = {.attempt = attempt,
                  .context = context,
                  .failed_index = SIZE_MAX,
                  .mutex = PTHREAD_MUTEX_INITIALIZER,
                  .error = error};
    ingot_pool_run(pool, count, run_attempt, &a);
    (void)pthread_mutex_destroy(&a.mutex);
    return a.status;
}
