/* test_gradients.c: the backward pass against finite differences, in f64 on the reference backend:
 * every op with drawn extents (1 among them), and whole tiny models. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "tests/compile.h"
#include "tests/random.h"

enum { DRAWS = 6, BATCH = 2 };
static const double tolerance = 1e-6;

/* The lines of a graph. A capital stands for an extent, A*B and A+B for a product and a sum; `x` is
 * an input, `p` and `q` are parameters; output forward.y has the axis b. Values are drawn from -1 to
 * 1, or, where `positive`, from 0.5 to 1.5. */
typedef struct OpCase {
    Op op;
    bool positive;
    const char *lines;
} OpCase;

#define X     "input @x : f32[b, h A, c B]\n"
#define P     "param @p stored [A, B] : f32[h A, c B]\n"
#define ADDED X P "%0 = add @x, @p : f32[b, h A, c B]\n"

static const OpCase op_cases[] = {
    {OP_REARRANGE, false,
     "input @x : f32[b, c B*C, h A]\nparam @p stored [B*C, A] : f32[c B*C, h A]\n"
     "%0 = add @x, @p : f32[b, c B*C, h A]\n"
     "%1 = rearrange %0 c -> (i, j), h -> k : f32[j C, b, k A, i B]\noutput forward.y = %1\n"},
    {OP_REARRANGE, false,
     ADDED "%1 = rearrange %0 (h, c) -> c : f32[c A*B, b]\noutput forward.y = %1\n"},
    {OP_UNFOLD, false,
     "input @x : f32[b, y A+D, x B+E]\nparam @p stored [A+D, B+E] : f32[y A+D, x B+E]\n"
     "%0 = add @x, @p : f32[b, y A+D, x B+E]\n"
     "%1 = unfold %0 y -> (h, ky A) stride A pad 0, x -> (w, kx B) stride B pad 0"
     " : f32[b, h 1+D/A, ky A, w 1+E/B, kx B]\noutput forward.y = %1\n"},
    {OP_UNFOLD, false,
     "input @x : f32[b, y 8, q A]\nparam @p stored [8, A] : f32[y 8, q A]\n"
     "%0 = add @x, @p : f32[b, y 8, q A]\n"
     "%1 = unfold %0 y -> (h, k 4) stride 2 pad 1 : f32[b, k 4, h 4, q A]\n"
     "output forward.y = %1\n"},
    {OP_UNFOLD, false,
     "input @x : f32[b, y 7]\nparam @p stored [7] : f32[y 7]\n%0 = add @x, @p : f32[b, y 7]\n"
     "%1 = unfold %0 y -> (h, k 5) stride 3 pad 2 : f32[b, h 3, k 5]\noutput forward.y = %1\n"},
    {OP_UNFOLD, false,
     "input @x : f32[b, y 6]\nparam @p stored [6] : f32[y 6]\n%0 = add @x, @p : f32[b, y 6]\n"
     "%1 = unfold %0 y -> (h, k 2) stride 3 pad 0 : f32[b, h 2, k 2]\noutput forward.y = %1\n"},
    {OP_UNFOLD, false, /* one sum for both windows */
     "input @x : f32[b, y 7, x 8, c A]\nparam @p stored [7, 8, A] : f32[y 7, x 8, c A]\n"
     "%0 = add @x, @p : f32[b, y 7, x 8, c A]\n"
     "%1 = unfold %0 y -> (h, ky 5) stride 3 pad 2, x -> (w, kx 4) stride 2 pad 1"
     " : f32[b, w 4, h 3, c A, kx 4, ky 5]\noutput forward.y = %1\n"},
    {OP_UNFOLD, false, /* which would have too many axes here */
     "input @x : f32[b, y 7, x 8, c A, d B]\nparam @p stored [7, 8, A, B] : f32[y 7, x 8, c A, d "
     "B]\n"
     "%0 = add @x, @p : f32[b, y 7, x 8, c A, d B]\n"
     "%1 = unfold %0 y -> (h, ky 5) stride 3 pad 2, x -> (w, kx 4) stride 2 pad 1"
     " : f32[b, h 3, w 4, c A, d B, ky 5, kx 4]\noutput forward.y = %1\n"},
    {OP_SLICE, false,
     "input @x : f32[b, c A+B+C]\nparam @p stored [A+B+C] : f32[c A+B+C]\n"
     "%0 = add @x, @p : f32[b, c A+B+C]\n%1 = slice %0 over (c) from A : f32[b, c B]\n"
     "output forward.y = %1\n"},
    {OP_READ, false, /* moved, with zeros before and an element less behind */
     ADDED "%1 = read %0 [b, h - 1, c + 1] : f32[b, c B, h A+C]\noutput forward.y = %1\n"},
    {OP_CONCAT, false,
     ADDED "%1 = mul %0, %0 : f32[b, h A, c B]\n"
           "%2 = concat %0, @x, %1, %0 over (c) : f32[b, h A, c B+B+B+B]\noutput forward.y = %2\n"},
    {OP_LINEAR, false,
     ADDED "param @q stored [C, B] : f32[k C, c B]\nparam @r stored [A] : f32[h A]\n"
           "%1 = linear %0, @q, @r over (c) : f32[b, h A, k C]\noutput forward.y = %1\n"},
    {OP_LINEAR, false, /* an axis of both, and one that is summed in another order */
     ADDED "param @q stored [B, C, A] : f32[c B, k C, h A]\nparam @r stored [C] : f32[k C]\n"
           "%1 = linear %0, @q, @r over (c) : f32[b, h A, k C]\noutput forward.y = %1\n"},
    {OP_LINEAR, false, /* nothing is left of the weights */
     ADDED "param @q stored [B, A] : f32[c B, h A]\n"
           "%1 = linear %0, @q over (c, h) : f32[b]\noutput forward.y = %1\n"},
    {OP_LINEAR, false, /* of a value with itself */
     ADDED "%1 = linear %0, %0 over (c) : f32[b, h A]\noutput forward.y = %1\n"},
    {OP_LAYERNORM, false,
     ADDED "param @q stored [B, A] : f32[c B, h A]\nparam @r stored [A, B] : f32[h A, c B]\n"
           "%1 = layernorm %0, @q, @r over (h, c) eps 0.1 : f32[b, h A, c B]\n"
           "output forward.y = %1\n"},
    {OP_LAYERNORM, false,
     ADDED "param @q stored [B] : f32[c B]\nparam @r stored [B] : f32[c B]\n"
           "%1 = layernorm %0, @q, @r over (c) eps 0.01 : f32[b, h A, c B]\n"
           "output forward.y = %1\n"},
    {OP_GELU, false, ADDED "%1 = gelu %0 : f32[b, h A, c B]\noutput forward.y = %1\n"},
    {OP_ADD, false,
     ADDED "param @q stored [B] : f32[c B]\n%1 = add %0, @q : f32[b, h A, c B]\n"
           "%2 = add %1, %0 : f32[b, h A, c B]\noutput forward.y = %2\n"},
    {OP_MUL, false,
     ADDED "param @q stored [B, A] : f32[c B, h A]\n%1 = mul %0, @q : f32[b, h A, c B]\n"
           "param @r stored [B] : f32[c B]\n%2 = mul %1, @r : f32[b, h A, c B]\n"
           "output forward.y = %2\n"},
    {OP_DIV, true,
     ADDED "param @q stored [B] : f32[c B]\n%1 = div %0, @q : f32[b, h A, c B]\n"
           "%2 = div %1, %0 : f32[b, h A, c B]\noutput forward.y = %2\n"},
    {OP_SQRT, true, ADDED "%1 = sqrt %0 : f32[b, h A, c B]\noutput forward.y = %1\n"},
    {OP_SCALE, false, ADDED "%1 = scale %0 by -1.5 : f32[b, h A, c B]\noutput forward.y = %1\n"},
    {OP_MEAN, false, ADDED "%1 = mean %0 over (h) : f32[b, c B]\noutput forward.y = %1\n"},
    {OP_MEAN, false, ADDED "%1 = mean %0 over (c, h) : f32[b]\noutput forward.y = %1\n"},
    {OP_SUM, false, ADDED "%1 = sum %0 over (h) : f32[b, c B]\noutput forward.y = %1\n"},
    {OP_SUM, false,
     ADDED "%1 = sum %0 over (b) : f32[h A, c B]\n%2 = mul %0, %1 : f32[b, h A, c B]\n"
           "output forward.y = %2\n"},
    {OP_RESAMPLE, false,
     ADDED "%1 = resample %0 over (h, c) : f32[b, h C, c D]\noutput forward.y = %1\n"},
    {OP_RESAMPLE_GRAD, false,
     ADDED "%1 = resample_grad %0 over (c, h) : f32[b, h C, c D]\noutput forward.y = %1\n"},
    {OP_CROSS_ENTROPY, false,
     ADDED "input @t : f32[b, h A, c B]\n"
           "%1 = cross_entropy %0, @t over (c) : f32[b, h A]\noutput forward.y = %1\n"},
};

