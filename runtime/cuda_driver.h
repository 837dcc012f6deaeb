/* cuda_driver.h: the entry points of NVIDIA's driver library, libcuda, that are used here.
 *
 * They are declared here and looked up at run time, so that neither a header nor a library of CUDA is
 * needed to build. All return 0 or an error of the driver.
 */
#ifndef RAFT_CUDA_DRIVER_H
#define RAFT_CUDA_DRIVER_H

#include "runtime/cuda.h"

typedef unsigned long long RaftGpuAddress;
typedef struct RaftGpuContext *RaftGpuContext;
typedef struct RaftGpuModule *RaftGpuModule;
typedef struct RaftGpuFunction *RaftGpuFunction;
typedef struct RaftGpuStream *RaftGpuStream;
typedef struct RaftGpuEvent *RaftGpuEvent;
typedef struct RaftGpuGraph *RaftGpuGraph;
typedef struct RaftGpuNode *RaftGpuNode;
typedef struct RaftGpuExec *RaftGpuExec;

/* CUDA_KERNEL_NODE_PARAMS, of version 2, which begins with version 1. */
typedef struct RaftGpuLaunch {
    RaftGpuFunction function;
    unsigned grid[3], block[3], shared_bytes;
    void **arguments, **extra;
    void *kernel;
    RaftGpuContext context;
} RaftGpuLaunch;

enum {
    RAFT_GPU_INVALID = 1, /* results */
    RAFT_GPU_NO_MEMORY = 2,
    RAFT_GPU_NO_DEVICE = 100,
    RAFT_GPU_NO_IMAGE = 209,
    RAFT_GPU_PROCESSORS = 16, /* attributes of a device */
    RAFT_GPU_MAJOR = 75,
    RAFT_GPU_MINOR = 76,
    RAFT_GPU_SHARED_BYTES = 97,
    RAFT_GPU_MEMORY_TYPE = 2, /* attributes of a pointer; a type is */
    RAFT_GPU_ORDINAL = 9,
    RAFT_GPU_HOST_MEMORY = 1,
    RAFT_GPU_MAX_SHARED_BYTES = 8 /* attribute of a function */
};

