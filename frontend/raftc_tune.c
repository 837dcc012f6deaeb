/* raftc_tune.c: raftc tune: searches choices for the kernels of a model on this machine.
 *
 *   list_tasks   kernels that share code are one task
 *   step         tries one neighbour of the best choice so far of the task from which most is hoped:
 *                most time, fewest tries. What is better twice in turns with the best is kept at once,
 *                so that an end at any time loses nothing
 *   report       each kernel by rule and tuned, timed again in turns
 */
#include "frontend/raftc_trial.h"
#include "frontend/raftc_tuned.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const double short_seconds = 0.03, long_seconds = 0.15, better = 0.985;
static const int64_t default_budget = 60000;

typedef struct Task {
    int kernel, kernels; /* the first of them, and how many they are */
    Bench bench;
    Trial rule, best;   /* best: its shell is NULL where the rule is the best */
    Choice choice;      /* the best */
    Choice *neighbours; /* of it, */
    int count, next;    /* and the one to be tried next */
    int tries;
    double by_rule, seconds; /* that one kernel takes */
} Task;

typedef struct Search {
    Session *session;
    Compilation compilation;
    const Graph *graph; /* its kernels as formed */
    Tuned *tuned;
    Task *tasks;
    int count, tries;
    double begin, budget;
    bool shows; /* a line of progress */
} Search;

static Trial *best_of(Task *task)
{
    return task->best.shell ? &task->best : &task->rule;
}

/* ---- tasks ----------------------------------------------------------------------------------- */

static Exit form_kernels(Search *s)
{
    Session *session = s->session;
    Compilation *c = &s->compilation;
    const Options *options = session->options;
    Exit exit = compilation_load(session, options->arguments.item[0], c);
    if (exit == EXIT_DONE) exit = compilation_target(session, c);
    if (exit != EXIT_DONE) return exit;
    Strings disabled = {0};
    for (uint32_t i = 0; i < options->disabled_passes.count; i++)
        *ARENA_PUSH(session->arena, disabled.item, disabled.count, disabled.capacity) =
            options->disabled_passes.item[i];
    static const char *const later[] = {"choose_tiles", "pack_weights"};
    for (size_t i = 0; i < ARRAY_SIZE(later); i++)
        *ARENA_PUSH(session->arena, disabled.item, disabled.count, disabled.capacity) = later[i];
    const PipelineOptions pipeline = {.only = options->passes,
                                      .disabled = disabled.item,
                                      .disabled_count = (int)disabled.count,
                                      .rewrite_limit = options->rewrite_limit};
    s->graph = pipeline_run(session->arena, c->built, &c->target, &pipeline, session->diag, NULL);
    if (!s->graph) return EXIT_BUG;
    for (NodeId id = 0; id < s->graph->node_count; id++) {
        Op op = graph_node(s->graph, id)->op;
        if (op != OP_INPUT && op != OP_PARAM && graph_node(s->graph, id)->kernel == NO_KERNEL)
            return session_fail(session, EXIT_USAGE,
                                "only kernels can be tuned, and --passes "
                                "leaves out what makes them");
    }
    return EXIT_DONE;
}

static void list_tasks(Search *s)
{
    Arena *arena = s->session->arena;
    const Graph *graph = s->graph;
    int64_t batch = s->session->options->batch;
    const char **key = arena_array(arena, graph->kernel_count, sizeof *key);
    bool *prepares = graph_prepare_kernels(graph, arena);
    s->tasks = arena_array(arena, graph->kernel_count, sizeof *s->tasks);
    for (uint32_t k = 0; k < graph->kernel_count; k++) {
        if (prepares[k]) continue;
        key[k] = kernel_key(arena, graph, (int)k, false);
        int same = 0;
        while (same < s->count && strcmp(key[s->tasks[same].kernel], key[k]) != 0) same++;
        s->tasks[same].kernels++;
        if (same < s->count) continue;
        s->tasks[s->count].kernel = (int)k;
        s->tasks[s->count++].bench = (Bench){.session = s->session,
                                             .compilation = &s->compilation,
                                             .graph = kernel_isolate(arena, graph, (int)k),
                                             .batch = batch ? batch : 1};
    }
}

