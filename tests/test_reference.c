/* test_reference.c: the reference backend: each op by hand and against PyTorch, bounds, memory. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>
#include <omp.h>

#include "backends/reference/reference.h"

enum { MOST_TENSORS = 8 };

typedef struct Case {
    const char *name, *graph; /* the lines of the graph; its first output is compared */
    ReferenceTensor tensors[MOST_TENSORS];
    int tensor_count;
    int64_t count; /* elements of the output; the batch follows from it */
    const double *expected;
    const float *f32; /* another f32 evaluation, to be within the bounds; may be NULL */
    double tolerance; /* of f64, times the greatest expected; 0: f32 and f64 are exact */
} Case;

static const Case torch_cases[] = {
#include "tests/data/reference/torch.inc"
};

static const Case hand_cases[] = {
#include "tests/data/reference/hand.inc"
};

/* ---- running cases --------------------------------------------------------------------------- */

typedef struct Fixture {
    Arena arena;
    Diag diag;
    Graph *graph;
    int64_t batch;
    void **values, **bounds; /* f64; of all nodes */
} Fixture;

static void parse(Fixture *f, const char *lines)
{
    *f = (Fixture){.batch = 1};
    f->diag = diag_new(&f->arena);
    const char *text = arena_printf(&f->arena, "graph test {\n%s}\n", lines);
    f->graph =
        graph_parse(&f->arena, diag_add_source(&f->diag, "test.ir", text, strlen(text)), &f->diag);
    if (f->graph) return;
    diag_print(&f->diag, stderr);
    fail_msg("this graph is refused:\n%s", lines);
}

static const Type *output_type(const Fixture *f)
{
    return graph_type(f->graph, f->graph->outputs[0].value);
}

static void start(Fixture *f, const Case *c)
{
    parse(f, c->graph);
    int symbols;
    int64_t elements = type_elements(output_type(f), &symbols);
    if (symbols) f->batch = c->count / elements;
    assert_int_equal(c->count, (symbols ? f->batch : 1) * elements);
    size_t count = f->graph->node_count;
    f->values = arena_array(&f->arena, count, sizeof(void *));
    f->bounds = arena_array(&f->arena, count, sizeof(void *));
    assert_true(reference_evaluate(f->graph, f->batch, c->tensors, c->tensor_count, true, f->values,
                                   &f->diag));
    assert_true(reference_bound(f->graph, f->batch, f->values, f->bounds, &f->diag));
}

static void finish(Fixture *f)
{
    for (NodeId id = 0; f->values && id < f->graph->node_count; id++) {
        free(f->values[id]);
        free(f->bounds[id]);
    }
    arena_free(&f->arena);
}

static int64_t element_count(const Fixture *f, NodeId id)
{
    int64_t count;
    assert_true(value_elements(graph_type(f->graph, id), f->batch, &count));
    return count;
}

static const double *output_values(const Fixture *f)
{
    return f->values[f->graph->outputs[0].value];
}

static const double *output_bounds(const Fixture *f)
{
    return f->bounds[f->graph->outputs[0].value];
}

static bool run_f32(Fixture *f, const Case *c, float *result)
{
    void *outputs[] = {result};
    return reference_run(f->graph, f->batch, c->tensors, c->tensor_count, NULL, false, outputs,
                         &f->diag);
}

static double greatest(const double *values, int64_t count)
{
    double most = 0;
    for (int64_t i = 0; i < count; i++) most = fmax(most, fabs(values[i]));
    return most;
}

/* Elements that are off by more than their bound. */
static int64_t out_of_bounds(const Fixture *f, const float *f32, int64_t count)
{
    int64_t out = 0;
    for (int64_t i = 0; i < count; i++)
        out += !(fabs((double)f32[i] - output_values(f)[i]) <= output_bounds(f)[i]);
    return out;
}

static void assert_within_bounds(const Case *c, const Fixture *f, const float *f32)
{
    if (out_of_bounds(f, f32, c->count) == 0) return;
    for (int64_t i = 0; i < c->count; i++)
        print_message("%ld: %.9g, exactly %.9g, bound %.3g\n", (long)i, (double)f32[i],
                      output_values(f)[i], output_bounds(f)[i]);
    fail_msg("%s: f32 is out of bounds", c->name);
}

