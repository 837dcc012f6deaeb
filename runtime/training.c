/* training.c: an instance of a model that can be trained; training.h says what it does.
 *
 * The state of the optimiser is what its program both reads and writes under one name: w, m, v. A step
 * goes over the blocks slice by slice; what a slice becomes is made beside it, then takes its place. */
#include "runtime/training.h"
#include "runtime/device.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum {
    RAFT_SUM_CHUNK = 1 << 14, /* floats that are added up in one row */
    RAFT_MOST_STATES = 4,
    RAFT_SLICE = 1 << 18 /* floats that a step takes at a time */
};

typedef struct RaftBlock {
    float *data;
    int64_t room; /* of so many floats */
} RaftBlock;

struct RaftTraining {
    RaftShell *model, *step;
    const RaftProgram *program, *step_program;
    RaftOptimiser rule;
    int64_t floats;              /* in a block: whole rows of the step's program */
    int64_t row, rows;           /* floats in a row; rows in a block */
    char *given;                 /* of each parameter: not 0: it was set, or asked for */
    char *blob;                  /* a header, then the weights */
    float *w, *gradients, *part; /* part: gradients that are to be added; NULL: not needed yet */
    float *decays;               /* where weights decay; NULL: everywhere */
    float *state[RAFT_MOST_STATES];
    float *next[RAFT_MOST_STATES]; /* what a slice of it becomes */
    float **output;                /* of the model */
    const float **input;
    RaftBlock weight; /* of each image, in a mean */
    RaftBlock zeros;  /* for gradients that are not given */
    RaftBlock unread; /* for losses that nobody wants */
    int64_t kept;     /* images of which the arena has what rest_entry needs; 0: it has not */
    const float *kept_images;
    int zero; /* the gradients are 0, and need not be added to */
    int64_t steps;
    int threads;       /* for what is no kernel */
    RaftShell *failed; /* in which the last error is */
};

/* ---- the optimiser ---------------------------------------------------------------------------- */

RAFT_SHELL_LINKAGE int raft_optimiser_numbers(const RaftOptimiser *o, int64_t step, double lr,
                                              double norm, RaftOptimiserNumber *numbers)
{
    const double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
    int sgd = o->kind == RAFT_SGD, exempts = o->exempts != 0;
    double clip = o->most_norm / (norm + 1e-6); /* as PyTorch clips */
    const struct {
        int used;
        RaftOptimiserNumber number;
    } all[] = {
        {o->most_norm > 0, {"clip", clip > 1 ? 1 : clip}},
        {sgd, {"decay", o->weight_decay}},
        {!sgd && exempts, {"decay", -lr * o->weight_decay}},
        {!sgd && exempts, {"one", 1}},
        {!sgd && !exempts, {"keep", 1 - lr * o->weight_decay}},
        {sgd, {"momentum", o->momentum}},
        {sgd, {"rate", -lr}},
        {!sgd, {"beta1", beta1}},
        {!sgd, {"rest1", 1 - beta1}},
        {!sgd, {"beta2", beta2}},
        {!sgd, {"rest2", 1 - beta2}},
        {!sgd, {"eps", eps}},
        {!sgd, {"rate", -lr / (1 - pow(beta1, (double)step))}},
        {!sgd, {"correction", 1 / sqrt(1 - pow(beta2, (double)step))}},
        {o->average > 0, {"average", o->average}},
        {o->average > 0, {"rest", 1 - o->average}},
    };
    int count = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].used) numbers[count++] = all[i].number;
    return count;
}

static double square_sum(const float *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

/* Sums of chunks, added in their order. */
RAFT_SHELL_LINKAGE double raft_norm(const float *x, int64_t count, int threads)
{
    enum { AT_ONCE = 64 };
    double sums[AT_ONCE], sum = 0;
    for (int64_t first = 0; first < count; first += (int64_t)AT_ONCE * RAFT_SUM_CHUNK) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (int i = 0; i < AT_ONCE; i++) {
            int64_t at = first + (int64_t)i * RAFT_SUM_CHUNK;
            sums[i] = at < count ? square_sum(x + at, raft_least(count - at, RAFT_SUM_CHUNK)) : 0;
        }
        for (int i = 0; i < AT_ONCE; i++) sum += sums[i];
    }
    return sqrt(sum);
}

/* ---- create, destroy -------------------------------------------------------------------------- */

static RaftStatus fail_training(RaftTraining *t, RaftShell *shell, RaftStatus status)
{
    t->failed = shell;
    return status;
}

