/* differential.c: random models and graphs: what comes out of passes and backends against the
 * reference in f64, within its bound of the rounding errors.
 *
 *     differential [--models N] [--training N] [--graphs N] [--seed S] [--disable-pass NAME]... [--long]
 *                  [--cuda] [FILE.ir]...
 *
 * Training: models with their backward pass, which is part of the case.
 *
 * Case i has the seed S + i and depends on nothing else, so that it can be run alone. Each goes to
 * one of the vector widths that this machine has, some with a limit of rewrites, some with a stop
 * between two passes; one with a pass disabled that would do nothing is the case with all passes; with --long, models and graphs are larger. A file goes to all of the widths,
 * with all passes and without each. With --cuda all become CUDA kernels, and are emulated; a file goes
 * there with all passes.
 *
 * Each case runs in a process of its own: one that crashes or hangs has failed, and the others go
 * on. A failing graph is made smaller and printed. Exit status 1 if a case fails, or if in a run of
 * many models a pass that is on never did anything.
 */
#include "tests/check_case.h"
#include "tests/minimise.h"
#include "tests/random.h"
#include "tests/random_graph.h"
#include "tests/random_model.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    SECONDS = 120,       /* that a case may take */
    MOST_FAILURES = 10,  /* that are printed */
    ENOUGH_MODELS = 50,  /* for every pass to find something */
    ENOUGH_TRAINING = 12 /* likewise, of gradients */
};

typedef struct Options {
    int64_t models, training, graphs;
    uint64_t seed;
    bool large, cuda;
    const char *disabled[MAX_DISABLED];
    int disabled_count;
    const char *const *files;
    int file_count;
} Options;

typedef struct Summary {
    int64_t cases, same, failed, outputs, loose;
    double ratio;
    int64_t rewrites[MAX_PASSES];
} Summary;

/* ---- running a case ------------------------------------------------------------------------ */

