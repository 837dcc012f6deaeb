/* cuda.c: runs the steps of a program on an NVIDIA GPU.
 *
 *   prepare       uploads parameters and runs the steps that pack them, where they have changed
 *   run_cuda      finds where the caller's tensors are, and goes through the images in chunks
 *   run_chunk     all steps for one chunk: launched one by one, or as a graph
 *
 * A chunk that comes a second time, as many images at the same addresses, becomes a CUDA graph, which
 * later ones like it replay. Tensors in the host's memory pass through staging memory, whose addresses
 * stay, so these replay graphs too.
 */
#include "runtime/cuda_state.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* A graph under construction, each node after the one before. */
typedef struct GpuBuilder {
    RaftGpuGraph graph;
    RaftGpuNode last;
    bool timed;
} GpuBuilder;

/* ---- pointers of the caller ------------------------------------------------------------------ */

/* Memory that the driver does not know, of type 0, is the host's. */
static RaftStatus find_memory(RaftShell *shell, const void *data, const char *name, bool *on_host)
{
    const CudaState *cuda = shell->device;
    unsigned type = 0;
    int number = 0;
    int wanted[] = {RAFT_GPU_MEMORY_TYPE, RAFT_GPU_ORDINAL};
    void *found[] = {&type, &number};
    int result = cuda->driver.pointer_attributes(2, wanted, found, (uintptr_t)data);
    *on_host = result == RAFT_GPU_INVALID || (result == 0 && type <= RAFT_GPU_HOST_MEMORY);
    if (*on_host) return RAFT_OK;
    if (result == 0 && number != cuda->gpu.device)
        return raft_shell_fail(shell, RAFT_INVALID,
                               "the data of '%.120s' is on GPU %d, the instance on GPU %d", name,
                               number, cuda->gpu.device);
    return raft_gpu_check(shell, result, "a pointer");
}

static RaftStatus read_parameter(RaftShell *shell, float *to, const float *from, size_t bytes)
{
    CudaState *cuda = shell->device;
    bool on_host;
    RaftStatus status =
        raft_gpu_check(shell, cuda->driver.context_push(cuda->context), "its context");
    if (status != RAFT_OK) return status;
    status = find_memory(shell, from, "the parameter", &on_host);
    if (status == RAFT_OK && on_host) memcpy(to, from, bytes);
    if (status == RAFT_OK && !on_host) {
        int result = cuda->driver.download(to, (uintptr_t)from, bytes, cuda->stream);
        if (result == 0) result = cuda->driver.stream_wait(cuda->stream);
        status = raft_gpu_check(shell, result, "a copy from it");
    }
    cuda->driver.context_pop(&(RaftGpuContext){0});
    return status;
}

/* Sets up the tensors of a run; *on_host: whether any is in the host's memory. */
static RaftStatus find_tensors(RaftShell *shell, unsigned entry, const float *const *inputs,
                               float *const *outputs, bool *on_host)
{
    CudaState *cuda = shell->device;
    const RaftProgram *program = shell->program;
    *on_host = false;
    for (int i = 0; i < cuda->tensor_count; i++) {
        GpuTensor *tensor = &cuda->tensor[i];
        int output = i - program->input_count;
        tensor->is_input = output < 0;
        tensor->info = NULL;
        tensor->fixed = output >= 0 && program->fixed && program->fixed[output];
        unsigned entries = output < 0 ? shell->input_entries[i] : shell->output_entries[output];
        if (!(entries & entry)) continue;
        tensor->info = output < 0 ? &program->input[i] : &program->output[output];
        tensor->data = output < 0 ? (float *)inputs[i] : outputs[output];
        RaftStatus status = find_memory(shell, tensor->data, tensor->info->name, &tensor->on_host);
        if (status != RAFT_OK) return status;
        *on_host |= tensor->on_host;
    }
    return RAFT_OK;
}

/* ---- launches -------------------------------------------------------------------------------- */

