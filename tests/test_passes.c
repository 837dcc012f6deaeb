/* test_passes.c: each pass alone, on small graphs as text.
 *
 * tests/passes/PASS/CASE.ir goes through PASS and nothing else; what comes out, printed, and below
 * it a comment for each remark, is CASE.want, byte for byte. Every case must moreover give the same
 * numbers before and after, change nothing when the pass may not rewrite, and nothing more when it
 * runs again. With UPDATE_WANT=1 in the environment the .want files are written instead, to be read
 * by whoever did so.
 */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "runtime/raft.h"

enum { LEAST_CASES = 4, BATCH = 2 };

static const Target target = {.vector_floats = 16,
                              .vector_registers = 32,
                              .fma = true,
                              .l1_bytes = 32 << 10,
                              .l2_bytes = 1 << 20,
                              .packs_weights = true};

/* One text and the pass that it is for. */
typedef struct Case {
    Arena *arena;
    const PassInfo *pass;
    const char *name; /* share/equal */
    const Graph *graph;
} Case;

typedef void CheckCase(const Case *c);

/* ---- files ---------------------------------------------------------------------------------- */

static const char *path_of(const Case *c, const char *extension)
{
    return arena_printf(c->arena, "%s/passes/%s%s", TEST_DATA, c->name, extension);
}

static int is_ir(const struct dirent *entry)
{
    const char *dot = strrchr(entry->d_name, '.');
    return dot && strcmp(dot, ".ir") == 0;
}

static int is_want(const struct dirent *entry)
{
    const char *dot = strrchr(entry->d_name, '.');
    return dot && strcmp(dot, ".want") == 0;
}

static int is_folder(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static _Noreturn void fail_with(const char *name, Arena *arena, const Diag *diag)
{
    char *printed = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&printed, &size);
    assert_non_null(file);
    diag_print(diag, file);
    fclose(file);
    const char *text = arena_strndup(arena, printed, size);
    free(printed);
    fail_msg("%s: %s", name, text);
    abort();
}

static void load(Case *c)
{
    Diag diag = diag_new(c->arena);
    const Source *source = diag_read_source(&diag, path_of(c, ".ir"), 1 << 16);
    c->graph = source ? graph_parse(c->arena, source, &diag) : NULL;
    if (!c->graph) fail_with(c->name, c->arena, &diag);
}

/* Calls `check` for each case of each pass. */
static void for_each_case(CheckCase *check)
{
    for (int i = 0; i < pass_count; i++) {
        struct dirent **entries;
        char folder[4096];
        snprintf(folder, sizeof folder, "%s/passes/%s", TEST_DATA, pass_table[i].name);
        int count = scandir(folder, &entries, is_ir, alphasort);
        if (count < LEAST_CASES) fail_msg("%s has %d cases", folder, count);
        for (int k = 0; k < count; k++) {
            Arena arena = {0};
            const char *file = entries[k]->d_name;
            Case c = {&arena, &pass_table[i], NULL, NULL};
            c.name = arena_printf(&arena, "%s/%.*s", c.pass->name, (int)strlen(file) - 3, file);
            load(&c);
            check(&c);
            arena_free(&arena);
            free(entries[k]);
        }
        free(entries);
    }
}

/* ---- running -------------------------------------------------------------------------------- */

typedef struct Outcome {
    const Graph *graph;
    Diag diag;
    int64_t rewrites;
} Outcome;

/* One pass does something for machines with many threads only. */
static Target target_of(const PassInfo *pass)
{
    Target own = target;
    own.stages_operands = strcmp(pass->name, "split_sums") == 0;
    return own;
}

static Outcome run_pass(const Case *c, const Graph *graph, int64_t limit)
{
    const Target own = target_of(c->pass);
    Outcome outcome = {.diag = diag_new(c->arena)};
    PassStatistics *statistics = arena_array(c->arena, (size_t)pass_count, sizeof *statistics);
    const PipelineOptions options = {
        .only = c->pass->name, .rewrite_limit = limit, .recompute = INT64_MAX};
    outcome.graph = pipeline_run(c->arena, graph, &own, &options, &outcome.diag, statistics);
    if (!outcome.graph) fail_with(c->name, c->arena, &outcome.diag);
    outcome.rewrites = statistics[c->pass - pass_table].rewrites;
    return outcome;
}

static const char *print(const Case *c, const Graph *graph)
{
    Text text = text_new(c->arena);
    graph_print(graph, &text);
    return text.data;
}

