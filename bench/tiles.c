/* tiles.c: what register tiles of a matrix product reach with AVX-512, or AVX2, and what loads cost beside
 * multiply-adds.
 *
 * A part of a product lies in the caches as the generated kernels have it: the lanes of a tile, `depth` steps of
 * them, in L1; rows, and the sums, in L2. In each step a tile loads its vectors and a number for each row. With AVX-512
 * some rows load the number with a register of its own for all their multiply-adds, the others in each of these; with
 * AVX2, which cannot do that, some vectors have a register and the multiply-adds of all rows load the others. All tiles
 * take turns with a loop of multiply-adds on registers alone; shares of what that reaches in the same
 * turn are printed, for the slowest tenth of the turns, the median and the fastest tenth: there are machines with
 * spells in which loads cost more, as if another program had the other half of a core.
 * usage: register_tiles [DEPTH] (56), register_tiles_avx2 [DEPTH] */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#ifdef AVX2
#pragma GCC target("avx2,fma")
#define ISA "avx2"
enum { WIDTH = 8 };
#else
#pragma GCC target("avx512f")
#define ISA "avx512f"
enum { WIDTH = 16 };
#endif

enum { ROWS = 256, LANES = 256, SPREAD = 16, TURNS = 200, MOST_DEPTH = 512 };

typedef float Vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

static float rows[ROWS * MOST_DEPTH], lanes[LANES * MOST_DEPTH], sums[ROWS * (LANES + SPREAD)];

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static inline Vector multiply_add(Vector number, Vector x, Vector sum)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(number));
    return sum;
}

/* The same where the instruction loads the number, or x. */
#ifndef AVX2
static inline Vector multiply_add_number(const float *number, Vector x, Vector sum)
{
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(x), "m"(*number));
    return sum;
}
#endif