static void find_neighbours(Search *s, Task *task)
{
    task->next = 0;
    task->neighbours = choice_neighbours(s->session->arena, task->bench.graph, 0,
                                         &s->compilation.target, &task->choice, true, &task->count);
}

static Exit keep(Search *s, Task *task)
{
    bool by_rule = choice_equal(&task->choice, &task->rule.choice);
    return tuned_keep(s->tuned, s->graph, task->kernel, by_rule ? NULL : &task->choice,
                      task->by_rule, task->seconds);
}

/* The rule, and what was found before if that is still better. */
static Exit open_task(Search *s, Task *task)
{
    Choice found;
    double unused;
    Exit exit = trial_open(&task->rule, &task->bench, NULL);
    if (exit != EXIT_DONE) return exit;
    task->choice = task->rule.choice;
    exit = trial_compare(&task->bench, &task->rule, &task->rule, short_seconds, &task->by_rule,
                         &unused);
    task->seconds = task->by_rule;
    bool known = exit == EXIT_DONE && tuned_find(s->tuned, s->graph, task->kernel, &found) &&
                 !choice_equal(&found, &task->choice);
    if (known) {
        exit = trial_open(&task->best, &task->bench, &found);
        if (exit == EXIT_DONE)
            exit = trial_compare(&task->bench, &task->rule, &task->best, long_seconds,
                                 &task->by_rule, &task->seconds);
        if (exit == EXIT_DONE && task->seconds < task->by_rule)
            task->choice = found;
        else
            trial_close(&task->best);
        if (!task->best.shell) task->seconds = task->by_rule;
    }
    find_neighbours(s, task);
    return exit == EXIT_DONE ? keep(s, task) : exit;
}

static Exit open_tasks(Search *s)
{
    int count = 0;
    for (int i = 0; i < s->count; i++) {
        Task task = s->tasks[i];
        Exit exit = open_task(s, &task);
        s->tasks[count] = task;
        if (exit == EXIT_MISSED) {
            trial_close(&s->tasks[count].rule);
            continue;
        }
        count++;
        if (exit != EXIT_DONE) return exit;
    }
    s->count = count;
    return EXIT_DONE;
}

/* ---- the search ------------------------------------------------------------------------------ */

static Task *choose_task(Search *s)
{
    Task *best = NULL;
    double most = 0;
    for (int i = 0; i < s->count; i++) {
        Task *task = &s->tasks[i];
        double hope = task->seconds * task->kernels / (1 + task->tries);
        if (task->next == task->count || hope <= most) continue;
        most = hope;
        best = task;
    }
    return best;
}

/* Is the trial better than the best, twice? *ratio: by how much. */
static Exit beats(Task *task, Trial *trial, bool *does, double *ratio)
{
    double best, other;
    Exit exit = trial_compare(&task->bench, best_of(task), trial, short_seconds, &best, &other);
    *does = exit == EXIT_DONE && other < better * best;
    if (!*does) return exit;
    exit = trial_compare(&task->bench, best_of(task), trial, long_seconds, &best, &other);
    *does = exit == EXIT_DONE && other < better * best;
    *ratio = other / best;
    return exit;
}

static Exit step(Search *s, Task *task)
{
    Trial trial;
    bool wins = false;
    double ratio;
    Exit exit = trial_open(&trial, &task->bench, &task->neighbours[task->next++]);
    if (exit == EXIT_DONE) exit = beats(task, &trial, &wins, &ratio);
    task->tries++;
    s->tries++;
    if (!wins) {
        trial_close(&trial);
        return exit;
    }
    trial_close(&task->best);
    task->best = trial;
    task->choice = trial.choice;
    task->seconds *= ratio;
    find_neighbours(s, task);
    return keep(s, task);
}

