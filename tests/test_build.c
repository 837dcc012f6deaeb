/* test_build.c: the graphs of models: how many ops of each kind the frontend builds, and how many
 * kernels are left of them after all passes. The numbers follow from the settings alone. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/compile.h"

typedef void CheckModel(const char *name, Arena *arena, const Model *model);

static int is_yaml(const struct dirent *entry)
{
    const char *dot = strrchr(entry->d_name, '.');
    return dot && strcmp(dot, ".yaml") == 0;
}

/* Every published model at its own size; the small ones also at a larger one that is not square,
 * and at an odd one. */
static void for_each_model(CheckModel *check)
{
    struct dirent **entries;
    int count = scandir(SOURCE_ROOT "/models", &entries, is_yaml, alphasort);
    assert_true(count >= 16);
    for (int i = 0; i < count; i++) {
        Arena arena = {0};
        const char *file = entries[i]->d_name;
        const char *name = arena_strndup(&arena, file, strlen(file) - strlen(".yaml"));
        check(name, &arena, compile_published(&arena, name, 0, 0));
        arena_free(&arena);
        free(entries[i]);
    }
    free(entries);
    static const int64_t sizes[][2] = {{0, 0}, {96, 64}, {37, 61}};
    for (size_t i = 0; i < ARRAY_SIZE(tiny_models) * ARRAY_SIZE(sizes); i++) {
        Arena arena = {0};
        int tiny = (int)(i / ARRAY_SIZE(sizes));
        const int64_t *size = sizes[i % ARRAY_SIZE(sizes)];
        check(tiny_models[tiny].name, &arena, compile_tiny(&arena, tiny, size[0], size[1]));
        arena_free(&arena);
    }
}

/* ---- what the settings say ------------------------------------------------------------------ */

typedef struct Parts {
    int64_t levels, layers, heads;
    int64_t blocks;  /* residual MLPs, */
    int64_t apart;   /* of these, those with more weights than fit in the cache for few positions */
    int64_t windows; /* sliding windows of all embeddings, */
    int64_t joined;  /* and embeddings with more than one */
    int64_t patches; /* embeddings of patches without overlap */
    int64_t rafts;   /* layers that split channels */
    int64_t
        resamples; /* of levels that do not fit their patches, and around mixing on another grid */
    int64_t shortcuts, features;
} Parts;

/* Of few positions, beside which the weights of an MLP of channels do not fit in the cache. */
static bool has_many_weights(const Settings *s, const Level *level)
{
    enum { FEW_POSITIONS = 64 };
    int64_t weights = level->dim * level->dim * s->channel_expansion_factor;
    return level->height * level->width <= FEW_POSITIONS &&
           weights * (int64_t)sizeof(float) > wide_target.l2_bytes;
}

static Parts count_parts(const Model *model)
{
    const Settings *s = model->settings;
    Parts p = {.levels = model->level_count, .features = model->feature_count};
    for (int i = 0; i < model->level_count; i++) {
        const Level *level = &model->levels[i];
        p.layers += level->depth;
        if (s->embedding == EMBED_CROSS) {
            p.windows += level->kernel_count;
            p.joined += level->kernel_count > 1;
        } else {
            p.patches++;
        }
        p.resamples += level->in_height % level->patch != 0 || level->in_width % level->patch != 0;
        bool fits = level->height == level->grid && level->width == level->grid;
        p.resamples += fits ? 0 : 2 * level->depth;
    }
    for (int i = 0; i < model->level_count; i++)
        if (has_many_weights(s, &model->levels[i])) p.apart += model->levels[i].depth;
    p.rafts = s->token_mixing == TOKEN_RAFT ? p.layers : 0;
    p.blocks = p.layers * (s->token_mixing == TOKEN_RAFT ? 3 : 2);
    p.shortcuts = s->shortcut ? p.levels - 1 : 0;
    p.heads = 1 + p.shortcuts;
    return p;
}

static void count_ops(const Graph *graph, int64_t counts[OP_COUNT])
{
    memset(counts, 0, OP_COUNT * sizeof *counts);
    for (NodeId id = 0; id < graph->node_count; id++) counts[graph_node(graph, id)->op]++;
}

static void check_counts(const char *name, const int64_t *counts, const int64_t *expected)
{
    for (int op = 0; op < OP_COUNT; op++)
        if (counts[op] != expected[op])
            fail_msg("%s: %lld of '%s', expected %lld", name, (long long)counts[op],
                     op_info[op].name, (long long)expected[op]);
}

/* ---- the graph that is built ---------------------------------------------------------------- */

static void check_built(const char *name, Arena *arena, const Model *model)
{
    Parts p = count_parts(model);
    int64_t expected[OP_COUNT] = {
        [OP_INPUT] = 1,
        [OP_UNFOLD] = p.windows,
        [OP_CONCAT] = p.joined,
        [OP_REARRANGE] = p.windows + p.patches + 2 * p.rafts + 2 * p.shortcuts + p.features,
        [OP_SLICE] = 2 * p.shortcuts,
        [OP_LINEAR] = p.levels + 2 * p.blocks + p.heads,
        [OP_LAYERNORM] = p.blocks + p.heads,
        [OP_GELU] = p.blocks,
        [OP_ADD] = p.blocks + p.shortcuts,
        [OP_MUL] = p.shortcuts,
        [OP_MEAN] = p.heads,
        [OP_RESAMPLE] = p.resamples,
    };
    expected[OP_PARAM] = 2 * (expected[OP_LINEAR] + expected[OP_LAYERNORM]);
    const Graph *graph = build_graph(arena, model);
    int64_t counts[OP_COUNT], parameters = 0;
    count_ops(graph, counts);
    check_counts(name, counts, expected);
    for (NodeId id = 0; id < graph->node_count; id++)
        if (graph_node(graph, id)->op == OP_PARAM)
            parameters += type_elements(graph_type(graph, id), NULL);
    assert_int_equal(parameters, model_parameter_count(model));
    assert_int_equal(graph->kernel_count, 0);
    assert_int_equal(graph->output_count, 1 + p.features);
    Diag diag = diag_new(arena);
    if (!graph_verify(graph, &diag)) compile_failed(&diag, name);
}

