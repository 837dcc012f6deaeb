/* emit.h: the parts of the CUDA emitter: from the schedule of a kernel to CUDA C++ text.
 *
 *   Sum      an index under construction: constant + sum of variable * scale. Kept symbolic, with the range of each
 *            variable, so that the tiles of packed layouts divide out and the text shows strides
 *   Writer   the state of writing one kernel
 *
 * A thread block takes `block` units of work at a time. Each stage of the schedule is one loop over items that are shared out
 * over threads (maps, means, windows), warps (statistics) or teams (products), and ends with a barrier. A team, 8 threads
 * of a warp, is what a vector register is on a CPU: the lanes of a register tile are its threads, `vectors` times over,
 * and each thread keeps the sums of all rows of the tile. So the teams of a warp, which have different tiles, load little
 * for many sums. Every sum has one order, so results do not depend on the grid.
 */
#ifndef RAFTC_CUDA_EMIT_H
#define RAFTC_CUDA_EMIT_H

#include "backends/backend.h"
#include "passes/schedule.h"

enum {
    WARP = 32,
    TEAM = 8,
    MAX_TERMS = 16,
    MAX_COORDINATES = 64,
    LEAST_STAGING = 8 << 10,
    MOST_STAGING = 80 << 10,
    FINE_VECTORS = 4
};

typedef struct Sum {
    int64_t constant;
    int count;
    struct {
        const char *name; /* an expression of C that needs no parentheses in a product */
        int64_t scale;
        int64_t extent; /* the variable is in [0, extent); 0: not known */
    } term[MAX_TERMS];
} Sum;

typedef struct Writer {
    Arena *arena;
    Diag *diag;
    const Plan *plan;
    const Graph *graph;
    const Target *target;
    const Step *step;
    Text *out;         /* the kernels */
    Text *tables;      /* constants that kernels share; before them */
    const char *index; /* the type of indices of elements, units and images */
    Schedule schedule;
    int threads;    /* of a thread block */
    int blocks;     /* that are to fit on a multiprocessor */
    int64_t shared; /* bytes of shared memory that a block may take */
    bool fine; /* the shape for few images is being written: registers are plenty, warps are few */
    int64_t scratch;    /* bytes of all units of a block */
    int64_t staging;    /* floats of shared memory for slabs of operands */
    int temporaries;    /* names v0, v1, .. given out in this kernel */
    Sum base[MAX_AXES]; /* first index along each axis of the kernel, in the present unit */
    int coordinate_count;
    struct {
        const char *axis;
        Sum at;
    } coordinate[MAX_COORDINATES]; /* the last of a name counts */
    const char **
        computed; /* of each node: an expression of its value at the present coordinates, or NULL */
} Writer;

/* ---- sum.c ---- */

Sum sum_constant(int64_t constant);
Sum sum_term(const char *name, int64_t scale, int64_t extent);
Sum sum_add(Writer *w, Sum a, const Sum *b, int64_t scale); /* a + b * scale */
Sum sum_divide(Writer *w, const Sum *a, int64_t divisor);
Sum sum_modulo(Writer *w, const Sum *a, int64_t divisor);
const char *sum_text(Writer *w, const Sum *a);
bool sum_is_constant(const Sum *a);

void push_coordinate(Writer *w, const char *axis, Sum at);
const Sum *coordinate_at(Writer *w, const char *axis);
Sum map_index(Writer *w, const Index *index, const Type *space);

/* ---- value.c ---- */

/* An expression of the value of a node at the present coordinates; lines that it needs are written before. */
const char *value_text(Writer *w, NodeId id);
const char *slot_text(Writer *w,
                      const Slot *slot); /* the element of a slot at the present coordinates */
Sum window_start(Writer *w, const Node *read, int d);
const char *stored_text(Writer *w, NodeId stored, const Sum at[MAX_AXES]);
/* An index that may be below 0, or not below the extent: then the element is 0. */
typedef struct Bound {
    Sum at;
    bool below, above;
    int64_t extent;
} Bound;

/* Where an element lies in memory. */
typedef struct Spot {
    const char *base; /* text: unit, or an argument */
    Sum at;           /* index from there */
    int bound_count;
    Bound bound[MAX_AXES];
    NodeId value; /* that is stored */
    bool stored;  /* in an argument, not in scratch */
} Spot;

const char *inside_text(Writer *w,
                        const Spot *spot); /* the condition that it is not outside; "": never */

