/* cpu.c: runs the steps of a program on the CPU, their units shared out over threads.
 *
 *   open_cpu    takes all memory but the arena
 *   prepare     runs the steps that pack parameters, where parameters have changed
 *   pack        runs those of one parameter, from the caller's data
 *   run_share   what one thread does in a forward: its share of the units of every step, or more
 */
#include "runtime/device.h"
#include "runtime/pool.h"

#include <fcntl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct CpuState {
    int threads;
    int *source; /* of each step of prepare: the one parameter it depends on, or SEVERAL */
    bool *keep;  /* of each parameter: needed after the steps that depend on it alone */
    void *prepared_block, *arena_block, *scratch_block, *taken_block; /* what these are in */
    float *prepared, *arena;
    size_t arena_bytes;
    float **part; /* of outputs that has_part tells: what a chunk but the first adds to them */
    int *writer;  /* of each output: the step that writes it, the first that has it */
    void *part_block;
    char *scratch; /* of each thread: scratch of its kernels, then the arguments of its step */
    size_t scratch_stride, argument_offset;
    Taken *taken; /* of each step that may run beside the present one, and thread */
    Pool pool;    /* starts with the first run that takes several threads */
} CpuState;

/* ---- memory ---------------------------------------------------------------------------------- */

/* Zeroed, and in no memory before it is written to: then what is packed last finds the room that
 * was taken by what was packed first. In huge pages where it fills most of one: kernels walk through
 * several rows at a time, each in pages of its own. The block is to be freed. */
static void *allocate_zeroed(size_t bytes, void **block)
{
    const size_t huge = (size_t)2 << 20;
    size_t alignment = bytes < huge / 2 ? RAFT_ALIGNMENT : huge;
    if (bytes > (size_t)PTRDIFF_MAX - 2 * huge) return *block = NULL;
    *block = calloc(1, raft_round_up(bytes, alignment) + alignment);
    if (!*block) return NULL;
    char *aligned = (char *)*block + (alignment - (uintptr_t)*block % alignment);
    if (alignment == huge) /* only a hint */
        madvise(aligned, raft_round_up(bytes, huge), MADV_HUGEPAGE);
    return aligned;
}

/* The arena for `images` images. The old one is freed first: nothing in it outlives a run. */
static RaftStatus reserve_arena(RaftShell *shell, int64_t images)
{
    CpuState *cpu = shell->device;
    size_t bytes;
    if (!raft_float_bytes(shell->program->arena_floats, images, &bytes))
        return raft_shell_fail(shell, RAFT_INVALID, "%lld images at a time are too many",
                               (long long)images);
    if (cpu->arena && bytes <= cpu->arena_bytes) return RAFT_OK;
    free(cpu->arena_block);
    cpu->arena = allocate_zeroed(bytes, &cpu->arena_block);
    cpu->arena_bytes = cpu->arena ? bytes : 0;
    if (cpu->arena) return RAFT_OK;
    return raft_shell_fail(shell, RAFT_NO_MEMORY,
                           "out of memory: %zu bytes for %lld images at a time", bytes,
                           (long long)images);
}

/* Must what a chunk gives of an output be added to it when the step that writes it is done? */
static bool has_part(const RaftShell *shell, int output)
{
    const CpuState *cpu = shell->device;
    const RaftProgram *program = shell->program;
    return program->fixed[output] && !program->step[cpu->writer[output]].adds;
}

/* Room for what each chunk but the first adds to the outputs that have parts, at most once. */
static RaftStatus reserve_parts(RaftShell *shell)
{
    CpuState *cpu = shell->device;
    const RaftProgram *program = shell->program;
    int64_t floats = 0;
    size_t bytes;
    if (cpu->part || !program->fixed) return RAFT_OK;
    for (int i = 0; i < program->output_count; i++)
        if (has_part(shell, i)) floats += program->output[i].elements;
    cpu->part = calloc((unsigned)program->output_count, sizeof *cpu->part);
    float *next = NULL;
    if (cpu->part && raft_float_bytes(floats, 1, &bytes))
        next = allocate_zeroed(bytes, &cpu->part_block);
    if (!next) {
        free(cpu->part);
        cpu->part = NULL;
        return raft_shell_fail(shell, RAFT_NO_MEMORY,
                               "out of memory: the sums of a part of the batch");
    }
    for (int i = 0; i < program->output_count; i++) {
        if (!has_part(shell, i)) continue;
        cpu->part[i] = next;
        next += program->output[i].elements;
    }
    return RAFT_OK;
}

