/* raftc_train.c: raftc train: steps of AdamW on one made-up batch.
 *
 *   Machine   a compiled graph that can be run: the model with its backward pass, or the optimiser
 *   Trainer   both, and the blocks of floats that they share
 *
 * All parameters stand in one block, laid out as in a weights blob (runtime/shell.h), and so do their
 * gradients and the optimiser's moments: one kernel then goes over all of them at once. The optimiser
 * writes into a second set of blocks, and the two sets change places.
 */
#include "frontend/raftc.h"

#include <math.h>
#include <string.h>

enum { HEADER_FLOATS = sizeof(RaftWeightsHeader) / sizeof(float) };
static const double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;

typedef struct Machine {
    Session *session;
    Compilation compilation;
    const char *entry;
    unsigned entry_bit;
    RaftShell *shell;         /* NULL: the reference backend runs it */
    const float **input;      /* of each input of the graph, */
    float **output;           /* and of each output */
    ReferenceTensor *tensors; /* of the reference backend: inputs and parameters */
    int input_count, tensor_count;
} Machine;

typedef struct Trainer {
    Session *session;
    Machine model, optimiser;
    RaftTensorInfo *parameters;
    int parameter_count;
    int64_t *offset;    /* of each parameter, in floats from the start of a block */
    int64_t floats;     /* in a block; that of the weights has a header before it */
    float *blob[2];     /* weights with header: the present ones, and room for the next */
    float *m[2], *v[2]; /* likewise */
    float *gradients;
    float *image, *target, *weight, *loss;
    int64_t batch;
    RaftWeightsHeader header;
    Text metrics;
} Trainer;

/* ---- machines --------------------------------------------------------------------------------- */

static int find_input(const Machine *machine, const char *name)
{
    const Graph *graph = machine->compilation.graph;
    int index = 0;
    for (NodeId id = 0; id < graph->node_count; id++) {
        if (graph_node(graph, id)->op != OP_INPUT) continue;
        if (strcmp(graph_node(graph, id)->attributes.name, name) == 0) return index;
        index++;
    }
    return -1;
}

static int find_output(const Machine *machine, const char *name)
{
    const Graph *graph = machine->compilation.graph;
    for (uint32_t i = 0; i < graph->output_count; i++)
        if (strcmp(graph->outputs[i].entry, machine->entry) == 0 &&
            strcmp(graph->outputs[i].name, name) == 0)
            return (int)i;
    return -1;
}

static Exit open_code(Machine *machine)
{
    Session *session = machine->session;
    Compilation *c = &machine->compilation;
    const RaftProgram *program;
    Exit exit = compilation_plan(session, c);
    if (exit == EXIT_DONE) exit = compilation_generate(session, c);
    if (exit == EXIT_DONE) exit = compilation_load_code(session, c, &program);
    if (exit != EXIT_DONE) return exit;
    char message[256];
    const RaftShellOptions options = {.size = sizeof options, .threads = session->threads};
    RaftStatus status =
        raft_shell_create(program, &options, &machine->shell, message, sizeof message);
    if (status != RAFT_OK) return session_fail(session, EXIT_UNDONE, "%s", message);
    machine->entry_bit = program->backward_entry | program->step_entry;
    return EXIT_DONE;
}

/* From the built graph of machine->compilation to what can be run. */
static Exit machine_open(Machine *machine, Session *session, const char *entry)
{
    machine->session = session;
    machine->entry = entry;
    Exit exit = compilation_optimise(session, &machine->compilation);
    if (exit != EXIT_DONE) return exit;
    const Graph *graph = machine->compilation.graph;
    machine->input = arena_array(session->arena, graph->node_count, sizeof *machine->input);
    machine->output = arena_array(session->arena, graph->output_count, sizeof *machine->output);
    machine->tensors = arena_array(session->arena, graph->node_count, sizeof *machine->tensors);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op == OP_INPUT) machine->input_count++;
        if (node->op == OP_INPUT || node->op == OP_PARAM)
            machine->tensors[machine->tensor_count++].name = node->attributes.name;
    }
    return session->options->target == TARGET_REFERENCE ? EXIT_DONE : open_code(machine);
}

