/* lanes.c: along which axis the vectors of each value of a kernel run. */
#include "passes/products.h"

#include <string.h>

/* A unit has one index along a symbolic axis, so lanes are never along one. */
static const char *last_axis(const Type *type)
{
    for (int i = type->rank; i-- > 0;)
        if (!type->axis[i].symbol[0]) return type->axis[i].name;
    return NULL;
}

/* The innermost axis of many indices, or else the longest. */
static const char *inner_long_axis(const Type *type)
{
    enum { LANES = 16 };
    const Axis *best = NULL;
    for (int i = type->rank; i-- > 0 && (!best || best->extent < LANES);)
        if (!type->axis[i].symbol[0] && (!best || type->axis[i].extent > best->extent))
            best = &type->axis[i];
    return best ? best->name : NULL;
}

/* The axis that walks memory one element at a time when the value is written. Of a sum over the batch little is
 * written beside what is read: where that axis is short, one of many indices. */
static const char *written_lane(const Graph *graph, const Node *write)
{
    enum { SHORT = 4 };
    Op op = graph_node(graph, write->operands[0])->op;
    bool few = (op == OP_LINEAR || op == OP_SUM) && sums_over_batch(graph, write->operands[0]);
    const Type *x = graph_type(graph, write->operands[0]);
    if (write->type.rank == 0) return last_axis(x);
    const Index *innermost = &write->attributes.map.dim[write->type.rank - 1];
    for (int i = 0; i < x->rank; i++)
        if (innermost->coefficient[i] == 1 && !x->axis[i].symbol[0])
            return few && x->axis[i].extent < SHORT ? inner_long_axis(x) : x->axis[i].name;
    return last_axis(x);
}

const char *memory_lane(const Graph *graph, NodeId id)
{
    const Node *read = graph_node(graph, id);
    if (read->op == OP_GELU) read = graph_node(graph, read->operands[0]);
    const Node *stored = graph_node(graph, read->operands[0]);
    int last = stored->layout.rank ? stored->layout.dim[stored->layout.rank - 1].axis
                                   : stored->type.rank - 1;
    for (int i = 0; last >= 0 && i < read->type.rank; i++)
        if (read->attributes.map.dim[last].coefficient[i] == 1 && !read->type.axis[i].symbol[0])
            return read->type.axis[i].name;
    return NULL;
}

/* What is brought to scratch memory can have its vectors along any axis of the result, wherever that is
 * written: best along one that lies in memory so, and has many indices. */
static const char *parted_lane(const Graph *graph, NodeId linear, const char *lane)
{
    enum { SHORT = 16 };
    const Node *node = graph_node(graph, linear);
    const char *best = NULL;
    for (int i = 2; i-- > 0;) {
        const char *own = memory_lane(graph, node->operands[i]);
        if (!own || type_find(&node->type, own) < 0) continue;
        const Axis *axis = &node->type.axis[type_find(&node->type, own)];
        bool longer = best && node->type.axis[type_find(&node->type, best)].extent < SHORT &&
                      axis->extent >= SHORT;
        if (!best || longer || (lane && strcmp(own, lane) == 0)) best = own;
    }
    return best ? best : lane;
}

/* Do threads bring both operands, as they are read for this product alone? */
static bool brings_both(const Graph *graph, NodeId linear, const Target *target)
{
    const Node *node = graph_node(graph, linear);
    return target->stages_operands && product_of_images(graph, linear) &&
           own_read(graph, node->operands[0]) == node->operands[0] &&
           own_read(graph, node->operands[1]) == node->operands[1];
}

/* Is it a sum over the batch, of what is read along an axis that is summed over, and stored as it is? */
static bool sums_in_memory(const Graph *graph, NodeId sum, const Target *target)
{
    const Node *node = graph_node(graph, sum);
    if (target->stages_operands || node->op != OP_SUM || !sums_over_batch(graph, sum) ||
        own_read(graph, node->operands[0]) != node->operands[0] || sum + 1 >= graph->node_count)
        return false;
    const Node *next = graph_node(graph, sum + 1);
    const char *lane = memory_lane(graph, node->operands[0]);
    return next->op == OP_WRITE && next->operands[0] == sum && next->kernel == node->kernel &&
           lane && names_contain(&node->attributes.over, lane);
}

/* In a kernel that walks: a product that adds up steps, or a sum, to whose vectors operands are turned if others take them along
 * another axis. */
static bool brings_operands(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    return sums_walk(graph, id) || (node->op == OP_SUM && graph->kernels[node->kernel].walk[0]);
}

/* What a kernel that walks computes again, of what it takes, has the vectors of its other users. */
static const char *lane_of_operand(const Graph *graph, NodeId id, NodeId first, const char **lane)
{
    const Node *node = graph_node(graph, id);
    if (node->op != OP_GELU && node->op != OP_LAYERNORM) return NULL;
    return graph->kernels[node->kernel].walk[0] ? lane[node->operands[0] - first] : NULL;
}

const char **kernel_lanes(const Graph *graph, int kernel, const Target *target, Arena *arena)
{
    NodeId first, end;
    kernel_range(graph, kernel, &first, &end);
    const char **lane = arena_array(arena, end - first, sizeof *lane);
    for (NodeId id = end; id-- > first;) {
        const Node *node = graph_node(graph, id);
        if (node->op == OP_WRITE) lane[id - first] = written_lane(graph, node);
        if (node->op == OP_READ) continue;
        const char *own = lane[id - first];
        if (!own) own = lane_of_operand(graph, id, first, lane);
        if (!own) own = last_axis(&node->type);
        if (node->op == OP_LINEAR &&
            (product_in_parts(graph, id, target) || brings_both(graph, id, target)))
            own = parted_lane(graph, id, own);
        if (sums_in_memory(graph, id, target)) own = memory_lane(graph, node->operands[0]);
        lane[id - first] = own;
        if (brings_operands(graph, id)) continue;
        for (uint32_t i = 0; own && i < node->operand_count; i++) {
            NodeId operand = node->operands[i];
            const Type *type = graph_type(graph, operand);
            if (operand < first || lane[operand - first]) continue;
            lane[operand - first] = type_find(type, own) >= 0 ? own : last_axis(type);
        }
    }
    return lane;
}
