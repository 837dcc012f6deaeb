/* golden.c: compares whole models with the numbers that PyTorch gave for them (data/goldens/).
 *
 *     golden reference|passes|cpu|cuda|cuda-emulate|aarch64|x86-64-v3 FILE.safetensors...
 *
 * reference: the reference backend runs the graph as it is built; passes: it runs the graph that comes
 * out of all passes; cpu: the machine code that the LLVM backend makes; cuda: the kernels of the CUDA
 * backend, on GPU 0; cuda-emulate: the same on the CPU; the names of machines: a library for that
 * machine, run by QEMU. Status 77: the GPU, NVRTC or the tools are not here. A file holds the description of a model (metadata `config`, `classes`, `batch`) and, for each case P, a size like `224x224` or `dark`:
 *     P.input                                  where it is not the made-up input of that size
 *     P.logits           [batch, classes]
 *     P.featureI.mean    [batch, c]            over the pixels
 *     P.featureI.corner  [batch, <=8, <=4, <=4] first channels, rows, columns
 * Every tensor of a file is compared; one line each, with the greatest difference as a share of the
 * tolerance. Exit status 1 if any is past it.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backends/backend.h"
#include "frontend/frontend.h"
#include "runtime/cuda_calls.h"
#include "runtime/raft.h"
#include "runtime/shell.h"
#include "tests/golden_machine.h"

enum { MAX_OUTPUTS = 8 };
static const double logits_tolerance = 2e-5, feature_tolerance = 1e-4;

typedef enum Runner {
    RUN_REFERENCE,
    RUN_PASSES,
    RUN_CPU,
    RUN_EMULATED,
    RUN_GPU,
    RUN_MACHINE, /* the first of the machines */
    RUN_COUNT = RUN_MACHINE + (int)ARRAY_SIZE(machines)
} Runner;

static const char *runner_name(int runner)
{
    static const char *const names[] = {"reference", "passes", "cpu", "cuda-emulate", "cuda"};
    return runner < RUN_MACHINE ? names[runner] : machines[runner - RUN_MACHINE].name;
}

typedef struct Score {
    int checks, failures;
    double worst; /* greatest difference as a share of its tolerance */
} Score;

/* One golden file and what is made of it. */
typedef struct Golden {
    const char *name; /* of the model */
    RaftWeights *file;
    Settings *settings;
    int64_t batch;
    Runner runner;
    Score *score;
} Golden;

/* What a model computed in one case: tensors called `logits`, `feature0`.. , batch first. */
typedef struct Results {
    int count;
    const char *name[MAX_OUTPUTS];
    int64_t shape[MAX_OUTPUTS][4]; /* b, c, h, w of a feature; b, classes of the logits */
    float *data[MAX_OUTPUTS];
} Results;

static _Noreturn void die(const char *what, const char *why)
{
    fprintf(stderr, "golden: %s: %s\n", what, why);
    exit(1);
}

static void *allocate(int64_t count, size_t size)
{
    void *memory = calloc((size_t)count, size);
    if (memory == NULL) die("allocation", "out of memory");
    return memory;
}

static float *read_tensor(const RaftTensor *tensor)
{
    RaftError error;
    float *data = allocate(tensor->elements, sizeof *data);
    if (raft_tensor_read_f32(tensor, data, &error) != RAFT_OK) die(tensor->name, error.message);
    return data;
}

static const char *metadata(const RaftWeights *file, const char *wanted)
{
    const char *key, *value;
    for (int i = 0; raft_weights_metadata(file, i, &key, &value); i++)
        if (strcmp(key, wanted) == 0) return value;
    die("metadata", wanted);
}

/* ---- comparing ------------------------------------------------------------------------------ */

static void report(const Golden *golden, const char *tensor, double ratio)
{
    Score *score = golden->score;
    bool good = ratio <= 1;
    score->checks++;
    score->failures += !good;
    score->worst = fmax(score->worst, ratio);
    printf("%s %s %s %s %.3g of the tolerance\n", good ? "ok  " : "FAIL", golden->name,
           runner_name((int)golden->runner), tensor, ratio);
}

