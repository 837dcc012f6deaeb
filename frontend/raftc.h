/* raftc.h: the command line program: what its files share.
 *
 *   Exit         how raftc ends: the exit status
 *   Options      what the command line says, each value checked
 *   Session      one run of raftc: its memory, messages, options and times
 *   Compilation  a model or a graph on its way to code, of whatever target
 *   Engine       a compilation that can be run on images
 *
 * A function that can fail returns an Exit; unless that is EXIT_DONE, its reason is in the
 * session's Diag. Results go to stdout, all else to stderr. Only main (raftc.c) ends the process.
 */
#ifndef RAFTC_H
#define RAFTC_H

#include "backends/backend.h"
#include "frontend/frontend.h"
#include "runtime/raft.h"

typedef enum Exit {
    EXIT_DONE = 0,
    EXIT_UNDONE = 1,  /* it could not be done */
    EXIT_USAGE = 2,   /* the command line is wrong */
    EXIT_FILES = 3,   /* the given files are at fault */
    EXIT_MISSED = 4,  /* a check was missed */
    EXIT_LACKING = 5, /* this build or machine lacks the target or the tool */
    EXIT_BUG = 70     /* our own fault */
} Exit;

/* ---- raftc_options.c ------------------------------------------------------------------------ */

typedef enum Verb {
    VERB_COMPILE,
    VERB_RUN,
    VERB_BENCH,
    VERB_TUNE,
    VERB_TRAIN,
    VERB_EVAL,
    VERB_INSPECT,
    VERB_CONVERT,
    VERB_COUNT
} Verb;

/* In the order of the names in the table of options. */
typedef enum TargetKind { TARGET_CPU, TARGET_CUDA, TARGET_REFERENCE } TargetKind;
enum {
    EMIT_LIB = 1 << 0,
    EMIT_OBJ = 1 << 1,
    EMIT_HEADER = 1 << 2,
    EMIT_IR = 1 << 3,
    EMIT_LLVM = 1 << 4,
    EMIT_ASM = 1 << 5,
    EMIT_CUDA = 1 << 6,
    EMIT_PTX = 1 << 7,
    EMIT_CUBIN = 1 << 8
};
enum { REPORT_FUSION = 1 << 0, REPORT_MEMORY = 1 << 1, REPORT_COST = 1 << 2, REPORT_TIME = 1 << 3 };

enum { MAX_ARCHITECTURES = 8 };
typedef struct Architectures { /* of GPUs: 90 is sm_90 */
    int count, item[MAX_ARCHITECTURES];
} Architectures;

typedef struct Strings {
    const char **item;
    uint32_t count, capacity;
} Strings;

/* Fields are NULL or 0 where the command line leaves them out. */
typedef struct Options {
    Verb verb;
    Strings arguments; /* all that is no option, the verb excepted */
    bool help, version, verbose, quiet;
    /* the model */
    Strings set;
    int64_t height, width, dtype; /* dtype: 0 f32, 1 bf16 */
    const char *weights;
    /* code */
    int64_t target; /* a TargetKind */
    Architectures architectures;
    const char *triple, *cpu, *features, *passes, *dump_ir, *dump_dir;
    Strings disabled_passes;
    int64_t rewrite_limit; /* INT64_MAX: none */
    int64_t sanitize;      /* not 0: for addresses */
    bool emulate;
    /* what is written */
    const char *output_base, *name;
    const char *graph; /* where it is drawn to */
    bool embed;
    int64_t emit, report; /* sets of EMIT_ and REPORT_ */
    bool profile, json;
    const char *roofline, *trace; /* where they are written to */
    int64_t budget;               /* of tuning, in milliseconds */
    const char *tune_database;
    bool train; /* with a backward pass and the step of an optimiser */
    bool check_numerics;
    int64_t memory_limit; /* in bytes; 0: none */
    /* running */
    Strings inputs;
    int64_t batch, threads, top;
    const char *output, *dump_input, *labels;
    bool with_features;
    /* training */
    const char *data, *metrics, *dump_gradients, *save;
    const char *resume; /* a file, or "" */
    int64_t steps;
} Options;

/* Reads the command line. EXIT_USAGE with messages where something is wrong with it, EXIT_LACKING
 * where it asks for what this build does not have. With options->help or ->version, no more than
 * the spelling is checked. */
Exit options_parse(Arena *arena, int argc, char **argv, Options *options, Diag *diag);
/* What `--help` prints: of one verb, or of all where that is VERB_COMPILE. */
void options_help(Verb verb, FILE *file);

/* ---- raftc_session.c ------------------------------------------------------------------------ */

enum { MAX_STAGES = 16 };