static inline Vector multiply_add_vector(Vector number, const Vector *x, Vector sum)
{
    __asm__("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(number), "m"(*x));
    return sum;
}

/* How the numbers and vectors of a tile are loaded. */
typedef struct Loads {
    int own, loading; /* `own` of `own + loading` rows have a register for their number */
    int vectors;      /* the multiply-adds load so many vectors */
} Loads;

/* The multiply-adds of one row. */
static inline __attribute__((always_inline)) void take_row(Vector *sum, const float *number,
                                                           const Vector *x, const float *vector,
                                                           int width, bool has_own, int loaded)
{
    Vector all = {0};
    if (has_own) all = *number - (Vector){0};
#pragma GCC unroll 8
    for (int v = 0; v < width; v++) {
#ifndef AVX2
        if (!has_own) {
            sum[v] = multiply_add_number(number, x[v], sum[v]);
            continue;
        }
#endif
        sum[v] = v < loaded ? multiply_add(all, x[v], sum[v])
                            : multiply_add_vector(all, (const Vector *)vector + v, sum[v]);
    }
}

/* The tile at (r, l). */
static inline __attribute__((always_inline)) void take_tile(int r, int l, int depth, int height,
                                                            int width, Loads loads)
{
    Vector sum[28];
    float *at = sums + (size_t)r * (LANES + SPREAD) + l;
#pragma GCC unroll 28
    for (int i = 0; i < height * width; i++)
        sum[i] = *(Vector *)(at + (size_t)(i / width) * (LANES + SPREAD) + i % width * WIDTH);
    const float *number = rows + (size_t)r * (size_t)depth;
    const float *vector = lanes, *end = number + (size_t)depth * (size_t)height;
    const int loaded = width - loads.vectors;
    for (; number < end; number += 2 * height, vector += 2 * WIDTH * width) {
#pragma GCC unroll 2
        for (int step = 0; step < 2; step++) {
            const float *first = vector + step * width * WIDTH;
            Vector x[8];
#pragma GCC unroll 8
            for (int v = 0; v < loaded; v++) x[v] = ((const Vector *)first)[v];
#pragma GCC unroll 14
            for (int i = 0; i < height; i++)
                take_row(sum + i * width, number + step * height + i, x, first, width,
                         i % (loads.own + loads.loading) < loads.own, loaded);
        }
    }
#pragma GCC unroll 28
    for (int i = 0; i < height * width; i++)
        *(Vector *)(at + (size_t)(i / width) * (LANES + SPREAD) + i % width * WIDTH) = sum[i];
}

/* Each tile: rows, vectors; of so many rows so many have a register for their number; vectors that multiply-adds load. */
#ifdef AVX2
#define TILES                                                                                      \
    TILE(6, 2, 1, 0, 0)                                                                            \
    TILE(6, 2, 1, 0, 1)                                                                            \
    TILE(7, 2, 1, 0, 1)                                                                            \
    TILE(5, 2, 1, 0, 0)                                                                            \
    TILE(4, 2, 1, 0, 0)                                                                            \
    TILE(4, 3, 1, 0, 0)                                                                            \
    TILE(4, 3, 1, 0, 1)                                                                            \
    TILE(4, 3, 1, 0, 3)                                                                            \
    TILE(3, 4, 1, 0, 1)                                                                            \
    TILE(3, 4, 1, 0, 2)                                                                            \
    TILE(2, 6, 1, 0, 4)                                                                            \
    TILE(3, 3, 1, 0, 0)
#else
#define TILES                                                                                      \
    TILE(14, 2, 1, 0, 0)                                                                           \
    TILE(14, 2, 0, 1, 0)                                                                           \
    TILE(12, 2, 1, 0, 0)                                                                           \
    TILE(12, 2, 0, 1, 0)                                                                           \
    TILE(9, 3, 1, 0, 0)                                                                            \
    TILE(9, 3, 1, 2, 0)                                                                            \
    TILE(9, 3, 0, 1, 0)                                                                            \
    TILE(6, 4, 1, 0, 0)                                                                            \
    TILE(6, 4, 1, 1, 0)                                                                            \
    TILE(6, 4, 0, 1, 0)
#endif

/* Defines the whole part in tiles of so many rows and vectors; returns the multiply-adds of numbers. */
#define TILE(HEIGHT, VECTORS, OWN, LOADING, LOADED)                                                \
    static double part_##HEIGHT##_##VECTORS##_##OWN##_##LOADING##_##LOADED(int depth)              \
    {                                                                                              \
        double count = 0;                                                                          \
        for (int l = 0; l + (VECTORS)*WIDTH <= LANES; l += (VECTORS)*WIDTH)                        \
            for (int r = 0; r + (HEIGHT) <= ROWS; r += (HEIGHT)) {                                 \
                take_tile(r, l, depth, HEIGHT, VECTORS, (Loads){OWN, LOADING, LOADED});            \
                count += (double)(HEIGHT) * (VECTORS)*WIDTH * depth;                               \
            }                                                                                      \
        return count;                                                                              \
    }
TILES
#undef TILE

static double on_registers(int depth)
{
    enum { SUMS = 14, STEPS = 200 };
    Vector sum[SUMS] = {{0}}, x = {0};
    for (int step = 0; step < STEPS * depth; step++)
#pragma GCC unroll 14
        for (int i = 0; i < SUMS; i++) sum[i] = multiply_add(x, x, sum[i]);
    for (int i = 0; i < SUMS; i++)
        sums[i] += sum[i][0]; /* the compiler must not see that it is 0 */
    return (double)SUMS * WIDTH * STEPS * depth;
}

static const struct {
    int height, width;
    Loads loads;
    double (*run)(int depth);
} contenders[] = {{0, 0, {0, 0, 0}, on_registers},
#define TILE(HEIGHT, VECTORS, OWN, LOADING, LOADED)                                                \
    {HEIGHT,                                                                                       \
     VECTORS,                                                                                      \
     {OWN, LOADING, LOADED},                                                                       \
     part_##HEIGHT##_##VECTORS##_##OWN##_##LOADING##_##LOADED},
                  TILES
#undef TILE
};
enum { CONTENDERS = sizeof contenders / sizeof *contenders };

static void print_name(int i)
{
    char tile[32] = "registers alone", by[64] = "";
    const int height = contenders[i].height, width = contenders[i].width;
    const Loads *loads = &contenders[i].loads;
    if (height > 0) {
        snprintf(tile, sizeof tile, "%d rows, %d vectors", height, width);
        if (loads->loading > 0)
            snprintf(by, sizeof by, "numbers of %d of %d rows", loads->loading,
                     loads->own + loads->loading);
        if (loads->vectors > 0) snprintf(by, sizeof by, "%d of the vectors", loads->vectors);
    }
    printf("%-20s %-24s", tile, by);
}

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
    if (!__builtin_cpu_supports(ISA)) {
        fputs("register_tiles: this processor has no " ISA "\n", stderr);
        return 5;
    }
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < CONTENDERS; i++) {
            double start = now(), count = contenders[i].run(depth);
            rate[i][turn] = 2e-9 * count / (now() - start);
        }
    printf("GFLOP/s of one thread, %d steps a part, %d turns\n", depth, TURNS);
    printf("%-20s %-24s %8s %8s %8s   of registers alone\n", "tile", "multiply-adds load", "10 %",
           "median", "90 %");
    for (int i = 0; i < CONTENDERS; i++) {
        qsort(rate[i], TURNS, sizeof **rate, compare);
        print_name(i);
        const int at[] = {TURNS / 10, TURNS / 2, TURNS * 9 / 10};
        for (int k = 0; k < 3; k++) printf(" %8.1f", rate[i][at[k]]);
        printf("  ");
        for (int k = 0; k < 3; k++) printf(" %5.1f %%", 100 * rate[i][at[k]] / rate[0][at[k]]);
        printf("\n");
    }
    return 0;
}
