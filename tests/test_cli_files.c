/* test_cli_files.c: what raftc writes, and leaves behind: graphs, tensors, dumps, numbers. */
#define _GNU_SOURCE /* posix_spawn_file_actions_addchdir_np */
#include "tests/cli_place.h"

#include <jansson.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include "backends/backend.h"
#include "runtime/raft.h"

static Place *cpu_place(void **state)
{
    Place *place = *state;
    if (!place->has_llvm) skip();
    return place;
}

static void assert_same_file(Place *place, const char *left, const char *right)
{
    size_t left_size, right_size;
    const char *a = read_all(&place->arena, in_folder(place, left), &left_size);
    const char *b = read_all(&place->arena, in_folder(place, right), &right_size);
    if (left_size != right_size || memcmp(a, b, left_size) != 0)
        fail_msg("%s and %s differ", left, right);
}

/* What is compiled and printed as text is the same when it is read back. */
static void graphs_round_trip(void **state)
{
    Place *place = cpu_place(state);
    run_well(place, "raftc cli/tiny.yaml --emit ir -o first -q");
    run_well(place, "raftc first.ir --emit ir -o second -q --passes=");
    assert_same_file(place, "first.ir", "second.ir");
    run_well(place, "raftc first.ir --emit ir -q --passes="); /* onto itself */
    assert_same_file(place, "first.ir", "second.ir");
    run_well(place, "raftc run first.ir --weights @fill @fill --output graph.safetensors");
    run_well(place, "raftc run cli/tiny.yaml --weights @fill @fill --output model.safetensors");
    assert_same_file(place, "graph.safetensors", "model.safetensors");
}

/* Greatest difference of tensor `left` of one file and `right` of another. */
static double difference(Place *place, const char *left_path, const char *left_name,
                         const char *right_path, const char *right_name)
{
    RaftWeights *files[2];
    float *data[2];
    int64_t elements = 0;
    const char *paths[] = {left_path, right_path}, *names[] = {left_name, right_name};
    for (int i = 0; i < 2; i++) {
        RaftError error;
        if (raft_weights_open(paths[i], &files[i], &error) != RAFT_OK)
            fail_msg("%s", error.message);
        const RaftTensor *tensor = raft_weights_find(files[i], names[i]);
        if (!tensor || (i && tensor->elements != elements))
            fail_msg("%s: no %s of that size", paths[i], names[i]);
        elements = tensor->elements;
        data[i] = arena_array(&place->arena, (size_t)elements, sizeof(float));
        if (raft_tensor_read_f32(tensor, data[i], &error) != RAFT_OK) fail_msg("%s", error.message);
        raft_weights_close(files[i]);
    }
    double greatest = 0;
    for (int64_t i = 0; i < elements; i++) {
        double apart = (double)data[0][i] - (double)data[1][i];
        if (!(apart * apart <= greatest * greatest)) greatest = apart < 0 ? -apart : apart;
    }
    return greatest;
}

/* Made-up weights, weights of a file, both targets: PyTorch's logits, whose greatest is about 1. */
static void runs_agree_with_pytorch(void **state)
{
    Place *place = *state;
    static const char golden[] = TEST_DATA "/data/goldens/forward-tiny.safetensors";
    static const char *const weights[] = {"@fill", "data/goldens/tiny.safetensors"};
    static const char *const sizes[] = {"32x32", "37x61", "96x64"};
    for (size_t i = 0; i < ARRAY_SIZE(weights) * ARRAY_SIZE(sizes); i++) {
        const char *size = sizes[i / ARRAY_SIZE(weights)], *file = weights[i % ARRAY_SIZE(weights)];
        for (int cpu = 0; cpu <= place->has_llvm; cpu++) {
            run_well(place,
                     arena_printf(&place->arena,
                                  "raftc run cli/tiny.yaml --target %s --weights %s "
                                  "--input @fill --batch 2 --image %s --output o.safetensors",
                                  cpu ? "cpu" : "reference", file, size));
            double apart = difference(place, in_folder(place, "o.safetensors"), "logits", golden,
                                      arena_printf(&place->arena, "%s.logits", size));
            if (!(apart <= 2e-5)) fail_msg("%s, %s: %g apart", size, file, apart);
        }
    }
}

