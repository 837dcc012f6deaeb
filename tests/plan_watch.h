/* plan_watch.h: looks in a run at what a plan says of memory: that each value lies where it was placed, and
 * stays as it is until the last step that reads it. */
#ifndef RAFTC_TESTS_PLAN_WATCH_H
#define RAFTC_TESTS_PLAN_WATCH_H

#include "backends/backend.h"

#include <string.h>

typedef struct PlanWatch {
    const Plan *plan;
    const RaftBuffer *placed; /* the buffers of the program that runs */
    const float *base;        /* of the arena; NULL: not seen yet */
    uint64_t *sum;            /* of what each buffer of the arena held when it was written */
    int looked;               /* values that were read */
    const char *why;          /* NULL, or what is wrong */
    int step;                 /* where */
} PlanWatch;

static inline uint64_t sum_of(const float *data, int64_t floats)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (int64_t i = 0; i < floats; i++) {
        uint32_t bits;
        memcpy(&bits, &data[i], sizeof bits);
        hash = (hash ^ bits) * UINT64_C(1099511628211);
    }
    return hash;
}

/* The `number`-th step that is not of prepare. */
static inline const Step *watched_step(const Plan *plan, int number)
{
    int at = 0;
    for (; plan->steps[at].prepare || number-- > 0; at++) continue;
    return &plan->steps[at];
}

/* A RaftWatch. */
static inline void watch_plan(void *user, int number, float *const *argument, int64_t first,
                              int64_t images)
{
    PlanWatch *w = user;
    const Step *step = watched_step(w->plan, number);
    (void)first;
    for (int i = 0; i < step->argument_count && !w->why; i++) {
        int at = step->arguments[i];
        const Buffer *b = &w->plan->buffers[at];
        if (b->kind != BUFFER_ARENA) continue;
        w->step = number;
        if (!w->base) w->base = argument[i] - w->placed[at].offset * images;
        if (argument[i] != w->base + w->placed[at].offset * images) w->why = "lies elsewhere";
        uint64_t sum = sum_of(argument[i], b->elements * (b->batched ? images : 1));
        bool written = graph_node(w->plan->graph, b->value)->kernel == step->kernel;
        if (written) {
            w->sum[at] = sum;
        } else {
            w->looked++;
            if (sum != w->sum[at]) w->why = "has changed";
        }
    }
}

#endif