/* Whether no page from `first` to before `end` has content that memory alone has: all that are in it
 * are unchanged pages of a mapped file. False where that cannot be found out. */
static bool is_in_file(uintptr_t first, uintptr_t end)
{
    enum { AT_ONCE = 256 };
    const uint64_t present = 1ull << 63, swapped = 1ull << 62, of_file = 1ull << 61;
    uint64_t page[AT_ONCE];
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    bool good = pagemap >= 0;
    for (size_t count; first < end && good; first += count) {
        count = end - first < AT_ONCE ? end - first : AT_ONCE;
        size_t bytes = count * sizeof *page;
        good = pread(pagemap, page, bytes, (off_t)(first * sizeof *page)) == (ssize_t)bytes;
        for (size_t i = 0; i < count && good; i++)
            good = !(page[i] & swapped) && (!(page[i] & present) || page[i] & of_file);
    }
    if (pagemap >= 0) close(pagemap);
    return good;
}

/* Takes a parameter of a mapped weights file from the memory of the process; what looks at it again
 * finds it in the file. The system may have mapped all of each 2 MB that it lies in. Does nothing
 * where the weights are in no such file. */
static void give_back(const RaftShell *shell, const float *data, size_t bytes)
{
    const uintptr_t around = 2 << 20, size = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t least = (uintptr_t)shell->weights, most = least + shell->weights_size;
    uintptr_t first = (uintptr_t)data / around * around;
    uintptr_t end = raft_round_up((uintptr_t)data + bytes, around);
    first = (first > least ? first : least) / size;
    end = raft_round_up(end < most ? end : most, size) / size;
    if (is_in_file(first, end))
        madvise((void *)(first * size), (end - first) * size, MADV_DONTNEED);
}

/* The processors that the process may use, within what OpenMP's own settings allow. */
static int default_threads(void)
{
    int64_t limit =
        raft_least(omp_get_max_threads(), raft_least(omp_get_thread_limit(), RAFT_MAX_THREADS));
    return (int)raft_least(omp_get_num_procs(), limit);
}

/* The most arguments of any step, with the one that tells it to add. */
static int most_arguments(const RaftProgram *program)
{
    int most = 0;
    for (int s = 0; s < program->prepare_count; s++)
        if (program->prepare[s].argument_count > most) most = program->prepare[s].argument_count;
    for (int s = 0; s < program->step_count; s++)
        if (program->step[s].argument_count > most) most = program->step[s].argument_count;
    return most + 1;
}

/* ---- what depends on which parameters -------------------------------------------------------- */

enum { NO_PARAMETER = -1, SEVERAL = -2 };

static int join_sources(int a, int b)
{
    if (a == NO_PARAMETER || a == b) return b;
    return b == NO_PARAMETER ? a : SEVERAL;
}

/* source[b]: what buffer b depends on, as far as steps were seen. Steps come after those whose
 * results they read. */
static int step_source(const RaftProgram *program, const RaftStep *step, int *source)
{
    int joined = NO_PARAMETER;
    for (int i = 0; i < step->argument_count; i++)
        joined = join_sources(joined, source[step->argument[i]]);
    if (joined == NO_PARAMETER) joined = SEVERAL; /* to be run with those */
    for (int i = 0; i < step->argument_count; i++) {
        int buffer = step->argument[i];
        if (program->buffer[buffer].kind == RAFT_BUFFER_PREPARED && source[buffer] == NO_PARAMETER)
            source[buffer] = joined;
    }
    return joined;
}

static void keep_parameters(const RaftProgram *program, const RaftStep *step, bool *keep)
{
    for (int i = 0; i < step->argument_count; i++) {
        const RaftBuffer *buffer = &program->buffer[step->argument[i]];
        if (buffer->kind == RAFT_BUFFER_PARAM) keep[buffer->offset] = true;
    }
}

