/* gradients.c: the rule of each op by which a gradient passes through it, as op.def names them.
 *
 * Every rule is made of ops that the forward has too, or that are kernels of one kind with them: the
 * gradients of products are products, those of what moves elements are movements, and where a gradient
 * is spread over several elements, it is read from where it is: nothing is ever added up in memory. */
#include "passes/gradients.h"

#include <string.h>

#define OP(NAME, text, least, most, attributes, mixes, cost, linear, gradient)                     \
    static GradientFunction gradient_##gradient;
#include "ir/op.def"
#undef OP

GradientFunction *const op_gradient[OP_COUNT] = {
#define OP(NAME, text, least, most, attributes, mixes, cost, linear, gradient)                     \
    [OP_##NAME] = gradient_##gradient,
#include "ir/op.def"
#undef OP
};

/* ---- what the rules share --------------------------------------------------------------------- */

static Loc loc_of(const Backward *b, NodeId id)
{
    return graph_node(b->graph, id)->loc;
}

static NodeId operand_of(const Backward *b, NodeId id, uint32_t i)
{
    return graph_node(b->graph, id)->operands[i];
}

/* Types are copied: the rules add nodes, which moves them. */
static Type type_of(const Backward *b, NodeId id)
{
    return *graph_type(b->graph, id);
}

static bool wants(const Backward *b, NodeId id, uint32_t operand)
{
    const Node *node = graph_node(b->graph, id);
    return operand < node->operand_count && b->wanted[node->operands[operand]];
}

/* The same axes in the order of `type`. */
static NodeId arranged(Backward *b, NodeId x, const Type *type)
{
    if (type_equal(graph_type(b->graph, x), type)) return x;
    return build_rearrange(b->graph, x, "", type, loc_of(b, x));
}

/* The same for every index of the axes that x lacks. */
static NodeId broadcast(Backward *b, NodeId x, const Type *type)
{
    Map map = map_identity(graph_type(b->graph, x), type);
    return build_read(b->graph, x, &map, type, loc_of(b, x));
}

static AxisNames names_beyond(const Type *whole, const Type *part)
{
    AxisNames names = {0};
    for (int i = 0; i < whole->rank; i++)
        if (type_find(part, whole->axis[i].name) < 0)
            memcpy(names.name[names.count++], whole->axis[i].name, NAME_SIZE);
    return names;
}

static const char *names_text(const Backward *b, const AxisNames *names)
{
    Text text = text_new(b->graph->arena);
    for (int i = 0; i < names->count; i++) text_printf(&text, "%s ", names->name[i]);
    return text.data;
}

/* The sum of dy over the axes that `type` lacks. */
static NodeId summed(Backward *b, NodeId dy, const Type *type)
{
    AxisNames over = names_beyond(graph_type(b->graph, dy), type);
    if (over.count > 0)
        dy = build_reduction(b->graph, OP_SUM, dy, names_text(b, &over), loc_of(b, dy));
    return arranged(b, dy, type);
}

/* The sum of dy * factor over the axes that `type` lacks; the factor has all of those. */
static NodeId multiplied(Backward *b, NodeId dy, NodeId factor, const Type *type)
{
    AxisNames over = names_beyond(graph_type(b->graph, dy), type);
    if (over.count == 0)
        return build_binary(b->graph, OP_MUL, broadcast(b, dy, type), factor, loc_of(b, dy));
    NodeId product =
        build_linear(b->graph, dy, factor, NO_NODE, names_text(b, &over), loc_of(b, dy));
    return arranged(b, product, type);
}

static void give(Backward *b, NodeId id, uint32_t operand, NodeId gradient)
{
    NodeId *sum = &b->gradient[operand_of(b, id, operand)];
    *sum =
        *sum == NO_NODE ? gradient : build_binary(b->graph, OP_ADD, *sum, gradient, loc_of(b, id));
}

/* ---- none ------------------------------------------------------------------------------------- */

static bool gradient_DECLARED(Backward *b, NodeId id, NodeId dy)
{
    (void)b, (void)id, (void)dy;
    return true;
}

static bool gradient_REFUSED(Backward *b, NodeId id, NodeId dy)
{
    (void)dy;
    return diag_error(b->diag, loc_of(b, id), "no gradient passes through '%s'",
                      op_info[graph_node(b->graph, id)->op].name);
}

/* ---- movement --------------------------------------------------------------------------------- */

static bool gradient_REARRANGE(Backward *b, NodeId id, NodeId dy)
{
    Attributes back = {.group_count = graph_node(b->graph, id)->attributes.group_count};
    back.groups = arena_array(b->graph->arena, MAX_AXES, sizeof *back.groups);
    for (int i = 0; i < back.group_count; i++) {
        const Group *group = &graph_node(b->graph, id)->attributes.groups[i];
        back.groups[i] = (Group){.from = group->to, .to = group->from};
    }
    Type type = type_of(b, operand_of(b, id, 0));
    give(b, id, 0, graph_add(b->graph, OP_REARRANGE, &dy, 1, &type, &back, loc_of(b, id)));
    return true;
}

/* A name that `type` lacks, made of `stem`. */
static Axis fresh_axis(const Backward *b, const Type *type, const char *stem, int64_t extent)
{
    const char *name = stem;
    for (int i = 0; type_find(type, name) >= 0; i++)
        name = arena_printf(b->graph->arena, "%s%d", stem, i);
    return axis_constant(name, extent);
}

/* How the gradients of a window are spread over the axis that it looked at. */
typedef struct Fold {
    const Window *window;
    Axis axis, q, r, j;
} Fold;

/* Element y of the operand went to window h at offset k wherever h * stride + k - pad = y. With
 * y + pad = q * stride + r, these are h = q - j, k = j * stride + r, for as many j as strides fit in
 * a window: so the gradients are read as [q, r, j], zero where there is none, to be summed over j. */
static NodeId spread_window(Backward *b, NodeId dy, Fold *fold)
{
    const Window *window = fold->window;
    Type from = type_of(b, dy), spread = {.dtype = from.dtype};
    int64_t outer = (fold->axis.extent + window->pad + window->stride - 1) / window->stride;
    fold->q = fresh_axis(b, &from, "q", outer);
    fold->r = fresh_axis(b, &from, "r", window->stride);
    fold->j = fresh_axis(b, &from, "j", (window->kernel + window->stride - 1) / window->stride);
    int h = type_find(&from, window->outer), k = type_find(&from, window->inner), at[MAX_AXES];
    for (int i = 0; i < from.rank; i++) {
        if (i != k) at[i] = spread.rank;
        if (i != k) type_append(&spread, i == h ? &fold->q : &from.axis[i]);
        if (i == h) at[k] = spread.rank, type_append(&spread, &fold->r);
    }
    bool overlap = fold->j.extent > 1;
    if (overlap) type_append(&spread, &fold->j);
    Map map = {.rank = from.rank};
    for (int i = 0; i < from.rank; i++) map.dim[i] = index_axis(at[i]);
    if (overlap) {
        map.dim[h].coefficient[spread.rank - 1] = -1;
        map.dim[k].coefficient[spread.rank - 1] = window->stride;
    }
    return build_read(b->graph, dy, &map, &spread, loc_of(b, dy));
}

/* Over those j that the folds from `*summed` to before `end` have. */
static NodeId sum_spread(Backward *b, NodeId x, const Fold *fold, int *summed, int end)
{
    Text over = text_new(b->graph->arena);
    bool any = false;
    for (; *summed < end; ++*summed) {
        if (fold[*summed].j.extent == 1) continue;
        text_printf(&over, "%s ", fold[*summed].j.name);
        any = true;
    }
    return any ? build_reduction(b->graph, OP_SUM, x, over.data, loc_of(b, x)) : x;
}

/* Puts each q and r together, and leaves out what was padding. */
static NodeId merge_folds(Backward *b, NodeId x, const Fold *fold, int count)
{
    Graph *g = b->graph;
    Type from = type_of(b, x), merged = {.dtype = from.dtype};
    Text groups = text_new(g->arena);
    for (int i = 0; i < from.rank; i++) {
        Axis axis = from.axis[i];
        bool inner = false;
        for (int k = 0; k < count; k++) {
            inner |= strcmp(axis.name, fold[k].r.name) == 0;
            if (strcmp(axis.name, fold[k].q.name) == 0)
                axis = axis_constant(fold[k].axis.name, fold[k].q.extent * fold[k].r.extent);
        }
        if (!inner) type_append(&merged, &axis);
    }
    for (int k = 0; k < count; k++)
        text_printf(&groups, "%s(%s, %s) -> %s", k ? "; " : "", fold[k].q.name, fold[k].r.name,
                    fold[k].axis.name);
    x = build_rearrange(g, x, groups.data, &merged, loc_of(b, x));
    for (int k = 0; k < count; k++)
        x = build_slice(g, x, fold[k].axis.name, fold[k].window->pad, fold[k].axis.extent,
                        loc_of(b, x));
    return x;
}

/* One sum for all windows, unless it would have too many axes. */
static bool gradient_UNFOLD(Backward *b, NodeId id, NodeId dy)
{
    Type type = type_of(b, operand_of(b, id, 0));
    const Attributes a = graph_node(b->graph, id)->attributes;
    if (graph_type(b->graph, dy)->rank == MAX_AXES)
        return diag_error(b->diag, loc_of(b, id), "no gradient passes through an unfold to %d axes",
                          MAX_AXES);
    Fold *fold = arena_array(b->graph->arena, (size_t)a.window_count, sizeof *fold);
    int summed = 0;
    for (int i = 0; i < a.window_count; i++) {
        fold[i] =
            (Fold){.window = &a.windows[i], .axis = type.axis[type_find(&type, a.windows[i].from)]};
        if (graph_type(b->graph, dy)->rank == MAX_AXES) dy = sum_spread(b, dy, fold, &summed, i);
        dy = spread_window(b, dy, &fold[i]);
    }
    dy = sum_spread(b, dy, fold, &summed, a.window_count);
    dy = merge_folds(b, dy, fold, a.window_count);
    give(b, id, 0, arranged(b, dy, &type));
    return true;
}

/* Zero where nothing was taken. */
static bool gradient_SLICE(Backward *b, NodeId id, NodeId dy)
{
    Type type = type_of(b, operand_of(b, id, 0));
    const Attributes *a = &graph_node(b->graph, id)->attributes;
    Map map = map_identity(graph_type(b->graph, dy), &type);
    map.dim[type_find(graph_type(b->graph, dy), a->over.name[0])].offset = -a->offset;
    give(b, id, 0, build_read(b->graph, dy, &map, &type, loc_of(b, id)));
    return true;
}

/* Of what is moved along its axes, as far as it stays inside: each element that was taken was so once. */
static bool gradient_READ(Backward *b, NodeId id, NodeId dy)
{
    Type type = type_of(b, operand_of(b, id, 0)), taken = type_of(b, id);
    Map back = graph_node(b->graph, id)->attributes.map;
    bool plain = type.rank == taken.rank;
    for (int d = 0; d < type.rank && plain; d++) {
        int axis = type_find(&taken, type.axis[d].name);
        Index moved = axis < 0 ? (Index){0} : index_axis(axis);
        moved.offset = back.dim[d].offset;
        plain = axis >= 0 && memcmp(&moved, &back.dim[d], sizeof moved) == 0;
    }
    if (!plain) return gradient_REFUSED(b, id, dy);
    Map map = map_identity(&taken, &type);
    for (int d = 0; d < type.rank; d++)
        map.dim[type_find(&taken, type.axis[d].name)].offset = -back.dim[d].offset;
    give(b, id, 0, build_read(b->graph, dy, &map, &type, loc_of(b, id)));
    return true;
}

static bool gradient_CONCAT(Backward *b, NodeId id, NodeId dy)
{
    const char *axis = graph_node(b->graph, id)->attributes.over.name[0];
    int64_t start = 0;
    for (uint32_t i = 0; i < graph_node(b->graph, id)->operand_count; i++) {
        Type type = type_of(b, operand_of(b, id, i));
        int64_t extent = type.axis[type_find(&type, axis)].extent;
        if (wants(b, id, i))
            give(b, id, i, build_slice(b->graph, dy, axis, start, extent, loc_of(b, id)));
        start += extent;
    }
    return true;
}

/* ---- arithmetic ------------------------------------------------------------------------------- */

static bool gradient_LINEAR(Backward *b, NodeId id, NodeId dy)
{
    for (uint32_t i = 0; i < 3; i++) {
        if (!wants(b, id, i)) continue;
        Type type = type_of(b, operand_of(b, id, i));
        give(b, id, i,
             i == 2 ? summed(b, dy, &type) : multiplied(b, dy, operand_of(b, id, 1 - i), &type));
    }
    return true;
}

static bool gradient_LAYERNORM(Backward *b, NodeId id, NodeId dy)
{
    NodeId x = operand_of(b, id, 0);
    const Attributes a = graph_node(b->graph, id)->attributes;
    Type type = type_of(b, x);
    Loc loc = loc_of(b, id);
    NodeId operands[] = {x, operand_of(b, id, 1), dy};
    if (wants(b, id, 0))
        give(b, id, 0, graph_add(b->graph, OP_LAYERNORM_GRAD, operands, 3, &type, &a, loc));
    if (wants(b, id, 1)) {
        NodeId normal = graph_add(b->graph, OP_NORMALISE, operands, 1, &type, &a, loc);
        Type scale = type_of(b, operands[1]);
        give(b, id, 1, multiplied(b, dy, normal, &scale));
    }
    if (wants(b, id, 2)) {
        Type shift = type_of(b, operand_of(b, id, 2));
        give(b, id, 2, summed(b, dy, &shift));
    }
    return true;
}

static bool gradient_GELU(Backward *b, NodeId id, NodeId dy)
{
    NodeId x = operand_of(b, id, 0);
    give(b, id, 0, build_binary(b->graph, OP_GELU_GRAD, x, dy, loc_of(b, id)));
    return true;
}

static bool gradient_ADD(Backward *b, NodeId id, NodeId dy)
{
    if (wants(b, id, 0)) give(b, id, 0, dy);
    if (wants(b, id, 1)) {
        Type type = type_of(b, operand_of(b, id, 1));
        give(b, id, 1, summed(b, dy, &type));
    }
    return true;
}

static bool gradient_MUL(Backward *b, NodeId id, NodeId dy)
{
    NodeId x = operand_of(b, id, 0), factor = operand_of(b, id, 1);
    Type type = type_of(b, factor);
    if (wants(b, id, 0)) give(b, id, 0, build_binary(b->graph, OP_MUL, dy, factor, loc_of(b, id)));
    if (wants(b, id, 1)) give(b, id, 1, multiplied(b, dy, x, &type));
    return true;
}

/* y = x / d: dx = dy / d, dd = - dy * y / d. */
static bool gradient_DIV(Backward *b, NodeId id, NodeId dy)
{
    NodeId divisor = operand_of(b, id, 1);
    Type type = type_of(b, divisor);
    NodeId quotient = build_binary(b->graph, OP_DIV, dy, divisor, loc_of(b, id));
    if (wants(b, id, 0)) give(b, id, 0, quotient);
    if (wants(b, id, 1))
        give(b, id, 1,
             build_scale(b->graph, multiplied(b, quotient, id, &type), -1, loc_of(b, id)));
    return true;
}

static bool gradient_SQRT(Backward *b, NodeId id, NodeId dy)
{
    NodeId half = build_scale(b->graph, dy, 0.5, loc_of(b, id));
    give(b, id, 0, build_binary(b->graph, OP_DIV, half, id, loc_of(b, id)));
    return true;
}

static bool gradient_SCALE(Backward *b, NodeId id, NodeId dy)
{
    double factor = graph_node(b->graph, id)->attributes.factor;
    give(b, id, 0, build_scale(b->graph, dy, factor, loc_of(b, id)));
    return true;
}

static bool gradient_SUM(Backward *b, NodeId id, NodeId dy)
{
    Type type = type_of(b, operand_of(b, id, 0));
    give(b, id, 0, broadcast(b, dy, &type));
    return true;
}

static bool gradient_MEAN(Backward *b, NodeId id, NodeId dy)
{
    Type type = type_of(b, operand_of(b, id, 0));
    const AxisNames *over = &graph_node(b->graph, id)->attributes.over;
    double count = 1;
    for (int i = 0; i < over->count; i++) {
        const Axis *axis = &type.axis[type_find(&type, over->name[i])];
        if (axis->symbol[0])
            return diag_error(b->diag, loc_of(b, id), "no gradient passes through a mean over '%s'",
                              axis->name);
        count *= (double)axis->extent;
    }
    if (count > 1) dy = build_scale(b->graph, dy, 1 / count, loc_of(b, id));
    give(b, id, 0, broadcast(b, dy, &type));
    return true;
}

/* The one is the adjoint of the other. */
static void give_adjoint(Backward *b, NodeId id, NodeId dy, Op adjoint)
{
    Type type = type_of(b, operand_of(b, id, 0));
    const Attributes a = {.over = graph_node(b->graph, id)->attributes.over};
    give(b, id, 0, graph_add(b->graph, adjoint, &dy, 1, &type, &a, loc_of(b, id)));
}

static bool gradient_RESAMPLE(Backward *b, NodeId id, NodeId dy)
{
    give_adjoint(b, id, dy, OP_RESAMPLE_GRAD);
    return true;
}

static bool gradient_RESAMPLE_GRAD(Backward *b, NodeId id, NodeId dy)
{
    give_adjoint(b, id, dy, OP_RESAMPLE);
    return true;
}

static bool gradient_CROSS_ENTROPY(Backward *b, NodeId id, NodeId dy)
{
    NodeId operands[] = {operand_of(b, id, 0), operand_of(b, id, 1), dy};
    const Attributes a = graph_node(b->graph, id)->attributes;
    Type type = type_of(b, operands[0]);
    if (wants(b, id, 1))
        return diag_error(b->diag, loc_of(b, id),
                          "no gradient passes to the targets of a cross_entropy");
    if (wants(b, id, 0))
        give(b, id, 0,
             graph_add(b->graph, OP_CROSS_ENTROPY_GRAD, operands, 3, &type, &a, loc_of(b, id)));
    return true;
}
