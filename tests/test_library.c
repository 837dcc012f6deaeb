/* test_library.c: libraries written from a plan made by hand and kernels compiled here, and the
 * programs of library/ that use them. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "backends/backend.h"
#include "tests/library/values.h"

enum { PATH_ROOM = 1024, SCRATCH_BYTES = 100 };

typedef struct Fixture {
    char folder[PATH_ROOM], temporary[PATH_ROOM];
    Arena arena;
    Diag diag;
    Plan *plan;
    StepCode *steps;
    ProgramCode code; /* of these steps */
    const Source *object;
    LibraryOptions options;
} Fixture;

static char made_by[] =
    "raftc 0.1.0: raftc \"tiny.yaml\" --name tiny \\ ?\?/ %s\n*/ int broken; /*\n";

/* ---- commands -------------------------------------------------------------------------------- */

/* Runs a shell command in the fixture's folder; what it prints goes to the file `printed`. */
__attribute__((format(printf, 2, 3))) static int run(const Fixture *f, const char *format, ...)
{
    char command[4 * PATH_ROOM];
    va_list arguments;
    int start = snprintf(command, sizeof command, "cd '%s' && exec >printed 2>&1 && ", f->folder);
    va_start(arguments, format);
    vsnprintf(command + start, sizeof command - (size_t)start, format, arguments);
    va_end(arguments);
    int state = system(command);
    return WIFEXITED(state) ? WEXITSTATUS(state) : 128;
}

static const Source *read_file(Fixture *f, const char *name)
{
    const char *path = arena_printf(&f->arena, "%s/%s", f->folder, name);
    const Source *file = diag_read_source(&f->diag, path, 64 << 20);
    if (!file) fail_msg("%s cannot be read", path);
    return file;
}

static void expect_success(Fixture *f, int status)
{
    if (status != 0) fail_msg("status %d:\n%s", status, read_file(f, "printed")->text);
}

/* ---- the plan -------------------------------------------------------------------------------- */

static void add_buffer(Plan *plan, NodeId value, BufferKind kind, int index, int64_t offset)
{
    plan->buffers[plan->buffer_count++] =
        (Buffer){.value = value, .kind = kind, .index = index, .offset = offset};
}

static NodeId add_value(Graph *graph, Op op, const char *name, const char *axes, int rank,
                        int64_t first, int64_t second)
{
    Attributes attributes = {.name = name, .stored_rank = rank, .stored = {first, second}};
    Type type = type_make(DTYPE_F32, axes);
    return graph_add(graph, op, NULL, 0, &type, &attributes, (Loc){0});
}

static void add_step(Fixture *f, const char *name, bool prepare, unsigned entries, int64_t units,
                     int count, const int *arguments)
{
    Graph *graph = (Graph *)f->plan->graph;
    NodeId node = add_value(graph, OP_GELU, NULL, "x 1", 0, 0, 0); /* names the kernel */
    graph_node(graph, node)->kernel = f->plan->step_count;
    Step *step = &f->plan->steps[f->plan->step_count];
    *step = (Step){.kernel = f->plan->step_count, .prepare = prepare, .entries = entries};
    step->argument_count = count;
    step->arguments = arena_array(&f->arena, (size_t)count, sizeof(int));
    memcpy(step->arguments, arguments, (size_t)count * sizeof(int));
    f->steps[f->plan->step_count++] =
        (StepCode){.symbol = arena_printf(&f->arena, "%s_k_%s", f->options.prefix, name),
                   .units = units,
                   .batched = !prepare};
}

#define ARGUMENTS(...)                                                                             \
    sizeof((const int[]){__VA_ARGS__}) / sizeof(int), (const int[])                                \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

