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
RAFT_SHELL_LINKAGE RaftStatus raft_cuda_download(RaftShell *shell, float *to, const float *from,
                                                 size_t bytes);
/* Copies between the host's memory at `data` and the GPU's are to be fast, until the instance is destroyed, which must come
 * before that memory is released. Where the driver cannot help, they stay as they are. */
RAFT_SHELL_LINKAGE RaftStatus raft_cuda_pin(RaftShell *shell, float *data, size_t bytes);
/* The next run takes all parameters from the GPU's memory, laid out there as in a weights file after its header, in place of
 * what raft_shell_use_weights has given. */
RAFT_SHELL_LINKAGE void raft_cuda_take_parameters(RaftShell *shell, const float *block);

#endif
