/* cuda.h: a program whose kernels are in cubins, and the GPUs that can run them.
 *
 * RaftProgram.device is raft_cuda and RaftProgram.code a RaftCudaCode. An instance opens the driver,
 * libcuda, when it is made; nothing of CUDA is needed to compile or to link this.
 *
 *   options    device: the number of the GPU; stream: a CUstream of its primary context, or NULL;
 *              threads is not looked at
 *   pointers   each of a run may point to the host's memory or the GPU's, which is used in place. On
 *              a caller's stream a run of GPU pointers alone returns as soon as it is queued
 */
#ifndef RAFT_CUDA_H
#define RAFT_CUDA_H

#include "runtime/device.h"

/* How the kernel of a step is launched: symbol(argument.., batch, units, spill). */
typedef struct RaftCudaKernel {
    const char *symbol;
    int threads;          /* of a block */
    int64_t shared_bytes; /* of dynamic shared memory */
    int64_t spill_bytes;  /* of global memory for each block */
    int64_t block;        /* units that a block takes at a time */
} RaftCudaKernel;

typedef struct RaftCudaImage {
    int architecture; /* 90: sm_90 */
    const void *data; /* a cubin */
    size_t size;
} RaftCudaImage;

typedef struct RaftCudaCode {
    int image_count;
    const RaftCudaImage *image;
    const RaftCudaKernel *prepare, *step; /* as in RaftProgram */
} RaftCudaCode;

RAFT_SHELL_DATA const RaftDevice raft_cuda;

/* For raftc; a library makes no use of them. */
#define RAFT_CUDA_CALL __attribute__((unused)) RAFT_SHELL_LINKAGE

typedef struct RaftCudaGpu {
    int device;       /* as the driver numbers it */
    int architecture; /* 90: sm_90 */
    int processors;   /* streaming multiprocessors */
    int shared_bytes; /* of shared memory that a block may have */
    char name[256];
} RaftCudaGpu;

/* The GPU of that number, from 0. RAFT_UNSUPPORTED where there is no driver or no GPU, with a message
 * that says what to install. */
RAFT_CUDA_CALL RaftStatus raft_cuda_find(int number, RaftCudaGpu *gpu, char *message, size_t size);

/* Memory of the GPU of an instance, until raft_cuda_release or raft_shell_destroy. */
RAFT_CUDA_CALL RaftStatus raft_cuda_reserve(RaftShell *shell, size_t bytes, float **data);
RAFT_CUDA_CALL RaftStatus raft_cuda_upload(RaftShell *shell, float *to, const float *from,
                                           size_t bytes);

#endif
