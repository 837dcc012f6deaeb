/* raftc_bench.c: raftc bench: how long a forward or a step of training takes, and what share of the
 * peak that is. */
#include "frontend/raftc_profile.h"
#include "frontend/raftc_trainer.h"
#include "runtime/peak.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

enum { LEAST_RUNS = 10, LEAST_STEPS = 5, LEAST_LONG = 3, PEAK_RUNS = 5 };
static const double warm_up_seconds = 0.3, least_seconds = 2, long_seconds = 5, peak_seconds = 0.02;

/* What is timed. */
typedef struct Bench {
    Session *session;
    Compilation *compilation; /* of the model */
    Engine engine;            /* of training no more than what is known without code */
    int64_t batch;
    float *input, **output; /* of a forward */
    Trainer *trainer;       /* NULL: a forward is timed */
    Profile profile[2];     /* the second one: of the optimiser */
    int profile_count;      /* 0: none are wanted */
} Bench;

/* 10^9 floating-point operations a second: in bursts before and after all runs, and between them in windows as
 * long as each. */
typedef struct Peak {
    double burst, sustained;
} Peak;

typedef struct Times {
    double *seconds;
    uint32_t count, capacity;
    Peak peak;
} Times;

typedef struct Result {
    double min_ms, median_ms, images_per_second, gflops;
    Peak peak;
    double peak_gbytes; /* with --profile */
    int64_t peak_bytes; /* of training: the most memory that the process had */
    uint32_t runs;
    int64_t batch, height, width;
    int threads; /* of the CPU */
    const char *machine;
} Result;

/* ---- measuring ------------------------------------------------------------------------------- */

static void raise(double *so_far, double value)
{
    if (value > *so_far) *so_far = value;
}

/* The best of some measurements, and of what is known so far. */
static Exit measure_peak(Bench *bench, Peak *peak)
{
    Engine *engine = &bench->engine;
    for (int i = 0; i < PEAK_RUNS; i++) {
        double gflops = 0;
        Exit exit = EXIT_DONE;
        if (engine->on_gpu)
            exit = cuda_measure_peak(engine, peak_seconds, &gflops, NULL);
        else
            gflops =
                raft_peak_gflops(bench->session->threads, bench->compilation->target.vector_floats,
                                 RAFT_BURST, peak_seconds);
        if (exit != EXIT_DONE) return exit;
        raise(&peak->burst, gflops);
    }
    return EXIT_DONE;
}

/* The peak in a window as long as what took `taken` seconds. A GPU has nobody else to serve: what it can
 * do in a moment it can do for long. */
static void measure_sustained(const Bench *bench, double taken, Peak *peak)
{
    if (!bench->engine.on_gpu)
        raise(&peak->sustained,
              raft_peak_gflops(bench->session->threads, bench->compilation->target.vector_floats,
                               taken, taken));
    else
        peak->sustained = peak->burst;
}

static Exit measure_bandwidth(Engine *engine, double *gbytes)
{
    const double seconds = 0.2;
    if (engine->on_gpu) return cuda_measure_peak(engine, seconds, NULL, gbytes);
    *gbytes = raft_peak_gbytes(engine->session->threads, seconds);
    return EXIT_DONE;
}

/* The made-up input, and room for what forward computes. */
static Exit reserve(Engine *engine, int64_t batch, float **input, float **output)
{
    Arena *arena = engine->session->arena;
    const Graph *graph = engine->graph;
    int64_t elements;
    if (__builtin_mul_overflow(batch, type_elements(&engine->input->type, NULL), &elements))
        elements = -1;
    float *data = arena_array(arena, (size_t)elements, sizeof *data);
    raft_fill_input(elements, data);
    Exit exit = engine_reserve(engine, elements, input);
    if (exit == EXIT_DONE) exit = engine_copy(engine, *input, data, elements);
    for (uint32_t i = 0; i < graph->output_count && exit == EXIT_DONE; i++) {
        if (!engine_computes(&graph->outputs[i], false)) continue;
        if (__builtin_mul_overflow(batch, output_elements(graph, &graph->outputs[i]), &elements))
            elements = -1;
        exit = engine_reserve(engine, elements, &output[i]);
    }
    return exit;
}

/* One forward, or one step of training. */
static Exit run_once(Bench *bench)
{
    Trainer *trainer = bench->trainer;
    if (!trainer)
        return engine_run(&bench->engine, bench->batch, bench->input, false, bench->output);
    trainer->step++;
    Exit exit = trainer_run_backward(trainer, bench->batch, bench->batch, 0);
    if (exit != EXIT_DONE) return exit;
    return trainer_run_step(trainer, bench->compilation->settings->lr);
}

