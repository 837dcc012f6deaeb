/* test_sums.c: which graphs can be run part by part of a batch, their sums added up, and how many images a
 * part has (backends/sums.c). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"

typedef struct Case {
    bool adds_up;
    const char *lines; /* after the declarations */
} Case;

static const Case cases[] = {
    {true, "output forward.g = %0\n"},
    {true, "%1 = linear @x, @x over (b) : f32[c 8]\noutput forward.g = %1\n"},
    {true, "%1 = scale %0 by 2 : f32[c 8]\n%2 = add %1, %0 : f32[c 8]\n"
           "%3 = mul %2, @v : f32[c 8]\noutput forward.g = %3\n"},
    {true, "%1 = linear %0, @w over (c) : f32[d 4]\noutput forward.g = %1\n"},
    {true, "%1 = div %0, @v : f32[c 8]\noutput forward.g = %1\n"},
    {true, "%1 = mul @x, @v : f32[b, c 8]\noutput forward.g = %1\n"},
    {false, "%1 = sqrt %0 : f32[c 8]\noutput forward.g = %1\n"},
    {false, "%1 = mul %0, %0 : f32[c 8]\noutput forward.g = %1\n"},
    {false, "%1 = add %0, @v : f32[c 8]\noutput forward.g = %1\n"},
    {false, "%1 = div @v, %0 : f32[c 8]\noutput forward.g = %1\n"},
    {false, "%1 = linear %0, @w, @bias over (c) : f32[d 4]\noutput forward.g = %1\n"},
    {false, "%1 = mul @x, %0 : f32[b, c 8]\noutput forward.g = %1\n"},
};

static const Graph *read_graph(Arena *arena, const char *lines, long long extent)
{
    const char *text = arena_printf(arena,
                                    "graph g {\n  input @x : f32[b, c 8]\n"
                                    "  param @v stored [8] : f32[c 8]\n"
                                    "  param @w stored [4, 8] : f32[d 4, c 8]\n"
                                    "  param @bias stored [4] : f32[d 4]\n"
                                    "  param @u stored [%lld, 8] : f32[n %lld, c 8]\n"
                                    "  %%0 = sum @x over (b) : f32[c 8]\n%s}\n",
                                    extent, extent, lines);
    Diag diag = diag_new(arena);
    const Source *source = diag_add_source(&diag, "g.ir", text, strlen(text));
    const Graph *graph = graph_parse(arena, source, &diag);
    if (!graph) fail_msg("%s", text);
    return graph;
}

static void test_adds_up(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        Arena arena = {0};
        const Graph *graph = read_graph(&arena, cases[i].lines, 1);
        if (program_adds_up(&arena, graph) != cases[i].adds_up)
            fail_msg("not %s: %s", cases[i].adds_up ? "added up" : "refused", cases[i].lines);
        arena_free(&arena);
    }
}

/* The greatest value of an image decides. */
static void test_part(void **state)
{
    static const struct {
        int64_t images, extent;
    } parts[] = {{PROGRAM_MOST_AT_ONCE, 16}, {512, 1 << 10}, {8, 1 << 16}, {4, 1 << 20}};
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
        Arena arena = {0};
        const char *lines = arena_printf(&arena,
                                         "%%1 = linear @x, @u over (c) : f32[b, n %lld]\n"
                                         "output forward.y = %%1\n",
                                         (long long)parts[i].extent);
        assert_int_equal(program_part(read_graph(&arena, lines, parts[i].extent)), parts[i].images);
        arena_free(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_adds_up), cmocka_unit_test(test_part)};
    return cmocka_run_group_tests_name("sums", tests, NULL, NULL);
}
