/* optimiser.c: the step of an optimiser as a graph: every parameter is one run of floats, and so are
 * their gradients and the optimiser's own state; what changes from step to step are single numbers. */
#include "frontend/frontend.h"

#include <math.h>

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

/* ---- the graph ---------------------------------------------------------------------------------- */

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

Graph *build_optimiser(Arena *arena, const Optimiser *optimiser, int64_t elements)
{
    bool sgd = optimiser->kind == OPTIMISER_SGD;
    Graph *g = graph_new(arena, sgd ? "sgd" : "adamw");
    NodeId w = run_of_floats(g, "w", elements), gradient = run_of_floats(g, "g", elements);
    if (optimiser->most_norm > 0) gradient = mul(g, gradient, number(g, "clip"));
    NodeId decay = NO_NODE; /* of SGD a factor, of AdamW what is left after it */
    if (optimiser->exempts) {
        decay = mul(g, run_of_floats(g, "decays", elements), number(g, "decay"));
        if (!sgd) decay = add(g, decay, number(g, "one"));
    } else {
        decay = number(g, sgd ? "decay" : "keep");
    }
    if (sgd)
        step_sgd(g, &w, gradient, decay, elements);
    else
        step_adamw(g, &w, gradient, decay, elements);
    graph_add_output(g, "w", "step", w);
    if (optimiser->average > 0) {
        NodeId e = run_of_floats(g, "e", elements);
        e = add(g, mul(g, e, number(g, "average")), mul(g, w, number(g, "rest")));
        graph_add_output(g, "e", "step", e);
    }
    return g;
}

/* ---- its numbers -------------------------------------------------------------------------------- */

Optimiser optimiser_of(const Settings *s)
{
    return (Optimiser){.kind = s->sgd ? OPTIMISER_SGD : OPTIMISER_ADAMW,
                       .weight_decay = s->weight_decay,
                       .momentum = s->momentum,
                       .most_norm = s->max_grad_norm,
                       .average = s->ema_decay,
                       .exempts = !s->decay_biases_and_norms};
}

int optimiser_numbers(const Optimiser *o, int64_t step, double lr, double norm,
                      OptimiserNumber numbers[static OPTIMISER_MOST_NUMBERS])
{
    const double beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
    bool sgd = o->kind == OPTIMISER_SGD;
    double clip = o->most_norm / (norm + 1e-6); /* as PyTorch clips */
    const struct {
        bool used;
        OptimiserNumber number;
    } all[] = {
        {o->most_norm > 0, {"clip", clip > 1 ? 1 : clip}},
        {sgd, {"decay", o->weight_decay}},
        {!sgd && o->exempts, {"decay", -lr * o->weight_decay}},
        {!sgd && o->exempts, {"one", 1}},
        {!sgd && !o->exempts, {"keep", 1 - lr * o->weight_decay}},
        {sgd, {"momentum", o->momentum}},
        {sgd, {"rate", -lr}},
        {!sgd, {"beta1", beta1}},
        {!sgd, {"rest1", 1 - beta1}},
        {!sgd, {"beta2", beta2}},
        {!sgd, {"rest2", 1 - beta2}},
        {!sgd, {"eps", eps}},
        {!sgd, {"rate", -lr / (1 - pow(beta1, (double)step))}},
        {!sgd, {"correction", 1 / sqrt(1 - pow(beta2, (double)step))}},
        {o->average > 0, {"average", o->average}},
        {o->average > 0, {"rest", 1 - o->average}},
    };
    int count = 0;
    for (size_t i = 0; i < ARRAY_SIZE(all); i++)
        if (all[i].used) numbers[count++] = all[i].number;
    return count;
}