static void compare(const Golden *golden, const RaftTensor *tensor, double tolerance,
                    const float *computed)
{
    float *expected = read_tensor(tensor);
    double scale = 1, worst = 0;
    for (int64_t i = 0; i < tensor->elements; i++) scale = fmax(scale, fabs((double)expected[i]));
    for (int64_t i = 0; i < tensor->elements; i++) {
        double difference = fabs((double)computed[i] - (double)expected[i]);
        worst = fmax(worst, isnan(difference) ? INFINITY : difference);
    }
    report(golden, tensor->name, worst / (tolerance * scale));
    free(expected);
}

static bool has_shape(const RaftTensor *tensor, const int64_t *shape, int rank)
{
    return tensor->rank == rank && memcmp(tensor->shape, shape, (size_t)rank * sizeof *shape) == 0;
}

static bool compare_mean(const Golden *golden, const RaftTensor *tensor, const int64_t shape[4],
                         const float *map)
{
    if (!has_shape(tensor, shape, 2)) return false;
    int64_t pixels = shape[2] * shape[3];
    float *means = allocate(tensor->elements, sizeof *means);
    for (int64_t i = 0; i < tensor->elements; i++) {
        double sum = 0;
        for (int64_t p = 0; p < pixels; p++) sum += (double)map[i * pixels + p];
        means[i] = (float)(sum / (double)pixels);
    }
    compare(golden, tensor, feature_tolerance, means);
    free(means);
    return true;
}

static bool compare_corner(const Golden *golden, const RaftTensor *tensor, const int64_t shape[4],
                           const float *map)
{
    const int64_t most[4] = {shape[0], 8, 4, 4};
    int64_t corner[4];
    for (int i = 0; i < 4; i++) corner[i] = shape[i] < most[i] ? shape[i] : most[i];
    if (!has_shape(tensor, corner, 4)) return false;
    float *values = allocate(tensor->elements, sizeof *values);
    for (int64_t i = 0; i < tensor->elements; i++) {
        int64_t x = i % corner[3], y = i / corner[3] % corner[2];
        int64_t c = i / (corner[3] * corner[2]) % corner[1];
        int64_t b = i / (corner[3] * corner[2] * corner[1]);
        values[i] = map[((b * shape[1] + c) * shape[2] + y) * shape[3] + x];
    }
    compare(golden, tensor, feature_tolerance, values);
    free(values);
    return true;
}

/* `part` is the tensor's name without the case: "logits", "feature2.mean". False: it fits no result. */
static bool compare_part(const Golden *golden, const RaftTensor *tensor, const char *part,
                         const Results *results)
{
    size_t length = strcspn(part, ".");
    const char *rest = part + length;
    for (int i = 0; i < results->count; i++) {
        if (strlen(results->name[i]) != length || strncmp(results->name[i], part, length) != 0)
            continue;
        const int64_t *shape = results->shape[i];
        if (strcmp(rest, ".mean") == 0)
            return compare_mean(golden, tensor, shape, results->data[i]);
        if (strcmp(rest, ".corner") == 0)
            return compare_corner(golden, tensor, shape, results->data[i]);
        if (*rest != '\0' || !has_shape(tensor, shape, 2)) return false;
        compare(golden, tensor, logits_tolerance, results->data[i]);
        return true;
    }
    return false;
}

/* ---- running -------------------------------------------------------------------------------- */

static Graph *run_passes(Arena *arena, const Graph *graph, const Target *target, Diag *diag)
{
    const PipelineOptions options = {.rewrite_limit = INT64_MAX};
    return pipeline_run(arena, graph, target, &options, diag, NULL);
}

