/* check_case.c: runs one graph in every way and compares the results.
 *
 * An error may be as large as reference_bound allows for the graph before passes, and no larger.
 * The bound holds for sums in any order and any grouping, so for everything that passes do but
 * one: merge_unfolds adds up weights before it multiplies. That rounds once for each window, but
 * of those that it joins each had a product and an addition of its own, so the bound covers it
 * as well. */
#include "tests/check_case.h"

#include "backends/reference/reference.h"
#include "passes/choices.h"
#include "runtime/shell.h"
#include "tests/random.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GUARD = 16 }; /* floats before and after what a program writes */

static const double loose_bound =
    0.02; /* as a share of the greatest value; what is looser says little */
static const float untouched = -12345.5f;

typedef struct Check {
    const Case *c;
    Outcome *outcome;
    Arena arena;
    Diag diag;
    ReferenceTensor *tensors; /* of inputs and parameters, in the order of the graph */
    int tensor_count;
    void **values, **bounds; /* of the graph before passes, in f64 */
    int64_t *elements;       /* of each output: for one image, */
    int64_t *images;         /* of so many; 1 where it is of the batch as a whole */
    bool whole_batch;        /* is an output of the batch as a whole? */
    bool *tight; /* is each output compared with its bound, or only the bits of its runs? */
} Check;

static bool failed(Check *check, const char *format, ...) PRINTF_LIKE(2, 3);
static bool failed(Check *check, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(check->outcome->why, sizeof check->outcome->why, format, args);
    va_end(args);
    check->outcome->verdict = VERDICT_FAILED;
    return false;
}

static bool failed_with_messages(Check *check, const char *what)
{
    char *text = NULL;
    size_t size;
    FILE *file = open_memstream(&text, &size);
    RAFTC_ASSERT(file);
    diag_print(&check->diag, file);
    fclose(file);
    failed(check, "%s: %s", what, text);
    free(text);
    return false;
}

static const Output *output_at(const Check *check, uint32_t i)
{
    return &check->c->graph->outputs[i];
}

/* ---- what is expected ---------------------------------------------------------------------- */

static uint64_t name_hash(const char *name)
{
    uint64_t hash = UINT64_C(14695981039346656037);
    for (; *name; name++) hash = (hash ^ (unsigned char)*name) * UINT64_C(1099511628211);
    return hash;
}

/* Of each value: over how many elements it is summed as the second factor of a product, at most. */
static int64_t *find_terms(Check *check)
{
    const Graph *graph = check->c->graph;
    int64_t *terms = arena_array(&check->arena, graph->node_count, sizeof *terms);
    for (NodeId id = graph->node_count; id-- > 0;) {
        const Node *node = graph_node(graph, id);
        bool product = node->op == OP_LINEAR;
        if (node->operand_count == 0 || (!product && node->operand_count > 1)) continue;
        NodeId operand = node->operands[product];
        int64_t count = product ? op_cost(graph, id) / type_elements(&node->type, NULL) : terms[id];
        if (count > terms[operand]) terms[operand] = count;
    }
    return terms;
}

/* The bounds take every sum at its worst, where in truth errors and values mostly cancel out:
 * with ordinary weights they would grow past all use within some layers. So most weights are
 * zero but one or two in each sum, and the more layers (they have a LayerNorm each), the smaller
 * they are. */
static double weight_scale(const Graph *graph)
{
    int layers = 0;
    for (NodeId id = 0; id < graph->node_count; id++)
        layers += graph_node(graph, id)->op == OP_LAYERNORM;
    return layers > 9 ? 1.5 / sqrt(layers) : 0.5;
}

static const float *make_tensor(Check *check, const Node *node, int64_t terms, double scale)
{
    bool input = node->op == OP_INPUT;
    int64_t elements = type_elements(&node->type, NULL) * (input ? check->c->batch : 1);
    float *data = arena_array(&check->arena, (size_t)elements, sizeof *data);
    Random random = {check->c->seed ^ name_hash(node->attributes.name)};
    for (int64_t i = 0; i < elements; i++) {
        double value = random_real(&random);
        bool zero = random_from(&random, 0, terms) > 1;
        data[i] = terms == 0 ? (float)value : zero ? 0 : (float)(scale * value);
    }
    return data;
}

