/* fold_rearrange.c
 *
 * Turns the ops that only move elements into access maps: what splits, renames, windows or cuts
 * becomes a `read`, which costs nothing and joins each kernel that uses it; what merges becomes a
 * `write`, the way in which its producer stores its result, and so does what only reorders the axes of a
 * result for the caller. A read of a read becomes one read.
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

#include <string.h>

/* Is index `axis` of what the read gives outside wherever it would be outside of what is read? */
static bool is_kept_axis(const Graph *graph, const Node *read, int axis)
{
    const Type *type = graph_type(graph, read->operands[0]);
    int users = 0;
    bool kept = true;
    for (int d = 0; d < type->rank; d++) {
        const Index *index = &read->attributes.map.dim[d];
        if (index->coefficient[axis] == 0) continue;
        Index plain = index_axis(axis);
        kept &= memcmp(index, &plain, sizeof plain) == 0 &&
                axis_same_extent(&type->axis[d], &read->type.axis[axis]);
        users++;
    }
    return kept && users == 1;
}

/* One read for a read of a read, where nothing that was zero for being outside could come inside.
 */
static NodeId compose_reads(Graph *to, NodeId id)
{
    const Node *outer = graph_node(to, id), *inner = graph_node(to, outer->operands[0]);
    if (outer->op != OP_READ || inner->op != OP_READ || inner->kernel != NO_KERNEL) return id;
    for (int d = 0; d < inner->type.rank; d++) {
        const Index *index = &outer->attributes.map.dim[d];
        if (index_may_leave(index, &outer->type, &inner->type.axis[d]) &&
            !is_kept_axis(to, inner, d))
            return id;
    }
    Map map = map_compose(&inner->attributes.map, &outer->attributes.map, outer->type.rank);
    Type type = outer->type;
    return build_read(to, inner->operands[0], &map, &type, outer->loc);
}

static bool is_output(const Graph *graph, NodeId id)
{
    for (uint32_t i = 0; i < graph->output_count; i++)
        if (graph->outputs[i].value == id) return true;
    return false;
}

/* Does the node put the axes of a result that has no other use in the order in which the caller wants
 * them? */
static bool reorders_result(const Graph *graph, const uint32_t *uses, NodeId id)
{
    const Node *node = graph_node(graph, id);
    if (node->op != OP_REARRANGE || node->attributes.group_count > 0 || uses[id] > 1 ||
        !is_output(graph, id))
        return false;
    const Node *result = graph_node(graph, node->operands[0]);
    return uses[node->operands[0]] == 1 && !is_movement(result->op) && result->op != OP_INPUT &&
           result->op != OP_PARAM && result->op != OP_READ && result->op != OP_WRITE &&
           result->kernel == NO_KERNEL;
}

static NodeId write_in_order(Graph *to, const Node *node, NodeId x)
{
    Map map = map_identity(&node->type, graph_type(to, x));
    return build_write(to, x, &map, &node->type, node->loc);
}

Graph *pass_fold_rearrange(PassContext *context, const Graph *graph)
{
    Rewriter r = rewriter_new(graph, context->arena);
    const uint32_t *uses = graph_uses(graph, context->arena);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (is_movement(node->op) && node->kernel == NO_KERNEL && pass_may_rewrite(context)) {
            NodeId x = rewriter_value(&r, node->operands[0]);
            r.renamed[id] = reorders_result(graph, uses, id)
                                ? write_in_order(r.to, node, x)
                                : compose_reads(r.to, lower_movement(r.to, node, x));
        } else {
            NodeId copy = rewriter_copy(&r, id);
            if (node->op == OP_READ && node->kernel == NO_KERNEL)
                r.renamed[id] = compose_reads(r.to, copy);
        }
    }
    return rewriter_finish(&r);
}
