/* program.c: from a plan to the program table that the shell walks, and the weights blob for it. */
#include "backends/backend.h"
#include "runtime/cuda.h"

#include <string.h>

/* ---- what can be run ------------------------------------------------------------------------- */

static int symbolic_axes(const Type *type)
{
    int count = 0;
    for (int i = 0; i < type->rank; i++) count += type->axis[i].symbol[0] != '\0';
    return count;
}

/* `fixed`: it may also be without the axis b. */
static bool check_caller_tensor(const Node *node, const char *name, bool fixed, Diag *diag)
{
    const Type *type = &node->type;
    if (type->dtype != DTYPE_F32 || node->layout.rank > 0)
        return diag_error(diag, node->loc, "'%s' cannot be a caller's tensor: not row-major f32",
                          name);
    if (fixed && symbolic_axes(type) == 0) return true;
    if (type->rank == 0 || strcmp(type->axis[0].symbol, "b") != 0 || symbolic_axes(type) != 1)
        return diag_error(diag, node->loc,
                          "'%s' cannot be a caller's tensor: b must be its first axis, and the "
                          "only one without a constant extent",
                          name);
    return true;
}

bool program_check(const Plan *plan, Diag *diag)
{
    const Graph *graph = plan->graph;
    bool good = true;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op == OP_INPUT)
            good &= check_caller_tensor(node, node->attributes.name, false, diag);
        if (node->op == OP_PARAM && symbolic_axes(&node->type))
            good = diag_error(diag, node->loc, "parameter '%s' must have constant extents",
                              node->attributes.name);
    }
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        const Node *node = graph_node(graph, output->value);
        bool written = false;
        for (int k = 0; k < plan->buffer_count; k++)
            written |= plan->buffers[k].kind == BUFFER_OUTPUT && plan->buffers[k].index == (int)i;
        good &= check_caller_tensor(node, output->name, true, diag);
        if (!written)
            good = diag_error(diag, node->loc, "output '%s' must be written by a kernel, alone",
                              output->name);
    }
    return good;
}

/* ---- the table ------------------------------------------------------------------------------- */

/* The axes beyond the fourth count as one with it. */
static RaftTensorInfo describe(const char *name, const Type *type)
{
    RaftTensorInfo info = {.name = name, .elements = 1};
    for (int i = 0; i < type->rank; i++) {
        if (type->axis[i].symbol[0]) continue;
        if (info.rank == (int)ARRAY_SIZE(info.shape))
            info.shape[info.rank - 1] *= type->axis[i].extent;
        else
            info.shape[info.rank++] = type->axis[i].extent;
        info.elements *= type->axis[i].extent;
    }
    return info;
}

static RaftTensorInfo describe_parameter(const Node *node)
{
    RaftTensorInfo info = {.name = node->attributes.name, .rank = node->attributes.stored_rank};
    info.elements = type_elements(&node->type, NULL);
    memcpy(info.shape, node->attributes.stored, sizeof info.shape);
    return info;
}

static void list_tensors(Arena *arena, RaftProgram *program, const Graph *graph)
{
    RaftTensorInfo *input = arena_array(arena, graph->node_count, sizeof *input);
    RaftTensorInfo *parameter = arena_array(arena, graph->node_count, sizeof *parameter);
    RaftTensorInfo *output = arena_array(arena, graph->output_count, sizeof *output);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op == OP_INPUT)
            input[program->input_count++] = describe(node->attributes.name, &node->type);
        if (node->op == OP_PARAM) parameter[program->parameter_count++] = describe_parameter(node);
    }
    int *fixed = arena_array(arena, graph->output_count, sizeof *fixed);
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Type *type = graph_type(graph, graph->outputs[i].value);
        output[i] = describe(graph->outputs[i].name, type);
        fixed[i] = symbolic_axes(type) == 0;
        if (fixed[i]) program->fixed = fixed;
    }
    program->input = input;
    program->parameter = parameter;
    program->output = output;
    program->output_count = (int)graph->output_count;
}

static void list_buffers(Arena *arena, RaftProgram *program, const Plan *plan)
{
    static const int kind[] = {
        [BUFFER_INPUT] = RAFT_BUFFER_INPUT, [BUFFER_OUTPUT] = RAFT_BUFFER_OUTPUT,
        [BUFFER_PARAM] = RAFT_BUFFER_PARAM, [BUFFER_PREPARED] = RAFT_BUFFER_PREPARED,
        [BUFFER_ARENA] = RAFT_BUFFER_ARENA,
    };
    RaftBuffer *buffer = arena_array(arena, (size_t)plan->buffer_count, sizeof *buffer);
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *b = &plan->buffers[i];
        bool placed = b->kind == BUFFER_PREPARED || b->kind == BUFFER_ARENA;
        buffer[i] = (RaftBuffer){kind[b->kind], placed ? b->offset : b->index};
    }
    program->buffer = buffer;
    program->buffer_count = plan->buffer_count;
}