static void test_built(void **state)
{
    (void)state;
    for_each_model(check_built);
}

/* RaftMLP-S, counted by hand: 2 + 2 + 6 + 2 layers of three blocks, windows 2 + 2 + 2 + 1. */
static void test_built_small(void **state)
{
    (void)state;
    Arena arena = {0};
    const int64_t expected[OP_COUNT] = {
        [OP_INPUT] = 1,  [OP_PARAM] = 228, [OP_REARRANGE] = 35, [OP_UNFOLD] = 7,
        [OP_CONCAT] = 3, [OP_LINEAR] = 77, [OP_LAYERNORM] = 37, [OP_GELU] = 36,
        [OP_ADD] = 36,   [OP_MEAN] = 1,
    };
    int64_t counts[OP_COUNT];
    count_ops(build_graph(&arena, compile_published(&arena, "raftmlp-s", 224, 224)), counts);
    check_counts("raftmlp-s", counts, expected);
    arena_free(&arena);
}

/* ---- what is left of it --------------------------------------------------------------------- */

/* LayerNorm, product, GELU, product, sum; one write, and reads. */
static bool is_residual_mlp(const Graph *graph, int kernel)
{
    static const Op chain[] = {OP_LAYERNORM, OP_LINEAR, OP_GELU, OP_LINEAR, OP_ADD, OP_WRITE};
    size_t at = 0;
    NodeId first, end;
    kernel_range(graph, kernel, &first, &end);
    for (NodeId id = first; id < end; id++) {
        Op op = graph_node(graph, id)->op;
        if (op == OP_READ) continue;
        if (at == ARRAY_SIZE(chain) || op != chain[at]) return false;
        at++;
    }
    return at == ARRAY_SIZE(chain);
}

typedef struct Kernels {
    int64_t forward, features, prepare; /* kernels of each, those of forward in no other */
    int64_t residual_mlps;
} Kernels;

static Kernels count_kernels(const Plan *plan)
{
    Kernels k = {0};
    assert_string_equal(plan->entry[0], plan->entry_count > 1 ? "features" : "forward");
    unsigned forward = plan->entry_count > 1 ? 2 : 1;
    for (int s = 0; s < plan->step_count; s++) {
        const Step *step = &plan->steps[s];
        if (step->prepare)
            k.prepare++;
        else if (step->entries & forward)
            k.forward++;
        else
            k.features++;
        k.residual_mlps += is_residual_mlp(plan->graph, step->kernel);
    }
    return k;
}

static void check_compiled(const char *name, Arena *arena, const Model *model)
{
    Parts p = count_parts(model);
    const Graph *built = build_graph(arena, model);
    const Graph *graph = compile_passes(arena, built, &wide_target, NULL);
    int64_t counts[OP_COUNT];
    count_ops(graph, counts);
    static const Op gone[] = {OP_REARRANGE, OP_UNFOLD, OP_SLICE, OP_CONCAT};
    for (size_t i = 0; i < ARRAY_SIZE(gone); i++)
        if (counts[gone[i]] != 0) fail_msg("%s: a '%s' is left", name, op_info[gone[i]].name);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->kernel == NO_KERNEL && node->op != OP_INPUT && node->op != OP_PARAM)
            fail_msg("%s: a '%s' is in no kernel", name, op_info[node->op].name);
    }
    Kernels k = count_kernels(plan_memory(arena, graph));
    assert_int_equal(k.residual_mlps, p.blocks - p.apart);
    assert_int_equal(k.forward, p.levels + p.blocks + 2 * p.apart + p.heads + p.resamples);
    assert_int_equal(k.features, p.features);
}

static void test_compiled(void **state)
{
    (void)state;
    for_each_model(check_compiled);
}

/* RaftMLP-S: 4 embeddings, 12 layers of three blocks, one head. The MLPs of channels of the last level's two layers are three
 * kernels each. */
static void test_compiled_small(void **state)
{
    (void)state;
    Arena arena = {0};
    const Model *model = compile_published(&arena, "raftmlp-s", 224, 224);
    const Graph *graph = compile_passes(&arena, build_graph(&arena, model), &wide_target, NULL);
    Kernels k = count_kernels(plan_memory(&arena, graph));
    assert_int_equal(k.forward, 4 + 12 * 3 + 2 * 2 + 1);
    assert_int_equal(k.residual_mlps, 34);
    assert_int_equal(k.features, 4);
    arena_free(&arena);
}

/* Graphs print as text that parses to the same, before and after the passes. */
static void check_text(const char *name, Arena *arena, const Model *model)
{
    const Graph *built = build_graph(arena, model);
    const Graph *graphs[] = {built, compile_passes(arena, built, &wide_target, NULL)};
    for (int i = 0; i < 2; i++) {
        Text text = text_new(arena), again = text_new(arena);
        graph_print(graphs[i], &text);
        graph_print(compile_text(arena, text.data), &again);
        if (strcmp(text.data, again.data) != 0) fail_msg("%s prints otherwise when parsed", name);
    }
}

static void test_text(void **state)
{
    (void)state;
    for_each_model(check_text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_built),    cmocka_unit_test(test_built_small),
        cmocka_unit_test(test_compiled), cmocka_unit_test(test_compiled_small),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
