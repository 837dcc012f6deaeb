/* raftc_engine.c: a compilation that runs: as code of its target, or by the reference backend. */
#include "frontend/raftc_numerics.h"
#include "runtime/cuda_calls.h"

#include <string.h>

/* ---- parameters ------------------------------------------------------------------------------ */

RaftTensorInfo *graph_parameters(const Graph *graph, Arena *arena, int *count)
{
    RaftTensorInfo *list = arena_array(arena, graph->node_count, sizeof *list);
    *count = 0;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op != OP_PARAM) continue;
        RaftTensorInfo *info = &list[(*count)++];
        *info = (RaftTensorInfo){.name = node->attributes.name,
                                 .rank = node->attributes.stored_rank,
                                 .elements = type_elements(&node->type, NULL)};
        memcpy(info->shape, node->attributes.stored, sizeof info->shape);
    }
    return list;
}

static RaftStatus read_parameter(const RaftWeights *file, const RaftTensorInfo *info, float *data,
                                 RaftError *error)
{
    if (file) return raft_tensor_read_f32(raft_weights_find(file, info->name), data, error);
    raft_fill_parameter(info->name, info->rank, info->shape, data);
    return RAFT_OK;
}

Exit parameters_read(Session *session, Arena *arena, const char *weights,
                     const RaftTensorInfo *parameters, int count, const float ***data)
{
    double start = seconds_now();
    RaftWeights *file = NULL;
    RaftError error;
    RaftStatus status = RAFT_OK;
    if (strcmp(weights, "@fill") != 0) {
        status = raft_weights_open(weights, &file, &error);
        if (status == RAFT_OK) status = raft_weights_match(file, parameters, count, &error);
    }
    *data = arena_array(arena, (size_t)count, sizeof **data);
    for (int i = 0; i < count && status == RAFT_OK; i++) {
        float *room = arena_array(arena, (size_t)parameters[i].elements, sizeof *room);
        status = read_parameter(file, &parameters[i], room, &error);
        (*data)[i] = room;
    }
    raft_weights_close(file);
    session_stage(session, "weights", start);
    return status == RAFT_OK ? EXIT_DONE : session_fail_file(session, status, &error);
}

/* ---- what can be run ------------------------------------------------------------------------- */

bool engine_computes(const Output *output, bool features)
{
    return strcmp(output->entry, "forward") == 0 ||
           (features && strcmp(output->entry, "features") == 0);
}

int64_t output_elements(const Graph *graph, const Output *output)
{
    return type_elements(graph_type(graph, output->value), NULL);
}

/* b first, and constant extents else. */
static bool is_batched(const Type *type)
{
    bool good = type->dtype == DTYPE_F32 && type->rank > 0 && !strcmp(type->axis[0].symbol, "b");
    for (int i = 1; i < type->rank; i++) good &= !type->axis[i].symbol[0];
    return good;
}

/* Images go in, answers come out: true of every graph of the frontend. */
Exit engine_check(Session *session, const Compilation *c, Engine *engine)
{
    *engine = (Engine){.session = session, .graph = c->built};
    const Graph *graph = engine->graph;
    Diag *diag = session->diag;
    bool good = true;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op == OP_PARAM) {
            int symbols;
            type_elements(&node->type, &symbols);
            if (symbols || node->type.dtype != DTYPE_F32)
                good = diag_error(diag, node->loc,
                                  "a parameter that is run must be f32, and its "
                                  "extents constant");
        }
        if (node->op != OP_INPUT) continue;
        if (engine->input || node->type.rank != 4 || !is_batched(&node->type))
            good = diag_error(diag, node->loc,
                              "a graph that is run has one input, f32 with the "
                              "axes b, channel, row, column");
        engine->input = node;
    }
    int computed = 0;
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        const Node *node = graph_node(graph, output->value);
        if (!is_batched(&node->type))
            good = diag_error(diag, node->loc,
                              "output '%s' must be f32, b its first axis and the "
                              "only symbol",
                              output->name);
        computed += engine_computes(output, false);
    }
    if (good && (!engine->input || !computed))
        good = diag_error(diag, graph_node(graph, graph->outputs[0].value)->loc,
                          "a graph that is run has an input, and an output of the entry forward");
    return good ? EXIT_DONE : EXIT_FILES;
}

/* ---- opening --------------------------------------------------------------------------------- */

static Exit open_reference(Engine *engine, const RaftTensorInfo *parameters, int count,
                           const char *weights)
{
    Session *session = engine->session;
    const float **data;
    Exit exit = parameters_read(session, session->arena, weights, parameters, count, &data);
    if (exit != EXIT_DONE) return exit;
    engine->tensor_count = count + 1;
    engine->tensors =
        arena_array(session->arena, (size_t)engine->tensor_count, sizeof *engine->tensors);
    for (int i = 0; i < count; i++)
        engine->tensors[i] = (ReferenceTensor){parameters[i].name, data[i]};
    engine->tensors[count].name = engine->input->attributes.name;
    return EXIT_DONE;
}

static Exit fail_shell(Engine *engine, RaftStatus status)
{
    RAFTC_ASSERT(status == RAFT_NO_MEMORY || status == RAFT_INVALID || status == RAFT_GPU_FAILED);
    return session_fail(engine->session, EXIT_UNDONE, "%s", raft_shell_error(engine->shell));
}

