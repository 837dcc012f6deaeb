/* split_sums.c
 *
 * Takes a sum over the batch image by image, and then that of the images. The results, gradients of weights, are few,
 * and threads that have one each would go through all images alone. A sum of so few results that those of an image are few,
 * too, as biases have, is taken step by step in each image, the last axes first.
 *
 *   before  %3 = linear %1, %2 over (b, h, w) : f32[c 64, k 256]
 *   after   %3 = linear %1, %2 over (h, w) : f32[b, c 64, k 256]; %4 = sum %3 over (b) : f32[c 64, k 256]
 *
 * Those of many weights would be much to keep for every image: they are taken row by row, for all images at once.
 *
 *   after   %3 = linear %1, %2 over (b, w) : f32[h 14, c 512, k 2048]; %4 = sum %3 over (h) : f32[c 512, k 2048]
 *
 * Products of elements that have all axes alike are multiplied on the way to the sum, in one kernel with it:
 *
 *   before  %3 = linear %1, %2 over (b, h, w) : f32[c 64]
 *   after   kernel for (b, h 56, c 64) { %3 = mul %1, %2; %4 = sum %3 over (w) }; %5 = sum %4 over (h); ..
 *
 * Only where blocks of threads share out the results. Where these are many, there is work for all blocks, and those of
 * every image would be more to move than the sums are to take.
 *
 * needs: nothing.  keeps: kernels that are there.  breaks: nothing, but sums are taken in another order.
 */
#include "passes/kernels.h"
#include "passes/products.h"

#include <string.h>

/* Results that are too many for each image; those that are work for all blocks; floats of all rows' results, at most; results
 * of a product that an image has enough work with; terms of a step. */
enum {
    MANY_RESULTS = 1 << 18,
    ALL_RESULTS = 1 << 21,
    MOST_OF_ROWS = 1 << 24,
    ENOUGH_RESULTS = 8192,
    STEP_TERMS = 256
};

/* The axes of `over` from `first` on, outer ones first. */
static const char *names_from(Arena *arena, const AxisNames *over, int first)
{
    Text text = text_new(arena);
    for (int i = first; i < over->count; i++) text_printf(&text, "%s ", over->name[i]);
    return text.data;
}

/* The axes but that of rows, the second, which is all that is left in `over`. */
static const char *take_rows_apart(Arena *arena, AxisNames *over)
{
    Text text = text_new(arena);
    for (int i = 0; i < over->count; i++)
        if (i != 1) text_printf(&text, "%s ", over->name[i]);
    memcpy(over->name[0], over->name[1], sizeof over->name[0]);
    over->count = 1;
    return text.data;
}

/* Where the batch comes first: which of the axes after it are summed over in the next step. */
static int first_of_step(const Type *x, const AxisNames *over, bool whole)
{
    int64_t terms = 1;
    int first = over->count;
    while (first > 1) {
        terms *= x->axis[type_find(x, over->name[first - 1])].extent;
        if (!whole && first < over->count && terms > STEP_TERMS) break;
        first--;
    }
    return first;
}

/* Is it a product of more weights than are kept for every image, but few enough to be for every row of pixels? */
static bool is_by_rows(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    const AxisNames *over = &node->attributes.over;
    const Type *x = graph_type(graph, node->operands[0]);
    if (node->op != OP_LINEAR || over->count < 3 ||
        type_equal(x, graph_type(graph, node->operands[1])))
        return false;
    int64_t results = type_elements(&node->type, NULL),
            rows = x->axis[type_find(x, over->name[1])].extent;
    return results > MANY_RESULTS && results <= ALL_RESULTS && rows <= MOST_OF_ROWS / results;
}

/* Is it a sum over the batch, and then other axes, of few results? */
static bool is_candidate(const Graph *graph, NodeId id)
{
    const Node *node = graph_node(graph, id);
    const AxisNames *over = &node->attributes.over;
    if ((node->op != OP_LINEAR && node->op != OP_SUM) || node->kernel != NO_KERNEL ||
        node->operand_count == 3 || over->count < 2 || !sums_over_batch(graph, id))
        return false;
    const Type *x = graph_type(graph, node->operands[0]);
    for (int i = 1; i < over->count; i++)
        if (x->axis[type_find(x, over->name[i])].symbol[0]) return false;
    return type_elements(&node->type, NULL) <= MANY_RESULTS || is_by_rows(graph, id);
}

typedef struct SplitSums {
    Rewriter r;
    NodeId (*pair)[2]; /* a product of elements and its sum, in the new graph */
    int count;
} SplitSums;

static NodeId split(SplitSums *s, NodeId id)
{
    Graph *to = s->r.to;
    const Node *node = graph_node(s->r.from, id);
    AxisNames over = node->attributes.over;
    NodeId x = rewriter_value(&s->r, node->operands[0]), w = NO_NODE, elements = NO_NODE;
    if (node->op == OP_LINEAR) w = rewriter_value(&s->r, node->operands[1]);
    if (w != NO_NODE && type_equal(graph_type(to, x), graph_type(to, w))) {
        x = elements = build_binary(to, OP_MUL, x, w, node->loc);
        w = NO_NODE;
    }
    bool whole = w != NO_NODE && type_elements(&node->type, NULL) > ENOUGH_RESULTS;
    if (w != NO_NODE && is_by_rows(s->r.from, id)) {
        x = build_linear(to, x, w, NO_NODE, take_rows_apart(to->arena, &over), node->loc);
        w = NO_NODE;
    }
    while (over.count > 0) {
        int first = over.count > 1 ? first_of_step(graph_type(to, x), &over, whole) : 0;
        const char *names = names_from(to->arena, &over, first);
        x = w != NO_NODE ? build_linear(to, x, w, NO_NODE, names, node->loc)
                         : build_reduction(to, OP_SUM, x, names, node->loc);
        if (elements != NO_NODE) {
            s->pair[s->count][0] = elements;
            s->pair[s->count++][1] = x;
        }
        w = elements = NO_NODE;
        over.count = first;
    }
    if (type_equal(graph_type(to, x), &node->type)) return x;
    Map order = map_identity(graph_type(to, x), &node->type); /* that a product gives its axes */
    return build_read(to, x, &order, &node->type, node->loc);
}

Graph *pass_split_sums(PassContext *context, const Graph *graph)
{
    if (!context->target->stages_operands) return (Graph *)graph;
    SplitSums s = {.r = rewriter_new(graph, context->arena)};
    s.pair = arena_array(context->arena, graph->node_count, sizeof *s.pair);
    for (NodeId id = 0; id < graph->node_count; id++) {
        if (is_candidate(graph, id) && pass_may_rewrite(context))
            s.r.renamed[id] = split(&s, id);
        else
            rewriter_copy(&s.r, id);
    }
    rewriter_copy_outputs(&s.r);
    Draft draft = draft_new(context->arena, s.r.to);
    for (int i = 0; i < s.count; i++) draft_add(&draft, s.pair[i], 2);
    return draft_finish(context, &draft);
}
