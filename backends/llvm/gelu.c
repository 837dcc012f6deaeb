/* gelu.c: x * Phi(x) = x * (1 + erf(x / sqrt 2)) / 2, without branches, tables or division.
 *
 * Phi(x) - 1/2 is odd: z * p(z^2), with z = x clamped to +-5.25, where Phi is 0 or 1 to half an
 * ulp. p is a polynomial of degree 14 in s = 2 z^2 / 5.25^2 - 1, which lies in [-1, 1] and so keeps
 * Horner's rule from cancelling. The coefficients minimise the greatest error of x * (1/2 + z p);
 * in float32 the result is within 6e-7 of gelu for |x| <= 12 (7e-7 without fused multiply-add),
 * and within 2e-7 |x| everywhere (tests/test_jit.c measures it on every exponent). Far below zero,
 * where gelu vanishes, it is about 3e-8 x: so -inf for -inf. NaN stays NaN.
 */
#include "backends/llvm/emit.h"

#define CLAMP 5.25

static const float coefficient[] = {
    0.13465935f,    -0.0671267733f,  0.0496456772f,   -0.0397648774f,   0.0320339762f,
    -0.0250275843f, 0.0185177531f,   -0.0128344353f,  0.00849607866f,   -0.00533174817f,
    0.00274722371f, -0.00114863378f, 0.000794797728f, -0.000617828977f, 0.000195109547f};

LLVMValueRef emit_gelu(Emitter *e, LLVMValueRef x, int width)
{
    LLVMValueRef low = float_constant(e, (float)-CLAMP, width),
                 high = float_constant(e, (float)CLAMP, width);
    /* Compare and select, not minnum: a NaN must stay one. */
    LLVMValueRef z =
        LLVMBuildSelect(e->builder, LLVMBuildFCmp(e->builder, LLVMRealOLT, x, low, ""), low, x, "");
    z = LLVMBuildSelect(e->builder, LLVMBuildFCmp(e->builder, LLVMRealOGT, z, high, ""), high, z,
                        "");
    LLVMValueRef s = multiply_add(e, LLVMBuildFMul(e->builder, z, z, ""),
                                  float_constant(e, (float)(2 / (CLAMP * CLAMP)), width),
                                  float_constant(e, -1, width));
    int last = (int)ARRAY_SIZE(coefficient) - 1;
    LLVMValueRef p = float_constant(e, coefficient[last], width);
    for (int i = last; i-- > 0;)
        p = multiply_add(e, p, s, float_constant(e, coefficient[i], width));
    LLVMValueRef phi = multiply_add(e, z, p, float_constant(e, 0.5f, width));
    return LLVMBuildFMul(e->builder, x, phi, "");
}
