/* test_cuda.c: the shell on a GPU, which is fake_cuda.c: copies, graphs, failures, what is given back.
 *
 * The kernels of library/kernels.c are the functions of a fake cubin.
 */
#define _GNU_SOURCE
#define RAFT_SHELL_LINKAGE static __attribute__((unused))
#include "runtime/cuda.c"
#include "runtime/cuda_driver.c"
#include "runtime/cuda_open.c"
#include "runtime/cuda_peak.c"

#include "tests/fake_cuda.h"
#include "tests/shell_program.h"

/* ---- the program ----------------------------------------------------------------------------- */

enum { SPILLS = 1 << 20, ILLEGAL_ADDRESS = 700 };

static const FakeKernel fake_kernels[] = {
    {"pack", kernel_pack, 3, SCRATCH},       {"sum", kernel_sum, 2, SCRATCH},
    {"hidden", kernel_hidden, 2, SCRATCH},   {"double", kernel_double, 2, SCRATCH},
    {"shifted", kernel_shifted, 2, SCRATCH}, {"copy", kernel_copy, 2, SCRATCH},
    {"logits", kernel_logits, 5, SCRATCH},
};
static const FakeImage fake_image = {"FAKECUDA", fake_kernels, ARRAY_SIZE(fake_kernels)};
static const FakeImage empty_image = {"FAKECUDA", NULL, 0};

static const RaftCudaKernel cuda_prepare[] = {{"pack", 128, 0, 0, 1, 1, 0, 0},
                                              {"sum", 128, 0, 0, 4, 1, 0, 0}};
static const RaftCudaKernel cuda_steps[] = {
    {"hidden", 128, 64 << 10, 0, 3, 1, 0, 0}, {"double", 256, 0, 0, 1, 1, 0, 0},
    {"shifted", 128, 1000, 0, 1, 1, 0, 0},    {"copy", 128, 0, SPILLS, 1, 1, 0, 0},
    {"logits", 128, 0, 4096, 2, 1, 0, 0},
};
/* That of sm_80 must not be chosen where sm_90 is there. */
static const RaftCudaImage images[] = {
    {80, &empty_image, sizeof empty_image},
    {90, &fake_image, sizeof fake_image},
    {100, &empty_image, sizeof empty_image},
};
static const RaftCudaCode code = {ARRAY_SIZE(images), images, cuda_prepare, cuda_steps};

static RaftProgram cuda_table(void)
{
    RaftProgram program = table;
    program.device = &raft_cuda;
    program.code = &code;
    return program;
}

/* Nothing is left of an instance, and nothing was wrong on the way. */
static void expect_nothing_left(void)
{
    const FakeCounts *counts = fake_counts();
    assert_int_equal(counts->strays, 0);
    assert_int_equal(counts->pushed, 0);
    assert_int_equal(counts->blocks, 0);
    assert_int_equal(counts->contexts, 0);
    assert_int_equal(counts->modules, 0);
    assert_int_equal(counts->streams, 0);
    assert_int_equal(counts->graphs, 0);
    assert_int_equal(counts->execs, 0);
    assert_int_equal(counts->events, 0);
}