static RaftStatus no_memory(RaftTraining *t)
{
    return fail_training(
        t, t->model,
        raft_shell_fail(t->model, RAFT_NO_MEMORY, "out of memory: the blocks of training"));
}

static float *zeros(int64_t floats)
{
    float *block = raft_allocate((size_t)floats * sizeof *block);
    if (block) memset(block, 0, (size_t)floats * sizeof *block);
    return block;
}

static int find_tensor(const RaftTensorInfo *list, int count, const char *prefix, const char *name)
{
    size_t length = strlen(prefix);
    for (int i = 0; i < count; i++)
        if (strncmp(list[i].name, prefix, length) == 0 && !strcmp(list[i].name + length, name))
            return i;
    return -1;
}

/* Where a parameter is in a block; -1: there is none. */
static int64_t find_offset(const RaftTraining *t, const char *name)
{
    size_t offset = 0;
    for (int i = 0; i < t->program->parameter_count; i++) {
        if (strcmp(t->program->parameter[i].name, name) == 0) return (int64_t)(offset / 4);
        offset += raft_weights_stride(&t->program->parameter[i]);
    }
    return -1;
}

/* Those of rank 2 decay. */
static void set_decays(RaftTraining *t)
{
    for (int i = 0; i < t->program->parameter_count; i++) {
        const RaftTensorInfo *info = &t->program->parameter[i];
        float *decays = t->decays + find_offset(t, info->name);
        for (int64_t k = 0; info->rank == 2 && k < info->elements; k++) decays[k] = 1;
    }
}

static int take_states(RaftTraining *t)
{
    const RaftProgram *step = t->step_program;
    int good = step->output_count <= RAFT_MOST_STATES;
    for (int i = 0; i < step->output_count && good; i++) {
        int is_weights = strcmp(step->output[i].name, "w") == 0;
        t->state[i] = is_weights ? t->w : zeros(t->floats);
        t->next[i] = zeros(raft_least(t->floats, RAFT_SLICE));
        good = t->state[i] && t->next[i];
    }
    return good;
}

static RaftStatus take_blocks(RaftTraining *t, const RaftShellOptions *options)
{
    const RaftProgram *program = t->program;
    RaftWeightsHeader header = raft_weights_header(program);
    t->row = t->step_program->input[0].elements;
    t->rows = ((int64_t)((header.size - sizeof header) / sizeof(float)) + t->row - 1) / t->row;
    t->floats = t->rows * t->row;
    t->blob = (char *)zeros(t->floats + (int64_t)(sizeof header / sizeof(float)));
    t->gradients = zeros(t->floats);
    t->decays = t->rule.exempts ? zeros(t->floats) : NULL;
    t->input = calloc((size_t)program->input_count + 1, sizeof *t->input);
    t->output = calloc((size_t)program->output_count + 1, sizeof *t->output);
    t->given = calloc((size_t)program->parameter_count + 1, 1);
    if (!t->given || !t->blob || !t->gradients || !t->input || !t->output) return no_memory(t);
    memcpy(t->blob, &header, sizeof header);
    t->w = (float *)(t->blob + sizeof header);
    if ((t->rule.exempts && !t->decays) || !take_states(t)) return no_memory(t);
    if (t->decays) set_decays(t);
    const void *weights = options && options->weights ? options->weights : program->weights;
    if (weights) { /* which the shell has checked */
        memcpy(t->blob, weights, header.size);
        memset(t->given, 1, (size_t)program->parameter_count);
    }
    t->zero = 1;
    return RAFT_OK;
}

static void give_message(char *message, size_t size, const char *reason)
{
    if (!message || !size) return;
    size_t length = strnlen(reason, size - 1);
    memcpy(message, reason, length);
    message[length] = '\0';
}

RAFT_SHELL_LINKAGE RaftStatus raft_training_create(
    const RaftProgram *model, const RaftProgram *step, const RaftOptimiser *rule,
    const RaftShellOptions *options, RaftTraining **out, char *message, size_t message_size)
{
    RaftTraining *t = calloc(1, sizeof *t);
    if (out) *out = NULL;
    if (!t) {
        give_message(message, message_size, "out of memory");
        return RAFT_NO_MEMORY;
    }
    *t = (RaftTraining){.program = model, .step_program = step, .rule = *rule};
    RaftStatus status =
        raft_shell_create(model, options, out ? &t->model : NULL, message, message_size);
    if (status == RAFT_OK) {
        const int threads = options ? options->threads : 0;
        const RaftShellOptions same = {.size = sizeof same, .threads = threads};
        t->threads = threads ? threads : omp_get_max_threads();
        status = raft_shell_create(step, &same, &t->step, message, message_size);
    }
    if (status == RAFT_OK) {
        status = take_blocks(t, options);
        if (status != RAFT_OK) give_message(message, message_size, raft_shell_error(t->failed));
    }
    if (status == RAFT_OK)
        *out = t;
    else
        raft_training_destroy(t);
    return status;
}

