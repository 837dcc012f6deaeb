/* test_arena.c: the memory plan in a run: training, with all values kept and with those computed again that
 * can be, uses the arena as planned; and a plan in which values overlap is found out, both as it stands and
 * in the run. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/compile.h"
#include "tests/plan_watch.h"
#include "tests/random.h"

enum { BATCH = 2 };

typedef struct Trained {
    Arena arena;
    Diag diag;
    const Plan *plan;
    CpuCode *code;
    const RaftProgram *program;
} Trained;

/* A tiny model with its backward pass, without the pass `disabled` if that is not NULL. */
static void open_trained_without(Trained *t, int model, int64_t recompute, const char *disabled)
{
    const PipelineOptions options = {.train = true,
                                     .given = true,
                                     .rewrite_limit = INT64_MAX,
                                     .recompute = recompute,
                                     .disabled = &disabled,
                                     .disabled_count = disabled != NULL};
    const CpuOptions cpu = {0};
    Target target = wide_target;
    *t = (Trained){0};
    t->diag = diag_new(&t->arena);
    if (llvm_available()) assert_true(llvm_target(&cpu, &target, &t->diag));
    const Graph *graph = build_graph(&t->arena, compile_tiny(&t->arena, model, 0, 0));
    graph = pipeline_run(&t->arena, graph, &target, &options, &t->diag, NULL);
    assert_non_null(graph);
    t->plan = plan_memory(&t->arena, graph);
    if (!plan_verify(t->plan, &t->diag)) compile_failed(&t->diag, tiny_models[model].name);
    if (!llvm_available()) return;
    t->code = llvm_compile(&t->arena, t->plan, &cpu, &t->diag);
    t->program = t->code ? llvm_load(t->code, &t->diag) : NULL;
    assert_non_null(t->program);
}

static void open_trained(Trained *t, int model, int64_t recompute)
{
    open_trained_without(t, model, recompute, NULL);
}

static void close_trained(Trained *t)
{
    llvm_free(t->code);
    arena_free(&t->arena);
}

static float *draw(Trained *t, int64_t floats, Random *random)
{
    float *data = arena_array(&t->arena, (size_t)floats, sizeof *data);
    for (int64_t i = 0; i < floats; i++) data[i] = (float)random_real(random);
    return data;
}

/* A forward and backward of `program`, a copy of that of `t`; what is seen. */
static PlanWatch run_watched(Trained *t, const RaftProgram *program)
{
    PlanWatch watch = {.plan = t->plan, .placed = program->buffer};
    Random random = {7};
    RaftShell *shell;
    RaftShellOptions options = {.size = sizeof options, .threads = 1};
    watch.sum = arena_array(&t->arena, (size_t)t->plan->buffer_count, sizeof *watch.sum);
    assert_int_equal(raft_shell_create(program, &options, &shell, NULL, 0), RAFT_OK);
    for (int i = 0; i < program->parameter_count; i++) {
        const RaftTensorInfo *info = &program->parameter[i];
        assert_int_equal(raft_shell_set_parameter(shell, info->name, info->shape, info->rank,
                                                  draw(t, info->elements, &random)),
                         RAFT_OK);
    }
    const float **inputs = arena_array(&t->arena, (size_t)program->input_count, sizeof *inputs);
    float **outputs = arena_array(&t->arena, (size_t)program->output_count, sizeof *outputs);
    for (int i = 0; i < program->input_count; i++)
        inputs[i] = draw(t, BATCH * program->input[i].elements, &random);
    for (int i = 0; i < program->output_count; i++)
        outputs[i] = draw(t, BATCH * program->output[i].elements, &random);
    raft_shell_watch(shell, watch_plan, &watch);
    assert_int_equal(raft_shell_run(shell, program->backward_entry, BATCH, inputs, outputs),
                     RAFT_OK);
    raft_shell_destroy(shell);
    return watch;
}

static void test_as_planned(void **state)
{
    (void)state;
    int64_t kept[3];
    for (int i = 0; i < 3;
         i++) { /* fused gradients compute again of their own what would be asked for */
        Trained t;
        open_trained_without(&t, 0, i == 1 ? INT64_MAX : 0, i < 2 ? "fuse_gradients" : NULL);
        kept[i] = t.plan->arena_floats;
        if (t.program) {
            assert_int_equal(t.program->arena_floats, t.plan->arena_floats);
            PlanWatch watch = run_watched(&t, t.program);
            if (watch.why) fail_msg("step %d: a value %s", watch.step, watch.why);
            assert_true(watch.looked > 100);
        }
        close_trained(&t);
    }
    assert_true(kept[1] < kept[0]);
    assert_true(kept[2] < kept[0]);
}

