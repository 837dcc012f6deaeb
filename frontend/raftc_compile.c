/* raftc_compile.c: raftc MODEL.yaml: from a model to the files that are asked for. */
#include "frontend/raftc_trainer.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What needs kernels that can run, a plan of their memory, and their machine code. */
enum {
    NEEDS_LLVM = EMIT_OBJ | EMIT_LLVM | EMIT_ASM,
    NEEDS_CUDA = EMIT_CUDA | EMIT_PTX | EMIT_CUBIN,
    NEEDS_CODE = EMIT_LIB | NEEDS_LLVM | NEEDS_CUDA,
    NEEDS_PLAN = NEEDS_CODE | EMIT_HEADER
};

typedef struct Kind {
    int64_t emit;
    const char *extension;
} Kind;

static const Kind kinds[] = {
    {EMIT_LIB, ".so"}, {EMIT_LIB, ".a"},   {EMIT_LIB | EMIT_HEADER, ".h"},
    {EMIT_OBJ, ".o"},  {EMIT_IR, ".ir"},   {EMIT_LLVM, ".ll"},
    {EMIT_ASM, ".s"},  {EMIT_CUDA, ".cu"},
};

typedef struct Job {
    Session *session;
    Compilation compilation;
    Compilation step; /* of the optimiser, with --train */
    int64_t emit;
    const char *base; /* path of what is written, without extension */
    const char *made_by;
    Strings written;
} Job;

/* ---- names ----------------------------------------------------------------------------------- */

static bool is_folder(const char *path)
{
    struct stat status;
    return has_extension(path, "/") || (stat(path, &status) == 0 && S_ISDIR(status.st_mode));
}

/* The name of the file that was read, without folder and extension. */
static const char *model_base(Arena *arena, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *dot = strrchr(name, '.');
    return arena_strndup(arena, name, dot && dot > name ? (size_t)(dot - name) : strlen(name));
}

/* `-o lib/net.so` means lib/net, if a .so is written. */
static const char *output_base(Arena *arena, const char *path, const char *model, int64_t emit)
{
    if (!path) return model_base(arena, model);
    if (is_folder(path))
        return arena_printf(arena, "%s%s%s", path, has_extension(path, "/") ? "" : "/",
                            model_base(arena, model));
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        if (kinds[i].emit & emit && has_extension(path, kinds[i].extension))
            return arena_strndup(arena, path, strlen(path) - strlen(kinds[i].extension));
    return path;
}

/* Found out before anything is compiled. */
static Exit check_folder(Session *session, const char *base)
{
    const char *slash = strrchr(base, '/');
    const char *folder =
        slash ? arena_strndup(session->arena, base, (size_t)(slash + 1 - base)) : ".";
    if (access(folder, W_OK) == 0) return EXIT_DONE;
    return session_fail(session, EXIT_UNDONE, "%s: there is no folder '%s' that can be written to",
                        base, folder);
}

/* ---- files ----------------------------------------------------------------------------------- */

static Exit write_file(Job *job, const char *extension, const void *data, size_t size)
{
    Session *session = job->session;
    const char *path = arena_printf(session->arena, "%s%s", job->base, extension);
    Strings *written = &job->written;
    Exit exit = session_write(session, path, data, size);
    if (exit == EXIT_DONE)
        *ARENA_PUSH(session->arena, written->item, written->count, written->capacity) = path;
    return exit;
}

/* A graph whose text is another after the passes must not take the place of what was read. */
static Exit write_graph(Job *job)
{
    Session *session = job->session;
    const Source *source = job->compilation.source;
    Text text = text_new(session->arena);
    graph_print(job->compilation.graph, &text);
    const char *path = arena_printf(session->arena, "%s.ir", job->base);
    struct stat read, replaced;
    bool same_file = stat(source->path, &read) == 0 && stat(path, &replaced) == 0 &&
                     read.st_dev == replaced.st_dev && read.st_ino == replaced.st_ino;
    bool same_text = text.length == source->size && !memcmp(text.data, source->text, text.length);
    if (same_file && !same_text)
        return session_fail(session, EXIT_USAGE,
                            "%s would be overwritten by its own result; name another file: -o PATH",
                            source->path);
    return write_file(job, ".ir", text.data, text.length);
}