RAFT_SHELL_LINKAGE void raft_training_destroy(RaftTraining *t)
{
    if (!t) return;
    for (int i = 0; i < RAFT_MOST_STATES; i++) {
        if (t->state[i] != t->w) free(t->state[i]);
        free(t->next[i]);
    }
    raft_shell_destroy(t->model);
    raft_shell_destroy(t->step);
    free(t->given);
    free(t->blob);
    free(t->gradients);
    free(t->part);
    free(t->decays);
    free(t->input);
    free(t->output);
    free(t->weight.data);
    free(t->zeros.data);
    free(t->unread.data);
    free(t);
}

/* ---- parameters ------------------------------------------------------------------------------- */

RAFT_SHELL_LINKAGE RaftStatus raft_training_set_parameter(RaftTraining *t, const char *name,
                                                          const int64_t *shape, int rank,
                                                          const float *data)
{
    if (!t) return RAFT_INVALID;
    t->kept = 0;
    RaftStatus status = raft_shell_set_parameter(t->model, name, shape, rank, data);
    if (status != RAFT_OK) return fail_training(t, t->model, status);
    int index = find_tensor(t->program->parameter, t->program->parameter_count, "", name);
    t->given[index] = 1;
    memcpy(t->w + find_offset(t, name), data,
           (size_t)t->program->parameter[index].elements * sizeof *data);
    return RAFT_OK;
}

RAFT_SHELL_LINKAGE float *raft_training_parameter(RaftTraining *t, const char *name)
{
    int64_t offset = t && name ? find_offset(t, name) : -1;
    if (offset < 0) return NULL;
    t->given[find_tensor(t->program->parameter, t->program->parameter_count, "", name)] = 1;
    return t->w + offset;
}

RAFT_SHELL_LINKAGE float *raft_training_gradient(RaftTraining *t, const char *name)
{
    int64_t offset = t && name ? find_offset(t, name) : -1;
    return offset < 0 ? NULL : t->gradients + offset;
}

/* ---- the model -------------------------------------------------------------------------------- */

static RaftStatus check_given(RaftTraining *t)
{
    int missing = 0, first = -1, count = t->program->parameter_count;
    for (int i = count; i-- > 0;) {
        if (t->given[i]) continue;
        first = i;
        missing++;
    }
    if (!missing) return RAFT_OK;
    return raft_shell_fail(t->model, RAFT_NOT_READY,
                           "%d of %d parameters are not set; the first is '%.120s'", missing, count,
                           t->program->parameter[first].name);
}

/* Runs an entry with the weights as they are now, and with the inputs and outputs that are set. */
static RaftStatus run_model(RaftTraining *t, unsigned entry, int64_t batch)
{
    RaftStatus status = check_given(t);
    t->kept = 0;
    if (status == RAFT_OK)
        status = raft_shell_use_weights(t->model, t->blob, raft_weights_header(t->program).size);
    if (status == RAFT_OK) status = raft_shell_run(t->model, entry, batch, t->input, t->output);
    return status == RAFT_OK ? status : fail_training(t, t->model, status);
}

static void set_input(RaftTraining *t, const char *name, const float *data)
{
    int index = find_tensor(t->program->input, t->program->input_count, "", name);
    if (index >= 0) t->input[index] = data;
}

static void set_output(RaftTraining *t, const char *prefix, const char *name, float *data)
{
    int index = find_tensor(t->program->output, t->program->output_count, prefix, name);
    if (index >= 0) t->output[index] = data;
}

RAFT_SHELL_LINKAGE RaftStatus raft_training_forward(RaftTraining *t, int64_t batch,
                                                    const float *nchw, float *logits)
{
    if (!t) return RAFT_INVALID;
    set_input(t, "input", nchw);
    set_output(t, "", "logits", logits);
    return run_model(t, t->program->forward_entry, batch);
}

static RaftStatus set_maps(RaftTraining *t, float *const *maps)
{
    if (!t->program->features_entry)
        return fail_training(
            t, t->model,
            raft_shell_fail(t->model, RAFT_UNSUPPORTED, "the model has no feature maps"));
    for (int i = 0, map = 0; i < t->program->output_count; i++)
        if (strncmp(t->program->output[i].name, "feature", 7) == 0) t->output[i] = maps[map++];
    return RAFT_OK;
}

