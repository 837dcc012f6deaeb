/* check_arithmetic.c: the shape rules of the ops that compute. */
#include "ir/private.h"

/* The result has the axes of `expected`, in any order. */
static bool expect_axes(Diag *diag, const Node *node, const Type *expected)
{
    bool same = node->type.rank == expected->rank;
    for (int i = 0; i < expected->rank && same; i++) {
        int at = type_find(&node->type, expected->axis[i].name);
        same = at >= 0 && axis_same_extent(&node->type.axis[at], &expected->axis[i]);
    }
    return same || expect_result(diag, node, expected);
}

bool check_LINEAR(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Type *x = graph_type(graph, node->operands[0]), *w = graph_type(graph, node->operands[1]);
    const AxisNames *over = &node->attributes.over;
    if (!has_axes(diag, node, "operand 1", x, over) ||
        !has_axes(diag, node, "operand 2", w, over) || !extents_agree(diag, node, x, w))
        return false;
    Type expected = type_without(x, over);
    for (int i = 0; i < w->rank; i++) {
        if (type_find(x, w->axis[i].name) >= 0) continue;
        if (!append_made_axis(diag, node, &expected, &w->axis[i])) return false;
    }
    return expect_axes(diag, node, &expected) &&
           (node->operand_count == 2 || is_part_of(graph, node, 2, &expected, diag));
}

/* Operand `number` has exactly the axes in `over`, in any order. */
static bool has_only_over(const Graph *graph, const Node *node, int number, Diag *diag)
{
    const AxisNames *over = &node->attributes.over;
    const Type *type = graph_type(graph, node->operands[number]);
    for (int k = 0; k < over->count; k++)
        if (type->rank != over->count || type_find(type, over->name[k]) < 0)
            return node_error(diag, node, "operand %d, %s, must have exactly the axes in over",
                              number + 1, shown_type(diag, type));
    return extents_agree(diag, node, graph_type(graph, node->operands[0]), type);
}

bool check_LAYERNORM(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Type *x = graph_type(graph, node->operands[0]);
    return has_axes(diag, node, "operand 1", x, &node->attributes.over) &&
           has_only_over(graph, node, 1, diag) && has_only_over(graph, node, 2, diag) &&
           expect_result(diag, node, x);
}

bool check_GELU(const Graph *graph, NodeId id, Diag *diag)
{
    return expect_result_of_operand(graph, id, diag);
}

bool check_ADD(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    return is_part_of(graph, node, 1, graph_type(graph, node->operands[0]), diag) &&
           expect_result_of_operand(graph, id, diag);
}

bool check_MUL(const Graph *graph, NodeId id, Diag *diag)
{
    return check_ADD(graph, id, diag);
}

bool check_MEAN(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Type *x = graph_type(graph, node->operands[0]);
    Type expected = type_without(x, &node->attributes.over);
    return has_axes(diag, node, "operand 1", x, &node->attributes.over) &&
           expect_result(diag, node, &expected);
}

bool check_RESAMPLE(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const AxisNames *over = &node->attributes.over;
    Type expected = *graph_type(graph, node->operands[0]);
    if (over->count != 2)
        return node_error(diag, node, "over must name two axes, rows and columns, not %d",
                          over->count);
    for (int i = 0; i < 2; i++) {
        int axis;
        if (!find_constant_axis(diag, node, &expected, over->name[i], &axis)) return false;
        take_declared_extent(&expected, axis, &node->type);
    }
    return expect_result(diag, node, &expected);
}

bool check_SUM(const Graph *graph, NodeId id, Diag *diag)
{
    return check_MEAN(graph, id, diag);
}

bool check_SCALE(const Graph *graph, NodeId id, Diag *diag)
{
    return expect_result_of_operand(graph, id, diag);
}

bool check_DIV(const Graph *graph, NodeId id, Diag *diag)
{
    return check_ADD(graph, id, diag);
}

bool check_SQRT(const Graph *graph, NodeId id, Diag *diag)
{
    return expect_result_of_operand(graph, id, diag);
}

/* ---- of training ----------------------------------------------------------------------------- */

/* Operand `number` has the type of the first. */
static bool is_like_first(const Graph *graph, NodeId id, int number, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Type *x = graph_type(graph, node->operands[0]);
    const Type *other = graph_type(graph, node->operands[number]);
    if (type_equal(x, other)) return true;
    return node_error(diag, node, "operand %d, %s, must be as operand 1, %s", number + 1,
                      shown_type(diag, other), shown_type(diag, x));
}

bool check_NORMALISE(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    return has_axes(diag, node, "operand 1", graph_type(graph, node->operands[0]),
                    &node->attributes.over) &&
           expect_result_of_operand(graph, id, diag);
}

bool check_LAYERNORM_GRAD(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    return has_axes(diag, node, "operand 1", graph_type(graph, node->operands[0]),
                    &node->attributes.over) &&
           has_only_over(graph, node, 1, diag) && is_like_first(graph, id, 2, diag) &&
           expect_result_of_operand(graph, id, diag);
}

bool check_GELU_GRAD(const Graph *graph, NodeId id, Diag *diag)
{
    return is_like_first(graph, id, 1, diag) && expect_result_of_operand(graph, id, diag);
}

bool check_CROSS_ENTROPY(const Graph *graph, NodeId id, Diag *diag)
{
    return is_like_first(graph, id, 1, diag) && check_MEAN(graph, id, diag);
}

bool check_CROSS_ENTROPY_GRAD(const Graph *graph, NodeId id, Diag *diag)
{
    const Node *node = graph_node(graph, id);
    const Type *x = graph_type(graph, node->operands[0]);
    const Type *dy = graph_type(graph, node->operands[2]);
    Type expected = type_without(x, &node->attributes.over);
    if (!has_axes(diag, node, "operand 1", x, &node->attributes.over) ||
        !is_like_first(graph, id, 1, diag))
        return false;
    if (!type_equal(dy, &expected))
        return node_error(diag, node, "operand 3 is %s, but must be %s", shown_type(diag, dy),
                          shown_type(diag, &expected));
    return expect_result_of_operand(graph, id, diag);
}

bool check_RESAMPLE_GRAD(const Graph *graph, NodeId id, Diag *diag)
{
    return check_RESAMPLE(graph, id, diag);
}