/* ---- graphs ----------------------------------------------------------------------------------- */

/* The lines with extents for capitals. */
static const char *draw_lines(Arena *arena, const char *lines, Random *random)
{
    int64_t extent['Z' + 1];
    for (int i = 'A'; i <= 'Z'; i++) extent[i] = random_from(random, 1, 4);
    Text text = text_new(arena);
    text_put(&text, "graph test {\n");
    for (const char *c = lines; *c; c++) {
        bool starts = (*c >= 'A' && *c <= 'Z') || (c[0] == '1' && c[1] == '+');
        if (!starts) {
            text_printf(&text, "%c", *c);
            continue;
        }
        int64_t value = *c == '1' ? 1 : extent[(int)*c];
        for (; c[1] == '*' || c[1] == '+'; c += 2) {
            int64_t next = extent[(int)c[2]];
            if (c[1] == '*') value *= next;
            if (c[1] == '+' && c[3] == '/') {
                value += next / extent[(int)c[4]];
                c += 2;
            } else if (c[1] == '+') {
                value += next;
            }
        }
        text_printf(&text, "%lld", (long long)value);
    }
    text_put(&text, "}\n");
    return text.data;
}

/* Adds the output forward.loss = sum over all axes but b of y * s, with an input s. */
static void add_loss(Graph *graph)
{
    Type type = *graph_type(graph, graph->outputs[0].value);
    NodeId y = graph->outputs[0].value;
    AxisNames b = names_make("b");
    Type rest = type_without(&type, &b);
    Text over = text_new(graph->arena);
    for (int i = 0; i < rest.rank; i++) text_printf(&over, "%s ", rest.axis[i].name);
    NodeId s = build_input(graph, "s", &type, (Loc){0});
    NodeId loss = rest.rank ? build_linear(graph, y, s, NO_NODE, over.data, (Loc){0})
                            : build_binary(graph, OP_MUL, y, s, (Loc){0});
    graph_add_output(graph, "loss", "forward", loss);
}