/* The program of library/kernels.c. */
static void make_plan(Fixture *f, bool features)
{
    enum { IMAGE, WEIGHT, SCALE, BIAS, PACKED, SUMS, HIDDEN, SHIFTED, LOGITS, MAP0, MAP1 };
    enum { FORWARD = 1, FEATURES = 2 };
    Graph *g = graph_new(&f->arena, f->options.prefix);
    f->plan = arena_alloc(&f->arena, sizeof *f->plan);
    f->plan->graph = g;
    f->plan->buffers = arena_array(&f->arena, 16, sizeof *f->plan->buffers);
    f->plan->steps = arena_array(&f->arena, 16, sizeof *f->plan->steps);
    f->steps = arena_array(&f->arena, 16, sizeof *f->steps);
    f->code = (ProgramCode){.steps = f->steps, .scratch_bytes = SCRATCH_BYTES};
    f->plan->entry[f->plan->entry_count++] = "forward";
    f->plan->arena_floats = 32;
    f->plan->prepared_floats = 64;
    NodeId image = add_value(g, OP_INPUT, "image", "b, c 2, y 2, x 2", 0, 0, 0);
    NodeId weight = add_value(g, OP_PARAM, "head.weight", "class 5, c 2, y 2, x 2", 2, 5, 8);
    NodeId scale = add_value(g, OP_PARAM, "norm.scale", "c 2, y 2, x 2", 1, 8, 0);
    NodeId bias = add_value(g, OP_PARAM, "head.bias", "class 5", 1, 5, 0);
    NodeId logits = add_value(g, OP_WRITE, NULL, "b, class 5", 0, 0, 0);
    graph_add_output(g, "logits", "forward", logits);
    add_buffer(f->plan, image, BUFFER_INPUT, 0, 0);
    add_buffer(f->plan, weight, BUFFER_PARAM, 0, 0);
    add_buffer(f->plan, scale, BUFFER_PARAM, 1, 0);
    add_buffer(f->plan, bias, BUFFER_PARAM, 2, 0);
    add_buffer(f->plan, NO_NODE, BUFFER_PREPARED, 0, 0);
    add_buffer(f->plan, NO_NODE, BUFFER_PREPARED, 0, 48);
    add_buffer(f->plan, NO_NODE, BUFFER_ARENA, 0, 0);
    add_buffer(f->plan, NO_NODE, BUFFER_ARENA, 0, 16);
    add_buffer(f->plan, logits, BUFFER_OUTPUT, 0, 0);
    unsigned both = features ? FORWARD | FEATURES : FORWARD;
    add_step(f, "hidden", false, both, 8, ARGUMENTS(IMAGE, HIDDEN));
    add_step(f, "pack", true, FORWARD, 5, ARGUMENTS(WEIGHT, SCALE, PACKED));
    add_step(f, "shifted", false, both, 8, ARGUMENTS(HIDDEN, SHIFTED));
    add_step(f, "sum", true, FORWARD, 5, ARGUMENTS(PACKED, SUMS));
    add_step(f, "logits", false, FORWARD, 5, ARGUMENTS(SHIFTED, PACKED, SUMS, BIAS, LOGITS));
    if (!features) return;
    f->plan->entry[f->plan->entry_count++] = "features";
    for (int i = 0; i < 2; i++) {
        NodeId map = add_value(g, OP_WRITE, NULL, "b, c 2, y 2, x 2", 0, 0, 0);
        graph_add_output(g, i ? "feature1" : "feature0", "features", map);
        add_buffer(f->plan, map, BUFFER_OUTPUT, 1 + i, 0);
    }
    add_step(f, "double", false, FEATURES, 8, ARGUMENTS(HIDDEN, MAP0));
    add_step(f, "copy", false, FEATURES, 8, ARGUMENTS(SHIFTED, MAP1));
}

/* A plan, and its kernels compiled to an object. */
static void prepare_library(Fixture *f, const char *prefix, bool features)
{
    f->options = (LibraryOptions){.prefix = prefix,
                                  .base = arena_printf(&f->arena, "%s/%s", f->folder, prefix),
                                  .made_by = made_by,
                                  .shared = true,
                                  .archive = true,
                                  .header = true};
    make_plan(f, features);
    expect_success(f, run(f,
                          "cc -O1 -fPIC -ffp-contract=off '-DKERNEL(name)=void %s_k_##name' -c "
                          "'%s/library/kernels.c' -o kernels.o",
                          prefix, TEST_DATA));
    f->object = read_file(f, "kernels.o");
}

