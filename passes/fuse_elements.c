/* fuse_elements.c
 *
 * Makes one kernel of ops that work element by element on values of one shape, and of the product, sum
 * or normalisation whose result they alone take: what stands between them is no longer stored, unless
 * it is used elsewhere too.
 *
 *   before  %2 = linear %0, @w over (c); %3 = gelu_grad %1, %2; %4 = mul %3, %3
 *   after   kernel for (b, h 56, k 256) {
 *             %2 = linear %0, %1 over (c); %3 = gelu_grad .., %2; %4 = mul %3, %3
 *             %5 = write %3 [b, h, k]; %6 = write %4 [b, h, k]
 *           }
 *
 * needs: nothing.  keeps: kernels that are there.  breaks: nothing.
 */
#include "passes/kernels.h"

#include <string.h>

typedef struct Groups {
    const Draft *draft;
    NodeId *leader;      /* of each node: the first of its group */
    NodeId *last;        /* of each leader: the last node of its group */
    const bool *forward; /* what a run without a backward pass needs */
    bool *seen;
} Groups;

static bool is_elementwise(Op op)
{
    return op == OP_ADD || op == OP_MUL || op == OP_DIV || op == OP_SQRT || op == OP_SCALE ||
           op == OP_GELU || op == OP_GELU_GRAD;
}

/* Ops that elementwise ops may follow in one kernel. */
static bool is_start(Op op)
{
    return op == OP_LINEAR || op == OP_SUM || op == OP_LAYERNORM_GRAD || op == OP_RESAMPLE_GRAD;
}

/* Does `id` depend on a node of the group, or of its kernel on one of the kernel's? Nodes are in order,
 * so that the search ends before the group. */
static bool depends_on(Groups *g, NodeId id, NodeId leader)
{
    const Graph *graph = g->draft->graph;
    if (g->leader[id] == leader) return true;
    if (g->seen[id]) return false;
    NodeId first = g->leader[id], last = g->last[first];
    if (last < leader) return false;
    for (NodeId n = first; n <= last; n++) {
        if (g->leader[n] != first) continue;
        g->seen[n] = true;
        for (uint32_t i = 0; i < graph_node(graph, n)->operand_count; i++) {
            NodeId operand = graph_node(graph, n)->operands[i];
            if (g->leader[operand] != first && depends_on(g, operand, leader)) return true;
        }
    }
    return false;
}

/* Would one of the two groups, made one, need a value that is made of another of its own? */
static bool groups_make_circle(Groups *g, NodeId into, NodeId other, Arena *arena)
{
    const Graph *graph = g->draft->graph;
    const NodeId pair[] = {into, other};
    g->seen = arena_array(arena, graph->node_count, sizeof *g->seen);
    for (int k = 0; k < 2; k++) {
        NodeId leader = pair[k];
        for (NodeId n = leader; n <= g->last[leader]; n++) {
            if (g->leader[n] != leader) continue;
            for (uint32_t i = 0; i < graph_node(graph, n)->operand_count; i++) {
                NodeId operand = graph_node(graph, n)->operands[i];
                if (g->leader[operand] == into || g->leader[operand] == other) continue;
                if (depends_on(g, operand, into) || depends_on(g, operand, other)) return true;
            }
        }
    }
    return false;
}

static void merge(Groups *g, NodeId into, NodeId other)
{
    for (NodeId n = other; n <= g->last[other]; n++)
        if (g->leader[n] == other) g->leader[n] = into;
    if (g->last[other] > g->last[into]) g->last[into] = g->last[other];
}

/* The same axes, in any order. */
static bool same_shape(const Type *a, const Type *b)
{
    if (a->rank != b->rank) return false;
    for (int i = 0; i < a->rank; i++) {
        int at = type_find(b, a->axis[i].name);
        if (at < 0 || !axis_same_extent(&a->axis[i], &b->axis[at])) return false;
    }
    return true;
}

/* Is it computed a second time, later, so that the first one need not be kept (recompute)? */
static bool is_again(const Graph *graph, NodeId id, NodeId operand)
{
    const Node *node = graph_node(graph, id);
    size_t bytes = node->operand_count * sizeof *node->operands;
    for (NodeId n = operand + 1; n < id; n++) {
        const Node *other = graph_node(graph, n);
        if (other->op == node->op && other->operand_count == node->operand_count &&
            memcmp(other->operands, node->operands, bytes) == 0)
            return true;
    }
    return false;
}

