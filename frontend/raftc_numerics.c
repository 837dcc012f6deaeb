/* raftc_numerics.c: finds the source of a NaN or an infinity; raftc_numerics.h says how. */
#include "frontend/raftc_numerics.h"

#include <math.h>
#include <string.h>

/* ---- telling --------------------------------------------------------------------------------- */

/* "b 0, h 3, c 5": where an element of a row-major value is; `first`: number of the first image. */
static void print_place(const Type *type, int64_t images, int64_t first, int64_t element, Text *out)
{
    int64_t index[MAX_AXES];
    for (int i = type->rank; i-- > 0;) {
        int64_t extent = type->axis[i].symbol[0] ? images : type->axis[i].extent;
        index[i] = element % extent + (type->axis[i].symbol[0] ? first : 0);
        element /= extent;
    }
    for (int i = 0; i < type->rank; i++)
        text_printf(out, "%s%s %lld", i ? ", " : "", type->axis[i].name, (long long)index[i]);
}

static Exit tell(Session *session, const Graph *graph, const ReferenceFault *fault, int64_t images,
                 int64_t first, int64_t step, const char *note)
{
    const Node *node = graph_node(graph, fault->node);
    const char *value = isnan(fault->value) ? "NaN" : fault->value > 0 ? "infinity" : "-infinity";
    Text text = text_new(session->arena);
    if (step) text_printf(&text, "step %lld: ", (long long)step);
    if (node->op == OP_INPUT || node->op == OP_PARAM)
        text_printf(&text, "%s '%s' holds %s", node->op == OP_PARAM ? "parameter" : "input",
                    node->attributes.name, value);
    else
        text_printf(&text, "%s gives %s of finite numbers", op_info[node->op].name, value);
    text_put(&text, ", first at [");
    print_place(&node->type, images, first, fault->element, &text);
    text_put(&text, "] of ");
    type_print(&node->type, &text);
    if (node->kernel != NO_KERNEL)
        text_printf(&text, ", in kernel %s", kernel_name(graph, node->kernel, session->arena));
    diag_error(session->diag, node->loc, "%s", text.data);
    if (note) diag_note(session->diag, (Loc){0}, "%s", note);
    return EXIT_MISSED;
}

Exit numerics_run(Session *session, const Graph *graph, int64_t batch,
                  const ReferenceTensor *tensors, int tensor_count, const char *entry,
                  void *const *outputs, int64_t step)
{
    ReferenceFault fault;
    if (!reference_search(graph, batch, tensors, tensor_count, entry, outputs, &fault,
                          session->diag))
        return EXIT_UNDONE;
    if (fault.node == NO_NODE) return EXIT_DONE;
    return tell(session, graph, &fault, batch, 0, step, NULL);
}

/* ---- watching -------------------------------------------------------------------------------- */

static const Step *step_of(const Numerics *n, int *number)
{
    const Plan *plan = n->compilation->plan;
    int at = 0;
    for (int left = *number; plan->steps[at].prepare || left-- > 0;) at++;
    *number = at;
    return &plan->steps[at];
}

static int64_t elements_of(const Buffer *buffer, int64_t images)
{
    return buffer->elements * (buffer->batched ? images : 1);
}

/* Is there a value that is not finite in what the step wrote? The first is kept. */
static bool find(Numerics *n, const Step *step, float *const *argument, int64_t images)
{
    const Plan *plan = n->compilation->plan;
    for (int i = 0; i < step->argument_count; i++) {
        const Buffer *buffer = &plan->buffers[step->arguments[i]];
        if (graph_node(plan->graph, buffer->value)->kernel != step->kernel) continue;
        for (int64_t k = 0; k < elements_of(buffer, images); k++) {
            if (isfinite(argument[i][k])) continue;
            n->fault = (ReferenceFault){buffer->value, k, argument[i][k]};
            return true;
        }
    }
    return false;
}

/* Later steps overwrite what this one has read. */
static void keep_read(Numerics *n, const Step *step, float *const *argument, int64_t images)
{
    const Plan *plan = n->compilation->plan;
    Arena *arena = n->session->arena;
    n->read = arena_array(arena, (size_t)step->argument_count, sizeof *n->read);
    for (int i = 0; i < step->argument_count; i++) {
        const Buffer *buffer = &plan->buffers[step->arguments[i]];
        bool written = graph_node(plan->graph, buffer->value)->kernel == step->kernel;
        if (written || buffer->kind == BUFFER_PARAM || buffer->kind == BUFFER_PREPARED) continue;
        size_t count = (size_t)elements_of(buffer, images);
        n->read[i] = arena_array(arena, count, sizeof *n->read[i]);
        memcpy(n->read[i], argument[i], count * sizeof *n->read[i]);
    }
}

