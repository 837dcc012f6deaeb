/* run.c: evaluates graphs node by node: what is needed, when it is freed; the table of the ops. */
#include "backends/reference/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const OpReference op_reference[OP_COUNT] = {
#define OP(NAME, ...) [OP_##NAME] = {reference_##NAME##_f32, reference_##NAME##_f64, bound_##NAME},
#include "ir/op.def"
#undef OP
};

bool run_out_of_memory(const Run *run, NodeId id)
{
    return diag_error(run->diag, run_node(run, id)->loc, "out of memory");
}

const float *run_tensor(const Run *run, const Node *node)
{
    for (int i = 0; i < run->tensor_count; i++)
        if (strcmp(run->tensors[i].name, node->attributes.name) == 0) return run->tensors[i].data;
    diag_error(run->diag, node->loc, "there is no tensor for the %s '%s'", op_info[node->op].name,
               node->attributes.name);
    return NULL;
}

static void *value_new(const Run *run, NodeId id, size_t size, size_t *bytes)
{
    int64_t elements;
    if (!value_elements(run_type(run, id), run->batch, &elements) ||
        __builtin_mul_overflow(elements, size, bytes))
        return NULL;
    return calloc((size_t)elements, size);
}

static void values_free(void **values, uint32_t count)
{
    for (NodeId id = 0; id < count; id++) {
        free(values[id]);
        values[id] = NULL;
    }
}

static bool wanted(const Output *output, const char *entry)
{
    return !entry || strcmp(output->entry, entry) == 0;
}

/* How often each value is used by the entry's outputs and by what they need; 0: not needed. */
static uint32_t *count_uses(const Graph *graph, const char *entry)
{
    uint32_t *uses = calloc((size_t)graph->node_count + 1, sizeof *uses);
    if (!uses) return NULL;
    for (uint32_t i = 0; i < graph->output_count; i++)
        if (wanted(&graph->outputs[i], entry)) uses[graph->outputs[i].value]++;
    for (NodeId id = graph->node_count; id-- > 0;)
        for (uint32_t i = 0; uses[id] > 0 && i < graph->nodes[id].operand_count; i++)
            uses[graph->nodes[id].operands[i]]++;
    return uses;
}

static void release(const Run *run, uint32_t *uses, NodeId id)
{
    if (--uses[id] > 0) return;
    free(run->values[id]);
    run->values[id] = NULL;
}

static bool is_faulty(const Run *run, NodeId id, size_t bytes)
{
    const float *value = run->values[id];
    for (size_t i = 0; i < bytes / sizeof *value; i++) {
        if (isfinite(value[i])) continue;
        *run->fault = (ReferenceFault){id, (int64_t)i, value[i]};
        return true;
    }
    return false;
}

/* Computes the values in use. With `outputs`, those of the entry are copied there and every value
 * is freed after its last use; without, all stay in run->values. */
static bool run_nodes(const Run *run, uint32_t *uses, const char *entry, bool f64,
                      void *const *outputs)
{
    const Graph *graph = run->graph;
    for (NodeId id = 0; id < graph->node_count; id++) {
        if (uses[id] == 0) continue;
        const Node *node = run_node(run, id);
        const OpReference *op = &op_reference[node->op];
        size_t bytes = 0;
        run->values[id] = value_new(run, id, f64 ? sizeof(double) : sizeof(float), &bytes);
        if (!run->values[id]) return run_out_of_memory(run, id);
        if (!(f64 ? op->f64 : op->f32)(run, id)) return false;
        if (run->fault && is_faulty(run, id, bytes)) return false;
        if (!outputs) continue;
        for (uint32_t i = 0; i < node->operand_count; i++) release(run, uses, node->operands[i]);
        for (uint32_t i = 0; i < graph->output_count; i++) {
            if (graph->outputs[i].value != id || !wanted(&graph->outputs[i], entry)) continue;
            memcpy(outputs[i], run->values[id], bytes);
            release(run, uses, id);
        }
    }
    return true;
}

static bool run_graph(const Graph *graph, int64_t batch, const ReferenceTensor *tensors,
                      int tensor_count, const char *entry, bool f64, void *const *outputs,
                      ReferenceFault *fault, Diag *diag)
{
    Run run = {.graph = graph,
               .batch = batch,
               .tensors = tensors,
               .tensor_count = tensor_count,
               .values = calloc((size_t)graph->node_count + 1, sizeof *run.values),
               .fault = fault,
               .diag = diag};
    uint32_t *uses = count_uses(graph, entry);
    bool done = run.values && uses ? run_nodes(&run, uses, entry, f64, outputs)
                                   : diag_error(diag, (Loc){0}, "out of memory");
    if (run.values) values_free(run.values, graph->node_count);
    free(run.values);
    free(uses);
    return done;
}

bool reference_run(const Graph *graph, int64_t batch, const ReferenceTensor *tensors,
                   int tensor_count, const char *entry, bool f64, void *const *outputs, Diag *diag)
{
    return run_graph(graph, batch, tensors, tensor_count, entry, f64, outputs, NULL, diag);
}

bool reference_search(const Graph *graph, int64_t batch, const ReferenceTensor *tensors,
                      int tensor_count, const char *entry, void *const *outputs,
                      ReferenceFault *fault, Diag *diag)
{
    *fault = (ReferenceFault){.node = NO_NODE};
    return run_graph(graph, batch, tensors, tensor_count, entry, false, outputs, fault, diag) ||
           fault->node != NO_NODE;
}

bool reference_evaluate(const Graph *graph, int64_t batch, const ReferenceTensor *tensors,
                        int tensor_count, bool f64, void **values, Diag *diag)
{
    memset(values, 0, graph->node_count * sizeof *values);
    Run run = {.graph = graph,
               .batch = batch,
               .tensors = tensors,
               .tensor_count = tensor_count,
               .values = values,
               .diag = diag};
    uint32_t *uses = count_uses(graph, NULL);
    bool done =
        uses ? run_nodes(&run, uses, NULL, f64, NULL) : diag_error(diag, (Loc){0}, "out of memory");
    free(uses);
    if (!done) values_free(values, graph->node_count);
    return done;
}

bool reference_bound(const Graph *graph, int64_t batch, void **values, void **bounds, Diag *diag)
{
    memset(bounds, 0, graph->node_count * sizeof *bounds);
    Run run = {.graph = graph, .batch = batch, .values = values, .bounds = bounds, .diag = diag};
    bool done = true;
    for (NodeId id = 0; done && id < graph->node_count; id++) {
        if (!values[id]) continue;
        size_t bytes = 0;
        bounds[id] = value_new(&run, id, sizeof(double), &bytes);
        done = bounds[id] ? op_reference[graph->nodes[id].op].bound(&run, id)
                          : run_out_of_memory(&run, id);
    }
    if (!done) values_free(bounds, graph->node_count);
    return done;
}
