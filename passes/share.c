/* share.c
 *
 * Makes equal values one: two nodes with the same op, operands, attributes and type.
 *
 *   before  %1 = gelu %0        after  %1 = gelu %0
 *           %2 = gelu %0               %2 = add %1, %1
 *           %3 = add %1, %2
 *
 * needs: nothing.  keeps: order, kernels (nodes in kernels are left alone).  breaks: nothing.
 */
#include "passes/kernels.h"

#include <string.h>

static bool groups_equal(const Attributes *a, const Attributes *b)
{
    if (a->group_count != b->group_count) return false;
    for (int i = 0; i < a->group_count; i++)
        if (!names_equal(&a->groups[i].from, &b->groups[i].from) ||
            !names_equal(&a->groups[i].to, &b->groups[i].to))
            return false;
    return true;
}

static bool windows_equal(const Attributes *a, const Attributes *b)
{
    return a->window_count == b->window_count &&
           (a->window_count == 0 ||
            memcmp(a->windows, b->windows, (size_t)a->window_count * sizeof *a->windows) == 0);
}

static bool attributes_equal(const Attributes *a, const Attributes *b)
{
    return groups_equal(a, b) && windows_equal(a, b) && names_equal(&a->over, &b->over) &&
           a->offset == b->offset && a->eps == b->eps && a->factor == b->factor &&
           memcmp(&a->map, &b->map, sizeof a->map) == 0;
}

static bool nodes_equal(const Node *a, const Node *b)
{
    return a->op == b->op && a->op != OP_INPUT && a->op != OP_PARAM && a->kernel == NO_KERNEL &&
           b->kernel == NO_KERNEL && a->operand_count == b->operand_count &&
           memcmp(a->operands, b->operands, a->operand_count * sizeof *a->operands) == 0 &&
           type_equal(&a->type, &b->type) &&
           memcmp(&a->layout, &b->layout, sizeof a->layout) == 0 &&
           attributes_equal(&a->attributes, &b->attributes);
}

Graph *pass_share(PassContext *context, const Graph *graph)
{
    Rewriter r = rewriter_new(graph, context->arena);
    /* The last node with each first operand, and the one before it: only those can be equal. */
    NodeId *last_user = arena_array(context->arena, graph->node_count, sizeof *last_user);
    NodeId *previous = arena_array(context->arena, graph->node_count, sizeof *previous);
    for (NodeId id = 0; id < graph->node_count; id++) last_user[id] = NO_NODE;
    for (NodeId id = 0; id < graph->node_count; id++) {
        NodeId made = rewriter_copy(&r, id);
        const Node *node = graph_node(r.to, made);
        if (node->operand_count == 0) continue;
        NodeId *head = &last_user[node->operands[0]];
        NodeId same = *head;
        while (same != NO_NODE && !nodes_equal(node, graph_node(r.to, same))) same = previous[same];
        if (same != NO_NODE && pass_may_rewrite(context)) {
            r.renamed[id] = same;
        } else {
            previous[made] = *head;
            *head = made;
        }
    }
    return rewriter_finish(&r);
}
