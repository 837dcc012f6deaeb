/* raftc_profile.h: bench --profile. */
#ifndef RAFTC_PROFILE_H
#define RAFTC_PROFILE_H

#include "frontend/raftc.h"
#include "frontend/raftc_json.h"

typedef struct Profile {
    RaftShell *shell;
    const Plan *plan;
    const StepCode *code;
    int threads, step_count;
    int *step;            /* of each step of the forward: its index in the plan */
    double *seconds;      /* what the shell adds to: of each thread, each step */
    double *least, *work; /* of each step: its time in the best run, and that of all threads */
} Profile;

/* From now on every run of the shell, on so many threads, is measured: profile_add after each that
 * counts. */
void profile_begin(Profile *profile, Arena *arena, const Compilation *compilation, RaftShell *shell,
                   int threads);
void profile_add(Profile *profile);
/* Of `count` profiles, as one table. */
void profile_print(const Profile *profile, int count, Arena *arena, int64_t batch,
                   double peak_gflops, double peak_gbytes);
json_t *profile_json(const Profile *profile, int count, Arena *arena, int64_t batch);

#endif