static unsigned entry_bit(const Plan *plan, const char *name)
{
    for (int i = 0; i < plan->entry_count; i++)
        if (strcmp(plan->entry[i], name) == 0) return 1u << i;
    return 0;
}

/* Bits beyond those of the plan's entries. */
static void name_entries(RaftProgram *program, const Plan *plan)
{
    program->forward_entry = entry_bit(plan, "forward");
    program->features_entry = entry_bit(plan, "features");
    program->backward_entry = entry_bit(plan, "backward");
    program->step_entry = entry_bit(plan, "step");
    if (!program->backward_entry) return;
    program->keep_entry = 1u << plan->entry_count;
    program->rest_entry = 2u << plan->entry_count;
}

static unsigned step_entries(const RaftProgram *program, const Step *step)
{
    unsigned forward = program->forward_entry | program->features_entry;
    if (!(step->entries & program->backward_entry)) return step->entries;
    return step->entries | (step->entries & forward ? program->keep_entry : program->rest_entry);
}

/* Does the step write only outputs that no other step reads? */
static bool writes_for_none(const Plan *plan, const Step *step)
{
    for (int i = 0; i < step->argument_count; i++) {
        const Buffer *buffer = &plan->buffers[step->arguments[i]];
        if (graph_node(plan->graph, buffer->value)->kernel != step->kernel) continue;
        if (buffer->kind != BUFFER_OUTPUT || buffer->first_step != buffer->last_step) return false;
    }
    return true;
}

_Static_assert((int)MOST_TOGETHER <= (int)RAFT_MOST_TOGETHER, "the runtime has numbers for each");

/* The steps of prepare, or the others. The i-th step in the table is the i-th such of the plan. */
static const RaftStep *list_steps(Arena *arena, const RaftProgram *program, const Plan *plan,
                                  bool prepare, const StepCode *steps, RaftKernel *const *kernels,
                                  int *count)
{
    RaftStep *list = arena_array(arena, (size_t)plan->step_count, sizeof *list);
    for (int s = 0; s < plan->step_count; s++) {
        const Step *step = &plan->steps[s];
        if (step->prepare != prepare) continue;
        for (int i = 0; prepare && i < step->argument_count; i++) {
            BufferKind kind = plan->buffers[step->arguments[i]].kind;
            RAFTC_ASSERT(kind == BUFFER_PARAM || kind == BUFFER_PREPARED);
        }
        list[(*count)++] = (RaftStep){.kernel = kernels ? kernels[s] : NULL,
                                      .name = kernel_name(plan->graph, step->kernel, arena),
                                      .units = steps[s].units,
                                      .batched = steps[s].batched,
                                      .piece = steps[s].piece,
                                      .adds = steps[s].adds && writes_for_none(plan, step),
                                      .waits = step->waits,
                                      .entries = step_entries(program, step),
                                      .argument_count = step->argument_count,
                                      .argument = step->arguments};
    }
    return list;
}

/* The more images at a time, the fewer times all weights are read; but what one step writes should
 * still be in a cache when the next one reads it. */
static int64_t choose_chunk(const Plan *plan)
{
    const int64_t arena_floats = (16 << 20) / sizeof(float), most = PROGRAM_MOST_AT_ONCE;
    if (plan->arena_floats <= arena_floats / most) return most;
    return plan->arena_floats < arena_floats ? arena_floats / plan->arena_floats : 1;
}

/* Does a value depend on all images? */
static bool sums_batch(const Graph *graph)
{
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (op_info[node->op].mixes != MIX_OVER) continue;
        const Type *x = graph_type(graph, node->operands[0]);
        for (int i = 0; i < x->rank; i++)
            if (x->axis[i].symbol[0] && names_contain(&node->attributes.over, x->axis[i].name))
                return true;
    }
    return false;
}

/* No more than indices can be counted with an int, which takes half the registers: a GPU has no room for more. */
static int64_t whole_cuda_chunk(const Plan *plan)
{
    int64_t images = PROGRAM_MOST_AT_ONCE;
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *buffer = &plan->buffers[i];
        int64_t most = buffer->batched ? CUDA_INT_ELEMENTS / buffer->elements : images;
        if (most < images) images = most > 1 ? most : 1;
    }
    return images;
}

