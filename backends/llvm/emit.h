/* emit.h: the parts of the LLVM backend.
 *
 *   Affine      a 64-bit index under construction: constant + sum of value * scale. Kept symbolic
 * so that tiles can be divided out of packed layouts and rows of a register tile share one address
 *   Lanes       the axis along which the value being computed is a vector, and how many of its
 * lanes count Emitter     the state of emitting one kernel
 *
 * A kernel function walks blocks of units; each stage loops over the units of a block, so that a
 * panel of weights that was fetched once serves all of them. All loops are explicit, all sums have
 * one order, and nothing depends on how units are shared out.
 */
#ifndef RAFTC_EMIT_H
#define RAFTC_EMIT_H

#include <llvm-c/Core.h>

#include "backends/backend.h"
#include "passes/schedule.h"

enum { MAX_TERMS = 12, MAX_COORDINATES = 48, MAX_TILE = 64 };

typedef struct Affine {
    int64_t constant;
    int count;
    struct {
        LLVMValueRef value; /* i64 */
        int64_t scale;
    } term[MAX_TERMS];
} Affine;

typedef struct Lanes {
    const char *axis; /* NULL: a single number */
    int width;        /* 1 where axis is NULL */
    int active;       /* of the width; the others are of any value and never stored */
} Lanes;

typedef struct Coordinate {
    const char *axis;
    Affine at;
} Coordinate;

/* What is done with the sums of a product: all of it, one of the steps of a chain, or one of a kernel that walks. */
typedef enum { SUMS_WHOLE, SUMS_START, SUMS_ADD, SUMS_FINISH, SUMS_WALK } SumsStep;

/* Two products, of which the second contracts over the lanes of the first. They take turns, each
 * time for a part of these lanes, so that what the first leaves and the second reads stays in the
 * cache; between the turns the sums of the second are kept in scratch memory. No sum is split.
 * Or one product alone, the second, of a long sum. */
typedef struct Chain {
    const Stage *first, *second; /* NULL: there is none */
    const char *axis;            /* the lanes of the first, over which the second sums, */
    int64_t part;                /* so many at a time */
    Affine start;                /* of the present part; */
    int64_t count;               /* 0: no part is present */
    Slot sums;
} Chain;

/* Strides that are arguments of a function, since kernels that share it have others. */
typedef struct TwinStrides {
    KernelStrides of; /* those of the kernel that is emitted */
    int argument
        [MAX_STRIDES]; /* number of each among the arguments: strides that are always equal are one */
    int argument_count;
} TwinStrides;

typedef struct Loop Loop;

typedef struct Emitter {
    Arena *arena;
    Diag *diag;
    const Plan *plan;
    const Graph *graph;
    const Target *target;
    bool sanitized; /* every access is to be seen: none in assembly */
    LLVMContextRef context;
    LLVMModuleRef module;
    LLVMBuilderRef builder, entry_builder; /* the latter stays at the end of the allocas */
    LLVMTypeRef f32, i32, i64, pointer;
    LLVMValueRef function;

    /* the kernel */
    const Step *step;
    Schedule schedule;
    LLVMValueRef *buffer;       /* base of each argument of the step */
    const TwinStrides *strides; /* that the function is told when it runs; NULL: none */
    LLVMValueRef batch;
    LLVMValueRef adds; /* i1: does it add to what is where it writes? NULL: it never does */
    Chain chain;
    SumsStep step_of_sums;
    const Slot *sums;            /* where sums are kept between the steps; NULL: */
    NodeId sums_write;           /* in the memory to which they are written in the end */
    const Stage *parted;         /* a product whose sum is being taken in parts, or NULL, and */
    Affine part_start[MAX_AXES]; /* where the present part starts along each axis of the sum, */
    Affine panel_start;          /* and the present tile of lanes */
    LLVMValueRef gelu_room;      /* of gelu.c; NULL: not needed yet */

    /* the unit being emitted */
    LLVMValueRef scratch;       /* of the unit */
    LLVMValueRef unit;          /* the present one */
    LLVMValueRef unit_of_block; /* among those that the present panel serves; NULL: no panel */
    Affine base[MAX_AXES];      /* first index along each axis of the kernel */
    Affine walked;              /* and along that which it walks */
    int64_t extent[MAX_AXES];   /* indices along it, in this variant */

    /* the value being emitted */
    int coordinate_count;
    Coordinate coordinate[MAX_COORDINATES]; /* the last of a name counts */
    LLVMValueRef *computed; /* of each node: its value at the present coordinates, or NULL */
    Loop *counted;          /* a loop that counts multiples of its index beside it, or NULL */
} Emitter;

