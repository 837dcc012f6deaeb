/* fake_cuda.h: a driver library for GPUs that runs on the CPU (fake_cuda.c), so that what launches
 * kernels can be tested without a GPU. One program is linked with it: its libcuda.so.1 is this one.
 *
 * A cubin is a FakeImage, or text: "FAKEFILE", the path of a shared object, a line end, and the symbol
 * and number of arguments of each kernel in it, " pack 3 sum 2 ". A launch calls the kernel's function
 * for all units. Any other image has kernels that do nothing.
 */
#ifndef RAFTC_TESTS_FAKE_CUDA_H
#define RAFTC_TESTS_FAKE_CUDA_H

#include "runtime/program.h"

typedef struct FakeKernel {
    const char *symbol;
    RaftKernel *run;
    int argument_count;
    int64_t scratch_bytes;
} FakeKernel;

typedef struct FakeImage {
    char magic[8]; /* "FAKECUDA" */
    const FakeKernel *kernel;
    int count;
} FakeImage;

typedef struct FakeCounts {
    int calls;                    /* so far, of those that can fail */
    int launches, graph_launches; /* likewise */
    int blocks, contexts, modules, streams, graphs, execs, events, pinned; /* that exist */
    int pushed; /* contexts on the stack */
    int strays; /* calls without a context, pointers that are no memory of the GPU, and the like */
    size_t bytes, most_bytes;
    const void *image; /* the cubin that was loaded last */
} FakeCounts;

__attribute__((visibility("default"))) FakeCounts *fake_counts(void);
/* The n-th call from now on, from 0, of those that can fail gives this result; -1: none does. */
__attribute__((visibility("default"))) void fake_fail(int n, int result);
/* From the n-th call on the GPU is lost: every call gives this result, those that give something back,
 * too. Contexts can still be pushed. */
__attribute__((visibility("default"))) void fake_lose(int n, int result);
/* Memory that there is. */
__attribute__((visibility("default"))) void fake_memory(size_t bytes);
/* Else that of FAKE_CUDA_ARCHITECTURE in the environment, or 90. */
__attribute__((visibility("default"))) void fake_architecture(int architecture);

#endif
