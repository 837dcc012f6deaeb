/* random_ops.h: what random_graph.c and the files that make its ops share. */
#ifndef RAFTC_TESTS_RANDOM_OPS_H
#define RAFTC_TESTS_RANDOM_OPS_H

#include "ir/ir.h"
#include "tests/random.h"

/* No two draws stand in the arguments of one call: their order is the compiler's choice. */
typedef struct Maker {
    Graph *graph;
    Arena *arena;
    Random *random;
    int64_t most_elements; /* of a value */
    int declared;
} Maker;

/* Picks operands among the values that there are, makes what parameters it needs, and adds an op.
 * NO_NODE where nothing fits. The result may be too large: random_graph.c sees to that. */
typedef NodeId MakeFunction(Maker *m);

/* random_movement.c */
MakeFunction make_rearrange, make_unfold, make_slice, make_concat, make_read, make_write, make_pack;
/* random_arithmetic.c */
MakeFunction make_linear, make_layernorm, make_gelu, make_add, make_mul, make_mean, make_resample;
MakeFunction make_training;
/* random_patterns.c: what single passes look for */
MakeFunction make_mlp, make_head, make_embedding, make_twin;

/* random_kernels.c: the graph with some of its ops in kernels of any tiles. */
Graph *random_kernels(Maker *m);

/* ---- random_graph.c: choices ---------------------------------------------------------------- */

static inline int64_t from_to(Maker *m, int64_t least, int64_t most)
{
    return random_from(m->random, least, most);
}
static inline bool chance(Maker *m, int percent)
{
    return random_chance(m->random, percent);
}
static inline const Type *type_of(const Maker *m, NodeId id)
{
    return graph_type(m->graph, id);
}
static inline bool is_constant(const Axis *axis)
{
    return axis->symbol[0] == '\0';
}

/* A name that neither type has; `second` may be NULL. There are few names, so that equal names of
 * different extents are common. */
const char *fresh_name(Maker *m, const Type *first, const Type *second);
int64_t new_extent(Maker *m);
/* Changes the order of the axes from number `from` on. */
void shuffle(Maker *m, Type *type, int from);
/* Up to `most` new axes that `other` lacks, as long as the type stays small. */
void append_axes(Maker *m, Type *type, int64_t most, const Type *other);
/* Up to `most` of the constant axes of a type in any order, each with the given chance. */
Type some_axes(Maker *m, const Type *type, int percent, int most);
/* The index of one constant axis, or -1. */
int pick_axis(Maker *m, const Type *type);
AxisNames names_of(const Type *type);
const char *names_text(Maker *m, const AxisNames *names);

/* A value: recent ones more often, so that graphs get deep, and parameters seldom. */
NodeId pick(Maker *m);
/* Can `part` be broadcast to `whole`? */
bool is_part(const Type *part, const Type *whole);
/* A value that can be broadcast to `whole`: one that is there, or a parameter. */
NodeId pick_part(Maker *m, const Type *whole);
NodeId new_input(Maker *m, const Type *type);
/* A parameter, or what is computed of parameters. */
NodeId new_weight(Maker *m, const Type *type);

#endif
