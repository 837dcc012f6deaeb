/* test_shell_memory.c: where the shell keeps parameters and what else it takes, and what happens where
 * there is no more memory. */
#include "tests/shell_program.h"

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

/* Each weight is packed times one of the first, scale is not used, and bias as it is. */
static const RaftStep lone_prepare[] = {
    {kernel_pack, "pack", CLASSES, 0, 1, 0, 1, 0, ARGUMENTS(WEIGHT, WEIGHT, PACKED)},
    {kernel_sum, "sum", CLASSES, 0, 1, 0, 1, 0, ARGUMENTS(PACKED, SUMS)},
};

/* A parameter that is packed alone is packed from the caller's data when it is set: no copy is made,
 * and the data is not looked at again, also when others change. */
static void test_packed_when_set(void **state)
{
    Values v;
    (void)state;
    RaftProgram lone = table;
    lone.prepare = lone_prepare;
    RaftShell *shell = create(&lone, 2);
    const CpuState *cpu = shell->device;
    assert_false(cpu->keep[0]); /* weight */
    assert_false(cpu->keep[1]); /* scale: no step reads it */
    assert_true(cpu->keep[2]);  /* bias */
    for (int round = 1; round <= 3; round++) {
        make_values(&v, round);
        float given[CLASSES * PIXELS], logits[CLASSES];
        memcpy(given, v.weight, sizeof given);
        allocations_left = round == 1 ? 2 : -1; /* for the bias, and the arena below */
        for (int i = 0; i < lone.parameter_count; i++) {
            const RaftTensorInfo *info = &parameters[i];
            const float *data = i == 2 ? v.bias : given;
            assert_int_equal(
                raft_shell_set_parameter(shell, info->name, info->shape, info->rank, data),
                RAFT_OK);
        }
        memset(given, 0xFF, sizeof given);
        for (int again = 0; again < 2; again++) {
            assert_int_equal(raft_shell_forward(shell, 1, v.image, logits), RAFT_OK);
            for (int o = 0; o < CLASSES; o++) {
                float sum = v.bias[o];
                for (int i = 0; i < PIXELS; i++)
                    sum += v.weight[o * PIXELS + i] * v.weight[i] * (v.maps[1][i] + 1);
                assert_true(logits[o] == sum);
            }
            memset(v.bias, 0, sizeof v.bias);
            const int64_t shape[] = {CLASSES};
            assert_int_equal(raft_shell_set_parameter(shell, "head.bias", shape, 1, v.bias),
                             RAFT_OK);
        }
        allocations_left = -1;
    }
    raft_shell_destroy(shell);
}

static bool in_memory(const void *address)
{
    uint64_t page = 0;
    int pagemap = open("/proc/self/pagemap", O_RDONLY);
    assert_int_equal(pread(pagemap, &page, sizeof page, (off_t)((uintptr_t)address / 4096 * 8)), 8);
    close(pagemap);
    return page >> 63;
}

/* Pages of a mapped file leave memory, unless they were changed; other memory is left alone. */
static void test_given_back(void **state)
{
    enum { FLOATS = 3 << 10 }; /* three pages */
    char path[] = "/tmp/test_shell-XXXXXX";
    float content[FLOATS];
    (void)state;
    int file = mkstemp(path);
    for (int i = 0; i < FLOATS; i++) content[i] = (float)i;
    assert_int_equal(write(file, content, sizeof content), sizeof content);
    unlink(path);
    for (int kind = 0; kind < 4; kind++) { /* private, shared, private and changed, no file */
        int flags = kind == 1 ? MAP_SHARED : kind == 3 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE;
        float *data = mmap(NULL, sizeof content, PROT_READ | PROT_WRITE, flags, file, 0);
        assert_true(data != MAP_FAILED);
        if (kind == 3) memcpy(data, content, sizeof content);
        assert_memory_equal(data, content, sizeof content);
        if (kind == 2) data[FLOATS / 2] = -1;
        float changed[FLOATS];
        memcpy(changed, data, sizeof changed);
        const RaftShell shell = {.weights = (const char *)data, .weights_size = sizeof content};
        give_back(&shell, data + 1100, 100 * sizeof *data); /* and what is around it */
        for (int i = 0; i < FLOATS; i += 1 << 10) assert_true(in_memory(data + i) == (kind >= 2));
        assert_memory_equal(data, changed, sizeof content);
        munmap(data, sizeof content);
    }
    close(file);
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
    assert_int_equal(failures[0], 14);
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
        cmocka_unit_test(test_parameters_set_again), cmocka_unit_test(test_packed_when_set),
        cmocka_unit_test(test_given_back),           cmocka_unit_test(test_weights_blob),
        cmocka_unit_test(test_out_of_memory),        cmocka_unit_test(test_arena),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
