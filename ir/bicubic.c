/* bicubic.c: the taps of bicubic resampling, in the float32 arithmetic that the models were trained
 * with. */
#include "ir/ir.h"

#include <math.h>

/* Keys' kernel with a = -0.75 (Keys 1981): |d| <= 1, then 1 < |d| < 2. */
static float near_tap(float d)
{
    return (1.25f * d - 2.25f) * d * d + 1.0f;
}
static float far_tap(float d)
{
    return ((-0.75f * d + 3.75f) * d - 6.0f) * d + 3.0f;
}

void bicubic_taps(int64_t in, int64_t out, int64_t i, int64_t index[4], float weight[4])
{
    float scale = (float)in / (float)out;
    float source = scale * ((float)i + 0.5f) - 0.5f;
    float whole = floorf(source);
    float t = source - whole;
    weight[0] = far_tap(t + 1.0f);
    weight[1] = near_tap(t);
    weight[2] = near_tap(1.0f - t);
    weight[3] = far_tap(2.0f - t);
    for (int k = 0; k < 4; k++) {
        int64_t at = (int64_t)whole - 1 + k;
        index[k] = at < 0 ? 0 : at >= in ? in - 1 : at;
    }
}

BicubicAdjoint bicubic_adjoint(Arena *arena, int64_t in, int64_t out)
{
    size_t entries = 4 * (size_t)out;
    BicubicAdjoint a = {.start = arena_array(arena, (size_t)in + 1, sizeof *a.start),
                        .output = arena_array(arena, entries, sizeof *a.output),
                        .weight = arena_array(arena, entries, sizeof *a.weight)};
    int64_t *next = arena_array(arena, (size_t)in, sizeof *next), index[4];
    float weight[4];
    for (int64_t o = 0; o < out; o++) {
        bicubic_taps(in, out, o, index, weight);
        for (int k = 0; k < 4; k++) a.start[index[k] + 1]++;
    }
    for (int64_t i = 0; i < in; i++) {
        a.start[i + 1] += a.start[i];
        next[i] = a.start[i];
    }
    for (int64_t o = 0; o < out; o++) {
        bicubic_taps(in, out, o, index, weight);
        for (int k = 0; k < 4; k++) {
            int64_t entry = next[index[k]]++;
            a.output[entry] = o;
            a.weight[entry] = weight[k];
        }
    }
    return a;
}
