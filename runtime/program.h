/* program.h: what a compiled model is, as data: the table that the shell (shell.c) walks.
 *
 * raftc fills one in memory for its JIT, and prints one as C text for a generated library; both are
 * run by the same shell. Kernels are machine code made by a backend; everything else is here.
 */
#ifndef RAFT_PROGRAM_H
#define RAFT_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

/* One kernel: computes units [begin, end) of it. argument[i] is the base of the i-th buffer of its
 * step; batch is the value of the symbol b; scratch is scratch_bytes of memory of the calling
 * thread, aligned to 64 bytes, of any content. Units are independent: any split over threads gives
 * the same bits. Behind the buffers comes one argument more: NULL, or what a kernel of sums writes is
 * added to what is there. */
typedef void RaftKernel(float *const *argument, int64_t batch, int64_t begin, int64_t end,
                        void *scratch);

enum {
    RAFT_BUFFER_INPUT,    /* the caller's, read only */
    RAFT_BUFFER_OUTPUT,   /* the caller's */
    RAFT_BUFFER_PARAM,    /* offset: index of the parameter */
    RAFT_BUFFER_PREPARED, /* offset in floats into the prepared block */
    RAFT_BUFFER_ARENA     /* offset in floats per image: multiplied by the batch */
};

/* Images that one pass over the steps of any program takes at most; steps that run beside each other, from one that waits. */
enum { RAFT_MOST_AT_ONCE = 1024, RAFT_MOST_TOGETHER = 16 };

typedef struct RaftBuffer {
    int kind;
    int64_t offset; /* input, output, param: its index */
} RaftBuffer;

typedef struct RaftStep {
    RaftKernel *kernel; /* for the CPU */
    const char *name;
    int64_t units; /* for one image; times the batch where batched */
    int batched;
    int64_t
        piece; /* units that a thread should take at a time, at least: they share panels of weights */
    /* not 0: the step writes sums over the images alone, which no other step reads, and its kernel can add those
     * of a chunk to those of the chunks before */
    int adds;
    int waits;        /* 0: it may run beside the steps before it, back to the last that waits */
    unsigned entries; /* bit i: run by entry i */
    int argument_count;
    const int *argument; /* indices into RaftProgram.buffer */
} RaftStep;

typedef struct RaftTensorInfo {
    const char *name;
    int rank;
    int64_t shape[4]; /* of inputs and outputs: without the batch */
    int64_t elements; /* product of shape */
} RaftTensorInfo;

typedef struct RaftDevice RaftDevice; /* device.h */

typedef struct RaftProgram {
    const RaftDevice *device; /* what runs the steps: cpu.c or cuda.c */
    const void *code;         /* of the device: cuda.h; the CPU has none */
    const char *name;
    const char *made_by; /* command line, versions, hash of the model: one line each */
    const void *weights; /* a weights blob that every instance has from the start; NULL: none */
    size_t weights_size;
    int buffer_count;
    const RaftBuffer *buffer;
    int prepare_count; /* steps of prepare, in order */
    const RaftStep *prepare;
    int step_count; /* steps of the entries, in order */
    const RaftStep *step;
    int parameter_count;
    const RaftTensorInfo *parameter;
    int input_count;
    const RaftTensorInfo *input; /* shape c, y, x */
    int output_count;
    const RaftTensorInfo *output; /* logits, feature0.. */
    const int *fixed;             /* of each output: has it no batch axis? NULL: all have one */
    unsigned forward_entry, features_entry; /* bits of `entries`; 0: there is none */
    unsigned backward_entry, step_entry;    /* likewise, of training */
    unsigned keep_entry, rest_entry; /* the backward entry in two parts: what the forward computes
                                        too; what comes after it, in a run of its own that
                                        goes on from the arena as it is */
    int64_t arena_floats;            /* per image */
    int64_t prepared_floats;
    int64_t scratch_bytes; /* per thread: the most that any kernel wants */
    int64_t chunk;         /* images that one pass over the steps takes at most; bigger batches
                              run in such chunks, so the arena never holds more; outputs without a
                              batch axis are sums over the images, and those of the chunks are added */
    int whole;             /* not 0: they are not, or not added: bigger batches cannot be run */
} RaftProgram;

/* How a model is trained: what the graph of the optimiser is made from, and its numbers. */
typedef enum { RAFT_ADAMW, RAFT_SGD } RaftOptimiserKind;

typedef struct RaftOptimiser {
    RaftOptimiserKind kind;
    double weight_decay, momentum; /* momentum: of SGD */
    double most_norm;              /* of the gradients; 0: they are taken as they are */
    double average;                /* the average of the weights keeps so much of itself; 0: none */
    int exempts;                   /* not 0: some weights do not decay */
} RaftOptimiser;

#endif
