/* fake_cuda.c: the functions of NVIDIA's driver that raftc uses, over the memory of the host. */
#include "tests/fake_cuda.h"
#include "runtime/cuda_driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MOST_FILLED = 16 << 20,
    MOST_BLOCKS = 256,
    MOST_ARGUMENTS = 64,
    MOST_NODES = 512,
    CONTEXT = 1,
    WRONG = 201
};
static const RaftGpuAddress poison = 0x7f7f;

struct RaftGpuModule {
    const FakeImage *image; /* NULL: in a file, */
    void *library;          /* or, where this is NULL too, of kernels that do nothing */
    const char *list;
};
struct RaftGpuFunction {
    const FakeKernel *kernel;
    FakeKernel made; /* of one in a file */
    int shared_bytes;
    RaftGpuFunction next;
};
struct RaftGpuNode {
    RaftGpuFunction function;
    RaftGpuEvent event;
    RaftGpuAddress argument[MOST_ARGUMENTS];
};
struct RaftGpuGraph {
    int count;
    struct RaftGpuNode node[MOST_NODES];
};
struct RaftGpuEvent {
    int at; /* the number of launches before it */
};

static FakeCounts counts;
static int fail_after = -1, fail_with, architecture;
static bool loses; /* all calls fail after the one */
static size_t memory = (size_t)1 << 32;
static struct {
    char *data;
    size_t bytes;
} block[MOST_BLOCKS];
static RaftGpuFunction functions;

FakeCounts *fake_counts(void)
{
    return &counts;
}

void fake_fail(int n, int result)
{
    fail_after = n;
    fail_with = result;
    loses = false;
}

void fake_lose(int n, int result)
{
    fake_fail(n, result);
    loses = true;
}

void fake_memory(size_t bytes)
{
    memory = bytes;
}

void fake_architecture(int number)
{
    architecture = number;
}

/* 0, or the failure that was asked for. */
static int step(void)
{
    counts.calls++;
    if (fail_after < 0) return 0;
    if (fail_after == 0 && loses) return fail_with;
    return fail_after-- > 0 ? 0 : fail_with;
}

/* The result of a call that gives something back, which is done in any case. */
static int given_back(void)
{
    return loses && fail_after == 0 ? fail_with : 0;
}

static int stray(void)
{
    counts.strays++;
    return WRONG;
}

/* Whether the bytes are memory of the GPU. */
static bool is_memory(RaftGpuAddress address, size_t bytes)
{
    for (int i = 0; i < MOST_BLOCKS; i++) {
        RaftGpuAddress start = (uintptr_t)block[i].data;
        if (start && address >= start && address + bytes <= start + block[i].bytes) return true;
    }
    return false;
}

#define EXPORT __attribute__((visibility("default")))
#define CHECKED                                                                                    \
    if (!counts.pushed) return stray();                                                            \
    int result = step();                                                                           \
    if (result) return result;

EXPORT int cuInit(unsigned flags);
int cuInit(unsigned flags)
{
    (void)flags;
    return step();
}

EXPORT int cuDeviceGetCount(int *count);
int cuDeviceGetCount(int *count)
{
    *count = 1;
    return step();
}

EXPORT int cuDeviceGet(int *device, int ordinal);
int cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal;
    return step();
}

EXPORT int cuDeviceGetName(char *name, int size, int device);
int cuDeviceGetName(char *name, int size, int device)
{
    (void)device;
    strncpy(name, "Fake GPU", (size_t)size);
    return step();
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device);
int cuDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    const char *text = getenv("FAKE_CUDA_ARCHITECTURE");
    if (!architecture) architecture = text ? atoi(text) : 90;
    *value = attribute == RAFT_GPU_MAJOR          ? architecture / 10
             : attribute == RAFT_GPU_MINOR        ? architecture % 10
             : attribute == RAFT_GPU_SHARED_BYTES ? 227 << 10
                                                  : 4;
    return step();
}

