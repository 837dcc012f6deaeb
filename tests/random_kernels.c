/* random_kernels.c: kernels of ops that no pass would join: what a graph in text may hold. */
#include "tests/random_ops.h"

#include "passes/kernels.h"

enum { MOST_MEMBERS = 8 };

/* Does the node compute, for each image? What moves elements stands outside of kernels. */
static bool may_join(const Draft *draft, NodeId id)
{
    const Node *node = graph_node(draft->graph, id);
    return draft_free(draft, id) && !is_movement(node->op) && node->op != OP_WRITE &&
           type_find(&node->type, "b") >= 0;
}

/* Can the node come next, if the members of a group come all at once? */
static bool is_ready(const Draft *draft, const bool *done, NodeId id)
{
    for (NodeId n = 0; n < draft->graph->node_count; n++) {
        const Node *node = graph_node(draft->graph, n);
        if (n != id && (draft->group[id] < 0 || draft->group[n] != draft->group[id])) continue;
        for (uint32_t i = 0; i < node->operand_count; i++) {
            NodeId operand = node->operands[i];
            bool inside = draft->group[n] >= 0 && draft->group[operand] == draft->group[n];
            if (!inside && !done[operand]) return false;
        }
    }
    return true;
}

/* Is there an order in which each group is in one piece? */
static bool has_order(Maker *m, const Draft *draft)
{
    uint32_t count = draft->graph->node_count, left = count;
    bool *done = arena_array(m->arena, count, sizeof *done);
    for (bool found = true; found && left > 0;) {
        found = false;
        for (NodeId id = 0; id < count; id++) {
            if (done[id] || !is_ready(draft, done, id)) continue;
            for (NodeId n = 0; n < count; n++) {
                bool same = draft->group[id] >= 0 && draft->group[n] == draft->group[id];
                if (n != id && !same) continue;
                left -= !done[n];
                done[n] = found = true;
            }
        }
    }
    return left == 0;
}

static bool are_linked(const Graph *graph, NodeId a, NodeId b)
{
    const Node *later = graph_node(graph, a > b ? a : b);
    for (uint32_t i = 0; i < later->operand_count; i++)
        if (later->operands[i] == (a > b ? b : a)) return true;
    return false;
}

/* A node and some of those that it is linked with, in order. */
static void add_group(Maker *m, Draft *draft)
{
    NodeId members[MOST_MEMBERS], seed = (NodeId)from_to(m, 0, draft->graph->node_count - 1);
    int count = 0;
    if (!may_join(draft, seed)) return;
    draft->group[seed] = draft->count;
    for (int tries = (int)from_to(m, 0, 30), size = 1; tries > 0 && size < MOST_MEMBERS; tries--) {
        NodeId next = (NodeId)from_to(m, 0, draft->graph->node_count - 1);
        bool linked = false;
        for (NodeId id = 0; id < draft->graph->node_count; id++)
            linked |= draft->group[id] == draft->count && are_linked(draft->graph, id, next);
        if (!linked || !may_join(draft, next)) continue;
        draft->group[next] = draft->count;
        if (has_order(m, draft))
            size++;
        else
            draft->group[next] = -1;
    }
    for (NodeId id = 0; id < draft->graph->node_count; id++)
        if (draft->group[id] == draft->count) members[count++] = id;
    draft_add(draft, members, count);
}

Graph *random_kernels(Maker *m)
{
    Draft draft = draft_new(m->arena, m->graph);
    for (int64_t groups = from_to(m, 1, 6); groups > 0; groups--) add_group(m, &draft);
    Graph *graph = draft_finish(&(PassContext){.arena = m->arena}, &draft);
    for (uint32_t i = 0; i < graph->kernel_count; i++) {
        Kernel *kernel = &graph->kernels[i];
        for (int k = 0; k < kernel->rank; k++)
            if (is_constant(&kernel->axis[k]))
                kernel->tile[k] = from_to(m, 1, kernel->axis[k].extent);
    }
    return graph;
}
