/* gelu.c: x * Phi(x) = x * (1 + erf(x / sqrt 2)) / 2 and its slope, without branches, tables or division.
 *
 * Phi(x) - 1/2 is odd: z * p(z^2), with z = x clamped to +-5.25, where Phi is 0 or 1 to half an
 * ulp. p is a polynomial of degree 14 in w = z^2 - 5.25^2 / 2, which lies on both sides of zero and
 * so keeps Horner's rule from cancelling. The coefficients minimise the greatest error of x * (1/2 + z p);
 * in float32 the result is within 6e-7 of gelu for |x| <= 12 (7e-7 without fused multiply-add),
 * and within 2e-7 |x| everywhere (tests/test_jit.c measures it on every exponent). Far below zero,
 * where gelu vanishes, it is about 3e-8 x: so -inf for -inf. NaN stays NaN.
 *
 * The slope less 1/2 is odd, too: likewise z * p, with z = x clamped to +-5.6 and a polynomial of degree 16;
 * it is within 5e-7 of the exact one.
 */
#include "backends/llvm/emit.h"

#include <string.h>

static const float gelu_coefficient[] = {
    0.13465935f,      -0.0048708776f,   0.000261399196f,  -1.51926606e-05f, 8.88088834e-07f,
    -5.03472641e-08f, 2.70306733e-09f,  -1.35942882e-10f, 6.52994585e-12f,  -2.97352908e-13f,
    1.11175268e-14f,  -3.37292384e-16f, 1.69352823e-17f,  -9.55248851e-19f, 2.18896644e-20f};

static const float slope_coefficient[] = {
    0.126416638f,     -0.0040996368f,   0.000210719329f,  -1.32219993e-05f, 9.37741163e-07f,
    -6.84535451e-08f, 4.81965623e-09f,  -3.16480203e-10f, 1.82295411e-11f,  -9.01536441e-13f,
    4.74857614e-14f,  -2.70908009e-15f, 9.24634665e-17f,  -7.49360081e-19f, 7.70563654e-20f,
    -9.39579998e-21f, 2.37207344e-22f};

/* 1/2 + z * p(z^2 - clamp^2 / 2) with z = x clamped; times x for GELU itself. */
typedef struct Curve {
    const char *name;
    double clamp;
    const float *coefficient;
    int count;
    bool times_x;
} Curve;

static const Curve gelu = {"gelu", 5.25, gelu_coefficient, ARRAY_SIZE(gelu_coefficient), true};
static const Curve slope = {"slope", 5.6, slope_coefficient, ARRAY_SIZE(slope_coefficient), false};

static LLVMValueRef emit_clamp(Emitter *e, const Curve *c, LLVMValueRef x, int width)
{
    LLVMValueRef low = float_constant(e, (float)-c->clamp, width),
                 high = float_constant(e, (float)c->clamp, width);
    /* Compare and select, not minnum: a NaN must stay one. */
    LLVMValueRef below = LLVMBuildFCmp(e->builder, LLVMRealOLT, x, low, "");
    LLVMValueRef z = LLVMBuildSelect(e->builder, below, low, x, "");
    LLVMValueRef above = LLVMBuildFCmp(e->builder, LLVMRealOGT, z, high, "");
    return LLVMBuildSelect(e->builder, above, high, z, "");
}

/* A constant table of the coefficients, the first that Horner's rule takes first. */
static LLVMValueRef coefficient_table(Emitter *e, const Curve *c)
{
    LLVMValueRef entry[MAX_TILE], table = LLVMGetNamedGlobal(e->module, c->name);
    if (table) return table;
    for (int i = 0; i < c->count; i++)
        entry[i] = LLVMConstReal(e->f32, (double)c->coefficient[c->count - 1 - i]);
    LLVMValueRef values = LLVMConstArray2(e->f32, entry, (uint64_t)c->count);
    return global_constant(e, c->name, values);
}

/* Each x becomes 1/2 + z * p. One step of Horner's rule waits for the one before, so all take each step
 * in turn: in a loop, since LLVM orders the steps of a block to use few registers, one value after another. */
static void emit_phis(Emitter *e, const Curve *c, LLVMValueRef *x, int count, int width)
{
    LLVMTypeRef type = float_type(e, width);
    LLVMValueRef z[MAX_TILE], w[MAX_TILE], slot[MAX_TILE];
    int last = c->count - 1;
    for (int i = 0; i < count; i++) {
        z[i] = emit_clamp(e, c, x[i], width);
        w[i] = multiply_add(e, z[i], z[i],
                            float_constant(e, (float)(-c->clamp * c->clamp / 2), width));
        slot[i] = stack_slot(e, type);
        LLVMBuildStore(e->builder, float_constant(e, c->coefficient[last], width), slot[i]);
    }
    Loop loop = loop_begin(e, int_constant(e, last));
    Affine next = affine_value(loop.index, 1);
    next.constant = 1;
    LLVMValueRef one = load_lanes(e, coefficient_table(e, c), &next, &(Lanes){NULL, 1, 1}, false);
    for (int i = 0; i < count; i++) {
        x[i] = LLVMBuildLoad2(e->builder, type, slot[i], "");
        x[i] = multiply_add(e, x[i], w[i], splat(e, one, width));
        LLVMBuildStore(e->builder, x[i], slot[i]);
    }
    loop_end(e, &loop);
    for (int i = 0; i < count; i++)
        x[i] = multiply_add(e, z[i], x[i], float_constant(e, 0.5f, width));
}

