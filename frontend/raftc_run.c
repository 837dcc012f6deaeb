/* raftc_run.c: raftc run: images in, answers and tensors out. */
#include "frontend/raftc.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LABELS_MAX_SIZE = 1 << 24 /* bytes */, DEFAULT_TOP = 5 };

typedef struct Job {
    Session *session;
    Compilation compilation;
    Engine engine;
    Items items;
    Strings labels;     /* none: classes are numbers */
    float *input;       /* of a batch, or of all items where the input is written */
    float **output;     /* likewise; NULL: not computed */
    int answer;         /* index of the output that is printed, or -1 */
    const Item **batch; /* what the images of a batch are */
    int64_t done, unreadable;
} Job;

/* ---- answers --------------------------------------------------------------------------------- */

static Exit read_labels(Job *job, int64_t classes)
{
    Session *session = job->session;
    const char *path = session->options->labels;
    if (!path) return EXIT_DONE;
    const Source *source = diag_read_source(session->diag, path, LABELS_MAX_SIZE);
    if (!source) return EXIT_FILES;
    if (memchr(source->text, '\0', source->size))
        return session_fail(session, EXIT_FILES, "%s: holds a byte 0, which no text in UTF-8 does",
                            path);
    Strings *labels = &job->labels;
    const char *line = source->text, *end = line + source->size;
    if (source->size >= 3 && memcmp(line, "\xef\xbb\xbf", 3) == 0) line += 3; /* some editors' */
    while (end > line && (end[-1] == '\n' || end[-1] == '\r')) end--;
    while (line < end) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t length = (size_t)((newline ? newline : end) - line);
        if (length > 0 && line[length - 1] == '\r') length--;
        *ARENA_PUSH(session->arena, labels->item, labels->count, labels->capacity) =
            arena_strndup(session->arena, line, length);
        line = newline ? newline + 1 : end;
    }
    if (labels->count == classes) return EXIT_DONE;
    return session_fail(session, EXIT_FILES,
                        "%s: has %u %s, one a line; the model has %lld classes", path,
                        labels->count, labels->count == 1 ? "label" : "labels", (long long)classes);
}

/* Index of the greatest of the values that are not taken yet; the first where some are equal. */
static int64_t next_best(const float *values, const bool *taken, int64_t count)
{
    int64_t best = -1;
    for (int64_t i = 0; i < count; i++)
        if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
    return best;
}

/* Shares as the softmax gives them. */
static void print_answer(const Job *job, const Item *item, const float *logits, int64_t classes)
{
    const Options *options = job->session->options;
    Arena arena = {.out_of_memory = job->session->arena->out_of_memory};
    bool *taken = arena_array(&arena, (size_t)classes, sizeof *taken);
    int64_t top = options->top ? options->top : DEFAULT_TOP;
    double greatest = -INFINITY, sum = 0;
    for (int64_t i = 0; i < classes; i++) greatest = fmax(greatest, (double)logits[i]);
    for (int64_t i = 0; i < classes; i++) sum += exp((double)logits[i] - greatest);
    print_clean(item->name, stdout);
    putchar('\n');
    for (int64_t k = 0; k < top && k < classes; k++) {
        int64_t best = next_best(logits, taken, classes);
        taken[best] = true;
        printf("  %6.2f %%  ", 100 * exp((double)logits[best] - greatest) / sum);
        if (job->labels.count) {
            print_clean(job->labels.item[best], stdout);
            printf(" (class %lld)\n", (long long)best);
        } else {
            printf("class %lld\n", (long long)best);
        }
    }
    arena_free(&arena);
}

/* On a terminal, where no answers scroll by there. The cursor goes back to the start of the line, so
 * that whatever is printed next, even the last message of all, covers it. */
static void show_progress(const Job *job, int64_t next)
{
    bool shown = isatty(STDERR_FILENO) && !isatty(STDOUT_FILENO) && job->items.count > 1;
    if (!shown || job->session->options->quiet) return;
    fprintf(stderr, "%lld of %u%c", (long long)next, job->items.count,
            next == job->items.count ? '\n' : '\r');
}

/* ---- forwards -------------------------------------------------------------------------------- */

static float *at_image(float *data, const Type *type, int64_t image)
{
    return data ? data + image * type_elements(type, NULL) : NULL;
}

static Exit run_batch(Job *job, int64_t count)
{
    const Options *options = job->session->options;
    const Graph *graph = job->engine.graph;
    int64_t first_input = options->dump_input ? job->done : 0;
    int64_t first_output = options->output ? job->done : 0;
    float **output = arena_array(job->session->arena, graph->output_count, sizeof *output);
    for (uint32_t i = 0; i < graph->output_count; i++)
        output[i] =
            at_image(job->output[i], graph_type(graph, graph->outputs[i].value), first_output);
    Exit exit =
        engine_run(&job->engine, count, at_image(job->input, &job->engine.input->type, first_input),
                   options->with_features, output);
    if (exit != EXIT_DONE) return exit;
    for (int64_t i = 0; i < count && job->answer >= 0; i++) {
        int64_t classes = output_elements(graph, &graph->outputs[job->answer]);
        print_answer(job, job->batch[i], output[job->answer] + i * classes, classes);
    }
    job->done += count;
    return EXIT_DONE;
}