/* Finds where the value of a node lies, or a write puts it, at the present coordinates. False: nowhere. */
bool find_spot(Writer *w, NodeId id, Spot *spot);
/* Also, whether the elements at `count` indices of an axis lie side by side from there, aligned to their size. */
bool find_floats(Writer *w, NodeId id, const char *axis, int count, Spot *spot);
/* Writes the statement that stores `value` where a write puts the element at the present coordinates. */
void write_store(Writer *w, NodeId write, const char *value);
const char *new_name(Writer *w);
const char *float_text(Writer *w, float value); /* a literal of the same value */
/* A statement, or a line that opens or closes a block. */
void line(Writer *w, const char *format, ...) PRINTF_LIKE(2, 3);
void open_block(Writer *w, const char *format, ...) PRINTF_LIKE(2, 3);
void close_block(Writer *w);

/* ---- gradient.c ---- */

const char *gelu_grad_text(Writer *w, NodeId id);
const char *layernorm_grad_text(Writer *w, NodeId id);
const char *cross_entropy_text(Writer *w, NodeId id);
const char *cross_entropy_grad_text(Writer *w, NodeId id);
const char *resample_grad_text(Writer *w, NodeId id);
/* What a warp takes of the group of a layernorm_grad beyond mean and variance, and of that of a loss; both store it. */
void write_gradient_means(Writer *w, const Node *node, const Place *place, const char *inverse);
void write_loss_statistics(Writer *w, const Node *node, const Place *place);

/* ---- fine.c ---- */

/* Thread blocks that one image takes in the present shape. */
int64_t count_blocks(const Writer *w);
/* Goes over to the shape for few images: graph, schedule, scratch, staging. False, with any of them changed: there is none. */
bool choose_fine(Writer *w);

/* ---- tidy.c ---- */

/* The text of a kernel without declarations that nothing uses. */
const char *tidy(Arena *arena, const char *text);

/* ---- stage.c, product.c ---- */

/* Opens the loop over the items of a stage and sets coordinates. An item is one of the `block` units and one tile of each
 * dim; `by_warp`: items are shared out over warps, else over threads. */
typedef struct ItemDim {
    const char *axis; /* NULL: a dim that is not an axis; its variable is `name` */
    const char *name;
    int64_t count;   /* tiles along it */
    int64_t tile;    /* indices in a tile; the coordinate is set to the first of them */
    int kernel_axis; /* of which the unit holds part, or -1 */
} ItemDim;

/* How many tiles lie along the outermost axis of the kernel, if it is of constant extent: they are blocks' own, no block
 * has units of two. Else 1. */
int64_t outermost_tiles(const Writer *w);
/* Have all units of a block the same index along the axis? */
bool kernel_axis_is_fixed(const Writer *w, int k);
/* Sets what the coordinates along such axes are. */
void enter_block(Writer *w);
/* Names the indices of unit g of the block along the other axes and sets base[] and coordinates; clamped: of the last
 * unit, where there is no unit g. */
void enter_unit(Writer *w, bool clamped);
/* `of` / before % count, without what changes nothing; count 0: it is below that. */
const char *digit_text(Writer *w, const char *of, int64_t before, int64_t count);
void push_dims(Writer *w, const ItemDim *dim, int count);
void open_items(Writer *w, const ItemDim *dim, int count, bool by_warp);
/* Opens a loop over the elements of a group of a node's first operand, every 32nd for each thread of a warp. */
void open_elements(Writer *w, const Node *node);
/* Dims of tile 1 for every constant axis of `type` but those in `without`. */
int list_dims(Writer *w, const Type *type, const AxisNames *without, ItemDim dim[MAX_AXES]);
/* The condition that a coordinate along a kernel axis is inside its extent; skips the item where not. */
void skip_outside(Writer *w, const ItemDim *dim, int count);
/* The value of a node that has a slot, computed rather than loaded: the slot is what is being filled. */
const char *fresh_value(Writer *w, NodeId id);
void write_stage(Writer *w, const Stage *stage);
void write_product(Writer *w, const Stage *stage);
int64_t product_tiles(Writer *w, const Stage *stage); /* of the result of one unit */
/* What it should take in the present shape, in cycles of a multiprocessor that has one block. */
int64_t product_cycles(Writer *w, const Stage *stage);
/* Stores the end of a stage at the present coordinates. */
void store_stage_end(Writer *w, const Stage *stage, const char *value);

#endif
