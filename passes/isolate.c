/* isolate.c: one kernel of a graph as a graph of its own: what it reads is an input, or a parameter
 * where it depends on parameters alone, and what it writes is an output. */
#include "passes/choices.h"

/* What the kernel reads from outside, in the new graph. */
static NodeId add_source(Graph *to, const Graph *from, NodeId id, bool parameter, int number)
{
    const Node *node = graph_node(from, id);
    const char *name = arena_printf(to->arena, "%c%d", parameter ? 'w' : 'x', number);
    int64_t elements = type_elements(&node->type, NULL);
    return parameter ? build_param(to, name, &node->type, 1, &elements, node->loc)
                     : build_input(to, name, &node->type, node->loc);
}

Graph *kernel_isolate(Arena *arena, const Graph *graph, int kernel)
{
    NodeId first, end;
    int sources = 0, outputs = 0;
    Rewriter r = rewriter_new(graph, arena);
    const bool *param_only = graph_param_only(graph, arena);
    kernel_range(graph, kernel, &first, &end);
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(graph, id);
        for (uint32_t i = 0; i < node->operand_count; i++) {
            NodeId operand = node->operands[i];
            if (operand < first && r.renamed[operand] == NO_NODE)
                r.renamed[operand] =
                    add_source(r.to, graph, operand, param_only[operand], sources++);
        }
    }
    for (NodeId id = first; id < end; id++) rewriter_copy(&r, id);
    for (NodeId id = first; id < end; id++)
        if (graph_node(graph, id)->op == OP_WRITE)
            graph_add_output(r.to, arena_printf(arena, "y%d", outputs++), "forward",
                             rewriter_value(&r, id));
    return graph_without_dead(r.to, arena);
}
