/* ops_f32.c: the ops in float. */
#include <math.h>

#define REAL           float
#define FUNCTION(NAME) reference_##NAME##_f32
#define ERF(x)         erff(x)
#define SQRT(x)        sqrtf(x)
#define EXP(x)         expf(x)
#define LOG(x)         logf(x)
#include "backends/reference/ops.inc"
