/* raftc_trainer.c: a model that can be trained: compiled, its blocks of floats, and its runs. */
#include "frontend/raftc_trainer.h"
#include "runtime/cuda_calls.h"
#include "runtime/train/train.h"

#include <string.h>

enum { HEADER_FLOATS = sizeof(RaftWeightsHeader) / sizeof(float) };

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

static int find_output(const Machine *machine, const char *entry, const char *name)
{
    const Graph *graph = machine->compilation.graph;
    for (uint32_t i = 0; i < graph->output_count; i++)
        if (strcmp(graph->outputs[i].entry, entry) == 0 &&
            strcmp(graph->outputs[i].name, name) == 0)
            return (int)i;
    return -1;
}

static Exit open_code(Machine *machine)
{
    Session *session = machine->session;
    Compilation *c = &machine->compilation;
    Exit exit = compilation_plan(session, c);
    if (exit == EXIT_DONE) exit = compilation_generate(session, c);
    if (exit != EXIT_DONE) return exit;
    if (session->options->target == TARGET_CUDA && !session->options->emulate)
        exit = cuda_compile_for_gpu(session, c, &machine->gpu, &machine->program);
    else
        exit = compilation_load_code(session, c, &machine->program);
    if (exit != EXIT_DONE) return exit;
    char message[256];
    const RaftShellOptions options = {.size = sizeof options, .threads = session->threads};
    RaftStatus status =
        raft_shell_create(machine->program, &options, &machine->shell, message, sizeof message);
    if (status != RAFT_OK) return session_fail(session, EXIT_UNDONE, "%s", message);
    numerics_watch(&machine->numerics, session, c, machine->shell);
    return EXIT_DONE;
}

/* From the built graph of machine->compilation to what can be run. */
static Exit machine_open(Machine *machine, Session *session)
{
    machine->session = session;
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

static Exit run_reference(Machine *machine, const char *entry, int64_t batch, int64_t step)
{
    const Graph *graph = machine->compilation.graph;
    const ReferenceTensor *tensors = machine->tensors;
    void *const *outputs = (void *const *)machine->output;
    Session *session = machine->session;
    if (session->options->check_numerics)
        return numerics_run(session, graph, batch, tensors, machine->tensor_count, entry, outputs,
                            step);
    bool done = reference_run(graph, batch, tensors, machine->tensor_count, entry, false, outputs,
                              session->diag);
    return done ? EXIT_DONE : EXIT_UNDONE;
}

/* `step`: of the training, for messages; 0: of none. */
static Exit machine_run(Machine *machine, const char *entry, int64_t batch, int64_t step)
{
    if (!machine->shell) return run_reference(machine, entry, batch, step);
    const RaftProgram *program = machine->program;
    unsigned bit = strcmp(entry, "forward") == 0    ? program->forward_entry
                   : strcmp(entry, "backward") == 0 ? program->backward_entry
                                                    : program->step_entry;
    RaftStatus status = raft_shell_run(machine->shell, bit, batch, machine->input, machine->output);
    if (status != RAFT_OK) return fail_shell(machine);
    const CudaEmulation *emulation = machine->compilation.emulation;
    if (emulation && !cuda_emulation_check(emulation, machine->session->diag)) return EXIT_BUG;
    return numerics_tell(&machine->numerics, machine->tensors, machine->tensor_count, step);
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

/* Every block but the first has room for a header that it lacks, so that it can be run with, too. */
static void add_state(Trainer *t, const char *name)
{
    State *state = &t->state[t->state_count++];
    state->name = name;
    for (int k = 0; k < 2; k++) {
        float *block = new_block(t, t->floats + HEADER_FLOATS);
        memcpy(block, &t->header, sizeof t->header);
        state->block[k] = block + HEADER_FLOATS;
    }
}

static void make_blocks(Trainer *t)
{
    add_state(t, "w");
    add_state(t, "m");
    if (t->rule.kind == RAFT_ADAMW) add_state(t, "v");
    if (t->rule.average > 0) add_state(t, "e");
    t->gradients = new_block(t, t->floats);
    t->part = t->parts > 1 ? new_block(t, t->floats) : NULL;
}

/* Where weights decay, if not all do: those of rank 2. */
static void make_decays(Trainer *t)
{
    if (!t->rule.exempts) return;
    float *decays = new_block(t, t->floats);
    for (int i = 0; i < t->parameter_count; i++)
        for (int64_t k = 0; t->parameters[i].rank == 2 && k < t->parameters[i].elements; k++)
            decays[t->offset[i] + k] = 1;
    set_tensor(&t->optimiser, "decays", decays);
}

const float **trainer_decays(Trainer *t)
{
    int input = find_input(&t->optimiser, "decays");
    return input >= 0 ? &t->optimiser.input[input] : NULL;
}

static void make_batch(Trainer *t)
{
    Arena *arena = t->session->arena;
    const Graph *graph = t->model.compilation.graph;
    size_t room = (size_t)t->room;
    for (NodeId id = 0; id < graph->node_count; id++)
        if (graph_node(graph, id)->op == OP_INPUT &&
            strcmp(graph_node(graph, id)->attributes.name, "input") == 0)
            t->pixels = type_elements(graph_type(graph, id), NULL);
    t->image = arena_array(arena, room * (size_t)t->pixels, sizeof(float));
    t->target = arena_array(arena, room * (size_t)t->model.compilation.settings->num_classes,
                            sizeof(float));
    t->weight = arena_array(arena, room, sizeof(float));
    t->loss = arena_array(arena, room, sizeof(float));
    set_tensor(&t->model, "input", t->image);
    set_tensor(&t->model, "target", t->target);
    set_tensor(&t->model, "weight", t->weight);
}

/* Rank 1 is a branch of each image, b alone. */
static void make_masks(Trainer *t)
{
    const Settings *settings = t->model.compilation.settings;
    const Graph *graph = t->model.compilation.graph;
    t->mask = arena_array(t->session->arena, graph->node_count, sizeof *t->mask);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op != OP_INPUT ||
            strncmp(node->attributes.name, MASK_PREFIX, strlen(MASK_PREFIX)))
            continue;
        const Type *type = graph_type(graph, id);
        Mask *mask = &t->mask[t->mask_count++];
        mask->rate = type->rank == 1 ? settings->drop_path_rate : settings->dropout;
        mask->elements = type_elements(type, NULL);
        mask->data =
            arena_array(t->session->arena, (size_t)(t->room * mask->elements), sizeof *mask->data);
        set_tensor(&t->model, node->attributes.name, mask->data);
    }
}

