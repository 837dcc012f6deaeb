/* cuda_driver.c: opens NVIDIA's driver library, and says what its errors mean. */
#include "runtime/cuda_calls.h"
#include "runtime/cuda_driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

RaftStatus raft_gpu_result(const RaftGpuDriver *driver, int result, const char *what, char *message,
                           size_t size)
{
    const char *name = NULL, *text = NULL;
    if (result == 0) return RAFT_OK;
    driver->error_name(result, &name);
    driver->error_text(result, &text);
    if (result == RAFT_GPU_NO_MEMORY) {
        snprintf(message, size, "out of memory on the GPU: %s", what);
        return RAFT_NO_MEMORY;
    }
    snprintf(message, size, "the GPU failed: %s: %s (%s, %d)", what, text ? text : "unknown error",
             name ? name : "?", result);
    return RAFT_GPU_FAILED;
}

RaftStatus raft_gpu_open(RaftGpuDriver *driver, char *message, size_t size)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(message, size,
                 "there is no driver for NVIDIA GPUs here (libcuda.so.1): install it on a machine "
                 "with such a GPU; on Debian, the package nvidia-driver");
        return RAFT_UNSUPPORTED;
    }
    const struct {
        void *member;
        const char *name;
    } wanted[] = {
#define ROW(member, name, parameters) {&driver->member, name},
        RAFT_GPU_FUNCTIONS(ROW)
#undef ROW
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        void *function = dlsym(library, wanted[i].name);
        memcpy(wanted[i].member, &function, sizeof function);
        if (function) continue;
        snprintf(message, size, "the NVIDIA driver is too old: it lacks %s; install one of CUDA 12",
                 wanted[i].name);
        return RAFT_UNSUPPORTED;
    }
    int result = driver->init(0);
    if (result == 0) return RAFT_OK;
    if (raft_gpu_result(driver, result, "cuInit", message, size) == RAFT_NO_MEMORY)
        return RAFT_NO_MEMORY;
    if (result == RAFT_GPU_NO_DEVICE)
        snprintf(message, size, "there is no NVIDIA GPU that this process can use");
    return RAFT_UNSUPPORTED;
}

RaftStatus raft_gpu_describe(const RaftGpuDriver *driver, int number, RaftCudaGpu *gpu,
                             char *message, size_t size)
{
    int count = 0, major = 0, minor = 0;
    memset(gpu, 0, sizeof *gpu);
    int result = driver->device_count(&count);
    if (result == 0 && (number < 0 || number >= count)) {
        snprintf(message, size, "options: device is %d, not the number of one of %d GPUs", number,
                 count);
        return RAFT_INVALID;
    }
    if (result == 0) result = driver->device_get(&gpu->device, number);
    if (result == 0) result = driver->device_name(gpu->name, (int)sizeof gpu->name, gpu->device);
    if (result == 0) result = driver->device_attribute(&major, RAFT_GPU_MAJOR, gpu->device);
    if (result == 0) result = driver->device_attribute(&minor, RAFT_GPU_MINOR, gpu->device);
    if (result == 0)
        result = driver->device_attribute(&gpu->processors, RAFT_GPU_PROCESSORS, gpu->device);
    if (result == 0)
        result = driver->device_attribute(&gpu->shared_bytes, RAFT_GPU_SHARED_BYTES, gpu->device);
    gpu->architecture = 10 * major + minor;
    return raft_gpu_result(driver, result, "its properties", message, size);
}

__attribute__((unused)) RAFT_SHELL_LINKAGE RaftStatus raft_cuda_find(int number, RaftCudaGpu *gpu,
                                                                     char *message, size_t size)
{
    RaftGpuDriver driver;
    RaftStatus status = raft_gpu_open(&driver, message, size);
    return status == RAFT_OK ? raft_gpu_describe(&driver, number, gpu, message, size) : status;
}
