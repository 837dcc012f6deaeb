/* random.h: random numbers for tests: from one seed the same sequence on every machine
 * (splitmix64). */
#ifndef RAFTC_TESTS_RANDOM_H
#define RAFTC_TESTS_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Random {
    uint64_t state; /* the seed, to begin with */
} Random;

static inline uint64_t random_bits(Random *random)
{
    uint64_t z = random->state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* Evenly from `least` to `most`, both included. */
static inline int64_t random_from(Random *random, int64_t least, int64_t most)
{
    return least + (int64_t)(random_bits(random) % (uint64_t)(most - least + 1));
}

static inline bool random_chance(Random *random, int percent)
{
    return random_from(random, 0, 99) < percent;
}

/* From -1 to 1. */
static inline double random_real(Random *random)
{
    return (double)(random_bits(random) >> 11) * 0x1p-52 - 1;
}

#endif
