/* backend.h: what a backend is: it compiles a planned graph to something that runs, or to files. */
#ifndef RAFTC_BACKEND_H
#define RAFTC_BACKEND_H

#include "ir/ir.h"
#include "ir/target.h"
#include "passes/pass.h"
#include "runtime/cuda.h"
#include "runtime/program.h"
#include "runtime/shell.h"

/* ---- reference/: plain loops, any graph at any stage ----------------------------------------- */

/* Tensors named like the graph's inputs and parameters, row-major, each as the type says (for a
 * parameter: the elements of its stored shape). Results: one array for each output, malloced by the
 * caller. `f64` computes everything in double from the same f32 inputs, and gives doubles. */
typedef struct ReferenceTensor {
    const char *name;
    const float *data;
} ReferenceTensor;

/* Runs the whole graph for `batch` images. outputs[i]: room for output i, float or (f64) double
 * elements. `entry` NULL: every output; else those of that entry, the others are not touched.
 * False with a message where memory runs out or a tensor is missing. */
bool reference_run(const Graph *graph, int64_t batch, const ReferenceTensor *tensors,
                   int tensor_count, const char *entry, bool f64, void *const *outputs, Diag *diag);

/* A value that is not finite. */
typedef struct ReferenceFault {
    NodeId node; /* NO_NODE: there is none */
    int64_t element;
    float value;
} ReferenceFault;

/* The same in f32, but ends at the first value with an element that is not finite; true then, too.
 * `outputs` may be NULL: they are only looked at. */
bool reference_search(const Graph *graph, int64_t batch, const ReferenceTensor *tensors,
                      int tensor_count, const char *entry, void *const *outputs,
                      ReferenceFault *fault, Diag *diag);

/* ---- llvm/: machine code for CPUs ----------------------------------------------------------- */

typedef struct CpuOptions {
    const char *triple;   /* NULL: this machine's */
    const char *cpu;      /* NULL or "host": this machine's */
    const char *features; /* like "+avx2,-avx512f"; NULL: the CPU's own */
    bool sanitize_address;
} CpuOptions;

typedef struct CpuCode CpuCode; /* a module of kernels for one plan, optimised */

/* True if raftc was built with LLVM. */
bool llvm_available(void);
/* True if LLVM knows the machine of `options`, the user's words, and can generate code for it; else
 * false with a message. Tries it in a forked child: call it before the process has other threads, as
 * their locks stay shut in the child. The functions below trust their options. */
bool llvm_check(const CpuOptions *options, Diag *diag);
/* Describes the machine of `options`. */
bool llvm_target(const CpuOptions *options, Target *target, Diag *diag);
/* The CPU and its features as LLVM names them: the code that the options give depends on no more. */
const char *llvm_describe(Arena *arena, const CpuOptions *options, Diag *diag);
/* Emits the kernels of a plan. NULL with messages. */
CpuCode *llvm_compile(Arena *arena, const Plan *plan, const CpuOptions *options, Diag *diag);
void llvm_free(CpuCode *code);
typedef enum { CODE_IR, CODE_ASSEMBLY, CODE_OBJECT } CodeKind;
/* The module, with all kernels, as text or object bytes, in `arena`. */
bool llvm_write(CpuCode *code, CodeKind kind, Arena *arena, const char **bytes, size_t *size,
                Diag *diag);
/* The same machine code as several objects, which take less time: several processors make them. */
typedef struct CodeObject {
    const void *data; /* the code's, until llvm_free */
    size_t size;
} CodeObject;
int llvm_object_count(const CpuCode *code);
/* Fills the objects in, and allocates in no arena. NULL, or what LLVM says it cannot do. Uses the code up: call it, or
 * llvm_load, once, and last. */
const char *llvm_objects(CpuCode *code, CodeObject *objects);
/* Loads the code into this process; the program's kernels stay valid until llvm_free. */
const RaftProgram *llvm_load(CpuCode *code, Diag *diag);

/* ---- cuda/: CUDA C++ text ------------------------------------------------------------------- */

/* Shared memory that a thread block may use; kernels that want more keep their scratch in global memory. */
#define CUDA_SHARED_BYTES (96 << 10)
/* Elements of any tensor that kernels count with an int. */
#define CUDA_INT_ELEMENTS (INT64_C(1) << 30)
/* The oldest GPUs that have all instructions of kernels: 80 is sm_80. */
#define CUDA_LEAST_ARCHITECTURE 80

