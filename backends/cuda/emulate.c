/* emulate.c: runs the emitted CUDA text on the CPU: emulator.hpp, the text, and a wrapper for each
 * kernel, made a shared object by the C++ compiler and loaded.
 *
 * While the temporary folder exists nothing is allocated in an arena: running out of memory there
 * would leave it behind.
 */
#include "backends/backend.h"
#include "runtime/rt.h"

#include "emulator_text.h" /* made by CMake: the bytes of emulator.hpp */

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WARP = 32, MOST_LOG_LINES = 12 };

/* ---- the text ------------------------------------------------------------------------------- */

/* Steps that share a kernel differ in their buffers, not in the shape of these. */
static void check_same_shapes(const Plan *plan, const Step *a, const Step *b)
{
    RAFTC_ASSERT(a->argument_count == b->argument_count);
    for (int i = 0; i < a->argument_count; i++) {
        const Buffer *x = &plan->buffers[a->arguments[i]], *y = &plan->buffers[b->arguments[i]];
        RAFTC_ASSERT(x->elements == y->elements && x->batched == y->batched);
    }
}

/* Finds which kernel of the source each step is; returns their number, first_step[k] having k first.
 */
static int list_kernels(const Plan *plan, const CudaSource *source, int *kernel_of, int *first_step)
{
    int count = 0;
    for (int s = 0; s < plan->step_count; s++) {
        int k = 0;
        while (k < count &&
               strcmp(source->kernels[first_step[k]].symbol, source->kernels[s].symbol))
            k++;
        if (k == count)
            first_step[count++] = s;
        else
            check_same_shapes(plan, &plan->steps[first_step[k]], &plan->steps[s]);
        kernel_of[s] = k;
    }
    return count;
}

static void write_call(Text *out, const Plan *plan, const Step *step, const char *symbol,
                       int number)
{
    text_printf(out, "static void call_%d(const emulator::Launch &launch)\n{\n    %s(", number,
                symbol);
    for (int i = 0; i < step->argument_count; i++) {
        const Buffer *buffer = &plan->buffers[step->arguments[i]];
        text_printf(out, "emulator::argument(launch, %d, %lld, %s), ", i,
                    (long long)buffer->elements, buffer->batched ? "true" : "false");
    }
    text_put(out, "launch.batch, launch.units, raft_scratch{&launch.spill, 0});\n}\n");
}

static const char *write_text(Arena *arena, const Plan *plan, const CudaSource *source,
                              const int *first_step, int count)
{
    Text text = text_new(arena), wrappers = text_new(arena);
    text_printf(&text,
                "#line 1 \"emulator.hpp\"\n%s\n#line 1 \"%s.cu\"\n%s\n#line 1 \"wrappers\"\n",
                (const char *)emulator_text, plan->graph->name, source->text);
    for (int k = 0; k < count; k++)
        write_call(&text, plan, &plan->steps[first_step[k]], source->kernels[first_step[k]].symbol,
                   k);
    text_printf(&text, "extern const int emulated_count = %d;\n", count);
    text_put(&text, "extern const emulator::Kernel emulated_kernel[] = {\n");
    for (int k = 0; k < count; k++) {
        const CudaKernel *kernel = &source->kernels[first_step[k]];
        RAFTC_ASSERT(kernel->threads > 0 && kernel->threads % WARP == 0);
        text_printf(&text, "    {\"%s\", call_%d, %d, %lld, %lld, %lld, %s, %lld, %lld, %lld},\n",
                    kernel->symbol, k, kernel->threads, (long long)kernel->block,
                    (long long)kernel->fine, (long long)kernel->units,
                    kernel->batched ? "true" : "false", (long long)kernel->shared_bytes / 4,
                    (long long)kernel->fine_shared_bytes / 4, (long long)kernel->spill_bytes / 4);
        text_printf(&wrappers, "%semulate<%d>", k ? ", " : "", k);
    }
    text_printf(&text, "};\nRAFT_EXPORT EmulatedWrapper *const emulated_wrapper[] = {%s};\n",
                wrappers.data);
    return text.data;
}