RAFT_SHELL_LINKAGE RaftStatus raft_training_features(RaftTraining *t, int64_t batch,
                                                     const float *nchw, float *const *maps)
{
    if (!t) return RAFT_INVALID;
    if (!maps)
        return fail_training(t, t->model, raft_shell_fail(t->model, RAFT_INVALID, "maps is NULL"));
    RaftStatus status = set_maps(t, maps);
    if (status != RAFT_OK) return status;
    set_input(t, "input", nchw);
    return run_model(t, t->program->features_entry, batch);
}

/* ---- gradients -------------------------------------------------------------------------------- */

/* At least so many floats for each image, 0 at first. */
static RaftStatus reserve(RaftTraining *t, RaftBlock *block, int64_t batch, int64_t floats)
{
    size_t bytes;
    if (raft_float_bytes(floats, batch, &bytes) && block->room >= batch * floats) return RAFT_OK;
    free(block->data);
    *block = (RaftBlock){0};
    if (raft_float_bytes(floats, batch, &bytes)) block->data = zeros(batch * floats);
    if (!block->data) return no_memory(t);
    block->room = batch * floats;
    return RAFT_OK;
}

/* What the caller says of the gradients of logits and maps; 0 where he says nothing. */
static RaftStatus set_given(RaftTraining *t, int64_t batch, const float *logits,
                            const float *const *maps)
{
    static const char prefix[] = "grad.";
    int64_t most = 1;
    for (int i = 0; i < t->program->input_count; i++)
        if (strcmp(t->program->input[i].name, "input") != 0 && t->program->input[i].elements > most)
            most = t->program->input[i].elements;
    RaftStatus status = reserve(t, &t->zeros, batch, most);
    for (int i = 0, map = 0; i < t->program->input_count && status == RAFT_OK; i++) {
        const char *name = t->program->input[i].name;
        if (strncmp(name, prefix, strlen(prefix)) != 0) continue;
        int is_logits = strcmp(name + strlen(prefix), "logits") == 0;
        const float *given = is_logits ? logits : maps ? maps[map] : NULL;
        t->input[i] = given ? given : t->zeros.data;
        map += !is_logits;
    }
    return status;
}

/* Where a run is to write gradients: beside what it adds to, if that is not 0. */
static RaftStatus set_gradients(RaftTraining *t, float *const *gradients)
{
    int adds = !gradients && !t->zero;
    if (adds && !t->part) t->part = zeros(t->floats);
    if (adds && !t->part) return no_memory(t);
    float *block = t->zero ? t->gradients : t->part;
    for (int i = 0; i < t->program->parameter_count; i++) {
        const char *name = t->program->parameter[i].name;
        set_output(t, "grad.", name, gradients ? gradients[i] : block + find_offset(t, name));
    }
    return RAFT_OK;
}

static void add_gradients(RaftTraining *t)
{
    float *gradients = t->gradients, *part = t->part;
    int64_t floats = t->zero ? 0 : t->floats;
#pragma omp parallel for schedule(static) if (floats > 0) num_threads(t->threads)
    for (int64_t i = 0; i < floats; i++) gradients[i] += part[i];
    t->zero = 0;
}

/* The weights of a mean. */
static RaftStatus set_mean(RaftTraining *t, int64_t batch)
{
    RaftStatus status = reserve(t, &t->weight, batch, 1);
    for (int64_t i = 0; i < batch && status == RAFT_OK; i++)
        t->weight.data[i] = (float)(1.0 / (double)batch);
    return status;
}

RAFT_SHELL_LINKAGE RaftStatus raft_training_backward(RaftTraining *t, int64_t batch,
                                                     const float *nchw, const float *target,
                                                     const float *weight, float *loss)
{
    if (!t) return RAFT_INVALID;
    const int64_t images = batch < 1 ? 1 : batch; /* or refused */
    RaftStatus status = weight ? RAFT_OK : set_mean(t, images);
    if (status == RAFT_OK) status = set_given(t, images, NULL, NULL);
    if (status == RAFT_OK) status = set_gradients(t, NULL);
    if (status != RAFT_OK) return status;
    set_input(t, "input", nchw);
    set_input(t, "target", target);
    set_input(t, "weight", weight ? weight : t->weight.data);
    set_output(t, "", "loss", loss);
    status = run_model(t, t->program->backward_entry, batch);
    if (status == RAFT_OK) add_gradients(t);
    return status;
}