EXPORT int cuDevicePrimaryCtxRetain(RaftGpuContext *context, int device);
int cuDevicePrimaryCtxRetain(RaftGpuContext *context, int device)
{
    (void)device;
    int result = step();
    if (result) return result;
    counts.contexts++;
    *context = (RaftGpuContext)(uintptr_t)CONTEXT;
    return 0;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device);
int cuDevicePrimaryCtxRelease_v2(int device)
{
    (void)device;
    counts.contexts--;
    return given_back();
}

EXPORT int cuCtxPushCurrent_v2(RaftGpuContext context);
int cuCtxPushCurrent_v2(RaftGpuContext context)
{
    if ((uintptr_t)context != CONTEXT || !counts.contexts) return stray();
    int result = loses ? 0 : step();
    counts.pushed += result == 0;
    return result;
}

EXPORT int cuCtxPopCurrent_v2(RaftGpuContext *context);
int cuCtxPopCurrent_v2(RaftGpuContext *context)
{
    if (!counts.pushed) return stray();
    counts.pushed--;
    *context = (RaftGpuContext)(uintptr_t)CONTEXT;
    return 0;
}

static void open_file(RaftGpuModule module, const char *text)
{
    char path[1024];
    size_t length = strcspn(text, "\n");
    snprintf(path, sizeof path, "%.*s", (int)length, text);
    module->list = text + length;
    module->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module->library) stray();
}

static const FakeKernel *find_in_file(RaftGpuModule module, const char *name, FakeKernel *made)
{
    char wanted[256];
    snprintf(wanted, sizeof wanted, " %s ", name);
    const char *found = strstr(module->list, wanted);
    if (!found) return NULL;
    made->argument_count = atoi(found + strlen(wanted));
    made->scratch_bytes = 100;
    void *function = dlsym(module->library, name);
    memcpy(&made->run, &function, sizeof function);
    return made;
}

EXPORT int cuModuleLoadData(RaftGpuModule *module, const void *image);
int cuModuleLoadData(RaftGpuModule *module, const void *image)
{
    CHECKED
    const FakeImage *fake = memcmp(image, "FAKECUDA", 8) == 0 ? image : NULL;
    *module = calloc(1, sizeof **module);
    (*module)->image = fake;
    if (memcmp(image, "FAKEFILE", 8) == 0) open_file(*module, (const char *)image + 8);
    counts.image = image;
    counts.modules++;
    return 0;
}

EXPORT int cuModuleUnload(RaftGpuModule module);
int cuModuleUnload(RaftGpuModule module)
{
    if (!counts.pushed) return stray();
    if (module->library) dlclose(module->library);
    free(module);
    if (--counts.modules) return given_back();
    for (RaftGpuFunction next; functions; functions = next) {
        next = functions->next;
        free(functions);
    }
    return given_back();
}

EXPORT int cuModuleGetFunction(RaftGpuFunction *function, RaftGpuModule module, const char *name);
int cuModuleGetFunction(RaftGpuFunction *function, RaftGpuModule module, const char *name)
{
    CHECKED
    const FakeKernel *kernel = NULL;
    for (int i = 0; module->image && i < module->image->count; i++)
        if (strcmp(module->image->kernel[i].symbol, name) == 0) kernel = &module->image->kernel[i];
    if (module->image && !kernel) return 500;
    *function = calloc(1, sizeof **function);
    if (module->library) kernel = find_in_file(module, name, &(*function)->made);
    (*function)->kernel = kernel;
    (*function)->shared_bytes = 48 << 10;
    (*function)->next = functions;
    functions = *function;
    return 0;
}

EXPORT int cuFuncSetAttribute(RaftGpuFunction function, int attribute, int value);
int cuFuncSetAttribute(RaftGpuFunction function, int attribute, int value)
{
    CHECKED
    if (attribute == RAFT_GPU_MAX_SHARED_BYTES) function->shared_bytes = value;
    return 0;
}

EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, RaftGpuFunction function,
                                                       int threads, size_t shared_bytes);
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, RaftGpuFunction function, int threads,
                                                size_t shared_bytes)
{
    CHECKED(void) function, (void)threads, (void)shared_bytes;
    *blocks = 2;
    return 0;
}

