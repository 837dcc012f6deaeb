/* shell.c: an instance of a compiled model; shell.h says what it does and where it is used.
 *
 *   set_up         reads the options, scans the program table, takes all memory but the arena
 *   prepare        runs the steps that pack parameters, where parameters have changed
 *   run_share      what one thread does in a forward: its share of the units of every step
 *
 * Copies of parameters are kept after they are packed, so that each can be set again alone; a
 * caller who does not want them in memory twice gives a mapped weights blob.
 */
#include "runtime/shell.h"
#include "runtime/barrier.h"

#include <omp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct Parameter {
    float *data; /* NULL: not set */
    bool owned;  /* data is a copy of ours, not in the caller's blob */
} Parameter;

/* What a caller gives for one input or output. */
typedef struct Span {
    const RaftTensorInfo *info;
    const float *data;
    size_t bytes;
} Span;

struct RaftShell {
    const RaftProgram *program;
    int threads;
    Parameter *parameter;
    unsigned *output_entries; /* of each output: bits of the entries whose steps write it */
    float **output;           /* room for the outputs, */
    Span *span;               /* and the inputs and outputs of one call */
    bool packed;              /* prepared is what the parameters give */
    float *prepared, *arena;
    size_t arena_bytes;
    char *scratch; /* of each thread: scratch of its kernels, then the arguments of its step */
    size_t scratch_stride, argument_offset;
    double *seconds; /* NULL, or where steps are timed */
    char error[512];
};

/* ---- messages -------------------------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static RaftStatus fail(RaftShell *shell, RaftStatus status,
                                                             const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(shell->error, sizeof shell->error, format, arguments);
    va_end(arguments);
    return status;
}

const char *raft_shell_error(const RaftShell *shell)
{
    return shell ? shell->error : "the instance is NULL";
}

/* Insertions, deletions and replacements that make `b` of `a`; INT32_MAX for very long names. */
static int edit_distance(const char *a, const char *b)
{
    enum { LONGEST = 200 };
    int row[LONGEST + 1]; /* distance of the part of `a` so far to each beginning of `b` */
    size_t a_length = strnlen(a, LONGEST + 1), b_length = strnlen(b, LONGEST + 1);
    if (a_length > LONGEST || b_length > LONGEST) return INT32_MAX;
    for (size_t j = 0; j <= b_length; j++) row[j] = (int)j;
    for (size_t i = 0; i < a_length; i++) {
        int diagonal = row[0]++;
        for (size_t j = 0; j < b_length; j++) {
            int replaced = diagonal + (a[i] != b[j]);
            int shorter = row[j] < row[j + 1] ? row[j] + 1 : row[j + 1] + 1;
            diagonal = row[j + 1];
            row[j + 1] = replaced < shorter ? replaced : shorter;
        }
    }
    return row[b_length];
}

static RaftStatus unknown_parameter(RaftShell *shell, const char *name)
{
    const RaftProgram *program = shell->program;
    int least = INT32_MAX, nearest = -1;
    for (int i = 0; i < program->parameter_count; i++) {
        int distance = edit_distance(name, program->parameter[i].name);
        if (distance >= least) continue;
        least = distance;
        nearest = i;
    }
    if (nearest < 0 || (least > 1 && (size_t)least > strlen(name) / 3))
        return fail(shell, RAFT_INVALID, "the model has no parameter '%.120s'", name);
    return fail(shell, RAFT_INVALID, "the model has no parameter '%.120s'; the nearest is '%.120s'",
                name, program->parameter[nearest].name);
}