static RaftShell *create_set(const RaftProgram *program, const Values *v)
{
    RaftShell *shell = create(program, 0);
    assert_int_equal(set_all(shell, v), RAFT_OK);
    return shell;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_host_memory(void **state)
{
    Values v, w;
    (void)state;
    make_values(&v, 1);
    make_values(&w, 2);
    const RaftProgram program = cuda_table();
    RaftShell *shell = create_set(&program, &v);
    for (int again = 0; again < 3; again++)
        for (int batch = 1; batch <= MOST_BATCH; batch++) expect_run(shell, &v, batch);
    assert_true(fake_counts()->graph_launches > 0);
    assert_int_equal(set_all(shell, &w), RAFT_OK);
    expect_run(shell, &w, 2);
    raft_shell_destroy(shell);
    expect_nothing_left();
}

/* The first run at some addresses launches kernels, the second makes a graph, the others replay it. */
static void test_gpu_memory(void **state)
{
    enum { STEPS = 3 /* of forward */, BATCH = 2 };
    Values v;
    float *image, *logits[12], result[BATCH * CLASSES];
    (void)state;
    make_values(&v, 1);
    const RaftProgram program = cuda_table();
    RaftShell *shell = create_set(&program, &v);
    size_t bytes = BATCH * PIXELS * sizeof(float);
    assert_int_equal(raft_cuda_reserve(shell, bytes, &image), RAFT_OK);
    assert_int_equal(raft_cuda_upload(shell, image, v.image, bytes), RAFT_OK);
    for (int i = 0; i < 12; i++)
        assert_int_equal(raft_cuda_reserve(shell, BATCH * CLASSES * sizeof(float), &logits[i]),
                         RAFT_OK);
    for (int run = 0; run < 4; run++) {
        for (int i = 0; i < 12; i += 6) {
            int graphs = fake_counts()->graph_launches, prepare = run == 0 && i == 0 ? 2 : 0;
            int launches = fake_counts()->launches;
            memset(logits[i], 0xFF, sizeof result);
            assert_int_equal(raft_shell_forward(shell, BATCH, image, logits[i]), RAFT_OK);
            expect_floats(logits[i], v.logits, BATCH * CLASSES);
            assert_int_equal(fake_counts()->graph_launches - graphs, run > 0);
            assert_int_equal(fake_counts()->launches - launches, STEPS + prepare);
            assert_int_equal(fake_counts()->execs, run == 0 ? 0 : run > 1 || i ? 2 : 1);
        }
    }
    /* No more graphs are kept than there is room for. */
    for (int run = 0; run < 2; run++)
        for (int i = 0; i < 12; i++)
            for (int twice = 0; twice < 2; twice++)
                assert_int_equal(raft_shell_forward(shell, BATCH, image, logits[i]), RAFT_OK);
    assert_int_equal(fake_counts()->execs, MOST_GRAPHS);
    for (int i = 0; i < 12; i++) expect_floats(logits[i], v.logits, BATCH * CLASSES);
    raft_shell_destroy(shell);
    expect_nothing_left();
}

/* Parameters may be the GPU's, too. */
static void test_gpu_parameters(void **state)
{
    Values v;
    float *weight;
    (void)state;
    make_values(&v, 3);
    const RaftProgram program = cuda_table();
    RaftShell *shell = create(&program, 0);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    assert_int_equal(raft_cuda_reserve(shell, sizeof v.weight, &weight), RAFT_OK);
    for (int i = 0; i < PIXELS * CLASSES; i++) v.weight[i] = 0;
    assert_int_equal(raft_cuda_upload(shell, weight, v.weight, sizeof v.weight), RAFT_OK);
    assert_int_equal(raft_shell_set_parameter(shell, parameters[0].name, parameters[0].shape,
                                              parameters[0].rank, weight),
                     RAFT_OK);
    float logits[CLASSES];
    assert_int_equal(raft_shell_forward(shell, 1, v.image, logits), RAFT_OK);
    expect_floats(logits, v.bias, CLASSES);
    raft_shell_destroy(shell);
    expect_nothing_left();
}

static void test_measured_on_gpu(void **state)
{
    Values v;
    float logits[CLASSES];
    double seconds[ARRAY_SIZE(steps)] = {0};
    (void)state;
    make_values(&v, 1);
    const RaftProgram program = cuda_table();
    RaftShell *shell = create_set(&program, &v);
    raft_shell_measure(shell, seconds, NULL);
    for (int run = 1; run <= 3; run++) {
        assert_int_equal(raft_shell_forward(shell, 1, v.image, logits), RAFT_OK);
        expect_floats(logits, v.logits, CLASSES);
        for (size_t s = 0; s < ARRAY_SIZE(steps); s++)
            assert_true(fabs(seconds[s] - (steps[s].entries & FORWARD ? 0.1 * run : 0)) < 1e-6);
    }
    raft_shell_destroy(shell);
    expect_nothing_left();
}

/* A program like those of training: its result, without a batch axis, is a sum over all images. */
static void kernel_total(float *const *argument, int64_t batch, int64_t begin, int64_t end,
                         void *scratch)
{
    (void)scratch;
    for (int64_t i = begin; i < end; i++) {
        argument[1][i] = 0;
        for (int64_t b = 0; b < batch; b++) argument[1][i] += argument[0][b * PIXELS + i];
    }
}

static const FakeKernel total_kernels[] = {{"total", kernel_total, 2, SCRATCH}};
static const FakeImage total_image = {"FAKECUDA", total_kernels, ARRAY_SIZE(total_kernels)};
static const RaftCudaImage total_images[] = {{90, &total_image, sizeof total_image}};
static const RaftCudaKernel total_launches[] = {{"total", 128, 0, 0, 1, 1, 0, 0}};
static const RaftCudaCode total_code = {1, total_images, NULL, total_launches};
static const RaftBuffer total_buffers[] = {{RAFT_BUFFER_INPUT, 0}, {RAFT_BUFFER_OUTPUT, 0}};
static const RaftStep total_steps[] = {
    {NULL, "total", PIXELS, 0, 1, 0, 1, FORWARD, ARGUMENTS(0, 1)},
};
static const RaftProgram total_table = {
    .device = &raft_cuda,
    .code = &total_code,
    .name = "total",
    .buffer_count = ARRAY_SIZE(total_buffers),
    .buffer = total_buffers,
    .step_count = ARRAY_SIZE(total_steps),
    .step = total_steps,
    .input_count = ARRAY_SIZE(inputs),
    .input = inputs,
    .output_count = 1,
    .output = &outputs[1],
    .fixed = (const int[]){1},
    .forward_entry = FORWARD,
    .arena_floats = 32 << 10,
    .chunk = CHUNK,
    .whole = 1,
};

static void test_whole_batch(void **state)
{
    float image[MOST_BATCH * PIXELS], total[PIXELS + GUARD], wanted[PIXELS] = {0};
    const float *input = image;
    float *const output = total;
    (void)state;
    for (int i = 0; i < MOST_BATCH * PIXELS; i++) image[i] = (float)(i % 7);
    for (int i = 0; i < CHUNK * PIXELS; i++) wanted[i % PIXELS] += image[i];
    RaftShell *shell = create(&total_table, 0);
    for (int again = 0; again < 3; again++) {
        for (int i = 0; i < PIXELS + GUARD; i++) total[i] = -1;
        assert_int_equal(raft_shell_run(shell, FORWARD, CHUNK, &input, &output), RAFT_OK);
        expect_floats(total, wanted, PIXELS);
        for (int i = PIXELS; i < PIXELS + GUARD; i++) assert_true(total[i] == -1);
    }
    assert_int_equal(raft_shell_run(shell, FORWARD, CHUNK + 1, &input, &output), RAFT_INVALID);
    raft_shell_destroy(shell);
    /* Where there is no memory for all images, it is not done in parts. */
    shell = create(&total_table, 0);
    fake_memory(fake_counts()->bytes + (size_t)total_table.arena_floats * sizeof(float) * 3 / 2);
    assert_int_equal(raft_shell_run(shell, FORWARD, CHUNK, &input, &output), RAFT_NO_MEMORY);
    fake_memory((size_t)1 << 32);
    raft_shell_destroy(shell);
    expect_nothing_left();
}

static void expect_refused(const RaftProgram *program, const RaftShellOptions *options,
                           RaftStatus expected, const char *expected_message)
{
    RaftShell *shell;
    char message[300] = "";
    assert_int_equal(raft_shell_create(program, options, &shell, message, sizeof message),
                     expected);
    assert_null(shell);
    assert_string_equal(message, expected_message);
    expect_nothing_left();
}

static void test_which_gpu(void **state)
{
    RaftProgram program = cuda_table();
    (void)state;
    fake_architecture(75);
    expect_refused(&program, NULL, RAFT_UNSUPPORTED,
                   "the model is compiled for sm_80, sm_90, sm_100; this GPU, Fake GPU, is sm_75: "
                   "compile it again with --gpu-arch sm_75");
    fake_architecture(89); /* runs what is made for sm_80, which here has no kernels */
    expect_refused(&program, NULL, RAFT_GPU_FAILED,
                   "the GPU failed: pack: an error (CUDA_ERROR, 500)");
    fake_architecture(90);
    const RaftShellOptions options = {.size = sizeof options, .device = 1};
    expect_refused(&program, &options, RAFT_INVALID,
                   "options: device is 1, not the number of one of 1 GPUs");
    RaftCudaKernel large[ARRAY_SIZE(cuda_steps)];
    memcpy(large, cuda_steps, sizeof large);
    large[0].shared_bytes = 300000;
    RaftCudaCode too_large = code;
    too_large.step = large;
    program.code = &too_large;
    expect_refused(&program, NULL, RAFT_UNSUPPORTED,
                   "a kernel wants 300000 bytes of shared memory; this GPU, Fake GPU, has 232448");
}

/* A caller's stream is neither made nor destroyed here. */
static void test_stream(void **state)
{
    Values v;
    (void)state;
    make_values(&v, 1);
    const RaftProgram program = cuda_table();
    const RaftShellOptions options = {.size = sizeof options, .stream = &v};
    RaftShell *shell;
    assert_int_equal(raft_shell_create(&program, &options, &shell, NULL, 0), RAFT_OK);
    assert_int_equal(fake_counts()->streams, 0);
    assert_int_equal(set_all(shell, &v), RAFT_OK);
    expect_run(shell, &v, 3);
    raft_shell_destroy(shell);
    expect_nothing_left();
}

/* Where the arena of a whole chunk does not fit, images go through in smaller ones. */
static void test_little_memory(void **state)
{
    Values v;
    (void)state;
    make_values(&v, 1);
    RaftProgram program = cuda_table();
    program.chunk = MOST_BATCH;
    program.arena_floats = 32 << 10;
    size_t image_bytes = (size_t)program.arena_floats * sizeof(float);
    RaftShell *shell = create_set(&program, &v);
    fake_memory(fake_counts()->bytes + 6 * image_bytes);
    fake_counts()->most_bytes = 0;
    expect_run(shell, &v, MOST_BATCH);
    assert_string_equal(raft_shell_error(shell), "");
    assert_true(fake_counts()->most_bytes > 3 * image_bytes);
    fake_memory(fake_counts()->bytes - 5 * image_bytes);
    float logits[MOST_BATCH * CLASSES];
    program.arena_floats *= 10; /* not even one */
    assert_int_equal(raft_shell_forward(shell, MOST_BATCH, v.image, logits), RAFT_NO_MEMORY);
    assert_string_equal(raft_shell_error(shell), "out of memory on the GPU: the arena");
    fake_memory((size_t)1 << 32);
    expect_run(shell, &v, MOST_BATCH);
    raft_shell_destroy(shell);
    expect_nothing_left();
}

/* The newest of the cubins that a GPU can run, whatever their order; else the message names them. */
static void test_which_cubin(void **state)
{
    static const struct {
        int gpu, cubin; /* cubin 0: there is none */
    } cases[] = {{75, 0},  {80, 80}, {86, 86},   {87, 86}, {89, 86}, {90, 90},
                 {91, 90}, {100, 0}, {103, 103}, {120, 0}, {70, 0}};
    FakeImage image[4];
    RaftCudaImage list[] = {{90, &image[0], sizeof *image},
                            {86, &image[1], sizeof *image},
                            {103, &image[2], sizeof *image},
                            {80, &image[3], sizeof *image}};
    const RaftCudaCode several = {ARRAY_SIZE(list), list, cuda_prepare, cuda_steps};
    RaftProgram program = cuda_table();
    (void)state;
    program.code = &several;
    for (size_t i = 0; i < ARRAY_SIZE(image); i++) image[i] = fake_image;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        char expected[200];
        fake_architecture(cases[i].gpu);
        if (cases[i].cubin == 0) {
            snprintf(
                expected, sizeof expected,
                "the model is compiled for sm_90, sm_86, sm_103, sm_80; this GPU, Fake GPU, is "
                "sm_%d: compile it again with --gpu-arch sm_%d",
                cases[i].gpu, cases[i].gpu);
            expect_refused(&program, NULL, RAFT_UNSUPPORTED, expected);
            continue;
        }
        int found = 0;
        raft_shell_destroy(create(&program, 0));
        for (size_t k = 0; k < ARRAY_SIZE(list); k++)
            if (list[k].data == fake_counts()->image) found = list[k].architecture;
        assert_int_equal(found, cases[i].cubin);
        expect_nothing_left();
    }
    fake_architecture(90);
}

