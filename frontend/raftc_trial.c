/* raftc_trial.c: compiles one kernel with one choice, checks its bits, and times it against another. */
#include "frontend/raftc_trial.h"

#include <float.h>
#include <string.h>

/* ---- compiling ------------------------------------------------------------------------------- */

typedef struct Wish {
    const Choice *choice; /* NULL: by rule */
    Choice *taken;
    bool asked;
} Wish;

static bool grant(void *user, const Graph *graph, int kernel, Choice *choice)
{
    Wish *wish = user;
    (void)graph, (void)kernel;
    wish->asked = true;
    if (wish->choice) *choice = *wish->choice;
    *wish->taken = *choice;
    return wish->choice;
}

static Exit compile(Trial *trial, Bench *bench, const Choice *choice)
{
    const Options *options = bench->session->options;
    const Compilation *c = bench->compilation;
    Wish wish = {choice, &trial->choice, false};
    const PipelineOptions pipeline = {.only = "choose_tiles,pack_weights",
                                      .disabled = options->disabled_passes.item,
                                      .disabled_count = (int)options->disabled_passes.count,
                                      .choices = {grant, &wish},
                                      .rewrite_limit = INT64_MAX};
    Diag *diag = bench->session->diag;
    const Graph *graph =
        pipeline_run(&trial->arena, bench->graph, &c->target, &pipeline, diag, NULL);
    if (!graph) return EXIT_BUG;
    if (!wish.asked) return EXIT_MISSED;
    const Plan *plan = plan_memory(&trial->arena, graph);
    if (!program_check(plan, diag)) return EXIT_BUG;
    trial->code = llvm_compile(&trial->arena, plan, &c->cpu, diag);
    const RaftProgram *program = trial->code ? llvm_load(trial->code, diag) : NULL;
    if (!program) return EXIT_UNDONE;
    char message[256];
    const RaftShellOptions shell = {.size = sizeof shell, .threads = bench->session->threads};
    if (raft_shell_create(program, &shell, &trial->shell, message, sizeof message) != RAFT_OK)
        return session_fail(bench->session, EXIT_UNDONE, "%s", message);
    return EXIT_DONE;
}

/* ---- running --------------------------------------------------------------------------------- */

static const float *make_up(Arena *arena, int64_t elements)
{
    float *data = arena_array(arena, (size_t)elements, sizeof *data);
    raft_fill_input(elements, data);
    return data;
}

/* What is read is made up by the first trial; the program of every other has the same tensors. */
static void make_tensors(Bench *bench)
{
    Arena *arena = bench->session->arena;
    const Graph *graph = bench->graph;
    if (bench->inputs) return;
    bench->inputs = arena_array(arena, graph->node_count, sizeof *bench->inputs);
    bench->parameters = arena_array(arena, graph->node_count, sizeof *bench->parameters);
    bench->outputs = arena_array(arena, graph->output_count, sizeof *bench->outputs);
    int inputs = 0, parameters = 0;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        int64_t elements = type_elements(&node->type, NULL);
        if (node->op == OP_INPUT) bench->inputs[inputs++] = make_up(arena, elements * bench->batch);
        if (node->op == OP_PARAM) bench->parameters[parameters++] = make_up(arena, elements);
    }
    size_t floats = 0;
    for (uint32_t i = 0; i < graph->output_count; i++)
        floats += (size_t)(output_elements(graph, &graph->outputs[i]) * bench->batch);
    bench->result_bytes = floats * sizeof(float);
    float *room = arena_array(arena, floats, sizeof(float));
    for (uint32_t i = 0; i < graph->output_count; i++) {
        bench->outputs[i] = room;
        room += output_elements(graph, &graph->outputs[i]) * bench->batch;
    }
}

/* *seconds: of the thread that took longest. */
static Exit run(Trial *trial, const Bench *bench, double *seconds)
{
    int threads = bench->session->threads;
    memset(trial->seconds, 0, (size_t)threads * sizeof *trial->seconds);
    RaftStatus status =
        raft_shell_run(trial->shell, 1, bench->batch, bench->inputs, bench->outputs);
    if (status != RAFT_OK)
        return session_fail(bench->session, EXIT_UNDONE, "%s", raft_shell_error(trial->shell));
    *seconds = 0;
    for (int i = 0; i < threads; i++)
        if (trial->seconds[i] > *seconds) *seconds = trial->seconds[i];
    return EXIT_DONE;
}

static Exit set_parameters(Trial *trial, const Bench *bench)
{
    int number = 0;
    for (NodeId id = 0; id < bench->graph->node_count; id++) {
        const Node *node = graph_node(bench->graph, id);
        if (node->op != OP_PARAM) continue;
        RaftStatus status =
            raft_shell_set_parameter(trial->shell, node->attributes.name, node->attributes.stored,
                                     node->attributes.stored_rank, bench->parameters[number++]);
        if (status != RAFT_OK)
            return session_fail(bench->session, EXIT_UNDONE, "%s", raft_shell_error(trial->shell));
    }
    return EXIT_DONE;
}

static Exit check_bits(Trial *trial, Bench *bench)
{
    double seconds;
    Exit exit = run(trial, bench, &seconds);
    if (exit != EXIT_DONE) return exit;
    if (!bench->expected) {
        bench->expected = arena_alloc(bench->session->arena, bench->result_bytes);
        memcpy(bench->expected, bench->outputs[0], bench->result_bytes);
    }
    if (memcmp(bench->expected, bench->outputs[0], bench->result_bytes) == 0) return EXIT_DONE;
    Text text = text_new(&trial->arena);
    choice_print(bench->graph, 0, &trial->choice, &text);
    return session_fail(bench->session, EXIT_BUG,
                        "a choice changes results, which is a fault of raftc: %s of %s", text.data,
                        kernel_key(&trial->arena, bench->graph, 0, false));
}

Exit trial_open(Trial *trial, Bench *bench, const Choice *choice)
{
    *trial = (Trial){.arena.out_of_memory = bench->session->arena->out_of_memory};
    Exit exit = compile(trial, bench, choice);
    if (exit != EXIT_DONE) return exit;
    make_tensors(bench);
    trial->seconds =
        arena_array(&trial->arena, (size_t)bench->session->threads, sizeof *trial->seconds);
    raft_shell_measure(trial->shell, trial->seconds, NULL);
    exit = set_parameters(trial, bench);
    return exit == EXIT_DONE ? check_bits(trial, bench) : exit;
}

void trial_close(Trial *trial)
{
    raft_shell_destroy(trial->shell);
    llvm_free(trial->code);
    arena_free(&trial->arena);
    *trial = (Trial){.shell = NULL};
}

Exit trial_compare(Bench *bench, Trial *a, Trial *b, double seconds, double *least_a,
                   double *least_b)
{
    enum { LEAST_ROUNDS = 4 };
    const double hopeless = 1.3;
    double begin = seconds_now();
    *least_a = *least_b = DBL_MAX;
    for (int round = 0; round < LEAST_ROUNDS || seconds_now() - begin < seconds; round++) {
        double taken_a = 0, taken_b = 0;
        Exit exit = run(a, bench, &taken_a);
        if (exit == EXIT_DONE) exit = run(b, bench, &taken_b);
        if (exit != EXIT_DONE) return exit;
        if (taken_a < *least_a) *least_a = taken_a;
        if (taken_b < *least_b) *least_b = taken_b;
        if (round + 1 >= LEAST_ROUNDS && *least_b > hopeless * *least_a) break;
    }
    return EXIT_DONE;
}