/* The shell copies the parameters, so that theirs is the only copy after this. */
static Exit set_parameters(Engine *engine, const RaftTensorInfo *parameters, int count,
                           const char *weights)
{
    Arena passing = {.out_of_memory = engine->session->arena->out_of_memory};
    const float **data;
    Exit exit = parameters_read(engine->session, &passing, weights, parameters, count, &data);
    RaftStatus status = RAFT_OK;
    for (int i = 0; i < count && exit == EXIT_DONE && status == RAFT_OK; i++)
        status = raft_shell_set_parameter(engine->shell, parameters[i].name, parameters[i].shape,
                                          parameters[i].rank, data[i]);
    arena_free(&passing);
    return status == RAFT_OK ? exit : fail_shell(engine, status);
}

static Exit open_code(Engine *engine, Compilation *c)
{
    Session *session = engine->session;
    Exit exit = compilation_plan(session, c);
    if (exit == EXIT_DONE) exit = compilation_generate(session, c);
    if (exit != EXIT_DONE) return exit;
    const RaftProgram *program;
    engine->on_gpu = session->options->target == TARGET_CUDA && !session->options->emulate;
    if (engine->on_gpu)
        exit = cuda_compile_for_gpu(session, c, &engine->gpu, &program);
    else
        exit = compilation_load_code(session, c, &program);
    if (exit != EXIT_DONE) return exit;
    char message[256];
    const RaftShellOptions options = {.size = sizeof options, .threads = session->threads};
    RaftStatus status =
        raft_shell_create(program, &options, &engine->shell, message, sizeof message);
    if (status != RAFT_OK) return session_fail(session, EXIT_UNDONE, "%s", message);
    engine->numerics = arena_alloc(session->arena, sizeof *engine->numerics);
    numerics_watch(engine->numerics, session, c, engine->shell);
    engine->emulation = c->emulation;
    engine->forward = program->forward_entry;
    engine->features = program->features_entry;
    return EXIT_DONE;
}

Exit engine_open(Engine *engine, Compilation *c, const char *weights)
{
    Session *session = engine->session;
    Exit exit = compilation_optimise(session, c);
    if (exit != EXIT_DONE) return exit;
    int count;
    const RaftTensorInfo *parameters = graph_parameters(c->graph, session->arena, &count);
    engine->graph = c->graph;
    if (session->options->target == TARGET_REFERENCE)
        return open_reference(engine, parameters, count, weights);
    exit = open_code(engine, c);
    return exit == EXIT_DONE ? set_parameters(engine, parameters, count, weights) : exit;
}

void engine_close(Engine *engine)
{
    raft_shell_destroy(engine->shell);
    engine->shell = NULL;
}

/* ---- running --------------------------------------------------------------------------------- */

static Exit run_reference(Engine *engine, int64_t batch, const char *entry, float *const *outputs)
{
    Session *session = engine->session;
    void *const *room = (void *const *)outputs;
    if (session->options->check_numerics)
        return numerics_run(session, engine->graph, batch, engine->tensors, engine->tensor_count,
                            entry, room, 0);
    bool done = reference_run(engine->graph, batch, engine->tensors, engine->tensor_count, entry,
                              false, room, session->diag);
    return done ? EXIT_DONE : EXIT_UNDONE;
}

Exit engine_run(Engine *engine, int64_t batch, const float *input, bool features,
                float *const *outputs)
{
    if (!engine->shell) {
        engine->tensors[engine->tensor_count - 1].data = input;
        Exit exit = run_reference(engine, batch, "forward", outputs);
        if (exit == EXIT_DONE && features) exit = run_reference(engine, batch, "features", outputs);
        return exit;
    }
    unsigned entries = engine->forward | (features ? engine->features : 0);
    RaftStatus status = raft_shell_run(engine->shell, entries, batch, &input, outputs);
    if (status != RAFT_OK) return fail_shell(engine, status);
    const CudaEmulation *emulation = engine->emulation;
    if (emulation && !cuda_emulation_check(emulation, engine->session->diag)) return EXIT_BUG;
    return numerics_tell(engine->numerics, NULL, 0, 0);
}

/* ---- memory ---------------------------------------------------------------------------------- */

Exit engine_reserve(Engine *engine, int64_t elements, float **data)
{
    if (!engine->on_gpu) {
        *data = arena_array(engine->session->arena, (size_t)elements, sizeof **data);
        return EXIT_DONE;
    }
    RaftStatus status = raft_cuda_reserve(engine->shell, (size_t)elements * sizeof **data, data);
    return status == RAFT_OK ? EXIT_DONE : fail_shell(engine, status);
}

Exit engine_copy(Engine *engine, float *to, const float *from, int64_t elements)
{
    size_t bytes = (size_t)elements * sizeof *to;
    RaftStatus status = RAFT_OK;
    if (engine->on_gpu)
        status = raft_cuda_upload(engine->shell, to, from, bytes);
    else
        memcpy(to, from, bytes);
    return status == RAFT_OK ? EXIT_DONE : fail_shell(engine, status);
}
