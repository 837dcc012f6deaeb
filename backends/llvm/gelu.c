/* gelu.c: x * Phi(x) = x * (1 + erf(x / sqrt 2)) / 2 and its slope, without branches, tables or division.
 *
 * Phi(x) - 1/2 is odd: z * p(z^2), with z = x clamped to +-5.25, where Phi is 0 or 1 to half an
 * ulp. p is a polynomial of degree 14 in s = 2 z^2 / 5.25^2 - 1, which lies in [-1, 1] and so keeps
 * Horner's rule from cancelling. The coefficients minimise the greatest error of x * (1/2 + z p);
 * in float32 the result is within 6e-7 of gelu for |x| <= 12 (7e-7 without fused multiply-add),
 * and within 2e-7 |x| everywhere (tests/test_jit.c measures it on every exponent). Far below zero,
 * where gelu vanishes, it is about 3e-8 x: so -inf for -inf. NaN stays NaN.
 *
 * The slope less 1/2 is odd, too: likewise z * p, with z = x clamped to +-5.6 and a polynomial of degree 17;
 * it is within 5e-7 of the exact one.
 */
#include "backends/llvm/emit.h"

static const float gelu_coefficient[] = {
    0.13465935f,    -0.0671267733f,  0.0496456772f,   -0.0397648774f,   0.0320339762f,
    -0.0250275843f, 0.0185177531f,   -0.0128344353f,  0.00849607866f,   -0.00533174817f,
    0.00274722371f, -0.00114863378f, 0.000794797728f, -0.000617828977f, 0.000195109547f};

static const float slope_coefficient[] = {
    0.126416653f,    -0.0642825365f, 0.0518067479f,  -0.0509606563f, 0.0567131862f,
    -0.0650584176f,  0.0713803545f,  -0.0725727081f, 0.0676792637f,  -0.0558197722f,
    0.0401900038f,   -0.0298326816f, 0.0235680826f,  -0.0120504266f, 0.00211050129f,
    -0.00232035713f, 0.00372033613f, -0.00140180241f};

/* 1/2 + z * p(2 z^2 / clamp^2 - 1) with z = x clamped; times x for GELU itself. */
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

/* p of each x. One step of Horner's rule waits for the one before, so all take each step in turn:
 * in a loop, since LLVM orders the steps of a block to use few registers, one value after another. */
static void emit_polynomials(Emitter *e, const Curve *c, const LLVMValueRef *x, LLVMValueRef *p,
                             int count, int width)
{
    LLVMTypeRef type = float_type(e, width);
    LLVMValueRef s[MAX_TILE], slot[MAX_TILE];
    int last = c->count - 1;
    for (int i = 0; i < count; i++) {
        LLVMValueRef z = emit_clamp(e, c, x[i], width);
        s[i] = multiply_add(e, LLVMBuildFMul(e->builder, z, z, ""),
                            float_constant(e, (float)(2 / (c->clamp * c->clamp)), width),
                            float_constant(e, -1, width));
        slot[i] = stack_slot(e, type);
        LLVMBuildStore(e->builder, float_constant(e, c->coefficient[last], width), slot[i]);
    }
    Loop loop = loop_begin(e, int_constant(e, last));
    Affine next = affine_value(loop.index, 1);
    next.constant = 1;
    LLVMValueRef one = load_lanes(e, coefficient_table(e, c), &next, &(Lanes){NULL, 1, 1}, false);
    for (int i = 0; i < count; i++) {
        p[i] = LLVMBuildLoad2(e->builder, type, slot[i], "");
        p[i] = multiply_add(e, p[i], s[i], splat(e, one, width));
        LLVMBuildStore(e->builder, p[i], slot[i]);
    }
    loop_end(e, &loop);
}

static LLVMValueRef emit_finish(Emitter *e, const Curve *c, LLVMValueRef x, LLVMValueRef p,
                                int width)
{
    LLVMValueRef z = emit_clamp(e, c, x, width);
    LLVMValueRef phi = multiply_add(e, z, p, float_constant(e, 0.5f, width));
    return c->times_x ? LLVMBuildFMul(e->builder, x, phi, "") : phi;
}

static LLVMValueRef room_at(Emitter *e, int row, LLVMValueRef index, int width)
{
    LLVMValueRef at[] = {int_constant(e, row), index};
    LLVMTypeRef type = LLVMArrayType2(float_type(e, width), MAX_TILE);
    return LLVMBuildGEP2(e->builder, type, e->gelu_room, at, 2, "");
}

/* The polynomials of many, some at a time: with more, the values waiting for theirs would take the
 * registers. So they wait in memory, row 0, and a loop fills row 1.
 * The last turn takes some of the turn before again, where the turns do not share them evenly. */
static void emit_in_turns(Emitter *e, const Curve *c, const LLVMValueRef *x, int count, int width)
{
    const int registers = e->target->vector_registers - 1;  /* beside the coefficient */
    const int most = registers / 2 < 8 ? registers / 2 : 8; /* eight keep two units busy */
    LLVMTypeRef type = float_type(e, width);
    if (!e->gelu_room)
        e->gelu_room = stack_slot(e, LLVMArrayType2(LLVMArrayType2(type, MAX_TILE), 2));
    int turns = count > 2 * most ? (count + most - 1) / most : 2; /* not 1: that would be no loop */
    int size = (count + turns - 1) / turns;
    for (int i = 0; i < count; i++)
        LLVMBuildStore(e->builder, x[i], room_at(e, 0, int_constant(e, i), width));
    Loop loop = loop_begin(e, int_constant(e, turns));
    LLVMValueRef some[MAX_TILE] = {0}, p[MAX_TILE],
                 start[] = {LLVMBuildNSWMul(e->builder, loop.index, int_constant(e, size), ""),
                            int_constant(e, count - size)};
    LLVMValueRef first = turns * size == count ? start[0] : intrinsic(e, "llvm.smin", start, 2);
    for (int i = 0; i < size; i++) {
        LLVMValueRef at = LLVMBuildNSWAdd(e->builder, first, int_constant(e, i), "");
        some[i] = LLVMBuildLoad2(e->builder, type, room_at(e, 0, at, width), "");
    }
    emit_polynomials(e, c, some, p, size, width);
    for (int i = 0; i < size; i++) {
        LLVMValueRef at = LLVMBuildNSWAdd(e->builder, first, int_constant(e, i), "");
        LLVMBuildStore(e->builder, p[i], room_at(e, 1, at, width));
    }
    loop_end(e, &loop);
}

static void emit_together(Emitter *e, const Curve *c, LLVMValueRef *x, int count, int width)
{
    LLVMValueRef p[MAX_TILE];
    emit_polynomials(e, c, x, p, count, width);
    for (int i = 0; i < count; i++) x[i] = emit_finish(e, c, x[i], p[i], width);
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
        LLVMValueRef value = LLVMBuildLoad2(e->builder, type, room_at(e, 0, index, width), "");
        LLVMSetVolatile(value, true); /* or LLVM keeps all of them in registers through the loop */
        LLVMValueRef p = LLVMBuildLoad2(e->builder, type, room_at(e, 1, index, width), "");
        x[i] = emit_finish(e, c, value, p, width);
    }
}

void emit_gelu_together(Emitter *e, LLVMValueRef *x, int count, int width)
{
    emit_together(e, &gelu, x, count, width);
}

void emit_gelu(Emitter *e, LLVMValueRef *x, int count, int width)
{
    emit_curve(e, &gelu, x, count, width);
}

void emit_gelu_slope(Emitter *e, LLVMValueRef *x, int count, int width)
{
    emit_curve(e, &slope, x, count, width);
}