/* The graph, then each remark with its place in the .ir. */
static const char *print_outcome(const Case *c, const Outcome *outcome)
{
    Text text = text_new(c->arena);
    graph_print(outcome->graph, &text);
    for (uint32_t i = 0; i < outcome->diag.count; i++) {
        const Message *m = &outcome->diag.messages[i];
        assert_int_equal(m->kind, MESSAGE_REMARK);
        text_printf(&text, "# %u:%u: %s\n", m->loc.line, m->loc.column, m->text);
    }
    return text.data;
}

/* ---- tests ---------------------------------------------------------------------------------- */

static void write_want(const Case *c, const char *text)
{
    const char *path = path_of(c, ".want");
    FILE *file = fopen(path, "w");
    if (!file || fputs(text, file) < 0 || fclose(file) != 0)
        fail_msg("%s: %s", path, strerror(errno));
    print_message("UPDATE_WANT: wrote %s\n", path);
}

static void check_want(const Case *c)
{
    Outcome outcome = run_pass(c, c->graph, INT64_MAX);
    const char *got = print_outcome(c, &outcome);
    const char *update = getenv("UPDATE_WANT");
    if (update && strcmp(update, "1") == 0) {
        write_want(c, got);
        return;
    }
    Diag diag = diag_new(c->arena);
    const Source *want = diag_read_source(&diag, path_of(c, ".want"), 1 << 16);
    if (!want) fail_with(c->name, c->arena, &diag);
    if (strcmp(got, want->text) != 0)
        fail_msg("%s.ir gives\n%s\nbut %s.want has\n%s", c->name, got, c->name, want->text);
}

static void test_want(void **state)
{
    (void)state;
    for_each_case(check_want);
}

/* Each folder is a pass, and each .want is of an .ir. */
static void test_cases(void **state)
{
    (void)state;
    struct dirent **folders;
    int count = scandir(TEST_DATA "/passes", &folders, is_folder, alphasort);
    assert_int_equal(count, pass_count);
    for (int i = 0; i < count; i++) {
        int pass = 0;
        while (pass < pass_count && strcmp(pass_table[pass].name, folders[i]->d_name) != 0) pass++;
        if (pass == pass_count) fail_msg("%s is no pass", folders[i]->d_name);
        char folder[4096];
        snprintf(folder, sizeof folder, "%s/passes/%s", TEST_DATA, folders[i]->d_name);
        struct dirent **texts, **wants;
        int text_count = scandir(folder, &texts, is_ir, alphasort);
        int want_count = scandir(folder, &wants, is_want, alphasort);
        if (text_count != want_count)
            fail_msg("%s: %d .ir, %d .want", folder, text_count, want_count);
        for (int k = 0; k < text_count; k++) {
            size_t stem = strlen(texts[k]->d_name) - strlen(".ir");
            if (strncmp(texts[k]->d_name, wants[k]->d_name, stem + 1) != 0)
                fail_msg("%s: %s is not of %s", folder, wants[k]->d_name, texts[k]->d_name);
            free(texts[k]);
            free(wants[k]);
        }
        free(texts);
        free(wants);
        free(folders[i]);
    }
    free(folders);
}

static void check_again(const Case *c)
{
    const Graph *once = run_pass(c, c->graph, INT64_MAX).graph;
    const Graph *twice = run_pass(c, once, INT64_MAX).graph;
    if (strcmp(print(c, once), print(c, twice)) != 0)
        fail_msg("%s: once\n%s\ntwice\n%s", c->name, print(c, once), print(c, twice));
}

static void test_again(void **state)
{
    (void)state;
    for_each_case(check_again);
}

/* Not a rewrite more than allowed. What is required makes none, as it cannot be left out; but for one
 * that does nothing unless it is asked to. */
static void check_limit(const Case *c)
{
    Outcome all = run_pass(c, c->graph, INT64_MAX);
    for (int64_t limit = 0; limit <= all.rewrites; limit++) {
        Outcome some = run_pass(c, c->graph, limit);
        if (some.rewrites != limit)
            fail_msg("%s: %lld rewrites, limit %lld", c->name, (long long)some.rewrites,
                     (long long)limit);
        bool asked = strcmp(c->pass->name, "recompute") == 0;
        bool first = limit == 0 && (asked || !c->pass->required), last = limit == all.rewrites;
        const Graph *same = first ? c->graph : all.graph;
        if ((first || last) && strcmp(print(c, some.graph), print(c, same)) != 0)
            fail_msg("%s: with limit %lld\n%s", c->name, (long long)limit, print(c, some.graph));
    }
    if (c->pass->required && strcmp(c->pass->name, "recompute") != 0 && all.rewrites != 0)
        fail_msg("%s asks for leave", c->name);
}

static void test_limit(void **state)
{
    (void)state;
    for_each_case(check_limit);
}

