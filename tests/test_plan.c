/* test_plan.c: steps and buffers of whole models: what each step is given, what lives where and
 * when, and that only residual tensors are ever stored in a forward.
 *
 * Everything is derived again from the graph; of the plan nothing is believed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/compile.h"

enum { ALIGNMENT = 16 }; /* floats: 64 bytes */

typedef void CheckPlan(const char *name, const Plan *plan);

static const Plan *plan_of(Arena *arena, const Model *model)
{
    return plan_memory(arena, compile_passes(arena, build_graph(arena, model), &wide_target, NULL));
}

/* The three models of the paper, one of them also at a size for which tokens are resampled, and the
 * small ones at two sizes. */
static void for_each_plan(CheckPlan *check)
{
    static const struct {
        const char *name;
        int64_t height, width;
    } published[] = {
        {"raftmlp-s", 0, 0}, {"raftmlp-m", 0, 0}, {"raftmlp-l", 0, 0}, {"raftmlp-s", 192, 320}};
    for (size_t i = 0; i < ARRAY_SIZE(published) + 2 * ARRAY_SIZE(tiny_models); i++) {
        Arena arena = {0};
        int tiny = (int)(i - ARRAY_SIZE(published)) / 2;
        if (i < ARRAY_SIZE(published))
            check(published[i].name,
                  plan_of(&arena, compile_published(&arena, published[i].name, published[i].height,
                                                    published[i].width)));
        else
            check(tiny_models[tiny].name,
                  plan_of(&arena, compile_tiny(&arena, tiny, i % 2 ? 37 : 0, i % 2 ? 61 : 0)));
        arena_free(&arena);
    }
}

static const Node *node_of(const Plan *plan, int buffer)
{
    return graph_node(plan->graph, plan->buffers[buffer].value);
}

/* Does the step write the buffer (or read it)? */
static bool writes(const Plan *plan, const Step *step, int buffer)
{
    return node_of(plan, buffer)->kernel == step->kernel;
}

static unsigned entry_bit(const Plan *plan, const char *entry)
{
    for (int i = 0; i < plan->entry_count; i++)
        if (strcmp(plan->entry[i], entry) == 0) return 1u << i;
    return 0;
}

/* ---- buffers -------------------------------------------------------------------------------- */

static int64_t floats_of(const Buffer *b)
{
    return (b->elements + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* First and last step that uses a buffer. */
typedef struct Life {
    int first, last;
} Life;

static Life life_of(const Plan *plan, int buffer)
{
    Life life = {-1, -1};
    for (int s = 0; s < plan->step_count; s++)
        for (int i = 0; i < plan->steps[s].argument_count; i++)
            if (plan->steps[s].arguments[i] == buffer) {
                if (life.first < 0) life.first = s;
                life.last = s;
            }
    return life;
}

/* Every stored value has one buffer, of its kind and size; where it lies, it fits. */
static void check_buffers(const char *name, const Plan *plan)
{
    const Graph *g = plan->graph;
    int stored = 0;
    for (NodeId id = 0; id < g->node_count; id++) {
        Op op = graph_node(g, id)->op;
        stored += op == OP_INPUT || op == OP_PARAM || op == OP_WRITE;
    }
    assert_int_equal(plan->buffer_count, stored);
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *b = &plan->buffers[i];
        const Node *node = node_of(plan, i);
        int symbols;
        int64_t least = type_elements(&node->type, &symbols);
        assert_true(b->batched == (symbols > 0));
        assert_true(node->layout.rank > 0 ? b->elements >= least : b->elements == least);
        if (b->kind == BUFFER_INPUT) assert_int_equal(node->op, OP_INPUT);
        if (b->kind == BUFFER_PARAM) assert_int_equal(node->op, OP_PARAM);
        if (b->kind == BUFFER_OUTPUT) assert_int_equal(g->outputs[b->index].value, b->value);
        if (b->kind != BUFFER_ARENA && b->kind != BUFFER_PREPARED) continue;
        assert_true(b->batched == (b->kind == BUFFER_ARENA));
        assert_int_equal(b->offset % ALIGNMENT, 0);
        int64_t room = b->batched ? plan->arena_floats : plan->prepared_floats;
        if (b->offset < 0 || b->offset + b->elements > room)
            fail_msg("%s: buffer %d lies outside its block", name, i);
        Life life = life_of(plan, i);
        assert_int_equal(b->first_step, life.first);
        assert_int_equal(b->last_step, life.last);
        if (life.first < 0) fail_msg("%s: buffer %d is never used", name, i);
    }
}

/* Nothing that is needed at the same time shares memory. What is prepared is needed for ever. */
static void check_overlap(const char *name, const Plan *plan)
{
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *a = &plan->buffers[i];
        if (a->kind != BUFFER_ARENA && a->kind != BUFFER_PREPARED) continue;
        for (int k = 0; k < i; k++) {
            const Buffer *b = &plan->buffers[k];
            if (b->kind != a->kind) continue;
            Life one = life_of(plan, i), other = life_of(plan, k);
            bool together =
                a->kind == BUFFER_PREPARED || (one.first <= other.last && other.first <= one.last);
            bool apart =
                a->offset + a->elements <= b->offset || b->offset + b->elements <= a->offset;
            if (together && !apart) fail_msg("%s: buffers %d and %d overlap", name, i, k);
        }
    }
}

