/* test_shell.c: the shell that runs compiled programs, on a table and kernels made by hand.
 *
 * shell.c is included as a generated library includes it, its functions static, and with allocation
 * functions that can be made to fail. library/kernels.c says what the program computes.
 */
#define _GNU_SOURCE
#include <math.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int allocations_left = -1; /* -1: allocation never fails */

static bool may_allocate(void)
{
    if (allocations_left == 0) return false;
    if (allocations_left > 0) allocations_left--;
    return true;
}

static void *failing_calloc(size_t count, size_t size)
{
    return may_allocate() ? calloc(count, size) : NULL;
}

/* Filled with NaN, as memory that was used before may be. */
static void *failing_aligned_alloc(size_t alignment, size_t size)
{
    void *block = may_allocate() ? aligned_alloc(alignment, size) : NULL;
    return block ? memset(block, 0xFF, size) : NULL;
}

#define calloc             failing_calloc
#define aligned_alloc      failing_aligned_alloc
#define RAFT_SHELL_LINKAGE static
#include "runtime/shell.c"
#include "runtime/cpu.c"
#undef calloc
#undef aligned_alloc

#include <cmocka.h>

#include "backends/backend.h"
#include "tests/library/kernels.c"
#include "tests/library/values.h"

/* ---- the program ----------------------------------------------------------------------------- */

enum { CHUNK = 3, GUARD = 4, FORWARD = 1, FEATURES = 2 };

/* clang-format off */
enum { IMAGE, WEIGHT, SCALE, BIAS, PACKED, SUMS, HIDDEN, SHIFTED, LOGITS, MAP0, MAP1, BUFFERS };
static const RaftBuffer buffers[BUFFERS] = {
    [IMAGE] = {RAFT_BUFFER_INPUT, 0},
    [WEIGHT] = {RAFT_BUFFER_PARAM, 0},
    [SCALE] = {RAFT_BUFFER_PARAM, 1},
    [BIAS] = {RAFT_BUFFER_PARAM, 2},
    [PACKED] = {RAFT_BUFFER_PREPARED, 0},
    [SUMS] = {RAFT_BUFFER_PREPARED, 48},
    [HIDDEN] = {RAFT_BUFFER_ARENA, 0},
    [SHIFTED] = {RAFT_BUFFER_ARENA, 16},
    [LOGITS] = {RAFT_BUFFER_OUTPUT, 0},
    [MAP0] = {RAFT_BUFFER_OUTPUT, 1},
    [MAP1] = {RAFT_BUFFER_OUTPUT, 2},
};
#define ARGUMENTS(...) sizeof((const int[]){__VA_ARGS__}) / sizeof(int), (const int[]){__VA_ARGS__}
static const RaftStep prepare_steps[] = {
    {kernel_pack, "pack", CLASSES, 0, 0, ARGUMENTS(WEIGHT, SCALE, PACKED)},
    {kernel_sum, "sum", CLASSES, 0, 0, ARGUMENTS(PACKED, SUMS)},
};
static const RaftStep steps[] = {
    {kernel_hidden, "hidden", PIXELS, 1, FORWARD | FEATURES, ARGUMENTS(IMAGE, HIDDEN)},
    {kernel_double, "double", PIXELS, 1, FEATURES, ARGUMENTS(HIDDEN, MAP0)},
    {kernel_shifted, "shifted", PIXELS, 1, FORWARD | FEATURES, ARGUMENTS(HIDDEN, SHIFTED)},
    {kernel_copy, "copy", PIXELS, 1, FEATURES, ARGUMENTS(SHIFTED, MAP1)},
    {kernel_logits, "logits", CLASSES, 1, FORWARD, ARGUMENTS(SHIFTED, PACKED, SUMS, BIAS, LOGITS)},
};
static const RaftTensorInfo parameters[] = {
    {"head.weight", 2, {CLASSES, PIXELS}, CLASSES * PIXELS},
    {"norm.scale", 1, {PIXELS}, PIXELS},
    {"head.bias", 1, {CLASSES}, CLASSES},
};
static const RaftTensorInfo inputs[] = {{"image", 3, {2, 2, 2}, PIXELS}};
static const RaftTensorInfo outputs[] = {
    {"logits", 1, {CLASSES}, CLASSES},
    {"feature0", 3, {2, 2, 2}, PIXELS},
    {"feature1", 3, {2, 2, 2}, PIXELS},
};
/* clang-format on */