/* Two values of the arena of which the second is written while the first is yet to be read. */
static void find_pair(const Plan *plan, int *one, int *other)
{
    for (*one = 0; *one < plan->buffer_count; ++*one)
        for (*other = 0; *other < plan->buffer_count; ++*other) {
            const Buffer *a = &plan->buffers[*one], *b = &plan->buffers[*other];
            if (a->kind == BUFFER_ARENA && b->kind == BUFFER_ARENA &&
                a->first_step < b->first_step && b->first_step < a->last_step &&
                b->last_step < a->last_step && b->elements <= a->elements)
                return;
        }
    fail_msg("no two values live at the same time");
}

static void expect_fault(const Plan *plan, const char *words)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    assert_false(plan_verify(plan, &diag));
    assert_int_equal(diag.errors, 1);
    if (!strstr(diag.messages[0].text, words)) fail_msg("%s", diag.messages[0].text);
    arena_free(&arena);
}

static void test_planted_overlap(void **state)
{
    (void)state;
    Trained t;
    int one = 0, other = 0;
    open_trained(&t, 0, INT64_MAX);
    Plan *plan = (Plan *)t.plan;
    find_pair(plan, &one, &other);
    const int64_t at = plan->buffers[other].offset;
    plan->buffers[other].offset = plan->buffers[one].offset;
    expect_fault(plan, "overlaps another that is alive, too");
    plan->buffers[other].offset = plan->arena_floats - plan->buffers[other].elements + 16;
    expect_fault(plan, "lies outside its block");
    plan->buffers[other].offset = at;
    assert_true(plan_verify(plan, &t.diag));
    if (t.program) {
        RaftProgram program = *t.program;
        RaftBuffer *buffers = arena_array(&t.arena, (size_t)program.buffer_count, sizeof *buffers);
        memcpy(buffers, program.buffer, (size_t)program.buffer_count * sizeof *buffers);
        buffers[other].offset = buffers[one].offset;
        program.buffer = buffers;
        assert_string_equal(run_watched(&t, &program).why, "has changed");
    }
    close_trained(&t);
}

/* Most steps of a backward pass need not wait; of those that do each has a reason. */
static void test_waits(void **state)
{
    (void)state;
    Trained t;
    int steps = 0, waits = 0, first = 0;
    open_trained(&t, 0, 0);
    Plan *plan = (Plan *)t.plan;
    for (int s = 0; s < plan->step_count; s++) {
        if (plan->steps[s].prepare) continue;
        steps++;
        waits += plan->steps[s].waits;
    }
    assert_in_range(2 * waits, 2, steps);
    for (int s = 0; s < plan->step_count; s++) {
        bool full = s - first >= MOST_TOGETHER;
        if (!plan->steps[s].waits) continue;
        if (!plan->steps[s].prepare && s > 0 && !plan->steps[s - 1].prepare) {
            plan->steps[s].waits = false;
            expect_fault(plan, full ? "is of too many steps together"
                                    : "is used beside a step that it depends on");
            plan->steps[s].waits = true;
        }
        first = s;
    }
    assert_true(plan_verify(plan, &t.diag));
    close_trained(&t);
}

/* Of every tiny model, at sizes that make all layers resample. */
static void test_models(void **state)
{
    (void)state;
    for (int i = 0; i < 4 * (int)ARRAY_SIZE(tiny_models); i++) {
        Arena arena = {0};
        Diag diag = diag_new(&arena);
        const PipelineOptions options = {.train = true,
                                         .given = i & 1,
                                         .recompute = i & 2 ? INT64_MAX : 3,
                                         .rewrite_limit = INT64_MAX};
        const Graph *graph = build_graph(&arena, compile_tiny(&arena, i / 4, 37, 61));
        graph = pipeline_run(&arena, graph, &wide_target, &options, &diag, NULL);
        if (!graph || !plan_verify(plan_memory(&arena, graph), &diag))
            compile_failed(&diag, tiny_models[i / 4].name);
        arena_free(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_planned),
        cmocka_unit_test(test_planted_overlap),
        cmocka_unit_test(test_waits),
        cmocka_unit_test(test_models),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