static void machine_close(Machine *machine)
{
    raft_shell_destroy(machine->shell);
    compilation_close(&machine->compilation);
}

static void set_tensor(Machine *machine, const char *name, const float *data)
{
    int input = find_input(machine, name);
    if (input >= 0) machine->input[input] = data;
    for (int i = 0; i < machine->tensor_count; i++)
        if (strcmp(machine->tensors[i].name, name) == 0) machine->tensors[i].data = data;
}

static Exit fail_shell(const Machine *machine)
{
    return session_fail(machine->session, EXIT_UNDONE, "%s", raft_shell_error(machine->shell));
}

static Exit machine_run(Machine *machine, int64_t batch)
{
    if (machine->shell)
        return raft_shell_run(machine->shell, machine->entry_bit, batch, machine->input,
                              machine->output) == RAFT_OK
                   ? EXIT_DONE
                   : fail_shell(machine);
    bool done = reference_run(machine->compilation.graph, batch, machine->tensors,
                              machine->tensor_count, machine->entry, false,
                              (void *const *)machine->output, machine->session->diag);
    return done ? EXIT_DONE : EXIT_UNDONE;
}

/* ---- blocks ----------------------------------------------------------------------------------- */

/* Zeros, aligned as a weights blob must be. */
static float *new_block(const Trainer *t, int64_t floats)
{
    char *room = arena_array(t->session->arena, (size_t)floats + HEADER_FLOATS, sizeof(float));
    return (float *)(room + (-(uintptr_t)room & (RAFT_ALIGNMENT - 1)));
}

static void lay_out(Trainer *t)
{
    Arena *arena = t->session->arena;
    const Graph *graph = t->model.compilation.graph;
    t->parameters = graph_parameters(graph, arena, &t->parameter_count);
    t->offset = arena_array(arena, (size_t)t->parameter_count, sizeof *t->offset);
    for (int i = 0; i < t->parameter_count; i++) {
        t->offset[i] = t->floats;
        t->floats += (int64_t)(raft_weights_stride(&t->parameters[i]) / sizeof(float));
    }
    const RaftProgram program = {.parameter_count = t->parameter_count, .parameter = t->parameters};
    t->header = raft_weights_header(&program);
}

static Exit fill_blocks(Trainer *t)
{
    const float **data;
    Exit exit = parameters_read(t->session, t->session->arena, t->session->options->weights,
                                t->parameters, t->parameter_count, &data);
    if (exit != EXIT_DONE) return exit;
    for (int k = 0; k < 2; k++) {
        t->blob[k] = new_block(t, t->floats + HEADER_FLOATS);
        memcpy(t->blob[k], &t->header, sizeof t->header);
        t->m[k] = new_block(t, t->floats);
        t->v[k] = new_block(t, t->floats);
    }
    t->gradients = new_block(t, t->floats);
    for (int i = 0; i < t->parameter_count; i++)
        memcpy(t->blob[0] + HEADER_FLOATS + t->offset[i], data[i],
               (size_t)t->parameters[i].elements * sizeof(float));
    return EXIT_DONE;
}

/* ---- the batch -------------------------------------------------------------------------------- */