static const char *make_object(void *context, CodeObject *object)
{
    const Fixture *f = context;
    if (!f->object) return "there is none";
    *object = (CodeObject){f->object->text, f->object->size};
    return NULL;
}

static bool write_library(Fixture *f)
{
    bool cuda = f->options.cuda;
    CodeObject object;
    const LibraryObjects objects = {1, &object, make_object, f};
    return library_write(&f->arena, f->plan, &f->code, cuda ? NULL : &objects, &f->options,
                         &f->diag) == RAFT_OK;
}

static void write_good_library(Fixture *f, const char *prefix, bool features)
{
    prepare_library(f, prefix, features);
    if (write_library(f)) return;
    diag_print(&f->diag, stderr);
    fail_msg("the library %s cannot be written", prefix);
}

static int set_up(void **state)
{
    static Fixture fixture;
    const char *parent = getenv("TMPDIR");
    Fixture *f = *state = &fixture;
    fixture = (Fixture){0};
    f->diag = diag_new(&f->arena);
    snprintf(f->folder, sizeof f->folder, "%s/raftc-test-XXXXXX", parent ? parent : "/tmp");
    if (!mkdtemp(f->folder)) return -1;
    unsetenv("CC");
    unsetenv("AR");
    return 0;
}

static int tear_down(void **state)
{
    Fixture *f = *state;
    unsetenv("CC");
    unsetenv("AR");
    if (run(f, "rm -rf '%s'", f->folder) != 0) return -1;
    arena_free(&f->arena);
    return 0;
}

/* ---- programs that use a library ------------------------------------------------------------- */

static const char compile_c[] = "cc -std=c11 -D_DEFAULT_SOURCE -Wall -Wextra -Wpedantic -Werror";

static const char *make_weights(Fixture *f, int seed, size_t *size)
{
    Values v;
    make_values(&v, seed);
    const RaftProgram *program = program_build(&f->arena, f->plan, &f->code, NULL);
    return weights_blob(&f->arena, program, (const float *const[]){v.weight, v.scale, v.bias},
                        size);
}