/* ---- failures -------------------------------------------------------------------------------- */

typedef enum { NO_MEMORY_ONCE, FAILS_ONCE, IS_LOST, FAILURES } Failure;
enum { IMAGES = 4 };
static int calls_of_use; /* fake_counts()->calls when it began to give back what it had */

static void expect_message(Failure failure, RaftStatus status, const char *message)
{
    if (status == RAFT_NO_MEMORY)
        assert_memory_equal(message, "out of memory on the GPU: ", 26);
    else
        assert_non_null(strstr(message, ": an illegal memory access was encountered "
                                        "(CUDA_ERROR_ILLEGAL_ADDRESS, 700)"));
    assert_int_equal(status == RAFT_NO_MEMORY, failure == NO_MEMORY_ONCE);
}

/* All that an instance can be asked for: with tensors and a parameter on the host and on the GPU, one by
 * one, as graphs, and timed. */
static RaftStatus use_all(RaftShell *shell, const Values *v, float *logits)
{
    double seconds[ARRAY_SIZE(steps)] = {0};
    const RaftTensorInfo *info = &parameters[0];
    float *image, *weight, *result;
    RaftStatus status = set_all(shell, v);
    for (int run = 0; run < 3 && status == RAFT_OK; run++)
        status = raft_shell_forward(shell, IMAGES, v->image, logits);
    if (status == RAFT_OK) status = raft_cuda_reserve(shell, sizeof v->image, &image);
    if (status == RAFT_OK) status = raft_cuda_reserve(shell, sizeof v->weight, &weight);
    if (status == RAFT_OK)
        status = raft_cuda_reserve(shell, IMAGES * CLASSES * sizeof(float), &result);
    if (status == RAFT_OK) status = raft_cuda_upload(shell, image, v->image, sizeof v->image);
    if (status == RAFT_OK) status = raft_cuda_upload(shell, weight, v->weight, sizeof v->weight);
    if (status == RAFT_OK)
        status = raft_shell_set_parameter(shell, info->name, info->shape, info->rank, weight);
    for (int run = 0; run < 2 && status == RAFT_OK; run++)
        status = raft_shell_forward(shell, IMAGES, image, result);
    if (status != RAFT_OK) return status;
    raft_shell_measure(shell, seconds, NULL);
    status = raft_shell_forward(shell, IMAGES, v->image, logits);
    raft_shell_measure(shell, NULL, NULL);
    return status;
}