static void fill_batch(Trainer *t)
{
    Arena *arena = t->session->arena;
    const Graph *graph = t->model.compilation.graph;
    const Settings *settings = t->model.compilation.settings;
    int64_t classes = settings->num_classes, pixels = 0;
    for (NodeId id = 0; id < graph->node_count; id++)
        if (graph_node(graph, id)->op == OP_INPUT &&
            strcmp(graph_node(graph, id)->attributes.name, "input") == 0)
            pixels = type_elements(graph_type(graph, id), NULL);
    t->image = arena_array(arena, (size_t)(t->batch * pixels), sizeof(float));
    t->target = arena_array(arena, (size_t)(t->batch * classes), sizeof(float));
    t->weight = arena_array(arena, (size_t)t->batch, sizeof(float));
    t->loss = arena_array(arena, (size_t)t->batch, sizeof(float));
    uint32_t *labels = arena_array(arena, (size_t)t->batch, sizeof *labels);
    raft_fill_input(t->batch * pixels, t->image);
    raft_fill_labels(t->batch, classes, labels);
    double alpha = settings->label_smoothing_alpha;
    for (int64_t i = 0; i < t->batch; i++) {
        t->weight[i] = (float)(1.0 / (double)t->batch);
        for (int64_t k = 0; k < classes; k++)
            t->target[i * classes + k] =
                (float)(alpha / (double)classes + (labels[i] == k) * (1 - alpha));
    }
    set_tensor(&t->model, "input", t->image);
    set_tensor(&t->model, "target", t->target);
    set_tensor(&t->model, "weight", t->weight);
}

static void place_outputs(Trainer *t)
{
    Machine *model = &t->model;
    model->output[find_output(model, "loss")] = t->loss;
    for (int i = 0; i < t->parameter_count; i++) {
        const char *name = arena_printf(t->session->arena, "grad.%s", t->parameters[i].name);
        int output = find_output(model, name);
        if (output >= 0) model->output[output] = t->gradients + t->offset[i];
    }
}

/* ---- steps ------------------------------------------------------------------------------------ */

static Exit use_weights(Trainer *t)
{
    for (int i = 0; i < t->parameter_count; i++)
        set_tensor(&t->model, t->parameters[i].name, t->blob[0] + HEADER_FLOATS + t->offset[i]);
    if (!t->model.shell) return EXIT_DONE;
    RaftStatus status = raft_shell_use_weights(t->model.shell, t->blob[0], t->header.size);
    return status == RAFT_OK ? EXIT_DONE : fail_shell(&t->model);
}

static Exit set_number(Trainer *t, const char *name, double value)
{
    float *number = arena_array(t->session->arena, 1, sizeof *number);
    const int64_t no_shape = 0;
    *number = (float)value;
    set_tensor(&t->optimiser, name, number);
    if (!t->optimiser.shell) return EXIT_DONE;
    RaftStatus status = raft_shell_set_parameter(t->optimiser.shell, name, &no_shape, 0, number);
    return status == RAFT_OK ? EXIT_DONE : fail_shell(&t->optimiser);
}

/* What frontend.h says of build_adamw. */
static Exit set_numbers(Trainer *t, int64_t step)
{
    const Settings *settings = t->model.compilation.settings;
    const struct {
        const char *name;
        double value;
    } numbers[] = {
        {"beta1", beta1},
        {"rest1", 1 - beta1},
        {"beta2", beta2},
        {"rest2", 1 - beta2},
        {"eps", eps},
        {"keep", 1 - settings->lr * settings->weight_decay},
        {"rate", -settings->lr / (1 - pow(beta1, (double)step))},
        {"correction", 1 / sqrt(1 - pow(beta2, (double)step))},
    };
    Exit exit = EXIT_DONE;
    for (size_t i = 0; i < ARRAY_SIZE(numbers) && exit == EXIT_DONE; i++)
        exit = set_number(t, numbers[i].name, numbers[i].value);
    return exit;
}

static void swap(float *pair[2])
{
    float *first = pair[0];
    pair[0] = pair[1];
    pair[1] = first;
}

static Exit optimise(Trainer *t, int64_t step)
{
    Machine *optimiser = &t->optimiser;
    Exit exit = set_numbers(t, step);
    if (exit != EXIT_DONE) return exit;
    set_tensor(optimiser, "w", t->blob[0] + HEADER_FLOATS);
    set_tensor(optimiser, "g", t->gradients);
    set_tensor(optimiser, "m", t->m[0]);
    set_tensor(optimiser, "v", t->v[0]);
    optimiser->output[find_output(optimiser, "w")] = t->blob[1] + HEADER_FLOATS;
    optimiser->output[find_output(optimiser, "m")] = t->m[1];
    optimiser->output[find_output(optimiser, "v")] = t->v[1];
    exit = machine_run(optimiser, 1);
    swap(t->blob);
    swap(t->m);
    swap(t->v);
    return exit;
}

