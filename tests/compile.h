/* compile.h: how tests get from settings to graphs; for test_build.c, test_plan.c, test_llvm.c. */
#ifndef RAFTC_TESTS_COMPILE_H
#define RAFTC_TESTS_COMPILE_H

#include "frontend/frontend.h"
#include "passes/pass.h"

#include <stdlib.h>
#include <string.h>

/* Small models that between them have every part: both embeddings, both mixings, shortcut heads, a
 * level of patch size 1, a raft size that is no power of two. */
static const struct {
    const char *name, *yaml;
} tiny_models[] = {
    {"tiny", "pretrained_image_size: 32\n"
             "in_channels: 3\n"
             "token_mixing_type: ser_pm\n"
             "embedding_type: emb_cross_mlp\n"
             "layers:\n"
             "- {depth: 2, dim: 16, patch_size: 4, raft_size: 2, embedding_kernels: [4, 8]}\n"
             "- {depth: 1, dim: 32, patch_size: 2, raft_size: 2, embedding_kernels: [2, 4]}\n"
             "token_expansion_factor: 2\n"
             "channel_expansion_factor: 4\n"
             "shortcut: false\n"
             "num_classes: 10\n"},
    {"tiny_shortcut", "pretrained_image_size: 36\n"
                      "in_channels: 3\n"
                      "token_mixing_type: ser_pm\n"
                      "embedding_type: emb_cross_mlp\n"
                      "layers:\n"
                      "- {depth: 1, dim: 24, patch_size: 4, raft_size: 3,"
                      " embedding_kernels: [4, 8, 12]}\n"
                      "- {depth: 1, dim: 48, patch_size: 2, raft_size: 3,"
                      " embedding_kernels: [2, 4]}\n"
                      "- {depth: 2, dim: 48, patch_size: 2, raft_size: 3, embedding_kernels: [2]}\n"
                      "token_expansion_factor: 2\n"
                      "channel_expansion_factor: 4\n"
                      "shortcut: true\n"
                      "num_classes: 10\n"},
    {"tiny_mixer", "pretrained_image_size: 32\n"
                   "in_channels: 3\n"
                   "token_mixing_type: original_tm\n"
                   "embedding_type: emb_mixer\n"
                   "layers:\n"
                   "- {depth: 2, dim: 32, patch_size: 8}\n"
                   "token_expansion_factor: 2\n"
                   "channel_expansion_factor: 4\n"
                   "shortcut: false\n"
                   "num_classes: 10\n"},
    {"tiny_patch1", "pretrained_image_size: 32\n"
                    "in_channels: 1\n"
                    "token_mixing_type: ser_pm\n"
                    "embedding_type: emb_mixer\n"
                    "layers:\n"
                    "- {depth: 1, dim: 16, patch_size: 4, raft_size: 4}\n"
                    "- {depth: 1, dim: 16, patch_size: 1, raft_size: 1}\n"
                    "token_expansion_factor: 3\n"
                    "channel_expansion_factor: 2\n"
                    "shortcut: false\n"
                    "num_classes: 10\n"},
};

/* A machine with AVX-512, whatever this one is. */
static const Target wide_target = {.vector_floats = 16,
                                   .vector_registers = 32,
                                   .fma = true,
                                   .l1_bytes = 32 << 10,
                                   .l2_bytes = 1 << 20,
                                   .packs_weights = true};

static inline _Noreturn void compile_failed(const Diag *diag, const char *what)
{
    fprintf(stderr, "%s cannot be compiled\n", what);
    diag_print(diag, stderr);
    abort();
}

/* The model of settings in memory, for images of height x width, or (0) of its own size. */
static inline const Model *compile_model(Arena *arena, const char *name, const char *yaml,
                                         size_t size, int64_t height, int64_t width)
{
    Diag diag = diag_new(arena);
    const Source *source = diag_add_source(&diag, name, yaml, size);
    const Settings *settings = settings_parse(arena, source, NULL, 0, &diag);
    if (!settings) compile_failed(&diag, name);
    int64_t side = settings->pretrained_image_size;
    const Model *model =
        model_resolve(arena, settings, NULL, height ? height : side, width ? width : side, &diag);
    if (!model) compile_failed(&diag, name);
    return model;
}

static inline const Model *compile_tiny(Arena *arena, int index, int64_t height, int64_t width)
{
    const char *yaml = tiny_models[index].yaml;
    return compile_model(arena, tiny_models[index].name, yaml, strlen(yaml), height, width);
}

/* models/NAME.yaml */
static inline const Model *compile_published(Arena *arena, const char *name, int64_t height,
                                             int64_t width)
{
    Diag diag = diag_new(arena);
    const char *path = arena_printf(arena, "%s/models/%s.yaml", SOURCE_ROOT, name);
    const Source *source = diag_read_source(&diag, path, SETTINGS_MAX_SIZE);
    if (!source) compile_failed(&diag, path);
    return compile_model(arena, path, source->text, source->size, height, width);
}

/* All passes but `disabled` (NULL: none). */
static inline const Graph *compile_passes(Arena *arena, const Graph *graph, const Target *target,
                                          const char *disabled)
{
    Diag diag = diag_new(arena);
    const PipelineOptions options = {
        .disabled = &disabled, .disabled_count = disabled != NULL, .rewrite_limit = INT64_MAX};
    const Graph *result = pipeline_run(arena, graph, target, &options, &diag, NULL);
    if (!result) compile_failed(&diag, graph->name);
    return result;
}

/* A graph from text, as it stands. */
static inline const Graph *compile_text(Arena *arena, const char *text)
{
    Diag diag = diag_new(arena);
    const Source *source = diag_add_source(&diag, "text", text, strlen(text));
    const Graph *graph = graph_parse(arena, source, &diag);
    if (!graph) compile_failed(&diag, text);
    return graph;
}

#endif