static Exit write_code(Job *job, CodeKind kind, const char *extension)
{
    Session *session = job->session;
    const char *bytes;
    size_t size;
    if (!llvm_write(job->compilation.code, kind, session->arena, &bytes, &size, session->diag))
        return EXIT_UNDONE;
    return write_file(job, extension, bytes, size);
}

/* One file for each GPU: net.sm_80.cubin. */
static Exit write_gpu_code(Job *job, CudaCodeKind kind, const char *extension)
{
    Session *session = job->session;
    RaftCudaImage *image;
    int count;
    Exit exit = cuda_compile_source(session, &job->compilation, kind, &image, &count);
    for (int i = 0; i < count && exit == EXIT_DONE; i++)
        exit = write_file(
            job, arena_printf(session->arena, ".sm_%d.%s", image[i].architecture, extension),
            image[i].data, image[i].size);
    return exit;
}

/* The weights of the options as a blob. */
static Exit read_weights(Job *job, const char **blob, size_t *size)
{
    Session *session = job->session;
    Compilation *c = &job->compilation;
    const RaftProgram *program = program_build(session->arena, c->plan, c->made, NULL);
    const float **data;
    Exit exit = parameters_read(session, session->arena, session->options->weights,
                                program->parameter, program->parameter_count, &data);
    if (exit != EXIT_DONE) return exit;
    if (strcmp(session->options->weights, "@fill") == 0)
        session_note(session, "the weights are made up (@fill): the classes mean nothing");
    *blob = weights_blob(session->arena, program, data, size);
    return EXIT_DONE;
}

/* The step of the optimiser, in rows of so many floats. */
static Exit compile_step(Job *job, LibraryTraining *training)
{
    enum { ROW = 1 << 10 };
    Session *session = job->session;
    Compilation *c = &job->step;
    const Compilation *model = &job->compilation;
    const char *name = arena_printf(session->arena, "%s_step", model->built->name);
    training->rule = optimiser_of(model->settings);
    training->rule.average = 0; /* whoever trains has the weights, and can average them */
    *c = optimiser_step(session->arena, model, name, &training->rule, ROW);
    Exit exit = compilation_optimise(session, c);
    if (exit == EXIT_DONE) exit = compilation_plan(session, c);
    if (exit == EXIT_DONE) exit = compilation_generate(session, c);
    if (exit != EXIT_DONE) return exit;
    training->plan = c->plan;
    training->code = c->made;
    return EXIT_DONE;
}

/* The kernels of the model, then those of the step. */
static const char *make_objects(void *context, CodeObject *object)
{
    const Job *job = context;
    const char *fault = llvm_objects(job->compilation.code, object);
    if (fault || !job->step.code) return fault;
    return llvm_objects(job->step.code, object + llvm_object_count(job->compilation.code));
}

static Exit write_library(Job *job, const LibraryOptions *library)
{
    Session *session = job->session;
    Compilation *c = &job->compilation;
    LibraryObjects objects = {.make = make_objects, .context = job};
    RaftCudaImage *image;
    int count;
    if (library->cuda) {
        Exit exit = cuda_compile_source(session, c, CUDA_CUBIN, &image, &count);
        if (exit != EXIT_DONE) return exit;
        c->made = cuda_program_code(session->arena, c->cuda, image, count);
    }
    LibraryOptions options = *library;
    LibraryTraining training = {0};
    if (options.training) {
        Exit exit = compile_step(job, &training);
        if (exit != EXIT_DONE) return exit;
        options.training = &training;
    }
    if (session->options->embed) {
        const char *blob;
        Exit exit = read_weights(job, &blob, &options.weights_size);
        if (exit != EXIT_DONE) return exit;
        options.weights = blob;
    }
    if (c->code) objects.count = llvm_object_count(c->code);
    if (job->step.code) objects.count += llvm_object_count(job->step.code);
    objects.object = arena_array(session->arena, (size_t)objects.count, sizeof *objects.object);
    double start = seconds_now();
    signals_hold();
    RaftStatus status = library_write(session->arena, c->plan, c->made,
                                      library->cuda ? NULL : &objects, &options, session->diag);
    signals_release();
    session_stage(session, "library", start);
    if (status != RAFT_OK) return status == RAFT_UNSUPPORTED ? EXIT_LACKING : EXIT_UNDONE;
    for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
        if (kinds[i].emit & EMIT_LIB)
            *ARENA_PUSH(session->arena, job->written.item, job->written.count,
                        job->written.capacity) =
                arena_printf(session->arena, "%s%s", job->base, kinds[i].extension);
    return EXIT_DONE;
}