static void add_metrics(Trainer *t, int64_t step)
{
    double loss = 0;
    for (int64_t i = 0; i < t->batch; i++) loss += (double)t->loss[i] / (double)t->batch;
    text_printf(&t->metrics, "{\"step\": %lld, \"loss\": %.9g}\n", (long long)step, loss);
    if (!t->session->options->quiet) printf("step %lld  loss %.6f\n", (long long)step, loss);
}

/* The parameters' tensors in a block, as a file. */
static Exit write_block(Trainer *t, const char *path, const float *block)
{
    RaftTensor *tensors =
        arena_array(t->session->arena, (size_t)t->parameter_count, sizeof *tensors);
    for (int i = 0; i < t->parameter_count; i++) {
        const RaftTensorInfo *info = &t->parameters[i];
        tensors[i] = (RaftTensor){.name = info->name,
                                  .dtype = RAFT_F32,
                                  .rank = info->rank,
                                  .elements = info->elements,
                                  .data = block + t->offset[i]};
        memcpy(tensors[i].shape, info->shape, sizeof info->shape);
    }
    const char *const no_metadata[] = {NULL};
    RaftError error;
    signals_hold();
    RaftStatus status = raft_weights_write(path, tensors, t->parameter_count, no_metadata, &error);
    signals_release();
    return status == RAFT_OK ? EXIT_DONE
                             : session_fail(t->session, EXIT_UNDONE, "%s", error.message);
}

static Exit take_steps(Trainer *t)
{
    const Options *options = t->session->options;
    Exit exit = EXIT_DONE;
    for (int64_t step = 1; step <= options->steps && exit == EXIT_DONE; step++) {
        exit = use_weights(t);
        if (exit == EXIT_DONE) exit = machine_run(&t->model, t->batch);
        if (exit != EXIT_DONE) break;
        add_metrics(t, step);
        if (step == 1 && options->dump_gradients)
            exit = write_block(t, options->dump_gradients, t->gradients);
        if (exit == EXIT_DONE) exit = optimise(t, step);
    }
    return exit;
}

/* ---- the verb --------------------------------------------------------------------------------- */

static Exit train(Trainer *t)
{
    Session *session = t->session;
    const Options *options = session->options;
    Compilation *model = &t->model.compilation;
    if (options->target == TARGET_CUDA)
        return session_fail(session, EXIT_LACKING,
                            "this build of raftc trains on CPUs: use --target cpu");
    Exit exit = compilation_load(session, options->arguments.item[0], model);
    if (exit != EXIT_DONE) return exit;
    if (!model->settings)
        return session_fail(session, EXIT_USAGE,
                            "%s is a graph; training needs the settings of a model", model->path);
    model->train = true;
    t->batch = options->batch ? options->batch : 1;
    exit = machine_open(&t->model, session, "backward");
    if (exit != EXIT_DONE) return exit;
    lay_out(t);
    t->optimiser.compilation = (Compilation){.path = "adamw", .source = model->source};
    t->optimiser.compilation.built = build_adamw(session->arena, t->floats);
    exit = machine_open(&t->optimiser, session, "step");
    if (exit == EXIT_DONE) exit = fill_blocks(t);
    if (exit != EXIT_DONE) return exit;
    fill_batch(t);
    place_outputs(t);
    t->metrics = text_new(session->arena);
    exit = take_steps(t);
    if (exit == EXIT_DONE && options->metrics)
        exit = session_write(session, options->metrics, t->metrics.data, t->metrics.length);
    if (exit == EXIT_DONE && options->save)
        exit = write_block(t, options->save, t->blob[0] + HEADER_FLOATS);
    return exit;
}

Exit verb_train(Session *session)
{
    Trainer trainer = {.session = session};
    Exit exit = train(&trainer);
    machine_close(&trainer.model);
    machine_close(&trainer.optimiser);
    return exit;
}
