/* units.h: which thread does which units of a step; a part of shell.c.
 *
 * Each thread has an equal share, from which it takes some units at a time. One that is done with its own
 * takes from those of the others, so that nobody waits long for a thread that came late, or whose processor
 * is slower for a while: neighbours on the machine do that, to one processor at a time. Which thread does a
 * unit changes none of its bits.
 */
#ifndef RAFT_UNITS_H
#define RAFT_UNITS_H

#include <stdatomic.h>
#include <stdint.h>

/* How many units of the share of a thread in a step somebody has taken, or more. Zero before the step. */
typedef struct Taken {
    _Alignas(64) atomic_llong units;
} Taken;

/* The units from `begin` to before `end`. */
typedef struct Units {
    int64_t begin, end;
} Units;

/* The first threads have one unit more where they divide unevenly. */
static inline Units share_of(int64_t units, int thread, int threads)
{
    int64_t share = units / threads, rest = units % threads;
    int64_t begin = share * thread + (thread < rest ? thread : rest);
    return (Units){begin, begin + share + (thread < rest)};
}

/* What thread `thread` is to do next of the units of a step, at least `piece` of them if there are as many;
 * none once all are taken. *owner: whose share it takes from, counted from itself; 0 to begin with. */
static inline Units take_units(Taken *taken, int64_t units, int64_t piece, int thread, int threads,
                               int *owner)
{
    enum { PIECES = 32 }; /* of a share */
    for (; *owner < threads; ++*owner) {
        int of = (thread + *owner) % threads;
        Units share = share_of(units, of, threads);
        int64_t size = share.end - share.begin, most = threads == 1 ? size : 1 + size / PIECES;
        if (most < piece) most = piece;
        if (atomic_load_explicit(&taken[of].units, memory_order_relaxed) >= size) continue;
        int64_t first = atomic_fetch_add_explicit(&taken[of].units, most, memory_order_relaxed);
        if (first >= size) continue;
        return (Units){share.begin + first,
                       size - first < most ? share.end : share.begin + first + most};
    }
    return (Units){0, 0};
}

#endif
