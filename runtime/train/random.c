/* random.c: random numbers as a function of their place: Philox 4x32-10 (Salmon et al., 2011).
 *
 *     key      the seed
 *     counter  {block of the stream, sample, epoch, purpose}
 */
#include "runtime/train/train.h"

#include <math.h>
#include <string.h>

enum { ROUNDS = 10, BLOCK = 4 };

static void philox(const uint32_t key[2], const uint32_t counter[BLOCK], uint32_t out[BLOCK])
{
    uint32_t k0 = key[0], k1 = key[1];
    memcpy(out, counter, BLOCK * sizeof *out);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t a = UINT64_C(0xD2511F53) * out[0], b = UINT64_C(0xCD9E8D57) * out[2];
        uint32_t next[BLOCK] = {(uint32_t)(b >> 32) ^ out[1] ^ k0, (uint32_t)b,
                                (uint32_t)(a >> 32) ^ out[3] ^ k1, (uint32_t)a};
        memcpy(out, next, sizeof next);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

RaftRandom raft_random(uint64_t seed, uint32_t epoch, uint32_t sample, RaftPurpose purpose)
{
    return (RaftRandom){.key = {(uint32_t)seed, (uint32_t)(seed >> 32)},
                        .counter = {0, sample, epoch, purpose},
                        .used = BLOCK};
}

uint32_t raft_random_bits(RaftRandom *random)
{
    if (random->used == BLOCK) {
        philox(random->key, random->counter, random->block);
        random->counter[0]++;
        random->used = 0;
    }
    return random->block[random->used++];
}

/* In (0, 1): for logarithms. */
static double inside(RaftRandom *random)
{
    return (raft_random_bits(random) + 0.5) * 0x1p-32;
}

double raft_random_uniform(RaftRandom *random, double low, double high)
{
    return low + (high - low) * (raft_random_bits(random) * 0x1p-32);
}

uint32_t raft_random_below(RaftRandom *random, uint32_t bound)
{
    /* The top of a product (Lemire, 2019); what would favour some results is drawn again. */
    uint32_t rest = -bound % bound;
    uint64_t product;
    do product = (uint64_t)raft_random_bits(random) * bound;
    while ((uint32_t)product < rest);
    return (uint32_t)(product >> 32);
}

bool raft_random_chance(RaftRandom *random, double probability)
{
    return raft_random_uniform(random, 0, 1) < probability;
}

static double normal(RaftRandom *random)
{
    double radius = sqrt(-2 * log(inside(random)));
    return radius * cos(2 * M_PI * inside(random));
}

/* The logarithm of a Gamma(alpha) variable: Marsaglia and Tsang (2000) for alpha + 1, and then the
 * power that leads back to alpha. As a logarithm, since for small alpha it underflows. */
static double log_gamma(RaftRandom *random, double alpha)
{
    double d = alpha + 2.0 / 3.0, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = normal(random), v = 1 + c * x;
        if (v <= 0) continue;
        v = v * v * v;
        if (log(inside(random)) < x * x / 2 + d * (1 - v + log(v)))
            return log(d * v) + log(inside(random)) / alpha;
    }
}

double raft_random_beta(RaftRandom *random, double alpha)
{
    double first = log_gamma(random, alpha), second = log_gamma(random, alpha);
    return 1 / (1 + exp(second - first));
}

void raft_random_permutation(RaftRandom *random, uint32_t count, uint32_t *order)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t k = raft_random_below(random, i + 1);
        order[i] = order[k];
        order[k] = i;
    }
}
