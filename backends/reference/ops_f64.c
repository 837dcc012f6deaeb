/* ops_f64.c: the ops in double. */
#include <math.h>

#define REAL           double
#define FUNCTION(NAME) reference_##NAME##_f64
#define ERF(x)         erf(x)
#define SQRT(x)        sqrt(x)
#define EXP(x)         exp(x)
#define LOG(x)         log(x)
#include "backends/reference/ops.inc"