static void find_gradients(Trainer *t)
{
    t->gradient = arena_array(t->session->arena, (size_t)t->parameter_count, sizeof *t->gradient);
    for (int i = 0; i < t->parameter_count; i++) {
        const char *name = arena_printf(t->session->arena, "grad.%s", t->parameters[i].name);
        t->gradient[i] = find_output(&t->model, "backward", name);
    }
    t->model.output[find_output(&t->model, "backward", "loss")] = t->loss;
}

static void place_gradients(Trainer *t, float *block)
{
    Machine *model = &t->model;
    for (int i = 0; i < t->parameter_count; i++) {
        int output = t->gradient[i];
        if (output >= 0) model->output[output] = block + t->offset[i];
    }
}

float *trainer_weights(const Trainer *t, int parameter)
{
    RAFTC_ASSERT(!t->states_on_gpu);
    return t->state[0].block[0] + t->offset[parameter];
}

static const State *average_of(const Trainer *t)
{
    return t->rule.average > 0 ? &t->state[t->state_count - 1] : NULL;
}

void trainer_begin_average(Trainer *t)
{
    const State *average = average_of(t);
    if (average) memcpy(average->block[0], t->state[0].block[0], (size_t)t->floats * sizeof(float));
}

const float *trainer_best(const Trainer *t)
{
    RAFTC_ASSERT(!t->states_on_gpu);
    const State *average = average_of(t);
    return average ? average->block[0] : t->state[0].block[0];
}

RaftTensor *trainer_tensors(const Trainer *t, const float *block)
{
    RaftTensor *tensors =
        arena_array(t->session->arena, (size_t)t->parameter_count, sizeof *tensors);
    if (!block) block = trainer_weights(t, 0) - t->offset[0];
    for (int i = 0; i < t->parameter_count; i++) {
        const RaftTensorInfo *info = &t->parameters[i];
        tensors[i] = (RaftTensor){.name = info->name,
                                  .dtype = RAFT_F32,
                                  .rank = info->rank,
                                  .elements = info->elements,
                                  .data = block + t->offset[i]};
        memcpy(tensors[i].shape, info->shape, sizeof info->shape);
    }
    return tensors;
}

