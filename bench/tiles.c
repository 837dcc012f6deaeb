/* tiles.c: what register tiles of a matrix product reach with AVX-512, and what loads cost beside multiply-adds.
 *
 * A part of a product lies in the caches as the generated kernels have it: the lanes of a tile, `depth` steps of
 * them, in L1; rows, and the sums, in L2. In each step a tile loads its vectors and a number for each row,
 * which some rows load with a register of its own for all their multiply-adds, the others in each of these. All tiles
 * take turns with a loop of multiply-adds on registers alone; shares of what that reaches in the same
 * turn are printed, for the slowest tenth of the turns, the median and the fastest tenth: there are machines with
 * spells in which loads cost more, as if another program had the other half of a core.
 * usage: register_tiles [DEPTH] (56) */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#pragma GCC target("avx512f")

enum { WIDTH = 16, ROWS = 256, LANES = 256, SPREAD = 16, TURNS = 200, MOST_DEPTH = 512 };

typedef float Vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

static float rows[ROWS * MOST_DEPTH], lanes[LANES * MOST_DEPTH], sums[ROWS * (LANES + SPREAD)];

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* sum + number * x, where the instruction loads the number. */
static inline Vector multiply_add_loaded(const float *number, Vector x, Vector sum)
{
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(x), "m"(*number));
    return sum;
}

static inline Vector multiply_add(float number, Vector x, Vector sum)
{
    const Vector all = number - (Vector){0};
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(all));
    return sum;
}

/* The tile at (r, l); every `own` of `own + loading` rows has a register for its number. */
static inline __attribute__((always_inline)) void take_tile(int r, int l, int depth, int height,
                                                            int width, int own, int loading)
{
    Vector sum[28];
    float *at = sums + (size_t)r * (LANES + SPREAD) + l;
#pragma GCC unroll 28
    for (int i = 0; i < height * width; i++)
        sum[i] = *(Vector *)(at + (size_t)(i / width) * (LANES + SPREAD) + i % width * WIDTH);
    const float *number = rows + (size_t)r * (size_t)depth;
    const float *vector = lanes, *end = number + (size_t)depth * (size_t)height;
    for (; number < end; number += 2 * height, vector += 2 * WIDTH * width) {
#pragma GCC unroll 2
        for (int step = 0; step < 2; step++) {
            Vector x[4];
#pragma GCC unroll 4
            for (int v = 0; v < width; v++)
                x[v] = *(const Vector *)(vector + (step * width + v) * WIDTH);
#pragma GCC unroll 28
            for (int i = 0; i < height * width; i++) {
                const float *n = number + step * height + i / width;
                bool has_own = i / width % (own + loading) < own;
                sum[i] = has_own ? multiply_add(*n, x[i % width], sum[i])
                                 : multiply_add_loaded(n, x[i % width], sum[i]);
            }
        }
    }
#pragma GCC unroll 28
    for (int i = 0; i < height * width; i++)
        *(Vector *)(at + (size_t)(i / width) * (LANES + SPREAD) + i % width * WIDTH) = sum[i];
}

/* Defines the whole part in tiles of so many rows and vectors; returns the multiply-adds of numbers. */
#define PART(HEIGHT, VECTORS, OWN, LOADING)                                                        \
    static double part_##HEIGHT##_##VECTORS##_##OWN##_##LOADING(int depth)                         \
    {                                                                                              \
        double count = 0;                                                                          \
        for (int l = 0; l + (VECTORS)*WIDTH <= LANES; l += (VECTORS)*WIDTH)                        \
            for (int r = 0; r + (HEIGHT) <= ROWS; r += (HEIGHT)) {                                 \
                take_tile(r, l, depth, HEIGHT, VECTORS, OWN, LOADING);                             \
                count += (double)(HEIGHT) * (VECTORS)*WIDTH * depth;                               \
            }                                                                                      \
        return count;                                                                              \
    }

PART(14, 2, 1, 0)
PART(14, 2, 0, 1)
PART(12, 2, 1, 0)
PART(12, 2, 0, 1)
PART(9, 3, 1, 0)
PART(9, 3, 1, 2)
PART(9, 3, 0, 1)
PART(6, 4, 1, 0)
PART(6, 4, 1, 1)
PART(6, 4, 0, 1)

static double on_registers(int depth)
{
    enum { SUMS = 14, STEPS = 200 };
    Vector sum[SUMS] = {{0}}, x = {0};
    for (int step = 0; step < STEPS * depth; step++)
#pragma GCC unroll 14
        for (int i = 0; i < SUMS; i++) sum[i] = multiply_add(0, x, sum[i]);
    for (int i = 0; i < SUMS; i++)
        sums[i] += sum[i][0]; /* the compiler must not see that it is 0 */
    return (double)SUMS * WIDTH * STEPS * depth;
}

static const struct {
    const char *tile, *loads;
    double (*run)(int depth);
} contenders[] = {
    {"registers alone", "", on_registers},
    {"14 rows, 2 vectors", "once", part_14_2_1_0},
    {"14 rows, 2 vectors", "in each", part_14_2_0_1},
    {"12 rows, 2 vectors", "once", part_12_2_1_0},
    {"12 rows, 2 vectors", "in each", part_12_2_0_1},
    {"9 rows, 3 vectors", "once", part_9_3_1_0},
    {"9 rows, 3 vectors", "2 of 3 rows in each", part_9_3_1_2},
    {"9 rows, 3 vectors", "in each", part_9_3_0_1},
    {"6 rows, 4 vectors", "once", part_6_4_1_0},
    {"6 rows, 4 vectors", "1 of 2 rows in each", part_6_4_1_1},
    {"6 rows, 4 vectors", "in each", part_6_4_0_1},
};
enum { CONTENDERS = sizeof contenders / sizeof *contenders };

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    static double rate[CONTENDERS][TURNS];
    int depth = argc > 1 ? atoi(argv[1]) : 56;
    if (argc > 2 || depth < 2 || depth > MOST_DEPTH || depth % 2 != 0) {
        fprintf(stderr, "usage: register_tiles [DEPTH], an even number up to %d\n", MOST_DEPTH);
        return 2;
    }
    if (!__builtin_cpu_supports("avx512f")) {
        fputs("register_tiles: this processor has no AVX-512\n", stderr);
        return 5;
    }
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < CONTENDERS; i++) {
            double start = now(), count = contenders[i].run(depth);
            rate[i][turn] = 2e-9 * count / (now() - start);
        }
    printf("GFLOP/s of one thread, %d steps a part, %d turns\n", depth, TURNS);
    printf("%-20s %-20s %8s %8s %8s   of registers alone\n", "tile", "numbers are loaded", "10 %",
           "median", "90 %");
    for (int i = 0; i < CONTENDERS; i++) {
        qsort(rate[i], TURNS, sizeof **rate, compare);
        printf("%-20s %-20s", contenders[i].tile, contenders[i].loads);
        const int at[] = {TURNS / 10, TURNS / 2, TURNS * 9 / 10};
        for (int k = 0; k < 3; k++) printf(" %8.1f", rate[i][at[k]]);
        printf("  ");
        for (int k = 0; k < 3; k++) printf(" %5.1f %%", 100 * rate[i][at[k]] / rate[0][at[k]]);
        printf("\n");
    }
    return 0;
}
