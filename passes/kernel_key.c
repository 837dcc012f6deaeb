/* kernel_key.c: when two kernels can share one function, and by which name results of tuning go: all
 * that the code of a kernel depends on, as text, with values from outside by the number of the
 * argument. */
#include "passes/pass.h"

#include <string.h>

/* Arguments as the steps of a plan have them: what is read in order of first use, then the writes. */
typedef struct Arguments {
    NodeId *value;
    int count;
} Arguments;

static int argument_of(const Arguments *arguments, NodeId value)
{
    int i = 0;
    while (i < arguments->count && arguments->value[i] != value) i++;
    return i;
}

static Arguments list_arguments(Arena *arena, const Graph *g, NodeId first, NodeId end)
{
    Arguments a = {arena_array(arena, 2 * (size_t)(end - first), sizeof *a.value), 0};
    for (NodeId id = first; id < end; id++) {
        const Node *node = graph_node(g, id);
        bool outside =
            node->op == OP_READ && (node->operands[0] < first || node->operands[0] >= end);
        if (outside && argument_of(&a, node->operands[0]) == a.count)
            a.value[a.count++] = node->operands[0];
    }
    for (NodeId id = first; id < end; id++)
        if (graph_node(g, id)->op == OP_WRITE) a.value[a.count++] = id;
    return a;
}

static void print_argument(const Graph *g, NodeId value, Text *text)
{
    const Layout *layout = &g->nodes[value].layout;
    type_print(graph_type(g, value), text);
    for (int d = 0; d < layout->rank; d++)
        text_printf(text, " %d/%lld%%%lld", layout->dim[d].axis, (long long)layout->dim[d].divisor,
                    (long long)layout->dim[d].extent);
}

static void print_node(const Graph *g, NodeId id, NodeId first, const Arguments *arguments,
                       bool choices, Text *text)
{
    const Node *node = graph_node(g, id);
    const Attributes *attributes = &node->attributes;
    text_printf(text, "\n%s", op_info[node->op].name);
    for (uint32_t i = 0; i < node->operand_count; i++) {
        if (node->operands[i] >= first)
            text_printf(text, " %%%u", node->operands[i] - first);
        else
            text_printf(text, " $%d", argument_of(arguments, node->operands[i]));
    }
    if (node->op == OP_WRITE) text_printf(text, " -> $%d", argument_of(arguments, id));
    for (int i = 0; i < attributes->over.count; i++)
        text_printf(text, " %s", attributes->over.name[i]);
    text_printf(text, " %a %a ", attributes->eps, attributes->factor);
    if (choices && attributes->tile_rows)
        text_printf(text, "%lldx%lld ", (long long)attributes->tile_rows,
                    (long long)attributes->tile_vectors);
    bool write = node->op == OP_WRITE;
    if (op_info[node->op].attributes & ATTR_MAP)
        map_print(&attributes->map, write ? graph_type(g, node->operands[0]) : &node->type, text);
    type_print(&node->type, text);
}

const char *kernel_key(Arena *arena, const Graph *g, int k, bool choices)
{
    const Kernel *kernel = &g->kernels[k];
    Text text = text_new(arena);
    NodeId first, end;
    kernel_range(g, k, &first, &end);
    for (int i = 0; i < kernel->rank; i++) {
        text_printf(&text, "%s %s %lld", kernel->axis[i].name, kernel->axis[i].symbol,
                    (long long)kernel->axis[i].extent);
        if (choices) text_printf(&text, " %lld", (long long)kernel->tile[i]);
        text_put(&text, ";");
    }
    if (choices)
        text_printf(&text, "%lld %lld;", (long long)kernel->block, (long long)kernel->part);
    Arguments arguments = list_arguments(arena, g, first, end);
    for (int i = 0; i < arguments.count; i++) print_argument(g, arguments.value[i], &text);
    for (NodeId id = first; id < end; id++) print_node(g, id, first, &arguments, choices, &text);
    return text.data;
}