/* The arena holds what lives at once, and little more. */
static void check_size(const char *name, const Plan *plan)
{
    int64_t peak = 0;
    for (int s = 0; s < plan->step_count; s++) {
        int64_t live = 0;
        for (int i = 0; i < plan->buffer_count; i++) {
            if (plan->buffers[i].kind != BUFFER_ARENA) continue;
            Life life = life_of(plan, i);
            if (life.first <= s && s <= life.last) live += floats_of(&plan->buffers[i]);
        }
        if (live > peak) peak = live;
    }
    assert_int_equal(plan->peak_floats, peak);
    if (plan->arena_floats < peak || (double)plan->arena_floats > 1.2 * (double)peak)
        fail_msg("%s: an arena of %lld floats for %lld", name, (long long)plan->arena_floats,
                 (long long)peak);
}

static void check_memory(const char *name, const Plan *plan)
{
    check_buffers(name, plan);
    check_overlap(name, plan);
    check_size(name, plan);
}

static void test_memory(void **state)
{
    (void)state;
    for_each_plan(check_memory);
}

/* ---- steps ---------------------------------------------------------------------------------- */

static int argument_of(const Plan *plan, const Step *step, NodeId value)
{
    for (int i = 0; i < step->argument_count; i++)
        if (plan->buffers[step->arguments[i]].value == value) return i;
    return -1;
}

/* Are the arguments what the kernel reads, in the order of first use, then what it writes? */
static void check_arguments(const char *name, const Plan *plan, const Step *step)
{
    NodeId first, end;
    int next = 0;
    kernel_range(plan->graph, step->kernel, &first, &end);
    for (int writing = 0; writing < 2; writing++) {
        for (NodeId id = first; id < end; id++) {
            const Node *node = graph_node(plan->graph, id);
            NodeId value = writing ? id : node->operand_count ? node->operands[0] : NO_NODE;
            if (node->op != (writing ? OP_WRITE : OP_READ)) continue;
            if (!writing && value >= first) continue; /* a read of a read */
            int at = argument_of(plan, step, value);
            if (at > next || at < 0)
                fail_msg("%s: kernel %d has its arguments in disorder", name, step->kernel);
            next += at == next;
        }
    }
    assert_int_equal(next, step->argument_count);
}