static void results_new(Results *results, const Graph *graph, int64_t batch)
{
    RAFTC_ASSERT(graph->output_count <= MAX_OUTPUTS);
    results->count = (int)graph->output_count;
    for (int i = 0; i < results->count; i++) {
        const Output *output = &graph->outputs[i];
        const Type *type = graph_type(graph, output->value);
        RAFTC_ASSERT(type->rank <= 4);
        results->name[i] = output->name;
        results->shape[i][0] = batch;
        for (int k = 1; k < type->rank; k++) results->shape[i][k] = type->axis[k].extent;
        results->data[i] = allocate(batch * type_elements(type, NULL), sizeof(float));
    }
}

static bool run_reference(const Graph *graph, int64_t batch, const float *input, Results *results,
                          Diag *diag)
{
    ReferenceTensor *tensors = allocate(graph->node_count, sizeof *tensors);
    float **owned = allocate(graph->node_count, sizeof *owned);
    int count = 0;
    for (NodeId id = 0; id < graph->node_count; id++) {
        const Node *node = graph_node(graph, id);
        const Attributes *attributes = &node->attributes;
        if (node->op != OP_INPUT && node->op != OP_PARAM) continue;
        if (node->op == OP_PARAM) {
            owned[count] = allocate(type_elements(&node->type, NULL), sizeof(float));
            raft_fill_parameter(attributes->name, attributes->stored_rank, attributes->stored,
                                owned[count]);
        }
        tensors[count] = (ReferenceTensor){.name = attributes->name,
                                           .data = owned[count] ? owned[count] : input};
        count++;
    }
    void *outputs[MAX_OUTPUTS];
    for (int i = 0; i < results->count; i++) outputs[i] = results->data[i];
    bool done = reference_run(graph, batch, tensors, count, NULL, false, outputs, diag);
    for (int i = 0; i < count; i++) free(owned[i]);
    free(owned);
    free(tensors);
    return done;
}

static RaftStatus set_parameters(RaftShell *shell, const RaftProgram *program)
{
    RaftStatus status = RAFT_OK;
    for (int i = 0; i < program->parameter_count && status == RAFT_OK; i++) {
        const RaftTensorInfo *info = &program->parameter[i];
        float *data = allocate(info->elements, sizeof *data);
        raft_fill_parameter(info->name, info->rank, info->shape, data);
        status = raft_shell_set_parameter(shell, info->name, info->shape, info->rank, data);
        free(data);
    }
    return status;
}

static bool run_program(const RaftProgram *program, int64_t batch, const float *input,
                        Results *results, Diag *diag)
{
    char message[256] = "";
    RaftShell *shell;
    if (raft_shell_create(program, NULL, &shell, message, sizeof message) != RAFT_OK)
        return diag_error(diag, (Loc){0}, "%s", message);
    RAFTC_ASSERT(program->output_count == results->count);
    for (int i = 0; i < results->count; i++)
        RAFTC_ASSERT(strcmp(program->output[i].name, results->name[i]) == 0);
    RaftStatus status = set_parameters(shell, program);
    if (status == RAFT_OK)
        status = raft_shell_run(shell, program->forward_entry, batch, &input, results->data);
    if (status == RAFT_OK && program->features_entry != 0)
        status = raft_shell_run(shell, program->features_entry, batch, &input, results->data);
    if (status != RAFT_OK) diag_error(diag, (Loc){0}, "%s", raft_shell_error(shell));
    raft_shell_destroy(shell);
    return status == RAFT_OK;
}

static bool run_cpu(Arena *arena, const Graph *graph, int64_t batch, const float *input,
                    Results *results, Diag *diag)
{
    const CpuOptions options = {0};
    CpuCode *code = llvm_compile(arena, plan_memory(arena, graph), &options, diag);
    const RaftProgram *program = code ? llvm_load(code, diag) : NULL;
    bool done = program && run_program(program, batch, input, results, diag);
    llvm_free(code);
    return done;
}

