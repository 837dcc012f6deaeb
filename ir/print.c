/* print.c: graphs as text (ir.md has the grammar), which parses back to the same graph. */
#include "ir/private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const char *const dtype_names[DTYPE_COUNT] = {
    [DTYPE_F32] = "f32",
    [DTYPE_BF16] = "bf16",
    [DTYPE_I32] = "i32",
};

static void print_axis(const Axis *axis, Text *out)
{
    text_put(out, axis->name);
    if (!axis->symbol[0])
        text_printf(out, " %" PRId64, axis->extent);
    else if (strcmp(axis->symbol, axis->name) != 0)
        text_printf(out, " $%s", axis->symbol);
}

void type_print(const Type *type, Text *out)
{
    text_printf(out, "%s[", dtype_names[type->dtype]);
    for (int i = 0; i < type->rank; i++) {
        if (i > 0) text_put(out, ", ");
        print_axis(&type->axis[i], out);
    }
    text_put(out, "]");
}

static void print_layout(const Layout *layout, const Type *type, Text *out)
{
    if (layout->rank == 0) return;
    text_put(out, " packed (");
    for (int i = 0; i < layout->rank; i++) {
        const Axis *axis = &type->axis[layout->dim[i].axis];
        text_printf(out, "%s%s", i > 0 ? ", " : "", axis->name);
        if (layout->dim[i].divisor != 1) text_printf(out, "/%" PRId64, layout->dim[i].divisor);
        if (!axis->symbol[0]) text_printf(out, " %" PRId64, layout->dim[i].extent);
    }
    text_put(out, ")");
}

/* One term of an index: its sign, as the first or a later one, and its absolute value. */
static void print_sign(int64_t value, bool first, Text *out)
{
    if (!first)
        text_put(out, value < 0 ? " - " : " + ");
    else if (value < 0)
        text_put(out, "-");
}

static uint64_t magnitude(int64_t value)
{
    return value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
}

static void print_index(const Index *index, const Type *space, Text *out)
{
    bool first = true;
    for (int i = 0; i < space->rank; i++) {
        int64_t coefficient = index->coefficient[i];
        if (coefficient == 0) continue;
        print_sign(coefficient, first, out);
        text_put(out, space->axis[i].name);
        if (magnitude(coefficient) != 1) text_printf(out, "*%" PRIu64, magnitude(coefficient));
        first = false;
    }
    if (index->offset == 0 && !first) return;
    print_sign(index->offset, first, out);
    text_printf(out, "%" PRIu64, magnitude(index->offset));
}

void map_print(const Map *map, const Type *space, Text *out)
{
    text_put(out, "[");
    for (int i = 0; i < map->rank; i++) {
        if (i > 0) text_put(out, ", ");
        print_index(&map->dim[i], space, out);
    }
    text_put(out, "]");
}

/* ---- attributes ------------------------------------------------------------------------------ */

static void print_names(const AxisNames *names, Text *out)
{
    text_put(out, "(");
    for (int i = 0; i < names->count; i++)
        text_printf(out, "%s%s", i > 0 ? ", " : "", names->name[i]);
    text_put(out, ")");
}

static void print_group_side(const AxisNames *names, Text *out)
{
    if (names->count == 1)
        text_put(out, names->name[0]);
    else
        print_names(names, out);
}

void double_print(double value, Text *out)
{
    char digits[32];
    for (int precision = 1; precision <= 17; precision++) {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        if (strtod(digits, NULL) == value) break;
    }
    text_put(out, digits);
}

static void print_stored(const Attributes *attributes, Text *out)
{
    text_put(out, " stored [");
    for (int i = 0; i < attributes->stored_rank; i++)
        text_printf(out, "%s%" PRId64, i > 0 ? ", " : "", attributes->stored[i]);
    text_put(out, "]");
}

static void print_groups(const Attributes *attributes, Text *out)
{
    for (int i = 0; i < attributes->group_count; i++) {
        text_put(out, i > 0 ? ", " : " ");
        print_group_side(&attributes->groups[i].from, out);
        text_put(out, " -> ");
        print_group_side(&attributes->groups[i].to, out);
    }
}

static void print_windows(const Attributes *attributes, Text *out)
{
    for (int i = 0; i < attributes->window_count; i++) {
        const Window *window = &attributes->windows[i];
        text_printf(out, "%s%s -> (%s, %s %" PRId64 ") stride %" PRId64 " pad %" PRId64,
                    i > 0 ? ", " : " ", window->from, window->outer, window->inner, window->kernel,
                    window->stride, window->pad);
    }
}