/* Finds the writer of each output. False where memory runs out. */
static bool scan_outputs(const RaftProgram *program, CpuState *cpu)
{
    cpu->writer = calloc((unsigned)program->output_count + 1u, sizeof *cpu->writer);
    for (int s = program->step_count; s-- > 0 && cpu->writer;)
        for (int i = 0; i < program->step[s].argument_count; i++) {
            const RaftBuffer *buffer = &program->buffer[program->step[s].argument[i]];
            if (buffer->kind == RAFT_BUFFER_OUTPUT) cpu->writer[buffer->offset] = s;
        }
    return cpu->writer;
}

/* Finds the source of each buffer. False where memory runs out. */
static bool scan_sources(const RaftProgram *program, CpuState *cpu)
{
    int *source = calloc((size_t)program->buffer_count + 1, sizeof *source);
    cpu->source = calloc((size_t)program->prepare_count + 1, sizeof *cpu->source);
    cpu->keep = calloc((size_t)program->parameter_count + 1, sizeof *cpu->keep);
    bool good = source && cpu->source && cpu->keep;
    for (int i = 0; i < program->buffer_count && good; i++) {
        const RaftBuffer *buffer = &program->buffer[i];
        source[i] = buffer->kind == RAFT_BUFFER_PARAM ? (int)buffer->offset : NO_PARAMETER;
    }
    for (int s = 0; s < program->prepare_count && good; s++) {
        cpu->source[s] = step_source(program, &program->prepare[s], source);
        if (cpu->source[s] == SEVERAL) keep_parameters(program, &program->prepare[s], cpu->keep);
    }
    for (int s = 0; s < program->step_count && good; s++)
        keep_parameters(program, &program->step[s], cpu->keep);
    free(source);
    return good;
}

/* ---- open, close ----------------------------------------------------------------------------- */

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
    CpuState *cpu = shell->device = raft_allocate(sizeof *cpu);
    if (cpu) *cpu = (CpuState){0};
    if (!cpu || !scan_outputs(program, cpu) || !scan_sources(program, cpu))
        return raft_shell_fail(shell, RAFT_NO_MEMORY, "out of memory");
    cpu->threads = options->threads ? options->threads : default_threads();
    size_t arguments = (size_t)most_arguments(program) * sizeof(float *);
    cpu->argument_offset = raft_round_up((size_t)program->scratch_bytes, RAFT_ALIGNMENT);
    cpu->scratch_stride = cpu->argument_offset + raft_round_up(arguments, RAFT_ALIGNMENT);
    if (!__builtin_mul_overflow(cpu->scratch_stride, cpu->threads, &scratch_bytes))
        cpu->scratch = allocate_zeroed(scratch_bytes, &cpu->scratch_block);
    if (raft_float_bytes(program->prepared_floats, 1, &prepared_bytes))
        cpu->prepared = allocate_zeroed(prepared_bytes, &cpu->prepared_block);
    cpu->taken = allocate_zeroed((size_t)cpu->threads * RAFT_MOST_TOGETHER * sizeof(Taken),
                                 &cpu->taken_block);
    if (!cpu->scratch || !cpu->prepared || !cpu->taken)
        return raft_shell_fail(shell, RAFT_NO_MEMORY,
                               "out of memory: packed parameters, and scratch of %d threads",
                               cpu->threads);
    return RAFT_OK;
}

static void close_cpu(RaftShell *shell)
{
    CpuState *cpu = shell->device;
    pool_stop(&cpu->pool);
    free(cpu->source);
    free(cpu->keep);
    free(cpu->prepared_block);
    free(cpu->arena_block);
    free(cpu->part);
    free(cpu->part_block);
    free(cpu->writer);
    free(cpu->scratch_block);
    free(cpu->taken_block);
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
    int threads; /* at most */
    Barrier *barrier;
    const RaftStep *step;
    int step_count;
    unsigned entry; /* only steps of these entries; 0: all */
    int64_t batch;
    double *seconds; /* NULL, or of each thread and step */
    RaftMoments *moments;
    RaftWatch *watch;
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
        if (program->fixed && program->fixed[offset])
            return first && has_part(shell, (int)offset) ? run->cpu->part[offset]
                                                         : run->output[offset];
        return run->output[offset] + first * program->output[offset].elements;
    case RAFT_BUFFER_PARAM:
        return shell->parameter[offset].data;
    case RAFT_BUFFER_PREPARED:
        return run->cpu->prepared + offset;
    default:
        return run->cpu->arena + offset * images;
    }
}

