/* sums.c: whether the images of a batch can be run in parts: whether what depends on all of them is a
 * sum of what each of them gives, as gradients are, so that the sums of parts can be added up. */
#include "backends/backend.h"

#include <string.h>

/* How a value depends on the images. */
typedef enum {
    OF_NONE, /* on none: of parameters alone */
    OF_EACH, /* it has the axis of the batch */
    OF_SUM,  /* linear in a sum over the batch */
    OF_ALL   /* on all of them in another way */
} Dependence;

static bool is_batched(const Type *type)
{
    for (int i = 0; i < type->rank; i++)
        if (type->axis[i].symbol[0]) return true;
    return false;
}

static uint32_t count_of(const Node *node, const Dependence *of, Dependence kind)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < node->operand_count; i++) count += of[node->operands[i]] == kind;
    return count;
}

/* Is it linear in the operands that are sums, where the others depend on no image? */
static bool is_linear(const Node *node, const Dependence *of)
{
    uint32_t sums = count_of(node, of, OF_SUM);
    switch (op_info[node->op].linear) {
    case NOT_LINEAR:
        return false;
    case LINEAR_TOGETHER:
        return sums == node->operand_count;
    case LINEAR_IN_EACH:
        return node->operand_count == 2 && sums == 1;
    case LINEAR_IN_FIRST:
        return sums == 1 && of[node->operands[0]] == OF_SUM;
    }
    return false;
}

static bool mixes_batch(const Graph *graph, const Node *node)
{
    const Type *x = graph_type(graph, node->operands[0]);
    for (int i = 0; op_info[node->op].mixes == MIX_OVER && i < x->rank; i++)
        if (x->axis[i].symbol[0] && names_contain(&node->attributes.over, x->axis[i].name))
            return true;
    return false;
}

static Dependence dependence_of(const Graph *graph, const Node *node, const Dependence *of)
{
    bool batched = is_batched(&node->type), each = count_of(node, of, OF_EACH) > 0;
    if (count_of(node, of, OF_ALL)) return OF_ALL;
    if (count_of(node, of, OF_SUM))
        return !each && !batched && is_linear(node, of) ? OF_SUM : OF_ALL;
    if (!each) return batched ? OF_EACH : OF_NONE;
    if (batched) return mixes_batch(graph, node) ? OF_ALL : OF_EACH;
    bool added = node->op == OP_SUM || (node->op == OP_LINEAR && node->operand_count == 2);
    return added ? OF_SUM : OF_ALL;
}

bool program_adds_up(Arena *arena, const Graph *graph)
{
    Dependence *of = arena_array(arena, graph->node_count, sizeof *of);
    for (NodeId id = 0; id < graph->node_count; id++) {
        of[id] = dependence_of(graph, graph_node(graph, id), of);
        if (of[id] == OF_ALL) return false;
    }
    return true;
}

int64_t program_part(const Graph *graph)
{
    const int64_t floats = (2 << 20) / sizeof(float), least = 4, most = PROGRAM_MOST_AT_ONCE;
    int64_t greatest = 1;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        bool moves = node->op == OP_READ || node->op == OP_WRITE;
        int64_t elements = type_elements(&node->type, NULL);
        if (!moves && is_batched(&node->type) && elements > greatest) greatest = elements;
    }
    int64_t images = floats / greatest;
    return images < least ? least : images < most ? images : most;
}