/* In a child, which shares the outcome alone. Without `messages`: what it says goes nowhere. */
static void run_case(const Case *c, Outcome *outcome, bool messages)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(SECONDS);
        if (!messages && !freopen("/dev/null", "w", stderr)) exit(1);
        check_case(c, outcome);
        exit(0);
    }
    int status = 0;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
    if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    outcome->verdict = VERDICT_FAILED;
    snprintf(outcome->why, sizeof outcome->why, "ended by %s %d",
             child > 0 && WIFSIGNALED(status) ? "signal" : "exit status",
             child > 0 && WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

static Outcome *shared_outcome(void)
{
    void *memory =
        mmap(NULL, sizeof(Outcome), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("differential: mmap");
        exit(1);
    }
    return memory;
}

static bool still_fails(const Case *c)
{
    Outcome *outcome = shared_outcome();
    run_case(c, outcome, false);
    bool fails = outcome->verdict == VERDICT_FAILED;
    munmap(outcome, sizeof *outcome);
    return fails;
}

static void print_failure(Arena *arena, const Case *c, const char *again, const char *why)
{
    printf("FAIL: %s\n  %s\n  again: differential %s\n",
           c->cuda  ? "cuda"
           : c->cpu ? c->cpu
                    : "host",
           why, again);
    const Graph *smallest = minimise(arena, c, still_fails);
    Text text = text_new(arena);
    graph_print(smallest, &text);
    printf("  smallest graph that fails:\n%s", text.data);
}

static void check(Arena *arena, const Case *c, const char *again, Summary *summary)
{
    Outcome *outcome = shared_outcome();
    run_case(c, outcome, true);
    summary->cases++;
    summary->same += outcome->same;
    summary->outputs += outcome->outputs;
    summary->loose += outcome->loose;
    summary->ratio = fmax(summary->ratio, outcome->ratio);
    for (int i = 0; i < pass_count; i++) summary->rewrites[i] += outcome->rewrites[i];
    if (outcome->verdict == VERDICT_FAILED && summary->failed++ < MOST_FAILURES)
        print_failure(arena, c, again, outcome->why);
    munmap(outcome, sizeof *outcome);
}

/* ---- cases --------------------------------------------------------------------------------- */

/* The widths that can be run here: AVX-512, AVX2, SSE; on other machines their own alone. */
static int list_cpus(const char *cpus[4])
{
    int count = 0;
    cpus[count++] = NULL;
#ifdef __x86_64__
    if (__builtin_cpu_supports("x86-64-v4")) cpus[count++] = "x86-64-v4";
    if (__builtin_cpu_supports("x86-64-v3")) cpus[count++] = "x86-64-v3";
    cpus[count++] = "x86-64";
#endif
    return count;
}

static Case draw_case(const Options *options, uint64_t seed)
{
    Random random = {~seed};
    const char *cpus[4];
    int cpu_count = list_cpus(cpus);
    Case c = {.seed = seed, .cuda = options->cuda, .rewrite_limit = INT64_MAX};
    c.batch = random_from(&random, 1, 3);
    c.cpu = cpus[random_from(&random, 0, cpu_count - 1)];
    if (random_chance(&random, 15)) c.rewrite_limit = random_from(&random, 0, 60);
    if (random_chance(&random, 15)) c.stop = (int)random_from(&random, 1, pass_count);
    if (random_chance(&random, 50)) c.choices = seed + 1;
    memcpy(c.disabled, options->disabled, sizeof c.disabled);
    c.disabled_count = options->disabled_count;
    return c;
}

/* What reruns a case: its kind, its seed, and the options that are for all. */
static const char *command_of(Arena *arena, const Options *options, const char *kind, uint64_t seed)
{
    Text text = text_new(arena);
    text_printf(&text, "--%s 1 --seed %" PRIu64, kind, seed);
    for (int i = 0; i < options->disabled_count; i++)
        text_printf(&text, " --disable-pass %s", options->disabled[i]);
    if (options->large) text_put(&text, " --long");
    if (options->cuda) text_put(&text, " --cuda");
    return text.data;
}

static bool built(const Graph *graph, const char *again, Diag *diag, Summary *summary)
{
    if (graph && graph_verify(graph, diag)) return true;
    printf("FAIL: the case is refused: differential %s\n", again);
    diag_print(diag, stdout);
    summary->failed++;
    return false;
}

/* The model with its backward pass. */
static const Graph *differentiated(Arena *arena, const Graph *graph, Diag *diag)
{
    const Target target = {.vector_floats = 1, .vector_registers = 16};
    const PipelineOptions options = {
        .only = "differentiate", .train = true, .rewrite_limit = INT64_MAX};
    return pipeline_run(arena, graph, &target, &options, diag, NULL);
}

/* `trains`: with the backward pass. */
static void check_models(const Options *options, bool trains, Summary *summary)
{
    int64_t count = trains ? options->training : options->models;
    int64_t size = trains ? 200000 : 2000000, large = trains ? 2000000 : 50000000;
    for (int64_t i = 0; i < count; i++) {
        uint64_t seed = options->seed + (uint64_t)i;
        Arena arena = {0};
        Diag diag = diag_new(&arena);
        Case c = draw_case(options, seed);
        const char *settings;
        const char *again = command_of(&arena, options, trains ? "training" : "models", seed);
        c.graph = random_model(&arena, seed, options->large ? large : size, &settings, &diag);
        if (trains && c.graph) c.graph = differentiated(&arena, c.graph, &diag);
        int64_t failed = summary->failed;
        if (built(c.graph, again, &diag, summary)) check(&arena, &c, again, summary);
        if (summary->failed > failed) printf("  settings:\n%s", settings);
        arena_free(&arena);
    }
}

static void check_graphs(const Options *options, Summary *summary)
{
    for (int64_t i = 0; i < options->graphs; i++) {
        uint64_t seed = options->seed + (uint64_t)i;
        Arena arena = {0};
        Diag diag = diag_new(&arena);
        Case c = draw_case(options, seed);
        const char *again = command_of(&arena, options, "graphs", seed);
        c.graph = random_graph(&arena, seed, options->large ? 60000 : 4000);
        if (built(c.graph, again, &diag, summary)) check(&arena, &c, again, summary);
        arena_free(&arena);
    }
}

/* On every CPU, with the passes that the options leave on and without each of them. */
static void check_file(const Options *options, const char *path, Summary *summary)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    const Source *source = diag_read_source(&diag, path, 1 << 20);
    Case c = draw_case(options, 0);
    const char *cpus[4];
    int cpu_count = list_cpus(cpus);
    if (c.cuda) cpu_count = 1; /* of which none is used */
    c.graph = source ? graph_parse(&arena, source, &diag) : NULL;
    c.batch = 3;
    c.rewrite_limit = INT64_MAX;
    c.stop = 0;
    for (int cpu = 0; built(c.graph, path, &diag, summary) && cpu < cpu_count; cpu++) {
        c.cpu = cpus[cpu];
        for (int pass = -1; pass < (options->cuda ? 0 : pass_count); pass++) {
            if (pass >= 0 && pass_table[pass].required) continue;
            c.disabled_count = options->disabled_count;
            if (pass >= 0) c.disabled[c.disabled_count++] = pass_table[pass].name;
            check(&arena, &c, path, summary);
        }
    }
    arena_free(&arena);
}