typedef struct Session {
    Arena *arena;
    Diag *diag;
    const Options *options;
    int argc;
    char **argv;
    int threads;
    struct {
        const char *name;
        double start, seconds;
    } stage[MAX_STAGES];
    int stage_count;
} Session;

/* Adds an error without a place, and returns `exit`. */
Exit session_fail(Session *session, Exit exit, const char *format, ...) PRINTF_LIKE(3, 4);
/* Adds the error of the runtime library, and returns what its status means for a file of the
 * user's: EXIT_FILES, or EXIT_UNDONE where memory ran out. */
Exit session_fail_file(Session *session, RaftStatus status, const RaftError *error);
/* Adds a note for people, unless they want quiet. */
void session_note(Session *session, const char *format, ...) PRINTF_LIKE(2, 3);
/* Prints the messages collected so far, and forgets them. */
void session_flush(Session *session);

double seconds_now(void);
/* A stage of the work that began at `start` has ended; told with -v and in `--report time`. */
void session_stage(Session *session, const char *name, double start);

/* Signals that end the process wait while files are written, so that none is left half-written. */
/* A file that would grow past the limit of its size is an error of the write, not our end. */
void signals_prepare(void);
void signals_hold(void);
void signals_release(void);
/* Writes a file, whole or not at all. */
Exit session_write(Session *session, const char *path, const void *data, size_t size);

bool has_extension(const char *path, const char *extension);
/* Prints text of the user's with '?' for control characters. */
void print_clean(const char *text, FILE *file);
/* An argument as a shell would read it; control characters are shown as '?'. */
const char *shell_argument(Arena *arena, const char *argument);
/* The sum, or INT64_MAX where that is too large: a graph that is read may claim any work. */
int64_t saturating_add(int64_t a, int64_t b);
/* 9868768 as "9,868,768". */
const char *grouped(Arena *arena, int64_t number);
/* FNV-1a, 64 bits. */
uint64_t bytes_hash(const char *bytes, size_t size);
/* The name of the processor, as Linux gives it. */
const char *machine_name(Arena *arena);
/* "raftc 0.1.0 with LLVM 19.1.7" */
const char *raftc_version(void);
/* How something was made: version, command line and hash of the model, a line each. It begins with
 * MADE_BY, by which raftc finds it in a library. */
#define MADE_BY "made by raftc "
const char *session_made_by(Session *session, const Source *source);

/* ---- raftc_compilation.c -------------------------------------------------------------------- */

typedef struct Compilation {
    const char *path;
    const Source *source;
    const Settings *settings; /* NULL where the file is a graph, */
    const Model *model;       /* likewise */
    Graph *built;             /* by the frontend, or as read */
    const char *dump_name;    /* what files of --dump-dir begin with; NULL: a number */
    bool train;               /* with a backward pass, */
    bool given;               /* which takes gradients of the outputs, too */
    int64_t images;           /* in one run of it, for --memory-limit; 0: there is no limit */
    const Graph *graph;       /* after the passes */
    CpuOptions cpu;
    Target target;
    PassStatistics *statistics; /* of each pass */
    Plan *plan;
    /* Code for the target, to be freed with compilation_close. */
    CpuCode *code;
    CudaSource *cuda;
    CudaEmulation *emulation;
    ProgramCode *made; /* what a program table needs to know of it */
} Compilation;

/* From settings or a graph (.ir) to the unfused graph. */
Exit compilation_load(Session *session, const char *path, Compilation *compilation);
/* What the options say of the machine, and what passes may know of it; */
Exit compilation_target(Session *session, Compilation *compilation);
/* that, and the passes; */
Exit compilation_optimise(Session *session, Compilation *compilation);
/* the memory plan, */
Exit compilation_plan(Session *session, Compilation *compilation);
/* and code. */
Exit compilation_generate(Session *session, Compilation *compilation);
/* Makes the code one that this process can run on the CPU, until compilation_close. */
Exit compilation_load_code(Session *session, Compilation *compilation, const RaftProgram **program);
void compilation_close(Compilation *compilation);

/* ---- raftc_report.c ------------------------------------------------------------------------- */

/* Prints the reports that the options ask for to stdout. Plans the memory if one needs that. */
Exit report_print(Session *session, Compilation *compilation);
/* Which kernels depend on parameters alone. */
bool *graph_prepare_kernels(const Graph *graph, Arena *arena);
/* Kernels of the same name as one line: how many, their multiply-adds. */
void report_kernels(const Graph *graph, Text *out);
/* Multiply-adds of all products that depend on the input, for one image. */
int64_t graph_multiply_adds(const Graph *graph, Arena *arena);

/* Multiply-adds of a kernel for one image. */
int64_t kernel_cost(const Graph *graph, int kernel);
/* Bytes of a step's buffers, for one image: batched ones, and the others. */
int64_t step_bytes(const Plan *plan, const Step *step, bool batched);

