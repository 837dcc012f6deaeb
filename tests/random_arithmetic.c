/* random_arithmetic.c: random ops that compute. */
#include "tests/random_ops.h"

/* ---- arithmetic ---------------------------------------------------------------------------- */

/* Constant axes that both have, if all that they share agrees: some of them, at least one. */
static Type shared_axes(Maker *m, const Type *x, const Type *w)
{
    Type shared = {.dtype = DTYPE_F32};
    for (int i = 0; i < w->rank; i++) {
        int at = type_find(x, w->axis[i].name);
        if (at < 0) continue;
        if (!axis_same_extent(&x->axis[at], &w->axis[i])) return (Type){0};
        if (is_constant(&w->axis[i])) type_append(&shared, &w->axis[i]);
    }
    Type some = some_axes(m, &shared, 70, MAX_AXES);
    return some.rank ? some : some_axes(m, &shared, 100, 1);
}

/* Something to multiply x with: another value, or a weight. *over: the axes to contract. */
static NodeId pick_factor(Maker *m, const Type *x, Type *over)
{
    for (int tries = chance(m, 30) ? 12 : 0; tries > 0; tries--) {
        NodeId w = pick(m);
        *over = shared_axes(m, x, type_of(m, w));
        if (over->rank) return w;
    }
    *over = some_axes(m, x, 50, 3);
    if (over->rank == 0) return NO_NODE;
    const AxisNames names = names_of(over);
    Type type = *over, rest = type_without(x, &names), batch = some_axes(m, &rest, 15, 2);
    for (int i = 0; i < batch.rank && type.rank < MAX_AXES; i++) type_append(&type, &batch.axis[i]);
    append_axes(m, &type, 2, x);
    shuffle(m, &type, 0);
    return new_weight(m, &type);
}

NodeId make_linear(Maker *m)
{
    NodeId x = pick(m);
    Type over;
    NodeId w = pick_factor(m, type_of(m, x), &over);
    if (w == NO_NODE) return NO_NODE;
    AxisNames names = names_of(&over);
    Type result = type_without(type_of(m, x), &names);
    for (int i = 0; i < type_of(m, w)->rank; i++) {
        const Axis *axis = &type_of(m, w)->axis[i];
        if (type_find(type_of(m, x), axis->name) >= 0) continue;
        if (result.rank == MAX_AXES) return NO_NODE;
        type_append(&result, axis);
    }
    if (type_elements(&result, NULL) > m->most_elements) return NO_NODE;
    NodeId bias = chance(m, 60) ? pick_part(m, &result) : NO_NODE;
    return build_linear(m->graph, x, w, bias, names_text(m, &names), (Loc){0});
}

NodeId make_layernorm(Maker *m)
{
    static const double eps[] = {1e-5, 1e-3, 0.1};
    NodeId x = pick(m);
    Type over = some_axes(m, type_of(m, x), 50, 3);
    if (over.rank == 0) return NO_NODE;
    AxisNames names = names_of(&over);
    shuffle(m, &over, 0);
    NodeId scale = new_weight(m, &over);
    shuffle(m, &over, 0);
    NodeId shift = chance(m, 10) ? scale : new_weight(m, &over);
    bool few = type_elements(&over, NULL) < 4; /* their spread may be nothing but rounding errors */
    double least = few ? 0.1 : eps[from_to(m, 0, ARRAY_SIZE(eps) - 1)];
    return build_layernorm(m->graph, x, scale, shift, names_text(m, &names), least, (Loc){0});
}

NodeId make_gelu(Maker *m)
{
    return build_unary(m->graph, OP_GELU, pick(m), (Loc){0});
}

NodeId make_add(Maker *m)
{
    NodeId a = pick(m);
    return build_binary(m->graph, OP_ADD, a, pick_part(m, type_of(m, a)), (Loc){0});
}