/* A picture that cannot be read is reported and left out. */
static Exit run_items(Job *job)
{
    Session *session = job->session;
    int64_t batch = session->options->batch ? session->options->batch : 1, filled = 0;
    for (uint32_t i = 0; i < job->items.count; i++) {
        const Item *item = &job->items.item[i];
        int64_t place = (session->options->dump_input ? job->done : 0) + filled;
        float *room = at_image(job->input, &job->engine.input->type, place);
        Exit loaded = item_load(session, &job->compilation, item, job->engine.input, room);
        if (loaded == EXIT_UNDONE) return loaded; /* not the fault of the picture */
        if (loaded == EXIT_DONE)
            job->batch[filled++] = item;
        else
            job->unreadable++;
        session_flush(session);
        if (filled == batch || (filled > 0 && i + 1 == job->items.count)) {
            Exit exit = run_batch(job, filled);
            if (exit != EXIT_DONE) return exit;
            filled = 0;
        }
        show_progress(job, i + 1);
    }
    return EXIT_DONE;
}

/* ---- memory and files ------------------------------------------------------------------------ */

/* Room for all images where they are written, else for one batch. */
static float *reserve(Job *job, const Type *type, bool all)
{
    int64_t batch = job->session->options->batch ? job->session->options->batch : 1;
    int64_t images = all || job->items.count < batch ? job->items.count : batch, elements;
    if (__builtin_mul_overflow(images, type_elements(type, NULL), &elements)) elements = -1;
    return arena_array(job->session->arena, (size_t)elements, sizeof(float));
}

static Exit prepare(Job *job)
{
    const Options *options = job->session->options;
    const Graph *graph = job->engine.graph;
    job->batch = arena_array(job->session->arena, job->items.count, sizeof *job->batch);
    job->input = reserve(job, &job->engine.input->type, options->dump_input);
    job->output = arena_array(job->session->arena, graph->output_count, sizeof *job->output);
    job->answer = -1;
    bool features = false;
    for (uint32_t i = 0; i < graph->output_count; i++) {
        const Output *output = &graph->outputs[i];
        const Type *type = graph_type(graph, output->value);
        if (!engine_computes(output, options->with_features)) continue;
        bool forward = engine_computes(output, false);
        features |= !forward;
        job->output[i] = reserve(job, type, options->output);
        if (forward && type->rank == 2 && job->answer < 0) job->answer = (int)i;
    }
    if (options->with_features && !features)
        return session_fail(job->session, EXIT_USAGE,
                            "this model has no features: one level needs 10 layers for them");
    if (job->answer < 0) return EXIT_DONE;
    return read_labels(job, output_elements(graph, &graph->outputs[job->answer]));
}

static RaftTensor describe(const char *name, const Type *type, int64_t images, const float *data)
{
    RaftTensor tensor = {.name = name, .dtype = RAFT_F32, .rank = type->rank, .data = data};
    tensor.shape[0] = images;
    for (int i = 1; i < type->rank; i++) tensor.shape[i] = type->axis[i].extent;
    return tensor;
}

static Exit write_tensors(Job *job, const char *path, const RaftTensor *tensors, int count)
{
    RaftError error;
    signals_hold();
    RaftStatus status = raft_weights_write(path, tensors, count, NULL, &error);
    signals_release();
    if (status == RAFT_OK) return EXIT_DONE;
    return session_fail(job->session, EXIT_UNDONE, "%s", error.message);
}

static Exit write_results(Job *job)
{
    const Options *options = job->session->options;
    const Graph *graph = job->engine.graph;
    Exit exit = EXIT_DONE;
    if (options->output) {
        RaftTensor *tensors =
            arena_array(job->session->arena, graph->output_count, sizeof *tensors);
        int count = 0;
        for (uint32_t i = 0; i < graph->output_count; i++)
            if (job->output[i])
                tensors[count++] =
                    describe(graph->outputs[i].name, graph_type(graph, graph->outputs[i].value),
                             job->done, job->output[i]);
        exit = write_tensors(job, options->output, tensors, count);
    }
    if (options->dump_input && exit == EXIT_DONE) {
        RaftTensor tensor = describe("input", &job->engine.input->type, job->done, job->input);
        exit = write_tensors(job, options->dump_input, &tensor, 1);
    }
    return exit;
}

/* ---- the verb -------------------------------------------------------------------------------- */

static Exit run_job(Job *job)
{
    Session *session = job->session;
    const Options *options = session->options;
    Exit exit = compilation_load(session, options->arguments.item[0], &job->compilation);
    if (exit == EXIT_DONE) exit = engine_check(session, &job->compilation, &job->engine);
    if (exit == EXIT_DONE)
        exit = items_list(session, &job->compilation, job->engine.input, &job->items);
    if (exit == EXIT_DONE) exit = engine_open(&job->engine, &job->compilation, options->weights);
    if (exit == EXIT_DONE) exit = prepare(job);
    if (exit != EXIT_DONE) return exit;
    if (strcmp(options->weights, "@fill") == 0)
        session_note(session, "the weights are made up (@fill): the classes mean nothing");
    session_flush(session);
    double start = seconds_now();
    exit = run_items(job);
    if (exit != EXIT_DONE) return exit;
    session_stage(session, "images", start);
    if (job->done > 0) exit = write_results(job);
    if (exit == EXIT_DONE && job->unreadable > 0)
        return session_fail(session, EXIT_FILES, "%lld of %u images could not be read",
                            (long long)job->unreadable, job->items.count);
    return exit;
}

Exit verb_run(Session *session)
{
    Job job = {.session = session};
    Exit exit = run_job(&job);
    engine_close(&job.engine);
    compilation_close(&job.compilation);
    return exit;
}
