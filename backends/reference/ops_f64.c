/* ops_f64.c: the ops in double. */
#include <math.h>

#define REAL           double
#define FUNCTION(NAME) reference_##NAME##_f64
#define ERF(x)         erf(x)
#define SQRT(x)        sqrt(x)
#include "backends/reference/ops.inc"
