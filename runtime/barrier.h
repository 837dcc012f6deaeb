/* barrier.h: where the threads of a run wait for each other between steps; a part of shell.c.
 *
 * A thread spins for a moment, then leaves its processor to others. On 2 cores with two busy
 * neighbours, steps of 0.1 ms of two threads take 0.2 to 1.5 ms so, and 3.9 ms with OpenMP's own
 * barrier, which spins through the time that the thread it waits for could have run. Without
 * neighbours the two are equal, also for 8 threads on 2 cores.
 */
#ifndef RAFT_BARRIER_H
#define RAFT_BARRIER_H

#include "runtime/units.h"

#include <sched.h>

/* Zero but for `taken` to begin with. In two cache lines, since waiting threads read `round` all the time. */
typedef struct Barrier {
    _Alignas(64) atomic_int arrived;
    Taken *taken; /* of each step since the last time, and thread: zero once all are here */
    _Alignas(64) atomic_uint round;
} Barrier;

static inline void pause_processor(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Returns when all `threads` threads have called it, after `steps` steps. What they wrote before can then be read. */
static inline void wait_for_all(Barrier *barrier, int threads, int steps)
{
    enum { SPINS = 200 }; /* some 10 us, which threads that share work evenly end apart */
    unsigned round = atomic_load_explicit(&barrier->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        for (int i = 0; i < steps * threads; i++)
            atomic_store_explicit(&barrier->taken[i].units, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->round, round + 1, memory_order_release);
        return;
    }
    int spins = 0;
    while (atomic_load_explicit(&barrier->round, memory_order_acquire) == round) {
        if (spins++ < SPINS) {
            pause_processor();
        } else {
            spins = SPINS;
            sched_yield();
        }
    }
}

#endif