static void make_tensors(Check *check)
{
    const Graph *graph = check->c->graph;
    const int64_t *terms = find_terms(check);
    double scale = weight_scale(graph);
    check->tensors = arena_array(&check->arena, graph->node_count, sizeof *check->tensors);
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        if (node->op != OP_INPUT && node->op != OP_PARAM) continue;
        check->tensors[check->tensor_count++] =
            (ReferenceTensor){node->attributes.name, make_tensor(check, node, terms[id], scale)};
    }
}

/* Can the bounds of an output tell right from wrong? Not where values get huge, or where a
 * LayerNorm spreads what differs by little more than the errors. */
static bool is_tight(const Check *check, uint32_t i)
{
    const double *values = check->values[output_at(check, i)->value];
    const double *bounds = check->bounds[output_at(check, i)->value];
    int64_t elements = check->elements[i] * check->images[i];
    double greatest = FLT_MIN;
    for (int64_t k = 0; k < elements; k++) greatest = fmax(greatest, fabs(values[k]));
    for (int64_t k = 0; k < elements; k++)
        if (!(bounds[k] <= loose_bound * greatest && greatest < 1e30)) return false;
    return true;
}

static bool find_expected(Check *check)
{
    const Graph *graph = check->c->graph;
    check->values = arena_array(&check->arena, graph->node_count, sizeof *check->values);
    check->bounds = arena_array(&check->arena, graph->node_count, sizeof *check->bounds);
    check->elements = arena_array(&check->arena, graph->output_count, sizeof *check->elements);
    check->images = arena_array(&check->arena, graph->output_count, sizeof *check->images);
    check->tight = arena_array(&check->arena, graph->output_count, sizeof *check->tight);
    if (!reference_evaluate(graph, check->c->batch, check->tensors, check->tensor_count, true,
                            check->values, &check->diag) ||
        !reference_bound(graph, check->c->batch, check->values, check->bounds, &check->diag))
        return failed_with_messages(check, "the reference refuses the graph");
    for (uint32_t i = 0; i < graph->output_count; i++) {
        int symbols;
        const Type *type = graph_type(graph, output_at(check, i)->value);
        check->elements[i] = type_elements(type, &symbols);
        check->images[i] = symbols ? check->c->batch : 1;
        check->whole_batch |= symbols == 0;
        check->tight[i] = is_tight(check, i);
        check->outcome->outputs++;
        check->outcome->loose += !check->tight[i];
    }
    return true;
}

/* ---- comparing ----------------------------------------------------------------------------- */

/* One array for each output, batch first, with guards around it. */
static float **new_results(Check *check)
{
    uint32_t count = check->c->graph->output_count;
    float **results = arena_array(&check->arena, count, sizeof *results);
    for (uint32_t i = 0; i < count; i++) {
        int64_t elements = check->elements[i] * check->images[i] + 2 * GUARD;
        float *data = arena_array(&check->arena, (size_t)elements, sizeof *data);
        for (int64_t k = 0; k < elements; k++) data[k] = untouched;
        results[i] = data + GUARD;
    }
    return results;
}

static bool compare(Check *check, const char *how, float *const *results)
{
    for (uint32_t i = 0; i < check->c->graph->output_count; i++) {
        const Output *output = output_at(check, i);
        const double *values = check->values[output->value], *bounds = check->bounds[output->value];
        int64_t elements = check->elements[i] * check->images[i];
        for (int64_t k = -GUARD; k < elements + GUARD; k++) {
            double actual = (double)results[i][k];
            bool outside = k < 0 || k >= elements;
            if (outside && results[i][k] == untouched) continue;
            if (outside)
                return failed(check, "%s: %s: wrote outside of its array", how, output->name);
            if (!check->tight[i]) continue;
            double error = fabs(actual - values[k]);
            double ratio = error == 0 ? 0 : error / bounds[k];
            if (!(ratio <= 1))
                return failed(check, "%s: %s[%lld of %lld] is %.9g, not %.9g: %.3g of the bound",
                              how, output->name, (long long)k, (long long)elements, actual,
                              values[k], ratio);
            check->outcome->ratio = fmax(check->outcome->ratio, ratio);
        }
    }
    return true;
}