NodeId make_mul(Maker *m)
{
    NodeId a = pick(m);
    return build_binary(m->graph, OP_MUL, a, pick_part(m, type_of(m, a)), (Loc){0});
}

NodeId make_mean(Maker *m)
{
    NodeId x = pick(m);
    Type over = some_axes(m, type_of(m, x), 35, MAX_AXES);
    AxisNames names = names_of(&over);
    return names.count ? build_reduction(m->graph, OP_MEAN, x, names_text(m, &names), (Loc){0})
                       : NO_NODE;
}

NodeId make_resample(Maker *m)
{
    NodeId x = pick(m);
    Type over = some_axes(m, type_of(m, x), 100, 2);
    AxisNames names = names_of(&over);
    if (names.count < 2) return NO_NODE;
    int64_t rows = new_extent(m), columns = new_extent(m);
    return build_resample(m->graph, x, names_text(m, &names), rows, columns, (Loc){0});
}

/* ---- of training ----------------------------------------------------------------------------- */

static NodeId make_sum(Maker *m)
{
    NodeId x = pick(m);
    Type over = some_axes(m, type_of(m, x), 35, MAX_AXES);
    AxisNames names = names_of(&over);
    return names.count ? build_reduction(m->graph, OP_SUM, x, names_text(m, &names), (Loc){0})
                       : NO_NODE;
}

static NodeId make_scale(Maker *m)
{
    static const double factors[] = {-1, 0.3, 2};
    return build_scale(m->graph, pick(m), factors[from_to(m, 0, 2)], (Loc){0});
}

static NodeId make_gelu_grad(Maker *m)
{
    NodeId x = pick(m);
    NodeId dy = chance(m, 50) ? x : build_scale(m->graph, x, 0.5, (Loc){0});
    return build_binary(m->graph, OP_GELU_GRAD, x, dy, (Loc){0});
}

/* normalise or layernorm_grad */
static NodeId make_normal(Maker *m)
{
    NodeId x = pick(m);
    Type over = some_axes(m, type_of(m, x), 50, 3), type = *type_of(m, x);
    Attributes a = {.over = names_of(&over), .eps = 1};
    if (over.rank == 0) return NO_NODE;
    shuffle(m, &over, 0);
    NodeId operands[] = {x, NO_NODE, x};
    if (chance(m, 40)) return graph_add(m->graph, OP_NORMALISE, operands, 1, &type, &a, (Loc){0});
    operands[1] = new_weight(m, &over);
    if (chance(m, 70)) operands[2] = build_scale(m->graph, x, 0.5, (Loc){0});
    return graph_add(m->graph, OP_LAYERNORM_GRAD, operands, 3, &type, &a, (Loc){0});
}

/* cross_entropy, with or without its gradient */
static NodeId make_loss(Maker *m)
{
    NodeId x = pick(m), target = build_scale(m->graph, x, 0.5, (Loc){0});
    Type over = some_axes(m, type_of(m, x), 60, 2), type = *type_of(m, x);
    Attributes a = {.over = names_of(&over)};
    if (over.rank == 0) return NO_NODE;
    NodeId loss = build_cross_entropy(m->graph, x, target, names_text(m, &a.over), (Loc){0});
    NodeId operands[] = {x, target, loss};
    return chance(m, 50)
               ? loss
               : graph_add(m->graph, OP_CROSS_ENTROPY_GRAD, operands, 3, &type, &a, (Loc){0});
}

static NodeId make_resample_grad(Maker *m)
{
    NodeId made = make_resample(m);
    if (made != NO_NODE) graph_node(m->graph, made)->op = OP_RESAMPLE_GRAD;
    return made;
}

NodeId make_training(Maker *m)
{
    static MakeFunction *const make[] = {make_sum,    make_scale, make_gelu_grad,
                                         make_normal, make_loss,  make_resample_grad};
    return make[from_to(m, 0, ARRAY_SIZE(make) - 1)](m);
}