/* The same bits for any batch and any number of threads. */
static void batches_and_threads_do_not_matter(void **state)
{
    Place *place = cpu_place(state);
    run_well(place,
             "raftc run cli/tiny.yaml --weights @fill @fill --batch 5 --threads 1 --features "
             "--output one.safetensors --dump-input images.safetensors");
    run_well(place,
             "raftc run cli/tiny.yaml --weights @fill images.safetensors --batch 2 "
             "--threads 3 --features --output two.safetensors --dump-input again.safetensors");
    assert_same_file(place, "one.safetensors", "two.safetensors");
    assert_same_file(place, "images.safetensors", "again.safetensors");
}

/* Twenty steps with 1, 2, 3 and 4 threads: the same gradients and weights, to the bit. */
static void threads_do_not_matter_in_training(void **state)
{
    Place *place = *state;
    if (!place->has_llvm) skip();
    for (int threads = 1; threads <= 4; threads++) {
        run_well(place, arena_printf(&place->arena,
                                     "raftc train cli/tiny.yaml --weights @fill --data @fill "
                                     "--batch 3 --steps 20 --set lr=0.002 --threads %d -q "
                                     "--dump-gradients g%d.safetensors --save w%d.safetensors",
                                     threads, threads, threads));
        assert_same_file(place, "g1.safetensors",
                         arena_printf(&place->arena, "g%d.safetensors", threads));
        assert_same_file(place, "w1.safetensors",
                         arena_printf(&place->arena, "w%d.safetensors", threads));
    }
}

static void dumps_are_numbered(void **state)
{
    Place *place = *state;
    run_well(place, "raftc cli/tiny.yaml --target reference --emit ir -o dumped --dump-ir=all "
                    "--dump-dir dumps");
    assert_int_equal(access(in_folder(place, "dumps/00-frontend.ir"), R_OK), 0);
    assert_int_equal(access(in_folder(place, "dumps/13-form_kernels.ir"), R_OK), 0);
    run_well(place, "raftc inspect dumps/00-frontend.ir --json");
    const char *before = read_text(&place->arena, in_folder(place, "dumps/00-frontend.ir"));
    const char *after = read_text(&place->arena, in_folder(place, "dumps/13-form_kernels.ir"));
    assert_non_null(strstr(before, "rearrange"));
    assert_null(strstr(after, "rearrange"));
}

/* The graph of the model, and that of the optimiser's step. */
static void dumps_of_training_are_apart(void **state)
{
    Place *place = *state;
    run_well(place,
             "raftc train cli/tiny.yaml --target reference --weights @fill --data @fill --batch 1 "
             "--steps 1 -q --dump-ir all --dump-dir trained");
    const char *model = read_text(&place->arena, in_folder(place, "trained/03-share.ir")),
               *step = read_text(&place->arena, in_folder(place, "trained/optimiser-03-share.ir"));
    assert_non_null(strstr(model, "gelu_grad"));
    assert_null(strstr(step, "gelu_grad"));
    assert_non_null(strstr(step, "input @w"));
}

static void bench_gives_every_number(void **state)
{
    static const char *const numbers[] = {"min_ms",  "median_ms",   "images_per_second",
                                          "gflops",  "peak_gflops", "sustained_gflops",
                                          "threads", "batch"};
    static const char *const texts[] = {"dtype", "image", "target", "machine"};
    Place *place = *state;
    run_well(place, "raftc bench cli/tiny.yaml --target reference --json --threads 1 --batch 2");
    json_error_t error;
    json_t *object = json_load_file(place->output, 0, &error);
    if (!json_is_object(object)) fail_msg("no object: %s", error.text);
    assert_int_equal(json_object_size(object), ARRAY_SIZE(numbers) + ARRAY_SIZE(texts));
    for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
        assert_true(json_number_value(json_object_get(object, numbers[i])) > 0);
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        assert_true(json_string_length(json_object_get(object, texts[i])) > 0);
    assert_int_equal(json_integer_value(json_object_get(object, "batch")), 2);
    double median = json_number_value(json_object_get(object, "median_ms"));
    double rate = json_number_value(json_object_get(object, "images_per_second"));
    assert_true(json_number_value(json_object_get(object, "min_ms")) <= median);
    assert_true(rate * median > 1.99e3 && rate * median < 2.01e3);
    json_decref(object);
}