static bool run_emulated(Arena *arena, const Graph *graph, int64_t batch, const float *input,
                         Results *results, Diag *diag)
{
    const Plan *plan = plan_memory(arena, graph);
    const CudaSource *source = cuda_emit(arena, plan, diag);
    CudaEmulation *emulation = source ? cuda_emulate(arena, plan, source, diag) : NULL;
    bool done = emulation && run_program(emulation->program, batch, input, results, diag) &&
                cuda_emulation_check(emulation, diag);
    cuda_emulation_free(emulation);
    return done;
}

static bool run_gpu(Arena *arena, const Graph *graph, int64_t batch, const float *input,
                    Results *results, Diag *diag)
{
    RaftCudaGpu gpu;
    RaftCudaImage image;
    char message[512];
    const char *note;
    const Plan *plan = plan_memory(arena, graph);
    const CudaSource *source = cuda_emit(arena, plan, diag);
    const CudaCompiler *compiler = source ? cuda_compiler_open(arena, diag) : NULL;
    if (!compiler || raft_cuda_find(0, &gpu, message, sizeof message) != RAFT_OK ||
        !cuda_compile(compiler, arena, source->text, graph->name, gpu.architecture, CUDA_CUBIN,
                      &image, &note, diag))
        return false;
    const ProgramCode *code = cuda_program_code(arena, source, &image, 1);
    return run_program(program_build(arena, plan, code, NULL), batch, input, results, diag);
}

static bool gpu_available(void)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    RaftCudaGpu gpu;
    char message[512];
    bool good = raft_cuda_find(0, &gpu, message, sizeof message) == RAFT_OK;
    if (!good) fprintf(stderr, "golden: SKIPPED: %s\n", message);
    good = good && cuda_compiler_open(&arena, &diag);
    diag_print(&diag, stderr);
    arena_free(&arena);
    return good;
}

static bool run_graph(const Golden *golden, Arena *arena, const Graph *graph, const float *input,
                      Results *results, Diag *diag)
{
    Runner runner = golden->runner;
    const Machine *machine = runner >= RUN_MACHINE ? &machines[runner - RUN_MACHINE] : NULL;
    const CpuOptions options = machine ? machine->options : (CpuOptions){0};
    Target target;
    cuda_target(&target);
    bool for_cpu = runner == RUN_CPU || runner == RUN_PASSES || machine;
    if (for_cpu && !llvm_target(&options, &target, diag)) return false;
    if (runner != RUN_REFERENCE) graph = run_passes(arena, graph, &target, diag);
    if (graph == NULL) return false;
    if (runner == RUN_CPU) return run_cpu(arena, graph, golden->batch, input, results, diag);
    if (machine)
        return machine_run(arena, machine, graph, golden->batch, input, results->data, diag);
    if (runner == RUN_GPU) return run_gpu(arena, graph, golden->batch, input, results, diag);
    if (runner == RUN_EMULATED)
        return run_emulated(arena, graph, golden->batch, input, results, diag);
    return run_reference(graph, golden->batch, input, results, diag);
}

/* ---- files and cases ------------------------------------------------------------------------ */

/* The input of a case: from the file, or made up at the size that is the name of the case. */
static float *case_input(const Golden *golden, const char *name, int64_t *height, int64_t *width)
{
    char tensor_name[64];
    snprintf(tensor_name, sizeof tensor_name, "%s.input", name);
    const RaftTensor *tensor = raft_weights_find(golden->file, tensor_name);
    if (tensor != NULL) {
        const int64_t start[2] = {golden->batch, golden->settings->in_channels};
        if (tensor->rank != 4 || memcmp(tensor->shape, start, sizeof start) != 0)
            die(tensor->name, "its shape does not fit the model");
        *height = tensor->shape[2];
        *width = tensor->shape[3];
        return read_tensor(tensor);
    }
    char *end;
    *height = strtoll(name, &end, 10);
    if (*end != 'x') die(name, "neither a size nor a case with an input");
    *width = strtoll(end + 1, NULL, 10);
    int64_t elements = golden->batch * golden->settings->in_channels * *height * *width;
    float *data = allocate(elements, sizeof *data);
    raft_fill_input(elements, data);
    return data;
}

