/* cpu.c: runs the steps of a program on the CPU, their units shared out over OpenMP threads.
 *
 *   open_cpu    takes all memory but the arena
 *   prepare     runs the steps that pack parameters, where parameters have changed
 *   run_share   what one thread does in a forward: its share of the units of every step
 */
#include "runtime/barrier.h"
#include "runtime/device.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

typedef struct CpuState {
    int threads;
    float *prepared, *arena;
    size_t arena_bytes;
    char *scratch; /* of each thread: scratch of its kernels, then the arguments of its step */
    size_t scratch_stride, argument_offset;
} CpuState;

/* ---- memory ---------------------------------------------------------------------------------- */

/* The arena for `images` images. The old one is freed first: nothing in it outlives a run. */
static RaftStatus reserve_arena(RaftShell *shell, int64_t images)
{
    CpuState *cpu = shell->device;
    size_t bytes;
    if (!raft_float_bytes(shell->program->arena_floats, images, &bytes))
        return raft_shell_fail(shell, RAFT_INVALID, "%lld images at a time are too many",
                               (long long)images);
    if (cpu->arena && bytes <= cpu->arena_bytes) return RAFT_OK;
    free(cpu->arena);
    cpu->arena = raft_allocate(bytes);
    cpu->arena_bytes = cpu->arena ? bytes : 0;
    if (cpu->arena) return RAFT_OK;
    return raft_shell_fail(shell, RAFT_NO_MEMORY,
                           "out of memory: %zu bytes for %lld images at a time", bytes,
                           (long long)images);
}

/* The processors that the process may use, within what OpenMP's own settings allow. */
static int default_threads(void)
{
    int64_t limit =
        raft_least(omp_get_max_threads(), raft_least(omp_get_thread_limit(), RAFT_MAX_THREADS));
    return (int)raft_least(omp_get_num_procs(), limit);
}

/* The most arguments of any step. */
static int most_arguments(const RaftProgram *program)
{
    int most = 0;
    for (int s = 0; s < program->prepare_count; s++)
        if (program->prepare[s].argument_count > most) most = program->prepare[s].argument_count;
    for (int s = 0; s < program->step_count; s++)
        if (program->step[s].argument_count > most) most = program->step[s].argument_count;
    return most;
}

static RaftStatus check_options(RaftShell *shell, const RaftShellOptions *options)
{
    if (options->threads < 0 || options->threads > RAFT_MAX_THREADS)
        return raft_shell_fail(shell, RAFT_INVALID, "options: threads is %d, not 0 to %d",
                               options->threads, RAFT_MAX_THREADS);
    if (options->device != 0 || options->stream)
        return raft_shell_fail(
            shell, RAFT_UNSUPPORTED,
            "options: the model is compiled for the CPU: device must be 0, stream NULL");
    return RAFT_OK;
}

static RaftStatus open_cpu(RaftShell *shell, const RaftShellOptions *options)
{
    const RaftProgram *program = shell->program;
    size_t prepared_bytes = 0, scratch_bytes;
    RaftStatus status = check_options(shell, options);
    if (status != RAFT_OK) return status;
    CpuState *cpu = shell->device = calloc(1, sizeof *cpu);
    if (!cpu) return raft_shell_fail(shell, RAFT_NO_MEMORY, "out of memory");
    cpu->threads = options->threads ? options->threads : default_threads();
    size_t arguments = (size_t)most_arguments(program) * sizeof(float *);
    cpu->argument_offset = raft_round_up((size_t)program->scratch_bytes, RAFT_ALIGNMENT);
    cpu->scratch_stride = cpu->argument_offset + raft_round_up(arguments, RAFT_ALIGNMENT);
    if (!__builtin_mul_overflow(cpu->scratch_stride, cpu->threads, &scratch_bytes))
        cpu->scratch = raft_allocate(scratch_bytes);
    if (raft_float_bytes(program->prepared_floats, 1, &prepared_bytes))
        cpu->prepared = raft_allocate(prepared_bytes);
    if (!cpu->scratch || !cpu->prepared)
        return raft_shell_fail(shell, RAFT_NO_MEMORY,
                               "out of memory: packed parameters, and scratch of %d threads",
                               cpu->threads);
    memset(cpu->prepared, 0, prepared_bytes);
    return RAFT_OK;
}

static void close_cpu(RaftShell *shell)
{
    CpuState *cpu = shell->device;
    free(cpu->prepared);
    free(cpu->arena);
    free(cpu->scratch);
    free(cpu);
}