static void profile_gives_every_kernel(void **state)
{
    static const char *const numbers[] = {"times",  "ms",     "balance",
                                          "gflops", "mbytes", "gbytes_per_second"};
    Place *place = *state;
    if (!llvm_available()) skip();
    run_well(place, "raftc bench cli/tiny.yaml --profile --json --threads 2");
    json_error_t error;
    json_t *object = json_load_file(place->output, 0, &error), *kernel;
    if (!json_is_object(object)) fail_msg("no object: %s", error.text);
    assert_true(json_number_value(json_object_get(object, "peak_gbytes_per_second")) > 0);
    double peak = json_number_value(json_object_get(object, "peak_gflops"));
    const json_t *kernels = json_object_get(object, "kernels");
    size_t index, products = 0;
    double ms = 0;
    json_array_foreach(kernels, index, kernel)
    {
        for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
            assert_true(json_number_value(json_object_get(kernel, numbers[i])) > 0);
        assert_true(json_number_value(json_object_get(kernel, "balance")) <= 1.0);
        ms += json_number_value(json_object_get(kernel, "ms"));
        double gflops = json_number_value(json_object_get(kernel, "gflops"));
        const char *cause = json_string_value(json_object_get(kernel, "slowed_by"));
        assert_int_equal(cause[0] == 0, gflops >= 0.65 * peak);
        const char *name = json_string_value(json_object_get(kernel, "kernel"));
        products += strstr(name, "norm_linear_gelu_linear_add (b, ") == name;
    }
    assert_true(products >= 3);
    assert_true(ms <= json_number_value(json_object_get(object, "min_ms")));
    json_decref(object);
}

/* 10^6 bytes of the optimiser's kernel, the one that takes roots. */
static double bytes_of_optimiser(Place *place, const char *command)
{
    json_error_t error;
    double bytes = 0;
    run_well(place, command);
    json_t *object = json_load_file(place->output, 0, &error), *kernel;
    if (!json_is_object(object)) fail_msg("no object: %s", error.text);
    size_t index;
    json_array_foreach(json_object_get(object, "kernels"), index, kernel)
    {
        if (strstr(json_string_value(json_object_get(kernel, "kernel")), "sqrt"))
            bytes += json_number_value(json_object_get(kernel, "mbytes"));
    }
    json_decref(object);
    return bytes;
}

/* It works once a step, however many images there are. */
static void profile_knows_the_optimiser(void **state)
{
    Place *place = *state;
    if (!llvm_available()) skip();
    double one = bytes_of_optimiser(
        place, "raftc bench cli/tiny.yaml --train --batch 1 --profile --json --threads 1");
    assert_true(one > 0);
    double four = bytes_of_optimiser(
        place, "raftc bench cli/tiny.yaml --train --batch 4 --profile --json --threads 1");
    assert_true(one == four);
}

static int count_text(const char *text, const char *part)
{
    int count = 0;
    for (const char *at = text; (at = strstr(at, part)); at += strlen(part)) count++;
    return count;
}

/* A trace is JSON as Chrome reads it, with every pass, and kernels that follow each other on each thread. */
static void check_trace(Place *place, const char *name)
{
    json_error_t error;
    json_t *trace = json_load_file(in_folder(place, name), 0, &error);
    if (!trace) fail_msg("%s: %s", name, error.text);
    const json_t *event, *events = json_object_get(trace, "traceEvents");
    double ended[3] = {0};
    int kernels[3] = {0}, passes = 0;
    size_t i;
    json_array_foreach(events, i, event)
    {
        const char *kind = json_string_value(json_object_get(event, "cat"));
        double start = json_number_value(json_object_get(event, "ts"));
        double length = json_number_value(json_object_get(event, "dur"));
        json_int_t thread = json_integer_value(json_object_get(event, "tid"));
        assert_true(start >= 0 && length >= 0 && thread >= 0 && thread < 3);
        passes += kind && strcmp(kind, "pass") == 0;
        if (!kind || strcmp(kind, "kernel") != 0) continue;
        assert_true(start >= ended[thread] - 0.01);
        ended[thread] = start + length;
        kernels[thread]++;
    }
    assert_true(passes >= 8);
    for (int thread = 0; thread < 3; thread++) assert_int_equal(kernels[thread], kernels[0]);
    assert_true(kernels[0] >= 10);
    json_decref(trace);
}

