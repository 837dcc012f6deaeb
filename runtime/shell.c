/* shell.c: an instance of a compiled model; shell.h says what it does and where it is used.
 *
 * Here is what does not depend on the machine that runs the steps: parameters, checks, messages.
 * The rest is in cpu.c or cuda.c, whichever the program names as its device (device.h).
 *
 * A parameter is packed when it is set, and then forgotten; a copy is kept of one that is packed
 * together with others, or used as it is.
 */
#include "runtime/device.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- messages -------------------------------------------------------------------------------- */

RaftStatus raft_shell_fail(RaftShell *shell, RaftStatus status, const char *format, ...)
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
        return raft_shell_fail(shell, RAFT_INVALID, "the model has no parameter '%.120s'", name);
    return raft_shell_fail(shell, RAFT_INVALID,
                           "the model has no parameter '%.120s'; the nearest is '%.120s'", name,
                           program->parameter[nearest].name);
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

/* Large blocks ask for huge pages, since a forward walks through all of them. */
void *raft_allocate(size_t bytes)
{
    const size_t huge = (size_t)2 << 20;
    size_t alignment = bytes < 2 * huge ? RAFT_ALIGNMENT : huge;
    if (bytes > (size_t)PTRDIFF_MAX - alignment) return NULL;
    size_t rounded = raft_round_up(bytes ? bytes : 1, alignment);
    void *block = aligned_alloc(alignment, rounded);
    if (block && alignment == huge) madvise(block, rounded, MADV_HUGEPAGE); /* only a hint */
    return block;
}