static Exit write_weights(Job *job)
{
    const char *blob;
    size_t size;
    Exit exit = read_weights(job, &blob, &size);
    return exit == EXIT_DONE ? write_file(job, ".weights", blob, size) : exit;
}

static Exit write_header(Job *job, const LibraryOptions *library)
{
    const char *header = library_header(job->session->arena, job->compilation.plan, library);
    return write_file(job, ".h", header, strlen(header));
}

static Exit write_all(Job *job)
{
    Session *session = job->session;
    Compilation *c = &job->compilation;
    const LibraryTraining trains = {0}; /* more is known when its code is made */
    const LibraryOptions library = {.base = job->base,
                                    .prefix = c->built->name,
                                    .made_by = job->made_by,
                                    .triple = session->options->triple,
                                    .shared = true,
                                    .archive = true,
                                    .header = true,
                                    .cuda = session->options->target == TARGET_CUDA,
                                    .training = c->train ? &trains : NULL};
    Exit exit = EXIT_DONE;
    if (job->emit & (EMIT_LIB | EMIT_HEADER) && !library_check(c->plan, &library, session->diag))
        return session->options->name ? EXIT_USAGE : EXIT_FILES;
    if (job->emit & EMIT_IR) exit = write_graph(job);
    if (exit == EXIT_DONE && job->emit & EMIT_LLVM) exit = write_code(job, CODE_IR, ".ll");
    if (exit == EXIT_DONE && job->emit & EMIT_ASM) exit = write_code(job, CODE_ASSEMBLY, ".s");
    if (exit == EXIT_DONE && job->emit & EMIT_OBJ) exit = write_code(job, CODE_OBJECT, ".o");
    if (exit == EXIT_DONE && job->emit & EMIT_CUDA)
        exit = write_file(job, ".cu", c->cuda->text, strlen(c->cuda->text));
    if (exit == EXIT_DONE && job->emit & EMIT_PTX) exit = write_gpu_code(job, CUDA_PTX, "ptx");
    if (exit == EXIT_DONE && job->emit & EMIT_CUBIN)
        exit = write_gpu_code(job, CUDA_CUBIN, "cubin");
    if (exit == EXIT_DONE && job->emit & EMIT_LIB)
        exit = write_library(job, &library);
    else if (exit == EXIT_DONE && job->emit & EMIT_HEADER)
        exit = write_header(job, &library);
    if (exit == EXIT_DONE && session->options->weights && !session->options->embed)
        exit = write_weights(job);
    return exit;
}

/* ---- the verb -------------------------------------------------------------------------------- */