static const Graph *differentiated(Arena *arena, const Graph *graph, bool given)
{
    Diag diag = diag_new(arena);
    const PipelineOptions options = {
        .only = "differentiate", .train = true, .given = given, .rewrite_limit = INT64_MAX};
    const Graph *result = pipeline_run(arena, graph, &wide_target, &options, &diag, NULL);
    if (!result) compile_failed(&diag, "differentiate");
    return result;
}

/* ---- values ----------------------------------------------------------------------------------- */

typedef struct Values {
    Arena *arena;
    const Graph *graph, *forward; /* the latter computes no gradients */
    ReferenceTensor *tensors;
    int tensor_count;
    void **outputs; /* doubles */
} Values;

static int64_t elements_of(const Type *type)
{
    int symbols;
    int64_t elements = type_elements(type, &symbols);
    return symbols ? elements * BATCH : elements;
}

static Values make_values(Arena *arena, const Graph *graph, bool positive, Random *random)
{
    Values v = {.arena = arena, .graph = graph};
    v.tensors = arena_array(arena, graph->node_count, sizeof *v.tensors);
    v.outputs = arena_array(arena, graph->output_count, sizeof *v.outputs);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op != OP_INPUT && node->op != OP_PARAM) continue;
        int64_t elements = elements_of(&node->type);
        float *data = arena_array(arena, (size_t)elements, sizeof *data);
        for (int64_t i = 0; i < elements; i++)
            data[i] = (float)(positive ? 1 + 0.5 * random_real(random) : random_real(random));
        v.tensors[v.tensor_count++] = (ReferenceTensor){node->attributes.name, data};
    }
    for (uint32_t i = 0; i < graph->output_count; i++)
        v.outputs[i] = arena_array(
            arena, (size_t)elements_of(graph_type(graph, graph->outputs[i].value)), sizeof(double));
    return v;
}

static void run(const Values *v, const Graph *graph)
{
    Diag diag = diag_new(v->arena);
    if (!reference_run(graph, BATCH, v->tensors, v->tensor_count, NULL, true, v->outputs, &diag))
        compile_failed(&diag, "a graph");
}