/* ---- the compiler --------------------------------------------------------------------------- */

typedef struct Job {
    char *folder, *source, *object, *log; /* paths */
    const char **command;
    const char *text;
    enum { JOB_DONE, NO_FOLDER, NO_COMPILER, REFUSED, NOT_LOADED } end;
    int reason;      /* errno */
    char said[4000]; /* by the compiler or the loader */
} Job;

static Job *new_job(Arena *arena, const char *text)
{
    static const char *const options[] = {
        "-x",
        "c++",
        "-std=c++17",
        "-Og", /* -O1 takes half as long again to compile, which is most of a run */
        "-g0",
        "-w",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-fno-gnu-unique",
        "-fno-exceptions",
        "-fno-rtti",
        "-ffp-contract=off",
        "-U_FORTIFY_SOURCE", /* whose longjmp takes fibers for errors */
    };
    enum { MORE = ARRAY_SIZE(options) + 4 };
    Job *job = arena_alloc(arena, sizeof *job);
    const char *parent = getenv("TMPDIR"), *compiler = getenv("CXX");
    job->text = text;
    job->folder = arena_printf(arena, "%s/raftc-XXXXXX", parent && *parent ? parent : "/tmp");
    job->source = arena_printf(arena, "%s/kernels.cpp", job->folder);
    job->object = arena_printf(arena, "%s/kernels.so", job->folder);
    job->log = arena_printf(arena, "%s/log", job->folder);
    char *rest = arena_strdup(arena, compiler ? compiler : "");
    job->command = arena_array(arena, strlen(rest) / 2 + MORE + 1, sizeof *job->command);
    int count = 0;
    for (char *word; (word = strtok_r(rest, " \t\n", &rest));) job->command[count++] = word;
    if (count == 0) job->command[count++] = "g++";
    for (size_t i = 0; i < ARRAY_SIZE(options); i++) job->command[count++] = options[i];
    job->command[count++] = job->source;
    job->command[count++] = "-o";
    job->command[count++] = job->object;
    return job;
}

static bool make_folder(Job *job)
{
    job->end = NO_FOLDER;
    if (!mkdtemp(job->folder)) {
        job->reason = errno;
        return false;
    }
    size_t length = strlen(job->folder);
    memcpy(job->source, job->folder, length);
    memcpy(job->object, job->folder, length);
    memcpy(job->log, job->folder, length);
    FILE *file = fopen(job->source, "w");
    bool good = file && fputs(job->text, file) >= 0;
    if (file && fclose(file) != 0) good = false;
    job->reason = errno;
    return good;
}

static bool run_compiler(Job *job)
{
    bool good;
    job->reason = rt_run_program(job->command, job->log, &good);
    job->end = job->reason ? NO_COMPILER : REFUSED;
    return good;
}

static void read_log(Job *job)
{
    FILE *log = fopen(job->log, "r");
    if (!log) return;
    job->said[fread(job->said, 1, sizeof job->said - 1, log)] = '\0';
    fclose(log);
}

/* The text stays where the compiler refuses it. */
static void *build(Job *job)
{
    void *library = NULL;
    if (make_folder(job) && run_compiler(job)) {
        library = dlopen(job->object, RTLD_NOW | RTLD_LOCAL);
        job->end = library ? JOB_DONE : NOT_LOADED;
        if (!library) snprintf(job->said, sizeof job->said, "%s", dlerror());
    } else {
        read_log(job);
    }
    unlink(job->log);
    unlink(job->object);
    if (job->end != REFUSED) unlink(job->source);
    rmdir(job->folder);
    return library;
}

