/* fuse_mlp.c
 *
 * Makes one kernel of a residual MLP: LayerNorm, product, GELU, product, the factor of drop path where it
 * is trained with that, and the residual sum. The raft axis blocks, vertical and horizontal, the Mixer
 * token block and the channel block all have this form; they differ in the axes contracted and in the
 * access maps.
 *
 *   before  %2 = layernorm %1, ..; %3 = linear %2, .. over (raft, h); %4 = gelu %3
 *           %5 = linear %4, .. over (k); %6 = add %1, %5
 *   after   kernel for (b, w 56) {
 *             %1 = read %0 [b, h, w, raft*32 + group]
 *             %2 = layernorm %1, ..  and so on
 *             %7 = write %6 [b, h, w, raft, group]
 *           }
 *
 * Where the backward pass wants the normalised and the hidden values, too, the kernel writes them as well: the MLP is then one
 * kernel as it is in a run of the forward alone. Its gradients have the same form, and become one kernel, too, which writes
 * that of the hidden values for the gradients of weights:
 *
 *           %8 = linear %7, .. over (c); %9 = gelu_grad %3, %8; %10 = linear %9, .. over (k)
 *
 * That takes in the gradients of the LayerNorm before the MLP, too, if a unit that has all channels stays in the cache: to what
 * was normalised, with the residual sum, and the sums of a row for scale and shift (sum_rows).
 *
 * Not for targets that stage operands, where each product would bring its own to fast memory again.
 *
 * Where the target bounds what may be kept between the products, a chain that would keep more
 * becomes two kernels, each product with what is after it, and the LayerNorm one of its own; on a CPU one of
 * few positions with many weights does, where it is a forward alone.
 *
 * needs: nothing.  keeps: everything outside.  breaks: nothing. What is used in a kernel alone is no
 * longer stored.
 */
#include "passes/kernels.h"
#include "passes/products.h"

#include <string.h>

/* Uses of an element of the weights by one block of threads, at least. Where a point of the kernel has but one, two kernels
 * would have so many, and a block of one has to be as good. */
enum { LEAST_USES = 48, USES_APART = 112 };
/* With a LayerNorm and a factor. */
enum { MLP_MEMBERS = 6 };

static bool missed(PassContext *context, const Graph *graph, NodeId node, NodeId stored,
                   const char *why)
{
    pass_missed(context, graph, node, stored, "fuse_mlp", why);
    return false;
}

/* The product that is `value`, or what a factor, the mask of drop path, scales to it, used nowhere else: *scaled, or NO_NODE.
 * NO_NODE: it is none. */
static NodeId find_product(const Draft *draft, NodeId value, NodeId *scaled)
{
    const Graph *g = draft->graph;
    const Node *node = graph_node(g, value);
    *scaled = NO_NODE;
    if (node->op == OP_LINEAR) return value;
    if (!draft_is_link(draft, value, OP_MUL)) return NO_NODE;
    *scaled = value;
    for (int i = 0; i < 2; i++)
        if (graph_node(g, node->operands[i])->op == OP_LINEAR) return node->operands[i];
    return NO_NODE;
}

/* Finds the chain that ends in the sum `add`; members in order. */
static bool find_chain(PassContext *context, const Draft *draft, NodeId add,
                       NodeId members[MOST_GRADIENTS], int *count)
{
    const Graph *g = draft->graph;
    const Node *sum = graph_node(g, add);
    if (sum->op != OP_ADD || !draft_free(draft, add)) return false;
    NodeId scaled, second = find_product(draft, sum->operands[1], &scaled);
    if (second == NO_NODE) second = find_product(draft, sum->operands[0], &scaled);
    if (second == NO_NODE) return false;
    NodeId gelu = graph_node(g, second)->operands[0];
    if (graph_node(g, gelu)->op != OP_GELU) return false;
    NodeId first = graph_node(g, gelu)->operands[0];
    if (graph_node(g, first)->op != OP_LINEAR) return false;
    if (!draft_is_link(draft, second, OP_LINEAR))
        return missed(context, g, add, second, "the second product is used elsewhere too");
    if (!draft_free(draft, gelu) || !draft_free(draft, first)) return false;
    const NodeId chain[] = {graph_node(g, first)->operands[0], first, gelu, second, scaled, add};
    bool staged = context->target->stages_operands;
    if ((draft->uses[gelu] > 1 || draft->uses[first] > 1) &&
        (staged || makes_circle(context->arena, g, chain + 1, MLP_MEMBERS - 1)))
        return missed(context, g, add, gelu, "the hidden values are used elsewhere too");
    bool normal = graph_node(g, chain[0])->op == OP_LAYERNORM && draft_free(draft, chain[0]);
    if (normal && draft->uses[chain[0]] > 1 &&
        (staged || makes_circle(context->arena, g, chain, MLP_MEMBERS)))
        normal =
            missed(context, g, chain[0], chain[0], "the normalised values are used elsewhere too");
    *count = 0;
    for (int i = normal ? 0 : 1; i < MLP_MEMBERS; i++)
        if (chain[i] != NO_NODE) members[(*count)++] = chain[i];
    return true;
}

