/* gradient.c: the values of the ops that training alone has, and the statistics that they take. */
#include "backends/cuda/emit.h"

#include <string.h>

static const char *operand_text(Writer *w, NodeId id, int operand)
{
    return value_text(w, graph_node(w->graph, id)->operands[operand]);
}

const char *gelu_grad_text(Writer *w, NodeId id)
{
    const char *x = operand_text(w, id, 0);
    return arena_printf(w->arena, "raft_gelu_slope(%s) * %s", x, operand_text(w, id, 1));
}

/* (g - mean(g) - n * mean(g * n)) * rstd with g = dy * scale */
const char *layernorm_grad_text(Writer *w, NodeId id)
{
    const Place *place = schedule_place(&w->schedule, id);
    const char *x = operand_text(w, id, 0), *scale = operand_text(w, id, 1);
    const char *dy = operand_text(w, id, 2), *rstd = slot_text(w, &place->rstd);
    return arena_printf(w->arena, "(%s * %s - %s - (%s - %s) * %s * %s) * %s", dy, scale,
                        slot_text(w, &place->first), x, slot_text(w, &place->mean), rstd,
                        slot_text(w, &place->second), rstd);
}

const char *cross_entropy_text(Writer *w, NodeId id)
{
    return slot_text(w, &schedule_place(&w->schedule, id)->second);
}

/* (exp(x - log) * sum of the target - target) * dy */
const char *cross_entropy_grad_text(Writer *w, NodeId id)
{
    const Place *place = schedule_place(&w->schedule, id);
    const char *x = operand_text(w, id, 0), *target = operand_text(w, id, 1);
    return arena_printf(w->arena, "(expf(%s - %s) * %s - %s) * %s", x, slot_text(w, &place->first),
                        slot_text(w, &place->second), target, operand_text(w, id, 2));
}

/* ---- the adjoint of a resampling -------------------------------------------------------------- */

static void put_entry(Text *table, int64_t entry, const char *text)
{
    text_printf(table, "%s%s", entry == 0 ? "" : entry % 8 == 0 ? ",\n    " : ", ", text);
}

/* Tables of a resampling from `in` to `out`: for each index of the result, which gradients take part in it, with which
 * weights: entries start[i] to start[i + 1]. Their name without _start, _index or _weight. */
static const char *adjoint_tables(Writer *w, int64_t in, int64_t out)
{
    const char *name = arena_printf(w->arena, "adjoint_%lld_%lld", (long long)in, (long long)out);
    Text start = text_new(w->arena), index = text_new(w->arena), weight = text_new(w->arena);
    if (strstr(w->tables->data, arena_printf(w->arena, "raft_table(int, %s_start,", name)))
        return name;
    const BicubicAdjoint adjoint = bicubic_adjoint(w->arena, in, out);
    const int64_t count = adjoint.start[in];
    for (int64_t i = 0; i <= in; i++)
        put_entry(&start, i, arena_printf(w->arena, "%lld", (long long)adjoint.start[i]));
    for (int64_t k = 0; k < count; k++) {
        put_entry(&index, k, arena_printf(w->arena, "%lld", (long long)adjoint.output[k]));
        put_entry(&weight, k, float_text(w, adjoint.weight[k]));
    }
    text_printf(w->tables, "raft_table(int, %s_start, %lld) = {%s};\n", name, (long long)in + 1,
                start.data);
    text_printf(w->tables, "raft_table(int, %s_index, %lld) = {%s};\n", name, (long long)count,
                index.data);
    text_printf(w->tables, "raft_table(float, %s_weight, %lld) = {%s};\n", name, (long long)count,
                weight.data);
    return name;
}

/* Opens the loop over what takes part in the result along an axis, whose coordinate becomes the gradient's. Returns the
 * weight of one. */