static LLVMValueRef room_at(Emitter *e, int row, LLVMValueRef index, int width)
{
    LLVMValueRef at[] = {int_constant(e, row), index};
    LLVMTypeRef type = LLVMArrayType2(float_type(e, width), MAX_TILE);
    return LLVMBuildGEP2(e->builder, type, e->gelu_room, at, 2, "");
}

int gelus_together(const Emitter *e)
{
    const int registers = e->target->vector_registers - 1; /* beside the coefficient */
    return registers / 2 < 8 ? registers / 2 : 8;          /* eight keep two units busy */
}

/* The polynomials of many, some at a time: with more, the values waiting for theirs would take the
 * registers. So they wait in memory, row 0, and a loop fills row 1.
 * The last turn takes some of the turn before again, where the turns do not share them evenly. */
static void emit_in_turns(Emitter *e, const Curve *c, const LLVMValueRef *x, int count, int width)
{
    const int most = gelus_together(e);
    LLVMTypeRef type = float_type(e, width);
    if (!e->gelu_room)
        e->gelu_room = stack_slot(e, LLVMArrayType2(LLVMArrayType2(type, MAX_TILE), 2));
    int turns = count > 2 * most ? (count + most - 1) / most : 2; /* not 1: that would be no loop */
    int size = (count + turns - 1) / turns;
    for (int i = 0; i < count; i++)
        LLVMBuildStore(e->builder, x[i], room_at(e, 0, int_constant(e, i), width));
    Loop loop = loop_begin(e, int_constant(e, turns));
    LLVMValueRef some[MAX_TILE] = {0},
                 start[] = {LLVMBuildNSWMul(e->builder, loop.index, int_constant(e, size), ""),
                            int_constant(e, count - size)};
    LLVMValueRef first = turns * size == count ? start[0] : intrinsic(e, "llvm.smin", start, 2);
    for (int i = 0; i < size; i++) {
        LLVMValueRef at = LLVMBuildNSWAdd(e->builder, first, int_constant(e, i), "");
        some[i] = LLVMBuildLoad2(e->builder, type, room_at(e, 0, at, width), "");
    }
    emit_phis(e, c, some, size, width);
    for (int i = 0; i < size; i++) {
        LLVMValueRef at = LLVMBuildNSWAdd(e->builder, first, int_constant(e, i), "");
        LLVMBuildStore(e->builder, some[i], room_at(e, 1, at, width));
    }
    loop_end(e, &loop);
}

static void emit_together(Emitter *e, const Curve *c, LLVMValueRef *x, int count, int width)
{
    LLVMValueRef phi[MAX_TILE];
    memcpy(phi, x, (size_t)count * sizeof *x);
    emit_phis(e, c, phi, count, width);
    for (int i = 0; i < count; i++)
        x[i] = c->times_x ? LLVMBuildFMul(e->builder, x[i], phi[i], "") : phi[i];
}

static void emit_curve(Emitter *e, const Curve *c, LLVMValueRef *x, int count, int width)
{
    int registers = e->target->vector_registers - 1; /* beside the coefficient */
    if (4 * count <= registers || width != e->target->vector_floats) {
        emit_together(e, c, x, count, width);
        return;
    }
    emit_in_turns(e, c, x, count, width);
    for (int i = 0; i < count; i++) {
        LLVMValueRef index = int_constant(e, i);
        LLVMTypeRef type = float_type(e, width);
        x[i] = LLVMBuildLoad2(e->builder, type, room_at(e, 1, index, width), "");
        if (!c->times_x) continue;
        LLVMValueRef value = LLVMBuildLoad2(e->builder, type, room_at(e, 0, index, width), "");
        LLVMSetVolatile(value, true); /* or LLVM keeps all of them in registers through the loop */
        x[i] = LLVMBuildFMul(e->builder, value, x[i], "");
    }
}

void emit_gelu_groups(Emitter *e, LLVMValueRef *x, int count, int width)
{
    const int most = gelus_together(e);
    for (int i = 0; i < count; i += most)
        emit_together(e, &gelu, x + i, count - i < most ? count - i : most, width);
}

void emit_gelu(Emitter *e, LLVMValueRef *x, int count, int width)
{
    emit_curve(e, &gelu, x, count, width);
}

void emit_gelu_slope(Emitter *e, LLVMValueRef *x, int count, int width)
{
    emit_curve(e, &slope, x, count, width);
}
