/* differentiate.c
 *
 * Adds the backward pass: reverse mode, one rule an op (gradients.c), on the graph as the frontend
 * builds it, but with one window for each embedding. The entry `forward` stays; the entry `backward`
 * gets the loss of every image and, for each parameter that it depends on, the gradient in the
 * parameter's own axes of sum(weight * loss):
 *
 *   before  output forward.logits = %9          f32[b, class 10]
 *   after   input @target : f32[b, class 10]    the share of each class
 *           input @weight : f32[b]              1 / batch, for the mean over the batch
 *           %10 = cross_entropy %9, @target over (class) : f32[b]
 *           %11 = cross_entropy_grad %9, @target, @weight over (class)
 *           ...
 *           output backward.loss = %10
 *           output backward.grad.fc.weight = %40
 *
 * An output forward.loss of type f32[b] is taken for the loss as it is, and there is no target then.
 * Where the caller gives gradients, each output of the forward has one for an input, to be added:
 *
 *           input @grad.logits : f32[b, class 10]
 *
 * needs: no kernels.  keeps: every op of the forward.  breaks: nothing. Of the training pipeline only.
 */
#include "passes/gradients.h"
#include "passes/pass.h"

#include <string.h>

static const Output *find_output(const Graph *graph, const char *entry, const char *name)
{
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        bool found = strcmp(output->entry, entry) == 0 && (!name || !strcmp(output->name, name));
        if (found) return output;
    }
    return NULL;
}

static bool is_per_image(const Type *type, int rank)
{
    return type->rank == rank && strcmp(type->axis[0].symbol, "b") == 0 &&
           (rank == 1 || !type->axis[1].symbol[0]);
}

/* The loss of each image, f32[b], appended where the graph has logits only. NO_NODE after an error. */
static NodeId add_loss(Graph *graph, Diag *diag)
{
    const Output *loss = find_output(graph, "forward", "loss");
    const Output *logits = find_output(graph, "forward", "logits");
    Loc loc = graph_node(graph, graph->outputs[0].value)->loc;
    if (loss && is_per_image(graph_type(graph, loss->value), 1)) return loss->value;
    if (!logits || !is_per_image(graph_type(graph, logits->value), 2)) {
        diag_error(diag, loc,
                   "there is nothing to train: no output forward.logits of type f32[b, class N], "
                   "nor forward.loss of type f32[b]");
        return NO_NODE;
    }
    Type type = *graph_type(graph, logits->value);
    NodeId target = build_input(graph, "target", &type, loc);
    return build_cross_entropy(graph, logits->value, target, type.axis[1].name, loc);
}

/* Which values depend on a parameter. */
static bool *find_wanted(Arena *arena, const Graph *graph)
{
    bool *wanted = arena_array(arena, graph->node_count, sizeof *wanted);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        wanted[id] = node->op == OP_PARAM;
        for (uint32_t i = 0; i < node->operand_count; i++) wanted[id] |= wanted[node->operands[i]];
    }
    return wanted;
}

/* Hands gradients down from the value `last`, the last first; false after an error. */
static bool pass_down(Backward *b, NodeId last)
{
    for (NodeId id = last + 1; id-- > 0;) {
        if (b->gradient[id] == NO_NODE || !b->wanted[id]) continue;
        if (graph_node(b->graph, id)->kernel != NO_KERNEL)
            return diag_error(b->diag, graph_node(b->graph, id)->loc,
                              "a graph is differentiated before kernels are made");
        if (!op_gradient[graph_node(b->graph, id)->op](b, id, b->gradient[id])) return false;
    }
    return true;
}

/* The caller's gradients of what the forward gives; one value may be several outputs. */
static void take_given(Backward *b)
{
    Graph *graph = b->graph;
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        Loc loc = graph_node(graph, output->value)->loc;
        NodeId *sum = &b->gradient[output->value];
        Type type = *graph_type(graph, output->value);
        NodeId given =
            build_input(graph, arena_printf(graph->arena, "grad.%s", output->name), &type, loc);
        *sum = *sum == NO_NODE ? given : build_binary(graph, OP_ADD, *sum, given, loc);
    }
}

static bool differentiate(Graph *graph, bool given, Diag *diag)
{
    NodeId loss = add_loss(graph, diag);
    if (loss == NO_NODE) return false;
    NodeId forward_count = graph->node_count;
    Backward b = {.graph = graph, .diag = diag, .wanted = find_wanted(graph->arena, graph)};
    b.gradient = arena_array(graph->arena, forward_count, sizeof *b.gradient);
    for (NodeId id = 0; id < forward_count; id++) b.gradient[id] = NO_NODE;
    Type type = *graph_type(graph, loss);
    b.gradient[loss] = build_input(graph, "weight", &type, graph_node(graph, loss)->loc);
    if (given) take_given(&b);
    if (!pass_down(&b, forward_count - 1)) return false;
    graph_add_output(graph, "loss", "backward", loss);
    for (NodeId id = 0; id < forward_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op != OP_PARAM || b.gradient[id] == NO_NODE) continue;
        graph_add_output(graph, arena_printf(graph->arena, "grad.%s", node->attributes.name),
                         "backward", b.gradient[id]);
    }
    return true;
}

Graph *pass_differentiate(PassContext *context, const Graph *graph)
{
    Rewriter r = rewriter_new(graph, context->arena);
    for (NodeId id = 0; id < graph->node_count; id++) rewriter_copy(&r, id);
    Graph *copy = rewriter_finish(&r);
    if (find_output(graph, "backward", NULL)) return copy;
    if (!differentiate(copy, context->given, context->diag)) return NULL;
    return graph_without_dead(copy, context->arena);
}
