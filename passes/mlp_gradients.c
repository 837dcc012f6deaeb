/* mlp_gradients.c: the chain of gradients of an MLP and of the LayerNorm before it, which passes make one kernel of. */
#include "passes/kernels.h"
#include "passes/products.h"

#include <string.h>

bool makes_circle(Arena *arena, const Graph *graph, const NodeId *members, int count)
{
    NodeId first = members[0], last = first;
    for (int i = 1; i < count; i++)
        if (members[i] != NO_NODE && members[i] > last) last = members[i];
    bool *after = arena_array(arena, last + 1 - first, sizeof *after);
    bool *inside = arena_array(arena, last + 1 - first, sizeof *inside);
    after[0] = true;
    for (int i = 0; i < count; i++)
        if (members[i] != NO_NODE && members[i] >= first) inside[members[i] - first] = true;
    for (NodeId id = first + 1; id <= last; id++) {
        const Node *node = graph_node(graph, id);
        for (uint32_t i = 0; i < node->operand_count; i++) {
            NodeId operand = node->operands[i];
            if (operand < first || !after[operand - first]) continue;
            if (inside[id - first] && !inside[operand - first]) return true;
            after[id - first] = true;
        }
    }
    return false;
}

/* The first free `op` that takes `value` as operand `at`, or as any where that is -1. NO_NODE: there is none. */
static NodeId find_user(const Draft *draft, NodeId value, Op op, int at)
{
    for (NodeId id = value + 1; id < draft->graph->node_count; id++) {
        const Node *node = graph_node(draft->graph, id);
        if (node->op != op || !draft_free(draft, id)) continue;
        for (uint32_t i = 0; i < node->operand_count; i++)
            if (node->operands[i] == value && (at < 0 || i == (uint32_t)at)) return id;
    }
    return NO_NODE;
}

int add_norm_gradients(const Draft *draft, NodeId value, NodeId *members)
{
    const Graph *g = draft->graph;
    NodeId gradient = find_user(draft, value, OP_LAYERNORM_GRAD, 2);
    NodeId product = find_user(draft, value, OP_MUL, 1), shift = find_user(draft, value, OP_SUM, 0);
    int count = 0;
    if (gradient == NO_NODE) return 0;
    if (product != NO_NODE && draft->uses[product] == 1) {
        NodeId normal = graph_node(g, product)->operands[0],
               scale = find_user(draft, product, OP_SUM, 0);
        if (scale != NO_NODE && !sums_over_batch(g, scale) &&
            draft_is_link(draft, normal, OP_NORMALISE)) {
            members[count++] = normal;
            members[count++] = product;
            members[count++] = scale;
        }
    }
    if (shift != NO_NODE && !sums_over_batch(g, shift)) members[count++] = shift;
    members[count++] = gradient;
    NodeId sum = draft->uses[gradient] == 1 ? find_user(draft, gradient, OP_ADD, -1) : NO_NODE;
    if (sum != NO_NODE) members[count++] = sum;
    return count;
}

bool gradients_stay_in_cache(const Target *target, const Graph *g, const NodeId *members, int count)
{
    const Type *hidden = graph_type(g, members[1]);
    AxisNames split = {0};
    for (int i = 0; i < hidden->rank; i++) {
        bool mixed = false;
        for (int k = 0; k < count; k++)
            mixed |= node_mixes(g, graph_node(g, members[k]), hidden->axis[i].name);
        if (!mixed) strcpy(split.name[split.count++], hidden->axis[i].name);
    }
    return product_stays_in_cache(g, members[2], &split, target);
}
