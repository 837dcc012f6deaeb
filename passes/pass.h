/* pass.h: passes and the pipeline that runs them.
 *
 * A pass is one file, one function, one row of pass.def, one test folder, one flag name. It reads a
 * graph and returns another in the arena it is given (or the same one, if it changed nothing). It
 * does no dumping, timing or verifying: pipeline.c does that for all of them.
 */
#ifndef RAFTC_PASS_H
#define RAFTC_PASS_H

#include "ir/ir.h"
#include "ir/target.h"

/* Where choices for kernels (choices.h) come from beside the rules: what was tuned, or a draw. The
 * kernel is as formed, *choice that by rule. False: there is no better one; *choice does not count. */
struct Choice;
typedef struct ChoiceSource {
    bool (*find)(void *user, const Graph *graph, int kernel, struct Choice *choice);
    void *user;
} ChoiceSource;

typedef struct PassContext {
    Arena *arena;
    const Target *target;
    ChoiceSource choices;  /* find NULL: the rules alone */
    Diag *diag;            /* remarks: `missed: ...` where a rewrite was near and did not happen */
    int64_t rewrites;      /* rewrites made so far in the compilation */
    int64_t rewrite_limit; /* no rewrite past this many; INT64_MAX: no limit */
    int64_t recompute;     /* how many values the backward pass computes again */
    bool given;            /* gradients of the outputs come from the caller, too */
} PassContext;

/* Asks leave for one rewrite: false once the limit is reached. Every rewrite asks exactly once. */
bool pass_may_rewrite(PassContext *context);
/* Leaves the remark that `node` was nearly rewritten, why it was not, and how large the value is that
 * goes through memory instead. */
void pass_missed(PassContext *context, const Graph *graph, NodeId node, NodeId stored,
                 const char *pass, const char *why);

/* NULL after an error in context->diag: this graph cannot go on. */
typedef Graph *PassFunction(PassContext *context, const Graph *graph);

typedef enum PassUse { PASS_OPTIONAL, PASS_REQUIRED, PASS_TRAINING } PassUse;

typedef struct PassInfo {
    const char *name;
    const char *summary; /* one line, for --help and the README */
    PassFunction *run;
    bool required; /* cannot be disabled: a backend could not run what comes out without it */
    bool training; /* runs for training only */
} PassInfo;

#define PASS(name, use, summary) PassFunction pass_##name;
#include "passes/pass.def"
#undef PASS

/* In the order in which they run. */
extern const PassInfo pass_table[];
extern const int pass_count;

typedef struct PipelineOptions {
    const char *only;            /* comma-separated pass names to run, in table order; NULL: all */
    const char *const *disabled; /* pass names */
    int disabled_count;
    bool train;            /* with a backward pass, */
    bool given;            /* which begins at gradients of the outputs that the caller gives, too */
    ChoiceSource choices;  /* for choose_tiles */
    int64_t rewrite_limit; /* INT64_MAX: none */
    int64_t recompute;     /* values that the backward pass computes again, at most */
    const char *dump;      /* pass name, "all", or NULL */
    const char *dump_dir;  /* NULL: dumps go to `dump_file` */
    const char *dump_name; /* what names of files there begin with; NULL: with the number */
    FILE *dump_file;
    /* Writes a dump, whole or not at all, and reports where it cannot; with `dump_user`. */
    bool (*dump_write)(void *dump_user, const char *path, const char *text, size_t length);
    void *dump_user;
} PipelineOptions;

typedef struct PassStatistics {
    int64_t rewrites;
    double start, seconds; /* of CLOCK_MONOTONIC */
    uint32_t nodes_after;
} PassStatistics;

/* Runs the passes over `graph`, verifying after each. Returns the last graph, or NULL with messages
 * in `diag` (unknown pass names: the nearest is named). statistics: pass_count rows, or NULL. */
Graph *pipeline_run(Arena *arena, const Graph *graph, const Target *target,
                    const PipelineOptions *options, Diag *diag, PassStatistics *statistics);

/* ---- plan_memory.c: from a graph in which every node is in a kernel to steps and buffers ---- */

typedef enum {
    BUFFER_INPUT,
    BUFFER_OUTPUT,
    BUFFER_PARAM,
    BUFFER_PREPARED,
    BUFFER_ARENA
} BufferKind;

typedef struct Buffer {
    NodeId value;
    BufferKind kind;
    int index;        /* among the inputs, outputs or parameters of the graph, in its order */
    int64_t elements; /* of one image where batched, of the whole tensor else */
    bool batched;     /* has the symbol b: its size and offset are multiplied by the batch */
    int64_t offset;   /* in floats, in the arena or the prepared block; 64-byte aligned */
    int first_step, last_step; /* live range, in forward steps */
} Buffer;

/* Steps from one that waits to before the next, at most. */
enum { MOST_TOGETHER = 16 };

typedef struct Step {
    int kernel;
    bool prepare; /* runs when parameters are set */
    bool waits; /* for all steps before it; else those since the last that did may run beside it */
    unsigned entries; /* bit i: needed by entry i (Plan.entry) */
    int argument_count;
    int *arguments; /* buffer of each: what it reads in order of first use, then what it writes */
} Step;

typedef struct Plan {
    const Graph *graph;
    int buffer_count;
    Buffer *buffers;
    int step_count;
    Step *steps;
    int entry_count;
    const char *entry[8]; /* "forward", "features" */
    int64_t arena_floats; /* per image */
    int64_t prepared_floats;
    int64_t peak_floats; /* most that is live at once per image: the lower bound of arena_floats */
} Plan;

/* Every node but inputs and parameters must be in a kernel. */
Plan *plan_memory(Arena *arena, const Graph *graph);
/* verify_plan.c: does everything lie within its block, and what is alive at the same time apart? */
bool plan_verify(const Plan *plan, Diag *diag);
void plan_print(const Plan *plan, Text *out);

/* ---- kernel_key.c ------------------------------------------------------------------------------ */

/* Kernels with equal keys compute the same function of their arguments; with `choices`, by the same
 * code. */
const char *kernel_key(Arena *arena, const Graph *graph, int kernel, bool choices);

/* From one index along dimension `dim` of what is stored to the next: so many elements. */
typedef struct KernelStride {
    NodeId stored;
    int dim;
    int64_t stride;
} KernelStride;

enum { MAX_STRIDES = 16 };
typedef struct KernelStrides {
    int count;
    KernelStride item[MAX_STRIDES];
} KernelStrides;

/* Kernels with equal keys of this kind compute the same function of their arguments and these strides, which
 * are as many. */
const char *kernel_key_strided(Arena *arena, const Graph *graph, int kernel,
                               KernelStrides *strides);

#endif