static RaftGpuAddress locate_buffer(const RaftShell *shell, const RaftBuffer *buffer,
                                    int64_t images)
{
    const CudaState *cuda = shell->device;
    const RaftProgram *program = shell->program;
    size_t offset = 0;
    switch (buffer->kind) {
    case RAFT_BUFFER_INPUT:
        return cuda->address[buffer->offset];
    case RAFT_BUFFER_OUTPUT:
        return cuda->address[program->input_count + buffer->offset];
    case RAFT_BUFFER_PARAM:
        for (int i = 0; i < buffer->offset; i++)
            offset += raft_weights_stride(&program->parameter[i]);
        return cuda->parameters.address + offset;
    case RAFT_BUFFER_PREPARED:
        return cuda->prepared.address + (size_t)buffer->offset * sizeof(float);
    default:
        return cuda->arena.address + (size_t)(buffer->offset * images) * sizeof(float);
    }
}

static int add_event(CudaState *cuda, GpuBuilder *builder, RaftGpuEvent event)
{
    return cuda->driver.graph_add_event(&builder->last, builder->graph,
                                        builder->last ? &(RaftGpuNode){builder->last} : NULL,
                                        builder->last != NULL, event);
}

/* Launches a step on the stream, or, with a builder, adds it to the graph. */
static int launch_step(RaftShell *shell, const RaftStep *step, const RaftCudaKernel *kernel,
                       const GpuKernel *loaded, int64_t images, GpuBuilder *builder)
{
    CudaState *cuda = shell->device;
    long long batch = images, units = step->batched ? step->units * images : step->units;
    long long each = units / kernel->outer;
    long long blocks = (each + kernel->block - 1) / kernel->block * kernel->outer;
    int count = step->argument_count;
    /* Usual blocks for half of the processors are as fast as fine ones for all (bench/results/2026-11-27-NVIDIA-H100). */
    bool fine = kernel->fine && 2 * blocks < cuda->gpu.processors;
    if (fine) blocks = kernel->fine * (units / step->units);
    if (kernel->spill_bytes && blocks > loaded->resident) blocks = loaded->resident;
    for (int i = 0; i < count; i++) {
        cuda->buffer[i] = locate_buffer(shell, &shell->program->buffer[step->argument[i]], images);
        cuda->argument[i] = &cuda->buffer[i];
    }
    cuda->argument[count] = &batch;
    cuda->argument[count + 1] = &units;
    cuda->argument[count + 2] = &cuda->spill.address;
    const RaftGpuLaunch launch = {
        .function = loaded->function,
        .grid = {(unsigned)raft_least(blocks, INT_MAX), 1, 1},
        .block = {(unsigned)kernel->threads, 1, 1},
        .shared_bytes = (unsigned)(fine ? kernel->fine_shared_bytes : kernel->shared_bytes),
        .arguments = cuda->argument};
    if (!builder)
        return cuda->driver.launch(launch.function, launch.grid[0], 1, 1, launch.block[0], 1, 1,
                                   launch.shared_bytes, cuda->stream, launch.arguments, NULL);
    return cuda->driver.graph_add_kernel(&builder->last, builder->graph,
                                         builder->last ? &(RaftGpuNode){builder->last} : NULL,
                                         builder->last != NULL, &launch);
}

static int launch_steps(RaftShell *shell, unsigned entry, int64_t images, GpuBuilder *builder)
{
    CudaState *cuda = shell->device;
    const RaftProgram *program = shell->program;
    const RaftCudaCode *code = program->code;
    int result = builder && builder->timed ? add_event(cuda, builder, cuda->event[0]) : 0;
    for (int s = 0; s < program->step_count && result == 0; s++) {
        if (!(program->step[s].entries & entry)) continue;
        result = launch_step(shell, &program->step[s], &code->step[s],
                             &cuda->kernel[program->prepare_count + s], images, builder);
        if (result == 0 && builder && builder->timed)
            result = add_event(cuda, builder, cuda->event[s + 1]);
    }
    return result;
}

/* Brings the parameters to their block. */
static RaftStatus bring_parameters(RaftShell *shell)
{
    CudaState *cuda = shell->device;
    const RaftProgram *program = shell->program;
    RaftGpuAddress to = cuda->parameters.address;
    int result = 0;
    if (cuda->block)
        result = cuda->driver.copy(to, cuda->block, cuda->parameters.bytes, cuda->stream);
    for (int i = 0; i < program->parameter_count && result == 0 && !cuda->block; i++) {
        const RaftTensorInfo *info = &program->parameter[i];
        size_t bytes = (size_t)info->elements * sizeof(float);
        result = cuda->driver.upload(to, shell->parameter[i].data, bytes, cuda->stream);
        to += raft_weights_stride(info);
    }
    cuda->block = 0;
    return raft_gpu_check(shell, result, "a copy of parameters");
}

