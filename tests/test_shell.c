/* test_shell.c: the shell that runs compiled programs: results, threads, wrong calls, options. */
#include "tests/shell_program.h"

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
    raft_shell_measure(shell, seconds, NULL);
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
    raft_shell_measure(shell, NULL, NULL);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_threads_and_batch), cmocka_unit_test(test_measured),
        cmocka_unit_test(test_default_threads),       cmocka_unit_test(test_instances_at_once),
        cmocka_unit_test(test_wrong_parameters),      cmocka_unit_test(test_not_ready),
        cmocka_unit_test(test_wrong_calls),           cmocka_unit_test(test_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