static void check_case(const Case *c)
{
    Fixture f;
    start(&f, c);
    float *f32 = arena_array(&f.arena, (size_t)c->count, sizeof *f32);
    assert_true(run_f32(&f, c, f32));
    double tolerance = c->tolerance * greatest(c->expected, c->count);
    for (int64_t i = 0; i < c->count; i++) {
        double value = output_values(&f)[i], expected = c->expected[i];
        if (!(fabs(value - expected) <= tolerance))
            fail_msg("%s: element %ld is %.17g, not %.17g", c->name, (long)i, value, expected);
        if (c->tolerance == 0) assert_true((double)f32[i] == expected);
    }
    assert_within_bounds(c, &f, f32);
    if (c->f32) assert_within_bounds(c, &f, c->f32);
    finish(&f);
}

static void test_ops_by_hand(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(hand_cases); i++) check_case(&hand_cases[i]);
}

/* The tolerances of torch.inc: in f64 1e-14, some dozens of roundings of 1.1e-16; bicubic is
 * compared with f32 numbers from weights of up to 3 before their terms cancel, so off by 2^-24 * 3
 * each: 2e-6. With coordinates in double instead, 97 columns would be off by 1e-5. */
static void test_against_torch(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(torch_cases); i++) check_case(&torch_cases[i]);
}

static void test_every_op_has_a_case(void **state)
{
    (void)state;
    int cases[OP_COUNT] = {0};
    for (size_t i = 0; i < ARRAY_SIZE(hand_cases); i++) {
        Fixture f;
        parse(&f, hand_cases[i].graph);
        for (NodeId id = 0; id < f.graph->node_count; id++) cases[f.graph->nodes[id].op]++;
        arena_free(&f.arena);
    }
    for (int op = 0; op < OP_COUNT; op++)
        if (cases[op] == 0) fail_msg("%s has no case", op_info[op].name);
}

/* ---- bounds ---------------------------------------------------------------------------------- */

/* The bound of every op that rounds is close enough to the errors to show a real fault. */
static void test_bounds_are_close(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(torch_cases); i++) {
        const Case *c = &torch_cases[i];
        Fixture f;
        start(&f, c);
        float *f32 = arena_array(&f.arena, (size_t)c->count, sizeof *f32);
        assert_true(run_f32(&f, c, f32));
        double most = greatest(output_bounds(&f), c->count);
        assert_true(most > 0 && most < 2e-4 * greatest(output_values(&f), c->count));
        for (int64_t k = 0; k < c->count; k++) f32[k] += (float)(3 * output_bounds(&f)[k]);
        assert_int_equal(out_of_bounds(&f, f32, c->count), c->count);
        finish(&f);
    }
}

static const Case *torch_case(const char *name)
{
    for (size_t i = 0; i < ARRAY_SIZE(torch_cases); i++)
        if (strcmp(torch_cases[i].name, name) == 0) return &torch_cases[i];
    fail_msg("no case '%s'", name);
    return NULL;
}

/* How many elements of a case are out of bounds when `to` stands for `from` in its graph. */
static int64_t faults_found(const char *name, const char *from, const char *to)
{
    const Case *c = torch_case(name);
    Fixture right, wrong;
    start(&right, c);
    const char *at = strstr(c->graph, from);
    assert_non_null(at);
    parse(&wrong, arena_printf(&right.arena, "%.*s%s%s", (int)(at - c->graph), c->graph, to,
                               at + strlen(from)));
    wrong.batch = right.batch;
    float *f32 = arena_array(&right.arena, (size_t)c->count, sizeof *f32);
    assert_true(run_f32(&wrong, c, f32));
    int64_t found = out_of_bounds(&right, f32, c->count);
    finish(&wrong);
    finish(&right);
    return found;
}

static void test_bounds_find_faults(void **state)
{
    (void)state;
    assert_int_equal(faults_found("linear", "over (c)", "over (c)"), 0);
    /* a bias left out: all 3 * 6 elements */
    assert_int_equal(faults_found("linear", "@w, @bias over", "@w over"), 18);
    /* the dark image of three is wrong everywhere, up to elements close to the mean */
    assert_true(faults_found("layernorm", "eps 1e-05", "eps 1.1e-05") >= 36);
    /* the trap: LayerNorm parameters read as (raft, group) */
    assert_true(faults_found("axis block", "@scale stored [8] : f32[group 4, raft 2]",
                             "@scale stored [8] : f32[raft 2, group 4]") >= 90);
}