/* ---- runs ------------------------------------------------------------------------------------- */

static Exit use_weights(Trainer *t, const float *block)
{
    for (int i = 0; i < t->parameter_count; i++)
        set_tensor(&t->model, t->parameters[i].name, block + t->offset[i]);
    if (!t->model.shell) return EXIT_DONE;
    RaftStatus status =
        raft_shell_use_weights(t->model.shell, block - HEADER_FLOATS, t->header.size);
    return status == RAFT_OK ? EXIT_DONE : fail_shell(&t->model);
}

static Exit set_number(Trainer *t, const char *name, float *number)
{
    const int64_t no_shape = 0;
    set_tensor(&t->optimiser, name, number);
    if (!t->optimiser.shell) return EXIT_DONE;
    RaftStatus status = raft_shell_set_parameter(t->optimiser.shell, name, &no_shape, 0, number);
    return status == RAFT_OK ? EXIT_DONE : fail_shell(&t->optimiser);
}

static Exit set_numbers(Trainer *t, int64_t step, double lr, double norm)
{
    RaftOptimiserNumber numbers[RAFT_OPTIMISER_NUMBERS];
    int count = raft_optimiser_numbers(&t->rule, step, lr, norm, numbers);
    Exit exit = EXIT_DONE;
    for (int i = 0; i < count && exit == EXIT_DONE; i++) {
        t->number[i] = (float)numbers[i].value;
        exit = set_number(t, numbers[i].name, &t->number[i]);
    }
    return exit;
}

static void swap(float *pair[2])
{
    float *first = pair[0];
    pair[0] = pair[1];
    pair[1] = first;
}

Exit trainer_run_step(Trainer *t, double learning_rate)
{
    Machine *optimiser = &t->optimiser;
    double norm = 0;
    Exit exit = EXIT_DONE;
    if (t->rule.most_norm > 0) {
        exit = trainer_bring_gradients(t);
        norm = raft_norm(t->gradients, t->floats, optimiser->session->threads);
    }
    if (exit == EXIT_DONE) exit = set_numbers(t, t->step, learning_rate, norm);
    if (exit != EXIT_DONE) return exit;
    set_tensor(optimiser, "g", t->states_on_gpu ? t->gpu_gradients : t->gradients);
    for (int i = 0; i < t->state_count; i++) {
        State *state = &t->state[i];
        float *const *blocks = t->states_on_gpu ? state->gpu : state->block;
        set_tensor(optimiser, state->name, blocks[0]);
        optimiser->output[find_output(optimiser, "step", state->name)] = blocks[1];
    }
    exit = machine_run(optimiser, "step", 1, t->step);
    for (int i = 0; i < t->state_count; i++)
        swap(t->states_on_gpu ? t->state[i].gpu : t->state[i].block);
    return exit;
}

void trainer_add_part(Trainer *t, int64_t first, int64_t floats)
{
    float *gradients = t->gradients + first;
    const float *part = t->part + first;
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < floats; i++) gradients[i] += part[i];
}

Exit trainer_run_backward(Trainer *t, int64_t count, int64_t batch, int64_t part)
{
    t->adds = part > 0;
    t->last = part == t->parts - 1 && t->comm;
    t->images = count;
    t->begun = 0;
    for (int64_t i = 0; i < count; i++) t->weight[i] = (float)(1.0 / (double)batch);
    Exit exit = trainer_send_states(t);
    if (exit == EXIT_DONE) exit = use_weights(t, t->state[0].block[0]);
    if (exit != EXIT_DONE) return exit;
    t->gradients_on_gpu = t->states_on_gpu;
    if (t->states_on_gpu) raft_cuda_take_parameters(t->model.shell, t->state[0].gpu[0]);
    place_gradients(t, t->states_on_gpu ? t->gpu_gradients : t->adds ? t->part : t->gradients);
    exit = machine_run(&t->model, "backward", count, t->step);
    if (exit == EXIT_DONE && t->last)
        trainer_begin_rest(t);
    else if (exit == EXIT_DONE && t->adds)
        trainer_add_part(t, 0, t->floats);
    return exit;
}