/* The same bits? `image`: of the batch in `expected`, -1: all of it. */
static bool same_bits(Check *check, const char *how, float *const *expected, float *const *results,
                      int64_t image)
{
    for (uint32_t i = 0; i < check->c->graph->output_count; i++) {
        int64_t each = check->elements[i], first = image < 0 ? 0 : image * each;
        size_t bytes = (size_t)(image < 0 ? each * check->images[i] : each) * sizeof(float);
        if (memcmp(expected[i] + first, results[i], bytes) != 0)
            return failed(check, "%s: %s: other bits", how, output_at(check, i)->name);
    }
    return true;
}

/* ---- running ------------------------------------------------------------------------------- */

static void count_rewrites(Check *check, const PassStatistics *statistics)
{
    for (int i = 0; i < pass_count; i++) check->outcome->rewrites[i] += statistics[i].rewrites;
}

/* The names of the first `count` passes that are not disabled, for PipelineOptions.only. */
static const char *first_passes(Check *check, int count)
{
    Text text = text_new(&check->arena);
    for (int i = 0; i < count; i++) {
        bool disabled = pass_table[i].training;
        for (int k = 0; k < check->c->disabled_count; k++)
            disabled |= strcmp(check->c->disabled[k], pass_table[i].name) == 0;
        if (!disabled) text_printf(&text, "%s%s", text.length ? "," : "", pass_table[i].name);
    }
    return text.data;
}

static const Graph *print_and_parse(Check *check, const Graph *graph)
{
    Text text = text_new(&check->arena);
    graph_print(graph, &text);
    const Source *source = diag_add_source(&check->diag, "dumped.ir", text.data, text.length);
    return graph_parse(&check->arena, source, &check->diag);
}

/* Any choice that can be reached from that by rule in some steps. */
typedef struct Draw {
    const Target *target;
    Random random;
    Arena *arena;
} Draw;

static bool draw_choice(void *user, const Graph *graph, int kernel, Choice *choice)
{
    Draw *draw = user;
    for (int64_t steps = random_from(&draw->random, 0, 8); steps > 0; steps--) {
        int count;
        Choice *list =
            choice_neighbours(draw->arena, graph, kernel, draw->target, choice, false, &count);
        if (count > 0) *choice = list[random_from(&draw->random, 0, count - 1)];
    }
    return true;
}

/* `draw` NULL: with the choices by rule. */
static const Graph *run_passes(Check *check, const Target *target, Draw *draw)
{
    const Case *c = check->c;
    PassStatistics statistics[MAX_PASSES] = {0};
    PipelineOptions options = {.disabled = c->disabled,
                               .disabled_count = c->disabled_count,
                               .choices = {draw ? draw_choice : NULL, draw},
                               .rewrite_limit = c->rewrite_limit};
    const Graph *graph = c->graph;
    if (c->stop > 0) {
        PipelineOptions first = options;
        first.only = first_passes(check, c->stop);
        graph = pipeline_run(&check->arena, graph, target, &first, &check->diag, statistics);
        if (graph) graph = print_and_parse(check, graph);
        count_rewrites(check, statistics);
        memset(statistics, 0, sizeof statistics);
    }
    if (graph)
        graph = pipeline_run(&check->arena, graph, target, &options, &check->diag, statistics);
    count_rewrites(check, statistics);
    return graph;
}

static bool check_reference(Check *check, const Graph *graph)
{
    float **results = new_results(check);
    if (!reference_run(graph, check->c->batch, check->tensors, check->tensor_count, NULL, false,
                       (void *const *)results, &check->diag))
        return failed_with_messages(check, "the reference refuses the graph after passes");
    return compare(check, "reference after passes", results);
}

static bool shell_failed(Check *check, const RaftShell *shell)
{
    return failed(check, "shell: %s", raft_shell_error(shell));
}

static const float *find_tensor(const Check *check, const char *name)
{
    int i = 0;
    while (strcmp(check->tensors[i].name, name) != 0) i++;
    return check->tensors[i].data;
}