static void check_steps(const char *name, const Plan *plan)
{
    assert_int_equal(plan->step_count, plan->graph->kernel_count);
    for (int s = 0; s < plan->step_count; s++) {
        const Step *step = &plan->steps[s];
        check_arguments(name, plan, step);
        for (int k = 0; k < s; k++) assert_int_not_equal(plan->steps[k].kernel, step->kernel);
        for (int i = 0; i < step->argument_count; i++) {
            int argument = step->arguments[i];
            const Buffer *b = &plan->buffers[argument];
            bool prepared = b->kind == BUFFER_PARAM || b->kind == BUFFER_PREPARED;
            if (step->prepare && !prepared)
                fail_msg("%s: prepare step %d uses an activation", name, s);
            if (writes(plan, step, argument)) {
                assert_true(b->kind == (step->prepare ? BUFFER_PREPARED : BUFFER_ARENA) ||
                            b->kind == BUFFER_OUTPUT);
            } else if (b->kind != BUFFER_INPUT && b->kind != BUFFER_PARAM) {
                assert_true(life_of(plan, argument).first < s);
            }
        }
    }
}

static void test_steps(void **state)
{
    (void)state;
    for_each_plan(check_steps);
}

/* Is a step needed for an output of the entry? Through what it writes, that other steps read. */
static bool is_needed(const Plan *plan, int s, const char *entry)
{
    const Step *step = &plan->steps[s];
    for (int i = 0; i < step->argument_count; i++) {
        int buffer = step->arguments[i];
        if (!writes(plan, step, buffer)) continue;
        for (uint32_t o = 0; o < plan->graph->output_count; o++)
            if (plan->graph->outputs[o].value == plan->buffers[buffer].value &&
                strcmp(plan->graph->outputs[o].entry, entry) == 0)
                return true;
        for (int later = s + 1; later < plan->step_count; later++) {
            NodeId value = plan->buffers[buffer].value;
            if (argument_of(plan, &plan->steps[later], value) >= 0 &&
                (plan->steps[later].entries & entry_bit(plan, entry)))
                return true;
        }
    }
    return false;
}

/* A forward copies no feature, and features stop before the head. */
static void check_entries(const char *name, const Plan *plan)
{
    unsigned forward = entry_bit(plan, "forward"), features = entry_bit(plan, "features");
    assert_true(forward != 0);
    int copies = 0;
    for (int s = plan->step_count; s-- > 0;) {
        const Step *step = &plan->steps[s];
        for (int e = 0; e < plan->entry_count; e++)
            if (is_needed(plan, s, plan->entry[e]) != ((step->entries >> e & 1) != 0))
                fail_msg("%s: step %d has entries %u", name, s, step->entries);
        assert_true(step->entries != 0);
        for (int i = 0; i < step->argument_count; i++) {
            const Buffer *b = &plan->buffers[step->arguments[i]];
            if (b->kind != BUFFER_OUTPUT) continue;
            const Output *output = &plan->graph->outputs[b->index];
            bool logits = strcmp(output->name, "logits") == 0;
            assert_int_equal(step->entries, logits ? forward : features);
            copies += !logits;
        }
    }
    assert_int_equal(copies, plan->graph->output_count - 1);
}

static void test_entries(void **state)
{
    (void)state;
    for_each_plan(check_entries);
}

/* With a backward pass, which begins at gradients that are given, too. */
static const Plan *training_plan(Arena *arena, const Graph *graph, const Target *target)
{
    Diag diag = diag_new(arena);
    const PipelineOptions options = {.train = true, .given = true, .rewrite_limit = INT64_MAX};
    graph = pipeline_run(arena, graph, target, &options, &diag, NULL);
    if (!graph) compile_failed(&diag, "a backward pass");
    return plan_memory(arena, graph);
}

/* What the forward needs comes first, and takes nothing but images: so it can be run alone, and the rest
 * of the backward entry after it. */
static void check_parts(const Plan *plan)
{
    unsigned forward = entry_bit(plan, "forward") | entry_bit(plan, "features");
    int rest = 0;
    for (int s = 0; s < plan->step_count; s++) {
        const Step *step = &plan->steps[s];
        bool later = !step->prepare && !(step->entries & forward);
        assert_true(later || rest == 0);
        rest += later;
        for (int i = 0; i < step->argument_count && !later; i++) {
            const Node *node = node_of(plan, step->arguments[i]);
            if (node->op == OP_INPUT) assert_string_equal(node->attributes.name, "input");
        }
    }
    assert_true(rest > 10);
}