/* The usual approximation of GELU with tanh is off by up to 5e-4. */
static void test_bounds_find_tanh(void **state)
{
    (void)state;
    const Case *c = torch_case("gelu");
    Fixture f;
    start(&f, c);
    float *f32 = arena_array(&f.arena, (size_t)c->count, sizeof *f32);
    for (int64_t i = 0; i < c->count; i++) {
        double x = (double)c->tensors[0].data[i];
        f32[i] = (float)(0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))));
    }
    assert_true(out_of_bounds(&f, f32, c->count) >= 20);
    finish(&f);
}

/* All bounds are zero but that of one element of an operand, which is off by as much: is the change
 * of value `id` within its bound? `changed` has room for it. */
static void check_error_carried(const Case *c, const Fixture *f, NodeId id, NodeId operand,
                                int64_t at, double error, double *changed)
{
    Run run = {.graph = f->graph, .batch = f->batch, .values = f->values, .bounds = f->bounds};
    const OpReference *op = &op_reference[graph_node(f->graph, id)->op];
    double *x = &((double *)f->values[operand])[at], *off = &((double *)f->bounds[operand])[at];
    double exact = *x, *value = f->values[id], *bound = f->bounds[id];
    *off = fabs((exact + error) - exact);
    assert_true(op->bound(&run, id));
    *off = 0;
    *x = exact + error;
    f->values[id] = changed;
    memset(changed, 0, (size_t)element_count(f, id) * sizeof *changed);
    assert_true(op->f64(&run, id));
    *x = exact;
    f->values[id] = value;
    for (int64_t i = 0; i < element_count(f, id); i++) {
        if (!(fabs(changed[i] - value[i]) <= bound[i]))
            fail_msg("%s: value %u, element %ld is off by %g, its bound %g", c->name, id, (long)i,
                     changed[i] - value[i], bound[i]);
        bound[i] = 0;
    }
}

static void check_errors_carried(const Case *c)
{
    Fixture f;
    start(&f, c);
    for (NodeId id = 0; id < f.graph->node_count; id++)
        memset(f.bounds[id], 0, (size_t)element_count(&f, id) * sizeof(double));
    for (NodeId id = 0; id < f.graph->node_count; id++) {
        const Node *node = graph_node(f.graph, id);
        double *changed = arena_array(&f.arena, (size_t)element_count(&f, id), sizeof *changed);
        for (uint32_t i = 0; i < node->operand_count; i++)
            for (int64_t at = 0; at < 2 * element_count(&f, node->operands[i]); at++)
                check_error_carried(c, &f, id, node->operands[i], at / 2, at % 2 ? 0.01 : -0.01,
                                    changed);
    }
    finish(&f);
}

static void test_bounds_carry_errors(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(hand_cases); i++) check_errors_carried(&hand_cases[i]);
    for (size_t i = 0; i < ARRAY_SIZE(torch_cases); i++) check_errors_carried(&torch_cases[i]);
}