void trainer_drop(Trainer *t, int64_t step, int64_t first, int64_t count)
{
    RaftDrop drop = {.seed = (uint64_t)t->model.compilation.settings->seed, .step = (uint32_t)step};
    for (int i = 0; i < t->mask_count; i++) {
        drop.layer = (uint32_t)i;
        drop.rate = t->mask[i].rate;
        drop.elements = t->mask[i].elements;
        raft_drop_draw(&drop, (uint32_t)first, count, t->mask[i].data);
    }
}

Exit trainer_run_forward(Trainer *t, int64_t count, float *logits)
{
    for (int i = 0; i < t->mask_count; i++)
        for (int64_t k = 0; k < count * t->mask[i].elements; k++) t->mask[i].data[k] = 1;
    t->model.output[find_output(&t->model, "forward", "logits")] = logits;
    Exit exit = trainer_bring_states(t);
    if (exit == EXIT_DONE) exit = use_weights(t, trainer_best(t));
    return exit == EXIT_DONE ? machine_run(&t->model, "forward", count, 0) : exit;
}

/* ---- all ---------------------------------------------------------------------------------------- */

RaftOptimiser optimiser_of(const Settings *s)
{
    return (RaftOptimiser){.kind = s->sgd ? RAFT_SGD : RAFT_ADAMW,
                           .weight_decay = s->weight_decay,
                           .momentum = s->momentum,
                           .most_norm = s->max_grad_norm,
                           .average = s->ema_decay,
                           .exempts = !s->decay_biases_and_norms};
}

Compilation optimiser_step(Arena *arena, const Compilation *model, const char *name,
                           const RaftOptimiser *rule, int64_t floats)
{
    const OptimiserParts parts = {.sgd = rule->kind == RAFT_SGD,
                                  .clips = rule->most_norm > 0,
                                  .exempts = rule->exempts,
                                  .averages = rule->average > 0};
    return (Compilation){.path = "optimiser",
                         .source = model->source,
                         .dump_name = "optimiser-",
                         .built = build_optimiser(arena, name, &parts, floats)};
}

static Exit open_optimiser(Trainer *t)
{
    const Compilation *model = &t->model.compilation;
    t->rule = optimiser_of(model->settings);
    t->optimiser.compilation =
        optimiser_step(t->session->arena, model, "optimiser", &t->rule, t->floats);
    return machine_open(&t->optimiser, t->session);
}

Exit trainer_open(Trainer *t, Session *session, int64_t batch, const RaftComm *comm)
{
    Compilation *model = &t->model.compilation;
    *t = (Trainer){.session = session};
    Exit exit = compilation_load(session, session->options->arguments.item[0], model);
    if (exit != EXIT_DONE) return exit;
    if (!model->settings)
        return session_fail(session, EXIT_USAGE,
                            "%s is a graph; training needs the settings of a model", model->path);
    model->train = true;
    if (comm) model->built = build_dropping_graph(session->arena, model->model);
    t->batch = batch ? batch : model->settings->batch_size;
    if (t->batch == 0)
        return session_fail(session, EXIT_FILES, "%s: batch_size is missing", model->path);
    t->parts =
        comm && model->settings->accumulation_steps ? model->settings->accumulation_steps : 1;
    int64_t all = t->parts * (comm ? comm->size : 1);
    if (all > t->batch)
        return session_fail(session, EXIT_FILES,
                            "%s: a batch of %lld images cannot be run in %lld parts "
                            "(accumulation_steps, of each process)",
                            model->path, (long long)t->batch, (long long)all);
    t->room = (t->batch + all - 1) / all;
    t->comm = comm && comm->state ? comm : NULL;
    model->images = session->options->memory_limit ? t->room : 0;
    exit = machine_open(&t->model, session);
    if (exit != EXIT_DONE) return exit;
    lay_out(t);
    exit = open_optimiser(t);
    if (exit != EXIT_DONE) return exit;
    make_blocks(t);
    make_decays(t);
    make_batch(t);
    make_masks(t);
    find_gradients(t);
    if (t->comm) trainer_plan_sums(t);
    bool on_gpu = session->options->target == TARGET_CUDA && !session->options->emulate;
    bool whole = t->parts == 1 && !t->comm && !session->options->check_numerics;
    return on_gpu && whole ? trainer_use_gpu(t) : EXIT_DONE;
}

void trainer_close(Trainer *t)
{
    machine_close(&t->model);
    machine_close(&t->optimiser);
}
