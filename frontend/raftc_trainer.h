/* raftc_trainer.h: a model that can be trained, whatever its data.
 *
 *   Machine   a compiled graph that can be run: the model with its backward pass, or the optimiser
 *   Trainer   both, and the blocks of floats that they share
 *
 * All parameters stand in one block, laid out as in a weights blob (runtime/shell.h), and so do their
 * gradients and the optimiser's moments: one kernel then goes over all of them at once. The optimiser
 * writes into a second set of blocks, and the two sets change places.
 */
#ifndef RAFTC_TRAINER_H
#define RAFTC_TRAINER_H

#include "frontend/raftc.h"

typedef struct Machine {
    Session *session;
    Compilation compilation;
    const RaftProgram *program;
    RaftShell *shell;         /* NULL: the reference backend runs it */
    const float **input;      /* of each input of the graph, */
    float **output;           /* and of each output */
    ReferenceTensor *tensors; /* of the reference backend: inputs and parameters */
    int input_count, tensor_count;
} Machine;

/* What a model drops in training, as an input of its graph (build_dropping_graph). */
typedef struct Mask {
    float *data;
    int64_t elements; /* for an image */
    double rate;
} Mask;

typedef struct Trainer {
    Session *session;
    Machine model, optimiser;
    RaftTensorInfo *parameters;
    int parameter_count;
    int64_t *offset;    /* of each parameter, in floats from the start of a block */
    int64_t floats;     /* in a block; that of the weights has a header before it */
    float *blob[2];     /* weights with header: the present ones, and room for the next */
    float *m[2], *v[2]; /* likewise */
    float *gradients;
    float *image, *target, *weight, *loss; /* of a batch, with room for `batch` images */
    int64_t batch, pixels;                 /* values of an image */
    Mask *mask;
    int mask_count;
    RaftWeightsHeader header;
    float number[8]; /* what the optimiser is told for a step */
} Trainer;

/* Compiles the model that the command line names, and makes room for batches of `batch` images (0:
 * the batch_size of the settings). With `drops` it drops what the settings say. Weights and moments
 * are 0. Close it in any case. */
Exit trainer_open(Trainer *t, Session *session, int64_t batch, bool drops);
void trainer_close(Trainer *t);
/* Parameter i of the present weights. */
float *trainer_weights(const Trainer *t, int parameter);
/* Draws what is dropped in step `step` of the first `count` images of the batch; `first` is the place of
 * the first of them in the global batch. */
void trainer_drop(Trainer *t, int64_t step, int64_t first, int64_t count);
/* The losses and the gradients of the first `count` images of the batch. */
Exit trainer_run_backward(Trainer *t, int64_t count);
/* Step number `step`, from 1, of AdamW. */
Exit trainer_run_step(Trainer *t, int64_t step, double learning_rate);
/* logits[count][classes] of the images of the batch. */
Exit trainer_run_forward(Trainer *t, int64_t count, float *logits);
/* The tensors of a block: the present weights, NULL, or another that is laid out alike. */
RaftTensor *trainer_tensors(const Trainer *t, const float *block);

/* ---- raftc_train.c ------------------------------------------------------------------------------ */

/* The weights of the options, or made-up ones, and one made-up batch of images and labels. */
Exit trainer_fill(Trainer *t);

/* ---- raftc_train_run.c: the published recipe on real data -------------------------------------- */

Exit train_run(Session *session);

#endif