static RaftStatus prepare_cuda(RaftShell *shell)
{
    CudaState *cuda = shell->device;
    const RaftProgram *program = shell->program;
    const RaftCudaCode *code = program->code;
    if (shell->packed) return RAFT_OK;
    RaftStatus status = bring_parameters(shell);
    for (int s = 0; s < program->prepare_count && status == RAFT_OK; s++)
        status = raft_gpu_check(
            shell,
            launch_step(shell, &program->prepare[s], &code->prepare[s], &cuda->kernel[s], 1, NULL),
            program->prepare[s].name);
    /* What a caller does to mapped weights from now on is no longer seen. */
    if (status == RAFT_OK)
        status =
            raft_gpu_check(shell, cuda->driver.stream_wait(cuda->stream), "packing of parameters");
    shell->packed = status == RAFT_OK;
    return status;
}

/* ---- graphs ---------------------------------------------------------------------------------- */

static int make_graph(RaftShell *shell, unsigned entry, int64_t images, bool timed,
                      RaftGpuExec *exec)
{
    CudaState *cuda = shell->device;
    GpuBuilder builder = {.timed = timed};
    int result = cuda->driver.graph_create(&builder.graph, 0);
    if (result != 0) return result;
    result = launch_steps(shell, entry, images, &builder);
    if (result == 0) result = cuda->driver.graph_instantiate(exec, builder.graph, 0);
    cuda->driver.graph_destroy(builder.graph);
    return result;
}

/* What is known of the present chunk; the one that was used longest ago makes room for a new one. */
static GpuChunk *find_chunk(CudaState *cuda, unsigned entry, int64_t images, bool timed,
                            bool *known)
{
    size_t size = (size_t)cuda->tensor_count * sizeof *cuda->address;
    GpuChunk *oldest = &cuda->chunk[0];
    for (int i = 0; i < MOST_GRAPHS; i++) {
        GpuChunk *chunk = &cuda->chunk[i];
        *known = chunk->entry == entry && chunk->images == images && chunk->timed == timed &&
                 memcmp(chunk->address, cuda->address, size) == 0;
        if (*known) {
            chunk->used = ++cuda->chunks;
            return chunk;
        }
        if (chunk->used < oldest->used) oldest = chunk;
    }
    if (oldest->exec) cuda->driver.exec_destroy(oldest->exec);
    oldest->exec = NULL;
    oldest->entry = entry;
    oldest->images = images;
    oldest->timed = timed;
    oldest->used = ++cuda->chunks;
    memcpy(oldest->address, cuda->address, size);
    return oldest;
}

/* Events tell when each step began and ended on the GPU. */
static RaftStatus run_timed(RaftShell *shell, unsigned entry, int64_t images)
{
    CudaState *cuda = shell->device;
    const RaftProgram *program = shell->program;
    bool known;
    int result = 0, before = 0;
    if (!cuda->event) cuda->event = calloc((size_t)program->step_count + 1, sizeof *cuda->event);
    if (!cuda->event) return raft_shell_fail(shell, RAFT_NO_MEMORY, "out of memory");
    for (int i = 0; i <= program->step_count && result == 0; i++)
        if (!cuda->event[i]) result = cuda->driver.event_create(&cuda->event[i], 0);
    GpuChunk *chunk = find_chunk(cuda, entry, images, true, &known);
    if (result == 0 && !chunk->exec) result = make_graph(shell, entry, images, true, &chunk->exec);
    if (result == 0) result = cuda->driver.graph_launch(chunk->exec, cuda->stream);
    if (result == 0) result = cuda->driver.stream_wait(cuda->stream);
    for (int s = 0; s < program->step_count && result == 0; s++) {
        float ms = 0;
        if (!(program->step[s].entries & entry)) continue;
        result = cuda->driver.event_elapsed(&ms, cuda->event[before], cuda->event[s + 1]);
        shell->seconds[s] += 1e-3 * (double)ms;
        before = s + 1;
    }
    return raft_gpu_check(shell, result, "timing of kernels");
}