static const RaftProgram table = {
    .device = &raft_cpu,
    .name = "test",
    .made_by = "",
    .buffer_count = BUFFERS,
    .buffer = buffers,
    .prepare_count = ARRAY_SIZE(prepare_steps),
    .prepare = prepare_steps,
    .step_count = ARRAY_SIZE(steps),
    .step = steps,
    .parameter_count = ARRAY_SIZE(parameters),
    .parameter = parameters,
    .input_count = ARRAY_SIZE(inputs),
    .input = inputs,
    .output_count = ARRAY_SIZE(outputs),
    .output = outputs,
    .forward_entry = FORWARD,
    .features_entry = FEATURES,
    .arena_floats = 32,
    .prepared_floats = 64,
    .scratch_bytes = SCRATCH,
    .chunk = CHUNK,
};

/* ---- helpers ------------------------------------------------------------------------------ */

static const CpuState *cpu_of(const RaftShell *shell)
{
    return shell->device;
}

static int set_all(RaftShell *shell, const Values *v)
{
    const float *data[] = {v->weight, v->scale, v->bias};
    for (int i = 0; i < table.parameter_count; i++) {
        RaftStatus status = raft_shell_set_parameter(shell, parameters[i].name, parameters[i].shape,
                                                     parameters[i].rank, data[i]);
        if (status != RAFT_OK) return status;
    }
    return RAFT_OK;
}

static RaftShell *create(const RaftProgram *program, int threads)
{
    RaftShellOptions options = {.size = sizeof options, .threads = threads};
    RaftShell *shell;
    char message[200] = "";
    RaftStatus status = raft_shell_create(program, &options, &shell, message, sizeof message);
    if (status != RAFT_OK) fail_msg("%s", message);
    return shell;
}

static void expect_floats(const float *found, const float *expected, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (found[i] != expected[i])
            fail_msg("element %d is %g, not %g", (int)i, found[i], expected[i]);
}

