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
/* With a LayerNorm and a factor; gradients with those of a LayerNorm. */
enum { MLP_MEMBERS = 6, MOST_MEMBERS = 9 };

static bool missed(PassContext *context, const Graph *graph, NodeId node, NodeId stored,
                   const char *why)
{
    pass_missed(context, graph, node, stored, "fuse_mlp", why);
    return false;
}

/* Is `id` a node of kind `op` that may join, used once? */
static bool is_link(const Draft *draft, NodeId id, Op op)
{
    return graph_node(draft->graph, id)->op == op && draft_free(draft, id) && draft->uses[id] == 1;
}

/* Does what the members take from outside depend on values of their own, those that follow from the first? Then these have
 * to be there before it. A member may be NO_NODE. */
static bool makes_circle(PassContext *context, const Graph *graph, const NodeId *members, int count)
{
    NodeId first = members[0], last = first;
    for (int i = 1; i < count; i++)
        if (members[i] != NO_NODE && members[i] > last) last = members[i];
    bool *after = arena_array(context->arena, last + 1 - first, sizeof *after);
    bool *inside = arena_array(context->arena, last + 1 - first, sizeof *inside);
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

/* The product that is `value`, or what a factor, the mask of drop path, scales to it, used nowhere else: *scaled, or NO_NODE.
 * NO_NODE: it is none. */
static NodeId find_product(const Draft *draft, NodeId value, NodeId *scaled)
{
    const Graph *g = draft->graph;
    const Node *node = graph_node(g, value);
    *scaled = NO_NODE;
    if (node->op == OP_LINEAR) return value;
    if (!is_link(draft, value, OP_MUL)) return NO_NODE;
    *scaled = value;
    for (int i = 0; i < 2; i++)
        if (graph_node(g, node->operands[i])->op == OP_LINEAR) return node->operands[i];
    return NO_NODE;
}

/* Finds the chain that ends in the sum `add`; members in order. */
static bool find_chain(PassContext *context, const Draft *draft, NodeId add,
                       NodeId members[MOST_MEMBERS], int *count)
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
    if (!is_link(draft, second, OP_LINEAR))
        return missed(context, g, add, second, "the second product is used elsewhere too");
    if (!draft_free(draft, gelu) || !draft_free(draft, first)) return false;
    const NodeId chain[] = {graph_node(g, first)->operands[0], first, gelu, second, scaled, add};
    bool staged = context->target->stages_operands;
    if ((draft->uses[gelu] > 1 || draft->uses[first] > 1) &&
        (staged || makes_circle(context, g, chain + 1, MLP_MEMBERS - 1)))
        return missed(context, g, add, gelu, "the hidden values are used elsewhere too");
    bool normal = graph_node(g, chain[0])->op == OP_LAYERNORM && draft_free(draft, chain[0]);
    if (normal && draft->uses[chain[0]] > 1 &&
        (staged || makes_circle(context, g, chain, MLP_MEMBERS)))
        normal =
            missed(context, g, chain[0], chain[0], "the normalised values are used elsewhere too");
    *count = 0;
    for (int i = normal ? 0 : 1; i < MLP_MEMBERS; i++)
        if (chain[i] != NO_NODE) members[(*count)++] = chain[i];
    return true;
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

/* Adds what LayerNorm's gradient makes of that of the normalised values, `value`: the sums of a row for its scale and its shift,
 * if there are any (sum_rows), its result, and the residual sum with that. */
static int add_norm_gradients(const Draft *draft, NodeId value, NodeId *members)
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
            is_link(draft, normal, OP_NORMALISE)) {
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

/* Has a unit of a kernel of these gradients, which takes one index along each axis that none of them mixes, room in the cache? */
static bool unit_fits(const PassContext *context, const Graph *g, const NodeId *members, int count)
{
    const Type *hidden = graph_type(g, members[1]);
    AxisNames split = {0};
    for (int i = 0; i < hidden->rank; i++) {
        bool mixed = false;
        for (int k = 0; k < count; k++)
            mixed |= node_mixes(g, graph_node(g, members[k]), hidden->axis[i].name);
        if (!mixed) strcpy(split.name[split.count++], hidden->axis[i].name);
    }
    return product_stays_in_cache(g, members[2], &split, context->target);
}

/* Finds the gradients of hidden and normalised values, of which that of the MLP's result makes one after the other; the last
 * is `second`. And those of the LayerNorm before the MLP, if a unit that has all channels stays in the cache. */
static bool find_gradients(PassContext *context, const Draft *draft, NodeId second,
                           NodeId members[MOST_MEMBERS], int *count)
{
    const Graph *g = draft->graph;
    const Node *linear = graph_node(g, second);
    if (linear->op != OP_LINEAR || !draft_free(draft, second) || sums_over_batch(g, second) ||
        context->target->stages_operands)
        return false;
    NodeId hidden = linear->operands[0];
    if (graph_node(g, hidden)->op != OP_GELU_GRAD || !draft_free(draft, hidden)) return false;
    NodeId first = graph_node(g, hidden)->operands[1];
    if (!is_link(draft, first, OP_LINEAR) || sums_over_batch(g, first)) return false;
    members[0] = first;
    members[1] = hidden;
    members[2] = second;
    if (makes_circle(context, g, members, 3)) return false;
    *count = 3;
    int more = add_norm_gradients(draft, second, members + 3);
    if (more > 0 && !unit_fits(context, g, members, 3 + more))
        missed(context, g, members[3], second, "with all channels a unit would leave the cache");
    else if (more > 0 && makes_circle(context, g, members, 3 + more))
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
        NodeId members[MOST_MEMBERS];
        int count;
        if (find_chain(context, &draft, id, members, &count))
            add_chain(context, &draft, members, count);
        else if (find_gradients(context, &draft, id, members, &count) && pass_may_rewrite(context))
            draft_add(&draft, members, count);
    }
    return draft_finish(context, &draft);
}
