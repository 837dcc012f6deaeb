/* test_optimiser.c: the steps of the optimisers against PyTorch's (data/optimisers). */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "frontend/frontend.h"
#include "runtime/raft.h"
#include "runtime/training.h"

enum { STEPS = 6, MATRIX = 20, ALL = 25 };

static RaftWeights *golden; /* opened by main */

static const float *data_of(const char *format, const char *name)
{
    char text[64];
    snprintf(text, sizeof text, format, name);
    const RaftTensor *tensor = raft_weights_find(golden, text);
    if (!tensor) fail_msg("%s is missing", text);
    return tensor->data;
}

typedef struct Steps {
    Arena arena;
    Diag diag;
    RaftOptimiser rule;
    const Graph *graph;
    float g[ALL], decays[ALL], state[4][ALL], next[4][ALL];
    float number[RAFT_OPTIMISER_NUMBERS];
} Steps;

static const char *const names[] = {"w", "m", "v", "e"};

/* Step `step`, from 0. */
static void take_step(Steps *s, int step)
{
    RaftOptimiserNumber numbers[RAFT_OPTIMISER_NUMBERS];
    ReferenceTensor tensors[RAFT_OPTIMISER_NUMBERS + 6] = {{"g", s->g}, {"decays", s->decays}};
    void *outputs[4];
    int count = 2;
    for (int k = 0; k < 4; k++) tensors[count++] = (ReferenceTensor){names[k], s->state[k]};
    int number_count = raft_optimiser_numbers(&s->rule, step + 1, 0.01 * (step + 1),
                                              raft_norm(s->g, ALL, 2), numbers);
    for (int i = 0; i < number_count; i++) {
        s->number[i] = (float)numbers[i].value;
        tensors[count++] = (ReferenceTensor){numbers[i].name, &s->number[i]};
    }
    for (uint32_t i = 0; i < s->graph->output_count; i++)
        for (int k = 0; k < 4; k++)
            if (strcmp(s->graph->outputs[i].name, names[k]) == 0) outputs[i] = s->next[k];
    if (!reference_run(s->graph, 1, tensors, count, "step", false, outputs, &s->diag))
        fail_msg("%s", s->diag.messages[0].text);
    memcpy(s->state, s->next, sizeof s->state);
}

static void expect_near(const char *what, int step, const float *found, const float *wanted)
{
    for (int i = 0; i < ALL; i++)
        if (!(fabs((double)found[i] - (double)wanted[i]) <=
              2e-6 * fmax(1, fabs((double)wanted[i]))))
            fail_msg("%s of element %d after step %d: %.9g, not %.9g", what, i, step + 1,
                     (double)found[i], (double)wanted[i]);
}

static void check(const char *name, RaftOptimiser rule)
{
    Steps s = {.rule = rule};
    s.diag = diag_new(&s.arena);
    const OptimiserParts parts = {.sgd = rule.kind == RAFT_SGD,
                                  .clips = rule.most_norm > 0,
                                  .exempts = rule.exempts,
                                  .averages = rule.average > 0};
    s.graph = build_optimiser(&s.arena, "optimiser", &parts, ALL);
    assert_true(graph_verify(s.graph, &s.diag));
    for (int i = 0; i < MATRIX; i++) s.decays[i] = 1;
    memcpy(s.state[0], data_of("%s", "start"), sizeof s.state[0]);
    memcpy(s.state[3], s.state[0], sizeof s.state[3]);
    for (int step = 0; step < STEPS; step++) {
        memcpy(s.g, data_of("%s", "gradients") + ALL * step, sizeof s.g);
        take_step(&s, step);
        expect_near("w", step, s.state[0], data_of("%s.w", name) + ALL * step);
        expect_near("e", step, s.state[3], data_of("%s.e", name) + ALL * step);
    }
    arena_free(&s.arena);
}

static void test_adamw(void **state)
{
    (void)state;
    check("adamw", (RaftOptimiser){.weight_decay = 0.05, .average = 0.9});
    check("adamw-clip-exempt",
          (RaftOptimiser){.weight_decay = 0.5, .average = 0.9, .exempts = true, .most_norm = 3});
}

static void test_sgd(void **state)
{
    (void)state;
    const RaftOptimiser sgd = {.kind = RAFT_SGD, .average = 0.9};
    RaftOptimiser rule = sgd;
    rule.weight_decay = 0.05;
    rule.momentum = 0.9;
    check("sgd", rule);
    rule = sgd;
    rule.weight_decay = 0.5;
    rule.momentum = 0.8;
    rule.exempts = true;
    rule.most_norm = 3;
    check("sgd-clip-exempt", rule);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_adamw), cmocka_unit_test(test_sgd)};
    RaftError error;
    if (raft_weights_open(TEST_DATA "/data/optimisers/optimisers.safetensors", &golden, &error)) {
        fprintf(stderr, "%s\n", error.message);
        return 1;
    }
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    raft_weights_close(golden);
    return failed;
}