/* A sum of 3000 terms with cancellation, in three orders: as named, backwards, and in 60 parts. */
static void test_bounds_hold_in_any_order(void **state)
{
    (void)state;
    static const char *const graphs[] = {
        "input @x : f32[b, p 60, q 50]\n"
        "param @w stored [3000] : f32[p 60, q 50]\n"
        "%0 = linear @x, @w over (p, q) : f32[b]\n"
        "output forward.y = %0\n",
        "input @x : f32[b, p 60, q 50]\n"
        "param @w stored [3000] : f32[p 60, q 50]\n"
        "%0 = read @x [b, 59 - p, 49 - q] : f32[b, p 60, q 50]\n"
        "%1 = read @w [59 - p, 49 - q] : f32[p 60, q 50]\n"
        "%2 = linear %0, %1 over (p, q) : f32[b]\n"
        "output forward.y = %2\n",
        "input @x : f32[b, p 60, q 50]\n"
        "param @w stored [3000] : f32[p 60, q 50]\n"
        "param @one stored [60] : f32[p 60]\n"
        "%0 = linear @x, @w over (q) : f32[b, p 60]\n"
        "%1 = linear %0, @one over (p) : f32[b]\n"
        "output forward.y = %1\n",
    };
    enum { TERMS = 3000 };
    float *x = malloc(2 * TERMS * sizeof *x), *w = malloc(TERMS * sizeof *w), one[60];
    assert_true(x && w);
    uint32_t random = 1;
    for (int i = 0; i < 3 * TERMS; i++) {
        random = random * 1664525 + 1013904223;
        *(i < TERMS ? &w[i] : &x[i - TERMS]) = (float)(random >> 8) / 0x1p23f - 1;
    }
    for (int i = 0; i < 60; i++) one[i] = 1;
    Case c = {.name = "orders",
              .tensors = {{"x", x}, {"w", w}, {"one", one}},
              .tensor_count = 3,
              .count = 2};
    float results[3][2];
    for (size_t i = 0; i < ARRAY_SIZE(graphs); i++) {
        Fixture f;
        c.graph = graphs[i];
        start(&f, &c);
        assert_true(run_f32(&f, &c, results[i]));
        assert_within_bounds(&c, &f, results[i]);
        for (size_t k = 0; k <= i; k++) assert_within_bounds(&c, &f, results[k]);
        finish(&f);
    }
    assert_memory_not_equal(results[0], results[1], sizeof results[0]);
    assert_memory_not_equal(results[0], results[2], sizeof results[0]);
    free(x);
    free(w);
}

/* ---- running --------------------------------------------------------------------------------- */

static void test_threads_change_no_bit(void **state)
{
    (void)state;
    static const char lines[] = "input @x : f32[b, h 14, w 14, c 32]\n"
                                "param @scale stored [32] : f32[c 32]\n"
                                "param @w stored [40, 32] : f32[k 40, c 32]\n"
                                "%0 = layernorm @x, @scale, @scale over (c) eps 1e-5 : "
                                "f32[b, h 14, w 14, c 32]\n"
                                "%1 = linear %0, @w over (c) : f32[b, h 14, w 14, k 40]\n"
                                "%2 = gelu %1 : f32[b, h 14, w 14, k 40]\n"
                                "%3 = resample %2 over (h, w) : f32[b, h 17, w 9, k 40]\n"
                                "output forward.y = %3\n";
    enum { IN = 2 * 14 * 14 * 32, OUT = 2 * 17 * 9 * 40 };
    float *x = malloc(IN * sizeof *x), *results = malloc(2 * OUT * sizeof *results);
    assert_true(x && results);
    for (int i = 0; i < IN; i++) x[i] = sinf((float)i);
    Case c = {.graph = lines,
              .tensors = {{"x", x}, {"scale", x}, {"w", x}},
              .tensor_count = 3,
              .count = OUT};
    int threads = omp_get_max_threads();
    for (int i = 0; i < 2; i++) {
        Fixture f;
        parse(&f, c.graph);
        f.batch = 2;
        omp_set_num_threads(i == 0 ? 1 : 3);
        assert_true(run_f32(&f, &c, results + i * OUT));
        finish(&f);
    }
    omp_set_num_threads(threads);
    assert_memory_equal(results, results + OUT, OUT * sizeof *results);
    free(x);
    free(results);
}

static const char two_entries[] = "input @x : f32[b, c 4]\n"
                                  "param @w stored [4] : f32[c 4]\n"
                                  "%0 = add @x, @x : f32[b, c 4]\n"
                                  "%1 = mul %0, @w : f32[b, c 4]\n"
                                  "output forward.y = %0\n"
                                  "output features.f0 = %1\n"
                                  "output features.x = @x\n";
static const float one_to_four[] = {1, 2, 3, 4};

static void assert_message(const Fixture *f, const char *part)
{
    assert_int_equal(f->diag.errors, 1);
    const char *text = f->diag.messages[0].text;
    if (!strstr(text, part)) fail_msg("'%s' lacks '%s'", text, part);
}

/* Without the other entry's parameter, and without touching its outputs. */
static void test_entry_computes_what_it_needs(void **state)
{
    (void)state;
    Fixture f;
    parse(&f, two_entries);
    float y[4] = {0}, untouched[4] = {7, 7, 7, 7};
    void *outputs[] = {y, untouched, untouched};
    ReferenceTensor x = {"x", one_to_four};
    assert_true(reference_run(f.graph, 1, &x, 1, "forward", false, outputs, &f.diag));
    assert_true(y[0] == 2 && y[1] == 4 && y[2] == 6 && y[3] == 8);
    for (int i = 0; i < 4; i++) assert_true(untouched[i] == 7);
    finish(&f);
}

