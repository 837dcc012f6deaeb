/* product.h: what product.c and slab.c share: how one product is cut into tiles and slabs. */
#ifndef RAFTC_CUDA_PRODUCT_H
#define RAFTC_CUDA_PRODUCT_H

#include "backends/cuda/emit.h"

enum { ROWS, LANES };
/* Slabs in memory: one is computed with while the others are on their way; where a multiprocessor has few threads, none
 * of which can do something else meanwhile, more are. */
enum { MOST_SLABS = 2, SPAN_SLABS = 3, FINE_SLABS = 5 };

typedef struct Row {
    const char *axis, *name;    /* r0, r1: the row within the tile, or so many steps of them */
    int64_t step, tile, extent; /* extent of the axis: rows past it are not stored */
    bool edge;                  /* are there such rows? */
} Row;

/* One operand: that with the rows, or that with the lanes. */
typedef struct Side {
    NodeId operand;
    int dim_count;
    ItemDim dim[MAX_AXES]; /* tiles along the axes of the result that only this operand has */
    bool of_unit; /* it differs from unit to unit: tiles of several units lie side by side */
    bool staged;  /* it is brought to shared memory in slabs */
    int64_t tiles, teams;      /* tiles in all; how many the teams work on at a time */
    int64_t slab, tile_floats; /* where in a slab its part begins; of one tile there */
    const char *first, *team;  /* text: the present tile is their sum */
} Side;

typedef struct Tile {
    const Stage *stage;
    const Product *p;
    const Node *linear;
    bool both;          /* do both operands have the lanes? */
    bool rows_together; /* slabs hold the rows of each index of the sum side by side */
    int64_t rows, width;
    int64_t
        teams; /* that have tiles: the others of the block do what the last does, and store nothing */
    int row_count, group; /* lanes that follow one another in one thread */
    Row row[2];
    int edge_count;
    Row edge[MAX_AXES];  /* axes without a tile of their own, of which the last units have less */
    int64_t lane_extent; /* of the axis: lanes past it are not stored */
    bool lane_edge;
    int lane_axis; /* of the kernel, of which the unit has no whole tile; or -1 */
    Side side[2];
    bool unit_outer; /* units one after the other: both operands differ, or none */
    int outer_count;
    ItemDim outer[MAX_AXES];    /* axes of the result that both operands have */
    int64_t inner, depth;       /* extent of the sum's last axis; indices of it in a slab */
    int64_t slabs, slab_floats; /* slabs: of each image where the sum goes over the batch */
    bool over_batch;
    int spans;            /* parts of a long sum, of as many slabs each, added in order */
    int64_t threads;      /* of the block that work on one span at a time */
    int buffers, at_once; /* slabs in memory; indices of the sum that are loaded together */
} Tile;

/* ---- tile.c ---- */

Tile find_tile(Writer *w, const Stage *stage);
/* Do the sums of a thread take most of its registers? */
bool has_many_sums(const Tile *t);
/* Have threads of their own all spans, at the same time? */
bool has_span_threads(const Writer *w, const Tile *t);

/* ---- product.c ---- */

void at_rows(Writer *w, const Tile *t, bool clamped);
/* Holds coordinates inside the axes that have no tile of their own: those of one operand, or all where
 * `side` is NULL. */
void clamp_edges(Writer *w, const Tile *t, const Side *side);
Sum row_number(Writer *w, const Tile *t);
/* Names the indices of tile `index` of an operand and sets coordinates to its first element. */
void enter_side(Writer *w, const Side *side, const char *index);
/* Holds the lane's coordinate inside what the unit has of the axis. */
void clamp_lane(Writer *w, const Tile *t);
const char *last_lane(Writer *w, const Tile *t);
void enter_slab(Writer *w, const Tile *t);
/* The number of all slabs, and the type of such a number. */
const char *slabs_text(Writer *w, const Tile *t);
const char *slab_type(const Writer *w, const Tile *t);
/* The number of this thread among those that work on the same span, named anew. */
const char *thread_text(Writer *w, const Tile *t);

/* Opens the loops over the rows of a tile, or over those that are there. Returns how many blocks that takes. */
int open_rows(Writer *w, const Tile *t);
int open_rows_here(Writer *w, const Tile *t);
void close_blocks(Writer *w, int count);
/* Opens a block in which coordinates are those of the present tile. What they take is computed anew in each, not kept
 * while the sums need all registers. */
void open_tile(Writer *w, const Tile *t, bool again);
/* The sum of this thread in vector v of the present row. */
const char *sum_name(Writer *w, const Tile *t, int v);
/* Where a write puts the lanes of this thread, or the slot of the stage's end: `store` says what to do with so many that lie
 * side by side. */
void at_stored_lanes(Writer *w, const Tile *t, NodeId id,
                     void (*store)(Writer *, const Tile *, const Spot *, int count, int v));

/* ---- span.c ---- */

/* After the last slab of a span of `own` slabs: its sums are added to those of the spans before. `here`: the condition that this
 * thread has results, or "". */
void end_span(Writer *w, const Tile *t, int64_t own, const char *here);
/* The sums of all spans, which threads have taken side by side, to those that have the first. */
void join_spans(Writer *w, const Tile *t);

/* ---- slab.c ---- */

/* Before the sums of a round of tiles: the first slabs are on their way. */
void start_slabs(Writer *w, const Tile *t);
/* At the start of the loop over slabs: slab `slab` is there, and the next one on its way. */
void next_slab(Writer *w, const Tile *t);

#endif
