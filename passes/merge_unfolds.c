/* merge_unfolds.c
 *
 * The cross-scale embedding joins the features of several sliding windows of one stride, each
 * centred on the patch, and contracts them with one weight. A smaller window lies inside the
 * largest, so its weights are added to the largest one's central taps; one window is left, and the
 * merged features are contracted as (i, ky, kx) without being laid side by side. With one window
 * only, the latter is all there is to do.
 *
 *   before  %0 = unfold @x y -> (h, ky 4) stride 4 pad 0, x -> ..
 *           %1 = unfold @x y -> (h, ky 8) stride 4 pad 2, x -> ..
 *           %4 = concat (rearrange %0), (rearrange %1) over (f)
 *           %5 = linear %4, @w over (f)
 *   after   %1 = unfold @x y -> (h, ky 8) stride 4 pad 2, x -> ..
 *           %2 = rearrange %1 c -> i
 *           %6 = add (the part of @w for 8, split), (the part for 4, split and padded)
 *           %7 = linear %2, %6 over (i, ky, kx)
 *
 * needs: unfolds as ops.  keeps: everything else.  breaks: nothing. Sums are taken in another
 * order: results differ by rounding.
 */
#include "passes/kernels.h"

#include <string.h>

enum { MOST_WINDOWS = 64 };

/* The parts of one embedding, as found. */
typedef struct Embedding {
    int count;
    NodeId unfold[MOST_WINDOWS];
    int64_t first_feature[MOST_WINDOWS];
    int largest;
} Embedding;

static bool missed(PassContext *context, const Graph *graph, NodeId linear, const char *why)
{
    NodeId features = graph_node(graph, linear)->operands[0];
    pass_missed(context, graph, linear, features, "merge_unfolds", why);
    return false;
}

/* rearrange (c, ky, kx) -> f of a two-window unfold? */
static bool is_features(const Graph *graph, NodeId id, const char *feature)
{
    const Node *node = graph_node(graph, id);
    if (node->op != OP_REARRANGE || node->attributes.group_count != 1) return false;
    const Group *g = &node->attributes.groups[0];
    const Node *unfold = graph_node(graph, node->operands[0]);
    if (unfold->op != OP_UNFOLD || unfold->attributes.window_count != 2) return false;
    const Window *w = unfold->attributes.windows;
    return g->from.count == 3 && g->to.count == 1 && strcmp(g->to.name[0], feature) == 0 &&
           strcmp(g->from.name[1], w[0].inner) == 0 && strcmp(g->from.name[2], w[1].inner) == 0;
}

/* Do windows i and j look at the same tensor with the same stride and centre? */
static bool windows_fit(const Node *a, const Node *b)
{
    if (a->operands[0] != b->operands[0]) return false;
    for (int i = 0; i < 2; i++) {
        const Window *v = &a->attributes.windows[i], *w = &b->attributes.windows[i];
        if (strcmp(v->from, w->from) != 0 || strcmp(v->outer, w->outer) != 0 ||
            strcmp(v->inner, w->inner) != 0 || v->stride != w->stride || v->pad < w->pad ||
            v->kernel - v->pad < w->kernel - w->pad)
            return false;
    }
    return true;
}

static bool find_embedding(PassContext *context, const Graph *graph, NodeId id, Embedding *e)
{
    const Node *linear = graph_node(graph, id);
    if (linear->op != OP_LINEAR || linear->kernel != NO_KERNEL ||
        linear->attributes.over.count != 1)
        return false;
    const char *feature = linear->attributes.over.name[0];
    const Node *x = graph_node(graph, linear->operands[0]);
    bool joined = x->op == OP_CONCAT && strcmp(x->attributes.over.name[0], feature) == 0;
    const NodeId *parts = joined ? x->operands : &linear->operands[0];
    e->count = joined ? (int)x->operand_count : 1;
    if (!is_features(graph, parts[0], feature)) return false;
    if (e->count > MOST_WINDOWS) return missed(context, graph, id, "too many windows");
    int64_t features = 0;
    for (int i = 0; i < e->count; i++) {
        if (!is_features(graph, parts[i], feature))
            return missed(context, graph, id, "not all that is joined are features of windows");
        e->unfold[i] = graph_node(graph, parts[i])->operands[0];
        e->first_feature[i] = features;
        const Type *type = graph_type(graph, parts[i]);
        features += type->axis[type_find(type, feature)].extent;
        if (windows_fit(graph_node(graph, e->unfold[i]), graph_node(graph, e->unfold[e->largest])))
            e->largest = i;
    }
    for (int i = 0; i < e->count; i++)
        if (!windows_fit(graph_node(graph, e->unfold[e->largest]), graph_node(graph, e->unfold[i])))
            return missed(context, graph, id, "no window holds all the others");
    return true;
}

