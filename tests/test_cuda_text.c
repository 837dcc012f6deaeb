/* test_cuda_text.c: the CUDA text of the kernels of a small graph, byte for byte: cuda/axis.ir gives cuda/axis.cu (but for
 * the prelude, which all texts share). With UPDATE_WANT=1 in the environment that file is written instead, to be read
 * before it is committed. And what takes unused names out of such a text. */
#include "backends/cuda/emit.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char folder[] = TEST_DATA "/cuda/";

static const char *emit(Arena *arena, Diag *diag, const char *name)
{
    const Source *source =
        diag_read_source(diag, arena_printf(arena, "%s%s.ir", folder, name), 1 << 20);
    assert_non_null(source);
    Graph *graph = graph_parse(arena, source, diag);
    assert_non_null(graph);
    Target target;
    cuda_target(&target);
    const PipelineOptions options = {.rewrite_limit = INT64_MAX};
    graph = pipeline_run(arena, graph, &target, &options, diag, NULL);
    assert_non_null(graph);
    CudaSource *made = cuda_emit(arena, plan_memory(arena, graph), diag);
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
    const char *got = emit(&arena, &diag, "axis"), *update = getenv("UPDATE_WANT");
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
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_axis), cmocka_unit_test(test_tidy)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