static void write_weights(Fixture *f, int seed)
{
    size_t size;
    const char *blob = make_weights(f, seed, &size);
    FILE *file = fopen(arena_printf(&f->arena, "%s/tiny.weights", f->folder), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(blob, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static void test_c_program(void **state)
{
    Fixture *f = *state;
    write_good_library(f, "tiny", true);
    write_weights(f, 3);
    expect_success(f, run(f, "%s -I. -I'%s' '%s/library/user.c' tiny.so -Wl,-rpath,. -o shared",
                          compile_c, SOURCE_ROOT, TEST_DATA));
    expect_success(f, run(f, "./shared tiny.weights"));
    expect_success(f, run(f, "%s -I. -I'%s' '%s/library/user.c' tiny.a -fopenmp -lm -o static",
                          compile_c, SOURCE_ROOT, TEST_DATA));
    expect_success(f, run(f, "./static tiny.weights"));
    assert_int_not_equal(run(f, "./static tiny.a"), 0); /* the program does look */
}

static void test_cxx_program(void **state)
{
    Fixture *f = *state;
    if (run(f, "command -v c++") != 0) skip();
    write_good_library(f, "tiny", true);
    expect_success(f, run(f,
                          "c++ -std=c++11 -Wall -Wextra -Wpedantic -Werror -I. -I'%s' "
                          "'%s/library/user.cpp' tiny.so -Wl,-rpath,. -o user",
                          SOURCE_ROOT, TEST_DATA));
    expect_success(f, run(f, "./user"));
}

static void test_two_libraries(void **state)
{
    Fixture *f = *state;
    write_good_library(f, "tiny", true);
    write_good_library(f, "other", false);
    expect_success(f,
                   run(f, "%s -I. -I'%s' '%s/library/two.c' tiny.a other.a -fopenmp -lm -o static",
                       compile_c, SOURCE_ROOT, TEST_DATA));
    expect_success(f, run(f, "./static"));
    expect_success(f, run(f,
                          "%s -I. -I'%s' '%s/library/two.c' tiny.so other.so -pthread "
                          "-Wl,-rpath,. -o shared",
                          compile_c, SOURCE_ROOT, TEST_DATA));
    expect_success(f, run(f, "./shared"));
    assert_int_equal(run(f, "grep -c features other.h"), 1);
}

static void test_exports(void **state)
{
    Fixture *f = *state;
    write_good_library(f, "tiny", true);
    expect_success(f, run(f, "nm -D --defined-only tiny.so | cut -d' ' -f2-"));
    assert_string_equal(read_file(f, "printed")->text,
                        "T tiny_create\nT tiny_destroy\nT tiny_error\nT tiny_features\n"
                        "T tiny_forward\nT tiny_inputs\nT tiny_outputs\nT tiny_parameters\n"
                        "T tiny_set_parameter\n");
    expect_success(f, run(f, "nm --defined-only --extern-only tiny.a | grep -v '^$\\|:$'"));
    assert_int_not_equal(run(f, "nm --defined-only --extern-only tiny.a | grep -v '^$\\|:$' | "
                                "grep -v ' tiny_'"),
                         0);
    expect_success(f, run(f, "readelf -d tiny.so | grep 'NEEDED\\|RPATH\\|RUNPATH' | "
                             "grep -v 'lib\\(c\\|m\\|gomp\\)\\.so\\.[0-9]*]$' | wc -l"));
    assert_string_equal(read_file(f, "printed")->text, "0\n");
    expect_success(f, run(f, "readelf -d tiny.so | grep 'SONAME.*\\[tiny.so\\]'"));
}

/* The kernels as those of GPUs; the cubins are some that the fake driver takes (fake_cuda.h). That for
 * sm_86 computes nothing. */
static void use_gpu(Fixture *f)
{
    int count = f->plan->step_count;
    CudaKernel *kernel = arena_array(&f->arena, (size_t)count, sizeof *kernel);
    RaftCudaImage *image = arena_array(&f->arena, 3, sizeof *image);
    Text list = text_new(&f->arena);
    text_printf(&list, "FAKEFILE%s/kernels.so\n ", f->folder);
    for (int s = 0; s < count; s++) {
        const StepCode *step = &f->steps[s];
        kernel[s] = (CudaKernel){.symbol = step->symbol,
                                 .threads = 128,
                                 .units = step->units,
                                 .batched = step->batched,
                                 .block = 3,
                                 .outer = 1};
        text_printf(&list, "%s %d ", step->symbol, f->plan->steps[s].argument_count);
    }
    image[0] = (RaftCudaImage){80, list.data, list.length + 1};
    image[1] = (RaftCudaImage){86, "wrong", sizeof "wrong"};
    image[2] = (RaftCudaImage){90, list.data, list.length + 1};
    f->code = *cuda_program_code(&f->arena, &(CudaSource){.kernels = kernel, .kernel_count = count},
                                 image, 3);
    f->options.cuda = true;
    expect_success(f, run(f, "cc -shared kernels.o -lm -o kernels.so"));
}

/* A program with the library on a GPU, which the fake driver says is an sm_`gpu`. */
static int run_on_gpu(Fixture *f, const char *command, int gpu)
{
    return run(f, "LD_LIBRARY_PATH='%s' FAKE_CUDA_ARCHITECTURE=%d %s", FAKE_CUDA, gpu, command);
}

static void expect_no_lines(Fixture *f, const char *command)
{
    run(f, "%s", command);
    assert_string_equal(read_file(f, "printed")->text, "");
}

static void test_gpu_library(void **state)
{
    Fixture *f = *state;
    prepare_library(f, "tiny", true);
    use_gpu(f);
    assert_true(write_library(f));
    write_weights(f, 3);
    expect_success(f, run(f, "%s -I. -I'%s' '%s/library/user.c' tiny.so -Wl,-rpath,. -o shared",
                          compile_c, SOURCE_ROOT, TEST_DATA));
    expect_success(f, run_on_gpu(f, "./shared tiny.weights", 90));
    expect_success(f, run(f, "%s -I. -I'%s' '%s/library/user.c' tiny.a -ldl -o static", compile_c,
                          SOURCE_ROOT, TEST_DATA));
    expect_success(f, run_on_gpu(f, "./static tiny.weights", 90));
    expect_no_lines(f, "readelf -d tiny.so | grep 'NEEDED\\|RPATH\\|RUNPATH' | "
                       "grep -v 'lib\\(c\\|m\\|dl\\)\\.so\\.[0-9]*]$'");
    expect_no_lines(f, "nm -D --defined-only tiny.so | grep -v ' tiny_'");
    expect_no_lines(f,
                    "nm --defined-only --extern-only tiny.a | grep ' [A-Z] ' | grep -v ' tiny_'");
}

/* Which cubin is chosen shows in what is computed. */
static void test_gpus(void **state)
{
    Fixture *f = *state;
    prepare_library(f, "tiny", true);
    use_gpu(f);
    f->options.weights = make_weights(f, 3, &f->options.weights_size);
    assert_true(write_library(f));
    expect_success(f, run(f, "%s -I. -I'%s' '%s/library/user.c' tiny.so -Wl,-rpath,. -o shared",
                          compile_c, SOURCE_ROOT, TEST_DATA));
    expect_success(f, run_on_gpu(f, "./shared", 80));
    expect_success(f, run_on_gpu(f, "./shared", 90));
    static const int wrong[] = {86, 89};
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        assert_int_not_equal(run_on_gpu(f, "./shared", wrong[i]), 0);
        assert_non_null(strstr(read_file(f, "printed")->text, "memcmp(logits"));
    }
    assert_int_not_equal(run_on_gpu(f, "./shared", 75), 0);
    assert_string_equal(read_file(f, "printed")->text,
                        "the model is compiled for sm_80, sm_86, sm_90; this GPU, Fake GPU, is "
                        "sm_75: compile it again with --gpu-arch sm_75\n");
    if (run(f, "command -v clang") != 0) return;
    setenv("CC", "clang", 1);
    assert_true(write_library(f));
    expect_success(f, run_on_gpu(f, "./shared", 80));
}

/* The prototypes of header and source agree, and the types of header and shell. */
static void test_header_fits_source(void **state)
{
    Fixture *f = *state;
    prepare_library(f, "tiny", true);
    FILE *file = fopen(arena_printf(&f->arena, "%s/both.c", f->folder), "w");
    assert_non_null(file);
    fputs(library_header(&f->arena, f->plan, &f->options), file);
    fputs(library_source(&f->arena, f->plan, &f->code, &f->options), file);
    assert_int_equal(fclose(file), 0);
    expect_success(f, run(f, "cat '%s/library/check.c' >>both.c", TEST_DATA));
    expect_success(f, run(f, "cc -std=gnu17 -fopenmp -Wall -Wextra -Werror -fsyntax-only both.c"));
    use_gpu(f);
    file = fopen(arena_printf(&f->arena, "%s/both.c", f->folder), "w");
    assert_non_null(file);
    fputs(library_header(&f->arena, f->plan, &f->options), file);
    fputs(library_source(&f->arena, f->plan, &f->code, &f->options), file);
    assert_int_equal(fclose(file), 0);
    expect_success(f, run(f, "cat '%s/library/check.c' >>both.c", TEST_DATA));
    expect_success(f, run(f, "cc -std=gnu17 -Wall -Wextra -Werror -fsyntax-only both.c"));
}

/* ---- files ----------------------------------------------------------------------------------- */

static void expect_same_file(Fixture *f, const char *name, const char *other)
{
    const Source *a = read_file(f, name), *b = read_file(f, other);
    assert_int_equal(a->size, b->size);
    assert_memory_equal(a->text, b->text, a->size);
}

/* The library as it was written, and again in another folder with another for what is temporary. */
static void expect_same_bytes(Fixture *f)
{
    const char *old = getenv("TMPDIR"), *base = f->options.base;
    char *saved = old ? arena_strdup(&f->arena, old) : NULL;
    expect_success(f, run(f, "mkdir -p a 'a/longer, folder'"));
    f->options.base = arena_printf(&f->arena, "%s/a/tiny", f->folder);
    setenv("TMPDIR", arena_printf(&f->arena, "%s/a/longer, folder", f->folder), 1);
    bool good = write_library(f);
    if (saved)
        setenv("TMPDIR", saved, 1);
    else
        unsetenv("TMPDIR");
    f->options.base = base;
    assert_true(good);
    expect_same_file(f, "tiny.h", "a/tiny.h");
    expect_same_file(f, "tiny.a", "a/tiny.a");
    expect_same_file(f, "tiny.so", "a/tiny.so");
}

static void test_same_bytes(void **state)
{
    Fixture *f = *state;
    write_good_library(f, "tiny", true);
    expect_same_bytes(f);
    assert_int_not_equal(run(f, "grep -a 'raftc-' tiny.so tiny.a"), 0);
    use_gpu(f);
    f->options.weights = make_weights(f, 3, &f->options.weights_size);
    assert_true(write_library(f));
    expect_same_bytes(f);
}

/* Writing fails with an error that has `message` in it, leaves the temporary folder empty and the
 * library that was there as it was. */
static void expect_failure(Fixture *f, const char *message)
{
    Diag all = f->diag;
    const char *old = getenv("TMPDIR");
    char *saved = old ? arena_strdup(&f->arena, old) : NULL;
    bool found = false;
    expect_success(f, run(f, "rm -rf temporary && mkdir temporary && cp tiny.so kept"));
    f->diag = diag_new(&f->arena);
    setenv("TMPDIR", arena_printf(&f->arena, "%s/temporary", f->folder), 1);
    bool written = write_library(f);
    if (saved)
        setenv("TMPDIR", saved, 1);
    else
        unsetenv("TMPDIR");
    for (uint32_t i = 0; i < f->diag.count; i++)
        found |= strstr(f->diag.messages[i].text, message) != NULL;
    if (!found) diag_print(&f->diag, stderr);
    assert_true(found && f->diag.errors > 0 && !written);
    f->diag = all;
    expect_success(f, run(f, "rmdir temporary"));
    expect_success(f, run(f, "cmp tiny.so kept"));
}

static void test_tools_that_fail(void **state)
{
    Fixture *f = *state;
    write_good_library(f, "tiny", true);
    setenv("CC", "no-such-compiler -m64", 1);
    expect_failure(f, "the C compiler 'no-such-compiler' ($CC) cannot be run: No such file or "
                      "directory; a library needs it: install the package gcc");
    setenv("CC", "false", 1);
    expect_failure(f, "the C compiler 'false' failed");
    setenv("CC", "  ", 1); /* as if it were not set */
    setenv("AR", "no-such-archiver", 1);
    expect_failure(f, "the archiver 'no-such-archiver' ($AR) cannot be run: No such file or "
                      "directory; a library needs it: install the package binutils");
    unsetenv("AR");
    f->options.triple = "mips64el-unknown-linux-gnuabi64";
    expect_failure(f, "the C compiler 'mips64el-linux-gnuabi64-gcc' cannot be run: No such file or "
                      "directory; a library needs it: install the package "
                      "gcc-mips64el-linux-gnuabi64");
    f->options.triple = NULL;
    const Source *object = f->object;
    f->object = diag_add_source(&f->diag, "kernels.o", "no object", 9);
    expect_failure(f, "the C compiler 'cc' failed");
    f->object = NULL;
    expect_failure(f, "LLVM cannot write the code: there is none");
    f->object = object;
    f->options.base = arena_printf(&f->arena, "%s/no-such-folder/tiny", f->folder);
    expect_failure(f, "no-such-folder/tiny.so: cannot be written: No such file or directory");
    f->options.base = arena_printf(&f->arena, "%s/tiny", f->folder);
    setenv("CC", "cc -DUNUSED", 1); /* more than one word */
    assert_true(write_library(f));
}

static void test_header_alone(void **state)
{
    Fixture *f = *state;
    prepare_library(f, "tiny", true);
    f->options.shared = f->options.archive = false;
    setenv("CC", "no-such-compiler", 1); /* is not needed */
    assert_true(write_library(f));
    assert_int_not_equal(run(f, "test -e tiny.so -o -e tiny.a"), 0);
    assert_string_equal(read_file(f, "tiny.h")->text,
                        library_header(&f->arena, f->plan, &f->options));
}

/* ---- what cannot be a library ---------------------------------------------------------------- */

static void expect_refusal(Fixture *f, const char *message)
{
    Diag diag = diag_new(&f->arena);
    assert_false(library_check(f->plan, &f->options, &diag));
    for (uint32_t i = 0; i < diag.count; i++)
        if (strstr(diag.messages[i].text, message)) return;
    diag_print(&diag, stderr);
    fail_msg("no message with '%s'", message);
}

static void test_refused_plans(void **state)
{
    static const char *const prefixes[] = {"",    "1st", "a-b",   "a b",       "\xC3\xA9",
                                           "x*/", "int", "class", "raft_shell"};
    Fixture *f = *state;
    f->options = (LibraryOptions){.prefix = "tiny"};
    make_plan(f, true);
    assert_true(library_check(f->plan, &f->options, &f->diag));
    for (size_t i = 0; i < ARRAY_SIZE(prefixes); i++) {
        f->options.prefix = prefixes[i];
        expect_refusal(f, arena_printf(&f->arena, "the prefix '%s' ", prefixes[i]));
    }
    f->options.prefix = "tiny";

    Graph *graph = (Graph *)f->plan->graph;
    add_value(graph, OP_INPUT, "mask", "b, y 2, x 2", 0, 0, 0);
    expect_refusal(f, "a library has one input");
    make_plan(f, true);
    graph = (Graph *)f->plan->graph;
    graph->nodes[0].type = type_make(DTYPE_F32, "c 2, b, y 2, x 2");
    expect_refusal(f, "'image' cannot be a caller's tensor: b must be its first axis");
    make_plan(f, true);
    graph = (Graph *)f->plan->graph;
    graph->nodes[0].type = type_make(DTYPE_BF16, "b, c 2, y 2, x 2");
    expect_refusal(f, "'image' cannot be a caller's tensor: not row-major f32");
    make_plan(f, true);
    graph = (Graph *)f->plan->graph;
    graph->outputs[0].entry = "backward";
    expect_refusal(f, "a library has no entry 'backward'");
    expect_refusal(f, "one output of forward");
    make_plan(f, true);
    graph = (Graph *)f->plan->graph;
    graph_add_output(graph, "again", "features", graph->outputs[1].value);
    expect_refusal(f, "output 'again' must be written by a kernel, alone");
    make_plan(f, true);
    graph = (Graph *)f->plan->graph;
    graph->outputs[0].entry = "features";
    expect_refusal(f, "a library's output 'logits' must have four axes");
    make_plan(f, true);
    graph = (Graph *)f->plan->graph;
    graph->nodes[1].type = type_make(DTYPE_F32, "b, class 5");
    expect_refusal(f, "parameter 'head.weight' must have constant extents");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
        TEST(test_c_program),    TEST(test_cxx_program),        TEST(test_two_libraries),
        TEST(test_exports),      TEST(test_gpu_library),        TEST(test_gpus),
        TEST(test_same_bytes),   TEST(test_header_fits_source), TEST(test_tools_that_fail),
        TEST(test_header_alone), TEST(test_refused_plans),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
