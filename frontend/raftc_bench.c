/* raftc_bench.c: raftc bench: how long a forward takes, and what share of the peak that is. */
#include "frontend/raftc_profile.h"
#include "runtime/peak.h"

#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

enum { LEAST_RUNS = 10, PEAK_RUNS = 5 };
static const double warm_up_seconds = 0.3, least_seconds = 2, peak_seconds = 0.02;

typedef struct Times {
    double *seconds;
    uint32_t count, capacity;
} Times;

typedef struct Result {
    double min_ms, median_ms, images_per_second, gflops, peak_gflops;
    double peak_gbytes; /* with --profile */
    uint32_t runs;
    int64_t batch, height, width;
    int threads; /* of the CPU */
    const char *machine;
} Result;

/* ---- measuring ------------------------------------------------------------------------------- */

/* The best of some measurements, and of `so_far`. */
static Exit measure_peak(Engine *engine, double *so_far)
{
    for (int i = 0; i < PEAK_RUNS; i++) {
        double gflops = 0;
        Exit exit = EXIT_DONE;
        if (engine->on_gpu)
            exit = cuda_measure_peak(engine, peak_seconds, &gflops, NULL);
        else
            gflops = raft_peak_gflops(engine->session->threads, peak_seconds);
        if (exit != EXIT_DONE) return exit;
        if (gflops > *so_far) *so_far = gflops;
    }
    return EXIT_DONE;
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

static Exit measure_forward(Engine *engine, int64_t batch, Times *times, Profile *profile)
{
    Arena *arena = engine->session->arena;
    float *input, **output = arena_array(arena, engine->graph->output_count, sizeof *output);
    Exit reserved = reserve(engine, batch, &input, output);
    if (reserved != EXIT_DONE) return reserved;
    double begin = seconds_now(), measured = 0;
    do {
        Exit exit = engine_run(engine, batch, input, false, output);
        if (exit != EXIT_DONE) return exit;
    } while (seconds_now() - begin < warm_up_seconds);
    while (times->count < LEAST_RUNS || measured < least_seconds) {
        double start = seconds_now();
        Exit exit = engine_run(engine, batch, input, false, output);
        if (exit != EXIT_DONE) return exit;
        double taken = seconds_now() - start;
        measured += taken;
        if (profile) profile_add(profile);
        *ARENA_PUSH(arena, times->seconds, times->count, times->capacity) = taken;
    }
    return EXIT_DONE;
}

static int by_value(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* The name of the processor, as Linux gives it. */
static const char *machine_name(Arena *arena)
{
    char line[512];
    FILE *file = fopen("/proc/cpuinfo", "r");
    const char *name = NULL;
    while (file && !name && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !colon) continue;
        line[strcspn(line, "\n")] = '\0';
        name = arena_strdup(arena, colon + 1 + strspn(colon + 1, " "));
    }
    if (file) fclose(file);
    struct utsname system;
    if (!name) name = uname(&system) == 0 ? arena_strdup(arena, system.machine) : "unknown";
    return name;
}

static Result summarise(Session *session, const Engine *engine, const Compilation *c, Times *times,
                        double peak)
{
    qsort(times->seconds, times->count, sizeof *times->seconds, by_value);
    const Axis *axis = engine->input->type.axis;
    uint32_t middle = times->count / 2;
    double median = times->seconds[middle];
    if (times->count % 2 == 0) median = (median + times->seconds[middle - 1]) / 2;
    int64_t batch = session->options->batch ? session->options->batch : 1;
    double flops = 2 * (double)graph_multiply_adds(c->built, session->arena) * (double)batch;
    return (Result){.min_ms = 1e3 * times->seconds[0],
                    .median_ms = 1e3 * median,
                    .images_per_second = (double)batch / median,
                    .gflops = 1e-9 * flops / median,
                    .peak_gflops = peak,
                    .runs = times->count,
                    .batch = batch,
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

static void print_json(const Session *session, const Result *result, const Profile *profile)
{
    const char *image = arena_printf(session->arena, "%lldx%lld", (long long)result->height,
                                     (long long)result->width);
    json_t *object = json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:i, s:s, s:I, s:s, s:s, s:o}", "min_ms", result->min_ms,
        "median_ms", result->median_ms, "images_per_second", result->images_per_second, "gflops",
        result->gflops, "peak_gflops", result->peak_gflops, "threads", result->threads, "dtype",
        "f32", "batch", (json_int_t)result->batch, "image", image, "target", target_name(session),
        "machine", json_text(session->arena, result->machine));
    if (profile) {
        json_object_set_new(object, "peak_gbytes_per_second", json_real(result->peak_gbytes));
        json_object_set_new(object, "kernels",
                            profile_json(profile, session->arena, result->batch));
    }
    json_print(object);
}

static void print_table(const Session *session, const Compilation *c, const Result *result)
{
    printf("%s, f32, batch %lld, %lldx%lld, %s, ", c->built->name, (long long)result->batch,
           (long long)result->height, (long long)result->width, target_name(session));
    if (result->threads) printf("%d threads, ", result->threads);
    printf("%s\n", result->machine);
    printf("%10s %10s %10s %10s %8s\n", "min ms", "median ms", "images/s", "GFLOP/s", "of peak");
    printf("%10.3f %10.3f %10.2f %10.2f %6.1f %%\n", result->min_ms, result->median_ms,
           result->images_per_second, result->gflops, 100 * result->gflops / result->peak_gflops);
    printf("%u forwards; peak %.2f GFLOP/s: multiply-adds on registers alone%s\n", result->runs,
           result->peak_gflops, result->threads ? ", on the same threads" : "");
}

/* ---- the verb -------------------------------------------------------------------------------- */

static Exit bench(Session *session, Compilation *c, Engine *engine)
{
    const Options *options = session->options;
    Exit exit = compilation_load(session, options->arguments.item[0], c);
    if (exit == EXIT_DONE) exit = engine_check(session, c, engine);
    if (exit == EXIT_DONE)
        exit = engine_open(engine, c, options->weights ? options->weights : "@fill");
    if (exit != EXIT_DONE) return exit;
    Times times = {0};
    double peak = 0;
    Profile kernels, *profile = options->profile ? &kernels : NULL;
    if (profile) profile_begin(profile, engine, c);
    exit = measure_peak(engine, &peak);
    if (exit == EXIT_DONE)
        exit = measure_forward(engine, options->batch ? options->batch : 1, &times, profile);
    if (exit == EXIT_DONE) exit = measure_peak(engine, &peak);
    if (exit != EXIT_DONE) return exit;
    Result result = summarise(session, engine, c, &times, peak);
    if (profile) exit = measure_bandwidth(engine, &result.peak_gbytes);
    if (exit != EXIT_DONE) return exit;
    if (options->json)
        print_json(session, &result, profile);
    else
        print_table(session, c, &result);
    if (profile && !options->json)
        profile_print(profile, session->arena, result.batch, peak, result.peak_gbytes);
    exit = report_print(session, c);
    if (exit == EXIT_DONE && result.gflops > result.peak_gflops)
        return session_fail(session, EXIT_MISSED,
                            "%.2f GFLOP/s is over 100 %% of the peak: one of the two is not "
                            "measured rightly; is the machine busy?",
                            result.gflops);
    return exit;
}

Exit verb_bench(Session *session)
{
    Compilation compilation = {0};
    Engine engine = {0};
    Exit exit = bench(session, &compilation, &engine);
    engine_close(&engine);
    compilation_close(&compilation);
    return exit;
}
