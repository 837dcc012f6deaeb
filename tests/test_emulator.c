/* test_emulator.c: the emulator of CUDA kernels finds planted faults; what it runs gives the same bits alone and in a batch. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "frontend/frontend.h"
#include "runtime/raft.h"
#include "runtime/shell.h"

enum { CLASSES = 40, BATCH = 3 };

typedef struct Example {
    int side;                /* of an image, which has 3 channels */
    const char *yaml, *file; /* the settings, or where they are */
} Example;

/* 288 lanes are 3 panels of 96, which go in pairs; 9 pixels are fewer than a tile has rows. */
static const Example ragged = {
    48,
    "pretrained_image_size: 48\n"
    "in_channels: 3\n"
    "token_mixing_type: ser_pm\n"
    "embedding_type: emb_cross_mlp\n"
    "layers:\n"
    "- {depth: 1, dim: 288, patch_size: 16, raft_size: 2, embedding_kernels: [16]}\n"
    "token_expansion_factor: 2\n"
    "channel_expansion_factor: 2\n"
    "shortcut: false\n"
    "num_classes: 40\n",
    NULL};

/* A slab of the embedding for one unit has 14 x 3 numbers of the image, and then come the weights,
 * four at a time. */
static const Example odd_slabs = {56,
                                  "pretrained_image_size: 56\n"
                                  "in_channels: 3\n"
                                  "token_mixing_type: ser_pm\n"
                                  "embedding_type: emb_mixer\n"
                                  "layers:\n"
                                  "- {depth: 1, dim: 96, patch_size: 4, raft_size: 2}\n"
                                  "token_expansion_factor: 1\n"
                                  "channel_expansion_factor: 1\n"
                                  "num_classes: 40\n",
                                  NULL};

/* Sums have spans, which a block for few images joins, and another leaves where the result goes. */
static const Example long_sums = {56, .file = TEST_DATA "/cuda/spans.yaml"};

typedef struct Kernels {
    Arena arena;
    Diag diag;
    Plan *plan;
    CudaSource *source;
} Kernels;

static void make_kernels(Kernels *k, Graph *graph)
{
    Target target;
    cuda_target(&target);
    const PipelineOptions options = {.rewrite_limit = INT64_MAX};
    graph = pipeline_run(&k->arena, graph, &target, &options, &k->diag, NULL);
    assert_non_null(graph);
    k->plan = plan_memory(&k->arena, graph);
    k->source = cuda_emit(&k->arena, k->plan, &k->diag);
    assert_non_null(k->source);
}

static void make_model(Kernels *k, const Example *example)
{
    *k = (Kernels){0};
    k->diag = diag_new(&k->arena);
    const Source *source =
        example->file
            ? diag_read_source(&k->diag, example->file, SETTINGS_MAX_SIZE)
            : diag_add_source(&k->diag, "model.yaml", example->yaml, strlen(example->yaml));
    assert_non_null(source);
    Settings *settings = settings_parse(&k->arena, source, NULL, 0, &k->diag);
    assert_non_null(settings);
    Model *model = model_resolve(&k->arena, settings, NULL, example->side, example->side, &k->diag);
    assert_non_null(model);
    make_kernels(k, build_graph(&k->arena, model));
}

/* The kernels of one small axis block: statistics, a map, and two products. */
static void make_axis(Kernels *k)
{
    *k = (Kernels){0};
    k->diag = diag_new(&k->arena);
    const Source *source = diag_read_source(&k->diag, TEST_DATA "/cuda/axis.ir", 1 << 20);
    assert_non_null(source);
    Graph *graph = graph_parse(&k->arena, source, &k->diag);
    assert_non_null(graph);
    make_kernels(k, graph);
}

/* `result`: of the output that is named so. */
static void run(const RaftProgram *program, int64_t batch, const float *input, const char *name,
                float *result)
{
    char message[256];
    RaftShell *shell;
    float *outputs[8] = {0};
    assert_int_equal(raft_shell_create(program, NULL, &shell, message, sizeof message), RAFT_OK);
    for (int i = 0; i < program->parameter_count; i++) {
        const RaftTensorInfo *info = &program->parameter[i];
        float *data = calloc((size_t)info->elements, sizeof *data);
        raft_fill_parameter(info->name, info->rank, info->shape, data);
        assert_int_equal(raft_shell_set_parameter(shell, info->name, info->shape, info->rank, data),
                         RAFT_OK);
        free(data);
    }
    for (int i = 0; i < program->output_count; i++)
        if (strcmp(program->output[i].name, name) == 0) outputs[i] = result;
    assert_int_equal(raft_shell_run(shell, program->forward_entry, batch, &input, outputs),
                     RAFT_OK);
    raft_shell_destroy(shell);
}

/* One image takes the fine shape of the kernels, three the other. `text`: which is to be in them. */
static void check_same_bits(const Example *example, const char *text)
{
    const int image = 3 * example->side * example->side;
    Kernels k;
    make_model(&k, example);
    bool fine = false;
    for (int i = 0; i < k.source->kernel_count; i++) fine |= k.source->kernels[i].fine > 0;
    assert_true(fine);
    assert_non_null(strstr(k.source->text, text));
    CudaEmulation *emulation = cuda_emulate(&k.arena, k.plan, k.source, &k.diag);
    assert_non_null(emulation);
    float *input = calloc((size_t)(BATCH * image), sizeof *input);
    float together[BATCH][CLASSES], alone[CLASSES];
    raft_fill_input(BATCH * image, input);
    run(emulation->program, BATCH, input, "logits", together[0]);
    for (int b = 0; b < BATCH; b++) {
        run(emulation->program, 1, input + b * image, "logits", alone);
        assert_memory_equal(alone, together[b], sizeof alone);
    }
    assert_true(cuda_emulation_check(emulation, &k.diag));
    free(input);
    cuda_emulation_free(emulation);
    arena_free(&k.arena);
}