/* Finds the gradients of hidden and normalised values, of which that of the MLP's result makes one after the other; the last
 * is `second`. And those of the LayerNorm before the MLP, if a unit that has all channels stays in the cache. */
static bool find_gradients(PassContext *context, const Draft *draft, NodeId second,
                           NodeId members[MOST_GRADIENTS], int *count)
{
    const Graph *g = draft->graph;
    const Node *linear = graph_node(g, second);
    if (linear->op != OP_LINEAR || !draft_free(draft, second) || sums_over_batch(g, second) ||
        context->target->stages_operands)
        return false;
    NodeId hidden = linear->operands[0];
    if (graph_node(g, hidden)->op != OP_GELU_GRAD || !draft_free(draft, hidden)) return false;
    NodeId first = graph_node(g, hidden)->operands[1];
    if (!draft_is_link(draft, first, OP_LINEAR) || sums_over_batch(g, first)) return false;
    members[0] = first;
    members[1] = hidden;
    members[2] = second;
    if (makes_circle(context->arena, g, members, 3)) return false;
    *count = 3;
    int more = add_norm_gradients(draft, second, members + 3);
    if (more > 0 && !gradients_stay_in_cache(context->target, g, members, 3 + more))
        missed(context, g, members[3], second, "with all channels a unit would leave the cache");
    else if (more > 0 && makes_circle(context->arena, g, members, 3 + more))
        missed(context, g, members[3], second, "the residual sum takes what is made of it");
    else
        *count += more;
    return true;
}

/* What one point of the kernel, an index along each axis that nothing mixes, keeps for the first
 * product and for the second, in floats; `uses`: how often it takes each weight of the first. */
static void count_kept(const Graph *g, NodeId norm, NodeId first, int64_t *input, int64_t *hidden,
                       int64_t *uses)
{
    const Node *product = graph_node(g, first);
    const Type *x = graph_type(g, product->operands[0]);
    *input = *hidden = *uses = 1;
    for (int i = 0; i < x->rank; i++) {
        const Axis *axis = &x->axis[i];
        bool summed = names_contain(&product->attributes.over, axis->name);
        bool normalised = norm != NO_NODE && node_mixes(g, graph_node(g, norm), axis->name);
        if (axis->symbol[0] || (!summed && !normalised)) continue;
        *input *= axis->extent;
        if (!summed) *uses *= axis->extent;
    }
    *hidden = *uses;
    for (int i = 0; i < product->type.rank; i++)
        if (type_find(x, product->type.axis[i].name) < 0) *hidden *= product->type.axis[i].extent;
}

/* Do threads read less of the weights in two kernels? Not where the hidden values are stored anyway, for a backward pass. */
static bool shares_out_both(PassContext *context, const Draft *draft, NodeId first, NodeId gelu,
                            NodeId second)
{
    return draft->uses[first] == 1 && draft->uses[gelu] == 1 &&
           shares_out_weights(draft->graph, first, context->target) &&
           shares_out_weights(draft->graph, second, context->target);
}

/* Adds the chain as one kernel, or as two where that would keep too much or weights are read less. */
static void add_chain(PassContext *context, Draft *draft, const NodeId *members, int count)
{
    NodeId norm = graph_node(draft->graph, members[0])->op == OP_LAYERNORM ? members[0] : NO_NODE;
    const NodeId *first = members + (norm != NO_NODE);
    int64_t input, hidden, uses, limit = context->target->fused_bytes;
    count_kept(draft->graph, norm, first[0], &input, &hidden, &uses);
    int64_t least = uses > 1 ? LEAST_USES : USES_APART, points = (least + uses - 1) / uses;
    if (norm == NO_NODE) input = 0;
    bool apart = limit > 0 ? (input + hidden) * points * 4 > limit
                           : shares_out_both(context, draft, first[0], first[1], first[2]);
    if (!apart) {
        if (pass_may_rewrite(context)) draft_add(draft, members, count);
        return;
    }
    if (pass_may_rewrite(context)) draft_add(draft, first, 2);
    if (pass_may_rewrite(context)) draft_add(draft, first + 2, (int)(members + count - first) - 2);
}

Graph *pass_fuse_mlp(PassContext *context, const Graph *graph)
{
    Draft draft = draft_new(context->arena, graph);
    for (NodeId id = 0; id < graph->node_count; id++) {
        NodeId members[MOST_GRADIENTS];
        int count;
        if (find_chain(context, &draft, id, members, &count))
            add_chain(context, &draft, members, count);
        else if (find_gradients(context, &draft, id, members, &count) && pass_may_rewrite(context))
            draft_add(&draft, members, count);
    }
    return draft_finish(context, &draft);
}
