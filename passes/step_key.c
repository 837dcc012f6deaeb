/* step_key.c: when two steps can share one function: everything that the code of a kernel depends
 * on, as text, with values from outside by the number of the argument. */
#include "passes/pass.h"

const char *step_key(Arena *arena, const Plan *plan, const Step *step)
{
    const Graph *g = plan->graph;
    const Kernel *kernel = &g->kernels[step->kernel];
    Text text = text_new(arena);
    NodeId first, end;
    kernel_range(g, step->kernel, &first, &end);
    for (int i = 0; i < kernel->rank; i++)
        text_printf(&text, "%s %s %lld %lld;", kernel->axis[i].name, kernel->axis[i].symbol,
                    (long long)kernel->axis[i].extent, (long long)kernel->tile[i]);
    for (int i = 0; i < step->argument_count; i++) {
        NodeId value = plan->buffers[step->arguments[i]].value;
        const Layout *layout = &g->nodes[value].layout;
        type_print(graph_type(g, value), &text);
        for (int d = 0; d < layout->rank; d++)
            text_printf(&text, " %d/%lld%%%lld", layout->dim[d].axis,
                        (long long)layout->dim[d].divisor, (long long)layout->dim[d].extent);
    }
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(g, id);
        text_printf(&text, "\n%s", op_info[node->op].name);
        for (uint32_t i = 0; i < node->operand_count; i++) {
            int argument = 0;
            while (argument < step->argument_count &&
                   plan->buffers[step->arguments[argument]].value != node->operands[i])
                argument++;
            if (node->operands[i] >= first)
                text_printf(&text, " %%%u", node->operands[i] - first);
            else
                text_printf(&text, " $%d", argument);
        }
        if (node->op == OP_WRITE)
            for (int i = 0; i < step->argument_count; i++)
                if (plan->buffers[step->arguments[i]].value == id) text_printf(&text, " -> $%d", i);
        for (int i = 0; i < node->attributes.over.count; i++)
            text_printf(&text, " %s", node->attributes.over.name[i]);
        text_printf(&text, " %a %a ", node->attributes.eps, node->attributes.factor);
        bool write = node->op == OP_WRITE;
        if (op_info[node->op].attributes & ATTR_MAP)
            map_print(&node->attributes.map, write ? graph_type(g, node->operands[0]) : &node->type,
                      &text);
        type_print(&node->type, &text);
    }
    return text.data;
}
