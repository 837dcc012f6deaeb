/* peak.c: a loop of multiply-adds that touches no memory, and one that only reads: the ceilings of
 * what any code can reach.
 *
 * Each variant keeps as many sums as cover the latency of its instruction, and as fit the vector
 * registers beside two operands. The values tend to 1: never so small that the CPU slows down.
 */
#include "runtime/peak.h"
#include "runtime/pool.h"

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* Runs `rounds` rounds and gives a number made of all sums, so that none can be left out. */
typedef float Loop(int64_t rounds, float factor, float term);

typedef struct Variant {
    Loop *loop;
    int flops; /* of a round */
} Variant;

/* NAME(rounds, factor, term): in each round SUMS vectors become MULTIPLY_ADD(sum, factor, term). */
#define DEFINE_LOOP(NAME, ATTRIBUTE, Vector, SUMS, SET, MULTIPLY_ADD)                              \
    ATTRIBUTE static float NAME(int64_t rounds, float factor, float term)                          \
    {                                                                                              \
        Vector sum[SUMS], a = SET(factor), b = SET(term);                                          \
        float total = 0;                                                                           \
        _Pragma("GCC unroll 32") for (int i = 0; i < (SUMS); i++) sum[i] = SET((float)i);          \
        for (int64_t round = 0; round < rounds; round++) {                                         \
            _Pragma("GCC unroll 32") for (int i = 0; i < (SUMS); i++) sum[i] =                     \
                MULTIPLY_ADD(sum[i], a, b);                                                        \
        }                                                                                          \
        _Pragma("GCC unroll 32") for (int i = 0; i < (SUMS); i++) total += sum[i][0];              \
        return total;                                                                              \
    }                                                                                              \
    enum { NAME##_flops = 2 * (SUMS) * (int)(sizeof(Vector) / sizeof(float)) };

#if defined(__x86_64__)
#define MULTIPLY_THEN_ADD(sum, a, b) _mm_add_ps(_mm_mul_ps(sum, a), b)
DEFINE_LOOP(loop_avx512, __attribute__((target("avx512f"))), __m512, 24, _mm512_set1_ps,
            _mm512_fmadd_ps)
DEFINE_LOOP(loop_avx2, __attribute__((target("avx2,fma"))), __m256, 12, _mm256_set1_ps,
            _mm256_fmadd_ps)
DEFINE_LOOP(loop_sse, , __m128, 12, _mm_set1_ps, MULTIPLY_THEN_ADD)

static Variant choose(int vector_floats)
{
    enum { WIDEST = 16 };
    if (vector_floats == 1) vector_floats = WIDEST;
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (__builtin_cpu_supports("avx512f") && vector_floats >= 16)
        return (Variant){loop_avx512, loop_avx512_flops};
    if (avx2 && vector_floats >= 8) return (Variant){loop_avx2, loop_avx2_flops};
    return (Variant){loop_sse, loop_sse_flops};
}
#elif defined(__aarch64__)
#define FUSED(sum, a, b) vfmaq_f32(b, sum, a)
DEFINE_LOOP(loop_neon, , float32x4_t, 24, vdupq_n_f32, FUSED)

static Variant choose(int vector_floats)
{
    (void)vector_floats; /* all are of four */
    return (Variant){loop_neon, loop_neon_flops};
}
#else
typedef float Four __attribute__((vector_size(16)));
#define FOUR(value)                  ((Four){value, value, value, value})
#define MULTIPLY_THEN_ADD(sum, a, b) ((sum) * (a) + (b))
DEFINE_LOOP(loop_plain, , Four, 12, FOUR, MULTIPLY_THEN_ADD)

static Variant choose(int vector_floats)
{
    (void)vector_floats; /* all are of four */
    return (Variant){loop_plain, loop_plain_flops};
}
#endif

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

typedef struct Window {
    Variant variant;
    int64_t rounds;
    float *total; /* of each thread */
} Window;

static void run_share(void *user, int thread, int threads)
{
    const Window *window = user;
    (void)threads;
    volatile float factor = 0.75f, term = 0.25f; /* unknown to the compiler */
    window->total[thread] = window->variant.loop(window->rounds, factor, term);
}

/* Seconds until all threads have run the loop. */
static double run_window(Pool *pool, Window *window, int threads)
{
    double start = now();
    pool_run(pool, run_share, window, threads);
    return now() - start;
}

/* A first window that is too short tells little: the work is doubled until it lasts a while, and then as
 * much is taken as fills a window at that speed. The threads are those of a run of a model, which leave
 * their processors alone afterwards, as OpenMP's do not. */
double raft_peak_gflops(int threads, int vector_floats, double window, double seconds)
{
    const double a_while = RAFT_BURST / 2, begin = now();
    Window work = {choose(vector_floats), 1 << 12, calloc((size_t)threads, sizeof(float))};
    Pool pool = {0};
    if (!work.total) return 0;
    pool_start(&pool, threads);
    int running = pool.started + 1;
    double taken, best = 0; /* rounds of a thread in a second */
    while (taken = run_window(&pool, &work, running), taken < a_while) work.rounds *= 2;
    if (taken < window) work.rounds = (int64_t)((double)work.rounds * window / taken);
    do {
        taken = run_window(&pool, &work, running);
        if ((double)work.rounds / taken > best) best = (double)work.rounds / taken;
    } while (now() - begin < seconds);
    pool_stop(&pool);
    free(work.total);
    return 1e-9 * work.variant.flops * running * best;
}

/* ---- memory ---------------------------------------------------------------------------------- */

typedef uint64_t Line __attribute__((vector_size(64))); /* of a cache */

/* The sum of all, four at a time, so that no addition waits for another. */
static uint64_t read_lines(const Line *line, size_t count)
{
    Line sum[4] = {0};
    for (size_t i = 0; i + 4 <= count; i += 4)
        for (size_t k = 0; k < 4; k++) sum[k] += line[i + k];
    return sum[0][0] + sum[1][0] + sum[2][0] + sum[3][0];
}

/* Several times what the caches hold. */
static size_t big_enough(void)
{
    const size_t least = (size_t)64 << 20, most = (size_t)1 << 30;
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    size_t bytes = cache > 0 ? 4 * (size_t)cache : least;
    return bytes < least ? least : bytes > most ? most : bytes;
}

double raft_peak_gbytes(int threads, double seconds)
{
    size_t bytes = big_enough(), lines = bytes / sizeof(Line);
    Line *memory = aligned_alloc(sizeof(Line), bytes);
    if (!memory) return 0;
    memset(memory, 1, bytes);
    double best = 0, begin = now();
    do {
        uint64_t total = 0;
        double start = now();
#pragma omp parallel for num_threads(threads) reduction(+ : total)
        for (int part = 0; part < threads; part++) {
            size_t first = lines * (size_t)part / (size_t)threads;
            size_t end = lines * (size_t)(part + 1) / (size_t)threads;
            total += read_lines(memory + first, end - first);
        }
        volatile uint64_t used = total;
        (void)used;
        double speed = (double)bytes / (now() - start);
        if (speed > best) best = speed;
    } while (now() - begin < seconds);
    free(memory);
    return 1e-9 * best;
}