static Exit measure_runs(Bench *bench, Times *times)
{
    Arena *arena = bench->session->arena;
    uint32_t least = bench->trainer ? LEAST_STEPS : LEAST_RUNS;
    double begin = seconds_now(), measured = 0, beside = 0, fastest = DBL_MAX;
    do {
        Exit exit = run_once(bench);
        if (exit != EXIT_DONE) return exit;
    } while (seconds_now() - begin < warm_up_seconds);
    while (times->count < (measured < long_seconds ? least : LEAST_LONG) ||
           measured < least_seconds) {
        double start = seconds_now();
        Exit exit = run_once(bench);
        if (exit != EXIT_DONE) return exit;
        double taken = seconds_now() - start;
        measured += taken;
        for (int i = 0; i < bench->profile_count; i++)
            profile_add(&bench->profile[i], taken < fastest);
        if (taken < fastest) fastest = taken;
        *ARENA_PUSH(arena, times->seconds, times->count, times->capacity) = taken;
        if (beside > measured)
            continue; /* of what takes microseconds not every run has its window */
        start = seconds_now();
        measure_sustained(bench, taken, &times->peak);
        beside += seconds_now() - start;
    }
    return EXIT_DONE;
}

static int by_value(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static int64_t peak_bytes(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (int64_t)usage.ru_maxrss * 1024 : 0;
}

static Result summarise(const Bench *bench, Times *times)
{
    Session *session = bench->session;
    const Engine *engine = &bench->engine;
    qsort(times->seconds, times->count, sizeof *times->seconds, by_value);
    const Axis *axis = engine->input->type.axis;
    uint32_t middle = times->count / 2;
    double median = times->seconds[middle];
    if (times->count % 2 == 0) median = (median + times->seconds[middle - 1]) / 2;
    double forwards = (double)bench->batch * (bench->trainer ? 3 : 1); /* a step is worth three */
    double flops =
        2 * (double)graph_multiply_adds(bench->compilation->built, session->arena) * forwards;
    return (Result){.min_ms = 1e3 * times->seconds[0],
                    .median_ms = 1e3 * median,
                    .images_per_second = (double)bench->batch / median,
                    .gflops = 1e-9 * flops / median,
                    .peak = times->peak,
                    .peak_bytes = bench->trainer ? peak_bytes() : 0,
                    .runs = times->count,
                    .batch = bench->batch,
                    .height = axis[2].extent,
                    .width = axis[3].extent,
                    .threads = engine->on_gpu ? 0 : session->threads,
                    .machine = engine->on_gpu ? engine->gpu.name : machine_name(session->arena)};
}

/* ---- printing -------------------------------------------------------------------------------- */

static const char *target_name(const Session *session)
{
    static const char *const name[] = {
        [TARGET_CPU] = "cpu", [TARGET_CUDA] = "cuda", [TARGET_REFERENCE] = "reference"};
    return name[session->options->target];
}

static void print_json(const Bench *bench, const Result *result)
{
    Arena *arena = bench->session->arena;
    const char *image =
        arena_printf(arena, "%lldx%lld", (long long)result->height, (long long)result->width);
    json_t *object = json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:f, s:i, s:s, s:I, s:s, s:s, s:o}", "min_ms", result->min_ms,
        "median_ms", result->median_ms, "images_per_second", result->images_per_second, "gflops",
        result->gflops, "peak_gflops", result->peak.burst, "sustained_gflops",
        result->peak.sustained, "threads", result->threads, "dtype", "f32", "batch",
        (json_int_t)result->batch, "image", image, "target", target_name(bench->session), "machine",
        json_text(arena, result->machine));
    if (result->peak_bytes)
        json_object_set_new(object, "peak_bytes", json_integer(result->peak_bytes));
    if (bench->session->options->profile) {
        json_object_set_new(object, "peak_gbytes_per_second", json_real(result->peak_gbytes));
        json_object_set_new(object, "kernels",
                            profile_json(bench->profile, bench->profile_count, arena,
                                         result->peak.burst, result->peak_gbytes));
    }
    json_print(object);
}

static const char *title_of(const Bench *bench, const Result *result)
{
    return arena_printf(bench->session->arena, "%s, f32, %sbatch %lld, %lldx%lld",
                        bench->compilation->built->name, bench->trainer ? "training, " : "",
                        (long long)result->batch, (long long)result->height,
                        (long long)result->width);
}

static void print_table(const Bench *bench, const Result *result)
{
    printf("%s, %s, ", title_of(bench, result), target_name(bench->session));
    if (result->threads) printf("%d threads, ", result->threads);
    printf("%s\n", result->machine);
    printf("%10s %10s %10s %10s %8s\n", "min ms", "median ms", "images/s", "GFLOP/s", "of peak");
    printf("%10.3f %10.3f %10.2f %10.2f %6.1f %%\n", result->min_ms, result->median_ms,
           result->images_per_second, result->gflops, 100 * result->gflops / result->peak.burst);
    const char *what = bench->trainer ? "steps" : "forwards";
    printf("%u %s%s; peak %.2f GFLOP/s: multiply-adds on registers alone", result->runs, what,
           bench->trainer ? ", each counted as three forwards" : "", result->peak.burst);
    if (result->threads)
        printf(", on the same threads; %.2f between the %s, for as long", result->peak.sustained,
               what);
    printf("\n");
    if (result->peak_bytes)
        printf("peak memory of the process %.1f MB\n", 1e-6 * (double)result->peak_bytes);
    if (bench->session->options->profile)
        profile_print(bench->profile, bench->profile_count, bench->session->arena,
                      result->peak.burst, result->peak_gbytes);
}