static void bench_draws_and_traces(void **state)
{
    Place *place = cpu_place(state);
    run_well(place, "raftc bench cli/tiny.yaml --threads 3 --profile --json --roofline roof.svg "
                    "--trace trace.json");
    const char *table = read_text(&place->arena, place->output);
    const char *roof = read_text(&place->arena, in_folder(place, "roof.svg"));
    check_trace(place, "trace.json");
    assert_true(strncmp(roof, "<svg ", 5) == 0 && strstr(roof, "</svg>\n"));
    assert_int_equal(count_text(roof, "% of the memory: "), count_text(table, "\"kernel\": "));
    assert_int_equal(count_text(roof, "class='roof'"), 2);
    assert_true(count_text(roof, "<circle ") >= 8);
    assert_null(strstr(roof, "nan"));
    assert_null(strstr(roof, "inf"));
}

static void a_full_disk_is_told(void **state)
{
    Place *place = *state;
    const char *output = place->output;
    place->output = "/dev/full";
    int exit = run(place, "raftc --version");
    place->output = output;
    assert_int_equal(exit, 1);
    assert_string_equal(read_text(&place->arena, place->errors),
                        "raftc: error: the results cannot be written: No space left on device\n");
}

static int count_entries(const char *path, const char *part)
{
    int count = 0;
    DIR *folder = opendir(path);
    if (!folder) fail_msg("%s: %s", path, strerror(errno));
    for (const struct dirent *entry; (entry = readdir(folder));)
        count += entry->d_name[0] != '.' && strstr(entry->d_name, part);
    closedir(folder);
    return count;
}

/* Wherever a signal strikes, files are whole or not there, and nothing else is left. (Here the clock
 * decides where, and the compiler is a real one; test_faults.c has each call.) */
static void signals_leave_nothing_behind(void **state)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE};
    Place *place = cpu_place(state);
    const char *temporary = in_folder(place, "temporary");
    assert_int_equal(mkdir(temporary, 0700), 0);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0}); /* SIGQUIT */
    int ended = 0;
    for (int i = 0; i < 12; i++) {
        pid_t process = start(place, arena_printf(&place->arena,
                                                  "TMPDIR=%s raftc cli/tiny.yaml -o struck "
                                                  "--emit lib,obj,ir --weights @fill",
                                                  temporary));
        usleep((useconds_t)(20000 * (i + 1)));
        kill(process, signals[i % 5]);
        int status = finish(process);
        if (WIFSIGNALED(status)) {
            ended++;
            assert_int_equal(WTERMSIG(status), signals[i % 5]);
        } else {
            assert_int_equal(WEXITSTATUS(status), 0);
        }
        assert_int_equal(count_entries(place->folder, ".tmp"), 0);
        assert_int_equal(count_entries(temporary, ""), 0);
    }
    assert_true(ended > 0);
}

#ifdef __x86_64__
/* Code for a CPU with more than this one has is refused, not run. */
static void lacking_instructions_are_told(void **state)
{
    Place *place = cpu_place(state);
    int status = finish(start(place, "raftc run cli/tiny.yaml --weights @fill @fill -q --mcpu "
                                     "x86-64-v4"));
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), __builtin_cpu_supports("avx512f") ? 0 : 5);
}
#endif

/* What a terminal would show of `text`, whose cursor goes back at \r, and which \033[K clears behind it. */
static const char *as_shown(Arena *arena, const char *text)
{
    Text screen = text_new(arena);
    char line[512] = "";
    size_t at = 0;
    for (const char *c = text; *c; c++) {
        if (*c == '\n') text_printf(&screen, "%s\n", line);
        if (*c == '\n') memset(line, 0, sizeof line);
        if (*c == '\n' || *c == '\r') {
            at = 0;
        } else if (strncmp(c, "\033[K", 3) == 0) {
            memset(line + at, 0, sizeof line - at);
            c += 2;
        } else if (at < sizeof line - 1) {
            line[at++] = *c;
        }
    }
    text_put(&screen, line);
    return screen.data;
}

