/* frontend.h: from settings text to a checked model, and from a model to a graph.
 *
 *   Settings   every key of a published settings file with its place, checked and typed
 *   Model      what is computed: levels with resolved sizes, for one image size
 */
#ifndef RAFTC_FRONTEND_H
#define RAFTC_FRONTEND_H

#include "ir/ir.h"

/* ---- settings.c ----------------------------------------------------------------------------- */

typedef enum { TOKEN_RAFT, TOKEN_MIXER } TokenMixing;    /* ser_pm, original_tm */
typedef enum { EMBED_CROSS, EMBED_PATCH } EmbeddingType; /* emb_cross_mlp, emb_mixer */

enum {
    MAX_EMBEDDING_KERNELS = 16,
    MAX_SIDE = 16384,           /* of an image, and of what looks at one */
    SETTINGS_MAX_SIZE = 1 << 20 /* bytes */
};

typedef struct LayerSettings {
    int64_t depth, dim, patch_size;
    int64_t raft_size; /* 0: not given */
    int kernel_count;
    int64_t kernels[MAX_EMBEDDING_KERNELS];
    Loc loc, depth_loc, dim_loc, patch_loc, raft_loc, kernels_loc,
        kernel_loc[MAX_EMBEDDING_KERNELS];
} LayerSettings;

/* One key that is a plain value: text and numbers of the recipe are kept here too, for training. */
typedef struct Settings {
    const Source *source;
    int layer_count;
    LayerSettings *layers;
    TokenMixing token_mixing;
    EmbeddingType embedding;
    int64_t pretrained_image_size, in_channels, num_classes;
    int64_t token_expansion_factor, channel_expansion_factor;
    bool shortcut;
    double dropout, drop_path_rate;
    /* The published recipe; NULL or 0 where the file leaves it out. */
    const char *dataset_name, *data_path, *pretrained_from, *resume_from;
    const char *task_name, *project_name, *bucket_name, *backend;
    int64_t batch_size, num_workers, num_epochs, num_warmup_epochs, validate_every,
        checkpoint_every, log_every_iters, stop_iteration, nproc_per_node, seed;
    double lr, end_lr, weight_decay, label_smoothing_alpha, mixup_alpha, mixup_p, cutmix_alpha,
        cutmix_p, cutout_p, color_jitter;
    bool with_amp, with_clearml;
    /* Not of the published recipe. */
    bool sgd, decay_biases_and_norms;
    double momentum, max_grad_norm, ema_decay;
    int64_t accumulation_steps;
    /* What dataset_name gives; the size of images unless `image` does. */
    int64_t default_height, default_width;
    double mean[3], std[3];
    /* Places of the keys that a later check may have to name. */
    Loc loc, token_mixing_loc, embedding_loc, pretrained_image_size_loc, in_channels_loc,
        num_classes_loc, token_expansion_loc, channel_expansion_loc, shortcut_loc;
} Settings;

/* Reads settings from YAML text. `overrides` are KEY=VALUE texts of --set, dots for nesting
 * (`layers.0.dim=96`), applied in order before anything is checked. NULL with messages on any fault:
 * every message names file, line and column (or `--set` and its text). Collects as many as it can. */
Settings *settings_parse(Arena *arena, const Source *source, const char *const *overrides,
                         int override_count, Diag *diag);

/* The same as YAML, defaults filled in: parsed again it gives the same settings. */
void settings_print(const Settings *settings, Text *out);
/* "224x224": height x width, each 1 to MAX_SIDE. False: it is none. */
bool image_size_parse(const char *text, int64_t *height, int64_t *width);

/* ---- model.c -------------------------------------------------------------------------------- */

typedef struct Level {
    int64_t depth, dim, patch, raft;
    int kernel_count;
    int64_t kernels[MAX_EMBEDDING_KERNELS];
    int64_t in_channels;
    int64_t in_height, in_width;         /* of the tensor that enters the level */
    int64_t padded_height, padded_width; /* after the resampling of step 1: multiples of patch */
    int64_t height, width;               /* the actual grid: padded / patch */
    int64_t grid;                        /* side of the square mixing grid (ph = pw) */
    Loc loc;
} Level;

typedef struct Model {
    const Settings *settings;
    const char *name; /* prefix of symbols: from the file name, [A-Za-z_][A-Za-z0-9_]* */
    int64_t height, width;
    int level_count;
    Level *levels;
    int feature_count; /* maps of the backbone (model-level rule); 0: this model has none */
} Model;

/* Checks what cannot run (embedding kernels, raft sizes, sizes that overflow) and resolves all sizes.
 * height 0: the default of the data set. name NULL: from the path of the settings. */
Model *model_resolve(Arena *arena, const Settings *settings, const char *name, int64_t height,
                     int64_t width, Diag *diag);

/* Number of parameters (elements, not tensors). */
int64_t model_parameter_count(const Model *model);

/* A C identifier from a path or text: base name without .yaml, '-' and others to '_'. */
const char *model_identifier(Arena *arena, const char *path);

/* ---- build.c, build_blocks.c ------------------------------------------------------------------ */

/* The graph of the paper: every reshape explicit, outputs `logits` and `feature0`.. . */
Graph *build_graph(Arena *arena, const Model *model);
/* The same as it is trained: where drop_path_rate is not 0, the branch of each block is multiplied by
 * an input mask.BLOCK : f32[b], and where dropout is not 0, the elements by mask.BLOCK.fn.2 and .fn.4,
 * of their own type: by 0, or by 1 / (1 - rate) where they are kept. */
#define MASK_PREFIX "mask."
Graph *build_dropping_graph(Arena *arena, const Model *model);

/* ---- optimiser.c ------------------------------------------------------------------------------ */

/* What the graph of an optimiser has, AdamW unless it is SGD. */
typedef struct OptimiserParts {
    bool sgd, clips;
    bool exempts;  /* some weights do not decay */
    bool averages; /* the weights */
} OptimiserParts;

/* One step over all parameters. Inputs f32[b, n elements]: the weights `w`, their gradients `g`, `m`
 * and, of AdamW, `v`; where wanted the average `e`, and `decays`, 1 where weights decay and else 0.
 * Outputs of the entry `step`: w, m, v and e after it. Parameters, f32[]: the numbers that
 * raft_optimiser_numbers (runtime/training.h) gives. As PyTorch: AdamW's weight decay is decoupled,
 * SGD's is added to the gradient. */
Graph *build_optimiser(Arena *arena, const char *name, const OptimiserParts *parts,
                       int64_t elements);

#endif