/* Compares the tensors of one case; returns how many of the file's tensors belong to it. */
static int check_case(const Golden *golden, const char *name)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    Results results = {0};
    int64_t height, width;
    float *input = case_input(golden, name, &height, &width);
    Model *model = model_resolve(&arena, golden->settings, NULL, height, width, &diag);
    Graph *graph = model ? build_graph(&arena, model) : NULL;
    if (graph != NULL) {
        graph->name = "golden"; /* the prefix of a library */
        results_new(&results, graph, golden->batch);
    }
    bool done = graph && run_graph(golden, &arena, graph, input, &results, &diag);
    if (!done) diag_print(&diag, stdout);

    int count = 0;
    size_t length = strlen(name);
    for (int i = 0; i < raft_weights_count(golden->file); i++) {
        const RaftTensor *tensor = raft_weights_tensor(golden->file, i);
        if (strncmp(tensor->name, name, length) != 0 || tensor->name[length] != '.') continue;
        const char *part = tensor->name + length + 1;
        count++;
        if (strcmp(part, "input") == 0) continue;
        if (!done || !compare_part(golden, tensor, part, &results))
            report(golden, tensor->name, INFINITY);
    }
    for (int i = 0; i < results.count; i++) free(results.data[i]);
    free(input);
    arena_free(&arena);
    return count;
}

static void check_file(Runner runner, const char *path, Score *score)
{
    Arena arena = {0};
    Diag diag = diag_new(&arena);
    RaftError error;
    Golden golden = {.runner = runner, .score = score};
    if (raft_weights_open(path, &golden.file, &error) != RAFT_OK) die("goldens", error.message);
    golden.name = metadata(golden.file, "model");
    golden.batch = strtoll(metadata(golden.file, "batch"), NULL, 10);
    const char *config = metadata(golden.file, "config");
    const char *override = arena_printf(&arena, "num_classes=%s", metadata(golden.file, "classes"));
    const Source *source = diag_add_source(&diag, path, config, strlen(config));
    golden.settings = settings_parse(&arena, source, &override, 1, &diag);
    if (golden.settings == NULL) {
        diag_print(&diag, stderr);
        die(path, "its description of the model is refused");
    }
    int compared = 0, count = raft_weights_count(golden.file);
    for (int i = 0; i < count; i++) {
        const char *name = raft_weights_tensor(golden.file, i)->name;
        const char *suffix = strstr(name, ".logits");
        if (suffix != NULL && suffix[7] == '\0')
            compared += check_case(&golden, arena_strndup(&arena, name, (size_t)(suffix - name)));
    }
    if (compared == 0 || compared != count) die(path, "it holds tensors of no case");
    raft_weights_close(golden.file);
    arena_free(&arena);
}

int main(int argc, char **argv)
{
    int runner = 0;
    while (argc > 1 && runner < RUN_COUNT && strcmp(argv[1], runner_name(runner)) != 0) runner++;
    if (argc < 3 || runner == RUN_COUNT) {
        fprintf(stderr, "usage: golden RUNNER FILE.safetensors...; the runners:");
        for (runner = 0; runner < RUN_COUNT; runner++) fprintf(stderr, " %s", runner_name(runner));
        fprintf(stderr, "\n");
        return 2;
    }
    if (runner == RUN_GPU && !gpu_available()) return 77;
    if (runner >= RUN_MACHINE && !machine_available(&machines[runner - RUN_MACHINE])) {
        fprintf(stderr, "golden: SKIPPED: '%s' or '%s' is not here\n",
                machines[runner - RUN_MACHINE].compiler, machines[runner - RUN_MACHINE].emulator);
        return 77;
    }
    Score score = {0};
    for (int i = 2; i < argc; i++) check_file((Runner)runner, argv[i], &score);
    printf("golden: %d checks, %d failed, worst %.3g of its tolerance\n", score.checks,
           score.failures, score.worst);
    return score.checks == 0 || score.failures > 0;
}