static void *allocate_array(int count, size_t size)
{
    return calloc(count > 0 ? (size_t)count : 1, size);
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
    return raft_round_up((size_t)parameter->elements * sizeof(float), RAFT_ALIGNMENT);
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

RaftStatus raft_shell_use_weights(RaftShell *shell, const void *weights, size_t size)
{
    if (!shell) return RAFT_INVALID;
    if (!weights) return raft_shell_fail(shell, RAFT_INVALID, "weights is NULL");
    RaftWeightsHeader wanted = raft_weights_header(shell->program), found;
    if ((uintptr_t)weights % RAFT_ALIGNMENT)
        return raft_shell_fail(shell, RAFT_INVALID,
                               "weights: not aligned to 64 bytes, as mmap would");
    memcpy(&found, weights, size < sizeof found ? size : sizeof found);
    if (size < sizeof found || memcmp(found.magic, wanted.magic, sizeof found.magic) != 0)
        return raft_shell_fail(shell, RAFT_BAD_FILE,
                               "weights: not a weights file that raftc wrote");
    if (found.version != wanted.version)
        return raft_shell_fail(shell, RAFT_BAD_FILE,
                               "weights: version %u, this library reads version %u", found.version,
                               wanted.version);
    if (found.hash != wanted.hash || found.parameters != wanted.parameters)
        return raft_shell_fail(shell, RAFT_BAD_FILE,
                               "weights: of another model, or of one with other settings");
    if (size != wanted.size || memcmp(&found, &wanted, sizeof found) != 0)
        return raft_shell_fail(shell, RAFT_BAD_FILE, "weights: cut or damaged: %zu bytes, not %llu",
                               size, (unsigned long long)wanted.size);
    shell->weights = weights;
    shell->weights_size = size;
    const char *data = shell->weights + sizeof found;
    for (int i = 0; i < shell->program->parameter_count; i++) {
        if (shell->parameter[i].owned) free(shell->parameter[i].data);
        shell->parameter[i] = (RaftParameter){.data = (float *)data}; /* kernels only read it */
        data += raft_weights_stride(&shell->program->parameter[i]);
    }
    shell->packed = false;
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
        return raft_shell_fail(shell, RAFT_INVALID,
                               "options: size is %zu, not the size of the options, %zu", size,
                               known);
    for (size_t i = known; i < size; i++)
        if (bytes[i])
            return raft_shell_fail(shell, RAFT_UNSUPPORTED,
                                   "options: a field is set that this version lacks");
    memcpy(options, given, known);
    if (!options->weights != !options->weights_size)
        return raft_shell_fail(shell, RAFT_INVALID,
                               "options: one of weights and weights_size is not set");
    return RAFT_OK;
}

/* Finds which inputs and outputs belong to which entry. */
static void scan_steps(RaftShell *shell)
{
    const RaftProgram *program = shell->program;
    for (int s = 0; s < program->step_count; s++) {
        const RaftStep *step = &program->step[s];
        for (int i = 0; i < step->argument_count; i++) {
            const RaftBuffer *buffer = &program->buffer[step->argument[i]];
            if (buffer->kind == RAFT_BUFFER_OUTPUT)
                shell->output_entries[buffer->offset] |= step->entries;
            if (buffer->kind == RAFT_BUFFER_INPUT)
                shell->input_entries[buffer->offset] |= step->entries;
        }
    }
}

static RaftStatus take_memory(RaftShell *shell)
{
    const RaftProgram *program = shell->program;
    int tensors = program->input_count + program->output_count;
    shell->parameter = allocate_array(program->parameter_count, sizeof *shell->parameter);
    shell->input_entries = allocate_array(program->input_count, sizeof *shell->input_entries);
    shell->output_entries = allocate_array(program->output_count, sizeof *shell->output_entries);
    shell->output = allocate_array(program->output_count, sizeof *shell->output);
    shell->span = allocate_array(tensors, sizeof *shell->span);
    if (!shell->parameter || !shell->input_entries || !shell->output_entries || !shell->output ||
        !shell->span)
        return raft_shell_fail(shell, RAFT_NO_MEMORY, "out of memory");
    scan_steps(shell);
    return RAFT_OK;
}

static RaftStatus set_up(RaftShell *shell, const RaftProgram *program,
                         const RaftShellOptions *given)
{
    RaftShellOptions options = {.size = sizeof options};
    RaftStatus status = read_options(shell, given, &options);
    if (status != RAFT_OK) return status;
    shell->program = program;
    status = take_memory(shell);
    if (status == RAFT_OK) status = program->device->open(shell, &options);
    if (status == RAFT_OK && options.weights)
        status = raft_shell_use_weights(shell, options.weights, options.weights_size);
    else if (status == RAFT_OK && program->weights)
        status = raft_shell_use_weights(shell, program->weights, program->weights_size);
    return status;
}

RaftStatus raft_shell_create(const RaftProgram *program, const RaftShellOptions *options,
                             RaftShell **out, char *message, size_t message_size)
{
    RaftShell *shell = calloc(1, sizeof *shell);
    RaftStatus status = RAFT_NO_MEMORY;
    if (out) *out = NULL;
    if (shell)
        status = out ? set_up(shell, program, options)
                     : raft_shell_fail(shell, RAFT_INVALID, "out is NULL");
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
    if (shell->device) shell->program->device->close(shell);
    for (int i = 0; shell->parameter && i < shell->program->parameter_count; i++)
        if (shell->parameter[i].owned) free(shell->parameter[i].data);
    free(shell->parameter);
    free(shell->input_entries);
    free(shell->output_entries);
    free(shell->output);
    free(shell->span);
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
    return raft_shell_fail(shell, RAFT_INVALID,
                           "parameter '%.120s' has the shape [%s], not [%s] of rank %d", info->name,
                           wanted, given, rank);
}

RaftStatus raft_shell_set_parameter(RaftShell *shell, const char *name, const int64_t *shape,
                                    int rank, const float *data)
{
    if (!shell) return RAFT_INVALID;
    if (!name || !shape || !data)
        return raft_shell_fail(shell, RAFT_INVALID, "%s is NULL",
                               !name    ? "name"
                               : !shape ? "shape"
                                        : "data");
    if ((uintptr_t)data % sizeof *data)
        return raft_shell_fail(shell, RAFT_INVALID, "data is not aligned as floats are");
    const RaftProgram *program = shell->program;
    int index = 0;
    while (index < program->parameter_count && strcmp(program->parameter[index].name, name) != 0)
        index++;
    if (index == program->parameter_count) return unknown_parameter(shell, name);
    const RaftTensorInfo *info = &program->parameter[index];
    if (!same_shape(info, shape, rank)) return wrong_shape(shell, info, shape, rank);

    RaftParameter *parameter = &shell->parameter[index];
    if (program->device->pack && program->device->pack(shell, index, data)) {
        *parameter = (RaftParameter){.packed = true};
        return RAFT_OK;
    }
    size_t bytes = (size_t)info->elements * sizeof *data;
    float *copy = parameter->owned ? parameter->data : raft_allocate(bytes);
    if (!copy)
        return raft_shell_fail(shell, RAFT_NO_MEMORY,
                               "out of memory: %zu bytes for parameter '%.120s'", bytes, name);
    RaftStatus status = program->device->read(shell, copy, data, bytes);
    if (status != RAFT_OK) {
        if (!parameter->owned) free(copy);
        return status;
    }
    *parameter = (RaftParameter){.data = copy, .owned = true};
    shell->packed = false;
    return RAFT_OK;
}

static RaftStatus check_parameters_set(RaftShell *shell)
{
    int missing = 0, first = -1, count = shell->program->parameter_count;
    for (int i = 0; i < count; i++) {
        if (shell->parameter[i].data || shell->parameter[i].packed) continue;
        if (first < 0) first = i;
        missing++;
    }
    if (!missing) return RAFT_OK;
    return raft_shell_fail(shell, RAFT_NOT_READY,
                           "%d of %d parameters are not set; the first is '%.120s'", missing, count,
                           shell->program->parameter[first].name);
}

/* ---- running --------------------------------------------------------------------------------- */

static RaftStatus check_span(RaftShell *shell, RaftSpan *span, int64_t batch)
{
    const char *name = span->info->name;
    if (!raft_float_bytes(span->info->elements, batch, &span->bytes))
        return raft_shell_fail(shell, RAFT_INVALID, "batch is %lld, too large for '%.120s'",
                               (long long)batch, name);
    if (!span->data)
        return raft_shell_fail(shell, RAFT_INVALID, "the data of '%.120s' is NULL", name);
    if ((uintptr_t)span->data % sizeof(float))
        return raft_shell_fail(shell, RAFT_INVALID,
                               "the data of '%.120s' is not aligned as floats are", name);
    return RAFT_OK;
}

static bool overlap(const RaftSpan *a, const RaftSpan *b)
{
    uintptr_t a_begin = (uintptr_t)a->data, b_begin = (uintptr_t)b->data;
    return a_begin < b_begin + b->bytes && b_begin < a_begin + a->bytes;
}

static RaftStatus check_data(RaftShell *shell, unsigned entry, int64_t batch,
                             const float *const *inputs, float *const *outputs)
{
    const RaftProgram *program = shell->program;
    RaftSpan *span = shell->span;
    RaftStatus status = RAFT_OK;
    int count = 0;
    for (int i = 0; i < program->input_count && status == RAFT_OK; i++) {
        if (!(shell->input_entries[i] & entry)) continue;
        span[count] = (RaftSpan){.info = &program->input[i], .data = inputs[i]};
        status = check_span(shell, &span[count++], batch);
    }
    for (int i = 0; i < program->output_count && status == RAFT_OK; i++) {
        if (!(shell->output_entries[i] & entry)) continue;
        bool fixed = program->fixed && program->fixed[i];
        span[count] = (RaftSpan){.info = &program->output[i], .data = outputs[i]};
        status = check_span(shell, &span[count], fixed ? 1 : batch);
        for (int j = 0; j < count && status == RAFT_OK; j++)
            if (overlap(&span[count], &span[j]))
                status = raft_shell_fail(shell, RAFT_INVALID,
                                         "the data of '%.120s' overlaps that of '%.120s'",
                                         span[count].info->name, span[j].info->name);
        count++;
    }
    return status;
}

RaftStatus raft_shell_run(RaftShell *shell, unsigned entry, int64_t batch,
                          const float *const *inputs, float *const *outputs)
{
    if (!shell) return RAFT_INVALID;
    const RaftProgram *program = shell->program;
    if (batch < 1)
        return raft_shell_fail(shell, RAFT_INVALID, "batch is %lld, not at least 1",
                               (long long)batch);
    if (!inputs || !outputs)
        return raft_shell_fail(shell, RAFT_INVALID, "%s is NULL", inputs ? "outputs" : "inputs");
    bool goes_on = entry & (program->keep_entry | program->rest_entry);
    const int64_t most = goes_on ? RAFT_MOST_AT_ONCE : program->whole ? program->chunk : INT64_MAX;
    if (batch > most)
        return raft_shell_fail(shell, RAFT_INVALID, "batch is %lld, more than %lld at a time",
                               (long long)batch, (long long)most);
    RaftStatus status = check_data(shell, entry, batch, inputs, outputs);
    if (status == RAFT_OK) status = check_parameters_set(shell);
    if (status != RAFT_OK) return status;
    return program->device->run(shell, entry, batch, inputs, outputs);
}

void raft_shell_measure(RaftShell *shell, double *seconds, RaftMoments *moments)
{
    shell->seconds = seconds;
    shell->moments = moments;
}

void raft_shell_watch(RaftShell *shell, RaftWatch *watch, void *user)
{
    shell->watch = watch;
    shell->watch_user = user;
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
        return raft_shell_fail(shell, RAFT_UNSUPPORTED, "the model has no feature maps");
    if (!maps) return raft_shell_fail(shell, RAFT_INVALID, "maps is NULL");
    return run_entry(shell, shell->program->features_entry, batch, nchw, maps);
}
