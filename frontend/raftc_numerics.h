/* raftc_numerics.h: --check-numerics: where the first NaN or infinity of a run comes from.
 *
 * While compiled code runs, what each kernel writes is looked at. The kernel in which the first value
 * that is not finite appears is then run op by op, by plain loops on what it has read: a parameter, an
 * input, or the op that made it of finite values is named.
 */
#ifndef RAFTC_NUMERICS_H
#define RAFTC_NUMERICS_H

#include "frontend/raftc.h"

typedef struct Numerics {
    Session *session;
    const Compilation *compilation; /* NULL: nothing is looked for */
    int step;                       /* of the plan, in which it appears; -1: it has not */
    int64_t first, images;          /* of the images that the step worked on */
    ReferenceFault fault;           /* in what it wrote */
    float **read;                   /* copies of what it read, one an argument; NULL: not needed */
} Numerics;

/* Begins to look at what the instance computes, if the options ask for that. */
void numerics_watch(Numerics *numerics, Session *session, const Compilation *compilation,
                    RaftShell *shell);
/* To be asked after a run: EXIT_MISSED with a message where something was found. `tensors` have the
 * parameters; NULL: they are those of the weights of the options. `step`: of the training; 0: none. */
Exit numerics_tell(const Numerics *numerics, const ReferenceTensor *tensors, int tensor_count,
                   int64_t step);
/* Runs a graph by plain loops, and tells likewise. */
Exit numerics_run(Session *session, const Graph *graph, int64_t batch,
                  const ReferenceTensor *tensors, int tensor_count, const char *entry,
                  void *const *outputs, int64_t step);

#endif