/* ---- numbers -------------------------------------------------------------------------------- */

static int64_t elements_of(const Type *type)
{
    int symbols;
    int64_t elements = type_elements(type, &symbols);
    return symbols ? elements * BATCH : elements;
}

/* Every output in f64, one after the other. */
static double *run_reference(const Case *c, const Graph *graph, int64_t *count)
{
    ReferenceTensor *tensors = arena_array(c->arena, graph->node_count, sizeof *tensors);
    int tensor_count = 0;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        const Attributes *a = &node->attributes;
        if (node->op != OP_INPUT && node->op != OP_PARAM) continue;
        int64_t elements = elements_of(&node->type);
        float *data = arena_array(c->arena, (size_t)elements, sizeof *data);
        int64_t shape[2] = {elements, 1};
        if (node->op == OP_INPUT)
            raft_fill_parameter(a->name, 2, shape, data);
        else
            raft_fill_parameter(a->name, a->stored_rank, a->stored, data);
        tensors[tensor_count++] = (ReferenceTensor){a->name, data};
    }
    void **outputs = arena_array(c->arena, graph->output_count, sizeof *outputs);
    *count = 0;
    for (uint32_t i = 0; i < graph->output_count; i++)
        *count += elements_of(graph_type(graph, graph->outputs[i].value));
    double *all = arena_array(c->arena, (size_t)*count, sizeof *all), *at = all;
    for (uint32_t i = 0; i < graph->output_count; i++) {
        outputs[i] = at;
        at += elements_of(graph_type(graph, graph->outputs[i].value));
    }
    Diag diag = diag_new(c->arena);
    if (!reference_run(graph, BATCH, tensors, tensor_count, NULL, true, outputs, &diag))
        fail_with(c->name, c->arena, &diag);
    return all;
}

static void check_numbers(const Case *c)
{
    int64_t count, count_after;
    const double *before = run_reference(c, c->graph, &count);
    const double *after = run_reference(c, run_pass(c, c->graph, INT64_MAX).graph, &count_after);
    /* A backward pass comes behind what there is. */
    assert_true(c->pass->training ? count <= count_after : count == count_after);
    double scale = 0;
    for (int64_t i = 0; i < count; i++) scale = fmax(scale, fabs(before[i]));
    if (!(scale > 0)) fail_msg("%s computes nothing but zeros", c->name);
    for (int64_t i = 0; i < count; i++)
        if (!(fabs(before[i] - after[i]) <= 1e-12 * scale))
            fail_msg("%s: number %lld is %.17g before and %.17g after", c->name, (long long)i,
                     before[i], after[i]);
}

static void test_numbers(void **state)
{
    (void)state;
    for_each_case(check_numbers);
}

/* ---- the pipeline --------------------------------------------------------------------------- */

typedef struct Fixture {
    Arena arena;
    Diag diag;
    const Graph *graph;
    PipelineOptions options;
} Fixture;

/* Two passes have something to do. */
static const char *const pipeline_text = "graph g {\n"
                                         "  input @x : f32[b, c 4]\n"
                                         "  %0 = rearrange @x c -> (i, j) : f32[b, i 2, j 2]\n"
                                         "  %1 = rearrange @x c -> (i, j) : f32[b, i 2, j 2]\n"
                                         "  %2 = add %0, %1 : f32[b, i 2, j 2]\n"
                                         "  output forward.y = %2\n"
                                         "}\n";

static int set_up(void **state)
{
    Fixture *f = calloc(1, sizeof *f);
    if (!f) return -1;
    f->diag = diag_new(&f->arena);
    f->graph = graph_parse(&f->arena,
                           diag_add_source(&f->diag, "text", pipeline_text, strlen(pipeline_text)),
                           &f->diag);
    f->options.rewrite_limit = INT64_MAX;
    *state = f;
    return f->graph ? 0 : -1;
}

static int tear_down(void **state)
{
    Fixture *f = *state;
    arena_free(&f->arena);
    free(f);
    return 0;
}

static Graph *run_pipeline(Fixture *f, PassStatistics *statistics)
{
    return pipeline_run(&f->arena, f->graph, &target, &f->options, &f->diag, statistics);
}

static void expect_messages(Fixture *f, const char *first, const char *second)
{
    assert_null(run_pipeline(f, NULL));
    assert_int_equal(f->diag.count, second ? 2 : 1);
    assert_string_equal(f->diag.messages[0].text, first);
    if (second) assert_string_equal(f->diag.messages[1].text, second);
}

