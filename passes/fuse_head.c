/* fuse_head.c
 *
 * Makes one kernel of a head: LayerNorm, mean over pixels, and the sums and products of the pooled
 * vector up to and with the first matrix product.
 *
 *   before  %2 = layernorm %1, .. over (c); %3 = mean %2 over (h, w); %4 = linear %3, .. over (c)
 *   after   kernel for (b) {
 *             %2 = read %1 [b, h, w, c]
 *             %3 = layernorm %2, ..; %4 = mean %3 ..; %5 = linear %4, ..
 *             %6 = write %5 [b, class]
 *           }
 *
 * needs: nothing.  keeps: everything outside.  breaks: nothing.
 */
#include "passes/kernels.h"

enum { MOST_MEMBERS = 64 };

/* The only user of each value, or the last of several. */
static NodeId *last_users(const Graph *graph, Arena *arena)
{
    NodeId *user = arena_array(arena, graph->node_count, sizeof *user);
    for (NodeId id = 0; id < graph->node_count; id++) user[id] = NO_NODE;
    for (NodeId id = 0; id < graph->node_count; id++)
        for (uint32_t i = 0; i < graph->nodes[id].operand_count; i++)
            user[graph->nodes[id].operands[i]] = id;
    return user;
}

static int find_head(const Draft *draft, const NodeId *user, NodeId mean, NodeId *members)
{
    const Graph *g = draft->graph;
    NodeId norm = graph_node(g, mean)->operands[0];
    if (graph_node(g, norm)->op != OP_LAYERNORM || !draft_free(draft, norm) ||
        draft->uses[norm] != 1)
        return 0;
    int count = 0;
    members[count++] = norm;
    members[count++] = mean;
    for (NodeId at = mean; count < MOST_MEMBERS && draft->uses[at] == 1;) {
        NodeId next = user[at];
        if (next == NO_NODE || !draft_free(draft, next)) break;
        const Node *node = graph_node(g, next);
        bool product = node->op == OP_LINEAR && node->operands[0] == at;
        bool pointwise = (node->op == OP_ADD || node->op == OP_MUL) && node->operands[0] == at;
        if (!product && !pointwise) break;
        members[count++] = at = next;
        if (product) break;
    }
    return count;
}

Graph *pass_fuse_head(PassContext *context, const Graph *graph)
{
    Draft draft = draft_new(context->arena, graph);
    NodeId *user = last_users(graph, context->arena);
    for (NodeId id = 0; id < graph->node_count; id++) {
        if (graph->nodes[id].op != OP_MEAN || !draft_free(&draft, id)) continue;
        NodeId members[MOST_MEMBERS];
        int count = find_head(&draft, user, id, members);
        if (count == 0)
            pass_missed(context, graph, id, graph->nodes[id].operands[0], "fuse_head",
                        "what is averaged is no LayerNorm, or used elsewhere too");
        else if (pass_may_rewrite(context))
            draft_add(&draft, members, count);
    }
    return draft_finish(context, &draft);
}