static bool set_parameters(Check *check, RaftShell *shell, const RaftProgram *program)
{
    for (int i = 0; i < program->parameter_count; i++) {
        const RaftTensorInfo *info = &program->parameter[i];
        const float *data = find_tensor(check, info->name);
        if (raft_shell_set_parameter(shell, info->name, info->shape, info->rank, data) != RAFT_OK)
            return shell_failed(check, shell);
    }
    return true;
}

/* Each entry on its own: all images at once, or the one called `image`. */
static bool run_entries(Check *check, RaftShell *shell, const RaftProgram *program, int64_t image,
                        float **results)
{
    const float **inputs = arena_array(&check->arena, (size_t)program->input_count, sizeof *inputs);
    for (int i = 0; i < program->input_count; i++) {
        const RaftTensorInfo *info = &program->input[i];
        inputs[i] = find_tensor(check, info->name) + (image < 0 ? 0 : image * info->elements);
    }
    const unsigned entries[] = {program->forward_entry, program->features_entry,
                                program->backward_entry};
    for (size_t i = 0; i < ARRAY_SIZE(entries); i++)
        if (entries[i] && raft_shell_run(shell, entries[i], image < 0 ? check->c->batch : 1, inputs,
                                         results) != RAFT_OK)
            return shell_failed(check, shell);
    return true;
}

/* The results of a program on so many threads; NULL after an error. */
static float **run_shared(Check *check, const RaftProgram *program, int threads)
{
    RaftShellOptions options = {.size = sizeof options, .threads = threads};
    RaftShell *shell;
    if (raft_shell_create(program, &options, &shell, check->outcome->why,
                          sizeof check->outcome->why) != RAFT_OK) {
        failed(check, "the shell cannot be made");
        return NULL;
    }
    float **results = new_results(check);
    bool good = set_parameters(check, shell, program) &&
                run_entries(check, shell, program, -1, results) &&
                compare(check, threads == 1 ? "1 thread" : "2 threads", results);
    raft_shell_destroy(shell);
    return good ? results : NULL;
}

/* 2 images at a time where the batch may be run in parts, and 2 threads: neither may show in the results,
 * but where sums over the batch are taken in parts. */
static bool check_shared(Check *check, const RaftProgram *program, float **expected)
{
    RaftProgram chunked = *program;
    if (!program->whole) chunked.chunk = 2;
    if (check->whole_batch && !program->whole) {
        float **whole = run_shared(check, program, 2);
        if (!whole || !same_bits(check, "2 threads", expected, whole, -1)) return false;
        expected = run_shared(check, &chunked, 1);
        if (!expected) return false;
    }
    float **results = run_shared(check, &chunked, 2);
    return results && same_bits(check, "2 threads", expected, results, -1);
}

/* *expected: bits that the results must have; NULL: they become it. */
static bool check_program(Check *check, const RaftProgram *program, float ***expected)
{
    RaftShellOptions options = {.size = sizeof options, .threads = 1};
    RaftShell *shell;
    if (raft_shell_create(program, &options, &shell, check->outcome->why,
                          sizeof check->outcome->why) != RAFT_OK)
        return failed(check, "the shell cannot be made");
    float **together = new_results(check);
    bool good = set_parameters(check, shell, program) &&
                run_entries(check, shell, program, -1, together) &&
                compare(check, check->c->cuda ? "cuda" : "cpu", together) &&
                check_shared(check, program, together);
    if (good && *expected) good = same_bits(check, "other choices", *expected, together, -1);
    *expected = together;
    bool apart = check->c->batch > 1 && !check->whole_batch;
    for (int64_t image = 0; good && apart && image < check->c->batch; image++) {
        float **alone = new_results(check);
        good = run_entries(check, shell, program, image, alone) &&
               same_bits(check, "each image alone", together, alone, image);
    }
    raft_shell_destroy(shell);
    return good;
}

static bool check_cpu(Check *check, const Graph *graph, const CpuOptions *options,
                      float ***expected)
{
    const Plan *plan = plan_memory(&check->arena, graph);
    if (!plan_verify(plan, &check->diag) || !program_check(plan, &check->diag))
        return failed_with_messages(check, "the plan cannot be a program");
    CpuCode *code = llvm_compile(&check->arena, plan, options, &check->diag);
    const RaftProgram *program = code ? llvm_load(code, &check->diag) : NULL;
    bool good = program ? check_program(check, program, expected)
                        : failed_with_messages(check, "the LLVM backend refuses the graph");
    llvm_free(code);
    return good;
}