/* ---- builder.c: constants, loops, memory ---------------------------------------------------- */

enum { MOST_MULTIPLES = 6 };

struct Loop {
    LLVMBasicBlockRef before, body, exit;
    LLVMValueRef index; /* i64; from 0 */
    LLVMValueRef count;
    int multiples; /* of the index that are counted beside it: */
    struct {
        int64_t scale;
        LLVMValueRef value;
    } multiple[MOST_MULTIPLES];
};

typedef struct Branch {
    LLVMBasicBlockRef otherwise, end;
} Branch;

LLVMValueRef int_constant(Emitter *e, int64_t value);
LLVMValueRef float_constant(Emitter *e, float value, int width);
LLVMTypeRef float_type(Emitter *e, int width); /* f32 or a vector of it */
LLVMValueRef splat(Emitter *e, LLVMValueRef scalar, int width);
LLVMValueRef multiply_add(Emitter *e, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c);
/* The same of the number in memory at `at` and vectors of 16, in one instruction of AVX-512. */
LLVMValueRef multiply_add_loaded(Emitter *e, LLVMValueRef at, LLVMValueRef b, LLVMValueRef c);
/* A call of the intrinsic `name` overloaded on the type of the first argument. */
LLVMValueRef intrinsic(Emitter *e, const char *name, LLVMValueRef *arguments, unsigned count);
LLVMValueRef address(Emitter *e, LLVMValueRef base, const Affine *offset); /* of a float */
LLVMValueRef load_lanes(Emitter *e, LLVMValueRef base, const Affine *offset, const Lanes *lanes,
                        bool padded);
void store_lanes(Emitter *e, LLVMValueRef value, LLVMValueRef base, const Affine *offset,
                 const Lanes *lanes, bool padded);
/* A vector of which the lanes where `mask` is false are zero and not read. */
LLVMValueRef load_masked(Emitter *e, LLVMValueRef base, const Affine *offset, LLVMValueRef mask,
                         LLVMTypeRef type);
/* That at `at` to the L2 cache, if there is one: for loads, or for stores to come. */
void fetch_line(Emitter *e, LLVMValueRef at, bool to_write);
/* That at `at` to the L1 cache, for loads. */
void fetch_near(Emitter *e, LLVMValueRef at);
/* A constant in memory; those that are equal may become one. */
LLVMValueRef global_constant(Emitter *e, const char *name, LLVMValueRef value);
LLVMValueRef stack_slot(Emitter *e, LLVMTypeRef type); /* an alloca in the entry block */
/* A loop of at least one turn; emit its body between the two calls. */
Loop loop_begin(Emitter *e, LLVMValueRef count);
/* The index of a loop that counts, times `scale`: an addition in each turn, where a copy and a shift would be more. */
LLVMValueRef loop_multiple(Emitter *e, Loop *loop, int64_t scale);
void loop_end(Emitter *e, Loop *loop);
/* Emit what is to run where the condition holds after the first call, where it does not after the second. */
Branch branch_begin(Emitter *e, LLVMValueRef condition);
void branch_else(Emitter *e, Branch *branch);
void branch_end(Emitter *e, Branch *branch);

/* ---- affine.c ------------------------------------------------------------------------------- */

Affine affine_constant(int64_t constant);
Affine affine_value(LLVMValueRef value, int64_t scale);
Affine affine_add(Emitter *e, Affine a, const Affine *b, int64_t scale); /* a + b * scale */
Affine affine_scale(Affine a, int64_t scale);
Affine affine_divide(Emitter *e, const Affine *a, int64_t divisor); /* floor; a is not negative */
Affine affine_modulo(Emitter *e, const Affine *a, int64_t divisor);
LLVMValueRef affine_emit(Emitter *e, const Affine *a); /* as i64 */

void coordinate_push(Emitter *e, const char *axis, Affine at);
const Affine *coordinate_of(Emitter *e, const char *axis);
Affine index_at(Emitter *e, const Index *index, const Type *space); /* at the present coordinates */