static void note_time(const Run *run, size_t at, double began)
{
    double ended = omp_get_wtime();
    run->seconds[at] += ended - began;
    if (run->moments) run->moments[at] = (RaftMoments){began, ended};
}

/* The share of a thread in adding what step `s` has written of the present chunk to the sums. */
static void add_parts(const Run *run, int s, int thread, int threads)
{
    const RaftProgram *program = run->shell->program;
    const RaftStep *step = &run->step[s];
    bool added = false;
    for (int i = 0; i < step->argument_count; i++) {
        const RaftBuffer *buffer = &program->buffer[step->argument[i]];
        int64_t output = buffer->offset;
        if (buffer->kind != RAFT_BUFFER_OUTPUT || !has_part(run->shell, (int)output)) continue;
        if (run->cpu->writer[output] != s) continue;
        int64_t elements = program->output[output].elements;
        int64_t end = elements * (thread + 1) / threads;
        const float *part = run->cpu->part[output];
        float *sum = run->output[output];
#pragma omp simd
        for (int64_t k = elements * thread / threads; k < end; k++) sum[k] += part[k];
        added = true;
    }
    if (added) wait_for_all(run->barrier, threads, 0);
}

/* Is there anything to be done between a step and the next, of a chunk that begins at image `first`? */
static bool stops_between(const Run *run, int64_t first)
{
    const RaftProgram *program = run->shell->program;
    bool stops = run->watch;
    for (int i = 0; first > 0 && program->fixed && i < program->output_count; i++)
        stops |= has_part(run->shell, i);
    return stops;
}

/* What thread `thread` of `threads` does for the `images` images from the `first` on. */
static void run_share(const Run *run, int64_t first, int64_t images, int thread, int threads)
{
    const CpuState *cpu = run->cpu;
    const RaftProgram *program = run->shell->program;
    char *scratch = cpu->scratch + (size_t)thread * cpu->scratch_stride;
    float **argument = (float **)(scratch + cpu->argument_offset);
    bool timed = run->seconds, waits = false, stops = stops_between(run, first);
    int steps = 0; /* since all threads have waited for each other */
    for (int s = 0; s < run->step_count; s++) {
        const RaftStep *step = &run->step[s];
        waits |= step->waits;
        if (run->entry && !(step->entries & run->entry)) continue;
        if (waits && steps > 0) {
            wait_for_all(run->barrier, threads, steps);
            steps = 0;
        }
        waits = false;
        Taken *taken = cpu->taken + (int64_t)steps++ * threads;
        int64_t units = step->batched ? step->units * images : step->units;
        int owner = 0;
        for (int i = 0; i < step->argument_count; i++)
            argument[i] = locate(run, &program->buffer[step->argument[i]], first, images);
        argument[step->argument_count] = step->adds && first ? (float *)scratch : NULL;
        double began = timed ? omp_get_wtime() : 0;
        for (Units some; some = take_units(taken, units, step->piece, thread, threads, &owner),
                         some.begin < some.end;)
            step->kernel(argument, images, some.begin, some.end, scratch);
        if (timed) note_time(run, (size_t)thread * (size_t)run->step_count + (size_t)s, began);
        if (!stops) continue;
        wait_for_all(run->barrier, threads, steps);
        steps = 0;
        if (first > 0 && program->fixed) add_parts(run, s, thread, threads);
        if (!run->watch) continue;
        if (thread == 0) run->watch(run->shell->watch_user, s, argument, first, images);
        wait_for_all(run->barrier, threads, 0);
    }
    wait_for_all(run->barrier, threads, steps);
}

/* Images that one pass over the steps takes: all of them, where another run goes on from there. */
static int64_t images_at_once(const RaftProgram *program, unsigned entry, int64_t batch)
{
    bool goes_on = entry & (program->keep_entry | program->rest_entry);
    return goes_on ? batch : raft_least(batch, program->chunk);
}

/* What one thread does for all steps and images. */
static void run_thread(void *user, int thread, int threads)
{
    const Run *run = user;
    const RaftProgram *program = run->shell->program;
    const int64_t chunk = images_at_once(program, run->entry, run->batch);
    for (int64_t first = 0; first < run->batch; first += raft_least(chunk, run->batch - first))
        run_share(run, first, raft_least(chunk, run->batch - first), thread, threads);
}

