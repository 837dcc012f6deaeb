/* gradient.c: the values of the ops that training alone has. */
#include "backends/llvm/emit.h"

#include <string.h>

static LLVMValueRef operand_value(Emitter *e, NodeId id, int operand, Lanes lanes)
{
    return emit_value(e, graph_node(e->graph, id)->operands[operand], lanes);
}

/* (g - mean(g) - n * mean(g * n)) * rstd */
LLVMValueRef emit_layernorm_grad(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMBuilderRef b = e->builder;
    const Place *place = schedule_place(&e->schedule, id);
    LLVMValueRef rstd = load_slot(e, &place->rstd, lanes);
    LLVMValueRef n =
        LLVMBuildFSub(b, operand_value(e, id, 0, lanes), load_slot(e, &place->mean, lanes), "");
    n = LLVMBuildFMul(b, n, rstd, "");
    LLVMValueRef scale = operand_value(e, id, 1, lanes), dy = operand_value(e, id, 2, lanes);
    LLVMValueRef g = LLVMBuildFMul(b, dy, scale, "");
    g = LLVMBuildFSub(b, g, load_slot(e, &place->first, lanes), "");
    LLVMValueRef along = LLVMBuildFMul(b, n, load_slot(e, &place->second, lanes), "");
    return LLVMBuildFMul(b, LLVMBuildFSub(b, g, along, ""), rstd, "");
}

LLVMValueRef emit_cross_entropy(Emitter *e, NodeId id, Lanes lanes)
{
    return load_slot(e, &schedule_place(&e->schedule, id)->second, lanes);
}

/* (exp(x - log) * sum of the target - target) * dy */
LLVMValueRef emit_cross_entropy_grad(Emitter *e, NodeId id, Lanes lanes)
{
    LLVMBuilderRef b = e->builder;
    const Place *place = schedule_place(&e->schedule, id);
    LLVMValueRef x = operand_value(e, id, 0, lanes), target = operand_value(e, id, 1, lanes);
    LLVMValueRef dy = operand_value(e, id, 2, lanes);
    LLVMValueRef share =
        emit_exp(e, LLVMBuildFSub(b, x, load_slot(e, &place->first, lanes), ""), lanes.width);
    share = LLVMBuildFMul(b, share, load_slot(e, &place->second, lanes), "");
    return LLVMBuildFMul(b, LLVMBuildFSub(b, share, target, ""), dy, "");
}

/* ---- the adjoint of a resampling -------------------------------------------------------------- */

/* Of one axis: for each index of the result, which of the gradients take part in it, with which
 * weights: entries start[i] to start[i + 1]. An index that none takes part in has one entry of weight 0. */
typedef struct Adjoint {
    LLVMValueRef start, index, weight; /* global arrays */
} Adjoint;

static LLVMValueRef constant_array(Emitter *e, const char *name, LLVMTypeRef type,
                                   LLVMValueRef *entries, int64_t count)
{
    return global_constant(e, name, LLVMConstArray2(type, entries, (uint64_t)count));
}

static LLVMValueRef constant_index(Emitter *e, int64_t value)
{
    return LLVMConstInt(e->i32, (unsigned long long)value, false);
}