/* New memory holds NaN, as memory that was used before may; a huge block at its beginning. */
EXPORT int cuMemAlloc_v2(RaftGpuAddress *address, size_t bytes);
int cuMemAlloc_v2(RaftGpuAddress *address, size_t bytes)
{
    CHECKED
    int i = 0;
    while (block[i].data) i++;
    if (counts.bytes + bytes > memory) return RAFT_GPU_NO_MEMORY;
    block[i].data = malloc(bytes);
    block[i].bytes = bytes;
    memset(block[i].data, 0xFF, bytes < MOST_FILLED ? bytes : MOST_FILLED);
    counts.blocks++;
    counts.bytes += bytes;
    if (counts.bytes > counts.most_bytes) counts.most_bytes = counts.bytes;
    *address = (uintptr_t)block[i].data;
    return 0;
}

EXPORT int cuMemFree_v2(RaftGpuAddress address);
int cuMemFree_v2(RaftGpuAddress address)
{
    if (!counts.pushed) return stray();
    for (int i = 0; i < MOST_BLOCKS; i++) {
        if (!address || (uintptr_t)block[i].data != address) continue;
        free(block[i].data);
        counts.bytes -= block[i].bytes;
        counts.blocks--;
        block[i].data = NULL;
        return given_back();
    }
    return stray();
}

EXPORT int cuMemsetD8Async(RaftGpuAddress address, unsigned char value, size_t bytes,
                           RaftGpuStream stream);
int cuMemsetD8Async(RaftGpuAddress address, unsigned char value, size_t bytes, RaftGpuStream stream)
{
    CHECKED(void) stream;
    if (!is_memory(address, bytes)) return stray();
    memset((void *)(uintptr_t)address, value, bytes);
    return 0;
}

EXPORT int cuMemcpyHtoDAsync_v2(RaftGpuAddress to, const void *from, size_t bytes,
                                RaftGpuStream stream);
int cuMemcpyHtoDAsync_v2(RaftGpuAddress to, const void *from, size_t bytes, RaftGpuStream stream)
{
    CHECKED(void) stream;
    if (!is_memory(to, bytes) || is_memory((uintptr_t)from, 1)) return stray();
    memcpy((void *)(uintptr_t)to, from, bytes);
    return 0;
}

EXPORT int cuMemcpyDtoHAsync_v2(void *to, RaftGpuAddress from, size_t bytes, RaftGpuStream stream);
int cuMemcpyDtoHAsync_v2(void *to, RaftGpuAddress from, size_t bytes, RaftGpuStream stream)
{
    CHECKED(void) stream;
    if (!is_memory(from, bytes) || is_memory((uintptr_t)to, 1)) return stray();
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return 0;
}

EXPORT int cuMemcpyDtoDAsync_v2(RaftGpuAddress to, RaftGpuAddress from, size_t bytes,
                                RaftGpuStream stream);
int cuMemcpyDtoDAsync_v2(RaftGpuAddress to, RaftGpuAddress from, size_t bytes, RaftGpuStream stream)
{
    CHECKED(void) stream;
    if (!is_memory(to, bytes) || !is_memory(from, bytes)) return stray();
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, bytes);
    return 0;
}

EXPORT int cuMemHostRegister_v2(void *data, size_t bytes, unsigned flags);
int cuMemHostRegister_v2(void *data, size_t bytes, unsigned flags)
{
    CHECKED(void) flags;
    if (!bytes || is_memory((uintptr_t)data, 1)) return stray();
    counts.pinned++;
    return 0;
}

EXPORT int cuMemHostUnregister(void *data);
int cuMemHostUnregister(void *data)
{
    if (!counts.pushed || is_memory((uintptr_t)data, 1)) return stray();
    counts.pinned--;
    return given_back();
}

EXPORT int cuPointerGetAttributes(unsigned count, int *attributes, void **values,
                                  RaftGpuAddress address);
