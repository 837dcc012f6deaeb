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
    int side; /* of an image, which has 3 channels */
    const char *yaml;
} Example;

/* 288 lanes are 3 panels of 96, which go in pairs; 9 pixels are fewer than a tile has rows. */
static const Example ragged = {
    48, "pretrained_image_size: 48\n"
        "in_channels: 3\n"
        "token_mixing_type: ser_pm\n"
        "embedding_type: emb_cross_mlp\n"
        "layers:\n"
        "- {depth: 1, dim: 288, patch_size: 16, raft_size: 2, embedding_kernels: [16]}\n"
        "token_expansion_factor: 2\n"
        "channel_expansion_factor: 2\n"
        "shortcut: false\n"
        "num_classes: 40\n"};

/* A slab of the embedding for one unit has 14 x 3 numbers of the image, and then come the weights,
 * four at a time. */
static const Example odd_slabs = {56, "pretrained_image_size: 56\n"
                                      "in_channels: 3\n"
                                      "token_mixing_type: ser_pm\n"
                                      "embedding_type: emb_mixer\n"
                                      "layers:\n"
                                      "- {depth: 1, dim: 96, patch_size: 4, raft_size: 2}\n"
                                      "token_expansion_factor: 1\n"
                                      "channel_expansion_factor: 1\n"
                                      "num_classes: 40\n"};

typedef struct Kernels {
    Arena arena;
    Diag diag;
    Plan *plan;
    CudaSource *source;
} Kernels;

static void make_kernels(Kernels *k, const Example *example)
{
    *k = (Kernels){0};
    k->diag = diag_new(&k->arena);
    const Source *source =
        diag_add_source(&k->diag, "model.yaml", example->yaml, strlen(example->yaml));
    Settings *settings = settings_parse(&k->arena, source, NULL, 0, &k->diag);
    assert_non_null(settings);
    Model *model = model_resolve(&k->arena, settings, NULL, example->side, example->side, &k->diag);
    assert_non_null(model);
    Target target;
    cuda_target(&target);
    const PipelineOptions options = {.rewrite_limit = INT64_MAX};
    Graph *graph =
        pipeline_run(&k->arena, build_graph(&k->arena, model), &target, &options, &k->diag, NULL);
    assert_non_null(graph);
    k->plan = plan_memory(&k->arena, graph);
    k->source = cuda_emit(&k->arena, k->plan, &k->diag);
    assert_non_null(k->source);
}

static void run(const RaftProgram *program, int64_t batch, const float *input, float *logits)
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
        if (strcmp(program->output[i].name, "logits") == 0) outputs[i] = logits;
    assert_int_equal(raft_shell_run(shell, program->forward_entry, batch, &input, outputs),
                     RAFT_OK);
    raft_shell_destroy(shell);
}

/* One image takes the fine shape of the kernels, three the other. */
static void check_same_bits(const Example *example)
{
    const int image = 3 * example->side * example->side;
    Kernels k;
    make_kernels(&k, example);
    bool fine = false;
    for (int i = 0; i < k.source->kernel_count; i++) fine |= k.source->kernels[i].fine > 0;
    assert_true(fine);
    CudaEmulation *emulation = cuda_emulate(&k.arena, k.plan, k.source, &k.diag);
    assert_non_null(emulation);
    float *input = calloc((size_t)(BATCH * image), sizeof *input);
    float together[BATCH][CLASSES], alone[CLASSES];
    raft_fill_input(BATCH * image, input);
    run(emulation->program, BATCH, input, together[0]);
    for (int b = 0; b < BATCH; b++) {
        run(emulation->program, 1, input + b * image, alone);
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
    check_same_bits(&ragged);
}

static void test_odd_slabs(void **state)
{
    (void)state;
    check_same_bits(&odd_slabs);
}

/* The text with the first `what` that comes after `from` replaced. */
static const char *plant(Arena *arena, const char *text, const char *from, const char *what,
                         const char *with)
{
    const char *start = strstr(text, from);
    assert_non_null(start);
    const char *at = strstr(start, what);
    assert_non_null(at);
    return arena_printf(arena, "%.*s%s%s", (int)(at - text), text, with, at + strlen(what));
}

static void expect_fault(const char *from, const char *what, const char *with, const char *expected)
{
    Kernels k;
    make_kernels(&k, &ragged);
    k.source->text = plant(&k.arena, k.source->text, from, what, with);
    CudaEmulation *emulation = cuda_emulate(&k.arena, k.plan, k.source, &k.diag);
    assert_non_null(emulation);
    const int image = 3 * ragged.side * ragged.side;
    float *input = calloc((size_t)image, sizeof *input), logits[CLASSES];
    raft_fill_input(image, input);
    run(emulation->program, 1, input, logits);
    assert_false(cuda_emulation_check(emulation, &k.diag));
    char *said = NULL;
    size_t size;
    FILE *file = open_memstream(&said, &size);
    diag_print(&k.diag, file);
    fclose(file);
    if (!strstr(said, expected) || !strstr(said, ", thread "))
        fail_msg("wanted '%s', not '%s'", expected, said);
    free(said);
    free(input);
    cuda_emulation_free(emulation);
    arena_free(&k.arena);
}

/* The kernels of the axes have statistics, maps and products that read scratch. */
static const char axis[] = "_norm_linear_gelu_linear_add(";

static void test_outside(void **state)
{
    (void)state;
    expect_fault(axis, "rows_from[turn] = ", "rows_from[turn] = 10000000 + ", ", outside a");
    expect_fault(axis, " = mean;", "= 0.0f; unit[1000000] = mean;", ", outside scratch");
}

static void test_not_written(void **state)
{
    (void)state;
    expect_fault(axis, " = mean;", ";", "which no thread has written");
    expect_fault(axis, "raft_copies_wait<0>();", "", "is still to bring");
}

static void test_races(void **state)
{
    (void)state;
    expect_fault(axis, "float sum = 0.0f, square = 0.0f;",
                 "float sum = 0.0f, square = 0.0f; if (threadIdx.x == 0) unit[0] = 0.0f;"
                 "if (threadIdx.x == 1) sum += unit[0];",
                 "which thread 0 writes with no barrier between");
    expect_fault(axis, "if (lane == 0)", "if (lane < 2)",
                 "which thread 0 writes too with no barrier between");
}

static void test_divergence(void **state)
{
    (void)state;
    expect_fault(axis, "const int each", "if (threadIdx.x < 32) raft_barrier(); const int each",
                 "raft_barrier is not reached by thread");
    expect_fault(axis, "raft_warp_sum(sum)", "(lane < 16 ? raft_warp_sum(sum) : 0.0f)",
                 "raft_warp_sum is not reached by thread");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_odd_slabs),
        cmocka_unit_test(test_outside),   cmocka_unit_test(test_not_written),
        cmocka_unit_test(test_races),     cmocka_unit_test(test_divergence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