/* Runs both entries for some images and looks at every float of the results, and behind them. */
static void expect_run(RaftShell *shell, const Values *v, int64_t batch)
{
    static const float guard[GUARD] = {-9, -9, -9, -9};
    float logits[MOST_BATCH * CLASSES + GUARD], map0[MOST_BATCH * PIXELS + GUARD],
        map1[MOST_BATCH * PIXELS + GUARD];
    memcpy(logits + batch * CLASSES, guard, sizeof guard);
    memcpy(map0 + batch * PIXELS, guard, sizeof guard);
    memcpy(map1 + batch * PIXELS, guard, sizeof guard);
    assert_int_equal(raft_shell_forward(shell, batch, v->image, logits), RAFT_OK);
    expect_floats(logits, v->logits, batch * CLASSES);
    assert_int_equal(raft_shell_features(shell, batch, v->image, (float *const[]){map0, map1}),
                     RAFT_OK);
    expect_floats(map0, v->maps[0], batch * PIXELS);
    expect_floats(map1, v->maps[1], batch * PIXELS);
    expect_floats(logits + batch * CLASSES, guard, GUARD);
    expect_floats(map0 + batch * PIXELS, guard, GUARD);
    expect_floats(map1 + batch * PIXELS, guard, GUARD);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_any_threads_and_batch(void **state)
{
    Values v;
    (void)state;
    make_values(&v, 1);
    for (int threads = 0; threads <= 8; threads++) {
        RaftShell *shell = create(&table, threads);
        assert_int_equal(set_all(shell, &v), RAFT_OK);
        for (int batch = 1; batch <= MOST_BATCH; batch++) expect_run(shell, &v, batch);
        raft_shell_destroy(shell);
    }
}

/* Time is measured where it is asked for, of the steps that ran, and of all threads. */
static void test_measured(void **state)
{
    enum { THREADS = 2, STEPS = 16 };
    Values v;
    (void)state;
    make_values(&v, 1);
    RaftShell *shell = create(&table, THREADS);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    double seconds[THREADS * STEPS] = {0};
    assert_true(table.step_count <= STEPS);
    raft_shell_measure(shell, seconds);
    float logits[MOST_BATCH * CLASSES];
    assert_int_equal(raft_shell_forward(shell, MOST_BATCH, v.image, logits), RAFT_OK);
    expect_floats(logits, v.logits, MOST_BATCH * CLASSES);
    for (int s = 0; s < table.step_count; s++) {
        double both = seconds[s] + seconds[table.step_count + s];
        assert_true((both > 0) == ((table.step[s].entries & FORWARD) != 0));
        assert_true(both < 60);
    }
    for (int i = THREADS * table.step_count; i < THREADS * STEPS; i++) assert_true(seconds[i] == 0);
    memset(seconds, 0, sizeof seconds);
    raft_shell_measure(shell, NULL);
    assert_int_equal(raft_shell_forward(shell, MOST_BATCH, v.image, logits), RAFT_OK);
    for (int i = 0; i < THREADS * STEPS; i++) assert_true(seconds[i] == 0);
    raft_shell_destroy(shell);
}

static void test_default_threads(void **state)
{
    cpu_set_t set;
    (void)state;
    assert_int_equal(sched_getaffinity(0, sizeof set, &set), 0);
    RaftShell *shell;
    assert_int_equal(raft_shell_create(&table, NULL, &shell, NULL, 0), RAFT_OK);
    assert_in_range(cpu_of(shell)->threads, 1, CPU_COUNT(&set));
    raft_shell_destroy(shell);
}

/* OpenMP gives one thread inside a parallel region; instances do not disturb each other. */
static void test_instances_at_once(void **state)
{
    (void)state;
    int wrong = 0;
#pragma omp parallel num_threads(4) reduction(+ : wrong)
    {
        Values v;
        float logits[MOST_BATCH * CLASSES];
        RaftShell *shell = NULL;
        RaftShellOptions options = {.size = sizeof options, .threads = 3};
        make_values(&v, omp_get_thread_num());
        wrong += raft_shell_create(&table, &options, &shell, NULL, 0) != RAFT_OK;
        wrong += set_all(shell, &v) != RAFT_OK;
        for (int i = 0; i < 50; i++) {
            wrong += raft_shell_forward(shell, MOST_BATCH, v.image, logits) != RAFT_OK;
            wrong += memcmp(logits, v.logits, sizeof logits) != 0;
        }
        raft_shell_destroy(shell);
    }
    assert_int_equal(wrong, 0);
}

static void test_parameters_set_again(void **state)
{
    Values v, other;
    (void)state;
    make_values(&v, 1);
    make_values(&other, 2);
    RaftShell *shell = create(&table, 2);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    expect_run(shell, &v, 4);
    memcpy(other.image, v.image, sizeof v.image);
    float logits[CLASSES];
    const int64_t shape[] = {PIXELS};
    assert_int_equal(raft_shell_set_parameter(shell, "norm.scale", shape, 1, other.scale), RAFT_OK);
    assert_int_equal(raft_shell_forward(shell, 1, v.image, logits), RAFT_OK);
    for (int o = 0; o < CLASSES; o++) {
        float sum = v.bias[o];
        for (int i = 0; i < PIXELS; i++)
            sum += v.weight[o * PIXELS + i] * other.scale[i] * (v.maps[1][i] + 1);
        assert_true(logits[o] == sum);
    }
    make_values(&other, 2);
    assert_int_equal(set_all(shell, &other), RAFT_OK);
    expect_run(shell, &other, 4);
    raft_shell_destroy(shell);
}

typedef struct WrongParameter {
    const char *name;
    int rank;
    int64_t shape[8];
    const char *message;
} WrongParameter;

static void test_wrong_parameters(void **state)
{
    /* clang-format off */
    static const WrongParameter wrong[] = {
        {"head.wieght", 2, {5, 8},
         "the model has no parameter 'head.wieght'; the nearest is 'head.weight'"},
        {"head.bia", 1, {5}, "the model has no parameter 'head.bia'; the nearest is 'head.bias'"},
        {"", 1, {5}, "the model has no parameter ''"},
        {"decoder", 1, {5}, "the model has no parameter 'decoder'"},
        {"head.bias", 2, {5, 1}, "parameter 'head.bias' has the shape [5], not [5, 1] of rank 2"},
        {"head.bias", 0, {0}, "parameter 'head.bias' has the shape [5], not [] of rank 0"},
        {"head.bias", -1, {0}, "parameter 'head.bias' has the shape [5], not [] of rank -1"},
        {"head.bias", 8, {5, 1, 1, 1, 1, 1, 1, 1},
         "parameter 'head.bias' has the shape [5], not [5, 1, 1, 1, 1, 1, 1, 1] of rank 8"},
        {"head.weight", 2, {8, 5},
         "parameter 'head.weight' has the shape [5, 8], not [8, 5] of rank 2"},
        {"head.weight", 2, {INT64_MAX, INT64_MIN}, "parameter 'head.weight' has the shape [5, 8], "
         "not [9223372036854775807, -9223372036854775808] of rank 2"},
    };
    /* clang-format on */
    Values v;
    (void)state;
    make_values(&v, 1);
    RaftShell *shell = create(&table, 2);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    assert_string_equal(raft_shell_error(shell), "");
    static const float zeros[CLASSES * PIXELS + 1];
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        const WrongParameter *w = &wrong[i];
        assert_int_equal(raft_shell_set_parameter(shell, w->name, w->shape, w->rank, zeros),
                         RAFT_INVALID);
        assert_string_equal(raft_shell_error(shell), w->message);
    }
    char longest[1000];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = '\0';
    const int64_t shape[] = {CLASSES};
    assert_int_equal(raft_shell_set_parameter(shell, longest, shape, 1, zeros), RAFT_INVALID);
    assert_int_equal(raft_shell_set_parameter(NULL, "head.bias", shape, 1, zeros), RAFT_INVALID);
    assert_int_equal(raft_shell_set_parameter(shell, NULL, shape, 1, zeros), RAFT_INVALID);
    assert_int_equal(raft_shell_set_parameter(shell, "head.bias", NULL, 1, zeros), RAFT_INVALID);
    assert_int_equal(raft_shell_set_parameter(shell, "head.bias", shape, 1, NULL), RAFT_INVALID);
    const float *skewed = (const float *)((const char *)zeros + 1);
    assert_int_equal(raft_shell_set_parameter(shell, "head.bias", shape, 1, skewed), RAFT_INVALID);
    expect_run(shell, &v, 5); /* nothing was changed */
    raft_shell_destroy(shell);
}

