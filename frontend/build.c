/* build.c: the graph of a model: embeddings, levels, head. The layers are in build_blocks.c.
 *
 * It says what the paper says, every reshape explicit; making it fast is the passes' business.
 * Tokens are [b, h, w, c] throughout; the image that comes in and the features that go out are
 * [b, c, y, x] and [b, c, h, w].
 */
#include "frontend/build.h"

#include <string.h>

NodeId build_weight(Builder *b, const char *prefix, const char *suffix, const char *axes,
                    int64_t rows, int64_t columns, Loc loc)
{
    Type type = type_make(DTYPE_F32, axes);
    int64_t stored[] = {rows, columns};
    return build_param(b->graph, BUILD_TEXT(b, "%s%s", prefix, suffix), &type, columns ? 2 : 1,
                       stored, loc);
}

static int64_t extent(Builder *b, NodeId x, const char *axis)
{
    const Type *type = graph_type(b->graph, x);
    return type->axis[type_find(type, axis)].extent;
}

/* Features of all kernels side by side, one Linear: levels.I.fn.0.fc. */
static NodeId embed_cross(Builder *b, const Level *level, int index, NodeId x, const char *rows,
                          const char *columns)
{
    Graph *g = b->graph;
    int64_t features = 0;
    NodeId *unfolded = arena_array(b->arena, (size_t)level->kernel_count, sizeof *unfolded);
    for (int i = 0; i < level->kernel_count; i++) {
        int64_t k = level->kernels[i], pad = (k - level->patch) / 2, f = level->in_channels * k * k;
        Window windows[] = {{.outer = "h", .inner = "ky"}, {.outer = "w", .inner = "kx"}};
        for (int side = 0; side < 2; side++) {
            strcpy(windows[side].from, side == 0 ? rows : columns);
            windows[side].kernel = k;
            windows[side].stride = level->patch;
            windows[side].pad = pad;
        }
        Type type =
            type_make(DTYPE_F32, BUILD_TEXT(b, "b, h %ld, w %ld, c %ld, ky %ld, kx %ld",
                                            level->height, level->width, level->in_channels, k, k));
        NodeId columns_of_k = build_unfold(g, x, windows, 2, &type, level->loc);
        type = type_make(DTYPE_F32,
                         BUILD_TEXT(b, "b, h %ld, w %ld, f %ld", level->height, level->width, f));
        unfolded[i] = build_rearrange(g, columns_of_k, "(c, ky, kx) -> f", &type, level->loc);
        features += f;
    }
    NodeId all = unfolded[0];
    if (level->kernel_count > 1)
        all = build_concat(g, unfolded, (uint32_t)level->kernel_count, "f", level->loc);
    const char *prefix = BUILD_TEXT(b, "levels.%d.fn.0.fc.", index);
    NodeId weight =
        build_weight(b, prefix, "weight", BUILD_TEXT(b, "c %ld, f %ld", level->dim, features),
                     level->dim, features, level->loc);
    NodeId bias = build_weight(b, prefix, "bias", BUILD_TEXT(b, "c %ld", level->dim), level->dim, 0,
                               level->loc);
    return build_linear(g, all, weight, bias, "f", level->loc);
}

/* Patches without overlap, features ordered (row, column, channel), one Linear: levels.I.fn.1. */
static NodeId embed_patch(Builder *b, const Level *level, int index, NodeId x, const char *rows,
                          const char *columns)
{
    int64_t p = level->patch;
    Type type =
        type_make(DTYPE_F32, BUILD_TEXT(b, "b, h %ld, w %ld, ky %ld, kx %ld, i %ld", level->height,
                                        level->width, p, p, level->in_channels));
    const char *groups = BUILD_TEXT(b, "%s -> (h, ky); %s -> (w, kx); c -> i", rows, columns);
    NodeId patches = build_rearrange(b->graph, x, groups, &type, level->loc);
    const char *prefix = BUILD_TEXT(b, "levels.%d.fn.1.", index);
    NodeId weight = build_weight(
        b, prefix, "weight",
        BUILD_TEXT(b, "c %ld, ky %ld, kx %ld, i %ld", level->dim, p, p, level->in_channels),
        level->dim, p * p * level->in_channels, level->loc);
    NodeId bias = build_weight(b, prefix, "bias", BUILD_TEXT(b, "c %ld", level->dim), level->dim, 0,
                               level->loc);
    return build_linear(b->graph, patches, weight, bias, "ky, kx, i", level->loc);
}

/* How many of the features the tensor after `layer` (0: the embedding) is. Of several levels the
 * first embedding and the later outputs are features; of one level the embedding, the 4th and 10th
 * layers and the output, which may be the 10th layer. */
static int count_as_features(const Model *model, int level, int64_t layer)
{
    if (model->feature_count == 0) return 0;
    bool output = layer == model->levels[level].depth;
    if (model->level_count > 1) return level == 0 ? layer == 0 : output;
    return (layer == 0 || layer == 4 || layer == 10) + output;
}

/* [b, h, w, c] -> the feature map [b, c, h, w], as often as it is one. */
static void add_features(Builder *b, int level, int64_t layer, int *count, NodeId x)
{
    for (int i = count_as_features(b->model, level, layer); i > 0; i--) {
        Type type = type_make(DTYPE_F32, BUILD_TEXT(b, "b, c %ld, h %ld, w %ld", extent(b, x, "c"),
                                                    extent(b, x, "h"), extent(b, x, "w")));
        NodeId map = build_rearrange(b->graph, x, "", &type, graph_node(b->graph, x)->loc);
        graph_add_output(b->graph, BUILD_TEXT(b, "feature%d", (*count)++), "features", map);
    }
}