/* A GPU wants many images at once. */
int64_t cuda_chunk(const Plan *plan)
{
    if (sums_batch(plan->graph)) return whole_cuda_chunk(plan);
    const int64_t arena_floats = ((int64_t)4 << 30) / sizeof(float), most = 1024;
    if (plan->arena_floats <= arena_floats / most) return most;
    return plan->arena_floats < arena_floats ? arena_floats / plan->arena_floats : 1;
}

ProgramCode *cuda_program_code(Arena *arena, const CudaSource *source, const RaftCudaImage *image,
                               int image_count)
{
    ProgramCode *code = arena_alloc(arena, sizeof *code);
    StepCode *steps = arena_array(arena, (size_t)source->kernel_count, sizeof *steps);
    for (int s = 0; s < source->kernel_count; s++) {
        const CudaKernel *kernel = &source->kernels[s];
        steps[s] = (StepCode){kernel->symbol, kernel->units, kernel->batched, 1, false};
    }
    *code = (ProgramCode){
        .steps = steps, .cuda = source->kernels, .image = image, .image_count = image_count};
    return code;
}

/* The kernels of the steps of prepare, or of the others. */
static const RaftCudaKernel *list_kernels(Arena *arena, const Plan *plan, const CudaKernel *cuda,
                                          bool prepare)
{
    RaftCudaKernel *list = arena_array(arena, (size_t)plan->step_count, sizeof *list);
    int count = 0;
    for (int s = 0; s < plan->step_count; s++)
        if (plan->steps[s].prepare == prepare)
            list[count++] = (RaftCudaKernel){
                cuda[s].symbol, cuda[s].threads, cuda[s].shared_bytes, cuda[s].spill_bytes,
                cuda[s].block,  cuda[s].outer,   cuda[s].fine,         cuda[s].fine_shared_bytes};
    return list;
}

static void name_gpu(Arena *arena, RaftProgram *program, const Plan *plan, const ProgramCode *code)
{
    RaftCudaCode *cuda = arena_alloc(arena, sizeof *cuda);
    cuda->image = code->image;
    cuda->image_count = code->image_count;
    cuda->prepare = list_kernels(arena, plan, code->cuda, true);
    cuda->step = list_kernels(arena, plan, code->cuda, false);
    program->device = &raft_cuda;
    program->code = cuda;
    program->chunk = cuda_chunk(plan);
}

RaftProgram *program_build(Arena *arena, const Plan *plan, const ProgramCode *code,
                           RaftKernel *const *kernels)
{
    RaftProgram *program = arena_alloc(arena, sizeof *program);
    const StepCode *steps = code->steps;
    program->device = &raft_cpu;
    program->name = plan->graph->name;
    program->made_by = "";
    list_tensors(arena, program, plan->graph);
    list_buffers(arena, program, plan);
    name_entries(program, plan);
    program->prepare =
        list_steps(arena, program, plan, true, steps, kernels, &program->prepare_count);
    program->step = list_steps(arena, program, plan, false, steps, kernels, &program->step_count);
    program->arena_floats = plan->arena_floats;
    program->prepared_floats = plan->prepared_floats;
    program->scratch_bytes = code->scratch_bytes;
    program->chunk = choose_chunk(plan);
    if (code->cuda) name_gpu(arena, program, plan, code);
    if (sums_batch(plan->graph) && code->cuda) {
        program->whole = true;
    } else if (sums_batch(plan->graph)) {
        program->whole = !program_adds_up(arena, plan->graph);
        program->chunk = program->whole ? PROGRAM_MOST_AT_ONCE : program_part(plan->graph);
    }
    for (int s = 0; s < program->step_count; s++) {
        int64_t units;
        int64_t most = program->keep_entry ? PROGRAM_MOST_AT_ONCE : program->chunk;
        RAFTC_ASSERT(!__builtin_mul_overflow(program->step[s].units, most, &units));
    }
    return program;
}

/* ---- the weights blob ------------------------------------------------------------------------ */

const char *weights_blob(Arena *arena, const RaftProgram *program, const float *const *parameters,
                         size_t *size)
{
    RaftWeightsHeader header = raft_weights_header(program);
    *size = header.size;
    char *blob = arena_alloc(arena, *size), *next = blob + sizeof header;
    memcpy(blob, &header, sizeof header);
    for (int i = 0; i < program->parameter_count; i++) {
        const RaftTensorInfo *info = &program->parameter[i];
        memcpy(next, parameters[i], (size_t)info->elements * sizeof(float));
        next += raft_weights_stride(info);
    }
    return blob;
}