/* ---- the verb -------------------------------------------------------------------------------- */

static bool wants_kernels(const Options *options)
{
    return options->profile || options->roofline || options->trace;
}

static Exit open_forward(Bench *bench)
{
    Session *session = bench->session;
    const Options *options = session->options;
    Compilation *c = bench->compilation;
    Engine *engine = &bench->engine;
    Exit exit = compilation_load(session, options->arguments.item[0], c);
    if (exit == EXIT_DONE) exit = engine_check(session, c, engine);
    if (exit == EXIT_DONE)
        exit = engine_open(engine, c, options->weights ? options->weights : "@fill");
    if (exit != EXIT_DONE) return exit;
    bench->output = arena_array(session->arena, engine->graph->output_count, sizeof *bench->output);
    if (wants_kernels(options))
        profile_begin(&bench->profile[bench->profile_count++], session->arena, c, engine->shell,
                      bench->batch, engine->on_gpu ? 1 : session->threads);
    return reserve(engine, bench->batch, &bench->input, bench->output);
}

static Exit open_training(Bench *bench, Trainer *trainer)
{
    Session *session = bench->session;
    Exit exit = trainer_open(trainer, session, bench->batch, NULL);
    if (exit == EXIT_DONE) exit = engine_check(session, bench->compilation, &bench->engine);
    if (exit == EXIT_DONE) exit = trainer_fill(trainer);
    if (exit != EXIT_DONE) return exit;
    bench->trainer = trainer;
    Engine *engine = &bench->engine;
    engine->on_gpu = session->options->target == TARGET_CUDA;
    engine->gpu = trainer->model.gpu;
    Machine *const machines[] = {&trainer->model, &trainer->optimiser};
    for (size_t i = 0; i < ARRAY_SIZE(machines) && wants_kernels(session->options); i++)
        profile_begin(&bench->profile[bench->profile_count++], session->arena,
                      &machines[i]->compilation, machines[i]->shell,
                      machines[i] == &trainer->model ? bench->batch : 1,
                      engine->on_gpu ? 1 : session->threads);
    return EXIT_DONE;
}

/* The files that are asked for. */
static Exit draw(const Bench *bench, const Result *result)
{
    Session *session = bench->session;
    Exit exit = EXIT_DONE;
    if (session->options->roofline) {
        int count = bench->profile_count;
        const ProfileRow *rows = profile_rows(bench->profile, session->arena, &count);
        exit = roofline_draw(session, rows, count, title_of(bench, result), result->peak.burst,
                             result->peak_gbytes);
    }
    if (session->options->trace && exit == EXIT_DONE)
        exit = trace_write(session, bench->compilation, bench->profile, bench->profile_count);
    return exit;
}

static Exit measure(Bench *bench)
{
    Times times = {0};
    Exit exit = measure_peak(bench, &times.peak);
    if (exit == EXIT_DONE) exit = measure_runs(bench, &times);
    if (exit == EXIT_DONE) exit = measure_peak(bench, &times.peak);
    if (exit != EXIT_DONE) return exit;
    Result result = summarise(bench, &times);
    if (bench->profile_count) exit = measure_bandwidth(&bench->engine, &result.peak_gbytes);
    if (exit != EXIT_DONE) return exit;
    if (bench->session->options->json)
        print_json(bench, &result);
    else
        print_table(bench, &result);
    exit = draw(bench, &result);
    if (exit == EXIT_DONE) exit = report_print(bench->session, bench->compilation);
    if (exit == EXIT_DONE && result.gflops > result.peak.burst)
        return session_fail(bench->session, EXIT_MISSED,
                            "%.2f GFLOP/s is over 100 %% of the peak: one of the two is not "
                            "measured rightly; is the machine busy?",
                            result.gflops);
    return exit;
}

Exit verb_bench(Session *session)
{
    const Options *options = session->options;
    Compilation compilation = {0};
    Trainer trainer = {0};
    Bench bench = {.session = session, .batch = options->batch ? options->batch : 1};
    bench.compilation = options->train ? &trainer.model.compilation : &compilation;
    Exit exit = options->train ? open_training(&bench, &trainer) : open_forward(&bench);
    if (exit == EXIT_DONE) exit = measure(&bench);
    engine_close(&bench.engine);
    compilation_close(&compilation);
    trainer_close(&trainer);
    return exit;
}