static void test_not_ready(void **state)
{
    Values v;
    float logits[CLASSES] = {0};
    (void)state;
    make_values(&v, 1);
    RaftShell *shell = create(&table, 2);
    for (int i = 0; i < table.prepared_floats; i++) assert_true(cpu_of(shell)->prepared[i] == 0);
    assert_int_equal(raft_shell_forward(shell, 1, v.image, logits), RAFT_NOT_READY);
    assert_string_equal(raft_shell_error(shell),
                        "3 of 3 parameters are not set; the first is 'head.weight'");
    const int64_t shape[] = {CLASSES, PIXELS};
    assert_int_equal(raft_shell_set_parameter(shell, "head.weight", shape, 2, v.weight), RAFT_OK);
    assert_int_equal(raft_shell_forward(shell, 1, v.image, logits), RAFT_NOT_READY);
    assert_string_equal(raft_shell_error(shell),
                        "2 of 3 parameters are not set; the first is 'norm.scale'");
    for (int o = 0; o < CLASSES; o++) assert_true(logits[o] == 0);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    expect_run(shell, &v, 1);
    raft_shell_destroy(shell);
}

static void test_wrong_calls(void **state)
{
    Values v;
    float logits[MOST_BATCH * CLASSES], map[MOST_BATCH * PIXELS];
    (void)state;
    make_values(&v, 1);
    RaftShell *shell = create(&table, 2);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    memset(logits, 0, sizeof logits);
    memset(map, 0, sizeof map);
    float *skewed = (float *)((char *)logits + 2);
    const struct {
        int64_t batch;
        const float *image;
        float *logits;
        const char *message;
    } wrong[] = {
        {0, v.image, logits, "batch is 0, not at least 1"},
        {INT64_MIN, v.image, logits, "batch is -9223372036854775808, not at least 1"},
        {INT64_MAX, v.image, logits, "batch is 9223372036854775807, too large for 'image'"},
        {INT64_MAX / PIXELS, v.image, logits,
         "batch is 1152921504606846975, too large for 'image'"},
        {1, NULL, logits, "the data of 'image' is NULL"},
        {1, v.image, NULL, "the data of 'logits' is NULL"},
        {1, skewed, logits, "the data of 'image' is not aligned as floats are"},
        {1, v.image, skewed, "the data of 'logits' is not aligned as floats are"},
        {1, v.image, v.image, "the data of 'logits' overlaps that of 'image'"},
        {2, v.image, v.image + 2 * PIXELS - 1, "the data of 'logits' overlaps that of 'image'"},
    };
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        assert_int_equal(raft_shell_forward(shell, wrong[i].batch, wrong[i].image, wrong[i].logits),
                         RAFT_INVALID);
        assert_string_equal(raft_shell_error(shell), wrong[i].message);
    }
    assert_int_equal(raft_shell_forward(NULL, 1, v.image, logits), RAFT_INVALID);
    assert_int_equal(raft_shell_features(NULL, 1, v.image, (float *const[]){map, map}),
                     RAFT_INVALID);
    assert_int_equal(raft_shell_features(shell, 1, v.image, NULL), RAFT_INVALID);
    assert_int_equal(raft_shell_features(shell, 1, v.image, (float *const[]){map, NULL}),
                     RAFT_INVALID);
    assert_string_equal(raft_shell_error(shell), "the data of 'feature1' is NULL");
    assert_int_equal(raft_shell_features(shell, 1, v.image, (float *const[]){map, map}),
                     RAFT_INVALID);
    assert_string_equal(raft_shell_error(shell),
                        "the data of 'feature1' overlaps that of 'feature0'");
    assert_int_equal(raft_shell_run(shell, FORWARD, 1, NULL, NULL), RAFT_INVALID);
    assert_string_not_equal(raft_shell_error(NULL), "");
    raft_shell_destroy(NULL);
    for (size_t i = 0; i < ARRAY_SIZE(logits); i++) assert_true(logits[i] == 0);
    for (size_t i = 0; i < ARRAY_SIZE(map); i++) assert_true(map[i] == 0);
    expect_run(shell, &v, MOST_BATCH);
    raft_shell_destroy(shell);

    RaftProgram without = table;
    without.features_entry = 0;
    shell = create(&without, 1);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    assert_int_equal(raft_shell_features(shell, 1, v.image, (float *const[]){map, map}),
                     RAFT_UNSUPPORTED);
    raft_shell_destroy(shell);
}