/* ---- value.c -------------------------------------------------------------------------------- */

/* The value of a node at the present coordinates, as lanes.width floats along lanes.axis. */
LLVMValueRef emit_value(Emitter *e, NodeId id, Lanes lanes);
Affine slot_offset(Emitter *e, const Slot *slot);
LLVMValueRef load_slot(Emitter *e, const Slot *slot, Lanes lanes);
/* Lane by lane: for what no vector can give. */
LLVMValueRef emit_each_lane(Emitter *e, NodeId id, Lanes lanes);
/* First index, along axis d of the operand, of the window of a read in the present unit. */
Affine window_base(Emitter *e, const Node *read, int d);
/* i1, or NULL for true: both. */
LLVMValueRef emit_and(Emitter *e, LLVMValueRef a, LLVMValueRef b);
/* i1 lanes: is start + lane below `bound`, and the lane below `count`? A negative index is a huge one. */
LLVMValueRef lanes_below(Emitter *e, LLVMValueRef start, int64_t bound, int64_t count);
/* Do consecutive indices along axis `axis`, from `at` on, lie side by side in the storage of the
 * value? */
bool is_contiguous(Emitter *e, NodeId stored, int axis, const Affine *at, int width);
LLVMValueRef buffer_of(Emitter *e, NodeId stored);
Affine storage_offset(Emitter *e, NodeId stored, const Affine at[MAX_AXES]);

/* ---- write.c -------------------------------------------------------------------------------- */

/* Stores the value at the present coordinates where a write puts it, or adds it to what is there. */
void emit_write(Emitter *e, NodeId write, LLVMValueRef value, Lanes lanes);
/* The place of the element at the present coordinates in what a write stores. */
Affine written_offset(Emitter *e, NodeId write);
/* What is there, and storing it as it is, where a write puts lanes side by side. */
LLVMValueRef load_written(Emitter *e, NodeId write, Lanes lanes);
void store_written(Emitter *e, NodeId write, LLVMValueRef value, Lanes lanes);
/* Can the kernel add to what is where it writes? It can if none of that is of one image. */
bool adds_up(const Emitter *e);

/* ---- gelu.c --------------------------------------------------------------------------------- */

/* gelu, or its slope, of each of the `count` values, in place. */
void emit_gelu(Emitter *e, LLVMValueRef *x, int count, int width);
/* Values whose polynomials are best taken together: registers hold them. */
int gelus_together(const Emitter *e);
/* The same, by groups of so many. */
void emit_gelu_groups(Emitter *e, LLVMValueRef *x, int count, int width);
void emit_gelu_slope(Emitter *e, LLVMValueRef *x, int count, int width);

/* ---- elementary.c ---------------------------------------------------------------------------- */

LLVMValueRef emit_exp(Emitter *e, LLVMValueRef x, int width);
LLVMValueRef emit_log(Emitter *e, LLVMValueRef x, int width); /* x is 1 or more */

/* ---- gradient.c ------------------------------------------------------------------------------- */

LLVMValueRef emit_layernorm_grad(Emitter *e, NodeId id, Lanes lanes);
LLVMValueRef emit_cross_entropy(Emitter *e, NodeId id, Lanes lanes);
LLVMValueRef emit_cross_entropy_grad(Emitter *e, NodeId id, Lanes lanes);
LLVMValueRef emit_resample_grad(Emitter *e, NodeId id, Lanes lanes);

/* ---- stage.c, reduce.c, product.c: loop nests --------------------------------------------------------- */

/* One axis of a loop nest, walked in tiles. At the leaf, `start` and `count` describe the tile. */
typedef struct Dim {
    const char *axis;
    Affine base;
    int64_t extent, tile; /* extent 0: a symbol, the batch */
    Affine start;
    int64_t count;
} Dim;

typedef struct Nest Nest;
struct Nest {
    Emitter *e;
    const Stage *stage;
    int count;
    Dim dim[MAX_AXES];
    void (*leaf)(Nest *nest);
};

