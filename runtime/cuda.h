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
    int64_t outer;        /* equal parts of the units, of which no block has units of two */
    int64_t fine; /* blocks an image of the shape for few images, more than the usual one has; 0:
                     there is none */
    int64_t fine_shared_bytes;
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

typedef struct RaftCudaGpu {
    int device;       /* as the driver numbers it */
    int architecture; /* 90: sm_90 */
    int processors;   /* streaming multiprocessors */
    int shared_bytes; /* of shared memory that a block may have */
    char name[256];
} RaftCudaGpu;

#endif