/* In a parallel region of the caller there is but his thread. The bits of the results do not depend on
 * how many there are. */
static void run_steps(Run run)
{
    CpuState *cpu = run.shell->device;
    Barrier barrier = {.taken = cpu->taken};
    run.barrier = &barrier;
    bool alone = run.threads == 1 || omp_in_parallel();
    if (!alone) pool_start(&cpu->pool, cpu->threads);
    pool_run(&cpu->pool, run_thread, &run, alone ? 1 : run.threads);
}

/* Runs one step of prepare; one with little to do wakes no other threads. */
static void run_prepare_step(RaftShell *shell, int s)
{
    const int64_t few = 1 << 16;
    const CpuState *cpu = shell->device;
    const RaftProgram *program = shell->program;
    int source = cpu->source[s];
    bool small = source >= 0 && program->parameter[source].elements < few;
    run_steps((Run){.shell = shell,
                    .cpu = cpu,
                    .threads = small ? 1 : cpu->threads,
                    .step = &program->prepare[s],
                    .step_count = 1,
                    .batch = 1});
}

static bool pack_cpu(RaftShell *shell, int parameter, const float *data)
{
    const CpuState *cpu = shell->device;
    if (cpu->keep[parameter]) return false;
    shell->parameter[parameter].data = (float *)data; /* kernels only read parameters */
    for (int s = 0; s < shell->program->prepare_count; s++)
        if (cpu->source[s] == parameter) run_prepare_step(shell, s);
    shell->packed = false; /* other steps may read what these have made */
    return true;
}

/* Copies a small parameter of the blob that is needed as it is: looked at in a mapped file, it
 * would have much around it in memory. Without room for that it stays where it is. */
static void take_over(RaftShell *shell, int index)
{
    const size_t small = 64 << 10;
    RaftParameter *parameter = &shell->parameter[index];
    size_t bytes = raft_weights_stride(&shell->program->parameter[index]);
    float *copy = bytes <= small ? raft_allocate(bytes) : NULL;
    if (!copy) return;
    memcpy(copy, parameter->data, bytes);
    give_back(shell, parameter->data, bytes);
    *parameter = (RaftParameter){.data = copy, .owned = true};
}

/* What was packed from a mapped file leaves memory at once. */
static void prepare(RaftShell *shell)
{
    const CpuState *cpu = shell->device;
    const RaftProgram *program = shell->program;
    for (int s = 0; s < program->prepare_count && !shell->packed; s++) {
        int source = cpu->source[s];
        const RaftParameter *parameter = source >= 0 ? &shell->parameter[source] : NULL;
        if (parameter && parameter->packed) continue;
        run_prepare_step(shell, s);
        if (parameter && !parameter->owned)
            give_back(shell, parameter->data, raft_weights_stride(&program->parameter[source]));
    }
    for (int i = 0; i < program->parameter_count && !shell->packed; i++) {
        if (cpu->keep[i] && !shell->parameter[i].owned) take_over(shell, i);
        shell->parameter[i].packed = !cpu->keep[i];
    }
    shell->packed = true;
}

static RaftStatus run_cpu(RaftShell *shell, unsigned entry, int64_t batch,
                          const float *const *inputs, float *const *outputs)
{
    const CpuState *cpu = shell->device;
    const RaftProgram *program = shell->program;
    int64_t images = images_at_once(program, entry, batch);
    RaftStatus status = reserve_arena(shell, images);
    if (status == RAFT_OK && batch > images) status = reserve_parts(shell);
    if (status != RAFT_OK) return status;
    prepare(shell);
    const Run run = {.shell = shell,
                     .cpu = cpu,
                     .threads = cpu->threads,
                     .step = program->step,
                     .step_count = program->step_count,
                     .entry = entry,
                     .batch = batch,
                     .seconds = shell->seconds,
                     .moments = shell->moments,
                     .watch = shell->watch,
                     .input = inputs,
                     .output = outputs};
    run_steps(run);
    return RAFT_OK;
}

RAFT_SHELL_LINKAGE const RaftDevice raft_cpu = {open_cpu, close_cpu, read_host, run_cpu, pack_cpu};