/* Emits the loops of nest->dim[from..]; each leaf sees every tile's start and (constant) size. */
void emit_nest(Nest *nest, int from);
/* The axis `axis` of a value in the present unit, as a dim of the given tile. */
Dim unit_dim(Emitter *e, const Axis *axis, int64_t tile);
/* Dims for every constant axis of `type` but those in `without`, vectors along `lane`. */
void add_dims(Nest *nest, const Type *type, const AxisNames *without, const char *lane);
Lanes tile_lanes(const Emitter *e, const char *axis, int64_t count);
/* Lanes at a leaf: those of the dim along `lane`. */
Lanes leaf_lanes(const Nest *nest, const char *lane);
void emit_statistics(Emitter *e, const Stage *stage);
void emit_reduction(Emitter *e, const Stage *stage);
void emit_stage(Emitter *e, const Stage *stage); /* for the present unit and variant */
void emit_product(Emitter *e, const Stage *stage,
                  const Dim *lanes); /* lanes: the tile of lanes to do, or NULL: all */
void emit_tiles(Emitter *e, const Stage *stage, const Dim *lanes); /* its present step */
/* What the next part takes of the operands may lie far apart in memory: each tile fetches its share of the
 * lines, some in each turn of its loop, for a core waits for but a few at a time. */
typedef struct PartFetch {
    int64_t share[2];      /* lines of each operand; 0: none */
    LLVMValueRef noted[2]; /* where they lie, from `part` on */
    LLVMValueRef part[2];
} PartFetch;

/* The share of the present tile of the nest, and of the lanes around it. */
void fetch_begin(PartFetch *fetch, const Nest *tiles, const Dim *lanes);
void fetch_turn(Emitter *e, const PartFetch *fetch, LLVMValueRef turn, int64_t turns);
void emit_parts(Emitter *e, const Stage *stage); /* parts.c: one whose sum is taken in parts */
/* Stores the end of a stage, lanes at the present coordinates. */
void store_end(Emitter *e, const Stage *stage, Lanes lanes);

/* ---- turn.c ----------------------------------------------------------------------------------- */

/* Swaps element j of vector i with element i of vector j, of `width` vectors so wide. */
void emit_transpose(Emitter *e, LLVMValueRef *vector, int width);
/* The dim of the nest along the axis, which it has. */
const Dim *dim_of(const Nest *nest, const char *axis);
void emit_turn(Emitter *e, const Stage *stage); /* a value again, with other lanes, to its slot */
/* A copy of what is read to where elements lie side by side along another axis; false: it is none. */
bool emit_turned_copy(Emitter *e, const Stage *stage);

/* ---- chain.c --------------------------------------------------------------------------------- */

/* Looks for a chain in the schedule, and cuts its scratch memory down. */
void find_chain(Emitter *e);

static inline bool has_long_sum(const Emitter *e)
{
    return e->chain.second && !e->chain.first;
}

/* Does each unit have the lanes of one panel of weights, which those beside it share? */
bool lanes_are_shared_out(const Emitter *e, const Stage *stage);

/* ---- kernel.c ------------------------------------------------------------------------------- */

/* The first index along each axis of the kernel for unit number `unit`. */
void unit_base(Emitter *e, LLVMValueRef unit, Affine *base);
/* The number of a unit that comes soon after the present one: the next, but where units of panels are parts of a row, that at
 * the same place of the next row. */
LLVMValueRef later_unit(Emitter *e);

/* How many units share their index along the kernel's first axis. */
LLVMValueRef units_beside(Emitter *e);

enum { KERNEL_PARAMETERS = 5 }; /* of a RaftKernel; strides come behind them */

/* Emits the function of a step. *code but its symbol is filled in; scratch in *scratch_bytes. */
bool emit_kernel(Emitter *e, const Step *step, const char *symbol, const TwinStrides *strides,
                 StepCode *code, int64_t *scratch_bytes);

/* ---- twins.c -------------------------------------------------------------------------------- */

/* What tells the kernels of steps apart. */
typedef struct StepKey {
    const char *exact, *strided;
    KernelStrides strides;
    int same; /* first step of the same exact key */
} StepKey;

/* Do steps behind step s have its kernel with other strides? Of them all `strides` tells the arguments. */
bool find_twins(const StepKey *key, int count, int s, TwinStrides *strides);
/* e->function is shared by step s and its twins: a function of each that calls it, and its code. */
void emit_twins(Emitter *e, const StepKey *key, int count, int s, const TwinStrides *strides,
                StepCode *steps);

/* ---- module.c ------------------------------------------------------------------------------- */

const char *kernel_symbol(Emitter *e, int step);

#endif
