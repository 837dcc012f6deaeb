/* pool.h: the threads of an instance, which wait for its runs; a part of shell.c.
 *
 * Between runs that follow each other closely they spin, for less than a millisecond, and then sleep.
 * OpenMP's own threads spin for some ten after each parallel region (GCC 12, 2.45 GHz), which what else
 * is on the machine pays for, and which nobody but the user can turn off.
 */
#ifndef RAFT_POOL_H
#define RAFT_POOL_H

#include "runtime/barrier.h"

#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

typedef void PoolWork(void *user, int thread, int threads);

typedef struct Pool Pool;

typedef struct PoolThread {
    Pool *pool;
    int number; /* the caller of a run is 0 */
    pthread_t thread;
} PoolThread;

struct Pool {
    PoolThread *list;
    int started; /* beside the caller */
    pid_t process;
    PoolWork *work; /* of the present run; NULL: the threads are to end */
    void *user;
    int threads; /* that take part in it */
    pthread_mutex_t mutex;
    pthread_cond_t begin, end;
    _Alignas(64) atomic_uint run; /* its number */
    _Alignas(64) atomic_int left; /* threads that have not done their part of it */
};

/* How long a thread has waited. */
typedef struct PoolWait {
    int turns;
    int64_t start; /* ns */
} PoolWait;

/* One turn of waiting; true once it is time to sleep. */
static inline bool pool_wait_turn(PoolWait *wait)
{
    enum { BEFORE_CLOCK = 256, MOST = 300000 /* ns */ };
    struct timespec now;
    if (++wait->turns < BEFORE_CLOCK) {
        pause_processor();
        return false;
    }
    sched_yield();
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t time = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    if (wait->turns == BEFORE_CLOCK) wait->start = time;
    return time - wait->start > MOST;
}

/* Waits until the run is another than number `seen`. */
static inline unsigned pool_next_run(Pool *pool, unsigned seen)
{
    PoolWait wait = {0};
    while (atomic_load_explicit(&pool->run, memory_order_acquire) == seen) {
        if (!pool_wait_turn(&wait)) continue;
        pthread_mutex_lock(&pool->mutex);
        while (atomic_load_explicit(&pool->run, memory_order_acquire) == seen)
            pthread_cond_wait(&pool->begin, &pool->mutex);
        pthread_mutex_unlock(&pool->mutex);
    }
    return atomic_load_explicit(&pool->run, memory_order_acquire);
}

static void *pool_thread(void *user)
{
    const PoolThread *self = user;
    Pool *pool = self->pool;
    for (unsigned run = 0;;) {
        run = pool_next_run(pool, run);
        if (!pool->work) return NULL;
        if (self->number < pool->threads) pool->work(pool->user, self->number, pool->threads);
        if (atomic_fetch_sub_explicit(&pool->left, 1, memory_order_acq_rel) != 1) continue;
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->end);
        pthread_mutex_unlock(&pool->mutex);
    }
}

/* Starts as many threads as there can be, up to `count` with the caller. They take no signals. */
static inline void pool_start(Pool *pool, int count)
{
    sigset_t all, old;
    if (pool->list || count < 2) return;
    pool->list = calloc((size_t)count - 1, sizeof *pool->list);
    if (!pool->list) return;
    pool->process = getpid();
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->begin, NULL);
    pthread_cond_init(&pool->end, NULL);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool->started < count - 1) {
        PoolThread *next = &pool->list[pool->started];
        *next = (PoolThread){.pool = pool, .number = pool->started + 1};
        if (pthread_create(&next->thread, NULL, pool_thread, next) != 0) break;
        pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static inline void pool_begin(Pool *pool, PoolWork *work, void *user, int threads)
{
    pthread_mutex_lock(&pool->mutex);
    pool->work = work;
    pool->user = user;
    pool->threads = threads;
    atomic_store_explicit(&pool->left, pool->started, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool->run, 1, memory_order_release);
    pthread_cond_broadcast(&pool->begin);
    pthread_mutex_unlock(&pool->mutex);
}

/* Does the work on `threads` threads, the caller's among them, or fewer where there are not so many:
 * in a process that was forked off there is just the one. */
static inline void pool_run(Pool *pool, PoolWork *work, void *user, int threads)
{
    int most = pool->started && pool->process == getpid() ? pool->started + 1 : 1;
    if (threads > most) threads = most;
    if (threads == 1) {
        work(user, 0, 1);
        return;
    }
    pool_begin(pool, work, user, threads);
    work(user, 0, threads);
    PoolWait wait = {0};
    while (atomic_load_explicit(&pool->left, memory_order_acquire) > 0) {
        if (!pool_wait_turn(&wait)) continue;
        pthread_mutex_lock(&pool->mutex);
        while (atomic_load_explicit(&pool->left, memory_order_acquire) > 0)
            pthread_cond_wait(&pool->end, &pool->mutex);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static inline void pool_stop(Pool *pool)
{
    if (pool->list && pool->process == getpid()) {
        pool_begin(pool, NULL, NULL, 0);
        for (int i = 0; i < pool->started; i++) pthread_join(pool->list[i].thread, NULL);
        pthread_mutex_destroy(&pool->mutex);
        pthread_cond_destroy(&pool->begin);
        pthread_cond_destroy(&pool->end);
    }
    free(pool->list);
}

#endif