static const float *find_tensor(const Values *v, const char *name)
{
    for (int t = 0; t < v->tensor_count; t++)
        if (strcmp(v->tensors[t].name, name) == 0) return v->tensors[t].data;
    return NULL;
}

/* What the gradients are those of: sum(weight * loss), and of each output of which a gradient is given
 * its product with that. */
static double run_sum(const Values *v)
{
    double sum = 0;
    run(v, v->forward);
    for (uint32_t i = 0; i < v->forward->output_count; i++) {
        const Output *output = &v->forward->outputs[i];
        bool loss = strcmp(output->entry, "backward") == 0;
        const float *given =
            find_tensor(v, loss ? "weight" : arena_printf(v->arena, "grad.%s", output->name));
        const double *values = v->outputs[i];
        int64_t elements = given ? elements_of(graph_type(v->forward, output->value)) : 0;
        for (int64_t k = 0; k < elements; k++) sum += (double)given[k] * values[k];
    }
    return sum;
}

/* The slope along one element of a tensor: central differences of two widths, extrapolated. */
static double slope(const Values *v, float *element)
{
    const float at = *element;
    double slopes[2];
    for (int k = 0; k < 2; k++) {
        const float width = k == 0 ? 0x1p-7f : 0x1p-8f;
        *element = at + width;
        double above = run_sum(v), right = (double)*element;
        *element = at - width;
        slopes[k] = (above - run_sum(v)) / (right - (double)*element);
    }
    *element = at;
    return slopes[1] + (slopes[1] - slopes[0]) / 3;
}

static uint32_t output_index(const Graph *graph, const char *name)
{
    for (uint32_t i = 0; i < graph->output_count; i++)
        if (strcmp(graph->outputs[i].entry, "backward") == 0 &&
            strcmp(graph->outputs[i].name, name) == 0)
            return i;
    fail_msg("no output backward.%s", name);
    return 0;
}

/* The outputs of which none is a gradient: they are the first. */
static const Graph *without_gradients(Arena *arena, const Graph *graph)
{
    Graph *forward = arena_alloc(arena, sizeof *forward);
    *forward = *graph;
    forward->output_count = output_index(graph, "loss") + 1;
    return forward;
}

/* Checks at most `most` elements of each parameter; returns how many parameters there are. */
static int check_gradients(const char *name, Arena *arena, const Graph *graph, bool positive,
                           int64_t most, Random *random)
{
    Values v = make_values(arena, graph, positive, random);
    int checked = 0;
    run(&v, graph);
    v.forward = without_gradients(arena, graph);
    for (int t = 0; t < v.tensor_count; t++) {
        NodeId id = 0;
        while (graph->nodes[id].attributes.name != v.tensors[t].name) id++;
        if (graph->nodes[id].op != OP_PARAM) continue;
        uint32_t output = output_index(graph, arena_printf(arena, "grad.%s", v.tensors[t].name));
        const Type *type = graph_type(graph, graph->outputs[output].value);
        assert_true(type_equal(type, &graph->nodes[id].type));
        int64_t elements = elements_of(type);
        const double *gradient = v.outputs[output];
        double largest = 0.1;
        for (int64_t i = 0; i < elements; i++) largest = fmax(largest, fabs(gradient[i]));
        for (int64_t k = 0; k < elements && k < most; k++) {
            int64_t at = elements <= most ? k : random_from(random, 0, elements - 1);
            double expected = slope(&v, (float *)v.tensors[t].data + at);
            if (!(fabs(gradient[at] - expected) <= tolerance * largest))
                fail_msg("%s: the gradient of %s[%lld] is %.12g, by differences %.12g", name,
                         v.tensors[t].name, (long long)at, gradient[at], expected);
        }
        checked++;
    }
    return checked;
}

/* ---- tests ------------------------------------------------------------------------------------ */

static void test_ops(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(op_cases); i++)
        for (uint64_t draw = 0; draw < DRAWS; draw++) {
            const OpCase *c = &op_cases[i];
            Arena arena = {0};
            Random random = {1000 * i + draw};
            Graph *graph = (Graph *)compile_text(&arena, draw_lines(&arena, c->lines, &random));
            add_loss(graph);
            const Graph *both = differentiated(&arena, graph, false);
            int checked =
                check_gradients(op_info[c->op].name, &arena, both, c->positive, 5, &random);
            assert_true(checked > 0);
            arena_free(&arena);
        }
}