int cuPointerGetAttributes(unsigned count, int *attributes, void **values, RaftGpuAddress address)
{
    CHECKED
    bool known = is_memory(address, 1);
    for (unsigned i = 0; i < count; i++)
        *(int *)values[i] = known && attributes[i] == RAFT_GPU_MEMORY_TYPE ? 2 : 0;
    return 0;
}

EXPORT int cuStreamCreate(RaftGpuStream *stream, unsigned flags);
int cuStreamCreate(RaftGpuStream *stream, unsigned flags)
{
    CHECKED(void) flags;
    counts.streams++;
    *stream = (RaftGpuStream)(uintptr_t)poison;
    return 0;
}

EXPORT int cuStreamDestroy_v2(RaftGpuStream stream);
int cuStreamDestroy_v2(RaftGpuStream stream)
{
    if (!counts.pushed) return stray();
    (void)stream;
    counts.streams--;
    return given_back();
}

EXPORT int cuStreamSynchronize(RaftGpuStream stream);
int cuStreamSynchronize(RaftGpuStream stream)
{
    CHECKED(void) stream;
    return 0;
}

/* The arguments: those of the kernel, batch, units, spill. */
static int call(const FakeKernel *kernel, const RaftGpuAddress *argument)
{
    float *data[MOST_ARGUMENTS];
    counts.launches++;
    if (!kernel) return 0;
    for (int i = 0; i < kernel->argument_count; i++) {
        if (!is_memory(argument[i], 1)) return stray();
        data[i] = (float *)(uintptr_t)argument[i];
    }
    int64_t batch = (int64_t)argument[kernel->argument_count];
    int64_t units = (int64_t)argument[kernel->argument_count + 1];
    void *scratch = aligned_alloc(64, ((size_t)kernel->scratch_bytes + 64) / 64 * 64);
    kernel->run(data, batch, 0, units, scratch);
    free(scratch);
    return 0;
}

static void copy_arguments(const FakeKernel *kernel, void **from, RaftGpuAddress *to)
{
    for (int i = 0; kernel && i < kernel->argument_count + 3; i++) memcpy(&to[i], from[i], 8);
}

EXPORT int cuLaunchKernel(RaftGpuFunction function, unsigned grid_x, unsigned grid_y,
                          unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                          unsigned shared_bytes, RaftGpuStream stream, void **arguments,
                          void **extra);
int cuLaunchKernel(RaftGpuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                   RaftGpuStream stream, void **arguments, void **extra)
{
    CHECKED(void) stream, (void)extra;
    RaftGpuAddress argument[MOST_ARGUMENTS];
    if (!grid_x || grid_y != 1 || grid_z != 1 || !block_x || block_x > 1024 || block_y != 1 ||
        block_z != 1 || shared_bytes > (unsigned)function->shared_bytes)
        return stray();
    copy_arguments(function->kernel, arguments, argument);
    return call(function->kernel, argument);
}

EXPORT int cuGraphCreate(RaftGpuGraph *graph, unsigned flags);
int cuGraphCreate(RaftGpuGraph *graph, unsigned flags)
{
    CHECKED(void) flags;
    *graph = calloc(1, sizeof **graph);
    counts.graphs++;
    return 0;
}

EXPORT int cuGraphDestroy(RaftGpuGraph graph);
int cuGraphDestroy(RaftGpuGraph graph)
{
    free(graph);
    counts.graphs--;
    return given_back();
}

/* Each node must come after the one before. */
static struct RaftGpuNode *add_node(RaftGpuNode *node, RaftGpuGraph graph, const RaftGpuNode *after,
                                    size_t after_count)
{
    if (after_count != (graph->count > 0)) return NULL;
    if (after_count && *after != &graph->node[graph->count - 1]) return NULL;
    *node = &graph->node[graph->count++];
    return *node;
}

EXPORT int cuGraphAddKernelNode_v2(RaftGpuNode *node, RaftGpuGraph graph, const RaftGpuNode *after,
                                   size_t after_count, const RaftGpuLaunch *launch);
