/* target.h: the little that passes may know of the machine they compile for. */
#ifndef RAFTC_TARGET_H
#define RAFTC_TARGET_H

#include <stdbool.h>
#include <stdint.h>

typedef struct Target {
    int vector_floats; /* f32 lanes of a vector register: 16, 8, 4; 1 for the reference backend */
    int vector_registers;       /* architectural vector registers: 32 or 16 */
    bool fma;                   /* fused multiply-add in hardware */
    int64_t l1_bytes, l2_bytes; /* data caches of one core */
    bool packs_weights; /* constant operands of products are laid out for the register tile */
} Target;

#endif
