/* test_jit.c: the machine code of the LLVM backend as it runs here: GELU against erf in double, and
 * what AddressSanitizer sees of it. (Whole models are compared by golden.c.) */
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "backends/backend.h"
#include "runtime/raft.h"
#include "tests/compile.h"

/* A program in memory, and a shell to run it. */
typedef struct Loaded {
    Arena arena;
    Target target;
    CpuCode *code;
    const RaftProgram *program;
    RaftShell *shell;
} Loaded;

/* One thread: a child that was forked has no others. */
static void load(Loaded *l, const Graph *graph, const CpuOptions *options)
{
    const RaftShellOptions shell = {.size = sizeof shell, .threads = 1};
    Diag diag = diag_new(&l->arena);
    if (!llvm_target(options, &l->target, &diag)) compile_failed(&diag, graph->name);
    const Plan *plan = plan_memory(&l->arena, compile_passes(&l->arena, graph, &l->target, NULL));
    l->code = llvm_compile(&l->arena, plan, options, &diag);
    l->program = l->code ? llvm_load(l->code, &diag) : NULL;
    if (!l->program) compile_failed(&diag, graph->name);
    assert_int_equal(raft_shell_create(l->program, &shell, &l->shell, NULL, 0), RAFT_OK);
}

static void unload(Loaded *l)
{
    raft_shell_destroy(l->shell);
    llvm_free(l->code);
    arena_free(&l->arena);
}

/* The levels of the instruction set that this machine has, and what it is itself. */
static int list_machines(const char *names[5])
{
    int count = 0;
#ifdef __x86_64__
    names[count++] = "x86-64";
    if (__builtin_cpu_supports("sse4.2")) names[count++] = "x86-64-v2";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        names[count++] = "x86-64-v3";
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
        names[count++] = "x86-64-v4";
#endif
    names[count++] = "host";
    return count;
}

/* ---- GELU ----------------------------------------------------------------------------------- */

enum {
    ROW = 4099, /* no multiple of any vector */
    EXPONENTS = 255,
    MANTISSAS = 128, /* of each exponent, with both signs */
    UNIFORM = 1000000,
    VALUES = 2 * EXPONENTS * MANTISSAS + UNIFORM,
    ROWS = (VALUES + ROW - 1) / ROW
};

/* Every finite exponent, denormal numbers among them, and a fine grid of [-12, 12]. */
static void fill_values(float *x)
{
    int count = 0;
    for (uint32_t exponent = 0; exponent < EXPONENTS; exponent++) {
        for (uint32_t i = 0; i < MANTISSAS; i++) {
            uint32_t mantissa = i * 0x10204u & 0x7FFFFF; /* 0 is the power of two */
            uint32_t bits = exponent << 23 | (i == MANTISSAS - 1 ? 0x7FFFFF : mantissa);
            memcpy(&x[count++], &bits, sizeof bits);
            x[count] = -x[count - 1];
            count++;
        }
    }
    for (int i = 0; i < UNIFORM; i++) x[count++] = (float)(-12 + 24 * (double)i / (UNIFORM - 1));
    assert_int_equal(count, VALUES);
    for (; count < ROWS * ROW; count++) x[count] = 0;
}

/* erfc, not 1 + erf: that cancels where x is negative. */
static double exact_gelu(double x)
{
    return 0.5 * x * erfc(-x / sqrt(2));
}

static void load_gelu(Loaded *l, const char *machine)
{
    const Graph *graph = compile_text(&l->arena, "graph g {\n"
                                                 "input @x : f32[b, n 4099]\n"
                                                 "%0 = gelu @x : f32[b, n 4099]\n"
                                                 "output forward.y = %0\n"
                                                 "}\n");
    load(l, graph, &(CpuOptions){.cpu = machine});
}

