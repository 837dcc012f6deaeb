/* optimiser.c: the step of an optimiser as a graph: every parameter is one run of floats, and so are
 * their gradients and the optimiser's own state; what changes from step to step are single numbers. */
#include "frontend/frontend.h"

static const Loc nowhere = {0};

static NodeId number(Graph *g, const char *name)
{
    const Type type = {.dtype = DTYPE_F32};
    return build_param(g, name, &type, 0, NULL, nowhere);
}

static NodeId run_of_floats(Graph *g, const char *name, int64_t elements)
{
    const Axis axis[] = {axis_symbol("b"), axis_constant("n", elements)};
    Type type = {.dtype = DTYPE_F32};
    for (size_t i = 0; i < ARRAY_SIZE(axis); i++) type_append(&type, &axis[i]);
    return build_input(g, name, &type, nowhere);
}

static NodeId add(Graph *g, NodeId a, NodeId b)
{
    return build_binary(g, OP_ADD, a, b, nowhere);
}

static NodeId mul(Graph *g, NodeId a, NodeId b)
{
    return build_binary(g, OP_MUL, a, b, nowhere);
}

static void step_adamw(Graph *g, NodeId *w, NodeId gradient, NodeId keep, int64_t elements)
{
    NodeId m = run_of_floats(g, "m", elements), v = run_of_floats(g, "v", elements);
    m = add(g, mul(g, m, number(g, "beta1")), mul(g, gradient, number(g, "rest1")));
    v = add(g, mul(g, v, number(g, "beta2")),
            mul(g, mul(g, gradient, gradient), number(g, "rest2")));
    NodeId root = mul(g, build_unary(g, OP_SQRT, v, nowhere), number(g, "correction"));
    NodeId change = build_binary(g, OP_DIV, mul(g, m, number(g, "rate")),
                                 add(g, root, number(g, "eps")), nowhere);
    graph_add_output(g, "m", "step", m);
    graph_add_output(g, "v", "step", v);
    *w = add(g, mul(g, *w, keep), change);
}

static void step_sgd(Graph *g, NodeId *w, NodeId gradient, NodeId decay, int64_t elements)
{
    NodeId m = run_of_floats(g, "m", elements);
    gradient = add(g, gradient, mul(g, *w, decay));
    m = add(g, mul(g, m, number(g, "momentum")), gradient);
    graph_add_output(g, "m", "step", m);
    *w = add(g, *w, mul(g, m, number(g, "rate")));
}

Graph *build_optimiser(Arena *arena, const char *name, const OptimiserParts *parts,
                       int64_t elements)
{
    Graph *g = graph_new(arena, name);
    NodeId w = run_of_floats(g, "w", elements), gradient = run_of_floats(g, "g", elements);
    if (parts->clips) gradient = mul(g, gradient, number(g, "clip"));
    NodeId decay = NO_NODE; /* of SGD a factor, of AdamW what is left after it */
    if (parts->exempts) {
        decay = mul(g, run_of_floats(g, "decays", elements), number(g, "decay"));
        if (!parts->sgd) decay = add(g, decay, number(g, "one"));
    } else {
        decay = number(g, parts->sgd ? "decay" : "keep");
    }
    if (parts->sgd)
        step_sgd(g, &w, gradient, decay, elements);
    else
        step_adamw(g, &w, gradient, decay, elements);
    graph_add_output(g, "w", "step", w);
    if (parts->averages) {
        NodeId e = run_of_floats(g, "e", elements);
        e = add(g, mul(g, e, number(g, "average")), mul(g, w, number(g, "rest")));
        graph_add_output(g, "e", "step", e);
    }
    return g;
}