static void look(void *user, int number, float *const *argument, int64_t first, int64_t images)
{
    Numerics *n = user;
    if (n->step >= 0) return;
    const Step *step = step_of(n, &number);
    if (!find(n, step, argument, images)) return;
    n->step = number;
    n->first = first;
    n->images = images;
    keep_read(n, step, argument, images);
}

void numerics_watch(Numerics *n, Session *session, const Compilation *compilation, RaftShell *shell)
{
    if (!session->options->check_numerics) return;
    *n = (Numerics){.session = session, .compilation = compilation, .step = -1};
    raft_shell_watch(shell, look, n);
}

/* ---- the kernel, op by op -------------------------------------------------------------------- */

/* The kernel, and of what depends on parameters alone all that it needs; anything else that it reads
 * is an input. */
typedef struct Extract {
    Graph *graph;
    ReferenceTensor *tensors;
    int tensor_count;
} Extract;

static const float *read_copy(const Numerics *n, const Step *step, NodeId value)
{
    for (int i = 0; i < step->argument_count; i++)
        if (n->compilation->plan->buffers[step->arguments[i]].value == value) return n->read[i];
    RAFTC_BUG("value %u is no argument of kernel %d", value, step->kernel);
}

static bool *find_needed(const Graph *graph, int kernel, const bool *param_only, Arena *arena)
{
    bool *needed = arena_array(arena, graph->node_count, sizeof *needed);
    for (NodeId id = graph->node_count; id-- > 0;) {
        const Node *node = graph_node(graph, id);
        needed[id] |= node->kernel == kernel;
        bool inside = node->kernel == kernel || param_only[id];
        for (uint32_t i = 0; needed[id] && inside && i < node->operand_count; i++)
            needed[node->operands[i]] = true;
    }
    return needed;
}

static Extract extract_kernel(const Numerics *n, const Step *step, const ReferenceTensor *tensors,
                              int tensor_count)
{
    Arena *arena = n->session->arena;
    const Graph *graph = n->compilation->graph;
    const bool *param_only = graph_param_only(graph, arena);
    const bool *needed = find_needed(graph, step->kernel, param_only, arena);
    Rewriter r = rewriter_new(graph, arena);
    Extract e = {.graph = r.to};
    e.tensors = arena_array(arena, graph->node_count + (size_t)tensor_count, sizeof *e.tensors);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (!needed[id]) continue;
        if (node->kernel == step->kernel || param_only[id]) {
            rewriter_copy(&r, id);
            if (node->op == OP_WRITE && node->kernel == step->kernel)
                graph_add_output(r.to, "value", "forward", r.renamed[id]);
            continue;
        }
        /* What kernels before it have made needs a name that no tensor of the model has. */
        const char *name =
            node->op == OP_INPUT ? node->attributes.name : arena_printf(arena, "%%%u", id);
        r.renamed[id] = build_input(r.to, name, &node->type, node->loc);
        e.tensors[e.tensor_count++] = (ReferenceTensor){name, read_copy(n, step, id)};
    }
    /* Of tensors of one name the first counts: that of the images of the step. */
    for (int i = 0; i < tensor_count; i++) e.tensors[e.tensor_count++] = tensors[i];
    return e;
}

/* The parameters of the weights that the options name. */
static Exit read_parameters(Session *session, const Graph *graph, ReferenceTensor **tensors,
                            int *count)
{
    const char *weights = session->options->weights;
    const RaftTensorInfo *parameters = graph_parameters(graph, session->arena, count);
    const float **data;
    Exit exit = parameters_read(session, session->arena, weights ? weights : "@fill", parameters,
                                *count, &data);
    *tensors = arena_array(session->arena, (size_t)*count, sizeof **tensors);
    for (int i = 0; exit == EXIT_DONE && i < *count; i++)
        (*tensors)[i] = (ReferenceTensor){parameters[i].name, data[i]};
    return exit;
}

Exit numerics_tell(const Numerics *n, const ReferenceTensor *tensors, int tensor_count,
                   int64_t step)
{
    if (!n->compilation || n->step < 0) return EXIT_DONE;
    Session *session = n->session;
    const Graph *graph = n->compilation->graph;
    ReferenceTensor *own = NULL;
    if (!tensors) {
        Exit exit = read_parameters(session, graph, &own, &tensor_count);
        if (exit != EXIT_DONE) return exit;
    }
    const Extract e = extract_kernel(n, &n->compilation->plan->steps[n->step],
                                     tensors ? tensors : own, tensor_count);
    ReferenceFault fault;
    if (!reference_search(e.graph, n->images, e.tensors, e.tensor_count, NULL, NULL, &fault,
                          session->diag))
        return EXIT_UNDONE;
    if (fault.node != NO_NODE)
        return tell(session, e.graph, &fault, n->images, n->first, step, NULL);
    return tell(session, graph, &n->fault, n->images, n->first, step,
                "plain loops give finite numbers there: see --target reference");
}