/* For a resampling from `in` to `out`. */
static Adjoint adjoint_tables(Emitter *e, int64_t in, int64_t out)
{
    const char *stem = arena_printf(e->arena, "adjoint_%lld_%lld", (long long)in, (long long)out);
    const char *part[3];
    for (int k = 0; k < 3; k++)
        part[k] =
            arena_printf(e->arena, "%s_%s", stem, (const char *[]){"start", "index", "weight"}[k]);
    Adjoint a = {LLVMGetNamedGlobal(e->module, part[0]), LLVMGetNamedGlobal(e->module, part[1]),
                 LLVMGetNamedGlobal(e->module, part[2])};
    if (a.start) return a;
    size_t most = 4 * (size_t)out + (size_t)in;
    LLVMValueRef *start = arena_array(e->arena, (size_t)in + 1, sizeof *start);
    LLVMValueRef *index = arena_array(e->arena, most, sizeof *index);
    LLVMValueRef *weight = arena_array(e->arena, most, sizeof *weight);
    const BicubicAdjoint adjoint = bicubic_adjoint(e->arena, in, out);
    int64_t count = 0;
    for (int64_t i = 0; i < in; i++) {
        int64_t first = count;
        start[i] = constant_index(e, count);
        for (int64_t k = adjoint.start[i]; k < adjoint.start[i + 1]; k++) {
            index[count] = constant_index(e, adjoint.output[k]);
            weight[count++] = LLVMConstReal(e->f32, (double)adjoint.weight[k]);
        }
        if (count > first) continue;
        index[count] = constant_index(e, 0);
        weight[count++] = LLVMConstReal(e->f32, 0);
    }
    start[in] = constant_index(e, count);
    a.start = constant_array(e, part[0], e->i32, start, in + 1);
    a.index = constant_array(e, part[1], e->i32, index, count);
    a.weight = constant_array(e, part[2], e->f32, weight, count);
    return a;
}

static LLVMValueRef load_entry(Emitter *e, LLVMValueRef array, LLVMTypeRef type, LLVMValueRef at)
{
    LLVMValueRef from = LLVMBuildGEP2(e->builder, type, array, &at, 1, "");
    LLVMValueRef value = LLVMBuildLoad2(e->builder, type, from, "");
    return type == e->i32 ? LLVMBuildZExt(e->builder, value, e->i64, "") : value;
}

typedef struct Spread {
    NodeId dy;
    const char *axis[2];
    Adjoint adjoint[2];
    LLVMValueRef at[2]; /* index of the result along each */
} Spread;

/* The sum over the entries along axis k, and those along the axes after it. */
static LLVMValueRef emit_entries(Emitter *e, const Spread *s, int k, Lanes lanes)
{
    if (k == 2) return emit_value(e, s->dy, lanes);
    const Adjoint *a = &s->adjoint[k];
    LLVMTypeRef type = float_type(e, lanes.width);
    LLVMValueRef total = stack_slot(e, type);
    LLVMBuildStore(e->builder, LLVMConstNull(type), total);
    LLVMValueRef next = LLVMBuildNSWAdd(e->builder, s->at[k], int_constant(e, 1), "");
    LLVMValueRef first = load_entry(e, a->start, e->i32, s->at[k]);
    LLVMValueRef count =
        LLVMBuildNSWSub(e->builder, load_entry(e, a->start, e->i32, next), first, "");
    Loop loop = loop_begin(e, count);
    int mark = e->coordinate_count;
    LLVMValueRef entry = LLVMBuildNSWAdd(e->builder, first, loop.index, "");
    coordinate_push(e, s->axis[k], affine_value(load_entry(e, a->index, e->i32, entry), 1));
    LLVMValueRef weight = splat(e, load_entry(e, a->weight, e->f32, entry), lanes.width);
    LLVMValueRef value = emit_entries(e, s, k + 1, lanes);
    LLVMValueRef sum = LLVMBuildLoad2(e->builder, type, total, "");
    LLVMBuildStore(e->builder, multiply_add(e, value, weight, sum), total);
    e->coordinate_count = mark;
    loop_end(e, &loop);
    return LLVMBuildLoad2(e->builder, type, total, "");
}

LLVMValueRef emit_resample_grad(Emitter *e, NodeId id, Lanes lanes)
{
    const Node *node = graph_node(e->graph, id);
    const Type *dy = graph_type(e->graph, node->operands[0]);
    Spread s = {.dy = node->operands[0]};
    for (int k = 0; k < 2; k++) {
        s.axis[k] = node->attributes.over.name[k];
        if (lanes.axis && strcmp(lanes.axis, s.axis[k]) == 0) return emit_each_lane(e, id, lanes);
        s.adjoint[k] = adjoint_tables(e, node->type.axis[type_find(&node->type, s.axis[k])].extent,
                                      dy->axis[type_find(dy, s.axis[k])].extent);
        s.at[k] = affine_emit(e, coordinate_of(e, s.axis[k]));
    }
    return emit_entries(e, &s, 0, lanes);
}
