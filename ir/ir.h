/* ir.h: the tensor IR. ir.md has the grammar and says what each op computes.
 *
 *   Axis      a name and an extent: `h 56`, or `b` whose extent is the symbol b, known at run time
 *   Type      dtype and up to 8 axes, row-major in the order given: f32[b, h 56, w 56, c 64]
 *   Layout    how a stored value is laid out where it is not row-major (packed weights)
 *   Index     an affine expression of the axes of some type: raft*32 + group, h*4 + ky - 2
 *   Map       one Index for each axis of a tensor: where reads and writes find their elements
 *   Node      one op: operands in, one value out. A value and the node that makes it share a number
 *   Kernel    a run of consecutive nodes that become one function; a loop over `axes` encloses them
 *   Graph     nodes in an order in which each comes after its operands, outputs, kernels
 *
 * Inside a kernel a value from outside is used only through `read`, and a value leaves it only
 * through `write`; so the results of writes, the inputs and the parameters are all that is ever
 * stored in memory. Nodes outside kernels have whole tensors for operands, each stored.
 *
 * Axis names carry the meaning: `linear` contracts axes by name, `add` broadcasts by name.
 * Everything lives in the graph's arena and is addressed by dense index, in program order.
 */
#ifndef RAFTC_IR_H
#define RAFTC_IR_H

#include "ir/base.h"

enum { MAX_AXES = 8, NAME_SIZE = 16, MAX_NODES = 1 << 16 };

typedef enum { DTYPE_F32, DTYPE_BF16, DTYPE_I32 } DType;

typedef struct Axis {
    char name[NAME_SIZE];   /* letters, digits and _, first a letter; unique in its type */
    char symbol[NAME_SIZE]; /* "" where the extent is a constant */
    int64_t extent;         /* at least 1; 0 where the extent is a symbol */
} Axis;

typedef struct Type {
    DType dtype;
    int rank;
    Axis axis[MAX_AXES];
} Type;

/* Where dimension i of the storage lies in the logical tensor: it counts (axis / divisor) % extent.
 * rank 0: row-major. Extents are rounded up, so that a packed tensor may hold zeros for padding:
 * `packed (k/14 16, c 64, k 14)` has 16 * 64 * 14 elements. */
typedef struct Layout {
    int rank;
    struct {
        int axis; /* index into the type's axes */
        int64_t divisor, extent;
    } dim[MAX_AXES];
} Layout;

/* Sum of coefficient[i] * (axis i of the index space) + offset. */
typedef struct Index {
    int64_t offset;
    int64_t coefficient[MAX_AXES];
} Index;

typedef struct Map {
    int rank;
    Index dim[MAX_AXES];
} Map;

typedef struct AxisNames {
    int count;
    char name[MAX_AXES][NAME_SIZE];
} AxisNames;

/* One term of a rearrange: the axes `from` (outermost first) become the axes `to`; the products of
 * their extents are equal. The extents of `to` are those of the result's type. */
typedef struct Group {
    AxisNames from, to;
} Group;

/* One sliding window of an unfold: axis `from` becomes position `outer` and offset `inner`, with
 * from = outer * stride + inner - pad; zero outside. */
typedef struct Window {
    char from[NAME_SIZE], outer[NAME_SIZE], inner[NAME_SIZE];
    int64_t kernel, stride, pad;
} Window;

enum {
    ATTR_NAME = 1,     /* name */
    ATTR_STORED = 2,   /* stored_rank, stored */
    ATTR_GROUPS = 4,   /* groups, group_count */
    ATTR_WINDOWS = 8,  /* windows, window_count */
    ATTR_OVER = 16,    /* over */
    ATTR_OFFSET = 32,  /* offset */
    ATTR_MAP = 64,     /* map */
    ATTR_EPS = 128,    /* eps */
    ATTR_FACTOR = 256, /* factor */
    ATTR_TILE = 512,   /* tile_rows, tile_vectors */
};