static void test_parts(void **state)
{
    (void)state;
    Target target = wide_target;
    for (int i = 0; i < 2 * (int)ARRAY_SIZE(tiny_models); i++) {
        Arena arena = {0};
        target.stages_operands = i % 2;
        const Model *model = compile_tiny(&arena, i / 2, 37, 61);
        const Plan *plan = training_plan(&arena, build_graph(&arena, model), &target);
        check_steps(tiny_models[i / 2].name, plan);
        check_parts(plan);
        arena_free(&arena);
    }
}

/* ---- what is stored ------------------------------------------------------------------------- */

static bool has_axes(const Type *type, const char *axes)
{
    AxisNames names = names_make(axes);
    if (type->rank != names.count) return false;
    for (int i = 0; i < type->rank; i++)
        if (strcmp(type->axis[i].name, names.name[i]) != 0) return false;
    return true;
}

/* Is what a kernel wrote an operand of a product? */
static bool feeds_product(const Graph *graph, NodeId write)
{
    for (NodeId id = write + 1; id < graph->node_count; id++) {
        const Node *linear = graph_node(graph, id);
        if (linear->op != OP_LINEAR) continue;
        const Node *read = graph_node(graph, linear->operands[0]);
        if (read->op == OP_READ && read->operands[0] == write) return true;
    }
    return false;
}

/* Normalised or hidden values of an image that are few beside the weights of their MLP: two kernels share out its lanes then. */
static bool is_beside_many_weights(const Graph *graph, NodeId write, Op made_by)
{
    enum { MANY_CHANNELS = 512, FEW_POSITIONS = 64 };
    const Type *type = graph_type(graph, write);
    bool is_kind = (made_by == OP_LAYERNORM && has_axes(type, "b, h, w, c")) ||
                   (made_by == OP_GELU && has_axes(type, "b, h, w, k"));
    return is_kind && type->axis[3].extent >= MANY_CHANNELS &&
           type->axis[1].extent * type->axis[2].extent <= FEW_POSITIONS &&
           feeds_product(graph, write);
}

/* Is it a tensor that a forward may store: a residual tensor (tokens by channels, or by the parts
 * of a split that lie likewise), an image that was resampled, a pooled or shortcut vector, an
 * output? */
static bool may_be_stored(const Plan *plan, const Buffer *b)
{
    static const char *const allowed[] = {
        "b, h, w, c", "b, h, w, raft, group", "b, c, y, x", "b, c", "b, d", "b, class"};
    const Type *type = graph_type(plan->graph, b->value);
    const Node *write = graph_node(plan->graph, b->value);
    Op made_by = graph_node(plan->graph, write->operands[0])->op;
    if (b->kind == BUFFER_OUTPUT && has_axes(type, "b, c, h, w")) return made_by == OP_READ;
    if (is_beside_many_weights(plan->graph, b->value, made_by)) return true;
    /* A normalised tensor has the type of a residual one: what it is made by tells. */
    if (made_by != OP_ADD && made_by != OP_LINEAR && made_by != OP_MEAN && made_by != OP_RESAMPLE)
        return false;
    for (size_t i = 0; i < ARRAY_SIZE(allowed); i++)
        if (has_axes(type, allowed[i])) return true;
    return false;
}

/* The first buffer of a forward that should not be, or -1. */
static int find_materialised(const Plan *plan)
{
    for (int i = 0; i < plan->buffer_count; i++) {
        const Buffer *b = &plan->buffers[i];
        if ((b->kind == BUFFER_ARENA || b->kind == BUFFER_OUTPUT) && !may_be_stored(plan, b))
            return i;
    }
    return -1;
}

/* What fusion is about: no normalised, unfolded, rearranged or hidden tensor is ever stored, but where there are many times as
 * many weights. */
