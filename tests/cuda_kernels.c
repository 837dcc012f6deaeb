/* cuda_kernels.c: every kernel of some models, compiled by NVRTC for one architecture: it has nothing to say of any,
 * neither names without use nor registers that spill, but for a few of training. Kernels that differ in names alone are
 * compiled once; of all published models an architecture takes 100 s of a processor where there is an NVRTC, of training
 * RaftMLP-S, M and L take 200 s; and nothing elsewhere.
 * usage: cuda_kernels PATTERN ARCHITECTURE [train]        exit 77: skipped, there is no NVRTC
 *   PATTERN: settings, or files of tests/data/goldens; train: the kernels of training, too
 */
#define _GNU_SOURCE
#include "backends/backend.h"
#include "frontend/frontend.h"
#include "runtime/raft.h"

#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST_KERNELS = 4096, SKIPPED = 77, MOST_SPILLED = 32 /* bytes of a kernel, of training */ };

static const char begin[] = "\n// kernel for (", head[] = "extern \"C\" __global__ void ";

typedef struct Kernels {
    Arena arena;
    Diag diag;
    Text text;                       /* the prelude, tables and kernels so far */
    const char *known[MOST_KERNELS]; /* without name and comment */
    int count, all;
    bool train;
} Kernels;

/* The kernel without its comment and its name. */
static const char *without_names(Kernels *k, const char *kernel)
{
    const char *start = strstr(kernel, head);
    const char *name = start + strcspn(start, ")") + 2, *rest = name + strcspn(name, "(");
    return arena_printf(&k->arena, "%.*s%s", (int)(name - start), start, rest);
}

static void add_kernel(Kernels *k, const char *kernel)
{
    const char *key = without_names(k, kernel);
    k->all++;
    for (int i = 0; i < k->count; i++)
        if (strcmp(k->known[i], key) == 0) return;
    RAFTC_ASSERT(k->count < MOST_KERNELS);
    k->known[k->count++] = key;
    text_put(&k->text, kernel);
}

/* Tables of resampling stand before the first kernel, a statement each. */
static void add_tables(Kernels *k, const char *text)
{
    char *rest = arena_strdup(&k->arena, text);
    for (char *end; (rest = strstr(rest, "\nraft_table(")) && (end = strstr(rest, "};\n"));) {
        const char *table = arena_strndup(&k->arena, rest, (size_t)(end + 3 - rest));
        if (!strstr(k->text.data, table)) text_put(&k->text, table);
        rest = end + 2;
    }
}

static void add_source(Kernels *k, const char *text)
{
    const char *kernel = strstr(text, begin);
    const char *before = arena_strndup(&k->arena, text, (size_t)(kernel - text));
    const char *tables = strstr(before, "\nraft_table(");
    if (k->count == 0)
        text_put(&k->text, arena_strndup(&k->arena, before,
                                         tables ? (size_t)(tables - before) : strlen(before)));
    add_tables(k, before);
    for (const char *next; kernel; kernel = next) {
        next = strstr(kernel + 1, begin);
        add_kernel(k, next ? arena_strndup(&k->arena, kernel, (size_t)(next - kernel)) : kernel);
    }
}

static bool add_graph(Kernels *k, Graph *graph, bool train)
{
    Target target;
    cuda_target(&target);
    const PipelineOptions options = {.rewrite_limit = INT64_MAX, .train = train};
    graph = pipeline_run(&k->arena, graph, &target, &options, &k->diag, NULL);
    if (!graph) return false;
    CudaSource *made = cuda_emit(&k->arena, plan_memory(&k->arena, graph), &k->diag);
    if (made) add_source(k, made->text);
    return made != NULL;
}

static Model *read_settings(Kernels *k, const char *path)
{
    const Source *source = diag_read_source(&k->diag, path, SETTINGS_MAX_SIZE);
    Settings *settings = source ? settings_parse(&k->arena, source, NULL, 0, &k->diag) : NULL;
    return settings ? model_resolve(&k->arena, settings, NULL, 0, 0, &k->diag) : NULL;
}