static const char *open_adjoint(Writer *w, const Node *node, int k)
{
    const char *axis = node->attributes.over.name[k];
    const Type *dy = graph_type(w->graph, node->operands[0]);
    const char *table = adjoint_tables(w, node->type.axis[type_find(&node->type, axis)].extent,
                                       dy->axis[type_find(dy, axis)].extent);
    const char *at = sum_text(w, coordinate_at(w, axis)), *entry = new_name(w);
    open_block(w, "for (int %s = %s_start[%s]; %s < %s_start[%s + 1]; %s++)", entry, table, at,
               entry, table, at, entry);
    push_coordinate(w, axis, sum_term(arena_printf(w->arena, "%s_index[%s]", table, entry), 1, 0));
    return arena_printf(w->arena, "%s_weight[%s]", table, entry);
}

const char *resample_grad_text(Writer *w, NodeId id)
{
    const Node *node = graph_node(w->graph, id);
    const char *sum = new_name(w), *row = new_name(w), *weight[2];
    int mark = w->coordinate_count;
    line(w, "float %s = 0.0f;", sum);
    weight[0] = open_adjoint(w, node, 0);
    line(w, "float %s = 0.0f;", row);
    weight[1] = open_adjoint(w, node, 1);
    const char *dy = value_text(w, node->operands[0]);
    line(w, "%s = fmaf(%s, %s, %s);", row, dy, weight[1], row);
    close_block(w);
    line(w, "%s = fmaf(%s, %s, %s);", sum, row, weight[0], sum);
    close_block(w);
    w->coordinate_count = mark;
    return sum;
}

/* ---- statistics ------------------------------------------------------------------------------- */

/* Behind mean and variance: the means of g and of g * n. */
void write_gradient_means(Writer *w, const Node *node, const Place *place, const char *inverse)
{
    line(w, "const float rstd = 1.0f / sqrtf(variance + %s);",
         float_text(w, (float)node->attributes.eps));
    line(w, "float first = 0.0f, second = 0.0f;");
    int mark = w->coordinate_count;
    open_elements(w, node);
    line(w, "const float n = (%s - mean) * rstd;", value_text(w, node->operands[0]));
    const char *dy = value_text(w, node->operands[2]);
    line(w, "const float g = %s * %s;", dy, value_text(w, node->operands[1]));
    line(w, "first += g;");
    line(w, "second = fmaf(g, n, second);");
    w->coordinate_count = mark;
    close_block(w);
    line(w, "first = raft_warp_sum(first) * %s;", inverse);
    line(w, "second = raft_warp_sum(second) * %s;", inverse);
    open_block(w, "if (lane == 0)");
    line(w, "%s = mean;", slot_text(w, &place->mean));
    line(w, "%s = rstd;", slot_text(w, &place->rstd));
    line(w, "%s = first;", slot_text(w, &place->first));
    line(w, "%s = second;", slot_text(w, &place->second));
    close_block(w);
}

/* The logarithm of the sum of all exp(x), and the loss or, of its gradient, the sum of the target. */
void write_loss_statistics(Writer *w, const Node *node, const Place *place)
{
    int mark = w->coordinate_count;
    line(w, "float most = -3.402823466e+38f, sum = 0.0f, second = 0.0f;");
    open_elements(w, node);
    line(w, "most = fmaxf(most, %s);", value_text(w, node->operands[0]));
    w->coordinate_count = mark;
    close_block(w);
    line(w, "most = raft_warp_max(most);");
    open_elements(w, node);
    line(w, "sum += expf(%s - most);", value_text(w, node->operands[0]));
    w->coordinate_count = mark;
    close_block(w);
    line(w, "const float log = most + logf(raft_warp_sum(sum));");
    open_elements(w, node);
    const char *target = value_text(w, node->operands[1]);
    if (node->op == OP_CROSS_ENTROPY)
        line(w, "second = fmaf(log - %s, %s, second);", value_text(w, node->operands[0]), target);
    else
        line(w, "second += %s;", target);
    w->coordinate_count = mark;
    close_block(w);
    line(w, "second = raft_warp_sum(second);");
    open_block(w, "if (lane == 0)");
    line(w, "%s = log;", slot_text(w, &place->first));
    line(w, "%s = second;", slot_text(w, &place->second));
    close_block(w);
}