/* After a failure: with memory again the instance works as before; on a lost GPU it goes on to say so. */
static void use_again(RaftShell *shell, const Values *v, Failure failure)
{
    float logits[IMAGES * CLASSES];
    if (failure == NO_MEMORY_ONCE) {
        assert_int_equal(set_all(shell, v), RAFT_OK);
        assert_int_equal(raft_shell_forward(shell, IMAGES, v->image, logits), RAFT_OK);
        expect_floats(logits, v->logits, IMAGES * CLASSES);
    } else if (failure == IS_LOST) {
        assert_int_equal(set_all(shell, v), RAFT_GPU_FAILED);
        expect_message(failure, RAFT_GPU_FAILED, raft_shell_error(shell));
        RaftStatus status = raft_shell_forward(shell, IMAGES, v->image, logits);
        if (status == RAFT_NOT_READY) return; /* it was lost before all parameters were set */
        assert_int_equal(status, RAFT_GPU_FAILED);
        expect_message(failure, RAFT_GPU_FAILED, raft_shell_error(shell));
    }
}

static RaftStatus use_instance(const Values *v, Failure failure)
{
    const RaftProgram program = cuda_table();
    RaftShell *shell;
    char message[300] = "";
    float logits[IMAGES * CLASSES];
    RaftStatus status = raft_shell_create(&program, NULL, &shell, message, sizeof message);
    bool made = status == RAFT_OK;
    if (made) status = use_all(shell, v, logits);
    calls_of_use = fake_counts()->calls;
    if (failure != IS_LOST) fake_fail(-1, 0);
    if (status == RAFT_OK)
        expect_floats(logits, v->logits, IMAGES * CLASSES);
    else
        expect_message(failure, status, made ? raft_shell_error(shell) : message);
    if (made && status != RAFT_OK) use_again(shell, v, failure);
    raft_shell_destroy(shell);
    return status;
}