static RaftStatus read_host(RaftShell *shell, float *to, const float *from, size_t bytes)
{
    (void)shell;
    memcpy(to, from, bytes);
    return RAFT_OK;
}

/* ---- running --------------------------------------------------------------------------------- */

/* A walk over steps for `batch` images. */
typedef struct Run {
    const RaftShell *shell;
    const CpuState *cpu;
    Barrier *barrier;
    const RaftStep *step;
    int step_count;
    unsigned entry; /* only steps of these entries; 0: all */
    int64_t batch;
    double *seconds; /* NULL, or of each thread and step */
    const float *const *input;
    float *const *output;
} Run;

/* Where a buffer is for the `images` images from the `first` on. */
static float *locate(const Run *run, const RaftBuffer *buffer, int64_t first, int64_t images)
{
    const RaftShell *shell = run->shell;
    const RaftProgram *program = shell->program;
    int64_t offset = buffer->offset;
    switch (buffer->kind) {
    case RAFT_BUFFER_INPUT: /* kernels only read it */
        return (float *)run->input[offset] + first * program->input[offset].elements;
    case RAFT_BUFFER_OUTPUT:
        return run->output[offset] + first * program->output[offset].elements;
    case RAFT_BUFFER_PARAM:
        return shell->parameter[offset].data;
    case RAFT_BUFFER_PREPARED:
        return run->cpu->prepared + offset;
    default:
        return run->cpu->arena + offset * images;
    }
}

/* What thread `thread` of `threads` does for the `images` images from the `first` on: an equal
 * share of the units of each step; the first threads take one more where they divide unevenly. */
static void run_share(const Run *run, int64_t first, int64_t images, int thread, int threads)
{
    const CpuState *cpu = run->cpu;
    const RaftProgram *program = run->shell->program;
    char *scratch = cpu->scratch + (size_t)thread * cpu->scratch_stride;
    float **argument = (float **)(scratch + cpu->argument_offset);
    double *seconds = run->seconds ? run->seconds + (size_t)thread * (size_t)run->step_count : NULL;
    for (int s = 0; s < run->step_count; s++) {
        const RaftStep *step = &run->step[s];
        if (run->entry && !(step->entries & run->entry)) continue;
        int64_t units = step->batched ? step->units * images : step->units;
        int64_t share = units / threads, rest = units % threads;
        int64_t begin = share * thread + (thread < rest ? thread : rest);
        int64_t end = begin + share + (thread < rest);
        for (int i = 0; i < step->argument_count; i++)
            argument[i] = locate(run, &program->buffer[step->argument[i]], first, images);
        double start = seconds ? omp_get_wtime() : 0;
        if (begin < end) step->kernel(argument, images, begin, end, scratch);
        if (seconds) seconds[s] += omp_get_wtime() - start;
        wait_for_all(run->barrier, threads);
    }
}

/* One parallel region for all steps and images. OpenMP may give fewer threads than asked for, one
 * where the caller is in a parallel region already; the bits of the results do not depend on it. */
static void run_steps(Run run)
{
    const int64_t chunk = run.shell->program->chunk;
    Barrier barrier = {0};
    run.barrier = &barrier;
#pragma omp parallel num_threads(run.cpu->threads)
    for (int64_t first = 0; first < run.batch; first += raft_least(chunk, run.batch - first))
        run_share(&run, first, raft_least(chunk, run.batch - first), omp_get_thread_num(),
                  omp_get_num_threads());
}

static void prepare(RaftShell *shell)
{
    const RaftProgram *program = shell->program;
    Run run = {.shell = shell,
               .cpu = shell->device,
               .step = program->prepare,
               .step_count = program->prepare_count,
               .batch = 1};
    if (!shell->packed) run_steps(run);
    shell->packed = true;
}

static RaftStatus run_cpu(RaftShell *shell, unsigned entry, int64_t batch,
                          const float *const *inputs, float *const *outputs)
{
    const RaftProgram *program = shell->program;
    RaftStatus status = reserve_arena(shell, raft_least(batch, program->chunk));
    if (status != RAFT_OK) return status;
    prepare(shell);
    const Run run = {.shell = shell,
                     .cpu = shell->device,
                     .step = program->step,
                     .step_count = program->step_count,
                     .entry = entry,
                     .batch = batch,
                     .seconds = shell->seconds,
                     .input = inputs,
                     .output = outputs};
    run_steps(run);
    return RAFT_OK;
}

RAFT_SHELL_LINKAGE const RaftDevice raft_cpu = {open_cpu, close_cpu, read_host, run_cpu};
