/* products.h: how the products of a kernel are cut for registers. One analysis that choose_tiles
 * and pack_weights write into the graph and that the vector backend reads off again: both see the
 * same tile.
 *
 * The result of a `linear` is computed in register tiles of rows x lanes. Lanes are `vectors`
 * vectors along one axis that lies contiguously in memory; one operand has that axis and is loaded
 * as vectors, the other is loaded one number a row.
 */
#ifndef RAFTC_PRODUCTS_H
#define RAFTC_PRODUCTS_H

#include "passes/pass.h"

enum { LINE = 16 }; /* floats that lie in one line of the cache */

typedef struct Product {
    const char *lane; /* axis of the vectors; NULL: the result is a single number */
    bool lane_in_x, lane_in_w;
    int vectors;   /* in a full tile */
    int load_cost; /* of a vector; 1: as of a number */
    int row_count; /* 0, 1 or 2 axes of the result make up the rows, outer first, */
    const char *row[2];
    int64_t row_tile[2]; /* so many consecutive indices of each */
    bool rows_in_w;      /* are the rows axes of operand 1, or of operand 0? */
    /* A long sum is taken part by part: both operands of a part are brought to scratch memory in the
     * order in which they are read, and all tiles of a unit take it in before the next. */
    bool in_parts;
    int64_t part[MAX_AXES]; /* indices in a part along each axis that is summed over */
    bool of_images;         /* do both operands differ from image to image? */
    bool rows_together;     /* for threads: do those of a tile lie side by side in memory? */
} Product;

/* For each node of the kernel the name of the axis along which vectors run, or NULL; by number of
 * the node less that of the first in the kernel. */
const char **kernel_lanes(const Graph *graph, int kernel, const Target *target, Arena *arena);
/* The axis of a read, or of the gelu of one, along which it walks memory one element at a time, or NULL. */
const char *memory_lane(const Graph *graph, NodeId read);
/* The read for this operand alone: the operand itself, or what it is the gelu of. NO_NODE: there is none. */
NodeId own_read(const Graph *graph, NodeId operand);
/* The product that sums over the batch and takes value `id`, the gelu of its own read. NO_NODE: there is none. */
NodeId product_of_gelu(const Graph *graph, NodeId id);

/* Is it a sum over the batch, of what is read for it alone, that is taken part by part? */
bool product_in_parts(const Graph *graph, NodeId linear, const Target *target);
/* Do both operands differ from image to image? So they do in gradients of weights. */
bool product_of_images(const Graph *graph, NodeId linear);

/* Is an axis among those that the node sums over that of the batch? */
bool sums_over_batch(const Graph *graph, NodeId id);
/* Does the product add up what the steps of its kernel give, which walks an axis that it sums over? */
bool sums_walk(const Graph *graph, NodeId id);

/* The tile of a linear whose result has the lane axis `lane`: the node's own, or by rule. */
Product product_tile(const Graph *graph, NodeId linear, const char *lane, const Target *target);
/* Likewise with at most so many rows of so many vectors, whatever the node has; 0: by rule. */
Product product_of_tile(const Graph *graph, NodeId linear, const char *lane, const Target *target,
                        int64_t rows, int64_t vectors);
/* What the rule minimises: an estimate of the time. INT64_MAX: the tile has no rows. */
int64_t product_cost(const Graph *graph, NodeId linear, const Product *product,
                     const Target *target);
/* The same for a unit of a product in parts, a step along the sum: so many indices along its first row axis, and lanes. */
int64_t product_unit_cost(const Product *product, int64_t rows, int64_t lanes,
                          const Target *target);

/* What a step along the sum takes in a tile of so many rows, for threads that load up to four numbers at a time, in
 * instructions for four steps. */
int64_t product_step_cost(const Product *product, int64_t rows);

/* Indices of a full tile along an axis of the result. */
int64_t product_tile_along(const Product *product, const char *axis, const Target *target);

/* Rounded up. */
static inline int64_t ceil_divide(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* Of so many that lie side by side, how many a thread loads together. */
static inline int loaded_together(int64_t count)
{
    return count % 4 == 0 ? 4 : count % 2 == 0 ? 2 : 1;
}

/* Lanes of a full tile. */
static inline int64_t product_width(const Product *product, const Target *target)
{
    return (int64_t)product->vectors * target->vector_floats;
}

#endif