/* The bounds that gelu.c states. */
static void check_gelu(const char *machine, const float *x, float *y)
{
    Loaded l = {0};
    load_gelu(&l, machine);
    double absolute = l.target.fma ? 6e-7 : 7e-7, relative = 2e-7;
    assert_int_equal(raft_shell_forward(l.shell, ROWS, x, y), RAFT_OK);
    double worst = 0, worst_relative = 0;
    for (int i = 0; i < VALUES; i++) {
        double error = fabs((double)y[i] - exact_gelu((double)x[i])), size = fabs((double)x[i]);
        bool good = error <= absolute || size > 12;
        good = good && error <= relative * size + (double)FLT_TRUE_MIN;
        if (!good)
            fail_msg("%s: gelu(%.9g) = %.9g, off by %.3g", machine, (double)x[i], (double)y[i],
                     error);
        if (size <= 12) worst = fmax(worst, error);
        if (size >= (double)FLT_MIN) worst_relative = fmax(worst_relative, error / size);
    }
    print_message("gelu on %s: off by %.3g, by %.3g |x|\n", machine, worst, worst_relative);
    unload(&l);
}

static void test_gelu(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    float *x = calloc(2 * (size_t)ROWS * ROW, sizeof *x), *y = x + (size_t)ROWS * ROW;
    assert_non_null(x);
    fill_values(x);
    const char *machines[5];
    int count = list_machines(machines);
    for (int i = 0; i < count; i++) check_gelu(machines[i], x, y);
    free(x);
}

static void test_gelu_special(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
    const char *machines[5];
    int count = list_machines(machines);
    float x[ROW] = {NAN, -NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 3.4e38f}, y[ROW];
    x[ROW - 1] = NAN; /* in the last vector, which is not full */
    for (int i = 0; i < count; i++) {
        Loaded l = {0};
        load_gelu(&l, machines[i]);
        assert_int_equal(raft_shell_forward(l.shell, 1, x, y), RAFT_OK);
        assert_true(isnan(y[0]) && isnan(y[1]) && isnan(y[ROW - 1]));
        assert_true(y[2] == INFINITY && y[3] == -INFINITY);
        assert_true(y[4] == 0 && !signbit(y[4]) && y[5] == 0 && signbit(y[5]));
        assert_true(y[6] == 3.4e38f);
        unload(&l);
    }
}

/* ---- AddressSanitizer ----------------------------------------------------------------------- */

/* Instrumented code needs AddressSanitizer in the process. */
#ifdef __SANITIZE_ADDRESS__
enum { CAN_SANITIZE = 1 };
#else
enum { CAN_SANITIZE = 0 };
#endif

typedef struct Sizes {
    int64_t input, logits; /* floats */
} Sizes;

static Sizes load_sanitized(Loaded *l)
{
    const Model *model = compile_tiny(&l->arena, 0, 0, 0);
    load(l, build_graph(&l->arena, model), &(CpuOptions){.sanitize_address = true});
    for (int i = 0; i < l->program->parameter_count; i++) {
        const RaftTensorInfo *info = &l->program->parameter[i];
        float *data = calloc((size_t)info->elements, sizeof *data);
        assert_non_null(data);
        raft_fill_parameter(info->name, info->rank, info->shape, data);
        RaftStatus status =
            raft_shell_set_parameter(l->shell, info->name, info->shape, info->rank, data);
        assert_int_equal(status, RAFT_OK);
        free(data);
    }
    int logits = 0;
    while (strcmp(l->program->output[logits].name, "logits") != 0) logits++;
    return (Sizes){l->program->input[0].elements, l->program->output[logits].elements};
}

/* A forward of one image from and to buffers of these sizes. */
static RaftStatus run_forward(Loaded *l, Sizes sizes)
{
    float *input = calloc((size_t)sizes.input, sizeof *input);
    float *logits = calloc((size_t)sizes.logits, sizeof *logits);
    RaftStatus status = raft_shell_forward(l->shell, 1, input, logits);
    free(input);
    free(logits);
    return status;
}

/* The same in a child, which is expected to end with a report; what it prints. */
static const char *run_in_child(Loaded *l, Sizes sizes)
{
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        run_forward(l, sizes);
        _exit(0);
    }
    close(ends[1]);
    size_t room = 1 << 16, length = 0;
    char *text = arena_alloc(&l->arena, room);
    for (ssize_t count; (count = read(ends[0], text + length, room - 1 - length)) > 0;)
        length += (size_t)count;
    close(ends[0]);
    waitpid(child, &status, 0);
    assert_true(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
    return text;
}

