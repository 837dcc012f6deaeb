/* raftc_trial.h: one kernel with one choice, compiled and timed by itself. */
#ifndef RAFTC_TRIAL_H
#define RAFTC_TRIAL_H

#include "frontend/raftc.h"
#include "passes/choices.h"

/* A kernel alone (kernel_isolate), and what all trials of it share. */
typedef struct Bench {
    Session *session;
    const Compilation *compilation; /* for its target and CPU */
    const Graph *graph;
    int64_t batch;
    const float **inputs, **parameters; /* made up; NULL: not yet */
    size_t result_bytes;                /* of all outputs together: */
    float *expected;                    /* by rule, */
    float **outputs;                    /* and where each output of a trial goes */
} Bench;

typedef struct Trial {
    Arena arena;
    Choice choice;
    CpuCode *code;
    RaftShell *shell;
    double *seconds; /* of each thread, what the shell adds to */
} Trial;

/* Compiles the kernel with *choice, or (NULL) with that by rule, which is then in trial->choice. The
 * bits of its results must be those of the first trial of the bench. To be closed, whatever it returns;
 * EXIT_MISSED: the kernel is one of which nothing can be chosen. */
Exit trial_open(Trial *trial, Bench *bench, const Choice *choice);
void trial_close(Trial *trial);

/* Runs two trials in turns, for about `seconds`, and gives the least time that each took. Ends early
 * where b is far behind. */
Exit trial_compare(Bench *bench, Trial *a, Trial *b, double seconds, double *least_a,
                   double *least_b);

#endif