static void totals(const Search *s, double *by_rule, double *tuned)
{
    *by_rule = *tuned = 0;
    for (int i = 0; i < s->count; i++) {
        *by_rule += s->tasks[i].by_rule * s->tasks[i].kernels;
        *tuned += s->tasks[i].seconds * s->tasks[i].kernels;
    }
}

static void show_progress(const Search *s)
{
    double by_rule, tuned;
    if (!s->shows) return;
    totals(s, &by_rule, &tuned);
    fprintf(stderr, "\r%.0f s of %.0f, %d choices tried: kernels take %.3f ms, by rule %.3f  ",
            seconds_now() - s->begin, s->budget, s->tries, 1e3 * tuned, 1e3 * by_rule);
}

static Exit search(Search *s)
{
    Exit exit = EXIT_DONE;
    Task *task;
    while (exit == EXIT_DONE && seconds_now() - s->begin < s->budget && (task = choose_task(s))) {
        exit = step(s, task);
        show_progress(s);
    }
    if (s->shows) fputc('\n', stderr);
    return exit;
}

/* ---- what was found -------------------------------------------------------------------------- */

/* Both again in turns, so that they met the same machine; the better is kept. */
static Exit settle(Search *s, Task *task)
{
    if (!task->best.shell) return keep(s, task);
    Exit exit = trial_compare(&task->bench, &task->rule, &task->best, long_seconds, &task->by_rule,
                              &task->seconds);
    if (exit != EXIT_DONE) return exit;
    if (task->seconds >= task->by_rule) {
        task->choice = task->rule.choice;
        task->seconds = task->by_rule;
    }
    return keep(s, task);
}

static Exit report(Search *s)
{
    Exit exit = EXIT_DONE;
    for (int i = 0; i < s->count && exit == EXIT_DONE; i++) exit = settle(s, &s->tasks[i]);
    if (exit != EXIT_DONE) return exit;
    printf("%5s %9s %9s %6s %6s  %s\n", "times", "rule ms", "tuned ms", "gain", "tries", "kernel");
    for (int i = 0; i < s->count; i++) {
        const Task *task = &s->tasks[i];
        Text text = text_new(s->session->arena);
        choice_print(task->bench.graph, 0, &task->choice, &text);
        printf("%5d %9.3f %9.3f %4.1f %% %6d  %s: %s\n", task->kernels, 1e3 * task->by_rule,
               1e3 * task->seconds, 100 * (1 - task->seconds / task->by_rule), task->tries,
               kernel_name(s->graph, task->kernel, s->session->arena), text.data);
    }
    double by_rule, tuned;
    totals(s, &by_rule, &tuned);
    printf("all kernels: by rule %.3f ms, tuned %.3f ms: the rules are within %.1f %%\n",
           1e3 * by_rule, 1e3 * tuned, 100 * (by_rule / tuned - 1));
    session_note(s->session, "%d choices tried in %.0f s; the best are in %s", s->tries,
                 seconds_now() - s->begin, tuned_path(s->tuned));
    return EXIT_DONE;
}

static Exit tune(Search *s)
{
    Exit exit = form_kernels(s);
    if (exit == EXIT_DONE) exit = tuned_create(s->session, &s->compilation, &s->tuned);
    if (exit != EXIT_DONE) return exit;
    list_tasks(s);
    exit = open_tasks(s);
    if (exit == EXIT_DONE) exit = search(s);
    return exit == EXIT_DONE ? report(s) : exit;
}

Exit verb_tune(Session *session)
{
    const Options *options = session->options;
    Search s = {.session = session, .begin = seconds_now()};
    s.budget = 1e-3 * (double)(options->budget ? options->budget : default_budget);
    s.shows = isatty(STDERR_FILENO) && !options->quiet;
    Exit exit = tune(&s);
    for (int i = 0; i < s.count; i++) {
        trial_close(&s.tasks[i].rule);
        trial_close(&s.tasks[i].best);
    }
    tuned_close(s.tuned);
    return exit;
}