static void expect_overflow(const char *report, const char *access)
{
    if (!strstr(report, "heap-buffer-overflow") || !strstr(report, access))
        fail_msg("no report of a %s past the end: %s", access, report);
}

static void test_sanitized_clean(void **state)
{
    (void)state;
    if (!llvm_available() || !CAN_SANITIZE) skip();
    Loaded l = {0};
    Sizes sizes = load_sanitized(&l);
    assert_int_equal(run_forward(&l, sizes), RAFT_OK);
    unload(&l);
}

/* Buffers that are one number too small are what a caller, or a wrong kernel, would give. */
static void test_sanitized_overflow(void **state)
{
    (void)state;
    if (!llvm_available() || !CAN_SANITIZE) skip();
    Loaded l = {0};
    Sizes sizes = load_sanitized(&l);
    expect_overflow(run_in_child(&l, (Sizes){sizes.input, sizes.logits - 1}), "WRITE of size");
    expect_overflow(run_in_child(&l, (Sizes){sizes.input - 1, sizes.logits}), "READ of size");
    unload(&l);
}

/* ---- numbers too small ---------------------------------------------------------------------- */

#ifdef __x86_64__
enum { DENORMAL = 2 }; /* of the CPU's flags: an operand was one */

/* Sums over the batch, taken in hundreds of parts: the second kernel finds in scratch memory what the first left between
 * the rows of its own. */
static const char sums_of_gelus[] = "graph g {\n"
                                    "input @x : f32[b, h 14, w 14, c 192]\n"
                                    "input @dy : f32[b, h 14, w 14, k 96]\n"
                                    "input @z : f32[b, h 14, group 192, n 56]\n"
                                    "%0 = linear @dy, @x over (b, h, w) : f32[k 96, c 192]\n"
                                    "%1 = rearrange @x c -> group : f32[b, h 14, w 14, group 192]\n"
                                    "%2 = gelu @z : f32[b, h 14, group 192, n 56]\n"
                                    "%3 = linear %1, %2 over (b, h, group) : f32[w 14, n 56]\n"
                                    "output forward.first = %0\n"
                                    "output forward.second = %3\n"
                                    "}\n";

static float *fill_ones(size_t count)
{
    float *x = malloc(count * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < count; i++) x[i] = 1;
    return x;
}
#endif

/* Of ordinary numbers no step makes denormal ones, not even where nobody reads: processors there are that take a
 * hundred times as long for them. */
static void test_denormals(void **state)
{
    (void)state;
    if (!llvm_available()) skip();
#ifdef __x86_64__
    enum { BATCH = 8, PIXELS = BATCH * 14 * 14 };
    const char *machines[5];
    int count = list_machines(machines);
    float *in[] = {fill_ones(PIXELS * 192), fill_ones(PIXELS * 96),
                   fill_ones(BATCH * 14 * 192 * 56)},
          *out[] = {fill_ones(96 * 192), fill_ones(14 * 56)};
    for (int i = 0; i < count; i++) {
        Loaded l = {0};
        load(&l, compile_text(&l.arena, sums_of_gelus), &(CpuOptions){.cpu = machines[i]});
        _mm_setcsr(_mm_getcsr() & ~(unsigned)_MM_EXCEPT_MASK);
        assert_int_equal(
            raft_shell_run(l.shell, l.program->forward_entry, BATCH, (const float *const *)in, out),
            RAFT_OK);
        if (_mm_getcsr() & DENORMAL) fail_msg("%s: an operand was denormal", machines[i]);
        assert_true(out[0][0] == PIXELS &&
                    fabsf(out[1][0] / (BATCH * 14 * 192) - 0.8413447f) < 1e-4f);
        unload(&l);
    }
    for (size_t i = 0; i < ARRAY_SIZE(in); i++) free(in[i]);
    for (size_t i = 0; i < ARRAY_SIZE(out); i++) free(out[i]);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gelu),
        cmocka_unit_test(test_gelu_special),
        cmocka_unit_test(test_sanitized_clean),
        cmocka_unit_test(test_sanitized_overflow),
        cmocka_unit_test(test_denormals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