static void test_same_bits(void **state)
{
    (void)state;
    check_same_bits(&ragged, "");
}

static void test_odd_slabs(void **state)
{
    (void)state;
    check_same_bits(&odd_slabs, "");
}

static void test_long_sums(void **state)
{
    (void)state;
    check_same_bits(&long_sums, "if (span == 0)");
}

/* The text with the first `what` replaced that comes in the usual shape of the kernel `from`, after that for few images. */
static const char *plant(Arena *arena, const char *text, const char *from, const char *what,
                         const char *with)
{
    const char *kernel = strstr(text, from);
    assert_non_null(kernel);
    const char *start = strstr(kernel, "return;");
    assert_non_null(start);
    const char *at = strstr(start, what);
    assert_non_null(at);
    return arena_printf(arena, "%.*s%s%s", (int)(at - text), text, with, at + strlen(what));
}

/* A fault of the kernel of the axis block. */
static void expect_fault(const char *what, const char *with, const char *expected)
{
    Kernels k;
    make_axis(&k);
    k.source->text = plant(&k.arena, k.source->text, "axis_k2_", what, with);
    CudaEmulation *emulation = cuda_emulate(&k.arena, k.plan, k.source, &k.diag);
    assert_non_null(emulation);
    const int64_t elements = emulation->program->input[0].elements;
    enum { IMAGES = 2 };
    float *input = calloc((size_t)elements * IMAGES, sizeof *input);
    float *result = calloc((size_t)elements * IMAGES, sizeof *result);
    raft_fill_input(elements * IMAGES, input);
    run(emulation->program, IMAGES, input, "y", result);
    assert_false(cuda_emulation_check(emulation, &k.diag));
    char *said = NULL;
    size_t size;
    FILE *file = open_memstream(&said, &size);
    diag_print(&k.diag, file);
    fclose(file);
    int block, thread;
    const char *named = strstr(said, ": error: kernel axis_k2_norm_linear_gelu_linear_add, block ");
    if (!strstr(said, expected) || !named ||
        sscanf(named, ": error: kernel %*s block %d, thread %d: ", &block, &thread) != 2)
        fail_msg("wanted '%s', not '%s'", expected, said);
    free(said);
    free(input);
    free(result);
    cuda_emulation_free(emulation);
    arena_free(&k.arena);
}

static void test_outside(void **state)
{
    (void)state;
    expect_fault("rows_from[turn] = ", "rows_from[turn] = 10000000 + ",
                 "reads a3[10000000], outside a3[0 .. 511]");
    expect_fault("kept[i] = a0[", "kept[i] = a0[-1 - ", "reads a0[-1], outside a0[0 .. 3071]");
    expect_fault(" = mean;", "= 0.0f; unit[1000000] = mean;",
                 "writes scratch[1000000], outside scratch[0 .. ");
    expect_fault(" a7[", " a7[10000000 + ", "writes a7[10000");
}

static void test_not_aligned(void **state)
{
    (void)state;
    expect_fault("raft_load<2>(&y[j][0], unit, ", "raft_load<2>(&y[j][0], unit, 1 + ",
                 "takes 2 floats at once from scratch[33], which are not aligned");
    expect_fault("raft_copy<4>(to, e * 4 ", "raft_copy<4>(to, e * 4 + 1 ",
                 "takes 4 floats at once from scratch[");
    expect_fault("a5, rows_from[turn]", "a5, 1 + rows_from[turn]",
                 "takes 4 floats at once from a5[1], which are not aligned");
}

static void test_not_written(void **state)
{
    (void)state;
    expect_fault(" = mean;", ";", "reads scratch[0], which no thread has written");
    expect_fault("raft_copies_wait<0>();", "", "is still to bring");
}

static void test_races(void **state)
{
    (void)state;
    expect_fault("float sum = 0.0f, square = 0.0f;",
                 "float sum = 0.0f, square = 0.0f; if (threadIdx.x == 0) unit[0] = 0.0f;"
                 "if (threadIdx.x == 1) sum += unit[0];",
                 "thread 1: reads scratch[0], which thread 0 writes with no barrier between");
    expect_fault("if (lane == 0)", "if (lane < 2)",
                 "thread 1: writes scratch[0], which thread 0 writes too with no barrier between");
    /* All threads of the first row have read the mean when the last of them writes it. */
    expect_fault("= v0;", "= v0; if (threadIdx.x == 31) unit[0] = v0;",
                 "thread 31: writes scratch[0], which other threads read with no barrier between");
    expect_fault("raft_load<2>(&y[j][0], unit, ",
                 "if (thread == 1) unit[32] = 1.0f; raft_load<2>(&y[j][0], unit, ",
                 "thread 1: writes scratch[32], which thread 0 reads with no barrier between");
}

static void test_divergence(void **state)
{
    (void)state;
    expect_fault("const int each", "if (threadIdx.x < 32) raft_barrier(); const int each",
                 "raft_barrier is not reached by thread 32, which waits at line ");
    expect_fault("raft_warp_sum(sum)", "(lane < 16 ? raft_warp_sum(sum) : 0.0f)",
                 "raft_warp_sum is not reached by thread 16, which waits at line ");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),   cmocka_unit_test(test_odd_slabs),
        cmocka_unit_test(test_long_sums),   cmocka_unit_test(test_outside),
        cmocka_unit_test(test_not_aligned), cmocka_unit_test(test_not_written),
        cmocka_unit_test(test_races),       cmocka_unit_test(test_divergence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