static void print_attributes(const Graph *graph, const Node *node, Text *out)
{
    unsigned has = op_info[node->op].attributes;
    const Attributes *attributes = &node->attributes;
    if (has & ATTR_NAME) text_printf(out, " @%s", attributes->name);
    if (has & ATTR_STORED) print_stored(attributes, out);
    if (has & ATTR_GROUPS) print_groups(attributes, out);
    if (has & ATTR_WINDOWS) print_windows(attributes, out);
    if (has & ATTR_MAP) {
        bool of_operand = node->op == OP_WRITE;
        text_put(out, " ");
        map_print(&attributes->map, of_operand ? graph_type(graph, node->operands[0]) : &node->type,
                  out);
    }
    if (has & ATTR_OVER) {
        text_put(out, " over ");
        print_names(&attributes->over, out);
    }
    if (has & ATTR_OFFSET) text_printf(out, " from %" PRId64, attributes->offset);
    if (has & ATTR_EPS) {
        text_put(out, " eps ");
        double_print(attributes->eps, out);
    }
    if (has & ATTR_FACTOR) {
        text_put(out, " by ");
        double_print(attributes->factor, out);
    }
    if (has & ATTR_TILE && attributes->tile_rows)
        text_printf(out, " tile %" PRId64 " by %" PRId64, attributes->tile_rows,
                    attributes->tile_vectors);
}

/* ---- nodes and graphs ------------------------------------------------------------------------ */

static bool is_declaration(const Node *node)
{
    return (op_info[node->op].attributes & ATTR_NAME) != 0;
}

/* The N of each %N: values count in program order, declarations go by their names. */
static const NodeId *number_values(const Graph *graph, Arena *arena)
{
    NodeId *numbers = arena_array(arena, graph->node_count, sizeof *numbers);
    NodeId next = 0;
    for (NodeId id = 0; id < graph->node_count; id++)
        numbers[id] = is_declaration(&graph->nodes[id]) ? NO_NODE : next++;
    return numbers;
}

static void print_value(const Graph *graph, const NodeId *numbers, NodeId id, Text *out)
{
    if (numbers[id] == NO_NODE)
        text_printf(out, "@%s", graph->nodes[id].attributes.name);
    else
        text_printf(out, "%%%" PRIu32, numbers[id]);
}

static void print_node(const Graph *graph, const NodeId *numbers, NodeId id, Text *out)
{
    const Node *node = graph_node(graph, id);
    if (!is_declaration(node)) {
        print_value(graph, numbers, id, out);
        text_put(out, " = ");
    }
    text_put(out, op_info[node->op].name);
    for (uint32_t i = 0; i < node->operand_count; i++) {
        text_put(out, i > 0 ? ", " : " ");
        print_value(graph, numbers, node->operands[i], out);
    }
    print_attributes(graph, node, out);
    text_put(out, " : ");
    type_print(&node->type, out);
    print_layout(&node->layout, &node->type, out);
}

void node_print(const Graph *graph, NodeId id, Text *out)
{
    print_node(graph, number_values(graph, out->arena), id, out);
}

const char *kernel_name_from(const Graph *graph, NodeId first, Arena *arena)
{
    Graph rest = *graph;
    rest.nodes += first;
    rest.node_count -= first;
    return kernel_name(&rest, rest.nodes[0].kernel, arena);
}

static void open_kernel(const Graph *graph, NodeId first, Text *out)
{
    const Kernel *kernel = &graph->kernels[graph->nodes[first].kernel];
    text_put(out, "kernel for (");
    for (int i = 0; i < kernel->rank; i++) {
        if (i > 0) text_put(out, ", ");
        print_axis(&kernel->axis[i], out);
        if (kernel->tile[i] != 1) text_printf(out, " by %" PRId64, kernel->tile[i]);
    }
    text_put(out, ")");
    if (kernel->walk[0]) text_printf(out, " walk %s by %" PRId64, kernel->walk, kernel->step);
    if (kernel->block) text_printf(out, " block %" PRId64, kernel->block);
    if (kernel->part) text_printf(out, " part %" PRId64, kernel->part);
    text_printf(out, " {  # %s\n", kernel_name_from(graph, first, out->arena));
    out->indent++;
}

static void close_kernel(Text *out)
{
    out->indent--;
    text_put(out, "}\n");
}

void graph_print(const Graph *graph, Text *out)
{
    const NodeId *numbers = number_values(graph, out->arena);
    text_printf(out, "graph %s {\n", graph->name);
    out->indent++;
    int kernel = NO_KERNEL;
    for (NodeId id = 0; id < graph->node_count; id++) {
        if (graph->nodes[id].kernel != kernel) {
            if (kernel != NO_KERNEL) close_kernel(out);
            kernel = graph->nodes[id].kernel;
            if (kernel != NO_KERNEL) open_kernel(graph, id, out);
        }
        print_node(graph, numbers, id, out);
        text_put(out, "\n");
    }
    if (kernel != NO_KERNEL) close_kernel(out);
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        text_printf(out, "output %s.%s = ", output->entry, output->name);
        print_value(graph, numbers, output->value, out);
        text_put(out, "\n");
    }
    out->indent--;
    text_put(out, "}\n");
}
