/* random_model.c: random settings that cover what a settings file can ask for, kept small. */
#include "tests/random_model.h"

#include "frontend/frontend.h"
#include "tests/random.h"

#include <inttypes.h>
#include <string.h>

/* What is to be larger than two register tiles (28 rows, 64 lanes) and no multiple of one. */
typedef enum { BEYOND_NOTHING, BEYOND_SIDE, BEYOND_DIM } Beyond;

typedef struct Sketch {
    Random *random;
    Beyond beyond;
    bool raft, cross, shortcut, deep; /* deep: one level of enough layers for features */
    int levels;
    int64_t height, width, pretrained, channels, classes, token_factor, channel_factor;
} Sketch;

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t beyond_tile(Random *random, int64_t least, int64_t most, int64_t tile)
{
    int64_t n = random_from(random, least, most);
    return n % tile ? n : n + 1;
}

static Sketch draw_sketch(Random *random, Beyond beyond)
{
    Sketch s = {.random = random, .beyond = beyond};
    s.raft = beyond == BEYOND_SIDE || random_chance(random, 60);
    s.cross = random_chance(random, 60);
    s.shortcut = random_chance(random, 50);
    s.levels = (int)random_from(random, 1, random_chance(random, 20) ? 4 : 3);
    s.height = s.width = random_from(random, 8, 28);
    if (beyond == BEYOND_SIDE) s.height = s.width = beyond_tile(random, 29, 47, 14);
    if (random_chance(random, 25)) s.width = random_from(random, 8, 28);
    s.pretrained = random_chance(random, 60) ? s.height : random_from(random, 8, 28);
    s.deep = s.levels == 1 && random_chance(random, 20);
    /* The bound of the errors grows by up to 3.6 with each layer that resamples and comes back. */
    if (s.deep && random_chance(random, 80)) s.width = s.pretrained = s.height;
    s.channels = random_from(random, 1, 5);
    s.classes = random_from(random, 1, 70);
    s.token_factor = random_from(random, 1, 5);
    s.channel_factor = random_from(random, 1, 5);
    return s;
}

static int64_t draw_patch(const Sketch *s, int level, int64_t side)
{
    if (level == 0 && s->beyond == BEYOND_SIDE) return 1;
    if (random_chance(s->random, 10)) return smaller(side, 8); /* often a 1x1 grid */
    return random_from(s->random, 1, level == 0 ? 5 : 3);
}

static int64_t draw_raft(Random *random, int64_t dim)
{
    int64_t raft = random_from(random, 1, smaller(dim, 8));
    while (dim % raft) raft--;
    return raft;
}

/* The patch itself, then windows of whole patches around it, some of them equal. */
static void put_kernels(const Sketch *s, int64_t patch, Text *text)
{
    int64_t step = patch % 2 ? 2 * patch : patch;
    text_printf(text, "  embedding_kernels: [%" PRId64, patch);
    for (int64_t i = random_from(s->random, 0, 4); i > 0; i--)
        text_printf(text, ", %" PRId64, patch + step * random_from(s->random, 0, 3));
    text_put(text, "]\n");
}

static void put_levels(const Sketch *s, Text *text)
{
    int64_t channels = s->channels, side = smaller(s->height, s->width);
    text_put(text, "layers:\n");
    for (int level = 0; level < s->levels; level++) {
        int64_t patch = draw_patch(s, level, side), dim = random_from(s->random, 4, 48);
        int64_t depth = s->deep ? random_from(s->random, 10, 11) : random_from(s->random, 1, 2);
        if (s->beyond == BEYOND_DIM && level == s->levels - 1)
            dim = beyond_tile(s->random, 65, 100, 32);
        /* A LayerNorm over one to three channels magnifies errors beyond measure. */
        if (!s->cross && patch == 1 && channels < 4) patch = 2;
        if (!s->cross && patch == 1) dim = channels; /* there is no embedding to change it */
        text_printf(text, "- depth: %" PRId64 "\n  dim: %" PRId64 "\n  patch_size: %" PRId64 "\n",
                    depth, dim, patch);
        if (s->raft) text_printf(text, "  raft_size: %" PRId64 "\n", draw_raft(s->random, dim));
        if (s->cross) put_kernels(s, patch, text);
        channels = dim;
        side = (side + patch - 1) / patch;
    }
}

static const char *draw_settings(const Sketch *s, Arena *arena)
{
    Text text = text_new(arena);
    text_printf(&text, "# image: %" PRId64 "x%" PRId64 "\n", s->height, s->width);
    text_printf(&text, "token_mixing_type: %s\n", s->raft ? "ser_pm" : "original_tm");
    text_printf(&text, "embedding_type: %s\n", s->cross ? "emb_cross_mlp" : "emb_mixer");
    text_printf(&text, "pretrained_image_size: %" PRId64 "\n", s->pretrained);
    text_printf(&text, "in_channels: %" PRId64 "\n", s->channels);
    text_printf(&text, "num_classes: %" PRId64 "\n", s->classes);
    text_printf(&text, "token_expansion_factor: %" PRId64 "\n", s->token_factor);
    text_printf(&text, "channel_expansion_factor: %" PRId64 "\n", s->channel_factor);
    text_printf(&text, "shortcut: %s\n", s->shortcut ? "true" : "false");
    put_levels(s, &text);
    return text.data;
}

static bool is_beyond(const Model *model, Beyond beyond)
{
    bool found = beyond == BEYOND_NOTHING;
    for (int i = 0; i < model->level_count; i++) {
        const Level *level = &model->levels[i];
        found |= beyond == BEYOND_SIDE && level->height > 28 && level->height % 14;
        found |= beyond == BEYOND_DIM && level->dim > 64 && level->dim % 32;
    }
    return found;
}

static int64_t graph_work(const Graph *graph)
{
    int64_t work = 0;
    for (NodeId id = 0; id < graph->node_count; id++)
        work += op_cost(graph, id) + type_elements(graph_type(graph, id), NULL);
    return work;
}

Graph *random_model(Arena *arena, uint64_t seed, int64_t most_work, const char **settings,
                    Diag *diag)
{
    Random random = {seed};
    Beyond beyond = BEYOND_NOTHING;
    if (seed % 3 == 0) beyond = random_chance(&random, 50) ? BEYOND_SIDE : BEYOND_DIM;
    for (;;) {
        Sketch sketch = draw_sketch(&random, beyond);
        *settings = draw_settings(&sketch, arena);
        const Source *source = diag_add_source(diag, "random.yaml", *settings, strlen(*settings));
        Settings *parsed = settings_parse(arena, source, NULL, 0, diag);
        Model *model =
            parsed ? model_resolve(arena, parsed, NULL, sketch.height, sketch.width, diag) : NULL;
        if (!model) return NULL;
        if (!is_beyond(model, beyond)) continue;
        Graph *graph = build_graph(arena, model);
        if (graph_work(graph) <= most_work) return graph;
    }
}