int cuGraphAddKernelNode_v2(RaftGpuNode *node, RaftGpuGraph graph, const RaftGpuNode *after,
                            size_t after_count, const RaftGpuLaunch *launch)
{
    CHECKED
    struct RaftGpuNode *added = add_node(node, graph, after, after_count);
    if (!added || !launch->grid[0] || launch->kernel || launch->context) return stray();
    added->function = launch->function;
    copy_arguments(launch->function->kernel, launch->arguments, added->argument);
    return 0;
}

EXPORT int cuGraphAddEventRecordNode(RaftGpuNode *node, RaftGpuGraph graph,
                                     const RaftGpuNode *after, size_t after_count,
                                     RaftGpuEvent event);
int cuGraphAddEventRecordNode(RaftGpuNode *node, RaftGpuGraph graph, const RaftGpuNode *after,
                              size_t after_count, RaftGpuEvent event)
{
    CHECKED
    struct RaftGpuNode *added = add_node(node, graph, after, after_count);
    if (!added) return stray();
    added->event = event;
    return 0;
}

EXPORT int cuGraphInstantiateWithFlags(RaftGpuExec *exec, RaftGpuGraph graph,
                                       unsigned long long flags);
int cuGraphInstantiateWithFlags(RaftGpuExec *exec, RaftGpuGraph graph, unsigned long long flags)
{
    CHECKED(void) flags;
    RaftGpuGraph copy = malloc(sizeof *copy);
    memcpy(copy, graph, sizeof *copy);
    counts.execs++;
    *exec = (RaftGpuExec)copy;
    return 0;
}

EXPORT int cuGraphExecDestroy(RaftGpuExec exec);
int cuGraphExecDestroy(RaftGpuExec exec)
{
    free(exec);
    counts.execs--;
    return given_back();
}

EXPORT int cuGraphLaunch(RaftGpuExec exec, RaftGpuStream stream);
int cuGraphLaunch(RaftGpuExec exec, RaftGpuStream stream)
{
    CHECKED(void) stream;
    const struct RaftGpuGraph *graph = (RaftGpuGraph)exec;
    counts.graph_launches++;
    for (int i = 0; i < graph->count && result == 0; i++) {
        if (graph->node[i].event)
            graph->node[i].event->at = counts.launches;
        else
            result = call(graph->node[i].function->kernel, graph->node[i].argument);
    }
    return result;
}

EXPORT int cuEventCreate(RaftGpuEvent *event, unsigned flags);
int cuEventCreate(RaftGpuEvent *event, unsigned flags)
{
    CHECKED(void) flags;
    *event = calloc(1, sizeof **event);
    counts.events++;
    return 0;
}

EXPORT int cuEventRecord(RaftGpuEvent event, RaftGpuStream stream);
int cuEventRecord(RaftGpuEvent event, RaftGpuStream stream)
{
    CHECKED(void) stream;
    event->at = counts.launches;
    return 0;
}

/* A kernel takes a tenth of a second, so that nothing takes long to be measured. */
EXPORT int cuEventElapsedTime(float *ms, RaftGpuEvent from, RaftGpuEvent to);
int cuEventElapsedTime(float *ms, RaftGpuEvent from, RaftGpuEvent to)
{
    CHECKED
    *ms = 100 * (float)(to->at - from->at);
    return 0;
}

EXPORT int cuEventDestroy_v2(RaftGpuEvent event);
int cuEventDestroy_v2(RaftGpuEvent event)
{
    free(event);
    counts.events--;
    return given_back();
}

EXPORT int cuGetErrorName(int result, const char **name);
int cuGetErrorName(int result, const char **name)
{
    *name = result == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR";
    return 0;
}

EXPORT int cuGetErrorString(int result, const char **text);
int cuGetErrorString(int result, const char **text)
{
    *text = result == 700 ? "an illegal memory access was encountered" : "an error";
    return 0;
}

/* NVRTC asks for one, and goes on where there is none. */
EXPORT int cuGetExportTable(const void **table, const void *identifier);
int cuGetExportTable(const void **table, const void *identifier)
{
    (void)identifier;
    *table = NULL;
    return RAFT_GPU_INVALID;
}