static void expect_create(const void *options, RaftStatus expected)
{
    char message[200] = "";
    RaftShell *shell = (RaftShell *)message;
    RaftStatus status = raft_shell_create(&table, options, &shell, message, sizeof message);
    if (status != expected) fail_msg("status %d, not %d: %s", status, expected, message);
    assert_true((expected == RAFT_OK) == (shell != NULL));
    assert_true((expected == RAFT_OK) == (message[0] == '\0'));
    raft_shell_destroy(shell);
}

static void test_options(void **state)
{
    const size_t size = sizeof(RaftShellOptions);
    (void)state;
    expect_create(NULL, RAFT_OK);
    expect_create(&(RaftShellOptions){.size = size}, RAFT_OK);
    expect_create(&(RaftShellOptions){.size = 0}, RAFT_INVALID);
    expect_create(&(RaftShellOptions){.size = size - 1}, RAFT_INVALID);
    expect_create(&(RaftShellOptions){.size = SIZE_MAX}, RAFT_INVALID);
    expect_create(&(RaftShellOptions){.size = size, .threads = -1}, RAFT_INVALID);
    expect_create(&(RaftShellOptions){.size = size, .threads = RAFT_MAX_THREADS + 1}, RAFT_INVALID);
    expect_create(&(RaftShellOptions){.size = size, .device = 1}, RAFT_UNSUPPORTED);
    expect_create(&(RaftShellOptions){.size = size, .stream = &state}, RAFT_UNSUPPORTED);
    expect_create(&(RaftShellOptions){.size = size, .weights = &table}, RAFT_INVALID);
    expect_create(&(RaftShellOptions){.size = size, .weights_size = 1}, RAFT_INVALID);
    struct {
        RaftShellOptions known;
        int64_t later;
    } newer = {{.size = sizeof newer, .threads = 1}, 0};
    expect_create(&newer, RAFT_OK);
    newer.later = 1;
    expect_create(&newer, RAFT_UNSUPPORTED);
    char message[8];
    assert_int_equal(raft_shell_create(&table, NULL, NULL, message, sizeof message), RAFT_INVALID);
    assert_string_equal(message, "out is "); /* cut to the size */
    assert_int_equal(raft_shell_create(&table, NULL, NULL, message, 0), RAFT_INVALID);
}

