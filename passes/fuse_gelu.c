/* fuse_gelu.c
 *
 * Lets a product that sums over the batch compute the GELU of what it takes: that of the hidden values of an
 * MLP for the gradient of its second weights. So the backward pass needs the values before the GELU alone, and
 * the one in the forward is again of one use.
 *
 *   before  %2 = gelu %1; %3 = linear %2, @w over (k)     after  %2 = gelu %1; %3 = linear %2, @w over (k)
 *           %9 = linear %8, %2 over (b, h)                       kernel for (c 64, k 256) {
 *                                                                  %5 = read %1 ..; %6 = gelu %5
 *                                                                  %9 = linear %4, %6 over (b, h)
 *
 * Only where products bring long sums to scratch memory part by part: there each element is computed few times.
 *
 * needs: nothing.  keeps: kernels that are there, every value to the bit.  breaks: that equal values are one.
 */
#include "passes/kernels.h"
#include "passes/products.h"

typedef struct FuseGelu {
    PassContext *context;
    Rewriter r;
    const uint32_t *uses;
    NodeId (*pair)[2]; /* a gelu and its product, in the new graph */
    int count;
} FuseGelu;

/* The operand of product `id` that is to be computed in its kernel, or -1. */
static int find_operand(const FuseGelu *f, NodeId id)
{
    const Graph *graph = f->r.from;
    const Node *linear = graph_node(graph, id);
    if (linear->op != OP_LINEAR || linear->kernel != NO_KERNEL || !sums_over_batch(graph, id) ||
        linear->operands[0] == linear->operands[1])
        return -1;
    for (int i = 0; i < 2; i++) {
        const Node *gelu = graph_node(graph, linear->operands[i]);
        if (gelu->op == OP_GELU && gelu->kernel == NO_KERNEL) return i;
    }
    return -1;
}

/* The product again, after a gelu of its own if others use that, too. */
static void add_pair(FuseGelu *f, NodeId id, int operand)
{
    const Node *linear = graph_node(f->r.from, id);
    NodeId gelu = linear->operands[operand], own = rewriter_value(&f->r, gelu), operands[3];
    const Node *node = graph_node(f->r.from, gelu);
    if (f->uses[gelu] > 1) {
        NodeId x = rewriter_value(&f->r, node->operands[0]);
        own = graph_add(f->r.to, OP_GELU, &x, 1, &node->type, &node->attributes, node->loc);
    }
    for (uint32_t i = 0; i < linear->operand_count; i++)
        operands[i] = (int)i == operand ? own : rewriter_value(&f->r, linear->operands[i]);
    f->pair[f->count][0] = own;
    f->pair[f->count++][1] = f->r.renamed[id] =
        graph_add(f->r.to, OP_LINEAR, operands, linear->operand_count, &linear->type,
                  &linear->attributes, linear->loc);
}

Graph *pass_fuse_gelu(PassContext *context, const Graph *graph)
{
    if (context->target->stages_operands) return (Graph *)graph;
    FuseGelu f = {.context = context, .r = rewriter_new(graph, context->arena)};
    f.uses = graph_uses(graph, context->arena);
    f.pair = arena_array(context->arena, graph->node_count, sizeof *f.pair);
    for (NodeId id = 0; id < graph->node_count; id++) {
        int operand = find_operand(&f, id);
        if (operand >= 0 && pass_may_rewrite(context))
            add_pair(&f, id, operand);
        else
            rewriter_copy(&f.r, id);
    }
    rewriter_copy_outputs(&f.r);
    Draft draft = draft_new(context->arena, f.r.to);
    for (int i = 0; i < f.count; i++) draft_add(&draft, f.pair[i], 2);
    return draft_finish(context, &draft);
}