typedef struct Attributes {
    const char *name;  /* of an input or parameter; a parameter's is [A-Za-z0-9_.]+ */
    int stored_rank;   /* of a parameter: its shape in the weight file, */
    int64_t stored[4]; /* of which the type's axes are a row-major split */
    int group_count;
    Group *groups; /* axes in no group stay; the order is that of the result's type */
    int window_count;
    Window *windows; /* likewise */
    AxisNames over;  /* the axes contracted, normalised, averaged, resampled or joined */
    int64_t offset;  /* slice: first index */
    double eps;
    double factor;                   /* of a scale: not 0 */
    int64_t tile_rows, tile_vectors; /* the register tile of a linear; 0: by rule */
    Map map;                         /* read: of the result's axes, one Index per operand axis;
                write: of the operand's axes, one Index per result axis */
} Attributes;

typedef enum {
#define OP(NAME, ...) OP_##NAME,
#include "ir/op.def"
#undef OP
    OP_COUNT
} Op;

enum { MANY = 255 };
typedef enum { MIX_NONE, MIX_OVER, MIX_TAPS, MIX_ALL } Mix;
typedef enum { COST_NONE, COST_OVER, COST_TAPS } CostKind;
typedef enum { NOT_LINEAR, LINEAR_TOGETHER, LINEAR_IN_EACH, LINEAR_IN_FIRST } Linearity;

typedef struct OpInfo {
    const char *name;
    int least_operands, most_operands;
    unsigned attributes; /* ATTR_ bits */
    Mix mixes;
    CostKind cost;
    Linearity linear;
} OpInfo;

extern const OpInfo op_info[OP_COUNT];

typedef uint32_t NodeId; /* also the number of the value that the node makes */
#define NO_NODE UINT32_MAX

enum { NO_KERNEL = -1, MOST_SUMS = 64 /* of a register tile */ };

typedef struct Node {
    Op op;
    uint32_t operand_count;
    NodeId *operands;
    Type type;     /* of the value */
    Layout layout; /* of the value, where it is stored; rank 0: row-major */
    Attributes attributes;
    int kernel; /* index into Graph.kernels, or NO_KERNEL */
    Loc loc;
} Node;

/* The axes are outermost first; each unit of work of the kernel is one block of `tile` consecutive
 * indices along each of them (tile 1: one index). Every value in the kernel that is not constant
 * along such an axis is computed point by point along it. */
typedef struct Kernel {
    const char *name; /* derived from its ops by kernel_name; only for people */
    int rank;
    Axis axis[MAX_AXES];
    int64_t tile[MAX_AXES];
    int64_t block; /* units that run side by side; 0: by rule, here and below */
    int64_t part;  /* lanes that each of two products takes in its turn */
    /* An axis that is none of these, along which each unit goes, so many indices at a time: every value is computed point by
     * point along it, too, but products that sum over it, and have a step's part added in every step. "": there is none. */
    char walk[NAME_SIZE];
    int64_t step;
} Kernel;

typedef struct Output {
    const char *name;  /* "logits", "feature0" */
    const char *entry; /* the function of the library that computes it: "forward", "features" */
    NodeId value;
} Output;

typedef struct Graph {
    Arena *arena;
    const char *name; /* [A-Za-z_][A-Za-z0-9_]* */
    Node *nodes;
    uint32_t node_count, node_capacity;
    Kernel *kernels;
    uint32_t kernel_count, kernel_capacity;
    Output *outputs;
    uint32_t output_count, output_capacity;
} Graph;

/* ---- type.c: types, axes, indices --------------------------------------------------------- */

Axis axis_constant(const char *name, int64_t extent);
Axis axis_symbol(const char *name); /* extent symbol of the same name */
bool axis_same_extent(const Axis *a, const Axis *b);
/* Index of the axis called `name`, or -1. */
int type_find(const Type *type, const char *name);
bool type_equal(const Type *a, const Type *b); /* dtype, names, extents, order */
/* Product of the constant extents; *symbols counts the symbolic axes left out (may be NULL).
 * Saturates at INT64_MAX. */
int64_t type_elements(const Type *type, int *symbols);
/* Builds a type from text like "b, h 56, c 64"; a bug if the text is wrong. For passes and tests.
 */