/* Which values the outputs of all entries but `backward` are made of. */
static const bool *find_forward(const Graph *graph, Arena *arena)
{
    bool *forward = arena_array(arena, graph->node_count, sizeof *forward);
    for (uint32_t i = 0; i < graph->output_count; i++)
        forward[graph->outputs[i].value] |= strcmp(graph->outputs[i].entry, "backward") != 0;
    for (NodeId id = graph->node_count; id-- > 0;)
        for (uint32_t i = 0; forward[id] && i < graph->nodes[id].operand_count; i++)
            forward[graph->nodes[id].operands[i]] = true;
    return forward;
}

/* May the op `id` be computed in the kernel of its operand? Not where the operand is the forward's, and
 * `id` is not: the forward may be run alone. */
static bool may_follow(const PassContext *context, const Groups *g, NodeId id, NodeId operand)
{
    const Graph *graph = g->draft->graph;
    const Node *node = graph_node(graph, operand);
    if (!draft_free(g->draft, operand) || !same_shape(&node->type, graph_type(graph, id)) ||
        is_again(graph, id, operand) || g->forward[operand] != g->forward[id])
        return false;
    bool stored_too = node->op == OP_LINEAR && !context->target->stages_operands;
    return is_elementwise(node->op) ||
           (is_start(node->op) && (stored_too || g->draft->uses[operand] == 1));
}

/* Does the group have a product, sum or normalisation already? One kernel is laid out for one. */
static bool has_start(const Groups *g, NodeId leader)
{
    for (NodeId n = leader; n <= g->last[leader]; n++)
        if (g->leader[n] == leader && is_start(graph_node(g->draft->graph, n)->op)) return true;
    return false;
}

static void join_operands(PassContext *context, Groups *g, NodeId id)
{
    const Node *node = graph_node(g->draft->graph, id);
    for (uint32_t i = 0; i < node->operand_count; i++) {
        NodeId operand = node->operands[i], mine = g->leader[id], other = g->leader[operand];
        if (mine == other || !may_follow(context, g, id, operand) ||
            (has_start(g, mine) && has_start(g, other)))
            continue;
        NodeId first = mine < other ? mine : other, second = mine < other ? other : mine;
        if (groups_make_circle(g, first, second, context->arena) || !pass_may_rewrite(context))
            continue;
        merge(g, first, second);
    }
}

/* Nodes of kernels that are there belong together, too. */
static Groups find_groups(Arena *arena, const Draft *draft)
{
    const Graph *graph = draft->graph;
    Groups g = {.draft = draft, .forward = find_forward(draft->graph, arena)};
    g.leader = arena_array(arena, graph->node_count, sizeof *g.leader);
    g.last = arena_array(arena, graph->node_count, sizeof *g.last);
    for (NodeId id = 0; id < graph->node_count; id++) {
        g.leader[id] = g.last[id] = id;
        bool inside = id > 0 && graph->nodes[id].kernel != NO_KERNEL &&
                      graph->nodes[id].kernel == graph->nodes[id - 1].kernel;
        if (inside) merge(&g, g.leader[id - 1], id);
    }
    return g;
}

Graph *pass_fuse_elements(PassContext *context, const Graph *graph)
{
    Draft draft = draft_new(context->arena, graph);
    Groups g = find_groups(context->arena, &draft);
    NodeId *members = arena_array(context->arena, graph->node_count, sizeof *members);
    for (NodeId id = 0; id < graph->node_count; id++)
        if (is_elementwise(graph_node(graph, id)->op) && draft_free(&draft, id))
            join_operands(context, &g, id);
    for (NodeId leader = 0; leader < graph->node_count; leader++) {
        if (g.leader[leader] != leader || !draft_free(&draft, leader)) continue;
        int count = 0;
        for (NodeId n = leader; n <= g.last[leader]; n++)
            if (g.leader[n] == leader) members[count++] = n;
        if (count > 1) draft_add(&draft, members, count);
    }
    return draft_finish(context, &draft);
}