/* The model that a file of numbers describes in its metadata. */
static Model *read_golden(Kernels *k, const char *path)
{
    RaftWeights *file;
    RaftError error;
    const char *key, *value, *config = "", *classes = "";
    long long height = 0, width = 0;
    if (raft_weights_open(path, &file, &error) != RAFT_OK) return NULL;
    for (int i = 0; raft_weights_metadata(file, i, &key, &value); i++) {
        if (strcmp(key, "config") == 0) config = arena_strdup(&k->arena, value);
        if (strcmp(key, "classes") == 0) classes = arena_printf(&k->arena, "num_classes=%s", value);
        if (strcmp(key, "size") == 0) sscanf(value, "%lldx%lld", &height, &width);
    }
    raft_weights_close(file);
    const Source *source = diag_add_source(&k->diag, path, config, strlen(config));
    Settings *settings = settings_parse(&k->arena, source, &classes, 1, &k->diag);
    return settings ? model_resolve(&k->arena, settings, NULL, height, width, &k->diag) : NULL;
}

static bool add_model(Kernels *k, const char *path)
{
    Model *model = strstr(path, ".safetensors") ? read_golden(k, path) : read_settings(k, path);
    if (!model) return false;
    if (!k->train) return add_graph(k, build_graph(&k->arena, model), false);
    return add_graph(k, build_dropping_graph(&k->arena, model), true);
}

/* The step of each optimiser, with all that it can have. */
static bool add_optimisers(Kernels *k)
{
    for (int sgd = 0; sgd < 2; sgd++) {
        const OptimiserParts parts = {.sgd = sgd, .clips = true, .exempts = true, .averages = true};
        if (!add_graph(k, build_optimiser(&k->arena, "optimiser", &parts, 1 << 20), false))
            return false;
    }
    return true;
}

static bool add_models(Kernels *k, const char *pattern)
{
    glob_t found;
    bool good = glob(pattern, 0, NULL, &found) == 0;
    for (size_t i = 0; good && i < found.gl_pathc; i++) good = add_model(k, found.gl_pathv[i]);
    if (good) globfree(&found);
    return good && (!k->train || add_optimisers(k));
}

/* Whether NVRTC speaks of nothing but a few registers of a kernel that spill. */
static bool is_little(const Diag *said, Arena *arena)
{
    char *text, *rest;
    size_t size;
    FILE *file = open_memstream(&text, &size);
    bool good = true;
    diag_print(said, file);
    fclose(file);
    rest = arena_strdup(arena, text);
    free(text);
    for (const char *said_line; (said_line = strtok_r(rest, "\n", &rest));) {
        const char *spill = strstr(said_line, "Registers are spilled to local memory in function ");
        const char *bytes = spill ? strstr(spill, ", ") : NULL;
        bool few = bytes && atoi(bytes + 2) <= MOST_SPILLED;
        good &= few || strstr(said_line, "Local memory used for function ");
    }
    return good;
}

int main(int count, char **argument)
{
    static Kernels k;
    k.diag = diag_new(&k.arena);
    k.text = text_new(&k.arena);
    k.train = count == 4 && strcmp(argument[3], "train") == 0;
    if (count != 3 + k.train) return 2;
    CudaCompiler *compiler = cuda_compiler_open(&k.arena, &k.diag);
    if (!compiler) {
        fputs("cuda_kernels: skipped:\n", stderr);
        diag_print(&k.diag, stderr);
        return SKIPPED;
    }
    char cache[] = "/tmp/cuda_kernels.XXXXXX"; /* what is known there is not compiled */
    if (!mkdtemp(cache) || setenv("XDG_CACHE_HOME", cache, 1) != 0) return 2;
    RaftCudaImage image;
    const char *note;
    bool good = add_models(&k, argument[1]);
    Diag said = diag_new(&k.arena);
    clock_t start = clock();
    good = good && cuda_compile(compiler, &k.arena, k.text.data, "all", atoi(argument[2]),
                                CUDA_CUBIN, &image, &note, &said);
    printf("cuda_kernels: %d of %d kernels differ; sm_%s: %.1f s of a processor\n", k.count, k.all,
           argument[2], (double)(clock() - start) / CLOCKS_PER_SEC);
    diag_print(k.diag.errors ? &k.diag : &said, stdout);
    good = good && k.count > 0 && (said.count == 0 || (k.train && is_little(&said, &k.arena)));
    int status = system(arena_printf(&k.arena, "rm -rf '%s'", cache));
    arena_free(&k.arena);
    return good && status == 0 ? 0 : 1;
}