/* ---- the whole run ------------------------------------------------------------------------- */

static bool is_disabled(const Options *options, const char *pass)
{
    for (int i = 0; i < options->disabled_count; i++)
        if (strcmp(options->disabled[i], pass) == 0) return true;
    return false;
}

/* A required pass is left out: what it does is no choice, so it counts no rewrites. */
static bool report(const Options *options, const Summary *summary)
{
    bool good = summary->failed == 0 && summary->cases > summary->same;
    for (int i = 0; i < pass_count; i++) {
        const PassInfo *pass = &pass_table[i];
        bool off = is_disabled(options, pass->name);
        /* In models the other passes leave next to nothing to these two; in graphs they do. */
        bool seldom = !strcmp(pass->name, "fuse_elements") || !strcmp(pass->name, "order_axes");
        /* There is nothing like these in forwards, nor of one on CPUs, of the others on GPUs. */
        bool of_threads = !strcmp(pass->name, "split_sums");
        bool of_gradients = of_threads || !strcmp(pass->name, "sum_rows") ||
                            !strcmp(pass->name, "fuse_gradients") ||
                            !strcmp(pass->name, "fuse_gelu");
        int64_t tried = of_gradients ? (options->cuda == of_threads ? options->training : 0)
                        : seldom     ? options->graphs
                                     : options->models;
        int64_t enough = of_gradients ? ENOUGH_TRAINING : ENOUGH_MODELS;
        bool missed = !off && summary->rewrites[i] == 0 && tried >= enough;
        if (pass->required) continue;
        printf("%-16s %8" PRId64 " rewrites%s\n", pass->name, summary->rewrites[i],
               off      ? ", disabled"
               : missed ? ": it was never tested"
                        : "");
        good &= !missed;
    }
    int least = options->training > 0 ? 2 : 20; /* bounds widen on the way back, too */
    if (least * summary->loose > summary->outputs) {
        printf("more than %d %% of the outputs cannot be compared\n", 100 / least);
        good = false;
    }
    printf("differential: %" PRId64 " cases, %" PRId64 " the same with all passes, %" PRId64
           " failed; %" PRId64 " of %" PRId64
           " outputs have bounds too loose to compare with; greatest error: %.3g of its bound\n",
           summary->cases, summary->same, summary->failed, summary->loose, summary->outputs,
           summary->ratio);
    return good;
}

static _Noreturn void wrong_usage(const char *argument)
{
    fprintf(stderr,
            "differential: '%s'\nusage: differential [--models N] [--training N] [--graphs N] "
            "[--seed S] [--disable-pass NAME]... [--long] [--cuda] [FILE.ir]...\n",
            argument);
    exit(2);
}

static uint64_t number_after(char **argv, int *i)
{
    char *end, *text = argv[++*i];
    if (!text) wrong_usage(argv[*i - 1]);
    uint64_t number = strtoull(text, &end, 10);
    if (end == text || *end) wrong_usage(text);
    return number;
}

static Options read_options(int argc, char **argv)
{
    Options options = {.seed = 1};
    int i = 1;
    for (; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--models") == 0)
            options.models = (int64_t)number_after(argv, &i);
        else if (strcmp(argv[i], "--training") == 0)
            options.training = (int64_t)number_after(argv, &i);
        else if (strcmp(argv[i], "--graphs") == 0)
            options.graphs = (int64_t)number_after(argv, &i);
        else if (strcmp(argv[i], "--seed") == 0)
            options.seed = number_after(argv, &i);
        else if (strcmp(argv[i], "--long") == 0)
            options.large = true;
        else if (strcmp(argv[i], "--cuda") == 0)
            options.cuda = true;
        else if (strcmp(argv[i], "--disable-pass") == 0 && i + 1 < argc &&
                 options.disabled_count + 1 < MAX_DISABLED)
            options.disabled[options.disabled_count++] = argv[++i];
        else
            wrong_usage(argv[i]);
    }
    options.files = (const char *const *)argv + i;
    options.file_count = argc - i;
    return options;
}

int main(int argc, char **argv)
{
    RAFTC_ASSERT(pass_count <= MAX_PASSES);
    const Options options = read_options(argc, argv);
    Summary summary = {0};
    check_models(&options, false, &summary);
    check_models(&options, true, &summary);
    check_graphs(&options, &summary);
    for (int i = 0; i < options.file_count; i++) check_file(&options, options.files[i], &summary);
    return report(&options, &summary) ? 0 : 1;
}
