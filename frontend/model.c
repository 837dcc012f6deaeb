/* model.c: settings to a model whose every size is known; refuses what cannot run. */
#include "frontend/frontend.h"

#include <ctype.h>
#include <string.h>

enum {
    MAX_TOTAL_DEPTH = 4096,
    FEATURE_DEPTH = 10, /* a model of one level has features only from this depth on */
};

/* Most parameters of a model, and most elements of a tensor of one image. */
static const int64_t MAX_ELEMENTS = (int64_t)1 << 33;

/* ---- arithmetic that stops at INT64_MAX -------------------------------------------------- */

static int64_t times(int64_t a, int64_t b)
{
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

static int64_t plus(int64_t a, int64_t b)
{
    int64_t sum;
    return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

static int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t divide_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* ---- counting ---------------------------------------------------------------------------- */

static int64_t count_linear(int64_t in, int64_t out)
{
    return plus(times(in, out), out);
}

/* LayerNorm over `channels`, then an MLP from `width` to `factor` times as much and back. */
static int64_t count_block(int64_t channels, int64_t width, int64_t factor)
{
    int64_t hidden = times(factor, width);
    return plus(2 * channels, plus(count_linear(width, hidden), count_linear(hidden, width)));
}

/* Features of a token before the embedding's Linear. */
static int64_t count_features(const Settings *settings, const Level *level)
{
    if (settings->embedding == EMBED_PATCH)
        return times(level->in_channels, times(level->patch, level->patch));
    int64_t features = 0;
    for (int i = 0; i < level->kernel_count; i++) {
        int64_t kernel = level->kernels[i];
        features = plus(features, times(level->in_channels, times(kernel, kernel)));
    }
    return features;
}

static int64_t count_level(const Settings *settings, const Level *level)
{
    int64_t factor = settings->token_expansion_factor, layer;
    if (settings->token_mixing == TOKEN_RAFT)
        layer = times(2, count_block(level->dim, times(level->raft, level->grid), factor));
    else
        layer = count_block(level->dim, times(level->grid, level->grid), factor);
    layer = plus(layer, count_block(level->dim, level->dim, settings->channel_expansion_factor));
    return plus(count_linear(count_features(settings, level), level->dim),
                times(level->depth, layer));
}

int64_t model_parameter_count(const Model *model)
{
    const Settings *settings = model->settings;
    int64_t last = model->levels[model->level_count - 1].dim;
    int64_t count = plus(2 * last, count_linear(last, settings->num_classes));
    for (int i = 0; i < model->level_count; i++) {
        const Level *level = &model->levels[i];
        count = plus(count, count_level(settings, level));
        if (settings->shortcut && i + 1 < model->level_count)
            count = plus(count, plus(2 * level->dim, count_linear(level->dim, 2 * last)));
    }
    return count;
}

/* Elements of the largest tensor of a level, for one image, nothing fused. */
static int64_t largest_tensor(const Settings *settings, const Level *level)
{
    int64_t pixels = times(level->height, level->width), mixed = times(level->grid, level->grid);
    int64_t channels = larger(level->dim, count_features(settings, level));
    channels = larger(channels, times(settings->channel_expansion_factor, level->dim));
    int64_t tokens = times(mixed, times(settings->token_expansion_factor, level->dim));
    int64_t padded = times(level->in_channels, times(level->padded_height, level->padded_width));
    return larger(padded, larger(tokens, times(pixels, channels)));
}

/* ---- what cannot run --------------------------------------------------------------------- */

/* Each kernel is a window of whole patches around the patch that it stands for. */
static bool kernel_fits(int64_t kernel, int64_t patch)
{
    return kernel % patch == 0 && (kernel - patch) % 2 == 0;
}

static bool check_kernels(const LayerSettings *layer, Diag *diag)
{
    long long patch = layer->patch_size;
    if (layer->kernels[0] != patch) {
        diag_error(diag, layer->kernel_loc[0],
                   "the first of embedding_kernels is %lld, which is not patch_size",
                   (long long)layer->kernels[0]);
        diag_note(diag, layer->patch_loc, "patch_size %lld is set here", patch);
        return false;
    }
    for (int i = 0; i < layer->kernel_count; i++) {
        if (kernel_fits(layer->kernels[i], patch)) continue;
        long long step = patch % 2 ? 2 * patch : patch;
        diag_error(diag, layer->kernel_loc[i],
                   "embedding kernel %lld cannot be centred on patches of %lld",
                   (long long)layer->kernels[i], patch);
        diag_note(diag, layer->kernel_loc[i],
                  "it must be a multiple of patch_size, and their difference even; "
                  "values that fit: %lld, %lld, %lld, %lld",
                  patch, patch + step, patch + 2 * step, patch + 3 * step);
        return false;
    }
    return true;
}

static bool check_raft(Arena *arena, const LayerSettings *layer, Diag *diag)
{
    if (layer->dim % layer->raft_size == 0) return true;
    Text fitting = text_new(arena);
    for (int64_t size = 1, found = 0; size <= layer->dim && found < 4; size++) {
        if (layer->dim % size) continue;
        text_printf(&fitting, "%s%lld", found++ ? ", " : "", (long long)size);
    }
    diag_error(diag, layer->raft_loc, "raft_size %lld does not divide dim %lld",
               (long long)layer->raft_size, (long long)layer->dim);
    diag_note(diag, layer->raft_loc, "values that fit: %s", fitting.data);
    diag_note(diag, layer->dim_loc, "dim is set here");
    return false;
}

static bool check_layers(Arena *arena, const Settings *settings, Diag *diag)
{
    bool good = true;
    int64_t depth = 0, in_channels = settings->in_channels;
    for (int i = 0; i < settings->layer_count; i++) {
        const LayerSettings *layer = &settings->layers[i];
        if (settings->token_mixing == TOKEN_RAFT) good &= check_raft(arena, layer, diag);
        if (settings->embedding == EMBED_CROSS) {
            good &= check_kernels(layer, diag);
        } else if (layer->patch_size == 1 && layer->dim != in_channels) {
            good = diag_error(diag, layer->dim_loc,
                              "dim is %lld, but patch_size 1 with emb_mixer keeps the channels",
                              (long long)layer->dim);
            diag_note(diag, layer->dim_loc, "values that fit: %lld", (long long)in_channels);
        }
        depth += layer->depth;
        if (depth > MAX_TOTAL_DEPTH)
            return diag_error(diag, layer->depth_loc, "there are more than %d layers in all",
                              MAX_TOTAL_DEPTH);
        in_channels = layer->dim;
    }
    return good;
}

static bool check_sizes(const Model *model, Diag *diag)
{
    bool good = true;
    for (int i = 0; i < model->level_count; i++) {
        const Level *level = &model->levels[i];
        Loc loc = model->settings->layers[i].dim_loc;
        if (count_level(model->settings, level) >= MAX_ELEMENTS)
            good = diag_error(diag, loc, "level %d has too many parameters: 2^33 or more", i);
        else if (largest_tensor(model->settings, level) >= MAX_ELEMENTS)
            good = diag_error(
                diag, loc, "level %d needs too large a tensor: 2^33 elements or more for one image",
                i);
    }
    if (good && model_parameter_count(model) >= MAX_ELEMENTS)
        good = diag_error(diag, model->settings->layers[0].loc,
                          "the model has too many parameters: 2^33 or more");
    return good;
}

/* ---- resolving --------------------------------------------------------------------------- */

static void resolve_levels(Model *model)
{
    const Settings *settings = model->settings;
    int64_t height = model->height, width = model->width, channels = settings->in_channels;
    int64_t grid = settings->pretrained_image_size;
    for (int i = 0; i < model->level_count; i++) {
        const LayerSettings *layer = &settings->layers[i];
        int64_t patch = layer->patch_size;
        Level *level = &model->levels[i];
        *level = (Level){.depth = layer->depth,
                         .dim = layer->dim,
                         .patch = patch,
                         .in_channels = channels,
                         .in_height = height,
                         .in_width = width,
                         .height = divide_up(height, patch),
                         .width = divide_up(width, patch),
                         .grid = divide_up(grid, patch),
                         .loc = layer->loc};
        level->padded_height = level->height * patch;
        level->padded_width = level->width * patch;
        if (settings->token_mixing == TOKEN_RAFT) level->raft = layer->raft_size;
        if (settings->embedding == EMBED_CROSS) {
            level->kernel_count = layer->kernel_count;
            memcpy(level->kernels, layer->kernels, sizeof level->kernels);
        }
        height = level->height;
        width = level->width;
        channels = level->dim;
        grid = level->grid;
    }
}

Model *model_resolve(Arena *arena, const Settings *settings, const char *name, int64_t height,
                     int64_t width, Diag *diag)
{
    Model *model = arena_alloc(arena, sizeof *model);
    model->settings = settings;
    model->name = model_identifier(arena, name ? name : settings->source->path);
    model->height = height ? height : settings->default_height;
    model->width = height ? width : settings->default_width;
    if (model->height < 1 || model->height > MAX_SIDE || model->width < 1 ||
        model->width > MAX_SIDE) {
        diag_error(diag, (Loc){0}, "image %lldx%lld: each side must be 1 to %d",
                   (long long)model->height, (long long)model->width, MAX_SIDE);
        return NULL;
    }
    if (!check_layers(arena, settings, diag)) return NULL;

    model->level_count = settings->layer_count;
    model->levels = arena_array(arena, (size_t)model->level_count, sizeof *model->levels);
    resolve_levels(model);
    if (!check_sizes(model, diag)) return NULL;
    if (model->level_count > 1)
        model->feature_count = model->level_count;
    else if (model->levels[0].depth >= FEATURE_DEPTH)
        model->feature_count = 4;
    return model;
}

const char *model_identifier(Arena *arena, const char *path)
{
    static const char *const extensions[] = {".yaml", ".yml", ".ir"};
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    size_t length = strlen(base);
    for (size_t i = 0; i < ARRAY_SIZE(extensions); i++) {
        size_t extension = strlen(extensions[i]);
        if (length < extension || strcmp(base + length - extension, extensions[i]) != 0) continue;
        length -= extension;
        break;
    }
    if (length == 0) return "model";
    bool digit_first = base[0] >= '0' && base[0] <= '9';
    char *name = arena_printf(arena, "%s%.*s", digit_first ? "_" : "", (int)length, base);
    for (char *c = name; *c; c++)
        if (!isalnum((unsigned char)*c)) *c = '_';
    return name;
}
