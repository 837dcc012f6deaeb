/* kernels.c: the kernels of a program made by hand, which computes for an image x of 8 floats
 *     hidden[i] = x[i] * x[i] + 1       shifted[i] = hidden[i] - 3
 *     logits[o] = sum_i packed[o][i] * shifted[i] + sums[o] + bias[o]
 *     feature0 = 2 * hidden             feature1 = shifted
 * where prepare makes packed[o][i] = weight[o][i] * scale[i] and sums[o] = sum_i packed[o][i].
 *
 * tests/shell_program.h includes this file; test_library.c compiles it, with KERNEL saying the names.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef KERNEL
#define KERNEL(name) static void kernel_##name
#endif

enum { PIXELS = 8, CLASSES = 5, SCRATCH = 100 };

KERNEL(pack)(float *const *argument, int64_t batch, int64_t begin, int64_t end, void *scratch)
{
    (void)batch, (void)scratch;
    for (int64_t o = begin; o < end; o++)
        for (int64_t i = 0; i < PIXELS; i++)
            argument[2][o * PIXELS + i] = argument[0][o * PIXELS + i] * argument[1][i];
}

KERNEL(sum)(float *const *argument, int64_t batch, int64_t begin, int64_t end, void *scratch)
{
    (void)batch, (void)scratch;
    for (int64_t o = begin; o < end; o++) {
        float sum = 0;
        for (int64_t i = 0; i < PIXELS; i++) sum += argument[0][o * PIXELS + i];
        argument[1][o] = sum;
    }
}

/* Goes through all of the scratch, so that threads which shared some would spoil the results. */
KERNEL(hidden)(float *const *argument, int64_t batch, int64_t begin, int64_t end, void *scratch)
{
    unsigned char *bytes = scratch;
    int good = (uintptr_t)scratch % 64 == 0 && end <= batch * PIXELS;
    for (int64_t u = begin; u < end; u++) {
        memset(bytes, (int)u, SCRATCH);
        float hidden = argument[0][u] * argument[0][u] + 1;
        for (int i = 0; i < SCRATCH; i++) good &= bytes[i] == (unsigned char)u;
        argument[1][u] = good ? hidden : NAN;
    }
}

KERNEL(shifted)(float *const *argument, int64_t batch, int64_t begin, int64_t end, void *scratch)
{
    (void)batch, (void)scratch;
    for (int64_t u = begin; u < end; u++) argument[1][u] = argument[0][u] - 3;
}

KERNEL(logits)(float *const *argument, int64_t batch, int64_t begin, int64_t end, void *scratch)
{
    (void)batch, (void)scratch;
    for (int64_t u = begin; u < end; u++) {
        int64_t image = u / CLASSES, o = u % CLASSES;
        float sum = argument[2][o] + argument[3][o];
        for (int64_t i = 0; i < PIXELS; i++)
            sum += argument[1][o * PIXELS + i] * argument[0][image * PIXELS + i];
        argument[4][u] = sum;
    }
}

KERNEL(double)(float *const *argument, int64_t batch, int64_t begin, int64_t end, void *scratch)
{
    (void)batch, (void)scratch;
    for (int64_t u = begin; u < end; u++) argument[1][u] = 2 * argument[0][u];
}

KERNEL(copy)(float *const *argument, int64_t batch, int64_t begin, int64_t end, void *scratch)
{
    (void)batch, (void)scratch;
    for (int64_t u = begin; u < end; u++) argument[1][u] = argument[0][u];
}
