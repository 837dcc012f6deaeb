/* recompute.c
 *
 * Computes values of the forward again beside what uses them in the backward pass, so that they need not
 * be kept in between: what is joined, normalised or a GELU, of which an element costs little. So many as
 * are asked for, those first that save most bytes for an operation.
 *
 *   before  %1 = gelu %0; %2 = linear %1, @w ..        after  %1 = gelu %0; %2 = linear %1, @w ..
 *           ...                                               ...
 *           %9 = linear %8, %1 ..                             %9 = gelu %0; %10 = linear %8, %9 ..
 *
 * needs: no kernels, a backward pass.  keeps: every value, to the bit.  breaks: that equal values are one.
 */
#include "passes/kernels.h"

#include <stdlib.h>
#include <string.h>

typedef struct Recompute {
    Rewriter r;
    bool *forward; /* what can be known before any gradient is */
    bool *chosen;  /* to be computed again, or moved again because of that */
    NodeId *again; /* the second of it in the new graph; NO_NODE: not made yet */
} Recompute;

typedef struct Candidate {
    NodeId id;
    int price; /* operations an element, about */
    int64_t elements;
} Candidate;

/* 0: it is kept. */
static int price_of(Op op)
{
    return op == OP_CONCAT ? 1 : op == OP_LAYERNORM ? 8 : op == OP_GELU ? 24 : 0;
}

static int by_gain(const void *left, const void *right)
{
    const Candidate *a = left, *b = right;
    if (a->price != b->price) return a->price < b->price ? -1 : 1;
    if (a->elements != b->elements) return a->elements > b->elements ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

/* What depends on no input that gradients alone need. */
static bool *find_forward(const Graph *graph, Arena *arena)
{
    bool *needed = arena_array(arena, graph->node_count, sizeof *needed);
    bool *forward = arena_array(arena, graph->node_count, sizeof *forward);
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        if (strncmp(output->name, "grad.", strlen("grad.")) != 0) needed[output->value] = true;
    }
    for (NodeId id = graph->node_count; id-- > 0;)
        for (uint32_t i = 0; needed[id] && i < graph->nodes[id].operand_count; i++)
            needed[graph->nodes[id].operands[i]] = true;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        forward[id] = node->op != OP_INPUT || needed[id];
        for (uint32_t i = 0; i < node->operand_count; i++)
            forward[id] &= forward[node->operands[i]];
    }
    return forward;
}

/* Which values of the forward the backward pass uses, as they are or moved. */
static bool *find_kept(const Graph *graph, const bool *forward, Arena *arena)
{
    bool *kept = arena_array(arena, graph->node_count, sizeof *kept);
    for (NodeId id = graph->node_count; id-- > 0;) {
        const Node *node = graph_node(graph, id);
        bool uses = !forward[id] || (kept[id] && is_movement(node->op));
        for (uint32_t i = 0; uses && i < node->operand_count; i++)
            kept[node->operands[i]] |= forward[node->operands[i]];
    }
    return kept;
}

static void choose(PassContext *context, const Graph *graph, Recompute *re)
{
    Arena *arena = context->arena;
    const bool *kept = find_kept(graph, re->forward, arena),
               *param_only = graph_param_only(graph, arena);
    Candidate *list = arena_array(arena, graph->node_count, sizeof *list);
    size_t count = 0;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        int price = price_of(node->op);
        if (kept[id] && !param_only[id] && price > 0 && node->kernel == NO_KERNEL)
            list[count++] = (Candidate){id, price, type_elements(&node->type, NULL)};
    }
    for (uint32_t i = 0; i < graph->output_count; i++) /* those are stored anyway */
        for (size_t k = 0; k < count; k++)
            if (list[k].id == graph->outputs[i].value) list[k--] = list[--count];
    qsort(list, count, sizeof *list, by_gain);
    for (size_t k = 0; k < count && (int64_t)k < context->recompute; k++)
        if (pass_may_rewrite(context)) re->chosen[list[k].id] = true;
    for (NodeId id = 0; id < graph->node_count; id++)
        if (re->forward[id] && is_movement(graph_node(graph, id)->op))
            re->chosen[id] = re->chosen[graph_node(graph, id)->operands[0]];
    for (NodeId id = graph->node_count; id-- > 0;)
        for (uint32_t i = 0; re->chosen[id] && i < graph->nodes[id].operand_count; i++) {
            NodeId operand = graph->nodes[id].operands[i];
            re->chosen[operand] |= is_movement(graph_node(graph, operand)->op);
        }
}

static NodeId add_again(Recompute *re, NodeId id);

/* What the backward pass takes for a value: that of the forward, or a second one. */
static NodeId value_for_backward(Recompute *re, NodeId id)
{
    if (!re->chosen[id]) return rewriter_value(&re->r, id);
    if (re->again[id] == NO_NODE) re->again[id] = add_again(re, id);
    return re->again[id];
}

static NodeId add_again(Recompute *re, NodeId id)
{
    const Node *node = graph_node(re->r.from, id);
    NodeId *operands = arena_array(re->r.to->arena, node->operand_count, sizeof *operands);
    for (uint32_t i = 0; i < node->operand_count; i++)
        operands[i] = value_for_backward(re, node->operands[i]);
    return graph_add(re->r.to, node->op, operands, node->operand_count, &node->type,
                     &node->attributes, node->loc);
}

Graph *pass_recompute(PassContext *context, const Graph *graph)
{
    Recompute re = {.r = rewriter_new(graph, context->arena)};
    re.forward = find_forward(graph, context->arena);
    re.chosen = arena_array(context->arena, graph->node_count, sizeof *re.chosen);
    re.again = arena_array(context->arena, graph->node_count, sizeof *re.again);
    for (NodeId id = 0; id < graph->node_count; id++) re.again[id] = NO_NODE;
    choose(context, graph, &re);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (re.forward[id] || node->kernel != NO_KERNEL || node->operand_count == 0)
            rewriter_copy(&re.r, id);
        else
            re.r.renamed[id] = add_again(&re, id);
    }
    return rewriter_finish(&re.r);
}