static RaftStatus measure_peak(const Values *v, Failure failure)
{
    double gflops, gbytes;
    char message[300] = "";
    (void)v;
    RaftStatus status = raft_cuda_peak(&(RaftCudaImage){90, "none", 5}, 0.05, &gflops, &gbytes,
                                       message, sizeof message);
    calls_of_use = fake_counts()->calls;
    if (failure != IS_LOST) fake_fail(-1, 0);
    if (status != RAFT_OK) expect_message(failure, status, message);
    return status;
}

/* Each call of the driver fails, for one of three reasons: status and message tell, and nothing is left
 * behind. */
static void expect_every_failure(RaftStatus (*use)(const Values *v, Failure failure))
{
    Values v;
    make_values(&v, 1);
    int start = fake_counts()->calls;
    assert_int_equal(use(&v, FAILS_ONCE), RAFT_OK);
    int calls = fake_counts()->calls - start;
    assert_true(calls > 30);
    for (Failure failure = 0; failure < FAILURES; failure++) {
        for (int n = 0; n < calls; n++) {
            start = fake_counts()->calls;
            if (failure == IS_LOST)
                fake_lose(n, ILLEGAL_ADDRESS);
            else
                fake_fail(n, failure == NO_MEMORY_ONCE ? RAFT_GPU_NO_MEMORY : ILLEGAL_ADDRESS);
            RaftStatus status = use(&v, failure);
            bool failed = calls_of_use - start > n;
            fake_fail(-1, 0);
            expect_nothing_left();
            if (!failed)
                assert_int_equal(status, RAFT_OK);
            else if (failure == NO_MEMORY_ONCE) /* an arena that does not fit is tried smaller */
                assert_true(status == RAFT_NO_MEMORY || status == RAFT_OK);
            else /* without cuInit there is no GPU */
                assert_int_equal(status, n == 0 ? RAFT_UNSUPPORTED : RAFT_GPU_FAILED);
        }
    }
}

static void test_every_failure(void **state)
{
    (void)state;
    expect_every_failure(use_instance);
}

static void test_every_failure_of_peak(void **state)
{
    (void)state;
    expect_every_failure(measure_peak);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_memory),
        cmocka_unit_test(test_gpu_memory),
        cmocka_unit_test(test_gpu_parameters),
        cmocka_unit_test(test_measured_on_gpu),
        cmocka_unit_test(test_which_gpu),
        cmocka_unit_test(test_stream),
        cmocka_unit_test(test_little_memory),
        cmocka_unit_test(test_which_cubin),
        cmocka_unit_test(test_whole_batch),
        cmocka_unit_test(test_every_failure),
        cmocka_unit_test(test_every_failure_of_peak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
