/* raftc_profile.h: bench --profile, --roofline and --trace: what each kernel takes. */
#ifndef RAFTC_PROFILE_H
#define RAFTC_PROFILE_H

#include "frontend/raftc.h"
#include "frontend/raftc_json.h"

typedef struct Profile {
    RaftShell *shell;
    const Plan *plan;
    const StepCode *code;
    int64_t batch; /* images of a run; of the optimiser's, which knows none, 1 */
    int threads, step_count;
    int *step;            /* of each step of the forward: its index in the plan */
    double *seconds;      /* what the shell adds to: of each thread, each step */
    double *least, *work; /* of each step: its time in the best run, and that of all threads */
    double *run;          /* of the fastest run: as seconds, */
    RaftMoments *moments, *run_moments; /* and what the shell notes, and that of this run */
} Profile;

/* A kernel, or several that share code. */
typedef struct ProfileRow {
    const Profile *profile;
    int first, steps; /* the step of the plan that came first, and how many there are */
    double seconds, work, flops, bytes;
    double gelu, others; /* operations on values that are no multiply-adds: of gelu, and the rest */
    bool resamples;
} ProfileRow;

/* From now on every run of the shell, of so many images on so many threads, is measured: profile_add
 * after each that counts. */
void profile_begin(Profile *profile, Arena *arena, const Compilation *compilation, RaftShell *shell,
                   int64_t batch, int threads);
void profile_add(Profile *profile, bool fastest);
/* Of `count` profiles, as one table. */
void profile_print(const Profile *profile, int count, Arena *arena, double peak_gflops,
                   double peak_gbytes);
json_t *profile_json(const Profile *profile, int count, Arena *arena, double peak_gflops,
                     double peak_gbytes);
/* The rows of the table; *count: in, of profiles, and out, of rows. */
ProfileRow *profile_rows(const Profile *profile, Arena *arena, int *count);
/* Why it has less than 65 % of the peak; "" where it has not. */
const char *profile_row_cause(const ProfileRow *row, double peak_gflops, double peak_gbytes);
/* What it is, as text: "norm_linear (b, h 56 by 14)". */
const char *profile_row_text(const ProfileRow *row, Arena *arena);

/* ---- raftc_roofline.c ------------------------------------------------------------------------ */

/* Draws rows to an SVG file, under the ceilings of the machine. */
Exit roofline_draw(Session *session, const ProfileRow *rows, int count, const char *title,
                   double peak_gflops, double peak_gbytes);

/* ---- raftc_trace.c --------------------------------------------------------------------------- */

/* Writes the stages of the session, the passes of the compilation, and the fastest run of each profile
 * as events of Chrome's trace format. */
Exit trace_write(Session *session, const Compilation *compilation, const Profile *profile,
                 int count);

#endif