static void check_nothing_materialised(const char *name, const Plan *plan)
{
    int found = find_materialised(plan);
    if (found < 0) return;
    Arena arena = {0};
    Text text = text_new(&arena);
    node_print(plan->graph, plan->buffers[found].value, &text);
    fail_msg("%s stores %s", name, text.data);
}

static void test_nothing_materialised(void **state)
{
    (void)state;
    for_each_plan(check_nothing_materialised);
}

/* The check above sees what is there without each of the passes that make it so. */
static void test_materialised_without_passes(void **state)
{
    (void)state;
    static const char *const disabled[] = {"merge_unfolds", "fold_rearrange", "fuse_mlp",
                                           "fuse_head"};
    for (size_t i = 0; i < ARRAY_SIZE(disabled); i++) {
        Arena arena = {0};
        const Graph *graph = build_graph(&arena, compile_published(&arena, "raftmlp-s", 0, 0));
        graph = compile_passes(&arena, graph, &wide_target, disabled[i]);
        const Plan *plan = plan_memory(&arena, graph);
        if (find_materialised(plan) < 0) fail_msg("nothing is stored without %s", disabled[i]);
        check_memory(disabled[i], plan);
        check_steps(disabled[i], plan);
        check_entries(disabled[i], plan);
        arena_free(&arena);
    }
}

/* Two residual tensors of the first level are all that RaftMLP-S at 224 has to hold. */
static void test_small_arena(void **state)
{
    (void)state;
    Arena arena = {0};
    const Plan *plan = plan_of(&arena, compile_published(&arena, "raftmlp-s", 224, 224));
    assert_int_equal(plan->peak_floats, 2 * 56 * 56 * 64);
    assert_int_equal(plan->arena_floats, plan->peak_floats);
    arena_free(&arena);
}

/* ---- the printed plan ----------------------------------------------------------------------- */

static void test_print(void **state)
{
    (void)state;
    Arena arena = {0};
    const Plan *plan =
        plan_memory(&arena, compile_text(&arena, "graph g {\n"
                                                 "input @x : f32[b, c 5]\n"
                                                 "param @w stored [5] : f32[c 5]\n"
                                                 "kernel for (c 5) {\n"
                                                 "%0 = read @w [c] : f32[c 5]\n"
                                                 "%1 = gelu %0 : f32[c 5]\n"
                                                 "%2 = write %1 [c] : f32[c 5]\n"
                                                 "}\n"
                                                 "kernel for (b) {\n"
                                                 "%3 = read @x [b, c] : f32[b, c 5]\n"
                                                 "%4 = read %2 [c] : f32[c 5]\n"
                                                 "%5 = mul %3, %4 : f32[b, c 5]\n"
                                                 "%6 = write %5 [b, c] : f32[b, c 5]\n"
                                                 "}\n"
                                                 "kernel for (b) {\n"
                                                 "%7 = read %6 [b, c] : f32[b, c 5]\n"
                                                 "%8 = gelu %7 : f32[b, c 5]\n"
                                                 "%9 = write %8 [b, c] : f32[b, c 5]\n"
                                                 "}\n"
                                                 "output forward.y = %9\n"
                                                 "}\n"));
    Text text = text_new(&arena);
    plan_print(plan, &text);
    assert_string_equal(text.data, "arena 64 bytes an image, lower bound 64; prepared 64 bytes\n"
                                   "buffer    bytes/image  offset       steps      type\n"
                                   "input               20            0    1..1     f32[b, c 5]\n"
                                   "prepared            20            0    0..1     f32[c 5]\n"
                                   "arena               20            0    1..2     f32[b, c 5]\n"
                                   "output              20            0    2..2     f32[b, c 5]\n");
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_steps),
        cmocka_unit_test(test_entries),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_nothing_materialised),
        cmocka_unit_test(test_materialised_without_passes),
        cmocka_unit_test(test_small_arena),
        cmocka_unit_test(test_print),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
