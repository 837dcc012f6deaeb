/* test_cuda_text.c: the CUDA text of the kernels of a small graph, byte for byte: cuda/axis.ir gives cuda/axis.cu (but for
 * the prelude, which all texts share). With UPDATE_WANT=1 in the environment that file is written instead, to be read
 * before it is committed. And what takes unused names out of such a text. */
#include "backends/cuda/emit.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char folder[] = TEST_DATA "/cuda/";

static Plan *make_plan(Arena *arena, Diag *diag, const Source *source)
{
    assert_non_null(source);
    Graph *graph = graph_parse(arena, source, diag);
    assert_non_null(graph);
    Target target;
    cuda_target(&target);
    const PipelineOptions options = {.rewrite_limit = INT64_MAX};
    graph = pipeline_run(arena, graph, &target, &options, diag, NULL);
    assert_non_null(graph);
    return plan_memory(arena, graph);
}

static const char *emit(Arena *arena, Diag *diag, const Plan *plan)
{
    CudaSource *made = cuda_emit(arena, plan, diag);
    assert_non_null(made);
    const char *kernels = strstr(made->text, "// kernel for (");
    assert_non_null(kernels);
    return kernels;
}

static void test_axis(void **state)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    (void)state;
    const Source *block =
        diag_read_source(&diag, arena_printf(&arena, "%saxis.ir", folder), 1 << 20);
    const char *got = emit(&arena, &diag, make_plan(&arena, &diag, block));
    const char *update = getenv("UPDATE_WANT");
    const char *path = arena_printf(&arena, "%saxis.cu", folder);
    if (update && strcmp(update, "1") == 0) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(got, file);
        assert_int_equal(fclose(file), 0);
    }
    const Source *want = diag_read_source(&diag, path, 1 << 20);
    assert_non_null(want);
    assert_string_equal(got, want->text);
    arena_free(&arena);
}

static const Plan *plan_text(Arena *arena, Diag *diag, const char *text)
{
    return make_plan(arena, diag, diag_add_source(diag, "text.ir", text, strlen(text)));
}

/* Where results depend on all images there are no more at a time than an int can count the elements of. */
static void test_indices(void **state)
{
    static const char text[] = "graph total {\n"
                               "  input @x : f32[b, n 2097152]\n"
                               "  %0 = sum @x over (b) : f32[n 2097152]\n"
                               "  output forward.y = %0\n"
                               "}\n";
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    (void)state;
    const Plan *plan = plan_text(&arena, &diag, text);
    assert_int_equal(cuda_chunk(plan), 512);
    const char *kernel = emit(&arena, &diag, plan);
    assert_non_null(strstr(kernel, "for (int k_b = 0; k_b < batch; k_b++)"));
    assert_non_null(strstr(kernel, "for (int part = "));
    arena_free(&arena);
}

/* What a window of a convolution gets for a gradient, and its weights: threads have channels for lanes, not the four
 * taps that are written last. */
static void test_windows(void **state)
{
    static const char text[] =
        "graph window {\n"
        "  input @x : f32[b, y 16, x 16, i 64]\n"
        "  input @dy : f32[b, h 8, w 8, c 32]\n"
        "  param @w stored [32, 1024] : f32[c 32, i 64, ky 4, kx 4]\n"
        "  %0 = unfold @x y -> (h, ky 4) stride 2 pad 1, x -> (w, kx 4) stride 2 pad 1"
        " : f32[b, h 8, w 8, i 64, ky 4, kx 4]\n"
        "  %1 = linear @dy, %0 over (b, h, w) : f32[c 32, i 64, ky 4, kx 4]\n"
        "  %2 = linear @dy, @w over (c) : f32[b, h 8, w 8, i 64, ky 4, kx 4]\n"
        "  %3 = read %2 [b, q - j, w, i, r + j*2, kx] : f32[b, q 9, r 2, w 8, kx 4, i 64, j 2]\n"
        "  %4 = sum %3 over (j) : f32[b, q 9, r 2, w 8, kx 4, i 64]\n"
        "  output backward.w = %1\n"
        "  output backward.x = %4\n"
        "}\n";
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    (void)state;
    const char *kernels = emit(&arena, &diag, plan_text(&arena, &diag, text));
    assert_non_null(
        strstr(kernels, "// kernel for (b, c 32 by 32, i 64 by 64, ky 4 by 1, kx 4 by 1)"));
    assert_non_null(
        strstr(kernels, "// kernel for (b, h 8 by 1, w 8 by 8, i 64 by 64, ky 4 by 4, kx 4 by 4)"));
    arena_free(&arena);
}

/* An index of packed lanes: u * 32 + c * 4 + 3 with c below 8, in panels of 64. */
static void test_sums(void **state)
{
    Arena arena = {0};
    Writer w = {.arena = &arena};
    (void)state;
    Sum c = sum_term("c", 4, 8), at = sum_add(&w, sum_term("u", 32, 0), &c, 1);
    at.constant = 3;
    Sum panel = sum_divide(&w, &at, 64), lane = sum_modulo(&w, &at, 64);
    assert_string_equal(sum_text(&w, &panel), "(u / 2)");
    assert_string_equal(sum_text(&w, &lane), "(u % 2) * 32 + c * 4 + 3");
    panel = sum_divide(&w, &at, 32);
    lane = sum_modulo(&w, &at, 32);
    assert_string_equal(sum_text(&w, &panel), "u");
    assert_string_equal(sum_text(&w, &lane), "c * 4 + 3");
    panel = sum_divide(&w, &at, 5);
    lane = sum_modulo(&w, &at, 5);
    assert_string_equal(sum_text(&w, &panel), "((u * 32 + c * 4 + 3) / 5)");
    assert_string_equal(sum_text(&w, &lane), "((u * 32 + c * 4 + 3) % 5)");
    arena_free(&arena);
}

static void test_tidy(void **state)
{
    static const char text[] = "{\n"
                               "  const int a = 1;\n"
                               "  const int b = a;\n" /* nothing but an unused name uses it */
                               "  const int c = 2;\n"
                               "  const int ab = 3;\n" /* is not a, nor b */
                               "  {\n"
                               "    const int c = ab;\n" /* another c */
                               "    use(c);\n"
                               "  }\n"
                               "  {\n"
                               "    const long long d = 4;\n"
                               "    if (d) {\n"
                               "      use(1);\n"
                               "    }\n"
                               "  }\n"
                               "  const int d = 5;\n"
                               "}\n";
    static const char want[] = "{\n"
                               "  const int ab = 3;\n"
                               "  {\n"
                               "    const int c = ab;\n"
                               "    use(c);\n"
                               "  }\n"
                               "  {\n"
                               "    const long long d = 4;\n"
                               "    if (d) {\n"
                               "      use(1);\n"
                               "    }\n"
                               "  }\n"
                               "}\n";
    Arena arena = {0};
    (void)state;
    assert_string_equal(tidy(&arena, text), want);
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_axis), cmocka_unit_test(test_indices),
                                       cmocka_unit_test(test_windows), cmocka_unit_test(test_sums),
                                       cmocka_unit_test(test_tidy)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
