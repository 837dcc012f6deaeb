/* raftc_cuda.c: --target cuda: for which GPUs kernels are compiled, and the GPU that runs them. */
#include "frontend/raftc.h"
#include "runtime/cuda_calls.h"
#include "runtime/peak.h"

static const int published[] = {80, 90}; /* compiled for where there is no GPU */

static Exit find_gpu(Session *session, RaftCudaGpu *gpu)
{
    char message[512];
    RaftStatus status = raft_cuda_find(0, gpu, message, sizeof message);
    if (status == RAFT_OK && gpu->architecture >= CUDA_LEAST_ARCHITECTURE) return EXIT_DONE;
    if (status == RAFT_OK)
        snprintf(message, sizeof message, "the GPU, %.100s, is sm_%d: kernels need sm_%d or newer",
                 gpu->name, gpu->architecture, CUDA_LEAST_ARCHITECTURE);
    session_fail(session, EXIT_UNDONE, "%s", message);
    if (status != RAFT_OK && status != RAFT_UNSUPPORTED) return EXIT_UNDONE;
    diag_note(session->diag, (Loc){0},
              "`raftc run --target cuda --emulate` runs the same kernels on the CPU, slowly");
    return EXIT_LACKING;
}

/* What --gpu-arch says, else the GPU that is there, else all that are usual. */
static int list_architectures(const Session *session, int architecture[MAX_ARCHITECTURES])
{
    const Options *options = session->options;
    RaftCudaGpu gpu;
    char message[512];
    int count = options->architectures.count;
    for (int i = 0; i < count; i++) architecture[i] = options->architectures.item[i];
    if (count) return count;
    if (raft_cuda_find(0, &gpu, message, sizeof message) == RAFT_OK &&
        gpu.architecture >= CUDA_LEAST_ARCHITECTURE) {
        architecture[0] = gpu.architecture;
        return 1;
    }
    for (size_t i = 0; i < ARRAY_SIZE(published); i++) architecture[i] = published[i];
    return ARRAY_SIZE(published);
}

static Exit compile_text(Session *session, const char *text, const char *name,
                         const int *architecture, int count, CudaCodeKind kind,
                         RaftCudaImage *image)
{
    const CudaCompiler *compiler = cuda_compiler_open(session->arena, session->diag);
    const char *note, *told = NULL;
    if (!compiler) return EXIT_LACKING;
    for (int i = 0; i < count; i++) {
        if (!cuda_compile(compiler, session->arena, text, name, architecture[i], kind, &image[i],
                          &note, session->diag))
            return EXIT_BUG;
        if (note && !told) session_note(session, "%s", note);
        told = note;
    }
    return EXIT_DONE;
}

Exit cuda_compile_source(Session *session, const Compilation *c, CudaCodeKind kind,
                         RaftCudaImage **image, int *count)
{
    double start = seconds_now();
    int architecture[MAX_ARCHITECTURES];
    *count = list_architectures(session, architecture);
    *image = arena_array(session->arena, (size_t)*count, sizeof **image);
    Exit exit =
        compile_text(session, c->cuda->text, c->built->name, architecture, *count, kind, *image);
    session_stage(session, kind == CUDA_PTX ? "ptx" : "cubin", start);
    return exit;
}

Exit cuda_compile_for_gpu(Session *session, const Compilation *c, RaftCudaGpu *gpu,
                          const RaftProgram **program)
{
    double start = seconds_now();
    RaftCudaImage *image = arena_alloc(session->arena, sizeof *image);
    Exit exit = find_gpu(session, gpu);
    if (exit == EXIT_DONE)
        exit = compile_text(session, c->cuda->text, c->built->name, &gpu->architecture, 1,
                            CUDA_CUBIN, image);
    session_stage(session, "cubin", start);
    if (exit != EXIT_DONE) return exit;
    *program = program_build(session->arena, c->plan,
                             cuda_program_code(session->arena, c->cuda, image, 1), NULL);
    return EXIT_DONE;
}

Exit cuda_measure_peak(Engine *engine, double seconds, double *gflops, double *gbytes)
{
    Session *session = engine->session;
    RaftCudaImage *image = &engine->peak;
    char message[512];
    Exit exit = EXIT_DONE;
    if (!image->data)
        exit = compile_text(session, cuda_peak_text, "peak", &engine->gpu.architecture, 1,
                            CUDA_CUBIN, image);
    if (exit != EXIT_DONE) return exit;
    RaftStatus status = raft_cuda_peak(image, seconds, gflops, gbytes, message, sizeof message);
    return status == RAFT_OK ? EXIT_DONE : session_fail(session, EXIT_UNDONE, "%s", message);
}