/* What was written, and what to do with it. */
static void summarise(const Job *job)
{
    const Graph *graph = job->compilation.graph;
    Arena *arena = job->session->arena;
    struct stat status;
    if (job->session->options->quiet) return;
    fflush(stdout); /* reports come first */
    const bool *prepare = graph_prepare_kernels(graph, arena);
    uint32_t preparing = 0;
    for (uint32_t k = 0; k < graph->kernel_count; k++) preparing += prepare[k];
    fprintf(stderr, "%s: kernels: %u for a forward%s, %u to prepare the weights\n",
            job->compilation.path, graph->kernel_count - preparing,
            job->compilation.train ? " and backward" : "", preparing);
    for (uint32_t i = 0; i < job->written.count; i++)
        if (stat(job->written.item[i], &status) == 0)
            fprintf(stderr, "  %-32s %12s bytes\n", job->written.item[i],
                    grouped(arena, status.st_size));
    const char *shared = arena_printf(arena, "%s.so", job->base);
    const char *archive = arena_printf(arena, "%s.a", job->base);
    if (job->emit & EMIT_LIB)
        fprintf(stderr,
                "Next: include %s.h, which says how to call the model, and link with one of\n"
                "  cc program.c %s -Wl,-rpath,'$ORIGIN'\n"
                "  cc program.c %s %s\n",
                job->base, shell_argument(arena, shared), shell_argument(arena, archive),
                job->session->options->target == TARGET_CUDA ? "-ldl" : "-fopenmp -lm");
}

/* Options that go with what is written. */
static Exit check_options(const Job *job)
{
    Session *session = job->session;
    const Options *options = session->options;
    if (options->target != TARGET_CUDA && job->emit & NEEDS_CUDA)
        return session_fail(session, EXIT_USAGE,
                            "--emit cuda, ptx and cubin go with --target cuda");
    if (options->target == TARGET_REFERENCE && job->emit & NEEDS_PLAN)
        return session_fail(session, EXIT_USAGE,
                            "--target reference makes no machine code; it can --emit ir, and "
                            "`raftc run`");
    if (options->target == TARGET_CUDA && job->emit & NEEDS_LLVM)
        return session_fail(session, EXIT_USAGE,
                            "--target cuda makes no code for CPUs; it can --emit cuda, ptx, "
                            "cubin and lib");
    if (options->target == TARGET_CUDA && options->train && job->emit & EMIT_LIB)
        return session_fail(session, EXIT_LACKING,
                            "this build of raftc makes libraries that train for CPUs alone; of "
                            "--target cuda it can --emit ir, cuda, ptx and cubin, and "
                            "`raftc train`");
    if (options->target != TARGET_CUDA && options->architectures.count)
        return session_fail(session, EXIT_USAGE, "--gpu-arch goes with --target cuda");
    if (options->weights && !(job->emit & NEEDS_CODE))
        return session_fail(session, EXIT_USAGE,
                            "--weights goes with a library: --emit lib, or obj");
    if (options->embed && !(options->weights && job->emit & EMIT_LIB))
        return session_fail(session, EXIT_USAGE,
                            "--embed puts weights into a library: --weights FILE and --emit lib");
    return EXIT_DONE;
}

static Exit compile(Job *job)
{
    Session *session = job->session;
    Compilation *c = &job->compilation;
    const char *path = session->options->arguments.item[0];
    job->base = output_base(session->arena, session->options->output_base, path, job->emit);
    Exit exit = check_options(job);
    if (exit == EXIT_DONE) exit = compilation_load(session, path, c);
    if (exit == EXIT_DONE && session->options->train && !c->settings)
        exit = session_fail(session, EXIT_USAGE,
                            "%s is a graph; training needs the settings of a model", path);
    c->train = c->given = session->options->train;
    if (exit == EXIT_DONE) exit = check_folder(session, job->base);
    if (exit == EXIT_DONE) exit = compilation_optimise(session, c);
    if (exit == EXIT_DONE && job->emit & NEEDS_PLAN) exit = compilation_plan(session, c);
    if (exit == EXIT_DONE && job->emit & NEEDS_CODE) exit = compilation_generate(session, c);
    if (exit != EXIT_DONE) return exit;
    job->made_by = session_made_by(session, c->source);
    exit = write_all(job);
    if (exit == EXIT_DONE) exit = report_print(session, c);
    if (exit == EXIT_DONE) summarise(job);
    return exit;
}

Exit verb_compile(Session *session)
{
    Job job = {.session = session, .emit = session->options->emit};
    if (job.emit == 0) job.emit = EMIT_LIB;
    Exit exit = compile(&job);
    compilation_close(&job.compilation);
    compilation_close(&job.step);
    return exit;
}