/* X(member, name in the library, parameters) */
#define RAFT_GPU_FUNCTIONS(X)                                                                      \
    X(init, "cuInit", (unsigned flags))                                                            \
    X(device_count, "cuDeviceGetCount", (int *count))                                              \
    X(device_get, "cuDeviceGet", (int *device, int ordinal))                                       \
    X(device_name, "cuDeviceGetName", (char *name, int size, int device))                          \
    X(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, int device))           \
    X(context_retain, "cuDevicePrimaryCtxRetain", (RaftGpuContext * context, int device))          \
    X(context_release, "cuDevicePrimaryCtxRelease_v2", (int device))                               \
    X(context_push, "cuCtxPushCurrent_v2", (RaftGpuContext context))                               \
    X(context_pop, "cuCtxPopCurrent_v2", (RaftGpuContext * context))                               \
    X(module_load, "cuModuleLoadData", (RaftGpuModule * module, const void *image))                \
    X(module_unload, "cuModuleUnload", (RaftGpuModule module))                                     \
    X(module_function, "cuModuleGetFunction",                                                      \
      (RaftGpuFunction * function, RaftGpuModule module, const char *name))                        \
    X(function_set, "cuFuncSetAttribute", (RaftGpuFunction function, int attribute, int value))    \
    X(occupancy, "cuOccupancyMaxActiveBlocksPerMultiprocessor",                                    \
      (int *blocks, RaftGpuFunction function, int threads, size_t shared_bytes))                   \
    X(allocate, "cuMemAlloc_v2", (RaftGpuAddress * address, size_t bytes))                         \
    X(release, "cuMemFree_v2", (RaftGpuAddress address))                                           \
    X(set, "cuMemsetD8Async",                                                                      \
      (RaftGpuAddress address, unsigned char value, size_t bytes, RaftGpuStream stream))           \
    X(upload, "cuMemcpyHtoDAsync_v2",                                                              \
      (RaftGpuAddress to, const void *from, size_t bytes, RaftGpuStream stream))                   \
    X(download, "cuMemcpyDtoHAsync_v2",                                                            \
      (void *to, RaftGpuAddress from, size_t bytes, RaftGpuStream stream))                         \
    X(copy, "cuMemcpyDtoDAsync_v2",                                                                \
      (RaftGpuAddress to, RaftGpuAddress from, size_t bytes, RaftGpuStream stream))                \
    X(pin, "cuMemHostRegister_v2", (void *data, size_t bytes, unsigned flags))                     \
    X(unpin, "cuMemHostUnregister", (void *data))                                                  \
    X(pointer_attributes, "cuPointerGetAttributes",                                                \
      (unsigned count, int *attributes, void **values, RaftGpuAddress address))                    \
    X(stream_create, "cuStreamCreate", (RaftGpuStream * stream, unsigned flags))                   \
    X(stream_destroy, "cuStreamDestroy_v2", (RaftGpuStream stream))                                \
    X(stream_wait, "cuStreamSynchronize", (RaftGpuStream stream))                                  \
    X(launch, "cuLaunchKernel",                                                                    \
      (RaftGpuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,                \
       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,                \
       RaftGpuStream stream, void **arguments, void **extra))                                      \
    X(graph_create, "cuGraphCreate", (RaftGpuGraph * graph, unsigned flags))                       \
    X(graph_destroy, "cuGraphDestroy", (RaftGpuGraph graph))                                       \
    X(graph_add_kernel, "cuGraphAddKernelNode_v2",                                                 \
      (RaftGpuNode * node, RaftGpuGraph graph, const RaftGpuNode *after, size_t after_count,       \
       const RaftGpuLaunch *launch))                                                               \
    X(graph_add_event, "cuGraphAddEventRecordNode",                                                \
      (RaftGpuNode * node, RaftGpuGraph graph, const RaftGpuNode *after, size_t after_count,       \
       RaftGpuEvent event))                                                                        \
    X(graph_instantiate, "cuGraphInstantiateWithFlags",                                            \
      (RaftGpuExec * exec, RaftGpuGraph graph, unsigned long long flags))                          \
    X(graph_launch, "cuGraphLaunch", (RaftGpuExec exec, RaftGpuStream stream))                     \
    X(exec_destroy, "cuGraphExecDestroy", (RaftGpuExec exec))                                      \
    X(event_create, "cuEventCreate", (RaftGpuEvent * event, unsigned flags))                       \
    X(event_record, "cuEventRecord", (RaftGpuEvent event, RaftGpuStream stream))                   \
    X(event_elapsed, "cuEventElapsedTime", (float *ms, RaftGpuEvent from, RaftGpuEvent to))        \
    X(event_destroy, "cuEventDestroy_v2", (RaftGpuEvent event))                                    \
    X(error_name, "cuGetErrorName", (int result, const char **name))                               \
    X(error_text, "cuGetErrorString", (int result, const char **text))

typedef struct RaftGpuDriver {
#define MEMBER(member, name, parameters) int(*member) parameters;
    RAFT_GPU_FUNCTIONS(MEMBER)
#undef MEMBER
} RaftGpuDriver;

/* Looks all up, and starts the driver. RAFT_UNSUPPORTED where there is none, or no GPU: the message
 * says what is missing. The library stays open. */
RAFT_SHELL_LINKAGE RaftStatus raft_gpu_open(RaftGpuDriver *driver, char *message, size_t size);
/* What a result means, and a message about it. `what` could not be done. */
RAFT_SHELL_LINKAGE RaftStatus raft_gpu_result(const RaftGpuDriver *driver, int result,
                                              const char *what, char *message, size_t size);
/* The GPU of that number. */
RAFT_SHELL_LINKAGE RaftStatus raft_gpu_describe(const RaftGpuDriver *driver, int number,
                                                RaftCudaGpu *gpu, char *message, size_t size);

#endif