/* How one step is launched: symbol(argument.., batch, units, spill) with `threads` threads a block, of which each takes
 * `block` units at a time, in a grid of any size. */
typedef struct CudaKernel {
    const char *symbol;
    int threads;
    int64_t shared_bytes; /* of dynamic shared memory */
    int64_t spill_bytes;  /* of global memory for each thread block */
    int64_t units, block; /* units for one image, or in all where not batched */
    int64_t outer;        /* equal parts of the units, of which no block has units of two */
    int64_t fine; /* blocks an image of the shape for few images, more than the usual one has; 0:
                     there is none */
    int64_t fine_shared_bytes;
    bool batched;
} CudaKernel;

typedef struct CudaSource {
    const char *text;    /* self-contained: includes nothing */
    CudaKernel *kernels; /* one a step of the plan; steps may share a symbol */
    int kernel_count;
} CudaSource;

/* The target that passes are to run for. */
void cuda_target(Target *target);
/* The kernels of a plan as CUDA C++ text. NULL with messages where the plan has a kernel that cannot be split. */
CudaSource *cuda_emit(Arena *arena, const Plan *plan, Diag *diag);

/* ---- cuda/nvrtc.c: that text as code for GPUs ------------------------------------------------ */

typedef struct CudaCompiler CudaCompiler;
typedef enum { CUDA_PTX, CUDA_CUBIN } CudaCodeKind;

/* Finds and opens NVRTC, for the rest of the process. NULL with a message that says what to install. */
CudaCompiler *cuda_compiler_open(Arena *arena, Diag *diag);
/* Compiles a text for one architecture (90: sm_90), or takes what was compiled before from the cache
 * on disk. `name` is that of the text in messages. False with all that NVRTC said. *note: NULL, or why
 * the result could not be kept in the cache, which is no failure. */
bool cuda_compile(const CudaCompiler *compiler, Arena *arena, const char *text, const char *name,
                  int architecture, CudaCodeKind kind, RaftCudaImage *image, const char **note,
                  Diag *diag);

/* The kernels of raft_cuda_peak (runtime/peak.h). */
extern const char cuda_peak_text[];

/* ---- cuda/emulate.c: that text on the CPU ---------------------------------------------------- */

typedef struct CudaEmulation {
    const RaftProgram *program; /* for the shell; any threads, any batch */
    const CudaSource *source;
    void *library;
} CudaEmulation;

/* Compiles the kernels for this CPU with the C++ compiler $CXX (default g++), behind a header that
 * gives them grids, blocks and warps and checks what they do: emulator.hpp. program_check must have
 * passed. NULL with messages; where there is no compiler, they say what to install. */
CudaEmulation *cuda_emulate(Arena *arena, const Plan *plan, const CudaSource *source, Diag *diag);
/* To be asked after a run: true if no kernel has met a fault so far, an index out of bounds, a race
 * and the like. Else false and an error that names kernel, thread and line of the text; results are
 * then worth nothing, and further runs compute nothing. */
bool cuda_emulation_check(const CudaEmulation *emulation, Diag *diag);
/* NULL is legal. The program must no longer be run. */
void cuda_emulation_free(CudaEmulation *emulation);

/* ---- library.c: from a plan and an object to files that people link ------------------------- */

/* How the steps of a plan are cut: what a program table needs to know beside the plan. One entry a
 * step of the plan. */
typedef struct StepCode {
    const char *symbol; /* of the kernel function in the object */
    int64_t units;      /* for one image, or in all where not batched */
    bool batched;
    int64_t piece; /* units that a thread should take at a time, at least; of kernels for the CPU */
    bool adds;     /* the kernel can add to what is where it writes */
} StepCode;

const StepCode *llvm_steps(const CpuCode *code); /* plan->step_count of them */
int64_t llvm_scratch_bytes(const CpuCode *code);

/* The code of a program: functions for the CPU, or kernels for GPUs. */
typedef struct ProgramCode {
    const StepCode *steps;
    int64_t scratch_bytes;
    const CudaKernel *cuda; /* one a step; NULL: code for the CPU */
    const RaftCudaImage *image;
    int image_count;
} ProgramCode;

