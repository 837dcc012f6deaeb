/* raftc_eval.c: raftc eval: the accuracy of a model on the validation part of a data set. */
#include "frontend/raftc_data.h"
#include "frontend/raftc_json.h"

enum { MOST_AT_ONCE = 64 /* images in a forward: more take memory, and give the same */ };

typedef struct Evaluation {
    Session *session;
    Compilation compilation;
    Engine engine;
    Data data;
    RaftDataset *dataset;
    Scorer scorer;
    float **outputs; /* of the graph; NULL where it is not computed */
} Evaluation;

static Exit forward(void *user, int64_t count)
{
    Evaluation *e = user;
    return engine_run(&e->engine, count, e->scorer.images, false, e->outputs);
}

static void prepare(Evaluation *e)
{
    const Graph *graph = e->engine.graph;
    int64_t room =
        2 * e->data.loading.batch < MOST_AT_ONCE ? 2 * e->data.loading.batch : MOST_AT_ONCE;
    e->scorer = (Scorer){.room = room, .forward = forward, .user = e};
    int64_t pixels = type_elements(&e->engine.input->type, NULL);
    Arena *arena = e->session->arena;
    e->scorer.images = arena_array(arena, (size_t)(room * pixels), sizeof(float));
    e->scorer.logits =
        arena_array(arena, (size_t)(room * e->data.settings->num_classes), sizeof(float));
    e->outputs = arena_array(arena, graph->output_count, sizeof *e->outputs);
    for (uint32_t i = 0; i < graph->output_count; i++)
        if (engine_computes(&graph->outputs[i], false)) e->outputs[i] = e->scorer.logits;
}

static void print_score(const Session *session, double smoothing, const Score *score)
{
    if (session->options->json) {
        json_print(json_pack("{s:I, s:f, s:f, s:f, s:f, s:I, s:I}", "images",
                             (json_int_t)score->images, "top1", score->top1, "top5", score->top5,
                             "loss", score->loss, "cross_entropy", score->plain, "truncated",
                             (json_int_t)score->truncated, "unreadable",
                             (json_int_t)score->unreadable));
        return;
    }
    printf("%s images\n", grouped(session->arena, score->images));
    printf("  top-1          %7.2f %%\n", 100 * score->top1);
    printf("  top-5          %7.2f %%\n", 100 * score->top5);
    printf("  loss           %9.4f  smoothed by %g\n", score->loss, smoothing);
    printf("  cross-entropy  %9.4f\n", score->plain);
}

static Exit evaluate(Evaluation *e)
{
    Session *session = e->session;
    const Options *options = session->options;
    Compilation *c = &e->compilation;
    Exit exit = compilation_load(session, options->arguments.item[0], c);
    if (exit != EXIT_DONE) return exit;
    if (!c->settings)
        return session_fail(session, EXIT_USAGE,
                            "%s is a graph; eval needs the settings of a model", c->path);
    exit = data_describe(session, c, c->settings->batch_size ? 0 : MOST_AT_ONCE / 2, &e->data);
    if (exit == EXIT_DONE) exit = data_open(&e->data, false, &e->dataset);
    if (exit == EXIT_DONE) exit = engine_check(session, c, &e->engine);
    if (exit == EXIT_DONE) exit = engine_open(&e->engine, c, options->weights);
    if (exit != EXIT_DONE) return exit;
    Score score;
    prepare(e);
    exit = data_score(&e->data, e->dataset, &e->scorer, &score);
    if (exit != EXIT_DONE) return exit;
    if (score.truncated || score.unreadable)
        session_note(session, "%lld pictures end too early, %lld could not be read",
                     (long long)score.truncated, (long long)score.unreadable);
    print_score(session, c->settings->label_smoothing_alpha, &score);
    return EXIT_DONE;
}

Exit verb_eval(Session *session)
{
    Evaluation evaluation = {.session = session};
    Exit exit = evaluate(&evaluation);
    engine_close(&evaluation.engine);
    raft_dataset_close(evaluation.dataset);
    compilation_close(&evaluation.compilation);
    return exit;
}