static void test_weights_blob(void **state)
{
    Arena arena = {0};
    Values v, other;
    size_t size;
    (void)state;
    make_values(&v, 1);
    make_values(&other, 2);
    const char *written =
        weights_blob(&arena, &table, (const float *const[]){v.weight, v.scale, v.bias}, &size);
    assert_int_equal(size, 64 + 192 + 64 + 64);
    char *blob = aligned_alloc(64, size + 64);
    memcpy(blob, written, size);

    RaftShellOptions options = {.size = sizeof options, .weights = blob, .weights_size = size};
    RaftShell *shell;
    assert_int_equal(raft_shell_create(&table, &options, &shell, NULL, 0), RAFT_OK);
    expect_run(shell, &v, 7);
    assert_int_equal(set_all(shell, &other), RAFT_OK); /* the blob is only read */
    expect_run(shell, &other, 7);
    raft_shell_destroy(shell);
    assert_memory_equal(blob, written, size);

    for (size_t i = 0; i < 64; i++) { /* any bit of the header */
        blob[i] ^= 1;
        expect_create(&options, RAFT_BAD_FILE);
        blob[i] ^= 1;
    }
    for (options.weights_size = 1; options.weights_size < size + 64; options.weights_size++)
        expect_create(&options, options.weights_size == size ? RAFT_OK : RAFT_BAD_FILE);
    options.weights_size = size;
    memmove(blob + 4, blob, size);
    options.weights = blob + 4;
    expect_create(&options, RAFT_INVALID);

    RaftProgram renamed = table;
    RaftTensorInfo names[ARRAY_SIZE(parameters)];
    memcpy(names, parameters, sizeof names);
    names[2].name = "head.base";
    renamed.parameter = names;
    assert_true(raft_weights_header(&renamed).hash != raft_weights_header(&table).hash);
    free(blob);
    arena_free(&arena);
}

/* The n-th allocation fails, for every n, in create, set_parameter and forward; then everything
 * works on the same instance. */
static void test_out_of_memory(void **state)
{
    Values v;
    float logits[MOST_BATCH * CLASSES];
    (void)state;
    make_values(&v, 1);
    int failures[3] = {0};
    for (int n = 0, done = 0; !done; n++) {
        RaftShell *shell;
        allocations_left = n;
        RaftStatus status = raft_shell_create(&table, NULL, &shell, NULL, 0);
        failures[0] += status == RAFT_NO_MEMORY;
        if (status == RAFT_OK) {
            status = set_all(shell, &v);
            failures[1] += status == RAFT_NO_MEMORY;
        }
        if (status == RAFT_OK) {
            status = raft_shell_forward(shell, MOST_BATCH, v.image, logits);
            failures[2] += status == RAFT_NO_MEMORY;
            done = status == RAFT_OK;
        }
        assert_true(done || status == RAFT_NO_MEMORY);
        allocations_left = -1;
        if (!shell) continue;
        assert_int_equal(set_all(shell, &v), RAFT_OK);
        expect_run(shell, &v, MOST_BATCH);
        raft_shell_destroy(shell);
    }
    assert_int_equal(failures[0], 8);
    assert_int_equal(failures[1], 3);
    assert_int_equal(failures[2], 1);
}

/* The arena grows with the batch up to the chunk, and survives a batch that it cannot hold. */
static void test_arena(void **state)
{
    Values v;
    (void)state;
    make_values(&v, 1);
    RaftProgram large = table;
    large.chunk = MOST_BATCH;
    RaftShell *shell = create(&large, 2);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    for (int batch = 1; batch <= MOST_BATCH; batch += 3) {
        expect_run(shell, &v, batch);
        assert_int_equal(cpu_of(shell)->arena_bytes, batch * 32 * sizeof(float));
    }
    expect_run(shell, &v, 2);
    float *logits = aligned_alloc(64, 1024);
    allocations_left = 0;
    assert_int_equal(raft_shell_forward(shell, MOST_BATCH, v.image, logits), RAFT_NO_MEMORY);
    assert_non_null(strstr(raft_shell_error(shell), "2560 bytes for 20 images at a time"));
    allocations_left = -1;
    expect_run(shell, &v, MOST_BATCH);
    raft_shell_destroy(shell);

    RaftProgram huge = table;
    huge.arena_floats = INT64_MAX / 8;
    shell = create(&huge, 2);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    assert_int_equal(raft_shell_forward(shell, 3, v.image, logits), RAFT_INVALID);
    raft_shell_destroy(shell);
    free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_threads_and_batch),
        cmocka_unit_test(test_measured),
        cmocka_unit_test(test_default_threads),
        cmocka_unit_test(test_instances_at_once),
        cmocka_unit_test(test_parameters_set_again),
        cmocka_unit_test(test_wrong_parameters),
        cmocka_unit_test(test_not_ready),
        cmocka_unit_test(test_wrong_calls),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_weights_blob),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