Type type_make(DType dtype, const char *axes);
Type type_without(const Type *type, const AxisNames *names);
void type_append(Type *type, const Axis *axis);

AxisNames names_make(const char *names); /* from "raft, h" */
bool names_contain(const AxisNames *names, const char *name);
bool names_equal(const AxisNames *a, const AxisNames *b);

Index index_axis(int axis);                               /* the axis itself */
Map map_identity(const Type *operand, const Type *space); /* by name; a bug where one is missing */
bool map_is_identity(const Map *map, int rank);
/* Least and greatest value of the index over the space; false where a symbol takes part beyond the
 * plain axis itself (then it is in range by construction). */
bool index_range(const Index *index, const Type *space, int64_t *least, int64_t *greatest);
/* May the index be outside the axis, somewhere in the space? */
bool index_may_leave(const Index *index, const Type *space, const Axis *target);
/* May the map leave the bounds of `target`? */
bool map_may_leave(const Map *map, const Type *space, const Type *target);
/* result(i) = outer(inner(i)): the map of a read of a read. */
Map map_compose(const Map *outer, const Map *inner, int inner_space_rank);

/* Storage dimensions of a value: its layout's, or its axes in order. Elements per symbol product.
 */
int64_t layout_elements(const Type *type, const Layout *layout);
Layout layout_row_major(const Type *type); /* explicit form of rank 0 */

/* ---- graph.c: building and changing graphs -------------------------------------------------- */

Graph *graph_new(Arena *arena, const char *name);
/* Appends a node and returns its number. Operands are copied into the arena. */
NodeId graph_add(Graph *graph, Op op, const NodeId *operands, uint32_t count, const Type *type,
                 const Attributes *attributes, Loc loc);
void graph_add_output(Graph *graph, const char *name, const char *entry, NodeId value);
static inline Node *graph_node(const Graph *graph, NodeId id)
{
    RAFTC_ASSERT(id < graph->node_count);
    return &graph->nodes[id];
}
static inline const Type *graph_type(const Graph *graph, NodeId id)
{
    return &graph_node(graph, id)->type;
}

/* One function per op that derives the type of the result. The names of `over` and the like are
 * given as text ("raft, h"). Operand types that do not fit are a bug: check_* is for users' text.
 */
NodeId build_input(Graph *g, const char *name, const Type *type, Loc loc);
NodeId build_param(Graph *g, const char *name, const Type *type, int rank, const int64_t *stored,
                   Loc loc);
/* groups as text, "c -> (raft, group)" or "(raft, group) -> c; h -> y"; `type` is the result's. */
NodeId build_rearrange(Graph *g, NodeId x, const char *groups, const Type *type, Loc loc);
NodeId build_unfold(Graph *g, NodeId x, const Window *windows, int count, const Type *type,
                    Loc loc);
NodeId build_slice(Graph *g, NodeId x, const char *axis, int64_t offset, int64_t extent, Loc loc);
NodeId build_concat(Graph *g, const NodeId *xs, uint32_t count, const char *axis, Loc loc);
NodeId build_read(Graph *g, NodeId x, const Map *map, const Type *type, Loc loc);
NodeId build_write(Graph *g, NodeId x, const Map *map, const Type *type, Loc loc);
/* x without `over`, then the axes of w that are neither in `over` nor in x. bias may be NO_NODE. */
NodeId build_linear(Graph *g, NodeId x, NodeId w, NodeId bias, const char *over, Loc loc);
NodeId build_layernorm(Graph *g, NodeId x, NodeId scale, NodeId shift, const char *over, double eps,
                       Loc loc);
NodeId build_unary(Graph *g, Op op, NodeId x, Loc loc);            /* gelu, sqrt, pack */
NodeId build_binary(Graph *g, Op op, NodeId a, NodeId b, Loc loc); /* add, mul, div: type of a */
/* mean, sum: without the axes in `over`. */
NodeId build_reduction(Graph *g, Op op, NodeId x, const char *over, Loc loc);
NodeId build_scale(Graph *g, NodeId x, double factor, Loc loc);
/* To new extents of two axes, given by name in `over` ("h, w"), in the same place in the type. */
NodeId build_resample(Graph *g, NodeId x, const char *over, int64_t first, int64_t second, Loc loc);
NodeId build_cross_entropy(Graph *g, NodeId logits, NodeId target, const char *over, Loc loc);

