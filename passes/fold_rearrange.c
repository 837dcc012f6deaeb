/* fold_rearrange.c
 *
 * Turns the ops that only move elements into access maps: what splits, renames, windows or cuts
 * becomes a `read`, which costs nothing and joins each kernel that uses it; what merges becomes a
 * `write`, the way in which its producer stores its result. A read of a read becomes one read.
 *
 *   before  %1 = rearrange %0 c -> (raft, group)    : f32[b, h 56, w 56, raft 2, group 32]
 *           %9 = rearrange %8 (raft, group) -> c    : f32[b, h 56, w 56, c 64]
 *   after   %1 = read %0 [b, h, w, raft*32 + group] : f32[b, h 56, w 56, raft 2, group 32]
 *           %9 = write %8 [b, h, w, raft*32 + group]: f32[b, h 56, w 56, c 64]
 *
 * needs: nothing.  keeps: order, kernels.  breaks: nothing; no rearrange, unfold or slice is left
 * outside kernels.
 */
#include "passes/kernels.h"

/* One read for a read of a read, where nothing that was zero for being outside could come inside.
 */
static NodeId compose_reads(Graph *to, NodeId id)
{
    const Node *outer = graph_node(to, id), *inner = graph_node(to, outer->operands[0]);
    if (outer->op != OP_READ || inner->op != OP_READ || inner->kernel != NO_KERNEL ||
        map_may_leave(&outer->attributes.map, &outer->type, &inner->type))
        return id;
    Map map = map_compose(&inner->attributes.map, &outer->attributes.map, outer->type.rank);
    Type type = outer->type;
    return build_read(to, inner->operands[0], &map, &type, outer->loc);
}

Graph *pass_fold_rearrange(PassContext *context, const Graph *graph)
{
    Rewriter r = rewriter_new(graph, context->arena);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (is_movement(node->op) && node->kernel == NO_KERNEL && pass_may_rewrite(context)) {
            NodeId x = rewriter_value(&r, node->operands[0]);
            r.renamed[id] = compose_reads(r.to, lower_movement(r.to, node, x));
        } else {
            rewriter_copy(&r, id);
        }
    }
    return rewriter_finish(&r);
}