static bool check_cuda(Check *check, const Target *target)
{
    float **expected = NULL;
    const Graph *graph = run_passes(check, target, NULL);
    if (!graph) return failed_with_messages(check, "passes");
    const Plan *plan = plan_memory(&check->arena, graph);
    if (!plan_verify(plan, &check->diag) || !program_check(plan, &check->diag))
        return failed_with_messages(check, "the plan cannot be a program");
    const CudaSource *source = cuda_emit(&check->arena, plan, &check->diag);
    CudaEmulation *emulation =
        source ? cuda_emulate(&check->arena, plan, source, &check->diag) : NULL;
    if (!emulation) return failed_with_messages(check, "the CUDA backend refuses the graph");
    bool good = check_program(check, emulation->program, &expected);
    if (!cuda_emulation_check(emulation, &check->diag))
        good = failed_with_messages(check, "the emulated kernels");
    cuda_emulation_free(emulation);
    return good;
}

static const char *print_passed(Check *check, const Target *target, uint64_t choices)
{
    Draw draw = {target, {choices}, &check->arena};
    Text text = text_new(&check->arena);
    const Graph *graph = run_passes(check, target, choices ? &draw : NULL);
    if (graph) graph_print(graph, &text);
    return text.length ? text.data : NULL;
}

/* Without the passes that are disabled, do the same kernels come out as with them? */
static bool makes_no_difference(const Case *c, const Target *target)
{
    Case with_all = *c;
    Outcome unused[2] = {{0}};
    Check check[2] = {{.c = c, .outcome = &unused[0]}, {.c = &with_all, .outcome = &unused[1]}};
    const uint64_t choices[] = {0, c->choices};
    bool same = c->disabled_count > 0;
    with_all.disabled_count = 0;
    for (int i = 0; i < 2; i++) check[i].diag = diag_new(&check[i].arena);
    for (int k = 0; same && k < 1 + (c->choices != 0); k++) {
        const char *text = print_passed(&check[0], target, choices[k]);
        const char *wanted = print_passed(&check[1], target, choices[k]);
        same = text && wanted && strcmp(text, wanted) == 0;
    }
    for (int i = 0; i < 2; i++) arena_free(&check[i].arena);
    return same;
}

static bool check_all(Check *check)
{
    CpuOptions options = {.cpu = check->c->cpu};
    Target target = {.vector_floats = 1, .vector_registers = 16};
#ifdef __SANITIZE_ADDRESS__
    options.sanitize_address = true;
#endif
    if (check->c->cuda)
        cuda_target(&target);
    else if (llvm_available() && !llvm_target(&options, &target, &check->diag))
        return failed_with_messages(check, "no target");
    make_tensors(check);
    if (!find_expected(check))
        return false; /* in each case: how many bounds are loose counts over all */
    if (makes_no_difference(check->c, &target)) {
        check->outcome->same = true;
        return run_passes(check, &target, NULL) || failed_with_messages(check, "passes");
    }
    if (check->c->cuda) return check_cuda(check, &target);
    const Graph *graph = run_passes(check, &target, NULL);
    if (!graph) return failed_with_messages(check, "passes");
    if (!check_reference(check, graph)) return false;
    if (!llvm_available()) return true;
    float **expected = NULL;
    if (!check_cpu(check, graph, &options, &expected)) return false;
    if (!check->c->choices) return true;
    Draw draw = {&target, {check->c->choices}, &check->arena};
    graph = run_passes(check, &target, &draw);
    if (!graph) return failed_with_messages(check, "passes with other choices");
    return check_cpu(check, graph, &options, &expected);
}

void check_case(const Case *c, Outcome *outcome)
{
    Check check = {.c = c, .outcome = outcome};
    check.diag = diag_new(&check.arena);
    if (check_all(&check)) outcome->verdict = VERDICT_PASSED;
    for (NodeId id = 0; check.values && id < c->graph->node_count; id++) {
        free(check.values[id]);
        free(check.bounds[id]);
    }
    arena_free(&check.arena);
}