/* ---- raftc_engine.c ------------------------------------------------------------------------- */

typedef struct Engine {
    Session *session;
    const Graph *graph;
    const Node *input;              /* [b, c, y, x] */
    RaftShell *shell;               /* NULL where the reference backend runs the graph; */
    const CudaEmulation *emulation; /* NULL: none */
    bool on_gpu;
    RaftCudaGpu gpu;            /* which, */
    RaftCudaImage peak;         /* and the kernels that measure it, once they are needed */
    unsigned forward, features; /* entries of its program */
    ReferenceTensor *tensors;   /* of the reference backend: the parameters, then the input */
    int tensor_count;
    struct Numerics *numerics; /* NULL: not looked for */
} Engine;

/* The parameters of a graph in its order, *count of them. */
RaftTensorInfo *graph_parameters(const Graph *graph, Arena *arena, int *count);
/* Their data, from the file or made up (`@fill`), in `arena`. */
Exit parameters_read(Session *session, Arena *arena, const char *weights,
                     const RaftTensorInfo *parameters, int count, const float ***data);

/* Whether a loaded compilation is one that can be run: images in, an output of forward out. */
Exit engine_check(Session *session, const Compilation *compilation, Engine *engine);
/* Makes it ready to run with the weights: passes, plan and code, as the target needs. To be closed,
 * whatever it returns. */
Exit engine_open(Engine *engine, Compilation *compilation, const char *weights);
void engine_close(Engine *engine);
/* Whether a run computes the output, with features or without. */
bool engine_computes(const Output *output, bool features);
/* Elements of an output for one image. */
int64_t output_elements(const Graph *graph, const Output *output);
/* Runs `batch` images; outputs[i]: room for output i of the graph, if that is computed. */
Exit engine_run(Engine *engine, int64_t batch, const float *input, bool features,
                float *const *outputs);

/* Room for a run's input or output, where the target reads and writes it fastest, until
 * engine_close; and a copy into it. */
Exit engine_reserve(Engine *engine, int64_t elements, float **data);
Exit engine_copy(Engine *engine, float *to, const float *from, int64_t elements);

/* ---- raftc_cuda.c --------------------------------------------------------------------------- */

/* Compiles the kernels for each GPU that the options ask for, *count of them. */
Exit cuda_compile_source(Session *session, const Compilation *compilation, CudaCodeKind kind,
                         RaftCudaImage **image, int *count);
/* Finds the GPU that is there, and makes a program for it. */
Exit cuda_compile_for_gpu(Session *session, const Compilation *compilation, RaftCudaGpu *gpu,
                          const RaftProgram **program);
/* What the GPU of the engine could do at best; each is measured unless it is NULL. */
Exit cuda_measure_peak(Engine *engine, double seconds, double *gflops, double *gbytes);

/* ---- raftc_input.c -------------------------------------------------------------------------- */

/* One image that a run is given. */
typedef struct Item {
    const char *name;  /* as it is printed */
    const char *path;  /* of a picture; NULL: */
    const float *data; /* the image itself */
} Item;

typedef struct Items {
    Item *item;
    uint32_t count, capacity;
} Items;

/* Lists the images of files, folders, tensors and @fill, in the order of the command line. */
Exit items_list(Session *session, const Compilation *compilation, const Node *input, Items *items);
/* Writes one image as [c, y, x]. EXIT_FILES: a picture that cannot be read. */
Exit item_load(Session *session, const Compilation *compilation, const Item *item,
               const Node *input, float *data);

/* ---- raftc_compile.c, raftc_run.c, raftc_bench.c, raftc_inspect.c, raftc_convert.c,
 *      raftc_train.c ---------------------------------------------------------------------------- */

Exit verb_compile(Session *session);
Exit verb_run(Session *session);
Exit verb_bench(Session *session);
Exit verb_tune(Session *session);
Exit verb_inspect(Session *session);
Exit verb_convert(Session *session);
Exit verb_train(Session *session);
Exit verb_eval(Session *session);

/* ---- raftc_inspect_graph.c ------------------------------------------------------------------ */

/* A model or a graph: sizes, work, kernels, memory. */
Exit inspect_model(Session *session, const char *path);
/* "levels.0" of levels.0.fn.2.norm.weight, "classifier" of classifier.bias. */
const char *part_name(Arena *arena, const char *parameter);
/* The parameter that a value is made of, going back along first operands; NULL: of none. */
const char *parameter_of(const Graph *graph, NodeId id);

/* ---- raftc_draw.c --------------------------------------------------------------------------- */

/* Draws a graph to an SVG file. EXIT_LACKING where Graphviz is not there. */
Exit draw_graph(Session *session, const Graph *graph, const char *path);

#endif
