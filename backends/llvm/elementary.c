/* elementary.c: exp and log, without branches, tables or calls of libm.
 *
 * exp(x) = 2^n * e^r with n = round(x / ln 2), taken from the low bits of x / ln 2 + 1.5 * 2^23, and e^r
 * by its series, |r| <= ln 2 / 2; below the normal numbers it is 0. log is for numbers from 1 on: m * 2^e
 * with m in [sqrt(1/2), sqrt(2)), and log(m) = 2 atanh((m - 1) / (m + 1)) by its series. NaN stays NaN in both.
 */
#include "backends/llvm/emit.h"

static const float exp_coefficient[] = {
    1, 1, 0.5f, 0.166666667f, 0.0416666667f, 0.00833333333f, 0.00138888889f, 0.000198412698f};

static const float log_coefficient[] = {2, 0.666666667f, 0.4f, 0.285714286f, 0.222222222f};

/* Horner's rule. */
static LLVMValueRef polynomial(Emitter *e, const float *coefficient, int count, LLVMValueRef x,
                               int width)
{
    LLVMValueRef p = float_constant(e, coefficient[count - 1], width);
    for (int i = count - 1; i-- > 0;)
        p = multiply_add(e, p, x, float_constant(e, coefficient[i], width));
    return p;
}

static LLVMTypeRef int_type(Emitter *e, int width)
{
    return width == 1 ? e->i32 : LLVMVectorType(e->i32, (unsigned)width);
}

static LLVMValueRef int_splat(Emitter *e, uint32_t value, int width)
{
    LLVMValueRef lane[MAX_TILE], scalar = LLVMConstInt(e->i32, value, false);
    if (width == 1) return scalar;
    for (int i = 0; i < width; i++) lane[i] = scalar;
    return LLVMConstVector(lane, (unsigned)width);
}

LLVMValueRef emit_exp(Emitter *e, LLVMValueRef x, int width)
{
    const float magic = 12582912.0f;
    LLVMBuilderRef b = e->builder;
    LLVMValueRef low = float_constant(e, -87.33f, width), high = float_constant(e, 88.0f, width);
    LLVMValueRef tiny = LLVMBuildFCmp(b, LLVMRealOLT, x, low, "");
    LLVMValueRef z = LLVMBuildSelect(b, tiny, low, x, "");
    z = LLVMBuildSelect(b, LLVMBuildFCmp(b, LLVMRealOGT, z, high, ""), high, z, "");
    LLVMValueRef shifted =
        multiply_add(e, z, float_constant(e, 1.44269504f, width), float_constant(e, magic, width));
    LLVMValueRef n = LLVMBuildFSub(b, shifted, float_constant(e, magic, width), "");
    LLVMValueRef r = multiply_add(e, n, float_constant(e, -0.693145752f, width), z);
    r = multiply_add(e, n, float_constant(e, -1.42860677e-6f, width), r);
    LLVMValueRef bits = LLVMBuildBitCast(b, shifted, int_type(e, width), "");
    bits = LLVMBuildShl(b, bits, int_splat(e, 23, width), "");
    bits = LLVMBuildAdd(b, bits, int_splat(e, 0x3f800000, width), "");
    LLVMValueRef power = LLVMBuildBitCast(b, bits, float_type(e, width), "");
    LLVMValueRef result = LLVMBuildFMul(
        b, polynomial(e, exp_coefficient, ARRAY_SIZE(exp_coefficient), r, width), power, "");
    return LLVMBuildSelect(b, tiny, LLVMConstNull(float_type(e, width)), result, "");
}

LLVMValueRef emit_log(Emitter *e, LLVMValueRef x, int width)
{
    LLVMBuilderRef b = e->builder;
    LLVMValueRef bits = LLVMBuildBitCast(b, x, int_type(e, width), "");
    /* From sqrt(1/2) on counts as the next power of two. */
    LLVMValueRef above = LLVMBuildSub(b, bits, int_splat(e, 0x3f3504f3, width), "");
    LLVMValueRef exponent = LLVMBuildAShr(b, above, int_splat(e, 23, width), "");
    LLVMValueRef scaled =
        LLVMBuildSub(b, bits, LLVMBuildShl(b, exponent, int_splat(e, 23, width), ""), "");
    LLVMValueRef m = LLVMBuildBitCast(b, scaled, float_type(e, width), "");
    LLVMValueRef one = float_constant(e, 1, width);
    LLVMValueRef t =
        LLVMBuildFDiv(b, LLVMBuildFSub(b, m, one, ""), LLVMBuildFAdd(b, m, one, ""), "");
    LLVMValueRef series = polynomial(e, log_coefficient, ARRAY_SIZE(log_coefficient),
                                     LLVMBuildFMul(b, t, t, ""), width);
    LLVMValueRef power = LLVMBuildSIToFP(b, exponent, float_type(e, width), "");
    return multiply_add(e, power, float_constant(e, 0.693147181f, width),
                        LLVMBuildFMul(b, t, series, ""));
}