static void test_every_output_in_f64(void **state)
{
    (void)state;
    Fixture f;
    parse(&f, two_entries);
    double y[4], f0[4], same[4];
    void *outputs[] = {y, f0, same};
    ReferenceTensor tensors[] = {{"w", one_to_four}, {"x", one_to_four}};
    assert_true(reference_run(f.graph, 1, tensors, 2, NULL, true, outputs, &f.diag));
    for (int i = 0; i < 4; i++) {
        double v = (double)one_to_four[i];
        assert_true(y[i] == 2 * v && f0[i] == 2 * v * v && same[i] == v);
    }
    finish(&f);
}

static void test_missing_tensor(void **state)
{
    (void)state;
    Fixture f;
    parse(&f, two_entries);
    float room[4];
    void *outputs[] = {room, room, room};
    ReferenceTensor x = {"x", one_to_four};
    assert_false(reference_run(f.graph, 1, &x, 1, NULL, false, outputs, &f.diag));
    assert_message(&f, "no tensor for the param 'w'");
    finish(&f);
}

/* Batches whose sizes overflow, or do not but exceed any address space. */
static void test_out_of_memory(void **state)
{
    (void)state;
    static const int64_t batches[] = {INT64_MAX, INT64_C(1) << 62, INT64_C(1) << 56};
    for (size_t i = 0; i < ARRAY_SIZE(batches); i++) {
        Fixture f;
        parse(&f, two_entries);
        float room[4];
        void *outputs[] = {room, room, room};
        ReferenceTensor tensors[] = {{"w", one_to_four}, {"x", one_to_four}};
        assert_false(reference_run(f.graph, batches[i], tensors, 2, NULL, true, outputs, &f.diag));
        assert_message(&f, "out of memory");
        finish(&f);
    }
}

/* 200 values of 2 MiB, of which two are ever needed at once. */
static void test_values_are_freed(void **state)
{
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    skip(); /* it keeps what is freed, and reserves more than any limit */
#endif
    enum { ELEMENTS = 1 << 19, NODES = 200, ROOM = 64 << 20 };
    Fixture f;
    parse(&f, "input @x : f32[b, c 524288]\n"
              "%0 = gelu @x : f32[b, c 524288]\n"
              "output forward.y = %0\n");
    for (int i = 1; i < NODES; i++)
        f.graph->outputs[0].value =
            build_unary(f.graph, OP_GELU, f.graph->outputs[0].value, (Loc){0});
    float *x = calloc(ELEMENTS, sizeof *x);
    assert_non_null(x);
    void *outputs[] = {x};
    ReferenceTensor tensor = {"x", x};
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    assert_true(file && fscanf(file, "%ld", &pages) == 1);
    fclose(file);
    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    limit = before;
    limit.rlim_cur = (rlim_t)(pages * sysconf(_SC_PAGESIZE) + ROOM);
    int threads = omp_get_max_threads();
    omp_set_num_threads(1); /* the stacks of more would count */
    assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
    bool done = reference_run(f.graph, 1, &tensor, 1, NULL, false, outputs, &f.diag);
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    omp_set_num_threads(threads);
    assert_true(done);
    free(x);
    finish(&f);
}

/* AddressSanitizer would end the process where calloc is to return NULL. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ops_by_hand),
        cmocka_unit_test(test_every_op_has_a_case),
        cmocka_unit_test(test_against_torch),
        cmocka_unit_test(test_bounds_are_close),
        cmocka_unit_test(test_bounds_find_faults),
        cmocka_unit_test(test_bounds_find_tanh),
        cmocka_unit_test(test_bounds_carry_errors),
        cmocka_unit_test(test_bounds_hold_in_any_order),
        cmocka_unit_test(test_threads_change_no_bit),
        cmocka_unit_test(test_entry_computes_what_it_needs),
        cmocka_unit_test(test_every_output_in_f64),
        cmocka_unit_test(test_missing_tensor),
        cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_values_are_freed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
