/* shell_program.h: a compiled program made by hand, for test_shell.c and test_shell_memory.c.
 *
 * The shell is included as a generated library includes it, its functions static, and with allocation
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
#define RAFT_SHELL_LINKAGE static __attribute__((unused))
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
    {kernel_pack, "pack", CLASSES, 0, 1, 0, 1, 0, ARGUMENTS(WEIGHT, SCALE, PACKED)},
    {kernel_sum, "sum", CLASSES, 0, 1, 0, 1, 0, ARGUMENTS(PACKED, SUMS)},
};
static const RaftStep steps[] = {
    {kernel_hidden, "hidden", PIXELS, 1, 1, 0, 1, FORWARD | FEATURES, ARGUMENTS(IMAGE, HIDDEN)},
    {kernel_double, "double", PIXELS, 1, 1, 0, 1, FEATURES, ARGUMENTS(HIDDEN, MAP0)},
    {kernel_shifted, "shifted", PIXELS, 1, 1, 0, 1, FORWARD | FEATURES, ARGUMENTS(HIDDEN, SHIFTED)},
    {kernel_copy, "copy", PIXELS, 1, 1, 0, 1, FEATURES, ARGUMENTS(SHIFTED, MAP1)},
    {kernel_logits, "logits", CLASSES, 1, 1, 0, 1, FORWARD, ARGUMENTS(SHIFTED, PACKED, SUMS, BIAS, LOGITS)},
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

static inline const CpuState *cpu_of(const RaftShell *shell)
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

static inline void expect_create(const void *options, RaftStatus expected)
{
    char message[200] = "";
    RaftShell *shell = (RaftShell *)message;
    RaftStatus status = raft_shell_create(&table, options, &shell, message, sizeof message);
    if (status != expected) fail_msg("status %d, not %d: %s", status, expected, message);
    assert_true((expected == RAFT_OK) == (shell != NULL));
    assert_true((expected == RAFT_OK) == (message[0] == '\0'));
    raft_shell_destroy(shell);
}