static void format_shape(char *text, size_t size, const int64_t *shape, int rank)
{
    size_t length = 0;
    text[0] = '\0';
    for (int i = 0; i < rank && i < 8 && length < size; i++)
        length += (size_t)snprintf(text + length, size - length, "%s%lld", i ? ", " : "",
                                   (long long)shape[i]);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static size_t round_up(size_t bytes, size_t alignment)
{
    return (bytes + alignment - 1) / alignment * alignment;
}

/* At least one byte, aligned to 64, to be freed with free; NULL where there is none. Large blocks
 * ask for huge pages, since a forward walks through all of them. */
static void *allocate(size_t bytes)
{
    const size_t huge = (size_t)2 << 20;
    size_t alignment = bytes < 2 * huge ? RAFT_ALIGNMENT : huge;
    if (bytes > (size_t)PTRDIFF_MAX - alignment) return NULL;
    size_t rounded = round_up(bytes ? bytes : 1, alignment);
    void *block = aligned_alloc(alignment, rounded);
    if (block && alignment == huge) madvise(block, rounded, MADV_HUGEPAGE); /* only a hint */
    return block;
}

static void *allocate_array(int count, size_t size)
{
    return calloc(count > 0 ? (size_t)count : 1, size);
}

/* a * b * sizeof(float), where it is a possible size. */
static bool float_bytes(int64_t a, int64_t b, size_t *bytes)
{
    int64_t elements;
    if (__builtin_mul_overflow(a, b, &elements)) return false;
    if (elements > PTRDIFF_MAX / (int64_t)sizeof(float)) return false;
    *bytes = (size_t)elements * sizeof(float);
    return true;
}

/* The arena for `images` images. The old one is freed first: nothing in it outlives a run. */
static RaftStatus reserve_arena(RaftShell *shell, int64_t images)
{
    size_t bytes;
    if (!float_bytes(shell->program->arena_floats, images, &bytes))
        return fail(shell, RAFT_INVALID, "%lld images at a time are too many", (long long)images);
    if (shell->arena && bytes <= shell->arena_bytes) return RAFT_OK;
    free(shell->arena);
    shell->arena = allocate(bytes);
    shell->arena_bytes = shell->arena ? bytes : 0;
    if (shell->arena) return RAFT_OK;
    return fail(shell, RAFT_NO_MEMORY, "out of memory: %zu bytes for %lld images at a time", bytes,
                (long long)images);
}

/* ---- the weights blob ------------------------------------------------------------------------ */

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t size)
{
    const unsigned char *bytes = data; /* FNV-1a */
    for (size_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * 0x100000001b3;
    return hash;
}

size_t raft_weights_stride(const RaftTensorInfo *parameter)
{
    return round_up((size_t)parameter->elements * sizeof(float), RAFT_ALIGNMENT);
}

RaftWeightsHeader raft_weights_header(const RaftProgram *program)
{
    RaftWeightsHeader header = {.magic = {'R', 'A', 'F', 'T', 'B', 'L', 'O', 'B'}, .version = 1};
    header.parameters = (uint32_t)program->parameter_count;
    header.hash = 0xcbf29ce484222325;
    header.size = sizeof header;
    for (int i = 0; i < program->parameter_count; i++) {
        const RaftTensorInfo *info = &program->parameter[i];
        header.hash = hash_bytes(header.hash, info->name, strlen(info->name) + 1);
        header.hash = hash_bytes(header.hash, &info->rank, sizeof info->rank);
        header.hash =
            hash_bytes(header.hash, info->shape, (size_t)info->rank * sizeof *info->shape);
        header.size += raft_weights_stride(info);
    }
    return header;
}

static RaftStatus use_weights(RaftShell *shell, const void *weights, size_t size)
{
    RaftWeightsHeader wanted = raft_weights_header(shell->program), found;
    if ((uintptr_t)weights % RAFT_ALIGNMENT)
        return fail(shell, RAFT_INVALID, "weights: not aligned to 64 bytes, as mmap would");
    memcpy(&found, weights, size < sizeof found ? size : sizeof found);
    if (size < sizeof found || memcmp(found.magic, wanted.magic, sizeof found.magic) != 0)
        return fail(shell, RAFT_BAD_FILE, "weights: not a weights file that raftc wrote");
    if (found.version != wanted.version)
        return fail(shell, RAFT_BAD_FILE, "weights: version %u, this library reads version %u",
                    found.version, wanted.version);
    if (found.hash != wanted.hash || found.parameters != wanted.parameters)
        return fail(shell, RAFT_BAD_FILE,
                    "weights: of another model, or of one with other settings");
    if (size != wanted.size || memcmp(&found, &wanted, sizeof found) != 0)
        return fail(shell, RAFT_BAD_FILE, "weights: cut or damaged: %zu bytes, not %llu", size,
                    (unsigned long long)wanted.size);
    const char *data = (const char *)weights + sizeof found;
    for (int i = 0; i < shell->program->parameter_count; i++) {
        shell->parameter[i].data = (float *)data; /* kernels only read parameters */
        data += raft_weights_stride(&shell->program->parameter[i]);
    }
    return RAFT_OK;
}

/* ---- create, destroy ------------------------------------------------------------------------- */

/* Copies the options byte by byte, as they may come from a caller with a newer header: fields that
 * are not known here must then be zero. */
static RaftStatus read_options(RaftShell *shell, const void *given, RaftShellOptions *options)
{
    const size_t known = sizeof *options, most = 4096;
    const unsigned char *bytes = given;
    size_t size;
    if (!given) return RAFT_OK;
    memcpy(&size, given, sizeof size);
    if (size < known || size > most)
        return fail(shell, RAFT_INVALID, "options: size is %zu, not the size of the options, %zu",
                    size, known);
    for (size_t i = known; i < size; i++)
        if (bytes[i])
            return fail(shell, RAFT_UNSUPPORTED, "options: a field is set that this version lacks");
    memcpy(options, given, known);
    if (options->threads < 0 || options->threads > RAFT_MAX_THREADS)
        return fail(shell, RAFT_INVALID, "options: threads is %d, not 0 to %d", options->threads,
                    RAFT_MAX_THREADS);
    if (options->device != 0 || options->stream)
        return fail(shell, RAFT_UNSUPPORTED,
                    "options: the model is compiled for the CPU: device must be 0, stream NULL");
    if (!options->weights != !options->weights_size)
        return fail(shell, RAFT_INVALID, "options: one of weights and weights_size is not set");
    return RAFT_OK;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The processors that the process may use, within what OpenMP's own settings allow. */
static int default_threads(void)
{
    int64_t limit = least(omp_get_max_threads(), least(omp_get_thread_limit(), RAFT_MAX_THREADS));
    return (int)least(omp_get_num_procs(), limit);
}

/* Finds which outputs belong to which entry; returns the most arguments of any step. */
static int scan_steps(RaftShell *shell)
{
    const RaftProgram *program = shell->program;
    int most = 0;
    for (int s = 0; s < program->prepare_count; s++)
        if (program->prepare[s].argument_count > most) most = program->prepare[s].argument_count;
    for (int s = 0; s < program->step_count; s++) {
        const RaftStep *step = &program->step[s];
        if (step->argument_count > most) most = step->argument_count;
        for (int i = 0; i < step->argument_count; i++) {
            const RaftBuffer *buffer = &program->buffer[step->argument[i]];
            if (buffer->kind == RAFT_BUFFER_OUTPUT)
                shell->output_entries[buffer->offset] |= step->entries;
        }
    }
    return most;
}

static RaftStatus take_memory(RaftShell *shell)
{
    const RaftProgram *program = shell->program;
    size_t prepared_bytes = 0, scratch_bytes;
    int tensors = program->input_count + program->output_count;
    shell->parameter = allocate_array(program->parameter_count, sizeof *shell->parameter);
    shell->output_entries = allocate_array(program->output_count, sizeof *shell->output_entries);
    shell->output = allocate_array(program->output_count, sizeof *shell->output);
    shell->span = allocate_array(tensors, sizeof *shell->span);
    if (!shell->parameter || !shell->output_entries || !shell->output || !shell->span)
        return fail(shell, RAFT_NO_MEMORY, "out of memory");

    size_t arguments = (size_t)scan_steps(shell) * sizeof(float *);
    shell->argument_offset = round_up((size_t)program->scratch_bytes, RAFT_ALIGNMENT);
    shell->scratch_stride = shell->argument_offset + round_up(arguments, RAFT_ALIGNMENT);
    if (!__builtin_mul_overflow(shell->scratch_stride, shell->threads, &scratch_bytes))
        shell->scratch = allocate(scratch_bytes);
    if (float_bytes(program->prepared_floats, 1, &prepared_bytes))
        shell->prepared = allocate(prepared_bytes);
    if (!shell->scratch || !shell->prepared)
        return fail(shell, RAFT_NO_MEMORY,
                    "out of memory: packed parameters, and scratch of %d threads", shell->threads);
    memset(shell->prepared, 0, prepared_bytes);
    return RAFT_OK;
}

static RaftStatus set_up(RaftShell *shell, const RaftProgram *program,
                         const RaftShellOptions *given)
{
    RaftShellOptions options = {.size = sizeof options};
    RaftStatus status = read_options(shell, given, &options);
    if (status != RAFT_OK) return status;
    shell->program = program;
    shell->threads = options.threads ? options.threads : default_threads();
    status = take_memory(shell);
    if (status == RAFT_OK && options.weights)
        status = use_weights(shell, options.weights, options.weights_size);
    return status;
}

RaftStatus raft_shell_create(const RaftProgram *program, const RaftShellOptions *options,
                             RaftShell **out, char *message, size_t message_size)
{
    RaftShell *shell = calloc(1, sizeof *shell);
    RaftStatus status = RAFT_NO_MEMORY;
    if (out) *out = NULL;
    if (shell)
        status = out ? set_up(shell, program, options) : fail(shell, RAFT_INVALID, "out is NULL");
    if (status == RAFT_OK) {
        *out = shell;
        return RAFT_OK;
    }
    if (message && message_size) {
        const char *reason = shell ? shell->error : "out of memory";
        size_t length = strnlen(reason, message_size - 1);
        memcpy(message, reason, length);
        message[length] = '\0';
    }
    raft_shell_destroy(shell);
    return status;
}

void raft_shell_destroy(RaftShell *shell)
{
    if (!shell) return;
    for (int i = 0; shell->parameter && i < shell->program->parameter_count; i++)
        if (shell->parameter[i].owned) free(shell->parameter[i].data);
    free(shell->parameter);
    free(shell->output_entries);
    free(shell->output);
    free(shell->span);
    free(shell->prepared);
    free(shell->arena);
    free(shell->scratch);
    free(shell);
}

/* ---- parameters ------------------------------------------------------------------------------ */

static bool same_shape(const RaftTensorInfo *info, const int64_t *shape, int rank)
{
    if (rank != info->rank) return false;
    return memcmp(shape, info->shape, (size_t)rank * sizeof *shape) == 0;
}

static RaftStatus wrong_shape(RaftShell *shell, const RaftTensorInfo *info, const int64_t *shape,
                              int rank)
{
    char given[180], wanted[100];
    format_shape(given, sizeof given, shape, rank);
    format_shape(wanted, sizeof wanted, info->shape, info->rank);
    return fail(shell, RAFT_INVALID, "parameter '%.120s' has the shape [%s], not [%s] of rank %d",
                info->name, wanted, given, rank);
}

RaftStatus raft_shell_set_parameter(RaftShell *shell, const char *name, const int64_t *shape,
                                    int rank, const float *data)
{
    if (!shell) return RAFT_INVALID;
    if (!name || !shape || !data)
        return fail(shell, RAFT_INVALID, "%s is NULL", !name ? "name" : !shape ? "shape" : "data");
    if ((uintptr_t)data % sizeof *data)
        return fail(shell, RAFT_INVALID, "data is not aligned as floats are");
    const RaftProgram *program = shell->program;
    int index = 0;
    while (index < program->parameter_count && strcmp(program->parameter[index].name, name) != 0)
        index++;
    if (index == program->parameter_count) return unknown_parameter(shell, name);
    const RaftTensorInfo *info = &program->parameter[index];
    if (!same_shape(info, shape, rank)) return wrong_shape(shell, info, shape, rank);

    Parameter *parameter = &shell->parameter[index];
    size_t bytes = (size_t)info->elements * sizeof *data;
    float *copy = parameter->owned ? parameter->data : allocate(bytes);
    if (!copy)
        return fail(shell, RAFT_NO_MEMORY, "out of memory: %zu bytes for parameter '%.120s'", bytes,
                    name);
    memcpy(copy, data, bytes);
    *parameter = (Parameter){.data = copy, .owned = true};
    shell->packed = false;
    return RAFT_OK;
}

static RaftStatus check_parameters_set(RaftShell *shell)
{
    int missing = 0, first = -1, count = shell->program->parameter_count;
    for (int i = 0; i < count; i++) {
        if (shell->parameter[i].data) continue;
        if (first < 0) first = i;
        missing++;
    }
    if (!missing) return RAFT_OK;
    return fail(shell, RAFT_NOT_READY, "%d of %d parameters are not set; the first is '%.120s'",
                missing, count, shell->program->parameter[first].name);
}

/* ---- running --------------------------------------------------------------------------------- */

/* A walk over steps for `batch` images. */
typedef struct Run {
    const RaftShell *shell;
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
        return shell->prepared + offset;
    default:
        return shell->arena + offset * images;
    }
}

/* What thread `thread` of `threads` does for the `images` images from the `first` on: an equal
 * share of the units of each step; the first threads take one more where they divide unevenly. */
static void run_share(const Run *run, int64_t first, int64_t images, int thread, int threads)
{
    const RaftShell *shell = run->shell;
    char *scratch = shell->scratch + (size_t)thread * shell->scratch_stride;
    float **argument = (float **)(scratch + shell->argument_offset);
    double *seconds = run->seconds ? run->seconds + (size_t)thread * (size_t)run->step_count : NULL;
    for (int s = 0; s < run->step_count; s++) {
        const RaftStep *step = &run->step[s];
        if (run->entry && !(step->entries & run->entry)) continue;
        int64_t units = step->batched ? step->units * images : step->units;
        int64_t share = units / threads, rest = units % threads;
        int64_t begin = share * thread + (thread < rest ? thread : rest);
        int64_t end = begin + share + (thread < rest);
        for (int i = 0; i < step->argument_count; i++)
            argument[i] = locate(run, &shell->program->buffer[step->argument[i]], first, images);
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
#pragma omp parallel num_threads(run.shell->threads)
    for (int64_t first = 0; first < run.batch; first += least(chunk, run.batch - first))
        run_share(&run, first, least(chunk, run.batch - first), omp_get_thread_num(),
                  omp_get_num_threads());
}

static void prepare(RaftShell *shell)
{
    const RaftProgram *program = shell->program;
    Run run = {
        .shell = shell, .step = program->prepare, .step_count = program->prepare_count, .batch = 1};
    if (!shell->packed) run_steps(run);
    shell->packed = true;
}

static RaftStatus check_span(RaftShell *shell, Span *span, int64_t batch)
{
    const char *name = span->info->name;
    if (!float_bytes(span->info->elements, batch, &span->bytes))
        return fail(shell, RAFT_INVALID, "batch is %lld, too large for '%.120s'", (long long)batch,
                    name);
    if (!span->data) return fail(shell, RAFT_INVALID, "the data of '%.120s' is NULL", name);
    if ((uintptr_t)span->data % sizeof(float))
        return fail(shell, RAFT_INVALID, "the data of '%.120s' is not aligned as floats are", name);
    return RAFT_OK;
}

static bool overlap(const Span *a, const Span *b)
{
    uintptr_t a_begin = (uintptr_t)a->data, b_begin = (uintptr_t)b->data;
    return a_begin < b_begin + b->bytes && b_begin < a_begin + a->bytes;
}

static RaftStatus check_data(RaftShell *shell, unsigned entry, int64_t batch,
                             const float *const *inputs, float *const *outputs)
{
    const RaftProgram *program = shell->program;
    Span *span = shell->span;
    int count = 0;
    for (int i = 0; i < program->input_count; i++)
        span[count++] = (Span){.info = &program->input[i], .data = inputs[i]};
    for (int i = 0; i < program->output_count; i++)
        if (shell->output_entries[i] & entry)
            span[count++] = (Span){.info = &program->output[i], .data = outputs[i]};
    for (int i = 0; i < count; i++) {
        RaftStatus status = check_span(shell, &span[i], batch);
        if (status != RAFT_OK) return status;
        for (int j = 0; j < i && i >= program->input_count; j++)
            if (overlap(&span[i], &span[j]))
                return fail(shell, RAFT_INVALID, "the data of '%.120s' overlaps that of '%.120s'",
                            span[i].info->name, span[j].info->name);
    }
    return RAFT_OK;
}

RaftStatus raft_shell_run(RaftShell *shell, unsigned entry, int64_t batch,
                          const float *const *inputs, float *const *outputs)
{
    if (!shell) return RAFT_INVALID;
    const RaftProgram *program = shell->program;
    if (batch < 1)
        return fail(shell, RAFT_INVALID, "batch is %lld, not at least 1", (long long)batch);
    if (!inputs || !outputs)
        return fail(shell, RAFT_INVALID, "%s is NULL", inputs ? "outputs" : "inputs");
    RaftStatus status = check_data(shell, entry, batch, inputs, outputs);
    if (status == RAFT_OK) status = check_parameters_set(shell);
    if (status == RAFT_OK) status = reserve_arena(shell, least(batch, program->chunk));
    if (status != RAFT_OK) return status;
    prepare(shell);
    Run run = {.shell = shell, .entry = entry, .batch = batch, .input = inputs, .output = outputs};
    run.step = program->step;
    run.step_count = program->step_count;
    run.seconds = shell->seconds;
    run_steps(run);
    return RAFT_OK;
}

void raft_shell_measure(RaftShell *shell, double *seconds)
{
    shell->seconds = seconds;
}

static RaftStatus run_entry(RaftShell *shell, unsigned entry, int64_t batch, const float *nchw,
                            float *const *maps)
{
    int count = 0;
    for (int i = 0; i < shell->program->output_count; i++)
        shell->output[i] = shell->output_entries[i] & entry ? maps[count++] : NULL;
    return raft_shell_run(shell, entry, batch, &nchw, shell->output);
}

RaftStatus raft_shell_forward(RaftShell *shell, int64_t batch, const float *nchw, float *logits)
{
    if (!shell) return RAFT_INVALID;
    return run_entry(shell, shell->program->forward_entry, batch, nchw, &logits);
}

RaftStatus raft_shell_features(RaftShell *shell, int64_t batch, const float *nchw,
                               float *const *maps)
{
    if (!shell) return RAFT_INVALID;
    if (!shell->program->features_entry)
        return fail(shell, RAFT_UNSUPPORTED, "the model has no feature maps");
    if (!maps) return fail(shell, RAFT_INVALID, "maps is NULL");
    return run_entry(shell, shell->program->features_entry, batch, nchw, maps);
}