/* Number of uses of each value, outputs included. */
uint32_t *graph_uses(const Graph *graph, Arena *arena);
/* Which values depend on parameters alone: what `prepare` computes. */
bool *graph_param_only(const Graph *graph, Arena *arena);
/* Multiply-adds of a node for one image (symbols count as 1), by its op's cost rule. */
int64_t op_cost(const Graph *graph, NodeId id);
/* Derived, for people: norm_linear_gelu_linear_add. */
const char *kernel_name(const Graph *graph, int kernel, Arena *arena);
/* Index into the kernel's axes, or -1. */
int kernel_find(const Kernel *kernel, const char *name);
/* First node and one past the last of a kernel. */
void kernel_range(const Graph *graph, int kernel, NodeId *first, NodeId *end);

/* A new graph in `arena` under construction from an old one. Passes copy nodes over in order, each
 * with its operands renumbered, and add others in between; nothing is changed in place. */
typedef struct Rewriter {
    const Graph *from;
    Graph *to;
    NodeId *renamed; /* number in `to` of each value of `from`; NO_NODE: not copied yet */
} Rewriter;

Rewriter rewriter_new(const Graph *from, Arena *arena);
/* Copies node `id`, operands renumbered, unless it is copied already; returns its new number. */
NodeId rewriter_copy(Rewriter *rewriter, NodeId id);
static inline NodeId rewriter_value(const Rewriter *rewriter, NodeId id)
{
    RAFTC_ASSERT(rewriter->renamed[id] != NO_NODE);
    return rewriter->renamed[id];
}
/* Copies the outputs, whose values have been copied. */
void rewriter_copy_outputs(Rewriter *rewriter);
/* Does that, drops nodes that reach none of them, and returns the graph. */
Graph *rewriter_finish(Rewriter *rewriter);
/* A copy without nodes that reach no output (inputs and parameters stay). */
Graph *graph_without_dead(const Graph *graph, Arena *arena);

/* ---- print.c, parse.c, verify.c, check.c ---------------------------------------------------- */

void graph_print(const Graph *graph, Text *out);
void double_print(double value, Text *out); /* the shortest that reads back as the same */
void type_print(const Type *type, Text *out);
void map_print(const Map *map, const Type *space, Text *out); /* [b, h, w, raft*32 + group] */
void node_print(const Graph *graph, NodeId id, Text *out);    /* one line, without the newline */

/* Parses and verifies. NULL with messages on any fault; never crashes, whatever the text. */
Graph *graph_parse(Arena *arena, const Source *source, Diag *diag);

/* Checks every rule of ir.md; true if all hold. Runs after every pass. */
bool graph_verify(const Graph *graph, Diag *diag);

/* check.c: the shape rule of one op, given operands of any type and the type declared for its
 * result. An error at the node's place, or true. */
typedef bool CheckFunction(const Graph *graph, NodeId id, Diag *diag);
extern CheckFunction *const op_check[OP_COUNT];

/* ---- bicubic.c ---------------------------------------------------------------------------- */

/* The four source indices (clamped to the edge) and weights of output `i` when `in` samples become
 * `out`: cubic convolution with a = -0.75, half-pixel centres, source coordinate in float32. */
void bicubic_taps(int64_t in, int64_t out, int64_t i, int64_t index[4], float weight[4]);

/* The same from the other side: which outputs sample i takes part in, and with which weights, are entries
 * start[i] to before start[i + 1], in order of the outputs. In `arena`. */
typedef struct BicubicAdjoint {
    int64_t *start; /* in + 1 */
    int64_t *output;
    float *weight;
} BicubicAdjoint;

BicubicAdjoint bicubic_adjoint(Arena *arena, int64_t in, int64_t out);

#endif
