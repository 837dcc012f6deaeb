/* build_blocks.c: the layers of a level: raft and Mixer token mixing, and the channel block. */
#include "frontend/build.h"

#include <string.h>

/* LayerNorm parameters over the axes `axes` ("group 32, raft 2"), stored as one vector. */
static NodeId normalise(Builder *b, const Level *level, const char *prefix, const char *axes,
                        const char *over, NodeId x)
{
    NodeId scale = build_weight(b, prefix, "weight", axes, level->dim, 0, level->loc);
    NodeId shift = build_weight(b, prefix, "bias", axes, level->dim, 0, level->loc);
    return build_layernorm(b->graph, x, scale, shift, over, LAYERNORM_EPS, level->loc);
}

/* x times the input `mask.NAME`, where the graph has masks: f32[b] or, for dropout, of x's own type. */
static NodeId mask(Builder *b, double rate, const char *name, const Type *type, NodeId x, Loc loc)
{
    if (!b->masks || rate == 0) return x;
    NodeId factor = build_input(b->graph, BUILD_TEXT(b, MASK_PREFIX "%s", name), type, loc);
    return build_binary(b->graph, OP_MUL, x, factor, loc);
}

static NodeId drop_elements(Builder *b, const char *prefix, const char *name, NodeId x, Loc loc)
{
    Type type = *graph_type(b->graph, x);
    return mask(b, b->model->settings->dropout, BUILD_TEXT(b, "%s%s", prefix, name), &type, x, loc);
}

static NodeId drop_branch(Builder *b, const char *prefix, NodeId x, Loc loc)
{
    Type type = type_make(DTYPE_F32, "b");
    const char *name = BUILD_TEXT(b, "%.*s", (int)strlen(prefix) - 1, prefix);
    return mask(b, b->model->settings->drop_path_rate, name, &type, x, loc);
}

/* residual + fc2(gelu(fc1(normal))), contracting the axes `over`, which are `inner` ("raft 2, h
 * 56"; `size` elements) with extents. Parameters: prefix fn.0 and fn.3; dropout is fn.2 and fn.4. */
static NodeId residual_mlp(Builder *b, const Level *level, const char *prefix, const char *over,
                           const char *inner, int64_t size, int64_t expansion, NodeId residual,
                           NodeId normal)
{
    Graph *g = b->graph;
    int64_t hidden = size * expansion;
    NodeId w1 = build_weight(b, prefix, "fn.0.weight", BUILD_TEXT(b, "k %ld, %s", hidden, inner),
                             hidden, size, level->loc);
    NodeId b1 =
        build_weight(b, prefix, "fn.0.bias", BUILD_TEXT(b, "k %ld", hidden), hidden, 0, level->loc);
    NodeId w2 = build_weight(b, prefix, "fn.3.weight", BUILD_TEXT(b, "%s, k %ld", inner, hidden),
                             size, hidden, level->loc);
    NodeId b2 = build_weight(b, prefix, "fn.3.bias", inner, size, 0, level->loc);
    NodeId k = build_linear(g, normal, w1, b1, over, level->loc);
    k = build_unary(g, OP_GELU, k, level->loc);
    k = drop_elements(b, prefix, "fn.2", k, level->loc);
    k = build_linear(g, k, w2, b2, "k", level->loc);
    k = drop_elements(b, prefix, "fn.4", k, level->loc);
    return build_binary(g, OP_ADD, residual, drop_branch(b, prefix, k, level->loc), level->loc);
}

static NodeId channel_block(Builder *b, const Level *level, const char *prefix, NodeId x)
{
    const char *axes = BUILD_TEXT(b, "c %ld", level->dim);
    NodeId normal = normalise(b, level, BUILD_TEXT(b, "%snorm.", prefix), axes, "c", x);
    return residual_mlp(b, level, prefix, "c", axes, level->dim,
                        b->model->settings->channel_expansion_factor, x, normal);
}

/* One axis block on [b, h, w, raft, group]. The trap: the parameters of its LayerNorm are indexed
 * group * raft_size + raft, while the channel is raft * groups + group. */
static NodeId axis_block(Builder *b, const Level *level, const char *prefix, const char *axis,
                         NodeId x)
{
    int64_t groups = level->dim / level->raft;
    NodeId normal =
        normalise(b, level, BUILD_TEXT(b, "%snorm.1.", prefix),
                  BUILD_TEXT(b, "group %ld, raft %ld", groups, level->raft), "raft, group", x);
    return residual_mlp(b, level, prefix, BUILD_TEXT(b, "raft, %s", axis),
                        BUILD_TEXT(b, "raft %ld, %s %ld", level->raft, axis, level->grid),
                        level->raft * level->grid, b->model->settings->token_expansion_factor, x,
                        normal);
}

/* Tokens between the actual grid and the mixing grid. */
static NodeId resample_tokens(Builder *b, const Level *level, NodeId x, int64_t h, int64_t w)
{
    if (level->height == level->grid && level->width == level->grid) return x;
    return build_resample(b->graph, x, "h, w", h, w, level->loc);
}

NodeId build_raft_layer(Builder *b, const Level *level, const char *prefix, NodeId x)
{
    x = resample_tokens(b, level, x, level->grid, level->grid);
    Type tokens = *graph_type(b->graph, x);
    Type rafts =
        type_make(DTYPE_F32, BUILD_TEXT(b, "b, h %ld, w %ld, raft %ld, group %ld", level->grid,
                                        level->grid, level->raft, level->dim / level->raft));
    x = build_rearrange(b->graph, x, "c -> (raft, group)", &rafts, level->loc);
    x = axis_block(b, level, BUILD_TEXT(b, "%s1.", prefix), "h", x);
    x = axis_block(b, level, BUILD_TEXT(b, "%s3.", prefix), "w", x);
    x = build_rearrange(b->graph, x, "(raft, group) -> c", &tokens, level->loc);
    x = resample_tokens(b, level, x, level->height, level->width);
    return channel_block(b, level, BUILD_TEXT(b, "%s5.", prefix), x);
}

NodeId build_mixer_layer(Builder *b, const Level *level, const char *prefix, NodeId x)
{
    x = resample_tokens(b, level, x, level->grid, level->grid);
    NodeId normal = normalise(b, level, BUILD_TEXT(b, "%s1.norm.1.", prefix),
                              BUILD_TEXT(b, "c %ld", level->dim), "c", x);
    x = residual_mlp(b, level, BUILD_TEXT(b, "%s1.", prefix), "h, w",
                     BUILD_TEXT(b, "h %ld, w %ld", level->grid, level->grid),
                     level->grid * level->grid, b->model->settings->token_expansion_factor, x,
                     normal);
    x = resample_tokens(b, level, x, level->height, level->width);
    return channel_block(b, level, BUILD_TEXT(b, "%s3.", prefix), x);
}
