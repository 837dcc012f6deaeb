/* reference.h: the oracle: every op as plain loops, in float and double, and bounds of the errors.
 *
 *   Run       one evaluation of a graph: what the functions of the ops work on
 *   Walk      offsets into one tensor at the points of an index space, in row-major order
 *   MapWalk   the same where a Map, not the axes' names, says which element belongs to a point
 *
 * A value is a dense array in the order of its type's axes, the batch in place of every symbol.
 * Layouts and kernels make no difference here: a packed tensor is its elements, a kernel its body.
 *
 * Internal to this folder, its tests and tests that compare a backend with the bounds.
 */
#ifndef RAFTC_REFERENCE_H
#define RAFTC_REFERENCE_H

#include "backends/backend.h"

/* ---- run.c ---------------------------------------------------------------------------------- */

/* Computes every value that reaches an output and keeps it: values[id], of node_count, is malloced
 * here and freed by the caller; NULL where the value reaches no output. False with a message, and
 * nothing kept, where memory runs out or a tensor is missing. */
bool reference_evaluate(const Graph *graph, int64_t batch, const ReferenceTensor *tensors,
                        int tensor_count, bool f64, void **values, Diag *diag);

/* Doubles, bounds[id][i] >= |element i of value id in any f32 evaluation - values[id][i]|, for the
 * values that reference_evaluate gave in f64. Any f32 evaluation: sums in any order and in any
 * number of parts, products fused with additions or not, LayerNorm's variance from the differences
 * to the mean, divisions and roots rounded correctly, GELU off by GELU_ERROR * |x|, results that
 * underflow perhaps flushed to zero; but nothing overflows. Ownership as above. */
bool reference_bound(const Graph *graph, int64_t batch, void **values, void **bounds, Diag *diag);

/* What an f32 GELU may add to the error of its operand x, as a multiple of |x|: three roundings of
 * 2^-24, the rest for an approximation of Phi with an absolute error of 4e-7. */
#define GELU_ERROR 6e-7
/* What its slope may be off by. */
#define GELU_GRAD_ERROR 1e-6
/* Relative errors of exp and, where that is more than 1, absolute of log; else relative to 1. */
#define EXP_ERROR 5e-7
#define LOG_ERROR 5e-7

/* ---- ops ------------------------------------------------------------------------------------ */

typedef struct Run {
    const Graph *graph;
    int64_t batch;
    const ReferenceTensor *tensors;
    int tensor_count;
    void **values;         /* of all nodes; those of the node and of its operands are there */
    void **bounds;         /* likewise, for the functions of bound.c */
    ReferenceFault *fault; /* NULL: not looked for */
    Diag *diag;
} Run;

/* Computes value `id` of the run, whose elements are still zero. False: a message was given. */
typedef bool OpFunction(const Run *run, NodeId id);

#define OP(NAME, ...) OpFunction reference_##NAME##_f32, reference_##NAME##_f64, bound_##NAME;
#include "ir/op.def"
#undef OP

typedef struct OpReference {
    OpFunction *f32, *f64, *bound;
} OpReference;

extern const OpReference op_reference[OP_COUNT];

/* With no more points than this to compute, starting threads costs more than it saves. */
enum { FEW_POINTS = 4096 };

/* The tensor of the caller for an input or parameter, or NULL with a message. */
const float *run_tensor(const Run *run, const Node *node);
/* Says that memory ran out at the node, and returns false. */
bool run_out_of_memory(const Run *run, NodeId id);

static inline const Node *run_node(const Run *run, NodeId id)
{
    return graph_node(run->graph, id);
}
static inline const Type *run_type(const Run *run, NodeId id)
{
    return graph_type(run->graph, id);
}
static inline NodeId run_operand(const Run *run, NodeId id, uint32_t index)
{
    return graph_node(run->graph, id)->operands[index];
}

/* ---- walk.c --------------------------------------------------------------------------------- */

/* A space without axes is walked as one axis of extent 1, so that every space has rows: the runs of
 * `inner` points along its last axis. */
typedef struct Walk {
    int rank;
    int64_t extent[MAX_AXES], stride[MAX_AXES]; /* in elements of the tensor */
    int64_t inner, rows;
} Walk;

typedef struct MapWalk {
    Walk space;
    Map map;
    int64_t extent[MAX_AXES], stride[MAX_AXES]; /* of the tensor that the map leads to */
} MapWalk;

/* Number of elements of a value; false where it overflows. */
bool value_elements(const Type *type, int64_t batch, int64_t *elements);

/* The points of `space` in `tensor`, whose axes of the same names it follows; it stands still along
 * axes that the tensor lacks. */
Walk walk_names(const Type *space, const Type *tensor, int64_t batch);
static inline int64_t walk_points(const Walk *walk)
{
    return walk->rows * walk->inner;
}
/* The step from a point to the next in its row. */
static inline int64_t walk_step(const Walk *walk)
{
    return walk->stride[walk->rank - 1];
}
/* A walk of `space` through operand number `index` of value `id`. */
Walk operand_walk(const Run *run, NodeId id, const Type *space, uint32_t index);
/* The offset of point number `point`. */
int64_t walk_offset(const Walk *walk, int64_t point);
/* The offsets of all points, malloced; NULL where memory runs out. */
int64_t *walk_table(const Walk *walk);

/* The axes called `names`, in that order. */
Type type_select(const Type *type, const AxisNames *names);

MapWalk map_walk(const Map *map, const Type *space, const Type *target, int64_t batch);
/* The indices along the target's axes of the first point of a row. */
void map_walk_row(const MapWalk *walk, int64_t row, int64_t at[MAX_AXES]);
/* The offset of point j of the row that starts at `at`; -1 where the map leaves the target. */
static inline int64_t map_walk_offset(const MapWalk *walk, const int64_t at[MAX_AXES], int64_t j)
{
    int last = walk->space.rank - 1;
    int64_t offset = 0;
    for (int i = 0; i < walk->map.rank; i++) {
        int64_t index = at[i] + walk->map.dim[i].coefficient[last] * j;
        if (index < 0 || index >= walk->extent[i]) return -1;
        offset += index * walk->stride[i];
    }
    return offset;
}

/* ---- places.c: where the elements that an op takes lie -------------------------------------- */

/* The axes of operand and result in the order in which a rearrange lets them correspond: point i of
 * one space is point i of the other. */
void rearrange_spaces(const Node *node, const Type *operand, Type *from, Type *to);
/* The map of an unfold or slice: of the result's axes, one Index per operand axis. */
Map window_map(const Node *node, const Type *operand);
Map slice_map(const Node *node, const Type *operand);

/* Of a layernorm and its like: the first elements of the groups that are normalised, and from there
 * to each element of x (and the result), of the second and of the third operand, if there are. */
typedef struct Normal {
    Walk outer;
    int64_t count;
    int64_t *x, *scale, *shift;
} Normal;
/* False where memory runs out; normal_free in any case. */
bool normal_tables(const Run *run, NodeId id, Normal *normal);
void normal_free(Normal *normal);

/* One index along a resampled axis: four taps, as offsets into the operand, where the sum goes. */
typedef struct Tap {
    int64_t offset[4], result;
    float weight[4];
} Tap;
typedef struct Taps {
    Tap *tap; /* malloced */
    int64_t count;
} Taps;
/* The taps along the two axes of `over`; of an adjoint those of the resampling, which go from its
 * result to its operand. False where memory runs out; free both in any case. */
bool resample_taps(const Run *run, NodeId id, bool adjoint, Taps *first, Taps *second);

#endif
