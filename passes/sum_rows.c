/* sum_rows.c
 *
 * Takes the gradients of a LayerNorm's scale and shift row by row, where the backward pass of an MLP makes what they are sums
 * of: the kernel that has a row of pixels in the cache can give its sums, and nothing else need read what it made.
 *
 *   before  %2 = linear %1, @w over (k); %3 = layernorm_grad %0, @scale, %2 over (c); %4 = normalise %0 over (c)
 *           %5 = linear %2, %4 over (b, h, w); %6 = sum %2 over (b, h, w)
 *   after   %5 = mul %2, %4; %6 = sum %5 over (w); %7 = sum %6 over (b, h)
 *           %8 = sum %2 over (w); %9 = sum %8 over (b, h)
 *
 * A row are the axes that the MLP mixes, or the last one. Not where a unit of such a kernel would leave half of the L2 cache,
 * nor for machines that stage operands, which have no kernel for all that. The product gets the order of axes in which
 * LayerNorm's gradient reads it, so that no read stands between them.
 *
 * needs: nothing.  keeps: kernels that are there.  breaks: nothing, but sums are taken in another order.
 */
#include "passes/kernels.h"
#include "passes/products.h"

#include <string.h>

typedef struct SumRows {
    PassContext *context;
    Rewriter r;
    const uint32_t *uses;
} SumRows;

/* Is it a product that gives the gradient of normalised values, of the hidden values of an MLP? */
static bool is_of_hidden(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    return node->op == OP_LINEAR && node->kernel == NO_KERNEL &&
           graph_node(graph, node->operands[0])->op == OP_GELU_GRAD;
}

/* Does the gradient of a LayerNorm take `value` as that of what it gave? */
static bool is_of_norm(const Graph *graph, NodeId value)
{
    for (NodeId id = value + 1; id < graph->node_count; id++)
        if (graph->nodes[id].op == OP_LAYERNORM_GRAD && graph->nodes[id].operands[2] == value)
            return true;
    return false;
}

/* What brings product `id` in another order of its axes to a LayerNorm's gradient, if nothing else takes it; or NO_NODE. */
static NodeId find_order(const SumRows *s, NodeId id)
{
    const Graph *graph = s->r.from;
    if (!is_of_hidden(graph, id) || s->uses[id] != 1) return NO_NODE;
    NodeId read = id + 1;
    while (read < graph->node_count &&
           (graph->nodes[read].op != OP_READ || graph->nodes[read].operands[0] != id))
        read++;
    if (read == graph->node_count) return NO_NODE;
    const Node *node = graph_node(graph, read);
    const Type *type = graph_type(graph, id);
    if (node->kernel != NO_KERNEL || node->type.rank != type->rank) return NO_NODE;
    for (int i = 0; i < type->rank; i++)
        if (type_find(&node->type, type->axis[i].name) < 0) return NO_NODE;
    const Map map = map_identity(type, &node->type);
    return memcmp(&map, &node->attributes.map, sizeof map) == 0 && is_of_norm(graph, read)
               ? read
               : NO_NODE;
}

/* The two steps of a sum: names of the axes of a row, and of the others. */
typedef struct Steps {
    Text row, others;
} Steps;

static Steps find_steps(Arena *arena, const Graph *graph, NodeId product, const AxisNames *over)
{
    const Type *hidden = graph_type(graph, graph_node(graph, product)->operands[0]);
    Steps s = {text_new(arena), text_new(arena)};
    int mixed = 0;
    for (int i = 0; i < over->count; i++) mixed += type_find(hidden, over->name[i]) < 0;
    for (int i = 0; i < over->count; i++) {
        bool of_row = mixed > 0 ? type_find(hidden, over->name[i]) < 0 : i == over->count - 1;
        text_printf(of_row ? &s.row : &s.others, "%s ", over->name[i]);
    }
    return s;
}

/* The sum `id` in two steps, or NO_NODE: it is no gradient of the scale or shift of a LayerNorm before an MLP. */
static NodeId split(SumRows *s, NodeId id)
{
    const Graph *graph = s->r.from;
    const Node *node = graph_node(graph, id);
    bool scale = node->op == OP_LINEAR;
    if ((!scale && node->op != OP_SUM) || node->kernel != NO_KERNEL || node->operand_count == 3 ||
        node->attributes.over.count < 2 || !sums_over_batch(graph, id) ||
        (scale && graph_node(graph, node->operands[1])->op != OP_NORMALISE))
        return NO_NODE;
    NodeId gradient = node->operands[0], product = gradient;
    if (graph_node(graph, product)->op == OP_READ)
        product = graph_node(graph, product)->operands[0];
    if (!is_of_hidden(graph, product) || !is_of_norm(graph, gradient)) return NO_NODE;
    const Steps steps = find_steps(s->context->arena, graph, product, &node->attributes.over);
    const AxisNames others = names_make(steps.others.data);
    if (!product_stays_in_cache(graph, product, &others, s->context->target) ||
        !pass_may_rewrite(s->context))
        return NO_NODE;
    NodeId x = rewriter_value(&s->r, gradient);
    if (scale)
        x = build_binary(s->r.to, OP_MUL, rewriter_value(&s->r, node->operands[1]), x, node->loc);
    x = build_reduction(s->r.to, OP_SUM, x, steps.row.data, node->loc);
    return build_reduction(s->r.to, OP_SUM, x, steps.others.data, node->loc);
}

/* Copies product `id`, with the axes in the order of `read`. */
static void copy_in_order(SumRows *s, NodeId id, NodeId read)
{
    rewriter_copy(&s->r, id);
    graph_node(s->r.to, s->r.renamed[id])->type = *graph_type(s->r.from, read);
    s->r.renamed[read] = s->r.renamed[id];
}

Graph *pass_sum_rows(PassContext *context, const Graph *graph)
{
    if (context->target->stages_operands) return (Graph *)graph;
    SumRows s = {context, rewriter_new(graph, context->arena), graph_uses(graph, context->arena)};
    for (NodeId id = 0; id < graph->node_count; id++) {
        if (s.r.renamed[id] != NO_NODE) continue;
        NodeId read = find_order(&s, id);
        if (read != NO_NODE && pass_may_rewrite(context))
            copy_in_order(&s, id, read);
        else if ((s.r.renamed[id] = split(&s, id)) == NO_NODE)
            rewriter_copy(&s.r, id);
    }
    return rewriter_finish(&s.r);
}
