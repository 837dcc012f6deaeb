/* bound.h: what the files with the bounds of rounding errors share; bound.c explains them. */
#ifndef RAFTC_REFERENCE_BOUND_H
#define RAFTC_REFERENCE_BOUND_H

#include "backends/reference/reference.h"

#include <float.h>
#include <math.h>

/* 1 + gamma(roundings) */
static inline double grown(int64_t roundings)
{
    double n = (double)roundings * 0x1p-24;
    return 1 + n / (1 - n);
}

/* A value and the bound of its error, from where a walk stands. */
typedef struct Bounded {
    const double *value, *error;
} Bounded;

static inline Bounded operand_bounded(const Run *run, NodeId id, uint32_t index)
{
    NodeId value = run_operand(run, id, index);
    return (Bounded){run->values[value], run->bounds[value]};
}

static inline Bounded bounded_at(Bounded x, int64_t offset)
{
    return (Bounded){x.value + offset, x.error + offset};
}

/* The most that element i can be. */
static inline double most(Bounded x, int64_t i)
{
    return fabs(x.value[i]) + x.error[i];
}

typedef struct Spread {
    double mean, mean_error;
    double factor, factor_error; /* 1 / sqrt(variance + eps) */
} Spread;

/* Of one group that is normalised. */
Spread bound_spread(Bounded x, const Normal *along, double eps);
/* The most that the difference of element k to the mean can be. */
double most_difference(Bounded x, int64_t k, const Spread *s);

#endif