/* Runs a command that writes *stream (the place's output or errors) to a terminal of so many columns. */
static int run_on_terminal(Place *place, const char **stream, int columns, const char *command,
                           const char **shown)
{
    static char text[8192];
    const char *file = *stream;
    const struct winsize size = {.ws_row = 24, .ws_col = (unsigned short)columns};
    int terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0)
        fail_msg("no terminal: %s", strerror(errno));
    *stream = ptsname(terminal);
    int held = open(*stream, O_RDWR | O_NOCTTY | O_CLOEXEC); /* what is written stays */
    assert_true(held >= 0 && ioctl(held, TIOCSWINSZ, &size) == 0);
    int exit = run(place, command);
    fcntl(terminal, F_SETFL, O_NONBLOCK);
    ssize_t length = read(terminal, text, sizeof text - 1);
    text[length > 0 ? length : 0] = '\0';
    close(held);
    close(terminal);
    *stream = file;
    *shown = as_shown(&place->arena, text);
    return exit;
}

/* A message never stands on the line of the progress, and that is gone once there is another. */
static void progress_makes_way_for_messages(void **state)
{
    static const char run_them[] = "raftc run cli/one-level.yaml --image 8x8 --weights @fill "
                                   "--target reference data/images/one.png %s "
                                   "data/images/row.png";
    Place *place = *state;
    const char *shown;
    int exit = run_on_terminal(place, &place->errors, 80,
                               arena_printf(&place->arena, run_them, "cli/tiny.yaml"), &shown);
    assert_string_equal(shown,
                        "raftc: note: the weights are made up (@fill): the classes mean nothing\n"
                        "raftc: error: cli/tiny.yaml: byte 0: neither a JPEG nor a PNG file\n"
                        "3 of 3\n"
                        "raftc: error: 1 of 3 images could not be read\n");
    assert_int_equal(exit, 3);
    exit = run_on_terminal(
        place, &place->errors, 80,
        arena_printf(&place->arena, run_them, "data/images/column.png --output full/x.safetensors"),
        &shown);
    assert_int_equal(exit, 1);
    assert_non_null(strstr(shown, "3 of 3\nraftc: error: full/x.safetensors: cannot be written: "));
}

/* A run's progress is one line, as wide as the terminal has room for; results take its place. */
static void training_draws_one_line(void **state)
{
    static const struct {
        int columns;
        const char *shown; /* up to a number that differs */
    } cases[] = {
        {200, "epoch 2/4  step 9/24  loss "},
        {80, "2/4 9/24 loss "},
        {12, "2/4 9/24 lo\n"},
    };
    Place *place = *state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const char *shown;
        int exit = run_on_terminal(place, &place->output, cases[i].columns,
                                   "raftc train cli/grey.yaml --image 8x8 --target reference "
                                   "--steps 9 -o drawn",
                                   &shown);
        assert_int_equal(exit, 0);
        const char *line = strchr(shown, '\n') + 1, *end = strchr(line, '\n');
        assert_int_equal(strncmp(shown, "epoch 1  accuracy ", 18), 0);
        if (strncmp(line, cases[i].shown, strlen(cases[i].shown)) != 0 || !end || end[1] ||
            end - line >= cases[i].columns)
            fail_msg("%d columns: %s", cases[i].columns, shown);
    }
}

int main(void)
{
    Place place;
    open_place(&place);
    struct CMUnitTest tests[] = {
        cmocka_unit_test(graphs_round_trip),
        cmocka_unit_test(runs_agree_with_pytorch),
        cmocka_unit_test(batches_and_threads_do_not_matter),
        cmocka_unit_test(threads_do_not_matter_in_training),
        cmocka_unit_test(dumps_are_numbered),
        cmocka_unit_test(dumps_of_training_are_apart),
        cmocka_unit_test(bench_gives_every_number),
        cmocka_unit_test(profile_gives_every_kernel),
        cmocka_unit_test(profile_knows_the_optimiser),
        cmocka_unit_test(bench_draws_and_traces),
        cmocka_unit_test(a_full_disk_is_told),
        cmocka_unit_test(signals_leave_nothing_behind),
#ifdef __x86_64__
        cmocka_unit_test(lacking_instructions_are_told),
#endif
        cmocka_unit_test(progress_makes_way_for_messages),
        cmocka_unit_test(training_draws_one_line),
    };
    for (size_t i = 0; i < ARRAY_SIZE(tests); i++) tests[i].initial_state = &place;
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    close_place(&place);
    return failures;
}