/* Images that a GPU takes at a time at most. */
int64_t cuda_chunk(const Plan *plan);
/* The code of kernels in images. In `arena`. */
ProgramCode *cuda_program_code(Arena *arena, const CudaSource *source, const RaftCudaImage *image,
                               int image_count);
/* Images that one pass over the steps of a program takes at most. */
enum { PROGRAM_MOST_AT_ONCE = RAFT_MOST_AT_ONCE };
/* sums.c: can the images of a batch be run in parts, and what depends on all of them be added up? */
bool program_adds_up(Arena *arena, const Graph *graph);
/* Images of such a part, on CPUs: few, as the values of all of them stay until the backward pass is
 * through. A matter of the model alone: how sums are split must not depend on anything else. */
int64_t program_part(const Graph *graph);
/* The program table in memory; kernels[i] is the function of step i, on the CPU. In `arena`. */
RaftProgram *program_build(Arena *arena, const Plan *plan, const ProgramCode *code,
                           RaftKernel *const *kernels);

/* Whether a program of this plan can be run on a caller's tensors: inputs and outputs are row-major
 * f32[b, ...] with no other symbol, parameters have no symbol, and each output is written by a
 * kernel. To be asked before program_build; errors name the value that does not fit. */
bool program_check(const Plan *plan, Diag *diag);

/* The file that an instance takes for its weights (runtime/shell.h): parameters[i] holds the
 * elements of parameter i of the program. */
const char *weights_blob(Arena *arena, const RaftProgram *program, const float *const *parameters,
                         size_t *size);

/* What makes a library one that trains: the step of its optimiser, over rows of floats. */
typedef struct LibraryTraining {
    const Plan *plan; /* of a graph whose name is the prefix of the library, and more */
    const ProgramCode *code;
    RaftOptimiser rule;
} LibraryTraining;

typedef struct LibraryOptions {
    const char *base;    /* path without extension: base.so, base.a, base.h */
    const char *prefix;  /* of every symbol */
    const char *made_by; /* for the header's comment: command line, versions, hash of the model */
    const char *triple;  /* NULL: this machine's */
    bool shared, archive, header;
    bool cuda;           /* for GPUs */
    const void *weights; /* a weights blob that the library is to hold; NULL: none */
    size_t weights_size;
    const LibraryTraining *training; /* NULL: it does not train */
} LibraryOptions;

/* Whether a library of this plan can be written: the prefix is a usable name, there is one input of
 * axes b, c, y, x, one output of the entry forward, and feature maps at most beside it; where it
 * trains, what differentiate adds, too. */
bool library_check(const Plan *plan, const LibraryOptions *options, Diag *diag);
/* The header of a library as text; library_check must have passed, here and below. */
const char *library_header(Arena *arena, const Plan *plan, const LibraryOptions *options);
/* The C text of a library's shell: program table, shell.c, its device, and the exported functions.
 * Beside it lie the files that it includes: `weights` of the options, and `cubins`. */
const char *library_source(Arena *arena, const Plan *plan, const ProgramCode *code,
                           const LibraryOptions *options);
/* What `cubins` holds: those of the code, one after the other. */
const char *library_cubins(Arena *arena, const ProgramCode *code, size_t *size);
/* The linker's version script that names the exported functions. */
const char *library_exports(Arena *arena, const Plan *plan, const LibraryOptions *options);

/* ---- library_write.c ------------------------------------------------------------------------ */

/* All kernels for the CPU, those of the optimiser included, in the order in which they are linked. */
typedef struct LibraryObjects {
    int count;
    CodeObject *object;
    /* Fills the objects in, while the C compiler is at work, and allocates in no arena. NULL, or why
     * it cannot. */
    const char *(*make)(void *context, CodeObject *object);
    void *context;
} LibraryObjects;

/* Checks, and writes the files that the options ask for, each whole or not at all. The compiler is
 * $CC, the archiver $AR (or the cross tools of the triple, which must then be given); where one is
 * missing or fails, an error says what to install: RAFT_UNSUPPORTED. `objects`: NULL for GPUs. */
RaftStatus library_write(Arena *arena, const Plan *plan, const ProgramCode *code,
                         const LibraryObjects *objects, const LibraryOptions *options, Diag *diag);

#endif