static RaftStatus run_chunk(RaftShell *shell, unsigned entry, int64_t images)
{
    CudaState *cuda = shell->device;
    bool known;
    int result = 0;
    if (shell->seconds) return run_timed(shell, entry, images);
    GpuChunk *chunk = find_chunk(cuda, entry, images, false, &known);
    if (!known) return raft_gpu_check(shell, launch_steps(shell, entry, images, NULL), "a launch");
    if (!chunk->exec) result = make_graph(shell, entry, images, false, &chunk->exec);
    if (result == 0) result = cuda->driver.graph_launch(chunk->exec, cuda->stream);
    return raft_gpu_check(shell, result, "a graph of launches");
}

/* ---- running --------------------------------------------------------------------------------- */

/* Of the chunk that begins with image `first`. */
static float *first_element(const GpuTensor *tensor, int64_t first)
{
    return tensor->fixed ? tensor->data : tensor->data + first * tensor->info->elements;
}

/* The copies before a chunk (of inputs) or after it (of outputs). */
static RaftStatus copy_tensors(RaftShell *shell, int64_t first, int64_t images, bool inputs)
{
    CudaState *cuda = shell->device;
    int result = 0;
    for (int i = 0; i < cuda->tensor_count && result == 0; i++) {
        const GpuTensor *tensor = &cuda->tensor[i];
        if (!tensor->info || !tensor->on_host || tensor->is_input != inputs) continue;
        float *data = first_element(tensor, first);
        size_t bytes = tensor_bytes(tensor, images);
        if (inputs)
            result = cuda->driver.upload(tensor->staging.address, data, bytes, cuda->stream);
        else
            result = cuda->driver.download(data, tensor->staging.address, bytes, cuda->stream);
    }
    return raft_gpu_check(shell, result, inputs ? "a copy to it" : "a copy from it");
}

static RaftStatus run_images(RaftShell *shell, unsigned entry, int64_t first, int64_t images)
{
    CudaState *cuda = shell->device;
    for (int i = 0; i < cuda->tensor_count; i++) {
        const GpuTensor *tensor = &cuda->tensor[i];
        cuda->address[i] = 0;
        if (!tensor->info) continue;
        cuda->address[i] =
            tensor->on_host ? tensor->staging.address : (uintptr_t)first_element(tensor, first);
    }
    RaftStatus status = copy_tensors(shell, first, images, true);
    if (status == RAFT_OK) status = run_chunk(shell, entry, images);
    return status == RAFT_OK ? copy_tensors(shell, first, images, false) : status;
}

static RaftStatus run_in_context(RaftShell *shell, unsigned entry, int64_t batch,
                                 const float *const *inputs, float *const *outputs)
{
    CudaState *cuda = shell->device;
    int64_t chunk = raft_least(batch, shell->program->chunk);
    bool on_host;
    RaftStatus status = find_tensors(shell, entry, inputs, outputs, &on_host);
    if (status == RAFT_OK) status = raft_gpu_reserve_images(shell, &chunk);
    if (status == RAFT_OK) status = prepare_cuda(shell);
    for (int64_t first = 0, images; first < batch && status == RAFT_OK; first += images) {
        images = raft_least(chunk, batch - first);
        status = run_images(shell, entry, first, images);
    }
    if (status == RAFT_OK && (on_host || cuda->own_stream))
        status = raft_gpu_check(shell, cuda->driver.stream_wait(cuda->stream), "a forward");
    return status;
}

static RaftStatus run_cuda(RaftShell *shell, unsigned entry, int64_t batch,
                           const float *const *inputs, float *const *outputs)
{
    CudaState *cuda = shell->device;
    RaftStatus status =
        raft_gpu_check(shell, cuda->driver.context_push(cuda->context), "its context");
    if (status != RAFT_OK) return status;
    status = run_in_context(shell, entry, batch, inputs, outputs);
    cuda->driver.context_pop(&(RaftGpuContext){0});
    return status;
}

RAFT_SHELL_LINKAGE const RaftDevice raft_cuda = {
    .open = raft_cuda_open, .close = raft_cuda_close, .read = read_parameter, .run = run_cuda};
