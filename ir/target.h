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
    /* What sets machines with many threads apart: a block of threads computes several register
     * tiles at once, from operands that it brings to its fast memory part by part. So operands need
     * not be kept whole, windows of the image need no copy, and the rows of a tile are read along
     * the sum. */
    bool stages_operands;
    int registers_alone; /* instead of vector_registers: for a product that is alone in its kernel */
    int64_t fused_bytes; /* the fast memory for values between fused products; 0: any amount */
} Target;

#endif
