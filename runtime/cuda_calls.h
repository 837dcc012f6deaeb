/* cuda_calls.h: what raftc asks of a GPU beside running programs; libraries make no use of it. */
#ifndef RAFT_CUDA_CALLS_H
#define RAFT_CUDA_CALLS_H

#include "runtime/cuda.h"

/* The GPU of that number, from 0. RAFT_UNSUPPORTED where there is no driver or no GPU, with a message
 * that says what to install. */
RAFT_SHELL_LINKAGE RaftStatus raft_cuda_find(int number, RaftCudaGpu *gpu, char *message,
                                             size_t size);

/* Memory of the GPU of an instance, until raft_cuda_release or raft_shell_destroy. */
RAFT_SHELL_LINKAGE RaftStatus raft_cuda_reserve(RaftShell *shell, size_t bytes, float **data);
RAFT_SHELL_LINKAGE RaftStatus raft_cuda_upload(RaftShell *shell, float *to, const float *from,
                                               size_t bytes);

#endif
