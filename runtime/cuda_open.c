/* cuda_open.c: an instance on a GPU is made: the driver, the GPU, the cubin that fits it, its kernels,
 * and memory.
 */
#include "runtime/cuda_calls.h"
#include "runtime/cuda_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

RaftStatus raft_gpu_check(RaftShell *shell, int result, const char *what)
{
    CudaState *cuda = shell->device;
    return raft_gpu_result(&cuda->driver, result, what, shell->error, sizeof shell->error);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void release_block(CudaState *cuda, GpuBlock *block)
{
    if (block->address) cuda->driver.release(block->address);
    *block = (GpuBlock){0};
}

static void forget_graphs(CudaState *cuda)
{
    for (int i = 0; i < MOST_GRAPHS; i++) {
        GpuChunk *chunk = &cuda->chunk[i];
        if (chunk->exec) cuda->driver.exec_destroy(chunk->exec);
        chunk->exec = NULL;
        chunk->images = 0;
    }
}

/* At least so many bytes; what was in the block is lost. */
static RaftStatus grow_block(RaftShell *shell, GpuBlock *block, size_t bytes, const char *what)
{
    CudaState *cuda = shell->device;
    if (block->address && block->bytes >= bytes) return RAFT_OK;
    forget_graphs(cuda);
    release_block(cuda, block);
    int result = cuda->driver.allocate(&block->address, bytes ? bytes : 1);
    if (result == 0) block->bytes = bytes;
    return raft_gpu_check(shell, result, what);
}

RaftStatus raft_gpu_reserve_images(RaftShell *shell, int64_t *images)
{
    CudaState *cuda = shell->device;
    for (;; *images = (*images + 1) / 2) {
        size_t bytes = 0;
        RaftStatus status = RAFT_OK;
        if (raft_float_bytes(shell->program->arena_floats, *images, &bytes))
            status = grow_block(shell, &cuda->arena, bytes, "the arena");
        else
            status = raft_gpu_check(shell, RAFT_GPU_NO_MEMORY, "the arena");
        for (int i = 0; i < cuda->tensor_count && status == RAFT_OK; i++) {
            GpuTensor *tensor = &cuda->tensor[i];
            if (!tensor->info || !tensor->on_host) continue;
            status = grow_block(shell, &tensor->staging, tensor_bytes(tensor, *images),
                                "room for inputs and outputs");
        }
        if (status == RAFT_OK) shell->error[0] = '\0'; /* of more images */
        if (status != RAFT_NO_MEMORY || *images == 1 || shell->program->whole) return status;
    }
}

__attribute__((unused)) RAFT_SHELL_LINKAGE RaftStatus raft_cuda_reserve(RaftShell *shell,
                                                                        size_t bytes, float **data)
{
    CudaState *cuda = shell->device;
    size_t size = (size_t)(cuda->reserved_count + 1) * sizeof *cuda->reserved;
    GpuBlock *list = realloc(cuda->reserved, size), block = {0};
    if (!list) return raft_shell_fail(shell, RAFT_NO_MEMORY, "out of memory");
    cuda->reserved = list;
    RaftStatus status =
        raft_gpu_check(shell, cuda->driver.context_push(cuda->context), "its context");
    if (status != RAFT_OK) return status;
    status = grow_block(shell, &block, bytes, "room for inputs and outputs");
    cuda->driver.context_pop(&(RaftGpuContext){0});
    if (status == RAFT_OK) list[cuda->reserved_count++] = block;
    *data = (float *)(uintptr_t)block.address;
    return status;
}

/* Copies and waits: to the GPU's memory, or from it. */
__attribute__((unused)) static RaftStatus copy_now(RaftShell *shell, float *to, const float *from,
                                                   size_t bytes, bool upload)
{
    CudaState *cuda = shell->device;
    const RaftGpuDriver *driver = &cuda->driver;
    RaftStatus status = raft_gpu_check(shell, driver->context_push(cuda->context), "its context");
    if (status != RAFT_OK) return status;
    int result = upload ? driver->upload((uintptr_t)to, from, bytes, cuda->stream)
                        : driver->download(to, (uintptr_t)from, bytes, cuda->stream);
    if (result == 0) result = driver->stream_wait(cuda->stream);
    driver->context_pop(&(RaftGpuContext){0});
    return raft_gpu_check(shell, result, upload ? "a copy to it" : "a copy from it");
}

__attribute__((unused)) RAFT_SHELL_LINKAGE RaftStatus raft_cuda_upload(RaftShell *shell, float *to,
                                                                       const float *from,
                                                                       size_t bytes)
{
    return copy_now(shell, to, from, bytes, true);
}

__attribute__((unused)) RAFT_SHELL_LINKAGE RaftStatus raft_cuda_download(RaftShell *shell,
                                                                         float *to,
                                                                         const float *from,
                                                                         size_t bytes)
{
    return copy_now(shell, to, from, bytes, false);
}

__attribute__((unused)) RAFT_SHELL_LINKAGE RaftStatus raft_cuda_pin(RaftShell *shell, float *data,
                                                                    size_t bytes)
{
    CudaState *cuda = shell->device;
    size_t size = (size_t)(cuda->pinned_count + 1) * sizeof *cuda->pinned;
    void **list = realloc(cuda->pinned, size);
    if (!list) return raft_shell_fail(shell, RAFT_NO_MEMORY, "out of memory");
    cuda->pinned = list;
    RaftStatus status =
        raft_gpu_check(shell, cuda->driver.context_push(cuda->context), "its context");
    if (status != RAFT_OK) return status;
    if (cuda->driver.pin(data, bytes, 0) == 0) list[cuda->pinned_count++] = data;
    cuda->driver.context_pop(&(RaftGpuContext){0});
    return RAFT_OK;
}

__attribute__((unused)) RAFT_SHELL_LINKAGE void raft_cuda_take_parameters(RaftShell *shell,
                                                                          const float *block)
{
    CudaState *cuda = shell->device;
    cuda->block = (uintptr_t)block;
    shell->packed = false;
}

/* ---- open, close ----------------------------------------------------------------------------- */

/* The newest cubin that the GPU can run: those of its generation and no newer than itself. */
static const RaftCudaImage *choose_image(const RaftCudaCode *code, int architecture)
{
    const RaftCudaImage *best = NULL;
    for (int i = 0; i < code->image_count; i++) {
        const RaftCudaImage *image = &code->image[i];
        if (image->architecture / 10 != architecture / 10) continue;
        if (image->architecture > architecture) continue;
        if (!best || image->architecture > best->architecture) best = image;
    }
    return best;
}

static RaftStatus no_image(RaftShell *shell, const RaftCudaCode *code)
{
    const CudaState *cuda = shell->device;
    char list[200] = "";
    for (int i = 0; i < code->image_count; i++) {
        size_t length = strlen(list);
        snprintf(list + length, sizeof list - length, "%ssm_%d", i ? ", " : "",
                 code->image[i].architecture);
    }
    return raft_shell_fail(shell, RAFT_UNSUPPORTED,
                           "the model is compiled for %s; this GPU, %.100s, is sm_%d: compile it "
                           "again with --gpu-arch sm_%d",
                           list, cuda->gpu.name, cuda->gpu.architecture, cuda->gpu.architecture);
}

static RaftStatus load_kernel(RaftShell *shell, const RaftCudaKernel *kernel, GpuKernel *loaded,
                              size_t *spill_bytes)
{
    CudaState *cuda = shell->device;
    const RaftGpuDriver *driver = &cuda->driver;
    int blocks = 0;
    int64_t most = kernel->shared_bytes;
    if (kernel->fine_shared_bytes > most) most = kernel->fine_shared_bytes;
    if (most > cuda->gpu.shared_bytes)
        return raft_shell_fail(shell, RAFT_UNSUPPORTED,
                               "a kernel wants %lld bytes of shared memory; this GPU, %.100s, has "
                               "%d",
                               (long long)most, cuda->gpu.name, cuda->gpu.shared_bytes);
    int result = driver->module_function(&loaded->function, cuda->module, kernel->symbol);
    if (result == 0 && most > 48 << 10)
        result = driver->function_set(loaded->function, RAFT_GPU_MAX_SHARED_BYTES, (int)most);
    if (result == 0)
        result = driver->occupancy(&blocks, loaded->function, kernel->threads,
                                   (size_t)kernel->shared_bytes);
    loaded->resident = (blocks > 0 ? blocks : 1) * cuda->gpu.processors;
    size_t bytes = (size_t)kernel->spill_bytes * (size_t)loaded->resident;
    if (bytes > *spill_bytes) *spill_bytes = bytes;
    return raft_gpu_check(shell, result, kernel->symbol);
}

static RaftStatus load_code(RaftShell *shell)
{
    CudaState *cuda = shell->device;
    const RaftProgram *program = shell->program;
    const RaftCudaCode *code = program->code;
    const RaftCudaImage *image = choose_image(code, cuda->gpu.architecture);
    if (!image) return no_image(shell, code);
    size_t spill_bytes = 0;
    RaftStatus status =
        raft_gpu_check(shell, cuda->driver.module_load(&cuda->module, image->data), "its kernels");
    for (int s = 0; s < program->prepare_count && status == RAFT_OK; s++)
        status = load_kernel(shell, &code->prepare[s], &cuda->kernel[s], &spill_bytes);
    for (int s = 0; s < program->step_count && status == RAFT_OK; s++)
        status = load_kernel(shell, &code->step[s], &cuda->kernel[program->prepare_count + s],
                             &spill_bytes);
    if (status == RAFT_OK && spill_bytes)
        status = grow_block(shell, &cuda->spill, spill_bytes, "scratch of kernels");
    return status;
}

static RaftStatus take_gpu_memory(RaftShell *shell)
{
    CudaState *cuda = shell->device;
    const RaftProgram *program = shell->program;
    size_t parameter_bytes = 0, prepared_bytes = 0;
    for (int i = 0; i < program->parameter_count; i++)
        parameter_bytes += raft_weights_stride(&program->parameter[i]);
    if (!raft_float_bytes(program->prepared_floats, 1, &prepared_bytes))
        return raft_shell_fail(shell, RAFT_NO_MEMORY, "out of memory on the GPU");
    RaftStatus status = grow_block(shell, &cuda->parameters, parameter_bytes, "parameters");
    if (status == RAFT_OK)
        status = grow_block(shell, &cuda->prepared, prepared_bytes, "packed parameters");
    if (status == RAFT_OK && prepared_bytes)
        status = raft_gpu_check(
            shell, cuda->driver.set(cuda->prepared.address, 0, prepared_bytes, cuda->stream),
            "packed parameters");
    return status;
}

static int most_step_arguments(const RaftStep *step, int count)
{
    int most = 0;
    for (int s = 0; s < count; s++)
        if (step[s].argument_count > most) most = step[s].argument_count;
    return most;
}

static void *zeroed(int count, size_t size)
{
    return calloc(count > 0 ? (size_t)count : 1, size);
}

static RaftStatus take_host_memory(RaftShell *shell)
{
    CudaState *cuda = shell->device;
    const RaftProgram *program = shell->program;
    int most = most_step_arguments(program->prepare, program->prepare_count);
    int others = most_step_arguments(program->step, program->step_count);
    if (others > most) most = others;
    cuda->tensor_count = program->input_count + program->output_count;
    cuda->kernel = zeroed(program->prepare_count + program->step_count, sizeof *cuda->kernel);
    cuda->tensor = zeroed(cuda->tensor_count, sizeof *cuda->tensor);
    cuda->address = zeroed(cuda->tensor_count, sizeof *cuda->address);
    cuda->buffer = zeroed(most, sizeof *cuda->buffer);
    cuda->argument = zeroed(most + 3, sizeof *cuda->argument);
    bool good = cuda->kernel && cuda->tensor && cuda->address && cuda->buffer && cuda->argument;
    for (int i = 0; i < MOST_GRAPHS; i++) {
        cuda->chunk[i].address = zeroed(cuda->tensor_count, sizeof *cuda->address);
        good &= cuda->chunk[i].address != NULL;
    }
    return good ? RAFT_OK : raft_shell_fail(shell, RAFT_NO_MEMORY, "out of memory");
}

static RaftStatus open_in_context(RaftShell *shell, const RaftShellOptions *options)
{
    CudaState *cuda = shell->device;
    RaftStatus status = RAFT_OK;
    cuda->stream = options->stream;
    if (!cuda->stream) {
        /* Of the kind that waits for the default stream, as a caller expects who works there. */
        status = raft_gpu_check(shell, cuda->driver.stream_create(&cuda->stream, 0), "a stream");
        cuda->own_stream = status == RAFT_OK;
    }
    if (status == RAFT_OK) status = load_code(shell);
    if (status == RAFT_OK) status = take_gpu_memory(shell);
    return status;
}

RaftStatus raft_cuda_open(RaftShell *shell, const RaftShellOptions *options)
{
    CudaState *cuda = shell->device = calloc(1, sizeof *cuda);
    if (!cuda) return raft_shell_fail(shell, RAFT_NO_MEMORY, "out of memory");
    RaftStatus status = raft_gpu_open(&cuda->driver, shell->error, sizeof shell->error);
    if (status == RAFT_OK)
        status = raft_gpu_describe(&cuda->driver, options->device, &cuda->gpu, shell->error,
                                   sizeof shell->error);
    if (status == RAFT_OK) status = take_host_memory(shell);
    if (status != RAFT_OK) return status;
    RaftGpuContext context = NULL;
    status = raft_gpu_check(shell, cuda->driver.context_retain(&context, cuda->gpu.device),
                            "its context");
    if (status != RAFT_OK) return status;
    cuda->context = context;
    status = raft_gpu_check(shell, cuda->driver.context_push(context), "its context");
    if (status != RAFT_OK) return status;
    status = open_in_context(shell, options);
    cuda->driver.context_pop(&context);
    return status;
}

/* What fails here has failed before. */
static void close_in_context(CudaState *cuda, int event_count)
{
    const RaftGpuDriver *driver = &cuda->driver;
    driver->context_push(cuda->context);
    if (cuda->stream) driver->stream_wait(cuda->stream);
    forget_graphs(cuda);
    for (int i = 0; cuda->event && i < event_count; i++)
        if (cuda->event[i]) driver->event_destroy(cuda->event[i]);
    for (int i = 0; i < cuda->reserved_count; i++) release_block(cuda, &cuda->reserved[i]);
    for (int i = 0; i < cuda->pinned_count; i++) driver->unpin(cuda->pinned[i]);
    for (int i = 0; i < cuda->tensor_count; i++) release_block(cuda, &cuda->tensor[i].staging);
    release_block(cuda, &cuda->parameters);
    release_block(cuda, &cuda->prepared);
    release_block(cuda, &cuda->arena);
    release_block(cuda, &cuda->spill);
    if (cuda->module) driver->module_unload(cuda->module);
    if (cuda->own_stream) driver->stream_destroy(cuda->stream);
    driver->context_pop(&(RaftGpuContext){0});
    driver->context_release(cuda->gpu.device);
}

void raft_cuda_close(RaftShell *shell)
{
    CudaState *cuda = shell->device;
    if (cuda->context) close_in_context(cuda, shell->program->step_count + 1);
    for (int i = 0; i < MOST_GRAPHS; i++) free(cuda->chunk[i].address);
    free(cuda->kernel);
    free(cuda->tensor);
    free(cuda->address);
    free(cuda->buffer);
    free(cuda->argument);
    free(cuda->reserved);
    free(cuda->pinned);
    free(cuda->event);
    free(cuda);
}
