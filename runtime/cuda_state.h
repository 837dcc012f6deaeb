/* cuda_state.h: what an instance on a GPU holds; for the files of cuda.c. */
#ifndef RAFT_CUDA_STATE_H
#define RAFT_CUDA_STATE_H

#include "runtime/cuda_driver.h"

enum { MOST_GRAPHS = 8 };

typedef struct GpuKernel {
    RaftGpuFunction function;
    int resident; /* blocks that run at the same time on the whole GPU */
} GpuKernel;

/* Memory of the GPU. */
typedef struct GpuBlock {
    RaftGpuAddress address;
    size_t bytes;
} GpuBlock;

/* A caller's tensor in a run. */
typedef struct GpuTensor {
    const RaftTensorInfo *info; /* NULL: the entry does not compute it */
    float *data;                /* the caller's */
    bool on_host, is_input;
    bool fixed; /* it has no batch axis */
    GpuBlock staging;
} GpuTensor;

/* A chunk that was run before. */
typedef struct GpuChunk {
    unsigned entry;
    int64_t images;
    RaftGpuAddress *address; /* of each tensor */
    RaftGpuExec exec;        /* NULL: it has come but once */
    uint64_t used;
    bool timed; /* exec has events */
} GpuChunk;

typedef struct CudaState {
    RaftGpuDriver driver;
    RaftCudaGpu gpu;
    RaftGpuContext context; /* NULL: not retained */
    RaftGpuModule module;
    RaftGpuStream stream;
    bool own_stream;
    GpuKernel *kernel; /* of the steps of prepare, then the others */
    GpuBlock parameters, prepared, arena, spill;
    int tensor_count;
    GpuTensor *tensor;  /* inputs, then outputs */
    GpuBlock *reserved; /* for the caller */
    int reserved_count;
    void **pinned; /* memory of the caller */
    int pinned_count;
    RaftGpuAddress block; /* of parameters that the next run takes; 0: those of the shell */
    GpuChunk chunk[MOST_GRAPHS];
    uint64_t chunks;         /* how many have been run */
    RaftGpuAddress *address; /* of each tensor, in the present chunk */
    RaftGpuAddress *buffer;  /* of each argument of a step, */
    void **argument;         /* and pointers to all that its kernel takes */
    RaftGpuEvent *event;     /* one more than there are steps; NULL: not timed yet */
} CudaState;

static inline size_t tensor_bytes(const GpuTensor *tensor, int64_t images)
{
    return (size_t)(tensor->info->elements * (tensor->fixed ? 1 : images)) * sizeof(float);
}

/* ---- cuda_open.c ----------------------------------------------------------------------------- */

/* The message of a result is that of the instance. */
RAFT_SHELL_LINKAGE RaftStatus raft_gpu_check(RaftShell *shell, int result, const char *what);
/* The arena and staging memory for *images images, or, where there is not memory enough, for fewer, unless results depend
 * on all. */
RAFT_SHELL_LINKAGE RaftStatus raft_gpu_reserve_images(RaftShell *shell, int64_t *images);
RAFT_SHELL_LINKAGE RaftStatus raft_cuda_open(RaftShell *shell, const RaftShellOptions *options);
RAFT_SHELL_LINKAGE void raft_cuda_close(RaftShell *shell);

#endif