/* Each op of the table has a case, or no gradient passes through it. */
static void test_every_op_has_a_case(void **state)
{
    (void)state;
#define OP(NAME, text, least, most, attributes, mixes, cost, linear, gradient)                     \
    [OP_##NAME] = #gradient,
    static const char *const rules[OP_COUNT] = {
#include "ir/op.def"
    };
#undef OP
    bool found[OP_COUNT] = {false};
    for (size_t i = 0; i < ARRAY_SIZE(op_cases); i++) found[op_cases[i].op] = true;
    for (int op = 0; op < OP_COUNT; op++)
        if (!found[op] && strcmp(rules[op], "REFUSED") != 0 && strcmp(rules[op], "DECLARED") != 0)
            fail_msg("%s has a gradient, but no case", op_info[op].name);
}

/* The tiny models, smaller still. */
static const Graph *build_tiny(Arena *arena, int index, int64_t height, int64_t width, bool drops)
{
    const char *yaml = tiny_models[index].yaml;
    const char *const set[] = {"pretrained_image_size=12", "drop_path_rate=0.25", "dropout=0.5"};
    Diag diag = diag_new(arena);
    const Source *source = diag_add_source(&diag, tiny_models[index].name, yaml, strlen(yaml));
    const Settings *settings = settings_parse(arena, source, set, ARRAY_SIZE(set), &diag);
    const Model *model =
        settings ? model_resolve(arena, settings, NULL, height, width, &diag) : NULL;
    if (!model) compile_failed(&diag, tiny_models[index].name);
    return drops ? build_dropping_graph(arena, model) : build_graph(arena, model);
}

/* Of images whose grid is the model's, and of a size that makes every layer resample; with masks, which
 * are inputs like others; and with gradients of logits and maps that are given. */
static void test_models(void **state)
{
    (void)state;
    for (int i = 0; i < (int)ARRAY_SIZE(tiny_models); i++)
        for (int k = 0; k < 4; k++) {
            Arena arena = {0};
            Random random = {(uint64_t)i};
            bool odd = k == 1, drops = k == 2;
            const Graph *graph = build_tiny(&arena, i, odd ? 7 : 12, odd ? 6 : 12, drops);
            graph = differentiated(&arena, graph, k == 3);
            int checked = check_gradients(tiny_models[i].name, &arena, graph, false, 1, &random);
            assert_true(checked > 10);
            arena_free(&arena);
        }
}

static void expect_refused(const char *lines, const char *message)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    const PipelineOptions options = {.train = true, .rewrite_limit = INT64_MAX};
    const Graph *graph = compile_text(&arena, arena_printf(&arena, "graph test {\n%s}\n", lines));
    assert_null(pipeline_run(&arena, graph, &wide_target, &options, &diag, NULL));
    assert_int_equal(diag.errors, 1);
    assert_string_equal(diag.messages[0].text, message);
    arena_free(&arena);
}

static void test_refused(void **state)
{
    (void)state;
    expect_refused("input @x : f32[b, c 2]\noutput forward.y = @x\n",
                   "there is nothing to train: no output forward.logits of type f32[b, class N], "
                   "nor forward.loss of type f32[b]");
    expect_refused("param @p stored [2] : f32[c 2]\ninput @x : f32[b, c 2]\n"
                   "%0 = read @p [c] : f32[b, c 2]\n%1 = add %0, @x : f32[b, c 2]\n"
                   "output forward.logits = %1\n",
                   "no gradient passes through 'read'");
    expect_refused("param @p stored [2] : f32[c 2]\ninput @x : f32[b, c 2]\n"
                   "%0 = add @x, @p : f32[b, c 2]\n%1 = mean %0 over (b) : f32[c 2]\n"
                   "%2 = add @x, %1 : f32[b, c 2]\noutput forward.logits = %2\n",
                   "no gradient passes through a mean over 'b'");
    expect_refused("param @p stored [2] : f32[c 2]\ninput @x : f32[b, c 2]\n"
                   "%0 = add @x, @p : f32[b, c 2]\n%1 = cross_entropy @x, %0 over (c) : f32[b]\n"
                   "output forward.loss = %1\n",
                   "no gradient passes to the targets of a cross_entropy");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops),
        cmocka_unit_test(test_every_op_has_a_case),
        cmocka_unit_test(test_models),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