RAFT_SHELL_LINKAGE RaftStatus raft_training_forward_keep(RaftTraining *t, int64_t batch,
                                                         const float *nchw, float *logits,
                                                         float *const *maps)
{
    if (!t) return RAFT_INVALID;
    unsigned entry = t->program->keep_entry;
    RaftStatus status = maps ? set_maps(t, maps) : RAFT_OK;
    if (status != RAFT_OK) return status;
    if (logits) entry |= t->program->forward_entry;
    if (maps) entry |= t->program->features_entry;
    set_input(t, "input", nchw);
    set_output(t, "", "logits", logits);
    status = run_model(t, entry, batch);
    if (status != RAFT_OK) return status;
    t->kept = batch;
    t->kept_images = nchw;
    return RAFT_OK;
}

RAFT_SHELL_LINKAGE RaftStatus raft_training_backward_from(RaftTraining *t, const float *logits,
                                                          const float *const *maps,
                                                          float *const *gradients)
{
    if (!t) return RAFT_INVALID;
    const int64_t batch = t->kept;
    if (!batch)
        return fail_training(t, t->model,
                             raft_shell_fail(t->model, RAFT_NOT_READY,
                                             "nothing is kept: forward_keep comes before"));
    RaftStatus status = reserve(t, &t->unread, batch, 1);
    if (status == RAFT_OK) status = set_given(t, batch, logits, maps);
    if (status == RAFT_OK) status = set_gradients(t, gradients);
    if (status != RAFT_OK) return status;
    set_input(t, "input", t->kept_images);
    set_input(t, "target", t->zeros.data); /* with these no gradient comes of the loss */
    set_input(t, "weight", t->zeros.data);
    set_output(t, "", "loss", t->unread.data);
    status = raft_shell_run(t->model, t->program->rest_entry, batch, t->input, t->output);
    if (status != RAFT_OK) return fail_training(t, t->model, status);
    t->kept = 0;
    if (!gradients) add_gradients(t);
    return RAFT_OK;
}

RAFT_SHELL_LINKAGE RaftStatus raft_training_zero(RaftTraining *t)
{
    if (!t) return RAFT_INVALID;
    memset(t->gradients, 0, (size_t)t->floats * sizeof *t->gradients);
    t->zero = 1;
    return RAFT_OK;
}

/* ---- the step --------------------------------------------------------------------------------- */

static RaftStatus set_numbers(RaftTraining *t, double learning_rate)
{
    RaftOptimiserNumber numbers[RAFT_OPTIMISER_NUMBERS];
    const int64_t no_shape = 0;
    double norm = t->rule.most_norm > 0 ? raft_norm(t->gradients, t->floats, t->threads) : 0;
    int count = raft_optimiser_numbers(&t->rule, t->steps + 1, learning_rate, norm, numbers);
    RaftStatus status = RAFT_OK;
    for (int i = 0; i < count && status == RAFT_OK; i++) {
        float value = (float)numbers[i].value;
        status = raft_shell_set_parameter(t->step, numbers[i].name, &no_shape, 0, &value);
    }
    return status;
}

/* `rows` rows of the blocks from the `first` on. */
static RaftStatus step_slice(RaftTraining *t, int64_t first, int64_t rows)
{
    const RaftProgram *program = t->step_program;
    const float *input[RAFT_MOST_STATES + 2];
    const int64_t at = first * t->row;
    for (int i = 0; i < program->input_count; i++) {
        const char *name = program->input[i].name;
        int state = find_tensor(program->output, program->output_count, "", name);
        const float *block = state >= 0               ? t->state[state]
                             : strcmp(name, "g") == 0 ? t->gradients
                                                      : t->decays;
        input[i] = block + at;
    }
    RaftStatus status = raft_shell_run(t->step, program->step_entry, rows, input, t->next);
    for (int i = 0; i < program->output_count && status == RAFT_OK; i++)
        memcpy(t->state[i] + at, t->next[i], (size_t)(rows * t->row) * sizeof(float));
    return status;
}

RAFT_SHELL_LINKAGE RaftStatus raft_training_step(RaftTraining *t, double learning_rate)
{
    if (!t) return RAFT_INVALID;
    RaftStatus status = set_numbers(t, learning_rate);
    const int64_t most = RAFT_SLICE / t->row;
    for (int64_t row = 0; row < t->rows && status == RAFT_OK; row += most)
        status = step_slice(t, row, raft_least(most, t->rows - row));
    if (status != RAFT_OK) return fail_training(t, t->step, status);
    t->steps++;
    return RAFT_OK;
}

RAFT_SHELL_LINKAGE const char *raft_training_error(const RaftTraining *t)
{
    if (!t) return "the instance is NULL";
    return t->failed ? raft_shell_error(t->failed) : "";
}