static void test_unknown_pass(void **state)
{
    Fixture *f = *state;
    f->options.only = "share,fuse_mpl";
    expect_messages(f, "there is no pass called 'fuse_mpl'", "did you mean 'fuse_mlp'?");
}

static void test_unknown_disabled(void **state)
{
    Fixture *f = *state;
    const char *const disabled[] = {"share", "unheard"};
    f->options.disabled = disabled;
    f->options.disabled_count = 2;
    expect_messages(f, "there is no pass called 'unheard'", NULL);
}

static void refuse_disabled(Fixture *f, const char *name, const char *message)
{
    f->options.disabled = &name;
    f->options.disabled_count = 1;
    expect_messages(f, message, NULL);
}

static void test_required(void **state)
{
    refuse_disabled(*state, "form_kernels",
                    "pass 'form_kernels' cannot be disabled: no backend but the reference runs a "
                    "graph without it");
}

static void test_disabled_of_training(void **state)
{
    refuse_disabled(*state, "recompute",
                    "pass 'recompute' cannot be disabled: it does what training, or its limit of "
                    "memory, asks for, and nothing else");
}

static void test_unknown_dump(void **state)
{
    Fixture *f = *state;
    f->options.dump = "shares";
    expect_messages(f, "there is no pass called 'shares'", "did you mean 'share'?");
}

static bool refuse_dump(void *user, const char *path, const char *text, size_t length)
{
    Fixture *f = user;
    assert_int_equal(strlen(text), length);
    return diag_error(&f->diag, (Loc){0}, "refused: %s", path);
}

static void test_dump_folder(void **state)
{
    Fixture *f = *state;
    f->options.dump = "share";
    f->options.dump_dir = "folder";
    f->options.dump_write = refuse_dump;
    f->options.dump_user = f;
    expect_messages(f, "refused: folder/03-share.ir", NULL);
}

/* Passes run in the order of the table, whatever the order of their names; dumps tell. */
static void test_order_and_dump(void **state)
{
    Fixture *f = *state;
    char *dumped = NULL;
    size_t size = 0;
    f->options.only = "fold_rearrange,share";
    f->options.dump = "all";
    f->options.dump_file = open_memstream(&dumped, &size);
    assert_non_null(f->options.dump_file);
    PassStatistics *statistics = arena_array(&f->arena, (size_t)pass_count, sizeof *statistics);
    const Graph *graph = run_pipeline(f, statistics);
    fclose(f->options.dump_file);
    assert_non_null(graph);
    assert_string_equal(dumped, "# after frontend\n"
                                "graph g {\n"
                                "  input @x : f32[b, c 4]\n"
                                "  %0 = rearrange @x c -> (i, j) : f32[b, i 2, j 2]\n"
                                "  %1 = rearrange @x c -> (i, j) : f32[b, i 2, j 2]\n"
                                "  %2 = add %0, %1 : f32[b, i 2, j 2]\n"
                                "  output forward.y = %2\n"
                                "}\n"
                                "# after share\n"
                                "graph g {\n"
                                "  input @x : f32[b, c 4]\n"
                                "  %0 = rearrange @x c -> (i, j) : f32[b, i 2, j 2]\n"
                                "  %1 = add %0, %0 : f32[b, i 2, j 2]\n"
                                "  output forward.y = %1\n"
                                "}\n"
                                "# after fold_rearrange\n"
                                "graph g {\n"
                                "  input @x : f32[b, c 4]\n"
                                "  %0 = read @x [b, i*2 + j] : f32[b, i 2, j 2]\n"
                                "  %1 = add %0, %0 : f32[b, i 2, j 2]\n"
                                "  output forward.y = %1\n"
                                "}\n");
    free(dumped);
    for (int i = 0; i < pass_count; i++) {
        bool ran = strstr(f->options.only, pass_table[i].name) != NULL;
        assert_int_equal(statistics[i].rewrites, ran ? 1 : 0);
        assert_int_equal(statistics[i].nodes_after, ran ? 3 : 0);
    }
}

/* The limit counts over all passes: one rewrite for share, none left for the next. */
static void test_limit_over_passes(void **state)
{
    Fixture *f = *state;
    f->options.rewrite_limit = 1;
    f->options.only = "share,fold_rearrange";
    const Graph *graph = run_pipeline(f, NULL);
    assert_non_null(graph);
    assert_int_equal(graph->node_count, 3);
    assert_int_equal(graph_node(graph, 1)->op, OP_REARRANGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_want),
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_again),
        cmocka_unit_test(test_limit),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test_setup_teardown(test_unknown_pass, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unknown_disabled, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_required, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_disabled_of_training, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_unknown_dump, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_dump_folder, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_order_and_dump, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_limit_over_passes, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
