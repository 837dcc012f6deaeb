/* raftc_trainer.h: a model that can be trained, whatever its data.
 *
 *   Machine   a compiled graph that can be run: the model with its backward pass, or the optimiser
 *   Trainer   both, and the blocks of floats that they share
 *
 * All parameters stand in one block, laid out as in a weights blob (runtime/shell.h), and so do their
 * gradients and the optimiser's state: one kernel then goes over all of them at once. The optimiser
 * writes into a second set of blocks, and the two sets change places. A batch may be run in parts, one
 * after the other, whose gradients are added up. With a GPU, blocks are in its memory for as long as steps
 * follow one another, and come to the host's when something else wants them.
 */
#ifndef RAFTC_TRAINER_H
#define RAFTC_TRAINER_H

#include "frontend/raftc_numerics.h"
#include "runtime/train/comm.h"
#include "runtime/training.h"

typedef struct Machine {
    Session *session;
    Compilation compilation;
    const RaftProgram *program;
    RaftShell *shell;         /* NULL: the reference backend runs it */
    RaftCudaGpu gpu;          /* that runs it, of --target cuda */
    const float **input;      /* of each input of the graph, */
    float **output;           /* and of each output */
    ReferenceTensor *tensors; /* of the reference backend: inputs and parameters */
    int input_count, tensor_count;
    Numerics numerics;
} Machine;

/* What a model drops in training, as an input of its graph (build_dropping_graph). */
typedef struct Mask {
    float *data;
    int64_t elements; /* for an image */
    double rate;
} Mask;

enum { TRAINER_STATES = 4 };
typedef struct State { /* what a step reads, and what it makes of that */
    const char *name;  /* as input and output of the optimiser: w, m, v, e */
    float *block[2];   /* the present one, and room for the next */
    float *gpu[2];     /* the same in the GPU's memory, if the trainer uses it */
} State;

/* Of the block of gradients: they are final once that step has run. */
typedef struct Slice {
    int64_t first, floats;
    int step;
} Slice;

typedef struct Trainer {
    Session *session;
    Machine model, optimiser;
    RaftOptimiser rule;
    RaftTensorInfo *parameters;
    int parameter_count;
    int *gradient;               /* the output of the model that it is; -1: none */
    int64_t *offset;             /* of each parameter, in floats from the start of a block */
    int64_t floats;              /* in a block; that of the weights has a header before it */
    State state[TRAINER_STATES]; /* the weights first */
    int state_count;
    float *gradients, *part;              /* of a step; of a part of its batch */
    float *gpu_gradients;                 /* NULL: states and gradients stay in the host's memory */
    bool states_on_gpu, gradients_on_gpu; /* where the present ones are */
    float *image, *target, *weight, *loss; /* of a part, with room for `room` images */
    int64_t step;                          /* the present one, from 1 */
    int64_t batch;                         /* images in a step, */
    int64_t parts;        /* and in how many parts this process runs its share of them */
    int64_t room, pixels; /* images in a part, at most; values of an image */
    Mask *mask;
    int mask_count;
    const RaftComm *comm; /* those who share a batch; NULL: it is not shared */
    Slice slice[RAFT_COMM_SUMS];
    int slice_count, begun; /* their sums, in the present step */
    bool adds, last;        /* the present part of the batch: not the first; the last one, */
    int64_t images;         /* of so many */
    RaftWeightsHeader header;
    float number[RAFT_OPTIMISER_NUMBERS]; /* what the optimiser is told for a step */
} Trainer;

/* Compiles the model that the command line names, to train in batches of `batch` images, or of
 * batch_size where that is 0. For a run of the recipe these are shared by processes, NULL: no such run;
 * each runs accumulation_steps parts, and the graph has masks (trainer_drop). Weights and states are 0. Close it in any case. */
Exit trainer_open(Trainer *t, Session *session, int64_t batch, const RaftComm *comm);
void trainer_close(Trainer *t);
/* The optimiser of the settings, and its step for the model, as built, for rows of so many floats. */
RaftOptimiser optimiser_of(const Settings *settings);
Compilation optimiser_step(Arena *arena, const Compilation *model, const char *name,
                           const RaftOptimiser *rule, int64_t floats);
/* Brings what a GPU has of the states, or of the gradients of the present step, to the host's memory: before anything
 * else but a step is asked of them. */
Exit trainer_bring_states(Trainer *t);
Exit trainer_bring_gradients(Trainer *t);
/* Parameter i of the present weights. */
float *trainer_weights(const Trainer *t, int parameter);
/* The average of the weights begins with them. */
void trainer_begin_average(Trainer *t);
/* The weights that a run is for: their average, where there is one. */
const float *trainer_best(const Trainer *t);
/* Draws what is dropped in step `step` of the first `count` images; `first` is the place of the first of
 * them in the global batch. */
void trainer_drop(Trainer *t, int64_t step, int64_t first, int64_t count);
/* The losses of the first `count` images of a part; their gradients, each image's share being 1 / batch,
 * replace or, after part 0, are added to those of the step. With the last part, the sums of the gradients
 * over all processes have begun; raft_comm_sum_end waits for them. */
Exit trainer_run_backward(Trainer *t, int64_t count, int64_t batch, int64_t part);
/* Adds what the present part gives. */
void trainer_add_part(Trainer *t, int64_t first, int64_t floats);
/* The present step of the optimiser. */
Exit trainer_run_step(Trainer *t, double learning_rate);
/* logits[count][classes] of the first `count` images, with weights as trainer_best gives. */
Exit trainer_run_forward(Trainer *t, int64_t count, float *logits);
/* The tensors of a block, or of the present weights (NULL). */
RaftTensor *trainer_tensors(const Trainer *t, const float *block);

/* ---- raftc_trainer_sums.c ----------------------------------------------------------------------- */

/* Which slices are summed after which step; */
void trainer_plan_sums(Trainer *t);
/* and after all of them, what has not begun. */
void trainer_begin_rest(Trainer *t);

/* ---- raftc_trainer_gpu.c ------------------------------------------------------------------------ */

/* Where the optimiser finds which weights decay; NULL: it does not ask. */
const float **trainer_decays(Trainer *t);
/* From now on states and gradients may stay in the GPU's memory from step to step: of one process, which runs its batch
 * whole. */
Exit trainer_use_gpu(Trainer *t);
/* Before a step: brings the states there, if they are used there. */
Exit trainer_send_states(Trainer *t);

/* ---- raftc_train.c ------------------------------------------------------------------------------ */

/* The weights of the options, or made-up ones, and one made-up batch of images and labels. */
Exit trainer_fill(Trainer *t);

/* ---- raftc_train_run.c: the published recipe on real data -------------------------------------- */

Exit train_run(Session *session);

#endif
