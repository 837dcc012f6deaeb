/* build.h: what build.c and build_blocks.c share. */
#ifndef RAFTC_BUILD_H
#define RAFTC_BUILD_H

#include "frontend/frontend.h"

/* Of every LayerNorm in the paper. */
#define LAYERNORM_EPS 1e-5

typedef struct Builder {
    Graph *graph;
    const Model *model;
    Arena *arena;
    bool masks; /* where training drops branches and elements, they are multiplied by an input */
} Builder;

/* A parameter called `prefix` + `suffix`; its type's axes split the stored shape [rows] or [rows,
 * columns] (columns 0: a vector). `axes` as for type_make. */
NodeId build_weight(Builder *b, const char *prefix, const char *suffix, const char *axes,
                    int64_t rows, int64_t columns, Loc loc);
/* Text in the builder's arena. */
#define BUILD_TEXT(b, ...) arena_printf((b)->arena, __VA_ARGS__)

/* One layer of a level on tokens [b, h, w, c]; `prefix` is "levels.I.fn.J." */
NodeId build_raft_layer(Builder *b, const Level *level, const char *prefix, NodeId x);
NodeId build_mixer_layer(Builder *b, const Level *level, const char *prefix, NodeId x);

#endif
