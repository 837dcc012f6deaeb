/* training.h: an instance of a model that can be trained: a shell that computes gradients, one that
 * makes the step of an optimiser, and the blocks of floats that they share.
 *
 * All parameters stand in one block, laid out as in a weights blob (shell.h), and so do their gradients
 * and the state of the optimiser. Like shell.c, training.c is also written out as text into generated
 * libraries, those that train. */
#ifndef RAFT_TRAINING_H
#define RAFT_TRAINING_H

#include "runtime/shell.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- the optimiser ---------------------------------------------------------------------------- */

enum { RAFT_OPTIMISER_NUMBERS = 12 };
typedef struct RaftOptimiserNumber {
    const char *name;
    double value;
} RaftOptimiserNumber;

/* What its graph (frontend/optimiser.c) is told in step `step`, from 1; `norm` is that of all
 * gradients. Returns how many numbers. */
RAFT_SHELL_LINKAGE int raft_optimiser_numbers(const RaftOptimiser *optimiser, int64_t step,
                                              double learning_rate, double norm,
                                              RaftOptimiserNumber *numbers);
/* The norm of `count` floats: the same bits for any number of threads, at least 1. */
RAFT_SHELL_LINKAGE double raft_norm(const float *x, int64_t count, int threads);

/* ---- the instance ----------------------------------------------------------------------------- */

typedef struct RaftTraining RaftTraining;

/* As raft_shell_create. `model` has the entry backward, `step` is a program of the rule. */
RAFT_SHELL_LINKAGE RaftStatus raft_training_create(
    const RaftProgram *model, const RaftProgram *step, const RaftOptimiser *rule,
    const RaftShellOptions *options, RaftTraining **out, char *message, size_t message_size);
RAFT_SHELL_LINKAGE void raft_training_destroy(RaftTraining *training); /* NULL is legal */
RAFT_SHELL_LINKAGE RaftStatus raft_training_set_parameter(RaftTraining *training, const char *name,
                                                          const int64_t *shape, int rank,
                                                          const float *data);
/* A parameter, or its gradient; NULL: there is none of this name. */
RAFT_SHELL_LINKAGE float *raft_training_parameter(RaftTraining *training, const char *name);
RAFT_SHELL_LINKAGE float *raft_training_gradient(RaftTraining *training, const char *name);
/* raft_shell_forward and raft_shell_features with the present parameters. */
RAFT_SHELL_LINKAGE RaftStatus raft_training_forward(RaftTraining *training, int64_t batch,
                                                    const float *nchw, float *logits);
RAFT_SHELL_LINKAGE RaftStatus raft_training_features(RaftTraining *training, int64_t batch,
                                                     const float *nchw, float *const *maps);
/* Computes loss[batch], and adds to the gradients those of the sum of weight[i] * loss[i]; weight
 * NULL: each is 1 / batch. */
RAFT_SHELL_LINKAGE RaftStatus raft_training_backward(RaftTraining *training, int64_t batch,
                                                     const float *nchw, const float *target,
                                                     const float *weight, float *loss);
/* The same with gradients of the caller's: forward_keep computes logits and maps (NULL: not wanted), and
 * keeps what backward_from needs, which takes the gradients of these (NULL: 0) and gives those of the
 * parameters: gradients[i] of the i-th; NULL: they are added. In between, nothing else may be run, and
 * nchw and the parameters must stay as they are. */
RAFT_SHELL_LINKAGE RaftStatus raft_training_forward_keep(RaftTraining *training, int64_t batch,
                                                         const float *nchw, float *logits,
                                                         float *const *maps);
RAFT_SHELL_LINKAGE RaftStatus raft_training_backward_from(RaftTraining *training,
                                                          const float *logits,
                                                          const float *const *maps,
                                                          float *const *gradients);
RAFT_SHELL_LINKAGE RaftStatus raft_training_zero(RaftTraining *training);
RAFT_SHELL_LINKAGE RaftStatus raft_training_step(RaftTraining *training, double learning_rate);
RAFT_SHELL_LINKAGE const char *raft_training_error(const RaftTraining *training);

#ifdef __cplusplus
}
#endif

#endif
