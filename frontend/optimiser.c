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

Graph *build_adamw(Arena *arena, int64_t elements)
{
    Graph *g = graph_new(arena, "adamw");
    NodeId w = run_of_floats(g, "w", elements), gradient = run_of_floats(g, "g", elements);
    NodeId m = run_of_floats(g, "m", elements), v = run_of_floats(g, "v", elements);
    NodeId keep = number(g, "keep"), rate = number(g, "rate");
    NodeId beta1 = number(g, "beta1"), rest1 = number(g, "rest1");
    NodeId beta2 = number(g, "beta2"), rest2 = number(g, "rest2");
    NodeId correction = number(g, "correction"), eps = number(g, "eps");
    m = add(g, mul(g, m, beta1), mul(g, gradient, rest1));
    v = add(g, mul(g, v, beta2), mul(g, mul(g, gradient, gradient), rest2));
    NodeId root = mul(g, build_unary(g, OP_SQRT, v, nowhere), correction);
    NodeId change = build_binary(g, OP_DIV, mul(g, m, rate), add(g, root, eps), nowhere);
    graph_add_output(g, "m", "step", m);
    graph_add_output(g, "v", "step", v);
    graph_add_output(g, "w", "step", add(g, mul(g, w, keep), change));
    return g;
}