static NodeId build_level(Builder *b, int index, NodeId x, int *features)
{
    const Level *level = &b->model->levels[index];
    const char *rows = index == 0 ? "y" : "h", *columns = index == 0 ? "x" : "w";
    if (level->padded_height != level->in_height || level->padded_width != level->in_width)
        x = build_resample(b->graph, x, BUILD_TEXT(b, "%s, %s", rows, columns),
                           level->padded_height, level->padded_width, level->loc);
    x = b->model->settings->embedding == EMBED_CROSS
            ? embed_cross(b, level, index, x, rows, columns)
            : embed_patch(b, level, index, x, rows, columns);
    add_features(b, index, 0, features, x);
    for (int64_t layer = 1; layer <= level->depth; layer++) {
        const char *prefix = BUILD_TEXT(b, "levels.%d.fn.%ld.", index, layer + 1);
        x = b->model->settings->token_mixing == TOKEN_RAFT ? build_raft_layer(b, level, prefix, x)
                                                           : build_mixer_layer(b, level, prefix, x);
        add_features(b, index, layer, features, x);
    }
    return x;
}

/* LayerNorm over channels, mean over pixels: [b, c]. */
static NodeId build_pooled(Builder *b, const Level *level, const char *prefix, NodeId x)
{
    const char *axes = BUILD_TEXT(b, "c %ld", level->dim);
    NodeId scale = build_weight(b, prefix, "weight", axes, level->dim, 0, level->loc);
    NodeId shift = build_weight(b, prefix, "bias", axes, level->dim, 0, level->loc);
    NodeId normal = build_layernorm(b->graph, x, scale, shift, "c", LAYERNORM_EPS, level->loc);
    return build_reduction(b->graph, OP_MEAN, normal, "h, w", level->loc);
}

/* Shortcut heads: a <- y[:D] * a + y[D:], from the last level but one down to the first. */
static NodeId apply_shortcut(Builder *b, int index, NodeId y, NodeId a)
{
    Graph *g = b->graph;
    Loc loc = b->model->levels[index].loc;
    int64_t d = extent(b, a, "c");
    Type type = *graph_type(g, a);
    NodeId factor = build_rearrange(g, build_slice(g, y, "d", 0, d, loc), "d -> c", &type, loc);
    NodeId term = build_rearrange(g, build_slice(g, y, "d", d, d, loc), "d -> c", &type, loc);
    return build_binary(g, OP_ADD, build_binary(g, OP_MUL, a, factor, loc), term, loc);
}

static Graph *build(Arena *arena, const Model *model, bool masks)
{
    Builder b = {graph_new(arena, model->name), model, arena, masks};
    const Settings *settings = model->settings;
    int last = model->level_count - 1, features = 0;
    int64_t dim = model->levels[last].dim;
    Type type = type_make(DTYPE_F32, BUILD_TEXT(&b, "b, c %ld, y %ld, x %ld", settings->in_channels,
                                                model->height, model->width));
    NodeId x = build_input(b.graph, "input", &type, settings->loc);
    NodeId *shortcuts = arena_array(arena, (size_t)model->level_count, sizeof *shortcuts);
    NodeId pooled = NO_NODE;
    for (int i = 0; i <= last; i++) {
        const Level *level = &model->levels[i];
        x = build_level(&b, i, x, &features);
        if (i < last && !settings->shortcut) continue;
        pooled =
            build_pooled(&b, level, BUILD_TEXT(&b, "heads.%d.1.", settings->shortcut ? i : 0), x);
        if (i == last) break;
        const char *prefix = BUILD_TEXT(&b, "heads.%d.4.", i);
        NodeId weight =
            build_weight(&b, prefix, "weight", BUILD_TEXT(&b, "d %ld, c %ld", 2 * dim, level->dim),
                         2 * dim, level->dim, level->loc);
        NodeId bias = build_weight(&b, prefix, "bias", BUILD_TEXT(&b, "d %ld", 2 * dim), 2 * dim, 0,
                                   level->loc);
        shortcuts[i] = build_linear(b.graph, pooled, weight, bias, "c", level->loc);
    }
    for (int i = last - 1; settings->shortcut && i >= 0; i--)
        pooled = apply_shortcut(&b, i, shortcuts[i], pooled);
    int64_t classes = settings->num_classes;
    NodeId weight =
        build_weight(&b, "classifier.", "weight", BUILD_TEXT(&b, "class %ld, c %ld", classes, dim),
                     classes, dim, settings->loc);
    NodeId bias = build_weight(&b, "classifier.", "bias", BUILD_TEXT(&b, "class %ld", classes),
                               classes, 0, settings->loc);
    NodeId logits = build_linear(b.graph, pooled, weight, bias, "c", settings->loc);
    graph_add_output(b.graph, "logits", "forward", logits);
    RAFTC_ASSERT(features == model->feature_count);
    return b.graph;
}

Graph *build_graph(Arena *arena, const Model *model)
{
    return build(arena, model, false);
}

Graph *build_dropping_graph(Arena *arena, const Model *model)
{
    return build(arena, model, true);
}