static void report(Job *job, Diag *diag)
{
    const Loc nowhere = {0};
    char *rest = job->said;
    const char *compiler = job->command[0];
    switch (job->end) {
    case JOB_DONE:
        return;
    case NO_FOLDER:
        diag_error(diag, nowhere, "the folder %s, or a file in it, cannot be written: %s",
                   job->folder, strerror(job->reason));
        return;
    case NO_COMPILER:
        diag_error(diag, nowhere,
                   "the C++ compiler '%s' ($CXX) cannot be run: %s; to emulate kernels needs it: "
                   "install the package g++",
                   compiler, strerror(job->reason));
        return;
    case NOT_LOADED:
        diag_error(diag, nowhere, "the emulated kernels cannot be loaded: %s", job->said);
        return;
    case REFUSED:
        diag_error(diag, nowhere, "the C++ compiler '%s' refuses the kernels, which are in %s",
                   compiler, job->source);
    }
    for (int i = 0; i < MOST_LOG_LINES; i++) {
        const char *said = strtok_r(rest, "\n", &rest);
        if (said) diag_note(diag, nowhere, "%s", said);
    }
}

/* ---- emulations ----------------------------------------------------------------------------- */

static RaftProgram *load(Arena *arena, void *library, const Plan *plan, const CudaSource *source,
                         const int *kernel_of)
{
    RaftKernel *const *wrapper = dlsym(library, "emulated_wrapper");
    int64_t (*scratch_bytes)(void);
    *(void **)&scratch_bytes = dlsym(library, "emulated_scratch_bytes");
    RAFTC_ASSERT(wrapper && scratch_bytes);
    RaftKernel **kernels = arena_array(arena, (size_t)plan->step_count, sizeof(RaftKernel *));
    StepCode *steps = arena_array(arena, (size_t)plan->step_count, sizeof *steps);
    for (int s = 0; s < plan->step_count; s++) {
        const CudaKernel *kernel = &source->kernels[s];
        kernels[s] = wrapper[kernel_of[s]];
        steps[s] = (StepCode){kernel->symbol, kernel->units, kernel->batched, 1, false};
    }
    const ProgramCode code = {.steps = steps, .scratch_bytes = scratch_bytes()};
    RaftProgram *program = program_build(arena, plan, &code, kernels);
    int64_t most = cuda_chunk(plan); /* for which the text has its indices */
    if (program->chunk > most) program->chunk = most;
    return program;
}

CudaEmulation *cuda_emulate(Arena *arena, const Plan *plan, const CudaSource *source, Diag *diag)
{
    CudaEmulation *emulation = arena_alloc(arena, sizeof *emulation);
    int *kernel_of = arena_array(arena, (size_t)plan->step_count, sizeof *kernel_of);
    int *first_step = arena_array(arena, (size_t)plan->step_count, sizeof *first_step);
    int count = list_kernels(plan, source, kernel_of, first_step);
    Job *job = new_job(arena, write_text(arena, plan, source, first_step, count));
    emulation->library = build(job);
    if (!emulation->library) {
        report(job, diag);
        return NULL;
    }
    emulation->program = load(arena, emulation->library, plan, source, kernel_of);
    emulation->source = source;
    return emulation;
}

bool cuda_emulation_check(const CudaEmulation *emulation, Diag *diag)
{
    int line;
    const char *(*fault)(int *line);
    *(void **)&fault = dlsym(emulation->library, "emulated_fault");
    RAFTC_ASSERT(fault);
    const char *message = fault(&line);
    if (!message) return true;
    const char *path = arena_printf(diag->arena, "%s.cu", emulation->program->name);
    const char *text = arena_strdup(diag->arena, emulation->source->text);
    const Source *source = diag_add_source(diag, path, text, strlen(text));
    return diag_error(diag, (Loc){.source = source, .line = (uint32_t)line}, "%s", message);
}

void cuda_emulation_free(CudaEmulation *emulation)
{
    if (emulation) dlclose(emulation->library);
}