/* The weights of window `part` as [.., i, ky, kx], placed inside the largest window. */
static NodeId place_weight(Graph *to, const Graph *from, const Embedding *e, int part, NodeId w,
                           const char *feature, const Type *merged, Loc loc)
{
    const Node *unfold = graph_node(from, e->unfold[part]);
    const Node *largest = graph_node(from, e->unfold[e->largest]);
    Type type = *merged;
    int64_t features = 1;
    Map place = map_identity(merged, merged);
    for (int i = merged->rank - 2; i < merged->rank; i++) {
        const Window *v = &unfold->attributes.windows[i - (merged->rank - 2)];
        const Window *w_large = &largest->attributes.windows[i - (merged->rank - 2)];
        type.axis[i].extent = v->kernel;
        place.dim[i].offset = v->pad - w_large->pad;
    }
    for (int i = merged->rank - 3; i < merged->rank; i++) features *= type.axis[i].extent;
    if (features != graph_type(to, w)->axis[type_find(graph_type(to, w), feature)].extent)
        w = build_slice(to, w, feature, e->first_feature[part], features, loc);
    char groups[64 + 4 * NAME_SIZE];
    int n = merged->rank;
    snprintf(groups, sizeof groups, "%s -> (%s, %s, %s)", feature, merged->axis[n - 3].name,
             merged->axis[n - 2].name, merged->axis[n - 1].name);
    w = build_rearrange(to, w, groups, &type, loc);
    return part == e->largest ? w : build_read(to, w, &place, merged, loc);
}

/* The type of the merged weight: the old one with its feature axis, the last, replaced by (i, ky,
 * kx). */
static bool merged_weight_type(const Graph *graph, const Node *linear, const Node *largest,
                               const Type *input_axis_of, Type *type)
{
    const Type *w = graph_type(graph, linear->operands[1]);
    int at = type_find(w, linear->attributes.over.name[0]);
    if (at != w->rank - 1 || w->rank + 2 > MAX_AXES || type_find(w, "i") >= 0 ||
        type_find(&largest->type, "i") >= 0)
        return false;
    *type = *w;
    type->rank--;
    Axis channels = *input_axis_of->axis;
    memset(channels.name, 0, NAME_SIZE);
    strcpy(channels.name, "i");
    type_append(type, &channels);
    for (int i = 0; i < 2; i++) {
        const char *inner = largest->attributes.windows[i].inner;
        if (type_find(type, inner) >= 0) return false;
        type_append(type, &largest->type.axis[type_find(&largest->type, inner)]);
    }
    return true;
}

/* The contracted axes in the order in which they lie in the tensor that is looked at, so that the
 * innermost loop walks memory in steps of one. */
static void contraction_order(const Graph *graph, const Node *largest, const char *channel,
                              char *text, size_t size)
{
    const Type *x = graph_type(graph, largest->operands[0]);
    size_t length = 0;
    for (int i = 0; i < x->rank; i++) {
        const char *name = strcmp(x->axis[i].name, channel) == 0 ? "i" : NULL;
        for (int k = 0; k < 2; k++)
            if (strcmp(x->axis[i].name, largest->attributes.windows[k].from) == 0)
                name = largest->attributes.windows[k].inner;
        if (name)
            length +=
                (size_t)snprintf(text + length, size - length, "%s%s", length ? ", " : "", name);
    }
}

static NodeId merge(Rewriter *r, const Embedding *e, NodeId id, const char *channel,
                    const Type *weight_type)
{
    const Graph *from = r->from;
    Graph *to = r->to;
    const Node *linear = graph_node(from, id);
    const Node *largest = graph_node(from, e->unfold[e->largest]);
    const char *feature = linear->attributes.over.name[0];
    NodeId w = rewriter_value(r, linear->operands[1]), sum = NO_NODE;
    for (int i = 0; i < e->count; i++) {
        NodeId placed = place_weight(to, from, e, i, w, feature, weight_type, linear->loc);
        sum = sum == NO_NODE ? placed : build_binary(to, OP_ADD, sum, placed, linear->loc);
    }
    Type type = largest->type;
    Axis *renamed = &type.axis[type_find(&type, channel)];
    memset(renamed->name, 0, NAME_SIZE);
    strcpy(renamed->name, "i");
    char text[64 + 2 * NAME_SIZE];
    snprintf(text, sizeof text, "%s -> i", channel);
    NodeId x =
        build_rearrange(to, rewriter_value(r, e->unfold[e->largest]), text, &type, linear->loc);
    contraction_order(from, largest, channel, text, sizeof text);
    NodeId bias = linear->operand_count == 3 ? rewriter_value(r, linear->operands[2]) : NO_NODE;
    NodeId merged = build_linear(to, x, sum, bias, text, linear->loc);
    graph_node(to, merged)->type = linear->type; /* its order of axes */
    return merged;
}

Graph *pass_merge_unfolds(PassContext *context, const Graph *graph)
{
    Rewriter r = rewriter_new(graph, context->arena);
    for (NodeId id = 0; id < graph->node_count; id++) {
        Embedding e = {0};
        if (!find_embedding(context, graph, id, &e)) {
            rewriter_copy(&r, id);
            continue;
        }
        const Node *linear = graph_node(graph, id);
        const Node *largest = graph_node(graph, e.unfold[e.largest]);
        NodeId joined = linear->operands[0];
        if (graph_node(graph, joined)->op == OP_CONCAT)
            joined = graph_node(graph, joined)->operands[0];
        const char *channel = graph_node(graph, joined)->attributes.groups[0].from.name[0];
        Type input = {.rank = 1};
        input.axis[0] = largest->type.axis[type_find(&largest->type, channel)];
        Type weight_type;
        if (!merged_weight_type(graph, linear, largest, &input, &weight_type)) {
            missed(context, graph, id,
                   "the weight's last axis is not the features, or a name is taken");
            rewriter_copy(&r, id);
        } else if (pass_may_rewrite(context)) {
            r.renamed[id] = merge(&r, &e, id, channel, &weight_type);
        } else {
            rewriter_copy(&r, id);
        }
    }
    return rewriter_finish(&r);
}
